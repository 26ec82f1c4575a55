"""What travels between producer, broker, worker, ledger and report. Knows no database and no Celery."""

import uuid
from collections.abc import Mapping
from dataclasses import field, replace
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

QUEUE = "label_migration"
"""The one queue of the broker."""

MOVED_AWAY = ".label-reclaimed"
"""How the directories are called into which legacy directories are moved away. Whatever lists a legacy
directory passes over an entry of this name.
"""

_STRICT = ConfigDict(extra="forbid")

SubjectId = Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
"""`projects.project_id` or `raw_datasets.dataset_id`, as PostgreSQL's `integer` holds it and sequences give
it.
"""


class Verb(StrEnum):
    """What a run does to its projects, to datasets, or to the store."""

    MIGRATE = "migrate"
    ROLLBACK = "rollback"
    VERIFY = "verify"
    RECLAIM = "reclaim"
    GC = "gc"
    ADOPT = "adopt"


class Subject(StrEnum):
    """What one job is about."""

    PROJECT = "project"
    DATASET = "dataset"
    STORE = "store"
    """The store as a whole. Its id is always `THE_STORE`."""


THE_STORE = 1

TASKS = {
    "worker.tasks.migrate_project": (Verb.MIGRATE, Subject.PROJECT),
    "worker.tasks.rollback_project": (Verb.ROLLBACK, Subject.PROJECT),
    "worker.tasks.verify_project": (Verb.VERIFY, Subject.PROJECT),
    "worker.tasks.verify_dataset": (Verb.VERIFY, Subject.DATASET),
    "worker.tasks.reclaim_project": (Verb.RECLAIM, Subject.PROJECT),
    "worker.tasks.collect_garbage": (Verb.GC, Subject.STORE),
    "worker.tasks.adopt_dataset": (Verb.ADOPT, Subject.DATASET),
}
"""The Celery tasks by name: which verb each carries out, and on what."""

_NAMES = {job: name for name, job in TASKS.items()}


class JobState(StrEnum):
    """Where a job stands. The arrows between states stand in sql/create_migration_ledger.sql."""

    HELD = "held"
    """Of a later wave: no worker takes it before the gates before it have opened."""
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


class WaveState(StrEnum):
    """Where a wave of a run stands. The arrows between states stand in sql/create_migration_ledger.sql."""

    WAITING = "waiting"
    OPEN = "open"
    VERIFYING = "verifying"
    PASSED = "passed"
    STOPPED = "stopped"
    WAIVED = "waived"


class Gate(StrEnum):
    """What happens between two waves of a run: `VERIFY` reads the sessions of the wave as before and as
    migrated, and its stored bytes.
    """

    VERIFY = "verify"
    NONE = "none"


class Status(StrEnum):
    """What became of a job, in the words of the reports."""

    MIGRATED = "migrated"
    WOULD_MIGRATE = "would_migrate"
    ROLLED_BACK = "rolled_back"
    WOULD_ROLL_BACK = "would_roll_back"
    VERIFIED = "verified"
    REPAIRED = "repaired"
    RECLAIMED = "reclaimed"
    WOULD_RECLAIM = "would_reclaim"
    UNDONE = "undone"
    WOULD_UNDO = "would_undo"
    PURGED = "purged"
    WOULD_PURGE = "would_purge"
    SHARED = "shared"
    WOULD_SHARE = "would_share"
    COLLECTED = "collected"
    WOULD_COLLECT = "would_collect"
    RESTORED = "restored"
    ADOPTED = "adopted"
    WOULD_ADOPT = "would_adopt"
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
    """One subject in one run: all that a broker message carries."""

    run_id: uuid.UUID
    subject_id: SubjectId
    subject: Subject = Subject.PROJECT

    @property
    def task_id(self) -> str:
        """The Celery task id, the same for every delivery of this job: its result is found without a list."""
        return str(uuid.uuid5(self.run_id, f"{self.subject}/{self.subject_id}"))

    @classmethod
    def from_row(cls, row: Any) -> Self:
        """From a row with `run_id`, `subject` and `subject_id`."""
        return cls(run_id=row.run_id, subject_id=row.subject_id, subject=Subject(row.subject))

    @property
    def words(self) -> str:
        """What the job is about: `project 42`, `dataset 17`, `the store`."""
        return subject_words(self.subject, self.subject_id)


def subject_words(subject: Subject, subject_id: int) -> str:
    """A subject in running text: `project 42`, `dataset 17`, `the store`."""
    return "the store" if subject is Subject.STORE else f"{subject} {subject_id}"


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Message:
    """What the broker gets of a job: its ref, the verb that names the task, and what Flower shows of it."""

    ref: JobRef
    verb: Verb
    subject_name: str | None
    size_bytes: int | None

    @property
    def task(self) -> str:
        """The name of the Celery task that does the job."""
        return _NAMES[self.verb, self.ref.subject]


class GateOf(BaseModel, frozen=True):
    """The wave that a run verifies as its gate."""

    run_id: uuid.UUID
    wave: int


