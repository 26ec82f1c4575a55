"""What does not work in DATA_DIR or the store is found, and how much room there is."""

import errno
import json
import os
import uuid
from pathlib import Path

import pytest

from tests.support.folders import passable_folder
from tests.support.shim import Act, Fault, build, environment, order
from tests.support.trees import as_ordinary_user, open_store
from tests.worker.doctor.machines import PATIENCE_S, bad, look, process, request
from worker.doctor import store_checks
from worker.doctor.protocol import Machine
from worker.findings import Verdict


def test_a_data_directory_that_is_not_there_fails(tmp_path: Path):
    found = look(request(tmp_path / "away", legacy_roots=()))

    assert bad(found).items() >= {"data directory": "fail", "free space": "fail"}.items()
    assert found.mark is None


@pytest.mark.parametrize("closed", ["", "raw_datasets", "dataset_store/staging"])
def test_directories_that_the_worker_may_not_write_to_fail(closed: str):
    with passable_folder() as folder:
        folder.chmod(0o777)
        # Closed itself, DATA_DIR is one in which nothing was made yet.
        for name in ("raw_datasets", "dataset_store/staging") if closed else ():
            (folder / name).mkdir(parents=True)
            (folder / name).chmod(0o777)
        (folder / closed).chmod(0o555)

        found = as_ordinary_user(lambda: look(request(folder)))

    name = "one file system" if closed == "raw_datasets" else "data directory"
    assert bad(found) == {name: "fail"}
    assert "Permission denied" in found.checks[name].finding
    assert found.checks["user"].finding != "runs as root"


def test_trees_on_another_file_system_fail(tmp_path: Path):
    (tmp_path / "dataset_store").mkdir()
    elsewhere = Path("/dev/shm", f"label-tests-{uuid.uuid4().hex}")  # noqa: S108 - where another file system is
    elsewhere.mkdir()
    try:
        assert elsewhere.stat().st_dev != tmp_path.stat().st_dev
        (tmp_path / "raw_datasets").symlink_to(elsewhere)

        found = look(request(tmp_path))

        assert not list(elsewhere.iterdir())
    finally:
        elsewhere.rmdir()
    assert bad(found).items() >= {"one file system": "fail", "store": "fail"}.items()
    assert "Invalid cross-device link" in found.checks["one file system"].finding


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that fails calls."""
    return build(tmp_path_factory.mktemp("shim"))


@pytest.mark.parametrize(
    ("call", "number", "name", "verdict"),
    [
        ("link", errno.EPERM, "hard links", "warn"),
        ("rename", errno.EXDEV, "data directory", "fail"),
        ("fsync", errno.EIO, "data directory", "fail"),
        ("syncfs", errno.EIO, "flush to disk", "fail"),
    ],
)
def test_a_file_system_that_refuses_a_call_fails_the_check_that_needs_it(
    tmp_path: Path, shim: Path, call: str, number: int, name: str, verdict: str
):
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    fault = Fault(act=Act.FAIL_FROM, at=1, call=call, errno=number)
    env = {**os.environ, **environment(shim), **order(tmp_path / "log", [data_dir], fault)}

    with process(request(data_dir, legacy_roots=()), env=env) as (_, lines):
        found = Machine.from_json(json.loads(lines.next(PATIENCE_S) or ""))

    assert bad(found).items() >= {name: verdict}.items()
    assert not list(data_dir.iterdir())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ('{"format": 2, "id": "x", "digest": "blake3"}', "reads format 1 only"),
        ('{"format": 1, "id": "x", "digest": "md5"}', "not a description of a store"),
    ],
)
def test_a_store_whose_description_cannot_be_read_fails(tmp_path: Path, content: str, words: str):
    (tmp_path / "dataset_store").mkdir()
    (tmp_path / "dataset_store/store.json").write_text(content)

    found = look(request(tmp_path))

    assert found.checks["store"].verdict is Verdict.FAIL
    assert words in found.checks["store"].finding


def test_a_store_of_another_digest_than_the_settings_say_is_reported(tmp_path: Path):
    open_store(tmp_path, "sha256")

    found = look(request(tmp_path))

    assert found.checks["store"].verdict is Verdict.WARN
    assert found.checks["store"].remedy == "Set STORE_DIGEST=sha256."


def test_what_lies_in_staging_for_long_is_named(tmp_path: Path):
    open_store(tmp_path)
    for name in ("old-1", "new-1"):
        (tmp_path / "dataset_store/staging" / name).mkdir()
    os.utime(tmp_path / "dataset_store/staging/old-1", (1, 1))

    assert look(request(tmp_path)).staging == ("old-1",)


def test_a_kernel_whose_syncfs_reports_no_errors_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    open_store(tmp_path)
    monkeypatch.setattr(store_checks, "SYNCFS_TELLS_ERRORS", False)

    check = store_checks.check_flush(request(tmp_path))["flush to disk"]

    assert check.verdict is Verdict.WARN
    assert "reports no errors" in check.finding
    assert "5.8" in str(check.remedy)


def statvfs(**values: int) -> os.statvfs_result:
    names = ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "flag", "namemax")
    return os.statvfs_result(values.get(name, 0) for name in names)


@pytest.mark.parametrize(("free_gib", "verdict"), [(1, Verdict.FAIL), (1.5, Verdict.WARN), (3, Verdict.PASS)])
def test_free_space_is_measured_by_the_reserve(free_gib: float, verdict: Verdict):
    blocks = statvfs(frsize=1 << 20, blocks=100 << 10, bavail=int(free_gib * 1024))

    assert store_checks.space_check(blocks).verdict is verdict


@pytest.mark.parametrize(
    ("all_of_them", "free", "verdict"),
    [
        (0, 0, Verdict.PASS),
        (1 << 20, 0, Verdict.FAIL),
        (1 << 20, 99, Verdict.WARN),
        (1 << 20, 1 << 19, Verdict.PASS),
    ],
)
def test_inodes_are_counted_where_there_are_any(all_of_them: int, free: int, verdict: Verdict):
    assert store_checks.inodes_check(statvfs(files=all_of_them, favail=free)).verdict is verdict
