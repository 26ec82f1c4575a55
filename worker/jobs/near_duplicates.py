"""Near-duplicates among the recordings of the store: which there are, where they lie, what may be compared.
Reads rows and stored files, writes neither, and no job of the ledger stands behind it.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from worker.db import catalog, datasets
from worker.db.datasets import Dataset
from worker.db.engine import autocommit
from worker.errors import StoredBytesMismatchError, StoreUnusableError, UsageError
from worker.jobs.tools import Tools
from worker.legacy.parallel import buffer_for
from worker.near.agreement import Precision
from worker.near.compare import Kind, Match
from worker.near.records import Sensor
from worker.near.search import Found, Pair, Progress, Recording, Search
from worker.runtime.throttle import Pace
from worker.store.digest import new_hasher, printable, read_stored
from worker.store.manifest import Manifest
from worker.store.store import Store

__all__ = [
    "Kind",
    "NearDuplicate",
    "NearDuplicates",
    "NotCompared",
    "Place",
    "Precision",
    "Progress",
    "Sensor",
    "StoredRecording",
    "near_duplicates",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A session of a dataset."""

    dataset_id: int
    dataset_name: str
    session: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRecording:
    """A recording that is stored once, and the sessions of datasets that have it."""

    digest: str
    sensor: Sensor
    size_bytes: int
    places: Sequence[Place]

    @property
    def dataset_ids(self) -> list[int]:
        """The datasets that have it."""
        return list(dict.fromkeys(place.dataset_id for place in self.places))


@dataclass(frozen=True, slots=True, kw_only=True)
class NearDuplicate:
    """`richer` has all readings of `poorer`, as `match` says: in its own file, or, if `is_merged`, in this
    and the other sensor's.
    """

    richer: StoredRecording
    poorer: StoredRecording
    match: Match
    is_merged: bool

    @property
    def is_richer_coarser(self) -> bool:
        """Has the poorer one, which ends sooner, more digits? Then it has something that the other lacks."""
        return self.match.coarser == self.match.richer

    @property
    def saves_bytes(self) -> int:
        """What its poorer recording takes in the store, if the richer one lacks nothing of it."""
        return 0 if self.is_richer_coarser else self.poorer.size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCompared:
    """A recording, or a whole dataset, that was not compared, or not to its end. `is_damaged`: what is stored
    is not what was stored.
    """

    recording: StoredRecording | None
    dataset_ids: Sequence[int]
    reason: str
    is_damaged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NearDuplicates:
    """What was found. `covered` names datasets of which every recording is in others, and these others;
    `not_stored` those that Label registered itself; `unproven` as of `worker.near.search.Found`.
    """

    datasets: int
    recordings: int
    size_bytes: int
    comparisons: int
    pairs: Sequence[NearDuplicate]
    unproven: Sequence[NearDuplicate]
    not_compared: Sequence[NotCompared]
    not_stored: Sequence[Dataset]
    covered: Mapping[int, Sequence[int]]
    project_ids: Mapping[int, Sequence[int]]

    @property
    def saves_bytes(self) -> int:
        """What all poorer recordings take in the store, each counted once."""
        return sum({one.poorer.digest: one.saves_bytes for one in self.pairs}.values())


@dataclass(slots=True)
class _Stored:
    """What the manifests of all datasets say, and which of it can be compared."""

    recordings: list[StoredRecording] = field(default_factory=list)
    beside: list[int | None] = field(default_factory=list)
    not_compared: list[NotCompared] = field(default_factory=list)
    not_stored: list[Dataset] = field(default_factory=list)


