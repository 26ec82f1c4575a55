"""Looks at a worker's machine for the doctor, and knows when to stop. Knows no database and no Celery.

`python -m worker.doctor.probe` is a process of its own, because a mount that hangs must hold up nobody: a thread for each place,
one deadline for all, and what has not answered by then is said. It reads a request as a line of JSON, writes what it found as
another, and again which marks it sees when it is asked for some. Its own mark in DATA_DIR lives as long as it does.
"""

import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from worker.doctor import legacy_checks as sources
from worker.doctor import mount_options
from worker.doctor import store_checks as places
from worker.doctor.machine_checks import machine_checks
from worker.doctor.protocol import Machine
from worker.doctor.store_checks import Request
from worker.findings import Check, Verdict, failed, warned
from worker.store.digest import printable

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

WITHIN_S = 6.0
"""How long a machine may take for all that is looked at. A disk that is busy writing gigabytes answers later than one at rest."""

_LIVES_S = 30.0
"""How long this process waits for the next word before it clears up by itself: whoever asked may have died."""


def examine(request: Request, mark: str, *, within_s: float = WITHIN_S) -> Machine:
    """Look at everything at once. Whatever hangs is a finding like any other, when the time is over."""
    silent = f"does not answer within {within_s:.0f} s"
    roots = sources.roots_of(request)
    looks: dict[Hashable, Callable[[], Any]] = {
        "data directory": partial(places.try_store, request),
        "mark": partial(places.leave_mark, mark),
        "flush to disk": partial(places.try_sync, request),
        "store": partial(places.open_store, request),
        "staging": partial(places.staging_names, request),
        "restoring": partial(places.restoring_names, request),
        "free space": partial(places.room, request),
        "legacy roots protected": partial(sources.read_only_check, request),
        "mount options": partial(
            mount_options.look_at_mounts,
            (request.data_dir, request.store_dir, request.datasets_dir),
            request.legacy_roots,
        ),
        **{
            ("root", root): partial(sources.look_at_root, root, may_be_empty=root == request.data_dir)
            for root in request.legacy_roots
        },
        **{
            ("project", number): partial(sources.look_at_project, path, roots)
            for number, path in request.projects.items()
        },
    }
    found = abreast(looks, within_s)
    checks = list(machine_checks())
    for name in ("data directory", "free space"):
        checks += found.get(name, [_silent(name, request.data_dir, silent)])
    checks += found.get("flush to disk", [_busy("flush to disk", f"syncfs {silent}")])
    store, store_id = found.get("store", (_silent("store", request.store_dir, silent), None))
    checks.append(store)
    checks.append(
        sources.roots_check(
            {root: found.get(("root", root), (Verdict.FAIL, silent)) for root in request.legacy_roots}
        )
    )
    # A root that hangs is told by the check before.
    checks += found.get("legacy roots protected", [])
    checks += found.get("mount options", [])
    host, boot_id = mount_options.host_identity()
    unseen = {number: found.get(("project", number), silent) for number in request.projects}
    return Machine(
        checks=tuple(checks),
        store_id=store_id,
        staging=found.get("staging", ()),
        restoring=found.get("restoring", ()),
        unseen={number: trouble for number, trouble in unseen.items() if trouble},
        mark=os.path.basename(mark) if found.get("mark") else None,
        host=host,
        boot_id=boot_id,
    )


def _silent(name: str, place: str, silent: str) -> Check:
    return failed(name, f"{printable(place)} {silent}", "Look at the mount of DATA_DIR on that machine.")


def _busy(name: str, words: str) -> Check:
    """Not a failure: other programs' gigabytes are flushed as well."""
    return warned(
        name, words, "Let the disk come to rest and ask again; if it stays so, the disk is too slow or fails."
    )


def abreast(looks: Mapping[K, Callable[[], T]], within_s: float) -> dict[K, T]:
    """What these calls return, each in a thread of its own; those that have not answered in time are not in it."""
    found: dict[K, T] = {}

    def look(key: K, call: Callable[[], T]) -> None:
        found[key] = call()

    threads = [
        threading.Thread(target=look, args=(key, call), daemon=True, name=f"look at {key}")
        for key, call in looks.items()
    ]
    deadline = time.monotonic() + within_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    # A copy: the slow ones may still add to it.
    return dict(found)


# The process ------------------------------------------------------------------------------------------------------


class Lines:
    """Lines out of a pipe, with patience of so many seconds for each. None: it was over, or the other side has closed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read = b""

    def next(self, within_s: float) -> str | None:
        """The next line without its end."""
        deadline = time.monotonic() + within_s
        # Not select(2): a worker may have more open files than that can tell apart.
        ready = select.poll()
        ready.register(self._descriptor, select.POLLIN)
        while b"\n" not in self._read:
            if not ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            part = os.read(self._descriptor, 1 << 16)
            if not part:
                return None
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()


def main() -> None:
    """One examination: a request in, findings out, marks out when asked, and the own mark away."""
    words = Lines(sys.stdin.fileno())
    request = Request.from_json(json.loads(words.next(_LIVES_S) or ""))
    mark = places.new_mark(request)
    try:
        _say(examine(request, mark).to_json())
        # The end of the pipe is not waited for: children that the worker forked meanwhile hold it open.
        while (names := json.loads(words.next(_LIVES_S) or "null")) is not None:
            _say(abreast({"seen": partial(places.marks_seen, request, names)}, WITHIN_S).get("seen", []))
    finally:
        abreast({"mark": lambda: _remove(mark)}, WITHIN_S)
        # Threads that hang in the kernel are not waited for.
        os._exit(0)


def _say(document: Any) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _remove(mark: str) -> None:
    with suppress(OSError):
        os.unlink(mark)


if __name__ == "__main__":
    main()
