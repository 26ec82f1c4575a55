"""What the doctor learns from the workers: which are online, and what they found on their machines."""

from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Engine

from producer.doctor import same_checks
from producer.doctor.ask_workers import AllEvidence, Asked, ask_all
from producer.doctor.findings import FEW, Chapter, first_few
from producer.doctor.same_checks import Workers
from worker.broker import client as broker
from worker.db import health, overview
from worker.errors import BrokerUnavailableError
from worker.findings import Check, Verdict, failed, passed, warned, worst
from worker.settings import Settings

WORKER_COMMAND = "celery -A worker.app worker --concurrency 2 -E"

_CONNECTIONS_OF_A_JOB = 3
_CONNECTIONS_OF_A_PARENT = 2
_CONNECTIONS_OF_PRODUCERS = 5

CHECKS: Mapping[str, Callable[[Workers], Check]] = {
    "staging": lambda it: staging_check(_live_prefixes(it.engine), it.evidence),
    "restores": lambda it: restores_check(_live_prefixes(it.engine), it.evidence),
    "legacy projects": lambda it: projects_check(it.evidence),
    "database connections": lambda it: _connections(it.engine, it.evidence),
}
"""What only the evidence of all workers together shows."""

_NAMES = ("answers", *same_checks.CHECKS, *CHECKS)


def check_workers(settings: Settings, engine: Engine) -> Chapter:
    """Everything about the workers that are online, and what they found on their machines."""
    chapter = Chapter("Workers")
    try:
        # Celery's own client tries for long to reach a broker that is away.
        broker.check(settings)
        online = broker.workers_online(settings)
        asked = ask_all(settings, sorted(set(online))) if online else None
    except BrokerUnavailableError:
        chapter.leave_out(("online", *_NAMES), "Redis cannot be asked")
        return chapter
    if asked is None:
        chapter.checks["online"] = failed("No worker is online", f"Start one: {WORKER_COMMAND}")
        chapter.leave_out(_NAMES, "no worker is online")
        return chapter
    chapter.checks["online"] = online_check(online, asked.evidence)
    chapter.checks["answers"] = answers_check(asked)
    if not asked.evidence:
        chapter.leave_out(_NAMES, "no worker has answered")
        return chapter
    workers = Workers(settings=settings, engine=engine, asked=asked)
    chapter.carry_out(same_checks.CHECKS, workers)
    chapter.checks |= checks_of_all(asked.evidence)
    chapter.carry_out(CHECKS, workers)
    return chapter


# Which workers are online -----------------------------------------------------------------------------------


def online_check(workers: Sequence[str], evidence: AllEvidence) -> Check:
    """Which workers take jobs right now. Names are how they are told apart, also in the ledger."""
    twice = sorted({name for name in workers if list(workers).count(name) > 1})
    if twice:
        remedy = "Give each worker a name of its own: celery … worker --hostname NAME@%h"
        return warned(f"several workers are called {first_few(twice)}", remedy)
    processes = sum(one.processes for one in evidence.values())
    return passed(f"{first_few(workers)}; {processes} processes")


def answers_check(asked: Asked) -> Check:
    """Did every worker come to the end of its examination?"""
    if not asked.silent:
        return passed("every worker has checked its machine")
    finding = "; ".join(f"{name} {why}" for name, why in sorted(asked.silent.items()))
    return failed(finding, "Look at that machine's mounts and at the worker's log; restart the worker.")


# What each found on its machine -----------------------------------------------------------------------------


def checks_of_all(evidence: AllEvidence) -> dict[str, Check]:
    """One check for each thing that the workers checked: the worst verdict, and who has it."""
    by_name: dict[str, dict[str, Check]] = {}
    for who, said in sorted(evidence.items()):
        for name, check in (said.checks | said.machine.checks).items():
            by_name.setdefault(name, {})[who] = check
    return {name: together(checks) for name, checks in by_name.items()}


def together(checks: Mapping[str, Check]) -> Check:
    """One check out of those of several workers: the worst verdict, and all workers that have it."""
    verdict = worst(checks.values())
    of_worst = {who: check for who, check in checks.items() if check.verdict is verdict}
    remedy = next(iter(of_worst.values())).remedy
    return Check(verdict=verdict, finding=_finding(of_worst, len(checks)), remedy=remedy)


