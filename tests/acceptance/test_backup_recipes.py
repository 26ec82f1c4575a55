"""The recipes for backups in docs/store.md, run as they stand there: backup, damage, repair from it."""

import re
from collections.abc import Iterator

import pytest

from tests.acceptance.recipes import GUIDE, recipe, shell, succeeds
from tests.support.damages import NEEDS_BYTES, Twins, twins
from tests.support.folders import remove_all
from tests.support.runs import tools_of
from tests.support.sites import Site


@pytest.fixture
def only_copy(shared_site: Site) -> Iterator[Twins]:
    """Give a store of which the legacy directories are gone: what it loses only a backup has."""
    with tools_of(shared_site) as tools:
        store = twins(shared_site, tools)
    remove_all(shared_site.legacy_root)
    shared_site.legacy_root.mkdir()
    yield store
    for made in ("backup", "restored"):
        if (shared_site.folder / made).exists():
            remove_all(shared_site.folder / made)


def damage(store: Twins) -> None:
    """Two kinds at once, both beyond what the store has itself; found by a verification as in the guide."""
    NEEDS_BYTES["blob and manifest"](store)
    found = shell(store.site, "producer verify --store --report-dir reports")
    assert found.returncode == 4, found.stdout + found.stderr


@pytest.mark.slow
def test_restic_brings_back_what_the_store_lost(only_copy: Twins):
    once, nightly, repair = recipe("### By restic", "restic", "jq")
    site = only_copy.site
    succeeds(site, once)
    succeeds(site, nightly)
    damage(only_copy)

    said = succeeds(site, repair)

    assert f"from {site.folder}/restored" in said
    only_copy.check_whole()


@pytest.mark.slow
def test_rsync_brings_back_what_the_store_lost(only_copy: Twins):
    nightly, repair = recipe("### By rsync", "rsync")
    site = only_copy.site
    succeeds(site, nightly)
    damage(only_copy)
    # The next night comes before anybody looks: what went bad does not spoil the backup.
    succeeds(site, nightly)

    said = succeeds(site, repair)

    assert f"from {site.folder}/backup" in said
    only_copy.check_whole()
    copies = {path.stat().st_ino for path in (site.folder / "backup" / "latest").rglob("*") if path.is_file()}
    stored = {
        path.stat().st_ino
        for path in site.data_dir.rglob("*")
        if path.is_file() and "quarantine" not in path.parts
    }
    assert len(copies) <= len(stored), "the backup has lost the hard links"


def test_a_whole_store_comes_back_from_either(only_copy: Twins):
    once, nightly, _ = recipe("### By restic", "restic")
    by_rsync, _ = recipe("### By rsync", "rsync")
    site = only_copy.site
    for commands in (once, nightly, by_rsync):
        succeeds(site, commands)

    for restore in re.findall(r"All of it, to an empty disk: `(.*?)`", GUIDE.read_text(encoding="utf-8")):
        for lost in ("raw_datasets", "dataset_store"):
            remove_all(site.data_dir / lost)
        succeeds(site, restore)
        succeeds(site, "producer verify --store --report-dir reports")
        only_copy.check_whole()
