"""What people read, made from values: tables and lines of text. Pure: prints nothing."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from rich.table import Table

from producer.cli.escaping import CONTROLS, escape
from producer.cli.plan_lines import plan_lines
from producer.cli.verification_lines import store_line, verification_lines
from producer.cli.wave_lines import at_gate_lines, gate_words, wave_lines
from producer.doctor.findings import Diagnosis
from producer.report import garbage, reclaim
from producer.report.notation import plural
from producer.report.verdict import success_of
from producer.runs.open import Opened
from producer.runs.selection import LeftOut
from producer.runs.status import ListedRun, RunStatus
from producer.runs.survey import Listing
from producer.runs.waves import wave_json
from worker.db.column_types import Misfit
from worker.db.overview import FailureClass, Progress
from worker.db.schema import Step
from worker.findings import Verdict
from worker.messages import Status, Subject, Verb, subject_words
from worker.units import human_bytes, human_duration
from worker.wording import VERB_WORDS, VerbWords, counted_as, run_words, status_words

ROWS = 50
"""A plan or report of thousands of projects is a file to read, not a screen."""
_MARKS = {Verdict.PASS: "[green]✓[/]", Verdict.WARN: "[yellow]![/]", Verdict.FAIL: "[red]✗[/]"}
_SUMMARY = {Verdict.FAIL: "all failures:", Verdict.WARN: "all warnings:"}
_NAMES_WIDTH = 24
_SLOW_S = 3.0
"""A directory that takes longer to list is named: its mount may hang."""


def plan_table(opened: Opened) -> Table:
    """What a run will touch, biggest first."""
    table = Table(
        title=f"Run {opened.run_id}", title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    waiting = [job for job in opened.jobs if not job.skipped]
    kinds = {job.subject for job in waiting}
    for heading in (counted_as(kinds, 1), "sessions", "files", "size"):
        # Numbers are never cut; names and paths give way on a narrow terminal, by more lines.
        table.add_column(heading, justify="right", no_wrap=True)
    if opened.waves:
        table.add_column("wave", justify="right", no_wrap=True)
    table.add_column("name", overflow="fold", min_width=12, max_width=36)
    table.add_column("path", overflow="fold", min_width=20)
    for job in waiting[:ROWS]:
        table.add_row(
            str(job.subject_id) if len(kinds) == 1 else subject_words(job.subject, job.subject_id),
            _number(job.sessions),
            _number(job.files),
            "not visible here" if job.size_bytes is None else human_bytes(job.size_bytes),
            *([str(job.wave)] if opened.waves else ()),
            escape(job.subject_name),
            escape(job.path or ""),
        )
    if len(waiting) > ROWS:
        table.add_row(
            "…", "", "", "", *([""] if opened.waves else ()), f"and {len(waiting) - ROWS:,} more", ""
        )
    return table


def is_long(opened: Opened) -> bool:
    """Does the plan have more rows than are shown?"""
    return max(sum(not job.skipped for job in opened.jobs), len(opened.left_out)) > ROWS


def left_out_lines(left_out: Sequence[LeftOut], of_other_type: int) -> Iterator[str]:
    """Each project that gets no task, with the reason."""
    for one in left_out[:ROWS]:
        yield f"[dim]left out:[/] {subject_words(one.subject, one.subject_id)} {escape(one.subject_name)}: {one.reason}"
    if len(left_out) > ROWS:
        yield f"[dim]… and {len(left_out) - ROWS:,} more left out[/]"
    if of_other_type:
        others = plural(of_other_type, "project that is", "projects that are")
        yield f"[dim]left out: {of_other_type} {others} dataset-based already[/]"


def report_lines(report: Mapping[str, Any], where: str = "the report", width: int = 10_000) -> Iterator[str]:
    """A report's summary: what was done, the space, what failed and what to do about it; last a migration's
    plan. `where`: its file, which has all that is too long for a terminal of this `width`.
    """
    where = escape(where)
    yield from _act_lines(report, where)
    yield from wave_lines(report.get("waves", ()), report["state"])
    for warning in report["warnings"][:ROWS]:
        yield f"[yellow]warning[/] {_subject(warning)}: {escape(warning['message'])}"
    if len(report["warnings"]) > ROWS:
        yield f"[yellow]… and {len(report['warnings']) - ROWS:,} more warnings in {where}[/]"
    for error in report["errors"][:ROWS]:
        yield f"[red]failed[/] {_subject(error)}: {escape(error['error'])}"
        yield f"       [dim]{escape(error['remedy'] or '')}[/]"
    if len(report["errors"]) > ROWS:
        yield f"[red]… and {len(report['errors']) - ROWS:,} more failures in {where}[/]"
    if report.get("plan"):
        # Last, as it is what the operator decides by, and the lines above may have left the screen.
        yield from plan_lines(report["plan"], width)


def _act_lines(report: Mapping[str, Any], where: str) -> Iterator[str]:
    """What a run did, in the words of its verb."""
    verb = Verb(report["verb"])
    match verb:
        case Verb.GC:
            yield from _gc_lines(report, where)
        case Verb.RECLAIM:
            yield from reclaim.words(report)
            yield from _skipped_lines(report, Subject.PROJECT, where)
        case Verb.ADOPT:
            yield from _outcome_lines(report, VERB_WORDS[verb])
            yield from _skipped_lines(report, Subject.DATASET, where)
            if report["statuses"].get(Subject.DATASET, {}).get(Status.ADOPTED):
                yield (
                    "[dim]what Label had is in quarantine: producer datasets adopt --undo gives it back; a gc removes it after "
                    "its grace time, once producer verify --store has read what took its place[/]"
                )
        case _:
            yield from _outcome_lines(report, VERB_WORDS[verb])
    if verb is Verb.MIGRATE:
        yield _space_line(report)
        yield from _disk_lines(report)
    if verb is Verb.VERIFY:
        yield from verification_lines(report, ROWS, where)
    if verb is Verb.VERIFY and report["warnings"]:
        unread = f"{len(report['warnings'])} sessions could be read neither from their legacy directory nor"
        yield f"[yellow]{unread} from their dataset[/]"


def _outcome_lines(report: Mapping[str, Any], words: VerbWords) -> Iterator[str]:
    if report["projects_processed"] or "datasets_processed" not in report:
        yield _outcome_line(report, words, Subject.PROJECT)
    if "datasets_processed" in report:
        yield _outcome_line(report, words, Subject.DATASET)


def _skipped_lines(report: Mapping[str, Any], subject: Subject, where: str) -> Iterator[str]:
    """Why a run left what it left, and what to do about it."""
    skipped = report.get(f"{subject}s_skipped", 0)
    found = (detail for detail in report["details"] if detail["status"] == Status.SKIPPED)
    for detail in islice(found, min(skipped, ROWS)):
        yield f"[yellow]skipped[/] {_subject(detail)}: {escape(detail['reason'])}"
        yield f"       [dim]{escape(detail['remedy'] or '')}[/]"
    if skipped > ROWS:
        yield f"[yellow]… and {skipped - ROWS:,} more skipped in {where}[/]"


def _gc_lines(report: Mapping[str, Any], where: str) -> Iterator[str]:
    """What a gc did, and each entry with the id by which it comes back."""
    yield garbage.words(report)
    for entry in report["details"][:ROWS]:
        yield f"  {_place(report, entry)}{entry['kind']} {escape(entry['name'])}: {entry['reason']}, {human_bytes(entry['bytes'])}"
    if len(report["details"]) > ROWS:
        yield f"[dim]  … and {len(report['details']) - ROWS:,} more in {where}[/]"
    if any(garbage.is_restorable(report, entry) for entry in report["details"]):
        yield "bring an entry back: producer gc --restore ID"
    if rows := report["pruned"]["rows"]:
        gone = "would go" if report["dry_run"] else plural(rows, "is gone", "are gone")
        yield f"[dim]{rows:,} {plural(rows, 'row')} of the ledger that no job needs any more {gone}[/]"


def _place(report: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """The id of what is in quarantine; a dry run has put nothing there."""
    return f"[bold]{entry['id']}[/] " if garbage.is_entry(report, entry) else ""


def _subject(entry: Mapping[str, Any]) -> str:
    """What an entry of a report is about, in words."""
    subject = Subject(entry["subject"])
    if subject is Subject.STORE:
        return "the store"
    return f"{subject} {entry[f'{subject}_id']} {escape(entry[f'{subject}_name'] or '')}"


def _outcome_line(report: Mapping[str, Any], words: VerbWords, subject: Subject) -> str:
    dry_run = report["dry_run"]
    success = status_words(success_of(report), dry_run=dry_run)
    done, processed = report[words.key_of(subject)], report[f"{subject}s_processed"]
    counts = [f"[bold]{done}[/] of {processed} {plural(processed, subject)} {success}"]
    if repaired := report["statuses"].get(subject, {}).get(Status.REPAIRED, 0):
        counts += [f"{repaired} of them repaired"]
    counts += [
        f"{count} {status_words(status, dry_run=dry_run)}"
        for status in (Status.FAILED, Status.SKIPPED, Status.CANCELLED)
        if (count := report[f"{subject}s_{status}"])
    ]
    return ", ".join(counts)


def _space_line(report: Mapping[str, Any]) -> str:
    size, would = report["bytes"], "would be " if report["dry_run"] else ""
    share = f" ({size['saved'] / size['read']:.0%})" if size["read"] else ""
    read, stored, saved = (human_bytes(size[key]) for key in ("read", "stored", "saved"))
    untouched = (
        f" ({human_bytes(size['remembered'])} untouched, not read again)" if size["remembered"] else ""
    )
    return (
        f"{report['datasets_created']} datasets {would}created; {read} in legacy directories{untouched}, "
        f"{stored} {would}stored, {saved} {would}saved{share}"
    )


def _disk_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What is on disk now: a migration frees nothing."""
    space = report["space"]
    if space["legacy"]:
        legacy, store = human_bytes(space["legacy"]), human_bytes(space["store"])
        more = f"about {store} more would be" if report["dry_run"] else f"{store} more"
        shared = f" and {human_bytes(space['shared'])} shared with them" if space["shared"] else ""
        yield f"on disk: {legacy} in these directories, {more} in the store{shared}; a migration frees nothing"
        yield (
            "[dim]to free it: producer reclaim moves the directories away, producer reclaim --purge removes them later; "
            "on XFS and Btrfs producer reclaim --share frees it in place[/]"
        )


