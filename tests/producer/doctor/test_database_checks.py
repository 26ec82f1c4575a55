"""Each check of PostgreSQL is made to warn or fail for real, on a real server."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import Engine, text

from producer.doctor import database_checks
from producer.doctor.database_checks import check_database
from producer.doctor.label_checks import check_label
from tests.estate import make_project, record_session, split_session
from tests.producer.doctor.chapters import PASSWORD, bad
from tests.support.runs import run, run_one, tools_of, verify_datasets
from tests.support.sites import Site
from worker.db import health, schema
from worker.db.engine import autocommit, connect
from worker.db.health import NEEDED_RIGHTS, Server
from worker.findings import Verdict
from worker.jobs.reaper import reap
from worker.messages import THE_STORE, Subject, Verb

EARLY = ("raw_dataset_sessions_raw_session_id_seq", "raw_datasets_dataset_id_seq")
"""The sequences that are asked for numbers before there are rows for them."""


@contextmanager
def role(database: Engine) -> Iterator[tuple[str, Engine]]:
    """A role that has exactly the rights that are needed, and an engine that uses it."""
    name, password = f"migrator_{secrets.token_hex(4)}", secrets.token_hex(8)
    with database.begin() as conn:
        conn.execute(text(f"create role {name} login password '{password}'"))
        for table, rights in NEEDED_RIGHTS.items():
            conn.execute(text(f"grant {', '.join(rights)} on {table} to {name}"))
        conn.execute(text(f"grant select on raw_dataset_sessions to {name}"))
        conn.execute(text(f"grant select on all sequences in schema public to {name}"))
        for sequence in EARLY:
            conn.execute(text(f"grant usage on sequence {sequence} to {name}"))
    engine = connect(database.url.set(username=name, password=password), application_name="tests")
    try:
        yield name, engine
    finally:
        engine.dispose()
        with database.begin() as conn:
            conn.execute(text(f"drop owned by {name} cascade"))
            conn.execute(text(f"drop role {name}"))


def test_a_role_with_the_needed_rights_passes(database: Engine):
    with role(database) as (name, engine):
        chapter, of_label = check_database(engine), check_label(engine)
        with engine.connect() as conn:
            assert "/" in health.identity(conn), "needs no right"

    assert bad(chapter) == bad(of_label) == {}
    assert chapter.not_checked == of_label.not_checked == {}
    assert len(chapter.checks) == 14
    assert chapter.checks["reachable"].finding.endswith(f"database {database.url.database} as {name}")


def test_each_right_that_is_taken_away_is_named(database: Engine):
    with role(database) as (name, engine), autocommit(engine) as ours:
        for table, rights in NEEDED_RIGHTS.items():
            for right in rights:
                with database.begin() as conn:
                    conn.execute(text(f"revoke {right} on {table} from {name}"))
                assert health.missing_rights(ours) == [f"{right} on {table}"]
                with database.begin() as conn:
                    conn.execute(text(f"grant {right} on {table} to {name}"))
        with database.begin() as conn:
            for sequence in EARLY:
                conn.execute(text(f"revoke usage on sequence {sequence} from {name}"))
        assert health.missing_rights(ours) == [f"usage on sequence public.{sequence}" for sequence in EARLY]
        with database.begin() as conn:
            for sequence in EARLY:
                conn.execute(text(f"grant usage on sequence {sequence} to {name}"))
            conn.execute(text(f"revoke update on sessions from {name}"))

        check = check_database(engine).checks["rights"]

    assert (check.verdict, check.finding) == (Verdict.FAIL, "our role may not update on sessions")
    assert check.remedy is not None
    assert "grant update on sessions" in check.remedy


def test_the_needed_rights_are_enough_for_every_verb(site: Site):
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study")
        recorded = record_session(conn, project, "day", rows=60)
        split_session(conn, recorded.session_id, [20, 40], site.data_dir)
    with role(site.engine) as (_, engine), tools_of(site, engine=engine) as tools:
        ended = [
            run_one(tools, Verb.MIGRATE, project.project_id, dry_run=True),
            run_one(tools, Verb.MIGRATE, project.project_id),
            run_one(tools, Verb.VERIFY, project.project_id),
            *verify_datasets(tools, repair=True),
            run_one(tools, Verb.RECLAIM, project.project_id),
            run_one(tools, Verb.RECLAIM, project.project_id, undo=True),
            run_one(tools, Verb.ROLLBACK, project.project_id, dry_run=True),
            run_one(tools, Verb.ROLLBACK, project.project_id),
            run(tools, Verb.GC, only=[THE_STORE], subject=Subject.STORE, grace_hours=0)[THE_STORE],
        ]
        reap(site.settings, engine)
        assert [schema_step.state for schema_step in schema.status(engine)] == ["applied"] * 5

    assert [(one.status.value, one.error) for one in ended] == [
        ("would_migrate", None),
        ("migrated", None),
        ("verified", None),
        ("verified", None),
        ("reclaimed", None),
        ("undone", None),
        ("would_roll_back", None),
        ("rolled_back", None),
        ("collected", None),
    ]


def test_a_right_on_some_columns_counts_as_a_right(database: Engine):
    with role(database) as (name, engine), engine.connect() as ours:
        with database.begin() as conn:
            conn.execute(text(f"revoke update on sessions from {name}"))
            conn.execute(text(f"grant update (dataset_id) on sessions to {name}"))

        assert health.missing_rights(ours) == []


def test_sequences_that_the_role_may_not_read_are_a_warning(database: Engine):
    with role(database) as (name, engine):
        with database.begin() as conn:
            conn.execute(text(f"revoke select on raw_datasets_dataset_id_seq from {name}"))
        numbers = check_database(engine).checks["numbers"]

    assert (numbers.verdict, "raw_datasets" in numbers.finding) == (Verdict.WARN, True)


def test_a_sequence_behind_its_table_fails_with_the_statement_that_corrects_it(database: Engine):
    assert check_database(database).checks["numbers"].verdict is Verdict.PASS
    with database.begin() as conn:
        conn.execute(
            text(
                "insert into raw_datasets (dataset_id, dataset_name, dataset_hash, file_path) values (7, 'd', 'h', '/')"
            )
        )

    numbers = check_database(database).checks["numbers"]

    assert numbers.verdict is Verdict.FAIL
    assert numbers.remedy is not None
    with database.begin() as conn:
        conn.execute(text(numbers.remedy.partition("owner: ")[2]))
        assert conn.scalar(text("select nextval('raw_datasets_dataset_id_seq')")) == 8
    assert check_database(database).checks["numbers"].verdict is Verdict.PASS


def test_a_database_that_takes_no_writes_or_hides_rows_fails(database: Engine):
    with role(database) as (name, engine):
        with database.begin() as conn:
            conn.execute(text(f"alter role {name} set default_transaction_read_only = on"))
            conn.execute(
                text(
                    "alter table sessions enable row level security; create policy few on sessions using (true)"
                )
            )
        chapter = check_database(engine)

    assert chapter.checks["writable"].verdict is Verdict.FAIL
    assert (chapter.checks["tables"].verdict, "sessions" in chapter.checks["tables"].finding) == (
        Verdict.FAIL,
        True,
    )


def test_a_role_that_could_drop_label_s_tables_is_warned_of(database: Engine):
    superuser = check_database(database).checks["role"]
    with role(database) as (name, engine):
        with database.begin() as conn:
            conn.execute(text(f"alter table projects owner to {name}"))
        owner = check_database(engine).checks["role"]
        with database.begin() as conn:
            conn.execute(text("alter table projects owner to current_user"))

    assert superuser.verdict is owner.verdict is Verdict.WARN
    assert "is a superuser" in superuser.finding
    assert "owns Label's tables" in owner.finding


def test_a_database_that_is_away_is_one_finding_and_the_rest_is_not_checked(
    database: Engine, closed_port: int
):
    engine = connect(database.url.set(port=closed_port, password=PASSWORD), application_name="tests")

    chapter = check_database(engine)

    assert bad(chapter) == {"reachable": "fail"}
    assert f"127.0.0.1:{closed_port}" in chapter.checks["reachable"].finding
    assert PASSWORD not in repr(chapter)
    assert set(chapter.not_checked) >= {"rights", "tables", "version"}


def test_missing_tables_are_found_with_the_command_that_makes_them(empty_database: Engine):
    nothing = check_database(empty_database)
    with empty_database.begin() as conn:
        conn.execute(text("create table projects (project_id integer)"))
        conn.execute(text("create table sessions (session_id integer)"))
    labels_only = check_database(empty_database)

    assert "is not Label's" in nothing.checks["tables"].finding
    assert labels_only.checks["tables"].remedy == "Run: producer schema apply"
    assert labels_only.checks["tables"].verdict is Verdict.FAIL
    assert "create_migration_ledger is missing" in labels_only.checks["schema steps"].finding


def test_a_column_of_label_s_that_is_gone_is_named(database: Engine):
    with database.begin() as conn:
        conn.execute(text("alter table sessions drop column stop_ns"))

    tables = check_database(database).checks["tables"]

    assert (tables.verdict, tables.finding) == (Verdict.FAIL, "Label's tables lack sessions.stop_ns")


def test_a_schema_step_that_another_version_applied_is_warned_of(database: Engine):
    with database.begin() as conn:
        conn.execute(text("update schema_steps set checksum = 'x' where name = 'create_migration_ledger'"))

    steps = check_database(database).checks["schema steps"]

    assert (steps.verdict, steps.finding) == (Verdict.WARN, "create_migration_ledger is changed")


def test_a_forgotten_transaction_is_found_with_its_process(database: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database_checks, "WAITS_TOO_LONG_S", 0.0)
    with connect(database.url, application_name="label web").connect() as forgotten:
        pid = forgotten.execute(text("select pg_backend_pid()")).scalar_one()

        found = check_database(database).checks["in the way"]

    assert found.verdict is Verdict.WARN
    assert f"label web (label, process {pid}) left a transaction open" in found.finding
    assert found.remedy is not None
    assert f"pg_terminate_backend({pid})" in found.remedy


def test_connections_that_the_role_may_not_inspect_are_counted_too(database: Engine):
    with role(database) as (_, engine), connect(database.url, application_name="label web").connect() as web:
        web.execute(text("select 1"))
        with engine.connect() as conn:
            ours = health.server(conn)
        found = check_database(engine).checks["in the way"]
    with database.connect() as conn:
        theirs = health.server(conn)

    assert not ours.sees_all
    assert found.finding.endswith("(as far as our role sees: it is no member of pg_read_all_stats)")
    assert theirs.sees_all
    assert ours.others >= 2


def test_an_old_postgresql_without_encryption_is_found(database: Engine):
    with database.connect() as conn:
        server = health.server(conn)

    far = replace(server, encrypted=False)
    assert database_checks.version_check(replace(server, version_number=130_012)).verdict is Verdict.FAIL
    assert database_checks.encryption_check(["127.0.0.1", "db.example"], far).verdict is Verdict.WARN
    assert database_checks.encryption_check(["db.example"], replace(far, encrypted=True)).finding == "TLS"
    assert database_checks.encryption_check(["127.0.0.1"], far).verdict is Verdict.PASS
    assert database_checks.encryption_check([], far).verdict is Verdict.PASS
    two = database_checks.failover_check(["a", "b"], replace(server, replicas=1, is_synchronous=False))
    assert (two.verdict, "may lose the last commits" in two.finding) == (Verdict.PASS, True)
    assert database_checks.failover_check(["a", "b"], server).verdict is Verdict.WARN
    assert database_checks.failover_check(["a"], server).verdict is Verdict.PASS
    assert database_checks.clock_check(-7.0).verdict is Verdict.WARN
    assert "7.0 s behind" in database_checks.clock_check(-7.0).finding
    assert isinstance(server, Server)


@pytest.mark.parametrize(
    "host", [None, "", "/run/postgresql", "localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"]
)
def test_addresses_of_this_machine_are_recognised(host: str | None):
    assert database_checks.is_local(host)
    assert not database_checks.is_local("10.0.0.1")
    assert not database_checks.is_local("db")
