"""What a conversion from another database server may leave wrong in Label's tables, as far as PostgreSQL
alone tells: names, types, keys, numbers, texts and times. Changes nothing, and judges nothing of it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row

from worker.db.column_types import Misfit
from worker.db.engine import sql
from worker.db.health import Numbers, numbers
from worker.db.refusals import catch_up

KEYS: Mapping[str, str] = {
    "participants": "participant_id",
    "projects": "project_id",
    "sessions": "session_id",
    "session_lineage": "id",
    "models": "model_id",
    "raw_datasets": "dataset_id",
    "raw_dataset_sessions": "raw_session_id",
    "project_dataset_refs": "ref_id",
    "project_split_configs": "config_id",
}
"""Label's tables and the column that numbers their rows (label contract, sections 1 and 2)."""

_OWN = ("participants", "projects", "sessions", "session_lineage", "models")
"""Those to which Label alone adds rows."""

_UNIQUE = (
    ("participants", ("participant_code",)),
    ("projects", ("project_name",)),
    ("sessions", ("project_id", "session_name")),
)
"""What else may be there once only. The keys of the other tables are made by sql/ where they are missing."""

_REFERENCES = (
    ("projects", "participant_id", "participants", "on delete restrict"),
    ("sessions", "project_id", "projects", "on delete cascade"),
    ("session_lineage", "child_session_id", "sessions", ""),
    ("session_lineage", "parent_session_id", "sessions", ""),
)
"""Foreign keys that Label's own tables have; each refers to the key of its table."""

_REFERENCES_OF_SQL = (
    ("sessions", "dataset_id", "raw_datasets"),
    ("sessions", "split_config_id", "project_split_configs"),
    ("raw_dataset_sessions", "dataset_id", "raw_datasets"),
    ("project_dataset_refs", "project_id", "projects"),
    ("project_dataset_refs", "dataset_id", "raw_datasets"),
    ("project_split_configs", "project_id", "projects"),
    ("project_split_configs", "dataset_id", "raw_datasets"),
)
"""Those that sql/ makes where they are missing."""

_FLAGS = ("verified", "puffs_verified", "smoking_verified")
"""Small numbers of `sessions`, in which 1 and 100 mean verified."""

_JSON = (("projects", "labelings"), ("sessions", "bouts"), ("models", "model_settings"))
"""JSON that Label alone reads and writes; of the other columns `column_types` knows."""

_NAME_ENDS_WITH_A_TIME = re.compile(r"_(\d{8}_\d{6})/*$")
_NEWEST = 1000
_OFFSETS = timedelta(hours=15)
"""What is off by more was made at another time than its directory, as after an import."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Twins:
    """Rows of one table whose names differ in capitals or in blanks around them only."""

    table: str
    ids: tuple[int, ...]
    names: tuple[str, ...]


def is_there(conn: Connection) -> bool:
    """Is `projects` found? Without it no table is Label's."""
    return bool(conn.scalar(sql("select to_regclass('projects') is not null")))


# Names, types, keys -----------------------------------------------------------------------------------------


def misnamed(conn: Connection) -> list[Misfit]:
    """Tables and columns whose name has capitals: statements write Label's names without quotation marks."""
    rows = conn.execute(
        sql("""
            select c.relname::text as place, c.oid::regclass::text as table_name, null as column_name,
                   lower(c.relname) as meant
            from pg_class c
            where c.relkind in ('r', 'p') and c.relname <> lower(c.relname) and lower(c.relname) = any(:tables)
              and c.relnamespace = (select relnamespace from pg_class where oid = to_regclass('projects'))
            union all
            select t.name || '.' || a.attname, format('%I.%I', n.nspname, c.relname), quote_ident(a.attname), lower(a.attname)
            from unnest(cast(:tables as text[])) as t (name)
            join pg_class c on c.oid = to_regclass(t.name) join pg_namespace n on n.oid = c.relnamespace
            join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
            where a.attname <> lower(a.attname)
            order by 1"""),
        {"tables": list(KEYS)},
    )
    return [
        Misfit(
            place=row.place,
            reason="is spelt with capitals, so nothing finds it",
            remedy=" ".join(
                ["alter table", row.table_name, "rename"]
                + (["column", row.column_name] if row.column_name is not None else [])
                + ["to", row.meant]
            ),
        )
        for row in rows
    ]