def status_lines(status: RunStatus) -> Iterator[str]:
    """One run for people."""
    yield from _heading_lines(status)
    yield from _progress_lines(status)
    waves = [wave_json(one) for one in status.waves]
    yield from wave_lines(waves, status.run.state)
    yield from at_gate_lines(waves, status.run.state, str(status.run.run_id)[:8])
    for attempt in status.attempts:
        yield (
            f"  {escape(attempt.worker)}: {subject_words(attempt.subject, attempt.subject_id)} {escape(attempt.subject_name or '')}, "
            f"{escape(attempt.phase or '')}, {human_bytes(attempt.bytes_done)}, {human_duration(attempt.age_s)}"
        )
    for job in status.retrying:
        yield f"  [yellow]{_waits(job.wait_s)}[/]: {subject_words(job.subject, job.subject_id)}, {escape(job.reason or '')}"
    for failure in status.failures:
        yield from _failure_lines(failure)
    if status.coverage is not None:
        yield store_line(status.coverage)
    counts = status.progress
    if counts.crashes or counts.fenced or counts.retries:
        yield (
            f"[dim]leases expired: {counts.crashes}, attempts fenced: {counts.fenced}, retries: {counts.retries}[/]"
        )


def _heading_lines(status: RunStatus) -> Iterator[str]:
    run = status.run
    yield (
        f"[bold]{run_words(run.verb, dry_run=run.dry_run)}[/] run {run.run_id}: [bold]{run.state}[/], {human_duration(status.elapsed_s)}"
    )
    if run.paused_because:
        yield f"[yellow]paused:[/] {escape(run.paused_because)}. Resume: producer resume {str(run.run_id)[:8]}"
    if status.gate_of is not None:
        of_run, wave = status.gate_of
        yield f"gate of wave {wave} of run {of_run}"
    if status.waiting_because:
        yield f"[yellow]workers wait:[/] {escape(status.waiting_because)}"


