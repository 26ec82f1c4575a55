"""What all workers must have alike: program, settings, database, store, and host names that are not alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from producer.doctor.ask_workers import AllEvidence, Asked
from producer.doctor.findings import first_few
from worker.db import health, stores
from worker.doctor.protocol import Evidence, edition
from worker.errors import MigratorError
from worker.findings import Check, Verdict, failed, passed, warned
from worker.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """What is checked here: what came of asking the workers, beside this machine's settings and database."""

    settings: Settings
    engine: Engine
    asked: Asked

    @property
    def evidence(self) -> AllEvidence:
        """What each worker found."""
        return self.asked.evidence


CHECKS: Mapping[str, Callable[[Workers], Check]] = {
    "same program": lambda it: edition_check(edition(), it.evidence),
    "same settings": lambda it: settings_check(it.settings.common, it.evidence),
    "same database": lambda it: database_check(_read(it.engine, health.identity), it.evidence),
    "same data directory": lambda it: directory_check(it.asked),
    "same store": lambda it: store_check(it.evidence, _read(it.engine, _named_store)),
    "own host names": lambda it: hosts_check(it.evidence),
}


def edition_check(ours: str, evidence: AllEvidence) -> Check:
    """Is every worker's program the one that runs here? By its source, not by what it calls itself."""
    others = {who: said.edition for who, said in evidence.items() if said.edition != ours}
    if not others:
        return passed(ours)
    running = "; ".join(f"{who} runs {theirs}" for who, theirs in sorted(others.items()))
    remedy = "Install the same version everywhere and restart these workers."
    return failed(f"{running}; here is {ours}", remedy)


def settings_check(ours: Mapping[str, str], evidence: AllEvidence) -> Check:
    """Do all have the settings that all must have alike?"""
    differ = [
        f"{who} has {variable}={said.settings.get(variable)}, here it is {value}"
        for who, said in sorted(evidence.items())
        for variable, value in ours.items()
        if said.settings.get(variable) != value
    ]
    if differ:
        return failed("; ".join(differ), "Set it alike on every machine and restart the workers.")
    return passed(f"{', '.join(ours)} are alike everywhere")


def database_check(ours: str | None, evidence: AllEvidence) -> Check:
    """Do all use the same database, whatever they call it? Whether they reach it is another check."""
    theirs = {who: said.database for who, said in evidence.items() if said.database is not None}
    reference = ours or next(iter(theirs.values()), None)
    others = sorted(who for who, database in theirs.items() if database != reference)
    if others:
        finding = f"{first_few(others)} {'uses' if len(others) == 1 else 'use'} another database"
        return failed(finding, "Set DATABASE_URL alike on every machine and restart the workers.")
    return passed("it is one and the same for all")


def directory_check(asked: Asked) -> Check:
    """Is DATA_DIR the same directory for all? Each worker has left a mark there that all others must see."""
    made = {who: said.machine.mark for who, said in asked.evidence.items() if said.machine.mark is not None}
    blind = {
        who: sorted(other for other, mark in made.items() if mark not in asked.marks[who])
        for who in made.keys() & asked.marks.keys()
    }
    apart = {who: others for who, others in sorted(blind.items()) if others}
    if apart:
        finding = "; ".join(
            f"{who} does not see what {first_few(others)} wrote" for who, others in apart.items()
        )
        return failed(finding, "Mount the same file system at DATA_DIR on every worker's machine.")
    if len(made) < len(asked.evidence):
        others = sorted(asked.evidence.keys() - made.keys())
        return warned(f"not known of {first_few(others)}, which cannot write there", "See: data directory.")
    return passed("each worker sees what the others write" if len(made) > 1 else "one worker, one directory")


def store_check(evidence: AllEvidence, named: str | None = None) -> Check:
    """Do all find the same store in it, the one that the database names, or none yet?"""
    ids = {who: said.machine.store_id for who, said in evidence.items() if _could_read_store(said)}
    if not ids:
        return warned("no worker can tell", "See: store.")
    if len(set(ids.values())) > 1:
        finding = "; ".join(f"{who} finds {found or 'none'}" for who, found in sorted(ids.items()))
        return failed(finding, "Mount the same file system at DATA_DIR on every worker's machine.")
    (found,) = set(ids.values())
    if named is not None and found != named:
        return failed(
            f"every worker finds {found or 'none'}, and the database names {named}",
            "Mount DATA_DIR with the store of this database on every worker's machine; if it is lost for good, see docs/failures.md.",
        )
    return passed(found or "none yet")


def _could_read_store(said: Evidence) -> bool:
    """A worker that cannot read the store has a check that says so."""
    store = said.machine.checks.get("store")
    return store is None or store.verdict is not Verdict.FAIL


def hosts_check(evidence: AllEvidence) -> Check:
    """Has every machine a name of its own? To an NFS server two clients of one name are one and the same."""
    machines: dict[str, dict[str, str]] = {}
    for who, said in sorted(evidence.items()):
        machines.setdefault(said.machine.host, {}).setdefault(said.machine.boot_id, who)
    same = [
        f"{first_few(sorted(by_boot.values()))} are on different machines that are both called {host}"
        for host, by_boot in sorted(machines.items())
        if host and len(by_boot) > 1
    ]
    if same:
        remedy = "Give each machine a host name of its own (or nfs4_unique_id), and mount again."
        return failed("; ".join(same), remedy)
    return passed(f"{len(machines)} {'machine' if len(machines) == 1 else 'machines'}")


def _read(engine: Engine, read: Callable[[Connection], T]) -> T | None:
    """What the database says; None where it cannot be asked, which its own chapter has said already."""
    try:
        with engine.connect() as conn:
            return read(conn)
    except (MigratorError, SQLAlchemyError):
        return None


def _named_store(conn: Connection) -> str | None:
    row = stores.named(conn)
    return row.store_id if row is not None else None
