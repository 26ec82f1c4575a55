"""The file that a project travels as: Label's configuration format 2.0, and beside it what that loses. Checks
what it says for itself; knows no database.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from worker.errors import ProjectFileError

EXPORT_TYPE = "project_configuration"
VERSION = "2.0"
NAME_MOST = 255
"""Characters of a project's or session's name."""
CODE_MOST = 50
"""Characters of a participant's code."""

_MOST_BYTES = 256 << 20
_SHOWN = 5

Nanoseconds = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Offset = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(min_length=1, max_length=NAME_MOST)]
Code = Annotated[str, Field(min_length=1, max_length=CODE_MOST)]
Digest = Annotated[str, Field(min_length=1, max_length=64)]


class _Part(BaseModel):
    """What is not known of it is kept, and named."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Participant(_Part):
    """Who wore the watch."""

    participant_id: int | None = None
    participant_code: Code | None = None


class ProjectRow(_Part):
    """The project itself. `analysis_config` is an object, or nothing that matters."""

    project_id: int | None = None
    project_name: Name
    project_type: str | None = None
    analysis_config: Any = None
    participant: Participant | None = None


class DatasetRow(_Part):
    """A dataset that the project refers to; `dataset_hash` is Label's, null where Label has none."""

    dataset_id: int | None = None
    dataset_name: str | None = None
    dataset_hash: Digest | None = None
    session_count: int | None = None
    description: str | None = None
    metadata: Any = None


class VirtualSplit(_Part):
    """Where a session's rows are: the half-open range of data rows in the recording of a directory."""

    parent_data_path: str | None = None
    data_start_offset: Offset | None = None
    data_end_offset: Offset | None = None
    is_virtual_split: bool | None = None

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        begin, end = self.data_start_offset, self.data_end_offset
        if (begin is None) != (end is None):
            raise ValueError("one of data_start_offset and data_end_offset is null, the other is not")
        if begin is not None and end is not None and begin > end:
            raise ValueError(f"data_start_offset {begin} is after data_end_offset {end}")
        return self


class SessionRow(_Part):
    """A session as Label's format has it."""

    session_id: int | None = None
    session_name: Name
    status: str | None = None
    verified: bool | int | None = None
    start_ns: Nanoseconds | None = None
    stop_ns: Nanoseconds | None = None
    dataset_id: int | None = None
    raw_session_name: Name | None = None
    bouts: list[Any] | None = None
    virtual_split_info: VirtualSplit | None = None


class OurDataset(_Part):
    """Of a dataset of the list above: its digest as this program's stores name it, and where its sessions'
    directories are.
    """

    dataset_id: int
    dataset_hash: Digest
    label_hash: Digest | None = None


class OurSession(_Part):
    """A session whole: every column by its name, but for its place, which is a dataset and a directory in it;
    both null for one that has none.
    """

    session_id: int
    columns: dict[str, Any]
    dataset_id: int | None = None
    directory: Name | None = None


class Lineage(_Part):
    """Which session a piece was cut from, and when."""

    child: int
    parent: int
    split_timestamp: str | None = None


class Migrator(_Part):
    """What Label's format loses: Split parents and discarded sessions, all flags, lineage, labelings that are
    hidden, and by which digests this program knows the datasets.
    """

    version: Literal[1]
    datasets: tuple[OurDataset, ...]
    sessions: tuple[OurSession, ...]
    lineage: tuple[Lineage, ...] = ()
    labelings: Any = None


