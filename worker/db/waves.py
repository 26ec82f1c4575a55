"""The waves of a run and the gates between them, in the ledger. Opens no transaction; decides nothing."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import Row

from worker.db import verifications
from worker.db.engine import sql
from worker.db.texts import as_json, storable
from worker.messages import Gate, GateOf, RunOptions, RunState, Verb, WaveState

_SHOWN = 3
_LONGEST = 300
"""A reason stands in one line of a status: so many are named, with so many characters of each error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWave:
    """A wave as the producer plans it: how it was asked for, and how many projects and bytes it adds."""

    wave: int
    asked_for: str
    gate: Gate
    projects: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """A wave as it stands. Times are UTC. `gated_at`: when its gate last began to look, `decided_at`: when
    that had judged, or the operator let the run go on. Of the gate's jobs `gate_ended` have ended.
    """

    run_id: uuid.UUID
    wave: int
    asked_for: str
    gate: Gate
    projects: int
    bytes_total: int
    state: WaveState
    reason: str | None
    gate_run_id: uuid.UUID | None
    opened_at: datetime | None
    gated_at: datetime | None
    decided_at: datetime | None
    gate_jobs: int
    gate_ended: int
    gate_failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A wave with others behind it that has come to an end, or whose gate has; `gate_paused_because` is of a
    gate that stands still.
    """

    run_id: uuid.UUID
    wave: int
    state: WaveState
    gate: Gate
    gate_run_id: uuid.UUID | None
    gate_state: RunState | None
    gate_paused_because: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a gate found when all its jobs had ended: how many projects and datasets are as they were, how
    much is not or could not be verified, and a text for each of the first few of these.
    """

    projects: int
    datasets: int
    wrong: int
    examples: tuple[str, ...]


def add_waves(conn: Connection, run_id: uuid.UUID, waves: Sequence[NewWave], *, all_open: bool) -> None:
    """Write the waves of a new run: the first one open, the others waiting, or in a dry run all open."""
    rows = [
        {
            "wave": one.wave,
            "asked_for": one.asked_for,
            "gate": one.gate,
            "projects": one.projects,
            "bytes_total": one.size_bytes,
            "state": WaveState.OPEN if all_open or one.wave == 1 else WaveState.WAITING,
        }
        for one in waves
    ]
    conn.execute(
        sql("""
            insert into migration_waves (run_id, wave, asked_for, gate, projects, bytes_total, state, opened_at)
            select :run_id, w.wave, w.asked_for, w.gate, w.projects, w.bytes_total, w.state,
                   case w.state when 'open' then clock_timestamp() end
            from jsonb_to_recordset(cast(:rows as jsonb)) as w(
                wave integer, asked_for text, gate text, projects integer, bytes_total bigint, state text)"""),
        {"run_id": run_id, "rows": as_json(rows)},
    )


def waves_of(conn: Connection, run_id: uuid.UUID) -> list[Wave]:
    """A run's waves in their order; none of a run that has none."""
    rows = conn.execute(
        sql("""
            select w.*, coalesce(g.jobs, 0)::integer as gate_jobs, coalesce(g.ended, 0)::integer as gate_ended,
                   coalesce(g.failed, 0)::integer as gate_failed
            from migration_waves w left join lateral (
                select sum(c.jobs) as jobs, sum(c.jobs) filter (where c.state not in ('queued', 'running')) as ended,
                       sum(c.jobs) filter (where c.state = 'failed') as failed
                from migration_job_counts c where c.run_id = w.gate_run_id) as g on true
            where w.run_id = :run_id order by w.wave"""),
        {"run_id": run_id},
    )
    return [
        Wave(**{**row, "gate": Gate(row["gate"]), "state": WaveState(row["state"])})
        for row in rows.mappings()
    ]


