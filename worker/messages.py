"""What travels between producer, broker, worker, ledger and report. Knows no database and no Celery."""

import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

QUEUE = "label_migration"
"""The one queue of the broker."""

_STRICT = ConfigDict(extra="forbid")

ProjectId = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
"""`projects.project_id`, as PostgreSQL's `integer` holds it and sequences give it."""


class Verb(StrEnum):
    """What a run does to its projects."""

    MIGRATE = "migrate"
    ROLLBACK = "rollback"
    VERIFY = "verify"

    @property
    def task(self) -> str:
        """The name of the Celery task that does the verb's jobs."""
        return f"worker.tasks.{_TASKS[self]}"


_TASKS = {
    Verb.MIGRATE: "migrate_project",
    Verb.ROLLBACK: "rollback_project",
    Verb.VERIFY: "verify_project",
}


class JobState(StrEnum):
    """Where a job stands. The arrows between states stand in sql/create_migration_ledger.sql."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RunState(StrEnum):
    """Where a run stands. The arrows between states stand in sql/create_migration_ledger.sql."""

    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        """No worker takes a job of the run any more, unless failed ones are queued again."""
        return self in {RunState.FINISHED, RunState.CANCELLED}


class Status(StrEnum):
    """What became of a job, in the words of the reports."""

    MIGRATED = "migrated"
    WOULD_MIGRATE = "would_migrate"
    ROLLED_BACK = "rolled_back"
    WOULD_ROLL_BACK = "would_roll_back"
    VERIFIED = "verified"
    SKIPPED = "skipped"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def job_state(self) -> JobState:
        """The ledger's state for a job that ended so."""
        match self:
            case Status.SKIPPED:
                return JobState.SKIPPED
            case Status.FAILED:
                return JobState.FAILED
            case Status.CANCELLED:
                return JobState.CANCELLED
            case _:
                return JobState.DONE


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class JobRef:
    """One project in one run: all that a broker message carries."""

    run_id: uuid.UUID
    project_id: ProjectId

    @property
    def task_id(self) -> str:
        """The Celery task id, the same for every delivery of this job: its result is found without a list."""
        return str(uuid.uuid5(self.run_id, f"project/{self.project_id}"))


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Message:
    """What the broker gets of a job: its ref, the verb that names the task, and what Flower shows of it."""

    ref: JobRef
    verb: Verb
    project_name: str | None
    size_bytes: int | None


class RunOptions(BaseModel, frozen=True):
    """What a run was asked for beside its verb: which projects, and what its jobs are to do with them.

    `project_ids` empty: all that the verb concerns, without `exclude`, `limit` at the most. `sample`: percent
    of each project's sessions. What was not given is not kept, so that a report shows no option that its verb
    does not have.
    """

    project_ids: tuple[int, ...] = ()
    exclude: tuple[int, ...] = ()
    limit: int | None = None
    include_failed: bool = False
    restore_files: bool = False
    sessions: bool = False
    sample: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)

    @classmethod
    def of_selection(cls, selection: Mapping[str, Any]) -> Self:
        """From what the ledger keeps of a run; raises `pydantic.ValidationError` on anything else."""
        return cls.model_validate(selection.get("options", {}))


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class FileCounts:
    """Every file of a project in exactly one disposition.

    `stored`: its bytes were new. `reused`: equal bytes were there already. `left`: only in the legacy
    directory, because the project failed or was skipped.
    """

    stored: int = 0
    reused: int = 0
    left: int = 0

    @property
    def total(self) -> int:
        """All files seen."""
        return self.stored + self.reused + self.left


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class ByteCounts:
    """Bytes of the project's files by disposition; `read` is always `stored` + `reused`."""

    stored: int = 0
    reused: int = 0

    @property
    def read(self) -> int:
        """Bytes that were read and are now in the store."""
        return self.stored + self.reused


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class LinkCounts:
    """How the files of a stored tree came to be: hard links to blobs, or, where those are refused, copies."""

    hard: int = 0
    reflink: int = 0
    copy: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Warning_:  # noqa: N801 - `Warning` is Python's own
    """Something left alone because guessing would be wrong. `session` is None for the project as a whole."""

    message: str
    session: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Outcome:
    """What became of one job. The task returns it, the ledger keeps it, the reports are computed from it.

    `reason` is one line for a person: why this and nothing else. `dataset_created` tells *stored* from
    *reused*. `dataset_id` is None in a dry run that would create the dataset. Times are UTC; `duration_s` is
    the wall time of the attempt that ended the job. `attempts` counts the deliveries that got the lease.
    """

    project_id: int
    project_name: str | None
    status: Status
    reason: str
    original_path: str | None = None
    dataset_id: int | None = None
    dataset_hash: str | None = None
    dataset_path: str | None = None
    dataset_created: bool = False
    sessions_count: int = 0
    files: FileCounts = FileCounts()
    bytes: ByteCounts = ByteCounts()
    links: LinkCounts = LinkCounts()
    warnings: tuple[Warning_, ...] = ()
    differences: tuple[str, ...] = ()
    error_class: str | None = None
    error: str | None = None
    remedy: str | None = None
    worker: str | None = None
    attempts: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    duration_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return _OUTCOME.dump_python(self, mode="json")  # type: ignore[no-any-return]

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Outcome":
        """Back from JSON values; raises `pydantic.ValidationError` on anything that is not an outcome."""
        return _OUTCOME.validate_python(document)

    def with_changes(self, **changes: Any) -> "Outcome":
        """A copy with some fields replaced."""
        return replace(self, **changes)


_OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)
