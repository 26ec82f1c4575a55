"""The entries of directories, one directory after the other. Where each call takes long, as on a network file
system, many at a time, and those of the directories that come next, too. Knows no tree and follows no link.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice

from worker.messages import MOVED_AWAY
from worker.store.beneath import directory
from worker.store.digest import not_read, reading

_SLOW_CALL_S = 100e-6
"""What takes longer, on average of the last calls, is worth handing to another thread. On a local disk a call
takes 2 µs, and where it does not, as from a cold cache, several at a time are faster, too.
"""

_AT_ONCE = 256
"""So many names are asked for before any is given on: as many statuses are in memory at a time."""

_SLICE = 8
"""So many names are one thread's, where they are asked for by several."""

_AHEAD = 32
"""So many directories are looked into ahead."""

_TELLING = 16
"""Fewer calls tell nothing of the next ones."""

_Status = os.stat_result


@dataclass(frozen=True, slots=True)
class Directory:
    """An open directory: what `stat` says of itself, and its entries in byte order of their names, each with
    what it says of them, links not followed; to be taken while the directory is open.
    """

    status: _Status
    entries: Iterator[tuple[str, _Status]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What some calls said, and how long they took. No `statuses` of more names than are kept."""

    names: Sequence[str]
    statuses: Sequence[_Status] | None
    own: _Status | None
    seconds: float


class Lister:
    """Lists directories for one walk; without `threads` always one call after the other.

    Directories are opened without following a link on the way, and their entries are looked at by their
    descriptors; what reclaims have moved away is not among them. Errors are `EntryUnreadableError` and
    `SourceChangedError`, and name the entry.
    """

    def __init__(self, threads: ThreadPoolExecutor | None = None) -> None:
        self._threads = threads
        self._ahead: dict[str, Future[_Asked]] = {}
        self._calls = 0.0
        self._seconds = 0.0

    @contextmanager
    def listed(self, real: str, coming: Iterable[str]) -> Iterator[Directory]:
        """The directory at a resolved path. Those that are `coming`, the next one first, may be looked into
        already.
        """
        self._look_ahead(coming)
        looked = self._ahead.pop(real, None)
        asked = None if looked is None else looked.result()
        if asked is not None and asked.own is not None and asked.statuses is not None:
            self._note(asked)
            yield Directory(asked.own, zip(asked.names, asked.statuses, strict=True))
            return
        begin = time.perf_counter()
        with _opened(real) as (descriptor, own, names):
            self._note(_Asked((), (), None, time.perf_counter() - begin))
            yield Directory(own, self._entries(descriptor, real, names))

    def close(self) -> None:
        """Let go of what was looked at in vain; no thread is at work for this walk then."""
        for future in self._ahead.values():
            future.cancel()
        wait(self._ahead.values())
        self._ahead.clear()

    def _entries(self, descriptor: int, real: str, names: Sequence[str]) -> Iterator[tuple[str, _Status]]:
        for first in range(0, len(names), _AT_ONCE):
            some = names[first : first + _AT_ONCE]
            for asked in self._asked(descriptor, real, some):
                self._note(asked)
                yield from zip(asked.names, asked.statuses or (), strict=True)

    def _asked(self, descriptor: int, real: str, names: Sequence[str]) -> list[_Asked]:
        threads = self._threads_if_slow()
        if threads is None or len(names) <= _SLICE:
            return [_ask(descriptor, real, names)]
        slices = [names[at : at + _SLICE] for at in range(0, len(names), _SLICE)]
        tasks = [threads.submit(_ask, descriptor, real, each) for each in slices]
        # Whatever one of them says, no thread uses the descriptor afterwards.
        wait(tasks)
        return [task.result() for task in tasks]

    def _look_ahead(self, coming: Iterable[str]) -> None:
        threads = self._threads_if_slow()
        if threads is None:
            return
        for real in islice(coming, _AHEAD):
            if len(self._ahead) >= _AHEAD:
                return
            if real not in self._ahead:
                self._ahead[real] = threads.submit(_look, real)

    # How long calls take ------------------------------------------------------------------------------------

    def _threads_if_slow(self) -> ThreadPoolExecutor | None:
        is_slow = self._calls >= _TELLING and self._seconds > self._calls * _SLOW_CALL_S
        return self._threads if is_slow else None

    def _note(self, asked: _Asked) -> None:
        """What was long ago counts for less and less."""
        if self._calls > _AT_ONCE:
            self._calls, self._seconds = self._calls / 2, self._seconds / 2
        self._calls += len(asked.names) + 1
        self._seconds += asked.seconds


def _look(real: str) -> _Asked:
    """Into a directory that comes later, all of it, unless that is too much to be kept."""
    begin = time.perf_counter()
    with _opened(real) as (descriptor, own, names):
        statuses = _statuses(descriptor, real, names) if len(names) <= _AT_ONCE else None
    return _Asked(names, statuses, own, time.perf_counter() - begin)


@contextmanager
def _opened(real: str) -> Iterator[tuple[int, _Status, list[str]]]:
    """The directory at a resolved path, open, with what `stat` says of it and the names in it."""
    with ExitStack() as stack:
        with reading(real):
            descriptor = stack.enter_context(directory(real))
        yield descriptor, os.fstat(descriptor), _names(descriptor, real)


def _ask(descriptor: int, real: str, names: Sequence[str]) -> _Asked:
    begin = time.perf_counter()
    return _Asked(names, _statuses(descriptor, real, names), None, time.perf_counter() - begin)


def _names(descriptor: int, real: str) -> list[str]:
    with reading(real):
        found = sorted(os.listdir(descriptor), key=os.fsencode)
    return [name for name in found if name != MOVED_AWAY] if MOVED_AWAY in found else found


def _statuses(descriptor: int, real: str, names: Sequence[str]) -> list[_Status]:
    found = []
    for name in names:
        try:
            found.append(os.stat(name, dir_fd=descriptor, follow_symlinks=False))
        except OSError as error:
            raise not_read(f"{real}/{name}", error) from error
    return found
