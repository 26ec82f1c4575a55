"""A small lab whose projects share recordings, and what must be readable in it whatever was done. Shares no
code with the program: what a session reads is found by Label's own rule.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, text

from tests.estate import Entry, Project, make_project, record_session, snapshot_tree, split_session
from tests.support.sites import Site
from worker.store.digest import digest_of

ROWS = 12
"""Records of each recording."""

_RECORDING = "accelerometer_data.csv"


@dataclass(slots=True)
class Lab:
    """Four projects: two of equal content, one with a recording in common with these, one in the directory
    of the first.
    """

    site: Site
    projects: dict[int, Project] = field(default_factory=dict)
    directories: dict[Path, dict[bytes, Entry]] = field(default_factory=dict)
    """What each legacy directory holds."""
    recordings: dict[int, bytes] = field(default_factory=dict)
    """What each session's recording is."""
    parts: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Which records of it each session is."""
    bouts: dict[int, Any] = field(default_factory=dict)
    """What people drew in each session."""

    @staticmethod
    def build(site: Site) -> "Lab":
        """Empty the site, and make the projects."""
        site.empty()
        lab = Lab(site)
        with site.engine.begin() as conn:
            first = lab._record(conn, make_project(conn, site.legacy_root, "first"), 1, 2)
            lab._record(conn, make_project(conn, site.legacy_root, "overlapping"), 2, 3)
            lab._record(conn, make_project(conn, site.legacy_root, "equal"), 1, 2)
            again = make_project(conn, site.legacy_root, "same directory", path=first.path)
            lab._record(conn, Project(**{**_fields(again), "directory": first.directory}), 1, 2)
        lab.directories = {folder: snapshot_tree(folder) for folder in lab._folders()}
        return lab

    def _record(self, conn: Connection, project: Project, *seeds: int) -> Project:
        self.projects[project.project_id] = project
        for seed in seeds:
            made = record_session(conn, project, f"day {seed}", rows=ROWS, seed=seed)
            self.recordings[made.session_id] = made.recording.path.read_bytes()
            self.parts[made.session_id] = (0, ROWS)
        return project

    def _folders(self) -> set[Path]:
        return {Path(str(project.path)) for project in self.projects.values()}

    # What people do -----------------------------------------------------------------------------------------

    def draw(self, which: int) -> None:
        """Somebody labels a session."""
        session_id = self._some_session(which)
        if session_id is None:
            return
        bouts = [{"start": which, "end": which + 1, "label": "smoking"}]
        with self.site.engine.begin() as conn:
            conn.execute(
                text("update sessions set bouts = cast(:bouts as jsonb) where session_id = :id"),
                {"bouts": json.dumps(bouts), "id": session_id},
            )
        self.bouts[session_id] = bouts

    def split(self, which: int) -> None:
        """Somebody splits a session in two."""
        session_id = self._some_session(which)
        if session_id is None or self.parts[session_id][1] - self.parts[session_id][0] < 2:
            return
        first, last = self.parts[session_id]
        cut = 1 + which % (last - first - 1)
        with self.site.engine.begin() as conn:
            # As Label's pages do: nothing moves the session between the look and the cut.
            conn.execute(text("select from sessions where session_id = :id for update"), {"id": session_id})
            children = split_session(conn, session_id, [cut], self.site.data_dir)
            kept = conn.execute(
                text("select session_id, bouts from sessions where session_id = any(:ids)"), {"ids": children}
            )
            bouts = {row.session_id: row.bouts for row in kept}
        for child, part in zip(children, ((first, first + cut), (first + cut, last)), strict=True):
            self.recordings[child] = self.recordings[session_id]
            self.parts[child] = part
            self.bouts[child] = bouts[child]

    def delete(self, project_id: int) -> None:
        """Label deletes a project."""
        own = text("select session_id from sessions where project_id = :id")
        with self.site.engine.begin() as conn:
            conn.execute(text("select from projects where project_id = :id for update"), {"id": project_id})
            ids = list(conn.scalars(own, {"id": project_id}))
            conn.execute(
                text(
                    "delete from session_lineage where child_session_id = any(:ids) or parent_session_id = any(:ids)"
                ),
                {"ids": ids},
            )
            conn.execute(text("delete from projects where project_id = :id"), {"id": project_id})
        del self.projects[project_id]
        for session_id in ids:
            for known in (self.recordings, self.parts, self.bouts):
                known.pop(session_id, None)

    def _some_session(self, which: int) -> int | None:
        known = sorted(self.recordings)
        return known[which % len(known)] if known else None

    # Where things are ---------------------------------------------------------------------------------------

    def blobs_with_a_copy(self) -> list[Path]:
        """The blobs of which a legacy directory of a project that is there has the bytes as well."""
        places = [
            place
            for folder in self._folders()
            for place in (folder, *self._moved_to(folder))
            if place.is_dir()
        ]
        have = {
            digest_of("blake3", path.read_bytes())
            for place in places
            for path in place.rglob("*")
            if path.is_file()
        }
        return sorted(path for path in self.site.settings.store_dir.glob("blobs/*/*") if path.name in have)

    def _moved_to(self, folder: Path) -> list[Path]:
        with self.site.engine.connect() as conn:
            rows = conn.execute(
                text(
                    "select distinct moved_to from migration_reclaims where state in ('moving', 'reclaimed', 'undoing')"
                    " and moved_from = :folder"
                ),
                {"folder": str(folder)},
            )
            return [Path(row.moved_to) for row in rows]

    def age_checks(self) -> None:
        """Let all that was read have been read two months ago."""
        with self.site.engine.begin() as conn:
            conn.execute(
                text("update migration_blob_checks set checked_at = checked_at - interval '60 days'")
            )

    # What must hold -----------------------------------------------------------------------------------------

    def findings(self) -> Iterator[str]:
        """What is not as it must be."""
        with self.site.engine.connect() as conn:
            rows = list(conn.execute(text(_SESSIONS)))
            yield from self._rows_left(conn)
        if {row.session_id for row in rows} != set(self.recordings):
            yield f"sessions {sorted({row.session_id for row in rows} ^ set(self.recordings))} are gone, or nobody's"
        for row in rows:
            yield from self._of_session(row)
        for folder, before in self.directories.items():
            yield from self._of_directory(folder, before)
        yield from self._of_store()

    def _of_session(self, row: Row[Any]) -> Iterator[str]:
        if row.session_id not in self.recordings:
            return
        name = f"session {row.session_id} of project {row.project_id} ({row.project_type})"
        folder = row.parent_session_data_path or f"{row.path}/{row.session_name}"
        try:
            content = Path(folder, _RECORDING).read_bytes()
        except OSError as error:
            yield f"{name} cannot be read: {error}"
            return
        if content != self.recordings[row.session_id]:
            yield f"{name} reads other bytes from {folder}"
        part = (row.data_start_offset or 0, ROWS if row.data_end_offset is None else row.data_end_offset)
        if part != self.parts[row.session_id]:
            yield f"{name} reads the records {part} instead of {self.parts[row.session_id]}"
        if (row.bouts or []) != (self.bouts.get(row.session_id) or []):
            yield f"{name} lost what people drew"
        is_legacy = row.project_type in (None, "legacy")
        if is_legacy != (row.path is not None) or is_legacy != (row.refs == 0):
            yield f"{name}: its project is neither legacy nor migrated"

    def _of_directory(self, folder: Path, before: dict[bytes, Entry]) -> Iterator[str]:
        states = self._reclaims(folder)
        places = [place for place in (folder, *self._moved_to(folder)) if place.exists()]
        if len(places) > 1:
            yield f"{folder} is there, and moved away as well"
        if not places and "purged" not in states:
            yield f"{folder} is gone, and no purge says so: {states}"
        for place in places:
            if snapshot_tree(place) != before:
                yield f"{place} is not what it was"

    def _reclaims(self, folder: Path) -> list[str]:
        with self.site.engine.connect() as conn:
            found = text(
                "select state from migration_reclaims where moved_from = :folder order by reclaim_id"
            )
            return list(conn.scalars(found, {"folder": str(folder)}))

    def _rows_left(self, conn: Connection) -> Iterator[str]:
        between = text("select state from migration_reclaims where state in ('moving', 'undoing', 'purging')")
        yield from (f"a reclaim is left {state}" for state in conn.scalars(between))
        open_jobs = text("select count(*) from migration_jobs where state in ('queued', 'running')")
        if left := conn.scalar(open_jobs):
            yield f"{left} jobs have not ended"

    def _of_store(self) -> Iterator[str]:
        store = self.site.settings.store_dir
        for blob in store.glob("blobs/*/*"):
            if digest_of("blake3", blob.read_bytes()) != blob.name:
                yield f"blob {blob.name[:12]} is bad"
        if (store / "staging").exists() and (left := os.listdir(store / "staging")):
            yield f"left in staging: {left}"


_SESSIONS = """
    select s.session_id, s.session_name, s.parent_session_data_path, s.data_start_offset, s.data_end_offset, s.bouts,
           p.project_id, p.path, p.project_type,
           (select count(*) from project_dataset_refs r where r.project_id = p.project_id) as refs
    from sessions s join projects p using (project_id) order by s.session_id"""


def _fields(project: Project) -> dict[str, Any]:
    return {"project_id": project.project_id, "name": project.name, "path": project.path}
