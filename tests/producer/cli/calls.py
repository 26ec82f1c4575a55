"""What tests of the command line share: a call of the program, its words, and the runs that it left
behind.
"""

import os
import pty
import select
import subprocess
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, text

from tests.support.sites import Site
from tests.support.waiting import eventually

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
    programs = site.programs
    assert programs is not None
    keyboard, terminal = pty.openpty()
    operator = site.start_producer(*args, terminal=os.ttyname(terminal))
    os.write(keyboard, answer.encode())
    screen = bytearray()

    def has_ended() -> bool:
        # Asked before the rest is read: then nothing comes after that.
        ended = programs.ended(operator) is not None
        while select.select([keyboard], [], [], 0)[0]:
            screen.extend(os.read(keyboard, 4096))
        return ended

    eventually(has_ended, f"producer {' '.join(args)} ends")
    os.close(terminal)
    os.close(keyboard)
    return programs.await_end(operator, "it has ended"), screen.decode()
