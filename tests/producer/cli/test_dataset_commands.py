"""What the verbs about datasets print, for people and for scripts, and what they say to a wrong call."""

import json
import re
from typing import Any

import pytest
from sqlalchemy import text

from tests.estate import make_dataset
from tests.producer.cli.calls import Call, lines
from tests.support.runs import migrate_all, run_one, tools_of, verify_datasets
from tests.support.sites import Site
from tests.support.studies import plain_study
from worker.jobs.tools import Tools
from worker.messages import Outcome, Verb


def three_of_two(site: Site, tools: Tools) -> list[Outcome]:
    """Three migrated projects: two that are equal, and one that shares one of its two sessions with them."""
    for name, seeds in (("one", (1, 2)), ("two", (1, 2)), ("three", (2, 3))):
        plain_study(site, name, *seeds)
    return migrate_all(site, tools)


def say(call: Call, *words: str) -> Any:
    """What a call prints for scripts; it must be well."""
    done = call(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_list_counts_projects_sessions_and_legacy_directories(
    site: Site, call: Call, capsys: pytest.CaptureFixture[str]
):
    with tools_of(site) as tools:
        one, two, three = three_of_two(site, tools)
        verify_datasets(tools, only=[one.dataset_id or 0])
        run_one(tools, Verb.RECLAIM, two.project_id or 0)
        run_one(tools, Verb.RECLAIM, three.project_id or 0)
    capsys.readouterr()  # what the jobs logged

    first, second = say(call, "datasets", "list")

    assert first["dataset_id"] == one.dataset_id
    assert (first["sessions"], first["projects"]) == (2, 2)
    assert first["legacy_directories"] == {"in_place": 1, "moved_away": 1, "purged": 0}
    assert second["legacy_directories"] == {"in_place": 0, "moved_away": 1, "purged": 0}
    assert (first["verified_at"] is None, second["verified_at"] is None) == (False, True)
    (heading, row, _, summary) = lines(call("datasets", "list"))
    assert heading.split() == ["id", "hash", "size", "sessions", "projects", "verified", "name", "legacy"]
    assert one.dataset_hash[:12] in row
    assert "1 in place, 1 moved away" in row
    assert summary.startswith("2 datasets, ")
    assert summary.endswith(", 1 not read in full since stored")


def test_the_list_keeps_what_is_asked_for_in_the_order_that_is_asked_for(site: Site, call: Call):
    with tools_of(site) as tools:
        one, _, three = three_of_two(site, tools)
        verify_datasets(tools, only=[one.dataset_id or 0])
        run_one(tools, Verb.ROLLBACK, three.project_id or 0)
    with site.engine.begin() as conn:
        by_label = make_dataset(conn, site.legacy_root, "e" * 64)

    def ids(*words: str) -> list[int]:
        return [found["dataset_id"] for found in say(call, "datasets", "list", *words)]

    stored = [one.dataset_id, three.dataset_id]
    assert ids("--sort", "size", "--limit", "2", "--reverse")[0] == by_label
    assert ids("--unreferenced") == [three.dataset_id, by_label]
    assert ids("--not-verified", "1") == [three.dataset_id, by_label]
    assert ids("--not-verified", "0") == [*stored, by_label]
    assert ids("--project-id", str(one.project_id)) == [one.dataset_id]
    assert ids("--project-id", str(three.project_id)) == []
    assert ids("--sort", "projects") == [*stored, by_label]
    assert ids("--limit", "1") == [one.dataset_id]


def test_a_dataset_is_shown_with_what_is_its_own_and_who_stored_it(site: Site, call: Call):
    with tools_of(site) as tools:
        one, two, three = three_of_two(site, tools)

    seen = say(call, "datasets", "show", str(one.dataset_id))

    assert [(of["project_id"], of["stored"], of["legacy"]) for of in seen["project_list"]] == [
        (one.project_id, True, "in_place"),
        (two.project_id, False, "in_place"),
    ]
    assert [(of["session_name"], of["readers"]) for of in seen["session_list"]] == [
        ("day 1", 2),
        ("day 2", 2),
    ]
    content = seen["content"]
    assert content["blobs"] == 2
    assert 0 < content["own_bytes"] < content["size_bytes"] == seen["size_bytes"]
    assert content["shared_with"] == [three.dataset_id]
    assert seen["gc"]["references"] == ["projects", "sessions", "rollbacks", "paths"]
    words = "\n".join(lines(call("datasets", "show", str(one.dataset_id))))
    assert f"hash      {one.dataset_hash}" in words
    assert f"stored    by project {one.project_id}, " in words
    assert f"shared with dataset {three.dataset_id}" in words
    assert "gc        leaves it, needed by: projects, sessions, " in words


def test_an_unreferenced_dataset_says_since_when_and_what_gc_does(site: Site, call: Call):
    with tools_of(site) as tools:
        *_, three = three_of_two(site, tools)
        run_one(tools, Verb.ROLLBACK, three.project_id or 0)
    show = ("datasets", "show", str(three.dataset_id))

    assert "leaves it until the grace time is over" in call(*show).stderr
    with site.engine.begin() as conn:
        conn.execute(
            text("update project_conversions set rolled_back_at = rolled_back_at - interval '2 days'")
        )

    assert "would put it into quarantine: nothing has referred to it since" in call(*show).stderr
    assert say(call, *show)["gc"]["is_due"] is True


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_list_fits_a_terminal(site: Site, call: Call, columns: str):
    with tools_of(site) as tools:
        plain_study(site, "N" * 200, 1)
        migrate_all(site, tools)

    shown = call("datasets", "list", FORCE_COLOR="1", COLUMNS=columns).stderr

    words = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert words.count("N") == 200
    assert max(map(len, words.splitlines())) <= int(columns)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("datasets", "show", "99"), "There is no dataset 99. See all: producer datasets list"),
        (("datasets", "list", "--project-id", "99"), "There is no project 99"),
        (("datasets", "list", "--sort", "colour"), "'colour' is not one of"),
        (("datasets", "list", "--not-verified", "many"), "Invalid value for '--not-verified'"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_with_it(call: Call, words: tuple[str, ...], expected: str):
    done = call(*words)

    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
