"""May a project's legacy directory be moved away? Each reason against it is an error of its own. Moves
nothing.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection

from worker.conversion.revert import check_still_converted
from worker.db import datasets, projects, reclaims
from worker.db.projects import Conversion
from worker.db.reclaims import Neighbour
from worker.db.verifications import Due
from worker.errors import (
    AlreadyReclaimedError,
    ConvertedLatelyError,
    DatasetUnsoundError,
    DirectoryChangedError,
    DirectoryGoneError,
    LegacyProjectThereError,
    MigratedProjectThereError,
    MovedAwayThereError,
    NothingToDoError,
    PurgeBegunError,
    RollbackRefusedError,
    SessionReadsThereError,
    StoredBytesMismatchError,
)
from worker.jobs.attempt import Attempt
from worker.jobs.dataset_check import DatasetCheck
from worker.jobs.grounds import Grounds
from worker.jobs.moved_directory import Place
from worker.jobs.repair import Tree
from worker.jobs.rollback import compare
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.roots import is_within
from worker.legacy.way_in import WayIn
from worker.sessions_csv import RECORDING
from worker.store.digest import printable
from worker.store.manifest import Manifest

_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A project whose directory goes when another one's does: at the same place, inside it or around it.
    `place` is its directory, links in its path resolved; `at` where to read it: its legacy path or, in a dry
    run, where a job that died has left it.
    """

    conversion: Conversion
    place: str
    at: Place

    @property
    def project_id(self) -> int:
        """Its project."""
        return self.conversion.project_id


# The group --------------------------------------------------------------------------------------------------


def group_of(
    grounds: Grounds, conversion: Conversion, settled: Mapping[int, Place], named: Collection[int]
) -> list[Member]:
    """All projects that go together with this one, outermost first, then by id; `settled` as of
    `settle_moves`. `named` are the projects that the run has jobs for.

    Raises `MigratedProjectThereError` naming one that is not among these, `MovedAwayThereError` when what
    was moved away from one of them lies in the directory, `NothingToDoError` when the project was rolled back
    meanwhile.
    """
    with grounds.engine.connect() as conn:
        around = reclaims.neighbours(conn)
    around = [replace(one, state=None) if one.conversion_id in settled else one for one in around]
    found = _connected(around, conversion.project_id)
    gone = NothingToDoError(f"project {conversion.project_id}: rolled back since")
    if not found:
        raise gone
    top = min((place for _, place in found), key=len)
    _check_nothing_moved_in(around, top)
    for one, place in found:
        if one.project_id not in named:
            where = relation(place, os.path.realpath(conversion.legacy_path))
            raise MigratedProjectThereError(
                f"project {one.project_id} has its directory {where} it; name both"
            )
    with grounds.engine.connect() as conn:
        conversions = projects.active_conversions(conn, [one.project_id for one, _ in found])
    members = [
        Member(
            conversion=conversions[one.project_id],
            place=place,
            at=settled.get(one.conversion_id, Place(path=one.legacy_path)),
        )
        for one, place in found
        if one.project_id in conversions
    ]
    if conversion.project_id not in {member.project_id for member in members}:
        raise gone
    return sorted(members, key=lambda one: (len(one.place), one.project_id))


def _connected(around: Sequence[Neighbour], project_id: int) -> list[tuple[Neighbour, str]]:
    """A project's neighbours that are at their place, their neighbours, and so on; itself among them."""
    here = [
        (one, os.path.realpath(one.legacy_path))
        for one in around
        if one.state is None or one.project_id == project_id
    ]
    group = [pair for pair in here if pair[0].project_id == project_id]
    grown = True
    while grown:
        rest = [pair for pair in here if pair not in group]
        more = [pair for pair in rest if any(touches(pair[1], place) for _, place in group)]
        group += more
        grown = bool(more)
    return group


def _check_nothing_moved_in(around: Sequence[Neighbour], top: str) -> None:
    for one in around:
        if one.state in reclaims.ACTIVE and one.moved_to is not None and is_within(one.moved_to, top):
            raise MovedAwayThereError(
                f"What was moved away for project {one.project_id} lies in it: {printable(one.moved_to)}"
            )


def touches(one: str, other: str) -> bool:
    """Is one of two directories the other, or in it?"""
    return is_within(one, other) or is_within(other, one)


def relation(place: str, own: str) -> str:
    """Where another directory is, in the words of the reasons: at, in or around."""
    if place == own:
        return "at"
    return "around" if is_within(own, place) else "in"


# Rows -------------------------------------------------------------------------------------------------------


