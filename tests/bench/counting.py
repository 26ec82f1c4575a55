"""Counts the statements that a worker's process asks. Loaded by the bench's workers alone, where that is
wanted.
"""

import mmap
import os
from pathlib import Path
from typing import Any

from celery.signals import worker_process_init
from sqlalchemy import Engine, event

FOLDER = "BENCH_STATEMENTS"
"""The variable that names the folder where each process has its count, in a file named by its id."""

_BYTES = 8


@worker_process_init.connect  # type: ignore[untyped-decorator] # Celery's decorators are untyped
def _begin(**_arguments: Any) -> None:
    """In each child that does tasks, not in their parent, whose statements no job needs."""
    path = Path(os.environ[FOLDER], str(os.getpid()))
    path.write_bytes(bytes(_BYTES))
    with path.open("r+b") as file:
        # Shared, so that whoever reads the file sees the last statement without waiting for anything.
        count = memoryview(mmap.mmap(file.fileno(), _BYTES)).cast("Q")

    @event.listens_for(Engine, "before_cursor_execute")
    def _count(*_arguments: Any) -> None:
        count[0] += 1


def counted(folder: Path) -> int:
    """How many statements all processes have asked that have their count in this folder."""
    return sum(int.from_bytes(file.read_bytes(), "little") for file in folder.iterdir())
