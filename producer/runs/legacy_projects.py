"""Opening a run over legacy projects: their migration. Migrates nothing itself."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, Engine

from producer.planning import expected
from producer.planning.conditions import Conditions, conditions
from producer.planning.forecast import Forecast
from producer.runs.open import Opened, open_run, skipped_job
from producer.runs.selection import LeftOut, check_ids, choose
from producer.runs.survey import (
    OnFile,
    OnListing,
    Surveyed,
    at_most_stored,
    in_order_of_sending,
    room_warnings,
    survey_all,
)
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
    estimate: bool = False,
    asks_workers: bool = False,
    on_listing: OnListing = lambda _listing: None,
) -> Opened:
    """Open a migration run over the legacy projects, all or those chosen, and send its jobs. The run keeps
    what is expected of it: by the latest dry run of its projects or, to `estimate`, by a sample of heads.

    With a `limit`, projects that failed when they were last tried are left out, unless they are chosen by id
    or `include_failed` says so: otherwise the lowest ids would fail again and again, and no other project's
    turn would come. With `waves` the jobs of the first one are sent, the others are held; in a dry run all
    are sent. Raises `UsageError` naming every id that cannot be migrated, `ColumnTypesError` for
    columns that cannot be written, `BrokerUnavailableError` before anything is written when the broker does
    not answer.
    """
    options = _options(project_ids, exclude, limit, include_failed=include_failed)
    asked: dict[str, object] = {"rehash": True} if rehash else {}
    if waves is not None:
        asked |= {"waves": waves.asked_for, "gate": waves.gate}
    options = options.model_copy(update=asked)
    broker.check(settings)
    column_types.require(engine)
    selected = _select(engine, options, dry_run=dry_run)
    files = expected.SampledFiles()
    surveyed = selected.survey(on_listing, files.add if estimate else None)
    there = conditions(settings, asks_workers=asks_workers)
    facts: dict[str, Any] = {}
    forecast: Forecast | None = None
    if surveyed and dry_run:
        facts["conditions"] = _kept(engine, there, limit_bytes_per_second)
    elif surveyed and estimate:
        forecast = expected.by_sample(
            settings,
            engine,
            surveyed,
            files,
            there,
            on_listing,
            limit_bytes_per_second=limit_bytes_per_second,
        )
    elif surveyed:
        forecast = expected.by_dry_run(
            engine, surveyed, there, rehash=rehash, limit_bytes_per_second=limit_bytes_per_second
        )
    if forecast is not None:
        facts["forecast"] = forecast.to_json()
    jobs: list[NewJob] = [*_without_path(selected.chosen), *in_order_of_sending(surveyed)]
    planned: list[NewWave] = []
    if waves is not None:
        jobs, planned = waves.divide(jobs, hold=not dry_run)
    opened = open_run(
        settings,
        engine,
        verb=Verb.MIGRATE,
        dry_run=dry_run,
        jobs=jobs,
        left_out=selected.left_out,
        options=options,
        limit_bytes_per_second=limit_bytes_per_second,
        waves=planned,
        facts=facts,
    )
    return replace(
        opened,
        of_other_type=selected.of_other_type,
        warnings=() if dry_run else _room_warnings(settings, surveyed, forecast),
        forecast=facts.get("forecast"),
        workers=there.workers,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """An estimate for which no run was opened. `forecast` is None where there is nothing to migrate."""

    forecast: Forecast | None
    conditions: Conditions
    left_out: tuple[LeftOut, ...]
    of_other_type: int


def estimate(
    settings: Settings,
    engine: Engine,
    *,
    project_ids: Sequence[int] = (),
    exclude: Sequence[int] = (),
    limit: int | None = None,
    include_failed: bool = False,
    limit_bytes_per_second: int | None = None,
    on_listing: OnListing = lambda _listing: None,
) -> Estimated:
    """What a migration of these projects would store and take, by a sample of heads: opens no run, and
    needs no worker. Raises `UsageError` as `enqueue`.
    """
    options = _options(project_ids, exclude, limit, include_failed=include_failed)
    selected = _select(engine, options, dry_run=True)
    files = expected.SampledFiles()
    surveyed = selected.survey(on_listing, files.add)
    there = conditions(settings, asks_workers=True)
    return Estimated(
        forecast=expected.by_sample(
            settings,
            engine,
            surveyed,
            files,
            there,
            on_listing,
            limit_bytes_per_second=limit_bytes_per_second,
        )
        if surveyed
        else None,
        conditions=there,
        left_out=tuple(selected.left_out),
        of_other_type=selected.of_other_type,
    )


def _options(
    project_ids: Sequence[int], exclude: Sequence[int], limit: int | None, *, include_failed: bool
) -> RunOptions:
    options = RunOptions(project_ids=tuple(project_ids), exclude=tuple(exclude), limit=limit)
    return options.model_copy(update={"include_failed": True} if include_failed else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Selected:
    """The projects that a run is about, and what is not among them and why."""

    chosen: Sequence[Project]
    left_out: Sequence[LeftOut]
    of_other_type: int

    def survey(self, on_listing: OnListing, on_file: OnFile | None) -> list[Surveyed]:
        """List the directories of those that have one."""
        return survey_all([one for one in self.chosen if one.path], lambda one: one.path, on_listing, on_file)


def _select(engine: Engine, options: RunOptions, *, dry_run: bool) -> _Selected:
    with engine.connect() as conn:
        chosen, left_out = _choose(conn, options, dry_run=dry_run)
        return _Selected(chosen=chosen, left_out=left_out, of_other_type=projects.count_dataset_based(conn))


def _kept(engine: Engine, there: Conditions, limit_bytes_per_second: int | None) -> dict[str, Any]:
    """What a dry run keeps for the plan in its report: room and workers now, and how fast earlier
    migrations were.
    """
    with engine.connect() as conn:
        paces = [asdict(pace) for pace in expected.paces(conn, None)]
    return there.to_json() | {"paces": paces, "limit_bytes_per_second": limit_bytes_per_second}


def _room_warnings(
    settings: Settings, surveyed: Sequence[Surveyed], forecast: Forecast | None
) -> tuple[str, ...]:
    """By the forecast of a dry run, which knows what is stored or duplicate; else by what is seen of the
    directories.
    """
    if forecast is not None and forecast.basis == "dry_run":
        return room_warnings(settings, round(forecast.peak.high))
    return room_warnings(settings, at_most_stored([found for _, _, found in surveyed if found]))


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
