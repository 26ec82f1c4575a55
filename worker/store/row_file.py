"""The row file beside a manifest: what the database's rows say of a dataset, so that they can be made again.

`manifests/<dataset digest>.row.json`. Knows no database. It is written before the rows are, with the numbers
that they will have, and names nothing that only this machine has but the directory.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from worker.errors import RowFileError

_FORMAT = 1
_SHOWN = 60
_STRICT = ConfigDict(extra="forbid")


def _checked_time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


def _checked_place(path: str) -> str:
    if ".." in path.split("/"):
        raise ValueError("leads elsewhere")
    return path


Number = Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
Count = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
Time = Annotated[str, AfterValidator(_checked_time)]
"""As ISO 8601 has it: in UTC with its offset, or without one from a column that has no zone."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class SessionRow:
    """A row of `raw_dataset_sessions`. `session_path` is below the dataset's directory, unless it begins with
    a slash. `labels`: the text of `original_labels_json`; True stands for that of the tree's labels.json.
    """

    raw_session_id: Number | None
    session_name: str
    session_path: Annotated[str, AfterValidator(_checked_place)]
    file_count: int | None
    labels: Literal[True] | str | None
    created_at: Time | None

    def path_in(self, file_path: str) -> str:
        """Its directory, where its dataset's is `file_path`."""
        return os.path.join(file_path, self.session_path)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class DatasetRow:
    """A row of `raw_datasets` and those of its sessions. Without ids, which the database then gives, it is
    not written to a file. `label_hash` counts only with `has_label_hash`: it may be that it was never
    computed, or that Label has none. `registered_hash` is what the row said before the dataset was adopted.
    """

    dataset_id: Number | None
    dataset_name: str
    dataset_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    file_path: Annotated[str, Field(pattern=r"^/.*[^/]")]
    upload_timestamp: Time | None
    file_size_bytes: Count | None
    session_count: int | None
    description: str | None
    metadata: Any
    created_at: Time | None
    updated_at: Time | None
    sessions: tuple[SessionRow, ...]
    label_hash: str | None = None
    has_label_hash: bool = False
    registered_hash: str | None = None

    @property
    def is_numbered(self) -> bool:
        """Has every row its id?"""
        return self.dataset_id is not None and all(one.raw_session_id is not None for one in self.sessions)

    @property
    def tree(self) -> str:
        """The name of its directory."""
        return self.file_path.rstrip("/").rpartition("/")[2]

    def at(self, file_path: str) -> "DatasetRow":
        """The same, with its directory elsewhere."""
        return replace(self, file_path=file_path)

    @property
    def content(self) -> bytes:
        """The file: ASCII JSON, with a checksum, because nothing else tells that a bit of it has flipped."""
        said = asdict(self)
        document = {"format": _FORMAT, "checksum": _checksum(said), **said}
        return json.dumps(document, indent=1, sort_keys=True).encode("ascii") + b"\n"


_ADAPTER = TypeAdapter(DatasetRow)


def parse(content: bytes, dataset_hash: str, where: str) -> DatasetRow:
    """Read the file of a dataset back. Raises `RowFileError`, which names the file as `where`."""
    try:
        document = json.loads(content)
    except ValueError as error:
        raise RowFileError(f"Row file {where} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.pop("format", None) != _FORMAT:
        raise RowFileError(f"Row file {where} is not of a format that this version reads ({_FORMAT})")
    checksum = document.pop("checksum", None)
    try:
        row = _ADAPTER.validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise RowFileError(f"Row file {where} is malformed: {place}: {first['msg']}") from error
    if checksum != _checksum(document):
        raise RowFileError(f"Row file {where} does not say what was written: its checksum differs")
    if row.dataset_hash != dataset_hash:
        raise RowFileError(f"Row file {where} is of another dataset, {row.dataset_hash}")
    if not row.is_numbered:
        raise RowFileError(f"Row file {where} is malformed: it lacks ids")
    return row


def _checksum(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode("ascii")).hexdigest()


def differences(kept: DatasetRow, row: DatasetRow) -> Iterator[str]:
    """What a row file says otherwise than the rows: each column by name. What Label's hash is may have been
    learned since, and an update of a row tells its time.
    """
    for name in (
        "dataset_id",
        "dataset_name",
        "tree",
        "file_size_bytes",
        "session_count",
        "description",
        "metadata",
    ):
        said, has = getattr(kept, name), getattr(row, name)
        if said != has:
            yield f"{name} is {_short(has)}, and {_short(said)} in the file"
    said, has = _by_name(kept), _by_name(row)
    other = sorted(name for name in said.keys() | has.keys() if said.get(name) != has.get(name))
    if other:
        yield f"{len(other)} of its sessions, such as {_short(other[0])}"


def _by_name(row: DatasetRow) -> dict[str, SessionRow]:
    """Of labels only whether there are any: their text is the tree's, which a file may repeat."""
    return {
        one.session_name: replace(one, created_at=None, labels=None if one.labels is None else True)
        for one in row.sessions
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
