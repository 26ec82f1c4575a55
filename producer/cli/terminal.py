"""How the program speaks: JSON for machines on standard output, tables and progress for people on standard error."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from producer.cli.render import escape, status_lines
from producer.runs.survey import Listing
from worker.db.overview import Progress
from worker.errors import UsageError
from worker.messages import RunState
from worker.units import human_bytes, human_duration

_LINE_EVERY_S = 10.0
_SCREEN_EVERY_S = 1.0
_SLOW_S = 3.0
"""A directory that takes longer to list is named: its mount may hang."""
_GOING = {RunState.PLANNED, RunState.RUNNING}
_WIDTH_OF_FILES = 10_000


class Terminal:
    """Where words go. With `as_json` people still read standard error, and standard output carries JSON alone."""

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

    def watch(self, look: Callable[[], Mapping[str, Any]]) -> None:
        """Show a run until it has ended or is held: one screen that stays fresh on a terminal, a line every ten seconds
        elsewhere; with `as_json` JSON Lines as often as these.
        """
        speed = _Speed()
        if self.people.is_terminal and not self.as_json:
            with Live(console=self.people, auto_refresh=False) as screen:
                while True:
                    status = look()
                    lines = [*status_lines(status), *speed.lines(status)]
                    screen.update(Group(*map(Text.from_markup, lines)), refresh=True)
                    if status["state"] not in _GOING:
                        return
                    time.sleep(_SCREEN_EVERY_S)
        while True:
            status = look()
            self.people.print(_watch_line(status, speed))
            if self.as_json:
                sys.stdout.write(json.dumps(status) + "\n")
                sys.stdout.flush()
            ends = time.monotonic() + _LINE_EVERY_S
            while status["state"] in _GOING and time.monotonic() < ends:
                time.sleep(_SCREEN_EVERY_S)
                status = look()
            if status["state"] not in _GOING:
                break
        for line in status_lines(status):
            self.people.print(line)

    @contextmanager
    def listing(self) -> Iterator[Callable[[Listing], None]]:
        """Show how far the listing of directories is, and what it waits for: on a terminal one line that is gone at the end, a
        line every ten seconds elsewhere.
        """
        if not self.people.is_terminal:
            yield _listing_lines(self.people)
            return
        line = self.people.status("")

        def update(listing: Listing) -> None:
            # Not before there is something to say: a question may be asked first.
            line.update(_listing_words(listing))
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


class _Speed:
    """How fast a run is right now, from one look to the next: the average over the last ten seconds."""

    def __init__(self) -> None:
        self._looks: list[tuple[float, int, int]] = []

    def lines(self, status: Mapping[str, Any]) -> Iterator[str]:
        """A line, once two looks are there."""
        bytes_per_s, files_per_s = self.measure(status)
        yield f"[dim]now: {human_bytes(bytes_per_s)}/s, {files_per_s:,.0f} files/s[/]"

    def measure(self, status: Mapping[str, Any]) -> tuple[float, float]:
        """Bytes and files a second; zeros at the first look."""
        now = time.monotonic()
        self._looks.append((now, status["bytes"]["done"], status["files_done"]))
        while now - self._looks[0][0] > _LINE_EVERY_S and len(self._looks) > 2:
            self._looks.pop(0)
        begin, size, files = self._looks[0]
        seconds = now - begin
        if seconds <= 0:
            return 0.0, 0.0
        return (
            max(0, status["bytes"]["done"] - size) / seconds,
            max(0, status["files_done"] - files) / seconds,
        )


def _watch_line(status: Mapping[str, Any], speed: _Speed) -> str:
    """A run in a line, for logs."""
    bytes_per_s, _ = speed.measure(status)
    projects, size = status["projects"], status["bytes"]
    left = f", {human_duration(status['eta_s'])} left" if status["eta_s"] is not None else ""
    return (
        f"{status['state']}: {projects['ended']}/{projects['total']} projects, {projects['failed']} failed, "
        f"{projects['running']} running, {human_bytes(size['done'])} of {human_bytes(size['total'])}, "
        f"{human_bytes(bytes_per_s)}/s{left}"
    )


def _listing_lines(console: Console) -> Callable[[Listing], None]:
    shown = time.monotonic()

    def update(listing: Listing) -> None:
        nonlocal shown
        if time.monotonic() - shown >= _LINE_EVERY_S:
            shown = time.monotonic()
            console.print(_listing_words(listing))

    return update


def _listing_words(listing: Listing) -> str:
    words = f"listing directories: {listing.done:,} of {listing.total:,}"
    late = [(path, age_s) for path, age_s in listing.waits_for if age_s >= _SLOW_S]
    if late:
        path, age_s = late[0]
        words += f", waiting for {escape(path)} for {human_duration(age_s)}"
        words += f" and for {len(late) - 1} more" if len(late) > 1 else ""
    return words


@contextmanager
def _bar(console: Console, what: str) -> Iterator[Callable[[Progress], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[words]}"),
        TimeElapsedColumn(),
    )
    pace = _ActivePace()
    with Bar(*columns, console=console, expand=True) as bar:
        task = bar.add_task(what, total=None, words="")

        def update(progress: Progress) -> None:
            # Bytes say more than projects, but a run of empty or invisible directories has none.
            known = progress.bytes_total > 0
            bar.update(
                task,
                total=progress.bytes_total if known else max(progress.jobs, 1),
                completed=progress.bytes_done if known else progress.ended,
                words=_words(progress, pace.rate(progress)),
            )

        yield update


def _lines(console: Console, what: str) -> Callable[[Progress], None]:
    pace = _ActivePace()
    shown = time.monotonic()

    def update(progress: Progress) -> None:
        nonlocal shown
        now, rate = time.monotonic(), pace.rate(progress)
        if now - shown >= _LINE_EVERY_S:
            shown = now
            console.print(f"{what}: {_words(progress, rate)}")

    return update


class _ActivePace:
    """How fast a run is while workers have jobs of it, since it is followed: what was done before, and idle time, do not count."""

    def __init__(self) -> None:
        self._active_s = 0.0
        self._gained = 0
        self._before: tuple[float, int] | None = None

    def rate(self, progress: Progress) -> float:
        """Bytes a second, with this look; zero at the first one."""
        now = time.monotonic()
        if self._before is not None:
            then, done = self._before
            gained = max(0, progress.bytes_done - done)
            if progress.live or gained:
                self._active_s += now - then
                self._gained += gained
        self._before = now, progress.bytes_done
        return self._gained / self._active_s if self._active_s > 0 else 0.0


def _words(progress: Progress, rate: float) -> str:
    """Projects, bytes, rate and time left in a line."""
    words = f"{progress.ended}/{progress.jobs} projects"
    if progress.failed:
        words += f" ({progress.failed} failed)"
    if progress.bytes_total:
        words += f", {human_bytes(progress.bytes_done)} of {human_bytes(progress.bytes_total)}, {human_bytes(rate)}/s"
        if rate > 0 and progress.bytes_done < progress.bytes_total:
            words += f", {human_duration((progress.bytes_total - progress.bytes_done) / rate)} left"
    return words


def confirm(question: str) -> None:
    """Ask the person at the terminal; a call without one goes on. Raises `UsageError` for anything but yes."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    try:
        confirmed = typer.confirm(question, err=True)
    except typer.Abort:
        confirmed = False
    if not confirmed:
        raise UsageError("Not confirmed: nothing was changed")
