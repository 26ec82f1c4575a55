"""The steps of one project's verification: do its sessions read by dataset as they did by directory?"""

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.conversion.return_plan import plan_return
from worker.conversion.revert import check_still_converted
from worker.db import datasets, leases, projects, reclaims, sessions
from worker.db.engine import autocommit
from worker.db.projects import Conversion
from worker.db.sessions import Session
from worker.errors import NothingToDoError, SessionsDifferError, SessionUnreadableError
from worker.jobs.attempt import Attempt
from worker.jobs.moved_directory import last_move, place_of
from worker.jobs.runner import run_job
from worker.jobs.tools import Tools
from worker.legacy.roots import is_within
from worker.messages import JobRef, Outcome, Status, Verb, Warning_
from worker.readings import Reading, Readings
from worker.sessions_csv import Reader, Selection, SessionRow, select
from worker.store.digest import printable

_SHOWN = 10


def verify_sessions(tools: Tools, ref: JobRef, worker: str) -> Outcome | None:
    """Read every session of a migrated project the old way and the new way, and compare; None when it is not
    ours to do.

    Changes nothing but the job's own row, so twice or at once is only slower.
    """
    return run_job(tools, ref, worker, _work, Verb.VERIFY)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """A migrated project's rows at one moment. `tree`: its dataset's directory; `ranges`: each session's
    times.
    """

    conversion: Conversion
    tree: str | None
    sessions: Sequence[Session]
    ranges: Mapping[int, tuple[int, int]]


def _work(attempt: Attempt) -> Outcome:
    rows = _rows(attempt)
    conversion = rows.conversion
    attempt.heartbeat.enter("verify", conversion.dataset_hash)
    chosen = _sample(attempt, rows.sessions)
    moved, place = last_move(attempt, conversion), _place(attempt, conversion)
    differences, unreadable = _compare(attempt, rows, chosen, place)
    while differences and (now := last_move(attempt, conversion)) != moved:
        # Moved away, or back, under our hands.
        moved, place = now, _place(attempt, conversion)
        differences, unreadable = _compare(attempt, rows, chosen, place)
    if differences:
        raise SessionsDifferError(
            f"{len(differences)} readings differ between legacy directory and dataset: {'; '.join(differences[:_SHOWN])}",
            tuple(differences[:_SHOWN]),
        )
    verified = _outcome(attempt, len(chosen), unreadable).with_changes(
        dataset_id=conversion.dataset_id, dataset_hash=conversion.dataset_hash, sessions_count=len(chosen)
    )
    with attempt.engine.begin() as conn:
        leases.end_job(conn, attempt.lease, verified)
    return verified


def _rows(attempt: Attempt) -> _Rows:
    """In one snapshot: the project may be rolled back between two statements, and half of each would look
    like loss. Raises `NothingToDoError` for a project that is not migrated.
    """
    with attempt.engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        conversion = projects.active_conversions(conn, [attempt.project_id]).get(attempt.project_id)
        if conversion is None:
            raise NothingToDoError(f"project {attempt.project_id}: not migrated, or rolled back since")
        project = projects.by_ids(conn, [attempt.project_id]).get(attempt.project_id)
        if check_still_converted(project, conversion, conn):
            raise NothingToDoError(
                f"project {attempt.project_id}: its row was returned to legacy by another program; producer rollback completes that"
            )
        dataset = datasets.get(conn, conversion.dataset_id)
        return _Rows(
            conversion=conversion,
            tree=dataset.file_path if dataset is not None else None,
            sessions=sessions.of_project(conn, attempt.project_id),
            ranges=sessions.time_ranges(conn, attempt.project_id),
        )


def _place(attempt: Attempt, conversion: Conversion) -> str:
    """Where the project's legacy directory is: at its own place, or where a reclaim moved it.

    Raises `NothingToDoError` when it is gone.
    """
    with autocommit(attempt.engine) as conn:
        row = reclaims.of_conversion(conn, conversion.conversion_id)
    if row is not None and row.state in {"purging", "purged"}:
        raise NothingToDoError(
            "its legacy directory was purged, so there is nothing to compare with; producer verify --store reads its dataset"
        )
    places = [conversion.legacy_path] if row is None else [place_of(row), conversion.legacy_path]
    for place in places:
        if os.path.isdir(place):
            return place
    attempt.check_root(conversion.legacy_path)
    raise NothingToDoError(f"Legacy path no longer exists: {printable(places[0])}")


def _sample(attempt: Attempt, rows: Sequence[Session]) -> list[Session]:
    """The sessions to read: all, or the share that was asked for; the same whenever the job is repeated."""
    percent = attempt.lease.options.sample
    if percent is None or not rows:
        return list(rows)
    count = max(1, round(len(rows) * percent / 100))
    return random.Random(attempt.lease.ref.task_id).sample(list(rows), count)  # noqa: S311 - a choice, not a secret


