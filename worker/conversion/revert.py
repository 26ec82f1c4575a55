"""Moving rows back: the one transaction that makes a converted project legacy again, and its rehearsal. Reads
no file.
"""

from collections.abc import Callable

from sqlalchemy import Connection, Engine

from worker.conversion.return_plan import put_sessions_back
from worker.conversion.transaction import in_one_transaction
from worker.db import column_types, datasets, leases, projects, reclaims, sessions
from worker.db.column_types import ColumnTypes
from worker.db.projects import Conversion, Project
from worker.errors import NothingToDoError, ReclaimedMeanwhileError, RollbackRefusedError
from worker.messages import Outcome, Warning_


def revert(
    engine: Engine,
    lease: leases.Lease,
    conversion: Conversion,
    outcome: Outcome,
    listen: Callable[[], None] = lambda: None,
    *,
    purged_seen: bool = False,
) -> Outcome:
    """Take the project's conversion back and end the job, in one transaction.

    Locks, in the same order as the conversion and giving way like it: the dataset's row, the project's row,
    its sessions. The dataset and its files stay: others may refer to them. Raises `NothingToDoError` when the
    project is gone or back already, `RollbackRefusedError` when an edit since would be lost. A crash anywhere
    leaves the project migrated. Raises `RowRefusedError` for what the database does not let be written, and
    `ReclaimedMeanwhileError` when a reclaim has moved the directory since it was looked at; `purged_seen`:
    that it was removed is known.
    """
    types = column_types.known(engine, column_types.OF_ROLLBACK)

    def write(conn: Connection) -> Outcome:
        reverted = _put_back(conn, lease, conversion, outcome, types)
        if reclaims.blocks_rollback(conn, conversion.conversion_id, purged_seen=purged_seen):
            raise ReclaimedMeanwhileError(
                f"project {conversion.project_id}: a reclaim has moved its directory meanwhile"
            )
        leases.end_job(conn, lease, reverted)
        return reverted

    return in_one_transaction(engine, f"project {conversion.project_id}", write, listen=listen)


def rehearse(
    engine: Engine,
    lease: leases.Lease,
    conversion: Conversion,
    outcome: Outcome,
    listen: Callable[[], None] = lambda: None,
) -> Outcome:
    """Do the same statements under the same locks, see that the database takes them, and take all of it back.

    The outcome that `revert` would have; it is not in the ledger yet. Raises what `revert` raises.
    """
    types = column_types.known(engine, column_types.OF_ROLLBACK)

    return in_one_transaction(
        engine,
        f"project {conversion.project_id}",
        lambda conn: _put_back(conn, lease, conversion, outcome, types),
        rehearse=True,
        listen=listen,
    )


def _put_back(
    conn: Connection, lease: leases.Lease, conversion: Conversion, outcome: Outcome, types: ColumnTypes
) -> Outcome:
    """All rows of one project's rollback but the job's own."""
    dataset = datasets.lock(conn, conversion.dataset_hash)
    project = projects.lock(conn, lease.ref.subject_id)
    was_back = check_still_converted(project, conversion, conn)
    rows = sessions.lock_of_project(conn, conversion.project_id)
    plan = put_sessions_back(conn, conversion, dataset.file_path if dataset is not None else None, rows)
    warnings = plan.warnings
    if was_back:
        warnings = (*warnings, _left_as_it_is(conversion))
    else:
        check_config(conn, conversion)
        projects.restore(conn, conversion.conversion_id, types)
    projects.end_conversion(conn, conversion.conversion_id, lease.ref.run_id)
    return outcome.with_changes(sessions_count=len(rows), warnings=warnings)


def check_still_converted(project: Project | None, conversion: Conversion, conn: Connection) -> bool:
    """The project as its conversion left it, apart from what people may edit; True when its row is back at
    its directory already, but not by this program: Label's own rollback tool leaves the sessions, and our
    record, as they were.
    """
    number = conversion.project_id
    if project is not None and projects.active_conversion_id(conn, number) != conversion.conversion_id:
        raise NothingToDoError(f"project {number}: rolled back already by another run")
    return is_back(project, conversion)


def is_back(project: Project | None, conversion: Conversion) -> bool:
    """The same of a project's row that was read before its active conversion was asked for."""
    number = conversion.project_id
    if project is None:
        raise NothingToDoError(f"project {number}: deleted since it was migrated")
    if project.is_legacy and project.path:
        if project.path == conversion.legacy_path:
            return True
        raise NothingToDoError(
            f"project {number}: returned to legacy by another program, at another path: {project.path!r}; "
            "a new migration closes the record of the former one"
        )
    if project.is_legacy or project.path is not None or project.legacy_path != conversion.legacy_path:
        raise RollbackRefusedError(
            f"project {number}: its row is not as the migration left it "
            f"(type {project.project_type!r}, path {project.path!r}, legacy path {project.legacy_path!r})"
        )
    return False


def _left_as_it_is(conversion: Conversion) -> Warning_:
    return Warning_(
        message="its row had been returned to legacy by another program and stays as it is; its sessions, its reference "
        "and the record of its conversion followed. A former analysis_config stands in project_conversions, "
        f"conversion {conversion.conversion_id}"
    )


def check_config(conn: Connection, conversion: Conversion) -> None:
    """Refuse to put a former `analysis_config` that was no object over keys that people added since."""
    added = projects.added_to_config(conn, conversion)
    if added:
        raise RollbackRefusedError(
            f"project {conversion.project_id}: its former analysis_config was not an object, and these keys were added "
            f"or changed since, which would be lost: {', '.join(added)}",
            tuple(f"analysis_config.{key}" for key in added),
        )
