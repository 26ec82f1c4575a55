"""One schedule: an estate, workers and a producer, what goes wrong meanwhile, and what must hold when it has
settled.
"""

import os
import tempfile
import time
import traceback
import uuid
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.pool import NullPool

from tests.chaos import history, invariants
from tests.chaos.commands import Operator
from tests.chaos.estate import make_estate
from tests.chaos.history import Job, LostLease
from tests.chaos.keeper import Keeper
from tests.chaos.nemesis import Injected, Nemesis
from tests.chaos.people import People
from tests.chaos.places import stored_manifests
from tests.chaos.plan import Ending, Fault, Kind, Plan
from tests.chaos.reasons import RETRIED, Ended, may_fail, may_skip
from tests.chaos.reports import wrong_reports
from tests.chaos.servers import Servers, plain
from tests.chaos.workers import Workers
from tests.support.folders import remove_all
from tests.support.forking import Forks
from worker.messages import QUEUE, Verb
from worker.settings import Settings

SETTLES_WITHIN_S = 180.0
_QUIET_WITHIN_S = 60.0
_STOPS_WITHIN_S = 120.0
_NEXT_RUN_IN_S = 0.3
_MOST_CRASHES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    """A fault, and what it cost: after how many seconds the next job of any worker ended (None: no job did
    any more), and the last of the jobs that the victim had in hand was taken again, or had ended (None: it
    had none).
    """

    kind: Kind
    next_end_s: float | None
    taken_on_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OfVerb:
    """The runs of a verb, their jobs, and how many of these were taken more than once, were skipped, and are
    failed in the end.
    """

    verb: str
    runs: int
    jobs: int
    again: int
    skipped: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a schedule went through, as the ledger and its history tell it. `unexplained` are leases that ran
    out although nothing had happened to their holder. `given_up` are jobs that are failed in the end for the
    crashes of their workers.
    """

    runs: int
    jobs: int
    fenced: int
    lost_leases: int
    unexplained: int
    given_up: int
    leftover_trees: int
    happened: tuple[Happened, ...]
    verbs: tuple[OfVerb, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a schedule ended. `findings` is what was wrong; its `folder` is kept if anything was. `too_late`
    are faults that were left out, because everything had settled.
    """

    plan: Plan
    findings: tuple[str, ...]
    folder: Path
    seconds: float
    too_late: int
    counts: Counts


