"""The state machines of runs, jobs and waves: the database takes the allowed arrows and no other."""

import itertools
import uuid

import pytest
from sqlalchemy import Connection, Engine, text

from worker.errors import DatabaseRefusedError
from worker.messages import JobState, RunState, WaveState

# A second statement of the arrows, on purpose: whoever changes them in the SQL file says so here as well.
ARROWS = {
    "run": """
        new -> planned
        planned -> running paused cancelled finished
        running -> paused finished cancelled
        paused -> running finished cancelled
        finished -> running
    """,
    "job": """
        new -> queued skipped held
        held -> queued cancelled
        queued -> running cancelled
        running -> queued done skipped failed cancelled
        failed -> queued
    """,
    "wave": """
        new -> waiting open
        waiting -> open
        open -> verifying passed stopped
        verifying -> passed stopped waived
        stopped -> verifying waived
    """,
}
STATES = {
    machine: [state.value for state in states]
    for machine, states in {"run": RunState, "job": JobState, "wave": WaveState}.items()
}
BEGINNING = {"run": "planned", "job": "queued", "wave": "open"}
ENDED = {JobState.DONE, JobState.SKIPPED, JobState.FAILED, JobState.CANCELLED}
RUN_ID = uuid.UUID(int=7)


def allowed(machine: str) -> set[tuple[str, str]]:
    sources = (line.split(" -> ") for line in ARROWS[machine].strip().splitlines())
    return {(source.strip(), target) for source, targets in sources for target in targets.split()}


def put(connection: Connection, machine: str, state: str) -> None:
    """Insert a run, or a job or wave with its run, in some state."""
    run_state = state if machine == "run" else "planned"
    connection.execute(
        text(
            "insert into migration_runs (run_id, verb, dry_run, state) values (:run, 'migrate', false, :state)"
        ),
        {"run": RUN_ID, "state": run_state},
    )
    if machine == "job":
        connection.execute(
            text("""
                insert into migration_jobs (run_id, subject_id, state, taken_as, lease_until, outcome)
                values (:run, 1, :state, '2:0', case when :running then now() end, case when :ended then '{}'::jsonb end)
            """),
            {"run": RUN_ID, "state": state, "running": state == "running", "ended": state in ENDED},
        )
    if machine == "wave":
        connection.execute(
            text("""
                insert into migration_waves (run_id, wave, asked_for, gate, projects, bytes_total, state)
                values (:run, 1, '1', 'verify', 1, 0, :state)
            """),
            {"run": RUN_ID, "state": state},
        )


def move(connection: Connection, machine: str, state: str) -> None:
    """Give the run, job or wave another state, with the columns that belong to it."""
    if machine != "job":
        connection.execute(text(f"update migration_{machine}s set state = :state"), {"state": state})
        return
    connection.execute(
        text("""
            update migration_jobs set state = :state, lease_until = case when :running then now() end,
                                      outcome = case when :ended then '{}'::jsonb end
        """),
        {"state": state, "running": state == "running", "ended": state in ENDED},
    )


def take(connection: Connection, machine: str, source: str, target: str) -> None:
    """Take one arrow; the row is put at its beginning behind the trigger's back."""
    if source == "new":
        put(connection, machine, target)
        return
    connection.execute(text("set local session_replication_role = replica"))
    put(connection, machine, source)
    connection.execute(text("set local session_replication_role = origin"))
    move(connection, machine, target)


def refusal(engine: Engine, machine: str, source: str, target: str) -> str | None:
    """What the trigger says against an arrow; None if it is accepted. Leaves no row."""
    try:
        with engine.connect() as connection:
            take(connection, machine, source, target)
    except DatabaseRefusedError as error:
        return f"{error.constraint}: {error.__cause__.diag.message_primary}"
    return None


def test_every_arrow_is_accepted_if_allowed_and_refused_otherwise(database: Engine) -> None:
    """All arrows in one database: making one for each would take longer than the test."""
    for machine, states in STATES.items():
        for source, target in itertools.product(["new", *states], states):
            if source == target:
                continue

            said = refusal(database, machine, source, target)

            origin = "" if source == "new" else source
            assert said == (
                None
                if (source, target) in allowed(machine)
                else f'migration_state_arrow: a {machine} may not go from "{origin}" to "{target}"'
            )


def test_the_table_of_arrows_is_what_is_enforced(database: Engine) -> None:
    with database.connect() as connection:
        found = connection.execute(
            text(
                "select machine, case from_state when '' then 'new' else from_state end, to_state from migration_state_arrows"
            )
        ).all()

    assert {tuple(row) for row in found} == {
        (machine, *arrow) for machine in ARROWS for arrow in allowed(machine)
    }


@pytest.mark.parametrize("machine", ["run", "job", "wave"])
def test_staying_in_a_state_is_no_arrow(database: Engine, machine: str) -> None:
    with database.begin() as connection:
        put(connection, machine, BEGINNING[machine])

        move(connection, machine, BEGINNING[machine])


@pytest.mark.parametrize(
    ("state", "columns", "constraint"),
    [
        ("queued", "lease_until = now()", "migration_jobs_lease"),
        ("running", "lease_until = null", "migration_jobs_lease"),
        ("queued", "outcome = '{}'", "migration_jobs_outcome"),
        ("running", "outcome = '{}', lease_until = now()", "migration_jobs_outcome"),
    ],
)
def test_a_job_holds_a_lease_while_it_runs_and_an_outcome_once_it_has_ended(
    database: Engine, state: str, columns: str, constraint: str
) -> None:
    with database.begin() as connection:
        put(connection, "job", "queued")

    with pytest.raises(DatabaseRefusedError, match=constraint), database.begin() as connection:
        connection.execute(text(f"update migration_jobs set state = '{state}', {columns}"))
