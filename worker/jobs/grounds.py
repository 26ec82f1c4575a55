"""What it takes to decide what a job would do: an attempt has it, and so has a question that no job asks."""

from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Engine

from worker.errors import RootLacksError
from worker.legacy.mounts import lack_of, lack_words
from worker.legacy.roots import Roots
from worker.messages import RunOptions


class Grounds(Protocol):
    """Rows, the roots that directories lie in, and what was asked for."""

    @property
    def engine(self) -> Engine:
        """The process's engine."""

    @property
    def roots(self) -> Roots:
        """Where projects may lie, and where they may not."""

    @property
    def options(self) -> RunOptions:
        """What the run is, or would be, asked for."""

    def check_root(self, path: str) -> None:
        """Raise `RootLacksError` if this machine, not the project, is at fault that nothing is at `path`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The grounds of one who only asks: changes nothing, remembers nothing."""

    engine: Engine
    roots: Roots
    options: RunOptions

    def check_root(self, path: str) -> None:
        """As an attempt does, of the machine that asks."""
        if (lack := lack_of(path, self.roots)) is not None:
            raise RootLacksError(lack_words(*lack), waits_for=lack[0])
