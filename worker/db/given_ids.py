"""What must hold before rows of datasets come back with their ids. Opens no transaction."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from worker.db.datasets import Numbers
from worker.db.engine import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A dataset that wants its id back, and the name of its directory."""

    dataset_id: int
    dataset_hash: str
    tree: str


def other_users(conn: Connection, wanted: Sequence[Wanted]) -> dict[int, str]:
    """Those of these ids that rows give to something else than the dataset that wants it, with one of these
    rows in words. What such a row means was never this dataset.
    """
    rows = conn.execute(
        sql("""
            with wanted as (
                select * from unnest(cast(:ids as bigint[]), cast(:hashes as text[]), cast(:trees as text[]))
                    as w(id, hash, tree)),
            users as (
                select w.id, format('the record of project %s''s migration', c.project_id) as words
                from wanted w join project_conversions c on c.dataset_id = w.id and c.dataset_hash <> w.hash
                union all
                select w.id, format('session %s', s.session_id)
                from wanted w join sessions s on s.dataset_id = w.id
                where not string_to_array(coalesce(s.parent_session_data_path, ''), '/') @> array[w.tree]
                union all
                select w.id, format('the analysis_config of project %s', p.project_id)
                from wanted w join projects p on cast(p.analysis_config as jsonb) ->> 'dataset_id' = cast(w.id as text)
                where not exists (select from project_conversions c
                                  where c.project_id = p.project_id and c.dataset_hash = w.hash)
                union all
                select w.id, format('a job of run %s', j.run_id)
                from wanted w join migration_jobs j on j.subject = 'dataset' and j.subject_id = w.id
                where j.dataset_hash <> w.hash)
            select id, min(words) as words from users group by id"""),
        {
            "ids": [one.dataset_id for one in wanted],
            "hashes": [one.dataset_hash for one in wanted],
            "trees": [one.tree for one in wanted],
        },
    )
    return {row.id: row.words for row in rows}


def taken(conn: Connection, dataset_id: int, session_ids: Sequence[int]) -> tuple[str | None, bool]:
    """Which dataset has this id already, by its name; and has any row one of these ids of sessions?"""
    row = conn.execute(
        sql("""
            select (select dataset_name from raw_datasets where dataset_id = :id) as name,
                   exists (select from raw_dataset_sessions where raw_session_id = any(:session_ids)) as any_session"""),
        {"id": dataset_id, "session_ids": list(session_ids)},
    ).one()
    return row.name, row.any_session


def catch_up(conn: Connection, dataset_id: int, raw_session_id: int) -> None:
    """Let the sequences go on behind these ids. By drawing numbers, which others may do meanwhile: it never
    goes back, as setting one might.
    """
    for table, column, upto in (
        ("raw_datasets", "dataset_id", dataset_id),
        ("raw_dataset_sessions", "raw_session_id", raw_session_id),
    ):
        conn.execute(
            sql("""
                select count(nextval(numbers.name)) from
                    (select pg_get_serial_sequence(:table, :column) as name) as numbers,
                    generate_series(coalesce(pg_sequence_last_value(cast(numbers.name as regclass)), 0) + 1, :upto)
                where numbers.name is not null"""),
            {"table": table, "column": column, "upto": upto},
        )


def next_free(conn: Connection, dataset_id: int, raw_session_id: int, session_count: int) -> Numbers:
    """Ids behind these and behind all that rows have, without drawing any."""
    row = conn.execute(
        sql("""
            select greatest(:dataset_id, (select max(dataset_id) from raw_datasets)) + 1 as dataset_id,
                   greatest(:session_id, (select max(raw_session_id) from raw_dataset_sessions)) + 1 as session_id,
                   clock_timestamp() as at"""),
        {"dataset_id": dataset_id, "session_id": raw_session_id},
    ).one()
    return Numbers(
        dataset_id=row.dataset_id,
        session_ids=range(row.session_id, row.session_id + session_count),
        at=row.at,
    )
