"""What a worker's parent does beside its children: requeue jobs of dead workers, send lost messages again,
take runs in waves from one to the next.

Every worker has one, and any number may look at the same rows: each takes what no other has locked. Knows no
Celery.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from worker.broker import client as broker
from worker.broker.client import Condition
from worker.db import claims, job_counts, leases, ledger, messages_sent
from worker.db.engine import connect
from worker.db.leases import Expired
from worker.errors import DatabaseUnavailableError, MigratorError
from worker.findings import Check, failed, passed, warned
from worker.jobs import endings, waves
from worker.jobs.endings import Ended, HandedBack
from worker.jobs.one_store import Remembered, open_store
from worker.jobs.outcomes import outcome_of
from worker.messages import Message
from worker.runtime import fork_guard, log
from worker.settings import Settings

_log = log.get(__name__)

_BATCH = 500
"""How many rows are looked at in one transaction."""

_SILENT_AFTER_LOOKS = 12
"""So many times the usual interval without a look is a thread that hangs."""


class Reaper:
    """A thread that calls `reap` every few seconds until it is stopped. After an error it tries again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # The parent forks: a connection must not live longer than its use.
        self._engine = connect(
            settings.sqlalchemy_url,
            application_name="label-migrator reaper",
            keeps_connections=False,
            idle_limit_s=settings.lease_s,
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reaper", daemon=True)
        self._looked_at = time.monotonic()
        self._trouble: str | None = None

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; what is under way is ended first, but not waited for longer than a moment."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def check(self) -> Check:
        """Does it still look, and with success? For the doctor."""
        ago_s = time.monotonic() - self._looked_at
        if not self._thread.is_alive():
            return failed("its thread has ended", "Restart the worker; its log says what happened.")
        if ago_s > self._settings.reap_every_s * _SILENT_AFTER_LOOKS:
            return failed(f"has not looked for {ago_s:.0f} s", "Restart the worker.")
        if self._trouble is not None:
            return warned(
                f"cannot look: {self._trouble}", "Nothing, if it passes; else read the worker's log."
            )
        return passed("looks after jobs of dead workers and lost messages")

    def _run(self) -> None:
        epoch: str | None = None
        outage = _Outage()
        # Not all workers at the same moment.
        while not self._stopped.wait(self._settings.reap_every_s * random.uniform(0.8, 1.2)):  # noqa: S311
            try:
                with fork_guard.at_work(), outage.noticed():
                    epoch = reap(self._settings, self._engine, epoch, ended_s_ago=outage.ended_s_ago)
                self._trouble = None
            except (MigratorError, SQLAlchemyError) as error:
                self._trouble = str(error).partition("\n")[0]
                _log.warning("not_reaped", reason=str(error))
            except Exception as error:  # noqa: BLE001 - said with its trace
                # Were the thread to end here, no reaper of this worker would look after jobs of dead workers
                # any more.
                self._trouble = type(error).__name__
                _log.exception("not_reaped")
            self._looked_at = time.monotonic()


class _Outage:
    """Whether PostgreSQL could not be reached the last time, and otherwise for how long it can be again: a
    replica that was promoted does not say when.
    """

    def __init__(self) -> None:
        self._is_on = False
        self._ended_at: float | None = None

    @property
    def ended_s_ago(self) -> float | None:
        """How long ago it ended: just now, if what is asked next is answered; None, there was none."""
        if self._is_on:
            return 0.0
        return None if self._ended_at is None else time.monotonic() - self._ended_at

    @contextmanager
    def noticed(self) -> Iterator[None]:
        """What the block asks of the database tells."""
        is_on = False
        try:
            yield
        except DatabaseUnavailableError:
            is_on = True
            raise
        finally:
            if self._is_on and not is_on:
                self._ended_at = time.monotonic()
            self._is_on = is_on


def reap(
    settings: Settings,
    engine: Engine,
    known_epoch: str | None = None,
    *,
    ended_s_ago: float | None = None,
) -> str:
    """Look once: leases that ran out, jobs without a message, runs and waves that have ended; the broker's
    epoch. An outage of the database that ended so long ago gives owners of leases time to come back.

    Waiting jobs that were sent are looked at only when the broker is not in the epoch that was known, or its
    queue is empty. Twice, or at once, is harmless.
    """
    dead: list[Expired] = []
    try:
        while len(found := _requeue_expired(settings, engine, ended_s_ago)) == _BATCH:
            dead += found
        dead += found
        return _send_and_finish(settings, engine, known_epoch)
    finally:
        if dead:
            # Last: nothing that others wait for has to wait for a slow disk.
            _clear_staging(settings, engine, dead)


def _send_and_finish(settings: Settings, engine: Engine, known_epoch: str | None) -> str:
    """Send what has no message, close what has ended, go on with runs in waves; the broker's epoch."""
    condition = broker.condition(settings)
    _send_all(settings, engine, condition, lambda conn: messages_sent.never_sent(conn, _BATCH))
    if condition.epoch != known_epoch or condition.waiting == 0:
        _send_all(
            settings,
            engine,
            condition,
            lambda conn: messages_sent.lost(
                conn, condition.epoch, queue_is_empty=condition.waiting == 0, limit=_BATCH
            ),
        )
    with engine.begin() as conn:
        for ref in ledger.end_waiting_jobs_of_cancelled_runs(conn, "The run was cancelled"):
            # Left by an earlier release, which let a job wait again while its run was being cancelled.
            _log.warning("waited_in_a_cancelled_run", run=str(ref.run_id), subject=ref.words)
        ledger.finish_ended_runs(conn)
        job_counts.fold(conn)
        for run in ledger.pause_runs_that_only_wait(conn, settings.root_patience_s):
            _log.error("run_paused", run=str(run.run_id), reason=run.paused_because)
    for run_id in waves.advance(engine):
        _send_all(settings, engine, condition, partial(messages_sent.unsent, run_id=run_id, limit=_BATCH))
        with engine.begin() as conn:
            ledger.start_run(conn, run_id)
    return condition.epoch


def _requeue_expired(settings: Settings, engine: Engine, ended_s_ago: float | None) -> list[Expired]:
    """Let jobs of dead workers wait again, or end them if they may not; which these were."""
    with engine.begin() as conn:
        found = leases.expired(conn, _BATCH, settings.granted_lease_s, back_s=ended_s_ago)
        for dead in found:
            _log.warning(
                "holder_died",
                run=str(dead.lease.ref.run_id),
                subject=dead.lease.ref.words,
                attempt=dead.lease.attempt,
                worker=dead.worker,
                crashes=dead.crashes,
            )
            run_state = ledger.lock_state(conn, dead.lease.ref.run_id)
            match endings.after_crash(dead.crashes, run_state):
                case Ended() as ended:
                    leases.end_job(conn, dead.lease, outcome_of(ended, dead.lease, dead.worker))
                case HandedBack():
                    leases.hand_back_for(conn, dead)
            claims.give_back_for(conn, claims.Owner(job=dead.lease.ref.task_id, attempt=dead.lease.attempt))
    return found


def _clear_staging(settings: Settings, engine: Engine, found: Sequence[Expired]) -> None:
    """Remove what dead attempts were making. A sleeper that wakes up finds its files and its lease gone.

    Outside of any transaction, because a million links take minutes to remove. Dying before: the job's next
    attempt removes what its former ones left.
    """
    try:
        store = open_store(settings, engine, Remembered(), create=False)
    except MigratorError as error:
        _log.warning("staging_not_cleared", reason=str(error))
        return
    for dead in found:
        try:
            store.clear_staging(dead.lease.ref.task_id, dead.lease.attempt)
        except MigratorError as error:
            # Not writable here, perhaps. The job's next attempt removes it; of one that has ended the doctor
            # tells.
            _log.warning("staging_not_cleared", reason=str(error))


def _send_all(
    settings: Settings,
    engine: Engine,
    condition: Condition,
    find: Callable[[Connection], Sequence[Message]],
) -> None:
    """Send all messages that `find` finds to be due, in batches. Sent and not noted, they are sent again."""
    count = _BATCH
    while count == _BATCH:
        with engine.begin() as conn:
            messages = find(conn)
            count = len(messages)
            if messages:
                broker.send(settings, messages)
                messages_sent.note_sent(conn, [message.ref for message in messages], condition.epoch)
                _log.info("sent_again", jobs=count)
