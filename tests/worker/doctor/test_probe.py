"""How a worker looks at its machine: what is broken there is found, what hangs is said in time, and nothing
is left behind.
"""

import json
import os
import threading
import uuid
from pathlib import Path

import pytest

from tests.support.trees import open_store
from tests.worker.doctor.machines import PATIENCE_S, bad, look, process, request
from worker.doctor import legacy_checks, store_checks
from worker.doctor.probe import Lines, abreast
from worker.doctor.protocol import Machine
from worker.findings import Verdict


@pytest.mark.parametrize("with_store", [False, True])
def test_a_machine_where_all_works_passes_every_check(tmp_path: Path, *, with_store: bool):
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


def test_the_process_answers_shows_marks_and_cleans_up_at_the_end(tmp_path: Path):
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


def test_the_probe_process_ends_with_its_worker(tmp_path: Path):
    with process(request(tmp_path)) as (_, lines):
        found = Machine.from_json(json.loads(lines.next(PATIENCE_S) or ""))
        assert (tmp_path / (found.mark or "")).exists()

    assert not (tmp_path / (found.mark or "")).exists()


# What hangs -------------------------------------------------------------------------------------------------


def test_a_store_that_hangs_is_found_in_time_and_hides_no_other_check(tmp_path: Path):
    """A named pipe without a writer stands for a mount whose server is gone: to open it is to wait."""
    (tmp_path / "dataset_store").mkdir()
    os.mkfifo(tmp_path / "dataset_store/store.json")

    found = look(request(tmp_path), within_s=1.0)

    assert found.checks["store"].verdict is Verdict.FAIL
    assert found.checks["store"].finding == f"{tmp_path}/dataset_store does not answer within 1 s"
    assert bad(found).keys() <= {"store", "user"}


def test_every_check_that_hangs_has_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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


def test_other_checks_go_on_beside_one_that_hangs():
    never = threading.Event()

    assert abreast({"a": lambda: 1, "b": never.wait, "c": lambda: 3}, 0.2) == {"a": 1, "c": 3}
    never.set()


def test_an_answer_that_does_not_come_in_time_is_none():
    reading, writing = os.pipe()
    lines = Lines(reading)
    os.write(writing, b"one\ntwo\nthr")

    assert [lines.next(0.1) for _ in range(3)] == ["one", "two", None]
    os.write(writing, b"ee\n")
    assert lines.next(0.1) == "three"
    os.close(writing)
    assert lines.next(5) is None
    os.close(reading)
