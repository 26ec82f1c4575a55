"""A dry run does its statements and takes them back: what the database would refuse is predicted, and nothing
stays.
"""

from functools import partial
from typing import Any

import pytest
from sqlalchemy import text

from tests.estate import (
    dump,
    make_project,
    record_session,
    snapshot_tree,
    split_session,
    write_labels,
)
from tests.estate.compare import CONVERTED_TABLES
from tests.support.runs import do, open_run, run, run_one
from tests.support.sites import Site
from worker.db import column_types, schema
from worker.db.retry import when_free
from worker.errors import ColumnTypesError
from worker.jobs.tools import Tools
from worker.messages import Outcome, Status, Verb

_RAISES = """
    create function refuse() returns trigger language plpgsql as $$
    begin raise exception 'the study is locked: "%"', 'secret name'; end $$;
    create {kind} t {when} for each row execute function refuse()"""
_DEFERRED = {"kind": "constraint trigger"}
_NO = "alter table projects add constraint no_change check ({}) not valid"
_PLACE = """
    create domain place as text constraint these_only check ({});
    alter table {} alter column {} type place"""

OBSTACLES = {
    "a check constraint": (
        _NO.format("legacy_path is null"),
        _NO.format("project_type <> 'legacy'"),
        "the check constraint no_change does not hold",
    ),
    "a trigger": (
        _RAISES.format(kind="trigger", when="before update on sessions"),
        _RAISES.format(kind="trigger", when="before update on sessions"),
        "the trigger function refuse() says: the study is locked",
    ),
    "a deferred trigger": (
        _RAISES.format(**_DEFERRED, when="after insert on project_dataset_refs initially deferred"),
        _RAISES.format(**_DEFERRED, when="after delete on project_dataset_refs initially deferred"),
        "the trigger function refuse() says: the study is locked",
    ),
    "a domain": (
        _PLACE.format("value not like '%raw_datasets%'", "sessions", "parent_session_data_path"),
        _PLACE.format("value is null", "projects", "path"),
        "the constraint these_only of the domain place does not hold",
    ),
    "a limit": (
        "alter table sessions alter column raw_session_name type varchar(6)",
        "alter table projects alter column path type varchar(6)",
        "a text is longer than its column takes; as the tables' owner: alter table public.",
    ),
}
"""For each: what is in the way of a migration, what of a rollback, and the reason that is given."""


def study(site: Site) -> int:
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study", analysis_config={"a": 1.50})
        assert project.directory is not None
        record_session(conn, project, "day one", rows=30, seed=1)
        cut = record_session(conn, project, "day two", rows=30, seed=2)
        split_session(conn, cut.session_id, [9], site.data_dir)
        write_labels(project.directory / "day one", [[1, 2, "smoking"]])
    return project.project_id


def everything(site: Site) -> tuple[Any, ...]:
    trees = site.data_dir / "raw_datasets"
    with site.engine.connect() as conn:
        return dump(conn, CONVERTED_TABLES), sorted(snapshot_tree(trees))[1:] if trees.exists() else []


def put_in_the_way(site: Site, statements: str) -> None:
    with site.engine.begin() as conn:
        conn.exec_driver_sql(statements, execution_options={"no_parameters": True})


def fails_alike(foretold: Outcome, real: Outcome, reason: str) -> None:
    assert (foretold.status, real.status) == (Status.FAILED, Status.FAILED)
    assert (foretold.error_class, foretold.error) == (real.error_class, real.error)
    words = foretold.error or ""
    assert reason in words
    for leaked in ("secret", "day one", "update ", "insert ", "DETAIL", "CONTEXT"):
        assert leaked not in words


@pytest.mark.parametrize("what", OBSTACLES)
def test_a_dry_run_predicts_what_the_database_refuses(site: Site, tools: Tools, what: str) -> None:
    to_migration, _, reason = OBSTACLES[what]
    number = study(site)
    before = everything(site)

    put_in_the_way(site, to_migration)
    foretold = run_one(tools, Verb.MIGRATE, number, dry_run=True)
    assert everything(site) == before
    fails_alike(foretold, run_one(tools, Verb.MIGRATE, number), reason)


@pytest.mark.parametrize("what", OBSTACLES)
def test_a_dry_rollback_predicts_what_the_database_refuses(site: Site, tools: Tools, what: str) -> None:
    _, to_rollback, reason = OBSTACLES[what]
    number = study(site)
    assert run_one(tools, Verb.MIGRATE, number).status is Status.MIGRATED
    before = everything(site)

    put_in_the_way(site, to_rollback)
    foretold = run_one(tools, Verb.ROLLBACK, number, dry_run=True)
    real = run_one(tools, Verb.ROLLBACK, number)

    fails_alike(foretold, real, reason)
    assert everything(site) == before


