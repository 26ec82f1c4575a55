"""What types the columns of Label's tables have here, and which of them the migrator cannot work with.

A converted MySQL database has native enums, `json`, 64-bit ids and limited texts where a new one has plain
types. The catalog is asked, not the names: statements that write then cast to a column's own type.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine
from sqlalchemy.pool import Pool

from worker.db.engine import autocommit, sql
from worker.errors import ColumnTypesError

Kind = Literal["integer", "number", "text", "word", "json"]
"""`word` is one of few fixed texts, which may also be an enum's."""

_NEEDED: Mapping[str, Mapping[str, Kind]] = {
    "projects": {
        "project_id": "integer",
        "project_name": "text",
        "path": "text",
        "legacy_path": "text",
        "project_type": "word",
        "analysis_config": "json",
    },
    "sessions": {
        "session_id": "integer",
        "project_id": "integer",
        "session_name": "text",
        "start_ns": "number",
        "stop_ns": "number",
        "parent_session_data_path": "text",
        "raw_session_name": "text",
        "dataset_id": "integer",
        "data_start_offset": "integer",
        "data_end_offset": "integer",
        "split_config_id": "integer",
    },
    "raw_datasets": {
        "dataset_id": "integer",
        "dataset_name": "text",
        "dataset_hash": "text",
        "file_path": "text",
        "file_size_bytes": "number",
        "session_count": "number",
        "description": "text",
        "metadata": "json",
    },
    "raw_dataset_sessions": {
        "dataset_id": "integer",
        "session_name": "text",
        "session_path": "text",
        "original_labels_json": "text",
        "file_count": "number",
    },
    "project_dataset_refs": {"ref_id": "integer", "project_id": "integer", "dataset_id": "integer"},
    "project_split_configs": {
        "config_id": "integer",
        "project_id": "integer",
        "dataset_id": "integer",
        "raw_session_name": "text",
        "split_strategy": "word",
        "split_parameters": "json",
    },
}
"""Every column of Label's that a statement of ours names, and what it must be able to hold."""

ALL = tuple(_NEEDED)
OF_ROLLBACK = ("projects", "sessions")
"""The tables whose columns a rollback writes: it does not ask for what only a migration needs."""

_ONLY_READ = {
    ("projects", "project_id"),
    ("projects", "project_name"),
    ("sessions", "session_id"),
    ("sessions", "project_id"),
    ("sessions", "session_name"),
    ("sessions", "start_ns"),
    ("sessions", "stop_ns"),
}

_KEYS = {
    ("raw_datasets", "dataset_id"),
    ("project_dataset_refs", "ref_id"),
    ("project_split_configs", "config_id"),
}
"""The database numbers these itself."""

_ADDED_TO = ("raw_datasets", "raw_dataset_sessions", "project_dataset_refs", "project_split_configs")
"""The tables that get rows: a column that we do not know must have a default, or may be empty."""

_WORDS = {
    ("projects", "project_type"): ("legacy", "dataset_based"),
    ("project_split_configs", "split_strategy"): ("custom",),
}
_LENGTHS = {("raw_datasets", "dataset_hash"): 64}

