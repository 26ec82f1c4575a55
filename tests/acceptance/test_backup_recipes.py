"""The recipes for backups in docs/operations.md, run as they stand there: backup, damage, repair from it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.damages import NEEDS_BYTES, Twins, twins
from tests.support.folders import remove_all
from tests.support.lacking import program
from tests.support.runs import tools_of
from tests.support.sites import Site

_GUIDE = Path(__file__).parents[2] / "docs" / "operations.md"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)


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


def recipe(heading: str, *programs: str) -> list[str]:
    """The commands below a heading of the guide, block by block; skips where a program of them lacks."""
    for name in programs:
        program(name)
    _, _, below = _GUIDE.read_text(encoding="utf-8").partition(f"\n{heading}\n")
    return _BLOCK.findall(re.split(r"^#", below, maxsplit=1, flags=re.MULTILINE)[0])


def shell(site: Site, commands: str) -> subprocess.CompletedProcess[str]:
    """Run commands as an operator does, with a backup's place beside the store, until one fails."""
    backup = site.folder / "backup"
    backup.mkdir(exist_ok=True)
    (backup / "password").write_text("of this test")
    here = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BACKUP": str(backup),
        "RESTIC_REPOSITORY": str(backup / "restic"),
        "RESTIC_PASSWORD_FILE": str(backup / "password"),
        "RESTIC_CACHE_DIR": str(backup / "cache"),
    }
    # The place that the guide gives as an example is not this test's.
    ours = "\n".join(line for line in commands.splitlines() if not line.startswith("export "))
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", ours],
        env={**site.env, **here},
        cwd=site.folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def succeeds(site: Site, commands: str) -> str:
    done = shell(site, commands)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def damage(store: Twins) -> None:
    """Two kinds at once, both beyond what the store has itself; found by a verification as in the guide."""
    NEEDS_BYTES["blob and manifest"](store)
    found = shell(store.site, "producer verify --store --report-dir reports")
    assert found.returncode == 4, found.stdout + found.stderr


@pytest.mark.slow
def test_restic_brings_back_what_the_store_lost(only_copy: Twins):
    once, nightly, repair = recipe("#### By restic", "restic", "jq")
    site = only_copy.site
    succeeds(site, once)
    succeeds(site, nightly)
    damage(only_copy)

    said = succeeds(site, repair)

    assert f"from {site.folder}/restored" in said
    only_copy.check_whole()


@pytest.mark.slow
def test_rsync_brings_back_what_the_store_lost(only_copy: Twins):
    nightly, repair = recipe("#### By rsync", "rsync")
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
    once, nightly, _ = recipe("#### By restic", "restic")
    by_rsync, _ = recipe("#### By rsync", "rsync")
    site = only_copy.site
    for commands in (once, nightly, by_rsync):
        succeeds(site, commands)

    for restore in re.findall(r"All of it, to an empty disk: `(.*?)`", _GUIDE.read_text(encoding="utf-8")):
        for lost in ("raw_datasets", "dataset_store"):
            remove_all(site.data_dir / lost)
        succeeds(site, restore)
        succeeds(site, "producer verify --store --report-dir reports")
        only_copy.check_whole()