def unlike_types(conn: Connection) -> list[Misfit]:
    """Columns that the migrator does not touch and whose type changes what Label reads in them."""
    wanted = [("sessions", name) for name in _FLAGS] + list(_JSON)
    rows = conn.execute(
        sql("""
            select w.table_name, w.column_name, format('%I.%I', n.nspname, c.relname) as qualified,
                   a.atttypid = 'boolean'::regtype as is_boolean
            from unnest(cast(:tables as text[]), cast(:columns as text[])) with ordinality
                 as w (table_name, column_name, place)
            join pg_class c on c.oid = to_regclass(w.table_name) join pg_namespace n on n.oid = c.relnamespace
            join pg_attribute a on a.attrelid = c.oid and a.attname = w.column_name and not a.attisdropped
            join pg_type t on t.oid = a.atttypid
            where case when w.column_name = any(:flags) then a.atttypid = 'boolean'::regtype else t.typcategory = 'S' end
            order by w.place"""),
        {
            "tables": [table for table, _ in wanted],
            "columns": [column for _, column in wanted],
            "flags": list(_FLAGS),
        },
    )
    return [_unlike(row.table_name, row.column_name, row.qualified, row.is_boolean) for row in rows]


def _unlike(table: str, column: str, qualified: str, is_boolean: bool) -> Misfit:  # noqa: FBT001
    alter = f"alter column {column}"
    if is_boolean:
        return Misfit(
            place=f"{table}.{column}",
            reason="is boolean, not smallint: 100, which means verified as 1 does, became true",
            remedy=f"alter table {qualified} {alter} drop default, {alter} type smallint using {column}::integer, "
            f"{alter} set default 0",
        )
    return Misfit(
        place=f"{table}.{column}",
        reason="is text, not json",
        remedy=f"alter table {qualified} {alter} drop default, {alter} type json using nullif({column}, '')::json",
    )


def missing_keys(conn: Connection) -> tuple[list[Misfit], list[Misfit]]:
    """Tables without a primary key (or a unique one in its place), and names that may be there twice."""
    primary = [(table, (key,)) for table, key in KEYS.items()]
    return (
        [
            Misfit(
                place=f"{table}.{columns[0]}",
                reason="is no primary key",
                remedy=f"alter table {qualified} add primary key ({columns[0]})",
            )
            for table, columns, qualified in _not_unique(conn, primary)
        ],
        [
            Misfit(
                place=f"{table}.{columns[-1]}",
                reason="may be there twice"
                if len(columns) == 1
                else f"may be there twice for one {columns[0]}",
                remedy=f"alter table {qualified} add unique ({', '.join(columns)})",
            )
            for table, columns, qualified in _not_unique(conn, _UNIQUE)
        ],
    )