_TYPES: Mapping[Kind, tuple[str, ...]] = {
    "integer": ("smallint", "integer", "bigint"),
    "number": ("smallint", "integer", "bigint", "numeric", "real", "double precision"),
    "json": ("json", "jsonb"),
}
_FITTING: Mapping[Kind, str] = {
    "integer": "bigint",
    "number": "bigint",
    "text": "text",
    "word": "text",
    "json": "jsonb",
}
_AGAIN_AFTER_S = 60.0
"""What the catalog said counts for so long: the tables' owner may change a column while workers run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column. `declared` is its type as SQL writes it, `base` what is behind any domains, `limit` the
    characters it takes at most, `labels` an enum's.
    """

    table: str
    name: str
    qualified_table: str
    declared: str
    base: str
    is_text: bool
    limit: int | None
    labels: tuple[str, ...] | None
    not_null: bool
    has_default: bool
    is_generated: bool

    @property
    def place(self) -> str:
        """The column as messages name it."""
        return f"{self.table}.{self.name}"

    @property
    def alter(self) -> str:
        """How a statement that changes it begins."""
        return f"alter table {self.qualified_table} alter column {_quoted(self.name)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """A column the migrator cannot work with: why, and the statement that changes that."""

    place: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place} {self.reason}; as the tables' owner: {self.remedy}"


@dataclass(frozen=True)
class ColumnTypes:
    """The columns of Label's tables that are there, by table and name."""

    columns: Mapping[tuple[str, str], Column]

    def sql(self, table: str, name: str) -> str:
        """The column's own type, to be put into a statement behind `as`."""
        # A colon would be taken for the beginning of a parameter.
        return self.columns[table, name].declared.replace(":", r"\:")

    def is_text_json(self, table: str, name: str) -> bool:
        """Is it of `json`, which keeps the text, and not of `jsonb`, which keeps the value?"""
        return self.columns[table, name].base == "json"

    def limited(self, table: str | None = None) -> list[Column]:
        """The columns that are written and take a limited number of characters."""
        return [
            column
            for key, column in self.columns.items()
            if column.limit is not None
            and table in {None, column.table}
            and column.name in _NEEDED[column.table]
            and key not in _ONLY_READ
        ]

    def misfits(self, tables: Collection[str] = ALL) -> list[Misfit]:
        """What does not fit in these tables, in their order. Absent columns are another check's finding."""
        return [found for table, found in self._judged if table in tables]

    @cached_property
    def _judged(self) -> list[tuple[str, Misfit]]:
        """What does not fit, by table. Judged once: each job asks several times."""
        judged = ((column.table, _misfit(key, column)) for key, column in self.columns.items())
        return [(table, found) for table, found in judged if found is not None]


def ask(conn: Connection) -> ColumnTypes:
    """Ask the catalog: one query."""
    rows = conn.execute(
        sql("""
            with recursive named as (
                select t.name as table_name, c.oid as table_oid,
                       format('%I.%I', n.nspname, c.relname) as qualified_table, t.place
                from unnest(cast(:tables as text[])) with ordinality as t (name, place)
                join pg_class c on c.oid = to_regclass(t.name)
                join pg_namespace n on n.oid = c.relnamespace),
            bases as (
                select oid as type_oid, oid as base_oid, -1 as typmod from pg_type
                where oid in (select atttypid from pg_attribute join named on attrelid = table_oid where attnum > 0)
                union all
                select b.type_oid, t.typbasetype, greatest(b.typmod, t.typtypmod)
                from bases b join pg_type t on t.oid = b.base_oid and t.typtype = 'd')
            select named.table_name as table, a.attname as name, named.qualified_table,
                   format_type(a.atttypid, null) as declared, format_type(t.oid, null) as base,
                   t.typcategory = 'S' as is_text,
                   case when t.oid in ('varchar'::regtype, 'bpchar'::regtype)
                        then nullif(greatest(a.atttypmod, b.typmod), -1) - 4 end as limit,
                   case when t.typtype = 'e'
                        then array(select enumlabel::text from pg_enum where enumtypid = t.oid order by enumsortorder) end
                       as labels,
                   a.attnotnull as not_null, a.atthasdef or a.attidentity <> '' as has_default,
                   a.attgenerated <> '' as is_generated
            from named
            join pg_attribute a on a.attrelid = named.table_oid and a.attnum > 0 and not a.attisdropped
            join bases b on b.type_oid = a.atttypid
            join pg_type t on t.oid = b.base_oid and t.typtype <> 'd'
            order by named.place, a.attnum"""),
        {"tables": list(_NEEDED)},
    )
    return ColumnTypes({(row.table, row.name): _column(row._asdict()) for row in rows})


