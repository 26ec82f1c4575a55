"""What people read of datasets, made from values: tables and lines of text. Pure: prints nothing."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from rich.table import Table

from producer.cli.escaping import escape
from producer.datasets.listed import Listed, Listing
from producer.datasets.shown import Shown
from producer.datasets.whereis import StoredBlob, Whereabouts
from producer.report.notation import PLACES, ago, places, plural
from worker.db.adoptions import Adoption
from worker.db.catalog import CatalogEntry, Content, Sharer, StoredSession
from worker.db.garbage import Fate
from worker.store.lookup import StoredFile
from worker.units import human_bytes

ROWS = 50
"""So many rows of each kind are shown; --json has all of them."""

_KEPT_BY = {
    "projects": "projects",
    "split_configs": "splits",
    "sessions": "sessions",
    "rollbacks": "rollbacks that are possible",
    "paths": "paths of sessions",
}
"""What keeps a dataset, in the words of a gc's answer."""


def table_of(*headings: str, right: Sequence[str] = (), folds: Sequence[str] = ()) -> Table:
    """A table in the form of all: on a narrow terminal names give way, by more lines; numbers never do."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        if heading in folds:
            table.add_column(heading, overflow="fold", min_width=10, max_width=60)
        else:
            table.add_column(heading, no_wrap=True, justify="right" if heading in right else "left")
    return table


def listing_table(listing: Listing, rows: int = ROWS) -> Table:
    """Datasets at a glance."""
    table = table_of(
        *("id", "hash", "size", "sessions", "projects", "verified", "name", "legacy"),
        right=("id", "size", "sessions", "projects"),
        folds=("name", "legacy"),
    )
    for one in listing.found[:rows]:
        entry = one.entry
        table.add_row(
            str(entry.dataset_id),
            entry.dataset_hash[:12],
            _size(entry.size_bytes),
            f"{entry.sessions:,}",
            f"{entry.projects:,}",
            _verified(one, listing.at),
            escape(entry.dataset_name),
            legacy_words(entry),
        )
    return table


def listing_summary(listing: Listing, rows: int = ROWS) -> Iterator[str]:
    """What was found, in a line or two."""
    found = listing.found
    if len(found) > rows:
        yield f"[dim]… and {len(found) - rows:,} more: --limit {len(found)}, or --json[/]"
    of_all = "" if len(found) == listing.total else f" of {listing.total:,}"
    size = human_bytes(sum(one.entry.size_bytes or 0 for one in found))
    unreferenced = sum(one.is_unreferenced for one in found)
    never = sum(one.is_ours and one.entry.verified_at is None for one in found)
    counted = [f"[bold]{len(found):,}[/]{of_all} {plural(listing.total, 'dataset')}, {size}"]
    counted += [f"{unreferenced:,} that nothing refers to"] if unreferenced else []
    counted += [f"{never:,} not read in full since stored"] if never else []
    yield ", ".join(counted)


def report_lines(document: Mapping[str, Any], page: str) -> Iterator[str]:
    """What the page about all datasets and projects is about, and where it is."""
    content, space, gc = document["content"], document["space"], document["gc"]
    yield (
        f"[bold]{document['datasets']:,}[/] {plural(document['datasets'], 'dataset')}, "
        f"{document['datasets_shared']:,} shared, of {_count(document['projects_with_datasets'], 'project')}: "
        f"{human_bytes(content['stored'])} stored, {human_bytes(content['saved'])} saved by sharing"
    )
    yield (
        f"{human_bytes(space['reclaimable'])} reclaimable in {space['directories']:,} legacy {plural(space['directories'], 'directory', 'directories')}, "
        f"{human_bytes(space['moved_away'])} moved away; a gc would take {human_bytes(gc['bytes'])} of "
        f"{_count(gc['due'], 'dataset')}"
    )
    yield f"Page: {escape(page)}"


def shown_lines(shown: Shown) -> Iterator[str]:
    """One dataset, its facts a line each."""
    one, content = shown.listed, shown.content
    entry = one.entry
    yield f"[bold]dataset {entry.dataset_id}[/] {escape(entry.dataset_name)}"
    yield f"  hash      {entry.dataset_hash}"
    yield f"  label     {_label_hash(shown)}"
    yield f"  tree      {escape(entry.file_path)}"
    by = "" if one.is_ours else "registered by Label itself, "
    by = by if shown.stored_by is None else f"by project {shown.stored_by}, "
    yield f"  stored    {by}{when(entry.stored_at)}"
    if shown.adoption is not None:
        yield from _adoption_lines(shown.adoption)
    yield f"  size      {_size(entry.size_bytes)}, {_count(entry.sessions, 'session')}"
    yield from _content_lines(content)
    yield f"  verified  {_verified_in_full(shown)}"
    yield f"  legacy    {legacy_words(entry)}"
    yield f"  gc        {fate_words(shown.fate)}"


def _label_hash(shown: Shown) -> str:
    if not shown.has_label_hash:
        return "Label's own hash was not computed yet; an export or import of a project does that when it needs it"
    return shown.label_hash or "no hash of Label's: a name is not UTF-8, which its tool does not survive"


def _adoption_lines(one: Adoption) -> Iterator[str]:
    same = "" if one.label_hash in {None, one.registered_hash} else "; Label had rewritten it since"
    yield f"  adopted   {when(one.adopted_at)}, registered by Label as {one.registered_hash}{same}"
    if one.is_set_aside:
        yield f"            what Label had: quarantine/{one.folder}; producer datasets adopt --undo {one.dataset_id}"


def _content_lines(content: Content) -> Iterator[str]:
    if content.blobs is None:
        yield "  content   not in the index of blobs; producer verify --store or producer gc adds it"
        return
    others = ""
    if content.shared_with:
        shared = human_bytes(content.size_bytes - content.own_bytes)
        others = f", {shared} shared with {_ids('dataset', content.shared_with)}"
    yield (
        f"  content   {_count(content.blobs, 'blob')}, {human_bytes(content.size_bytes)}: "
        f"{human_bytes(content.own_bytes)} its own{others}"
    )


def _verified_in_full(shown: Shown) -> str:
    entry = shown.listed.entry
    if not shown.listed.is_ours:
        return "never: what Label registered itself is not verified"
    if entry.verified_at is not None:
        return f"{ago(entry.verified_at, shown.at)}, {when(entry.verified_at)}"
    unread = shown.content.never_read_bytes
    what = (
        f"{human_bytes(unread)} not read since stored"
        if unread
        else "its manifest and tree were not compared yet"
    )
    return f"never in full: {what}; producer verify --store --dataset {entry.dataset_id}"


def sharers_table(shown: Shown) -> Table:
    """The projects that have the dataset."""
    table = table_of(
        *("project", "sessions", "migrated", "name", "legacy directory"),
        right=("project", "sessions"),
        folds=("name",),
    )
    for one in shown.sharers[:ROWS]:
        table.add_row(
            str(one.project_id),
            f"{one.sessions:,}",
            _how(one),
            escape(one.project_name or "deleted"),
            _place(one),
        )
    return table


def sessions_table(sessions: Sequence[StoredSession]) -> Table:
    """The sessions of a dataset."""
    table = table_of(
        "session", "files", "labels.json", "read by", right=("files", "read by"), folds=("session",)
    )
    for one in sessions[:ROWS]:
        labels = "yes" if one.has_labels else "no"
        table.add_row(
            escape(one.session_name),
            "?" if one.files is None else f"{one.files:,}",
            labels,
            _count(one.readers, "session"),
        )
    return table


def whereis_lines(found: Whereabouts) -> Iterator[str]:
    """What has the digest, where its file is, and when that was read."""
    if found.asked_file is not None:
        yield f"{escape(found.asked_file)} has the digest {found.digest}"
    if found.dataset is not None or found.manifest is not None:
        yield from _whereis_dataset(found)
    if found.blob is not None:
        yield from _whereis_blob(found, found.blob)


def _whereis_dataset(found: Whereabouts) -> Iterator[str]:
    number = "without a row" if found.dataset is None else str(found.dataset.dataset_id)
    yield f"[bold]dataset {number}[/] {found.digest}"
    yield f"  manifest  {_file_words(found, found.manifest)}"
    if found.dataset is not None:
        yield f"  tree      {escape(found.dataset.tree or '')}"
        yield f"  projects  {', '.join(map(str, found.dataset.project_ids)) or 'none refers to it'}"
        yield f"[dim]  more: producer datasets show {found.dataset.dataset_id}[/]"


def _whereis_blob(found: Whereabouts, blob: StoredBlob) -> Iterator[str]:
    yield f"[bold]blob[/] {found.digest}"
    yield f"  file      {_file_words(found, blob.file)}"
    checked = "never since stored" if blob.check is None else ago(blob.check.checked_at, found.at)
    copies = (
        f", the oldest check of {blob.check.places} copies" if blob.check and blob.check.places > 1 else ""
    )
    yield f"  verified  {checked}{copies}"
    yield f"  datasets  {len(blob.uses):,}" if blob.uses else "  datasets  none needs it: a gc takes it"


def _file_words(found: Whereabouts, file: StoredFile | None) -> str:
    if file is None:
        return (
            "missing: producer verify --store --repair"
            if found.is_visible
            else "the store is not visible here"
        )
    links = f", {_count(file.names - 1, 'link')} in trees" if file.names > 1 else ""
    return f"{escape(file.path)}, {human_bytes(file.size_bytes)}{links}"


def uses_table(blob: StoredBlob) -> Table:
    """The datasets that have a content, a row for each place in their trees."""
    table = table_of(
        "dataset",
        "projects",
        "path in the dataset",
        "sessions that read it",
        right=("dataset",),
        folds=("projects", "path in the dataset", "sessions that read it"),
    )
    rows = ((use, path) for use in blob.uses for path in (use.paths if use.paths is not None else ("?",)))
    for use, path in islice(rows, ROWS):
        folder = path.partition("/")[0]
        readers = [one for one in use.sessions if one.raw_session_name == folder]
        table.add_row(
            "-" if use.dataset_id is None else str(use.dataset_id),
            few([str(number) for number in use.project_ids]),
            escape(path),
            escape(few([f"{one.project_id}: {one.session_name}" for one in readers])),
        )
    return table


def few(words: Sequence[str], shown: int = 3) -> str:
    """The first few of many: `3, 5, 8 and 12 more`."""
    more_of = f" and {len(words) - shown:,} more" if len(words) > shown else ""
    return f"{', '.join(words[:shown])}{more_of}" or "none"


def more(count: int, what: str) -> Iterator[str]:
    """That there are more than are shown."""
    if count > ROWS:
        yield f"[dim]… and {count - ROWS:,} more {what}: --json[/]"


def legacy_words(entry: CatalogEntry) -> str:
    """Where the legacy directories of a dataset's projects are: `2 in place, 1 purged`."""
    return places({name: getattr(entry, name) for name in PLACES})


