"""Datasets that Label registered itself, with projects that read them, and what must hold of one that is
adopted or given back.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from tests.estate import Project, dump, make_dataset, make_project, make_session, snapshot_tree
from tests.estate.compare import Entry, Reading, differences, readings
from tests.estate.files import write_recording
from tests.support.sites import Site
from worker.sessions_csv import Reader
from worker.store.label_hash import label_hash

_ROWS = ("raw_datasets", "raw_dataset_sessions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A dataset as Label registered it: its directory and rows then, and what its readers got."""

    site: Site
    dataset_id: int
    project: Project
    tree: Path
    files: Mapping[bytes, Entry]
    inode: int
    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    read: Mapping[tuple[int, Reader], Reading]

    def check_read(self) -> None:
        """Every reader of every session of its project gets what it got, and every file has its bytes."""
        with self.site.engine.connect() as conn:
            now = readings(conn, self.site.data_dir, project_id=self.project.project_id)
        assert not differences(self.read, now)
        assert any(one is not None for one in now.values())
        assert {name: entry.content for name, entry in snapshot_tree(self.tree).items()} == {
            name: entry.content for name, entry in self.files.items()
        }

    def check_untouched(self) -> None:
        """It is Label's as before: the same directory with the same modes and times, and the same rows."""
        self.check_read()
        assert self.tree.stat().st_ino == self.inode
        assert snapshot_tree(self.tree) == self.files
        assert self.rows_now() == self.rows

    def check_adopted(self) -> None:
        """It is ours: read-only links of blobs, whose rows say so, and what Label had lies in quarantine."""
        self.check_read()
        entries = snapshot_tree(self.tree)
        assert {entry.mode for entry in entries.values()} == {0o555, 0o444}
        assert all(entry.links > 1 for entry in entries.values() if entry.kind == "file")
        (row,) = self.rows_now()["raw_datasets"]
        (before,) = self.rows["raw_datasets"]
        changed = {name for name, value in row.items() if value != before[name]}
        assert (
            {"dataset_hash"} <= changed <= {"dataset_hash", "file_size_bytes", "session_count", "updated_at"}
        )
        manifest = self.site.settings.store_dir / "manifests" / f"{row['dataset_hash']}.json"
        assert manifest.exists()
        says = json.loads(manifest.with_suffix(".row.json").read_text())
        assert (says["dataset_id"], says["registered_hash"]) == (self.dataset_id, before["dataset_hash"])
        assert [one["raw_session_id"] for one in says["sessions"]] == [
            one["raw_session_id"]
            for one in sorted(self.rows_now()["raw_dataset_sessions"], key=lambda row: row["session_name"])
        ]
        (kept,) = self.set_aside()
        assert kept.stat().st_ino == self.inode
        assert snapshot_tree(kept) == self.files

    def rows_now(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The rows of the dataset and its sessions."""
        with self.site.engine.connect() as conn:
            return _rows_of(conn, self.dataset_id)

    def state(self) -> str | None:
        """How far its adoption is."""
        with self.site.engine.connect() as conn:
            return conn.execute(
                text("""
                    select state from migration_adoptions where dataset_id = :id
                    order by adoption_id desc limit 1"""),
                {"id": self.dataset_id},
            ).scalar_one_or_none()

    def set_aside(self) -> list[Path]:
        """Where what Label had lies, if it is in quarantine."""
        return sorted(self.site.settings.store_dir.glob(f"quarantine/adopted-{self.dataset_id}-*/tree"))


def register(site: Site, name: str, *seeds: int, rows: int = 20, digest: str | None = None) -> Registered:
    """A dataset of a session for each seed, with labels.json, as Label's scan registers it, and a project
    that was made from it: one session is read as it is, one is a part of a recording. `digest` is what its
    row has, if not Label's hash of it.
    """
    tree = site.data_dir / "raw_datasets" / name
    for seed in seeds:
        write_recording(tree / f"day {seed}", rows=rows, seed=seed)
    (tree / f"day {seeds[0]}" / "labels.json").write_text("[[1, 2]]")
    (tree / "notes" / "empty").mkdir(parents=True)
    (tree / "at the top").write_text("not in a session")
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, f"of {name}", path=None, project_type="dataset_based")
        dataset_id = make_dataset(
            conn, tree, digest or str(label_hash(str(tree))), project_id=project.project_id
        )
        for number, seed in enumerate(seeds):
            make_session(
                conn,
                project.project_id,
                f"day {seed}",
                parent_path=tree / f"day {seed}",
                dataset_id=dataset_id,
                raw_session_name=f"day {seed}",
                offsets=(2, rows // 2) if number % 2 else None,
                stop_ns=2**62,
            )
    with site.engine.connect() as conn:
        return Registered(
            site=site,
            dataset_id=dataset_id,
            project=project,
            tree=tree,
            files=snapshot_tree(tree),
            inode=tree.stat().st_ino,
            rows=_rows_of(conn, dataset_id),
            read=readings(conn, site.data_dir, project_id=project.project_id),
        )


def _rows_of(conn: Connection, dataset_id: int) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    return {
        table: [row for row in rows if row["dataset_id"] == dataset_id]
        for table, rows in dump(conn, _ROWS).items()
    }
