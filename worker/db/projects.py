"""Rows of Label's `projects` and the before-images of those that were converted. Opens no transaction."""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from worker.db.column_types import ColumnTypes
from worker.db.datasets import Dataset
from worker.db.engine import sql
from worker.db.texts import as_json

_SELECT_CONVERSION = """
    select conversion_id, project_id, run_id, dataset_id, dataset_hash, legacy_path, before, tree_attributes,
           converted_at
    from project_conversions"""
_SELECT = "select project_id, project_name, path, legacy_path, project_type from projects p"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What the migrator needs to know of a project's row. `has_record`: an active before-image speaks of it
    (asked by `lock` only).
    """

    project_id: int
    project_name: str
    path: str | None
    legacy_path: str | None
    project_type: str | None
    has_record: bool = False

    @property
    def is_legacy(self) -> bool:
        """A project that owns its directory; a missing type counts as legacy."""
        return self.project_type in {None, "legacy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """An active before-image: how a converted project was, and what its conversion wrote."""

    conversion_id: int
    project_id: int
    run_id: uuid.UUID
    dataset_id: int
    dataset_hash: str
    legacy_path: str
    before: Mapping[str, Any]
    tree_attributes: bytes
    converted_at: datetime


def legacy_projects(conn: Connection) -> list[Project]:
    """All legacy projects, also those without a path, by id."""
    rows = conn.execute(
        sql(f"{_SELECT} where project_type is null or project_type = 'legacy' order by project_id")
    )
    return [_project(row) for row in rows]


def sample_of_legacy(conn: Connection, token: str, limit: int) -> dict[int, str]:
    """Paths of some legacy projects, drawn by `token`: the same one gives the same projects."""
    rows = conn.execute(
        sql("""
            select project_id, path from projects
            where (project_type is null or project_type = 'legacy') and path <> ''
            order by md5(:token || project_id) limit :limit"""),
        {"token": token, "limit": limit},
    )
    return {row.project_id: row.path for row in rows}


def count_dataset_based(conn: Connection) -> int:
    """How many projects refer to datasets, by whatever program."""
    count: int = conn.execute(
        sql("select count(*) from projects where project_type = 'dataset_based'")
    ).scalar_one()
    return count


def by_ids(conn: Connection, ids: Iterable[int]) -> dict[int, Project]:
    """Those of the given projects that exist."""
    rows = conn.execute(sql(f"{_SELECT} where project_id = any(:ids)"), {"ids": list(ids)})
    return {row.project_id: _project(row) for row in rows}


def lock(conn: Connection, project_id: int) -> Project | None:
    """The project's row, locked until the transaction ends: no session can be added to it meanwhile."""
    row = conn.execute(
        sql("""
            select project_id, project_name, path, legacy_path, project_type,
                   exists (select from project_conversions c
                           where c.project_id = p.project_id and c.rolled_back_at is null) as has_record
            from projects p where project_id = :id for update of p"""),
        {"id": project_id},
    ).one_or_none()
    return replace(_project(row), has_record=row.has_record) if row is not None else None


def save_before_image(
    conn: Connection,
    project_id: int,
    *,
    run_id: uuid.UUID,
    dataset: Dataset,
    written: Mapping[str, Any],
    made: Mapping[str, Any],
    tree_attributes: bytes,
    types: ColumnTypes,
) -> None:
    """Keep the project's row as it is now, before anything is changed.

    The values are copied inside the database, so that every JSON number and every text comes back exactly.
    `written` is what the conversion puts into `analysis_config`, `made` the sessions' old values and the ids
    of new rows. Of a column of type `json` the text is kept, too: it has an order of keys, blanks and
    repeated keys, which its value has not.
    """
    text = (
        "'analysis_config_text', cast(p.analysis_config as text),"
        if types.is_text_json("projects", "analysis_config")
        else ""
    )
    conn.execute(
        sql(f"""
            insert into project_conversions (project_id, run_id, dataset_id, dataset_hash, legacy_path, before, tree_attributes)
            select p.project_id, :run_id, :dataset_id, :dataset_hash, p.path,
                   jsonb_build_object(
                       'path', p.path, 'legacy_path', p.legacy_path, 'project_type', p.project_type,
                       'analysis_config', cast(p.analysis_config as jsonb), {text}
                       'analysis_config_is_null', p.analysis_config is null,
                       'analysis_config_written', cast(:written as jsonb)) || cast(:made as jsonb),
                   :tree_attributes
            from projects p where p.project_id = :project_id"""),  # noqa: S608 - a constant
        {
            "project_id": project_id,
            "run_id": run_id,
            "dataset_id": dataset.dataset_id,
            "dataset_hash": dataset.dataset_hash,
            "written": as_json(written),
            "made": as_json(made),
            "tree_attributes": tree_attributes,
        },
    )


