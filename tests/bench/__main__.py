"""`python -m tests.bench`: the whole system against other tools on the same data in the same run, as ratios.

Every run is timed until its result is durable, page cache warm, machine at rest for a moment, contenders in
turn (A B C A B C …), and ratios are taken pair by pair. Nothing is deleted between timed runs: on a file
system without a journal inodes are dear for minutes after thousands have been removed. For figures that count
use an idle machine and, for many-files and tiny, a file system with a journal:

    truncate -s 60G /var/tmp/bench.img && mkfs.ext4 -q /var/tmp/bench.img && mount -o loop /var/tmp/bench.img
    /mnt python -m tests.bench --folder /mnt/bench
"""

import argparse
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console

from tests.bench import growth, phases
from tests.bench.corpora import MAKERS, Corpus, large, tiny, warm
from tests.bench.floor import FLOOR
from tests.bench.measure import Measured, Settle, machine
from tests.bench.peers import B3SUM, CP, DVC, GIT_ANNEX, NAIVE, Measure, Peer, available
from tests.bench.plot import growth_svg, svg
from tests.bench.profiling import profile
from tests.bench.results import OURS, Contest, table
from tests.bench.system import WORKERS, System

RESULTS = Path("bench-results")

# git-annex takes about a minute for ten thousand files, dvc starts anew for each project: not where files are
# many.
PEERS: dict[str, tuple[Peer, ...]] = {
    "large": (FLOOR, CP, NAIVE, DVC, GIT_ANNEX),
    "again": (B3SUM,),
    "one-big": (FLOOR, CP, NAIVE, DVC, GIT_ANNEX),
    "many-files": (CP, NAIVE, DVC),
    "tiny": (CP, NAIVE),
}
"""Who runs against the migrator, by corpus. With tiny there is also the task that does nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments say; 0 when every run ended well, whatever its figures."""
    options = _options(arguments)
    console = Console(width=150 if not sys.stdout.isatty() else None, highlight=False)
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder / "runs", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    facts = machine(folder)
    console.print(_machine_line(facts))
    if facts["load_at_start"] > 0.3 * facts["cores"]:  # type: ignore[operator]
        console.print(
            "[yellow]The machine is busy with other work: expect figures that are off by a factor.[/]"
        )
    bench = Bench(console, folder, options)
    try:
        with System.running(folder, folder / "corpora") as system:
            failed = bench.work(system)
    finally:
        if not options.keep:
            for made in ("runs", "corpora", "state", "logs"):
                _remove(folder / made)
            with suppress(OSError):
                folder.rmdir()
    run = [contest for contest in bench.contests if contest.runs[OURS]]
    if run:
        _publish(console, run, facts, options)
    if bench.phases is not None:
        console.print(phases.table(bench.phases))
        console.print(_machine_line(facts))
        _write(console, "phases", {"machine": facts, "phases": phases.as_json(bench.phases)})
    if bench.steps:
        _publish_growth(console, bench, facts, options)
    for line in failed:
        console.print(f"[red]{line}[/]")
    return 1 if failed else 0


