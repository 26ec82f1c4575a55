"""The migrator's own role: enough to migrate, verify, roll back and drive runs, and nothing beyond that."""

import json
import secrets
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Connection, Engine, event, text

from producer.runs import (
    adoptions,
    collect,
    control,
    garbage,
    legacy_projects,
    migrated_projects,
    reclaims,
    status,
    verification,
    waves,
)
from producer.runs.open import Opened
from tests.estate import every_form, make_project, record_session, split_session
from tests.support import runs
from tests.support.damages import flip
from tests.support.psql import SQL, psql
from tests.support.registered import register
from tests.support.sites import Site
from worker.db import datasets, exchange, health, leases, ledger, messages_sent, recordings, schema, tables
from worker.db.engine import connect
from worker.db.garbage import unreferenced
from worker.db.ledger import Run
from worker.errors import DatabaseRefusedError, PermanentError
from worker.jobs import reaper
from worker.jobs.rebuild import rebuild
from worker.jobs.tools import Tools
from worker.messages import JobRef, RunOptions, RunState, Verb
from worker.store.garbage import Garbage

FILE = SQL / "create_migrator_role.sql"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """The role, a site whose processes use it, and an engine of the tables' owner to look with."""

    name: str
    site: Site
    owner: Engine


@pytest.fixture(scope="module")
def _role(module_site: Site) -> Iterator[Role]:
    """Make the role by the file, as an operator does, with a name that has to be quoted."""
    name, password = 'migrator "of the lab"', secrets.token_urlsafe(12)
    site, owner = module_site, module_site.engine
    psql(owner, "-v", f"migrator={name}", "-f", str(FILE))
    with owner.begin() as conn:
        conn.execute(text(f"alter role {_quoted(name)} password '{password}'"))
    url = owner.url.set(username=name, password=password)
    engine = connect(url, application_name="tests of the role")
    rendered = url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        yield Role(
            name=name,
            site=replace(site, engine=engine, env=site.env | {"DATABASE_URL": rendered}),
            owner=owner,
        )
    finally:
        engine.dispose()
        with owner.begin() as conn:
            conn.execute(text(f"drop owned by {_quoted(name)}; drop role {_quoted(name)}"))


@pytest.fixture
def role(_role: Role) -> Role:
    """Give the module's role, and a site without rows and files."""
    replace(_role.site, engine=_role.owner).empty()
    return _role


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# It is enough -----------------------------------------------------------------------------------------------


def test_the_migrator_role_is_enough_for_real_workers_and_every_verb(role: Role):
    site = role.site
    with role.owner.begin() as conn:
        for number in range(3):
            project = make_project(conn, site.legacy_root, f"study {number}")
            session = record_session(conn, project, "day", rows=40, seed=number % 2)
        split_session(conn, session.session_id, [10, 20], site.data_dir)
    before = _labels_tables(role.owner)

    with site.workers(1, concurrency=2):
        assert _say(site, "enqueue", "--wait")["report"]["projects_migrated"] == 3
        assert _say(site, "verify", "--sessions")["report"]["projects_verified"] == 3
        (*_, dataset) = _say(site, "datasets", "list")
        assert _say(site, "datasets", "show", str(dataset["dataset_id"]))["project_list"]
        assert _say(site, "whereis", dataset["dataset_hash"])["dataset"]
        assert _say(site, "explain", "1")["rollback"]["status"] == "would_roll_back"
        bag = str(site.folder / "bag")
        assert _say(site, "datasets", "export", str(dataset["dataset_id"]), "--output", bag)["files"]
        assert _say(site, "rollback", "--wait")["report"]["projects_rolled_back"] == 3
        assert _say(site, "gc", "--grace", "0", "--yes", "--wait")
        assert _say(site, "datasets", "import", bag)["imported"]
        assert _say(site, "status")["state"] == "finished"
        checks = _say(site, "doctor")["checks"]
        assert [one for one in checks if one["name"] in {"rights", "role"} and one["verdict"] != "pass"] == []
        assert {"labels": {"part": "database"}, "value": 1.0} in _say(site, "metrics")["label_migrator_up"]

    assert _labels_tables(role.owner) == before
    for log in site.folder.glob("*.log"):
        assert "permission denied" not in log.read_text()


