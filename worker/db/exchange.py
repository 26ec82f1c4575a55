"""A dataset-based project whole, with its sessions and lineage, out of Label's tables and into them again.

Rows travel as JSON of all their columns, so that columns of a newer Label go along, and each value is cast to
its column's own type when it is written. Opens no transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from worker.db.engine import sql
from worker.db.texts import as_json

_AT_ONCE = 1_000
"""So many sessions in one statement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkedDataset:
    """A dataset that a project refers to, or one of its sessions. `label_hash` is what is remembered of it,
    if `has_label_hash`: None then means that Label has no hash for it.
    """

    dataset_id: int
    dataset_name: str
    dataset_hash: str
    file_path: str
    session_count: int | None
    description: str | None
    metadata: Any
    has_label_hash: bool
    label_hash: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeProject:
    """Rows as they are: columns by name, values as JSON has them."""

    row: Mapping[str, Any]
    participant_code: str | None
    sessions: Sequence[Mapping[str, Any]]
    lineage: Sequence[Mapping[str, Any]]
    datasets: Sequence[LinkedDataset]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A dataset whose recordings have the names that are wanted, and which has no hash of Label's yet."""

    dataset_id: int
    dataset_hash: str
    file_path: str


def read(conn: Connection, project_id: int) -> WholeProject | None:
    """A project with everything of it, as it is at one moment: one statement."""
    row = conn.execute(
        sql("""
            select to_jsonb(p) as row, a.participant_code,
                   (select jsonb_agg(to_jsonb(s) order by s.session_id)
                    from sessions s where s.project_id = p.project_id) as sessions,
                   (select jsonb_agg(jsonb_build_object('child', l.child_session_id, 'parent', l.parent_session_id,
                                                        'split_timestamp', l.split_timestamp) order by l.id)
                    from session_lineage l join sessions c on c.session_id = l.child_session_id
                    where c.project_id = p.project_id) as lineage,
                   (select jsonb_agg(jsonb_build_object(
                        'dataset_id', d.dataset_id, 'dataset_name', d.dataset_name, 'dataset_hash', d.dataset_hash,
                        'file_path', d.file_path, 'session_count', d.session_count, 'description', d.description,
                        'metadata', d.metadata, 'has_label_hash', h.dataset_hash is not null, 'label_hash', h.label_hash)
                        order by d.dataset_id)
                    from raw_datasets d left join migration_label_hashes h using (dataset_hash)
                    where d.dataset_id in (select r.dataset_id from project_dataset_refs r
                                           where r.project_id = p.project_id
                                           union select s.dataset_id from sessions s
                                           where s.project_id = p.project_id)) as datasets
            from projects p left join participants a using (participant_id)
            where p.project_id = :id"""),
        {"id": project_id},
    ).one_or_none()
    if row is None:
        return None
    return WholeProject(
        row=row.row,
        participant_code=row.participant_code,
        sessions=row.sessions or [],
        lineage=row.lineage or [],
        datasets=[LinkedDataset(**one) for one in row.datasets or []],
    )


# Label's hashes ---------------------------------------------------------------------------------------------


def remember_label_hash(conn: Connection, dataset_hash: str, label_hash: str | None) -> None:
    """Keep Label's hash of a dataset of this content."""
    conn.execute(
        sql("""
            insert into migration_label_hashes (dataset_hash, label_hash) values (:hash, :label_hash)
            on conflict (dataset_hash) do nothing"""),
        {"hash": dataset_hash, "label_hash": label_hash},
    )


def label_hash_of(conn: Connection, dataset_hash: str) -> tuple[bool, str | None]:
    """Is Label's hash of a dataset remembered, and which is it? None then means that Label has none."""
    row = conn.execute(
        sql("select label_hash from migration_label_hashes where dataset_hash = :hash"),
        {"hash": dataset_hash},
    ).one_or_none()
    return (False, None) if row is None else (True, row.label_hash)


def find_by_hashes(conn: Connection, hashes: Sequence[str]) -> int | None:
    """The dataset that has one of these as its hash, or as Label's hash of its content, or had it in its row
    before it was adopted; by the first of them.
    """
    return conn.execute(
        sql("""
            select d.dataset_id from raw_datasets d left join migration_label_hashes h on h.dataset_hash = d.dataset_hash
            left join migration_adoptions a
                on (a.dataset_id, a.dataset_hash) = (d.dataset_id, d.dataset_hash) and a.state <> 'undone'
            where d.dataset_hash = any(:hashes) or h.label_hash = any(:hashes) or a.registered_hash = any(:hashes)
            order by array_position(cast(:hashes as text[]), d.dataset_hash) nulls last,
                     h.label_hash = any(:hashes) desc nulls last, d.dataset_id limit 1"""),
        {"hashes": list(hashes)},
    ).scalar_one_or_none()


