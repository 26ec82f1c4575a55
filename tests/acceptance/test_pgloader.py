"""docs/from-mysql.md as it stands there: Label's database in a real MariaDB, with years behind it, is
converted by pgloader, migrated and rolled back; and what pgloader does by itself is found by the doctor and
by the checksums.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from producer.local.stack import Stack
from tests.acceptance.recipes import DOCS, recipe, shell, succeeds
from tests.acceptance.story import call
from tests.estate import (
    RawJson,
    differences,
    dump,
    make_dataset,
    make_model,
    make_participant,
    make_project,
    readings,
    record_session,
    snapshot_tree,
    split_session,
)
from tests.estate.compare import LABEL_TABLES, Entry, Reading
from tests.support.lacking import program
from tests.support.mariadb import MariaDb, mariadb
from tests.support.servers import administer, url_of
from tests.support.sites import Site
from worker.db.engine import connect
from worker.sessions_csv import Reader

pytestmark = pytest.mark.slow

GUIDE = DOCS / "from-mysql.md"
OF_DATASETS = ("raw_datasets", "raw_dataset_sessions", "project_dataset_refs", "project_split_configs")
PASSWORD = "PASSWORD"  # noqa: S105 - as the guide has it
AWKWARD = """
set sql_mode = '';
set time_zone = '+00:00';
-- Everything that the guide's table names.
update participants set created_at = '0000-00-00', email = '' where participant_code = 'P002';
update session_lineage set split_timestamp = '0000-00-00' order by id limit 1;
insert into raw_dataset_sessions (dataset_id, session_name, session_path, original_labels_json)
    select dataset_id, 'nul', '/nul', concat('a', char(0), 'b') from raw_datasets;
insert into project_split_configs (project_id, dataset_id, raw_session_name, split_strategy)
    select project_id, dataset_id, 'x', 'no word of it' from projects, raw_datasets where project_name = 'long';
update models set model_settings = '{"nul": "\\\\u0000"}';
update participants set great_puffs = 7, notes = 'a\\\\b\tc\nd' where participant_code = 'P001';
-- 'Zoë Á' as a connection wrote it that said latin1.
update participants set first_name = convert(0x5A6FC3AB20C381 using latin1) where participant_code = 'P001';
-- A number that is never given again.
insert into models (model_id, name, py_filename, pt_filename, class_name) values (50, '', '', '', '');
delete from models where model_id = 50;
"""
SAID = {
    "participants.created_at": "zero date, becomes NULL",
    "session_lineage.split_timestamp": "zero date, becomes NULL",
    "raw_dataset_sessions.original_labels_json": "holds NUL, which is removed",
    "project_split_configs.split_strategy": "not one of the enum, becomes NULL",
    "participants.great_puffs": "neither 0 nor 1, becomes true",
    "participants.first_name": "UTF-8 stored as latin1, stays garbled: correct it",
}
Rows = dict[str, list[dict[str, str | None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """Label's MySQL database, the legacy directories, and what Label reads of them."""

    site: Site
    server: MariaDb
    files: dict[bytes, Entry]
    read: dict[tuple[int, Reader], Reading]

    def shell(self, commands: str, database: str = "label") -> str:
        """Run commands of the guide, on this test's servers; what they print."""
        return succeeds(
            self.site,
            commands.replace("database label", f"database {database}"),
            HOME=str(self.server.home),
            MYSQL_URL=f"mysql://reader:{PASSWORD}@127.0.0.1:{self.server.port}/label",
            MYSQL_DATABASE="label",
            POSTGRES_URL=address(self.site.engine, database),
        )


def address(engine: Engine, database: str) -> str:
    url = engine.url.set(drivername="postgresql", database=database)
    return url.render_as_string(hide_password=False)


@contextmanager
def converted(lab: Lab, stack: Stack, database: str) -> Iterator[Site]:
    """The site with a new and empty database, which is dropped when the block ends."""
    administer(stack, f"create database {database} template template0 encoding 'UTF8'")
    engine = connect(url_of(stack, database), application_name="tests")
    try:
        yield replace(
            lab.site, engine=engine, env={**lab.site.env, "DATABASE_URL": address(engine, database)}
        )
    finally:
        engine.dispose()
        administer(stack, f"drop database {database} with (force)")