class RunOptions(BaseModel, frozen=True):
    """What a run was asked for beside its verb: which projects, and what its jobs are to do with them.

    `project_ids` and `dataset_ids` empty: all that the verb concerns, without `exclude`, `limit` at the most.
    `sample`: percent of each project's sessions, and of the store's bytes; of these the ones that were read
    last before or at `sample_until` (time of the last check, digest). `repair_from`: directories with good
    copies, on the workers' machines. `restore_entry`: the id of a quarantine entry. `rehash`: files whose
    digests are remembered are read, too. `waves`: as they were asked for, such as `1`, `5%`. `of_run` and
    `wave`: what this run, or this wave of it, migrated. `gate_of`: of a run that is a gate. What was not
    given is not kept, so that a report shows no option that its verb does not have.
    """

    project_ids: tuple[int, ...] = ()
    exclude: tuple[int, ...] = ()
    limit: int | None = None
    include_failed: bool = False
    rehash: bool = False
    restore_files: bool = False
    sessions: bool = False
    sample: float | None = None
    store: bool = False
    dataset_ids: tuple[int, ...] = ()
    older_than_days: float | None = None
    sample_until: tuple[datetime | None, str] | None = None
    repair: bool = False
    repair_from: tuple[str, ...] = ()
    undo: bool = False
    purge: bool = False
    share: bool = False
    grace_days: float | None = None
    grace_hours: float | None = None
    expect: int | None = None
    restore_entry: str | None = None
    waves: tuple[str, ...] = ()
    gate: Gate | None = None
    of_run: uuid.UUID | None = None
    wave: int | None = None
    gate_of: GateOf | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return self.model_dump(mode="json", exclude_unset=True)


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
    """Bytes of the project's files by disposition; `read` is always `stored` + `reused`.

    `remembered`: those of them whose digests were remembered, so that they were not read for them.
    """

    stored: int = 0
    reused: int = 0
    remembered: int = 0

    @property
    def read(self) -> int:
        """Bytes that were read and are now in the store."""
        return self.stored + self.reused


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class LinkCounts:
    """How the files of a stored tree came to be: hard links to blobs, or, where those are refused, copies.

    `cloned`: the blobs that came in and share the blocks of the legacy files they were made from.
    """

    hard: int = 0
    reflink: int = 0
    copy: int = 0
    cloned: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class DiskBytes:
    """Room on disk, in allocated blocks (`st_blocks`), hard links counted once.

    `legacy`: in the legacy directory that was looked at. `store`: what the store took for it. `shared`: the
    blocks of the legacy directory that are the store's, too, and took nothing. `moved`: moved away by a
    reclaim. `freed`: given back to the file system. `kept`: in the directory of a project that was
    skipped.
    """

    legacy: int = 0
    store: int = 0
    shared: int = 0
    moved: int = 0
    freed: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class VerifiedCounts:
    """What a verification covered of a dataset: all its files and their bytes, and those that it read.

    A blob that several datasets share counts for the one whose job read it; `bytes_total` counts it there,
    too. `oldest_check`: when the least recently read of the dataset's files was read, now. `left_to`: the
    datasets whose jobs read what this one shares with them.
    """

    files: int = 0
    bytes_total: int = 0
    bytes_verified: int = 0
    oldest_check: datetime | None = None
    left_to: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class Damage:
    """One stored thing that is not what its digest says. `path` is where it lies. `what`: `missing`,
    `wrong_bytes`, `wrong_size` or `unexpected_entry`; of a manifest likewise. `source` is where the good
    bytes came from, if it was repaired.
    """

    digest: str | None
    what: str
    path: str
    dataset_ids: tuple[int, ...] = ()
    project_ids: tuple[int, ...] = ()
    sessions: tuple[str, ...] = ()
    repaired: bool = False
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class GarbageEntry:
    """One thing that gc found: `action` is `quarantined`, `removed`, `staging` or `restored` (a dry run:
    would be). `entry_id` names it in quarantine. `since`: how long nothing has referred to it. `size_bytes`
    is allocated room.
    """

    action: str
    entry_id: str | None
    kind: str
    dataset_id: int | None
    name: str
    reason: str
    since: datetime | None
    files: int = 0
    size_bytes: int = 0


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

    A project's job has `project_id` and `project_name`, a dataset's `dataset_id` and `dataset_name`; which of
    them it is says `subject`. `pruned`: rows of the ledger that gc removed, by table.
    """

    project_id: int | None
    project_name: str | None
    status: Status
    reason: str
    subject: Subject = Subject.PROJECT
    dataset_name: str | None = None
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
    disk: DiskBytes = DiskBytes()
    verified: VerifiedCounts = VerifiedCounts()
    damaged: tuple[Damage, ...] = ()
    garbage: tuple[GarbageEntry, ...] = ()
    pruned: Mapping[str, int] = field(default_factory=dict)
    error_class: str | None = None
    error: str | None = None
    remedy: str | None = None
    worker: str | None = None
    attempts: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    duration_s: float = 0.0

    @model_validator(mode="after")
    def _says_what_it_is_of(self) -> Self:
        ids = {Subject.PROJECT: self.project_id, Subject.DATASET: self.dataset_id, Subject.STORE: THE_STORE}
        if ids[self.subject] is None:
            raise ValueError(f"an outcome of a {self.subject} without its id")
        return self

    @property
    def key(self) -> tuple[Subject, int]:
        """What the outcome is of, unique in a run."""
        numbers = {Subject.PROJECT: self.project_id, Subject.DATASET: self.dataset_id}
        return self.subject, numbers.get(self.subject) or THE_STORE

    @property
    def subject_name(self) -> str | None:
        """The name of the project or dataset."""
        return self.project_name if self.subject is Subject.PROJECT else self.dataset_name

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


def subject_fields(ref: JobRef, name: str | None) -> dict[str, Any]:
    """The fields by which an outcome says what it is of."""
    match ref.subject:
        case Subject.PROJECT:
            return {"subject": ref.subject, "project_id": ref.subject_id, "project_name": name}
        case Subject.DATASET:
            return {
                "subject": ref.subject,
                "project_id": None,
                "project_name": None,
                "dataset_id": ref.subject_id,
                "dataset_name": name,
            }
        case Subject.STORE:
            return {"subject": ref.subject, "project_id": None, "project_name": None}


_OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)
