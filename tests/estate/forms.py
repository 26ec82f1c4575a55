"""One estate with every form that the label contract, sections 3 to 5, and the design's edge cases describe.

Each project has a short key. What a key stands for is said beside the line that makes it.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from tests.estate.files import Form, Recording, write_labels, write_recording
from tests.estate.rows import (
    JSON_NULL,
    Project,
    RawJson,
    Session,
    make_dataset,
    make_lineage,
    make_model,
    make_participant,
    make_project,
    make_session,
    record_session,
    split_on_upload,
    split_session,
)
from worker.errors import (
    DirectoryMissingError,
    EntryRefusedError,
    MigratorError,
    NoSessionsError,
    NotADirectoryPathError,
    PathRefusedError,
)

DAY = "2025-07-{:02}_08_30_00"
"""Names of sessions, as the watch makes them."""

_LABELINGS: tuple[Any, ...] = (
    None,
    [{"name": "smoking", "color": "#ff0000"}, {"name": "eating", "color": None}],
    ["smoking", "drinking"],
    [
        json.dumps({"name": "smoking", "color": "#00ff00"}),
        {"name": "gone", "color": None, "is_deleted": True},
    ],
    [],
    JSON_NULL,
)
_CONFIGS: dict[str, Any] = {
    "config_object": {"window_s": 60, "notes": "Prüfung", "nested": {"b": [1, 2.5], "a": None}},
    "config_json_null": JSON_NULL,
    "config_list": [1, "two"],
    "config_string": "as it was",
    "config_number": RawJson("12345678901234567890.10"),
    "config_our_keys": {
        "migrated_from": "another server",
        "original_path": "/old",
        "dataset_id": 7,
        "run_id": None,
    },
}
_LABELS: dict[str, Any] = {
    "objects": [{"start": 1_000_000_000_000, "end": 1_000_000_100_000, "label": "smoking"}],
    "objects_without_label": [{"start": 1_000_000_000_000, "end": 1_000_000_100_000}],
    "objects_with_times": [{"start_time": 1_000_000_000_000, "end_time": 1_000_000_100_000}, {}],
    "lists": [[1_000_000_000_000, 1_000_000_100_000], [1, 2, "eating"], [1, 2, "eating", 0.5, "more"]],
    "no_list": {"bouts": []},
    "empty_list": [],
    "no_json": b"{ this is no JSON",
    "no_text": b'[{"label": "caf\xe9"}]\xff',
    "with_nul": b'[{"label": "a\x00b"}]',
    "empty": b"",
    "huge": [{"start": number, "end": number + 1, "label": "x" * 40} for number in range(1500)],
    "unicode": [{"start": 0, "end": 1, "label": "курить 🚬"}],
}
_BOUTS: dict[str, Any] = {
    "null": None,
    "empty": [],
    "json_null": JSON_NULL,
    "objects": [{"start": 1_000_000_000_000, "end": 1_000_000_100_000, "label": "smoking"}],
    "floats": [{"end": 1_000_000_100_000.25, "start": 1_000_000_000_000.5, "label": "smoking"}],
    "confidence": [
        {"start": 1, "end": 2, "label": "a", "confidence": 0.75},
        {"start": 1, "end": 2, "label": "a", "confidence": None},
    ],
    "duplicates": [{"start": 1, "end": 2, "label": "a"}, {"start": 1, "end": 2, "label": "a"}],
    "arrays": [[1, 2], [1, 2, "smoking", 0.5], {"start": 3, "end": 4, "label": "smoking"}],
    "double_encoded": json.dumps([{"start": 1, "end": 2, "label": "smoking"}]),
    "big_numbers": RawJson('[{"start": 1000000000000.0, "end": 12345678901234567890, "label": "1e2"}]'),
}
_STATUSES = ("Initial", "Visualized", "Decision Made", "Split", "unlabeled", None)
_ROUGH_RECORDINGS: dict[str, bytes] = {
    "zero_bytes": b"",
    "header_only": b"ns_since_reboot,x,y,z\n",
    "header_without_newline": b"ns_since_reboot,accel_x,accel_y,accel_z",
    "garbage": bytes(range(256)) * 4,
    "other_columns": b"time,a,b\n1,2,3\n4,5,6\n",
    "uneven": b"ns_since_reboot,x,y,z\n1,2,3,4\n1,2,3,4,5,6\n",
    "no_numbers": b"ns_since_reboot,x,y,z\n1,2,three,4\n",
    "quoted_newline": b'ns_since_reboot,x,y,z,note\n1,2,3,4,"two\nlines"\n2,3,4,5,one\n',
    "byte_order_mark": b"\xef\xbb\xbfns_since_reboot,x,y,z\n1,2,3,4\n2,3,4,5\n",
    "lone_returns": b"ns_since_reboot,x,y,z\r1,2,3,4\r2,3,4,5\r",
    "unsorted": b"ns_since_reboot,x,y,z\n3,1,1,1\n1,2,2,2\n2,3,3,3\n",
    "missing_values": b"ns_since_reboot,x,y,z\n1,,2,3\n2,3,nan,4\n",
    "whitespace_lines": b"ns_since_reboot,x,y,z\n1,2,3,4\n   \n\t\n2,3,4,5\n\n\n",
}
_ODD_NAMES = {
    "slash": "study/night",
    "climbing": "x/../../evil",
    "quotes": 'it\'s "quoted"; drop table projects; --',
    "long": "L" * 255,
    "unicode": "Étude Ünïcode 研究 🚬",
    "right_to_left": "\u202eevil\u202c מחקר",
    "spaces": "  a\tb\nc  ",
    "dots": "..",
    "percent": "100% %s {0} \\x00 $HOME",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Estate:
    """What `every_form` built.

    `failing` names the error that ends a migration of the project. `skipped` have no path. `untouched` are
    based on datasets already and must never change. All others migrate. `equal` are groups of projects with
    the same content, which must end up with one dataset. `unmoved` are sessions of migrating projects whose
    rows stay as they are: their directory is missing, or their parent path is not for the migrator to judge.
    """

    root: Path
    outside: Path
    data_dir: Path
    projects: dict[str, int] = field(default_factory=dict)
    paths: dict[str, str | None] = field(default_factory=dict)
    sessions: dict[str, dict[str, int]] = field(default_factory=dict)
    failing: dict[str, type[MigratorError]] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    untouched: set[str] = field(default_factory=set)
    equal: list[set[str]] = field(default_factory=list)
    unmoved: set[int] = field(default_factory=set)

    @property
    def migrating(self) -> dict[str, int]:
        """The projects that a migration converts, by key."""
        others = self.skipped | self.untouched | self.failing.keys()
        return {key: project_id for key, project_id in self.projects.items() if key not in others}


def every_form(
    conn: Connection, root: Path, seed: int = 0, *, data_dir: Path | None = None, outside: Path | None = None
) -> Estate:
    """Build projects in every form below `root`, which must exist and be an allowed root.

    `data_dir` is Label's data directory (default: `root`); a dataset that was there before goes into it.
    `outside` is a directory in no allowed root (default: made beside `root`). Another seed gives other
    recordings.
    """
    data_dir = data_dir or root
    outside = outside or root.parent / f"{root.name}.outside"
    outside.mkdir(exist_ok=True)
    builder = _Builder(conn, Estate(root=root, outside=outside, data_dir=data_dir), seed)
    builder.build()
    return builder.estate


class _Builder:
    """Makes the projects one theme after the other; `estate` grows with them."""

    def __init__(self, conn: Connection, estate: Estate, seed: int) -> None:
        self.conn = conn
        self.estate = estate
        self.root = estate.root
        self.seed = seed * 10_000
        self.participant_id = make_participant(conn, "P900", first_name="Ada", email="ada@example.org")

    def build(self) -> None:
        make_participant(self.conn, "BULK_UPLOAD", notes="line one\nline two")
        make_model(
            self.conn, "SmokingCNN", model_settings={"threshold": 0.5, "min_bout_duration_ns": 250000000}
        )
        make_model(self.conn, "old", is_active=False)
        self.headers()
        self.automatic_splits()
        self.manual_splits()
        self.physical_splits()
        self.dotted_names()
        self.labels()
        self.bouts_and_states()
        self.configs()
        self.paths()
        self.shared_content()
        self.odd_sessions()
        self.rough_recordings()
        self.odd_entries()
        self.odd_project_names()
        self.no_path()
        self.bad_paths()
        self.bad_entries()
        self.based_on_datasets()
        for key, project_id in self.estate.projects.items():
            rows = self.conn.execute(
                text("select session_name, session_id from sessions where project_id = :id"),
                {"id": project_id},
            )
            self.estate.sessions[key] = dict(rows.all())

    # Small steps --------------------------------------------------------------------------------------------

    def project(
        self, key: str, name: str | None = None, *, fails: type[MigratorError] | None = None, **columns: Any
    ) -> Project:
        """A project with its directory, known as `key`."""
        columns.setdefault("participant_id", self.participant_id)
        if "path" not in columns:
            columns.setdefault("directory", key)
        project = make_project(self.conn, self.root, name or f"Study {key}", **columns)
        self.estate.projects[key] = project.project_id
        self.estate.paths[key] = project.path
        if fails is not None:
            self.estate.failing[key] = fails
        return project

    def session(self, project: Project, name: str = DAY.format(1), **options: Any) -> Session:
        """A session with a recording that no other has, unless `seed` says so."""
        self.seed += 1
        return record_session(self.conn, project, name, **{"seed": self.seed, **options})

    def simple(self, key: str, **options: Any) -> Project:
        """A project with one session."""
        project = self.project(key, **options)
        self.session(project)
        return project

    def directory_of(self, project: Project, name: str = DAY.format(1)) -> Path:
        """The directory of one of its sessions."""
        assert project.directory is not None
        return project.directory / name

    # Recordings and splits ----------------------------------------------------------------------------------

    def headers(self) -> None:
        recorded = self.project("recorded", project_type=None)
        self.session(recorded, form=Form.RECORDED, rows=120)
        self.session(recorded, DAY.format(2), form=Form.RECORDED, gaps=[20])
        uploaded = self.project("uploaded")
        for day in (1, 2, 3):
            session = self.session(uploaded, DAY.format(day), rows=50 * day, gyroscope=day != 2)
            write_labels(session.recording.path.parent, _LABELS["objects"])
        gapped = self.project("gapped")
        self.session(gapped, form=Form.GAPPED, rows=60, gaps=[59])
        single = self.project("one_row")
        self.session(single, rows=1)

    def automatic_splits(self) -> None:
        project = self.project("auto_split")
        assert project.directory is not None
        for day, gaps in ((1, [30, 70]), (2, []), (3, [1])):
            # The second has one child for the whole file: its only gap came right before the last row, since
            # cut off.
            self.seed += 1
            recording = write_recording(
                project.directory / DAY.format(day), rows=100, seed=self.seed, form=Form.GAPPED, gaps=gaps
            )
            split_on_upload(self.conn, project, DAY.format(day), recording)
        self.session(project, DAY.format(4))

    def manual_splits(self) -> None:
        project = self.project("manual_split")
        whole = self.session(project, rows=200, keep=True, verified=1, bouts=_BOUTS["objects"])
        _, second, _ = split_session(self.conn, whole.session_id, [50, 120], self.estate.data_dir)
        split_session(self.conn, second, [30], self.estate.data_dir)
        recorded = self.session(project, DAY.format(2), rows=80, form=Form.GAPPED)
        split_session(self.conn, recorded.session_id, [40], self.estate.data_dir)
        old = self.project("split_without_offsets")
        session = self.session(old, rows=100, status="Split", keep=False, is_visible=False)
        for number, (start, end) in enumerate(((0, 60), (60, 100)), start=1):
            first_ns = session.recording.start_ns
            child = make_session(
                self.conn,
                old.project_id,
                f"{session.name}.{number}",
                parent_path=session.recording.path.parent,
                start_ns=first_ns + start * 20_000_000,
                stop_ns=first_ns + (end - 1) * 20_000_000,
            )
            make_lineage(self.conn, child, session.session_id)
            if number == 1:
                split_session(self.conn, child, [20], self.estate.data_dir)
        written = self.project("parent_path_spellings")
        for day, spelling in ((1, "{}//{}"), (2, "{}/{}/"), (3, "{}/./{}"), (4, "{}/other/../{}")):
            session = self.session(
                written, DAY.format(day), rows=30, status="Split", keep=False, is_visible=False
            )
            make_session(
                self.conn,
                written.project_id,
                f"{session.name}.1",
                recording=session.recording,
                parent_path=spelling.format(written.path, session.name),
                offsets=(5, 25),
            )
        (self.directory_of(written, "other")).mkdir()

    def physical_splits(self) -> None:
        project = self.project("physical_split")
        for number in (1, 2):
            self.session(project, f"{DAY.format(1)}.{number}")
        parent = self.session(project, DAY.format(2), status="Split", keep=False, is_visible=False)
        for number in (1, 2):
            child = self.session(project, f"{DAY.format(2)}.{number}")
            make_lineage(self.conn, child.session_id, parent.session_id)
        gone = make_session(
            self.conn, project.project_id, DAY.format(1), status="Split", keep=False, is_visible=False
        )
        self.estate.unmoved.add(gone)

    def dotted_names(self) -> None:
        project = self.project("dotted")
        self.session(project, "2025.07.01 left.wrist")
        dotted = self.session(project, "2025.07.02", rows=60)
        split_session(self.conn, dotted.session_id, [25], self.estate.data_dir)
        # A directory that has the name which a child without a directory would have.
        self.session(project, "2025.07.02.3")
        for name in ("A", "a"):
            self.session(project, name)

    # Labels, bouts, states ----------------------------------------------------------------------------------

    def labels(self) -> None:
        project = self.project("labels", labelings=_LABELINGS[1])
        for name, content in _LABELS.items():
            session = self.session(project, name, rows=12)
            write_labels(session.recording.path.parent, content)

    def bouts_and_states(self) -> None:
        project = self.project("bouts", labelings=_LABELINGS[2])
        for name, bouts in _BOUTS.items():
            self.session(project, name, rows=12, bouts=bouts)
        project = self.project("states", labelings=_LABELINGS[3])
        for number, status in enumerate(_STATUSES):
            for keep in (None, True, False):
                self.session(
                    project,
                    f"{status or 'no status'} {keep}",
                    rows=12,
                    status=status,
                    keep=keep,
                    is_visible=keep is not False,
                    verified=(None, 0, 1, 100, 0, 1)[number],
                    puffs_verified=(0, 1, 100, None, 0, 1)[number],
                    smoking_verified=(1, 100, None, 0, 1, 0)[number],
                )

    def configs(self) -> None:
        for number, (key, config) in enumerate(_CONFIGS.items()):
            self.simple(key, analysis_config=config, labelings=_LABELINGS[number])

    # Paths and shared content -------------------------------------------------------------------------------

    def paths(self) -> None:
        for key, spelling in (
            ("trailing_slash", "{}/"),
            ("double_slash", "{}//{}//"),
            ("dot_in_path", "{}/./{}"),
        ):
            self.at_path(
                key, spelling.format(f"{self.root}/{key}" if key == "trailing_slash" else self.root, key)
            )
        shared = self.simple("shared_path_a", directory="shared_path")
        self.at_path("shared_path_b", str(shared.path), recordings_of=shared)
        self.estate.equal.append({"shared_path_a", "shared_path_b"})
        self.simple("long_path", directory="/".join("p" * 120 + str(level) for level in range(5)))
        outer = self.simple("nested_outer")
        self.simple("nested_inner", directory="nested_outer/inner")
        make_session(self.conn, outer.project_id, "inner")
        linked = self.simple("link_target", directory="link_target")
        (self.root / "linked_path").symlink_to("link_target")
        self.at_path("linked_path", str(self.root / "linked_path"), recordings_of=linked)
        self.estate.equal.append({"link_target", "linked_path"})

    def at_path(self, key: str, path: str, *, recordings_of: Project | None = None) -> None:
        """A project whose row spells its path in its own way."""
        project = self.project(key, path=path)
        if recordings_of is None:
            self.seed += 1
            recording = write_recording(Path(path) / DAY.format(1), seed=self.seed)
        else:
            recording = _as_written(self.directory_of(recordings_of))
        make_session(self.conn, project.project_id, DAY.format(1), recording=recording)
        make_session(
            self.conn,
            project.project_id,
            f"{DAY.format(1)}.1",
            recording=recording,
            parent_path=f"{path}/{DAY.format(1)}",
            offsets=(3, 9),
        )

    def shared_content(self) -> None:
        self.seed += 100
        first = self.seed
        for key, days in (("twin_a", (1, 2)), ("twin_b", (1, 2)), ("twin_c", (1, 2)), ("part_twin", (2, 3))):
            project = self.project(key)
            for day in days:
                session = self.session(
                    project, DAY.format(day), seed=first + day, bouts=[{"start": 1, "end": day}]
                )
                write_labels(session.recording.path.parent, _LABELS["lists"])
        self.estate.equal.append({"twin_a", "twin_b", "twin_c"})
        renamed = self.project("twin_under_another_name")
        for day in (1, 2):
            self.session(renamed, f"renamed {day}", seed=first + day)
        # Equal but for an empty directory, which counts.
        hollow = self.project("twin_with_empty_directory")
        for day in (1, 2):
            session = self.session(hollow, DAY.format(day), seed=first + day)
            write_labels(session.recording.path.parent, _LABELS["lists"])
        self.directory_of(hollow, "empty").mkdir()
        self.seed += 10

    # Sessions and files that are not what they should be ----------------------------------------------------

    def odd_sessions(self) -> None:
        missing = self.simple("missing_session")
        other_parent = f"{missing.path}/{DAY.format(9)}"
        no_directory = make_session(
            self.conn, missing.project_id, DAY.format(8), keep=True, bouts=_BOUTS["objects"]
        )
        no_parent = make_session(
            self.conn, missing.project_id, f"{DAY.format(9)}.1", parent_path=other_parent, offsets=(0, 5)
        )
        self.estate.unmoved.update((no_directory, no_parent))
        foreign = self.simple("foreign_parent")
        places = {
            "in another project": self.root / "missing_session" / DAY.format(1),
            "outside": self.estate.outside / "elsewhere",
            "too deep": self.directory_of(foreign) / "deeper",
            "the project itself": Path(str(foreign.path)),
            "the project's name continued": Path(f"{foreign.path}_2") / DAY.format(1),
            "climbing out": Path(f"{foreign.path}/../missing_session/{DAY.format(1)}"),
        }
        recording = write_recording(places["outside"], seed=self.seed)
        write_recording(places["too deep"], seed=self.seed)
        for name, parent in places.items():
            self.estate.unmoved.add(
                make_session(
                    self.conn,
                    foreign.project_id,
                    name,
                    recording=recording,
                    parent_path=parent,
                    offsets=(2, 20),
                )
            )
        relative = make_session(
            self.conn, foreign.project_id, "relative", parent_path=DAY.format(1), offsets=(0, 3)
        )
        self.estate.unmoved.add(relative)
        beyond = self.project("offsets_beyond")
        session = self.session(beyond, rows=20, status="Split", keep=False, is_visible=False)
        for number, offsets in enumerate([(10, 500), (20, 30), (400, 500), (5, 5), (0, 20)], start=1):
            make_session(
                self.conn,
                beyond.project_id,
                f"{session.name}.{number}",
                recording=session.recording,
                parent_path=session.recording.path.parent,
                offsets=offsets,
            )
        unlisted = self.project("directories_without_rows")
        for day in (1, 2):
            self.seed += 1
            write_recording(self.directory_of(unlisted, DAY.format(day)), seed=self.seed)

    def rough_recordings(self) -> None:
        project = self.project("rough_recordings")
        for name, content in _ROUGH_RECORDINGS.items():
            directory = self.directory_of(project, name)
            directory.mkdir()
            (directory / "accelerometer_data.csv").write_bytes(content)
            make_session(self.conn, project.project_id, name, start_ns=0, stop_ns=10)
        spellings: dict[str, dict[str, Any]] = {
            "carriage returns": {"newline": "\r\n"},
            "no last newline": {"final_newline": False},
            "blank lines": {"blank_lines": [0, 7, 8, 30]},
            "carriage returns and blank lines": {"newline": "\r\n", "blank_lines": [3]},
        }
        for name, options in spellings.items():
            self.seed += 1
            recording = write_recording(self.directory_of(project, name), seed=self.seed, **options)
            make_session(self.conn, project.project_id, name, recording=recording)
            make_session(
                self.conn,
                project.project_id,
                f"{name}.1",
                recording=recording,
                parent_path=recording.path.parent,
                offsets=(10, 25),
            )
        self.directory_of(project, "no recording").mkdir()
        make_session(self.conn, project.project_id, "no recording")

    def odd_entries(self) -> None:
        project = self.project("odd_entries")
        assert project.directory is not None
        top = project.directory
        session = self.session(project, form=Form.RECORDED).recording.path.parent
        (session / "log.csv").write_text("time,message\n1,started\n")
        (session / "deeper" / "and deeper").mkdir(parents=True)
        (session / "deeper" / "and deeper" / "notes.txt").write_text("ÄÖÜ\n", encoding="utf-8")
        (session / "empty directory").mkdir()
        (session / "empty file").touch()
        (session / ".hidden").write_bytes(b"\0\1\2")
        (session / ("n" * 255)).write_text("a name of 255 bytes")
        (session / "back\\slash\nnewline\ttab").write_text("one name")
        (top / "readme at the top.txt").write_text("not in a session")
        (top / "empty session").mkdir()
        (top / ".hidden session").mkdir()
        for name in ("Übung Ω 🚬", 'it\'s "quoted" $(x)', "s" * 255, "-rf", "back\\slash"):
            self.session(project, name, rows=12)
        raw = os.fsencode(session / "deeper")
        Path(os.fsdecode(raw + b"/caf\xe9.txt")).write_text("a name that is not UTF-8")
        Path(os.fsdecode(raw + b"/\xff\xfe")).mkdir()
        (session / "read only").write_text("0444")
        (session / "read only").chmod(0o444)
        (session / "program").write_text("#!/bin/sh\n")
        (session / "program").chmod(0o755)
        (session / "second name").hardlink_to(session / "log.csv")
        with (session / "sparse").open("wb") as sparse:
            sparse.truncate(1 << 20)
        os.utime(session / "log.csv", ns=(0, 1_000_000_000_123_456_789))
        self.links(project)

    def links(self, project: Project) -> None:
        """Links that may be followed: to a file and to directories inside the allowed roots."""
        shared = self.root / "shared_recordings"
        self.seed += 1
        recording = write_recording(shared / DAY.format(1), seed=self.seed)
        (shared / "calibration.txt").write_text("1.0\n")
        inside = self.directory_of(project)
        (inside / "link to a file").symlink_to(shared / "calibration.txt")
        (inside / "relative link").symlink_to("log.csv")
        (inside / "link to a directory").symlink_to(shared)
        self.directory_of(project, "linked session").symlink_to(shared / DAY.format(1))
        make_session(self.conn, project.project_id, "linked session", recording=recording)

    def odd_project_names(self) -> None:
        for key, name in _ODD_NAMES.items():
            self.simple(f"name_{key}", name=name)

    # Projects that stay as they are -------------------------------------------------------------------------

    def no_path(self) -> None:
        for key, path in (("path_null", None), ("path_empty", "")):
            project = self.project(key, path=path)
            make_session(self.conn, project.project_id, DAY.format(1), bouts=_BOUTS["objects"])
            self.estate.skipped.add(key)

    def bad_paths(self) -> None:
        self.project("missing_directory", path=str(self.root / "nowhere"), fails=DirectoryMissingError)
        (self.root / "a file").write_text("no directory")
        self.project("path_is_file", path=str(self.root / "a file"), fails=NotADirectoryPathError)
        self.project("path_below_file", path=str(self.root / "a file" / "below"), fails=DirectoryMissingError)
        self.project("empty_directory", fails=NoSessionsError)
        flat = self.project("files_only", fails=NoSessionsError)
        self.directory_of(flat, "accelerometer_data.csv").write_text("ns_since_reboot,x,y,z\n1,2,3,4\n")
        elsewhere = self.estate.outside / "project"
        write_recording(elsewhere / DAY.format(1), seed=self.seed)
        self.project("outside_roots", path=str(elsewhere), fails=PathRefusedError)
        (self.root / "link outside").symlink_to(elsewhere)
        self.project("link_outside_roots", path=str(self.root / "link outside"), fails=PathRefusedError)
        self.project("relative_path", path="uploaded", fails=PathRefusedError)
        self.project("in_the_store", path=str(self.estate.data_dir / "raw_datasets"), fails=PathRefusedError)
        self.project("around_the_store", path=str(self.estate.data_dir), fails=PathRefusedError)

    def bad_entries(self) -> None:
        def refused(key: str) -> Path:
            return self.directory_of(self.simple(key, fails=EntryRefusedError))

        os.mkfifo(refused("pipe") / "pipe")
        (refused("dangling_link") / "link").symlink_to("nowhere")
        (refused("looping_link") / "link").symlink_to("link")
        (refused("link_to_ancestor") / "link").symlink_to("..")
        (refused("link_leaving_roots") / "link").symlink_to(self.estate.outside / "project")
        (refused("link_into_store") / "link").symlink_to(self.estate.data_dir / "raw_datasets")
        strange = refused("session_not_utf8").parent
        Path(os.fsdecode(os.fsencode(strange) + b"/caf\xe9")).mkdir()

    def based_on_datasets(self) -> None:
        """Made in Label from a dataset, and moved there by the reference tool: neither is ours."""
        tree = self.estate.data_dir / "raw_datasets" / "wrist_study_20250901_120000_0a1b2c3d"
        recordings = {
            DAY.format(day): write_recording(tree / DAY.format(day), seed=self.seed + day, rows=60)
            for day in (1, 2)
        }
        made = {
            "created_with": "dataset_based_workflow",
            "created_at": "2025-09-01T12:00:00",
            "description": "",
            "split_configs": {},
        }
        project = self.project("dataset_based", path=None, project_type="dataset_based", analysis_config=made)
        dataset_id = make_dataset(self.conn, tree, "0a1b2c3d" * 8, project_id=project.project_id)
        for name, recording in recordings.items():
            for child, offsets in ((name, None), (f"{name}.1", (10, 40))):
                make_session(
                    self.conn,
                    project.project_id,
                    child,
                    recording=recording,
                    parent_path=recording.path.parent,
                    offsets=offsets,
                    dataset_id=dataset_id,
                    raw_session_name=name,
                )
        make_session(
            self.conn, project.project_id, "split parent", status="Split", keep=False, is_visible=False
        )
        reference = self.project(
            "reference_migrated",
            path=None,
            legacy_path=str(self.root / "recorded"),
            project_type="dataset_based",
            analysis_config={
                "migrated_from": "legacy",
                "migration_date": "2025-09-02T12:00:00.123456",
                "original_path": str(self.root / "recorded"),
                "dataset_id": dataset_id,
            },
        )
        self.conn.execute(
            text(
                "insert into project_dataset_refs (project_id, dataset_id) values (:project_id, :dataset_id)"
            ),
            {"project_id": reference.project_id, "dataset_id": dataset_id},
        )
        make_session(self.conn, reference.project_id, DAY.format(1), recording=recordings[DAY.format(1)])
        self.estate.untouched.update(("dataset_based", "reference_migrated"))


def _as_written(directory: Path) -> Recording:
    """What a session directory of an equal project holds."""
    path = directory / "accelerometer_data.csv"
    times = [int(line.split(",")[0]) for line in path.read_text().splitlines()[1:]]
    return Recording(
        path=path, rows=len(times), start_ns=times[0], stop_ns=times[-1], segments=((0, len(times)),)
    )
