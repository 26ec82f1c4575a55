"""Many who store overlapping content at once, again and again: no error, nothing twice, nothing left in
staging.

Half of a round's storers are threads of this process, the others threads of further processes that were
started once. Without claims each may copy what another copies, too, but only one gives it its name; with
claims, by way of `migrate`, what is written is what is new.
"""

import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.estate import make_project, record_session
from tests.support.runs import at_once, open_run
from tests.support.sites import Site
from tests.support.studies import check_stored_once, counting_writes
from tests.support.trees import condemned, open_store, read_tree, roots_of, temporary_files, write_tree
from tests.support.waiting import PATIENCE_S
from worker.db import claims
from worker.legacy.hash import hash_tree
from worker.legacy.ingest import store_tree
from worker.legacy.scan import scan
from worker.messages import Outcome, Status, Verb
from worker.store.digest import BIG_BYTES, digest_of
from worker.store.removal import remove_tree
from worker.store.store import Store

ROUNDS = 30
LONG_ROUNDS = 1000
STORERS = 16
_PROCESSES = 2
_EACH = STORERS // (_PROCESSES + 1) + 1


# Rounds of storers ------------------------------------------------------------------------------------------


def store_at_once(folder: Path, number: int, first: int, together: threading.Barrier) -> None:
    """Store the projects from `first` on, one thread each, all beginning at the same moment; raises what any
    of them raises.
    """
    store = open_store(folder)

    def store_one(index: int) -> None:
        project = folder / f"study {index}"
        with ThreadPoolExecutor(2) as threads:
            roots = roots_of(folder)
            scanned = scan(str(project), roots)
            together.wait(PATIENCE_S)
            tree = hash_tree(scanned, roots=roots, store=store, threads=threads)
            target = store.tree_path(project.name, tree.manifest.digest)
            store_tree(store, tree, target, attempt=f"{number}-{index}", threads=threads)

    with ThreadPoolExecutor(_EACH) as storers:
        list(storers.map(store_one, range(first, min(first + _EACH, STORERS))))


def serve(orders: Connection, together: threading.Barrier) -> None:
    """Be one of the processes: an order is a folder, a round's number and where one's share begins."""
    for folder, number, first in iter(orders.recv, None):
        try:
            store_at_once(folder, number, first, together)
        except Exception as error:  # noqa: BLE001 - the test fails of it, whatever it is
            together.abort()
            orders.send(repr(error))
        else:
            orders.send(None)


