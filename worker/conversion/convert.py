"""Moving rows: what each session of a project becomes, the one transaction that makes it so, and its rehearsal."""

import os
import zlib
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy import Connection, Engine

from worker.conversion.return_plan import put_sessions_back
from worker.db import column_types, datasets, leases, projects, rehearsal, sessions
from worker.db.column_types import ColumnTypes
from worker.db.datasets import Dataset, RawSession
from worker.db.engine import when_free
from worker.db.projects import Project
from worker.db.sessions import Session
from worker.errors import (
    DatabaseRefusedError,
    DatasetGoneError,
    NothingToDoError,
    PlaceTakenError,
    ProjectChangedError,
    ProjectError,
)
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.noise import Noise
from worker.legacy.scan import Scan
from worker.legacy.session_files import LABELS, LABELS_MOST_BYTES
from worker.messages import Outcome, Warning_
from worker.sessions_csv import RECORDING
from worker.store.digest import opened, printable
from worker.store.manifest import Directory, Manifest

MIGRATED_FROM = "legacy"
"""The value of `migrated_from` by which Label's own tools recognise a converted project."""

_PART = 4_096
"""So many entries of a tree are written at a time."""


class SessionNameRefusedError(ProjectError):
    """A session reads from a place that its name alone leads to, and which is no directory of the project's own."""

    remedy: ClassVar[str] = (
        "Give the session the name of its directory, or its directory as parent path; then enqueue the project again."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPlan:
    """What becomes of one session that can be re-pointed: its raw directory and its offsets afterwards."""

    session: Session
    raw_name: str
    start: int | None
    end: int | None
    is_virtual_child: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a conversion does to a project's sessions, and what it leaves alone."""

    sessions: tuple[SessionPlan, ...]
    left_alone: tuple[Session, ...]
    warnings: tuple[Warning_, ...]

    @property
    def split_parameters(self) -> dict[str, dict[str, Any]]:
        """For each raw session that has virtual children: its segments, as `project_split_configs` keeps them."""
        parameters: dict[str, dict[str, Any]] = {}
        for plan in self.sessions:
            if plan.is_virtual_child:
                config = parameters.setdefault(plan.raw_name, {"source": "migration", "segments": []})
                config["segments"].append(
                    {"session_name": plan.session.session_name, "start": plan.start, "end": plan.end}
                )
        return parameters


def plan_sessions(project_path: str, rows: Sequence[Session], tree: HashedTree) -> Plan:
    """Decide for every session of a project where its rows will be read from. Pure.

    A session without a parent path becomes the records 0 to N of its own directory, because with open offsets Label's
    model scoring would drop the last record and later splits would get no offsets. A split child keeps its offsets. A
    row that cannot be judged is left alone, with a warning that names it. Raises `SessionNameRefusedError` for one that
    would become unreadable by that.
    """
    names = frozenset(tree.scan.session_names)
    directories = _plain_directories(tree)
    plans: list[SessionPlan] = []
    left_alone: list[Session] = []
    warnings: list[Warning_] = [
        Warning_(session=name, message=f"{LABELS} is not text; the file is kept, the column stays empty")
        for name in sorted(tree.unreadable_labels)
    ]
    warnings += [
        Warning_(
            session=name,
            message=f"{LABELS} is larger than {LABELS_MOST_BYTES >> 20} MiB; the file is kept, the column stays empty",
        )
        for name in sorted(tree.large_labels)
    ]
    warnings += _noise(tree.scan.noise, names)
    if tree.scan.links:
        warnings.append(
            Warning_(message=f"{tree.scan.links} symbolic links were stored as what they point to")
        )
    for row in rows:
        parent = row.parent_session_data_path
        raw_name = _own_directory(parent, project_path, directories) if parent else row.session_name
        if raw_name in names:
            plan = _plan(row, raw_name, tree.records.get(raw_name), child=bool(parent))
            plans.append(plan)
            warnings.extend(_doubts(plan, tree.records.get(raw_name)))
            continue
        if not parent:
            _check_name(row, tree.sources)
        left_alone.append(row)
        warnings.append(
            _left_alone(row, f"its parent path is not directly below the project's: {parent}")
            if raw_name is None
            else _left_alone(row, f"its directory is missing: {raw_name}")
        )
    return Plan(sessions=tuple(plans), left_alone=tuple(left_alone), warnings=tuple(warnings))


def convert(
    engine: Engine,
    lease: leases.Lease,
    tree: HashedTree,
    outcome: Outcome,
    *,
    create_at: Path | None,
    store_root: Path,
    listen: Callable[[], None] = lambda: None,
) -> Outcome:
    """Turn the project into one that refers to the dataset, and end its job, in one transaction.

    Locks, in this order: the dataset's row, the project's row, its sessions; for all of them it gives way to people, and
    calls `listen`, which may raise, before it tries again.
    `create_at` is the published tree of a dataset that has no row yet; the caller holds its claim (`ClaimLostError` when the
    row is there after all). None means the row must be there (`DatasetGoneError` otherwise). Raises `NothingToDoError` for a project that is gone or converted, `ProjectChangedError` for one with
    another path, `LeaseLostError` when the job has another holder, `RowRefusedError` for what the database does not let be
    written. A crash anywhere leaves the project as it was.
    """
    # Outside of the transaction: of many files they take a while, in which the server would hear nothing.
    attributes = tree_attributes(tree)
    types = column_types.known(engine)
    to = _Target(tree=tree, attributes=attributes, create_at=create_at, store_root=store_root)

    def transaction() -> Outcome:
        with rehearsal.in_our_words(engine, f"project {lease.ref.project_id}"), engine.begin() as conn:
            converted = _all_rows(conn, lease, to, outcome, types)
            leases.end_job(conn, lease, converted)
        return converted

    return when_free(transaction, listen=listen)


def rehearse(
    engine: Engine,
    lease: leases.Lease,
    tree: HashedTree,
    outcome: Outcome,
    *,
    create_at: Path | None,
    store_root: Path,
    listen: Callable[[], None] = lambda: None,
) -> Outcome:
    """Do the same statements under the same locks, see that the database takes them, and take all of it back.

    The outcome that `convert` would have, but for the id of a dataset that is not there yet; it is not in the ledger yet.
    Raises what `convert` raises. Texts of a tree that is not stored yet are read from the legacy directory.
    """
    attributes = tree_attributes(tree)
    types = column_types.known(engine)
    to = _Target(tree=tree, attributes=attributes, create_at=create_at, store_root=store_root, is_there=False)

    def transaction() -> Outcome:
        with (
            rehearsal.in_our_words(engine, f"project {lease.ref.project_id}"),
            rehearsal.rehearsed(engine) as conn,
        ):
            return _all_rows(conn, lease, to, outcome, types)

    foretold = when_free(transaction, listen=listen)
    return foretold if create_at is None else foretold.with_changes(dataset_id=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """What the project's rows are to refer to. `is_there`: the tree at `create_at` is published, not only planned."""

    tree: HashedTree
    attributes: bytes
    create_at: Path | None
    store_root: Path
    is_there: bool = True


def _all_rows(
    conn: Connection, lease: leases.Lease, to: _Target, outcome: Outcome, types: ColumnTypes
) -> Outcome:
    """Every row of one project's conversion but the job's own."""
    tree = to.tree
    if to.create_at is not None:
        dataset = _add_dataset(conn, lease, to, to.create_at)
    elif (locked := datasets.lock(conn, tree.manifest.digest)) is not None:
        dataset = locked
    else:
        raise DatasetGoneError(f"Dataset {tree.manifest.digest[:12]} is not there any more")
    project = check_still_legacy(projects.lock(conn, lease.ref.project_id), lease, conn)
    rows = sessions.lock_of_project(conn, project.project_id)
    settled: tuple[Warning_, ...] = ()
    if project.has_record:
        rows, settled = _settle(conn, lease, project, rows, tree)
    plan = plan_sessions(project.path or "", rows, tree)
    _write_rows(conn, lease, dataset, to, plan, types)
    return outcome.with_changes(
        dataset_id=dataset.dataset_id,
        dataset_path=dataset.file_path,
        dataset_created=to.create_at is not None,
        sessions_count=len(rows),
        warnings=(*settled, *plan.warnings),
    )


def _settle(
    conn: Connection, lease: leases.Lease, project: Project, rows: list[Session], tree: HashedTree
) -> tuple[list[Session], tuple[Warning_, ...]]:
    """Close the record of a conversion that another program took back: Label's own tool, or a person by SQL.

    Either leaves the sessions reading from the dataset. Where the directory still has that content they are led back to it
    first, so that this conversion records them as they were before the former one; otherwise they stay what they are.
    """
    former = projects.active_conversions(conn, [project.project_id])[project.project_id]
    said = f"migrated by run {former.run_id} before, and taken back since, not by this program; the record of that is closed"
    if project.path == former.legacy_path and tree.manifest.digest == former.dataset_hash:
        dataset = datasets.get(conn, former.dataset_id)
        put_sessions_back(conn, former, dataset.file_path if dataset is not None else None, rows)
        rows = sessions.lock_of_project(conn, project.project_id)
    else:
        said += (
            ". Its directory is another one by now, so sessions that read from the former dataset stay there"
        )
    projects.end_conversion(conn, former.conversion_id, lease.ref.run_id)
    return rows, (Warning_(message=said),)


def check_still_legacy(project: Project | None, lease: leases.Lease, conn: Connection) -> Project:
    """The project as the job expects it: there, legacy, at the same path."""
    number = lease.ref.project_id
    if project is None:
        raise NothingToDoError(f"project {number}: deleted since the run was opened")
    if not project.is_legacy:
        by = projects.active_conversions(conn, [number]).get(number)
        how = f"migrated by run {by.run_id}" if by is not None else "dataset-based"
        raise NothingToDoError(f"project {number}: already {how}")
    if project.path != lease.path:
        raise ProjectChangedError(
            f"project {number}: path changed since the run was opened, to {project.path!r}"
        )
    return project


def tree_attributes(tree: HashedTree) -> bytes:
    """Modes, times and owners of the legacy tree in the manifest's order, which identity does not include but a restore needs."""
    directories = {entry.path: entry for entry in tree.scan.directories}

    def rows() -> Iterator[str]:
        for entry in tree.manifest.entries:
            if isinstance(entry, Directory):
                found = directories[entry.path]
                yield _row(found.mode, found.mtime_ns, found.owner)
            else:
                file = tree.scan.files[tree.sources.numbers[entry.path]]
                yield _row(file.mode, file.signature.mtime_ns, file.owner)

    scanned = tree.scan
    packed = zlib.compressobj()
    # Some thousand at a time: the text is longer than what is kept of it, many times over.
    parts = [
        packed.compress(
            f'{{"root":{_row(scanned.root_mode, scanned.root_mtime_ns, scanned.root_owner)},"entries":['.encode()
        )
    ]
    all_rows = rows()
    between = ""
    while part := ",".join(islice(all_rows, _PART)):
        parts.append(packed.compress(f"{between}{part}".encode("ascii")))
        between = ","
    return b"".join([*parts, packed.compress(b"]}"), packed.flush()])


def _row(mode: int, mtime_ns: int, owner: tuple[int, int]) -> str:
    return f"[{mode},{mtime_ns},{owner[0]},{owner[1]}]"


def _write_rows(
    conn: Connection, lease: leases.Lease, dataset: Dataset, to: _Target, plan: Plan, types: ColumnTypes
) -> None:
    """All rows of the project, and the before-image of each. Seven statements, however many sessions there are."""
    project_id = lease.ref.project_id
    written = {
        "migrated_from": MIGRATED_FROM,
        "migration_date": datetime.now(UTC).isoformat(),
        "original_path": lease.path,
        "dataset_id": dataset.dataset_id,
        "run_id": str(lease.ref.run_id),
    }
    ref_id = datasets.refer(conn, project_id, dataset.dataset_id)
    config_ids = sessions.add_split_configs(conn, project_id, dataset.dataset_id, plan.split_parameters)
    changes: list[dict[str, Any]] = [
        {
            "session_id": one.session.session_id,
            "before": one.session.values(),
            "after": _after(one, dataset, config_ids),
        }
        for one in plan.sessions
    ]
    projects.save_before_image(
        conn,
        project_id,
        run_id=lease.ref.run_id,
        dataset=dataset,
        written=written,
        made={
            "ref_id": ref_id,
            "split_config_ids": sorted(config_ids.values()),
            "sessions": changes,
            # With it a rollback can name the legacy tree without the store.
            "digest_algorithm": to.tree.manifest.algorithm,
            "left_alone": [{"session_id": row.session_id, "before": row.values()} for row in plan.left_alone],
        },
        tree_attributes=to.attributes,
        types=types,
    )
    sessions.write(conn, [{"session_id": change["session_id"], **change["after"]} for change in changes])
    projects.make_dataset_based(conn, project_id, written, types)


def _add_dataset(conn: Connection, lease: leases.Lease, to: _Target, path: Path) -> Dataset:
    try:
        return _insert_dataset(conn, lease, to, path)
    except DatabaseRefusedError as error:
        if error.constraint != datasets.ONE_PLACE:
            raise
        raise PlaceTakenError(f"Another dataset was registered at {path} meanwhile") from error


def _insert_dataset(conn: Connection, lease: leases.Lease, to: _Target, path: Path) -> Dataset:
    tree = to.tree
    return datasets.add(
        conn,
        name=lease.project_name or path.name,
        dataset_hash=tree.manifest.digest,
        file_path=str(path),
        size_bytes=tree.manifest.size_bytes,
        description=f"Migrated from legacy project: {lease.project_name}",
        metadata={
            "upload_timestamp": lease.started_at.strftime("%Y%m%d_%H%M%S"),
            "original_source": lease.path,
            "storage_name": path.name,
            "digest_algorithm": tree.manifest.algorithm,
            "store": str(to.store_root),
        },
        session_count=len(tree.manifest.session_names),
        sessions=(
            RawSession(
                session_name=name,
                session_path=f"{path}/{name}",
                labels=_labels(path, name, tree) if to.is_there else _legacy_labels(name, tree),
                file_count=count,
            )
            for name, count in _files_by_session(tree.manifest).items()
        ),
    )


def _labels(path: Path, session: str, tree: HashedTree) -> str | None:
    """labels.json as it was read, from the stored tree."""
    if f"{session}/{LABELS}" not in tree.sources or session in tree.unreadable_labels | tree.large_labels:
        return None
    # Through bytes: text mode would turn carriage returns into newlines.
    return (path / session / LABELS).read_bytes().decode("utf-8")


def _legacy_labels(session: str, tree: HashedTree) -> str | None:
    """The same from the legacy tree."""
    source = tree.sources.get(f"{session}/{LABELS}")
    if source is None or session in tree.unreadable_labels | tree.large_labels:
        return None
    with opened(source.path, source.signature) as descriptor, open(descriptor, "rb", closefd=False) as file:
        return file.read().decode("utf-8")


def _files_by_session(manifest: Manifest) -> dict[str, int]:
    counts = dict.fromkeys(manifest.session_names, 0)
    for file in manifest.files:
        session, slash, _ = file.path.partition("/")
        if slash:
            counts[session] += 1
    return counts


def _after(plan: SessionPlan, dataset: Dataset, config_ids: Mapping[str, int]) -> dict[str, Any]:
    return {
        "parent_session_data_path": f"{dataset.file_path}/{plan.raw_name}",
        "raw_session_name": plan.raw_name,
        "dataset_id": dataset.dataset_id,
        "data_start_offset": plan.start,
        "data_end_offset": plan.end,
        "split_config_id": config_ids[plan.raw_name]
        if plan.is_virtual_child
        else plan.session.split_config_id,
    }


def _plan(row: Session, raw_name: str, records: int | None, *, child: bool) -> SessionPlan:
    start, end = row.data_start_offset, row.data_end_offset
    if not child and records is not None:
        start, end = 0, records
    return SessionPlan(session=row, raw_name=raw_name, start=start, end=end, is_virtual_child=child)


def _noise(noise: Noise, sessions: Collection[str]) -> Iterator[Warning_]:
    """What other programs left in the directory: stored with the rest, it keeps equal recordings from being one dataset."""
    if not noise.count:
        return
    more = f" and {noise.count - len(noise.first)} more" if noise.count > len(noise.first) else ""
    named = f"{', '.join(map(printable, noise.first))}{more}"
    yield Warning_(
        message=f"entries that other programs leave behind are stored with the recordings, so that a copy without them is "
        f"another dataset: {named}"
    )
    if raw := [name for name in noise.first if name in sessions]:
        yield Warning_(
            message=f"directories that other programs leave behind become raw sessions: {', '.join(map(printable, raw))}"
        )


def _doubts(plan: SessionPlan, records: int | None) -> list[Warning_]:
    """What a person may want to look at, though the session reads as it did before."""
    if not plan.is_virtual_child and records is None:
        return [_doubt(plan, "its recording has no records or cannot be read; its offsets stay as they are")]
    if plan.is_virtual_child and records is not None and plan.end is not None and plan.end > records:
        return [_doubt(plan, f"its offsets end at {plan.end}, past the {records} records of its recording")]
    return []


def _doubt(plan: SessionPlan, reason: str) -> Warning_:
    return Warning_(
        session=plan.session.session_name, message=f"session {plan.session.session_name}: {reason}"
    )


def _left_alone(row: Session, reason: str) -> Warning_:
    return Warning_(
        session=row.session_name, message=f"session {row.session_name} was left as it is: {reason}"
    )


def _own_directory(path: str, project_path: str, directories: Collection[str]) -> str | None:
    """The one component by which an absolute path goes below the project's; None when it is anything else.

    A comparison of texts, without double slashes and dots. `..` undoes the component before it only where that is one of
    `directories`: behind a link it leads elsewhere, and behind nothing nowhere.
    """
    prefix, parts = _components(project_path), _components(path)
    if not path.startswith("/") or parts[: len(prefix)] != prefix:
        return None
    below: list[str] = []
    for part in parts[len(prefix) :]:
        if part != "..":
            below.append(part)
        elif "/".join(below) in directories:
            below.pop()
        else:
            return None
    return below[0] if len(below) == 1 else None


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in {"", "."}]


def _plain_directories(tree: HashedTree) -> frozenset[str]:
    """The directories that are known to be no links: all of them, or none where the tree has any link."""
    return frozenset() if tree.scan.links else frozenset(entry.path for entry in tree.scan.directories)


def check_names(rows: Sequence[Session], scanned: Scan) -> None:
    """Raise `SessionNameRefusedError` for a session that `plan_sessions` would refuse, before a byte is stored."""
    names = frozenset(scanned.session_names)
    odd = [row for row in rows if not row.parent_session_data_path and row.session_name not in names]
    if odd:
        paths = frozenset(scanned.files.paths)
        for row in odd:
            _check_name(row, paths)


def _check_name(row: Session, files: Container[str]) -> None:
    """A session without a parent path reads from the project's path joined with its name, whatever that is."""
    name = row.session_name
    place = os.path.normpath(os.path.join(name, RECORDING))
    if place in files or name.startswith("/") or ".." in name.split("/"):
        raise SessionNameRefusedError(
            f"Session {row.session_id} would lose its recording: its name {name!r} is not that of a session directory"
        )
