"""The dashboard: the file is what the list of panels makes, and a real Prometheus that scrapes a real run
answers each of its queries, and those of the alerts.
"""

import json
from pathlib import Path

from tests.deploy import dashboard
from tests.deploy.prometheus import prometheus
from tests.estate import make_project, record_session
from tests.support.exporter import serving
from tests.support.ledger_rows import make_run
from tests.support.runs import run_one, verify_datasets
from tests.support.sites import Site
from tests.support.waiting import eventually
from worker.jobs.tools import Tools
from worker.messages import Status, Verb

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "label-migrator.rules.yml"

_SCRAPES = "sum(count_over_time(label_migrator_stored_bytes[5m]))"


def test_the_file_is_what_the_list_of_panels_makes():
    assert dashboard.FILE.read_text(encoding="utf-8") == dashboard.text(), "python -m tests.deploy.dashboard"


def test_panels_have_places_of_their_own_and_say_what_they_show():
    panels = dashboard.document()["panels"]

    places = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["description"] for panel in panels if panel["type"] != "row")


def test_prometheus_answers_each_query_of_the_dashboard(site: Site, tools: Tools, tmp_path: Path):
    """After a migration and a verification, with a project that failed and a job that waits."""
    with site.engine.begin() as conn:
        made = [make_project(conn, site.legacy_root, name) for name in ("study", "lost")]
        for project in made:
            record_session(conn, project, "day", rows=50, seed=1)
    assert made[1].directory is not None
    made[1].directory.rename(site.legacy_root / "elsewhere")
    assert run_one(tools, Verb.MIGRATE, 1).status is Status.MIGRATED
    assert run_one(tools, Verb.MIGRATE, 2).status is Status.FAILED
    assert {one.status for one in verify_datasets(tools)} == {Status.VERIFIED}
    make_run(site.engine, [3], size_bytes=100)
    (tmp_path / "prometheus").mkdir()

    with (
        serving(site) as exporter,
        prometheus(exporter.url.split("/")[2], RULES, tmp_path / "prometheus") as server,
    ):
        # Rates want two scrapes.
        eventually(lambda: server.values(_SCRAPES).get("", 0) >= 2, "two scrapes")
        answers = {expression: server.values(expression) for _, expression in dashboard.expressions()}
        rules = server.ask("rules")["groups"][0]["rules"]

    print(json.dumps(answers, indent=1))
    assert len(answers) > 20
    assert [expression for expression, found in answers.items() if not found] == []
    assert {rule["health"] for rule in rules} == {"ok"}
