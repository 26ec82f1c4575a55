"""Directories are listed by several threads where each call takes long, and by none where it does not; what
is said is the same.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.trees import roots_of, write_tree
from worker.errors import LeaseLostError, SourceChangedError
from worker.legacy import listing
from worker.legacy.scan import Scan, check_same, scan

THREADS = 8
SESSIONS, FILES = 60, 5


class Calls:
    """The calls for entries' statuses: how many at a time, by which threads."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.most, self.threads = 0, set[int]()
        self._now = 0
        self._lock = threading.Lock()
        self._real = listing._statuses

    def __call__(self, descriptor: int, real: str, names: Sequence[str]) -> list[os.stat_result]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.threads.add(threading.get_ident())
        try:
            if self.seconds:
                time.sleep(self.seconds * len(names))
            return self._real(descriptor, real, names)
        finally:
            with self._lock:
                self._now -= 1


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    content = {
        f"s{session:02}/{name}.csv".encode(): b"t,x\n" for session in range(SESSIONS) for name in range(FILES)
    }
    many = {f"many/{number:04}".encode(): b"" for number in range(3 * listing._AT_ONCE)}
    return write_tree(tmp_path_factory.mktemp("lab") / "study", content | many)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as pool:
        yield pool


def listed(project: Path, threads: ThreadPoolExecutor | None) -> Scan:
    return scan(str(project), roots_of(project.parent), threads=threads)


def test_slow_calls_are_made_several_at_a_time_and_say_the_same(
    project: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
):
    alone = listed(project, None)
    monkeypatch.setattr(listing, "_statuses", calls := Calls(5 * listing._SLOW_CALL_S))
    found = listed(project, threads)
    assert calls.most > THREADS / 2
    assert (found.directories, list(found.files)) == (alone.directories, list(alone.files))
    assert found.allocated_bytes == alone.allocated_bytes


def test_fast_calls_are_made_by_the_thread_that_walks(
    project: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(listing, "_SLOW_CALL_S", 60.0)
    monkeypatch.setattr(listing, "_statuses", calls := Calls(0))
    listed(project, threads)
    assert calls.threads == {threading.get_ident()}


def test_a_change_is_named_by_several_threads_as_by_one(
    project: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
):
    before = listed(project, None)
    monkeypatch.setattr(listing, "_statuses", Calls(5 * listing._SLOW_CALL_S))
    other = project / "s30" / "new.csv"
    other.touch()
    try:
        with pytest.raises(SourceChangedError, match=r"s30/new\.csv"):
            check_same(before, roots_of(project.parent), threads=threads)
    finally:
        other.unlink()


def test_an_entry_that_vanishes_while_others_are_looked_at_is_named(
    project: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
):
    slow = Calls(5 * listing._SLOW_CALL_S)

    def vanishing(descriptor: int, real: str, names: Sequence[str]) -> list[os.stat_result]:
        return slow(descriptor, real, [*names, "vanished"] if real.endswith("s10") else names)

    monkeypatch.setattr(listing, "_statuses", vanishing)
    with pytest.raises(SourceChangedError, match=r"s10/vanished"):
        listed(project, threads)


def test_a_walk_that_is_stopped_leaves_no_thread_at_work(
    project: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(listing, "_statuses", calls := Calls(5 * listing._SLOW_CALL_S))
    left = [4 * FILES]

    def pace(_count: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise LeaseLostError("stopped")

    with pytest.raises(LeaseLostError):
        scan(str(project), roots_of(project.parent), pace, threads=threads)
    assert not calls._now
    assert threads._work_queue.empty()