def run_schedule(plan: Plan, servers: Servers, processes: Forks, *, keep: bool = False) -> Result:
    """Do what a plan says, with servers that are its own for this time. Its folder stays if it failed, or to
    `keep` it.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"label-chaos-{plan.seed}-"))
    begin = time.monotonic()
    with schedule_of(plan, servers, processes, folder) as schedule:
        findings = schedule.play()
        servers.heal()
        counts = schedule.counts()
        if findings or keep:
            servers.dump(schedule.engine.url, folder / "database.sql")
            (folder / "findings.txt").write_text("\n".join([*findings, "", *schedule.story(), ""]))
    seconds = time.monotonic() - begin
    if not findings and not keep:
        remove_all(folder)
    return Result(
        plan=plan,
        findings=tuple(findings),
        folder=folder,
        seconds=seconds,
        too_late=schedule.nemesis.too_late,
        counts=counts,
    )


@contextmanager
def schedule_of(plan: Plan, servers: Servers, processes: Forks, folder: Path) -> Iterator["Schedule"]:
    """The parts of a schedule, with a database of its own and an emptied Valkey; its workers end with the
    block.
    """
    servers.heal()
    servers.empty_redis()
    with servers.database() as url:
        schedule = Schedule(plan, servers, processes, url, folder)
        try:
            yield schedule
        finally:
            schedule.workers.end()


class Schedule:
    """The parts of a schedule, and its story."""

    def __init__(self, plan: Plan, servers: Servers, processes: Forks, url: URL, folder: Path) -> None:
        self._plan = plan
        self._servers = servers
        self.engine = create_engine(url, poolclass=NullPool, connect_args={"options": "-c timezone=UTC"})
        self._data_dir, legacy_root = folder / "label_data", folder / "legacy"
        for each in (self._data_dir, legacy_root):
            each.mkdir()
        self.estate = make_estate(self.engine, plan, legacy_root, self._data_dir)
        history.remember_jobs(self.engine)
        variables = {
            "DATABASE_URL": plain(url),
            "REDIS_URL": servers.redis_url,
            "DATA_DIR": str(self._data_dir),
            "LEGACY_ROOTS": f"{self._data_dir}:{legacy_root}",
            "LEASE_S": str(plan.lease_s),
            "HASH_THREADS": "2",
            "BWLIMIT": str(self._bytes_per_second()),
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "info",
        }
        others = {
            name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields
        }
        env = others | variables
        values: dict[str, Any] = {name.lower(): value for name, value in variables.items()}
        settings = Settings(_env_file=None, **values)
        self.workers = Workers(processes, env, folder, concurrency=plan.concurrency, hurried=not plan.patient)
        self._operator = Operator(
            processes, self.engine, settings, env, folder, restores=plan.restores, waves=plan.waves
        )
        self._people = People(self.engine, self.estate)
        self._keeper = Keeper(self.engine, self.estate, self._operator)
        self.nemesis = Nemesis(
            servers, self.workers, self._operator, self._people, self._keeper, lease_s=plan.lease_s
        )
        self._operator.tick = self.nemesis.tick
        self._next_run_is_due = False
        self._unhealed: list[str] = []

    def _bytes_per_second(self) -> int:
        """So slow that the migration takes as long as planned: each content is read twice the first time,
        later once.
        """
        sizes = {
            number: sum(entry.size_bytes for entry in tree.values())
            for number, tree in self.estate.trees.items()
        }
        by_content = {self._plan.projects[number - 1].content: size for number, size in sizes.items()}
        to_read = sum(sizes.values()) + sum(by_content.values())
        processes = self._plan.workers * self._plan.concurrency
        # What each process reads within its first second is let through at once; no project is to take longer
        # than all.
        return max(to_read // processes, *sizes.values()) // int(self._plan.run_s + 1.0)

    def play(self) -> list[str]:
        """Everything from the first worker to the last look; what was wrong."""
        try:
            for _ in range(self._plan.workers):
                self.workers.start()
            self.workers.await_ready()
            self._run(Verb.MIGRATE, self._plan.faults)
            self._finish_by_hand()
            findings = self._look(migrated=True)
            if self._plan.ending is Ending.ROLLED_BACK and not findings:
                self._run(Verb.ROLLBACK, self._plan.rollback_faults)
                self._finish_by_hand()
                findings = self._look(migrated=False)
            return findings or self._look_at_reports() or self._look_at_stopped()
        except _UnsettledError as error:
            return [str(error), *self._states()]
        except Exception:  # noqa: BLE001 - whatever it is, the schedule has failed, and says why
            return [traceback.format_exc(limit=-8)]

    # What happens -------------------------------------------------------------------------------------------

    def _run(self, verb: Verb, faults: tuple[Fault, ...]) -> None:
        """One run in the storm, until everything that it led to has settled."""
        dying = next((fault for fault in faults if fault.kind is Kind.KILL_PRODUCER), None)
        if dying is not None:
            self.nemesis.note(Kind.KILL_PRODUCER, self._operator.open_and_die(verb, dying.which))
        else:
            self._operator.open(verb)
        first = self._operator.runs[-1]
        if Kind.KILL_COLLECTOR in {fault.kind for fault in faults}:
            self._operator.start_collector(first)
        if verb is Verb.MIGRATE and self._plan.ending is Ending.CANCELLED:
            self.nemesis.later(self._plan.cancel_at_s, lambda: self._cancel(first))
        self.nemesis.storm(faults, lambda: not self._next_run_is_due and self._has_settled())
        self._settle()
        self._be_quiet()

    def _cancel(self, run_id: uuid.UUID) -> None:
        if self._operator.rein("cancel", run_id):
            self._next_run_is_due = True
            self.nemesis.later(_NEXT_RUN_IN_S, lambda: self._open_next(run_id))

    def _open_next(self, after: uuid.UUID) -> None:
        opened = self._operator.open_another()
        self._next_run_is_due = False
        self.nemesis.story.append(f"run {after} was cancelled, run {opened} opened")

    def _finish_by_hand(self) -> None:
        """What an operator does in the end: repair the store, try again what crashed its workers or met bad
        bytes, and open a run for what is left.
        """
        if Kind.LOSSY_PROMOTION in self._plan.kinds:
            self._follow_the_guide()
        if self._keeper.flipped:
            self._repair()
        with self.engine.connect() as conn:
            failed = set(
                conn.scalars(
                    text("select run_id from migration_jobs where error_class = any(:classes)"),
                    {"classes": sorted(RETRIED)},
                )
            )
        for run_id in sorted(failed & set(self._operator.runs)):
            self._operator.rein("retry", run_id)
        if failed:
            self._settle()
        wanted, sound = self._operator.verb is Verb.ROLLBACK, self.estate.directories.keys()
        legacy = invariants.legacy_projects(self.engine)
        left = sound - legacy if wanted else sound & legacy
        if left:
            self.nemesis.story.append(f"left over: projects {sorted(left)}")
            self._operator.open_another()
            self._settle()
        self._be_quiet()

    def _follow_the_guide(self) -> None:
        """What docs/failures.md says of a failover that lost commits ("Failover")."""
        for one in self._operator.rebuild():
            self.nemesis.story.append(f"rebuild: {one}")
            entry = one["reason"].rpartition(" ")[2]
            if one["kind"] == "row_without_tree" and self._operator.open_beside("gc", "--restore", entry):
                self._settle()
        with self.engine.connect() as conn:
            rows = conn.execute(
                text(
                    "select project_id, moved_from, moved_to, state from migration_reclaims where state <> 'undone'"
                )
            ).all()
        away = self.estate.legacy_root / invariants.MOVED_AWAY
        for path in sorted(away.iterdir()) if away.exists() else ():
            home = self.estate.directories[int(path.name.partition("-")[0])]
            if str(path) not in {row.moved_to for row in rows} and not home.exists():
                self.nemesis.story.append(f"moved back by hand: {path.name}")
                path.rename(home)
        for row in rows:
            if row.state == "reclaimed" and not Path(row.moved_to).exists() and Path(row.moved_from).exists():
                self.nemesis.story.append(f"noted as moved back: project {row.project_id}")
                if self._operator.open_beside("reclaim", "--undo", "--project-id", str(row.project_id)):
                    self._settle()

    def _repair(self) -> None:
        """One run that finds whatever is bad, and heals it."""
        bad = [one for one in self._keeper.unhealed if self._is_needed(one.digest)]
        what = self._keeper.repair(0)
        if what is None:
            return
        self._settle()
        self._operator.check_producers()
        with self.engine.connect() as conn:
            run_id = self._operator.runs[-1]
            outcomes = conn.scalars(
                text("select outcome from migration_jobs where run_id = :run_id"), {"run_id": run_id}
            ).all()
        healed = {
            damage["path"]
            for outcome in outcomes
            for damage in outcome.get("damaged", ())
            if damage["repaired"]
        }
        self.nemesis.story.append(f"the last repair, {what}, healed {sorted(healed)}")
        self._unhealed = [
            f"{one.path} was not named as repaired" for one in bad if str(one.path) not in healed
        ]

    def _is_needed(self, digest: str) -> bool:
        with self.engine.connect() as conn:
            needed = stored_manifests(conn, self.estate.store)
            known = set(conn.scalars(text("select dataset_hash from raw_datasets")))
        return digest in known or any(digest in files for files in needed.values())

    def _settle(self) -> None:
        """With everything healed and a worker at work, wait for the end of every run."""
        self._servers.heal()
        deadline = time.monotonic() + SETTLES_WITHIN_S
        while not self._has_settled():
            if time.monotonic() > deadline:
                raise _UnsettledError(f"not settled within {SETTLES_WITHIN_S:.0f} s")
            if skipped := self._operator.skip_gates():
                self.nemesis.story.append(f"{skipped} runs went on without their gate")
            # Celery gives up a worker whose first child is killed while it starts; then the next one comes.
            if not [one for one in self.workers.alive if not one.asleep]:
                self.workers.start()
            self.nemesis.tick()

    def _be_quiet(self) -> None:
        """Everybody gets every message once more, and whoever is late finds out; then nobody has anything in
        hand.
        """
        self._operator.check_producers()
        self._operator.send_again(1)
        deadline = time.monotonic() + _QUIET_WITHIN_S
        staging = self._data_dir / "dataset_store" / "staging"
        with self._servers.valkey.client() as client:
            while client.llen(QUEUE) or (staging.exists() and os.listdir(staging)) or not self._has_settled():
                if time.monotonic() > deadline:
                    break
                self.nemesis.tick()

    def _has_settled(self) -> bool:
        with self.engine.connect() as conn:
            open_rows = conn.scalar(
                text("""
                    select (select count(*) from migration_runs where state not in ('finished', 'cancelled'))
                         + (select count(*) from migration_jobs where outcome is null)""")
            )
        return not open_rows

    # What must hold -----------------------------------------------------------------------------------------

    def _look(self, *, migrated: bool) -> list[str]:
        sound = self.estate.directories.keys()
        legacy = invariants.legacy_projects(self.engine)
        wrong = sound & legacy if migrated else sound - legacy
        findings = [f"project {number} is not where it should be in the end" for number in sorted(wrong)]
        findings += self._unhealed + self.nemesis.not_read
        flipped = {one.digest for one in self._keeper.flipped}
        findings += invariants.wrong_rows_and_bytes(self.engine, self.estate, flipped)
        with self.engine.connect() as conn:
            findings += invariants.wrong_runs(conn)
            findings += invariants.wrong_waves(conn)
            findings += invariants.wrong_gates(conn, has_flipped=bool(self._keeper.flipped))
            findings += [
                f"run {run}, {what} {one}: ended twice" for run, what, one in history.ended_twice(conn)
            ]
            jobs = conn.execute(text(_ENDED_BADLY)).all()
            lost = history.lost_leases(conn)
        loses_commits = Kind.LOSSY_PROMOTION in self._plan.kinds
        for row in jobs:
            job = Ended(**row._mapping)
            why = f"run {job.run_id}, {job.verb} of {job.subject} {job.subject_id}: {job.state}: {job.error_class}: {job.reason}"
            flaw = self.estate.flaws.get(job.subject_id) if job.subject == "project" else None
            flips = self.nemesis.has_flipped_before(job.finished_at)
            if job.state == "skipped" and not may_skip(job, flaw, after_flip=flips, after_loss=loses_commits):
                findings.append(f"{why}, for no good reason")
            if job.state == "failed" and not may_fail(job, flaw):
                findings += self._unexplained(job.key, job.error_class, why, lost)
        return findings

    def _unexplained(self, key: Job, error_class: str, why: str, lost: list[LostLease]) -> list[str]:
        own = [one for one in lost if one.job == key]
        explained = sum(self.nemesis.explains(one) for one in own)
        if error_class == "WorkerCrashedError" and explained >= _MOST_CRASHES:
            return []
        return [f"{why}, though only {explained} of {len(own)} lost leases are explained"]

    def _look_at_reports(self) -> list[str]:
        """One of each run, and of the first of each verb two that are written at once."""
        findings: list[str] = []
        verbs = set()
        for run_id in self._operator.runs:
            with self.engine.connect() as conn:
                verb = conn.scalar(text("select verb from migration_runs where run_id = :id"), {"id": run_id})
            if verb is None and Kind.LOSSY_PROMOTION in self._plan.kinds:
                # The failover has lost it.
                continue
            reports = self._operator.collect(run_id, 1 if verb in verbs else 2)
            verbs.add(verb)
            with self.engine.connect() as conn:
                findings += wrong_reports(conn, self.estate, run_id, reports)
        return findings

    def _look_at_stopped(self) -> list[str]:
        """Whoever was told to stop has ended by now, or does so soon."""
        deadline = time.monotonic() + _STOPS_WITHIN_S
        while stopping := [one for one in self.workers.running if one.told_to_stop]:
            if time.monotonic() > deadline:
                return [f"{one.node} was told to stop and does not end" for one in stopping]
            self.nemesis.tick()
        return []

    def counts(self) -> Counts:
        """What became of the whole schedule."""
        with self.engine.connect() as conn:
            row = conn.execute(
                text("""
                    select (select count(*) from migration_runs) as runs, count(*) as jobs,
                           coalesce(sum(fenced), 0) as fenced,
                           count(*) filter (where error_class = 'WorkerCrashedError') as given_up
                    from migration_jobs""")
            ).one()
            lost = history.lost_leases(conn)
            happened = tuple(_costs(conn, self.nemesis.injected))
            verbs = tuple(OfVerb(**row._mapping) for row in conn.execute(text(_VERBS)))
        return Counts(
            runs=row.runs,
            jobs=row.jobs,
            fenced=row.fenced,
            lost_leases=len(lost),
            unexplained=sum(not self.nemesis.explains(one) for one in lost),
            given_up=row.given_up,
            leftover_trees=len(invariants.trees_of_nobody(self.engine, self.estate)),
            happened=happened,
            verbs=verbs,
        )

    def story(self) -> list[str]:
        """What was done, for whoever looks for the reason of a failure."""
        lines = [f"{one.at:%H:%M:%S.%f} {one.kind.value}: {one.what}" for one in self.nemesis.injected]
        return [f"{self._plan}", "", *lines, *self.nemesis.story]

    def _states(self) -> list[str]:
        """The state of everything, and the last lines of every worker's log."""
        self._servers.heal()
        with self.engine.connect() as conn:
            runs = conn.execute(text("select run_id, verb, state, paused_because from migration_runs"))
            lines = [f"run {row}" for row in runs]
            jobs = conn.execute(
                text("""
                    select run_id, subject, subject_id, state, attempt, crashes, retries, worker, lease_until, not_before, phase,
                           sent_at, sent_epoch, error from migration_jobs where outcome is null""")
            )
            lines += [f"job {row}" for row in jobs]
            lines += [f"now {conn.scalar(text('select clock_timestamp()'))}"]
        for worker in self.workers.all:
            lines.append(f"{worker.node}: {'runs' if worker in self.workers.running else 'has ended'}")
            lines += worker.process.log.read_text(errors="replace").splitlines()[-15:]
        return lines


class _UnsettledError(Exception):
    """Something did not end in time."""


_VERBS = """
    select verb, count(distinct run_id) as runs, count(subject_id) as jobs, count(*) filter (where attempt > 1) as again,
           count(*) filter (where j.state = 'skipped') as skipped, count(*) filter (where j.state = 'failed') as failed
    from migration_runs left join migration_jobs j using (run_id) group by verb"""

_ENDED_BADLY = """
    select run_id, verb, subject, subject_id, j.state, error_class, outcome->>'reason' as reason, j.finished_at
    from migration_jobs j join migration_runs using (run_id)
    where j.state in ('failed', 'skipped') and not coalesce(options ? 'gate_of', false)"""


def _costs(conn: Connection, injected: list[Injected]) -> Iterator[Happened]:
    ends = history.ends(conn)
    for one in injected:
        place = bisect_right(ends, one.at)
        yield Happened(
            kind=one.kind,
            next_end_s=(ends[place] - one.at).total_seconds() if place < len(ends) else None,
            taken_on_s=history.taken_on_s(conn, one.victim, one.at) if one.victim is not None else None,
        )