def _not_unique(
    conn: Connection, keys: Sequence[tuple[str, tuple[str, ...]]]
) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Those of these sets of columns that are there and have no unique index on exactly them."""
    rows = conn.execute(
        sql("""
            select w.place, format('%I.%I', n.nspname, c.relname) as qualified
            from unnest(cast(:tables as text[]), cast(:columns as text[])) with ordinality as w (table_name, columns, place)
            join pg_class c on c.oid = to_regclass(w.table_name) join pg_namespace n on n.oid = c.relnamespace
            cross join lateral (select array_agg(a.attnum order by a.attnum) as numbers, count(*) as found
                                from pg_attribute a
                                where a.attrelid = c.oid and a.attname = any(string_to_array(w.columns, ' '))) as key
            where key.found = cardinality(string_to_array(w.columns, ' '))
              and not exists (
                  select from pg_index i
                  where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null
                    and key.numbers = array(select k from unnest(cast(i.indkey as int2[])) with ordinality as k (k, at)
                                            where k.at <= i.indnkeyatts order by k))
            order by w.place"""),
        {
            "tables": [table for table, _ in keys],
            "columns": [" ".join(columns) for _, columns in keys],
        },
    )
    for row in rows:
        table, columns = keys[row.place - 1]
        yield table, columns, row.qualified


def broken_references(conn: Connection) -> list[Misfit]:
    """Foreign keys that are missing, and columns of another type than the key to which they refer."""
    rows = conn.execute(
        sql("""
            select w.table_name, w.column_name, w.other_table, k.attname::text as key_name, w.action,
                   format('%I.%I', n.nspname, c.relname) as qualified, format('%I.%I', m.nspname, d.relname) as other,
                   format_type(a.atttypid, null) as type, format_type(k.atttypid, null) as key_type,
                   w.action is not null and not exists (
                       select from pg_constraint f where f.contype = 'f' and f.conrelid = c.oid and f.confrelid = d.oid
                                                     and f.conkey = array[a.attnum]) as is_missing
            from unnest(cast(:tables as text[]), cast(:columns as text[]), cast(:others as text[]), cast(:keys as text[]),
                        cast(:actions as text[]))
                 with ordinality as w (table_name, column_name, other_table, key_name, action, place)
            join pg_class c on c.oid = to_regclass(w.table_name) join pg_namespace n on n.oid = c.relnamespace
            join pg_class d on d.oid = to_regclass(w.other_table) join pg_namespace m on m.oid = d.relnamespace
            join pg_attribute a on a.attrelid = c.oid and a.attname = w.column_name and not a.attisdropped
            join pg_attribute k on k.attrelid = d.oid and k.attname = w.key_name and not k.attisdropped
            order by w.place"""),
        {
            "tables": [one[0] for one in (*_REFERENCES, *_REFERENCES_OF_SQL)],
            "columns": [one[1] for one in (*_REFERENCES, *_REFERENCES_OF_SQL)],
            "others": [one[2] for one in (*_REFERENCES, *_REFERENCES_OF_SQL)],
            "keys": [KEYS[one[2]] for one in (*_REFERENCES, *_REFERENCES_OF_SQL)],
            "actions": [*(one[3] for one in _REFERENCES), *(None for _ in _REFERENCES_OF_SQL)],
        },
    ).all()
    unlike = [
        misfit
        for key_table in dict.fromkeys(row.other_table for row in rows)
        if (misfit := _unlike_key([row for row in rows if row.other_table == key_table])) is not None
    ]
    return unlike + [
        Misfit(
            place=f"{row.table_name}.{row.column_name}",
            reason=f"has no foreign key to {row.other_table}",
            remedy=f"alter table {row.qualified} add foreign key ({row.column_name}) "
            f"references {row.other} ({row.key_name}) {row.action}".rstrip(),
        )
        for row in rows
        if row.is_missing
    ]


def _unlike_key(references: Sequence[Row[Any]]) -> Misfit | None:
    """Columns of other types than the key to which they all refer: then all become 64-bit."""
    unlike = [one for one in references if one.type != one.key_type]
    if not unlike:
        return None
    first = references[0]
    columns = [
        (first.other, first.key_name, first.key_type),
        *((one.qualified, one.column_name, one.type) for one in references),
    ]
    return Misfit(
        place=f"{first.other_table}.{first.key_name}",
        reason=f"is {first.key_type}, and "
        + " and ".join(f"{one.table_name}.{one.column_name} {one.type}" for one in unlike),
        remedy="; ".join(
            f"alter table {table} alter column {column} type bigint"
            for table, column, kind in columns
            if kind != "bigint"
        ),
    )


# Numbers ----------------------------------------------------------------------------------------------------


def own_numbers(conn: Connection) -> Numbers:
    """Compare the sequences of Label's own tables with the rows that are there, as far as our role may."""
    return numbers(conn, {table: KEYS[table] for table in _OWN})


def unnumbered(conn: Connection) -> list[Misfit]:
    """Keys of Label's own tables that the database does not number by itself."""
    rows = conn.execute(
        sql("""
            select w.table_name, w.key_name, n.nspname::text as schema,
                   format('%I.%I', n.nspname, c.relname) as qualified
            from unnest(cast(:tables as text[]), cast(:keys as text[])) with ordinality as w (table_name, key_name, place)
            join pg_class c on c.oid = to_regclass(w.table_name) join pg_namespace n on n.oid = c.relnamespace
            join pg_attribute a on a.attrelid = c.oid and a.attname = w.key_name
            where not a.atthasdef and a.attidentity = '' order by w.place"""),
        {"tables": list(_OWN), "keys": [KEYS[table] for table in _OWN]},
    )
    return [
        Misfit(
            place=f"{row.table_name}.{row.key_name}",
            reason="is not numbered by the database",
            remedy=f"alter table {row.qualified} alter column {row.key_name} set not null, "
            f"alter column {row.key_name} add generated by default as identity; "
            f"{catch_up(row.schema, row.table_name, row.key_name)}",
        )
        for row in rows
    ]


