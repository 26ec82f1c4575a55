"""Opening a run: which projects, how big they are, one job row each, then one message each. Converts nothing itself."""

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Engine

from worker.broker import client as broker
from worker.broker.client import Message
from worker.db import column_types, ledger, messages_sent, projects
from worker.db.ledger import NewJob
from worker.db.projects import Project
from worker.errors import BrokerUnavailableError, UsageError
from worker.messages import JobRef, Outcome, Status, Verb
from worker.settings import Settings
from worker.units import human_bytes, reserve_of

_BATCH = 500
"""So many messages are sent before the ledger notes it: what a producer that dies has not noted is sent again."""


EXCLUDED = "excluded"
_BEYOND_LIMIT = "beyond --limit"
_FAILED_LAST = "failed in run {run_id}; --include-failed or --project-id takes it again"

_LISTED_AT_ONCE = 8
_LISTING_SAID_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the producer sees of a directory from where it runs. `signature` is equal for likely duplicates."""

    sessions: int
    files: int
    size_bytes: int
    signature: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """How many directories are listed, and which are being listed right now for how many seconds, the longest first."""

    done: int
    total: int
    waits_for: tuple[tuple[str, float], ...]


OnListing = Callable[[Listing], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A project that gets no message, and why."""

    project_id: int
    project_name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A run whose jobs are written and sent, in the order of sending."""

    run_id: uuid.UUID
    verb: Verb
    dry_run: bool
    jobs: tuple[NewJob, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    of_other_type: int = 0
    warnings: tuple[str, ...] = ()


def enqueue(  # noqa: PLR0913 - an option is an argument
    settings: Settings,
    engine: Engine,
    *,
    dry_run: bool,
    project_ids: Sequence[int] = (),
    exclude: Sequence[int] = (),
    limit: int | None = None,
    include_failed: bool = False,
    limit_bytes_per_second: int | None = None,
    on_listing: OnListing = lambda _listing: None,
) -> Opened:
    """Open a migration run over the legacy projects, all or those chosen, and send its jobs.

    With a `limit`, projects that failed when they were last tried are left out, unless they are chosen by id or
    `include_failed` says so: otherwise the lowest ids would fail again and again, and no other project's turn would come.
    Raises `UsageError` naming every id that cannot be migrated, `ColumnTypesError` for columns that cannot be written,
    `BrokerUnavailableError` before anything is written when the broker does not answer.
    """
    broker.check(settings)
    column_types.require(engine)
    with engine.connect() as conn:
        legacy = projects.legacy_projects(conn)
        _check_ids(project_ids, exclude, legacy, projects.by_ids(conn, [*project_ids, *exclude]))
        of_other_type = projects.count_dataset_based(conn)
        again = limit is None or include_failed or project_ids
        failed = {} if again else ledger.failed_last(conn, Verb.MIGRATE, dry_run=dry_run)
    reasons = {number: _FAILED_LAST.format(run_id=str(run_id)[:8]) for number, run_id in failed.items()}
    chosen, left_out = choose(legacy, set(project_ids), reasons | dict.fromkeys(exclude, EXCLUDED), limit)
    jobs = [
        skipped_job(one, one.path, "path is NULL" if one.path is None else "path is empty")
        for one in chosen
        if not one.path
    ]
    surveyed = _look_at([one for one in chosen if one.path], lambda one: one.path, on_listing)
    jobs += _by_size(surveyed)
    opened = open_run(
        settings,
        engine,
        verb=Verb.MIGRATE,
        dry_run=dry_run,
        jobs=jobs,
        left_out=left_out,
        options={"project_ids": list(project_ids), "exclude": list(exclude), "limit": limit}
        | ({"include_failed": True} if include_failed else {}),
        limit_bytes_per_second=limit_bytes_per_second,
    )
    warnings = () if dry_run else room_warnings(settings, [found for _, _, found in surveyed if found])
    return replace(opened, of_other_type=of_other_type, warnings=warnings)


def room_warnings(settings: Settings, surveys: Sequence[Survey]) -> tuple[str, ...]:
    """What to say of a store that has no room for all that was seen, likely duplicates counted once.

    Never an error: much of it may be duplicate or stored already, and a run that finds the store full waits for room.
    Nothing is said where the store's directory cannot be seen from here.
    """
    planned = sum({found.signature: found.size_bytes for found in surveys}.values())
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
    """How many bytes the store takes before it calls itself full; None if its file system is not to be seen from here.

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