def study(conn: Connection, site: Site) -> None:
    """Projects as Label made them, each in the minute its directory is named after (summer in Berlin)."""
    first, second = make_participant(conn, "P001"), make_participant(conn, "P002", last_name="Süß")
    long = "/".join(letter * 200 for letter in "abc") + "/long_P002_20250703_120000"
    projects = [
        make_project(
            conn,
            site.legacy_root,
            name,
            participant_id=participant,
            directory=directory,
            created_at=f"2025-07-0{day} 10:00:07Z",
            project_type=kind,
            labelings=[{"name": "smoking 🚬", "color": None}],
            analysis_config=config,
        )
        for day, name, participant, directory, kind, config in (
            (1, 'Café 😀 "q" \\ 100%', first, "cafe_P001_20250701_120000", "legacy", {"b": 1.5}),
            (2, "twin", second, "twin_P002_20250702_120000", None, None),
            (3, "long", second, long, "legacy", None),
        )
    ]
    for seed, project in enumerate(projects):
        record_session(conn, project, "whole", rows=40, seed=1, bouts=[{"start": 1, "end": 2}], verified=100)
        by_hand = record_session(conn, project, "by hand", rows=30, seed=seed, keep=None, puffs_verified=1)
        if project.name != "long":
            split_session(conn, by_hand.session_id, [9, 20], site.data_dir)
    make_model(conn, "model")
    registered = site.folder / "registered"
    (registered / "day").mkdir(parents=True)
    make_dataset(conn, registered, "d" * 64)