def _progress_lines(status: RunStatus) -> Iterator[str]:
    counts, limit = status.progress, status.run.limit_bytes_per_second
    yield (
        f"{counts.ended} of {_jobs_of(counts)} ended, {counts.running} running, "
        f"{counts.waiting} waiting{f' ({counts.held} of them for later waves)' if counts.held else ''}, {counts.failed} failed"
    )
    if counts.gate is not None:
        yield gate_words(counts.gate)
    eta = f", about {human_duration(status.eta_s)} left" if status.eta_s is not None else ""
    limited = f", limited to {human_bytes(limit)}/s" if limit is not None else ""
    yield (
        f"{human_bytes(counts.bytes_done)} of {human_bytes(counts.bytes_total)}, "
        f"{human_bytes(status.bytes_per_s)}/s{eta}{limited}"
    )


def _failure_lines(failure: FailureClass) -> Iterator[str]:
    yield f"[red]failed[/] {failure.count} with {failure.error_class}: {escape(failure.remedy or '')}"
    for one in failure.examples:
        yield f"       {subject_words(Subject(one['subject']), one['subject_id'])}: {escape(one['error'] or '')}"
    if failure.count > len(failure.examples):
        yield f"       … and {failure.count - len(failure.examples)} more"


def _waits(wait_s: float | None) -> str:
    return "waits" if wait_s is None else f"retries in {human_duration(wait_s)}"


