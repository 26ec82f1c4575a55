"""What people read of rows that were made again. Pure: prints nothing."""

from collections.abc import Iterator
from itertools import islice

from producer.cli.dataset_lines import ROWS, more
from producer.cli.escaping import escape
from producer.datasets.rebuilt import Outcome
from producer.report.notation import plural


def rebuild_lines(done: Outcome, *, dry_run: bool) -> Iterator[str]:
    """What was made again, what was missing beside it, and what fits neither."""
    begin = "Would rebuild" if dry_run else "Rebuilt"
    yield (
        f"{begin} the rows of [bold]{_counted(len(done.rebuilt), 'dataset')}[/]; {done.there:,} had theirs"
        + (f"; {_counted(len(done.drift), 'thing')} not settled" if done.drift else "")
    )
    # What is not as it was comes first: of many only some are shown.
    for one in islice(sorted(done.rebuilt, key=lambda one: not one.notes), ROWS):
        yield escape(
            f"  dataset {one.dataset_id}  {one.dataset_name}, {_counted(one.sessions, 'session')}: {one.file_path}"
        )
        for note in one.notes:
            yield f"    [yellow]{escape(note)}[/]"
    yield from more(len(done.rebuilt), "datasets")
    if done.row_files:
        wrote = "Would write" if dry_run else "Wrote"
        yield f"{wrote} {_counted(len(done.row_files), 'row file')} that {'was' if len(done.row_files) == 1 else 'were'} missing"
    for drift in islice(done.drift, ROWS):
        whose = f"dataset {drift.dataset_id}: " if drift.dataset_id is not None else ""
        yield f"[yellow]{escape(f'{whose}{drift.path}: {drift.reason}')}[/]"
        yield f"    {escape(drift.remedy)}"
    yield from more(len(done.drift), "things")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {plural(count, what)}"
