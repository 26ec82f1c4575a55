"""`python -m tests.chaos`: schedules one after the other, each from a seed of its own, and a table of what
they went through.
"""

import argparse
import signal
import statistics
import sys
from collections.abc import Iterator, Sequence

from tests.chaos.plan import BLOWS, Kind, make_plan
from tests.chaos.schedule import Result, run_schedule
from tests.chaos.servers import servers
from tests.support.forking import PROGRAMS, forks
from worker.messages import Verb


def main() -> int:
    """Run the schedules that the command line asks for; 1 when any of them failed. Stopped before, it tells
    of those that were played.
    """
    arguments = _arguments()
    # Whoever ends us lets us end what we started.
    told_to_stop: list[int] = []

    def stop(number: int, _frame: object) -> None:
        # Python passes over what is raised in a finalizer: then it is the next schedule that is not played.
        told_to_stop.append(number)
        sys.exit(1)

    signal.signal(signal.SIGTERM, stop)
    results: list[Result] = []
    try:
        with (
            servers(arguments.blow or arguments.only) as running,
            forks(running.folder, PROGRAMS) as processes,
        ):
            for seed in range(arguments.seed, arguments.seed + arguments.schedules):
                if told_to_stop:
                    sys.exit(1)
                plan = make_plan(
                    seed,
                    faultless=arguments.faultless,
                    only=arguments.only,
                    waves=arguments.waves,
                    blow=arguments.blow,
                )
                result = run_schedule(plan, running, processes, keep=arguments.keep)
                results.append(result)
                _tell(result)
    finally:
        for line in table(results) if results else ():
            print(line, flush=True)
    return 1 if any(result.findings for result in results) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--schedules", type=int, default=200, metavar="N", help="how many")
    parser.add_argument(
        "--seed", type=int, default=1, metavar="S", help="of the first; each next one has the next"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folders of all schedules")
    parser.add_argument(
        "--faultless", action="store_true", help="the same estates and runs without any fault"
    )
    parser.add_argument("--waves", action="store_true", help="let every migration go in waves, with gates")
    parser.add_argument(
        "--only",
        choices=[kind.name for kind in Kind],
        metavar="KIND",
        help="make every fault one of this kind",
    )
    parser.add_argument(
        "--blow",
        choices=list(BLOWS),
        help="let servers be pairs, and add this to what each seed does: " + ", ".join(BLOWS),
    )
    arguments = parser.parse_args()
    arguments.only = Kind[arguments.only] if arguments.only else None
    arguments.blow = BLOWS.get(arguments.blow)
    return arguments


def _tell(result: Result) -> None:
    plan = result.plan
    verdict = "failed" if result.findings else "passed"
    print(
        f"seed {plan.seed}: {verdict} in {result.seconds:.1f} s: {len(plan.projects)} projects, "
        f"{plan.workers} workers of {plan.concurrency}, {len(result.counts.happened)} faults, {result.counts.runs} runs, "
        f"{result.counts.lost_leases} lost leases ({result.counts.unexplained} unexplained), {result.counts.fenced} fenced; {plan.ending.value}",
        flush=True,
    )
    if result.findings:
        for line in result.findings[:40]:
            print(f"  {line}")
        print(
            f"  Kept: {result.folder}\n  Alone: make chaos N=1 SEED={plan.seed}{' WAVES=1' if plan.waves else ''}",
            flush=True,
        )
        sys.stdout.flush()


def _spread(seconds: Sequence[float | None]) -> str:
    """Median, nine tenths and most, of those that are known."""
    known = sorted(one for one in seconds if one is not None)
    if not known:
        return " " * 27
    ninth = known[min(len(known) - 1, int(len(known) * 0.9))]
    return "".join(f"{one:>9.2f}" for one in (statistics.median(known), ninth, known[-1]))


def table(results: Sequence[Result]) -> Iterator[str]:
    """What happened how often, and what it cost."""
    yield ""
    yield f"{'':54}{'seconds until the next':^28}{'until the jobs of the one hit':^28}"
    yield f"{'':54}{'job of anybody ended':^28}{'were taken again':^28}"
    columns = f"{'median':>9}{'90 %':>9}{'most':>9} "
    yield f"{'fault':<48}{'times':>6}{columns}{columns}"
    happened = [one for result in results for one in result.counts.happened]
    for kind in Kind:
        of_kind = [one for one in happened if one.kind is kind]
        if of_kind:
            ends = _spread([one.next_end_s for one in of_kind])
            yield f"{kind.value:<48}{len(of_kind):>6}{ends} {_spread([one.taken_on_s for one in of_kind])}"
    yield ""
    yield f"{'verb':<48}{'runs':>6}{'jobs':>9}{'taken again':>14}{'skipped':>9}{'failed':>9}"
    of_verbs = [one for result in results for one in result.counts.verbs]
    for verb in Verb:
        of_verb = [one for one in of_verbs if one.verb == verb]
        runs, jobs, again, skipped, failed_jobs = (
            sum(getattr(one, name) for one in of_verb)
            for name in ("runs", "jobs", "again", "skipped", "failed")
        )
        yield f"{verb.value:<48}{runs:>6}{jobs:>9}{again:>14}{skipped:>9}{failed_jobs:>9}"
    yield ""
    failed = [result for result in results if result.findings]
    seconds = [result.seconds for result in results]
    yield (
        f"{len(results)} schedules: {len(results) - len(failed)} passed, {len(failed)} failed; "
        f"median {statistics.median(seconds):.1f} s, most {max(seconds):.1f} s"
    )
    yield (
        f"{sum(result.counts.runs for result in results)} runs, {sum(result.counts.jobs for result in results)} jobs, "
        f"{sum(result.counts.lost_leases for result in results)} lost leases "
        f"({sum(result.counts.unexplained for result in results)} unexplained), "
        f"{sum(result.counts.fenced for result in results)} fenced attempts, "
        f"{sum(result.counts.given_up for result in results)} jobs given up after crashes in the end, "
        f"{sum(result.counts.leftover_trees for result in results)} trees left without a row, "
        f"{sum(result.too_late for result in results)} faults that came too late"
    )
    for result in failed:
        yield f"failed: make chaos N=1 SEED={result.plan.seed}   ({result.folder})"


if __name__ == "__main__":
    sys.exit(main())