def paused_words(progress: Progress) -> str:
    """How far a run was when it was paused."""
    return f"Paused: {progress.ended} of {_jobs_of(progress)} ended."


def cancelled_words(progress: Progress) -> str:
    """What a cancelled run has not done any more."""
    return f"Cancelled: {progress.cancelled} of {_jobs_of(progress)} {plural(progress.cancelled, 'was', 'were')} not done."


def jobs_words(progress: Progress, count: int) -> str:
    """Some of a run's jobs by what they are about: `3 datasets`."""
    return f"{count} {counted_as(progress.subjects, count)}"


def _jobs_of(progress: Progress) -> str:
    return jobs_words(progress, progress.jobs)


def watch_line(status: RunStatus, bytes_per_s: float) -> str:
    """A run in a line, for logs."""
    counts = status.progress
    left = f", {human_duration(status.eta_s)} left" if status.eta_s is not None else ""
    return (
        f"{status.run.state}: {counts.ended}/{_jobs_of(counts)}, {counts.failed} failed, "
        f"{counts.running} running, {human_bytes(counts.bytes_done)} of {human_bytes(counts.bytes_total)}, "
        f"{human_bytes(bytes_per_s)}/s{left}{f'; {gate_words(counts.gate)}' if counts.gate is not None else ''}"
    )


def speed_line(bytes_per_s: float, files_per_s: float) -> str:
    """How fast a run is right now."""
    return f"[dim]now: {human_bytes(bytes_per_s)}/s, {files_per_s:,.0f} files/s[/]"


