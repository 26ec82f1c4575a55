"""The whole way there and back, with real workers, in a database that was converted from MySQL."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from tests.acceptance.story import call
from tests.estate import (
    Form,
    RawJson,
    differences,
    dump,
    make_project,
    readings,
    record_session,
    snapshot_tree,
    split_on_upload,
    split_session,
    write_labels,
    write_recording,
)
from tests.estate.compare import LABEL_TABLES
from tests.estate.from_mysql import convert_database
from tests.support.sites import Site
from tests.support.workers import Worker

pytestmark = pytest.mark.slow

CONFIG = RawJson('{"b": 1.50,  "a": 1, "a": 2, "nested": {"é": [1e3, null]}}')
"""What `json` keeps and `jsonb` does not: blanks, order, a repeated key."""

DATASETS = ("raw_datasets", "raw_dataset_sessions", "project_dataset_refs", "project_split_configs")


def study(site: Site) -> list[int]:
    """Projects in the forms that touch every column that is written."""
    numbers = []
    with site.engine.begin() as conn:
        for name, config in {"first": CONFIG, "twin": None, "list": RawJson("[1,  2]")}.items():
            project = make_project(conn, site.legacy_root, name, project_type="legacy")
            assert project.directory is not None
            # As the text it is: a cast to jsonb would lose what is looked for.
            conn.execute(
                text("update projects set analysis_config = cast(:config as json) where project_id = :id"),
                {"config": config, "id": project.project_id},
            )
            record_session(conn, project, "whole", rows=40, seed=1, bouts=[{"start": 1, "end": 2}])
            write_labels(project.directory / "whole", [[1, 2, "smoking"]])
            gapped = write_recording(project.directory / "cut", rows=30, seed=2, form=Form.GAPPED, gaps=[12])
            split_on_upload(conn, project, "cut", gapped)
            by_hand = record_session(conn, project, "by hand", rows=30, seed=3)
            split_session(conn, by_hand.session_id, [9], site.data_dir)
            numbers.append(project.project_id)
        conn.execute(
            text("update projects set project_type = null where project_id = :id"), {"id": numbers[1]}
        )
    return numbers


def label_rows(site: Site) -> dict[str, list[dict[str, Any]]]:
    with site.engine.connect() as conn:
        return dump(conn, (*LABEL_TABLES, *DATASETS))


def test_a_database_converted_from_mysql_goes_there_and_back_exactly(
    site: Site, workers: Callable[..., list[Worker]]
) -> None:
    convert_database(site.engine)
    first, _, _ = study(site)
    before, files = label_rows(site), snapshot_tree(site.legacy_root)
    with site.engine.connect() as conn:
        read_before = readings(conn, site.data_dir)
    assert site.run_producer("schema", "status").returncode == 0
    workers(concurrency=2)

    rehearsed = call(site, "enqueue", "--dry-run", "--wait")
    assert (rehearsed.exit_code, rehearsed.report["projects_failed"]) == (0, 0), rehearsed.report["errors"]
    assert label_rows(site) == before, "a dry run left rows"

    migrated = call(site, "enqueue", "--wait")
    assert (migrated.exit_code, migrated.report["projects_migrated"]) == (0, 3), migrated.report["errors"]
    assert [one["warnings"] for one in rehearsed.report["details"]] == [
        one["warnings"] for one in migrated.report["details"]
    ]
    with site.engine.connect() as conn:
        assert differences(read_before, readings(conn, site.data_dir)) == []
    assert call(site, "verify", "--sessions").exit_code == 0

    edit = "update sessions set bouts = '[{\"start\": 5,  \"end\": 6}]', keep = true where session_name = 'whole'"
    with site.engine.begin() as conn:
        conn.exec_driver_sql(edit)
        conn.execute(
            text(
                "update projects set analysis_config = jsonb_set(cast(analysis_config as jsonb), '{mine}', '1')"
                " where project_id = :id"
            ),
            {"id": first},
        )
    foretold = call(site, "rollback", "--dry-run", "--wait")
    assert (foretold.exit_code, foretold.report["projects_failed"]) == (0, 0), foretold.report["errors"]
    back = call(site, "rollback", "--wait")
    assert (back.exit_code, back.report["projects_rolled_back"]) == (0, 3), back.report["errors"]

    expected = before | {table: [] for table in ("project_dataset_refs", "project_split_configs")}
    for row in expected["sessions"]:
        if row["session_name"] == "whole":
            row |= {"bouts": '[{"start": 5,  "end": 6}]', "keep": True}
    after = label_rows(site)
    edited = next(row for row in after["projects"] if row["project_id"] == first)
    assert edited.pop("analysis_config") == '{"a": 2, "b": 1.50, "mine": 1, "nested": {"é": [1000, null]}}'
    next(row for row in expected["projects"] if row["project_id"] == first).pop("analysis_config")
    assert {table: after[table] for table in LABEL_TABLES} == {
        table: expected[table] for table in LABEL_TABLES
    }
    assert (after["project_dataset_refs"], after["project_split_configs"]) == ([], [])
    assert snapshot_tree(site.legacy_root) == files

    # Without an edit the text itself comes back, blanks and repeated keys included.
    with site.engine.begin() as conn:
        conn.execute(
            text("update projects set analysis_config = cast(:config as json) where project_id = :id"),
            {"config": CONFIG, "id": first},
        )
    again = label_rows(site)["projects"]
    assert call(site, "enqueue", "--wait").exit_code == 0
    assert call(site, "rollback", "--wait").exit_code == 0
    assert label_rows(site)["projects"] == again
