"""A process of ours that kills itself before one of its statements, with connections of its own."""

import os
import signal
from collections.abc import Callable
from itertools import count

from sqlalchemy import Engine, event

from tests.support.sites import Site
from tests.support.tiers import some_or_all
from worker.db.engine import connect

EVERY_THIRD_OR_ALL = some_or_all(3, 1)
"""At which statements a test lets processes die: in the default suite, and in the long one."""


def done_until(site: Site, work: Callable[[Engine], object], at: int) -> bool:
    """Let a process work and kill itself before its statement or commit of this number; did it come to the
    end?
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            engine = connect(site.settings.sqlalchemy_url, application_name="dying")
            numbers = count(1)

            def tick(*_arguments: object) -> None:
                if next(numbers) == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            event.listen(engine, "before_cursor_execute", tick)
            event.listen(engine, "commit", tick)
            work(engine)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0
    return True