def ends_of(conn: Connection, run_id: uuid.UUID) -> dict[int, dict[str, int]]:
    """How many jobs of each wave are in which state. Reads every job of the run: for a report."""
    rows = conn.execute(
        sql("""
            select wave, state, count(*) as jobs from migration_jobs
            where run_id = :run_id and wave is not null group by wave, state order by wave, state"""),
        {"run_id": run_id},
    )
    found: dict[int, dict[str, int]] = {}
    for row in rows:
        found.setdefault(row.wave, {})[row.state] = row.jobs
    return found


def whose_gate(conn: Connection, gate_run_id: uuid.UUID) -> tuple[uuid.UUID, int] | None:
    """The run and the wave that a run verifies, if it is a gate."""
    row = conn.execute(
        sql("""
            select options #>> '{gate_of,run_id}' as run_id, (options #>> '{gate_of,wave}')::integer as wave
            from migration_runs where run_id = :run_id and options ? 'gate_of'"""),
        {"run_id": gate_run_id},
    ).one_or_none()
    return (uuid.UUID(row.run_id), row.wave) if row is not None else None


# Going on ---------------------------------------------------------------------------------------------------


def due(conn: Connection, run_id: uuid.UUID | None = None) -> list[Due]:
    """Every wave, or that of one run, behind which others wait, and on which something is to be decided: its
    jobs have ended, or its gate has ended or stands still. Not of runs that are paused. Asks few rows.
    """
    rows = conn.execute(
        sql("""
            with going as materialized (
                select w.* from migration_waves w join migration_runs r using (run_id)
                where r.state in ('planned', 'running') and w.run_id = coalesce(:run_id, w.run_id)
                  and w.state in ('open', 'verifying', 'stopped')
                  and exists (select from migration_waves later where later.run_id = w.run_id and later.state = 'waiting')
            )
            select w.run_id, w.wave, w.state, w.gate, w.gate_run_id, g.state as gate_state,
                   g.paused_because as gate_paused_because
            from going w left join migration_runs g on g.run_id = w.gate_run_id
            where case w.state
                  when 'verifying' then g.state in ('finished', 'cancelled', 'paused')
                  else not exists (select from migration_jobs j where j.run_id = w.run_id and j.state = 'queued'
                                   order by j.queued_at offset 0)
                       and not exists (select from migration_jobs j where j.run_id = w.run_id and j.state = 'running' offset 0)
                  end
            order by w.run_id, w.wave"""),
        {"run_id": run_id},
    )
    return [
        Due(
            run_id=row.run_id,
            wave=row.wave,
            state=WaveState(row.state),
            gate=Gate(row.gate),
            gate_run_id=row.gate_run_id,
            gate_state=None if row.gate_state is None else RunState(row.gate_state),
            gate_paused_because=row.gate_paused_because,
        )
        for row in rows
    ]


def lock_run(conn: Connection, run_id: uuid.UUID, *, waits: bool = False) -> bool:
    """Lock the run's row until the transaction ends, as every change of its waves does first; False if
    another transaction has it, unless this one waits.
    """
    found = conn.execute(
        sql(
            f"select from migration_runs where run_id = :run_id for no key update{'' if waits else ' skip locked'}"
        ),
        {"run_id": run_id},
    )
    return found.one_or_none() is not None


_MIGRATED = """
    select j.subject_id, j.subject_name, j.sessions_total, j.files_total, j.bytes_total, c.legacy_path, c.dataset_id
    from migration_jobs j
    join project_conversions c on c.project_id = j.subject_id and c.run_id = j.run_id and c.rolled_back_at is null
    join migration_waves w on w.run_id = j.run_id and w.wave = j.wave
    where j.run_id = :run_id and j.subject = 'project' and j.state = 'done'
      and (j.wave = :wave or j.wave < :wave and j.finished_at > w.gated_at)"""
"""What a gate verifies: what its wave migrated, and of earlier ones the projects that were tried again and
ended after their own gate had begun to look.
"""


