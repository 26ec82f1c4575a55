"""Waves and their gates: no job of a later wave is taken before all gates before it have opened, whatever
dies, happens at once, or is asked for meanwhile.
"""

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, text

from producer.runs import control
from producer.runs.legacy_projects import enqueue
from producer.runs.migrated_projects import rollback
from producer.runs.waves import asked
from tests.estate import make_project, record_session
from tests.support.dying import done_until
from tests.support.ledger_rows import at_once, job_of, processes, take
from tests.support.runs import WORK, tools_of
from tests.support.sites import Site
from worker.db import ledger, messages_sent, waves
from worker.db.ledger import Run
from worker.db.waves import Wave
from worker.errors import DatabaseRefusedError, UsageError
from worker.jobs.reaper import reap
from worker.jobs.tools import Tools
from worker.jobs.waves import advance
from worker.messages import Gate, JobRef, RunState, Verb, WaveState


class Lab:
    """A lab of small projects and one run over them in waves; every job is done here, when it is told to."""

    def __init__(self, site: Site, tools: Tools, count: int, text_: str, gate: Gate | None = None) -> None:
        self.site, self.tools, self.engine = site, tools, site.engine
        self.folders: dict[int, Path] = {}
        with self.engine.begin() as conn:
            for number in range(count):
                project = make_project(conn, site.legacy_root, f"study {number}")
                record_session(conn, project, "day", rows=12 + number, seed=number)
                self.folders[project.project_id] = Path(str(project.path))
        opened = enqueue(site.settings, self.engine, dry_run=False, waves=asked(text_, gate))
        self.run_id = opened.run_id
        self.ids = {
            one.wave: [job.subject_id for job in opened.jobs if job.wave == one.wave] for one in opened.waves
        }

    @property
    def run(self) -> Run:
        with self.engine.connect() as conn:
            return ledger.find_run(conn, str(self.run_id))

    @property
    def waves(self) -> list[Wave]:
        with self.engine.connect() as conn:
            return waves.waves_of(conn, self.run_id)

    @property
    def states(self) -> list[WaveState]:
        return [one.state for one in self.waves]

    def jobs_of(self, wave: int) -> set[str]:
        """The states in which the jobs of a wave are."""
        return {job_of(self.engine, self.run_id, number)["state"] for number in self.ids[wave]}

    def work(self) -> int:
        """Do every job that waits in a run that goes on, as workers do; how many."""
        with self.engine.connect() as conn:
            going = conn.scalars(
                text("select run_id from migration_runs where state in ('planned', 'running')")
            )
            found = [one for run_id in going.all() for one in messages_sent.waiting(conn, run_id)]
        for one in found:
            WORK[one.verb, one.ref.subject](self.tools, one.ref, "worker")
        return len(found)

    def look(self) -> None:
        """A worker's parent looks, and what it found to be due is sent."""
        reap(self.site.settings, self.engine)

    def to_the_gate_of(self, wave: int) -> None:
        """Until all jobs of a wave have ended, and nothing has looked since."""
        self.work()
        for _ in range(wave - 1):
            self.look()
            self.work()
            self.look()
            self.work()

    def go_on(self) -> None:
        """Until nothing happens any more by itself."""
        while self.work() or self._decided():
            pass

    def _decided(self) -> bool:
        before = self.states, self.run.state
        self.look()
        return before != (self.states, self.run.state)

    def damage(self, project_id: int) -> Path:
        """Flip a bit of a project's recording in the store."""
        with self.engine.connect() as conn:
            tree = conn.scalar(
                text("""
                    select d.file_path from project_dataset_refs r join raw_datasets d using (dataset_id)
                    where r.project_id = :id"""),
                {"id": project_id},
            )
        path = Path(tree) / "day" / "accelerometer_data.csv"
        self.flip(path)
        return path

    @staticmethod
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.chmod(0o644)
        path.write_bytes(content)


@pytest.fixture
def lab(emptied_site: Site) -> Iterator[Callable[..., Lab]]:
    with tools_of(emptied_site) as tools:
        yield lambda count=5, waves="1,3,100%", gate=None: Lab(emptied_site, tools, count, waves, gate)


