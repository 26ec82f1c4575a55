"""A project's story for people, made from values. Pure: prints nothing."""

from collections.abc import Iterator

from producer.cli.dataset_lines import fate_words, few
from producer.cli.escaping import escape
from producer.datasets.explained import Event, Explained, Had
from producer.report.notation import PLACES, ago, plural
from worker.jobs.predictions import GarbagePrediction, Prediction
from worker.messages import Subject, subject_words
from worker.units import human_bytes
from worker.wording import run_words, status_words, summary

EVENTS = 50
"""So many of the latest events are shown; --json has all."""
_SHARERS = 10


def explain_lines(told: Explained) -> Iterator[str]:
    """What the project is, what happened to it, what it shares, and what would happen now."""
    yield f"[bold]project {told.project_id}[/] {escape(told.name)}: {_state(told)}"
    for had in told.datasets:
        yield from _dataset_lines(told, had)
    yield from _sharing_lines(told)
    yield ""
    yield "[bold]what happened[/]"
    if len(told.events) > EVENTS:
        yield f"[dim]  … {len(told.events) - EVENTS:,} earlier ones: --json[/]"
    if not told.events:
        yield "  nothing: no run ever had it"
    for event in told.events[-EVENTS:]:
        yield from _event_lines(told, event)
    yield ""
    yield "[bold]what would happen now[/]"
    yield from _prediction_lines(told.rollback)
    yield from _prediction_lines(told.reclaim)
    yield from _gc_lines(told)


def _state(told: Explained) -> str:
    project = told.project
    if project is None:
        return "deleted in Label"
    if project.is_legacy:
        return f"legacy, at {escape(project.path)}" if project.path else "legacy, without a directory"
    if not project.legacy_path:
        return "dataset-based"
    own = (one for had in told.datasets for one in had.sharers if one.project_id == told.project_id)
    where = next(
        (PLACES[one.legacy] for one in own if one.legacy is not None), "not migrated by this program"
    )
    return f"dataset-based; its directory, {where}: {escape(project.legacy_path)}"


def _dataset_lines(told: Explained, had: Had) -> Iterator[str]:
    entry = had.entry
    read = "never in full" if entry.verified_at is None else ago(entry.verified_at, told.at)
    size = "?" if entry.size_bytes is None else human_bytes(entry.size_bytes)
    yield f"  dataset   {entry.dataset_id} {escape(entry.dataset_name)}, {size}, verified {read}"
    yield f"            {escape(entry.file_path)}"
    if had.stored_by is not None:
        by = "this project" if had.stored_by == told.project_id else f"project {had.stored_by}"
        reused = [str(one.project_id) for one in had.sharers if one.stored is False]
        also = f"; reused by {plural(len(reused), 'project')} {few(reused, _SHARERS)}" if reused else ""
        yield f"            stored by {by}{also}"


def _sharing_lines(told: Explained) -> Iterator[str]:
    sharing = told.sharing
    if not told.datasets:
        return
    own = human_bytes(sharing.own_bytes) if sharing.own_bytes else "nothing"
    own = "all" if sharing.own_bytes == sharing.size_bytes else own
    yield f"  content   {human_bytes(sharing.size_bytes)}, {own} of it is only its own"
    for other in sharing.others[:_SHARERS]:
        name = escape(other.project_name or "deleted")
        yield f"            {human_bytes(other.size_bytes)} shared with project {other.project_id} {name}"
    if len(sharing.others) > _SHARERS:
        yield f"[dim]            … and with {len(sharing.others) - _SHARERS:,} more: --json[/]"


def _event_lines(told: Explained, event: Event) -> Iterator[str]:
    job, outcome = event.job, event.outcome
    of = "" if job.subject is Subject.PROJECT else f" {subject_words(job.subject, job.subject_id)}"
    head = (
        f"  {job.at:%Y-%m-%d %H:%M} [dim]{job.run_id[:8]}[/] {run_words(job.verb, dry_run=job.dry_run)}{of}"
    )
    if outcome is None:
        doing = f"{job.state}, {escape(job.phase)}" if job.phase else str(job.state)
        yield f"{head}: {doing}"
        return
    if job.subject is Subject.STORE:
        ids = {one.fate.dataset_id for one in told.gc} | {had.entry.dataset_id for had in told.datasets}
        found = [one for one in outcome.garbage if one.dataset_id in ids] or list(outcome.garbage)
        for one in found:
            would = "would be " if job.dry_run else ""
            entry = f" as {escape(one.entry_id)}" if one.entry_id else ""
            yield f"{head}: dataset {one.dataset_id} {would}{one.action}{entry}: {escape(one.reason)}"
        return
    words = summary(outcome).partition(": ")[2]
    stored = f" as dataset {outcome.dataset_id}" if outcome.dataset_created and outcome.dataset_id else ""
    yield f"{head}: {status_words(outcome.status, dry_run=job.dry_run)}{stored}: {escape(words)}"
    for warning in outcome.warnings:
        session = f"{escape(warning.session)}: " if warning.session else ""
        yield f"      [yellow]warning[/] {session}{escape(warning.message)}"
    if outcome.remedy:
        yield f"      [dim]{escape(outcome.remedy)}[/]"


def _prediction_lines(one: Prediction) -> Iterator[str]:
    does = "would wait" if one.status is None else status_words(one.status, dry_run=True)
    colour = "yellow" if one.error_class else "green"
    yield f"  {one.verb:9} [{colour}]{does}[/]: {escape(one.words)}"
    if one.then:
        yield f"            [dim]{escape(one.then)}[/]"
    if one.remedy:
        yield f"            [dim]{escape(one.remedy)}[/]"


def _gc_lines(told: Explained) -> Iterator[str]:
    if not told.gc:
        yield "  gc        has nothing of it: it has, and had, no dataset that is there"
    for one in told.gc:
        yield f"  gc        dataset {one.fate.dataset_id}: {fate_words(one.fate)}{_only(one)}"
    if told.trips is not None:
        yield f"            [dim]it would refuse: {told.trips[0]} of {told.trips[1]} datasets would go; --expect[/]"


def _only(one: GarbagePrediction) -> str:
    if not one.only_this or not one.fate.is_ours:
        return ""
    return "; no other project has it: after a rollback a gc takes it, once its grace time is over"
