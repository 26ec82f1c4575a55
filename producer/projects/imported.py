"""A project's file into rows: its datasets found by their hashes, everything written in one transaction."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, Engine

from producer.projects import label_hashes
from producer.projects.project_file import (
    CODE_MOST,
    NAME_MOST,
    DatasetRow,
    OurSession,
    ProjectFile,
    SessionRow,
)
from worker.db import exchange, recordings, stores
from worker.errors import DatabaseRefusedError, DatasetsMissingError, ProjectFileError, UsageError
from worker.sessions_csv import RECORDING, count_records
from worker.settings import Settings
from worker.store.lookup import Lookup

_NOT_NAMED = "IMPORTED"
"""The participant of a project whose file names none, as Label calls them."""

_OF_THE_MIGRATION = {"migrated_from", "migration_date", "original_path", "dataset_id"}
"""What a migration wrote of another project: of this one it would say that it can be rolled back."""

_SAID_WRONG = {"22", "23"}
"""SQLSTATE's classes of data that is no value of its column, or breaks a rule of its table."""

_DEFAULTS: Mapping[str, Any] = {
    "status": "unlabeled",
    "keep": None,
    "is_visible": True,
    "bouts": None,
    "verified": 0,
    "puffs_verified": 0,
    "smoking_verified": 0,
    "dataset_id": None,
    "raw_session_name": None,
    "data_start_offset": None,
    "data_end_offset": None,
}
"""What a session has whose file does not say otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A session that was not imported, and why."""

    session_name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What was made; of a dry run, what would be, and no id. `datasets`: the file's ids to those here.
    `unknown`: keys of the file that this program does not know; the project's `analysis_config` keeps them.
    """

    project_id: int | None
    project_name: str
    participant_code: str
    datasets: Mapping[int | None, int]
    sessions: int
    lineage: int
    left_out: Sequence[LeftOut]
    warnings: Sequence[str]
    unknown: Sequence[str]


def import_project(
    settings: Settings,
    engine: Engine,
    file: ProjectFile,
    *,
    name: str | None = None,
    participant: str | None = None,
    dry_run: bool = False,
) -> Imported:
    """Make a dataset-based project of a file, all of it or nothing; a dry run does the same and takes it
    back.

    Raises `DatasetsMissingError` naming every dataset that is not here, `ProjectFileError` for what the
    database or the recordings contradict, `UsageError` for a name that is taken or too long, and
    `StoreUnusableError` where Label's hash of a dataset is needed whose tree this machine does not have.
    """
    code = participant if participant is not None else _code(file) or _NOT_NAMED
    if not 0 < len(code) <= CODE_MOST:
        raise UsageError(f"A participant's code has 1 to {CODE_MOST} characters, this one {len(code)}")
    found = _find_all(engine, file)
    try:
        with engine.connect() as conn, conn.begin() as transaction:
            made = _Import(settings, conn, file, found).write(name, code)
            if dry_run:
                transaction.rollback()
    except DatabaseRefusedError as error:
        if error.sqlstate[:2] not in _SAID_WRONG:
            raise
        raise ProjectFileError(f"The database refuses what the file says: {error}") from error
    return made


def _code(file: ProjectFile) -> str | None:
    return file.project.participant.participant_code if file.project.participant else None


# The datasets -----------------------------------------------------------------------------------------------


def _find_all(engine: Engine, file: ProjectFile) -> dict[int | None, int]:
    found = {row.dataset_id: _find(engine, file, row) for row in file.datasets}
    missing = [row for row in file.datasets if found[row.dataset_id] is None]
    if missing:
        named = "; ".join(f"{row.dataset_name} ({row.dataset_hash or 'no hash of Label'})" for row in missing)
        raise DatasetsMissingError(f"{len(missing)} of {len(file.datasets)} datasets are not here: {named}")
    return {number: here for number, here in found.items() if here is not None}


def _find(engine: Engine, file: ProjectFile, row: DatasetRow) -> int | None:
    """By each hash that the file gives it, then by Label's hash of those that may be it."""
    hashes = list(dict.fromkeys(_hashes(file, row)))
    with engine.connect() as conn:
        known = exchange.find_by_hashes(conn, hashes)
        if known is not None:
            return known
        candidates = exchange.candidates(conn, sorted(_directories(file, row)), row.session_count)
    for one in candidates:
        if label_hashes.of_tree(engine, one.dataset_id, one.dataset_hash, one.file_path) in hashes:
            return one.dataset_id
    return None


def _hashes(file: ProjectFile, row: DatasetRow) -> Iterator[str]:
    for ours in file.migrator.datasets if file.migrator else ():
        if ours.dataset_id == row.dataset_id:
            yield ours.dataset_hash
            if ours.label_hash:
                yield ours.label_hash
    if row.dataset_hash:
        yield row.dataset_hash


