"""Following a run to its end and gathering its outcomes from the task results, with the ledger as the
truth.
"""

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Engine
from sqlalchemy.engine import Row

from producer.runs.shared_files import settle_shared_files
from worker.broker import client as broker
from worker.db import dry_runs, ledger, overview
from worker.db.ledger import Run
from worker.db.overview import Progress
from worker.db.retry import when_there
from worker.errors import BrokerUnavailableError, OutcomeMissingError
from worker.messages import FileCounts, JobRef, Outcome, RunState, Status, Verb, subject_fields
from worker.runtime import log
from worker.settings import Settings

_log = log.get(__name__)

_POLL_S = 0.25
STALLED_S = 300.0
"""How long a run may stand still (no live lease, nothing ending) before the collector stops waiting."""

PATIENCE_S = 600.0
"""How long PostgreSQL may be away from a verb that follows a run: as long as workers wait for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """A run and the outcomes of its jobs by subject. `stopped`: why the collector gave up waiting, if it
    did.
    """

    run: Run
    selection: Mapping[str, Any]
    outcomes: tuple[Outcome, ...]
    progress: Progress
    stopped: str | None


def collect(
    settings: Settings,
    engine: Engine,
    run: Run,
    *,
    timeout_s: float | None,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> Collected:
    """Wait until the run has ended, then gather its outcomes. Never waits without a deadline: `timeout_s` if
    given, and in any case no longer than `STALLED_S` without movement. An outage of PostgreSQL is waited for;
    `DatabaseUnavailableError` after `PATIENCE_S`, or at the end of `timeout_s`.
    """
    progress, stopped = _wait(engine, run, timeout_s, on_progress)
    found = when_there(lambda: _recorded(engine, run.run_id, has_ended=stopped is None), PATIENCE_S)
    run, recorded, missing, owned = found.run, found.outcomes, found.missing, found.owned
    outcomes = _reconcile(settings, run, recorded) | {
        JobRef.from_row(row): _missing(run, row) for row in missing
    }
    if run.dry_run:
        outcomes = settle_between_equals(outcomes, owned)
    if run.verb is Verb.VERIFY:
        outcomes = settle_shared_files(outcomes)
    return Collected(
        run=run,
        selection=found.selection,
        outcomes=tuple(sorted(outcomes.values(), key=lambda outcome: outcome.key)),
        progress=progress,
        stopped=stopped,
    )


def _missing(run: Run, job: Row[Any]) -> Outcome:
    """What the report says of a job without outcome in a run that has ended: every selected project is in
    it.
    """
    ref = JobRef.from_row(job)
    error = f"{ref.words}: no outcome was recorded: the run is {run.state}, its job still {job.state}"
    _log.warning("outcome_missing", run=str(run.run_id), subject=ref.words, state=job.state)
    return Outcome(
        **subject_fields(ref, job.subject_name),
        status=Status.FAILED,
        reason=error,
        original_path=job.path,
        error_class=OutcomeMissingError.__name__,
        error=error,
        remedy=OutcomeMissingError.remedy,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recorded:
    """What the ledger says of a run; `missing` are jobs that should have an outcome, `owned` as in
    `settle_between_equals`.
    """

    run: Run
    selection: Mapping[str, Any]
    outcomes: dict[JobRef, Outcome]
    missing: Sequence[Row[Any]]
    owned: dict[int, tuple[int, int]]


def _recorded(engine: Engine, run_id: uuid.UUID, *, has_ended: bool) -> _Recorded:
    with engine.connect() as conn:
        run = ledger.find_run(conn, str(run_id))
        return _Recorded(
            run=run,
            selection=ledger.selection(conn, run_id),
            outcomes=overview.outcomes(conn, run_id),
            missing=overview.without_outcome(conn, run_id) if has_ended else [],
            owned=dry_runs.new_content_by_project(conn, run_id) if run.dry_run else {},
        )


def settle_between_equals(
    outcomes: Mapping[JobRef, Outcome], owned: Mapping[int, tuple[int, int]]
) -> dict[JobRef, Outcome]:
    """Say of each project of a dry run what it would store, given all others of the run.

    Of equal projects the one with the lowest id stores the dataset and the others reuse it; of files that
    several share, too. `owned` are the new files and bytes that each project would be the first to store.
    """
    first: dict[str, Outcome] = {}
    settled: dict[JobRef, Outcome] = {}
    for ref, outcome in sorted(outcomes.items(), key=lambda item: item[1].key):
        if outcome.status is not Status.WOULD_MIGRATE or outcome.dataset_hash is None:
            settled[ref] = outcome
            continue
        files, size = owned.get(ref.subject_id, (0, 0))
        one = outcome.with_changes(
            files=FileCounts(stored=files, reused=outcome.files.total - files),
            bytes=replace(outcome.bytes, stored=size, reused=outcome.bytes.read - size),
        )
        if one.dataset_created and (twin := first.get(outcome.dataset_hash)) is not None:
            one = one.with_changes(
                dataset_created=False,
                dataset_path=twin.dataset_path,
                reason=f"would reuse the dataset of project {twin.project_id}: equal content",
            )
        first.setdefault(outcome.dataset_hash, one)
        settled[ref] = one
    return settled


def _wait(
    engine: Engine, run: Run, timeout_s: float | None, on_progress: Callable[[Progress], None]
) -> tuple[Progress, str | None]:
    begin = moved = time.monotonic()
    before: Progress | None = None
    pause = threading.Event()
    while True:
        left_s = PATIENCE_S if timeout_s is None else timeout_s - (time.monotonic() - begin)
        now = when_there(partial(_progress, engine, run.run_id), min(PATIENCE_S, max(0.0, left_s)))
        asked = time.monotonic()
        on_progress(now)
        if now.state.has_ended and now.running == 0:
            return now, None
        if now != before or now.live:
            before, moved = now, time.monotonic()
        if timeout_s is not None and time.monotonic() - begin > timeout_s:
            return now, f"the time limit of {timeout_s:g} s is over"
        if now.state is RunState.PAUSED and now.running == 0:
            return now, "the run is paused"
        if time.monotonic() - moved > STALLED_S:
            return now, f"no worker has had a job for {STALLED_S:g} s"
        # A big run is counted in a tenth of a second: nine tenths of the time belong to the workers.
        pause.wait(max(_POLL_S, 9 * (time.monotonic() - asked)))


def _progress(engine: Engine, run_id: uuid.UUID) -> Progress:
    with engine.connect() as conn:
        return overview.progress(conn, run_id)


def _reconcile(settings: Settings, run: Run, recorded: dict[JobRef, Outcome]) -> dict[JobRef, Outcome]:
    """The outcomes as the tasks returned them, checked against the ledger, which fills what is missing and is
    right where the two differ.
    """
    returned = _returned(settings, recorded)
    differing = [ref for ref, outcome in returned.items() if outcome != recorded[ref]]
    for ref in differing:
        _log.warning("result_differs_from_ledger", run=str(run.run_id), subject=ref.words)
    missing = len(recorded) - len(returned)
    if missing:
        _log.debug("results_taken_from_ledger", run=str(run.run_id), count=missing)
    return recorded | {ref: returned[ref] for ref in returned.keys() - set(differing)}


def _returned(settings: Settings, recorded: dict[JobRef, Outcome]) -> dict[JobRef, Outcome]:
    try:
        documents = broker.results(settings, recorded)
    except BrokerUnavailableError as error:
        _log.warning("results_not_read", reason=str(error))
        return {}
    outcomes = {ref: _outcome(document) for ref, document in documents.items()}
    return {ref: outcome for ref, outcome in outcomes.items() if outcome is not None}


def _outcome(document: dict[str, Any]) -> Outcome | None:
    """The outcome in a stored result; None for a failed task, whose result is one line for Flower."""
    if document.get("status") != "SUCCESS":
        return None
    try:
        return Outcome.from_json(document["result"])
    except ValidationError:
        return None
