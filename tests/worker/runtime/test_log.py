"""Logs: one line an event with its fields, in one form whoever logs, and never an error for what they say."""

import json
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from worker.runtime import log


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Give the process its loggers back as they were."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was written to standard error, and that nothing went to standard output."""
    written = capsys.readouterr()
    assert written.out == ""
    return [json.loads(line) for line in written.err.splitlines()]


def test_an_event_is_one_line_of_json_with_its_fields(capsys: pytest.CaptureFixture[str]):
    log.configure(log_format="json", level="info")

    log.get("room").info("job_ended", project=7, seconds=0.5, name="größe\nnext line")

    (line,) = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "job_ended",
        "level": "info",
        "project": 7,
        "seconds": 0.5,
        "name": "größe\nnext line",
    }


def test_other_libraries_lines_have_the_same_form(capsys: pytest.CaptureFixture[str]):
    log.configure(log_format="json", level="info")

    with log.bound(run="r"):
        logging.getLogger("celery.worker").warning("lost %s of %d", "connection", 5)

    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["run"]) == ("lost connection of 5", "warning", "r")
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_an_event_below_the_log_level_is_not_written(
    capsys: pytest.CaptureFixture[str], level: str, shown: list[str]
):
    log.configure(log_format="json", level=level)
    ours, theirs = log.get("room"), logging.getLogger("library")

    for name in ("debug", "info", "warning", "error"):
        getattr(ours, name)(name)
        getattr(theirs, name)(name)

    assert [line["event"] for line in lines(capsys)] == [name for name in shown for _ in range(2)]


def test_bound_fields_are_on_every_line_of_the_block_and_of_no_other(capsys: pytest.CaptureFixture[str]):
    log.configure(log_format="json", level="info")
    logger = log.get("room")

    with log.bound(run="r", project=7):
        logger.info("one")
        with log.bound(attempt=2):
            logger.info("two", project=8)
        logger.info("three")
    logger.info("four")

    fields = [{key: line.get(key) for key in ("run", "project", "attempt")} for line in lines(capsys)]
    assert fields == [
        {"run": "r", "project": 7, "attempt": None},
        {"run": "r", "project": 8, "attempt": 2},
        {"run": "r", "project": 7, "attempt": None},
        {"run": None, "project": None, "attempt": None},
    ]


def test_bound_fields_are_gone_after_an_error(capsys: pytest.CaptureFixture[str]):
    log.configure(log_format="json", level="info")

    with pytest.raises(ZeroDivisionError), log.bound(run="r"):
        raise ZeroDivisionError
    log.get("room").info("after")

    assert "run" not in lines(capsys)[0]


def test_bound_fields_are_those_of_their_thread(capsys: pytest.CaptureFixture[str]):
    log.configure(log_format="json", level="info")

    with log.bound(project=7):
        thread = threading.Thread(target=lambda: log.get("room").info("elsewhere"))
        thread.start()
        thread.join()

    assert "project" not in lines(capsys)[0]


def test_a_traceback_is_part_of_its_log_line(capsys: pytest.CaptureFixture[str]):
    log.configure(log_format="json", level="info")

    for logger in (log.get("room"), logging.getLogger("library")):
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            logger.exception("unexpected_error")

    for line in lines(capsys):
        assert line["level"] == "error"
        assert "ZeroDivisionError: division by zero" in line["exception"]
        assert "Traceback" in line["exception"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_name_that_is_not_utf_8_is_written_readably(capfd: pytest.CaptureFixture[str], log_format: Any):
    log.configure(log_format=log_format, level="info")
    name = os.fsdecode(b"caf\xe9")

    log.get("room").info("seen", file=name)
    logging.getLogger("library").info("seen %s", name)

    written = capfd.readouterr().err
    assert written.count("udce9") + written.count("xe9") == 2
    assert "Logging error" not in written


def test_any_value_can_be_logged(capsys: pytest.CaptureFixture[str]):
    log.configure(log_format="json", level="info")

    log.get("room").info(
        "seen",
        path=Path("/a"),
        error=ValueError("bad"),
        names=["a", 1],
        where={"a": Path("/b")},
    )

    (line,) = lines(capsys)
    assert (line["path"], line["error"], line["where"]) == ("/a", "bad", {"a": "/b"})


def test_the_console_log_is_readable_for_people(capsys: pytest.CaptureFixture[str]):
    log.configure(log_format="console", level="info")

    log.get("room").warning("lease_lost", project=7)

    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert "lease_lost" in written
    assert "project=7" in written
    assert "\x1b" not in written  # no colours where nobody looks


def test_configuring_again_does_not_write_twice(capsys: pytest.CaptureFixture[str]):
    log.configure(log_format="console", level="info")
    log.configure(log_format="json", level="info")

    logging.getLogger("library").info("once")

    assert len(lines(capsys)) == 1
