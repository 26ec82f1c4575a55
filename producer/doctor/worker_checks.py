"""What the doctor asks the workers: each looks at its own machine, and all of them must work on the same things."""

from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from producer.doctor.ask_workers import AllEvidence, Asked, ask_all
from producer.doctor.findings import Chapter, Notes
from worker.broker import client as broker
from worker.db import health, overview, stores
from worker.doctor.protocol import Evidence, edition
from worker.errors import BrokerUnavailableError, MigratorError
from worker.findings import Check, Verdict, failed, passed, warned
from worker.settings import Settings

WORKER_COMMAND = "celery -A worker.app worker --concurrency 2 -E"

_CONNECTIONS_OF_A_JOB = 4
_CONNECTIONS_OF_A_PARENT = 2
_CONNECTIONS_OF_PRODUCERS = 5
_FEW = 5
_ALIKE = (
    "answers",
    "same program",
    "same settings",
    "same database",
    "same data directory",
    "same store",
    "own host names",
)
_TOGETHER = ("staging", "restores", "legacy projects", "database connections")


def look(settings: Settings, engine: Engine) -> Chapter:
    """Everything about the workers that are online, and what they say of their machines."""
    notes = Notes("Workers")
    try:
        # Celery's own client tries for long to reach a broker that is away.
        broker.check(settings)
        online = broker.workers_online(settings)
        asked = ask_all(settings, sorted(set(online))) if online else None
    except BrokerUnavailableError:
        notes.leave_out(("online", *_ALIKE, *_TOGETHER), "Redis cannot be asked")
        return notes.chapter()
    if asked is None:
        notes.add(failed("online", "No worker is online", f"Start one: {WORKER_COMMAND}"))
        notes.leave_out((*_ALIKE, *_TOGETHER), "no worker is online")
        return notes.chapter()
    notes.add(online_check(online, asked.evidence), answers_check(asked))
    if asked.evidence:
        notes.add(*alike_checks(settings, engine, asked), *checks_of_all(asked.evidence))
        notes.look("staging", lambda: staging_check(_names_of_live_jobs(engine), asked.evidence))
        notes.look("restores", lambda: restores_check(_names_of_live_jobs(engine), asked.evidence))
        notes.add(projects_check(asked.evidence))
        notes.look("database connections", lambda: _connections(engine, asked.evidence))
    else:
        notes.leave_out((*_ALIKE[1:], *_TOGETHER), "no worker has answered")
    return notes.chapter()


# Who is there -----------------------------------------------------------------------------------------------------


def online_check(workers: Sequence[str], evidence: AllEvidence) -> Check:
    """Who takes jobs right now. Names are how they are told apart, also in the ledger."""
    twice = sorted({name for name in workers if list(workers).count(name) > 1})
    if twice:
        words = f"several workers are called {_some(twice)}"
        return warned(
            "online", words, "Give each worker a name of its own: celery … worker --hostname NAME@%h"
        )
    processes = sum(one.processes for one in evidence.values())
    return passed("online", f"{_some(workers)}; {processes} processes")


def answers_check(asked: Asked) -> Check:
    """Did everybody come to an end?"""
    if not asked.silent:
        return passed("answers", "every worker has looked at its machine")
    words = "; ".join(f"{name} {why}" for name, why in sorted(asked.silent.items()))
    return failed(
        "answers", words, "Look at that machine's mounts and at the worker's log; restart the worker."
    )


# What all must have alike -----------------------------------------------------------------------------------------


def alike_checks(settings: Settings, engine: Engine, asked: Asked) -> Iterator[Check]:
    """Same program, settings, database and store."""
    evidence = asked.evidence
    yield edition_check(edition(), evidence)
    yield settings_check(settings.common, evidence)
    yield database_check(_identity(engine), evidence)
    yield directory_check(asked)
    yield store_check(evidence, _named(engine))
    yield hosts_check(evidence)


def edition_check(ours: str, evidence: AllEvidence) -> Check:
    """Is everybody's program the one that runs here? By its source, not by what it calls itself."""
    name = "same program"
    others = {who: said.edition for who, said in evidence.items() if said.edition != ours}
    if not others:
        return passed(name, ours)
    words = "; ".join(f"{who} runs {theirs}" for who, theirs in sorted(others.items()))
    return failed(
        name, f"{words}; here is {ours}", "Install the same version everywhere and restart these workers."
    )


def settings_check(ours: Mapping[str, str], evidence: AllEvidence) -> Check:
    """Do all have the settings that all must have alike?"""
    name = "same settings"
    differ = [
        f"{who} has {variable}={said.settings.get(variable)}, here it is {value}"
        for who, said in sorted(evidence.items())
        for variable, value in ours.items()
        if said.settings.get(variable) != value
    ]
    if differ:
        return failed(name, "; ".join(differ), "Set it alike on every machine and restart the workers.")
    return passed(name, f"{', '.join(ours)} are alike everywhere")


