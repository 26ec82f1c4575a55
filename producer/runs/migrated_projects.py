"""Opening runs over converted projects, and which projects these are. Reverts and compares nothing itself."""

from collections.abc import Callable, Container, Sequence
from functools import partial

from sqlalchemy import Engine

from producer.runs.open import Opened, open_run, skipped_job
from producer.runs.selection import LeftOut, check_ids, choose
from producer.runs.survey import OnListing, in_order_of_sending, survey_all
from worker.broker import client as broker
from worker.db import column_types, ledger, projects, waves
from worker.db.ledger import NewJob
from worker.db.projects import Project
from worker.errors import RunNotFoundError, UsageError
from worker.messages import RunOptions, Verb
from worker.settings import Settings
from worker.wording import VERB_WORDS, run_words

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
    of_run: str | None = None,
    wave: int | None = None,
    confirm: Callable[[int], None] = lambda _count: None,
    on_listing: OnListing = lambda _listing: None,
) -> Opened:
    """Open a rollback run over the projects that this program migrated, all or those chosen; send its jobs.
    With `of_run`, a run's id or the beginning of one, those that this run migrated, or a `wave` of it.

    Before anything is written `confirm` hears how many projects it is, and may raise.
    Raises `UsageError` naming every chosen id that cannot be rolled back, with the reason, and for a run or a
    wave that migrated nothing because it is another one.
    """
    chosen = _run_and_wave(engine, of_run, wave)
    options = RunOptions(
        project_ids=tuple(project_ids), exclude=tuple(exclude), limit=limit, restore_files=restore_files
    )
    return _open(
        settings,
        engine,
        Verb.ROLLBACK,
        options.model_copy(update=chosen | ({"rehash": True} if rehash else {})),
        dry_run=dry_run,
        confirm=confirm,
        on_listing=on_listing,
    )


def _run_and_wave(engine: Engine, of_run: str | None, wave: int | None) -> dict[str, object]:
    """The options that say which run's projects are meant. Raises `UsageError` for one that has none."""
    if of_run is None:
        if wave is not None:
            raise UsageError("--wave is a part of a run: say which, by --run")
        return {}
    try:
        with engine.connect() as conn:
            run = ledger.find_run(conn, of_run)
            known = [one.wave for one in waves.waves_of(conn, run.run_id)]
    except RunNotFoundError as error:
        raise UsageError(str(error)) from error
    if run.verb is not Verb.MIGRATE or run.dry_run:
        words = run_words(run.verb, dry_run=run.dry_run)
        raise UsageError(f"--run {of_run}: that is a {words}, and migrated nothing")
    if wave is not None and wave not in known:
        has = f"its waves are {', '.join(map(str, known))}" if known else "it has no waves"
        raise UsageError(f"--wave {wave}: run {str(run.run_id)[:8]} has no such wave; {has}")
    return {"of_run": run.run_id} | ({} if wave is None else {"wave": wave})


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
        if options.of_run is not None:
            of_run = waves.migrated_by(conn, options.of_run, options.wave)
            converted = [one for one in converted if one.project_id in of_run]
    check_ids(options, converted, found, partial(_why_not, by_others, options), VERB_WORDS[verb].done_word)
    chosen, left_out = choose(options, converted)
    if chosen:
        confirm(len(chosen))
    skipped = [
        skipped_job(one, one.legacy_path, _BY_OTHERS, _BY_OTHERS_REMEDY)
        for one in by_others.values()
        if not options.project_ids and options.of_run is None and one.project_id not in options.exclude
    ]
    surveyed = survey_all(chosen, lambda one: one.legacy_path, on_listing)
    return [*skipped, *in_order_of_sending(surveyed)], left_out


def _why_not(by_others: Container[int], options: RunOptions, project: Project) -> str:
    if project.project_id in by_others:
        return _BY_OTHERS
    if options.of_run is not None:
        part = "" if options.wave is None else f", wave {options.wave}"
        return f"not migrated by run {str(options.of_run)[:8]}{part}"
    return "not migrated" if project.is_legacy else "dataset-based, but never was a legacy project"