@contextmanager
def processes(together: threading.Barrier) -> Iterator[list[Connection]]:
    """Start the other processes; each is spoken to by its connection."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(_PROCESSES)]
    started = [context.Process(target=serve, args=(theirs, together)) for _, theirs in pipes]
    for process in started:
        process.start()
    try:
        yield [ours for ours, _ in pipes]
    finally:
        for ours, _ in pipes:
            ours.send(None)
        for process in started:
            process.join(PATIENCE_S)
        for ours, theirs in pipes:
            ours.close()
            theirs.close()


def make_studies(folder: Path, number: int) -> set[str]:
    """A project for each storer, of contents that most have in common and some alone; the digests of all."""
    chance = Random(number)
    pool = [chance.randbytes(chance.choice((0, 100, 4_000, 30_000, 300_000))) for _ in range(12)]
    studies = [[*chance.sample(pool, 6), b"only %d of %d" % (index, number)] for index in range(STORERS)]
    for index in range(3, STORERS, 4):
        # Two equal ones are one dataset, and without a claim both publish it, each under its own name.
        studies[index] = studies[index - 1]
    for index, contents in enumerate(studies):
        files = {b"day/%d.csv" % place: content for place, content in enumerate(contents)}
        write_tree(folder / f"study {index}", files)
    return {digest_of("blake3", content) for contents in studies for content in contents}


def play(folder: Path, number: int, others: list[Connection], together: threading.Barrier) -> None:
    """One round in a store of its own, and what must be true after it."""
    digests = make_studies(folder, number)
    for share, other in enumerate(others, start=1):
        other.send((folder, number, share * _EACH))
    # Whoever breaks the barrier says why.
    with suppress(threading.BrokenBarrierError):
        store_at_once(folder, number, 0, together)
    assert [other.recv() for other in others] == [None] * len(others)
    check_round(open_store(folder), folder, digests)


def check_round(store: Store, folder: Path, digests: set[str]) -> None:
    """Each content is there once, whole; each project has its tree; nothing else was left anywhere."""
    blobs = list((store.root / "blobs").glob("*/*"))
    assert {blob.name for blob in blobs} == digests
    assert len(blobs) == len(digests)
    assert all(digest_of("blake3", blob.read_bytes()) == blob.name for blob in blobs)
    for index in range(STORERS):
        (tree,) = store.trees.glob(f"study_{index}-*")
        assert read_tree(tree) == read_tree(folder / f"study {index}")
    assert temporary_files(store) == []
    assert condemned(store) == {}


def play_rounds(folder: Path, rounds: int) -> None:
    """So many rounds, with the same processes."""
    together = multiprocessing.get_context("spawn").Barrier(STORERS)
    with processes(together) as others:
        for number in range(rounds):
            place = folder / str(number)
            place.mkdir()
            play(place, number, others, together)
            remove_tree(str(place))


@pytest.fixture
def memory() -> Iterator[Path]:
    """Give a folder in memory, where a sync takes no time, so that the storers meet more often."""
    if not os.access("/dev/shm", os.W_OK):  # noqa: S108 - a folder of its own in it
        pytest.skip("this machine has no writable folder in memory")
    folder = tempfile.mkdtemp(prefix="label-tests-", dir="/dev/shm")
    try:
        yield Path(folder)
    finally:
        remove_tree(folder)


@pytest.mark.slow
def test_sixteen_storers_of_overlapping_contents_at_once_all_succeed_in_memory(memory: Path):
    play_rounds(memory, ROUNDS)


@pytest.mark.slow
def test_sixteen_storers_of_overlapping_contents_at_once_all_succeed_on_a_disk(tmp_path: Path):
    play_rounds(tmp_path, 1)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_thousand_rounds_of_sixteen_storers_of_overlapping_contents_succeed(memory: Path, tmp_path: Path):
    play_rounds(memory, LONG_ROUNDS * 3 // 4)
    play_rounds(tmp_path, LONG_ROUNDS // 4)


# By way of the whole story ----------------------------------------------------------------------------------


def migrate_all_at_once(site: Site) -> list[Outcome]:
    """One run over all projects, a worker of its own for each."""
    refs = open_run(site.engine, Verb.MIGRATE)
    outcomes = [one for one in at_once(site, [(Verb.MIGRATE, ref) for ref in refs]) if one is not None]
    assert [outcome.status for outcome in outcomes] == [Status.MIGRATED] * len(refs), outcomes
    return outcomes


def test_sixty_four_equal_jobs_at_once_write_one_copy(site: Site, monkeypatch: pytest.MonkeyPatch):
    with site.engine.begin() as conn:
        for number in range(64):
            project = make_project(conn, site.legacy_root, f"equal {number}")
            for day in (1, 2):
                record_session(conn, project, f"day {day}", rows=400, seed=day)

    with counting_writes(monkeypatch) as written:
        outcomes = migrate_all_at_once(site)

    assert len({outcome.dataset_id for outcome in outcomes}) == 1
    assert sum(outcome.dataset_created for outcome in outcomes) == 1
    check_stored_once(site, outcomes, written)


def share_big_files(site: Site, number: int) -> None:
    """Eight projects, each a dataset of its own, of big files that most have in common."""
    chance = Random(number)
    pool = [chance.randbytes(64) * ((BIG_BYTES + chance.randrange(1 << 20)) // 64) for _ in range(3)]
    with site.engine.begin() as conn:
        for index in range(8):
            project = make_project(conn, site.legacy_root, f"round {number} project {index}")
            record_session(conn, project, "day", rows=10, seed=8 * number + index)
            assert project.directory is not None
            for place, content in enumerate(chance.sample(pool, 2)):
                (project.directory / "day" / f"{place}.bin").write_bytes(content)


def play_big_rounds(site: Site, monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    """So many rounds of projects that share big files, in an empty store each."""
    for number in range(rounds):
        site.empty()
        share_big_files(site, number)
        with counting_writes(monkeypatch) as written:
            outcomes = migrate_all_at_once(site)
        check_stored_once(site, outcomes, written)


def test_datasets_that_share_big_files_and_are_stored_at_once_write_these_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    play_big_rounds(site, monkeypatch, 2)


def test_a_big_file_that_another_job_stored_before_our_claim_is_not_written_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    """The one who met it first has registered its key, and is slow to claim it."""
    share_big_files(site, 1)
    refs = open_run(site.engine, Verb.MIGRATE)
    slow, quick = refs[0], refs[1]
    registered, stored = threading.Event(), threading.Event()
    hold = claims.hold

    def slowly(*args: Any, what: str, **options: Any) -> Any:
        if what == "new files" and not registered.is_set():
            registered.set()
            assert stored.wait(PATIENCE_S)
        return hold(*args, what=what, **options)

    monkeypatch.setattr(claims, "hold", slowly)

    with counting_writes(monkeypatch) as written, ThreadPoolExecutor(1) as thread:
        first = thread.submit(at_once, site, [(Verb.MIGRATE, slow)])
        assert registered.wait(PATIENCE_S)
        (second,) = at_once(site, [(Verb.MIGRATE, quick)])
        stored.set()
        outcomes = [one for one in (*first.result(PATIENCE_S), second) if one is not None]

    assert [outcome.status for outcome in outcomes] == [Status.MIGRATED] * 2
    check_stored_once(site, outcomes, written)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_rounds_of_datasets_that_share_big_files_write_these_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    play_big_rounds(site, monkeypatch, 100)