def _outcome(attempt: Attempt, count: int, unreadable: Mapping[str, str]) -> Outcome:
    """What was proved: of sessions that could not be read before either, nothing, so they are counted by
    themselves and named.

    Where none could be read, the project is skipped: it was not verified.
    """
    alike = count - len(unreadable)
    parts = [f"{alike} sessions read alike by legacy directory and by dataset"] if alike or not count else []
    if unreadable:
        parts.append(f"{len(unreadable)} can be read by neither")
    status = Status.VERIFIED if alike or not count else Status.SKIPPED
    reason = "; ".join(parts) if alike or not count else f"none of its {count} sessions can be read by either"
    return attempt.outcome(status, reason).with_changes(
        warnings=tuple(
            Warning_(
                session=name,
                message=f"session {name} can be read neither by its legacy directory nor by its dataset: {why}",
            )
            for name, why in unreadable.items()
        )
    )


def _compare(
    attempt: Attempt, rows: _Rows, chosen: Sequence[Session], place: str
) -> tuple[list[str], dict[str, str]]:
    """Each session and reader for which the two ways give different rows; and, with the reason, each session
    that some reader can read by neither. `place` is where the legacy directory is now.
    """
    data_dir = attempt.tools.settings.data_dir
    both_ways = [
        [tuple(_selected(row, reader, data_dir) for row in pair) for reader in Reader]
        for pair in _both_ways(rows, chosen, place)
    ]
    every = (one for readers in both_ways for pair in readers for one in pair)
    readings = Readings((one for one in every if isinstance(one, Selection)), attempt.pace)
    differences: list[str] = []
    unreadable: dict[str, str] = {}
    for session, readers in zip(chosen, both_ways, strict=True):
        for reader, (old, new) in zip(Reader, readers, strict=True):
            before, after = _read(readings, old, new)
            if isinstance(before, str) and isinstance(after, str):
                unreadable.setdefault(session.session_name, before)
            elif before != after:
                differences.append(
                    f"session {session.session_name} ({reader.value}): {_words(before)} before, {_words(after)} now"
                )
        attempt.heartbeat.advance(1, 0)
        attempt.pace(0)
    return differences, unreadable


def _both_ways(rows: _Rows, chosen: Sequence[Session], place: str) -> Iterator[tuple[SessionRow, SessionRow]]:
    """Each session's row as it was, with what it read from at `place`, and as it is."""
    conversion, tree = rows.conversion, rows.tree
    old_values = {change["session_id"]: change for change in plan_return(conversion, tree, chosen).changes}
    for session in chosen:
        times = rows.ranges[session.session_id]
        old_way = old_values.get(session.session_id, session.values())
        parent = _moved(old_way["parent_session_data_path"], conversion.legacy_path, place)
        old = _row(session, {**old_way, "parent_session_data_path": parent}, times, place, None)
        yield old, _row(session, session.values(), times, None, tree)


def _moved(path: str | None, legacy_path: str, place: str) -> str | None:
    """A path in the legacy directory, as it is while that is elsewhere; any other as it is."""
    if path is None or place == legacy_path:
        return path
    for directory in (legacy_path, os.path.realpath(legacy_path)):
        if is_within(path, directory):
            return os.path.normpath(f"{place}/{os.path.relpath(path, directory)}")
    return path


def _row(
    session: Session,
    values: Mapping[str, Any],
    times: tuple[int, int],
    project_path: str | None,
    tree: str | None,
) -> SessionRow:
    return SessionRow(
        session_id=session.session_id,
        session_name=session.session_name,
        project_path=project_path,
        parent_session_data_path=values["parent_session_data_path"],
        data_start_offset=values["data_start_offset"],
        data_end_offset=values["data_end_offset"],
        start_ns=times[0],
        stop_ns=times[1],
        dataset_id=values["dataset_id"],
        raw_session_name=values["raw_session_name"],
        dataset_file_path=tree if values["dataset_id"] is not None else None,
    )


def _selected(row: SessionRow, reader: Reader, data_dir: Path) -> Selection | str:
    try:
        return select(row, reader, data_dir)
    except SessionUnreadableError as error:
        return str(error)


def _read(
    readings: Readings, old: Selection | str, new: Selection | str
) -> tuple[Reading | str, Reading | str]:
    """The rows by both ways, or why Label cannot read the session: in words that quote nothing of the file,
    because reports go further than files do, and the legacy one may be a link by now.
    """
    if isinstance(old, Selection) and isinstance(new, Selection):
        before, after = readings.both(old, new)
    else:
        before, after = (one if isinstance(one, str) else readings.sorted(one) for one in (old, new))
    return _without_content(before), _without_content(after)


def _without_content(found: Reading | str) -> Reading | str:
    if not isinstance(found, str):
        return found
    words, is_no_recording, _ = found.partition(" is not a recording: ")
    return f"{words} is not a recording" if is_no_recording else words


def _words(found: Reading | str) -> str:
    return "unreadable" if isinstance(found, str) else f"{found.count} rows"
