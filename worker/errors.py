"""Every error the migrator raises on purpose: what went wrong, whether waiting may help, and what to do next.

The type says whether a retry can help: a `TransientError` may pass by itself, a `PermanentError` will not.
What becomes of a job that meets one is decided in `worker/jobs/endings.py`; in the command line they become
an exit code. In between they are caught only where something else can be done about them, which is said
there.
"""

from typing import ClassVar


class MigratorError(Exception):
    """Base of the tree. `remedy` is the operator's next step, shown beside the message; `differences` names
    single things that are not as they should be, where there are several.
    """

    def __init__(self, message: str = "", differences: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.differences = differences

    remedy: ClassVar[str] = (
        "Read the message; if it does not help, run with LOG_LEVEL=debug and report the output."
    )

    @property
    def error_class(self) -> str:
        """The name that reports and the ledger group failures by."""
        return type(self).__name__


class TransientError(MigratorError):
    """May pass by itself: the same call can succeed later.

    `retries` is how often a job that met it is tried again before it fails, each time after a longer wait.
    """

    retries: ClassVar[int] = 5


class PermanentError(MigratorError):
    """Will not pass by itself: something has to be changed first."""


# What the program stands on (exit code 5) -------------------------------------------------------------------


class SettingsError(PermanentError):
    """A setting is missing or has a value that it cannot have."""

    remedy = "Set the variable in the environment or in .env in the working directory."


class DatabaseUnavailableError(TransientError):
    """PostgreSQL cannot be reached, broke the connection, or answers that it cannot work now: it is a
    standby, closed for writing, full, shutting down, or its administrator cancelled the statement.
    """

    remedy = (
        "Check DATABASE_URL and that PostgreSQL runs, accepts connections and lets us write: that it is no standby, "
        "not read-only, and has room."
    )


class DatabaseBusyError(TransientError):
    """PostgreSQL gave up on a statement because of another one: a deadlock or a lock that came too late."""

    remedy = "Repeat the call, or retry the failed jobs: producer retry. The transaction was rolled back as a whole."


class DatabaseRefusedError(PermanentError):
    """PostgreSQL refused a statement and will refuse it again. `sqlstate` is its code, `constraint` the name
    of the key or check that was in the way, where there was one.
    """

    remedy = (
        "Read PostgreSQL's message: a privilege is missing, a trigger or a constraint is in the way, or the migrator "
        "has a defect."
    )

    def __init__(self, message: str = "", *, sqlstate: str = "", constraint: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.constraint = constraint


class RowsHiddenError(PermanentError):
    """Policies of row-level security keep rows from our role: what it cannot see would count as not there."""

    remedy = "As a superuser: alter role … bypassrls, for the role of DATABASE_URL; or drop the policies of Label's tables."


class SequenceBehindError(PermanentError):
    """The sequence that numbers a table's rows gives numbers that imported rows have already."""

    remedy = "Run the statement that the message names, then: producer retry"


class BrokerUnavailableError(TransientError):
    """Redis or Valkey cannot be reached."""

    remedy = "Check REDIS_URL and that Redis or Valkey runs."


class BrokerRefusesError(BrokerUnavailableError):
    """Redis or Valkey answers, but refuses: as a replica, full, without its disk, without the right."""

    remedy = (
        "Check the server's role, memory, disk and access rules: its message says which. When it accepts messages "
        "again, workers continue by themselves."
    )


class SchemaMissingError(PermanentError):
    """Tables are missing or not of the version this program needs."""

    remedy = "Run: producer schema apply"


class TablesRefusedError(SchemaMissingError):
    """DATABASE_URL leads to tables that are not Label's, are there twice, or lack what no step adds."""

    remedy = "Change what the message names: DATABASE_URL, the search_path, or the tables. This is beyond producer schema apply."


class ColumnTypesError(PermanentError):
    """Columns of Label's tables have types that the migrator cannot write to."""

    remedy = "Change the columns as the message says; what is in them stays as it is."


# What the operator asked for (exit code 2) ------------------------------------------------------------------


class UsageError(PermanentError):
    """The call names something that does not exist or cannot be done."""

    remedy = "Correct the call; --help shows examples."


class ProjectFileError(UsageError):
    """A file that is to be imported is not a project's configuration, or says what cannot be."""

    remedy = "Export the project again (producer project export ID); docs/sharing.md says which files can be imported."


class BagNotWrittenError(UsageError):
    """A dataset cannot be exported as a bag: its directory cannot be written, or holds what no bag can."""

    remedy = (
        "Change what the message names; then export the dataset again. Nothing of the bag is under its name."
    )


class BagRefusedError(UsageError):
    """A directory that is to be imported is no bag of a dataset, or does not hold what it says."""

    remedy = (
        "Nothing was written. Copy the bag again, or export the dataset again (producer datasets export ID --output DIR); "
        "docs/sharing.md says which bags can be imported."
    )


class NoRoomForImportError(PermanentError):
    """What a bag holds does not fit into the store."""

    remedy = (
        "Make room on the store's file system, or move DATA_DIR to a larger one; then import the bag again."
    )


class DatasetsMissingError(PermanentError):
    """A project that is to be imported needs datasets that are not here; nothing was written."""

    remedy = (
        "Bring the recordings here first: migrate a project that has the same ones, or let Label scan and register them. "
        "Then import the project again. What is here: producer datasets list"
    )


# What the ledger does not have ------------------------------------------------------------------------------


class RunNotFoundError(PermanentError):
    """No run, or more than one, has the reference that was given."""

    remedy = "Give more of the run's id. For a list: producer runs"


# What is wrong with a project -------------------------------------------------------------------------------


class ProjectError(PermanentError):
    """A legacy project that cannot be converted as it is."""


class DirectoryMissingError(ProjectError):
    """Nothing is at the project's path."""

    remedy = "Correct the project's path in Label or mount the directory on every worker; then enqueue the project again."


class NotADirectoryPathError(ProjectError):
    """Something other than a directory is at the project's path."""

    remedy = "Correct the project's path in Label; then enqueue the project again."


class NoSessionsError(ProjectError):
    """The project's directory holds no session directory."""

    remedy = "Give the project its session directories, or leave it out with --exclude."


class PathRefusedError(ProjectError):
    """The project's path is outside the allowed roots, or overlaps the store."""

    remedy = "Add the directory to LEGACY_ROOTS if it is meant to be there, or move it out of the store's directories."


class EntryRefusedError(ProjectError):
    """An entry of the tree that cannot be stored: a special file, a bad link, a name no row can hold."""

    remedy = "Remove or rename the entry; then enqueue the project again."


class EncodingRefusedError(ProjectError):
    """A text that the database's encoding cannot hold, or one in the database that is not in its encoding."""

    remedy = (
        "Rename what the message names in characters that the database has, or correct the row; "
        "a database in UTF8 holds every name."
    )


class EntryUnreadableError(ProjectError):
    """An entry of the tree that the worker may not read or that the disk cannot deliver."""

    remedy = "Give the migrator's user read permission, or restore the file; then enqueue the project again."


class SourceChangedError(ProjectError):
    """The legacy tree changed while it was read."""

    remedy = "Wait until nothing writes to the directory any more; then enqueue the project again."


class ProjectChangedError(ProjectError):
    """The project's row is not what it was when the job was made."""

    remedy = "Check the project in Label; enqueue it again if it is still to be migrated."


class NothingToDoError(ProjectError):
    """The job has no work left: the project is gone, or converted already. The job is skipped, not failed."""

    remedy = "None needed."


class RowRefusedError(ProjectError):
    """PostgreSQL refuses a row of the project: a constraint, a trigger, a domain, a limit, a right."""

    remedy = (
        "No row of the project was changed. Resolve what the message names with the owner of the tables; then enqueue "
        "the project again."
    )


class LegacyPathMissingError(ProjectError):
    """The directory that a rollback leads back to is gone."""

    remedy = "Put the directory back, or rebuild it from the store: producer rollback --restore-files"


class SessionsDifferError(ProjectError):
    """A session reads otherwise by its dataset than by its legacy directory (exit code 4)."""

    remedy = "Compare the two files that are named; if the legacy one changed since, the dataset has what was migrated."


class LegacyNotDurableError(TransientError):
    """The file system of a legacy directory cannot say that it is on the disk: no row may rely on it yet."""

    remedy = "Check the file system of the legacy directory; then try again."


class RollbackRefusedError(ProjectError):
    """A project that cannot be taken back without losing something."""

    remedy = "Read the differences; restore the directory or resolve the edit by hand, then roll back again."


# Why a legacy directory stays where it is -------------------------------------------------------------------


class ReclaimRefusedError(ProjectError):
    """A legacy directory that is not moved away, moved back, removed or shared: its project is skipped, and
    nothing was changed.
    """

    remedy = "Resolve what the message names; then reclaim the project again."
    is_of_worker = False
    """Does it depend on the worker, so that the reason names it?"""


class ConvertedLatelyError(ReclaimRefusedError):
    """The project was migrated less than `--older-than` days ago."""

    remedy = "Wait, or say a smaller number of days: producer reclaim --older-than DAYS"


class ReclaimedLatelyError(ReclaimRefusedError):
    """The directory was moved away less than `--grace` days ago."""

    remedy = "Wait, or say a smaller number of days: producer reclaim --purge --grace DAYS"


class AlreadyReclaimedError(ReclaimRefusedError):
    """The directory is away already."""

    remedy = "None needed. To free its space: producer reclaim --purge; to move it back: producer reclaim --undo --project-id N"


class DirectoryGoneError(ReclaimRefusedError):
    """Nothing is at the legacy path: there is nothing to reclaim."""

    remedy = "None needed. To have the directory again: producer rollback --restore-files"


class DirectoryChangedError(ReclaimRefusedError):
    """The legacy directory is not, or not any more, what was migrated."""

    remedy = (
        "Compare what the message names with the dataset, and put it back; or keep what is new: "
        "producer rollback, then enqueue the project again."
    )


class DatasetUnsoundError(ReclaimRefusedError):
    """The dataset does not have every byte that it promises, so that the legacy directory is needed."""

    remedy = (
        "Repair it while the legacy directory is there: producer verify --store --repair; then reclaim again."
    )


class LegacyProjectThereError(ReclaimRefusedError):
    """A legacy project owns a directory at, in or around the one that is to go."""

    remedy = "Migrate the project that the message names, or give it a directory of its own."


class SessionReadsThereError(ReclaimRefusedError):
    """A session reads from the directory, or from a place that its conversion could not judge."""

    remedy = "Point the session's parent path to a dataset, or delete the session, in Label."


class MigratedProjectThereError(ReclaimRefusedError):
    """Another migrated project has its directory at, in or around the one that is to go."""

    remedy = "Name both: producer reclaim --project-id N --project-id M"


class MovedAwayThereError(ReclaimRefusedError):
    """What was moved away from inside the directory lies in it still."""

    remedy = (
        "Move it back or remove it first: producer reclaim --undo --project-id N, or producer reclaim --purge"
    )


class NotADirectoryOfItsOwnError(ReclaimRefusedError):
    """The directory is a mount point or a legacy root, or has one in it: it cannot be moved as a whole."""

    remedy = (
        "Unmount it, or give the project a directory below its mount point; or leave it out with --exclude."
    )


class MountReadOnlyError(ReclaimRefusedError):
    """The worker sees the legacy directory on a read-only mount."""

    is_of_worker = True
    remedy = "Mount it writable on the worker that the message names, for the time of the reclaim; then reclaim again."


class PlaceNotWritableError(ReclaimRefusedError):
    """The directory above the legacy one, or the one it would be moved to, takes no change from us."""

    is_of_worker = True
    remedy = "Give the migrator's user the right to write to the directory that the message names."


class LegacyPlaceTakenError(ReclaimRefusedError):
    """Something has the name that the directory is to get."""

    remedy = "Move away what is there now; then try again."


class MovedAwayMissingError(ReclaimRefusedError):
    """What was moved away is not where it was moved to."""

    remedy = "Put it back where the message says; or rebuild it: producer rollback --restore-files"


class PurgeBegunError(ReclaimRefusedError):
    """The directory is being removed, or has been."""

    remedy = "Rebuild it from the store: producer rollback --restore-files"


class PurgedError(ProjectError):
    """The legacy directory was moved away by a reclaim and removed by its purge."""

    remedy = "Rebuild it from the store: producer rollback --restore-files"


class ReclaimedMeanwhileError(TransientError):
    """A reclaim moved the directory while a rollback was looking at it; it looks again."""

    remedy = "Roll the project back again; its directory is moved back first."


# Why a dataset that Label registered itself stays Label's ---------------------------------------------------


class AdoptionRefusedError(ProjectError):
    """A dataset that cannot become ours, or not be given back: its directory and its rows are as they
    were.
    """

    remedy = "Resolve what the message names; then adopt the dataset again: producer datasets adopt ID"


class ContentAdoptedError(AdoptionRefusedError):
    """Another dataset has the same content already: a content is one dataset's."""

    remedy = (
        "Keep it as it is; or, in Label, point its projects to the dataset that the message names, and delete it. "
        "Its projects read as before either way."
    )


class AdoptionNotUndoneError(AdoptionRefusedError):
    """An adopted dataset that stays ours."""

    remedy = "Resolve what the message names; then: producer datasets adopt --undo ID"


class SharingUnsupportedError(PermanentError):
    """The file system of a legacy directory cannot share blocks with the store (exit code 5)."""

    remedy = "Free the space by moving the directories away: producer reclaim, without --share"


# What is wrong with the store -------------------------------------------------------------------------------


class StoreUnusableError(PermanentError):
    """The store's directories are missing, of another format, or on another file system than they must be."""

    remedy = "Run producer doctor; it names the directory and what is wrong with it."


class StoredBytesMismatchError(PermanentError):
    """A stored file does not have the bytes that its digest promises (exit code 4)."""

    remedy = (
        "Repair it: producer verify --store --repair. Where that finds no good copy, add --from and a backup's directory. "
        "Which sessions read otherwise than before: producer verify --sessions"
    )


class RowFileError(PermanentError):
    """The file that keeps a dataset's rows cannot be read, or says what cannot be."""

    remedy = (
        "Where the dataset has its row, move the file away, and have it written anew: producer datasets rebuild. Otherwise take it "
        "from a backup; without it the row is made of manifest and tree, with a new id."
    )


class StoreStoppedError(TransientError):
    """The store takes nothing now, from any job: the run is paused, and no project fails for it."""

    remedy = "Check the store's file system; when it accepts files again: producer resume"


class TooLargeForStoreError(PermanentError):
    """The project's new content is more than the store's whole file system holds."""

    remedy = "Move DATA_DIR to a larger file system, or leave the project out with --exclude."


class StoreFullError(StoreStoppedError):
    """The store's file system has no room left."""

    remedy = "Make room on the store's file system; then: producer resume"


class StoreBrokenError(StoreStoppedError):
    """The store's disk, or its file server, does not work: input/output errors, no answer, read-only."""

    remedy = "Repair or remount the store's file system; then: producer resume"


class StoreElsewhereError(StoreStoppedError):
    """DATA_DIR holds no store, or not the one that the database names: most likely its mount is missing."""

    remedy = (
        "Mount DATA_DIR on the worker's machine as on all others, or stop that worker; then: producer resume. "
        "Is the store lost for good? docs/failures.md"
    )


class StoreSyncError(StoreBrokenError):
    """The store's disk reported, at a flush, bytes that it could not write: this job's or another's."""


class DatasetGoneError(TransientError):
    """A dataset that was there a moment ago is not there any more."""

    remedy = "Enqueue the project again; its data is then stored anew."


class PlaceTakenError(TransientError):
    """Another dataset was registered at the directory that was chosen for a new one's tree."""

    remedy = "Enqueue the project again; its data then gets another directory."


class GarbageTripwireError(PermanentError):
    """More datasets would go than an operator is likely to mean; nothing was touched."""

    remedy = (
        "See what would go: producer gc --dry-run. If it is right, say the number: producer gc --expect N"
    )


class GarbageNotRestoredError(PermanentError):
    """An entry of the quarantine that cannot be brought back; it stays as it is."""

    remedy = "The report of the gc that took it names its id; what is in quarantine now are the directories of DATA_DIR/dataset_store/quarantine."


# What became of an attempt ----------------------------------------------------------------------------------


class ClaimLostError(TransientError):
    """The connection that owned a dataset's claim ended while bytes were being stored."""

    remedy = "Enqueue the project, or import the bag, again; what is stored already is found and used."


class WorkerCrashedError(PermanentError):
    """The job's workers died one after the other: the job itself may be what kills them."""

    remedy = (
        "Check the workers' logs and the machine's memory at the times of the crashes; then: producer retry"
    )


class OutcomeMissingError(PermanentError):
    """A run has ended and one of its jobs has no outcome."""

    remedy = "Start a worker: its reaper ends such a job within seconds; then: producer collect"


class HandBackError(MigratorError):
    """The job has to stop at once, in the middle of a file if need be, and to wait; what is stored stays."""


class RunPausedError(HandBackError):
    """The run is paused."""

    remedy = "Resume the run: producer resume"


class WorkerStoppingError(HandBackError):
    """The worker was told to stop; another one goes on with the job."""

    remedy = "Nothing: another worker takes the job."


ROOM = "room"
"""What a job waits for that does not fit into the store; all else that jobs wait for is a legacy root."""


class WaitsError(HandBackError):
    """The job cannot be done here or now, and others can: it waits for `waits_for`, and no try is counted."""

    def __init__(self, message: str, waits_for: str) -> None:
        super().__init__(message)
        self.waits_for = waits_for


class RootLacksError(WaitsError):
    """The legacy root that the project lies in is absent or empty on this machine."""

    remedy = "Mount the directory on the worker's machine as on all others, or stop that worker; then: producer resume"


class RoomWaitedForError(WaitsError):
    """The project does not fit into the room that the store has now; smaller ones may."""

    def __init__(self, message: str) -> None:
        super().__init__(message, waits_for=ROOM)

    remedy = "Make room on the store's file system; then: producer resume"


class RunCancelledError(MigratorError):
    """The operator cancelled the run; the job ends at once, in the middle of a file if need be."""

    remedy = "Nothing was changed. To begin again: producer enqueue"


class LeaseLostError(PermanentError):
    """This attempt no longer owns the lease of its job; whatever it found out is not written."""

    remedy = "None needed: another worker runs the job."


# What is wrong with a session -------------------------------------------------------------------------------


class SessionUnreadableError(ProjectError):
    """Label cannot read a session's rows: no directory, no file, or nothing that pandas can read."""

    remedy = "Check the file that the message names; Label cannot show this session either."


class OutOfMemoryError(PermanentError):
    """The worker process could not get the memory it needed."""

    remedy = "Give the worker more memory or start it with a smaller --concurrency; then enqueue the project again."


class UnexpectedError(PermanentError):
    """A defect of the migrator itself."""

    remedy = "Nothing of the project was changed. The worker's log has the trace; please report it."
