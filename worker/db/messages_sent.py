"""Which jobs have a message at the broker, and which need one, as the ledger says. Knows no broker."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection

from worker.db.engine import sql
from worker.db.ledger import NewJob
from worker.messages import JobRef, Verb

_LOST_AFTER_S = 30.0
"""How long a message may be on its way before it counts as lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A job that needs a message."""

    ref: JobRef
    verb: Verb
    project_name: str | None
    size_bytes: int | None


def note_sent(conn: Connection, refs: Sequence[JobRef], epoch: str) -> None:
    """The messages of these jobs are with the broker, in the life of it that `epoch` names."""
    conn.execute(
        sql("""
            update migration_jobs j set sent_at = clock_timestamp(), sent_epoch = :epoch
            from jsonb_to_recordset(cast(:refs as jsonb)) as sent(run_id uuid, project_id integer)
            where j.run_id = sent.run_id and j.project_id = sent.project_id and j.state = 'queued'"""),
        {
            "epoch": epoch,
            "refs": json.dumps([{"run_id": str(ref.run_id), "project_id": ref.project_id} for ref in refs]),
        },
    )


def never_sent(conn: Connection, limit: int) -> list[Waiting]:
    """Waiting jobs that have no message, largest first, locked until the transaction ends: they were handed
    back, or their time has come, or the producer that opened the run died before it had sent them.
    """
    return _waiting(
        conn,
        """j.sent_at is null
           and (j.attempt > 0 or j.waits_for is not null or j.queued_at < clock_timestamp() - :patience)""",
        {"limit": limit},
    )


def lost(conn: Connection, epoch: str, *, queue_is_empty: bool, limit: int) -> list[Waiting]:
    """Waiting jobs whose message is lost, as `never_sent`. Looks at every waiting job: to be asked when there
    is a reason.

    The message went to an earlier life of the broker. Or the queue is empty, and the job still waits: then it
    was lost on its way, or a worker has just taken it out; half a minute later it is the former, and one too
    many is harmless.
    """
    return _waiting(
        conn,
        """j.sent_at is not null and (j.sent_epoch is distinct from :epoch
                                       or :queue_is_empty and j.sent_at < clock_timestamp() - :patience)""",
        {"limit": limit, "epoch": epoch, "queue_is_empty": queue_is_empty},
    )


def _waiting(conn: Connection, condition: str, values: dict[str, Any]) -> list[Waiting]:
    rows = conn.execute(
        sql(f"""
            select j.run_id, j.project_id, j.project_name, j.bytes_total as size_bytes, r.verb
            from migration_jobs j join migration_runs r using (run_id)
            where j.state = 'queued' and r.state in ('planned', 'running')
              and coalesce(j.not_before <= clock_timestamp(), true) and {condition}
            order by j.bytes_total desc nulls last, j.project_id limit :limit for update of j skip locked"""),  # noqa: S608 - constants
        values | {"patience": timedelta(seconds=_LOST_AFTER_S)},
    )
    return [
        Waiting(
            ref=JobRef(run_id=row.run_id, project_id=row.project_id),
            verb=Verb(row.verb),
            project_name=row.project_name,
            size_bytes=row.size_bytes,
        )
        for row in rows
    ]


def waiting(conn: Connection, run_id: uuid.UUID) -> list[NewJob]:
    """The jobs of a run that wait for a worker, in the order of sending."""
    rows = conn.execute(
        sql("""
            select project_id, project_name, path, sessions_total as sessions, files_total as files,
                   bytes_total as size_bytes
            from migration_jobs where run_id = :run_id and state = 'queued'
            order by bytes_total desc nulls last, project_id"""),
        {"run_id": run_id},
    )
    return [NewJob(**row._mapping) for row in rows]  # noqa: SLF001 - the public name of a row as a mapping