def near_duplicates(
    tools: Tools,
    dataset_ids: Sequence[int],
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> NearDuplicates:
    """Compare all recordings of the store, or those of some datasets with all.

    Twice, at once, or dying anywhere: nothing was changed. A recording that cannot be read is named, and the
    others are compared. Raises `UsageError` for an unknown dataset, `StoreElsewhereError` or
    `StoreUnusableError` if DATA_DIR has not this database's store.
    """
    store = tools.open_store(create=False)
    with autocommit(tools.engine) as conn:
        known = datasets.all_of(conn)
        _check_known(dataset_ids, known)
        project_ids = catalog.projects_of(conn, [one.dataset_id for one in known])
    if store.store_id is None and known:
        raise StoreUnusableError(
            f"There is no store at {store.root}, and {len(known)} datasets in the database"
        )
    stored = _stored(store, known)
    wanted = frozenset(
        key for key, one in enumerate(stored.recordings) if not set(dataset_ids).isdisjoint(one.dataset_ids)
    )
    search = Search(
        [
            _to_compare(store, one, beside)
            for one, beside in zip(stored.recordings, stored.beside, strict=True)
        ],
        wanted=wanted if dataset_ids else None,
        check=_checker(store),
        pace=tools.pace,
        limit=tools.limit,
        on_progress=on_progress,
    )
    return _named(stored, search.run(tools.threads), len(known), project_ids, set(dataset_ids))


def _check_known(dataset_ids: Sequence[int], known: Sequence[Dataset]) -> None:
    unknown = sorted(set(dataset_ids) - {one.dataset_id for one in known})
    if unknown:
        raise UsageError(
            f"There is no dataset {', '.join(map(str, unknown))}. See all: producer datasets list"
        )


def _stored(store: Store, known: Sequence[Dataset]) -> _Stored:
    """Every content that is a recording in some session, once, with the other sensor's beside it."""
    places: dict[tuple[Sensor, str], list[Place]] = {}
    sizes: dict[str, int] = {}
    others: dict[tuple[Sensor, str], tuple[Sensor, str]] = {}
    found = _Stored()
    for dataset in known:
        manifest = _manifest(store, dataset, found)
        for session, of_session in _sessions(manifest).items():
            place = Place(
                dataset_id=dataset.dataset_id,
                dataset_name=dataset.dataset_name,
                session=printable(session),
            )
            for sensor, digest in of_session.items():
                places.setdefault((sensor, digest), []).append(place)
                other = next((one for one in of_session.items() if one[0] is not sensor), None)
                if other is not None:
                    others.setdefault((sensor, digest), other)
        sizes |= {file.digest: file.size_bytes for file in manifest.files} if manifest else {}
    keys: dict[tuple[Sensor, str], int] = {}
    for (sensor, digest), where in places.items():
        one = StoredRecording(digest=digest, sensor=sensor, size_bytes=sizes[digest], places=where)
        trouble = _trouble(store.blob_path(digest), one.size_bytes)
        if trouble is not None:
            found.not_compared.append(_not_compared(one, trouble, is_damaged=True))
            continue
        keys[sensor, digest] = len(found.recordings)
        found.recordings.append(one)
    found.beside = [
        keys.get(others[one.sensor, one.digest]) if (one.sensor, one.digest) in others else None
        for one in found.recordings
    ]
    return found


def _manifest(store: Store, dataset: Dataset, found: _Stored) -> Manifest | None:
    if not os.path.lexists(store.manifest_path(dataset.dataset_hash)):
        found.not_stored.append(dataset)
        return None
    try:
        return store.read_manifest(dataset.dataset_hash)
    except StoredBytesMismatchError as error:
        found.not_compared.append(
            NotCompared(recording=None, dataset_ids=[dataset.dataset_id], reason=str(error), is_damaged=True)
        )
        return None


def _sessions(manifest: Manifest | None) -> dict[str, dict[Sensor, str]]:
    """The digests of the recordings right in the directories at the top of a tree."""
    found: dict[str, dict[Sensor, str]] = {}
    for file in manifest.files if manifest is not None else ():
        session, _, name = file.path.partition("/")
        if name in set(Sensor):
            found.setdefault(session, {})[Sensor(name)] = file.digest
    return found


def _trouble(path: str, size_bytes: int) -> str | None:
    try:
        there_bytes = os.stat(path).st_size
    except OSError as error:
        return f"{printable(path)} cannot be read: {error.strerror}"
    if there_bytes != size_bytes:
        return f"{printable(path)} has {there_bytes:,} bytes of {size_bytes:,}"
    return None


def _to_compare(store: Store, one: StoredRecording, beside: int | None) -> Recording:
    return Recording(
        path=Path(store.blob_path(one.digest)),
        sensor=one.sensor,
        size_bytes=one.size_bytes,
        tag=min(one.dataset_ids),
        beside=beside,
    )


def _checker(store: Store) -> Callable[[Recording, Pace], None]:
    def check(one: Recording, pace: Pace) -> None:
        hasher = new_hasher(store.algorithm)
        for chunk in read_stored(str(one.path), buffer_for(one.size_bytes), pace):
            hasher.update(chunk)
        if hasher.hexdigest() != one.path.name:
            raise StoredBytesMismatchError(f"{one.path} does not have the bytes its digest promises")

    return check


def _not_compared(one: StoredRecording, reason: str, *, is_damaged: bool) -> NotCompared:
    return NotCompared(recording=one, dataset_ids=one.dataset_ids, reason=reason, is_damaged=is_damaged)


def _named(
    stored: _Stored,
    found: Found,
    count: int,
    project_ids: Mapping[int, Sequence[int]],
    asked: set[int],
) -> NearDuplicates:
    def named(pair: Pair) -> NearDuplicate:
        return NearDuplicate(
            richer=stored.recordings[pair.richer],
            poorer=stored.recordings[pair.poorer],
            match=pair.match,
            is_merged=pair.is_merged,
        )

    pairs = [named(pair) for pair in found.pairs]
    refused = [
        _not_compared(stored.recordings[one.key], one.reason, is_damaged=one.is_damaged)
        for one in found.refusals
    ]
    return NearDuplicates(
        datasets=count,
        recordings=len(stored.recordings),
        size_bytes=sum(one.size_bytes for one in stored.recordings),
        comparisons=found.comparisons,
        pairs=pairs,
        unproven=[named(pair) for pair in found.unproven],
        not_compared=[*stored.not_compared, *refused],
        not_stored=[one for one in stored.not_stored if not asked or one.dataset_id in asked],
        covered=_covered(stored, pairs),
        project_ids=project_ids,
    )


def _covered(stored: _Stored, pairs: Sequence[NearDuplicate]) -> dict[int, list[int]]:
    """Datasets of which every recording is in other datasets: without them no reading would be lost."""
    of: dict[int, set[tuple[Sensor, str]]] = {}
    unread = [one.recording for one in stored.not_compared if one.recording is not None]
    for one in (*stored.recordings, *unread):
        for dataset_id in one.dataset_ids:
            of.setdefault(dataset_id, set()).add((one.sensor, one.digest))
    within: dict[int, dict[tuple[Sensor, str], list[int]]] = {}
    for pair in pairs:
        for dataset_id in pair.poorer.dataset_ids if not pair.is_richer_coarser else ():
            elsewhere = [other for other in pair.richer.dataset_ids if other != dataset_id]
            if elsewhere:
                key = pair.poorer.sensor, pair.poorer.digest
                within.setdefault(dataset_id, {}).setdefault(key, elsewhere)
    return {
        dataset_id: sorted({other for others in found.values() for other in others})
        for dataset_id, found in sorted(within.items())
        if found.keys() == of[dataset_id]
    }
