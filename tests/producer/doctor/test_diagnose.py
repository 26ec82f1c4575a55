"""`producer doctor`: each check is made to warn or fail for real, on real servers; and an installation where all is well."""

import json
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, text

import worker
from producer.cli.render import diagnosis_lines
from producer.doctor import (
    broker_checks as doctor_broker,
)
from producer.doctor import (
    database_checks as doctor_database,
)
from producer.doctor import (
    diagnose as doctor,
)
from producer.doctor import (
    worker_checks as doctor_workers,
)
from producer.doctor.ask_workers import Asked
from producer.doctor.findings import Chapter, Diagnosis, Notes
from producer.local.child_process import Child, start, stop
from tests.conftest import Site
from tests.estate import make_project, record_session, split_session
from tests.support.ledger_rows import end, expire, make_run, must_take
from tests.support.runs import run_one, tools_of
from tests.support.trees import eventually
from worker.broker import client as broker
from worker.broker.client import Server as BrokerServer
from worker.db import health, ledger, schema
from worker.db.engine import autocommit, connect
from worker.db.health import NEEDED_RIGHTS, Server
from worker.findings import Check, Verdict, failed, passed, warned
from worker.jobs.reaper import reap
from worker.messages import QUEUE, Verb
from worker.settings import Settings
from worker.store.store import Store

PASSWORD = "hunter2secret"  # noqa: S105 - what must not be seen again


def of(chapter: Chapter, name: str) -> Check:
    (found,) = [check for check in chapter.checks if check.name == name]
    return found


def bad(chapter: Chapter) -> dict[str, str]:
    """What is not well, by name."""
    return {check.name: check.verdict.value for check in chapter.checks if check.verdict is not Verdict.PASS}


def workers_chapter(settings: Settings, engine: Engine, expected: AbstractSet[str]) -> Chapter:
    """What workers say once each had the time to: on a busy machine one may be silent, or not be counted, for once."""
    seen: list[Chapter] = []

    def is_said() -> bool:
        seen[:] = [doctor_workers.look(settings, engine)]
        return bad(seen[0]).keys() - {"user"} == expected

    with suppress(AssertionError):  # the test says more exactly what differs
        eventually(is_said, "workers say what is expected")
    return seen[0]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, and nobody else can begin to."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# Here -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("python", "celery"), [((3, 10, 12), "5.7.0"), ((3, 11, 0), "5.6.3")])
def test_versions_that_the_program_was_not_made_for_fail(python: tuple[int, ...], celery: str):
    assert doctor.program_check((3, 13, 1), "5.7.1").verdict is Verdict.PASS
    assert doctor.program_check(python, celery).verdict is Verdict.FAIL


def test_settings_that_cannot_be_used_are_named_and_end_the_examination(site: Site):
    done = site.run_producer(
        "doctor", "--json", LEASE_S="soon", DATABASE_URL=f"mysql://u:{PASSWORD}@127.0.0.1/label"
    )

    assert done.returncode == 5
    document = json.loads(done.stdout)
    assert document["verdict"] == "fail"
    (settings,) = [check for check in document["checks"] if check["name"] == "settings"]
    assert settings["verdict"] == "fail"
    assert "LEASE_S is not usable: expected seconds" in settings["finding"]
    assert "DATABASE_URL" in settings["finding"]
    assert {check["chapter"] for check in document["checks"]} == {"Here"}
    assert "✗ settings" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("mode", "verdict"), [(0o600, Verdict.PASS), (0o640, Verdict.WARN), (0o644, Verdict.WARN)]
)
def test_a_file_of_passwords_that_others_may_read_is_a_warning(site: Site, mode: int, verdict: Verdict):
    file = site.folder / ".env"
    file.write_text(f"REDIS_URL=redis://:{PASSWORD}@127.0.0.1/0\n")
    file.chmod(mode)

    document = json.loads(site.run_producer("doctor", "--json").stdout)

    (settings,) = [check for check in document["checks"] if check["name"] == "settings"]
    assert settings["verdict"] == verdict
    assert settings["remedy"] == (None if verdict is Verdict.PASS else "chmod 600 .env")


