"""An operator who looks after the store while others migrate: reclaims, moves back, purges, collects garbage,
verifies and repairs. And the disk, which flips bits of it while a good copy is elsewhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import blake3
from sqlalchemy import Connection, Engine, text

from tests.chaos.commands import Operator
from tests.chaos.estate import Estate
from tests.chaos.places import places, stored_manifests
from tests.support.damages import flip


@dataclass(frozen=True, slots=True, kw_only=True)
class Flipped:
    """A file of the store in which a bit was flipped: `digest` is what it should have."""

    path: Path
    digest: str

    @property
    def is_bad(self) -> bool:
        """Is it there, and still not what it should be?"""
        try:
            return _digest(self.path) != self.digest
        except FileNotFoundError:
            return False


class Keeper:
    """Each act says what was done; None: there was nothing to do it to now."""

    def __init__(self, engine: Engine, estate: Estate, operator: Operator) -> None:
        self.flipped: list[Flipped] = []
        self._engine = engine
        self._estate = estate
        self._operator = operator
        self._contents = {
            number: {_digest(path) for path in directory.rglob("*") if path.is_file()}
            for number, directory in estate.directories.items()
        }

    @property
    def unhealed(self) -> list[Flipped]:
        """What is bad in the store now."""
        return [one for one in self.flipped if one.is_bad]

    # Runs ---------------------------------------------------------------------------------------------------

    def reclaim(self, _which: int) -> str | None:
        """All migrated projects, however lately they were migrated."""
        if not self._some(_MIGRATED):
            return None
        return self._opened("reclaim", "--older-than", "0", "--yes")

    def undo(self, which: int) -> str | None:
        """Some of those whose directory is away."""
        away = self._some(_AWAY)
        if not away:
            return None
        some = sorted({away[(which // 7**step) % len(away)] for step in range(3)})
        ids = [part for number in some for part in ("--project-id", str(number))]
        return self._opened("reclaim", "--undo", *ids)

    def purge(self, _which: int) -> str | None:
        """All that is away; first the store is repaired if something is bad whose good copy may lie there."""
        if not self._some(_AWAY):
            return None
        if self.unhealed:
            if not self._some(_OPEN_REPAIRS):
                self.repair(0)
            return None
        return self._opened("reclaim", "--purge", "--grace", "0", "--yes")

    def collect(self, _which: int) -> str | None:
        """Garbage of any age, as soon as there is a store."""
        if not self._estate.store.exists():
            return None
        return self._opened("gc", "--grace", "0", "--yes")

    def repair(self, _which: int) -> str | None:
        """All of the store."""
        if not self._some("select dataset_id from raw_datasets"):
            return None
        return self._opened("verify", "--store", "--repair", "--report-dir", "reports of verifications")

    def _opened(self, *arguments: str) -> str | None:
        opened = self._operator.open_beside(*arguments)
        return f"run {opened}" if opened is not None else None

    def _some(self, query: str) -> list[int]:
        with self._engine.connect() as conn:
            return sorted(conn.scalars(text(query)))

    # Bits ---------------------------------------------------------------------------------------------------

    def flip(self, which: int) -> str | None:
        """Flip a bit of a blob or manifest that a dataset needs, and let nobody believe to have read it
        lately. Not while a purge may remove the good copy.
        """
        with self._engine.connect() as conn:
            if conn.scalar(text(_PURGES)):
                return None
            found = sorted(self._with_good_copy(conn), key=lambda one: one.path)
        if not found:
            return None
        one = found[which % len(found)]
        try:
            flip(one.path, offset=which % one.path.stat().st_size, bit=which % 8)
        except FileNotFoundError:
            # A gc has it.
            return None
        self.flipped.append(one)
        with self._engine.begin() as conn:
            conn.execute(
                text("delete from migration_blob_checks where digest like :digest || '%'"),
                {"digest": one.digest},
            )
        return f"{one.path.parent.parent.name}/{one.path.parent.name}/{one.path.name}"

    def _with_good_copy(self, conn: Connection) -> Iterator[Flipped]:
        """Whole things of the store of which the legacy directory of a project, wherever it is, has the
        bytes.
        """
        there = {number for number, place in places(conn, self._estate).items() if place.is_dir()}
        converted = conn.execute(
            text(
                "select project_id, dataset_hash from project_conversions join raw_datasets using (dataset_hash)"
            )
        ).all()
        hashes = {row.dataset_hash for row in converted if row.project_id in there}
        have = {
            digest
            for row in converted
            if row.project_id in there
            for digest in self._contents[row.project_id]
        }
        store = self._estate.store
        for dataset_hash, files in stored_manifests(conn, store).items():
            things = [store / "blobs" / digest[:2] / digest for digest in files if digest in have]
            if dataset_hash in hashes:
                things.append(store / "manifests" / f"{dataset_hash}.json")
            for path in things:
                one = Flipped(path=path, digest=path.name.removesuffix(".json"))
                # One that is empty has no bit.
                if path.is_file() and path.stat().st_size and not one.is_bad:
                    yield one


def _digest(path: Path) -> str:
    return blake3.blake3(path.read_bytes()).hexdigest()


_MIGRATED = """
    select project_id from project_conversions c where rolled_back_at is null
    and not exists (select from migration_reclaims r where r.conversion_id = c.conversion_id and r.state <> 'undone')"""
_AWAY = "select project_id from migration_reclaims where state = 'reclaimed'"
_OPEN_REPAIRS = (
    "select 1 from migration_runs where verb = 'verify' and state not in ('finished', 'cancelled')"
)
_PURGES = """
    select exists (select from migration_runs
                   where verb = 'reclaim' and selection->'options' ? 'purge' and state not in ('finished', 'cancelled'))"""
