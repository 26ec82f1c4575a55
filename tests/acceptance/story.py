"""One estate on its way: built, rehearsed, migrated, collected, and looked at after each step. Judges
nothing.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import blake3
import pandas as pd
import redis
from sqlalchemy import text

from tests.estate import Entry, Estate, Reading, dump, every_form, readings, snapshot_tree
from tests.support.sites import Site
from worker.db import ledger
from worker.sessions_csv import Reader

LEDGER = {
    "migration_runs",
    "migration_jobs",
    "migration_job_counts",
    "migration_dry_run_blobs",
    "migration_recording_counts",
    "migration_remembered_digests",
}
"""The tables that a dry run may write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of `producer`: its exit code, its words, its JSON document, and the report it wrote."""

    exit_code: int
    words: str
    document: dict[str, Any]
    report: dict[str, Any]
    report_path: Path

    @property
    def details(self) -> dict[int, dict[str, Any]]:
        """What the report says of each project."""
        return {detail["project_id"]: detail for detail in self.report["details"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Everything that a run might change, at one time. `tables` are all but the ledger's."""

    tables: dict[str, list[dict[str, Any]]]
    data_dir: dict[bytes, Entry]
    legacy: dict[bytes, Entry]
    readings: dict[tuple[int, Reader], Reading]

    def by(self, table: str, key: str) -> dict[Any, dict[str, Any]]:
        """The rows of a table by one of its columns."""
        return {row[key]: row for row in self.tables[table]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One estate's way through dry run and real run, kept in memory so that later tests may empty the site.

    `collected` are two later calls of `collect`, the last one after the broker was emptied. `without_legacy`
    is what is read when the legacy directories are away, `contents` the legacy and the stored tree of each
    migrated project, `records` what pandas counts in the file of each session that is no piece of another,
    `wrong_blobs` those not named by their content.
    """

    estate: Estate
    before: Moment
    rehearsed: Moment
    after: Moment
    dry: Call
    real: Call
    finished_at: datetime
    collected: list[Call]
    without_legacy: dict[tuple[int, Reader], Reading]
    contents: dict[int, tuple[dict[bytes, bytes | None], dict[bytes, bytes | None]]]
    inodes: dict[str, set[int]]
    wrong_blobs: list[str]
    records: dict[int, int | None]

    @property
    def migrated(self) -> dict[int, dict[str, Any]]:
        """The details of the projects that were migrated."""
        return {
            number: detail for number, detail in self.real.details.items() if detail["status"] == "migrated"
        }


def tell(site: Site) -> Story:
    """Build an estate of every form, rehearse its migration, migrate it, and look at everything after each
    step.
    """
    with site.engine.begin() as conn:
        estate = every_form(
            conn, site.legacy_root, data_dir=site.data_dir, outside=site.folder / "outside the roots"
        )
    before = _look(site)
    dry = call(site, "enqueue", "--dry-run", "--wait")
    rehearsed = _look(site, with_readings=False)
    real = call(site, "enqueue", "--wait")
    after = _look(site)
    with site.engine.connect() as conn:
        finished_at = ledger.find_run(conn, real.report["run_id"]).finished_at
    assert finished_at is not None
    collected = [call(site, "collect", real.report["run_id"][:8])]
    with redis.Redis.from_url(site.redis_url) as client:
        client.flushdb()
    collected.append(call(site, "collect"))
    return Story(
        estate=estate,
        before=before,
        rehearsed=rehearsed,
        after=after,
        dry=dry,
        real=real,
        finished_at=finished_at,
        collected=collected,
        without_legacy=_readings_without_legacy(site),
        contents={
            number: (content(detail["original_path"]), content(detail["dataset_path"]))
            for number, detail in real.details.items()
            if detail["status"] == "migrated"
        },
        inodes={
            name: _inodes(folder)
            for name, folder in {
                "legacy": site.legacy_root,
                "trees": site.data_dir / "raw_datasets",
                "blobs": site.data_dir / "dataset_store" / "blobs",
            }.items()
        },
        records=_records_of_whole_sessions(before),
        wrong_blobs=[path.name for path in _blobs(site.data_dir) if _blake3(path) != path.name],
    )


def call(site: Site, *args: str) -> Call:
    """Call `producer` with a verb that writes a report."""
    done = site.run_producer(*args, "--json", "--report-dir", "reports")
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    path = site.folder / document["report_path"]
    return Call(
        exit_code=done.returncode,
        words=done.stderr,
        document=document,
        report=json.loads(path.read_bytes()),
        report_path=path,
    )


def _look(site: Site, *, with_readings: bool = True) -> Moment:
    with site.engine.begin() as conn:
        names = conn.scalars(text("select tablename from pg_tables where schemaname = 'public' order by 1"))
        tables = dump(conn, [name for name in names if name not in LEDGER])
        found = readings(conn, site.data_dir) if with_readings else {}
    return Moment(
        tables=tables,
        data_dir=snapshot_tree(site.data_dir),
        legacy=snapshot_tree(site.legacy_root),
        readings=found,
    )


def _readings_without_legacy(site: Site) -> dict[tuple[int, Reader], Reading]:
    """What is read when the legacy directories are not there any more."""
    aside = site.legacy_root.rename(site.folder / "legacy, put aside")
    try:
        with site.engine.connect() as conn:
            return readings(conn, site.data_dir)
    finally:
        aside.rename(site.legacy_root)


def _records_of_whole_sessions(moment: Moment) -> dict[int, int | None]:
    """How many records pandas reads from the file of each session that is not a piece of another; None for
    none.
    """
    paths = {number: row["path"] for number, row in moment.by("projects", "project_id").items()}
    return {
        row["session_id"]: _records(
            Path(paths[row["project_id"]], row["session_name"], "accelerometer_data.csv")
        )
        for row in moment.tables["sessions"]
        if not row["parent_session_data_path"] and paths[row["project_id"]]
    }


def _records(path: Path) -> int | None:
    try:
        return len(pd.read_csv(path)) or None
    except (ValueError, OSError):
        return None


def content(root: str) -> dict[bytes, bytes | None]:
    """The SHA-256 of each file and None for each directory, by relative path; links count as what they point
    to.
    """
    found: dict[bytes, bytes | None] = {}
    top = os.fsencode(os.path.realpath(root))
    for folder, directories, files in os.walk(top, followlinks=True):
        for name in directories:
            found[os.path.relpath(os.path.join(folder, name), top)] = None
        for name in files:
            path = os.path.join(folder, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, top)] = hashlib.file_digest(file, "sha256").digest()
    return found


def _inodes(root: Path) -> set[int]:
    return {path.lstat().st_ino for path in _files(root)}


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in names)


def _blobs(data_dir: Path) -> list[Path]:
    return list(_files(data_dir / "dataset_store" / "blobs"))


def _blake3(path: Path) -> str:
    return blake3.blake3(path.read_bytes()).hexdigest()


def stored_tree(data_dir: Mapping[bytes, Entry], path: str) -> dict[bytes, Entry]:
    """The entries of one stored tree by their names in it; `.` is the tree itself."""
    top = b"raw_datasets/" + os.fsencode(os.path.basename(path))
    inside = {name.removeprefix(top + b"/"): e for name, e in data_dir.items() if name.startswith(top + b"/")}
    return {b".": data_dir[top], **inside}


def is_blob(name: bytes, entry: Entry) -> bool:
    """Is this entry of the data directory one of the store's blobs?"""
    return name.startswith(b"dataset_store/blobs/") and entry.kind == "file"
