"""What only the report of a reclaim has: room on disk, counted in allocated blocks."""

from collections.abc import Iterator, Mapping
from typing import Any

from producer.report.facts import RunFacts
from producer.report.notation import plural
from worker.messages import Outcome, Status, Subject
from worker.units import human_bytes
from worker.wording import status_words

ON_DISK = ("legacy", "moved", "freed", "kept")
"""Room on disk: `legacy` in the directories that were looked at, `moved` away, `freed` for other files,
`kept` in those of projects that were skipped.
"""


def on_disk(outcome: Outcome) -> dict[str, int]:
    """The room of one project's directory."""
    return {key: getattr(outcome.disk, key) for key in ON_DISK}


def words(report: Mapping[str, Any]) -> Iterator[str]:
    """What a reclaim did, or in a dry run would do, in lines for a person."""
    dry_run = report["dry_run"]
    counts = report["statuses"].get(Subject.PROJECT, {})
    said = [f"{count} {status_words(Status(status), dry_run=dry_run)}" for status, count in counts.items()]
    total = report["projects_processed"]
    yield f"{total} {plural(total, 'project')}: {', '.join(said)}" if said else "No project was due"
    size = report["bytes"]
    would = "would be " if dry_run else ""
    acts = {
        "moved": "moved away, which frees nothing yet",
        "freed": "given back",
        "kept": "kept for skipped projects",
    }
    parts = [f"{human_bytes(size[key])} {would}{act}" for key, act in acts.items() if size[key]]
    if size["legacy"]:
        yield "; ".join([f"{human_bytes(size['legacy'])} on disk in these directories", *parts])


def detail(_run: RunFacts, outcome: Outcome) -> dict[str, Any]:
    """The same as a key of the project's details."""
    return {"disk": on_disk(outcome)}
