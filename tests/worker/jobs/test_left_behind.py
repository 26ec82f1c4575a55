"""What a conversion that fails leaves in the store: nothing where that can be known before, else nothing that
blocks the next.
"""

from pathlib import Path

import pytest
from sqlalchemy import text

from tests.estate import Project, make_project, make_session, record_session, snapshot_tree
from tests.support.runs import run_one
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.messages import Status, Verb


def study(site: Site, *, odd: str | None = None) -> Project:
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study")
        record_session(conn, project, "day", rows=60, seed=1)
        if odd is not None:
            make_session(conn, project.project_id, odd)
    return project


def trees(site: Site) -> list[Path]:
    folder = site.data_dir / "raw_datasets"
    return sorted(folder.iterdir()) if folder.exists() else []


def refuse_rows(site: Site) -> None:
    with site.engine.begin() as conn:
        conn.execute(text("alter table projects add constraint closed check (legacy_path is null) not valid"))


def let_rows_in(site: Site) -> None:
    with site.engine.begin() as conn:
        conn.execute(text("alter table projects drop constraint closed"))


@pytest.mark.parametrize("odd", ["day/../day", "day/.", "/somewhere"])
def test_sessions_are_judged_before_anything_is_stored(site: Site, tools: Tools, odd: str) -> None:
    project = study(site, odd=odd)

    outcome = run_one(tools, Verb.MIGRATE, project.project_id)

    assert outcome.error_class == "SessionNameRefusedError"
    assert trees(site) == []
    assert [one for one in (site.settings.store_dir / "blobs").rglob("*") if one.is_file()] == []
    assert (outcome.files.left, outcome.bytes.stored) == (1, 0)


def test_a_failed_job_counts_what_it_stored(site: Site, tools: Tools) -> None:
    project = study(site)
    refuse_rows(site)

    outcome = run_one(tools, Verb.MIGRATE, project.project_id)

    (blob,) = [one for one in (site.settings.store_dir / "blobs").rglob("*") if one.is_file()]
    assert outcome.status is Status.FAILED
    assert (outcome.files.stored, outcome.files.left) == (1, 0)
    assert outcome.bytes.stored == blob.stat().st_size
    assert outcome.links.hard == 1


@pytest.mark.parametrize("spelling", ["{tree}", "/else/where/{tree.name}"])
def test_a_tree_that_label_registered_meanwhile_is_left_to_it(
    site: Site, tools: Tools, spelling: str
) -> None:
    project = study(site)
    refuse_rows(site)
    run_one(tools, Verb.MIGRATE, project.project_id)
    (tree,) = trees(site)
    with site.engine.begin() as conn:
        conn.execute(
            text(
                "insert into raw_datasets (dataset_name, dataset_hash, file_path) values ('study', repeat('a', 64), :path)"
            ),
            {"path": spelling.format(tree=tree)},
        )
    before = snapshot_tree(tree)

    let_rows_in(site)
    foretold = run_one(tools, Verb.MIGRATE, project.project_id, dry_run=True)
    outcome = run_one(tools, Verb.MIGRATE, project.project_id)

    assert (foretold.status, outcome.status) == (Status.WOULD_MIGRATE, Status.MIGRATED), outcome.error
    assert foretold.dataset_path == outcome.dataset_path != str(tree)
    assert {name: one.content for name, one in snapshot_tree(tree).items()} == {
        name: one.content for name, one in before.items()
    }