def _directories(file: ProjectFile, row: DatasetRow) -> set[str]:
    """The recordings that the file's sessions have in a dataset."""
    if file.migrator:
        of = (one.directory for one in file.migrator.sessions if one.dataset_id == row.dataset_id)
    else:
        of = (one.raw_session_name for one in file.sessions if one.dataset_id == row.dataset_id)
    return {directory for directory in of if directory}


# The rows ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A dataset here, and its recordings."""

    conn: Connection
    lookup: Lookup
    dataset_id: int
    dataset_hash: str
    file_path: str
    directories: frozenset[str]
    counted: dict[str, int | None] = field(default_factory=dict)

    @cached_property
    def _known(self) -> Mapping[str, int | None]:
        """Rows of those recordings that were counted before, by directory."""
        digests = self.lookup.digests_below(self.dataset_hash, RECORDING)
        counts = recordings.counts(self.conn, digests.values())
        return {directory: counts[digest] for directory, digest in digests.items() if digest in counts}

    def records(self, directory: str) -> int | None:
        """How many data rows a recording has; None if it cannot be read."""
        if directory not in self.counted:
            known = self._known.get(directory)
            self.counted[directory] = (
                known if known is not None else count_records(Path(self.file_path, directory, RECORDING))
            )
        return self.counted[directory]