def open_run(
    settings: Settings,
    engine: Engine,
    *,
    verb: Verb,
    dry_run: bool,
    jobs: Sequence[NewJob],
    left_out: Sequence[LeftOut],
    options: Mapping[str, Any],
    limit_bytes_per_second: int | None = None,
) -> Opened:
    """Write a run and its jobs, commit, then send one message for each waiting job.

    In this order a message never speaks of a job that is not there. If the broker goes away between, the run is
    cancelled and says so: nothing is left that would start by itself later.
    """
    run_id = uuid.uuid4()
    left_out = [*left_out, *(_left_out(job.skipped) for job in jobs if job.skipped)]
    selection = {"options": dict(options), "left_out": [_as_json(one) for one in left_out]}
    with engine.begin() as conn:
        ledger.open_run(
            conn,
            run_id,
            verb,
            dry_run=dry_run,
            selection=selection,
            limit_bytes_per_second=limit_bytes_per_second,
        )
        ledger.add_jobs(conn, run_id, jobs)
    try:
        send_jobs(settings, engine, verb, run_id, jobs)
    except BrokerUnavailableError as error:
        with engine.begin() as conn:
            ledger.cancel_run(conn, run_id, f"the broker went away while the run was sent: {error}")
        raise
    with engine.begin() as conn:
        ledger.start_run(conn, run_id)
        ledger.finish_run_if_ended(conn, run_id)
    return Opened(run_id=run_id, verb=verb, dry_run=dry_run, jobs=tuple(jobs), left_out=tuple(left_out))


def send_jobs(
    settings: Settings, engine: Engine, verb: Verb, run_id: uuid.UUID, jobs: Sequence[NewJob]
) -> None:
    """One message for each job that waits. Raises `BrokerUnavailableError`; a part may have been sent then.

    Dying in the middle: the workers send the rest.
    """
    messages = [
        Message(
            ref=JobRef(run_id=run_id, project_id=job.project_id),
            verb=verb,
            project_name=job.project_name,
            size_bytes=job.size_bytes,
        )
        for job in jobs
        if not job.skipped
    ]
    for start in range(0, len(messages), _BATCH):
        batch = messages[start : start + _BATCH]
        epoch = broker.condition(settings).epoch
        broker.send(settings, batch)
        with engine.begin() as conn:
            messages_sent.note_sent(conn, [message.ref for message in batch], epoch)


def survey(path: str) -> Survey | None:
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
                    if entry.is_dir(follow_symlinks=False):
                        sessions += directory == path
                        pending.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        files += 1
                        length = entry.stat(follow_symlinks=False).st_size
                        size += length
                        seen.append((os.path.relpath(entry.path, path), length))
    except OSError:
        return None
    return Survey(sessions=sessions, files=files, size_bytes=size, signature=hash(tuple(sorted(seen))))


def _check_ids(
    project_ids: Sequence[int],
    exclude: Sequence[int],
    legacy: Sequence[Project],
    found: Mapping[int, Project],
) -> None:
    """Every id a person typed must mean something; all that do not are named at once."""
    can_migrate = {project.project_id for project in legacy}
    problems = [
        f"{number} ({_why_not(number, found)})" for number in project_ids if number not in can_migrate
    ]
    problems += [
        f"{number} (to be excluded, but {_why_not(number, found)})"
        for number in exclude
        if number not in found
    ]
    problems += [f"{number} (both chosen and excluded)" for number in project_ids if number in set(exclude)]
    if problems:
        raise UsageError(f"These project ids cannot be migrated: {', '.join(problems)}")


def _why_not(number: int, found: Mapping[int, Project]) -> str:
    if number < 1:
        return "ids begin at 1"
    project = found.get(number)
    if project is None:
        return "no such project"
    return (
        "already migrated" if project.legacy_path is not None else "dataset-based, never was a legacy project"
    )


