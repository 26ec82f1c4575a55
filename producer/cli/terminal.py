"""How the program speaks: JSON for machines on standard output, tables and progress for people on standard error."""

import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape as escape_markup
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from producer.doctor.findings import Diagnosis
from producer.runs.open import Opened
from producer.runs.survey import Listing
from worker.db.overview import Progress
from worker.findings import Verdict
from worker.messages import RunState, Verb
from worker.units import human_bytes, human_duration

_LINE_EVERY_S = 10.0
_SCREEN_EVERY_S = 1.0
_SLOW_S = 3.0
"""A directory that takes longer to list is named: its mount may hang."""
_GOING = {RunState.PLANNED, RunState.RUNNING}
_WIDTH_OF_FILES = 10_000
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_ROWS = 40
"""A plan of thousands of projects is a file to read, not a screen; --json has them all."""


def escape(text: str) -> str:
    """Text of others as it may stand in a line for people: it can neither style the line nor command the terminal."""
    return escape_markup(text.translate(_CONTROLS))


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


def plan_table(opened: Opened) -> Table:
    """What a run will touch, biggest first, and what it leaves out and why."""
    table = Table(
        title=f"Run {opened.run_id}", title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for heading in ("project", "sessions", "files", "size"):
        # Numbers are never cut; names and paths give way on a narrow terminal, by more lines.
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("name", overflow="fold", min_width=12, max_width=36)
    table.add_column("path", overflow="fold", min_width=20)
    waiting = [job for job in opened.jobs if not job.skipped]
    for job in waiting[:_ROWS]:
        table.add_row(
            str(job.project_id),
            _number(job.sessions),
            _number(job.files),
            "not visible here" if job.size_bytes is None else human_bytes(job.size_bytes),
            escape(job.project_name),
            escape(job.path or ""),
        )
    if len(waiting) > _ROWS:
        table.add_row("…", "", "", "", f"and {len(waiting) - _ROWS} more", "all of them with --json")
    return table


def left_out_lines(opened: Opened) -> Iterator[str]:
    """Each project that gets no task, with the reason."""
    for one in opened.left_out[:_ROWS]:
        yield f"[dim]left out:[/] {one.project_id} {escape(one.project_name)}: {one.reason}"
    if len(opened.left_out) > _ROWS:
        yield f"[dim]… and {len(opened.left_out) - _ROWS} more left out[/]"
    if opened.of_other_type:
        yield f"[dim]left out: {opened.of_other_type} projects that are dataset-based already[/]"


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """A report's summary: what was done, the space, what failed and what to do about it."""
    verb = Verb(report["verb"])
    would = "would be " if report["dry_run"] else ""
    done = {
        "migrate": "projects_migrated",
        "rollback": "projects_rolled_back",
        "verify": "projects_verified",
    }[verb]
    word = {"migrate": "migrated", "rollback": "rolled back", "verify": "verified"}[verb]
    counts = [f"[bold]{report[done]}[/] of {report['projects_processed']} projects {would}{word}"]
    counts += [
        f"{report[key]} {key.removeprefix('projects_')}"
        for key in ("projects_failed", "projects_skipped", "projects_cancelled")
        if report[key]
    ]
    yield ", ".join(counts)
    if verb is Verb.MIGRATE:
        size = report["bytes"]
        share = f" ({size['saved'] / size['read']:.0%})" if size["read"] else ""
        yield (
            f"{report['datasets_created']} datasets {would}created; {human_bytes(size['read'])} in legacy directories, "
            f"{human_bytes(size['stored'])} {would}stored, {human_bytes(size['saved'])} {would}saved{share}"
        )
    if verb is Verb.VERIFY and report["warnings"]:
        yield f"[yellow]{len(report['warnings'])} sessions can be read neither by legacy directory nor by dataset[/]"
    for warning in report["warnings"][:_ROWS]:
        yield f"[yellow]warning[/] project {warning['project_id']}: {escape(warning['message'])}"
    if len(report["warnings"]) > _ROWS:
        yield f"[yellow]… and {len(report['warnings']) - _ROWS} more warnings in the report[/]"
    for error in report["errors"][:_ROWS]:
        yield f"[red]failed[/] project {error['project_id']} {escape(error['project_name'] or '')}: {escape(error['error'])}"
        yield f"       [dim]{escape(error['remedy'] or '')}[/]"
    if len(report["errors"]) > _ROWS:
        yield f"[red]… and {len(report['errors']) - _ROWS} more failures in the report[/]"


def status_lines(status: Mapping[str, Any]) -> Iterator[str]:
    """One run for people."""
    projects, size = status["projects"], status["bytes"]
    rehearsal = " (dry run)" if status["dry_run"] else ""
    yield f"[bold]{status['verb']}{rehearsal}[/] run {status['run_id']}: [bold]{status['state']}[/], {human_duration(status['elapsed_s'])}"
    if status["paused_because"]:
        yield f"[yellow]paused:[/] {escape(status['paused_because'])}. Resume: producer resume {status['run_id'][:8]}"
    if status["waiting_because"]:
        yield f"[yellow]workers wait:[/] {escape(status['waiting_because'])}"
    yield (
        f"{projects['ended']} of {projects['total']} projects ended, {projects['running']} running, "
        f"{projects['waiting']} waiting, {projects['failed']} failed"
    )
    eta = f", about {human_duration(status['eta_s'])} left" if status["eta_s"] is not None else ""
    if size["limit_per_second"] is not None:
        eta += f", limited to {human_bytes(size['limit_per_second'])}/s"
    yield f"{human_bytes(size['done'])} of {human_bytes(size['total'])}, {human_bytes(size['per_second'])}/s{eta}"
    for holder in status["holders"]:
        yield (
            f"  {escape(holder['worker'])}: project {holder['project_id']} {escape(holder['project_name'] or '')}, "
            f"{escape(holder['phase'] or '')}, {human_bytes(holder['bytes_done'])}, {human_duration(holder['age_s'])}"
        )
    for job in status["retrying"]:
        yield (
            f"  [yellow]{_waits(job['wait_s'])}[/]: project {job['project_id']}, "
            f"{escape(job['reason'] or '')}"
        )
    for failure in status["failures"]:
        yield f"[red]failed[/] {failure['count']} with {failure['error_class']}: {escape(failure['remedy'] or '')}"
        for one in failure["examples"]:
            yield f"       project {one['project_id']}: {escape(one['error'] or '')}"
        if failure["count"] > len(failure["examples"]):
            yield f"       … and {failure['count'] - len(failure['examples'])} more"
    incidents = status["incidents"]
    if any(incidents.values()):
        yield (
            f"[dim]leases run out: {incidents['leases_run_out']}, attempts that came too late: "
            f"{incidents['attempts_fenced']}, jobs tried again: {incidents['retries']}[/]"
        )


_MARKS = {Verdict.PASS: "[green]✓[/]", Verdict.WARN: "[yellow]![/]", Verdict.FAIL: "[red]✗[/]"}
_IN_SHORT = {Verdict.FAIL: "in short, failed:", Verdict.WARN: "in short, warnings:"}
_NAMES_WIDTH = 24


def _waits(wait_s: float | None) -> str:
    return "waits" if wait_s is None else f"tries again in {human_duration(wait_s)}"


def diagnosis_lines(diagnosis: Diagnosis, width: int) -> Iterator[str]:
    """What the doctor found, chapter by chapter, within so many columns; what to do stands under what is not well."""
    for chapter in diagnosis.chapters:
        yield f"[bold]{chapter.title}[/]"
        for check in chapter.checks:
            yield from _entry(_MARKS[check.verdict], check.name, check.finding, width)
            if check.remedy:
                yield from _entry(" ", "", f"→ {check.remedy}", width)
        for one in chapter.not_checked:
            yield from _entry("[dim]-[/]", one.name, f"not checked: {one.because}", width)
    # The lines above may have left the screen.
    for verdict in (Verdict.FAIL, Verdict.WARN):
        if diagnosis.count(verdict):
            yield from _entry(_MARKS[verdict], _IN_SHORT[verdict], diagnosis.names(verdict), width)
    passed, warnings, failures = (diagnosis.count(verdict) for verdict in Verdict)
    not_checked = sum(len(chapter.not_checked) for chapter in diagnosis.chapters)
    yield (
        f"[bold]{passed + warnings + failures} checks: {passed} pass, {warnings} warning{'s' * (warnings != 1)}, "
        f"{failures} failed[/]{f', {not_checked} not checked' if not_checked else ''}"
    )


def _entry(mark: str, name: str, words: str, width: int) -> Iterator[str]:
    """A line with its continuation below its own words. Names and paths are not cut, but they may be broken."""
    room = max(20, width - _NAMES_WIDTH - 4)
    first, *rest = textwrap.wrap(words.translate(_CONTROLS), room, break_on_hyphens=False) or [""]
    yield f"  {mark} {name:<{_NAMES_WIDTH}}{escape(first)}"
    for line in rest:
        yield f"    {'':<{_NAMES_WIDTH}}{escape(line)}"


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


def runs_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """All runs, newest first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "verb", "state", "projects", "ended", "failed", "opened"):
        table.add_column(
            heading,
            no_wrap=True,
            min_width=len(heading),
            justify="right" if heading in {"projects", "ended", "failed"} else "left",
        )
    for run in runs:
        verb = run["verb"] + (" (dry run)" if run["dry_run"] else "")
        counts = (str(run[key]) for key in ("projects", "ended", "failed"))
        table.add_row(run["run_id"], verb, run["state"], *counts, run["created_at"][:19].replace("T", " "))
    return table


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


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
