"""Opening a reclaim over converted projects, or its undo, purge or sharing. Moves nothing itself."""

from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import Connection, Engine

from producer.runs.open import Opened, open_run
from producer.runs.selection import check_ids, choose
from producer.runs.survey import OnListing, in_order_of_sending, survey_all
from worker.broker import client as broker
from worker.db import projects, reclaims
from worker.db.projects import Project
from worker.db.reclaims import Reclaim
from worker.messages import RunOptions, Verb
from worker.settings import Settings

OLDER_THAN_DAYS = 7.0
"""How long ago a project must have been migrated to be reclaimed, unless a reclaim is told otherwise."""

_DONE = {"undo": "moved back", "purge": "purged"}


def reclaim(
    settings: Settings,
    engine: Engine,
    *,
    dry_run: bool,
    options: RunOptions,
    confirm: Callable[[int], None] = lambda _count: None,
    on_listing: OnListing = lambda _listing: None,
) -> Opened:
    """Open a reclaim over the projects that this program migrated, all or those chosen; with `undo` and
    `purge` over those whose directory is away. Before anything is written `confirm` hears how many it is, and
    may raise.

    Raises `UsageError` naming every chosen id that is unknown or not migrated by this program.
    """
    broker.check(settings)
    with engine.connect() as conn:
        converted = projects.converted(conn)
        found = projects.by_ids(conn, [*options.project_ids, *options.exclude])
        away = {row.project_id: row for row in _away(conn, options)}
        known = {one.project_id for one in converted} | {row.project_id for row in _away(conn, None)}
    candidates = [
        one
        for one in [*converted, *_deleted_or_back(away, converted)]
        if (one.project_id in away) == (options.undo or options.purge)
        or one.project_id in options.project_ids
    ]
    possible = [*converted, *(one for one in candidates if one.project_id in known)]
    check_ids(options, possible, found, _why_not, _DONE.get(_act(options), "reclaimed"))
    chosen, left_out = choose(options, candidates)
    if chosen:
        confirm(len(chosen))
    path = partial(_path, away)
    return open_run(
        settings,
        engine,
        verb=Verb.RECLAIM,
        dry_run=dry_run,
        jobs=in_order_of_sending(survey_all(chosen, path, on_listing)),
        left_out=left_out,
        options=options,
    )


def _act(options: RunOptions) -> str:
    return "undo" if options.undo else "purge" if options.purge else ""


def _away(conn: Connection, options: RunOptions | None) -> list[Reclaim]:
    """Whose directories are away; to be purged only those that have been so for the grace time."""
    if options is not None and options.purge:
        return reclaims.in_states(conn, ["reclaimed", "purging"], options.grace_days)
    return reclaims.in_states(conn, [*reclaims.ACTIVE, "purging"])


def _deleted_or_back(away: dict[int, Reclaim], converted: Sequence[Project]) -> list[Project]:
    """Projects whose directory is away and that are not converted any more: their purge is to be ended."""
    known = {one.project_id for one in converted}
    return [
        Project(
            project_id=row.project_id,
            project_name="",
            path=None,
            legacy_path=row.legacy_path,
            project_type="dataset_based",
        )
        for row in away.values()
        if row.project_id not in known
    ]


def _path(away: dict[int, Reclaim], project: Project) -> str | None:
    """Where the directory is, for its size in the plan."""
    row = away.get(project.project_id)
    return row.moved_to if row is not None else project.legacy_path


def _why_not(project: Project) -> str:
    return "not migrated" if project.is_legacy else "not migrated by this program"