# PostgreSQL -----------------------------------------------------------------------------------------------------


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
    engine = connect(database.url.set(username=name, password=password), application_name="tests")
    try:
        yield name, engine
    finally:
        engine.dispose()
        with database.begin() as conn:
            conn.execute(text(f"drop owned by {name} cascade"))
            conn.execute(text(f"drop role {name}"))


def test_with_a_role_that_has_what_is_needed_all_is_well(database: Engine):
    with role(database) as (name, engine):
        chapter = doctor_database.look(engine)
        with engine.connect() as conn:
            assert "/" in health.identity(conn), "needs no right"

    assert bad(chapter) == {}
    assert chapter.not_checked == ()
    assert len(chapter.checks) == 13
    assert of(chapter, "reachable").finding.endswith(f"database {database.url.database} as {name}")


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
            conn.execute(text(f"revoke update on sessions from {name}"))

        rights = of(doctor_database.look(engine), "rights")

    assert (rights.verdict, rights.finding) == (Verdict.FAIL, "our role may not update on sessions")
    assert rights.remedy is not None
    assert "grant update on sessions" in rights.remedy


def test_these_rights_are_enough_for_everything_that_runs_do(site: Site):
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, "study")
        recorded = record_session(conn, project, "day", rows=60)
        split_session(conn, recorded.session_id, [20, 40], site.data_dir)
    with role(site.engine) as (_, engine), tools_of(site, engine=engine) as tools:
        ended = [
            run_one(tools, Verb.MIGRATE, project.project_id, dry_run=True),
            run_one(tools, Verb.MIGRATE, project.project_id),
            run_one(tools, Verb.VERIFY, project.project_id),
            run_one(tools, Verb.ROLLBACK, project.project_id, dry_run=True),
            run_one(tools, Verb.ROLLBACK, project.project_id),
        ]
        reap(site.settings, engine)
        assert [schema_step.state for schema_step in schema.status(engine)] == ["applied"] * 4

    assert [(one.status.value, one.error) for one in ended] == [
        ("would_migrate", None),
        ("migrated", None),
        ("verified", None),
        ("would_roll_back", None),
        ("rolled_back", None),
    ]


def test_a_right_on_some_columns_is_one(database: Engine):
    with role(database) as (name, engine), engine.connect() as ours:
        with database.begin() as conn:
            conn.execute(text(f"revoke update on sessions from {name}"))
            conn.execute(text(f"grant update (dataset_id) on sessions to {name}"))

        assert health.missing_rights(ours) == []


def test_sequences_that_the_role_may_not_read_are_a_warning(database: Engine):
    with role(database) as (name, engine):
        with database.begin() as conn:
            conn.execute(text(f"revoke select on raw_datasets_dataset_id_seq from {name}"))
        numbers = of(doctor_database.look(engine), "numbers")

    assert (numbers.verdict, "raw_datasets" in numbers.finding) == (Verdict.WARN, True)


def test_a_sequence_that_is_behind_its_table_fails_with_the_statement_that_sets_it_right(database: Engine):
    assert of(doctor_database.look(database), "numbers").verdict is Verdict.PASS
    with database.begin() as conn:
        conn.execute(
            text(
                "insert into raw_datasets (dataset_id, dataset_name, dataset_hash, file_path) values (7, 'd', 'h', '/')"
            )
        )

    numbers = of(doctor_database.look(database), "numbers")

    assert numbers.verdict is Verdict.FAIL
    assert numbers.remedy is not None
    with database.begin() as conn:
        conn.execute(text(numbers.remedy.partition("owner: ")[2]))
        assert conn.scalar(text("select nextval('raw_datasets_dataset_id_seq')")) == 8
    assert of(doctor_database.look(database), "numbers").verdict is Verdict.PASS


