"""Opening a run over legacy projects: their migration. Migrates nothing itself."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sqlalchemy import Connection, Engine

from producer.runs.open import Opened, open_run, skipped_job
from producer.runs.selection import LeftOut, check_ids, choose
from producer.runs.survey import OnListing, in_order_of_sending, room_warnings, survey_all
from producer.runs.waves import Waves
from worker.broker import client as broker
from worker.db import column_types, ledger, projects
from worker.db.ledger import NewJob
from worker.db.projects import Project
from worker.db.waves import NewWave
from worker.messages import RunOptions, Verb
from worker.settings import Settings

_FAILED_LAST = "failed in run {run_id}; --include-failed or --project-id takes it again"


def enqueue(  # noqa: PLR0913 - an option is an argument
    settings: Settings,
    engine: Engine,
    *,
    dry_run: bool,
    project_ids: Sequence[int] = (),
    exclude: Sequence[int] = (),
    limit: int | None = None,
    include_failed: bool = False,
    rehash: bool = False,
    limit_bytes_per_second: int | None = None,
    waves: Waves | None = None,
    on_listing: OnListing = lambda _listing: None,
) -> Opened:
    """Open a migration run over the legacy projects, all or those chosen, and send its jobs.

    With a `limit`, projects that failed when they were last tried are left out, unless they are chosen by id
    or `include_failed` says so: otherwise the lowest ids would fail again and again, and no other project's
    turn would come. With `waves` the jobs of the first one are sent, the others are held; in a dry run all
    are sent. Raises `UsageError` naming every id that cannot be migrated, `ColumnTypesError` for
    columns that cannot be written, `BrokerUnavailableError` before anything is written when the broker does
    not answer.
    """
    options = RunOptions(project_ids=tuple(project_ids), exclude=tuple(exclude), limit=limit)
    asked: dict[str, object] = {
        name: True for name, given in (("include_failed", include_failed), ("rehash", rehash)) if given
    }
    if waves is not None:
        asked |= {"waves": waves.asked_for, "gate": waves.gate}
    options = options.model_copy(update=asked)
    broker.check(settings)
    column_types.require(engine)
    with engine.connect() as conn:
        chosen, left_out = _choose(conn, options, dry_run=dry_run)
        of_other_type = projects.count_dataset_based(conn)
    surveyed = survey_all([one for one in chosen if one.path], lambda one: one.path, on_listing)
    jobs: list[NewJob] = [*_without_path(chosen), *in_order_of_sending(surveyed)]
    planned: list[NewWave] = []
    if waves is not None:
        jobs, planned = waves.divide(jobs, hold=not dry_run)
    opened = open_run(
        settings,
        engine,
        verb=Verb.MIGRATE,
        dry_run=dry_run,
        jobs=jobs,
        left_out=left_out,
        options=options,
        limit_bytes_per_second=limit_bytes_per_second,
        waves=planned,
    )
    warnings = () if dry_run else room_warnings(settings, [found for _, _, found in surveyed if found])
    return replace(opened, of_other_type=of_other_type, warnings=warnings)


def _choose(conn: Connection, options: RunOptions, *, dry_run: bool) -> tuple[list[Project], list[LeftOut]]:
    legacy = projects.legacy_projects(conn)
    named = projects.by_ids(conn, [*options.project_ids, *options.exclude])
    check_ids(options, legacy, named, _why_not, "migrated")
    return choose(options, legacy, _failed_last(conn, options, dry_run=dry_run))


def _failed_last(conn: Connection, options: RunOptions, *, dry_run: bool) -> dict[int, str]:
    """Why projects that failed when they were last tried are left out, by id; empty where they are not."""
    if options.limit is None or options.include_failed or options.project_ids:
        return {}
    failed = ledger.failed_last(conn, Verb.MIGRATE, dry_run=dry_run)
    return {number: _FAILED_LAST.format(run_id=str(run_id)[:8]) for number, run_id in failed.items()}


def _without_path(chosen: Sequence[Project]) -> Iterator[NewJob]:
    for one in chosen:
        if not one.path:
            yield skipped_job(one, one.path, "path is NULL" if one.path is None else "path is empty")


def _why_not(project: Project) -> str:
    if project.legacy_path is not None:
        return "already migrated"
    return "dataset-based, never was a legacy project"