def database_check(ours: str | None, evidence: AllEvidence) -> Check:
    """Do all mean the same database, whatever they call it? One that cannot get there has said so already."""
    name = "same database"
    theirs = {who: said.database for who, said in evidence.items() if said.database is not None}
    reference = ours or next(iter(theirs.values()), None)
    others = sorted(who for who, database in theirs.items() if database != reference)
    if others:
        words = f"{_some(others)} {'uses' if len(others) == 1 else 'use'} another database"
        return failed(name, words, "Set DATABASE_URL alike on every machine and restart the workers.")
    return passed(name, "everybody's is one and the same")


def directory_check(asked: Asked) -> Check:
    """Is DATA_DIR the same directory for all? Everybody has left a mark there that all others must see."""
    name = "same data directory"
    made = {who: said.machine.mark for who, said in asked.evidence.items() if said.machine.mark is not None}
    blind = {
        who: sorted(other for other, mark in made.items() if mark not in asked.marks[who])
        for who in made.keys() & asked.marks.keys()
    }
    apart = {who: others for who, others in sorted(blind.items()) if others}
    if apart:
        words = "; ".join(f"{who} does not see what {_some(others)} wrote" for who, others in apart.items())
        return failed(name, words, "Mount the same file system at DATA_DIR on every worker's machine.")
    if len(made) < len(asked.evidence):
        others = sorted(asked.evidence.keys() - made.keys())
        return warned(name, f"not known of {_some(others)}, which cannot write there", "See: data directory.")
    return passed(
        name, "everybody sees what the others write" if len(made) > 1 else "one worker, one directory"
    )


def store_check(evidence: AllEvidence, named: str | None = None) -> Check:
    """Do all find the same store in it, the one that the database names, or none yet?"""
    name = "same store"
    ids = {who: said.machine.store_id for who, said in evidence.items() if not _cannot_tell(said)}
    if not ids:
        return warned(name, "nobody can tell", "See: store.")
    if len(set(ids.values())) > 1:
        words = "; ".join(f"{who} finds {found or 'none'}" for who, found in sorted(ids.items()))
        return failed(name, words, "Mount the same file system at DATA_DIR on every worker's machine.")
    (found,) = set(ids.values())
    if named is not None and found != named:
        return failed(
            name,
            f"every worker finds {found or 'none'}, and the database names {named}",
            "Mount DATA_DIR with the store of this database on every worker's machine; if it is lost for good, see docs/operations.md.",
        )
    return passed(name, found or "none yet")


def _cannot_tell(said: Evidence) -> bool:
    """One whose store cannot be read has said so already."""
    return any(check.name == "store" and check.verdict is Verdict.FAIL for check in said.machine.checks)


def _named(engine: Engine) -> str | None:
    try:
        with engine.connect() as conn:
            row = stores.named(conn)
    except (MigratorError, SQLAlchemyError):
        return None
    return row.store_id if row is not None else None


def hosts_check(evidence: AllEvidence) -> Check:
    """Has every machine a name of its own? To an NFS server two clients of one name are one, and take each other's state."""
    name = "own host names"
    machines: dict[str, dict[str, str]] = {}
    for who, said in sorted(evidence.items()):
        machines.setdefault(said.machine.host, {}).setdefault(said.machine.boot_id, who)
    same = [
        f"{_some(sorted(by_boot.values()))} are on different machines that are both called {host}"
        for host, by_boot in sorted(machines.items())
        if host and len(by_boot) > 1
    ]
    if same:
        remedy = "Give each machine a host name of its own (or nfs4_unique_id), and mount again."
        return failed(name, "; ".join(same), remedy)
    return passed(name, f"{len(machines)} {'machine' if len(machines) == 1 else 'machines'}")


def _identity(engine: Engine) -> str | None:
    try:
        with engine.connect() as conn:
            return health.identity(conn)
    except (MigratorError, SQLAlchemyError):
        return None


# What each says of its machine ------------------------------------------------------------------------------------


def checks_of_all(evidence: AllEvidence) -> Iterator[Check]:
    """One check for each thing that the workers looked at, with the worst verdict and whose it is."""
    by_name: dict[str, dict[str, Check]] = {}
    for who, said in sorted(evidence.items()):
        for check in (*said.checks, *said.machine.checks):
            by_name.setdefault(check.name, {})[who] = check
    return (together(name, checks) for name, checks in by_name.items())


