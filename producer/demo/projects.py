"""The demo's made-up legacy projects, on disk and in Label's tables. Knows no run and no store."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, text

from producer.demo.recordings import (
    Form,
    LabelsForm,
    Plan,
    Recording,
    rows_for,
    write_session,
)

_SHARES = 30
"""The recorded bytes are divided into so many shares; every session below says how many it takes."""


@dataclass
class DemoProjects:
    """Builds one project after another below `root`; `share_bytes` is what a share of recording is worth."""

    conn: Connection
    root: Path
    share_bytes: int
    seed: int = 0

    def project(self, name: str, participant: str, folder: str | None = None) -> tuple[int, Path]:
        """A project's row and its directory, which is not made yet."""
        participant_id = self._one(
            """insert into participants (participant_code) values (:code)
               on conflict (participant_code) do update set participant_code = excluded.participant_code
               returning participant_id""",
            code=participant,
        )
        path = self.root / f"{folder or name.replace(' ', '_')}_{participant}_20250301_090000"
        labelings = [{"name": "smoking", "color": "#c0392b"}, {"name": "eating", "color": None}]
        project_id = self._one(
            """insert into projects (project_name, participant_id, path, labelings)
               values (:name, :participant_id, :path, cast(:labelings as jsonb)) returning project_id""",
            name=name,
            participant_id=participant_id,
            path=str(path),
            labelings=json.dumps(labelings),
        )
        return project_id, path

    def record(self, path: Path, name: str, shares: float = 1, **options: Any) -> Recording:
        """A session's directory with a new recording of its own."""
        self.seed += 1
        form = options.pop("form", Form.UPLOADED)
        return write_session(
            path / name, Plan(rows=self.rows(shares, form), seed=self.seed, form=form, **options)
        )

    def rows(self, shares: float, form: Form) -> int:
        """How many rows that share is."""
        return rows_for(int(self.share_bytes * shares), form)

    def session(self, project_id: int, name: str, made: Recording, **columns: Any) -> int:
        """A session's row over a whole recording, with the bouts that its labels name."""
        bouts = [{"start": bout.start_ns, "end": bout.end_ns, "label": bout.label} for bout in made.bouts]
        values = {"start_ns": made.start_ns, "stop_ns": made.stop_ns, "bouts": json.dumps(bouts)} | columns
        return self._one(
            f"""insert into sessions (project_id, session_name, {", ".join(values)})
                values (:project_id, :name, {", ".join(f":{column}" for column in values)}) returning session_id""",  # noqa: S608 - column names of our own
            project_id=project_id,
            name=name,
            **values,
        )

    def split(
        self, project_id: int, path: Path, name: str, made: Recording, cuts: Sequence[tuple[int, int]]
    ) -> None:
        """What a split leaves: a hidden parent row, a child for each segment, and which was cut from
        which.
        """
        parent = self.session(project_id, name, made, status="Split", keep=False, is_visible=False)
        for number, (start, end) in enumerate(cuts, 1):
            child = self.session(
                project_id,
                f"{name}.{number}",
                made,
                parent_session_data_path=str(path / name),
                data_start_offset=start,
                data_end_offset=end,
            )
            self._one(
                "insert into session_lineage (child_session_id, parent_session_id) values (:child, :parent) returning id",
                child=child,
                parent=parent,
            )

    def copy(self, source: int, name: str, participant: str, origin: Path) -> Path:
        """A second project over the same recordings: how people share data before there are datasets."""
        project_id, path = self.project(name, participant)
        shutil.copytree(origin, path)
        self.conn.execute(
            text("""
                insert into sessions (project_id, session_name, start_ns, stop_ns, bouts)
                select :project_id, session_name, start_ns, stop_ns, bouts from sessions
                where project_id = :source and parent_session_data_path is null and status <> 'Split'"""),
            {"project_id": project_id, "source": source},
        )
        return path

    def _one(self, query: str, **values: Any) -> int:
        number: int = self.conn.execute(text(query), values).scalar_one()
        return number


