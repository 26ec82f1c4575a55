"""One attempt at one job, as its work sees it: lease, store, run control, and what was stored so far."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

from sqlalchemy import Engine

from worker.db import claims
from worker.db.claims import Claim
from worker.db.leases import Lease
from worker.errors import RootLacksError
from worker.jobs import outcomes
from worker.jobs.heartbeat import Heartbeat
from worker.jobs.tools import Tools
from worker.legacy.ingest import Stored
from worker.legacy.roots import Roots
from worker.messages import Outcome, RunOptions, Status, Verb
from worker.store.store import Store


class Attempt:
    """An attempt by `worker` at the job of `lease`. Its store is opened when it is first asked for."""

    def __init__(self, tools: Tools, lease: Lease, worker: str) -> None:
        self.tools = tools
        self.lease = lease
        self.worker = worker
        self.heartbeat = Heartbeat(
            tools.engine, lease, tools.settings.granted_lease_s, tools.stopping, tools.on_progress
        )
        self.stored: Stored | None = None
        """What it has brought into the store so far, for the outcome of a job that fails all the same."""

    @property
    def project_id(self) -> int:
        """The project of a job that is about one."""
        return self.lease.ref.subject_id

    @property
    def run_id(self) -> uuid.UUID:
        """The job's run."""
        return self.lease.ref.run_id

    @property
    def name(self) -> str:
        """The name of this attempt's own files: unique, so that a cleanup removes only what it made."""
        return f"{self.lease.ref.task_id}-{self.lease.mark}"

    @property
    def engine(self) -> Engine:
        """The process's engine."""
        return self.tools.engine

    @property
    def roots(self) -> Roots:
        """Where projects may lie, and where they may not."""
        return self.tools.roots

    @property
    def options(self) -> RunOptions:
        """What the run was asked for."""
        return self.lease.options

    @cached_property
    def store(self) -> Store:
        """The store of DATA_DIR. Only what brings bytes makes one; a rollback may have to do without any."""
        brings_bytes = self.lease.verb in {Verb.MIGRATE, Verb.ADOPT}
        return self.tools.open_store(create=brings_bytes and not self.lease.dry_run)

    @property
    def files_seen(self) -> int:
        """How many files the project's directory has; 0 until it has been listed."""
        return self.heartbeat.progress.files_total

    @files_seen.setter
    def files_seen(self, count: int) -> None:
        self.heartbeat.progress.files_total = count

    def pace(self, size_bytes: int) -> None:
        """To be called after each chunk: waits as the worker's and the run's limits want, or raises to stop.

        With 0, in loops and waits that read nothing, it only listens.
        """
        self.tools.pace(size_bytes)
        if size_bytes:
            self.tools.limit.wait(size_bytes, self.heartbeat.listen)
            self.heartbeat.keep_pace(size_bytes)
        else:
            self.heartbeat.listen()

    @contextmanager
    def claim(
        self, keys: Sequence[str], what: str, on_wait: Callable[[], None] = lambda: None
    ) -> Iterator[Claim]:
        """Wait until all these keys are this attempt's; the heartbeat keeps the claim alive until the block
        ends. `what` and `on_wait` as of `claims.hold`.
        """
        with (
            claims.hold(
                self.engine,
                keys,
                owner=claims.Owner(job=self.lease.ref.task_id, attempt=self.lease.attempt),
                what=what,
                lease_s=self.tools.settings.lease_s,
                on_wait=on_wait,
                pace=self.pace,
            ) as claim,
            self.heartbeat.keeping_alive(claim),
        ):
            yield claim

    def check_root(self, path: str) -> None:
        """Raise `RootLacksError` if this machine, not the project, is at fault that nothing is at `path`."""
        root = self.tools.lacking.of(path, self.tools.roots)
        if root is not None:
            raise RootLacksError(self.tools.lacking.words(root), waits_for=root)

    def outcome(self, status: Status, reason: str) -> Outcome:
        """An outcome of this attempt that ends now."""
        return outcomes.outcome(self.lease, self.worker, status, reason)