def test_each_wave_begins_when_the_one_before_it_was_verified(lab: Callable[..., Lab]):
    run = lab()
    assert (run.states, run.jobs_of(2), run.jobs_of(3)) == (
        ["open", "waiting", "waiting"],
        {"held"},
        {"held"},
    )

    run.work()
    run.look()
    assert run.states == ["verifying", "waiting", "waiting"]
    assert (run.jobs_of(1), run.jobs_of(2)) == ({"done"}, {"held"})
    assert control.progress_of(run.engine, run.run).gate.progress.jobs == 2, "its project and its dataset"

    run.work()
    assert run.states == ["verifying", "waiting", "waiting"], "workers decide nothing"
    run.look()
    assert run.states == ["passed", "open", "waiting"]
    assert (run.jobs_of(2), run.jobs_of(3)) == ({"queued"}, {"held"})
    assert run.waves[0].reason == "1 projects and 1 datasets verified"

    run.go_on()
    assert run.states == ["passed", "passed", "open"]
    assert run.run.state is RunState.FINISHED
    assert run.jobs_of(3) == {"done"}
    assert [one.gate_jobs for one in run.waves] == [2, 4, 0], "behind the last wave there is no gate"


def test_without_a_gate_waves_only_follow_each_other(lab: Callable[..., Lab]):
    run = lab(4, "1,50%,100%", Gate.NONE)

    run.work()
    run.look()
    assert run.states == ["passed", "open", "waiting"]

    run.go_on()
    assert run.run.state is RunState.FINISHED
    assert {one.gate_run_id for one in run.waves} == {None}


def test_a_difference_stops_the_run_until_it_is_mended_and_the_gate_has_looked_again(lab: Callable[..., Lab]):
    run = lab()
    run.to_the_gate_of(2)
    bad = run.ids[2][0]
    path = run.damage(bad)

    run.go_on()

    stopped = run.run
    assert (stopped.state, run.states) == (RunState.PAUSED, ["passed", "stopped", "waiting"])
    assert f"gate of wave 2 found: project {bad} study" in str(stopped.paused_because)
    assert run.jobs_of(3) == {"held"}
    assert run.waves[1].gate_failed == 2, "its sessions read otherwise, and its bytes are damaged"

    control.resume(run.site.settings, run.engine, stopped)
    run.go_on()
    assert (run.run.state, run.states) == (RunState.PAUSED, ["passed", "stopped", "waiting"])
    assert run.jobs_of(3) == {"held"}

    run.flip(path)
    control.resume(run.site.settings, run.engine, run.run)
    run.go_on()
    assert (run.run.state, run.states) == (RunState.FINISHED, ["passed", "passed", "open"])


def test_the_operator_may_let_a_run_go_on_all_the_same(lab: Callable[..., Lab]):
    run = lab()
    with pytest.raises(UsageError, match="is at no gate"):
        control.resume(run.site.settings, run.engine, run.run, skip_gate=True)
    run.to_the_gate_of(1)
    run.damage(run.ids[1][0])
    run.go_on()
    assert run.states == ["stopped", "waiting", "waiting"]

    sent = control.resume(run.site.settings, run.engine, run.run, skip_gate=True)

    assert (sent, run.states) == (2, ["waived", "open", "waiting"])
    run.go_on()
    assert (run.run.state, run.states) == (RunState.FINISHED, ["waived", "passed", "open"])


def test_a_gate_that_is_skipped_while_it_looks_is_cancelled(lab: Callable[..., Lab]):
    run = lab()
    run.to_the_gate_of(1)
    run.look()

    control.resume(run.site.settings, run.engine, run.run, skip_gate=True)

    gate = run.waves[0].gate_run_id
    with run.engine.connect() as conn:
        assert ledger.find_run(conn, str(gate)).state is RunState.CANCELLED
    assert run.states == ["waived", "open", "waiting"]