def _say(site: Site, *words: str) -> Any:
    done = site.run_producer(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _labels_tables(engine: Engine) -> list[Sequence[Any]]:
    with engine.connect() as conn:
        return [
            tuple(conn.execute(text(f"select * from {table} order by 1")).all())
            for table in ("projects", "sessions")
        ]


# It is no more ----------------------------------------------------------------------------------------------

FORBIDDEN = {
    "drop": ["drop table {table}"],
    "truncate": ["truncate {table} cascade"],
    "alter": ["alter table {table} add column more integer", "create index on {table} ((1))"],
    "delete": ["delete from {table}"],
    "lock": ["lock table {table} in access exclusive mode"],
    "trigger": ["create trigger t before update on {table} execute function label_set_updated_at()"],
    "read all": ["select * from {table}"],
}
OF_LABEL = ("projects", "sessions", "participants", "session_lineage", "models")


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_migrator_role_cannot_harm_label_s_tables(role: Role, what: str):
    with role.site.engine.connect() as conn:
        for table in OF_LABEL:
            for statement in FORBIDDEN[what]:
                assert _is_denied(conn, statement.format(table=table)), (table, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "select email, first_name, last_name from participants",
        "select participant_code from participants",
        "select participant_id from projects",
        "select labelings from projects",
        "select bouts from sessions",
        "update sessions set bouts = null",
        "update sessions set verified = 1",
        "update projects set project_name = 'x'",
        "update projects set labelings = null",
        "insert into projects (project_name, participant_id) values ('x', 1)",
        "insert into sessions (project_id, session_name, start_ns, stop_ns) values (1, 'x', 0, 1)",
        "update raw_datasets set file_path = '/etc'",
        "delete from migration_runs",
        "delete from migration_jobs",
        "delete from project_conversions",
        "update project_conversions set before = '{}'",
        "update migration_adoptions set before = '{}'",
        "update migration_waves set gate = 'none'",
        "delete from migration_waves",
        "delete from migration_adoptions",
        "update migration_state_arrows set meaning = ''",
        "insert into schema_steps values ('x', '', now())",
        "create table more (one integer)",
        "create role more",
        "copy projects (path) to program 'id'",
    ],
)
def test_the_migrator_role_cannot_do_what_the_migrator_never_does(role: Role, statement: str):
    with role.site.engine.connect() as conn:
        assert _is_denied(conn, statement)


def test_applying_the_schema_as_another_role_names_the_owner(role: Role, monkeypatch: pytest.MonkeyPatch):
    """As after an update of the migrator, whose files are others."""
    monkeypatch.setattr(schema, "checksum", lambda _sql: "another")

    with pytest.raises(PermanentError, match="run producer schema apply as the owner of Label's tables"):
        schema.apply(role.site.engine)


def test_the_role_file_revokes_rights_that_are_too_much(role: Role):
    name = _quoted(role.name)
    with role.owner.begin() as conn:
        before = _rights(conn, role.name)
        conn.execute(
            text(f"""
                grant all on projects, participants to {name};
                grant update (bouts) on sessions to {name};
                revoke insert on migration_runs from {name}""")
        )

    psql(role.owner, "-v", f"migrator={role.name}", "-f", str(FILE))

    with role.owner.connect() as conn:
        assert _rights(conn, role.name) == before


def test_the_migrator_role_has_a_default_name(empty_database: Engine):
    """In a database whose tables were numbered by defaults, by hand."""
    psql(empty_database, "-f", str(SQL / "label_app_baseline.sql"))
    schema.apply(empty_database, with_baseline=True)
    with empty_database.begin() as conn:
        conn.execute(
            text("""
                alter table raw_datasets alter column dataset_id drop identity;
                create sequence by_hand owned by raw_datasets.dataset_id;
                alter table raw_datasets alter column dataset_id set default nextval('by_hand')""")
        )

    psql(empty_database, "-f", str(FILE))

    with empty_database.begin() as conn:
        try:
            allowed = conn.scalar(text("select has_sequence_privilege('label_migrator', 'by_hand', 'usage')"))
        finally:
            conn.execute(text("drop owned by label_migrator; drop role label_migrator"))
    assert allowed


def _is_denied(conn: Connection, statement: str) -> bool:
    """Whether PostgreSQL refuses the statement for want of a right. Whatever it does is undone."""
    savepoint = conn.begin_nested()
    try:
        conn.exec_driver_sql(statement, execution_options={"no_parameters": True})
    except DatabaseRefusedError as error:
        if error.sqlstate != "42501":
            raise
        return True
    finally:
        savepoint.rollback()
    return False


# Each right is needed ---------------------------------------------------------------------------------------


class Right(NamedTuple):
    """One right of the role, as the catalog has it; `column` is empty for a right to the whole table."""

    table: str
    column: str
    privilege: str