def candidates(conn: Connection, session_names: Sequence[str], session_count: int | None) -> list[Candidate]:
    """The datasets without a remembered hash of Label's that have recordings of all these names, and as many
    of them as that, if that is known.
    """
    rows = conn.execute(
        sql("""
            select d.dataset_id, d.dataset_hash, d.file_path from raw_datasets d
            where not exists (select from migration_label_hashes h where h.dataset_hash = d.dataset_hash)
              and (cast(:count as integer) is null or d.session_count = :count)
              and not exists (
                  select from unnest(cast(:names as text[])) as name
                  where not exists (select from raw_dataset_sessions r
                                    where r.dataset_id = d.dataset_id and r.session_name = name))
            order by d.dataset_id"""),
        {"names": list(session_names), "count": session_count},
    )
    return [Candidate(**row) for row in rows.mappings()]


def session_names(conn: Connection, dataset_id: int) -> frozenset[str]:
    """The recordings of a dataset."""
    rows = conn.execute(
        sql("select session_name from raw_dataset_sessions where dataset_id = :id"), {"id": dataset_id}
    )
    return frozenset(row.session_name for row in rows)


def place(conn: Connection, dataset_id: int) -> tuple[str, str] | None:
    """A dataset's hash and directory; it is kept from being deleted until the transaction ends. None if it
    was already.
    """
    row = conn.execute(
        sql("select dataset_hash, file_path from raw_datasets where dataset_id = :id for key share"),
        {"id": dataset_id},
    ).one_or_none()
    return None if row is None else (row.dataset_hash, row.file_path)


# Writing ----------------------------------------------------------------------------------------------------


def has_project(conn: Connection, name: str) -> bool:
    """Is the name taken?"""
    found: bool = conn.execute(
        sql("select exists (select from projects where project_name = :name)"), {"name": name}
    ).scalar_one()
    return found


def participant(conn: Connection, code: str) -> int:
    """The participant with this code, who is added if there is none."""
    conn.execute(
        sql("""
            insert into participants (participant_code) values (:code) on conflict (participant_code) do nothing"""),
        {"code": code},
    )
    found: int = conn.execute(
        sql("select participant_id from participants where participant_code = :code"), {"code": code}
    ).scalar_one()
    return found


def add_project(conn: Connection, row: Mapping[str, Any], participant_id: int) -> int:
    """A dataset-based project of these columns; its id."""
    found: int = conn.execute(
        sql("""
            insert into projects (project_name, participant_id, project_type, analysis_config, labelings)
            select project_name, :participant, project_type, analysis_config, labelings
            from jsonb_populate_record(null::projects, cast(:row as jsonb)) returning project_id"""),
        {"row": as_json(row), "participant": participant_id},
    ).scalar_one()
    return found


def add_sessions(conn: Connection, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Sessions of these columns, as far as the table has them; their ids by name. All rows have the same
    columns; what they have none of gets its default.
    """
    found: dict[str, int] = {}
    columns = _columns(conn, rows[0]) if rows else ""
    for first in range(0, len(rows), _AT_ONCE):
        added = conn.execute(
            sql(f"""
                insert into sessions ({columns})
                select {columns} from jsonb_populate_recordset(null::sessions, cast(:rows as jsonb))
                returning session_id, session_name"""),  # noqa: S608 - names of the catalog, quoted by it
            {"rows": as_json(rows[first : first + _AT_ONCE])},
        )
        found |= {row.session_name: row.session_id for row in added}
    return found


def _columns(conn: Connection, row: Mapping[str, Any]) -> str:
    columns: str = conn.execute(
        sql("""
            select string_agg(quote_ident(attname), ', ' order by attnum) from pg_attribute
            where attrelid = 'sessions'::regclass and attnum > 0 and not attisdropped and attgenerated = ''
              and attname = any(:names) and attname <> 'session_id'"""),
        {"names": list(row)},
    ).scalar_one()
    return columns


def add_lineage(conn: Connection, rows: Sequence[tuple[int, int, str | None]]) -> None:
    """Child, parent, and when it was split, of each."""
    conn.execute(
        sql("""
            insert into session_lineage (child_session_id, parent_session_id, split_timestamp)
            select l.child, l.parent, coalesce(cast(l.at as timestamptz), now())
            from jsonb_to_recordset(cast(:rows as jsonb)) as l(child integer, parent integer, at text)"""),
        {"rows": as_json([{"child": child, "parent": parent, "at": at} for child, parent, at in rows])},
    )


def add_references(conn: Connection, project_id: int, dataset_ids: Sequence[int]) -> None:
    """The project refers to these datasets."""
    conn.execute(
        sql("""
            insert into project_dataset_refs (project_id, dataset_id)
            select :project, unnest(cast(:datasets as integer[]))"""),
        {"project": project_id, "datasets": sorted(dataset_ids)},
    )
