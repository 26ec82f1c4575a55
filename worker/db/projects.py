"""Rows of Label's `projects` and the before-images of those that were converted. Opens no transaction."""

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What the migrator needs to know of a project's row."""

    project_id: int
    project_name: str
    path: str | None
    legacy_path: str | None
    project_type: str | None

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


def legacy_projects(conn: Connection) -> list[Project]:
    """All legacy projects, also those without a path, by id."""
    return [
        _project(row)
        for row in conn.execute(
            text("""
                select project_id, project_name, path, legacy_path, project_type from projects
                where project_type is null or project_type = 'legacy' order by project_id""")
        )
    ]


def by_ids(conn: Connection, ids: Iterable[int]) -> dict[int, Project]:
    """Those of the given projects that exist."""
    rows = conn.execute(
        text("""
            select project_id, project_name, path, legacy_path, project_type from projects
            where project_id = any(:ids)"""),
        {"ids": list(ids)},
    )
    return {row.project_id: _project(row) for row in rows}


def lock(conn: Connection, project_id: int) -> Project | None:
    """The project's row, locked until the transaction ends: nobody can add a session to it meanwhile."""
    row = conn.execute(
        text("""
            select project_id, project_name, path, legacy_path, project_type from projects
            where project_id = :id for update"""),
        {"id": project_id},
    ).one_or_none()
    return _project(row) if row is not None else None


def save_before_image(
    conn: Connection,
    project_id: int,
    *,
    run_id: uuid.UUID,
    dataset_id: int,
    dataset_hash: str,
    written: Mapping[str, Any],
    made: Mapping[str, Any],
    tree_attributes: bytes,
) -> None:
    """Keep the project's row as it is now, before anything is changed.

    The values are copied inside the database, so that every JSON number and every text comes back exactly. `written` is
    what the conversion puts into `analysis_config`, `made` the sessions' old values and the ids of new rows.
    """
    conn.execute(
        text("""
            insert into project_conversions (project_id, run_id, dataset_id, dataset_hash, legacy_path, before, tree_attributes)
            select p.project_id, :run_id, :dataset_id, :dataset_hash, p.path,
                   jsonb_build_object(
                       'path', p.path, 'legacy_path', p.legacy_path, 'project_type', p.project_type,
                       'analysis_config', p.analysis_config, 'analysis_config_is_null', p.analysis_config is null,
                       'analysis_config_written', cast(:written as jsonb)) || cast(:made as jsonb),
                   :tree_attributes
            from projects p where p.project_id = :project_id"""),
        {
            "project_id": project_id,
            "run_id": run_id,
            "dataset_id": dataset_id,
            "dataset_hash": dataset_hash,
            "written": json.dumps(written),
            "made": json.dumps(made),
            "tree_attributes": tree_attributes,
        },
    )


def make_dataset_based(conn: Connection, project_id: int, written: Mapping[str, Any]) -> None:
    """Turn the row into one that refers to a dataset. A former `analysis_config` object keeps its keys."""
    conn.execute(
        text("""
            update projects
            set legacy_path = path, path = null, project_type = 'dataset_based',
                analysis_config = case when jsonb_typeof(analysis_config) = 'object'
                                       then analysis_config || cast(:written as jsonb)
                                       else cast(:written as jsonb) end
            where project_id = :id"""),
        {"id": project_id, "written": json.dumps(written)},
    )


def active_conversions(conn: Connection, ids: Iterable[int] | None = None) -> dict[int, Conversion]:
    """The before-images that have not been rolled back, by project; of all projects, or of some."""
    rows = conn.execute(
        text("""
            select conversion_id, project_id, run_id, dataset_id, dataset_hash, legacy_path, before, tree_attributes
            from project_conversions
            where rolled_back_at is null and (cast(:ids as integer[]) is null or project_id = any(:ids))
            order by project_id"""),
        {"ids": None if ids is None else list(ids)},
    )
    return {
        row.project_id: Conversion(
            conversion_id=row.conversion_id,
            project_id=row.project_id,
            run_id=row.run_id,
            dataset_id=row.dataset_id,
            dataset_hash=row.dataset_hash,
            legacy_path=row.legacy_path,
            before=row.before,
            tree_attributes=bytes(row.tree_attributes),
        )
        for row in rows
    }


def _project(row: Any) -> Project:
    return Project(
        project_id=row.project_id,
        project_name=row.project_name,
        path=row.path,
        legacy_path=row.legacy_path,
        project_type=row.project_type,
    )