class Bench:
    """Corpus after corpus; every contender once a round."""

    def __init__(self, console: Console, folder: Path, options: argparse.Namespace) -> None:
        self.console = console
        self.folder = folder
        self.options = options
        self.contests: list[Contest] = []
        self.steps: list[growth.Step] = []
        self.teams: list[growth.Team] = []
        self.phases: phases.Phases | None = None

    def work(self, system: System) -> list[str]:
        """What the options ask for; what went wrong, one line each."""
        if self.options.phases is not None:
            return self.go_through_phases(system, self.options.phases)
        return self.grow(system) if self.options.growth else self.run_all(system)

    def go_through_phases(self, system: System, count: int) -> list[str]:
        """So many tiny projects, as an operator sees them."""
        data_dir = self.folder / "runs" / "phases"
        data_dir.mkdir(parents=True)
        corpus = tiny(self.folder / "corpora", 1, name=f"phases-{count}", projects=count)
        corpus.make()
        self.phases = phases.measure(system, corpus, data_dir, partial(self._settle, corpus))
        return []

    def run_all(self, system: System) -> list[str]:
        """All corpora that were asked for; what went wrong, one line each. One that fails does not stop the
        others.
        """
        failed = []
        for name in self.options.only:
            begin = time.monotonic()
            try:
                if self.options.profile:
                    self._profile(system, name)
                else:
                    self._contest(system, name)
            except Exception as error:  # noqa: BLE001 - the other corpora have figures of their own
                self.console.print_exception() if self.options.verbose else traceback.print_exc(limit=-2)
                failed.append(f"{name}: {type(error).__name__}: {error}")
            self.console.print(f"{name} took {time.monotonic() - begin:.0f} s in all\n")
            if name not in {"many-files", "tiny"}:
                _remove(self.folder / "runs")  # few files, many bytes
        return failed

    def grow(self, system: System) -> list[str]:
        """All steps of the growth curves; what went wrong, as `run_all`."""
        failed = []
        for kind, count, corpus_of in growth.corpora(self.folder / "corpora", self.options.size):
            data_dir = self.folder / "runs" / f"{count}-{kind}"
            data_dir.mkdir(parents=True)
            try:
                corpus = corpus_of()
                corpus.make()
                step = growth.grow(system, kind, count, corpus, data_dir, partial(self._settle, corpus))
            except Exception as error:  # noqa: BLE001 - the other steps have figures of their own
                self.console.print_exception() if self.options.verbose else traceback.print_exc(limit=-2)
                failed.append(f"{count} {kind}: {type(error).__name__}: {error}")
            else:
                self.steps.append(step)
                self.console.print(f"  {count:,} {kind}: {step.measured.seconds:.2f} s")
        for corpus in growth.shared_corpora(self.folder / "corpora", self.options.size):
            self._by_teams(system, corpus)
        return failed

    def _by_teams(self, system: System, corpus: Corpus) -> None:
        corpus.make()
        for workers in growth.TEAMS:
            data_dir = self.folder / "runs" / f"{corpus.name}-by-{workers}"
            data_dir.mkdir(parents=True)
            measured = system.migrate(corpus, data_dir, partial(self._settle, corpus), workers=workers)
            self.teams.append(growth.Team(corpus=corpus.name, workers=workers, measured=measured))
            self.console.print(f"  {corpus.name} by {workers} workers: {measured.seconds:.2f} s")

    def _contest(self, system: System, name: str) -> None:
        corpus = self._made(name)
        contenders = self._contenders(system, corpus)
        self._refuse_without_space(corpus, len(contenders))
        contest = Contest(
            corpus=name,
            projects=len(corpus.projects),
            files=len(corpus.sizes),
            total_bytes=corpus.total_bytes,
            unique_bytes=corpus.unique_bytes,
            runs={contender: [] for contender in contenders},
        )
        self.contests.append(contest)
        for number in range(1, self.options.runs + 1):
            for place, (contender, measure) in enumerate(contenders.items()):
                out = self.folder / "runs" / f"{name}-{number}-{place}"
                out.mkdir(parents=True)
                measured = measure(corpus, out, partial(self._settle, corpus))
                contest.runs[contender].append(measured)
                by = f" ({measured.decided_by})" if measured.decided_by else ""
                self.console.print(f"  round {number}: {contender:<14} {measured.seconds:8.2f} s{by}")

    def _contenders(self, system: System, corpus: Corpus) -> dict[str, Measure]:
        """The migrator, then its peers, as the names in the table say."""
        ours: Measure = system.migrate if corpus.name != "again" else self._again(system)
        found: dict[str, Measure] = {OURS: ours}
        if corpus.name == "tiny":
            found["no-op tasks"] = lambda corpus, out, settle: system.noops(len(corpus.projects), out, settle)
        peers = available(PEERS[corpus.name], lambda line: self.console.print(f"  [dim]{line}[/]"))
        return found | {peer.name: peer.measure for peer in peers}

    def _again(self, system: System) -> Measure:
        """Store everything, untimed; then other projects with the same content come, each round new rows."""
        data_dir = self.folder / "runs" / "again-stored"
        data_dir.mkdir(parents=True)
        first = large(self.folder / "corpora", self.options.size)
        system.migrate(first, data_dir, lambda: None)

        def measure(corpus: Corpus, _out: Path, settle: Settle) -> Measured:
            for path in corpus.sizes:
                # As files that nobody has seen before: what a store may remember of the last round does not
                # help it.
                os.utime(path)
            return system.migrate(corpus, data_dir, settle, emptied=False)

        return measure

    def _profile(self, system: System, name: str) -> None:
        corpus = self._made(name)
        data_dir = self.folder / "runs" / f"{name}-profile"
        data_dir.mkdir(parents=True)
        profile(system, corpus, data_dir, partial(self._settle, corpus))

    def _made(self, name: str) -> Corpus:
        corpus = MAKERS[name](self.folder / "corpora", self.options.size)
        corpus.make()
        self.console.print(
            f"[bold]{name}[/]: {len(corpus.projects)} projects, {len(corpus.sizes)} files, "
            f"{corpus.total_bytes / 1e6:.1f} MB, {corpus.unique_bytes / 1e6:.1f} MB different"
        )
        return corpus

    def _settle(self, corpus: Corpus) -> None:
        warm([corpus])
        os.sync()
        time.sleep(self.options.settle)

    def _refuse_without_space(self, corpus: Corpus, contenders: int) -> None:
        """Every run of every contender stays on the disk until the corpus is done; what is stored already
        comes once.
        """
        kept = 2 if corpus.name == "again" else self.options.runs * contenders
        needed = corpus.total_bytes * kept * 1.2 + 1e9
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"{self.folder} has {free / 1e9:.0f} GB free and may need {needed / 1e9:.0f} GB")


