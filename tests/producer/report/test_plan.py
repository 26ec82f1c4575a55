"""The plan at the end of a migration's report: the decision of a dry run, and a real run beside its
forecast.
"""

from datetime import timedelta
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from rich.text import Text

from producer.cli.plan_lines import plan_lines
from producer.report import document as report
from producer.report import html
from producer.report.plan_words import headline, rows
from tests.support.reports import BEGIN, HOSTILE, failed, migrated, run_facts, skipped
from worker.messages import ByteCounts, DiskBytes, FileCounts, Outcome, RunState, Status, Warning_

CONDITIONS = {
    "at": "2026-03-07T13:02:00.000000+00:00",
    "room": 10**9,
    "free": [{"path": "/srv", "holds": ["store"], "free": 2 * 10**9}],
    "not_seen": [],
    "may_share": False,
    "workers": 2,
    "paces": [],
    "limit_bytes_per_second": None,
}


def ready(project_id: int, *, stored: int = 0, reused: int = 0, **changes: Any) -> Outcome:
    """A project that would be migrated."""
    return migrated(
        project_id,
        stored=stored,
        reused=reused,
        **{
            "status": Status.WOULD_MIGRATE,
            "disk": DiskBytes(legacy=stored + reused),
            "dataset_id": None,
            **changes,
        },
    )


def plan_of(outcomes: list[Outcome], *, dry_run: bool = True, **facts: Any) -> dict[str, Any]:
    """The plan of a report, which obeys the schema."""
    selection = {"conditions": CONDITIONS, **facts.pop("selection", {})}
    made = report.build(run_facts(dry_run=dry_run, selection=selection, **facts), outcomes)
    Draft202012Validator(report.schema_document()).validate(made)
    plan: dict[str, Any] = made["plan"]
    return plan


def words_of(plan: dict[str, Any], width: int = 10_000) -> list[str]:
    return [Text.from_markup(line).plain for line in plan_lines(plan, width)]


ESTATE = [
    ready(1, digest="a" * 64, stored=1_000),
    ready(2, digest="a" * 64, reused=1_000, dataset_created=False),
    ready(3, digest="b" * 64, reused=500, dataset_created=False, dataset_id=77),
    failed(4),
    ready(5, digest="c" * 64, stored=300, warnings=(Warning_(message="no rows", session="s"),)),
]


def test_a_dry_run_ends_with_what_it_found_and_the_command_to_press():
    plan = plan_of(ESTATE)

    assert plan["decision"] == "partly"
    assert plan["forecast"]["projects"] == {"ready": 4, "blocked": 1, "unknown": 0}
    assert plan["forecast"]["bytes"]["stored"] == {"low": 1_300, "likely": 1_300, "high": 1_300}
    assert plan["forecast"]["bytes"]["freed"] == {"low": 2_800, "likely": 2_800, "high": 2_800}
    assert [one["of"] for one in plan["duplicates"]["groups"]] == [
        {"subject": "project", "id": 1, "name": "Project 1"},
        {"subject": "dataset", "id": 77, "name": None},
    ]
    assert plan["blocked"][0]["project_ids"] == [4]
    assert plan["warnings"] == {
        "projects": 1,
        "first": [{"project_id": 5, "project_name": "Project 5", "message": "no rows"}],
    }
    assert plan["command"] == "producer enqueue --exclude 4 --wait"
    words = words_of(plan)
    assert words[1] == "Ready: 4 projects; 1 is blocked and stays as it is"
    assert words[-1].split(maxsplit=1) == ["press", "producer enqueue --exclude 4 --wait"]


def test_each_directory_is_freed_once_whatever_projects_it_has():
    plan = plan_of(
        [ready(n, stored=100 * (n == 1), reused=100 * (n > 1), original_path="/srv/one") for n in (1, 2)]
    )

    assert plan["forecast"]["bytes"]["freed"] == {"low": 100, "likely": 100, "high": 100}


