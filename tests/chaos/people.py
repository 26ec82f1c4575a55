"""People at work in Label while their projects are moved: each edit is a transaction, and is remembered for
ever.
"""

import json
from collections.abc import Callable
from itertools import pairwise

from sqlalchemy import Connection, Engine, text

from tests.chaos.estate import Estate
from tests.estate import differences, dump, split_session
from tests.estate.compare import Reading, session_row
from worker.errors import SessionUnreadableError
from worker.sessions_csv import Reader, SessionRow, read


class People:
    """They do one thing after the other; what they do follows from a number."""

    def __init__(self, engine: Engine, estate: Estate) -> None:
        self._engine = engine
        self._estate = estate
        self._done = 0

    def edit(self, which: int) -> str:
        """Do something, and say what it was. Raises what the driver raises when a row is locked for longer
        than a moment: then nothing is done.
        """
        self._done += 1
        edits = (
            self._draw_bouts,
            self._draw_bouts,
            self._set_flags,
            self._split,
            self._split,
            self._change_labelings,
            self._note,
            self._rename,
        )
        with self._engine.begin() as conn:
            # As long as nobody sleeps with a row in hand, the migrator keeps none for longer.
            conn.execute(text("set local lock_timeout = '2s'"))
            what, remember = edits[which % len(edits)](conn, which // len(edits))
        remember()
        return what

    def read(self, which: int) -> list[str]:
        """Read a session as Label does; what is wrong with that. Whoever finds nothing, because it was just
        moved, looks again where it is now.
        """
        session_id, reader = self._some_session(which), list(Reader)[which % len(Reader)]
        expected = {(session_id, reader): self._estate.read[session_id, reader]}
        row, found = self._row(session_id), None
        while row != found:
            found = row
            wrong = differences(expected, {(session_id, reader): self._reading(row, reader)})
            if not wrong:
                return []
            row = self._row(session_id)
        place = row.parent_session_data_path or f"{row.project_path}/{row.session_name}"
        return [f"read in the storm from {place}: {line}" for line in wrong]

    def _row(self, session_id: int) -> SessionRow:
        with self._engine.connect() as conn:
            return session_row(conn, session_id)

    def _reading(self, row: SessionRow, reader: Reader) -> Reading:
        try:
            return read(row, reader, self._estate.data_dir)
        except SessionUnreadableError:
            return None

    def _draw_bouts(self, conn: Connection, which: int) -> tuple[str, Callable[[], None]]:
        session_id = self._some_session(which)
        bouts = [{"start": which, "end": which + 1.5, "label": f"edit {self._done}"}]
        return self._set(conn, "sessions", session_id, "bouts", json.dumps(bouts), "jsonb")

    def _set_flags(self, conn: Connection, which: int) -> tuple[str, Callable[[], None]]:
        session_id = self._some_session(which)
        column, kind, value = (
            ("status", "text", "Decision Made"),
            ("keep", "boolean", "true"),
            ("verified", "integer", "1"),
            ("smoking_verified", "integer", "100"),
        )[which % 4]
        return self._set(conn, "sessions", session_id, column, value, kind)

    def _change_labelings(self, conn: Connection, which: int) -> tuple[str, Callable[[], None]]:
        value = json.dumps([{"name": f"edit {self._done}", "color": None}, "smoking"])
        return self._set(conn, "projects", self._some_project(which), "labelings", value, "jsonb")

    def _rename(self, conn: Connection, which: int) -> tuple[str, Callable[[], None]]:
        value = f"renamed/{self._done} Prüfung"
        return self._set(conn, "projects", self._some_project(which), "project_name", value, "text")

    def _set(
        self, conn: Connection, table: str, key: int, column: str, value: str, kind: str
    ) -> tuple[str, Callable[[], None]]:
        name = {"projects": "project_id", "sessions": "session_id"}[table]
        conn.execute(
            text(f"update {table} set {column} = cast(:value as {kind}) where {name} = :key"),
            {"value": value, "key": key},
        )
        written = next(row for row in dump(conn, [table])[table] if row[name] == key)[column]

        def remember() -> None:
            if table == "sessions" and key in self._estate.made:
                self._estate.made[key][column] = written
            else:
                self._estate.edits[table, key, column] = written

        return f"{table} {key}: {column} = {written}", remember

    def _note(self, conn: Connection, which: int) -> tuple[str, Callable[[], None]]:
        project_id = self._some_project(which)
        note = {f"note {self._done}": which}
        conn.execute(
            text(
                "update projects set analysis_config = coalesce(analysis_config, '{}') || cast(:note as jsonb)"
                " where project_id = :key"
            ),
            {"note": json.dumps(note), "key": project_id},
        )

        def remember() -> None:
            self._estate.notes.setdefault(project_id, {}).update(note)

        return f"projects {project_id}: {note}", remember

    def _split(self, conn: Connection, which: int) -> tuple[str, Callable[[], None]]:
        """Cut a session in two, as Label does; one that is too short is left alone."""
        session_id = self._some_session(which)
        # First of all, so that nobody moves it between the look and the cut.
        conn.execute(text("select from sessions where session_id = :id for update"), {"id": session_id})
        row = session_row(conn, session_id)
        frame = self._estate.read[session_id, Reader.SPLIT]
        if frame is None or len(frame) < 4:
            return f"sessions {session_id}: too short to cut", lambda: None
        cut = 1 + which % (len(frame) - 2)
        children = split_session(conn, session_id, [cut], self._estate.data_dir)
        tables = dump(conn, ["sessions", "session_lineage"])
        rows = {one["session_id"]: one for one in tables["sessions"]}
        parent_path = rows[children[0]]["parent_session_data_path"]
        raw_name = parent_path.rpartition("/")[2]
        project_id = rows[session_id]["project_id"]

        def remember() -> None:
            for child, (start, end) in zip(children, pairwise([0, cut, len(frame)]), strict=True):
                self._estate.made[child] = rows[child] | {"raw directory": raw_name}
                part = frame.iloc[start:end].reset_index(drop=True)
                self._estate.read.update({(child, reader): part for reader in Reader})
                self._estate.lineage.append((child, session_id))
            for column in ("status", "keep", "is_visible"):
                if session_id in self._estate.made:
                    self._estate.made[session_id][column] = rows[session_id][column]
                else:
                    self._estate.edits["sessions", session_id, column] = rows[session_id][column]

        return (
            f"sessions {session_id} of project {project_id} cut at {cut}; it lies in {row.parent_session_data_path}",
            remember,
        )

    def _some_session(self, which: int) -> int:
        known = sorted([row["session_id"] for row in self._estate.rows["sessions"]] + list(self._estate.made))
        return int(known[which % len(known)])

    def _some_project(self, which: int) -> int:
        known = sorted(row["project_id"] for row in self._estate.rows["projects"])
        return int(known[which % len(known)])
