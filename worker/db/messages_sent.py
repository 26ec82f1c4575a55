"""Which jobs have a message at the broker, and which need one, as the ledger says. Knows no broker."""

import json
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row

from worker.db.engine import sql
from worker.messages import JobRef, Message, Verb

_LOST_AFTER_S = 30.0
"""How long a message may be on its way before it counts as lost."""

_SELECT = """
    select j.run_id, j.subject, j.subject_id, j.subject_name, j.bytes_total, r.verb
    from migration_jobs j join migration_runs r using (run_id)"""
_LARGEST_FIRST = "order by j.bytes_total desc nulls last, j.subject_id"


def note_sent(conn: Connection, refs: Sequence[JobRef], epoch: str) -> None:
    """The messages of these jobs are with the broker, in the life of it that `epoch` names."""
    conn.execute(
        sql("""
            update migration_jobs j set sent_at = clock_timestamp(), sent_epoch = :epoch
            from jsonb_to_recordset(cast(:refs as jsonb)) as sent(run_id uuid, subject text, subject_id integer)
            where j.run_id = sent.run_id and j.subject = sent.subject and j.subject_id = sent.subject_id and j.state = 'queued'"""),
        {
            "epoch": epoch,
            "refs": json.dumps(
                [
                    {"run_id": str(ref.run_id), "subject": ref.subject, "subject_id": ref.subject_id}
                    for ref in refs
                ]
            ),
        },
    )


def never_sent(conn: Connection, limit: int) -> list[Message]:
    """Messages for waiting jobs that have none, largest first; the jobs are locked until the transaction
    ends.

    They were handed back, or their time has come, or the producer died before it had sent their messages.
    Each open run's are found in the order of an index, no more than are wanted.
    """
    due = """
        j.state = 'queued' and j.sent_at is null and coalesce(j.not_before <= clock_timestamp(), true)
        and (j.attempt > 0 or j.waits_for is not null or j.queued_at < clock_timestamp() - :patience)"""
    rows = conn.execute(
        sql(f"""
            with open as materialized (
                select run_id, verb from migration_runs where state in ('planned', 'running')
            ), due as materialized (
                select open.verb, first.* from open cross join lateral (
                    select j.run_id, j.subject, j.subject_id from migration_jobs j
                    where j.run_id = open.run_id and {due} {_LARGEST_FIRST} limit :limit) as first
            )
            select j.run_id, j.subject, j.subject_id, j.subject_name, j.bytes_total, due.verb
            from due join migration_jobs j using (run_id, subject, subject_id)
            where {due} {_LARGEST_FIRST} limit :limit for update of j skip locked"""),  # noqa: S608 - constants
        {"limit": limit, "patience": timedelta(seconds=_LOST_AFTER_S)},
    )
    return [_message(row) for row in rows]


def unsent(conn: Connection, run_id: uuid.UUID, limit: int) -> list[Message]:
    """Messages for waiting jobs of this run that have none, as `never_sent`, but without patience: no
    producer is sending them, because workers opened their wave, or the run itself, a gate.
    """
    rows = conn.execute(
        sql(f"""{_SELECT}
            where j.run_id = :run_id and j.state = 'queued' and j.sent_at is null and r.state in ('planned', 'running')
              and coalesce(j.not_before <= clock_timestamp(), true)
            {_LARGEST_FIRST} limit :limit for update of j skip locked"""),
        {"run_id": run_id, "limit": limit},
    )
    return [_message(row) for row in rows]


def lost(conn: Connection, epoch: str, *, queue_is_empty: bool, limit: int) -> list[Message]:
    """Messages for waiting jobs whose own is lost, as `never_sent`. Reads every waiting job: ask it for a
    reason.

    The message went to an earlier life of the broker. Or the queue is empty, and the job still waits: then it
    was lost on its way, or a worker has just taken it out; half a minute later it is the former, and one too
    many is harmless.
    """
    rows = conn.execute(
        sql(f"""{_SELECT}
            where j.state = 'queued' and r.state in ('planned', 'running')
              and coalesce(j.not_before <= clock_timestamp(), true)
              and j.sent_at is not null and (j.sent_epoch is distinct from :epoch
                                             or :queue_is_empty and j.sent_at < clock_timestamp() - :patience)
            {_LARGEST_FIRST} limit :limit for update of j skip locked"""),
        {
            "limit": limit,
            "epoch": epoch,
            "queue_is_empty": queue_is_empty,
            "patience": timedelta(seconds=_LOST_AFTER_S),
        },
    )
    return [_message(row) for row in rows]


def waiting(conn: Connection, run_id: uuid.UUID) -> list[Message]:
    """A message for each job of a run that waits for a worker, in the order of sending."""
    rows = conn.execute(
        sql(f"{_SELECT} where run_id = :run_id and j.state = 'queued' {_LARGEST_FIRST}"), {"run_id": run_id}
    )
    return [_message(row) for row in rows]


def _message(row: Row[Any]) -> Message:
    return Message(
        ref=JobRef.from_row(row),
        verb=Verb(row.verb),
        subject_name=row.subject_name,
        size_bytes=row.bytes_total,
    )
