"""A document about all datasets and projects as one HTML page. Pure: knows no database and no files.

Of very many the first ones have a row, and the others are counted: all are in the document.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from producer.report import pages
from producer.report.figures import Figure, count_figure, size_figure
from producer.report.notation import PLACES, ago, moment, percent, places, plural
from producer.report.shown import MOST_ROWS, Shown, shown
from worker.units import human_bytes

_ROWS = (MOST_ROWS, 500, 100)
"""So many datasets, and projects, have a row at the most; the next number if the page would be too large."""
_MOST_DRAWN = 20
_MOST_LINKS = 8
KINDS = {
    "shared": "shared dataset",
    "single": "dataset of one project",
    "kept": "dataset of no project",
    "unreferenced": "unreferenced dataset",
    "migrated": "project with datasets",
    "legacy": "legacy project",
    "empty": "project without data",
}
"""What a row is about."""
_NEVER_S = 10**12
"""How long ago something was verified that never was, for sorting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A dataset or a project in the table, with its links to the others: anchors with names."""

    anchor: str
    kind: str
    id: int
    name: str | None
    path: str | None
    digest: str
    links: Shown[tuple[str, str | None]]
    size_bytes: int | None
    saved_bytes: int | None
    own_bytes: int | None
    verified: str
    verified_s: int
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A bar: what it is of, in words, and its value."""

    title: str
    note: str
    text: str
    value: int


def render(document: Mapping[str, Any]) -> str:
    """Show all datasets and projects as one self-contained page. The same document gives the same page."""
    made = _Rows(document)
    return pages.fitting(_page(document, made, most) for most in _ROWS)


def _page(document: Mapping[str, Any], made: "_Rows", most: int) -> str:
    datasets, projects = shown(made.datasets, most), shown(made.projects, most)
    rows = [*map(made.of_dataset, datasets.items), *map(made.of_project, projects.items)]
    drawn = shown([one for one in made.datasets if one["saved_bytes"]], _MOST_DRAWN)
    found = {row.kind for row in rows}
    return pages.render(
        "sharing.html.j2",
        report=document,
        headline=_headline(document),
        is_read="good" if document["oldest_check"] else "open",
        gauges=_gauges(document),
        lists=_lists(document),
        drawn=Shown(items=tuple(map(made.of_dataset, drawn.items)), more=drawn.more),
        sharers=_by_sharers(document["sharing"]),
        ages=_by_age(document["verified"]),
        rows=rows,
        anchors={row.anchor for row in rows},
        more=[(datasets.more, "dataset"), (projects.more, "project")],
        kinds={kind: words for kind, words in KINDS.items() if kind in found},
    )


