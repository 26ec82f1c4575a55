"""What somebody took out of the store, or spoiled in it, is found before it is reused, and put back from the
incoming copy.
"""

from pathlib import Path

import pytest

from tests.support.runs import at_once, open_run, run_one
from tests.support.sites import Site
from tests.support.studies import check_store, check_tree, damage, staged, study
from tests.support.trees import condemned
from worker.jobs.tools import Tools
from worker.messages import Status, Verb
from worker.store.removal import remove_tree

RECORDING = "day 1/accelerometer_data.csv"


def blob_of(site: Site, path: Path) -> Path:
    """The blob that a tree's file is a link of."""
    (found,) = (blob for blob in (site.settings.store_dir / "blobs").glob("*/*") if blob.samefile(path))
    return found


def test_a_blob_that_is_gone_comes_back_when_its_dataset_is_reused(site: Site, tools: Tools):
    """Its tree has a file of the right size still; nobody can say what is in it."""
    first = study(site, "first", 1, 2)
    tree = Path(str(run_one(tools, Verb.MIGRATE, first.project_id).dataset_path))
    blob = blob_of(site, tree / RECORDING)
    damage(tree / RECORDING)
    blob.unlink()

    outcome = run_one(tools, Verb.MIGRATE, study(site, "second", 1, 2).project_id)

    assert (outcome.status, outcome.dataset_created) == (Status.MIGRATED, False)
    check_tree(tree, first)
    assert blob.samefile(tree / RECORDING)
    check_store(site)


@pytest.mark.parametrize("content", [None, b"", b"{}"], ids=["gone", "empty", "another"])
def test_a_damaged_manifest_is_written_again_when_its_dataset_is_reused(
    site: Site, tools: Tools, content: bytes | None
):
    """A rollback would have nothing to go by."""
    first = study(site, "first", 1)
    outcome = run_one(tools, Verb.MIGRATE, first.project_id)
    manifest = site.settings.store_dir / "manifests" / f"{outcome.dataset_hash}.json"
    whole = manifest.read_bytes()
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content)

    again = run_one(tools, Verb.MIGRATE, study(site, "second", 1).project_id)

    assert (again.status, again.dataset_id) == (Status.MIGRATED, outcome.dataset_id)
    assert manifest.read_bytes() == whole
    check_tree(Path(str(again.dataset_path)), first)
    check_store(site)


def test_a_blob_is_repaired_although_another_dataset_with_it_lost_its_directory(site: Site, tools: Tools):
    """That dataset is mended when somebody needs it; it is no reason to fail this project."""
    first = study(site, "first", 1, 2)
    tree = Path(str(run_one(tools, Verb.MIGRATE, first.project_id).dataset_path))
    damage(tree / RECORDING)
    tree.chmod(0o755)
    remove_tree(str(tree / "day 1"))
    second, again = study(site, "second", 1, 3), study(site, "first again", 1, 2)

    outcome = run_one(tools, Verb.MIGRATE, second.project_id)
    healed = run_one(tools, Verb.MIGRATE, again.project_id)

    assert (outcome.status, healed.status) == (Status.MIGRATED, Status.MIGRATED), outcome
    check_tree(Path(str(outcome.dataset_path)), second)
    check_tree(Path(str(healed.dataset_path)), first)
    check_store(site)


def test_several_jobs_that_find_the_same_bad_blob_at_once_repair_it_once(site: Site, tools: Tools):
    first = study(site, "first", 1, 2)
    tree = Path(str(run_one(tools, Verb.MIGRATE, first.project_id).dataset_path))
    damage(tree / RECORDING)
    others = [study(site, f"other {number}", 1, number) for number in range(3, 9)]
    refs = open_run(site.engine, Verb.MIGRATE)

    outcomes = at_once(site, [(Verb.MIGRATE, ref) for ref in refs])

    for other, outcome in zip(others, outcomes, strict=True):
        assert outcome is not None
        assert outcome.status is Status.MIGRATED, outcome
        check_tree(Path(str(outcome.dataset_path)), other)
    check_tree(tree, first)
    check_store(site)
    assert len(condemned(tools.open_store(create=False))) == 1
    assert len({(tree / RECORDING).stat().st_ino} | {_inode(outcome) for outcome in outcomes}) == 1
    assert staged(site) == []


def _inode(outcome: object) -> int:
    return (Path(str(getattr(outcome, "dataset_path", None))) / RECORDING).stat().st_ino
