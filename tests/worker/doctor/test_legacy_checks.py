"""Legacy roots and projects that a worker cannot read are found."""

import uuid
from pathlib import Path

from tests.support.folders import passable_folder
from tests.support.trees import as_ordinary_user, roots_of
from tests.worker.doctor.machines import look, request
from worker.doctor import legacy_checks
from worker.findings import Verdict


def test_missing_or_empty_legacy_roots_are_reported(tmp_path: Path):
    (tmp_path / "full/study").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    full, empty, away = (str(tmp_path / name) for name in ("full", "empty", "away"))

    well, warns, fails = (
        look(request(tmp_path, legacy_roots=roots)).checks["legacy roots"]
        for roots in ((full,), (full, empty), (full, empty, away))
    )

    assert [check.verdict for check in (well, warns, fails)] == [Verdict.PASS, Verdict.WARN, Verdict.FAIL]
    assert warns.finding == f"{empty} is empty; is it mounted?"
    assert fails.finding == f"{empty} is empty; is it mounted?; {away} does not exist"


def test_a_legacy_root_that_the_worker_may_not_read_fails():
    with passable_folder() as folder:
        (folder / "closed").mkdir(mode=0o700)
        (folder / "closed").chmod(0o000)

        check = as_ordinary_user(lambda: legacy_checks.root_check(str(folder / "closed")))

    assert (check.verdict, check.finding) == (Verdict.FAIL, "cannot be read: Permission denied")


def test_a_separate_mount_that_could_be_written_is_warned_of(tmp_path: Path):
    elsewhere = Path("/dev/shm", f"label-tests-{uuid.uuid4().hex}")  # noqa: S108 - where another file system is
    elsewhere.mkdir()
    try:
        found = legacy_checks.protection_check(
            request(tmp_path, legacy_roots=(str(tmp_path), str(elsewhere)))
        )
    finally:
        elsewhere.rmdir()

    assert found.verdict is Verdict.WARN
    assert found.finding == f"{elsewhere} is a mount that could be written"


def test_projects_that_a_worker_cannot_read_are_reported(tmp_path: Path):
    roots = roots_of(tmp_path)
    (tmp_path / "study").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "raw_datasets").mkdir()

    troubles = {
        name: legacy_checks.why_unreadable(str(tmp_path / name), roots)
        for name in ("study", "file", "away", "raw_datasets", "../..")
    }

    assert troubles["study"] is None
    assert troubles["file"] == "is not a directory"
    assert troubles["away"] == "does not exist"
    assert "overlaps the store" in (troubles["raw_datasets"] or "")
    assert "outside LEGACY_ROOTS" in (troubles["../.."] or "")
