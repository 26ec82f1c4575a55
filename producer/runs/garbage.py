"""Opening a gc: one job for the store as a whole, after its tripwire. Collects nothing itself."""

from collections.abc import Callable

from sqlalchemy import Engine

from producer.runs.open import Opened, open_run
from producer.runs.survey import OnListing
from worker.broker import client as broker
from worker.db import garbage
from worker.db.ledger import NewJob
from worker.errors import UsageError
from worker.messages import THE_STORE, RunOptions, Subject, Verb
from worker.settings import Settings

GRACE_H = 24.0
"""How long nothing has to have referred to what a gc takes, unless it is told otherwise."""


def collect(
    settings: Settings,
    engine: Engine,
    *,
    dry_run: bool,
    grace_hours: float,
    expect: int | None,
    confirm: Callable[[int], None] = lambda _count: None,
    on_listing: OnListing = lambda _listing: None,  # noqa: ARG001 - as every function that opens a run
) -> Opened:
    """Open a gc. Before anything is written `confirm` hears how many datasets would go, and may raise.

    Raises `UsageError` when more than a tenth of all datasets (and more than ten) would go, unless `expect`
    says how many.
    """
    broker.check(settings)
    with engine.connect() as conn:
        due = sum(one.is_due for one in garbage.unreferenced(conn, grace_hours))
        total = garbage.count_datasets(conn)
    if not dry_run and garbage.would_trip(due, total, expect):
        raise UsageError(
            f"{due} of {total} datasets would go, which is more than one in ten. See which: producer gc --dry-run. "
            f"If that is right: producer gc --expect {due}"
        )
    if not dry_run:
        confirm(due)
    options = RunOptions(grace_hours=grace_hours)
    if expect is not None:
        options = options.model_copy(update={"expect": expect})
    return _open(settings, engine, dry_run=dry_run, options=options)


def restore(
    settings: Settings,
    engine: Engine,
    *,
    entry_id: str,
    on_listing: OnListing = lambda _listing: None,  # noqa: ARG001 - as above
) -> Opened:
    """Open a run that brings one entry of the quarantine back."""
    broker.check(settings)
    return _open(settings, engine, dry_run=False, options=RunOptions(restore_entry=entry_id))


def _open(settings: Settings, engine: Engine, *, dry_run: bool, options: RunOptions) -> Opened:
    return open_run(
        settings,
        engine,
        verb=Verb.GC,
        dry_run=dry_run,
        jobs=[
            NewJob(
                subject=Subject.STORE,
                subject_id=THE_STORE,
                subject_name="",
                path=str(settings.store_dir),
            )
        ],
        left_out=(),
        options=options,
    )