@pytest.mark.parametrize(
    ("options", "blocked", "command"),
    [
        ({}, 0, "producer enqueue --wait"),
        ({"exclude": [9, 8]}, 1, "producer enqueue --exclude 4 --exclude 8 --exclude 9 --wait"),
        ({"project_ids": [1, 2, 4]}, 1, "producer enqueue --project-id 1 --project-id 2 --wait"),
        ({"limit": 3, "include_failed": True}, 1, "producer enqueue --limit 3 --include-failed --wait"),
        (
            {"waves": ["1", "100%"], "gate": "verify"},
            1,
            "producer enqueue --exclude 4 --waves 1,100% --gate verify --wait",
        ),
        ({"waves": ["1", "2"], "gate": "none"}, 1, "producer enqueue --waves 1,2 --gate none --wait"),
        ({"rehash": True}, 0, "producer enqueue --rehash --wait"),
        ({}, 11, "producer enqueue --wait"),
        ({"project_ids": list(range(1, 60))}, 0, None),
    ],
)
def test_the_command_does_what_was_rehearsed(options: dict[str, Any], blocked: int, command: str | None):
    outcomes = [ready(1, stored=5), *(failed(4 + number) for number in range(blocked))]

    plan = plan_of(outcomes, selection={"options": options})

    assert plan["command"] == command


def test_the_command_keeps_the_limit_on_the_reading():
    limited = {**CONDITIONS, "limit_bytes_per_second": 5_000_000}

    plan = plan_of([ready(1, stored=10**8)], selection={"conditions": limited})

    assert plan["command"] == "producer enqueue --limit-bytes-per-second 5000000 --wait"
    assert plan["forecast"]["seconds"]["low"] >= 20


def test_a_store_without_room_is_no_yes():
    plan = plan_of([ready(1, stored=2 * 10**9)])

    assert plan["decision"] == "no_room"
    assert headline(plan) == "Not yet: 1 project ready, but the store has no room for it"
    assert any("does not fit: the store had room for 1 GB" in line for line in words_of(plan))
    assert "make room first" in words_of(plan)[-1]


def test_room_that_is_not_to_be_seen_is_not_called_enough():
    hidden = {**CONDITIONS, "room": None, "free": [], "not_seen": ["store /srv/label"], "may_share": True}

    plan = plan_of([ready(1, stored=10)], selection={"conditions": hidden})

    words = " ".join(words_of(plan))
    assert "whether it fits is not known" in words
    assert "not to be seen from here: store /srv/label" in words
    assert "fits:" not in words


@pytest.mark.parametrize(
    "facts", [{"interim": "the time is over"}, {"state": RunState.CANCELLED}, {"state": RunState.PAUSED}]
)
def test_what_was_not_rehearsed_is_not_ready(facts: dict[str, Any]):
    plan = plan_of([ready(1, stored=5)], **facts)

    assert (plan["decision"], plan["command"], plan["is_complete"]) == ("incomplete", None, False)
    assert headline(plan).startswith("Not decided")


def test_nothing_that_is_ready_is_nothing_to_press():
    plan = plan_of([failed(1), skipped(2)])

    assert (plan["decision"], plan["command"]) == ("nothing", None)
    assert words_of(plan)[-1].split(maxsplit=1)[1].startswith("nothing; repair what is blocked")


def test_the_time_is_by_the_dry_runs_jobs_or_by_earlier_migrations():
    later = BEGIN + timedelta(seconds=2)
    jobs = [ready(n, digest=f"{n:064}", stored=10**6, finished_at=later) for n in range(1, 5)]
    earlier = {
        "dry_run": False,
        "jobs": 40,
        "work": 40 * 10**6,
        "seconds": 400.0,
        "work_squared": 40.0 * 10**12,
        "work_seconds": 4e9,
        "busy_s": 200.0,
        "workers": 2,
    }

    first = plan_of(jobs)["forecast"]
    second = plan_of(jobs, selection={"conditions": {**CONDITIONS, "paces": [earlier]}})["forecast"]

    assert (first["seconds_from"], second["seconds_from"]) == ("dry_run", "migrations")
    assert second["seconds"]["likely"] == pytest.approx(20)


