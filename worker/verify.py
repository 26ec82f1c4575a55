"""The story of one project's verification: do its sessions read by their dataset as they did by their directory?"""

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from worker.blobs.digest import printable
from worker.db import datasets, leases, projects, sessions
from worker.db.datasets import Dataset
from worker.db.projects import Conversion
from worker.db.sessions import Session
from worker.errors import NothingToDoError, SessionsDifferError, SessionUnreadableError
from worker.job import Job, Tools, run_job
from worker.messages import JobRef, Outcome, Status, Verb
from worker.revert import check_still_converted, plan_return
from worker.sessions_csv import Reader, SessionRow, read

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 10


def verify_sessions(tools: Tools, ref: JobRef, worker: str) -> Outcome | None:
    """Read every session of a migrated project the old way and the new way, and compare; None when it is not ours to do.

    Changes nothing but the job's own row, so twice or at once is only slower.
    """
    return run_job(tools, ref, worker, _work, Verb.VERIFY)


def _work(job: Job) -> Outcome:
    # All rows of one moment: the project may be rolled back between two statements, and half of each would look like loss.
    with job.engine.connect().execution_options(isolation_level="REPEATABLE READ") as conn:
        conversion = projects.active_conversions(conn, [job.project_id]).get(job.project_id)
        if conversion is None:
            raise NothingToDoError(f"project {job.project_id}: not migrated, or rolled back since")
        check_still_converted(projects.by_ids(conn, [job.project_id]).get(job.project_id), conversion, conn)
        dataset = datasets.get(conn, conversion.dataset_id)
        rows = sessions.of_project(conn, job.project_id)
        ranges = sessions.time_ranges(conn, job.project_id)
    if not os.path.isdir(conversion.legacy_path):
        job.check_root(conversion.legacy_path)
        raise NothingToDoError(f"Legacy path no longer exists: {printable(conversion.legacy_path)}")
    job.heartbeat.enter("verify", conversion.dataset_hash)
    chosen = _sample(job, rows)
    found = tuple(_differences(job, conversion, dataset, chosen, ranges))
    if found:
        raise SessionsDifferError(
            f"{len(found)} readings differ between legacy directory and dataset: {'; '.join(found[:_SHOWN])}",
            found[:_SHOWN],
        )
    outcome = job.outcome(
        Status.VERIFIED, f"{len(chosen)} sessions read alike by legacy directory and by dataset"
    )
    verified = outcome.with_changes(
        dataset_id=conversion.dataset_id, dataset_hash=conversion.dataset_hash, sessions_count=len(chosen)
    )
    with job.engine.begin() as conn:
        leases.end_job(conn, job.lease, verified)
    return verified


def _sample(job: Job, rows: Sequence[Session]) -> list[Session]:
    """The sessions to read: all, or the share that was asked for, at least one; the same ones whenever the job is repeated."""
    percent = job.lease.options.get("options", {}).get("sample")
    if percent is None or not rows:
        return list(rows)
    count = max(1, round(len(rows) * percent / 100))
    return random.Random(job.lease.ref.task_id).sample(list(rows), count)  # noqa: S311 - a choice, not a secret


def _differences(
    job: Job,
    conversion: Conversion,
    dataset: Dataset | None,
    chosen: Sequence[Session],
    ranges: Mapping[int, tuple[int, int]],
) -> Iterator[str]:
    """Each session and reader for which the two ways give different frames."""
    tree = dataset.file_path if dataset is not None else None
    old_values = {change["session_id"]: change for change in plan_return(conversion, tree, chosen).changes}
    for session in chosen:
        times = ranges[session.session_id]
        new = _row(session, session.values(), times, None, tree)
        old = _row(
            session, old_values.get(session.session_id, session.values()), times, conversion.legacy_path, None
        )
        for reader in Reader:
            before, after = (_read(row, reader, job) for row in (old, new))
            if not _alike(before, after):
                yield f"session {session.session_name} ({reader.value}): {_words(before)} before, {_words(after)} now"
        job.heartbeat.advance(1, 0)


def _row(
    session: Session,
    values: Mapping[str, Any],
    times: tuple[int, int],
    project_path: str | None,
    tree: str | None,
) -> SessionRow:
    return SessionRow(
        session_id=session.session_id,
        session_name=session.session_name,
        project_path=project_path,
        parent_session_data_path=values["parent_session_data_path"],
        data_start_offset=values["data_start_offset"],
        data_end_offset=values["data_end_offset"],
        start_ns=times[0],
        stop_ns=times[1],
        dataset_id=values["dataset_id"],
        raw_session_name=values["raw_session_name"],
        dataset_file_path=tree if values["dataset_id"] is not None else None,
    )


def _read(row: SessionRow, reader: Reader, job: Job) -> "pd.DataFrame | None":
    """The frame, or None where Label cannot read the session either."""
    try:
        return read(row, reader, job.tools.settings.data_dir)
    except SessionUnreadableError:
        return None


def _alike(before: "pd.DataFrame | None", after: "pd.DataFrame | None") -> bool:
    if before is None or after is None:
        return before is after
    return before.equals(after)


def _words(frame: "pd.DataFrame | None") -> str:
    return "unreadable" if frame is None else f"{len(frame)} rows"
