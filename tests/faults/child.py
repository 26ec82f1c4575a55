"""Workers that the machine turns against: each is forked for one order, and watched from its first call to
its last.

The process that forks them was started with the library of `shim.py`; engines and threads are made in the
child alone.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import event

from producer.datasets import bags
from tests.support.forking import Forks, forks
from tests.support.runs import WORK
from tests.support.shim import Call, Fault, calls, environment, order
from tests.support.sites import Site
from worker import settings as settings_module
from worker.jobs.tools import Tools, connect
from worker.messages import JobRef, Subject, Verb
from worker.runtime import log
from worker.store import batches
from worker.store.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a child ended, what it answered if it lived, and every call that it made."""

    died: bool
    answer: dict[str, Any]
    calls: list[Call]

    @property
    def counted(self) -> list[Call]:
        """The calls that a fault may name by their number."""
        return [call for call in self.calls if call.number]


class Children:
    """Forks a child for each order."""

    def __init__(self, site: Site, processes: Forks) -> None:
        self._site = site
        self._forks = processes
        self._names = (f"child{number}" for number in count(1))

    def migrate(
        self,
        ref: JobRef,
        fault: Fault | None = None,
        *,
        blobs_can_be_linked: bool = True,
        batch_bytes: int = batches.BATCH_BYTES,
    ) -> End:
        """Let a worker do a job; the answer has its `status` and `error`, None when no outcome was its to
        say.
        """
        return self.do(
            Verb.MIGRATE, ref, fault, blobs_can_be_linked=blobs_can_be_linked, batch_bytes=batch_bytes
        )

    def do(
        self,
        verb: Verb,
        ref: JobRef,
        fault: Fault | None = None,
        *,
        blobs_can_be_linked: bool = True,
        batch_bytes: int = batches.BATCH_BYTES,
    ) -> End:
        """The same for a job of any verb, about whatever it is."""
        return self._do(
            fault,
            work="job",
            verb=verb.value,
            run_id=str(ref.run_id),
            subject=ref.subject.value,
            subject_id=ref.subject_id,
            blobs_can_be_linked=blobs_can_be_linked,
            batch_bytes=batch_bytes,
        )

    def open_store(self, folder: Path, fault: Fault | None = None) -> End:
        """Let a child open the store below a folder, and make it if need be."""
        return self._do(fault, work="open_store", folder=str(folder))

    def export(self, dataset_id: int, bag: Path, fault: Fault | None = None) -> End:
        """Let a child export a dataset."""
        return self._do(fault, work="export", dataset_id=dataset_id, bag=str(bag))

    def take_in(self, bag: Path, fault: Fault | None = None) -> End:
        """Let a child import one."""
        return self._do(fault, work="take_in", bag=str(bag))

    def _do(self, fault: Fault | None, **what: Any) -> End:
        name = next(self._names)
        journal = self._site.folder / f"{name}.calls"
        env = self._site.env | order(journal, [self._site.data_dir, self._site.legacy_root], fault)
        process = self._forks.call(name, f"{__name__}:obey", what, env=env, folder=self._site.folder)
        code = self._forks.wait(process)
        assert code in {0, -signal.SIGKILL}, process.log.read_text()
        words, found = process.output.read_text(), calls(journal)
        for left in (journal, process.output, process.log):
            left.unlink(missing_ok=True)
        return End(died=code != 0, answer=json.loads(words or "{}"), calls=found)


@contextmanager
def children(site: Site, library: Path) -> Iterator[Children]:
    """Start the process that forks, with the library."""
    modules = [__name__, "sqlalchemy.dialects.postgresql.psycopg2"]
    with forks(site.folder, modules, **environment(library)) as processes:
        yield Children(site, processes)


# In a child -------------------------------------------------------------------------------------------------


def obey(asked: dict[str, Any]) -> None:
    """Do what was asked, and write what became of it."""
    log.configure(log_format="console", level="error")
    ctypes.CDLL(None).faults_arm()
    answer = _WORK[asked["work"]](asked)
    os.write(1, json.dumps(answer).encode())


def _do_job(asked: dict[str, Any]) -> dict[str, Any]:
    """What a Celery child does for one task."""
    if not asked["blobs_can_be_linked"]:
        _refuse_links_of_blobs()
    batches.BATCH_BYTES = asked["batch_bytes"]
    settings = settings_module.load()
    engine = connect(settings, "a child")
    statements: list[str] = []

    def take_down(*args: Any) -> None:
        # The heartbeat beside the work comes when it likes, and does not count.
        if threading.current_thread() is threading.main_thread():
            statements.append(args[2])

    event.listen(engine, "before_cursor_execute", take_down)
    subject = Subject(asked["subject"])
    ref = JobRef(run_id=uuid.UUID(asked["run_id"]), subject=subject, subject_id=asked["subject_id"])
    with ThreadPoolExecutor(2) as threads:
        work = WORK[Verb(asked["verb"]), subject]
        outcome = work(Tools(settings=settings, engine=engine, threads=threads), ref, "a child")
    return {
        "status": outcome.status.value if outcome is not None else None,
        "error": outcome.error if outcome is not None else None,
        "error_class": outcome.error_class if outcome is not None else None,
        "statements": [" ".join(one.split())[:70] for one in statements],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _refuse_links_of_blobs() -> None:
    """As if every blob had all the links that it can have."""
    link = os.link

    def refuse(source: str, target: str) -> None:
        if "/blobs/" in source:
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK), source)
        link(source, target)

    os.link = refuse  # type: ignore[assignment]


def _open_store(asked: dict[str, Any]) -> dict[str, Any]:
    folder = Path(asked["folder"])
    return {
        "id": Store.open(folder / "dataset_store", folder / "raw_datasets", "blake3", create=True).store_id
    }


def _export(asked: dict[str, Any]) -> dict[str, Any]:
    settings = settings_module.load()
    bags.export(
        settings, connect(settings, "a child"), asked["dataset_id"], asked["bag"], lambda _words: None
    )
    return {}


def _take_in(asked: dict[str, Any]) -> dict[str, Any]:
    settings = settings_module.load()
    bags.take_in(settings, connect(settings, "a child"), asked["bag"], lambda _words: None)
    return {}


_WORK: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "job": _do_job,
    "open_store": _open_store,
    "export": _export,
    "take_in": _take_in,
}