def make_dataset_based(
    conn: Connection, project_id: int, written: Mapping[str, Any], types: ColumnTypes
) -> None:
    """Turn the row into one that refers to a dataset. A former `analysis_config` object keeps its keys."""
    conn.execute(
        sql(f"""
            update projects
            set legacy_path = path, path = null,
                project_type = cast('dataset_based' as {types.sql("projects", "project_type")}),
                analysis_config = cast(case when jsonb_typeof(cast(analysis_config as jsonb)) = 'object'
                                            then cast(analysis_config as jsonb) || cast(:written as jsonb)
                                            else cast(:written as jsonb) end
                                       as {types.sql("projects", "analysis_config")})
            where project_id = :id"""),  # noqa: S608 - the catalog's own names of types
        {"id": project_id, "written": as_json(written)},
    )


def active_conversions(conn: Connection, ids: Iterable[int] | None = None) -> dict[int, Conversion]:
    """The before-images that have not been rolled back, by project; of all projects, or of some."""
    rows = conn.execute(
        sql(f"""{_SELECT_CONVERSION}
            where rolled_back_at is null and (cast(:ids as bigint[]) is null or project_id = any(:ids))
            order by project_id"""),
        {"ids": None if ids is None else list(ids)},
    )
    return {row.project_id: _conversion(row) for row in rows}


def conversion(conn: Connection, conversion_id: int) -> Conversion | None:
    """One before-image, also of a conversion that was rolled back."""
    row = conn.execute(
        sql(f"{_SELECT_CONVERSION} where conversion_id = :id"), {"id": conversion_id}
    ).one_or_none()
    return _conversion(row) if row is not None else None


def active_conversion_id(conn: Connection, project_id: int) -> int | None:
    """Which of a project's conversions has not been rolled back."""
    return conn.execute(
        sql("""
            select conversion_id from project_conversions
            where project_id = :id and rolled_back_at is null"""),
        {"id": project_id},
    ).scalar_one_or_none()


def added_to_config(conn: Connection, conversion: Conversion) -> list[str]:
    """Where the former `analysis_config` was no object: the keys that would be lost if it came back, because
    people added or changed them since. Empty when nothing would be lost; the database is asked only if
    something could be.
    """
    before = conversion.before
    if before.get("analysis_config_is_null") is not False or isinstance(before["analysis_config"], dict):
        return []
    rows = conn.execute(
        sql("""
            select now.key
            from project_conversions c
            join projects p using (project_id)
            cross join jsonb_each(case when jsonb_typeof(cast(p.analysis_config as jsonb)) = 'object'
                                       then cast(p.analysis_config as jsonb) else '{}' end) as now
            where c.conversion_id = :id
              and now.value is distinct from c.before->'analysis_config_written'->now.key
            order by now.key"""),
        {"id": conversion.conversion_id},
    )
    return [row.key for row in rows]