def build(engine: Engine, root: Path, *, megabytes: int, say: Callable[[str], None]) -> None:
    """Record about `megabytes` of made-up data as fifteen legacy projects, twelve of them sound."""
    with engine.begin() as conn:
        projects = DemoProjects(conn, root, share_bytes=megabytes * 1_000_000 // _SHARES)
        for group in (_duplicates, _shared_sessions, _splits, _sensors_and_names, _unsound):
            say((group.__doc__ or "").strip().removesuffix("."))
            group(projects)


def _duplicates(projects: DemoProjects) -> None:
    """One week of recordings that three people keep a copy of."""
    project_id, path = projects.project("Baseline week", "P001")
    for day in (3, 4, 5):
        name = f"2025-03-{day:02}_08_00_00"
        made = projects.record(path, name, labels=LabelsForm.OBJECTS)
        projects.session(project_id, name, made, keep=True, verified=1)
    projects.copy(project_id, "Baseline week, second rater", "P001", path)
    projects.copy(project_id, "Baseline week, model training", "P001", path)


def _shared_sessions(projects: DemoProjects) -> None:
    """Two projects that have two sessions in common, and labels in both formats."""
    project_id, path = projects.project("Cessation study", "P002")
    made = {
        name: projects.record(path, name, labels=form)
        for name, form in (
            ("2025-04-01_07_30_00", LabelsForm.LISTS),
            ("2025-04-02_07_30_00", LabelsForm.OBJECTS),
        )
    }
    for name, recording in made.items():
        projects.session(project_id, name, recording)
    other_id, other = projects.project("Cessation study, follow-up", "P002")
    for name, recording in made.items():
        shutil.copytree(path / name, other / name)
        projects.session(other_id, name, recording)
    late = projects.record(other, "2025-05-01_07_30_00", labels=LabelsForm.LISTS)
    projects.session(other_id, "2025-05-01_07_30_00", late, status="Decision Made", keep=True)


def _splits(projects: DemoProjects) -> None:
    """Sessions that Label split at gaps, and one that a person split by hand."""
    project_id, path = projects.project("Nights", "P003")
    third = projects.rows(2, Form.GAPPED) // 3
    gapped = projects.record(path, "2025-06-01_22_00_00", 2, form=Form.GAPPED, gaps=(third, 2 * third))
    projects.split(project_id, path, "2025-06-01_22_00_00", gapped, gapped.segments)
    plain = projects.record(path, "2025-06-02_22_00_00")
    projects.session(project_id, "2025-06-02_22_00_00", plain)
    manual_id, manual = projects.project("Nights, split by hand", "P003")
    whole = projects.record(manual, "2025-06-03_22_00_00", 2)
    middle = whole.rows // 2
    projects.split(manual_id, manual, "2025-06-03_22_00_00", whole, [(0, middle), (middle, whole.rows)])


def _sensors_and_names(projects: DemoProjects) -> None:
    """Gyroscopes, raw watch files, and names that would not do as directories."""
    project_id, path = projects.project("Gestures", "P004")
    made = projects.record(path, "2025-07-01_12_00_00", gyroscope=True, labels=LabelsForm.OBJECTS)
    projects.session(project_id, "2025-07-01_12_00_00", made)
    projects.copy(project_id, "Gestures, shared with the clinic", "P004", path)
    for name, participant in (("Pilot / 2024 ../ draft", "P005"), ("Étude du soir", "P006")):
        project_id, path = projects.project(name, participant, folder=f"pilot_{participant}")
        recorded = projects.record(path, "2024-11-05_18_00_00", form=Form.RECORDED)
        projects.session(project_id, "2024-11-05_18_00_00", recorded)
    project_id, path = projects.project("Long walk", "P007")
    walk = projects.record(path, "2025-08-01_09_00_00", 3)
    projects.session(project_id, "2025-08-01_09_00_00", walk)


def _unsound(projects: DemoProjects) -> None:
    """Three projects that cannot be migrated: no directory, an empty one, one without sessions."""
    projects.project("Lost in the move", "P008")
    _, empty = projects.project("Upload that broke off", "P008")
    empty.mkdir(parents=True)
    _, flat = projects.project("Notes only", "P008")
    flat.mkdir(parents=True)
    (flat / "readme.txt").write_text("The watch was lost.\n", encoding="utf-8")
