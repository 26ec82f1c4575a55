"""Moving rows: the one transaction that makes a legacy project dataset-based, and its rehearsal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine

from worker.conversion import dataset_row
from worker.conversion.return_plan import put_sessions_back
from worker.conversion.session_plan import Plan, SessionPlan, plan_sessions
from worker.conversion.transaction import in_one_transaction
from worker.db import column_types, datasets, leases, projects, sessions
from worker.db.column_types import ColumnTypes
from worker.db.datasets import Dataset
from worker.db.projects import Project
from worker.db.sessions import Session
from worker.errors import (
    DatabaseRefusedError,
    DatasetGoneError,
    NothingToDoError,
    PlaceTakenError,
    ProjectChangedError,
)
from worker.legacy import tree_attributes
from worker.legacy.hashed_tree import HashedTree
from worker.legacy.session_files import LABELS
from worker.messages import Outcome, Warning_
from worker.store.digest import opened
from worker.store.row_file import DatasetRow

MIGRATED_FROM = "legacy"
"""The value of `migrated_from` by which Label's own tools recognise a converted project."""


def convert(
    engine: Engine,
    lease: leases.Lease,
    tree: HashedTree,
    outcome: Outcome,
    *,
    create: DatasetRow | None,
    listen: Callable[[], None] = lambda: None,
) -> Outcome:
    """Turn the project into one that refers to the dataset, and end its job, in one transaction.

    Locks, in this order: the dataset's row, the project's row, its sessions; for all of them it gives way to
    people, and calls `listen`, which may raise, before it tries again. `create`: the rows of a dataset that
    has none yet, and whose tree is published; the caller holds its claim (`ClaimLostError` when the row is
    there after all). None means the row must be there (`DatasetGoneError` otherwise). Raises
    `NothingToDoError` for a project that is gone or converted, `ProjectChangedError` for one with another
    path, `LeaseLostError` when the job has another holder, `RowRefusedError` for what the database does not
    let be written. A crash anywhere leaves the project as it was.
    """
    # Outside of the transaction: of many files they take a while, in which the server would hear nothing.
    attributes = tree_attributes.pack(tree)
    types = column_types.known(engine)
    to = _Target(tree=tree, attributes=attributes, create=create)

    def write(conn: Connection) -> Outcome:
        converted = _all_rows(conn, lease, to, outcome, types)
        leases.end_job(conn, lease, converted)
        return converted

    return in_one_transaction(engine, f"project {lease.ref.subject_id}", write, listen=listen)


def rehearse(
    engine: Engine,
    lease: leases.Lease,
    tree: HashedTree,
    outcome: Outcome,
    *,
    create: DatasetRow | None,
    listen: Callable[[], None] = lambda: None,
) -> Outcome:
    """Do the same statements under the same locks, see that the database takes them, and take all of it back.

    The outcome that `convert` would have, but for the id of a dataset that is not there yet; it is not in the
    ledger yet. Raises what `convert` raises. Texts of a tree that is not stored yet are read from the legacy
    directory.
    """
    attributes = tree_attributes.pack(tree)
    types = column_types.known(engine)
    to = _Target(tree=tree, attributes=attributes, create=create, is_there=False)

    predicted = in_one_transaction(
        engine,
        f"project {lease.ref.subject_id}",
        lambda conn: _all_rows(conn, lease, to, outcome, types),
        rehearse=True,
        listen=listen,
    )
    return predicted if create is None else predicted.with_changes(dataset_id=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """What the project's rows are to refer to. `is_there`: the tree of the dataset to `create` is
    published, not only planned.
    """

    tree: HashedTree
    attributes: bytes
    create: DatasetRow | None
    is_there: bool = True


def _all_rows(
    conn: Connection, lease: leases.Lease, to: _Target, outcome: Outcome, types: ColumnTypes
) -> Outcome:
    """Every row of one project's conversion but the job's own."""
    tree = to.tree
    if to.create is not None:
        dataset = _add_dataset(conn, to, to.create)
    elif (locked := datasets.lock(conn, tree.manifest.digest)) is not None:
        dataset = locked
    else:
        raise DatasetGoneError(f"Dataset {tree.manifest.digest[:12]} is not there any more")
    project = check_still_legacy(projects.lock(conn, lease.ref.subject_id), lease, conn)
    rows = sessions.lock_of_project(conn, project.project_id)
    settled: tuple[Warning_, ...] = ()
    if project.has_record:
        rows, settled = _settle(conn, lease, project, rows, tree)
    plan = plan_sessions(project.path or "", rows, tree)
    _write_rows(conn, lease, dataset, to, plan, types)
    return outcome.with_changes(
        dataset_id=dataset.dataset_id,
        dataset_path=dataset.file_path,
        dataset_created=to.create is not None,
        sessions_count=len(rows),
        warnings=(*settled, *plan.warnings),
    )


def _settle(
    conn: Connection, lease: leases.Lease, project: Project, rows: list[Session], tree: HashedTree
) -> tuple[list[Session], tuple[Warning_, ...]]:
    """Close the record of a conversion that another program took back: Label's own tool, or a person by SQL.

    Either leaves the sessions reading from the dataset. Where the directory still has that content they are
    led back to it first, so that this conversion records them as they were before the former one; otherwise
    they stay what they are.
    """
    former = projects.active_conversions(conn, [project.project_id])[project.project_id]
    said = f"migrated by run {former.run_id} before, and returned to legacy by another program since; the record of that is closed"
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
    number = lease.ref.subject_id
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


def _write_rows(
    conn: Connection, lease: leases.Lease, dataset: Dataset, to: _Target, plan: Plan, types: ColumnTypes
) -> None:
    """All rows of the project, and the before-image of each. Seven statements, however many sessions there
    are.
    """
    project_id = lease.ref.subject_id
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


def _add_dataset(conn: Connection, to: _Target, row: DatasetRow) -> Dataset:
    read = (
        partial(dataset_row.labels_in, Path(row.file_path))
        if to.is_there
        else partial(_legacy_labels, to.tree)
    )
    try:
        return dataset_row.add(conn, row, read)
    except DatabaseRefusedError as error:
        if error.constraint != datasets.ONE_PLACE:
            raise
        raise PlaceTakenError(f"Another dataset was registered at {row.file_path} meanwhile") from error


def _legacy_labels(tree: HashedTree, session: str) -> str:
    """The same from the legacy tree."""
    source = tree.sources[f"{session}/{LABELS}"]
    with opened(source.path, source.signature) as descriptor, open(descriptor, "rb", closefd=False) as file:
        return file.read().decode("utf-8")


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