class _Import:
    """One file on its way into one transaction."""

    def __init__(
        self, settings: Settings, conn: Connection, file: ProjectFile, found: Mapping[int | None, int]
    ) -> None:
        self.conn = conn
        self.file = file
        self.found = found
        self.left_out: list[LeftOut] = []
        self.warnings: list[str] = []
        named = stores.named(conn)
        lookup = Lookup(settings.store_dir, settings.datasets_dir, named.store_id if named else None)
        self.places = {number: self._place_of(lookup, here) for number, here in found.items()}

    def _place_of(self, lookup: Lookup, dataset_id: int) -> _Place:
        found = exchange.place(self.conn, dataset_id)
        if found is None:
            raise DatasetsMissingError(f"Dataset {dataset_id} was removed a moment ago")
        dataset_hash, file_path = found
        return _Place(
            conn=self.conn,
            lookup=lookup,
            dataset_id=dataset_id,
            dataset_hash=dataset_hash,
            file_path=file_path.rstrip("/"),
            directories=exchange.session_names(self.conn, dataset_id),
        )

    def write(self, name: str | None, code: str) -> Imported:
        """All rows, in the order that their keys ask for."""
        conn, ours = self.conn, self.file.migrator
        called = self._name(name)
        rows = [
            row
            for row in (
                [self._whole(one) for one in ours.sessions]
                if ours
                else [self._of_label(one) for one in self.file.sessions]
            )
            if row is not None
        ]
        unknown = dict(_extras(self.file))
        project_id = exchange.add_project(
            conn, self._project(called, unknown), exchange.participant(conn, code)
        )
        exchange.add_references(conn, project_id, sorted(set(self.found.values())))
        ids = exchange.add_sessions(conn, [row | {"project_id": project_id} for row in rows])
        cuts = list(self._lineage(ids))
        exchange.add_lineage(conn, cuts)
        return Imported(
            project_id=project_id,
            project_name=called,
            participant_code=code,
            datasets=self.found,
            sessions=len(rows),
            lineage=len(cuts),
            left_out=self.left_out,
            warnings=self.warnings,
            unknown=sorted(unknown),
        )

    # The project --------------------------------------------------------------------------------------------

    def _name(self, name: str | None) -> str:
        """As asked for; the file's own is changed when it is taken, as Label changes it."""
        called = name if name is not None else self.file.project.project_name
        if exchange.has_project(self.conn, called):
            if name is not None:
                raise UsageError(f"There is a project of the name {name!r} already.")
            suffix = f"_imported_{datetime.now(UTC):%Y%m%d_%H%M%S}"
            called = called[: NAME_MOST - len(suffix)] + suffix
        if not 0 < len(called) <= NAME_MOST:
            raise UsageError(
                f"A project's name has at most {NAME_MOST} characters, this one {len(called)}; give another: --name"
            )
        return called

    def _project(self, name: str, unknown: Mapping[str, Any]) -> dict[str, Any]:
        said = self.file.project
        config = said.analysis_config if isinstance(said.analysis_config, dict) else {}
        kept = {key: value for key, value in config.items() if key not in _OF_THE_MIGRATION}
        origin = {
            "project_id": said.project_id,
            "project_name": said.project_name,
            "exported_at": self.file.export_timestamp,
        }
        added = {
            "created_with": "project_import",
            "imported_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "imported_from": origin,
        }
        aside = {"import_unknown": unknown} if unknown else {}
        ours = self.file.migrator
        return {
            "project_name": name,
            "project_type": "dataset_based",
            "analysis_config": kept | added | aside,
            "labelings": ours.labelings if ours else self.file.labelings,
        }

    # The sessions -------------------------------------------------------------------------------------------

    def _whole(self, one: OurSession) -> dict[str, Any] | None:
        """With all of its columns."""
        row = {**_DEFAULTS, **one.columns}
        row["dataset_id"] = self.found.get(row["dataset_id"]) if row["dataset_id"] is not None else None
        return self._at(row, self.places[one.dataset_id] if one.directory else None, one.directory)

    def _of_label(self, one: SessionRow) -> dict[str, Any] | None:
        """With what Label's format says of it."""
        split = one.virtual_split_info
        place, directory = self._label_place(one)
        row = {
            **_DEFAULTS,
            "session_name": one.session_name,
            "status": one.status or _DEFAULTS["status"],
            "verified": int(one.verified or 0),
            "bouts": one.bouts or None,
            "start_ns": one.start_ns,
            "stop_ns": one.stop_ns,
            "data_start_offset": split.data_start_offset if split else None,
            "data_end_offset": split.data_end_offset if split else None,
            "dataset_id": place.dataset_id if place else None,
            "raw_session_name": directory if place else None,
        }
        if place is None:
            self.warnings.append(
                f"session {one.session_name} has no recording: its file names none that is here"
            )
        return self._at(row, place, directory)

    def _label_place(self, one: SessionRow) -> tuple[_Place | None, str | None]:
        """By the dataset and directory that are named; without a dataset, in the only one there is."""
        split = one.virtual_split_info
        parent = ((split.parent_data_path if split else None) or "").rstrip("/").rpartition("/")[2]
        if one.dataset_id is not None:
            return self.places[one.dataset_id], one.raw_session_name or parent or None
        if len(self.places) == 1:
            (place,) = self.places.values()
            for directory in (parent, one.session_name.partition(".")[0]):
                if directory in place.directories:
                    return place, directory
        return None, None

    def _at(self, row: dict[str, Any], place: _Place | None, directory: str | None) -> dict[str, Any] | None:
        """The row with its place, if that is there; otherwise the session is left out, with the reason."""
        name = row["session_name"]
        if row.get("start_ns") is None or row.get("stop_ns") is None:
            self.left_out.append(LeftOut(session_name=name, reason="start_ns or stop_ns is missing"))
            return None
        if place is None:
            return row | {"parent_session_data_path": None}
        if directory not in place.directories:
            reason = f"dataset {place.dataset_id} has no recording {directory}"
            self.left_out.append(LeftOut(session_name=name, reason=reason))
            return None
        self._check_range(row, place, directory)
        return row | {"parent_session_data_path": f"{place.file_path}/{directory}"}

    def _check_range(self, row: Mapping[str, Any], place: _Place, directory: str) -> None:
        """An end past the recording is cut by Label without a word; a range that begins there has no row, and
        is refused unless this program exported it: then it was so there, where the recording is the same.
        """
        name, begin, end = row["session_name"], row["data_start_offset"] or 0, row["data_end_offset"]
        if not end:
            return
        records = place.records(directory)
        if records is None:
            self.warnings.append(
                f"session {name}: its recording cannot be read here, so its range was not checked"
            )
        elif begin >= max(records, 1) and self.file.migrator is None:
            raise ProjectFileError(
                f"Session {name} begins at row {begin} of {directory}, which has {records} rows"
            )
        elif end > records:
            self.warnings.append(
                f"session {name} is rows {begin} to {end} of {directory}, which has {records}: Label reads as far as these"
            )

    def _lineage(self, ids: Mapping[str, int]) -> Iterator[tuple[int, int, str | None]]:
        ours = self.file.migrator
        if ours is None:
            return
        names = {one.session_id: str(one.columns["session_name"]) for one in ours.sessions}
        for cut in ours.lineage:
            child, parent = ids.get(names[cut.child]), ids.get(names[cut.parent])
            if child is not None and parent is not None:
                yield child, parent, cut.split_timestamp


def _extras(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Keys that this program does not know, in it and below, with their values."""
    for key, value in (part.model_extra or {}).items():
        yield f"{path}{key}", value
    for name in type(part).model_fields:
        value = getattr(part, name)
        for number, one in enumerate(value if isinstance(value, tuple) else [value]):
            if isinstance(one, BaseModel):
                where = f"{path}{name}[{number}]." if isinstance(value, tuple) else f"{path}{name}."
                yield from _extras(one, where)