def test_a_wave_is_rolled_back_by_one_call_and_its_gate_then_stays_shut(lab: Callable[..., Lab]):
    run = lab()
    run.to_the_gate_of(2)
    run.damage(run.ids[2][1])
    run.go_on()
    settings, short = run.site.settings, str(run.run_id)[:8]

    opened = rollback(
        settings, run.engine, dry_run=False, project_ids=(), restore_files=False, of_run=short, wave=2
    )
    run.work()

    assert sorted(job.subject_id for job in opened.jobs) == sorted(run.ids[2])
    with run.engine.connect() as conn:
        assert waves.migrated_by(conn, run.run_id, None) == set(run.ids[1])
    control.resume(settings, run.engine, run.run)
    run.go_on()
    assert (run.run.state, run.states) == (RunState.PAUSED, ["passed", "stopped", "waiting"])
    assert "none of its 2 projects is migrated" in str(run.run.paused_because)

    for call, says in (
        ({"wave": 2}, "say which, by --run"),
        ({"of_run": short, "wave": 4}, "its waves are 1, 2, 3"),
        ({"of_run": str(opened.run_id)}, "that is a rollback"),
        ({"of_run": short, "project_ids": run.ids[2]}, "not migrated by run"),
        ({"of_run": "no such"}, "No run begins with"),
    ):
        with pytest.raises(UsageError, match=says):
            rollback(
                settings, run.engine, **{"dry_run": False, "project_ids": (), "restore_files": False} | call
            )


def test_a_verification_that_cannot_run_is_a_failed_gate(lab: Callable[..., Lab]):
    run = lab()
    run.to_the_gate_of(1)
    (only,) = run.ids[1]
    shutil.rmtree(run.folders[only])

    run.go_on()

    assert (run.run.state, run.states[0]) == (RunState.PAUSED, WaveState.STOPPED)
    assert f"project {only} study" in str(run.run.paused_because)
    assert "Legacy path no longer exists" in str(run.run.paused_because)


def test_a_wave_of_which_nothing_was_migrated_does_not_pass(lab: Callable[..., Lab]):
    run = lab()
    (only,) = run.ids[1]
    shutil.rmtree(run.folders[only])

    run.go_on()

    assert (run.run.state, run.states[0]) == (RunState.PAUSED, WaveState.STOPPED)
    assert "none of its 1 projects is migrated" in str(run.run.paused_because)
    assert run.waves[0].gate_run_id is None


def test_a_project_that_is_tried_again_is_verified_by_the_next_gate(lab: Callable[..., Lab]):
    run = lab(6, "2,4,100%")
    late = run.ids[1][0]
    hidden = run.folders[late].with_name("hidden")
    run.folders[late].rename(hidden)
    run.to_the_gate_of(1)
    run.look()
    run.work()
    run.look()
    assert run.states == ["passed", "open", "waiting"]

    hidden.rename(run.folders[late])
    assert control.retry(run.site.settings, run.engine, run.run) == 1
    run.work()
    run.look()

    with run.engine.connect() as conn:
        verified = conn.scalars(
            text("select subject_id from migration_jobs where run_id = :id and subject = 'project'"),
            {"id": run.waves[1].gate_run_id},
        ).all()
    assert sorted(verified) == sorted([late, *run.ids[2]])


# What is asked of a run while its gate looks ----------------------------------------------------------------


def gate_of(run: Lab) -> Run:
    (gate,) = (one.gate_run_id for one in run.waves if one.state is WaveState.VERIFYING)
    with run.engine.connect() as conn:
        return ledger.find_run(conn, str(gate))


def test_a_gate_is_paused_resumed_throttled_and_cancelled_with_its_run(lab: Callable[..., Lab]):
    run = lab()
    run.to_the_gate_of(1)
    run.look()
    gate = gate_of(run)

    control.throttle(run.engine, run.run, 1 << 20)
    control.pause(run.engine, run.run)
    assert (gate_of(run).state, gate_of(run).limit_bytes_per_second) == (RunState.PAUSED, 1 << 20)
    assert run.work() == 0
    run.look()
    assert run.states[0] is WaveState.VERIFYING

    assert control.resume(run.site.settings, run.engine, run.run) == 2, "the gate's jobs"
    assert gate_of(run).state is RunState.RUNNING

    control.cancel(run.engine, run.run)
    with run.engine.connect() as conn:
        assert ledger.find_run(conn, str(gate.run_id)).state is RunState.CANCELLED
    assert {state for wave in (2, 3) for state in run.jobs_of(wave)} == {"cancelled"}
    run.go_on()
    assert run.run.state is RunState.CANCELLED


def test_a_gate_that_stands_still_or_is_cancelled_stops_its_run(lab: Callable[..., Lab]):
    run = lab()
    run.to_the_gate_of(1)
    run.look()

    control.pause(run.engine, gate_of(run))
    run.look()
    assert run.run.paused_because == "the gate of wave 1 stands still: paused by the operator"

    control.resume(run.site.settings, run.engine, run.run)
    control.cancel(run.engine, gate_of(run))
    run.look()
    assert (run.run.state, run.states[0]) == (RunState.PAUSED, WaveState.STOPPED)
    assert "cancelled by the operator" in str(run.run.paused_because)
    assert run.jobs_of(2) == {"held"}