def test_a_database_that_takes_no_writes_or_hides_rows_fails(database: Engine):
    with role(database) as (name, engine):
        with database.begin() as conn:
            conn.execute(text(f"alter role {name} set default_transaction_read_only = on"))
            conn.execute(
                text(
                    "alter table sessions enable row level security; create policy few on sessions using (true)"
                )
            )
        chapter = doctor_database.look(engine)

    assert of(chapter, "writable").verdict is Verdict.FAIL
    assert (of(chapter, "tables").verdict, "sessions" in of(chapter, "tables").finding) == (
        Verdict.FAIL,
        True,
    )


def test_a_role_that_could_drop_label_s_tables_is_warned_of(database: Engine):
    superuser = of(doctor_database.look(database), "role")
    with role(database) as (name, engine):
        with database.begin() as conn:
            conn.execute(text(f"alter table projects owner to {name}"))
        owner = of(doctor_database.look(engine), "role")
        with database.begin() as conn:
            conn.execute(text("alter table projects owner to current_user"))

    assert superuser.verdict is owner.verdict is Verdict.WARN
    assert "is a superuser" in superuser.finding
    assert "owns Label's tables" in owner.finding


def test_a_database_that_is_away_is_one_finding_and_the_rest_is_not_checked(
    database: Engine, closed_port: int
):
    engine = connect(database.url.set(port=closed_port, password=PASSWORD), application_name="tests")

    chapter = doctor_database.look(engine)

    assert bad(chapter) == {"reachable": "fail"}
    assert f"127.0.0.1:{closed_port}" in of(chapter, "reachable").finding
    assert PASSWORD not in repr(chapter)
    assert {one.name for one in chapter.not_checked} >= {"rights", "tables", "version"}


def test_a_database_without_tables_is_told_with_the_command_that_makes_them(empty_database: Engine):
    nothing = doctor_database.look(empty_database)
    with empty_database.begin() as conn:
        conn.execute(text("create table projects (project_id integer)"))
        conn.execute(text("create table sessions (session_id integer)"))
    labels_only = doctor_database.look(empty_database)

    assert "is not Label's" in of(nothing, "tables").finding
    assert of(labels_only, "tables").remedy == "Run: producer schema apply"
    assert of(labels_only, "tables").verdict is Verdict.FAIL
    assert "create_migration_ledger is missing" in of(labels_only, "schema steps").finding


def test_a_column_of_label_s_that_is_gone_is_named(database: Engine):
    with database.begin() as conn:
        conn.execute(text("alter table sessions drop column stop_ns"))

    tables = of(doctor_database.look(database), "tables")

    assert (tables.verdict, tables.finding) == (Verdict.FAIL, "Label's tables lack sessions.stop_ns")


def test_a_schema_step_that_another_version_applied_is_warned_of(database: Engine):
    with database.begin() as conn:
        conn.execute(text("update schema_steps set checksum = 'x' where name = 'create_migration_ledger'"))

    steps = of(doctor_database.look(database), "schema steps")

    assert (steps.verdict, steps.finding) == (Verdict.WARN, "create_migration_ledger is changed")


def test_a_forgotten_transaction_is_told_with_its_process(database: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor_database, "WAITS_TOO_LONG_S", 0.0)
    with connect(database.url, application_name="label web").connect() as forgotten:
        pid = forgotten.execute(text("select pg_backend_pid()")).scalar_one()

        found = of(doctor_database.look(database), "in the way")

    assert found.verdict is Verdict.WARN
    assert f"label web (label, process {pid}) left a transaction open" in found.finding
    assert found.remedy is not None
    assert f"pg_terminate_backend({pid})" in found.remedy