def choose(
    candidates: Sequence[Project], only: Collection[int], not_those: Mapping[int, str], limit: int | None
) -> tuple[list[Project], list[LeftOut]]:
    """Those of the candidates that a run is to have, and the others with the reason: `not_those` says it by id. A legacy project
    without a path does not count towards `limit`.
    """
    left_out: list[LeftOut] = []
    chosen: list[Project] = []
    counted = 0
    for project in candidates:
        if only and project.project_id not in only:
            continue
        full = limit is not None and counted >= limit
        reason = not_those.get(project.project_id, _BEYOND_LIMIT if full else None)
        if reason is None:
            chosen.append(project)
            counted += bool(project.path) or not project.is_legacy
        else:
            left_out.append(
                LeftOut(project_id=project.project_id, project_name=project.project_name, reason=reason)
            )
    return chosen, left_out


def skipped_job(project: Project, path: str | None, reason: str, remedy: str | None = None) -> NewJob:
    """A job that gets no message because there is nothing to do; it is named in the report, with the reason."""
    return NewJob(
        project_id=project.project_id,
        project_name=project.project_name,
        path=path,
        skipped=Outcome(
            project_id=project.project_id,
            project_name=project.project_name,
            status=Status.SKIPPED,
            reason=reason,
            remedy=remedy,
            original_path=path,
        ),
    )


def _left_out(outcome: Outcome) -> LeftOut:
    return LeftOut(
        project_id=outcome.project_id, project_name=outcome.project_name or "", reason=outcome.reason
    )


def survey_all(
    chosen: Sequence[Project], path: Callable[[Project], str | None], on_listing: OnListing
) -> list[NewJob]:
    """A job for each project, with what the producer sees of its directory, in the order of sending."""
    return _by_size(_look_at(chosen, path, on_listing))


_Surveyed = tuple[Project, str | None, Survey | None]


def _look_at(
    chosen: Sequence[Project], path: Callable[[Project], str | None], on_listing: OnListing
) -> list[_Surveyed]:
    """Several directories at a time: on a network file system each waits for the server. `on_listing` hears every half second
    how far it is, and what it waits for: a mount that hangs says nothing by itself.
    """
    found: dict[int, Survey | None] = {}
    begun: dict[int, float] = {}
    pending = iter(range(len(chosen)))
    lock = threading.Lock()

    def look() -> None:
        while True:
            with lock:
                number = next(pending, None)
            if number is None:
                return
            begun[number] = time.monotonic()
            found[number] = survey(path(chosen[number]) or "")

    # Daemons: one that hangs in the kernel must not keep a person's Ctrl-C from ending the program.
    threads = [threading.Thread(target=look, daemon=True, name="survey") for _ in range(_LISTED_AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(_LISTING_SAID_EVERY_S)
            if thread.is_alive():
                on_listing(_listing(chosen, path, dict(begun), found.keys()))
    return [(one, path(one), found[number]) for number, one in enumerate(chosen)]


def _listing(
    chosen: Sequence[Project],
    path: Callable[[Project], str | None],
    begun: Mapping[int, float],
    done: Collection[int],
) -> Listing:
    now = time.monotonic()
    waiting = sorted((began, number) for number, began in begun.items() if number not in done)
    return Listing(
        done=len(done),
        total=len(chosen),
        waits_for=tuple((path(chosen[number]) or "", now - began) for began, number in waiting),
    )


def _by_size(surveyed: Sequence[_Surveyed]) -> list[NewJob]:
    """Largest first, so that no worker begins a big project when the others have ended; likely duplicates after all
    others, so that they find their twin stored instead of waiting for it.
    """
    seen: set[int] = set()
    firsts: list[NewJob] = []
    twins: list[NewJob] = []
    for project, path, found in sorted(
        surveyed, key=lambda one: (-(one[2].size_bytes if one[2] else 0), one[0].project_id)
    ):
        job = NewJob(
            project_id=project.project_id,
            project_name=project.project_name,
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


def _as_json(one: LeftOut) -> dict[str, Any]:
    return {"project_id": one.project_id, "project_name": one.project_name, "reason": one.reason}
