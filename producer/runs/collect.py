"""Following a run to its end and gathering its outcomes from the task results, with the ledger as the
truth. A run may have very many: they are read some hundred at a time.
"""

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Engine
from sqlalchemy.engine import Row

from producer.runs.shared_files import SharedFiles
from producer.runs.waves import wave_json
from worker.broker import client as broker
from worker.db import dry_runs, ledger, overview, waves
from worker.db.ledger import Run
from worker.db.overview import Progress
from worker.db.retry import when_there
from worker.errors import BrokerUnavailableError, ContentAdoptedError, OutcomeMissingError
from worker.messages import (
    ByteCounts,
    DiskBytes,
    FileCounts,
    JobRef,
    Outcome,
    RunState,
    Status,
    Subject,
    Verb,
    subject_fields,
)
from worker.runtime import log
from worker.settings import Settings

_log = log.get(__name__)

_POLL_S = 0.25
STALLED_S = 300.0
"""How long a run may stand still (no live lease, nothing ending) before the collector stops waiting."""

_AT_ONCE = 500
"""So many jobs are read at a time, from the ledger and from the broker."""

PATIENCE_S = 600.0
"""How long PostgreSQL may be away from a verb that follows a run: as long as workers wait for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """A run that is not followed any more. `stopped`: why the collector gave up waiting, if it did.

    `outcomes`: those of its jobs in the order of their keys, read as they are asked for, and only once.
    """

    run: Run
    selection: Mapping[str, Any]
    outcomes: Iterator[Outcome]
    progress: Progress
    stopped: str | None
    waves: Sequence[Mapping[str, Any]] = ()


def collect(
    settings: Settings,
    engine: Engine,
    run: Run,
    *,
    timeout_s: float | None,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> Collected:
    """Wait until the run has ended; then its outcomes can be read. Never waits without a deadline:
    `timeout_s` if given, and in any case no longer than `STALLED_S` without movement. An outage of PostgreSQL
    is waited for, also while outcomes are read; `DatabaseUnavailableError` after `PATIENCE_S`, or at the end
    of `timeout_s`.
    """
    progress, stopped = _wait(engine, run, timeout_s, on_progress)
    run, selection, found = when_there(partial(_run_as_it_is, engine, run.run_id), PATIENCE_S)
    return Collected(
        run=run,
        selection=selection,
        outcomes=_outcomes(settings, engine, run, has_ended=stopped is None),
        progress=progress,
        stopped=stopped,
        waves=found,
    )


def _run_as_it_is(
    engine: Engine, run_id: uuid.UUID
) -> tuple[Run, Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """The run, its selection and its waves, as a report has them."""
    with engine.connect() as conn:
        found = waves.waves_of(conn, run_id)
        ends = waves.ends_of(conn, run_id) if found else {}
        described = [wave_json(one) | {"ends": ends.get(one.wave, {})} for one in found]
        return ledger.find_run(conn, str(run_id)), ledger.selection(conn, run_id), described


def _outcomes(settings: Settings, engine: Engine, run: Run, *, has_ended: bool) -> Iterator[Outcome]:
    """The outcomes of a run in the order of their keys, each as all of them together make it."""
    found = _found(settings, engine, run, has_ended=has_ended)
    if run.dry_run:
        return settle_between_equals(found, partial(_new_content, engine, run.run_id))
    if run.verb is Verb.VERIFY:
        return _settled_by_shared_files(engine, run, found, has_ended=has_ended)
    return found


def _found(settings: Settings, engine: Engine, run: Run, *, has_ended: bool) -> Iterator[Outcome]:
    """What the ledger has, compared with what the tasks returned. A job that should have an outcome and has
    none is a failure.
    """
    with broker.results(settings) as read:
        results = _Results(run, read)
        for page in _pages(engine, run.run_id):
            results.compare(page)
            for job in page:
                if job.outcome is not None:
                    yield Outcome.from_json(job.outcome)
                elif has_ended:
                    _log.warning(
                        "outcome_missing",
                        run=str(run.run_id),
                        subject=JobRef.from_row(job).words,
                        state=job.state,
                    )
                    yield _missing(run, job)


def _pages(engine: Engine, run_id: uuid.UUID) -> Iterator[Sequence[Row[Any]]]:
    """All jobs of a run by subject and id. Each page is a transaction of its own, so that an outage of the
    database costs no more than a page.
    """
    after: tuple[Subject, int] | None = None
    while page := when_there(partial(_page, engine, run_id, after), PATIENCE_S):
        yield page
        after = page[-1].subject, page[-1].subject_id


def _page(engine: Engine, run_id: uuid.UUID, after: tuple[Subject, int] | None) -> Sequence[Row[Any]]:
    with engine.connect() as conn:
        return overview.jobs_after(conn, run_id, after, _AT_ONCE)


def _settled_by_shared_files(
    engine: Engine, run: Run, found: Iterator[Outcome], *, has_ended: bool
) -> Iterator[Outcome]:
    """Any job may have found something about the files of any dataset: all are read before the first is
    settled.
    """
    shared = SharedFiles()
    for page in _pages(engine, run.run_id):
        for job in page:
            if job.outcome is not None:
                if not shared.says_nothing(job.outcome):
                    shared.add(Outcome.from_json(job.outcome))
            elif has_ended:
                shared.add(_missing(run, job))
    yield from map(shared.settle, found)


def _missing(run: Run, job: Row[Any]) -> Outcome:
    """What the report says of a job without outcome in a run that has ended: every selected project is in
    it.
    """
    ref = JobRef.from_row(job)
    error = f"{ref.words}: no outcome was recorded: the run is {run.state}, its job still {job.state}"
    return Outcome(
        **subject_fields(ref, job.subject_name),
        status=Status.FAILED,
        reason=error,
        original_path=job.path,
        error_class=OutcomeMissingError.__name__,
        error=error,
        remedy=OutcomeMissingError.remedy,
    )


def settle_between_equals(
    ordered: Iterable[Outcome], new_content: Callable[[], Mapping[int, tuple[int, int]]]
) -> Iterator[Outcome]:
    """Say of each project of a dry run, or dataset to be adopted, what it would store, given all others of
    the run.

    Of equal datasets only the one with the lowest id would be adopted. Of equal projects the one with the
    lowest id stores the dataset and the others reuse it; of files that several share, too. `new_content`
    gives the new files and bytes that each would be the first to store.
    """
    owned = new_content()
    first: dict[str, tuple[int, str | None]] = {}
    for outcome in ordered:
        brings = outcome.status in {Status.WOULD_MIGRATE, Status.WOULD_ADOPT}
        if not brings or outcome.dataset_hash is None:
            yield outcome
            continue
        twin = first.get(outcome.dataset_hash)
        if outcome.status is Status.WOULD_ADOPT and twin is not None:
            yield _left_to(outcome, twin[0])
            continue
        files, size = owned.get(outcome.key[1], (0, 0))
        one = outcome.with_changes(
            files=FileCounts(stored=files, reused=outcome.files.total - files),
            bytes=replace(outcome.bytes, stored=size, reused=outcome.bytes.read - size),
        )
        if one.dataset_created and twin is not None:
            twin_id, dataset_path = twin
            one = one.with_changes(
                dataset_created=False,
                dataset_path=dataset_path,
                reason=f"would reuse the dataset of project {twin_id}: equal content",
            )
        first.setdefault(outcome.dataset_hash, (one.key[1], one.dataset_path))
        yield one


def _left_to(outcome: Outcome, other_id: int) -> Outcome:
    """A dataset that would not be adopted, because another one of the run has the same content."""
    return outcome.with_changes(
        status=Status.SKIPPED,
        reason=f"dataset {outcome.dataset_id}: dataset {other_id} has the same content",
        remedy=ContentAdoptedError.remedy,
        dataset_hash=None,
        dataset_path=None,
        sessions_count=0,
        files=FileCounts(),
        bytes=ByteCounts(),
        disk=DiskBytes(),
    )


def _new_content(engine: Engine, run_id: uuid.UUID) -> Mapping[int, tuple[int, int]]:
    def read() -> Mapping[int, tuple[int, int]]:
        with engine.connect() as conn:
            return dry_runs.new_content_by_project(conn, run_id)

    return when_there(read, PATIENCE_S)


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
        if now != before or now.busy:
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


class _Results:
    """What the tasks returned, to be compared with the ledger, which has all of it and is right where the two
    differ.
    """

    def __init__(
        self, run: Run, read: Callable[[Sequence[JobRef]], Mapping[JobRef, Mapping[str, Any]]]
    ) -> None:
        self._run = run
        self._read = read
        self._is_away = False

    def compare(self, page: Sequence[Row[Any]]) -> None:
        """Warn of each job whose task returned another outcome. A broker that is away is asked only once."""
        recorded = {JobRef.from_row(job): job.outcome for job in page if job.outcome is not None}
        if self._is_away:
            return
        try:
            documents = self._read(list(recorded))
        except BrokerUnavailableError as error:
            self._is_away = True
            _log.warning("results_not_read", reason=str(error))
            return
        for ref, document in documents.items():
            if _differs(document, recorded[ref]):
                _log.warning("result_differs_from_ledger", run=str(self._run.run_id), subject=ref.words)
        if len(documents) < len(recorded):
            missing = len(recorded) - len(documents)
            _log.debug("results_taken_from_ledger", run=str(self._run.run_id), count=missing)


def _differs(document: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    """Is the outcome in a stored result another one? A failed task's result is one line for Flower."""
    if document.get("status") != "SUCCESS" or document["result"] == recorded:
        return False
    try:
        # The same may be written differently: by an earlier release, or without what is at its default.
        return Outcome.from_json(document["result"]) != Outcome.from_json(recorded)
    except ValidationError:
        return False
