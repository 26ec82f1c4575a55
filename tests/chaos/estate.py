"""The rows and files of a schedule's projects, and what is to be true of them for ever. Knows no part of the
program.
"""

import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from sqlalchemy import Connection, Engine, text

from tests.chaos.plan import Flaw, Plan, ProjectPlan, SessionPlan
from tests.estate import (
    Project,
    dump,
    make_participant,
    make_project,
    make_session,
    readings,
    snapshot_tree,
    split_on_upload,
    split_session,
    write_labels,
    write_recording,
)
from tests.estate.compare import Entry, Reading
from worker.sessions_csv import Reader

Row = dict[str, Any]
Edits = dict[tuple[str, int, str], Any]

_CONFIGS: tuple[Any, ...] = (None, None, {"window_s": 60, "notes": "Prüfung", "factor": 0.1})


@dataclass(frozen=True, slots=True, kw_only=True)
class Estate:
    """What the projects are, as it was written, with everything that people have done since.

    `rows` are Label's tables before anything happened, `edits` the values that people put into them, by
    table, key and column. `notes` are keys that they added to a project's analysis_config. `made` are
    sessions that they made, as they made them, and `lineage` where these came from. `trees` is every entry of
    every directory, by project; `whole` every recording, by project and directory; `read` what each reader
    gets of each session.
    """

    legacy_root: Path
    data_dir: Path
    directories: dict[int, Path]
    flaws: dict[int, Flaw]
    rows: dict[str, list[Row]]
    trees: dict[int, dict[bytes, Entry]]
    whole: dict[tuple[int, str], pd.DataFrame]
    read: dict[tuple[int, Reader], Reading]
    edits: Edits = field(default_factory=dict)
    notes: dict[int, Row] = field(default_factory=dict)
    made: dict[int, Row] = field(default_factory=dict)
    lineage: list[tuple[int, int]] = field(default_factory=list)

    @property
    def store(self) -> Path:
        """Where the program keeps what it stores."""
        return self.data_dir / "dataset_store"

    def label_rows(self, table: str, key: str) -> dict[int, Row]:
        """The rows of one of Label's tables as people left them, by key; sessions that they made are not
        among them.
        """
        return {
            row[key]: row
            | {
                column: value
                for (edited, number, column), value in self.edits.items()
                if edited == table and number == row[key]
            }
            for row in self.rows[table]
        }

    def config_of(self, project_id: int) -> Any:
        """The analysis_config of a project, but for what a migration adds."""
        former = self.label_rows("projects", "project_id")[project_id]["analysis_config"]
        own = json.loads(former) if former is not None else None
        notes = self.notes.get(project_id)
        return own if not notes else {**(own or {}), **notes}


def make_estate(engine: Engine, plan: Plan, legacy_root: Path, data_dir: Path) -> Estate:
    """Write the directories and rows of a plan, and remember all of it."""
    chance = random.Random(f"estate {plan.seed}")
    directories: dict[int, Path] = {}
    flaws: dict[int, Flaw] = {}
    with engine.begin() as conn:
        for number, project_plan in enumerate(plan.projects, start=1):
            project = _make(conn, project_plan, number, legacy_root, data_dir, chance)
            if project_plan.flaw is not None:
                flaws[project.project_id] = project_plan.flaw
            elif project.directory is not None:
                directories[project.project_id] = project.directory
    with engine.connect() as conn:
        read = readings(conn, data_dir)
        rows = dump(conn)
    return Estate(
        legacy_root=legacy_root,
        data_dir=data_dir,
        directories=directories,
        flaws=flaws,
        rows=rows,
        trees={number: snapshot_tree(directory) for number, directory in directories.items()},
        whole={
            (row["project_id"], row["session_name"]): frame
            for row in rows["sessions"]
            if row["parent_session_data_path"] is None
            and (frame := read[row["session_id"], Reader.SPLIT]) is not None
        },
        read=read,
    )


def _make(
    conn: Connection,
    plan: ProjectPlan,
    number: int,
    root: Path,
    data_dir: Path,
    chance: random.Random,
) -> Project:
    name = f"study {number} of content {plan.content}"
    participant_id = make_participant(conn)
    columns: dict[str, Any] = {
        "participant_id": participant_id,
        "analysis_config": chance.choice(_CONFIGS),
        "labelings": [{"name": "smoking", "color": "#ff0000"}],
    }
    if plan.flaw is Flaw.NO_DIRECTORY:
        return make_project(conn, root, name, path=str(root / "nowhere" / str(number)), **columns)
    if plan.flaw is Flaw.NO_PATH:
        return make_project(conn, root, name, path=None, **columns)
    if plan.shares:
        # The first of each content comes first: its number is the content's, from one on.
        place = root / f"study_{plan.content + 1}"
        project = replace(make_project(conn, root, name, path=str(place), **columns), directory=place)
    else:
        project = make_project(conn, root, name, directory=f"study_{number}", **columns)
    for session in plan.sessions:
        _make_session(conn, project, session, data_dir)
    return project


def _make_session(conn: Connection, project: Project, plan: SessionPlan, data_dir: Path) -> None:
    assert project.directory is not None
    directory = project.directory / plan.name
    recording = write_recording(directory, rows=plan.rows, seed=plan.seed, gaps=plan.gaps)
    if plan.labels:
        write_labels(directory, [{"start": recording.start_ns, "end": recording.stop_ns, "label": "walk"}])
    if plan.extra_bytes:
        content = random.Random(plan.seed).randbytes(plan.extra_bytes)
        (directory / "raw.bin").write_bytes(content)
    if plan.gaps:
        split_on_upload(conn, project, plan.name, recording)
        return
    session_id = make_session(
        conn,
        project.project_id,
        plan.name,
        recording=recording,
        bouts=[{"start": recording.start_ns, "end": recording.stop_ns, "label": "smoking"}],
    )
    if plan.cuts:
        split_session(conn, session_id, plan.cuts, data_dir)


def exists(engine: Engine, project_id: int) -> bool:
    """Is the project still there?"""
    with engine.connect() as conn:
        query = text("select count(*) from projects where project_id = :id")
        return bool(conn.scalar(query, {"id": project_id}))