def test_sessions_that_the_role_may_not_look_into_count_as_connections_all_the_same(database: Engine):
    with role(database) as (_, engine), connect(database.url, application_name="label web").connect() as web:
        web.execute(text("select 1"))
        with engine.connect() as conn:
            ours = health.server(conn)
        found = of(doctor_database.look(engine), "in the way")
    with database.connect() as conn:
        theirs = health.server(conn)

    assert not ours.sees_all
    assert found.finding.endswith("(as far as our role sees: it is no member of pg_read_all_stats)")
    assert theirs.sees_all
    assert ours.others >= 2


def test_values_that_no_server_here_has_are_judged(database: Engine):
    with database.connect() as conn:
        server = health.server(conn)

    far = replace(server, encrypted=False)
    assert doctor_database.version_check(replace(server, version_number=130_012)).verdict is Verdict.FAIL
    assert doctor_database.encryption_check("db.example", far).verdict is Verdict.WARN
    assert doctor_database.encryption_check("db.example", replace(far, encrypted=True)).finding == "TLS"
    assert doctor_database.encryption_check("127.0.0.1", far).verdict is Verdict.PASS
    assert doctor_database.clock_check(-7.0).verdict is Verdict.WARN
    assert "7.0 s behind" in doctor_database.clock_check(-7.0).finding
    assert isinstance(server, Server)


@pytest.mark.parametrize(
    "host", [None, "", "/run/postgresql", "localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"]
)
def test_addresses_of_this_machine_are_known(host: str | None):
    assert doctor_database.is_local(host)
    assert not doctor_database.is_local("10.0.0.1")
    assert not doctor_database.is_local("db")


# Redis ----------------------------------------------------------------------------------------------------------


@contextmanager
def configured(site: Site, **values: object) -> Iterator[None]:
    """Let the server have other settings for a moment."""
    with redis.Redis.from_url(site.redis_url, decode_responses=True) as client:
        before = {name: client.config_get(name)[name] for name in values}
        try:
            for name, value in values.items():
                client.config_set(name, value)
            yield
        finally:
            for name, value in before.items():
                client.config_set(name, value)


def broker_chapter(site: Site) -> Chapter:
    return doctor_broker.look(site.settings, site.engine)


def test_with_a_log_and_without_eviction_all_is_well(site: Site):
    with configured(site, appendonly="yes"):
        chapter = broker_chapter(site)

    assert bad(chapter) == {}
    assert len(chapter.checks) == 8


@pytest.mark.parametrize(
    ("policy", "verdict"), [("allkeys-lru", Verdict.FAIL), ("volatile-ttl", Verdict.WARN)]
)
def test_a_broker_that_may_throw_things_away_is_told(site: Site, policy: str, verdict: Verdict):
    with configured(site, **{"maxmemory-policy": policy}):
        eviction = of(broker_chapter(site), "eviction")

    assert eviction.verdict is verdict
    assert policy in eviction.finding
    assert eviction.remedy is not None
    assert "noeviction" in eviction.remedy


def test_a_broker_that_forgets_at_its_end_is_warned_of(site: Site):
    with configured(site, appendonly="no"):
        assert of(broker_chapter(site), "persistence").verdict is Verdict.WARN


@pytest.mark.parametrize(("factor", "verdict"), [(1.1, Verdict.WARN), (1.01, Verdict.FAIL)])
def test_a_broker_with_little_memory_left_is_told(site: Site, factor: float, verdict: Verdict):
    used = broker.server(site.settings).memory_bytes
    with configured(site, maxmemory=int(used * factor)):
        assert of(broker_chapter(site), "memory").verdict is verdict


def test_messages_of_somebody_else_are_told(site: Site):
    with redis.Redis.from_url(site.redis_url) as client:
        client.lpush(QUEUE, *range(1001))

        queue = of(broker_chapter(site), "queue")

    assert (queue.verdict, queue.finding) == (Verdict.WARN, "1001 messages, 0 waiting jobs")