def _rights(conn: Connection, role: str) -> set[Right]:
    rows = conn.execute(
        text("""
            select c.relname, '' as attname, acl.privilege_type
            from pg_class c cross join lateral aclexplode(c.relacl) acl
            where acl.grantee = (select oid from pg_roles where rolname = :role)
            union all
            select c.relname, a.attname, acl.privilege_type
            from pg_class c join pg_attribute a on a.attrelid = c.oid cross join lateral aclexplode(a.attacl) acl
            where acl.grantee = (select oid from pg_roles where rolname = :role)"""),
        {"role": role},
    )
    return {Right(*row) for row in rows}


def test_each_right_of_the_migrator_role_is_needed(role: Role):
    """Every statement of a whole story is kept; without a right at least one of them may not even be
    planned.
    """
    with role.owner.connect() as conn:
        rights = _rights(conn, role.name)
    with _statements_of(role.site.engine) as statements:
        _whole_story(role)

    unneeded = {right for right in rights if not _is_missed(role, right, statements)}

    # Read by a trigger's function, which no plan shows.
    arrows = Right("migration_state_arrows", "", "SELECT")
    # Asked for when a number is taken, not when that is planned.
    numbers = {
        Right("raw_datasets_dataset_id_seq", "", "USAGE"),
        Right("raw_dataset_sessions_raw_session_id_seq", "", "USAGE"),
    }
    assert unneeded == {arrows, *numbers}
    for one in numbers:
        with (
            _without(role, one) as conn,
            pytest.raises(DatabaseRefusedError, match=f"permission denied for sequence {one.table}"),
        ):
            datasets.reserve(conn, 1)
    with (
        _without(role, arrows) as conn,
        pytest.raises(DatabaseRefusedError, match="permission denied for table migration_state_arrows"),
    ):
        ledger.open_run(conn, uuid.uuid4(), Verb.MIGRATE, dry_run=False, selection={})


