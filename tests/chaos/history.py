"""Everything that ever happened to a job, kept by a trigger of the tests' own beside the ledger, and read
back as values.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Engine, text

Job = tuple[uuid.UUID, str, int]
"""A job: its run, what it is about, and the number of that."""

ENDED = ("done", "failed", "skipped", "cancelled")

_TABLES = """
    create table chaos_history (
        number bigint generated always as identity, at timestamptz not null default clock_timestamp(), run_id uuid,
        subject text, subject_id integer, was text, state text, attempt integer, worker text, holder text, since timestamptz,
        crashed boolean, crashes integer, retries integer, fenced integer);
    create function chaos_remember() returns trigger language plpgsql as $$
    begin
        if tg_op = 'INSERT' then
            insert into chaos_history (run_id, subject, subject_id, was, state, attempt, crashed)
            values (new.run_id, new.subject, new.subject_id, '', new.state, new.attempt, false);
        elsif (old.state, old.attempt, old.crashes, old.retries, old.fenced)
              is distinct from (new.state, new.attempt, new.crashes, new.retries, new.fenced) then
            insert into chaos_history (run_id, subject, subject_id, was, state, attempt, worker, holder, since, crashed,
                                       crashes, retries, fenced)
            values (new.run_id, new.subject, new.subject_id, old.state, new.state, new.attempt, new.worker, old.worker,
                    old.started_at, new.crashes > old.crashes, new.crashes, new.retries, new.fenced);
        end if;
        return new;
    end $$;
    create trigger chaos_remember after insert or update on migration_jobs
        for each row execute function chaos_remember();"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostLease:
    """A lease that ran out: whose it was, since when, and when that was noticed."""

    job: Job
    holder: str
    since: datetime
    noticed: datetime


def remember_jobs(engine: Engine) -> None:
    """Begin to keep what happens to jobs."""
    with engine.begin() as conn:
        conn.execute(text(_TABLES))


def ends(conn: Connection) -> list[datetime]:
    """When jobs ended, in order."""
    rows = conn.execute(
        text("select at from chaos_history where state = any(:ended) and was <> state order by at"),
        {"ended": list(ENDED)},
    )
    return [row.at for row in rows]


def taken_on_s(conn: Connection, node: str, at: datetime) -> float | None:
    """After how many seconds the last of the jobs that this worker had in hand at a time was taken again, or
    ended; None when it had none.
    """
    seconds: float | None = conn.scalar(
        text("""
            select max(extract(epoch from n.at - :at))::float8
            from (select distinct on (run_id, subject, subject_id) * from chaos_history where at <= :at
                  order by run_id, subject, subject_id, number desc) h
            cross join lateral (select at from chaos_history later
                                where (later.run_id, later.subject, later.subject_id) = (h.run_id, h.subject, h.subject_id)
                                  and later.number > h.number
                                  and (later.attempt > h.attempt or later.state = any(:ended))
                                order by later.number limit 1) n
            where h.state = 'running' and h.worker = :node"""),
        {"at": at, "node": node, "ended": list(ENDED)},
    )
    return seconds


def lost_leases(conn: Connection) -> list[LostLease]:
    """Every lease that ran out, in order; also those of jobs that failed for it."""
    rows = conn.execute(
        text("""
            select run_id, subject, subject_id, holder, since, at from chaos_history h
            where crashed or was = 'running' and state = 'failed'
                  and exists (select from migration_jobs j where (j.run_id, j.subject, j.subject_id) = (h.run_id, h.subject, h.subject_id)
                              and j.error_class = 'WorkerCrashedError')
            order by number""")
    )
    return [
        LostLease(
            job=(row.run_id, row.subject, row.subject_id),
            holder=row.holder,
            since=row.since,
            noticed=row.at,
        )
        for row in rows
    ]


def ended_twice(conn: Connection) -> Sequence[Job]:
    """Jobs that got an outcome more than once without having been queued again by an operator."""
    rows = conn.execute(
        text("""
            select run_id, subject, subject_id from chaos_history where state = any(:ended) and was <> state
            group by run_id, subject, subject_id
            having count(*) > 1 + count(*) filter (where state = 'failed')
            order by 1, 2, 3"""),
        {"ended": list(ENDED)},
    )
    return [(row.run_id, row.subject, row.subject_id) for row in rows]