def restore(conn: Connection, conversion_id: int, types: ColumnTypes) -> None:
    """Give the project's row its former values. What people put into `analysis_config` since stays.

    Of the keys the conversion wrote, those that still have its values go, and come back with their former
    values where they had any; all other keys are people's. A former value that was no object comes back as it
    was (the caller has asked `added_to_config`); an `analysis_config` that people replaced by something else
    than an object is theirs. A column of type `json` gets its former text back where its value is the former
    one.
    """
    value = "then_.value"
    if types.is_text_json("projects", "analysis_config"):
        value = """
            case when then_.value is null then null
                 when then_.value = c.was and not c.was_null
                 then coalesce(c.before->>'analysis_config_text', cast(then_.value as text))
                 when then_.value = now.config then cast(p.analysis_config as text)
                 else cast(then_.value as text) end"""
    conn.execute(
        sql(f"""
            update projects p
            set path = c.before->>'path', legacy_path = c.before->>'legacy_path',
                project_type = cast(c.before->>'project_type' as {types.sql("projects", "project_type")}),
                analysis_config = cast({value} as {types.sql("projects", "analysis_config")})
            from (select project_id, before, before->'analysis_config' as was,
                         (before->>'analysis_config_is_null')::boolean as was_null
                  from project_conversions where conversion_id = :id) c
            join (select project_id, cast(analysis_config as jsonb) as config from projects) now using (project_id)
            cross join lateral (
                select coalesce(array_agg(w.key), '{{}}') as keys,
                       coalesce(jsonb_object_agg(w.key, c.was->w.key) filter (where jsonb_typeof(c.was) = 'object'
                                                                                and c.was ? w.key), '{{}}') as former
                from jsonb_each(c.before->'analysis_config_written') w
                where jsonb_typeof(now.config) = 'object' and now.config->w.key = w.value) ours
            cross join lateral (
                select case
                    when jsonb_typeof(now.config) is distinct from 'object' then now.config
                    when c.was_null then nullif(now.config - ours.keys, '{{}}'::jsonb)
                    when jsonb_typeof(c.was) = 'object' then (now.config - ours.keys) || ours.former
                    else c.was end as value) then_
            where p.project_id = c.project_id"""),  # noqa: S608 - a constant and the catalog's own names of types
        {"id": conversion_id},
    )


def end_conversion(conn: Connection, conversion_id: int, run_id: uuid.UUID) -> None:
    """The before-image has served: the project is as it was."""
    conn.execute(
        sql("""
            update project_conversions set rolled_back_at = clock_timestamp(), rollback_run_id = :run_id
            where conversion_id = :id"""),
        {"id": conversion_id, "run_id": run_id},
    )


def converted(conn: Connection) -> list[Project]:
    """Projects that have an active before-image, by id; those deleted since have an empty name."""
    return [
        _project(row)
        for row in conn.execute(
            sql("""
                select c.project_id, coalesce(p.project_name, '') as project_name, p.path, c.legacy_path, p.project_type
                from project_conversions c left join projects p using (project_id)
                where c.rolled_back_at is null order by c.project_id""")
        )
    ]


def converted_at(conn: Connection, places: Iterable[str]) -> list[Conversion]:
    """Active before-images of projects whose legacy path leads, by its text alone, to one of these places:
    absolute and normal ones. Asks an index by the first 400 characters, so that a very long one may be
    another's.
    """
    rows = conn.execute(
        sql(f"""{_SELECT_CONVERSION}
            where rolled_back_at is null
              and left(migration_normal_path(legacy_path), 400) collate "C" = any(array(
                  select left(place, 400) from unnest(cast(:places as text[])) as place))
            order by project_id"""),  # noqa: S608 - a constant
        {"places": list(places)},
    )
    return [_conversion(row) for row in rows]


def converted_paths(conn: Connection) -> list[str]:
    """The legacy directories of all conversions, also of those that were rolled back."""
    rows = conn.execute(sql("select distinct legacy_path from project_conversions order by legacy_path"))
    return [row.legacy_path for row in rows]


def converted_by_others(conn: Connection) -> list[Project]:
    """Projects that another tool converted: they carry its mark, and there is no before-image to go back
    by.
    """
    rows = conn.execute(
        sql(f"""{_SELECT}
            where project_type = 'dataset_based' and legacy_path is not null
              and not exists (select from project_conversions c
                              where c.project_id = p.project_id and c.rolled_back_at is null)
            order by project_id""")
    )
    return [_project(row) for row in rows]


def _project(row: Any) -> Project:
    return Project(
        project_id=row.project_id,
        project_name=row.project_name,
        path=row.path,
        legacy_path=row.legacy_path,
        project_type=row.project_type,
    )


def _conversion(row: Row[Any]) -> Conversion:
    named = dict(row._mapping)  # noqa: SLF001 - the public name of a row as a mapping
    return Conversion(**named | {"tree_attributes": bytes(row.tree_attributes)})
