"""Flower as people see it: closed to strangers, and each task named by its project, with what became of
it.
"""

import base64
import http.client
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome

from producer.local.stack import FLOWER_PASSWORD, run_flower
from tests.estate import make_project
from tests.support.sites import Site
from tests.support.slow_jobs import VERY_SLOW, big_study, enqueue, small_studies
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.slow

WORKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """Flower, its address with the password, and what it has to show."""

    url: str
    login_url: str
    big_id: int
    gone_id: int
    gone_path: str


@pytest.fixture
def watched(site: Site) -> Iterator[Watched]:
    """Give Flower with four workers: one at a project until the limit is lifted, the others done with a good
    and a missing one.
    """
    with run_flower(site.env, site.folder) as flower, site.workers(WORKERS):
        big_id = big_study(site, "Wrist study", 1, 2, 3)
        small_studies(site, 1)
        with site.engine.begin() as conn:
            gone = make_project(conn, site.legacy_root, "Lost in the move", path=f"{site.legacy_root}/gone")
        enqueue(site, *VERY_SLOW)
        password = (site.folder / FLOWER_PASSWORD).read_text()
        yield Watched(
            url=flower.url,
            login_url=flower.url.replace("://", f"://label:{password}@"),
            big_id=big_id,
            gone_id=gone.project_id,
            gone_path=gone.path or "",
        )


def asked(watched: Watched, method: str, path: str, *, password: str | None = None) -> tuple[int, str]:
    """Status and body that Flower answers, to the operator or to a caller without a password."""
    address = urlsplit(watched.url)
    headers = {}
    if password is not None:
        headers["Authorization"] = f"Basic {base64.b64encode(f'label:{password}'.encode()).decode()}"
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def rows(browser: Chrome, table: str) -> list[list[str]]:
    """The cells of a page's table as they are read."""
    found: list[list[str]] = browser.execute_script(
        """
        return [...document.querySelectorAll(arguments[0] + ' tbody tr')]
          .map(row => [...row.cells].map(cell => cell.innerText.trim()));
        """,
        table,
    )
    return found


def task_rows(browser: Chrome, watched: Watched) -> dict[str, list[str]]:
    browser.get(f"{watched.url}/tasks")
    eventually(lambda: len(rows(browser, "#tasks-table")) >= 1, "the table is filled")
    return {row[0]: row for row in rows(browser, "#tasks-table")}


def state_of(browser: Chrome, watched: Watched, begin: str) -> str:
    found = {name: row for name, row in task_rows(browser, watched).items() if name.startswith(begin)}
    return next(iter(found.values()))[1] if found else ""


def is_seen(browser: Chrome, reason: str) -> bool:
    """Is the whole of a failed task's reason within the window of a small laptop, without scrolling?"""
    seen: bool = browser.execute_script(
        """
        const cell = [...document.querySelectorAll('#tasks-table td')].find(one => one.innerText.trim() === arguments[0]);
        const words = document.createRange();
        words.selectNodeContents(cell);
        return words.getBoundingClientRect().right <= document.querySelector('.dataTables_scroll').getBoundingClientRect().right;
        """,
        reason,
    )
    return seen


def test_a_stranger_is_refused_and_the_operator_sees_every_project_by_name(
    browser: Chrome, watched: Watched, site: Site
):
    pages = ("/", "/tasks", "/workers", "/api/tasks")
    assert {asked(watched, "GET", page)[0] for page in pages} == {http.HTTPStatus.UNAUTHORIZED}

    browser.get(watched.login_url)
    eventually(
        lambda: len([row for row in rows(browser, "table") if "Online" in " ".join(row)]) == WORKERS,
        "four workers are online",
    )
    big = f"project {watched.big_id} · Wrist study"
    eventually(lambda: state_of(browser, watched, big) == "PROGRESS", "a long task shows progress")
    assert site.run_producer("throttle").returncode == 0
    eventually(lambda: state_of(browser, watched, big) == "SUCCESS", "it ends")

    seen = task_rows(browser, watched)
    (done,) = [row for name, row in seen.items() if name.startswith(big)]
    (lost,) = [row for name, row in seen.items() if name.startswith(f"project {watched.gone_id} · ")]
    assert done[0] == f"{big} · 28.3 MB"
    assert done[3].startswith("migrated: 3 sessions, 28.3 MB stored (")
    assert lost[1] == "FAILURE"
    begin, end = lost[2].split("…")
    assert begin.startswith("Directory does not exist: /")
    assert watched.gone_path.endswith(end)
    assert is_seen(browser, lost[2])
    assert {row[1] for row in seen.values()} == {"SUCCESS", "FAILURE"}


def test_what_prometheus_asks_for_is_there_and_nothing_can_be_done_to_a_task(watched: Watched):
    eventually(lambda: "flower_worker_online{" in asked(watched, "GET", "/metrics")[1], "Flower counts")

    status, _ = asked(watched, "POST", "/api/task/revoke/none", password=urlsplit(watched.login_url).password)

    assert status == http.HTTPStatus.FORBIDDEN