def test_a_paused_run_takes_no_step_and_one_that_is_resumed_takes_it(lab: Callable[..., Lab]):
    run = lab()
    run.to_the_gate_of(1)

    control.pause(run.engine, run.run)
    run.go_on()
    assert run.states == ["open", "waiting", "waiting"]

    control.resume(run.site.settings, run.engine, run.run)
    run.look()
    assert run.states == ["verifying", "waiting", "waiting"]


# No path to a held job, no half step ------------------------------------------------------------------------


def test_no_path_leads_to_a_job_of_a_later_wave(lab: Callable[..., Lab]):
    run = lab()
    held = run.ids[2][0]

    control.pause(run.engine, run.run)
    assert control.resume(run.site.settings, run.engine, run.run) == 1, "the first wave's job"
    with pytest.raises(UsageError, match="No failed job"):
        control.retry(run.site.settings, run.engine, run.run, project_ids=[held])
    with run.engine.begin() as conn:
        ledger.finish_run_if_ended(conn, run.run_id)
        found = [*messages_sent.waiting(conn, run.run_id), *messages_sent.unsent(conn, run.run_id, 9)]
        found += messages_sent.lost(conn, "another life", queue_is_empty=True, limit=9)

    assert {one.ref.subject_id for one in found} == set(run.ids[1])
    assert take(run.engine, run.run_id, held) is None
    WORK[Verb.MIGRATE, found[0].ref.subject](run.tools, JobRef(run_id=run.run_id, subject_id=held), "worker")
    assert run.jobs_of(2) == {"held"}
    with (
        pytest.raises(DatabaseRefusedError, match='may not go from "held" to "running"'),
        run.engine.begin() as conn,
    ):
        conn.execute(
            text("""
                update migration_jobs set state = 'running', taken_as = '2:' || attempt, lease_until = clock_timestamp()
                where subject_id = :id"""),
            {"id": held},
        )


def test_a_worker_that_knows_no_waves_cannot_finish_the_run(lab: Callable[..., Lab]):
    """As earlier releases ask: is any job queued or running?"""
    run = lab()
    run.work()

    with run.engine.begin() as conn:
        conn.execute(
            text("""
                update migration_runs r set state = 'finished', finished_at = clock_timestamp()
                where r.state in ('planned', 'running', 'paused')
                  and not exists (select from migration_jobs j where j.run_id = r.run_id and j.state in ('queued', 'running'))""")
        )

    assert run.run.state is RunState.RUNNING
    run.go_on()
    assert run.run.state is RunState.FINISHED


def _snapshot(engine: Engine) -> dict[str, Any]:
    with engine.connect() as conn:
        return {
            table: sorted(map(str, conn.execute(text(f"select to_jsonb(t) from {table} t")).all()))
            for table in ("migration_runs", "migration_jobs", "migration_waves")
        }


def test_a_step_may_be_killed_at_every_statement(lab: Callable[..., Lab]):
    """A gate is opened, lets a wave pass, another one stops the run, and the operator goes on without it:
    until a step was made nothing has changed, and afterwards it is whole.
    """
    run = lab()

    def resume(engine: Engine, *, skip_gate: bool = False) -> None:
        control.resume(run.site.settings, engine, run.run, skip_gate=skip_gate)

    def killed_everywhere(
        step: Callable[[Engine], object], expected: list[str], again: Callable[[Engine], object] | None = None
    ) -> int:
        before, at = _snapshot(run.engine), 1
        while not done_until(run.site, step, at):
            if run.states == expected:
                # What died after its commit was sending: that is begun again.
                (again or step)(run.engine)
                break
            assert _snapshot(run.engine) == before
            at += 1
        assert run.states == expected
        return at

    def verified() -> None:
        run.work()
        with run.engine.begin() as conn:
            ledger.finish_ended_runs(conn)

    run.work()
    deaths = killed_everywhere(advance, ["verifying", "waiting", "waiting"])
    verified()
    deaths += killed_everywhere(advance, ["passed", "open", "waiting"])
    run.work()
    run.damage(run.ids[2][0])
    run.look()
    verified()
    deaths += killed_everywhere(advance, ["passed", "stopped", "waiting"])
    assert run.jobs_of(3) == {"held"}
    deaths += killed_everywhere(partial(resume, skip_gate=True), ["passed", "waived", "open"], resume)

    assert deaths > 30
    run.go_on()
    assert run.run.state is RunState.FINISHED
    assert run.jobs_of(3) == {"done"}