def test_a_broker_that_is_away_is_one_finding_and_the_rest_is_not_checked(site: Site, closed_port: int):
    settings = with_redis(site, f"redis://:{PASSWORD}@127.0.0.1:{closed_port}/0")

    chapter = doctor_broker.look(settings, site.engine)
    workers = doctor_workers.look(settings, site.engine)

    assert bad(chapter) == {"reachable": "fail"}
    assert {one.name for one in chapter.not_checked} == {
        "takes messages",
        "version",
        "eviction",
        "persistence",
        "memory",
        "queue",
    }
    assert {one.name for one in workers.not_checked} >= {"online", "same settings", "staging"}
    assert workers.checks == ()
    assert PASSWORD not in repr(chapter)


def with_redis(site: Site, url: str) -> Settings:
    return Settings(**{**site.settings.model_dump(), "redis_url": url}, _env_file=None)


def test_values_that_no_broker_here_has_are_judged():
    server = BrokerServer(
        product="Redis 5.0.14",
        redis_version="5.0.14",
        eviction="noeviction",
        memory_bytes=1,
        memory_limit_bytes=0,
        writes_log=True,
        cannot_save=("aof_last_write_status",),
    )

    assert doctor_broker.version_check(server).verdict is Verdict.FAIL
    assert doctor_broker.persistence_check(server).verdict is Verdict.FAIL
    bare = doctor_broker.protection_check("queue.example", encrypted=False, password=False)
    assert (bare.verdict, bare.finding) == (
        Verdict.WARN,
        "queue.example is used not encrypted and without a password",
    )
    safe = doctor_broker.protection_check("queue.example", encrypted=True, password=True)
    assert safe.verdict is Verdict.PASS


# Runs -----------------------------------------------------------------------------------------------------------


def test_held_runs_and_dead_holders_are_told_with_the_way_on(site: Site):
    run_id = make_run(site.engine, [1, 2])
    must_take(site.engine, run_id)
    expire(site.engine, run_id)
    with site.engine.begin() as conn:
        ledger.pause_run(conn, run_id, "No space left in the store: /there")

    chapter = doctor._runs(site.engine)

    assert bad(chapter) == {"held runs": "warn", "dead holders": "warn"}
    held = of(chapter, "held runs")
    assert held.finding == f"{str(run_id)[:8]}: No space left in the store: /there"
    assert f"producer resume {str(run_id)[:8]}" in (held.remedy or "")
    assert of(chapter, "dead holders").finding.startswith("1 of 1 running jobs")


# The whole ------------------------------------------------------------------------------------------------------


def test_without_workers_everything_else_is_looked_at(site: Site):
    done = site.run_producer("doctor", "--json", COLUMNS="80")

    assert done.returncode == 5
    document = json.loads(done.stdout)
    assert [check["name"] for check in document["checks"] if check["verdict"] == "fail"] == ["online"]
    assert len(document["checks"]) >= 20
    assert document["counts"]["fail"] == 1
    assert {one["name"] for one in document["not_checked"]} >= {"same settings", "legacy projects"}
    assert "✗ online" in done.stderr
    assert "→ Start one: celery -A worker.app worker" in done.stderr
    assert all(check["remedy"] for check in document["checks"] if check["verdict"] != "pass")


def test_it_fits_a_terminal_of_eighty_columns(site: Site, monkeypatch: pytest.MonkeyPatch):
    for name, value in site.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(site.folder)

    lines = list(diagnosis_lines(doctor.diagnose(), 80))

    from rich.text import Text

    plain = [Text.from_markup(line).plain for line in lines]
    assert max(map(len, plain)) <= 80
    marked = [line for line in plain if line[2:3] and line[2] in "✓!✗"]
    in_short = [line for line in marked if "in short" in line]
    assert plain[-1].startswith(f"{len(marked) - len(in_short)} checks: ")
    assert any(line.split() == ["✗", "in", "short,", "failed:", "Workers:", "online"] for line in in_short)
    assert plain[0] == "Here"


