"""What a worker's parent does beside its children: the reaper, and answers to the doctor. Knows Celery."""

from collections.abc import Sequence
from typing import Any

from celery import bootsteps
from celery.worker.control import inspect_command

from worker import settings as settings_module
from worker.doctor.checkup import Checkups
from worker.doctor.protocol import COMMAND
from worker.jobs.reaper import Reaper


class Reaping(bootsteps.StartStopStep):  # type: ignore[misc]
    """The reaper in each worker's parent process: starts and stops with it, whatever its children do.

    Not before the first children are there: they are to be forked while the parent has no other thread
    (`worker.runtime.fork_guard`).
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **arguments: Any) -> None:
        super().__init__(parent, **arguments)
        settings = settings_module.load()
        self._reaper = Reaper(settings)
        # Where the remote-control command below finds it.
        parent.checkups = Checkups(settings, lambda: {"reaper": self._reaper.check()})

    def start(self, _parent: Any) -> None:
        """Start its thread."""
        self._reaper.start()

    def stop(self, _parent: Any) -> None:
        """End its thread."""
        self._reaper.stop()


@inspect_command(name=COMMAND, args=[("token", str), ("step", str)], signature="TOKEN {examine|look|end}")
def examine(state: Any, token: str, step: str, marks: Sequence[str] = ()) -> dict[str, Any]:
    """Answer the doctor for this worker and its machine: at once, with what is known by now.

    Runs in the parent's event loop, so a worker whose children are all busy answers, too. Twice, or at once:
    one examination for each token.
    """
    parent = state.consumer.controller
    return parent.checkups.answer(token, step, marks, processes=parent.concurrency)  # type: ignore[no-any-return]