def test_workers_that_look_at_once_make_each_step_once(lab: Callable[..., Lab]):
    run = lab()
    run.work()
    with processes(run.engine, 4) as engines:
        opened = [one for each in at_once(engines, advance) for one in each]
        assert len(opened) == 1
        assert run.work() == 2
        with run.engine.begin() as conn:
            ledger.finish_ended_runs(conn)
        passed: list[uuid.UUID] = [one for each in at_once(engines, advance) for one in each]

    assert passed == [run.run_id]
    assert run.states == ["passed", "open", "waiting"]
    with run.engine.connect() as conn:
        assert conn.scalar(text("select count(*) from migration_runs where verb = 'verify'")) == 1


# Any history ------------------------------------------------------------------------------------------------


class History:
    """What may happen to a run in waves, in any order."""

    def __init__(self, run: Lab, seed: int) -> None:
        self.run, self.chance = run, Random(seed)
        self.flipped: list[Path] = []
        self.hidden: dict[int, Path] = {}
        self.acts: list[Callable[[], object]] = [
            *[run.work, run.look] * 4,
            *[
                self.pause,
                self.resume,
                self.skip_gate,
                self.retry,
                self.damage,
                self.mend,
                self.hide,
                self.show,
            ],
        ]

    def pause(self) -> None:
        control.pause(self.run.engine, self.run.run)

    def resume(self) -> None:
        control.resume(self.run.site.settings, self.run.engine, self.run.run)

    def skip_gate(self) -> None:
        control.resume(self.run.site.settings, self.run.engine, self.run.run, skip_gate=True)

    def retry(self) -> None:
        control.retry(self.run.site.settings, self.run.engine, self.run.run)

    def damage(self) -> None:
        with self.run.engine.connect() as conn:
            migrated = sorted(waves.migrated_by(conn, self.run.run_id, None))
        if migrated:
            self.flipped.append(self.run.damage(self.chance.choice(migrated)))

    def mend(self) -> None:
        if self.flipped:
            self.run.flip(self.flipped.pop())

    def hide(self) -> None:
        number = self.chance.choice(sorted(self.run.folders))
        if number not in self.hidden:
            self.hidden[number] = self.run.folders[number].rename(
                self.run.folders[number].with_suffix(".away")
            )

    def show(self) -> None:
        for number, path in self.hidden.items():
            path.rename(self.run.folders[number])
        self.hidden.clear()

    def check(self) -> None:
        """Waves are in their order, and no job began before its wave did."""
        states = self.run.states
        behind = [state for state in states if state not in {WaveState.PASSED, WaveState.WAIVED}]
        assert behind[1:] == [WaveState.WAITING] * (len(behind) - 1), states
        with self.run.engine.connect() as conn:
            early = conn.execute(
                text("""
                    select j.* from migration_jobs j join migration_waves w using (run_id, wave)
                    where (w.state = 'waiting') <> (j.state = 'held') or j.started_at < w.opened_at""")
            ).all()
        assert early == []
        if self.run.run.state is RunState.FINISHED:
            assert WaveState.WAITING not in states


def _any_history(run: Lab, seed: int) -> None:
    history = History(run, seed)
    for _ in range(30):
        with suppress(UsageError):
            history.chance.choice(history.acts)()
        history.check()
    history.show()
    run.go_on()
    while not run.run.state.has_ended:
        at_gate = WaveState.STOPPED in run.states or WaveState.VERIFYING in run.states
        (history.skip_gate if at_gate else history.resume)()
        run.go_on()
        history.check()
    assert run.run.state is RunState.FINISHED


def test_waves_keep_their_order_in_any_history(lab: Callable[..., Lab]):
    _any_history(lab(6, "1,50%,100%"), 1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 102))
def test_waves_keep_their_order_in_a_hundred_histories(lab: Callable[..., Lab], seed: int):
    _any_history(lab(6, "1,50%,100%"), seed)
