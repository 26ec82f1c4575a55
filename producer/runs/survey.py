"""What the producer sees of the projects' directories and of the store from where it runs: for the plan, the
order of sending and a warning. Judges no project; the workers look for themselves.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from worker.db.ledger import NewJob
from worker.db.projects import Project
from worker.messages import MOVED_AWAY
from worker.settings import Settings
from worker.units import human_bytes, reserve_of

_LISTED_AT_ONCE = 8
_LISTING_SAID_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the producer sees of a directory from where it runs. `signature` is equal for likely
    duplicates.
    """

    sessions: int
    files: int
    size_bytes: int
    signature: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """How many directories are listed (or, with another `what`, files looked into), and which are being
    listed for how many seconds, the longest first.
    """

    done: int
    total: int
    waits_for: tuple[tuple[str, float], ...]
    what: str = "listing directories"


OnListing = Callable[[Listing], None]
OnFile = Callable[[str, int], None]
"""Is told the path and size of a file. From several threads."""


def survey(path: str, on_file: OnFile | None = None) -> Survey | None:
    """Sessions, files and bytes of a directory, links not followed; None where it cannot be read from here.

    Only for the plan and for the order of sending. The worker looks for itself, and says what is wrong.
    """
    sessions = files = size = 0
    seen: list[tuple[str, int]] = []
    pending = [path]
    try:
        while pending:
            directory = pending.pop()
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name == MOVED_AWAY:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        sessions += directory == path
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        files += 1
                        length = entry.stat(follow_symlinks=False).st_size
                        size += length
                        seen.append((os.path.relpath(entry.path, path), length))
                        if on_file is not None:
                            on_file(entry.path, length)
    except OSError:
        return None
    return Survey(sessions=sessions, files=files, size_bytes=size, signature=hash(tuple(sorted(seen))))


Surveyed = tuple[Project, str | None, Survey | None]


def survey_all(
    chosen: Sequence[Project],
    path: Callable[[Project], str | None],
    on_listing: OnListing,
    on_file: OnFile | None = None,
) -> list[Surveyed]:
    """Several directories at a time: on a network file system each waits for the server. `on_listing` hears
    every half second how far it is, and what it waits for: a mount that hangs says nothing by itself.
    `on_file` hears of each file.
    """
    found: dict[int, Survey | None] = {}

    def look(number: int) -> None:
        of = path(chosen[number]) or ""
        found[number] = survey(of) if on_file is None else survey(of, on_file)

    in_threads([path(one) or "" for one in chosen], look, on_listing)
    return [(one, path(one), found[number]) for number, one in enumerate(chosen)]


def in_threads(
    paths: Sequence[str],
    look: Callable[[int], None],
    on_listing: OnListing,
    what: str = "listing directories",
) -> None:
    """Have some threads look at each of these paths, by its number. `on_listing` hears as `survey_all`
    says.
    """
    begun: dict[int, float] = {}
    done: set[int] = set()
    pending = iter(range(len(paths)))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(pending, None)
            if number is None:
                return
            begun[number] = time.monotonic()
            look(number)
            done.add(number)

    # Daemons: one that hangs in the kernel must not keep a person's Ctrl-C from ending the program.
    threads = [threading.Thread(target=work, daemon=True, name="survey") for _ in range(_LISTED_AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(_LISTING_SAID_EVERY_S)
            if thread.is_alive():
                on_listing(_listing(paths, dict(begun), done.copy(), what))


def _listing(paths: Sequence[str], begun: Mapping[int, float], done: Collection[int], what: str) -> Listing:
    now = time.monotonic()
    waiting = sorted((began, number) for number, began in begun.items() if number not in done)
    return Listing(
        done=len(done),
        total=len(paths),
        waits_for=tuple((paths[number], now - began) for began, number in waiting),
        what=what,
    )


def in_order_of_sending(surveyed: Sequence[Surveyed]) -> list[NewJob]:
    """Largest first, so that no worker begins a big project when the others have ended; likely duplicates
    after all others, so that they find their twin stored instead of waiting for it.
    """
    seen: set[int] = set()
    firsts: list[NewJob] = []
    twins: list[NewJob] = []
    for project, path, found in sorted(
        surveyed, key=lambda one: (-(one[2].size_bytes if one[2] else 0), one[0].project_id)
    ):
        job = NewJob(
            subject_id=project.project_id,
            subject_name=project.project_name,
            path=path,
            sessions=found.sessions if found else None,
            files=found.files if found else None,
            size_bytes=found.size_bytes if found else None,
        )
        twin = found is not None and found.files > 0 and found.signature in seen
        (twins if twin else firsts).append(job)
        if found is not None:
            seen.add(found.signature)
    return firsts + twins


def at_most_stored(surveys: Sequence[Survey]) -> int:
    """The bytes of all that was seen, likely duplicates counted once."""
    return sum({found.signature: found.size_bytes for found in surveys}.values())


def room_warnings(settings: Settings, planned: int) -> tuple[str, ...]:
    """What to say of a store that has no room for so many bytes.

    Never an error: much of it may be duplicate or stored already, and a run that finds the store full waits
    for room. Nothing is said where the store's directory cannot be seen from here.
    """
    room = room_in(settings)
    if room is None or planned <= room:
        return ()
    warning = (
        f"The store may become full: {human_bytes(planned)} are planned, and it has room for {human_bytes(room)}: "
        f"{settings.store_dir}. What is duplicate or stored already needs no room; if the rest does not fit, the run "
        "pauses until there is more"
    )
    return (warning,)


def room_in(settings: Settings) -> int | None:
    """How many bytes the store takes before it calls itself full; None if its file system is not to be seen
    from here.

    Above DATA_DIR may be another file system than on the workers.
    """
    seen = [path for path in (settings.store_dir, settings.data_dir) if path.is_dir()]
    if not seen:
        return None
    try:
        status = os.statvfs(seen[0])
    except OSError:
        return None
    return max(0, status.f_bavail * status.f_frsize - reserve_of(status.f_blocks * status.f_frsize))


def store_id_in(settings: Settings) -> str | None:
    """The id of the store in DATA_DIR as it is seen from here; None where no store can be read."""
    try:
        description = json.loads((settings.store_dir / "store.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return description.get("id") if isinstance(description, dict) else None
