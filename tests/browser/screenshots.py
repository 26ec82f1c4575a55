"""`python -m tests.browser.screenshots FOLDER`: the pictures of the documents, of the demo's estate on a
local stack.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from selenium.webdriver import Chrome

from producer.demo import projects
from producer.local.stack import (
    FLOWER_PASSWORD,
    Stack,
    run_workers,
    stack,
)
from tests.browser.chromium import browser, prefer, resize
from tests.support.waiting import eventually
from worker.db import schema
from worker.db.engine import connect
from worker.settings import Settings

WORKERS = 4
DESKTOP = (1280, 860)
WIDE = (1680, 900)
PHONE = (390, 844)

_MEGABYTES = 120
_SLOWLY = "6M"
"""So that tasks are seen at work."""
_WITHIN_S = 60


def main(folder: Path) -> int:
    """Migrate the demo's estate with four workers, and take every picture on the way."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="l-") as work,
        stack(Path(work, ".state"), data_dir=Path(work, "lab"), flower=True) as running,
        run_workers({**running.env, "BWLIMIT": _SLOWLY}, WORKERS, concurrency=1, log_folder=running.state),
        browser() as window,
    ):
        _build(running)
        _producer(running, "enqueue")
        _watch(window, running, folder)
        _producer(running, "collect", "--report-dir", work)
        (report,) = Path(work).glob("migration_report_*.html")
        _show_report(window, report, folder)
    return 0


def _build(running: Stack) -> None:
    settings = Settings(
        **{name.lower(): value for name, value in running.env.items() if name.endswith(("_URL", "_DIR"))}
    )  # type: ignore[arg-type]
    engine = connect(settings.sqlalchemy_url, application_name="screenshots")
    try:
        schema.apply(engine, with_baseline=True)
        projects.build(engine, running.data_dir, megabytes=_MEGABYTES, say=lambda _line: None)
    finally:
        engine.dispose()


def _producer(running: Stack, *arguments: str) -> None:
    """Run one command of the program; that projects fail is part of the picture."""
    done = subprocess.run(
        [sys.executable, "-m", "producer", *arguments], env=running.env, capture_output=True, check=False
    )
    if done.returncode not in {0, 3}:
        raise RuntimeError(done.stderr.decode())


def _watch(window: Chrome, running: Stack, folder: Path) -> None:
    password = (running.state / FLOWER_PASSWORD).read_text()
    resize(window, *WIDE)
    window.get(str(running.flower_url).replace("://", f"://label:{password}@"))
    eventually(
        lambda: window.execute_script("return document.body.innerText").count("Online") >= WORKERS,
        "all workers are online",
        within_s=_WITHIN_S,
    )
    _take(window, folder / "flower-workers.png")

    def shows_all_states() -> bool:
        window.get(f"{running.flower_url}/tasks")
        eventually(
            lambda: (
                window.execute_script("return document.querySelectorAll('#tasks-table tbody tr').length") > 1
            ),
            "the table is filled",
            within_s=_WITHIN_S,
        )
        text: str = window.execute_script("return document.getElementById('tasks-table').innerText")
        return all(state in text for state in ("PROGRESS", "SUCCESS", "FAILURE"))

    eventually(shows_all_states, "tasks of every state are shown", within_s=_WITHIN_S)
    _take(window, folder / "flower-tasks.png")


def _show_report(window: Chrome, report: Path, folder: Path) -> None:
    window.get(report.as_uri())
    for name, size, scheme in (
        ("report-light", DESKTOP, "light"),
        ("report-dark", DESKTOP, "dark"),
        ("report-phone", PHONE, "light"),
    ):
        resize(window, *size, is_phone=size == PHONE)
        prefer(window, scheme)
        _take(window, folder / f"{name}.png")


def _take(window: Chrome, path: Path) -> None:
    path.write_bytes(window.get_screenshot_as_png())
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python -m tests.browser.screenshots FOLDER")
    sys.exit(main(Path(sys.argv[1])))