def fate_words(fate: Fate) -> str:
    """What a gc would do to a dataset, and why."""
    if not fate.is_ours:
        return "leaves it: Label registered it itself"
    if fate.references:
        return f"leaves it, needed by: {', '.join(_KEPT_BY[kind] for kind in fate.references)}"
    if fate.is_due:
        return f"would put it into quarantine: nothing has referred to it since {when(fate.since)}"
    if fate.since is None:
        return "would note that nothing refers to it; a later one takes it, once that has been so for the grace time"
    return f"leaves it until the grace time is over: nothing has referred to it since {when(fate.since)}"


def when(moment: datetime | None) -> str:
    """A time, for people."""
    return "at an unknown time" if moment is None else f"{moment:%Y-%m-%d %H:%M} UTC"


def _verified(one: Listed, now: datetime) -> str:
    if not one.is_ours:
        return "not ours"
    return "never" if one.entry.verified_at is None else ago(one.entry.verified_at, now)


def _how(one: Sharer) -> str:
    if one.converted_at is None:
        return "-"
    did = {True: "stored it", False: "reused it", None: "converted"}[one.stored]
    return f"{did} {one.converted_at:%Y-%m-%d %H:%M}"


def _place(one: Sharer) -> str:
    return PLACES[one.legacy] if one.legacy is not None else "-"


def _size(size_bytes: int | None) -> str:
    return "?" if size_bytes is None else human_bytes(size_bytes)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {plural(count, noun)}"


def _ids(noun: str, numbers: Sequence[int], shown: int = 10) -> str:
    """Things by their ids, the first few of many: `datasets 3, 5 and 12 more`."""
    more_of = f" and {len(numbers) - shown:,} more" if len(numbers) > shown else ""
    return f"{plural(len(numbers), noun)} {', '.join(map(str, numbers[:shown]))}{more_of}"
