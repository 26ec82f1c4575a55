"""Rows of raw datasets, their sessions and references. Opens no transaction."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from worker.db.engine import sql
from worker.db.retry import GIVE_WAY
from worker.db.texts import as_json
from worker.errors import ClaimLostError

_PORTION_CHARACTERS = 4 << 20

_SELECT = "select dataset_id, dataset_name, dataset_hash, file_path from raw_datasets"

ONE_PLACE = "raw_datasets_file_path_key"
"""The unique key by which a directory is one dataset's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A row of `raw_datasets`."""

    dataset_id: int
    dataset_name: str
    dataset_hash: str
    file_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSession:
    """A row of `raw_dataset_sessions`, before it is one. `labels` is labels.json as read, if it is text.
    Without `raw_session_id` the database numbers it, and says when it was written.
    """

    session_name: str
    session_path: str
    labels: str | None
    file_count: int | None
    raw_session_id: int | None = None
    created_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Ids that are kept for a dataset and its sessions, and the database's time."""

    dataset_id: int
    session_ids: Sequence[int]
    at: datetime


def find(conn: Connection, dataset_hash: str) -> Dataset | None:
    """The dataset with this digest, if it is there."""
    row = conn.execute(sql(f"{_SELECT} where dataset_hash = :hash"), {"hash": dataset_hash}).one_or_none()
    return _dataset(row) if row is not None else None


def find_or_at(
    conn: Connection, dataset_hash: str, places: Sequence[str]
) -> tuple[Dataset | None, frozenset[str]]:
    """The dataset with this digest, if it is there; and those of `places` that are registered for another
    one: Label's "scan and register" takes a tree that has no row (yet) for one of its own.
    """
    rows = conn.execute(
        sql(f"""{_SELECT}
            where dataset_hash = :hash
               or md5(file_path) in (select md5(place) from unnest(cast(:places as text[])) as place)"""),  # noqa: S608 - a constant
        {"hash": dataset_hash, "places": list(places)},
    )
    found = [_dataset(row) for row in rows]
    known = next((one for one in found if one.dataset_hash == dataset_hash), None)
    return known, frozenset(one.file_path for one in found if one is not known)


def is_registered(conn: Connection, name: str) -> bool:
    """Is there a dataset whose directory has this name? By the name alone Label finds it, however the path is
    spelt.
    """
    found: bool = conn.execute(
        sql(
            "select exists (select from raw_datasets where right(rtrim(file_path, '/'), length(:name) + 1) = '/' || :name)"
        ),
        {"name": name},
    ).scalar_one()
    return found


def lock(conn: Connection, dataset_hash: str) -> Dataset | None:
    """The same, kept from being deleted until the transaction ends, which gives way from this lock on."""
    row = conn.execute(
        sql(f"""
            {GIVE_WAY}
            {_SELECT} where dataset_hash = :hash for update"""),
        {"hash": dataset_hash},
    ).one_or_none()
    return _dataset(row) if row is not None else None


def reserve(conn: Connection, session_count: int) -> Numbers | None:
    """Take ids for a dataset and its sessions that no other row will get; None where tables were made by hand
    and number their rows in a way of their own.
    """
    row = conn.execute(
        sql("""
            select nextval(pg_get_serial_sequence('raw_datasets', 'dataset_id')) as dataset_id,
                   array(select nextval(pg_get_serial_sequence('raw_dataset_sessions', 'raw_session_id'))
                         from generate_series(1, :count)) as session_ids,
                   clock_timestamp() as at"""),
        {"count": session_count},
    ).one()
    if row.dataset_id is None or None in row.session_ids:
        return None
    return Numbers(dataset_id=row.dataset_id, session_ids=row.session_ids, at=row.at)


def add(  # noqa: PLR0913 - the columns of a row
    conn: Connection,
    *,
    name: str,
    dataset_hash: str,
    file_path: str,
    size_bytes: int | None,
    description: str | None,
    metadata: Any,
    session_count: int | None,
    sessions: Iterable[RawSession],
    numbered: Mapping[str, Any] | None = None,
) -> Dataset:
    """Write a dataset and its sessions: one statement, and one more for every some megabytes of labels.
    `sessions` are taken as they are written. `numbered`: the columns that the database fills otherwise, id
    and times; the sessions then have theirs. The caller holds the claim. Gives way as `lock`.

    Raises `ClaimLostError` when the dataset is there already: another job stored it, so the claim was not
    ours any more.
    """
    row = {
        "dataset_name": name,
        "dataset_hash": dataset_hash,
        "file_path": file_path,
        "file_size_bytes": size_bytes,
        "session_count": session_count,
        "description": description,
        "metadata": metadata,
        **(numbered or {}),
    }
    columns = ", ".join(row)
    portions = _portions(sessions)
    first = next(portions, [])
    dataset_id = conn.execute(
        sql(f"""
            {GIVE_WAY}
            with added as (
                insert into raw_datasets ({columns})
                select {columns} from jsonb_populate_record(null::raw_datasets, cast(:row as jsonb))
                on conflict (dataset_hash) do nothing returning dataset_id),
            its_sessions as ({_insert_sessions(first, "added.dataset_id", "added,")})
            select dataset_id from added"""),  # noqa: S608 - constants
        {"row": as_json(row), "rows": as_json(first)},
    ).scalar_one_or_none()
    if dataset_id is None:
        raise ClaimLostError(f"Dataset {dataset_hash[:12]} was stored by another job meanwhile")
    _add_portions(conn, dataset_id, portions)
    return Dataset(dataset_id=dataset_id, dataset_name=name, dataset_hash=dataset_hash, file_path=file_path)