def test_dry_runs_leave_no_row_and_report_what_the_real_runs_report(site: Site, tools: Tools) -> None:
    number = study(site)
    before = everything(site)

    foretold = run_one(tools, Verb.MIGRATE, number, dry_run=True)
    assert everything(site) == before
    migrated = run_one(tools, Verb.MIGRATE, number)
    assert foretold.dataset_id is None
    assert (foretold.sessions_count, foretold.dataset_path, foretold.dataset_hash, foretold.warnings) == (
        migrated.sessions_count,
        migrated.dataset_path,
        migrated.dataset_hash,
        migrated.warnings,
    )

    between = everything(site)
    back = run_one(tools, Verb.ROLLBACK, number, dry_run=True)
    assert (back.status, everything(site)) == (Status.WOULD_ROLL_BACK, between)
    assert run_one(tools, Verb.ROLLBACK, number).status is Status.ROLLED_BACK


def test_a_dry_run_gives_way_to_locks_like_the_real_run(
    site: Site, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.conversion.transaction.when_free", partial(when_free, patience_s=0.5))
    number = study(site)

    with site.engine.begin() as person:
        person.execute(text("select from projects where project_id = :id for update"), {"id": number})
        outcomes = run(tools, Verb.MIGRATE, dry_run=True)

    # Handed back to be tried later, as a real one would be: a person's lock is nothing that fails a project.
    assert outcomes == {}


# Types ------------------------------------------------------------------------------------------------------

MISFITS = {
    "alter table projects alter column analysis_config type text": (
        "projects.analysis_config is text, not jsonb; as the tables' owner: alter table public.projects"
        " alter column analysis_config type jsonb using nullif(analysis_config::text, '')::jsonb"
    ),
    "alter table projects drop constraint projects_project_type_check, alter column project_type drop default,"
    " alter column project_type type smallint using 1": "projects.project_type is smallint, not text",
    "create type kind as enum ('legacy'); alter table projects drop constraint projects_project_type_check,"
    " alter column project_type drop default, alter column project_type type kind using 'legacy'::kind": (
        "projects.project_type is of the enum kind, which lacks dataset_based; as the tables' owner: alter type kind"
        " add value 'dataset_based'"
    ),
    "alter table sessions alter column data_end_offset type numeric": "sessions.data_end_offset is numeric, not bigint",
    "alter table sessions drop column raw_session_name; alter table sessions"
    " add column raw_session_name text generated always as (session_name) stored": (
        "sessions.raw_session_name is generated"
    ),
    "alter table raw_datasets alter column dataset_id drop identity": (
        "raw_datasets.dataset_id has no default that numbers its rows; as the tables' owner: alter table"
        " public.raw_datasets alter column dataset_id add generated by default as identity"
    ),
    "alter table raw_datasets alter column dataset_hash type varchar(40)": "takes 40 characters, not 64",
    "alter table raw_datasets add column owner_x integer not null": (
        "raw_datasets.owner_x must not be empty and has no default; as the tables' owner: alter table"
        " public.raw_datasets alter column owner_x drop not null"
    ),
}


@pytest.mark.parametrize("change", MISFITS)
def test_columns_that_do_not_fit_are_named_with_the_statement_that_changes_them(
    site: Site, tools: Tools, change: str
) -> None:
    study(site)
    before = everything(site)
    rehearsal, real = (open_run(site.engine, Verb.MIGRATE, dry_run=dry_run) for dry_run in (True, False))

    put_in_the_way(site, change)
    with pytest.raises(ColumnTypesError) as refused:
        column_types.require(site.engine)
    assert MISFITS[change] in str(refused.value)
    for refs in (rehearsal, real):
        (outcome,) = do(tools, Verb.MIGRATE, refs).values()
        assert (outcome.status, outcome.error_class) == (Status.FAILED, "ColumnTypesError")
    assert everything(site)[1] == before[1], "bytes were stored that no row can refer to"


def test_every_verb_that_writes_says_at_its_start_which_columns_do_not_fit(site: Site) -> None:
    study(site)
    put_in_the_way(site, ";".join(list(MISFITS)[:2]))

    for verb in (("schema", "status"), ("doctor",), ("enqueue", "--dry-run"), ("rollback", "--dry-run")):
        done = site.run_producer(*verb)

        words = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == 5, words
        for misfit in list(MISFITS.values())[:2]:
            assert misfit.partition(";")[0] in words


def test_tables_of_our_own_making_have_columns_that_fit(database: Any) -> None:
    assert schema.status(database)
    assert column_types.require(database).misfits() == []