def test_all_is_well(shared_site: Site, monkeypatch: pytest.MonkeyPatch):
    """But for what a test's surroundings are: a superuser's database, perhaps a worker that is root's."""
    with shared_site.engine.begin() as conn:
        project = make_project(conn, shared_site.legacy_root, "study")
        record_session(conn, project, "day")
    for name, value in shared_site.env.items():
        monkeypatch.setenv(name, value)

    with configured(shared_site, appendonly="yes"):
        said: list[dict[str, Any]] = []

        def is_well() -> bool:
            """On a busy machine a worker may not have the time to say all."""
            said[:] = [doctor.diagnose().to_json()]
            return bool(said[0]["verdict"] == "pass")

        with suppress(AssertionError):  # what is not well is said below
            eventually(is_well, "all is well")

    (document,) = said
    not_well = {check["name"] for check in document["checks"] if check["verdict"] != "pass"}
    assert not_well <= {"role", "user"}, document
    assert document["not_checked"] == []
    assert document["verdict"] == "pass"
    assert len(document["checks"]) == sum(document["counts"].values()) >= 40
    (visible,) = [check for check in document["checks"] if check["name"] == "legacy projects"]
    assert visible["finding"] == "all 1 that were looked at can be read"
    eventually(lambda: not any(shared_site.data_dir.iterdir()), "nothing is left behind")


def test_with_postgresql_away_everything_else_is_looked_at(shared_site: Site, closed_port: int):
    url = shared_site.engine.url.set(drivername="postgresql", port=closed_port, password=PASSWORD)

    done = shared_site.run_producer(
        "doctor", "--json", DATABASE_URL=url.render_as_string(hide_password=False)
    )

    assert done.returncode == 5
    document = json.loads(done.stdout)
    failing = [(one["chapter"], one["name"]) for one in document["checks"] if one["verdict"] == "fail"]
    assert failing == [("PostgreSQL", "reachable")]
    asked = {one["name"] for one in document["checks"] if one["chapter"] == "Workers"}
    assert asked >= {"same settings", "same database", "data directory", "legacy projects", "reaper"}
    assert {one["name"] for one in document["not_checked"]} == {
        *doctor_database._REST,
        "queue",
        "staging",
        "restores",
        "database connections",
        "held runs",
        "dead holders",
    }
    assert done.stderr.splitlines()[-1].endswith(f"1 failed, {len(document['not_checked'])} not checked")
    assert PASSWORD not in done.stdout + done.stderr


# Workers that are not alike -------------------------------------------------------------------------------------


@contextmanager
def running(site: Site, workers: Mapping[str, Mapping[str, str]], cwd: Mapping[str, Path]) -> Iterator[None]:
    """Run workers that differ from the site's in their environment and their working directory, until all of them answer."""
    started: list[Child] = []
    try:
        for name, env in workers.items():
            node = f"{name}@here"
            options = ["--concurrency", "1", "--without-mingle", "--without-gossip", "--hostname", node]
            command = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", *options]
            started.append(
                start(
                    node,
                    command,
                    log_file=site.folder / f"{name}.log",
                    on_parent_death=signal.SIGKILL,
                    env={**site.env, **env},
                    cwd=cwd.get(name, site.folder),
                )
            )
        names = {child.name for child in started}
        eventually(lambda: names <= set(broker.workers_online(site.settings)), "all workers answer")
        yield
    finally:
        stop(started, politely=signal.SIGKILL)