class _Rows:
    """Makes the rows of a document's datasets and projects, those that share most first."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.datasets = sorted(document["dataset_list"], key=_first_of_datasets)
        self.projects = sorted(document["project_list"], key=_first_of_projects)
        self._at = datetime.fromisoformat(document["at"])
        self._dataset = {one["dataset_id"]: one for one in self.datasets}
        self._project = {one["project_id"]: one for one in self.projects}

    def of_dataset(self, one: Mapping[str, Any]) -> Row:
        verified, verified_s = self._verified([one])
        return Row(
            anchor=f"d{one['dataset_id']}",
            kind=_kind_of_dataset(one),
            id=one["dataset_id"],
            name=one["dataset_name"],
            path=one["file_path"],
            digest=one["dataset_hash"],
            links=self._links("p", one["project_ids"]),
            size_bytes=one["size_bytes"] or 0,
            saved_bytes=one["saved_bytes"],
            own_bytes=None,
            verified=verified,
            verified_s=verified_s,
            place=places(one["legacy_directories"]),
        )

    def of_project(self, one: Mapping[str, Any]) -> Row:
        verified, verified_s = self._verified([self._dataset[number] for number in one["dataset_ids"]])
        return Row(
            anchor=f"p{one['project_id']}",
            kind="migrated" if one["dataset_ids"] else "legacy" if one["is_legacy"] else "empty",
            id=one["project_id"],
            name=one["project_name"],
            path=one["path"],
            digest="",
            links=self._links("d", one["dataset_ids"]),
            # What a legacy project has was not measured.
            size_bytes=one["size_bytes"] if one["dataset_ids"] else None,
            saved_bytes=None,
            own_bytes=one["own_bytes"] if one["dataset_ids"] else None,
            verified=verified,
            verified_s=verified_s,
            place=PLACES.get(one["legacy"], "\u2013"),
        )

    def _links(self, letter: str, numbers: Sequence[int]) -> Shown[tuple[str, str | None]]:
        names, key = (self._project, "project_name") if letter == "p" else (self._dataset, "dataset_name")
        first = shown(numbers, _MOST_LINKS)
        items = tuple((f"{letter}{number}", names[number][key]) for number in first.items)
        return Shown(items=items, more=first.more)

    def _verified(self, datasets: Iterable[Mapping[str, Any]]) -> tuple[str, int]:
        """When the least recently verified of these datasets was, of those that are ours; and for sorting."""
        moments = [one["verified_at"] for one in datasets if one["stored_by_migrator"]]
        if not moments:
            return "\u2013", 0
        if None in moments:
            return "never", _NEVER_S
        oldest = min(map(datetime.fromisoformat, moments))
        return ago(oldest, self._at), int((self._at - oldest).total_seconds())


def _first_of_datasets(one: Mapping[str, Any]) -> tuple[int, int, int]:
    return -one["saved_bytes"], -(one["size_bytes"] or 0), one["dataset_id"]


def _first_of_projects(one: Mapping[str, Any]) -> tuple[int, int, int]:
    return one["own_bytes"] - one["size_bytes"], -one["size_bytes"], one["project_id"]


def _kind_of_dataset(one: Mapping[str, Any]) -> str:
    if one["projects"]:
        return "shared" if one["projects"] > 1 else "single"
    return "unreferenced" if one["unreferenced"] else "kept"


def _headline(document: Mapping[str, Any]) -> str:
    count, projects = document["datasets"], document["projects_with_datasets"]
    if not count:
        return "No dataset is stored yet."
    saved = document["content"]["saved"]
    ends = f"; sharing saves {human_bytes(saved)}." if saved else "."
    return f"{projects:,} {plural(projects, 'project')} {plural(projects, 'has', 'have')} {count:,} {plural(count, 'dataset')}{ends}"


def _gauges(document: Mapping[str, Any]) -> list[Figure]:
    content, gc = document["content"], document["gc"]
    of_all = f"{percent(content['saved'], content['had'])} of what projects have" if content["had"] else ""
    return [
        count_figure(document, "datasets", "Datasets", note=f"{document['datasets_shared']:,} shared"),
        count_figure(document, "projects", "Projects", note=f"{document['projects_legacy']:,} legacy"),
        size_figure(document, "content.saved", "Saved by sharing", note=of_all),
        size_figure(document, "space.reclaimable", "Reclaimable", note="legacy directories in place"),
        size_figure(document, "gc.bytes", "A gc would take", note=_of_gc(gc)),
    ]


def _of_gc(gc: Mapping[str, Any]) -> str:
    refuses = ", but asks for --expect" if gc["refuses"] else ""
    return f"{gc['due']:,} {plural(gc['due'], 'dataset')}{refuses}"


def _lists(document: Mapping[str, Any]) -> list[tuple[str, list[Figure]]]:
    oldest = document["oldest_check"]
    sharing = [
        size_figure(document, "content.had", "Content of all projects"),
        size_figure(document, "content.stored", "The same, each file once"),
        count_figure(document, "datasets_shared", "Datasets of several projects"),
        count_figure(document, "gc.unreferenced", "Datasets that nothing refers to"),
        count_figure(document, "datasets_by_label", "Registered by Label itself"),
    ]
    room = [
        size_figure(document, "space.store", "In the store"),
        size_figure(document, "space.legacy", "Legacy directories in place"),
        size_figure(document, "space.shared", "Of these, shared with the store"),
        size_figure(document, "space.moved_away", "Moved away, not freed yet"),
        size_figure(document, "space.freed", "Given back"),
    ]
    never = next(one["datasets"] for one in document["verified"] if one["from_days"] is None)
    verified = [
        Figure(label="Oldest check", text=moment(oldest) if oldest else "some was never read"),
        Figure(label="Never verified in full", text=f"{never:,}", value=never),
    ]
    return [("Sharing", sharing), ("Room on disk", room), ("Verified", verified)]


def _by_sharers(groups: Sequence[Mapping[str, Any]]) -> list[Part]:
    """The datasets by how many projects have them."""
    parts = []
    for one in groups:
        saved = f", {human_bytes(one['saved'])} saved" if one["saved"] else ""
        parts.append(
            Part(
                title=_range(one["from"], one["to"], "project"),
                note=f"{human_bytes(one['bytes'])}{saved}" if one["datasets"] else "",
                text=f"{one['datasets']:,} {plural(one['datasets'], 'dataset')}",
                value=one["datasets"],
            )
        )
    return parts


def _by_age(groups: Sequence[Mapping[str, Any]]) -> list[Part]:
    """The datasets by how long ago all of each was verified."""
    parts = []
    for one in groups:
        begin, end = one["from_days"], one["to_days"]
        parts.append(
            Part(
                title=_age(begin, end),
                note=f"{one['datasets']:,} {plural(one['datasets'], 'dataset')}",
                text=human_bytes(one["bytes"]),
                value=one["bytes"],
            )
        )
    return parts


def _age(begin: int | None, end: int | None) -> str:
    if begin is None:
        return "never in full"
    return f"{_range(begin, end, 'day')} ago" if begin else "less than a day ago"


def _range(begin: int, end: int | None, noun: str) -> str:
    """`no project`, `1 project`, `3 to 5 projects`, `51 projects or more`."""
    if begin == end:
        return f"{begin or 'no'} {plural(begin, noun) if begin else noun}"
    return f"{begin} {noun}s or more" if end is None else f"{begin} to {end} {noun}s"
