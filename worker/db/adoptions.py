"""Rows of datasets that Label registered itself and that became ours in place, and of those that still may.
Opens no transaction.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection
from sqlalchemy.engine import Row

from worker.db import datasets
from worker.db.checks import UNSIGNED, signed
from worker.db.datasets import RawSession
from worker.db.engine import sql
from worker.db.retry import GIVE_WAY
from worker.db.texts import as_json

State = Literal["adopting", "adopted", "undoing", "clearing", "undone", "removing", "removed"]

BETWEEN: tuple[State, ...] = ("adopting", "undoing", "clearing", "removing")
"""States that a job only passes through: one that died there left them."""

HELD: tuple[State, ...] = ("adopted", "undoing", "removing", "removed")
"""While its row is in one of these states, a dataset is an adopted one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A dataset's row and those of its sessions as they are, all columns by name."""

    dataset_id: int
    dataset_name: str
    dataset_hash: str
    file_path: str
    before: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAdoption:
    """A row before the directories change places."""

    dataset: Registered
    run_id: uuid.UUID
    folder: str
    inode: int
    tree_inode: int
    listing: str
    size_bytes: int
    dataset_hash: str
    label_hash: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """A dataset that became ours in place, or is to. `folder` is in quarantine; `inode` and `tree_inode` tell
    the directory that Label had from ours.
    """

    adoption_id: int
    dataset_id: int
    run_id: uuid.UUID
    file_path: str
    folder: str
    inode: int
    tree_inode: int
    listing: str
    size_bytes: int
    dataset_hash: str
    registered_hash: str
    label_hash: str | None
    state: State
    adopted_at: datetime | None

    @property
    def is_set_aside(self) -> bool:
        """Is the directory that Label had in quarantine still?"""
        return self.state not in {"removing", "removed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A dataset, ours or Label's, as its row has it; and how far its adoption is, if it has one."""

    dataset_id: int
    dataset_name: str
    file_path: str
    size_bytes: int | None
    sessions: int | None
    state: State | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """An adoption whose directory a gc may remove. `is_verified`: everything of the dataset was read and
    found right since, or Label has deleted it.
    """

    adoption: Adoption
    dataset_name: str
    is_verified: bool


_COLUMNS = """
    a.adoption_id, a.dataset_id, a.run_id, a.file_path, a.folder, a.inode, a.tree_inode, a.listing, a.size_bytes,
    a.dataset_hash, a.registered_hash, a.label_hash, a.state, a.adopted_at"""

_SELECT = f"select {_COLUMNS} from migration_adoptions a"  # noqa: S608 - a constant


def registered(conn: Connection, dataset_id: int) -> Registered | None:
    """A dataset, if it is there; kept from being deleted until the transaction ends, which gives way from
    this lock on.
    """
    row = conn.execute(
        sql(f"""
            {GIVE_WAY}
            select d.dataset_id, d.dataset_name, d.dataset_hash, d.file_path, to_jsonb(d) as dataset
            from raw_datasets d where d.dataset_id = :id for update"""),  # noqa: S608 - a constant
        {"id": dataset_id},
    ).one_or_none()
    if row is None:
        return None
    sessions = conn.execute(
        sql("""
            select coalesce(jsonb_agg(to_jsonb(s) order by s.raw_session_id), '[]')
            from raw_dataset_sessions s where s.dataset_id = :id"""),
        {"id": dataset_id},
    ).scalar_one()
    return Registered(
        dataset_id=row.dataset_id,
        dataset_name=row.dataset_name,
        dataset_hash=row.dataset_hash,
        file_path=row.file_path,
        before={"dataset": row.dataset, "sessions": sessions},
    )


def candidates(conn: Connection) -> list[Candidate]:
    """Every dataset, by id."""
    rows = conn.execute(
        sql("""
            select d.dataset_id, d.dataset_name, d.file_path, d.file_size_bytes as size_bytes,
                   d.session_count as sessions, a.state
            from raw_datasets d left join migration_adoptions a on a.dataset_id = d.dataset_id and a.state <> 'undone'
            order by d.dataset_id""")
    )
    return [Candidate(**row) for row in rows.mappings()]


def of_dataset(conn: Connection, dataset_id: int) -> Adoption | None:
    """What became of a dataset that was adopted, unless that was undone."""
    row = conn.execute(
        sql(f"{_SELECT} where dataset_id = :id and state <> 'undone'"), {"id": dataset_id}
    ).one_or_none()
    return _adoption(row) if row is not None else None


def names_of(conn: Connection, dataset_hashes: Sequence[str]) -> dict[str, str]:
    """The names of the directories of adopted datasets with these digests."""
    rows = conn.execute(
        sql("""
            select dataset_hash, regexp_replace(rtrim(file_path, '/'), '^.*/', '') as name from migration_adoptions
            where dataset_hash = any(:hashes) and state = any(:states) order by adoption_id"""),
        {"hashes": list(dataset_hashes), "states": list(HELD)},
    )
    return {row.dataset_hash: row.name for row in rows}


def in_states(conn: Connection, states: Collection[State]) -> list[Adoption]:
    """All that are in one of these states."""
    rows = conn.execute(
        sql(f"{_SELECT} where state = any(:states) order by dataset_id"), {"states": list(states)}
    )
    return [_adoption(row) for row in rows]


def undone_by(conn: Connection, dataset_id: int, run_id: uuid.UUID) -> Adoption | None:
    """What this run has undone of a dataset, if it has."""
    row = conn.execute(
        sql(f"""{_SELECT}
            where dataset_id = :id and state = 'undone' and adopted_at is not null and ended_by_run_id = :run_id
            order by adoption_id desc limit 1"""),
        {"id": dataset_id, "run_id": run_id},
    ).one_or_none()
    return _adoption(row) if row is not None else None


def begin(conn: Connection, new: NewAdoption) -> int:
    """Write that two directories are about to change places; the row's id."""
    adoption_id: int = conn.execute(
        sql("""
            insert into migration_adoptions (dataset_id, run_id, file_path, folder, inode, tree_inode, listing, size_bytes,
                                             dataset_hash, registered_hash, label_hash, before, state)
            values (:dataset_id, :run_id, :file_path, :folder, :inode, :tree_inode, :listing, :size_bytes,
                    :dataset_hash, :registered_hash, :label_hash, cast(:before as jsonb), 'adopting')
            returning adoption_id"""),
        {
            "dataset_id": new.dataset.dataset_id,
            "run_id": new.run_id,
            "file_path": new.dataset.file_path,
            "folder": new.folder,
            "inode": signed(new.inode),
            "tree_inode": signed(new.tree_inode),
            "listing": new.listing,
            "size_bytes": new.size_bytes,
            "dataset_hash": new.dataset_hash,
            "registered_hash": new.dataset.dataset_hash,
            "label_hash": new.label_hash,
            "before": as_json(new.dataset.before),
        },
    ).scalar_one()
    return adoption_id


def remember_removed(
    conn: Connection,
    dataset_id: int,
    *,
    file_path: str,
    dataset_hash: str,
    registered_hash: str,
    label_hash: str | None,
) -> None:
    """A dataset whose row came back was an adopted one: it stays so, but what Label had is not known any
    more, so that nothing can be undone.
    """
    conn.execute(
        sql("""
            insert into migration_adoptions (dataset_id, run_id, file_path, folder, inode, tree_inode, listing, size_bytes,
                                             dataset_hash, registered_hash, label_hash, before, state, ended_at)
            values (:dataset_id, :no_run, :file_path, '', 0, 0, '', 0, :dataset_hash, :registered_hash, :label_hash,
                    '{}', 'removed', clock_timestamp())
            on conflict do nothing"""),
        {
            "dataset_id": dataset_id,
            "no_run": uuid.UUID(int=0),
            "file_path": file_path,
            "dataset_hash": dataset_hash,
            "registered_hash": registered_hash,
            "label_hash": label_hash,
        },
    )


def lock(conn: Connection, adoption_id: int) -> State:
    """Lock a row until the transaction ends; its state."""
    found: State = conn.execute(
        sql("select state from migration_adoptions where adoption_id = :id for update"), {"id": adoption_id}
    ).scalar_one()
    return found


def set_state(conn: Connection, adoption_id: int, state: State, run_id: uuid.UUID) -> None:
    """How far an adoption is from now on, and which run saw to its end."""
    conn.execute(
        sql("""
            update migration_adoptions
            set state = cast(:state as text),
                adopted_at = case when :state = 'adopted' then coalesce(adopted_at, clock_timestamp()) else adopted_at end,
                ended_at = case when :state in ('undone', 'removed') then clock_timestamp() else ended_at end,
                ended_by_run_id = case when :state in ('undone', 'removed') then cast(:run_id as uuid) else ended_by_run_id end
            where adoption_id = :id"""),
        {"id": adoption_id, "state": state, "run_id": run_id},
    )


# The dataset's rows -----------------------------------------------------------------------------------------


def write_rows(
    conn: Connection,
    dataset_id: int,
    *,
    dataset_hash: str,
    size_bytes: int,
    sessions: Sequence[RawSession],
) -> None:
    """Let a dataset's row say what is ours, and its sessions be these. Of one that has its row only the
    number of files changes.

    Raises `DatabaseRefusedError` when another dataset has the digest.
    """
    values = {"id": dataset_id, "names": [one.session_name for one in sessions]}
    conn.execute(
        sql("""
            update raw_datasets set dataset_hash = :hash, file_size_bytes = :size_bytes, session_count = :count
            where dataset_id = :id"""),
        {"id": dataset_id, "hash": dataset_hash, "size_bytes": size_bytes, "count": len(sessions)},
    )
    conn.execute(
        sql("delete from raw_dataset_sessions where dataset_id = :id and session_name <> all(:names)"), values
    )
    rows = conn.execute(
        sql("""
            with wanted as (select * from unnest(cast(:names as text[]), cast(:counts as integer[])) as w(name, files)),
            changed as (update raw_dataset_sessions s set file_count = w.files from wanted w
                        where s.dataset_id = :id and s.session_name = w.name and s.file_count is distinct from w.files)
            select session_name from raw_dataset_sessions where dataset_id = :id"""),
        values | {"counts": [one.file_count for one in sessions]},
    )
    known = {row.session_name for row in rows}
    datasets.add_sessions(conn, dataset_id, (one for one in sessions if one.session_name not in known))


def restore_rows(conn: Connection, adoption_id: int) -> None:
    """Let the rows of a dataset and its sessions say again what they said before; what people changed in
    other columns since stays.
    """
    conn.execute(
        sql("""
            with kept as (select dataset_id, before -> 'dataset' as was from migration_adoptions where adoption_id = :id),
            was as (select k.dataset_id as of, r.* from kept k,
                    jsonb_populate_record(null::raw_datasets, k.was) as r)
            update raw_datasets d
            set dataset_hash = w.dataset_hash, file_size_bytes = w.file_size_bytes, session_count = w.session_count,
                updated_at = w.updated_at
            from was w where d.dataset_id = w.of"""),
        {"id": adoption_id},
    )
    conn.execute(
        sql("""
            with was as (select r.* from migration_adoptions a,
                         jsonb_populate_recordset(null::raw_dataset_sessions, a.before -> 'sessions') as r
                         where a.adoption_id = :id),
            made as (delete from raw_dataset_sessions s
                     where s.dataset_id = (select dataset_id from migration_adoptions where adoption_id = :id)
                       and not exists (select from was w where w.raw_session_id = s.raw_session_id)),
            counted as (update raw_dataset_sessions s set file_count = w.file_count from was w
                        where s.raw_session_id = w.raw_session_id)
            insert into raw_dataset_sessions
            select w.* from was w
            where not exists (select from raw_dataset_sessions s where s.raw_session_id = w.raw_session_id)"""),
        {"id": adoption_id},
    )


def migrated_to(conn: Connection, dataset_id: int) -> list[int]:
    """The projects that a migration of ours pointed to a dataset and that were not rolled back."""
    rows = conn.execute(
        sql("""
            select project_id from project_conversions c join projects p using (project_id)
            where c.dataset_id = :id and c.rolled_back_at is null order by project_id"""),
        {"id": dataset_id},
    )
    return [row.project_id for row in rows]


# What a gc asks ---------------------------------------------------------------------------------------------


def due(conn: Connection, grace_h: float) -> list[Due]:
    """The adoptions whose directories have been in quarantine for the grace time."""
    rows = conn.execute(
        sql(f"""
            select {_COLUMNS}, coalesce(d.dataset_name, '') as dataset_name,
                   d.dataset_id is null
                   or exists (select from migration_indexed_datasets i
                              where i.dataset_hash = a.dataset_hash and i.checked_at > a.adopted_at)
                      and not exists (select from migration_dataset_blobs b left join migration_blob_checks c using (digest)
                                      where b.dataset_hash = a.dataset_hash
                                        and coalesce(c.checked_at <= a.adopted_at, true)) as is_verified
            from migration_adoptions a
            left join raw_datasets d on (d.dataset_id, d.dataset_hash) = (a.dataset_id, a.dataset_hash)
            where a.state = 'adopted' and a.adopted_at <= clock_timestamp() - make_interval(secs => :grace_s)
            order by a.dataset_id"""),  # noqa: S608 - a constant
        {"grace_s": grace_h * 3600},
    )
    return [
        Due(adoption=_adoption(row, _OF_DUE), dataset_name=row.dataset_name, is_verified=row.is_verified)
        for row in rows
    ]


_OF_DUE = frozenset({"dataset_name", "is_verified"})


def _adoption(row: Row[Any], but: Collection[str] = ()) -> Adoption:
    named = {name: value for name, value in row._mapping.items() if name not in but}  # noqa: SLF001 - the public name of a row as a mapping
    return Adoption(**named | {key: named[key] % UNSIGNED for key in ("inode", "tree_inode")})