def test_a_worker_with_other_settings_or_another_database_is_found(
    shared_site: Site, empty_database: Engine, closed_port: int, tmp_path: Path
):
    other = empty_database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    nowhere = empty_database.url.set(drivername="postgresql", port=closed_port, password=PASSWORD)
    odd = {
        "odd": {"DATA_DIR": str(tmp_path / "not there"), "LEASE_S": "7", "DATABASE_URL": other},
        "lost": {"DATABASE_URL": nowhere.render_as_string(hide_password=False)},
    }
    (shared_site.data_dir / "projects").mkdir()
    with shared_site.engine.begin() as conn:
        make_project(conn, shared_site.legacy_root, "study")
    with running(shared_site, odd, {}):
        eventually(
            lambda: "not_reaped" in (shared_site.folder / "odd.log").read_text(), "its reaper has looked"
        )

        expected = {
            "same settings": "fail",
            "same database": "fail",
            "same data directory": "warn",
            "database from workers": "fail",
            "reaper": "warn",
            "data directory": "fail",
            "free space": "fail",
        }
        chapter = workers_chapter(shared_site.settings, shared_site.engine, expected.keys())

    found = bad(chapter)
    found.pop("user", None)
    assert found == expected
    settings = of(chapter, "same settings").finding
    assert f"odd@here has DATA_DIR={tmp_path}/not there, here it is {shared_site.data_dir}" in settings
    assert "odd@here has LEASE_S=7, here it is 5" in settings
    assert of(chapter, "same database").finding == "odd@here uses another database"
    assert of(chapter, "database from workers").finding.startswith(
        f"lost@here: Database connection failed: 127.0.0.1:{closed_port}"
    )
    assert of(chapter, "data directory").finding == f"odd@here: {tmp_path}/not there is not a directory"
    assert PASSWORD not in repr(chapter)


def test_a_worker_without_the_mount_and_with_another_version_is_found(site: Site, tmp_path: Path):
    """Two working directories stand for two machines: all paths are the same below `/proc/self/cwd`, and lead elsewhere."""
    here, there = tmp_path / "here", tmp_path / "there"
    for machine in (here, there):
        (machine / "data").mkdir(parents=True)
        (machine / "legacy").mkdir()
    shutil.copytree(
        Path(worker.__file__).parent, there / "worker", ignore=shutil.ignore_patterns("__pycache__")
    )
    with (there / "worker/units.py").open("a") as source:
        source.write("# another version\n")
    Store.open(here / "data/dataset_store", here / "data/raw_datasets", "blake3", create=True)
    (here / "legacy/study").mkdir()
    with site.engine.begin() as conn:
        make_project(conn, Path("/"), "study", path="/proc/self/cwd/legacy/study")
    env = {"DATA_DIR": "/proc/self/cwd/data", "LEGACY_ROOTS": "/proc/self/cwd/legacy"}
    settings = Settings(
        **{**site.settings.model_dump(), **{key.lower(): value for key, value in env.items()}}
    )

    with running(site, {"first": env, "second": env}, {"first": here, "second": there}):
        expected = {
            "same program": "fail",
            "same data directory": "fail",
            "same store": "fail",
            "legacy roots": "warn",
            "legacy projects": "fail",
        }
        chapter = workers_chapter(settings, site.engine, expected.keys())

    found = bad(chapter)
    found.pop("user", None)
    assert found == expected
    assert of(chapter, "same program").finding.startswith(f"second@here runs {worker.__version__} (")
    assert "first@here does not see what second@here wrote" in of(chapter, "same data directory").finding
    assert "second@here finds none" in of(chapter, "same store").finding
    assert (
        of(chapter, "legacy roots").finding == "second@here: /proc/self/cwd/legacy is empty; is it mounted?"
    )
    lost = of(chapter, "legacy projects").finding
    assert lost.startswith("1 of 1 cannot be read (project 1); second@here: project 1 does not exist")


