"""Opening an adoption of datasets that Label registered itself, or its undo. Moves nothing itself."""

from collections.abc import Callable, Collection

from sqlalchemy import Connection, Engine

from producer.runs.open import Opened, open_run
from producer.runs.survey import OnListing
from worker.broker import client as broker
from worker.db import adoptions, verifications
from worker.db.adoptions import Candidate
from worker.db.ledger import NewJob
from worker.errors import UsageError
from worker.messages import RunOptions, Subject, Verb
from worker.settings import Settings


def adopt(
    settings: Settings,
    engine: Engine,
    *,
    dry_run: bool,
    options: RunOptions,
    confirm: Callable[[int], None] = lambda _count: None,
    on_listing: OnListing = lambda _listing: None,  # noqa: ARG001 - as every function that opens a run
) -> Opened:
    """Open an adoption of the datasets of these ids, or without any of all that Label registered itself; with
    `undo` of those that were adopted. Before anything is written `confirm` hears how many it is, and may
    raise.

    Raises `UsageError` naming every id that is unknown or cannot be adopted, with the reason.
    """
    broker.check(settings)
    with engine.connect() as conn:
        known = {one.dataset_id: one for one in adoptions.candidates(conn)}
        possible = _possible(conn, known.values(), undo=options.undo)
    _check_ids(options, known, possible)
    chosen = [one for number, one in known.items() if number in (set(options.dataset_ids) or possible)]
    if chosen:
        confirm(len(chosen))
    return open_run(
        settings,
        engine,
        verb=Verb.ADOPT,
        dry_run=dry_run,
        jobs=[_job(one) for one in sorted(chosen, key=lambda one: (-(one.size_bytes or 0), one.dataset_id))],
        left_out=(),
        options=options,
    )


def _possible(conn: Connection, known: Collection[Candidate], *, undo: bool) -> set[int]:
    """Those that are Label's still or, for an undo, those that can be given back. What a job that died was
    undoing it may have given back already.
    """
    if undo:
        return {one.dataset_id for one in known if one.state in {"adopted", "undoing", "clearing"}}
    return set(verifications.registered_by_label(conn))


def _check_ids(options: RunOptions, known: Collection[int], possible: Collection[int]) -> None:
    why_not = "not adopted, or what Label had is gone" if options.undo else "this program's already"
    problems = [
        f"{number} ({'ids begin at 1' if number < 1 else why_not if number in known else 'no such dataset'})"
        for number in options.dataset_ids
        if number not in possible
    ]
    if problems:
        act = "given back" if options.undo else "adopted"
        raise UsageError(f"These dataset ids cannot be {act}: {', '.join(problems)}")


def _job(one: Candidate) -> NewJob:
    return NewJob(
        subject=Subject.DATASET,
        subject_id=one.dataset_id,
        subject_name=one.dataset_name,
        path=one.file_path,
        sessions=one.sessions,
        size_bytes=one.size_bytes,
    )
