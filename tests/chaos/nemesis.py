"""What goes wrong, when: does to servers and processes what a plan says, heals it, and keeps a list of what
it did.
"""

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from sqlalchemy.exc import DBAPIError

from tests.chaos.commands import Operator
from tests.chaos.history import LostLease
from tests.chaos.keeper import Keeper
from tests.chaos.people import People
from tests.chaos.plan import STORE_KINDS, Fault, Kind
from tests.chaos.servers import Servers
from tests.chaos.workers import Worker, Workers

_LOOK_EVERY_S = 0.02
_AGAIN_S = 0.3
_FROZEN_TIMES = 4
"""A server that only freezes does so for longer than one that is started again."""
_FAILS_OVER_S = 3.0
"""So long a primary is away that sentinels are to give up; they take one or two."""
_NEEDS_SERVERS = {Kind.DUPLICATES, Kind.PAUSE, Kind.RIVAL, Kind.EDIT} | STORE_KINDS
_READ_EVERY_S = 0.1
_PATIENCE_S = 2.0
"""So long after its time an act on the store waits for something that it can be done to, although everything
has settled: another act may be due.
"""
_MOST_PATIENCE_S = 30.0
"""The same while something is under way: the last worker may have died, and the next one comes after the
storm.
"""
_MARGIN_S = 0.2
"""The clocks of a fault and of a lease are read a moment apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """One fault that took place. `victim` is the worker that it hit. Its leases may run out for it
    (`costs_leases`), or those of all workers, where there is no victim.
    """

    kind: Kind
    at: datetime
    what: str
    victim: str | None = None
    costs_leases: bool = False


@dataclass(order=True, slots=True)
class _Due:
    at: float
    number: int
    act: Callable[[], object] = field(compare=False)
    fault: Fault | None = field(compare=False)


class Nemesis:
    """Acts from one thread, in `storm` and whenever somebody waits by `tick`: what is to be healed is healed
    in time.
    """

    def __init__(
        self,
        servers: Servers,
        workers: Workers,
        operator: Operator,
        people: People,
        keeper: Keeper,
        *,
        lease_s: float,
    ) -> None:
        self.injected: list[Injected] = []
        self.too_late = 0
        self.story: list[str] = []
        self.not_read: list[str] = []
        """What people could not read in the middle of the storm, or not as it was."""
        self._servers = servers
        self._workers = workers
        self._operator = operator
        self._people = people
        self._keeper = keeper
        self._lease_s = lease_s
        self._due: list[_Due] = []
        self._numbers = itertools.count()
        self._reads = itertools.count()
        self._read_at = 0.0
        self._storm_since = 0.0
        self._ended: Callable[[], bool] = lambda: True
        self._is_cut_off = False
        self._acts: dict[Kind, Callable[[Fault], None]] = {
            Kind.NOTHING: lambda _fault: self._did(Kind.NOTHING, ""),
            Kind.KILL_CHILD: self._kill_child,
            Kind.KILL_WORKER: self._kill_worker,
            Kind.TERM_WORKER: self._term_worker,
            Kind.SLEEP_WORKER: self._sleep_worker,
            Kind.SLEEP_CHILD: self._sleep_child,
            Kind.KILL_COLLECTOR: self._kill_collector,
            Kind.EMPTY_REDIS: self._empty_redis,
            Kind.RESTART_REDIS: self._restart_redis,
            Kind.FREEZE_REDIS: self._freeze_redis,
            Kind.CRASH_POSTGRES: self._crash_postgres,
            Kind.CUT_CONNECTIONS: self._cut_connections,
            Kind.DUPLICATES: self._duplicate,
            Kind.PAUSE: self._pause,
            Kind.RIVAL: self._rival,
            Kind.EDIT: self._edit,
            Kind.RECLAIM: partial(self._keep, keeper.reclaim),
            Kind.UNDO: partial(self._keep, keeper.undo),
            Kind.PURGE: partial(self._keep, keeper.purge),
            Kind.GC: partial(self._keep, keeper.collect),
            Kind.REPAIR: partial(self._keep, keeper.repair),
            Kind.FLIP: partial(self._keep, keeper.flip),
            Kind.REDIS_FAILOVER: self._fail_redis_over,
            Kind.PROMOTION: self._promote,
            Kind.LOSSY_PROMOTION: self._promote_late,
        }

    def storm(self, faults: tuple[Fault, ...], ended: Callable[[], bool]) -> None:
        """Let all faults happen in their time, and be healed; those that come after the end are left out."""
        self._storm_since = time.monotonic()
        self._ended = ended
        for fault in faults:
            if fault.kind is not Kind.KILL_PRODUCER:
                self._later(fault.at_s, fault)
        while self._due:
            # An operator looks after the store also when a migration has ended; then its runs are disturbed.
            is_over = not any(due.fault is not None and due.fault.kind in STORE_KINDS for due in self._due)
            if is_over and self._servers.postgres_is_up and ended():
                self.too_late += sum(due.fault is not None for due in self._due)
                self._due = [due for due in self._due if due.fault is None]
                heapq.heapify(self._due)
            self._do_due(healing_only=False)
            self._read()
            time.sleep(_LOOK_EVERY_S)

    def tick(self) -> None:
        """To be called by whoever waits: heals what is due, and does nothing else."""
        self._do_due(healing_only=True)
        time.sleep(_LOOK_EVERY_S)

    def later(self, in_s: float, act: Callable[[], object]) -> None:
        """Do something in so many seconds."""
        heapq.heappush(self._due, _Due(time.monotonic() + in_s, next(self._numbers), act, None))

    def _later(self, in_s: float, fault: Fault) -> None:
        act = partial(self._inject, fault)
        heapq.heappush(self._due, _Due(time.monotonic() + in_s, next(self._numbers), act, fault))

    def note(self, kind: Kind, what: str) -> None:
        """Keep a fault that somebody else has made."""
        self._did(kind, what)

    def has_flipped_before(self, moment: datetime) -> bool:
        """Was a bit flipped before, so that what read it may have found it?"""
        return any(one.kind is Kind.FLIP and one.at < moment for one in self.injected)

    def explains(self, lost: LostLease) -> bool:
        """Did anything happen to the holder of a lease, or to the database, that explains why it ran out?"""
        return any(
            one.costs_leases
            and one.victim in {None, lost.holder}
            and (lost.since - one.at).total_seconds() < _MARGIN_S + self._still_felt_s(one)
            and one.at < lost.noticed
            for one in self.injected
        )

    def _still_felt_s(self, one: Injected) -> float:
        """A server that comes back is felt for a while: who waits for it waits longer and longer."""
        return self._lease_s if one.victim is None else 0.0

    def _do_due(self, *, healing_only: bool) -> None:
        now = time.monotonic()
        due = [one for one in self._due if one.at <= now and not (healing_only and one.fault is not None)]
        for one in sorted(due):
            if one in self._due:  # whoever acts may wait, and heal meanwhile what comes after it
                self._due.remove(one)
                heapq.heapify(self._due)
                one.act()

    def _inject(self, fault: Fault) -> None:
        needs = fault.kind in _NEEDS_SERVERS
        if needs and not (self._servers.postgres_is_up and self._servers.redis_is_up):
            self._again(fault)
        else:
            self._acts[fault.kind](fault)

    def _again(self, fault: Fault) -> None:
        self._later(_AGAIN_S, fault)

    def _did(
        self, kind: Kind, what: str, victim: Worker | None = None, *, costs_leases: bool = False
    ) -> None:
        self.injected.append(
            Injected(
                kind=kind,
                at=datetime.now(UTC),
                what=what,
                victim=victim.node if victim is not None else None,
                costs_leases=costs_leases,
            )
        )

    # Workers ------------------------------------------------------------------------------------------------

    def _victim(self, fault: Fault) -> Worker | None:
        awake = [one for one in self._workers.alive if not one.asleep]
        return awake[fault.which % len(awake)] if awake else None

    def _kill_child(self, fault: Fault) -> None:
        worker = self._victim(fault)
        children = self._workers.children(worker) if worker is not None else []
        if worker is None or not children:
            return self._again(fault)
        pid = children[fault.which % len(children)]
        self._workers.kill_child(pid)
        return self._did(fault.kind, f"{worker.node}: {pid}", worker, costs_leases=True)

    def _kill_worker(self, fault: Fault) -> None:
        worker = self._victim(fault)
        if worker is None:
            return self._again(fault)
        self._did(fault.kind, worker.node, worker, costs_leases=True)
        self._workers.kill(worker)
        return self.later(fault.lasts_s, self._start_worker)

    def _term_worker(self, fault: Fault) -> None:
        worker = self._victim(fault)
        if worker is None:
            return self._again(fault)
        self._workers.terminate(worker)
        self._start_worker()
        # A warm stop: its jobs are handed back, so none of its leases may run out.
        return self._did(fault.kind, worker.node, worker)

    def _sleep_worker(self, fault: Fault) -> None:
        worker = self._victim(fault)
        if worker is None:
            return self._again(fault)
        self._did(fault.kind, worker.node, worker, costs_leases=True)
        pids = self._workers.sleep(worker)
        return self.later(self._lease_s + fault.lasts_s, lambda: self._workers.wake(worker, pids))

    def _sleep_child(self, fault: Fault) -> None:
        worker = self._victim(fault)
        children = self._workers.children(worker) if worker is not None else []
        if worker is None or not children:
            return self._again(fault)
        self._did(fault.kind, worker.node, worker, costs_leases=True)
        pids = self._workers.sleep(worker, only_child=children[fault.which % len(children)])
        return self.later(self._lease_s + fault.lasts_s, lambda: self._workers.wake(worker, pids))

    def _start_worker(self) -> None:
        self._workers.start()

    # Servers ------------------------------------------------------------------------------------------------

    def _empty_redis(self, fault: Fault) -> None:
        if not self._servers.redis_is_up:
            return self._again(fault)
        self._servers.empty_redis()
        return self._did(fault.kind, "")

    def _restart_redis(self, fault: Fault) -> None:
        if not self._servers.redis_is_up:
            return self._again(fault)
        self._did(fault.kind, f"for {fault.lasts_s} s")
        self._servers.valkey.kill()
        return self.later(fault.lasts_s, self._servers.valkey.start)

    def _freeze_redis(self, fault: Fault) -> None:
        if not self._servers.redis_is_up:
            return self._again(fault)
        self._did(fault.kind, f"for {_FROZEN_TIMES * fault.lasts_s} s")
        self._servers.valkey.freeze()
        return self.later(_FROZEN_TIMES * fault.lasts_s, self._servers.valkey.thaw)

    def _cut_connections(self, fault: Fault) -> None:
        if not self._servers.postgres_is_up:
            return self._again(fault)
        return self._did(fault.kind, f"{self._operator.cut_connections()} connections")

    def _crash_postgres(self, fault: Fault) -> None:
        if not self._servers.postgres_is_up:
            return self._again(fault)
        self._did(fault.kind, f"for {fault.lasts_s} s", costs_leases=True)
        self._servers.postgres.crash()
        return self.later(fault.lasts_s, self._servers.postgres.start)

    # Pairs --------------------------------------------------------------------------------------------------

    def _fail_redis_over(self, fault: Fault) -> None:
        """The primary is gone, or hangs, for longer than the sentinels wait; what was in it and had not
        reached the replica is lost.
        """
        if not self._servers.redis_is_up:
            return self._again(fault)
        hangs = fault.which % 2 == 0
        self._did(fault.kind, "the primary hangs" if hangs else "the primary is killed")
        if hangs:
            self._servers.valkey.freeze()
        else:
            self._servers.valkey.kill()
        return self.later(_FAILS_OVER_S + fault.lasts_s, self._bring_valkey_back)

    def _bring_valkey_back(self) -> None:
        self._servers.valkey.thaw()
        self._servers.valkey.start()

    def _promote(self, fault: Fault) -> None:
        if not self._servers.postgres_is_up:
            return self._again(fault)
        self._servers.postgres.attach()
        self._did(fault.kind, "", costs_leases=True)
        self._servers.postgres.fail_over()
        return self.later(fault.lasts_s, self._servers.postgres.attach)

    def _promote_late(self, fault: Fault) -> None:
        """For a moment the replica hears nothing; then it is promoted."""
        if not self._servers.postgres_is_up or self._is_cut_off:
            return self._again(fault)
        self._is_cut_off = True
        self._servers.postgres.attach()
        self._servers.postgres.cut_off()
        return self.later(fault.lasts_s, partial(self._promote_cut_off, fault))

    def _promote_cut_off(self, fault: Fault) -> None:
        if not self._servers.postgres_is_up:
            # Another blow has hit it meanwhile; it comes back first.
            return self.later(_AGAIN_S, partial(self._promote_cut_off, fault))
        self._is_cut_off = False
        before = self._operator.changes_of_jobs()
        self._did(fault.kind, f"the last {fault.lasts_s} s are lost", costs_leases=True)
        self._servers.postgres.fail_over()
        self.story.append(f"lost: {before - self._operator.changes_of_jobs()} or more changes of jobs")
        return self.later(fault.lasts_s, self._servers.postgres.attach)

    # People and operators -----------------------------------------------------------------------------------

    def _kill_collector(self, fault: Fault) -> None:
        if self._operator.kill_collector():
            self._did(fault.kind, "")

    def _duplicate(self, fault: Fault) -> None:
        count = self._operator.send_again(2 + fault.which % 3)
        self._did(fault.kind, f"{count} messages")

    def _pause(self, fault: Fault) -> None:
        run_id = self._operator.runs[-1]
        at = datetime.now(UTC)
        if self._operator.rein("pause", run_id):
            self.injected.append(Injected(kind=fault.kind, at=at, what=f"run {run_id}"))
            # One that ended while it was being held needs nobody to let it go on.
            self.later(fault.lasts_s, lambda: self._operator.rein("resume", run_id))

    def _rival(self, fault: Fault) -> None:
        self._did(fault.kind, f"run {self._operator.open_another()}")

    def _edit(self, fault: Fault) -> None:
        try:
            what = self._people.edit(fault.which)
        except DBAPIError as error:
            # Whoever has the row in hand may be asleep.
            if getattr(error.orig, "pgcode", None) not in {"55P03", "40P01"}:
                raise
            return self._again(fault)
        return self._did(fault.kind, what)

    def _keep(self, act: Callable[[int], str | None], fault: Fault) -> None:
        what = act(fault.which)
        if what is not None:
            self._did(fault.kind, what)
            return
        patience_s = _PATIENCE_S if self._ended() else _MOST_PATIENCE_S
        if time.monotonic() < self._storm_since + fault.at_s + patience_s:
            self._again(fault)
        else:
            self.too_late += 1

    def _read(self) -> None:
        """Somebody reads a session now and then: one can always be read, as it was."""
        now = time.monotonic()
        if now < self._read_at + _READ_EVERY_S or not self._servers.postgres_is_up:
            return
        self._read_at = now
        # What is read from a file that has gone bad is bad.
        if not self._keeper.unhealed:
            self.not_read += self._people.read(next(self._reads))
