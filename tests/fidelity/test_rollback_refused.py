"""Nothing is rolled back onto a legacy directory that is not what was migrated."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.estate import (
    snapshot_tree,
)
from tests.estate.compare import LABEL_TABLES
from tests.fidelity.rolled_back import look, make, statuses
from tests.support.runs import run, run_one
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.messages import Status, Verb


def _missing(directory: Path) -> None:
    # Not the root as a whole: that would be a mount that is missing.
    (directory.parent / "another").mkdir()
    shutil.rmtree(directory)


def _file_instead(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.write_text("a file")


def _dangling_link_instead(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.symlink_to("nowhere")


def _emptied(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


def _one_byte_changed(directory: Path) -> None:
    recording = directory / "whole" / "accelerometer_data.csv"
    content = bytearray(recording.read_bytes())
    content[-2] ^= 1
    stamp = recording.stat().st_mtime_ns
    recording.write_bytes(content)
    os.utime(recording, ns=(stamp, stamp))


def _file_removed(directory: Path) -> None:
    (directory / "whole" / "labels.json").unlink()


def _file_added(directory: Path) -> None:
    (directory / "whole" / "added").touch()


def _empty_directory_added(directory: Path) -> None:
    (directory / "whole" / "added").mkdir()


def _dangling_link_added(directory: Path) -> None:
    (directory / "whole" / "added").symlink_to("nowhere")


def _pipe_added(directory: Path) -> None:
    os.mkfifo(directory / "whole" / "added")


def _session_renamed(directory: Path) -> None:
    (directory / "whole").rename(directory / "renamed")


def _file_became_directory(directory: Path) -> None:
    (directory / "whole" / "labels.json").unlink()
    (directory / "whole" / "labels.json").mkdir()


def _much_added(directory: Path) -> None:
    for number in range(15):
        (directory / f"added {number:02}").touch()


CHANGES: dict[str, tuple[Callable[[Path], None], str, str, tuple[str, ...]]] = {
    "missing": (_missing, "LegacyPathMissingError", "Legacy path no longer exists: {path}", ()),
    "a file instead": (
        _file_instead,
        "RollbackRefusedError",
        "Legacy path is not a directory any more: {path}",
        (),
    ),
    "a dangling link instead": (
        _dangling_link_instead,
        "RollbackRefusedError",
        "Legacy path is not a directory any more: {path}",
        (),
    ),
    "emptied": (
        _emptied,
        "RollbackRefusedError",
        "Legacy path is not what was migrated: {path}: missing: by hand; ",
        (
            "missing: by hand",
            "missing: by hand/accelerometer_data.csv",
            "missing: cut",
            "missing: cut/accelerometer_data.csv",
            "missing: old",
            "missing: old/accelerometer_data.csv",
            "missing: whole",
            "missing: whole/accelerometer_data.csv",
            "missing: whole/labels.json",
        ),
    ),
    "one byte changed": (
        _one_byte_changed,
        "RollbackRefusedError",
        "is not what was migrated",
        ("changed: whole/accelerometer_data.csv",),
    ),
    "a file removed": (
        _file_removed,
        "RollbackRefusedError",
        "is not what was migrated",
        ("missing: whole/labels.json",),
    ),
    "a file added": (
        _file_added,
        "RollbackRefusedError",
        "is not what was migrated",
        ("added: whole/added",),
    ),
    "an empty directory added": (
        _empty_directory_added,
        "RollbackRefusedError",
        "is not what was migrated",
        ("added: whole/added",),
    ),
    "a dangling link added": (
        _dangling_link_added,
        "EntryRefusedError",
        "Link leads nowhere: whole/added",
        (),
    ),
    "a pipe added": (_pipe_added, "EntryRefusedError", "it is a named pipe: whole/added", ()),
    "a session renamed": (
        _session_renamed,
        "RollbackRefusedError",
        "is not what was migrated",
        (
            "added: renamed",
            "added: renamed/accelerometer_data.csv",
            "added: renamed/labels.json",
            "missing: whole",
            "missing: whole/accelerometer_data.csv",
            "missing: whole/labels.json",
        ),
    ),
    "a file became a directory": (
        _file_became_directory,
        "RollbackRefusedError",
        "is not what was migrated",
        ("became a directory: whole/labels.json",),
    ),
    "fifteen files added": (
        _much_added,
        "RollbackRefusedError",
        "added: added 09 and 5 more",
        tuple(f"added: added {number:02}" for number in range(10)),
    ),
}


def test_a_legacy_directory_that_is_not_what_was_migrated_refuses_the_rollback(site: Site, tools: Tools):
    """In every way in which it may be another one; nothing is changed, and the rehearsal says the same."""
    projects = {change: make(site, change) for change in CHANGES}
    assert statuses(run(tools, Verb.MIGRATE)) == {Status.MIGRATED}
    for change, project in projects.items():
        assert project.directory is not None
        CHANGES[change][0](project.directory)
    before = look(site.engine), snapshot_tree(site.folder)

    rehearsed = run(tools, Verb.ROLLBACK, dry_run=True)
    outcomes = run(tools, Verb.ROLLBACK)

    assert (look(site.engine), snapshot_tree(site.folder)) == before
    for change, project in projects.items():
        _, error_class, words, differing = CHANGES[change]
        outcome, foretold = outcomes[project.project_id], rehearsed[project.project_id]
        assert (change, outcome.status, outcome.error_class) == (change, Status.FAILED, error_class)
        assert words.format(path=project.path) in str(outcome.error)
        assert (change, outcome.differences) == (change, differing)
        assert (change, foretold.status, foretold.error) == (change, outcome.status, outcome.error)
        assert foretold.differences == outcome.differences


def test_other_modes_and_times_of_the_legacy_directory_do_not_matter(site: Site, tools: Tools):
    project = make(site)
    run_one(tools, Verb.MIGRATE, project.project_id)
    assert project.directory is not None
    (project.directory / "whole" / "accelerometer_data.csv").touch(mode=0o600)
    (project.directory / "whole").chmod(0o700)

    assert run_one(tools, Verb.ROLLBACK, project.project_id).status is Status.ROLLED_BACK


def test_a_refused_rollback_succeeds_once_the_directory_is_put_right(site: Site, tools: Tools):
    project = make(site)
    before = look(site.engine, LABEL_TABLES)
    run_one(tools, Verb.MIGRATE, project.project_id)
    assert project.directory is not None
    _file_added(project.directory)
    assert run_one(tools, Verb.ROLLBACK, project.project_id).status is Status.FAILED
    (project.directory / "whole" / "added").unlink()

    assert run_one(tools, Verb.ROLLBACK, project.project_id).status is Status.ROLLED_BACK

    assert look(site.engine, LABEL_TABLES) == before