def progress_words(progress: Progress, rate: float) -> str:
    """Jobs, bytes, rate and time left in a line."""
    words = f"{progress.ended}/{_jobs_of(progress)}"
    if progress.failed:
        words += f" ({progress.failed} failed)"
    if progress.gate is not None:
        return f"{words}; {gate_words(progress.gate)}"
    if progress.bytes_total:
        words += f", {human_bytes(progress.bytes_done)} of {human_bytes(progress.bytes_total)}, {human_bytes(rate)}/s"
        if rate > 0 and progress.bytes_done < progress.bytes_total:
            words += f", {human_duration((progress.bytes_total - progress.bytes_done) / rate)} left"
    return words


def listing_words(listing: Listing) -> str:
    """How many directories are listed, and which ones do not answer."""
    words = f"{listing.what}: {listing.done:,} of {listing.total:,}"
    late = [(path, age_s) for path, age_s in listing.waits_for if age_s >= _SLOW_S]
    if late:
        path, age_s = late[0]
        words += f", waiting for {escape(path)} for {human_duration(age_s)}"
        words += f" and for {len(late) - 1} more" if len(late) > 1 else ""
    return words


def runs_table(runs: Sequence[ListedRun]) -> Table:
    """All runs, newest first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "verb", "state", "jobs", "ended", "failed", "opened"):
        table.add_column(
            heading,
            no_wrap=True,
            min_width=len(heading),
            justify="right" if heading in {"jobs", "ended", "failed"} else "left",
        )
    for listed in runs:
        run, progress = listed.run, listed.progress
        verb = run_words(run.verb, dry_run=run.dry_run)
        counts = (_jobs_of(progress), str(progress.ended), str(progress.failed))
        table.add_row(str(run.run_id), verb, run.state, *counts, f"{run.created_at:%Y-%m-%d %H:%M:%S}")
    return table


def schema_lines(steps: Sequence[Step], misfits: Sequence[Misfit]) -> Iterator[str]:
    """How every schema step stands, and which columns have types that cannot be used."""
    for step in steps:
        when = f" at {step.applied_at:%Y-%m-%d %H:%M:%S} UTC" if step.applied_at else ""
        gone = f"; missing since: {', '.join(step.gone)}" if step.gone else ""
        yield f"{step.state:8} {step.name}{when}{gone}"
    for misfit in misfits:
        yield f"unfit    {escape(str(misfit))}"


def diagnosis_lines(diagnosis: Diagnosis, width: int) -> Iterator[str]:
    """What the doctor found, by chapter, within so many columns; a remedy stands below what is not well."""
    for chapter in diagnosis.chapters:
        yield f"[bold]{chapter.title}[/]"
        for name, check in chapter.checks.items():
            yield from _entry(_MARKS[check.verdict], name, check.finding, width)
            if check.remedy:
                yield from _entry(" ", "", f"→ {check.remedy}", width)
        for name, because in chapter.not_checked.items():
            yield from _entry("[dim]-[/]", name, f"not checked: {because}", width)
    # The lines above may have left the screen.
    for verdict in (Verdict.FAIL, Verdict.WARN):
        if diagnosis.count(verdict):
            yield from _entry(_MARKS[verdict], _SUMMARY[verdict], diagnosis.names(verdict), width)
    passed, warnings, failures = (diagnosis.count(verdict) for verdict in Verdict)
    not_checked = sum(len(chapter.not_checked) for chapter in diagnosis.chapters)
    yield (
        f"[bold]{passed + warnings + failures} checks: {passed} pass, {warnings} warning{'s' * (warnings != 1)}, "
        f"{failures} failed[/]{f', {not_checked} not checked' if not_checked else ''}"
    )


def _entry(mark: str, name: str, words: str, width: int) -> Iterator[str]:
    """A line, continued below its own text. Names and paths are not cut, but they may be broken."""
    room = max(20, width - _NAMES_WIDTH - 4)
    first, *rest = textwrap.wrap(words.translate(CONTROLS), room, break_on_hyphens=False) or [""]
    yield f"  {mark} {name:<{_NAMES_WIDTH}}{escape(first)}"
    for line in rest:
        yield f"    {'':<{_NAMES_WIDTH}}{escape(line)}"


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
