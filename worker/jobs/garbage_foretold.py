"""What a gc would do to one thing that it found, for a dry run: counts it as if what came before it had gone.
Writes nothing.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from worker.db import garbage
from worker.db.adoptions import Adoption
from worker.db.engine import autocommit
from worker.db.garbage import Kind
from worker.jobs.adopted_directory import pair_of
from worker.jobs.attempt import Attempt
from worker.jobs.garbage_blobs import due_blobs, loose_blobs
from worker.jobs.garbage_taken import is_registered, is_used, own_digests
from worker.store.garbage import Entry, Garbage, Room, Size


class Foretelling:
    """The acts of `Taking`, and what each would come to."""

    def __init__(self, attempt: Attempt, grace_h: float, *, may_take_blobs: bool) -> None:
        self._attempt = attempt
        self._garbage = Garbage(attempt.store)
        self._grace_h = grace_h
        self._may_take_blobs = may_take_blobs
        self._to_come: dict[str, list[str]] = {}
        self._given_up: set[str] = set()
        self._gone: set[str] = set()
        self._gone_blobs: set[str] = set()
        self._gone_manifests: set[str] = set()
        self._gone_names: Counter[tuple[int, int]] = Counter()

    # What earlier ones left ---------------------------------------------------------------------------------

    def finish_removals(self) -> None:
        """What has another name there has none then."""
        paths = self._garbage.half_removed() + self._attempt.store.half_removed()
        self._gone_names.update(self._room(paths).names)

    def complete(self, entry: Entry) -> None:
        """The rest of the entry counts with it when it is removed."""
        is_dataset = entry.dataset_hash is not None
        if is_dataset and not is_registered(self._attempt, entry.dataset_hash or ""):
            self._to_come[entry.entry_id] = self._things(entry)
        elif self._garbage.is_empty(entry):
            self._given_up.add(entry.entry_id)

    def entries(self) -> Iterator[Entry]:
        """What would be in quarantine."""
        return (one for one in self._garbage.entries() if one.entry_id not in self._given_up)

    def remove(self, entry: Entry) -> Size:
        """What has another name now may have none after this."""
        room = self._room(chain(self._garbage.things(entry), self._to_come.get(entry.entry_id, ())))
        self._gone_names.update(room.names)
        return room.size

    def settle_adoption(self, row: Adoption) -> None:
        """It comes to its end when a real gc or job finds it."""

    def remove_adopted(self, row: Adoption) -> Size:
        """What Label had of an adopted dataset."""
        room = self._room([pair_of(self._attempt.store, row).inside])
        self._gone_names.update(room.names)
        return room.size

    def clear_staging(self, task: str, last_attempt: int) -> Size:
        """Likewise."""
        room = self._room(self._attempt.store.staged_at(task, last_attempt))
        self._gone_names.update(room.names)
        return room.size

    # Datasets and trees -------------------------------------------------------------------------------------

    def mark(self, kind: Kind, names: Collection[str]) -> None:
        """What has no mark counts as marked just now (`worker.db.garbage.due`)."""

    def take_dataset(self, entry: Entry) -> Size | None:
        """A dataset that is due."""
        return self._room(self._things(entry)).size

    def manifests(self) -> list[str]:
        """The digests of all manifests that would be left."""
        return [digest for digest in self._garbage.manifests() if digest not in self._gone_manifests]

    def take_orphan(self, entry: Entry) -> Size | None:
        """A manifest without a row, if it would be due."""
        return (
            self._room(self._things(entry)).size
            if self._goes("manifest", entry.dataset_hash or "", entry)
            else None
        )

    def take_spare(self, entry: Entry, digest: str) -> Size | None:
        """A further tree of a content, if it would be due."""
        return self._room([entry.tree or ""]).size if self._goes("tree", digest, entry) else None

    def _goes(self, kind: Kind, name: str, entry: Entry) -> bool:
        with autocommit(self._attempt.engine) as conn:
            return bool(garbage.due(conn, kind, [name], self._grace_h)) and not is_used(conn, entry)

    def unmark_spare(self, digests: Collection[str]) -> None:
        """Marks stay, as all do."""

    def forget_referenced(self) -> None:
        """Marks stay: the next real gc removes those that are wrong."""

    # Blobs --------------------------------------------------------------------------------------------------

    def forget_index(self, digests: Collection[str]) -> None:
        """What these need would be loose."""
        self._gone.update(digests)

    def take_loose(self, entry: Entry) -> Size:  # noqa: ARG002 - as it is called to take them
        """The blobs that would be left, that nothing would need, and that would be due."""
        room = self._room(())
        for folder in self._garbage.blobs():
            left = (digest for digest in folder if digest not in self._gone_blobs)
            for loose in loose_blobs(self._attempt, left, self._gone):
                for digest in due_blobs(self._attempt, loose, self._grace_h):
                    room.add(self._attempt.store.blob_path(digest))
        return room.size

    # Small things -------------------------------------------------------------------------------------------

    def _things(self, entry: Entry) -> list[str]:
        """Where all is that would come into an entry."""
        digest = entry.dataset_hash or ""
        digests = own_digests(self._garbage, entry) if self._may_take_blobs else set()
        paths = list(self._garbage.things_to_come(entry))
        self._gone.add(digest)
        if self._attempt.store.manifest_path(digest) in paths:
            self._gone_manifests.add(digest)
        for loose in loose_blobs(self._attempt, sorted(digests - self._gone_blobs), self._gone):
            self._gone_blobs.update(loose)
            paths += [self._attempt.store.blob_path(one) for one in due_blobs(self._attempt, loose, 0)]
        return paths

    def _room(self, paths: Iterable[str]) -> Room:
        room = Room(self._gone_names)
        for path in paths:
            room.add(path)
        return room