def open_gate(conn: Connection, run_id: uuid.UUID, wave: int) -> uuid.UUID | None:
    """Write the run that verifies a wave: a job for each project that the wave migrated, and one for each of
    their datasets; None, and nothing is written, if no project is migrated any more. It may read as fast as
    the run itself.
    """
    gate_run_id = uuid.uuid4()
    values = {"run_id": run_id, "wave": wave, "gate": gate_run_id}
    stored = conn.scalars(sql(f"select distinct dataset_id from ({_MIGRATED}) as migrated"), values).all()  # noqa: S608 - a constant
    if not stored:
        return None
    options = RunOptions(sessions=True, store=True, gate_of=GateOf(run_id=run_id, wave=wave))
    selection = {
        "options": options.to_json(),
        "left_out": [],
        "coverage": verifications.opened_on(conn, stored),
    }
    conn.execute(
        sql("""
            insert into migration_runs (run_id, verb, dry_run, selection, limit_bytes_per_second)
            select :gate, :verb, false, cast(:selection as jsonb), limit_bytes_per_second
            from migration_runs where run_id = :run_id"""),
        values | {"verb": Verb.VERIFY, "selection": as_json(selection)},
    )
    conn.execute(
        sql(f"""
            with migrated as materialized ({_MIGRATED})
            insert into migration_jobs (run_id, subject, subject_id, subject_name, path, sessions_total, files_total, bytes_total)
            select :gate, 'project', subject_id, subject_name, legacy_path, sessions_total, files_total, bytes_total
            from migrated
            union all
            select :gate, 'dataset', d.dataset_id, d.dataset_name, d.file_path, null, null, d.file_size_bytes
            from raw_datasets d where d.dataset_id in (select dataset_id from migrated)"""),  # noqa: S608 - a constant
        values,
    )
    return gate_run_id


def found_by(conn: Connection, gate_run_id: uuid.UUID) -> Found:
    """What a gate found. A project that is still migrated and was skipped could not be verified: that is as
    wrong as a difference. One that was rolled back since counts no more.
    """
    rows = conn.execute(
        sql("""
            with own as (
                select (options #>> '{gate_of,run_id}')::uuid as of_run from migration_runs where run_id = :gate
            ), judged as (
                select g.subject, g.subject_id, g.subject_name, coalesce(g.error, g.outcome->>'reason') as words,
                       case when g.state = 'done' then 'right'
                            when g.state = 'skipped' and not exists (
                                select from project_conversions c
                                where g.subject = 'project' and c.project_id = g.subject_id and c.run_id = own.of_run
                                  and c.rolled_back_at is null) then 'gone'
                            else 'wrong' end as verdict
                from migration_jobs g cross join own where g.run_id = :gate
            ), counted as (
                select count(*) filter (where verdict = 'right' and subject = 'project')::integer as projects,
                       count(*) filter (where verdict = 'right' and subject = 'dataset')::integer as datasets,
                       count(*) filter (where verdict = 'wrong')::integer as wrong
                from judged
            )
            select counted.*, first.* from counted left join lateral (
                select judged.subject, judged.subject_id, judged.subject_name, judged.words,
                       reader.project_id, reader.project_name
                from judged cross join own left join lateral (
                    select j.subject_id as project_id, j.subject_name as project_name
                    from project_conversions c join migration_jobs j
                        on j.run_id = c.run_id and j.subject = 'project' and j.subject_id = c.project_id
                    where judged.subject = 'dataset' and c.dataset_id = judged.subject_id and c.run_id = own.of_run
                      and c.rolled_back_at is null
                    order by j.subject_id limit 1) as reader on true
                where verdict = 'wrong' order by judged.subject desc, judged.subject_id limit :shown) as first on true
            order by first.subject desc, first.subject_id"""),
        {"gate": gate_run_id, "shown": _SHOWN},
    ).all()
    return Found(
        projects=rows[0].projects,
        datasets=rows[0].datasets,
        wrong=rows[0].wrong,
        examples=tuple(_example(row) for row in rows if row.subject is not None),
    )


