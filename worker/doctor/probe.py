"""Checks a worker's machine for the doctor, within a time limit. Knows no database and no Celery.

`python -m worker.doctor.probe` is a process of its own, because a mount that hangs must hold up no worker: a
thread for each place and one deadline for all; what has not answered by then is a finding. It reads a request
as a line of JSON, writes what it found as another, and then, for each list of marks that it is sent, those
that it sees. Its own mark in DATA_DIR lives as long as the process does.
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

from worker.doctor import legacy_checks, mount_options, store_checks
from worker.doctor.machine_checks import machine_checks
from worker.doctor.protocol import Machine, Request
from worker.doctor.sharing_check import sharing_check
from worker.findings import Check, failed, warned
from worker.store.digest import printable

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

WITHIN_S = 6.0
"""The time limit of all checks together. A disk that is busy answers later than one at rest."""

_NOT_EVERYWHERE = ("legacy roots protected", "shared blocks", "mount options")
"""The checks that say nothing where nothing can be said."""

_WAITS_S = 30.0
"""How long this process waits for the next line before it cleans up by itself: the worker may have died."""


def examine(request: Request, mark: str, *, within_s: float = WITHIN_S) -> Machine:
    """Check everything at once. Whatever hangs is a finding like any other, when the time is over."""
    calls = _calls(request, mark, f"does not answer within {within_s:.0f} s")
    answers = abreast({key: call for key, (call, _) in calls.items()}, within_s)
    found = {key: answers.get(key, if_silent) for key, (_, if_silent) in calls.items()}
    store, store_id = found["store"]
    host, boot_id = mount_options.host_identity()
    unseen = {number: found["project", number] for number in request.projects}
    return Machine(
        checks={
            **machine_checks(),
            **found["data directory"],
            **found["free space"],
            **found["flush to disk"],
            "store": store,
            "legacy roots": legacy_checks.roots_check(
                {root: found["root", root] for root in request.legacy_roots}
            ),
            # A root that hangs is a finding of the check before.
            **{name: found[name] for name in _NOT_EVERYWHERE if found[name]},
        },
        store_id=store_id,
        staging=found["staging"],
        restoring=found["restoring"],
        unseen={number: reason for number, reason in unseen.items() if reason},
        mark=os.path.basename(mark) if found["mark"] else None,
        host=host,
        boot_id=boot_id,
    )


def _calls(request: Request, mark: str, silent: str) -> dict[Hashable, tuple[Callable[[], Any], Any]]:
    """Each call that may hang, and what takes the place of its answer if it does."""

    def of_data_dir(place: str) -> Check:
        return failed(f"{printable(place)} {silent}", "Look at the mount of DATA_DIR on that machine.")

    # Not a failure: other programs' gigabytes are flushed as well.
    busy = warned(
        f"syncfs {silent}",
        "Let the disk come to rest and ask again; if it stays so, the disk is too slow or fails.",
    )
    data_dirs = (request.data_dir, request.store_dir, request.datasets_dir)
    roots = legacy_checks.roots_of(request)
    return {
        "data directory": (
            partial(store_checks.check_data_dir, request),
            {"data directory": of_data_dir(request.data_dir)},
        ),
        "free space": (
            partial(store_checks.check_space, request),
            {"free space": of_data_dir(request.data_dir)},
        ),
        "flush to disk": (partial(store_checks.check_flush, request), {"flush to disk": busy}),
        "store": (partial(store_checks.check_store, request), (of_data_dir(request.store_dir), None)),
        "mark": (partial(store_checks.leave_mark, mark), False),
        "staging": (partial(store_checks.staging_names, request), ()),
        "restoring": (partial(store_checks.restoring_names, request), ()),
        "legacy roots protected": (partial(legacy_checks.protection_check, request), None),
        "shared blocks": (partial(sharing_check, request), None),
        "mount options": (partial(mount_options.check_mounts, data_dirs, request.legacy_roots), None),
        **{
            ("root", root): (
                partial(legacy_checks.root_check, root, may_be_empty=root == request.data_dir),
                failed(silent, legacy_checks.MOUNT_IT),
            )
            for root in request.legacy_roots
        },
        **{
            ("project", number): (partial(legacy_checks.why_unreadable, path, roots), silent)
            for number, path in request.projects.items()
        },
    }


def abreast(calls: Mapping[K, Callable[[], T]], within_s: float) -> dict[K, T]:
    """What these calls return, each in a thread of its own, as far as they have returned in time."""
    found: dict[K, T] = {}

    def run(key: K, call: Callable[[], T]) -> None:
        found[key] = call()

    threads = [
        threading.Thread(target=run, args=(key, call), daemon=True, name=f"check {key}")
        for key, call in calls.items()
    ]
    deadline = time.monotonic() + within_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    # A copy: the slow ones may still add to it.
    return dict(found)


# The process ------------------------------------------------------------------------------------------------


class Lines:
    """Lines out of a pipe, each within a time limit."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read = b""

    def next(self, within_s: float) -> str | None:
        """The next line without its end; None when the time is over or the pipe is closed."""
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
    """One examination: a request in, findings out, marks out for each list of names; then clean up."""
    lines = Lines(sys.stdin.fileno())
    request = Request.from_json(json.loads(lines.next(_WAITS_S) or ""))
    mark = store_checks.new_mark(request)
    try:
        _write(examine(request, mark).to_json())
        # The end of the pipe is not waited for: children that the worker forked meanwhile hold it open.
        while (names := json.loads(lines.next(_WAITS_S) or "null")) is not None:
            marks_seen = partial(store_checks.marks_seen, request, names)
            _write(abreast({"seen": marks_seen}, WITHIN_S).get("seen", []))
    finally:
        abreast({"mark": partial(_remove, mark)}, WITHIN_S)
        # Threads that hang in the kernel are not waited for.
        os._exit(0)


def _write(document: Any) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _remove(mark: str) -> None:
    with suppress(OSError):
        os.unlink(mark)


if __name__ == "__main__":
    main()