def check_rows(conn: Connection, grounds: Grounds, members: Sequence[Member], way_in: WayIn) -> None:
    """What the database says against it; asked at first, under the rows' locks, and after the rename. Where
    paths lead to is looked up once for each `way_in`: nothing is, while rows are locked, but for new paths.
    """
    for member in members:
        _check_project(conn, grounds, member)
    _check_others(conn, members[0].place, {member.project_id for member in members}, way_in)
    for row in reclaims.session_paths(conn):
        if way_in.is_taken_by(row.path, RECORDING):
            raise SessionReadsThereError(
                f"session {printable(row.session_name)} of project {row.project_id} reads from it: {printable(row.path)}"
            )


def _check_project(conn: Connection, grounds: Grounds, member: Member) -> None:
    number = member.project_id
    project = projects.by_ids(conn, [number]).get(number)
    if check_still_converted(project, member.conversion, conn):
        raise NothingToDoError(f"project {number}: its row was returned to legacy by another program")
    _check_age(grounds, member.conversion)
    name = reclaims.unjudged_session(conn, number, _tree_name(conn, member.conversion))
    if name is not None:
        raise SessionReadsThereError(
            f"session {printable(name)} of project {number} does not read from its dataset"
        )


def _check_others(conn: Connection, top: str, own: Collection[int], way_in: WayIn) -> None:
    for number, path in reclaims.legacy_places(conn):
        place = way_in.place(path)
        if touches(place, top) or way_in.is_taken_by(path):
            raise LegacyProjectThereError(
                f"legacy project {number} has its directory {relation(place, top)} it"
            )
    for one in reclaims.neighbours(conn):
        if one.project_id in own or one.state is not None:
            continue
        place = way_in.place(one.legacy_path)
        if touches(place, top):
            raise MigratedProjectThereError(
                f"project {one.project_id} has its directory {relation(place, top)} it; name both"
            )


def _check_age(grounds: Grounds, conversion: Conversion) -> None:
    days = grounds.options.older_than_days
    age = datetime.now(UTC) - conversion.converted_at
    if days is not None and age < timedelta(days=days):
        raise ConvertedLatelyError(
            f"project {conversion.project_id} was migrated {age.total_seconds() / 86_400:.1f} days ago, less than {days:g}"
        )


def _tree_name(conn: Connection, conversion: Conversion) -> str:
    dataset = datasets.get(conn, conversion.dataset_id)
    if dataset is None:
        raise DatasetUnsoundError(f"dataset {conversion.dataset_id} has no row any more")
    return os.path.basename(dataset.file_path.rstrip("/"))


def check_not_away(grounds: Grounds, conversion: Conversion, settled: Mapping[int, Place]) -> None:
    """Raise if the directory was moved away already; `settled` as of `settle_moves`."""
    with grounds.engine.connect() as conn:
        row = reclaims.of_conversion(conn, conversion.conversion_id)
    if row is None or row.conversion_id in settled:
        return
    if row.state in {"purging", "purged"}:
        raise PurgeBegunError(f"project {conversion.project_id} was reclaimed and purged already")
    raise AlreadyReclaimedError(
        f"project {conversion.project_id} was reclaimed already: its directory is at {printable(row.moved_to)}"
    )


# Bytes ------------------------------------------------------------------------------------------------------


def check_unchanged(attempt: Attempt, member: Member) -> HashedTree:
    """The directory as it was just read. Raises `DirectoryChangedError` unless it is what was migrated."""
    check_there(attempt, member)
    try:
        return compare(attempt, member.conversion, member.at)
    except RollbackRefusedError as error:
        raise DirectoryChangedError(str(error), error.differences) from error


def check_there(grounds: Grounds, member: Member) -> None:
    """Raise unless something is where the directory should be."""
    path = member.at.path
    if not os.path.lexists(path):
        grounds.check_root(path)
        raise DirectoryGoneError(f"Legacy path no longer exists: {printable(path)}")


def check_sound(attempt: Attempt, conversion: Conversion, *, read_since: datetime) -> Manifest:
    """The dataset's manifest, if that, the tree, and every blob and copy are right, read since then or now.

    Raises `DatasetUnsoundError` naming what is not.
    """
    with attempt.engine.connect() as conn:
        dataset = datasets.get(conn, conversion.dataset_id)
    if dataset is None:
        raise DatasetUnsoundError(f"dataset {conversion.dataset_id} has no row any more")
    try:
        manifest = attempt.store.read_manifest(conversion.dataset_hash)
    except StoredBytesMismatchError as error:
        raise DatasetUnsoundError(f"dataset {conversion.dataset_id}: {error}") from error
    tree = Tree(
        path=Path(dataset.file_path), dataset_hash=dataset.dataset_hash, dataset_id=dataset.dataset_id
    )
    check = DatasetCheck(attempt, dataset.dataset_id, Due(before=read_since), alone=True)
    check.check_tree(manifest, tree)
    bad = check.findings.bad
    if bad:
        names = "; ".join(f"{printable(one.path)} ({one.what.replace('_', ' ')})" for one in bad[:_SHOWN])
        raise DatasetUnsoundError(f"dataset {dataset.dataset_id} is damaged: {names}")
    return manifest
