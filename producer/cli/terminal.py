"""JSON for scripts on standard output, tables and progress for people on standard error."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from producer.cli.pace import ActiveSpeed, CurrentSpeed
from producer.cli.render import progress_words, speed_line, status_lines, watch_line
from producer.runs.status import RunStatus
from worker.db.overview import Progress
from worker.errors import UsageError

T = TypeVar("T")

_LINE_EVERY_S = 10.0
_SCREEN_EVERY_S = 1.0
_WIDTH_OF_FILES = 10_000


class Terminal:
    """Where output goes: with `as_json` standard output carries JSON alone; messages are on standard
    error.
    """

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.people = Console(stderr=True, soft_wrap=True, highlight=False)
        if not self.people.is_terminal:
            # In a file or a pipe nothing has to fit: a path stays on one line, whole.
            self.people.width = _WIDTH_OF_FILES

    @property
    def width(self) -> int:
        """So many characters a line has room for."""
        return self.people.width

    def document(self, value: Mapping[str, Any] | Sequence[Any]) -> None:
        """One JSON document on standard output, only when it was asked for."""
        if self.as_json:
            # In ASCII, so that no encoding of the terminal can refuse it when the work is done already.
            sys.stdout.write(json.dumps(value, indent=2) + "\n")

    def say(self, text: str) -> None:
        """A line for people; the text may carry rich's markup."""
        self.people.print(text)

    def table(self, table: Table) -> None:
        """A table for people."""
        self.people.print(table)

    def watch(self, look: Callable[[], RunStatus]) -> None:
        """Show a run until it has ended or is paused: one screen that stays fresh on a terminal, a line every
        ten seconds elsewhere; with `as_json` JSON Lines as often as these.
        """
        if self.people.is_terminal and not self.as_json:
            self._watch_on_screen(look)
        else:
            self._watch_by_lines(look)

    def _watch_on_screen(self, look: Callable[[], RunStatus]) -> None:
        speed = CurrentSpeed()
        with Live(console=self.people, auto_refresh=False) as screen:
            while True:
                status = look()
                lines = [*status_lines(status), speed_line(*speed.measure(status.progress))]
                screen.update(Group(*map(Text.from_markup, lines)), refresh=True)
                if not status.is_going:
                    return
                time.sleep(_SCREEN_EVERY_S)

    def _watch_by_lines(self, look: Callable[[], RunStatus]) -> None:
        speed = CurrentSpeed()
        while True:
            status = look()
            bytes_per_s, _ = speed.measure(status.progress)
            self.people.print(watch_line(status, bytes_per_s))
            if self.as_json:
                sys.stdout.write(json.dumps(status.to_json()) + "\n")
                sys.stdout.flush()
            ends = time.monotonic() + _LINE_EVERY_S
            while status.is_going and time.monotonic() < ends:
                time.sleep(_SCREEN_EVERY_S)
                status = look()
            if not status.is_going:
                break
        for line in status_lines(status):
            self.people.print(line)

    @contextmanager
    def line(self, words: Callable[[T], str]) -> Iterator[Callable[[T], None]]:
        """Show in `words` how far something is that is no run, and what it waits for: on a terminal one line
        that is gone at the end, a line every ten seconds elsewhere.
        """
        if not self.people.is_terminal:
            yield _now_and_then(self.people, words)
            return
        line = self.people.status("")

        def update(progress: T) -> None:
            # Not before there is something to say: a question may be asked first.
            line.update(words(progress))
            line.start()

        try:
            yield update
        finally:
            line.stop()

    @contextmanager
    def follow(self, what: str) -> Iterator[Callable[[Progress], None]]:
        """Show a run's progress: a bar on a terminal, a line every ten seconds elsewhere."""
        if self.people.is_terminal:
            with _bar(self.people, what) as update:
                yield update
        else:
            yield _lines(self.people, what)


def _now_and_then(console: Console, words: Callable[[T], str]) -> Callable[[T], None]:
    shown = time.monotonic()

    def update(progress: T) -> None:
        nonlocal shown
        if time.monotonic() - shown >= _LINE_EVERY_S:
            shown = time.monotonic()
            console.print(words(progress))

    return update


@contextmanager
def _bar(console: Console, what: str) -> Iterator[Callable[[Progress], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
    )
    speed = ActiveSpeed()
    with Bar(*columns, console=console, expand=True) as bar:
        task = bar.add_task(what, total=None, words="")

        def update(progress: Progress) -> None:
            # Bytes say more than projects, but a run of empty or invisible directories has none.
            known = progress.bytes_total > 0
            bar.update(
                task,
                total=progress.bytes_total if known else max(progress.jobs, 1),
                completed=progress.bytes_done if known else progress.ended,
                words=progress_words(progress, speed.measure(progress)),
            )

        yield update


def _lines(console: Console, what: str) -> Callable[[Progress], None]:
    speed = ActiveSpeed()
    shown = time.monotonic()

    def update(progress: Progress) -> None:
        nonlocal shown
        now, rate = time.monotonic(), speed.measure(progress)
        if now - shown >= _LINE_EVERY_S:
            shown = now
            console.print(f"{what}: {progress_words(progress, rate)}")

    return update


def confirm(question: str, *, needs_yes: bool = False) -> None:
    """Ask the person at the terminal; a call without one goes on, unless what it does `needs_yes`. Raises
    `UsageError` for anything but yes.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        if needs_yes:
            raise UsageError(f"{question} There is no terminal to ask at: say --yes")
        return
    try:
        confirmed = typer.confirm(question, err=True)
    except typer.Abort:
        confirmed = False
    if not confirmed:
        raise UsageError("Not confirmed: nothing was changed")