def require(engine: Engine, tables: Collection[str] = ALL) -> ColumnTypes:
    """The types of now. Raises `ColumnTypesError` naming every column of these tables that has to be changed
    first, and how.
    """
    with autocommit(engine) as conn:
        types = ask(conn)
    misfits = types.misfits(tables)
    if misfits:
        raise ColumnTypesError(f"Label's tables do not fit: {'. '.join(map(str, misfits))}")
    return types


def misfits_of(engine: Engine) -> list[Misfit]:
    """What does not fit now, in all tables."""
    with autocommit(engine) as conn:
        return ask(conn).misfits()


_asked: WeakKeyDictionary[Pool, tuple[float, ColumnTypes]] = WeakKeyDictionary()


def known(engine: Engine, tables: Collection[str] = ALL) -> ColumnTypes:
    """The same, as they were a minute ago at the most. What did not fit is asked again at once."""
    asked_at, types = _asked.get(engine.pool, (0.0, None))
    if types is None or time.monotonic() - asked_at > _AGAIN_AFTER_S or types.misfits(tables):
        types = require(engine, tables)
        _asked[engine.pool] = (time.monotonic(), types)
    return types


def forget(engine: Engine) -> None:
    """What was known is not true any more: a statement was refused for its types."""
    _asked.pop(engine.pool, None)


def _column(row: dict[str, Any]) -> Column:
    labels = row["labels"]
    return Column(**{**row, "labels": None if labels is None else tuple(labels)})


def _misfit(key: tuple[str, str], column: Column) -> Misfit | None:
    kind = _NEEDED[column.table].get(column.name)
    problems = _unknown(column) if kind is None else _needed(key, column, kind)
    reason, remedy = next(problems, (None, ""))
    return None if reason is None else Misfit(place=column.place, reason=reason, remedy=remedy)


def _unknown(column: Column) -> Iterator[tuple[str, str]]:
    if (
        column.table in _ADDED_TO
        and column.name != "raw_session_id"
        and column.not_null
        and not column.has_default
        and not column.is_generated
    ):
        yield "must not be empty and has no default", f"{column.alter} drop not null"


def _needed(key: tuple[str, str], column: Column, kind: Kind) -> Iterator[tuple[str, str]]:
    words = _WORDS.get(key, ())
    if kind == "word" and column.labels is not None:
        lacking = [word for word in words if word not in column.labels]
        if lacking:
            name = column.declared if column.declared == column.base else column.base
            yield (
                f"is of the enum {name}, which lacks {' and '.join(lacking)}",
                "; ".join(f"alter type {name} add value '{word}'" for word in lacking),
            )
    elif not _holds(column, kind):
        yield f"is {column.declared}, not {_FITTING[kind]}", _to_fitting(column, kind)
    length = _LENGTHS.get(key, max(map(len, words), default=0))
    if column.limit is not None and column.limit < length:
        yield f"takes {column.limit} characters, not {length}", f"{column.alter} type text"
    if column.is_generated and key not in _ONLY_READ:
        yield "is generated, so nothing can be written to it", f"{column.alter} drop expression"
    if key in _KEYS and not column.has_default:
        yield "has no default that numbers its rows", f"{column.alter} add generated by default as identity"


def _holds(column: Column, kind: Kind) -> bool:
    if kind in {"text", "word"}:
        # A char(n) is padded with blanks, which a path or a name must not be.
        return column.is_text and column.base != "character"
    return column.base in _TYPES[kind]


def _to_fitting(column: Column, kind: Kind) -> str:
    name, fitting = _quoted(column.name), _FITTING[kind]
    match kind:
        case "json":
            using = f"nullif({name}::text, '')::jsonb"
        case "text" | "word" if column.base == "character":
            using = f"rtrim({name})"
        case _:
            using = f"{name}::{fitting}"
    return f"{column.alter} type {fitting} using {using}"


def _quoted(name: str) -> str:
    plain = name.replace("_", "a").isalnum() and name.islower() and name.isascii()
    return name if plain else '"' + name.replace('"', '""') + '"'