# Arguments in, results out ----------------------------------------------------------------------------------


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--size",
        type=float,
        default=float(os.environ.get("SIZE") or 0.2),
        help="1.0 is full size (large 3.4 GB, one-big 3 GB); default: $SIZE or 0.2",
    )
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(MAKERS),
        help=f"some of {','.join(MAKERS)}",
    )
    parser.add_argument("--runs", type=int, default=3, help="rounds; default 3")
    parser.add_argument(
        "--settle", type=float, default=3.0, help="seconds of rest before each timing; default 3"
    )
    parser.add_argument(
        "--folder", type=Path, default=RESULTS / "work", help="where corpora, stores and servers go"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the corpora and the last runs for the next time"
    )
    parser.add_argument(
        "--profile", action="store_true", help="do not compare; show where a migration's time goes"
    )
    parser.add_argument(
        "--growth",
        action="store_true",
        help="do not compare; show what a project costs among more and more, a file in bigger and bigger projects, "
        "and what more workers bring",
    )
    parser.add_argument(
        "--phases",
        type=int,
        metavar="N",
        help="do not compare; show how long an operator waits for each phase of a run over N tiny projects",
    )
    parser.add_argument("--verbose", action="store_true", help="errors with everything around them")
    options = parser.parse_args(arguments)
    if unknown := set(options.only) - set(MAKERS):
        parser.error(f"no corpus named {', '.join(sorted(unknown))}")
    if not 0 < options.size <= 10 or options.runs < 1:
        parser.error("--size is above 0 and at most 10, --runs at least 1")
    return options


def _publish(
    console: Console,
    contests: Sequence[Contest],
    facts: dict[str, str | float | int],
    options: argparse.Namespace,
) -> None:
    """Print the table, and leave JSON and plot in bench-results/."""
    Console(width=max(console.width, 132), highlight=False).print(table(contests))
    console.print(_machine_line(facts))
    after = [run.flush_s for contest in contests for run in contest.runs[OURS] if run.flush_s is not None]
    if after:
        console.print(
            f"Every time ends when the result is durable (peers: with sync). A sync after the migrator's runs took at most "
            f"{max(after):.2f} s. Cores: processor seconds of the workers, or of the peer, for each second."
        )
    if options.size < 1:
        console.print(
            "The bounds are those of size 1; below it, what each run and each project costs at least weighs more."
        )
    title = f"Seconds until durable, size {options.size:g}, median of {options.runs}"
    _write(
        console,
        "bench",
        {
            "size": options.size,
            "runs": options.runs,
            "settle_s": options.settle,
            "workers": WORKERS,
            "machine": facts,
            "contests": [contest.as_json() for contest in contests],
        },
        svg(contests, title, _machine_line(facts)),
    )


def _publish_growth(
    console: Console,
    bench: Bench,
    facts: dict[str, str | float | int],
    options: argparse.Namespace,
) -> None:
    """The same for growth."""
    Console(width=max(console.width, 132), highlight=False).print(growth.table(bench.steps))
    console.print(growth.teams_table(bench.teams))
    console.print(_machine_line(facts))
    console.print(
        "Processor time of all processes of the workers, and of PostgreSQL and Valkey, for each project or file."
    )
    _write(
        console,
        "growth",
        {
            "size": options.size,
            "workers": WORKERS,
            "machine": facts,
            "steps": growth.as_json(bench.steps),
            "teams": [asdict(team) for team in bench.teams],
        },
        growth_svg(bench.steps, bench.teams, "What one more costs, or brings", _machine_line(facts)),
    )


def _write(console: Console, name: str, document: dict[str, object], drawing: str | None = None) -> None:
    """Leave figures and plot in bench-results/."""
    now = datetime.now(UTC)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{name}_{now:%Y%m%d_%H%M%S}"
    stem.with_suffix(".json").write_text(
        json.dumps({"at": now.isoformat(timespec="seconds")} | document, indent=2) + "\n"
    )
    console.print(f"Written: {stem}.json")
    if drawing is not None:
        stem.with_suffix(".svg").write_text(drawing)
        console.print(f"Written: {stem}.svg")


def _machine_line(facts: dict[str, str | float | int]) -> str:
    return (
        f"Machine: {facts['cores']} cores of {facts['cpu']}, {facts['memory_gib']} GiB, Linux {facts['kernel']}, "
        f"{facts['file_system']}, Python {facts['python']}, load {facts['load_at_start']} at the start"
    )


def _remove(folder: Path) -> None:
    """Remove a folder, read-only trees of stores included."""
    for above, _, _ in os.walk(folder):
        with suppress(OSError):
            os.chmod(above, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
