"""Opening runs over converted projects: rollback and verification. Reverts and compares nothing itself."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Engine

from producer.enqueue import Opened, open_run, skipped_job, survey_all
from worker import broker
from worker.db import projects
from worker.db.ledger import NewJob
from worker.db.projects import Project
from worker.errors import UsageError
from worker.messages import Verb
from worker.settings import Settings

_BY_OTHERS = "migrated by another tool, which kept no record of how the project was"
_BY_OTHERS_REMEDY = "Roll it back with the tool that migrated it."


def rollback(
    settings: Settings, engine: Engine, *, dry_run: bool, project_ids: Sequence[int], restore_files: bool
) -> Opened:
    """Open a rollback run over the projects that this program converted, all or those chosen, and send its jobs.

    Raises `UsageError` naming every chosen id that cannot be rolled back, with the reason.
    """
    return _open(
        settings,
        engine,
        verb=Verb.ROLLBACK,
        dry_run=dry_run,
        project_ids=project_ids,
        options={"restore_files": restore_files},
    )


def verify_sessions(
    settings: Settings, engine: Engine, *, project_ids: Sequence[int], sample: float | None
) -> Opened:
    """Open a verification run: workers read sessions (`sample` percent of each project's) both ways and compare."""
    return _open(
        settings,
        engine,
        verb=Verb.VERIFY,
        dry_run=False,
        project_ids=project_ids,
        options={"sessions": True, "sample": sample},
    )


def _open(
    settings: Settings,
    engine: Engine,
    *,
    verb: Verb,
    dry_run: bool,
    project_ids: Sequence[int],
    options: Mapping[str, object],
) -> Opened:
    broker.check(settings)
    with engine.connect() as conn:
        converted = {project.project_id: project for project in projects.converted(conn)}
        by_others = {project.project_id: project for project in projects.converted_by_others(conn)}
        _check_ids(verb, project_ids, converted, by_others, projects.by_ids(conn, project_ids))
    only = set(project_ids)
    jobs: list[NewJob] = []
    if not only:
        jobs += [
            skipped_job(one, one.legacy_path, _BY_OTHERS, _BY_OTHERS_REMEDY) for one in by_others.values()
        ]
    jobs += survey_all(
        [one for one in converted.values() if not only or one.project_id in only], lambda one: one.legacy_path
    )
    return open_run(
        settings,
        engine,
        verb=verb,
        dry_run=dry_run,
        jobs=jobs,
        left_out=(),
        options={"project_ids": list(project_ids), **options},
    )


def _check_ids(
    verb: Verb,
    project_ids: Sequence[int],
    converted: Mapping[int, Project],
    by_others: Mapping[int, Project],
    found: Mapping[int, Project],
) -> None:
    """Every id a person typed must be one that was converted; all that were not are named at once."""
    problems = [
        f"{number} ({_why_not(number, by_others, found)})"
        for number in project_ids
        if number not in converted
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