def _finding(of_worst: Mapping[str, Check], workers: int) -> str:
    """What these workers found, in one line; only once where all found the same."""
    by_finding: dict[str, list[str]] = {}
    for who, check in of_worst.items():
        by_finding.setdefault(check.finding, []).append(who)
    if len(by_finding) == 1 and len(of_worst) == workers:
        return next(iter(by_finding))
    first, check = next(iter(of_worst.items()))
    if check.verdict is Verdict.PASS:
        return f"{first}: {check.finding}; {workers - 1} more {'is' if workers == 2 else 'are'} well"
    parts = [f"{first_few(who)}: {finding}" for finding, who in by_finding.items()]
    return "; ".join(parts[:FEW]) + (f"; and {len(parts) - FEW} more" if len(parts) > FEW else "")


def staging_check(of_live_jobs: Sequence[str], evidence: AllEvidence) -> Check:
    """Does anything lie in staging that no running job can have made?"""
    names = {entry for said in evidence.values() for entry in said.machine.staging}
    leftovers = sorted(entry for entry in names if not entry.startswith(tuple(of_live_jobs)))
    if leftovers:
        return warned(
            f"{len(leftovers)} leftovers of attempts that are over, in dataset_store/staging: {first_few(leftovers)}",
            "They only take space. The next jobs remove what is this database's; while no run is going, the rest can be removed.",
        )
    return passed("nothing is left over")


def restores_check(of_live_jobs: Sequence[str], evidence: AllEvidence) -> Check:
    """Has a restore left anything beside legacy directories that no running job can be building?"""
    paths = {path for said in evidence.values() for path in said.machine.restoring}
    live = tuple(f".restoring-{job}" for job in of_live_jobs)
    leftovers = sorted(path for path in paths if not path.rpartition("/")[2].startswith(live))
    if leftovers:
        return warned(
            f"{len(leftovers)} unfinished legacy directories of restores that are over: {first_few(leftovers)}",
            "They only take space. The next restore beside them removes them; while no run is going, they can be removed.",
        )
    return passed("nothing is left over beside legacy directories")


def projects_check(evidence: AllEvidence) -> Check:
    """Can all read the legacy projects? One that none sees is lost; one that some see lacks a mount."""
    unseen: dict[int, dict[str, str]] = {}
    for who, said in sorted(evidence.items()):
        for number, trouble in said.machine.unseen.items():
            unseen.setdefault(number, {})[who] = trouble
    by_some = {number: troubles for number, troubles in unseen.items() if len(troubles) < len(evidence)}
    sampled = max(said.sampled for said in evidence.values())
    if by_some:
        return failed(
            f"{_examples(by_some, sampled)}, and other workers read them",
            "Mount the directory on every worker's machine at the same path, readable for the worker's user.",
        )
    if unseen:
        return warned(
            _examples(unseen, sampled),
            "Correct the project's path in Label, mount the directory on every worker, or leave it out (--exclude).",
        )
    return passed(f"all {sampled} that were looked at can be read" if sampled else "there is none to look at")


def _examples(unseen: Mapping[int, Mapping[str, str]], sampled: int) -> str:
    number, troubles = next(iter(sorted(unseen.items())))
    who, trouble = next(iter(troubles.items()))
    projects = "project" if len(unseen) == 1 else "projects"
    return f"{len(unseen)} of {sampled} cannot be read ({projects} {first_few(sorted(unseen))}); {who}: project {number} {trouble}"


def _live_prefixes(engine: Engine) -> list[str]:
    """How the names of everything begin that a running job may be making right now."""
    with engine.connect() as conn:
        return [f"{ref.task_id}-" for ref in overview.running_jobs(conn)]


def _connections(engine: Engine, evidence: AllEvidence) -> Check:
    with engine.connect() as conn:
        server = health.server(conn)
    parents, processes = len(evidence), sum(said.processes for said in evidence.values())
    return connections_check(server.room - server.others, parents=parents, processes=processes)


def connections_check(left: int, *, parents: int, processes: int) -> Check:
    """Does PostgreSQL have room for what all of them may use at once?"""
    needed = (
        processes * _CONNECTIONS_OF_A_JOB + parents * _CONNECTIONS_OF_A_PARENT + _CONNECTIONS_OF_PRODUCERS
    )
    finding = f"up to {needed} are needed, {left} are left by others"
    if needed > left:
        return warned(finding, "Raise max_connections, or start workers with a smaller --concurrency.")
    return passed(finding)
