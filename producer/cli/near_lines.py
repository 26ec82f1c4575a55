"""What people read of near-duplicates, made from values: a table and lines of text. Pure: prints nothing."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from producer.cli.dataset_lines import table_of
from producer.cli.escaping import escape
from producer.datasets.near_duplicates import HowFar, NearDuplicate, NearDuplicates, StoredRecording
from producer.report.notation import plural
from worker.jobs.near_duplicates import Kind, Precision, Sensor
from worker.units import human_bytes

_FEW = 5


def how_far_words(now: HowFar) -> str:
    """How far a search is."""
    progress = now.progress
    read = f"{human_bytes(now.read_bytes)} read"
    if progress.begun < progress.recordings:
        return f"beginnings: {progress.begun:,} of {progress.recordings:,} recordings; {read}"
    return f"side by side: {progress.groups_done:,} of {progress.groups:,} that begin alike; {read}"


def pairs_table(found: Sequence[NearDuplicate], rows: int) -> Table:
    """Near-duplicates at a glance, the largest first."""
    table = table_of(
        *("kind", "saves", "poorer", "richer", "evidence"),
        right=("saves",),
        folds=("poorer", "richer", "evidence"),
    )
    for one in sorted(found, key=lambda one: -one.saves_bytes)[:rows]:
        table.add_row(
            one.match.kind,
            human_bytes(one.saves_bytes) if one.saves_bytes else "-",
            _place(one.poorer),
            _place(one.richer),
            evidence_words(one),
        )
    return table


def evidence_words(one: NearDuplicate) -> str:
    """What was compared, and how alike it is."""
    match = one.match
    count = f"{match.records:,}"
    words = {
        Kind.FORMAT: f"all {count} records",
        Kind.LAST_RECORD: f"all {count} records, 1 fewer",
        Kind.PREFIX: f"all {count} records, the first of {match.records + (match.more or 0):,}",
        Kind.RESAMPLED: f"all {count} records at 50 Hz",
    }[match.kind]
    if one.is_merged:
        words += " after merging both sensors"
    if match.precision is Precision.ROUNDED:
        words += f"; {'richer' if one.is_richer_coarser else 'poorer'} rounded to {match.digits}"
    elif match.precision is Precision.SINGLE:
        words += "; equal in single precision"
    return words


def found_lines(found: NearDuplicates, rows: int) -> Iterator[str]:
    """What was found, what it means, and what a person can do about it."""
    if len(found.pairs) > rows:
        yield f"[dim]… and {len(found.pairs) - rows:,} more: --json has all[/]"
    yield (
        f"[bold]{_count(len(found.pairs), 'near-duplicate')}[/] among {_count(found.recordings, 'recording')} "
        f"of {_count(found.datasets, 'dataset')}, {human_bytes(found.size_bytes)}; nothing was changed"
    )
    if found.pairs:
        yield f"without the poorer ones the store would take {human_bytes(found.saves_bytes)} less"
        yield from _to_do_lines(found)
    if found.unproven:
        yield (
            f"{_count(len(found.unproven), 'pair')} more of recordings whose readings hardly ever change, which proves "
            "nothing: --json names them"
        )


def _to_do_lines(found: NearDuplicates) -> Iterator[str]:
    for dataset_id, others in list(found.covered.items())[:_FEW]:
        yield (
            f"dataset {dataset_id}: every recording of it is in {_ids('dataset', others)}; "
            f"{_users(found, dataset_id)}"
        )
    if len(found.covered) > _FEW:
        yield f"[dim]… and {len(found.covered) - _FEW:,} more datasets like these: --json names all[/]"
    some = found.pairs[0]
    yield (
        f"who uses them: producer datasets show {some.poorer.dataset_ids[0]} (projects and sessions), "
        f"producer whereis {some.poorer.digest[:12]} (one recording)"
    )
    yield (
        "new projects are best made from the richer one; a dataset goes by producer gc when no project or session "
        "refers to it any more"
    )
    if any(one.match.kind is Kind.RESAMPLED for one in found.pairs):
        yield (
            "of a resampled recording the bouts fit the recorded one, since they are times; the offsets of split "
            "sessions do not, since they count records"
        )


def not_compared_lines(found: NearDuplicates) -> Iterator[str]:
    """What says nothing about near-duplicates, because it was not compared."""
    for one in found.not_compared:
        what = escape(one.recording.sensor) if one.recording is not None else "all recordings"
        where = ", ".join(
            [_place(one.recording)]
            if one.recording is not None
            else [f"dataset {number}" for number in one.dataset_ids]
        )
        remedy = (
            f"producer verify --store --repair --dataset {one.dataset_ids[0]}"
            if one.is_damaged
            else f"look at the file: producer datasets show {one.dataset_ids[0]} says where it is"
        )
        yield f"[yellow]not compared: {what} of {where}: {escape(one.reason)}[/]"
        yield f"       {remedy}"
    if found.not_stored:
        numbers = [one.dataset_id for one in found.not_stored]
        yield (f"[yellow]not compared: {_ids('dataset', numbers)}, which Label registered itself[/]")
        yield f"       producer datasets adopt {numbers[0]} makes one the store's own"


def _users(found: NearDuplicates, dataset_id: int) -> str:
    projects = found.project_ids.get(dataset_id, ())
    if not projects:
        return f"no project refers to it: producer datasets show {dataset_id}"
    return f"used by {_ids('project', projects)}: producer explain {projects[0]}"


def _place(one: StoredRecording) -> str:
    first, more = one.places[0], len(one.places) - 1
    rest = f" and {_count(more, 'more place')}" if more else ""
    sensor = " (gyroscope)" if one.sensor is Sensor.GYROSCOPE else ""
    return f"{first.dataset_id} {escape(first.dataset_name)}/{escape(first.session)}{sensor}{rest}"


def _ids(noun: str, numbers: Sequence[int]) -> str:
    rest = f" and {len(numbers) - _FEW:,} more" if len(numbers) > _FEW else ""
    return f"{plural(len(numbers), noun)} {', '.join(map(str, numbers[:_FEW]))}{rest}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {plural(number, noun)}"