def as_mysql(value: Any) -> str:
    match value:
        case None:
            return "null"
        case int():
            # A boolean becomes a number by it.
            return str(value + 0)
        case _:
            plain = re.sub(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.?\d*\+00$", r"\1", str(value))
            return f"convert(0x{plain.encode().hex()} using utf8mb4)" if plain else "''"


def inserts(conn: Connection) -> str:
    """Statements that put the same rows into MySQL; times of both are in UTC."""
    conn.execute(text("set local timezone to 'UTC'"))
    statements = ["set time_zone = '+00:00';"]
    for table, rows in dump(conn, (*LABEL_TABLES, *OF_DATASETS)).items():
        for row in rows:
            values = ", ".join(map(as_mysql, row.values()))
            statements.append(f"insert into {table} ({', '.join(row)}) values ({values});")
    return "\n".join(statements)


@pytest.fixture
def lab(site: Site) -> Iterator[Lab]:
    """The lab before its conversion. Its rows are made in PostgreSQL, by the tests' own tools, and moved."""
    program("pgloader")
    (site.folder / "deploy").symlink_to(DOCS.parent / "deploy")
    with mariadb("+02:00") as server:
        with site.engine.begin() as conn:
            study(conn, site)
            conn.execute(
                text(
                    "update projects set analysis_config = cast(:config as jsonb) where project_name = 'long'"
                ),
                {"config": "[1, 2]"},
            )
            read = readings(conn, site.data_dir)
            rows = inserts(conn)
        server.run((Path(__file__).parents[1] / "estate" / "label_in_mysql.sql").read_text())
        server.run(rows)
        config = RawJson('{"b": 1.50,  "a": 1, "a": 2}')
        server.run(f"update projects set analysis_config = '{config}' where project_name like 'Café%'")
        server.run(AWKWARD)
        yield Lab(site=site, server=server, files=snapshot_tree(site.legacy_root), read=read)


def in_mariadb(server: MariaDb) -> Rows:
    """All rows of MariaDB as they should arrive, by another way than the guide's checksums."""
    found: Rows = {}
    for table in (*LABEL_TABLES, *OF_DATASETS):
        columns = server.run(
            f"select column_name from information_schema.columns where table_schema = 'label' and table_name = '{table}'"
            " order by ordinal_position"
        ).split()
        values = ", ".join(f"hex(convert({name} using utf8mb4))" for name in columns)
        lines = server.run(
            f"set time_zone = '+00:00'; select {values} from {table} order by 1 + {columns[0]}"
        )
        found[table] = [
            dict(zip(columns, (_arrived(value) for value in line.split("\t")), strict=True))
            for line in lines.splitlines()
        ]
    for config in found["project_split_configs"]:
        config["split_strategy"] = config["split_strategy"] or None
    for participant in found["participants"]:
        # What is neither 0 nor 1 is true.
        participant["great_puffs"] = "1" if participant["great_puffs"] == "7" else participant["great_puffs"]
    return found


def _arrived(value: str) -> str | None:
    if value == "NULL":
        return None
    arrived = bytes.fromhex(value).decode().replace("\0", "")
    return None if arrived.startswith("0000-00-00") else arrived


def in_postgresql(conn: Connection, like: Rows) -> Rows:
    """The same rows and columns of PostgreSQL, in the same form."""
    conn.execute(text("set local timezone to 'UTC'"))
    found: Rows = {}
    for table, rows in like.items():
        columns = list(rows[0]) if rows else []
        key = columns[0] if columns else "1"
        selected = ", ".join(f"cast({name} as text) as {name}" for name in columns) or "1"
        there = conn.execute(
            text(
                f"select {selected} from {table} order by {table}.{key}"
                if columns
                else f"select 1 from {table}"
            )
        )
        known = {row[key] for row in rows}
        found[table] = [
            {name: _form(value) for name, value in row.items()}
            for row in there.mappings()
            if table not in OF_DATASETS[:2] or row[key] in known
        ]
    return found


def _form(value: str | None) -> str | None:
    if value in {"true", "false"}:
        return str(int(value == "true"))
    return value if value is None else re.sub(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\+00$", r"\1", value)


def doctor(site: Site) -> dict[str, dict[str, Any]]:
    """What it says of Label's tables and of the columns' types, by check."""
    document = json.loads(site.run_producer("doctor", "--json").stdout)
    return {
        check["name"]: check
        for check in document["checks"]
        if check["chapter"] == "Label's tables" or check["name"] == "column types"
    }


def bad(checks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, check in checks.items() if check["verdict"] != "pass"}


def test_label_s_database_comes_from_mysql_is_migrated_and_goes_back(lab: Lab, stack: Stack) -> None:
    look, correct = recipe("## Look at what is there", guide=GUIDE)
    account, _, zone_and_load = recipe("## Convert", guide=GUIDE)
    compare, numbers = recipe("## Compare", guide=GUIDE)
    said = dict(reversed(line.split("\t")[:2]) for line in lab.shell(look).splitlines())
    assert said == SAID

    lab.shell(correct)
    lab.shell(account)
    assert "UTF-8" not in lab.shell(look)
    with converted(lab, stack, "label_converted") as site:
        loaded = lab.shell(zone_and_load, "label_converted")
        assert not re.search("ERROR|FATAL|WARNING", loaded), loaded
        assert "every value has arrived" in lab.shell(compare, "label_converted")
        lab.shell(numbers, "label_converted")
        there = in_mariadb(lab.server)
        assert {row["first_name"] for row in there["participants"]} == {"Zoë Á", None}
        with site.engine.begin() as conn:
            assert in_postgresql(conn, there) == there
            assert conn.scalar(text("select nextval('models_model_id_seq')")) == 51
            assert differences(lab.read, readings(conn, site.data_dir)) == []
        checks = doctor(site)
        assert bad(checks) == set(), checks
        assert "3 of 3" in checks["times"]["finding"]
        applied = site.run_producer("schema", "apply")
        assert applied.returncode == 0, applied.stderr
        assert bad(doctor(site)) == set()

        with site.workers(concurrency=2):
            rehearsed = call(site, "enqueue", "--dry-run", "--wait")
            assert (rehearsed.exit_code, rehearsed.report["projects_failed"]) == (0, 0)
            migrated = call(site, "enqueue", "--wait")
            assert (migrated.exit_code, migrated.report["projects_migrated"]) == (0, 3)
            with site.engine.connect() as conn:
                assert differences(lab.read, readings(conn, site.data_dir)) == []
            assert call(site, "verify").exit_code == 0
            back = call(site, "rollback", "--wait")
            assert (back.exit_code, back.report["projects_rolled_back"]) == (0, 3)
        with site.engine.begin() as conn:
            assert in_postgresql(conn, there) == there
            assert differences(lab.read, readings(conn, site.data_dir)) == []
    assert snapshot_tree(site.legacy_root) == lab.files


@pytest.mark.long
def test_what_pgloader_does_by_itself_is_found_and_set_right(lab: Lab, stack: Stack) -> None:
    compare, _ = recipe("## Compare", guide=GUIDE)
    (hundreds,) = recipe("## What the doctor finds", guide=GUIDE)
    zone, _ = recipe("## Convert", guide=GUIDE)[2].splitlines()
    lab.server.run(f"create user reader identified by '{PASSWORD}'; grant select on label.* to reader")
    lab.server.run("update project_split_configs set split_strategy = 'custom'")
    with converted(lab, stack, "label_by_itself") as site:
        lab.shell('pgloader --root-dir pgloader "$MYSQL_URL" "$POSTGRES_URL"', "label_by_itself")
        # It took times for the database's own, and has let the database search its schema.
        lab.shell(zone, "label_by_itself")
        checks = doctor(site)
        assert bad(checks) == {"column types", "types", "references", "times"}
        assert "made +2:00 off the time" in checks["times"]["finding"]

        with site.engine.begin() as conn:
            for name in ("column types", "types", "references"):
                remedy = checks[name]["remedy"].partition("owner: ")[2].partition("; where 100")[0]
                conn.exec_driver_sql(remedy, execution_options={"no_parameters": True})
        lab.shell(hundreds, "label_by_itself")

        assert bad(doctor(site)) == {"times"}
        differing = shell(
            site,
            compare,
            HOME=str(lab.server.home),
            POSTGRES_URL=address(site.engine, "label_by_itself"),
        )
        assert differing.returncode == 1
        places = set(re.findall(r"^< (\S+)\t", differing.stdout, re.MULTILINE))
        assert {"session_lineage.id", "projects.created_at"} <= places, (
            "a table that is lost, and shifted times"
        )
        assert not any(place.startswith("sessions.") for place in places), "the flags are right again"
