"""Setting up: what is missing is named with the command that makes it."""

import json

from sqlalchemy import Engine, text

from tests.producer.cli.calls import Call, lines


def test_missing_tables_are_reported_with_the_command_that_makes_them(empty_database: Engine, call: Call):
    with empty_database.begin() as conn:
        conn.execute(text("create table projects (project_id integer primary key)"))
        conn.execute(text("create table sessions (session_id integer primary key)"))
    url = empty_database.url.set(drivername="postgresql").render_as_string(hide_password=False)

    done = call("enqueue", DATABASE_URL=url)
    steps = call("schema", "status", "--json", DATABASE_URL=url)

    assert done.returncode == 5
    assert "producer schema apply" in lines(done)[0]
    assert steps.returncode == 5
    assert {step["state"] for step in json.loads(steps.stdout)} == {"missing"}


def test_a_database_that_is_not_label_s_is_not_met_with_schema_apply_as_remedy(
    empty_database: Engine, call: Call
):
    url = empty_database.url.set(drivername="postgresql").render_as_string(hide_password=False)

    calls = [call("schema", verb, DATABASE_URL=url) for verb in ("status", "apply")]

    assert [done.returncode for done in calls] == [5, 5]
    for done in calls:
        assert any(
            "is not Label's: it has no table projects and no table sessions." in line for line in lines(done)
        )
        assert "Run: producer schema apply" not in done.stderr


def test_applying_the_schema_twice_says_that_there_is_nothing_to_apply(call: Call):
    done = call("schema", "apply", "--json")

    assert done.returncode == 0
    assert json.loads(done.stdout) == {"applied": []}
    assert "Nothing to apply: all tables are there." in done.stderr
