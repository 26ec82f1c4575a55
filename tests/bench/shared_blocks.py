"""`python -m tests.bench.shared_blocks`: the migrator on file systems that share blocks (XFS and Btrfs on
loop devices; root only), against two b3sum processes over the same files, and against what else shares
blocks, all from the disk and in turn: what new content takes on the disk, what the real run after a rehearsal
still reads, and what a second migration does.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from producer.runs import migrated_projects
from producer.runs.legacy_projects import enqueue
from tests.bench.corpora import Corpus, large, many_files, one_big
from tests.bench.loop_disks import KINDS, loop_disk
from tests.bench.measure import drop_caches, machine, read_bytes, used_bytes
from tests.bench.peers import B3SUM, DUPEREMOVE, DVC_SHARING, GIT_ANNEX, Peer, available
from tests.bench.system import System, await_end
from tests.support.ledger_rows import recorded_outcomes
from tests.support.process_tree import descendants
from worker.messages import Status
from worker.runtime import log
from worker.settings import Settings

_STORES = (DVC_SHARING, GIT_ANNEX, DUPEREMOVE)
"""Who else shares blocks: two stores, and one that does it in place."""

_SETTLED_S = 3.0
"""A file counts as untouched if it was so for two seconds before it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """What every measurement on one file system has."""

    kind: str
    system: System
    corpora: Path
    stores: Path
    rounds: int


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-results/shared-blocks"))
    parser.add_argument("--size", type=float, default=0.3, help="of the corpora; 1 is 3.4 GB of big files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only",
        type=lambda words: words.split(","),
        default=list(MEASUREMENTS),
        help=f"some of {','.join(MEASUREMENTS)}",
    )
    options = parser.parse_args()
    log.configure(log_format="console", level="warning")
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    facts = machine(folder)
    print(f"{facts['cores']} cores, kernel {facts['kernel']}, load at the start {facts['load_at_start']}")
    try:
        for kind in KINDS:
            # The image has holes: only what is written of it takes room.
            with loop_disk(kind, folder, int(4_000 + 30_000 * options.size)) as place:
                if place is not None:
                    _all_on(kind, place, folder / f"servers-{kind}", options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _all_on(kind: str, place: Path, servers: Path, options: argparse.Namespace) -> None:
    corpora = place / "corpora"
    servers.mkdir()
    with System.running(servers, corpora) as system:
        bench = _Bench(
            kind=kind, system=system, corpora=corpora, stores=place / "stores", rounds=options.rounds
        )
        for name in options.only:
            MEASUREMENTS[name](bench, options.size)


# What is measured -------------------------------------------------------------------------------------------


def _new_content(bench: _Bench, corpus: Corpus) -> None:
    """A first migration: its time, and what it adds to the file system."""
    ours, opened, added = list[float](), list[float](), list[float]()
    peers = available([B3SUM, *_STORES], lambda line: print(f"  {line}"))
    theirs: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for number in range(bench.rounds):
        for peer in peers:
            theirs[peer.name].append(_peer_s(bench, peer, corpus))
        with _store(bench, corpus, number) as (settings, engine, _):
            before = used_bytes(bench.corpora)
            seconds, opening_s = _migrated_s(settings, engine)
            ours.append(seconds)
            opened.append(opening_s)
            added.append(used_bytes(bench.corpora) - before)
    new = corpus.unique_bytes
    print(
        f"{bench.kind}, {corpus.name}: {corpus.total_bytes / 1e6:,.0f} MB in {len(corpus.sizes):,} files, {new / 1e6:,.0f} MB different; "
        f"migrator {_words(ours)}, {_words(opened)} of it to open the run; {'; '.join(_against(ours, *each) for each in theirs.items())}; added to the file system {statistics.median(added) / 1e6:.1f} MB, "
        f"{statistics.median(added) / new:.2%} of new content, {statistics.median(added) / len(corpus.sizes):,.0f} bytes a file",
        flush=True,
    )


def _after_rehearsal(bench: _Bench, corpus: Corpus) -> None:
    """The real run after a dry run, against the real run without one."""
    without, after, read = list[float](), list[float](), dict[str, list[float]]()
    for number in range(bench.rounds):
        for name, times in (("without", without), ("after", after)):
            with _store(bench, corpus, f"{name}-{number}") as (settings, engine, pids):
                if name == "after":
                    await_end(engine, enqueue(settings, engine, dry_run=True).run_id)
                before = read_bytes(pids)
                times.append(_migrated_s(settings, engine)[0])
                read.setdefault(name, []).append(read_bytes(descendants(pids)) - before)
    share = {name: statistics.median(found) / corpus.total_bytes for name, found in read.items()}
    print(
        f"{bench.kind}, after-rehearsal: the real run {_words(after)} after a dry run, {_words(without)} without; "
        f"ratio {_ratio(after, without)}; read by the workers {share['after']:.1%} and {share['without']:.1%} of "
        f"{corpus.total_bytes / 1e6:,.0f} MB ({corpus.unique_bytes / corpus.total_bytes:.0%} different)",
        flush=True,
    )


def _again(bench: _Bench, corpus: Corpus) -> None:
    """A migration of projects that were migrated and rolled back: all of their content is stored."""
    ours: dict[bool, list[float]] = {False: [], True: []}
    opened: dict[bool, list[float]] = {False: [], True: []}
    theirs, read = list[float](), dict[bool, list[int]]()
    (peer,) = available([B3SUM], print)
    with _store(bench, corpus, 0) as (settings, engine, pids):
        _migrated_s(settings, engine)
        for _ in range(bench.rounds):
            theirs.append(_peer_s(bench, peer, corpus))
            for rehash, times in ours.items():
                back = migrated_projects.rollback(
                    settings, engine, dry_run=False, project_ids=(), restore_files=False
                )
                await_end(engine, back.run_id)
                before = read_bytes(descendants(pids))
                seconds, opening_s = _migrated_s(settings, engine, rehash=rehash)
                times.append(seconds)
                opened[rehash].append(opening_s)
                read.setdefault(rehash, []).append(read_bytes(descendants(pids)) - before)
    for rehash, times in ours.items():
        share = statistics.median(read[rehash]) / corpus.total_bytes
        print(
            f"{bench.kind}, again{', with --rehash' if rehash else ''}: {corpus.total_bytes / 1e6:,.0f} MB; migrator {_words(times)}, {_words(opened[rehash])} of it to open the run; "
            f"{_against(times, peer.name, theirs)}; "
            f"read by the workers {share:.1%} of it",
            flush=True,
        )


MEASUREMENTS = {
    "large": lambda bench, size: _new_content(bench, large(bench.corpora, size)),
    "one-big": lambda bench, size: _new_content(bench, one_big(bench.corpora, size)),
    "many-files": lambda bench, size: _new_content(bench, many_files(bench.corpora, size)),
    "after-rehearsal": lambda bench, size: _after_rehearsal(bench, large(bench.corpora, size)),
    "again": lambda bench, size: _again(bench, large(bench.corpora, size)),
}
"""Every measurement by its name, in the order of running."""


# Contenders -------------------------------------------------------------------------------------------------


@contextmanager
def _store(bench: _Bench, corpus: Corpus, name: object) -> Iterator[tuple[Settings, Engine, set[int]]]:
    """An empty store on the file system, rows of the corpus, and warm workers; it is removed in the end."""
    data_dir = bench.stores / f"{corpus.name}-{name}"
    data_dir.mkdir(parents=True)
    corpus.make()
    time.sleep(_SETTLED_S)
    try:
        with (
            bench.system.ready(corpus, data_dir) as (engine, pids, _),
            bench.system.settings(data_dir) as settings,
        ):
            yield settings, engine, pids
    finally:
        _remove(data_dir)


def _migrated_s(settings: Settings, engine: Engine, *, rehash: bool = False) -> tuple[float, float]:
    """From the opening of the run to its last outcome, from the disk, and how long the opening took; every
    project must be migrated.
    """
    drop_caches()
    begin = time.perf_counter()
    run_id = enqueue(settings, engine, dry_run=False, rehash=rehash).run_id
    opening_s = time.perf_counter() - begin
    await_end(engine, run_id)
    seconds = time.perf_counter() - begin
    with engine.connect() as conn:
        outcomes = recorded_outcomes(conn, run_id).values()
    assert {outcome.status for outcome in outcomes} == {Status.MIGRATED}
    return seconds, opening_s


def _peer_s(bench: _Bench, peer: Peer, corpus: Corpus) -> float:
    corpus.make()
    out = bench.stores / peer.name
    out.mkdir(parents=True)
    try:
        return peer.measure(corpus, out, drop_caches).seconds
    finally:
        _remove(out)


def _remove(folder: Path) -> None:
    """Read-only directories of stores included."""
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    shutil.rmtree(folder)
    os.sync()


# Words ------------------------------------------------------------------------------------------------------


def _against(ours: Sequence[float], name: str, theirs: Sequence[float]) -> str:
    return f"{name} {_words(theirs)}, ratio {_ratio(ours, theirs)}"


def _words(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} s"


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
