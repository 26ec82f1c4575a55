"""Opening a run over legacy projects: their migration. Migrates nothing itself."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Engine

from producer.runs.open import Opened, open_run, skipped_job
from producer.runs.selection import EXCLUDED, choose
from producer.runs.survey import OnListing, in_order_of_sending, room_warnings, survey_all
from worker.broker import client as broker
from worker.db import column_types, ledger, projects
from worker.db.projects import Project
from worker.errors import UsageError
from worker.messages import Verb
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
    surveyed = survey_all([one for one in chosen if one.path], lambda one: one.path, on_listing)
    jobs += in_order_of_sending(surveyed)
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