def _example(row: Row[Any]) -> str:
    """A project and what is wrong with it; a dataset with the first project that reads it."""
    words = row.words or "no reason is known"
    short = words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"
    if row.project_id is not None:
        return f"project {row.project_id} {row.project_name}: dataset {row.subject_id}: {short}"
    return f"{row.subject} {row.subject_id} {row.subject_name or ''}: {short}"


def counts_of(conn: Connection, run_id: uuid.UUID, wave: int) -> tuple[int, int]:
    """How many projects a wave has, and how many of them it had nothing to do for."""
    row = conn.execute(
        sql("""
            select count(*)::integer as projects, count(*) filter (where state = 'skipped')::integer as skipped
            from migration_jobs where run_id = :run_id and wave = :wave"""),
        {"run_id": run_id, "wave": wave},
    ).one()
    return row.projects, row.skipped


def verify(conn: Connection, run_id: uuid.UUID, wave: int, gate_run_id: uuid.UUID) -> None:
    """The wave's gate looks."""
    conn.execute(
        sql("""
            update migration_waves set state = 'verifying', gate_run_id = :gate, gated_at = clock_timestamp(),
                                       reason = null, decided_at = null
            where run_id = :run_id and wave = :wave"""),
        {"run_id": run_id, "wave": wave, "gate": gate_run_id},
    )


def stop(conn: Connection, run_id: uuid.UUID, wave: int, reason: str) -> None:
    """The wave's gate stays shut. The caller pauses the run. Again, with another reason, is no change."""
    conn.execute(
        sql("""
            update migration_waves set state = 'stopped', reason = :reason, decided_at = clock_timestamp(),
                                       gated_at = coalesce(gated_at, clock_timestamp())
            where run_id = :run_id and wave = :wave"""),
        {"run_id": run_id, "wave": wave, "reason": storable(conn, reason)},
    )


def let_pass(conn: Connection, run_id: uuid.UUID, wave: int, state: WaveState, reason: str) -> int:
    """The wave is `PASSED`, or the operator `WAIVED` its gate: the next one begins; how many jobs wait for
    workers by that.
    """
    values = {"run_id": run_id, "wave": wave}
    conn.execute(
        sql("""
            update migration_waves set state = :state, reason = :reason, decided_at = clock_timestamp()
            where run_id = :run_id and wave = :wave"""),
        values | {"state": state, "reason": storable(conn, reason)},
    )
    conn.execute(
        sql("""
            update migration_waves set state = 'open', opened_at = clock_timestamp()
            where run_id = :run_id and wave = :wave + 1"""),
        values,
    )
    return conn.execute(
        sql("""
            update migration_jobs set state = 'queued', queued_at = clock_timestamp()
            where run_id = :run_id and wave = :wave + 1 and state = 'held'"""),
        values,
    ).rowcount


def at_gate(conn: Connection, run_id: uuid.UUID) -> int | None:
    """The wave at whose gate a run is, whether that looks or has stopped the run; None if at none."""
    wave: int | None = conn.execute(
        sql("select wave from migration_waves where run_id = :run_id and state in ('verifying', 'stopped')"),
        {"run_id": run_id},
    ).scalar_one_or_none()
    return wave


def migrated_by(conn: Connection, run_id: uuid.UUID, wave: int | None) -> set[int]:
    """The projects that a run, or a wave of it, migrated and that were not rolled back since."""
    rows = conn.execute(
        sql("""
            select c.project_id from project_conversions c
            join migration_jobs j on j.run_id = c.run_id and j.subject = 'project' and j.subject_id = c.project_id
            where c.run_id = :run_id and c.rolled_back_at is null and (cast(:wave as integer) is null or j.wave = :wave)"""),
        {"run_id": run_id, "wave": wave},
    )
    return {row.project_id for row in rows}
