"""A history: steps of one or two moves at once, which follow from a seed, and how real jobs play it."""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any

from sqlalchemy import text

from tests.histories.lab import Lab
from tests.support.damages import flip
from tests.support.runs import WORK, open_run
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.messages import THE_STORE, JobRef, Outcome, Status, Subject, Verb
from worker.store.garbage import Garbage

JOBS: dict[str, tuple[Verb, dict[str, Any]]] = {
    "migrate": (Verb.MIGRATE, {}),
    "rollback": (Verb.ROLLBACK, {"restore_files": True}),
    "verify": (Verb.VERIFY, {"store": True}),
    "repair": (Verb.VERIFY, {"store": True, "repair": True}),
    "reclaim": (Verb.RECLAIM, {"older_than_days": 0}),
    "undo": (Verb.RECLAIM, {"undo": True}),
    "purge": (Verb.RECLAIM, {"purge": True, "grace_days": 0}),
    "gc": (Verb.GC, {"grace_hours": 0, "expect": 1000}),
    "restore": (Verb.GC, {}),
}
"""Which run each move opens, with which options."""

PEOPLE = ("draw", "split", "delete")
ALPHABET = (*JOBS, *PEOPLE, "flip")

_OFTEN = (
    ("migrate",) * 4
    + ("rollback",) * 3
    + ("reclaim",) * 3
    + ("gc",) * 3
    + ("purge", "undo", "restore", "split", "draw")
)
_MAY_FAIL = {"GarbageNotRestoredError", "StoredBytesMismatchError"}
"""What may become of a job in a history that does all things at once."""

_PATIENCE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Something that is done: its name in the alphabet, and a number that says to what."""

    name: str
    which: int

    def __str__(self) -> str:
        return f"{self.name} {self.which % 100}"


Step = tuple[Move, ...]


def plan(seed: int) -> list[Step]:
    """The steps of a history. Its first is a migration: without one nothing can be done."""
    chance = Random(seed)

    def move(names: Sequence[str]) -> Move:
        return Move(name=chance.choice(names), which=chance.randrange(1_000_000))

    steps: list[Step] = [(move(["migrate"]), move(["migrate"]))]
    for _ in range(chance.randint(3, 7)):
        if chance.random() < 0.15:
            # What is bad is mended before another copy may go; meanwhile others work.
            steps += [
                (move(["flip"]),),
                (move(["repair"]), move([name for name in JOBS if name != "repair"])),
            ]
        else:
            steps.append(
                tuple(
                    move(_OFTEN if chance.random() < 0.8 else ALPHABET[:-1])
                    for _ in range(chance.choice([1, 2, 2]))
                )
            )
    return steps


class Player:
    """Plays histories on one site, by two workers in this process, each with connections of its own."""

    def __init__(self, site: Site, workers: Sequence[Tools]) -> None:
        self._site = site
        self._workers = workers
        self._threads = ThreadPoolExecutor(len(workers))
        # What two people do at once to one session may end in a deadlock of theirs.
        self._people = threading.Lock()

    def play(self, steps: Iterable[Step]) -> list[str]:
        """What was not as it must be at the end."""
        lab = Lab.build(self._site)
        findings: list[str] = []
        for step in steps:
            done = [
                self._threads.submit(self._do, lab, move, tools)
                for move, tools in zip(step, self._workers, strict=False)
            ]
            for one in done:
                findings += one.result()
        # Whatever was damaged last is mended, and then all of the store is well.
        findings += self._do(lab, Move(name="repair", which=0), self._workers[0])
        findings += self._do(lab, Move(name="verify", which=0), self._workers[0])
        return findings + list(lab.findings())

    def _do(self, lab: Lab, move: Move, tools: Tools) -> list[str]:
        """What went wrong while one move was made."""
        try:
            if move.name in JOBS:
                return [
                    wrong for ref in self._open(lab, move, tools) for wrong in self._finish(move, ref, tools)
                ]
            with self._people:
                _by_people(lab, move)
        except Exception as error:  # noqa: BLE001 - a history that breaks off is to be named with its seed
            return [f"{move}: {type(error).__name__}: {error}"]
        return []

    def _open(self, lab: Lab, move: Move, tools: Tools) -> list[JobRef]:
        """The jobs of a run that a producer would open for this move; none if there is nothing to do."""
        verb, options = JOBS[move.name]
        if verb is Verb.GC:
            if move.name == "restore":
                entries = [entry.entry_id for entry in Garbage(tools.open_store(create=False)).entries()]
                if not entries:
                    return []
                options = {"restore_entry": entries[move.which % len(entries)]}
            return open_run(tools.engine, verb, only=[THE_STORE], subject=Subject.STORE, **options)
        if verb is Verb.VERIFY:
            return open_run(tools.engine, verb, subject=Subject.DATASET, **options)
        return open_run(tools.engine, verb, only=self._projects(lab, move, tools), **options)

    def _projects(self, lab: Lab, move: Move, tools: Tools) -> list[int]:
        """One project of those that the verb concerns, or all of them: a shared directory needs that."""
        with tools.engine.connect() as conn:
            known = sorted(conn.scalars(text(_CONCERNED[JOBS[move.name][0]])))
        known = [number for number in known if number in lab.projects]
        if not known or move.which % 3 == 0:
            return known
        return [known[move.which % len(known)]]

    def _finish(self, move: Move, ref: JobRef, tools: Tools) -> Iterator[str]:
        """Do a job until it has ended, as often as it is handed back."""
        for _ in range(_PATIENCE):
            outcome = WORK[JOBS[move.name][0], ref.subject](tools, ref, "worker")
            if outcome is not None:
                yield from _wrong(move, outcome)
                return
            with tools.engine.begin() as conn:
                conn.execute(text(_AT_ONCE), {"run_id": ref.run_id, "subject_id": ref.subject_id})
                is_open = conn.scalar(text(_IS_OPEN), {"run_id": ref.run_id, "subject_id": ref.subject_id})
            if not is_open:
                return
            time.sleep(0.02)
        yield f"{move}: the job of {ref.words} does not end"


def _by_people(lab: Lab, move: Move) -> None:
    match move.name:
        case "draw":
            lab.draw(move.which)
        case "split":
            lab.split(move.which)
        case "delete" if len(lab.projects) > 1:
            lab.delete(sorted(lab.projects)[move.which % len(lab.projects)])
        case "flip" if blobs := lab.blobs_with_a_copy():
            flip(blobs[move.which % len(blobs)])
            lab.age_checks()


def _wrong(move: Move, outcome: Outcome) -> Iterator[str]:
    if outcome.status is Status.FAILED and outcome.error_class not in _MAY_FAIL:
        yield f"{move} of {outcome.subject} {outcome.key[1]} failed: {outcome.error_class}: {outcome.error}"


_CONCERNED = {
    Verb.MIGRATE: "select project_id from projects where path is not null",
    Verb.ROLLBACK: "select project_id from project_conversions where rolled_back_at is null",
    Verb.RECLAIM: "select project_id from project_conversions where rolled_back_at is null",
}
_AT_ONCE = """
    update migration_jobs set not_before = null
    where run_id = :run_id and subject_id = :subject_id and not_before is not null"""
_IS_OPEN = """
    select exists (select from migration_jobs
                   where run_id = :run_id and subject_id = :subject_id and state in ('queued', 'running'))"""
