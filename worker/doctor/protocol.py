"""What travels between the doctor, a worker's parent and its probe. Knows no broker and no check."""

import dataclasses
import hashlib
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

import worker
from worker.findings import Check

COMMAND = "examine"
"""The remote-control command by which workers are asked."""

_STRICT = ConfigDict(extra="forbid")


class Step(StrEnum):
    """What a worker is asked, in this order: examine your machine, look for the marks of all, clean up."""

    EXAMINE = "examine"
    LOOK = "look"
    END = "end"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a probe is to check. `token` names one call of the doctor; `projects` are paths by project id.

    Not validated: paths may hold bytes that are not UTF-8, which pydantic refuses.
    """

    token: str
    data_dir: str
    store_digest: Literal["blake3", "sha256"]
    legacy_roots: tuple[str, ...]
    projects: Mapping[int, str]

    @property
    def datasets_dir(self) -> str:
        """Where trees are."""
        return f"{self.data_dir}/raw_datasets"

    @property
    def store_dir(self) -> str:
        """Where blobs are."""
        return f"{self.data_dir}/dataset_store"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Request":
        """Back from JSON values, in which every key is a string."""
        roots = tuple(document["legacy_roots"])
        projects = {int(number): path for number, path in document["projects"].items()}
        return Request(**{**document, "legacy_roots": roots, "projects": projects})


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Machine:
    """What a probe found on a worker's machine. `mark` is the file it made in DATA_DIR, None where it could
    not.

    `staging` names what lies in the store's staging, `restoring` what restores have beside legacy
    directories; `unseen` says of sampled projects why they cannot be read there. `host` is the name under
    which a file server knows the machine, `boot_id` tells it from every other one.
    """

    checks: dict[str, Check]
    store_id: str | None = None
    staging: tuple[str, ...] = ()
    restoring: tuple[str, ...] = ()
    unseen: dict[int, str] = dataclasses.field(default_factory=dict)
    mark: str | None = None
    host: str = ""
    boot_id: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return _MACHINE.dump_python(self, mode="json")  # type: ignore[no-any-return]

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Machine":
        """Back from JSON values; raises `pydantic.ValidationError`."""
        return _MACHINE.validate_python(document)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Evidence:
    """What a worker answers the doctor. `settings` are those that all workers must have alike; `database`
    tells one PostgreSQL and database from another; `sampled` counts the projects that the probe was to look
    for.
    """

    edition: str
    settings: dict[str, str]
    processes: int
    checks: dict[str, Check]
    database: str | None
    sampled: int
    machine: Machine

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return _EVIDENCE.dump_python(self, mode="json")  # type: ignore[no-any-return]

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Evidence":
        """Back from JSON values; raises `pydantic.ValidationError`, as for another edition's answer."""
        return _EVIDENCE.validate_python(document)


_MACHINE: TypeAdapter[Machine] = TypeAdapter(Machine)
_EVIDENCE: TypeAdapter[Evidence] = TypeAdapter(Evidence)


@cache
def edition() -> str:
    """The program's version and a digest of the worker's source: editions that differ may misunderstand.

    To be asked at the start: the files may be replaced under a process that goes on with what it has read.
    """
    here = Path(worker.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(f"{path.relative_to(here)}\0".encode())
        digest.update(path.read_bytes())
    return f"{worker.__version__} ({digest.hexdigest()[:8]})"
