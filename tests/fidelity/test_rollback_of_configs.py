"""The way back of analysis_config: to the digit, and with what people wrote into it meanwhile."""

from typing import Any

import pytest
from sqlalchemy import text

from tests.estate import (
    JSON_NULL,
    RawJson,
)
from tests.estate.compare import LABEL_TABLES
from tests.fidelity.rolled_back import CONFIG, look, make, make_small, sql, statuses
from tests.support.runs import run, run_one
from tests.support.sites import Site
from worker.jobs.tools import Tools
from worker.messages import Status, Verb

CONFIGS: dict[str, Any] = {
    "NULL": None,
    "object": CONFIG,
    "empty object": {},
    "JSON null": JSON_NULL,
    "list": [1, "two"],
    "string": "as it was",
    "number": RawJson("12345678901234567890.10"),
    "true": True,
    "our keys": {
        "migrated_from": "another server",
        "dataset_id": 7,
        "run_id": None,
        "migration_date": [1.50],
    },
}
NO_OBJECTS = ("JSON null", "list", "string", "number", "true")


def test_any_analysis_config_comes_back_to_the_digit(site: Site, tools: Tools):
    for kind, config in CONFIGS.items():
        make_small(site, kind, analysis_config=config)
    before = look(site.engine, LABEL_TABLES)

    run(tools, Verb.MIGRATE)
    outcomes = run(tools, Verb.ROLLBACK)

    assert (len(outcomes), statuses(outcomes)) == (len(CONFIGS), {Status.ROLLED_BACK})
    assert look(site.engine, LABEL_TABLES) == before


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("""analysis_config || '{"added": 1}'""", "added"),
        ("""analysis_config || '{"migrated_from": "Mars"}'""", "migrated_from"),
    ],
    ids=["added", "changed"],
)
def test_a_key_that_would_be_lost_refuses_the_rollback(site: Site, tools: Tools, change: str, key: str):
    """Of its own project; all others are rolled back."""
    refused = {make_small(site, kind, analysis_config=CONFIGS[kind]).project_id for kind in NO_OBJECTS}
    other = make_small(site, "other", analysis_config=CONFIG).project_id
    run(tools, Verb.MIGRATE)
    with site.engine.begin() as conn:
        sql(conn, f"update projects set analysis_config = {change}")
    before = look(site.engine)

    rehearsed = run(tools, Verb.ROLLBACK, dry_run=True)
    outcomes = run(tools, Verb.ROLLBACK, only=refused)

    assert look(site.engine) == before
    for number in refused:
        outcome = outcomes[number]
        assert (outcome.status, outcome.error_class) == (Status.FAILED, "RollbackRefusedError")
        assert outcome.differences == (f"analysis_config.{key}",)
        assert (rehearsed[number].status, rehearsed[number].error) == (outcome.status, outcome.error)
    all_others = run(tools, Verb.ROLLBACK)
    assert {number for number, one in all_others.items() if one.status is Status.ROLLED_BACK} == {other}


def test_a_key_of_ours_that_people_removed_does_not_stop_a_rollback(site: Site, tools: Tools):
    for kind in NO_OBJECTS:
        make_small(site, kind, analysis_config=CONFIGS[kind])
    before = look(site.engine, LABEL_TABLES)
    run(tools, Verb.MIGRATE)
    with site.engine.begin() as conn:
        sql(conn, "update projects set analysis_config = analysis_config - 'run_id'")

    assert statuses(run(tools, Verb.ROLLBACK)) == {Status.ROLLED_BACK}

    assert look(site.engine, LABEL_TABLES) == before


@pytest.mark.parametrize("theirs", ["null", "'null'", "'[\"theirs\"]'", "'3.50'"])
def test_an_analysis_config_that_people_replaced_as_a_whole_is_theirs(site: Site, tools: Tools, theirs: str):
    for kind, config in CONFIGS.items():
        make_small(site, kind, analysis_config=config)
    run(tools, Verb.MIGRATE)
    with site.engine.begin() as conn:
        sql(conn, f"update projects set analysis_config = cast({theirs} as jsonb)")
        expected = conn.execute(text(f"select cast(cast({theirs} as jsonb) as text)")).scalar_one()

    assert statuses(run(tools, Verb.ROLLBACK)) == {Status.ROLLED_BACK}

    assert [row["analysis_config"] for row in look(site.engine)["projects"]] == [expected] * len(CONFIGS)


def test_a_former_value_of_a_key_of_ours_comes_back_unless_a_person_changed_it(site: Site, tools: Tools):
    project = make(site, analysis_config=CONFIGS["our keys"])
    run_one(tools, Verb.MIGRATE, project.project_id)
    with site.engine.begin() as conn:
        sql(conn, """update projects set analysis_config = analysis_config || '{"dataset_id": "mine"}'""")

    run_one(tools, Verb.ROLLBACK, project.project_id)

    with site.engine.connect() as conn:
        found = conn.execute(text("select analysis_config from projects")).scalar_one()
    assert found == CONFIGS["our keys"] | {"dataset_id": "mine"}
