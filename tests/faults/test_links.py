"""A blob that has all the links that its file system allows (ext4: 65,000): trees get copies, and all else
goes on as ever.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.estate import Project
from tests.support.runs import run_one, tools_of
from tests.support.sites import Site
from tests.support.studies import check_store, check_tree, damage, folder_of, staged, study
from worker.jobs import integrity
from worker.jobs.tools import Tools
from worker.legacy.hash import hash_tree
from worker.legacy.ingest import store_tree
from worker.legacy.scan import scan
from worker.messages import Outcome, Status, Verb

_MOST = 70_000
RECORDING = "day 1/accelerometer_data.csv"


@pytest.fixture
def site(module_site: Site) -> Site:
    """Keep the module's site as it is: bringing a blob to its limit is worth a second, and more than one
    test.
    """
    return module_site


@pytest.fixture(scope="module")
def first(module_site: Site) -> Iterator[tuple[Project, Outcome]]:
    """Migrate a project, and use up the links of the blob that its first recording is; both files of its
    second are free.
    """
    site = module_site
    project = study(site, "first", 1, 2)
    with tools_of(site) as tools:
        outcome = run_one(tools, Verb.MIGRATE, project.project_id)
    names = site.folder / "names"
    names.mkdir()
    try:
        use_up_links(Path(str(outcome.dataset_path)) / RECORDING, names)
        yield project, outcome
    finally:
        shutil.rmtree(names)


def use_up_links(path: Path, folder: Path) -> None:
    """Link a file until it cannot be linked any more, or skip: this file system lets it have more names than
    one can wait for.
    """
    for number in range(_MOST):
        try:
            os.link(path, folder / str(number))
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            return
    kind = subprocess.check_output(["stat", "-f", "-c", "%T", folder], text=True).strip()
    pytest.skip(f"a file on this file system ({kind}) may have more than {_MOST} links")


def migrate(tools: Tools, project: Project) -> tuple[Path, Outcome]:
    """Migrate one project; its dataset's tree and the outcome."""
    outcome = run_one(tools, Verb.MIGRATE, project.project_id)
    assert outcome.status is Status.MIGRATED, outcome
    return Path(str(outcome.dataset_path)), outcome


def blob_of(site: Site, path: Path) -> Path:
    """The blob that has the bytes of a file."""
    content = path.read_bytes()
    (found,) = (
        blob
        for blob in (site.settings.store_dir / "blobs").glob("*/*")
        if blob.stat().st_size == len(content) and blob.read_bytes() == content
    )
    return found


def test_a_tree_with_a_blob_at_its_link_limit_gets_a_copy_and_says_so(
    site: Site, tools: Tools, first: tuple[Project, Outcome]
):
    project = study(site, "second", 1, 3)
    blob = blob_of(site, folder_of(project) / RECORDING)

    tree, outcome = migrate(tools, project)

    check_tree(tree, project)
    assert outcome.links.reflink + outcome.links.copy == 1
    assert outcome.links.hard == 3
    assert (tree / RECORDING).stat().st_ino != blob.stat().st_ino
    assert (tree / RECORDING).stat().st_nlink == 1
    assert (outcome.files.stored, outcome.files.reused) == (2, 2)
    check_store(site)
    assert staged(site) == []
    check_tree(Path(str(first[1].dataset_path)), first[0])


def test_a_tree_with_copies_is_reused_like_any_other(
    site: Site, tools: Tools, first: tuple[Project, Outcome]
):
    assert first[1].links.hard == 4
    tree, outcome = migrate(tools, study(site, "one", 1, 4))
    equal = study(site, "its twin", 1, 4)

    again, reused = migrate(tools, equal)

    assert (again, reused.dataset_id, reused.dataset_created) == (tree, outcome.dataset_id, False)
    assert reused.bytes.stored == 0
    check_tree(again, equal)


def test_a_copy_that_went_bad_is_repaired_before_its_tree_is_reused(
    site: Site, tools: Tools, first: tuple[Project, Outcome]
):
    """A link shares its blob's fate and its checks; a copy has a fate of its own."""
    assert first[1].links.hard == 4
    tree, _ = migrate(tools, study(site, "goes bad", 1, 5))
    damage(tree / RECORDING)
    bad = (tree / RECORDING).read_bytes()
    equal = study(site, "its equal", 1, 5)

    again, outcome = migrate(tools, equal)

    check_tree(again, equal)
    assert (again, outcome.dataset_created, outcome.bytes.stored) == (tree, False, 0)
    assert bad in {path.read_bytes() for path in (site.settings.store_dir / "quarantine").iterdir()}


def test_a_copy_that_was_checked_is_trusted_like_a_blob(
    site: Site, tools: Tools, first: tuple[Project, Outcome], monkeypatch: pytest.MonkeyPatch
):
    """It is read before its tree is reused for the first time: whoever made it has not looked at it."""
    assert first[1].links.hard == 4
    read: list[str] = []
    really = integrity.is_right
    monkeypatch.setattr(
        integrity, "is_right", lambda job, *file: (read.append(file[0]), really(job, *file))[1]
    )
    tree, _ = migrate(tools, study(site, "original", 1, 8))

    for name in ("twin", "triplet"):
        assert migrate(tools, study(site, name, 1, 8))[0] == tree

    assert read == [str(tree / RECORDING)]


def test_a_tree_that_no_row_knows_is_read_where_it_has_copies(
    site: Site, tools: Tools, first: tuple[Project, Outcome]
):
    """Whoever published it has died, and it is found by its name and its sizes."""
    assert first[1].links.hard == 4
    project = study(site, "left behind", 1, 9)
    store = tools.open_store(create=True)
    scanned = scan(project.path, tools.roots)
    hashed = hash_tree(scanned, roots=tools.roots, store=store, threads=tools.threads)
    found = store.tree_path("left behind", hashed.manifest.digest)
    store_tree(store, hashed, found, attempt="the dead", threads=tools.threads)
    damage(found / RECORDING)

    tree, outcome = migrate(tools, project)

    assert (tree, outcome.dataset_created) == (found, True)
    check_tree(tree, project)


def test_a_bad_blob_at_its_link_limit_is_repaired_in_every_tree(
    site: Site, tools: Tools, first: tuple[Project, Outcome]
):
    """The last test here: the blob that takes its place has all its links before it."""
    holds = study(site, "holds a copy", 1, 6)
    copied, _ = migrate(tools, holds)
    linked = Path(str(first[1].dataset_path))
    bad = (linked / RECORDING).stat().st_ino
    damage(linked / RECORDING)
    project = study(site, "brings it again", 1, 7)

    tree, outcome = migrate(tools, project)

    for path, owner in ((tree, project), (linked, first[0]), (copied, holds)):
        check_tree(path, owner)
    blob = blob_of(site, folder_of(project) / RECORDING)
    assert blob.stat().st_ino != bad
    assert {(path / RECORDING).stat().st_ino for path in (tree, linked, copied)} == {blob.stat().st_ino}
    assert outcome.links.hard == 4
    assert bad in {path.stat().st_ino for path in (site.settings.store_dir / "quarantine").iterdir()}
    check_store(site)