@contextmanager
def _statements_of(engine: Engine) -> Iterator[list[str]]:
    """Collect what is executed and can be planned, with its values, once for each form of statement."""
    found: dict[str, str] = {}
    statements: list[str] = []

    def keep(_conn: Connection, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        for part in statement.split(";"):
            if part.split()[:1] and part.split()[0].lower() in {
                "select",
                "insert",
                "update",
                "delete",
                "with",
            }:
                found.setdefault(part, cursor.mogrify(part, parameters).decode())

    event.listen(engine, "before_cursor_execute", keep)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", keep)
        statements += found.values()


def _is_missed(role: Role, right: Right, statements: Sequence[str]) -> bool:
    """Whether one of the statements is refused without this right. Planning is enough to be refused."""
    likeliest_first = sorted(
        (one for one in statements if right.table in one),
        key=lambda one: (right.privilege.lower() in one.lower()) + (right.column in one),
        reverse=True,
    )
    with _without(role, right) as conn:
        return any(_is_denied(conn, f"explain {one}") for one in likeliest_first)


@contextmanager
def _without(role: Role, right: Right) -> Iterator[Connection]:
    """A connection that is the role's, without one of its rights; nothing of it is kept."""
    of = f"{right.privilege} ({right.column})" if right.column else right.privilege
    kind = "sequence " if right.privilege == "USAGE" else ""
    name = _quoted(role.name)
    with role.owner.connect() as conn:
        conn.execute(text(f"revoke {of} on {kind}{right.table} from {name}; set local role {name}"))
        yield conn


def _whole_story(role: Role) -> None:
    """All that producer and workers do with the database, in this process, as the role."""
    site = role.site
    engine, settings = site.engine, site.settings
    with role.owner.begin() as conn:
        every_form(conn, site.legacy_root, data_dir=site.data_dir, outside=site.folder / "outside")
    tables.require(engine)
    schema.status(engine)
    with engine.connect() as conn:
        assert health.numbers(conn).unseen == []
    with runs.tools_of(site) as tools:
        _do(tools, legacy_projects.enqueue(settings, engine, dry_run=True))
        in_waves = waves.asked("1,50%,100%", None)
        migration = _do_waves(tools, legacy_projects.enqueue(settings, engine, dry_run=False, waves=in_waves))
        flip(next(site.settings.store_dir.glob("blobs/*/*")))
        _do(tools, verification.verify(settings, engine, wanted=verification.Wanted(repair=True)))
        for act in ({}, {"undo": True}, {}, {"purge": True, "grace_days": 0}):
            options = RunOptions(**act)
            _do(tools, reclaims.reclaim(settings, engine, dry_run=False, options=options))
        _do(
            tools,
            migrated_projects.rollback(settings, engine, dry_run=False, project_ids=(), restore_files=True),
        )
        with engine.connect() as conn:
            due = sum(one.is_due for one in unreferenced(conn, 0))
        _do(tools, garbage.collect(settings, engine, dry_run=False, grace_hours=0, expect=due))
        (entry, *_) = Garbage(tools.open_store(create=False)).entries()
        _do(tools, garbage.restore(settings, engine, entry_id=entry.entry_id))
        _rebuild(role)
        one = register(replace(site, engine=role.owner), "walk", 101, 102)
        with role.owner.begin() as conn:
            conn.execute(
                text("update raw_dataset_sessions set session_name = 'x' where session_name = 'day 101'")
            )
        for act in ({}, {"undo": True}, {}):
            options = RunOptions(dataset_ids=(one.dataset_id,), **act)
            _do(tools, adoptions.adopt(settings, engine, dry_run=False, options=options))
        assert one.state() == "adopted"
    control.retry(settings, engine, migration)
    _drive(site, legacy_projects.enqueue(settings, engine, dry_run=True, limit=2))


def _rebuild(role: Role) -> None:
    """A dataset's row is lost, and comes back with Label's hash of it."""
    with role.owner.begin() as conn:
        lost = conn.scalars(
            text("""
                select dataset_hash from raw_datasets d join migration_indexed_datasets i using (dataset_hash)
                where not exists (select from sessions s where s.dataset_id = d.dataset_id)""")
        ).first()
        exchange.remember_label_hash(conn, str(lost), "ab" * 32)
    (role.site.settings.store_dir / "manifests" / f"{lost}.row.json").unlink()
    assert rebuild(role.site.settings, role.site.engine, dry_run=False).row_files
    with role.owner.begin() as conn:
        conn.execute(
            text("delete from raw_datasets where dataset_hash = :hash; delete from migration_label_hashes"),
            {"hash": lost},
        )
    assert rebuild(role.site.settings, role.site.engine, dry_run=False).rebuilt


def _do(tools: Tools, opened: Opened) -> Run:
    """Do every job of a run as a worker does, and collect it."""
    for job in opened.jobs:
        runs.WORK[opened.verb, job.subject](
            tools, JobRef(run_id=opened.run_id, subject=job.subject, subject_id=job.subject_id), "w"
        )
    run = _run(tools.engine, opened)
    collected = collect.collect(tools.settings, tools.engine, run, timeout_s=10)
    assert collected.stopped is None
    return run


def _do_waves(tools: Tools, opened: Opened) -> Run:
    """Do every job of a run in waves, and of its gates, whatever these find."""
    engine, settings = tools.engine, tools.settings
    while not (run := _run(engine, opened)).state.has_ended:
        with engine.connect() as conn:
            going = [opened.run_id, *ledger.gates_at_work(conn, opened.run_id)]
            waiting = [one for run_id in going for one in messages_sent.waiting(conn, run_id)]
        for one in waiting:
            runs.WORK[one.verb, one.ref.subject](tools, one.ref, "w")
        reaper.reap(settings, engine)
        if _run(engine, opened).state is RunState.PAUSED:
            control.resume(settings, engine, run, skip_gate=True)
    return run


def _drive(site: Site, opened: Opened) -> None:
    """Pull every rein of a run, and let its jobs meet all that may become of them beside an outcome."""
    engine, settings = site.engine, site.settings
    run = _run(engine, opened)
    status.describe(engine, run)
    status.all_runs(engine, 5)
    control.throttle(engine, run, 1 << 20)
    refs = [JobRef(run_id=run.run_id, subject_id=job.subject_id) for job in opened.jobs if not job.skipped]
    with engine.begin() as conn:
        dead, alive = (
            leases.take_lease(conn, ref, "w", lease_s) for ref, lease_s in zip(refs, (0, 60), strict=True)
        )
        assert dead is not None
        assert alive is not None
        leases.renew_lease(conn, alive, 60, phase="store", dataset_hash="0" * 64, files_done=0, bytes_done=0)
        leases.job_that_stores(conn, "0" * 64, dead.ref)
        leases.is_known(conn, dead.ref, Verb.MIGRATE)
        leases.note_fenced(conn, dead)
        leases.want_message(conn, dead.ref)
        # Small recordings are counted faster than they are looked up.
        counted = recordings.Counted(size_bytes=1, head="0", records=1)
        recordings.remember(conn, {"0" * 64: counted})
        recordings.counts(conn, ["0" * 64])
        leases.hand_back(conn, alive, retry_in_s=1, reason="passing")
    reaper.reap(settings, engine)
    control.pause(engine, run)
    control.resume(settings, engine, _run(engine, opened))
    control.cancel(engine, _run(engine, opened))


def _run(engine: Engine, opened: Opened) -> Run:
    with engine.connect() as conn:
        return ledger.find_run(conn, str(opened.run_id))
