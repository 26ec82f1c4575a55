"""How a worker looks at its machine: what is broken there is found, what hangs is said in time, and nothing is left behind."""

import errno
import json
import os
import resource
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.shim import Act, Fault, build, environment, order
from tests.support.trees import as_ordinary_user, open_store, passable_folder, roots_of
from worker.doctor import legacy_checks, machine_checks, store_checks
from worker.doctor.probe import Lines, abreast, examine
from worker.doctor.protocol import Machine, Request
from worker.findings import Verdict

PATIENCE_S = 20.0


def request(folder: Path, **changes: Any) -> Request:
    """What a worker asks of a machine whose DATA_DIR is this folder."""
    values = {
        "token": uuid.uuid4().hex,
        "data_dir": str(folder),
        "store_digest": "blake3",
        "legacy_roots": (str(folder),),
        "projects": {},
    }
    return Request(**{**values, **changes})


def look(asked: Request, within_s: float = PATIENCE_S) -> Machine:
    return examine(asked, store_checks.new_mark(asked), within_s=within_s)


def bad(found: Machine) -> dict[str, str]:
    return {
        name: check.verdict.value for name, check in found.checks.items() if check.verdict is not Verdict.PASS
    }


@contextmanager
def process(asked: Request, **options: Any) -> Iterator[tuple[Callable[[str], None], Lines]]:
    """Run the real process; say a word, and read its lines."""
    with subprocess.Popen(
        [sys.executable, "-m", "worker.doctor.probe"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        **options,
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        stdin = running.stdin

        def say(word: str) -> None:
            stdin.write(word.encode() + b"\n")
            stdin.flush()

        say(json.dumps(asked.to_json()))
        try:
            yield say, Lines(running.stdout.fileno())
        finally:
            stdin.close()
            running.wait(PATIENCE_S)


# All is well ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_store", [False, True])
def test_a_machine_where_all_works(tmp_path: Path, *, with_store: bool):
    store_id = open_store(tmp_path).store_id if with_store else None
    (tmp_path / "legacy").mkdir()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    asked = request(tmp_path, projects={7: str(tmp_path / "legacy")})

    found = look(asked)

    assert bad(found).keys() <= {"user"}, found
    assert set(found.checks) == {
        "memory",
        "open files",
        "user",
        "mount options",
        "data directory",
        "hard links",
        "one file system",
        "free space",
        "inodes",
        "flush to disk",
        "store",
        "legacy roots",
        "legacy roots protected",
    }
    assert (found.store_id, found.unseen, found.staging) == (store_id, {}, ())
    assert found.mark is not None
    (tmp_path / found.mark).unlink()
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert Machine.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_process_answers_shows_marks_and_clears_up_when_it_is_told_to(tmp_path: Path):
    asked = request(tmp_path)
    other, unseen = (f".label-doctor-{asked.token}-{uuid.uuid4().hex}" for _ in range(2))
    (tmp_path / other).touch()
    (tmp_path / "secret").touch()

    with process(asked) as (say, lines):
        found = Machine.from_json(json.loads(lines.next(PATIENCE_S) or ""))
        say(json.dumps([found.mark, other, unseen, "secret", "../../etc/passwd"]))
        marks = json.loads(lines.next(PATIENCE_S) or "")
        say("null")
        assert lines.next(PATIENCE_S) is None

    assert found.mark is not None
    assert marks == [found.mark, other]
    assert not (tmp_path / found.mark).exists()


def test_the_process_ends_with_its_worker(tmp_path: Path):
    with process(request(tmp_path)) as (_, lines):
        found = Machine.from_json(json.loads(lines.next(PATIENCE_S) or ""))
        assert (tmp_path / (found.mark or "")).exists()

    assert not (tmp_path / (found.mark or "")).exists()


# What hangs -----------------------------------------------------------------------------------------------------


def test_a_store_that_hangs_is_said_in_time_and_hides_nothing_else(tmp_path: Path):
    """A named pipe that nobody writes to stands for a mount whose server is gone: to open it is to wait."""
    (tmp_path / "dataset_store").mkdir()
    os.mkfifo(tmp_path / "dataset_store/store.json")

    found = look(request(tmp_path), within_s=1.0)

    assert found.checks["store"].verdict is Verdict.FAIL
    assert found.checks["store"].finding == f"{tmp_path}/dataset_store does not answer within 1 s"
    assert bad(found).keys() <= {"store", "user"}


def test_whatever_hangs_has_its_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All of it at once: the looks themselves are kept from ending."""
    never = threading.Event()
    for module, name in (
        (store_checks, "check_data_dir"),
        (store_checks, "check_flush"),
        (store_checks, "check_space"),
        (legacy_checks, "root_check"),
        (legacy_checks, "why_unreadable"),
        (legacy_checks, "protection_check"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: never.wait())

    found = look(request(tmp_path, projects={1: "/a"}), within_s=0.3)
    never.set()

    found_bad = bad(found)
    found_bad.pop("user", None)
    assert found_bad == {
        "data directory": "fail",
        "free space": "fail",
        "flush to disk": "warn",
        "legacy roots": "fail",
    }
    assert found.unseen == {1: "does not answer within 0 s"}


def test_calls_go_on_beside_one_that_hangs():
    never = threading.Event()

    assert abreast({"a": lambda: 1, "b": never.wait, "c": lambda: 3}, 0.2) == {"a": 1, "c": 3}
    never.set()


def test_a_line_that_does_not_come_in_time_is_none():
    reading, writing = os.pipe()
    lines = Lines(reading)
    os.write(writing, b"one\ntwo\nthr")

    assert [lines.next(0.1) for _ in range(3)] == ["one", "two", None]
    os.write(writing, b"ee\n")
    assert lines.next(0.1) == "three"
    os.close(writing)
    assert lines.next(5) is None
    os.close(reading)


# The store ------------------------------------------------------------------------------------------------------


def test_a_data_directory_that_is_not_there(tmp_path: Path):
    found = look(request(tmp_path / "away", legacy_roots=()))

    assert bad(found).items() >= {"data directory": "fail", "free space": "fail"}.items()
    assert found.mark is None


@pytest.mark.parametrize("closed", ["", "raw_datasets", "dataset_store/staging"])
def test_directories_that_an_ordinary_user_may_not_write_to(closed: str):
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


def test_trees_on_another_file_system(tmp_path: Path):
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
def test_a_file_system_that_refuses_a_call(
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
def test_a_store_that_cannot_be_understood(tmp_path: Path, content: str, words: str):
    (tmp_path / "dataset_store").mkdir()
    (tmp_path / "dataset_store/store.json").write_text(content)

    found = look(request(tmp_path))

    assert found.checks["store"].verdict is Verdict.FAIL
    assert words in found.checks["store"].finding


def test_a_store_of_another_digest_than_the_settings_say(tmp_path: Path):
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


# Legacy directories ---------------------------------------------------------------------------------------------


def test_roots_that_are_missing_or_empty(tmp_path: Path):
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


def test_a_root_that_an_ordinary_user_may_not_read():
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


def test_projects_that_a_worker_cannot_read(tmp_path: Path):
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


# The machine ----------------------------------------------------------------------------------------------------


def test_little_memory_and_root_are_warned_of():
    little, much = (f"MemTotal: 9 kB\nMemAvailable:  {size} kB\n" for size in (400_000, 4_000_000))

    assert machine_checks.memory_check(little).verdict is Verdict.WARN
    assert machine_checks.memory_check(much).finding == "4.1 GB available"
    assert machine_checks.memory_check("").verdict is Verdict.PASS
    assert machine_checks.user_check(0).verdict is Verdict.WARN
    assert machine_checks.user_check(4_000_000_000).finding == "runs as user 4000000000"
    assert machine_checks.open_files_check(resource.RLIM_INFINITY).verdict is Verdict.PASS


def test_a_low_limit_of_open_files_is_that_of_the_worker(tmp_path: Path):
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    with process(request(tmp_path), preexec_fn=lower) as (_, lines):
        found = Machine.from_json(json.loads(lines.next(PATIENCE_S) or ""))

    assert found.checks["open files"].finding == "256 at most"
    assert found.checks["open files"].verdict is Verdict.WARN
