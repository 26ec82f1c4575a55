"""Following a run to its end: progress on the terminal, its report on the disk, its exit code."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from producer.cli.escaping import escape
from producer.cli.exit_codes import Exit, verdict
from producer.cli.render import report_lines
from producer.cli.terminal import Terminal
from producer.cli.wave_lines import at_gate_lines
from producer.report import files, html
from producer.report.document import compose
from producer.report.facts import LongList, RunFacts
from producer.runs.collect import Collected, collect
from worker.db.ledger import Run
from worker.messages import RunState
from worker.settings import Settings
from worker.wording import run_words


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """What a call says about following its run: whether, for how long, and where the report goes."""

    wait: bool = True
    timeout_s: float | None = None
    report_dir: Path | None = None

    @property
    def directory(self) -> Path:
        """Where the report goes: where it was said, else the working directory."""
        return self.report_dir or Path()

    def check(self, terminal: Terminal) -> None:
        """Check that the report can be written; in a call that does not wait, name options without effect."""
        if self.wait:
            files.check_directory(self.directory)
            return
        for name, value, does in (
            ("--timeout", self.timeout_s, "does nothing"),
            ("--report-dir", self.report_dir, "is only for a long plan"),
        ):
            if value is not None:
                terminal.say(
                    f"[yellow]{name} {does} without --wait;[/] it belongs to: producer collect {name} …"
                )


def follow(
    terminal: Terminal, settings: Settings, engine: Engine, run: Run, following: Following
) -> tuple[Exit, dict[str, Any]]:
    """Follow a run and write its report; the exit code, and what JSON says of it."""
    with terminal.follow(run_words(run.verb, dry_run=run.dry_run)) as on_progress:
        collected = collect(settings, engine, run, timeout_s=following.timeout_s, on_progress=on_progress)
    if collected.stopped is not None:
        return Exit.WORK_LEFT, _stopped(terminal, collected, following.directory)
    with _written(terminal, collected, following.directory) as (document, path):
        terminal.say(f"Report: {escape(str(path))}")
        return verdict(document, collected.run), {"report_path": str(path), "report": _counts(document)}


def _stopped(terminal: Terminal, collected: Collected, directory: Path) -> dict[str, Any]:
    """Say why a run is not followed any more, and write an interim report of what there is by now."""
    short = str(collected.run.run_id)[:8]
    paused = collected.run.state is RunState.PAUSED
    for line in at_gate_lines(collected.waves, collected.run.state, short):
        terminal.say(line)
    stopped = f"the run is paused: {collected.run.paused_because}" if paused else str(collected.stopped)
    with _written(terminal, collected, directory, interim=stopped) as (document, path):
        go_on = f"producer {'resume' if paused else 'collect'} {short}"
        terminal.say(f"Interim report: {escape(str(path))}")
        terminal.say(f"[yellow]Stopped with work left:[/] {escape(stopped)}. Go on: {go_on}")
        return {
            "run_id": str(collected.run.run_id),
            "stopped": stopped,
            "report_path": None,
            "interim_report_path": str(path),
            "report": _counts(document),
        }


@contextmanager
def _written(
    terminal: Terminal, collected: Collected, directory: Path, *, interim: str | None = None
) -> Iterator[tuple[dict[str, Any], Path]]:
    """Write a report and say what is in it. Its long lists are on disk, and can be read within the block."""
    with files.spools(directory) as new_spool:
        document = report_of(collected, new_spool, interim=interim)
        page = html.render(document)
        path = files.write(document, directory, collected.run.verb, datetime.now(UTC), html=page)
        for line in report_lines(document, str(path), terminal.width):
            terminal.say(line)
        yield document, path


def report_of(
    collected: Collected, new_list: Callable[[], LongList] = list, *, interim: str | None = None
) -> dict[str, Any]:
    """The report of a run that was collected; `interim` says why it is not the final one."""
    run = collected.run
    facts = RunFacts(
        run_id=run.run_id,
        verb=run.verb,
        dry_run=run.dry_run,
        state=run.state,
        started_at=run.created_at,
        selection=collected.selection,
        interim=interim,
        waves=collected.waves,
    )
    return compose(facts, collected.outcomes, new_list)


def _counts(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a script decides by; the whole report is in its file."""
    return {
        key: list(value) if key in {"errors", "damaged"} else value
        for key, value in document.items()
        if key not in {"details", "selection", "warnings"}
    }
