"""What a rollback, a reclaim and a gc would do to one project now, and why, by what decides it in their jobs.

Rows are read, and directories looked for; no file is read, no row locked, nothing changed. What only reading
tells is named instead (`then`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from worker.db import blob_index, catalog, garbage, reclaims, verifications
from worker.db.engine import autocommit
from worker.db.garbage import Fate
from worker.db.projects import Conversion
from worker.errors import (
    ColumnTypesError,
    LegacyPathMissingError,
    MigratorError,
    NothingToDoError,
    ProjectError,
    ReclaimRefusedError,
    RootLacksError,
)
from worker.jobs import endings, reclaim, rollback
from worker.jobs.grounds import Question
from worker.jobs.moved_directory import Place, rehearse_bringing_home, rehearse_settling
from worker.jobs.reclaim_conditions import Member, check_rows, check_there
from worker.jobs.tools import roots_of
from worker.legacy.way_in import WayIn
from worker.messages import RunOptions, Status, Verb
from worker.settings import Settings
from worker.store.digest import printable

_RUN = "RUN"
"""Stands for the beginning of the run's id, in the name of where a directory would go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What would become of a verb's job; `status` is None where it would wait. `words`: what is done, or why
    not, with the class of the error and a remedy. `then`: what is read first, and has to be so.
    """

    verb: Verb
    status: Status | None
    words: str
    then: str | None = None
    error_class: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GarbagePrediction:
    """What a gc would find of a dataset that a project has, or had. `only_this`: no other project has it."""

    fate: Fate
    dataset_name: str
    only_this: bool


def of_rollback(engine: Engine, settings: Settings, project_id: int) -> Prediction:
    """What `producer rollback` would do, without options."""
    question = Question(engine=engine, roots=roots_of(settings), options=RunOptions())
    return _predicted(Verb.ROLLBACK, lambda: _rollback(question, project_id))


def of_reclaim(engine: Engine, settings: Settings, project_id: int, older_than_days: float) -> Prediction:
    """What `producer reclaim` would do, over all projects."""
    options = RunOptions(older_than_days=older_than_days)
    question = Question(engine=engine, roots=roots_of(settings), options=options)
    return _predicted(Verb.RECLAIM, lambda: _reclaim(question, project_id, settings.verify_after_days))


def of_gc(
    conn: Connection, project_id: int, dataset_ids: list[int], grace_h: float
) -> Iterator[GarbagePrediction]:
    """What `producer gc` would do to each of these datasets that is there."""
    projects = catalog.projects_of(conn, dataset_ids)
    for dataset_id in dataset_ids:
        fate = garbage.fate_of(conn, dataset_id, grace_h)
        entry = next(iter(catalog.entries(conn, dataset_id)), None)
        if fate is not None and entry is not None:
            yield GarbagePrediction(
                fate=fate,
                dataset_name=entry.dataset_name,
                only_this=projects.get(dataset_id, []) == [project_id],
            )


def _predicted(verb: Verb, decide: Callable[[], Prediction]) -> Prediction:
    try:
        return decide()
    except (ProjectError, ColumnTypesError, RootLacksError) as error:
        return Prediction(
            verb=verb,
            status=_status(verb, error),
            words=str(error),
            error_class=error.error_class,
            remedy=None if isinstance(error, NothingToDoError) else error.remedy,
        )


def _status(verb: Verb, error: MigratorError) -> Status | None:
    """How a job ends that meets this error."""
    if verb is Verb.RECLAIM and isinstance(error, ReclaimRefusedError):
        return reclaim.REFUSED
    ending = endings.after(error, "", 0, 1)
    return ending.status if isinstance(ending, endings.Ended) else None


def _rollback(question: Question, project_id: int) -> Prediction:
    conversion = rollback.conversion_of(question, project_id)
    away = rehearse_bringing_home(question, conversion)
    try:
        if away.words is None:
            rollback.is_gone(question, conversion, away)
        rollback.check_directory(away.place or Place(path=conversion.legacy_path))
    except LegacyPathMissingError:
        question.check_root(conversion.legacy_path)
        raise
    return Prediction(
        verb=Verb.ROLLBACK,
        status=Status.WOULD_ROLL_BACK,
        words=away.words or f"to {printable(conversion.legacy_path)}, which is there",
        then="if the directory is still what was migrated, which is read first as far as it was touched",
    )


def _reclaim(question: Question, project_id: int, verify_after_days: float) -> Prediction:
    settled = rehearse_settling(question, project_id)
    conversion = reclaim.conversion_of(question, project_id)
    with autocommit(question.engine) as conn:
        named = {one.project_id for one in reclaims.neighbours(conn)}
    members = reclaim.members_to_move(question, conversion, settled, named)
    top = members[0]
    move = reclaim.move_of_top(top, _RUN, question.roots)
    with question.engine.connect() as conn:
        check_rows(conn, question, members, WayIn(top.place))
        unread = [one.conversion for one in members if _is_unread(conn, one.conversion, verify_after_days)]
    for member in members:
        check_there(question, member)
    return Prediction(
        verb=Verb.RECLAIM,
        status=Status.WOULD_RECLAIM,
        words=f"its directory would be moved to {printable(move.target)}{_with(members, project_id)}",
        then=_reads(unread),
    )


def _with(members: list[Member], project_id: int) -> str:
    others = [str(one.project_id) for one in members if one.project_id != project_id]
    return f", together with project {', '.join(others)}" if others else ""


def _is_unread(conn: Connection, conversion: Conversion, verify_after_days: float) -> bool:
    oldest = verifications.oldest_check(conn, blob_index.sizes(conn, conversion.dataset_hash))
    return oldest is None or oldest <= reclaim.read_since(conversion, verify_after_days)


def _reads(unread: list[Conversion]) -> str:
    what = "if the directory is still what was migrated"
    if not unread:
        return f"{what}; its stored bytes were read lately enough"
    return f"{what}, and its stored bytes are right: not all were read since the conversion, or lately"
