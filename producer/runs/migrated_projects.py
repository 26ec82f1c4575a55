"""Opening runs over converted projects, and which projects these are. Reverts and compares nothing itself."""

from collections.abc import Callable, Container, Sequence
from functools import partial

from sqlalchemy import Engine

from producer.runs.open import Opened, open_run, skipped_job
from producer.runs.selection import LeftOut, check_ids, choose
from producer.runs.survey import OnListing, in_order_of_sending, survey_all
from worker.broker import client as broker
from worker.db import column_types, projects
from worker.db.ledger import NewJob
from worker.db.projects import Project
from worker.messages import RunOptions, Verb
from worker.settings import Settings
from worker.wording import VERB_WORDS

_BY_OTHERS = "migrated by another tool, which kept no before-image"
_BY_OTHERS_REMEDY = "Roll it back with the tool that migrated it."


def rollback(  # noqa: PLR0913 - an option is an argument
    settings: Settings,
    engine: Engine,
    *,
    dry_run: bool,
    project_ids: Sequence[int],
    restore_files: bool,
    rehash: bool = False,
    exclude: Sequence[int] = (),
    limit: int | None = None,
    confirm: Callable[[int], None] = lambda _count: None,
    on_listing: OnListing = lambda _listing: None,
) -> Opened:
    """Open a rollback run over the projects that this program migrated, all or those chosen; send its jobs.

    Before anything is written `confirm` hears how many projects it is, and may raise.
    Raises `UsageError` naming every chosen id that cannot be rolled back, with the reason.
    """
    options = RunOptions(
        project_ids=tuple(project_ids), exclude=tuple(exclude), limit=limit, restore_files=restore_files
    )
    return _open(
        settings,
        engine,
        Verb.ROLLBACK,
        options.model_copy(update={"rehash": True}) if rehash else options,
        dry_run=dry_run,
        confirm=confirm,
        on_listing=on_listing,
    )


def _open(
    settings: Settings,
    engine: Engine,
    verb: Verb,
    options: RunOptions,
    *,
    dry_run: bool,
    confirm: Callable[[int], None],
    on_listing: OnListing,
) -> Opened:
    broker.check(settings)
    if verb is Verb.ROLLBACK:
        column_types.require(engine, column_types.OF_ROLLBACK)
    jobs, left_out = jobs_of(engine, verb, options, confirm=confirm, on_listing=on_listing)
    return open_run(
        settings,
        engine,
        verb=verb,
        dry_run=dry_run,
        jobs=jobs,
        left_out=left_out,
        options=options,
    )


def jobs_of(
    engine: Engine,
    verb: Verb,
    options: RunOptions,
    *,
    confirm: Callable[[int], None] = lambda _count: None,
    on_listing: OnListing = lambda _listing: None,
) -> tuple[list[NewJob], list[LeftOut]]:
    """The jobs of a run over converted projects, and which projects it leaves out. Raises `UsageError` as
    `rollback`.
    """
    with engine.connect() as conn:
        converted = projects.converted(conn)
        by_others = {project.project_id: project for project in projects.converted_by_others(conn)}
        found = projects.by_ids(conn, [*options.project_ids, *options.exclude])
    check_ids(options, converted, found, partial(_why_not, by_others), VERB_WORDS[verb].done_word)
    chosen, left_out = choose(options, converted)
    if chosen:
        confirm(len(chosen))
    skipped = [
        skipped_job(one, one.legacy_path, _BY_OTHERS, _BY_OTHERS_REMEDY)
        for one in by_others.values()
        if not options.project_ids and one.project_id not in options.exclude
    ]
    surveyed = survey_all(chosen, lambda one: one.legacy_path, on_listing)
    return [*skipped, *in_order_of_sending(surveyed)], left_out


def _why_not(by_others: Container[int], project: Project) -> str:
    if project.project_id in by_others:
        return _BY_OTHERS
    return "not migrated" if project.is_legacy else "dataset-based, but never was a legacy project"