def together(name: str, checks: Mapping[str, Check]) -> Check:
    """One check out of those of several workers: the worst verdict, and all who have it."""
    worst = max((check.verdict for check in checks.values()), key=list(Verdict).index)
    of_worst = {who: check for who, check in checks.items() if check.verdict is worst}
    said: dict[str, list[str]] = {}
    for who, check in of_worst.items():
        said.setdefault(check.finding, []).append(who)
    if len(said) == 1 and len(of_worst) == len(checks):
        words = next(iter(said))
    elif worst is Verdict.PASS:
        first, check = next(iter(of_worst.items()))
        words = f"{first}: {check.finding}; {len(checks) - 1} more {'is' if len(checks) == 2 else 'are'} well"
    else:
        parts = [f"{_some(whose)}: {finding}" for finding, whose in said.items()]
        words = "; ".join(parts[:_FEW]) + (f"; and {len(parts) - _FEW} more" if len(parts) > _FEW else "")
    remedy = next(iter(of_worst.values())).remedy
    return Check(name=name, verdict=worst, finding=words, remedy=remedy)


def staging_check(of_live_jobs: Sequence[str], evidence: AllEvidence) -> Check:
    """Does anything lie in staging that no running job can have made?"""
    name = "staging"
    names = {entry for said in evidence.values() for entry in said.machine.staging}
    leftovers = sorted(entry for entry in names if not entry.startswith(tuple(of_live_jobs)))
    if leftovers:
        return warned(
            name,
            f"{len(leftovers)} leftovers of attempts that are over, in dataset_store/staging: {_some(leftovers)}",
            "They only take space. The next jobs remove what is this database's; while no run is going, the rest can be removed.",
        )
    return passed(name, "nothing is left over")


def restores_check(of_live_jobs: Sequence[str], evidence: AllEvidence) -> Check:
    """Has a restore left anything beside legacy directories that no running job can be building?"""
    name = "restores"
    paths = {path for said in evidence.values() for path in said.machine.restoring}
    live = tuple(f".restoring-{job}" for job in of_live_jobs)
    leftovers = sorted(path for path in paths if not path.rpartition("/")[2].startswith(live))
    if leftovers:
        return warned(
            name,
            f"{len(leftovers)} unfinished legacy directories of restores that are over: {_some(leftovers)}",
            "They only take space. The next restore beside them removes them; while no run is going, they can be removed.",
        )
    return passed(name, "nothing is left over beside legacy directories")


def projects_check(evidence: AllEvidence) -> Check:
    """Can everybody read the legacy projects? One that nobody sees is lost; one that some do not see lacks a mount there."""
    name = "legacy projects"
    unseen: dict[int, dict[str, str]] = {}
    for who, said in sorted(evidence.items()):
        for number, trouble in said.machine.unseen.items():
            unseen.setdefault(number, {})[who] = trouble
    by_some = {number: troubles for number, troubles in unseen.items() if len(troubles) < len(evidence)}
    sampled = max(said.sampled for said in evidence.values())
    if by_some:
        return failed(
            name,
            f"{_examples(by_some, sampled)}, and other workers read them",
            "Mount the directory on every worker's machine at the same path, readable for the worker's user.",
        )
    if unseen:
        return warned(
            name,
            f"{_examples(unseen, sampled)}",
            "Correct the project's path in Label, mount the directory on every worker, or leave it out (--exclude).",
        )
    return passed(
        name, f"all {sampled} that were looked at can be read" if sampled else "there is none to look at"
    )


def _examples(unseen: Mapping[int, Mapping[str, str]], sampled: int) -> str:
    number, troubles = next(iter(sorted(unseen.items())))
    who, trouble = next(iter(troubles.items()))
    projects = "project" if len(unseen) == 1 else "projects"
    return f"{len(unseen)} of {sampled} cannot be read ({projects} {_some(sorted(unseen))}); {who}: project {number} {trouble}"


def _names_of_live_jobs(engine: Engine) -> list[str]:
    """How everything in staging begins that is somebody's work right now."""
    with engine.connect() as conn:
        return [f"{ref.task_id}-" for ref in overview.running_jobs(conn)]


def _connections(engine: Engine, evidence: AllEvidence) -> Check:
    with engine.connect() as conn:
        server = health.server(conn)
    parents, processes = len(evidence), sum(said.processes for said in evidence.values())
    return connections_check(server.room - server.others, parents=parents, processes=processes)


def connections_check(left: int, *, parents: int, processes: int) -> Check:
    """Does PostgreSQL have room for what all of them may use at once?"""
    name = "database connections"
    needed = (
        processes * _CONNECTIONS_OF_A_JOB + parents * _CONNECTIONS_OF_A_PARENT + _CONNECTIONS_OF_PRODUCERS
    )
    words = f"up to {needed} are needed, {left} are left by others"
    if needed > left:
        return warned(name, words, "Raise max_connections, or start workers with a smaller --concurrency.")
    return passed(name, words)


def _some(things: Sequence[object]) -> str:
    """The first few of many."""
    rest = f" and {len(things) - _FEW} more" if len(things) > _FEW else ""
    return ", ".join(str(thing) for thing in things[:_FEW]) + rest
