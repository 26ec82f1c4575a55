"""The database is two days older than the files: the recipe of docs/store.md, run as it stands there."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import text

from tests.acceptance.recipes import recipe, shell, succeeds
from tests.estate import Project, differences, make_project, readings, record_session, snapshot_tree
from tests.support.sites import Site
from tests.support.studies import check_store, folder_of

HEADING = "## We lost two days of the database"


def says(site: Site, *words: str) -> Any:
    done = site.run_producer(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def migrate(site: Site, *projects: Project) -> None:
    for project in projects:
        says(site, "enqueue", "--project-id", str(project.project_id), "--wait")


def datasets(site: Site) -> dict[str, Sequence[Any]]:
    """The rows of datasets with all columns, and their sessions with all of theirs, by the dataset's hash."""
    with site.engine.connect() as conn:
        rows = conn.execute(
            text(
                "select d.dataset_hash, to_jsonb(d) as dataset, jsonb_agg(s order by raw_session_id) as sessions"
                " from raw_datasets d join raw_dataset_sessions s using (dataset_id) group by d.dataset_id"
            )
        )
        return {row.dataset_hash: (row.dataset, row.sessions) for row in rows}


@pytest.mark.slow
def test_two_days_of_the_database_are_lost_and_datasets_come_back(site: Site):
    restore, rebuild, move_back, copy_out, again = recipe(HEADING)
    with site.engine.begin() as conn:
        early, legacy, moved, purged, unrelated = (
            make_project(conn, site.legacy_root, name)
            for name in ("early", "legacy", "moved", "purged", "unrelated")
        )
        for seed, project in enumerate((early, legacy, moved, purged, unrelated)):
            record_session(conn, project, f"day {seed}", rows=30, seed=seed)
            (folder_of(project) / f"day {seed}" / "labels.json").write_text(f'[{{"start": {seed}}}]')
    directories = {
        project.project_id: snapshot_tree(folder_of(project)) for project in (legacy, moved, purged)
    }
    with site.workers():
        migrate(site, early, unrelated)
    with site.engine.connect() as conn:
        before = readings(conn, site.data_dir)
    succeeds(site, 'pg_dump --format=custom --file=label-before.dump "$DATABASE_URL"')

    # The two days.
    with site.workers():
        migrate(site, legacy, moved, purged)
        for project in (moved, purged):
            says(
                site,
                "reclaim",
                "--project-id",
                str(project.project_id),
                "--older-than",
                "0",
                "--yes",
                "--wait",
            )
        with site.engine.begin() as conn:
            conn.execute(
                text(
                    "update migration_reclaims set reclaimed_at = reclaimed_at - interval '31 days' where project_id = :id"
                ),
                {"id": purged.project_id},
            )
        says(site, "reclaim", "--purge", "--yes", "--wait")
        says(site, "rollback", "--project-id", str(early.project_id), "--wait")
        says(site, "gc", "--grace", "0", "--yes", "--wait")
    lost = datasets(site)
    assert not folder_of(purged).exists()
    assert not folder_of(moved).exists()

    succeeds(site, restore)
    dry, real = rebuild.splitlines()
    foretold, done = shell(site, f"{dry} --json"), shell(site, f"{real} --json")

    assert (foretold.returncode, done.returncode) == (3, 3), foretold.stderr + done.stderr
    answer = json.loads(done.stdout)
    assert answer | {"dry_run": True} == json.loads(foretold.stdout)
    assert [one["dataset_name"] for one in answer["rebuilt"]] == ["legacy", "moved", "purged"]
    found = datasets(site)
    assert {digest: found[digest] for digest in lost} == lost, "with every column as it was"
    (drift,) = answer["drift"]
    assert drift["kind"] == "row_without_tree"
    entry = drift["reason"].rpartition(" ")[2]
    with site.workers():
        says(site, "gc", "--restore", entry, "--wait")
        assert says(site, "datasets", "rebuild")["drift"] == []
        succeeds(site, move_back, PROJECT=str(moved.project_id), ROOT=str(site.legacy_root))
        succeeds(site, copy_out, PROJECT=str(purged.project_id))
        for project in (legacy, moved, purged):
            there = snapshot_tree(folder_of(project))
            assert {name: one.content for name, one in there.items()} == {
                name: one.content for name, one in directories[project.project_id].items()
            }
        said = succeeds(site, again)

    assert "Traceback" not in said
    assert datasets(site).keys() == found.keys()
    assert {digest: datasets(site)[digest] for digest in lost} == lost
    with site.engine.connect() as conn:
        kinds = set(conn.scalars(text("select project_type from projects")))
        assert (kinds, differences(before, readings(conn, site.data_dir))) == ({"dataset_based"}, [])
    check_store(site)