def add_sessions(conn: Connection, dataset_id: int, sessions: Iterable[RawSession]) -> None:
    """Write sessions of a dataset that has its row."""
    _add_portions(conn, dataset_id, _portions(sessions))


def _add_portions(conn: Connection, dataset_id: int, portions: Iterable[list[dict[str, Any]]]) -> None:
    for rows in portions:
        conn.execute(
            sql(_insert_sessions(rows, ":dataset_id")), {"dataset_id": dataset_id, "rows": as_json(rows)}
        )


def _insert_sessions(rows: Sequence[Mapping[str, Any]], dataset_id: str, source: str = "") -> str:
    """Sessions of the dataset with this id, with numbers and times of their own if they have any."""
    own = ", raw_session_id, created_at" if rows and "raw_session_id" in rows[0] else ""
    return f"""
        insert into raw_dataset_sessions (dataset_id, session_name, session_path, original_labels_json, file_count{own})
        select {dataset_id}, s.session_name, s.session_path, s.original_labels_json, s.file_count{own}
        from {source} jsonb_populate_recordset(null::raw_dataset_sessions, cast(:rows as jsonb)) as s"""  # noqa: S608 - constants


def _portions(sessions: Iterable[RawSession]) -> Iterator[list[dict[str, Any]]]:
    """Rows for one statement at a time: all of them together may be more than a document of PostgreSQL can
    hold, or memory.
    """
    rows: list[dict[str, Any]] = []
    size = 0
    for one in sessions:
        own = (
            {}
            if one.raw_session_id is None
            else {"raw_session_id": one.raw_session_id, "created_at": one.created_at}
        )
        rows.append(
            {
                "session_name": one.session_name,
                "session_path": one.session_path,
                "original_labels_json": one.labels,
                "file_count": one.file_count,
                **own,
            }
        )
        size += len(one.labels or "")
        if size >= _PORTION_CHARACTERS:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def all_of(conn: Connection) -> list[Dataset]:
    """Every dataset."""
    return [_dataset(row) for row in conn.execute(sql(f"{_SELECT} order by dataset_id"))]


def get(conn: Connection, dataset_id: int) -> Dataset | None:
    """The dataset with this id, if it is there."""
    row = conn.execute(sql(f"{_SELECT} where dataset_id = :id"), {"id": dataset_id}).one_or_none()
    return _dataset(row) if row is not None else None


def whole(conn: Connection, dataset_id: int) -> Mapping[str, Any] | None:
    """The row of a dataset as JSON, with `sessions`, whose labels are only told to be there, Label's hash, if
    it is remembered (`has_label_hash`), and the one it was registered with, if it was adopted.
    """
    row: Mapping[str, Any] | None = conn.execute(
        sql("""
            select to_jsonb(d) || jsonb_build_object(
                'has_label_hash', h.dataset_hash is not null, 'label_hash', h.label_hash,
                'registered_hash', (select a.registered_hash from migration_adoptions a
                                    where (a.dataset_id, a.dataset_hash) = (d.dataset_id, d.dataset_hash)
                                      and a.state <> 'undone'),
                'sessions',
                coalesce((select jsonb_agg(to_jsonb(s) - 'original_labels_json'
                                           || jsonb_build_object('has_labels', s.original_labels_json is not null)
                                           order by s.raw_session_id)
                          from raw_dataset_sessions s where s.dataset_id = d.dataset_id), '[]'))
            from raw_datasets d left join migration_label_hashes h using (dataset_hash)
            where d.dataset_id = :id"""),
        {"id": dataset_id},
    ).scalar_one_or_none()
    return row


def is_held(conn: Connection, dataset_id: int) -> bool:
    """Is the dataset's row there? Then it cannot be deleted until the transaction ends."""
    row = conn.execute(
        sql("select from raw_datasets where dataset_id = :id for share"), {"id": dataset_id}
    ).one_or_none()
    return row is not None


def drop_reference(conn: Connection, ref_id: int | None) -> None:
    """Remove one reference, if it is there: the conversion's own, never one that people made."""
    conn.execute(sql("delete from project_dataset_refs where ref_id = :id"), {"id": ref_id})


def refer(conn: Connection, project_id: int, dataset_id: int) -> int | None:
    """Make the project refer to the dataset; the new reference's id, None when it referred to it already."""
    return conn.execute(
        sql("""
            insert into project_dataset_refs (project_id, dataset_id) values (:project_id, :dataset_id)
            on conflict (project_id, dataset_id) do nothing returning ref_id"""),
        {"project_id": project_id, "dataset_id": dataset_id},
    ).scalar()


def _dataset(row: Row[Any]) -> Dataset:
    return Dataset(**row._mapping)  # noqa: SLF001 - the public name of a row as a mapping
