"""Calls of the command line on real servers.

`call` runs the program's `main` in this process, because a new one spends a second on imports; where a
process makes a difference (signals, encodings, an empty environment) there is one.
"""

import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from producer.cli.app import main
from tests.estate import make_project, record_session
from tests.producer.cli.calls import Call
from tests.support.sites import Site


@pytest.fixture
def call(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], _logging_as_it_was: None
) -> Call:
    """Call `producer` with the site's settings: `call("enqueue", "--wait", LEASE_S="2")`."""

    def call(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.chdir(site.folder)
            patch.setattr(sys, "argv", ["producer", *args])
            for name, value in {**site.env, **env}.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(args, int(ended.value.code or 0), out, err)

    return call


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    """Take back that the program sends all logging to its own standard error."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)


@pytest.fixture
def three_projects(site: Site) -> list[int]:
    """Three small legacy projects; their ids."""
    with site.engine.begin() as conn:
        projects = [make_project(conn, site.legacy_root, name) for name in ("one", "two", "three")]
        for number, project in enumerate(projects):
            record_session(conn, project, "s", seed=number, rows=20 + number)
    return [project.project_id for project in projects]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nothing listens, and nothing else can begin to."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