def test_names_from_people_neither_style_the_terminal_nor_the_page():
    for name in HOSTILE:
        outcomes = [
            ready(1, stored=10, project_name=name, warnings=(Warning_(message=f"[red]{name}"),)),
            ready(2, reused=10, dataset_created=False),
        ]
        made = report.build(run_facts(dry_run=True, selection={"conditions": CONDITIONS}), outcomes)

        page, words = html.render(made), "\n".join(words_of(made["plan"]))

        assert "<script>alert" not in page
        assert "[red]" in words


def test_a_plan_fits_eighty_columns_but_for_its_command():
    narrow = words_of(plan_of(ESTATE), 80)

    assert max(len(line) for line in narrow) <= 80
    assert narrow[-1].endswith("producer enqueue --exclude 4 --wait")


# The real run -----------------------------------------------------------------------------------------------


def forecast_of(outcomes: list[Outcome]) -> dict[str, Any]:
    forecast: dict[str, Any] = plan_of(outcomes)["forecast"]
    return forecast


def test_a_real_run_says_how_far_off_its_forecast_was():
    forecast = forecast_of([ready(1, stored=1_000), ready(2, digest="b" * 64, stored=500)])
    outcomes = [migrated(1, stored=1_000), failed(2)]

    plan = plan_of(outcomes, dry_run=False, selection={"forecast": forecast})

    assert plan["became"]["projects"] == 1
    assert plan["off"] == {
        "projects": -1,
        "stored": -500,
        "stored_in_band": False,
        "seconds": pytest.approx(2.0 - forecast["seconds"]["likely"]),
        "seconds_in_band": True,
    }
    assert any("1; forecast 2: 1 less than forecast" in line for line in words_of(plan))


def test_time_is_the_time_in_which_jobs_ran_pauses_left_out():
    forecast = forecast_of([ready(1, stored=10)])
    hour = timedelta(hours=1)
    late = migrated(
        2, stored=1, digest="b" * 64, started_at=BEGIN + hour, finished_at=BEGIN + hour + timedelta(seconds=3)
    )

    plan = plan_of([migrated(1, stored=10), late], dry_run=False, selection={"forecast": forecast})

    assert plan["became"]["seconds"] == 5.0


def test_a_run_that_has_not_done_all_is_not_compared():
    forecast = forecast_of([ready(1, stored=10)])

    plan = plan_of([], dry_run=False, selection={"forecast": forecast}, interim="the run is paused")

    assert plan["off"] is None
    assert "nothing is compared yet" in words_of(plan)[-1]


def test_a_run_for_which_nothing_was_forecast_has_no_plan_and_its_page_none_either():
    made = report.build(run_facts(selection={}), [migrated(1, stored=10)])

    assert made["plan"] is None
    assert 'id="h-plan"' not in html.render(made)


def test_an_estimate_is_called_one_wherever_it_is_shown():
    forecast = forecast_of([ready(1, stored=10)]) | {
        "basis": "sample",
        "run_id": None,
        "notes": ["an estimate: x"],
    }

    made = report.build(run_facts(selection={"forecast": forecast}), [migrated(1, stored=10)])

    assert "An estimate by a sample of heads" in words_of(made["plan"])[1]
    assert "An estimate by a sample of heads" in html.render(made)
    assert "projects" not in words_of(made["plan"])[2].split()[0]


def test_every_row_of_the_plan_is_on_the_page():
    made = report.build(run_facts(dry_run=True, selection={"conditions": CONDITIONS}), ESTATE)

    page = html.render(made)

    for row in rows(made["plan"]):
        assert f"<dt>{row.label.capitalize()}</dt>" in page
    assert "<code>producer enqueue --exclude 4 --wait</code>" in page


def test_bytes_of_a_project_whose_files_are_partly_shared_are_counted_once():
    mixed = ready(
        6,
        digest="d" * 64,
        files=FileCounts(stored=1, reused=1),
        dataset_created=True,
        bytes=ByteCounts(stored=70, reused=30),
    )

    plan = plan_of([mixed])

    assert plan["forecast"]["bytes"]["stored"]["likely"] == 70
    assert plan["forecast"]["bytes"]["read"] == 100
    assert plan["duplicates"]["projects"] == 0
