"""What tests of the command line share: a call of the program, its words, and the runs that it left
behind.
"""

import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, text

from tests.support.sites import Site
from tests.support.waiting import PATIENCE_S

Call = Callable[..., subprocess.CompletedProcess[str]]
"""`call("enqueue", "--wait", LEASE_S="2")`: the fixture of that name."""

PASSWORD = "hunter2secret"  # noqa: S105 - what must not be seen again


def runs(engine: Engine) -> list[Any]:
    """State and number of jobs of every run."""
    with engine.connect() as conn:
        query = text("""
            select state, (select count(*) from migration_jobs j where j.run_id = r.run_id) as jobs
            from migration_runs r order by created_at""")
        return [tuple(row) for row in conn.execute(query)]


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a person reads; nothing may be on standard output but JSON that was asked for."""
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


def at_a_terminal(site: Site, answer: str, *args: str) -> tuple[int, str]:
    """Call `producer` as a person does who is asked and answers; exit code and what was on the screen."""
    keyboard, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "producer", *args],
        cwd=site.folder,
        env=site.env,
        stdin=terminal,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    ) as operator:
        os.close(terminal)
        os.write(keyboard, answer.encode())
        screen = b""
        # Linux says EIO when the last process has closed the other end.
        with contextlib.suppress(OSError):
            while part := os.read(keyboard, 4096):
                screen += part
        operator.wait(PATIENCE_S)
    os.close(keyboard)
    return operator.returncode, screen.decode()