def test_leftovers_and_projects_that_nobody_sees_are_warnings(shared_site: Site):
    run_id = make_run(shared_site.engine, [1])
    lease = must_take(shared_site.engine, run_id)
    staging = shared_site.settings.store_dir / "staging"
    for name in (f"{lease.ref.task_id}-1", "somebody-3"):
        (staging / name).mkdir(parents=True)
        os.utime(staging / name, (1, 1))
    (staging / "somebody-4").mkdir()
    for name in (f".restoring-{lease.ref.task_id}-1", ".restoring-somebody-3"):
        (shared_site.legacy_root / name).mkdir()
        os.utime(shared_site.legacy_root / name, (1, 1))
    with shared_site.engine.begin() as conn:
        make_project(conn, shared_site.legacy_root, "fine")
        for number in range(6):
            make_project(conn, shared_site.legacy_root, f"lost {number}", path=f"/nowhere/{number}")

    chapter = doctor_workers.look(shared_site.settings, shared_site.engine)

    end(shared_site.engine, lease)
    assert bad(chapter).items() >= {"staging": "warn", "restores": "warn", "legacy projects": "warn"}.items()
    leftovers = of(chapter, "staging").finding
    assert leftovers.startswith("1 leftovers")
    assert leftovers.endswith(": somebody-3")
    assert of(chapter, "restores").finding.endswith(f"over: {shared_site.legacy_root}/.restoring-somebody-3")
    lost = of(chapter, "legacy projects")
    assert lost.finding.startswith("6 of 7 cannot be read (projects 2, 3, 4, 5, 6 and 1 more); ")
    assert "project 2 Project path is outside LEGACY_ROOTS" in lost.finding
    assert "--exclude" in (lost.remedy or "")


# What several workers say ---------------------------------------------------------------------------------------


def test_the_worst_of_several_counts_and_says_whose_it_is():
    checks = {
        "a": passed("store", "fine"),
        "b": failed("store", "broken", "mend it"),
        "c": warned("store", "old", "-"),
    }

    one = doctor_workers.together("store", checks)
    all_of_them = doctor_workers.together(
        "store", dict.fromkeys("abcdefgh", failed("store", "away", "mount it"))
    )
    differing = doctor_workers.together(
        "store", {name: failed("store", name * 2, "x") for name in "abcdefgh"}
    )

    alike = doctor_workers.together("sync", {name: passed("sync", f"{ord(name) - 96} s") for name in "abc"})

    assert (one.verdict, one.finding, one.remedy) == (Verdict.FAIL, "b: broken", "mend it")
    assert all_of_them.finding == "away"
    assert alike.finding == "a: 1 s; 2 more are well"
    assert differing.finding == "a: aa; b: bb; c: cc; d: dd; e: ee; and 3 more"


def test_two_workers_of_one_name_are_warned_of():
    check = doctor_workers.online_check(["a@x", "b@x", "a@x"], {})

    assert (check.verdict, check.finding) == (Verdict.WARN, "several workers are called a@x")
    assert doctor_workers.online_check(["a@x", "b@x"], {}).verdict is Verdict.PASS


def test_workers_that_do_not_answer_are_named():
    asked = Asked(
        evidence={}, marks={}, silent={"w@b": "it did not get beyond looking at its machine's files"}
    )

    check = doctor_workers.answers_check(asked)

    assert check.verdict is Verdict.FAIL
    assert check.finding == "w@b it did not get beyond looking at its machine's files"


def test_connections_for_all_that_may_be_needed_are_counted():
    assert doctor_workers.connections_check(11, parents=1, processes=1).verdict is Verdict.PASS
    assert doctor_workers.connections_check(10, parents=1, processes=1).verdict is Verdict.WARN


def test_a_check_that_did_not_run_has_not_passed():
    ran = Chapter(title="Here", checks=(passed("settings", "good"),))
    notes = Notes("Runs")
    notes.leave_out(["held runs"], "PostgreSQL cannot be asked")

    assert Diagnosis(chapters=(ran,)).is_well
    assert not Diagnosis(chapters=(ran, notes.chapter())).is_well
    assert Diagnosis(chapters=(ran, notes.chapter())).to_json()["verdict"] == "fail"