class ProjectFile(_Part):
    """The whole file."""

    export_version: Literal["2.0"]
    export_timestamp: str | None = None
    export_type: Literal["project_configuration"]
    project: ProjectRow
    datasets: Annotated[tuple[DatasetRow, ...], Field(min_length=1)]
    labelings: list[Any] | None = None
    sessions: tuple[SessionRow, ...] = ()
    session_count: int | None = None
    total_bouts: int | None = None
    migrator: Migrator | None = None

    @field_validator("sessions")
    @classmethod
    def _each_once(cls, sessions: tuple[SessionRow, ...]) -> tuple[SessionRow, ...]:
        _refuse_twice([one.session_name for one in sessions])
        return sessions

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        known = {one.dataset_id for one in self.datasets}
        if len(known) < len(self.datasets):
            raise ValueError("datasets has one dataset_id more than once, or none where there are several")
        for session in self.sessions:
            if session.dataset_id is not None and session.dataset_id not in known:
                raise ValueError(
                    f"session {session.session_name!r} has dataset_id {session.dataset_id}, which is not in datasets"
                )
        if self.migrator is not None:
            self._check_migrator(self.migrator, known)
        return self

    def _check_migrator(self, ours: Migrator, known: set[int | None]) -> None:
        _refuse_twice([str(one.columns.get("session_name")) for one in ours.sessions])
        ids = {one.session_id for one in ours.sessions}
        for session in ours.sessions:
            name = session.columns.get("session_name")
            if not isinstance(name, str) or not 0 < len(name) <= NAME_MOST:
                raise ValueError(
                    f"migrator: session {session.session_id} has no name, or one that is too long"
                )
            for number in (session.dataset_id, session.columns.get("dataset_id")):
                if number is not None and not (isinstance(number, int) and number in known):
                    raise ValueError(f"migrator: session {name!r} has a dataset that is not in datasets")
            VirtualSplit.model_validate(
                {key: session.columns.get(key) for key in ("data_start_offset", "data_end_offset")}
            )
        for cut in ours.lineage:
            if not {cut.child, cut.parent} <= ids:
                raise ValueError(
                    f"migrator: lineage names session {cut.child} or {cut.parent}, which is not there"
                )


def _refuse_twice(names: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"there is more than one session of the name {', '.join(map(repr, twice[:_SHOWN]))}")


# Reading ----------------------------------------------------------------------------------------------------


def load(path: Path) -> ProjectFile:
    """Read and check a file. Raises `ProjectFileError` naming it, the place in it, and what is wrong."""
    try:
        size = os.stat(path).st_size
        if size > _MOST_BYTES:
            raise ProjectFileError(
                f"{path} has {size / 1e6:.0f} MB; a project's configuration has at most {_MOST_BYTES / 1e6:.0f}"
            )
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProjectFileError(f"{path} is not text in UTF-8: byte {error.start}") from error
    except OSError as error:
        raise ProjectFileError(f"Cannot read {path}: {error.strerror}") from error
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProjectFileError(f"{path} is not JSON: {error}") from error
    return check(document, str(path))


def check(document: Any, what: str) -> ProjectFile:
    """The same for a document in memory; `what` names it."""
    if not isinstance(document, dict):
        raise ProjectFileError(
            f"{what}: a project's configuration is an object, not {type(document).__name__}"
        )
    _check_kind(document, what)
    try:
        return ProjectFile.model_validate(document)
    except ValidationError as error:
        found = [f"{_place(one['loc'])}: {one['msg']}" for one in error.errors(include_input=False)]
        more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
        raise ProjectFileError(f"{what}: {'; '.join(found[:_SHOWN])}{more}") from error


def _check_kind(document: dict[str, Any], what: str) -> None:
    kind, version = document.get("export_type"), document.get("export_version", "1.0")
    if kind != EXPORT_TYPE:
        raise ProjectFileError(f"{what}: export_type is {json.dumps(kind)}, not {json.dumps(EXPORT_TYPE)}")
    if version == "1.0":
        raise ProjectFileError(
            f"{what}: export_version 1.0 names no datasets, so there is nothing to find its recordings by"
        )
    if version != VERSION:
        raise ProjectFileError(f"{what}: export_version is {json.dumps(version)}, not {json.dumps(VERSION)}")
    if not document.get("datasets"):
        raise ProjectFileError(f"{what}: datasets is empty, so there is nothing to find its recordings by")


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _place(steps: Sequence[int | str]) -> str:
    return (
        "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
        or "the file"
    )