# Texts and times --------------------------------------------------------------------------------------------


def twins(conn: Connection) -> list[Twins]:
    """Projects and participants that MySQL takes for one by their names. Of participants only a role that may
    read their codes sees any.
    """
    found = []
    for table, name in (("projects", "project_name"), ("participants", "participant_code")):
        if _may_read(conn, table, KEYS[table], name):
            rows = conn.execute(
                sql(f"""
                    select array_agg({KEYS[table]} order by {KEYS[table]}) as ids,
                           array_agg({name}::text order by {KEYS[table]}) as names
                    from {table} group by lower(btrim({name})) having count(*) > 1 order by 1""")  # noqa: S608 - constants
            )
            found += [Twins(table=table, ids=tuple(row.ids), names=tuple(row.names)) for row in rows]
    return found


def garbled(conn: Connection) -> list[Misfit]:
    """Names and paths of projects that are UTF-8 which was taken for latin1, as MySQL means latin1."""
    rows = conn.execute(
        sql("""
            select project_id, project_name, path, legacy_path, to_regclass('projects')::text as spelt from projects
            where octet_length(concat(project_name, path, legacy_path)) > char_length(concat(project_name, path, legacy_path))
            order by project_id""")
    )
    return [
        Misfit(
            place=f"projects {row.project_id} ({column})",
            reason=f"would be {meant!r}",
            remedy=f"update {row.spelt} set {column} = {_literal(meant)} where project_id = {row.project_id}",  # noqa: S608 - shown
        )
        for row in rows
        for column, value in (
            ("project_name", row.project_name),
            ("path", row.path),
            ("legacy_path", row.legacy_path),
        )
        if value is not None and (meant := _meant(value)) is not None
    ]


def _meant(text: str) -> str | None:
    """The text whose UTF-8 was read as latin1; None if that cannot be. What MySQL calls latin1 is
    Windows-1252 and has a character for each byte.
    """
    if text.isascii():
        return None
    try:
        return b"".join(_byte(letter) for letter in text).decode()
    except UnicodeError:
        return None


def _byte(letter: str) -> bytes:
    return letter.encode("latin-1" if "\x80" <= letter <= "\x9f" else "cp1252")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def lags(conn: Connection) -> list[timedelta] | None:
    """How long after the time in its directory's name each of the newest projects was made, by the database's
    own time zone: Label names directories by the clock (label contract, section 3). None: our role may not
    read when projects were made.
    """
    if not _may_read(conn, "projects", "created_at"):
        return None
    rows = conn.execute(
        sql("""
            select cast(created_at as timestamp) as made_at, coalesce(nullif(path, ''), legacy_path) as path from projects
            where created_at >= '1970-01-01' and created_at < '9999-01-01' order by created_at desc limit :newest"""),
        {"newest": _NEWEST},
    )
    found = [row.made_at - named for row in rows if (named := _named_at(row.path)) is not None]
    return [lag for lag in found if abs(lag) < _OFFSETS]


def _named_at(path: str | None) -> datetime | None:
    match = _NAME_ENDS_WITH_A_TIME.search(path or "")
    try:
        return datetime.strptime(match[1], "%Y%m%d_%H%M%S") if match else None  # noqa: DTZ007 - the name has no zone
    except ValueError:
        return None


def time_zone(conn: Connection) -> str:
    """The database's own time zone, by which `now()` becomes a time of day."""
    name: str = conn.execute(sql("select current_setting('TimeZone')")).scalar_one()
    return name


def _may_read(conn: Connection, table: str, *columns: str) -> bool:
    """Are these columns there, and may our role read them?"""
    readable = conn.scalar(
        sql("""
            select count(*) from pg_attribute a
            where a.attrelid = to_regclass(:table) and a.attname = any(:columns) and not a.attisdropped
              and has_column_privilege(a.attrelid, a.attnum, 'select')"""),
        {"table": table, "columns": list(columns)},
    )
    return bool(readable == len(columns))
