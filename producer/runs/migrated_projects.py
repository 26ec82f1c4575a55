"""Opening runs over converted projects: rollback and verification. Reverts and compares nothing itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Engine

from producer.runs.open import Opened, open_run, skipped_job
from producer.runs.selection import EXCLUDED, choose
from producer.runs.survey import OnListing, in_order_of_sending, survey_all
from worker.broker import client as broker
from worker.db import column_types, projects
from worker.db.ledger import NewJob
from worker.db.projects import Project
from worker.errors import UsageError
from worker.messages import Verb
from worker.settings import Settings

_BY_OTHERS = "migrated by another tool, which kept no record of how the project was"
_BY_OTHERS_REMEDY = "Roll it back with the tool that migrated it."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Selection:
    """Which converted projects a person means: all, or those chosen, without some, and no more than `limit`."""

    project_ids: Sequence[int] = ()
    exclude: Sequence[int] = ()
    limit: int | None = None

    @property
    def options(self) -> dict[str, object]:
        """As the ledger keeps it."""
        return {"project_ids": list(self.project_ids), "exclude": list(self.exclude), "limit": self.limit}


def rollback(  # noqa: PLR0913 - an option is an argument
    settings: Settings,
    engine: Engine,
    *,
    dry_run: bool,
    project_ids: Sequence[int],
    restore_files: bool,
    exclude: Sequence[int] = (),
    limit: int | None = None,
    confirm: Callable[[int], None] = lambda _count: None,
    on_listing: OnListing = lambda _listing: None,
) -> Opened:
    """Open a rollback run over the projects that this program converted, all or those chosen, and send its jobs.

    Before anything is written `confirm` hears how many projects it is, and may raise.
    Raises `UsageError` naming every chosen id that cannot be rolled back, with the reason.
    """
    return _open(
        settings,
        engine,
        verb=Verb.ROLLBACK,
        dry_run=dry_run,
        selection=_Selection(project_ids=project_ids, exclude=exclude, limit=limit),
        options={"restore_files": restore_files},
        confirm=confirm,
        on_listing=on_listing,
    )


def verify_sessions(
    settings: Settings,
    engine: Engine,
    *,
    project_ids: Sequence[int],
    sample: float | None,
    exclude: Sequence[int] = (),
    limit: int | None = None,
    on_listing: OnListing = lambda _listing: None,
) -> Opened:
    """Open a verification run: workers read sessions (`sample` percent of each project's) both ways and compare."""
    return _open(
        settings,
        engine,
        verb=Verb.VERIFY,
        dry_run=False,
        selection=_Selection(project_ids=project_ids, exclude=exclude, limit=limit),
        options={"sessions": True, "sample": sample},
        confirm=lambda _count: None,
        on_listing=on_listing,
    )


def _open(
    settings: Settings,
    engine: Engine,
    *,
    verb: Verb,
    dry_run: bool,
    selection: _Selection,
    options: Mapping[str, object],
    confirm: Callable[[int], None],
    on_listing: OnListing,
) -> Opened:
    broker.check(settings)
    if verb is Verb.ROLLBACK:
        column_types.require(engine, column_types.OF_ROLLBACK)
    with engine.connect() as conn:
        converted = {project.project_id: project for project in projects.converted(conn)}
        by_others = {project.project_id: project for project in projects.converted_by_others(conn)}
        found = projects.by_ids(conn, [*selection.project_ids, *selection.exclude])
        _check_ids(verb, selection, converted, by_others, found)
    only, excluded = set(selection.project_ids), dict.fromkeys(selection.exclude, EXCLUDED)
    chosen, left_out = choose(
        sorted(converted.values(), key=lambda one: one.project_id), only, excluded, selection.limit
    )
    if chosen:
        confirm(len(chosen))
    jobs: list[NewJob] = []
    if not only:
        jobs += [
            skipped_job(one, one.legacy_path, _BY_OTHERS, _BY_OTHERS_REMEDY)
            for one in by_others.values()
            if one.project_id not in excluded
        ]
    jobs += in_order_of_sending(survey_all(chosen, lambda one: one.legacy_path, on_listing))
    return open_run(
        settings,
        engine,
        verb=verb,
        dry_run=dry_run,
        jobs=jobs,
        left_out=left_out,
        options=selection.options | dict(options),
    )


def _check_ids(
    verb: Verb,
    selection: _Selection,
    converted: Mapping[int, Project],
    by_others: Mapping[int, Project],
    found: Mapping[int, Project],
) -> None:
    """Every id that was typed must mean something; all that do not are named at once."""
    problems = [
        f"{number} ({_why_not(number, by_others, found)})"
        for number in selection.project_ids
        if number not in converted
    ]
    problems += [
        f"{number} (to be excluded, but {_why_not(number, by_others, found)})"
        for number in selection.exclude
        if number not in found
    ]
    problems += [
        f"{number} (both chosen and excluded)"
        for number in selection.project_ids
        if number in set(selection.exclude)
    ]
    if problems:
        done = {Verb.ROLLBACK: "rolled back", Verb.VERIFY: "verified"}[verb]
        raise UsageError(f"These project ids cannot be {done}: {', '.join(problems)}")


def _why_not(number: int, by_others: Mapping[int, Project], found: Mapping[int, Project]) -> str:
    if number < 1:
        return "ids begin at 1"
    if number in by_others:
        return _BY_OTHERS
    project = found.get(number)
    if project is None:
        return "no such project"
    return "not migrated" if project.is_legacy else "dataset-based, but never was a legacy project"
