"""The bench's corpora: legacy projects of numeric CSVs on disk, equal for equal sizes, and their rows in
Label's tables.

Every file is a header, one line of its own, and lines out of one pool from a place of its own: made at the
speed of the disk, and no two files are equal unless they have the same name and number.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from producer.demo.csv_text import csv_lines
from producer.demo.recordings import ACCELEROMETER, GYROSCOPE, LABELS

MAGNETOMETER = "magnetometer_data.csv"

_POOL_LINES = 1 << 18
_FIRST_NS = 10**12
_POOL_NS = 10**13
_STEP_NS = 20_000_000
_PREFIXES = {ACCELEROMETER: "accel", GYROSCOPE: "gyro", MAGNETOMETER: "mag"}


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file to make. Equal name and number are equal bytes; it is at most one line shorter than
    `about_bytes`.
    """

    session: str
    name: str
    number: int
    about_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A legacy project: the name of its directory, and its files, session by session."""

    name: str
    files: tuple[File, ...]

    @property
    def sessions(self) -> list[str]:
        """The names of its session directories."""
        return [session for session, _ in groupby(self.files, key=lambda file: file.session)]


@dataclass(frozen=True)
class Corpus:
    """Projects in directories below `root`."""

    name: str
    root: Path
    projects: tuple[Project, ...]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Every file's path and size on disk, in the order of the projects."""
        paths = (
            f"{self.root}/{project.name}/{file.session}/{file.name}"
            for project in self.projects
            for file in project.files
        )
        return {path: os.stat(path).st_size for path in paths}

    @cached_property
    def total_bytes(self) -> int:
        """The size of all files."""
        return sum(self.sizes.values())

    @cached_property
    def different(self) -> dict[str, int]:
        """Of each content one file, and its size on disk."""
        files = (file for project in self.projects for file in project.files)
        first: dict[tuple[str, int], str] = {}
        for path, file in zip(self.sizes, files, strict=True):
            first.setdefault((file.name, file.number), path)
        return {path: self.sizes[path] for path in first.values()}

    @cached_property
    def unique_bytes(self) -> int:
        """The size of all different contents."""
        return sum(self.different.values())

    def make(self) -> None:
        """Write all files, unless an earlier call did so to its end."""
        mark = self.root.with_suffix(".made")
        if mark.exists():
            return
        shutil.rmtree(self.root, ignore_errors=True)
        for project in self.projects:
            for session, files in groupby(project.files, key=lambda file: file.session):
                directory = self.root / project.name / session
                directory.mkdir(parents=True)
                for file in files:
                    write(directory / file.name, file)
        mark.touch()

    def register(self, conn: Connection, batch: str) -> None:
        """Insert the projects and their sessions as Label would; `batch` keeps the names of several calls
        apart.
        """
        names = [f"{batch} {project.name}" for project in self.projects]
        paths = [f"{self.root}/{project.name}" for project in self.projects]
        conn.execute(
            text("insert into participants (participant_code) values ('BENCH') on conflict do nothing")
        )
        conn.execute(
            text("""
                insert into projects (project_name, participant_id, path)
                select made.name, participant_id, made.path
                from participants, unnest(cast(:names as text[]), cast(:paths as text[])) as made (name, path)
                where participant_code = 'BENCH'"""),
            {"names": names, "paths": paths},
        )
        of = [
            (name, session)
            for name, project in zip(names, self.projects, strict=True)
            for session in project.sessions
        ]
        conn.execute(
            text("""
                insert into sessions (project_id, session_name, start_ns, stop_ns, bouts)
                select project_id, made.session, :start, :stop, cast(:bouts as jsonb)
                from unnest(cast(:names as text[]), cast(:sessions as text[])) as made (name, session)
                join projects on project_name = made.name"""),
            {
                "names": [name for name, _ in of],
                "sessions": [session for _, session in of],
                "start": _FIRST_NS,
                "stop": _POOL_NS + _POOL_LINES * _STEP_NS,
                "bouts": json.dumps([{"start": _POOL_NS, "end": _POOL_NS + 10**9, "label": "smoking"}] * 3),
            },
        )


# The corpora, at size 1 -------------------------------------------------------------------------------------


def large(root: Path, size: float, name: str = "large") -> Corpus:
    """96 big CSVs (3.4 GB at size 1), each content twice: 12 projects of new content, 8 that equal earlier
    ones, and 4 whose sessions come one each from four earlier ones.
    """
    numbers = [[4 * project + session for session in range(4)] for project in range(12)]
    numbers += numbers[:8]
    numbers += [[4 * (8 + session) + project for session in range(4)] for project in range(4)]
    mean = 3_400_000_000 * size / 96

    def file(session: int, number: int) -> File:
        about = int(mean * (0.5 + number * 37 % 48 / 47))
        return File(
            session=f"2025-03-{session + 1:02}_08_00_00",
            name=ACCELEROMETER,
            number=number,
            about_bytes=max(1000, about),
        )

    return Corpus(
        name,
        root / name,
        tuple(
            Project(name=f"p{index:02}", files=tuple(file(*each) for each in enumerate(of)))
            for index, of in enumerate(numbers)
        ),
    )


def many_files(root: Path, size: float) -> Corpus:
    """20 projects of 2,000 files of 4 to 40 KB at size 1, four a session, each content twice: 10 projects of
    new content, 5 that equal earlier ones, and 5 that share each session with one of five earlier ones.
    """
    count = max(5, round(500 * size))

    def number(project: int, session: int) -> int:
        if project >= 15:
            project = 5 + (project + session) % 5
        return project % 10 * count + session

    return Corpus(
        "many-files",
        root / "many-files",
        tuple(
            Project(
                name=f"p{project:02}",
                files=tuple(
                    file
                    for session in range(count)
                    for file in _small_session(session, number(project, session), 4_000, 40_000)
                ),
            )
            for project in range(20)
        ),
    )


def tiny(root: Path, size: float, name: str = "tiny", projects: int = 2000, first: int = 0) -> Corpus:
    """2,000 projects at size 1, each of one session with three small files, all of them different.

    Another `first` gives other content, as long as the numbers from there on do not meet.
    """
    count = max(8, round(projects * size))
    return Corpus(
        name,
        root / name,
        tuple(
            Project(
                name=f"p{number:05}",
                files=tuple(
                    file
                    for file in _small_session(0, number, 1_500, 3_000)
                    if file.name in {ACCELEROMETER, GYROSCOPE, LABELS}
                ),
            )
            for number in range(first, first + count)
        ),
    )


def one_big(root: Path, size: float) -> Corpus:
    """One project with one CSV of 3 GB at size 1."""
    file = File(
        session="2025-03-01_08_00_00",
        name=ACCELEROMETER,
        number=1,
        about_bytes=max(1000, int(3_000_000_000 * size)),
    )
    return Corpus("one-big", root / "one-big", (Project(name="p00", files=(file,)),))


def one_project(root: Path, files: int) -> Corpus:
    """One project of so many small files, four a session, all of them different."""
    name = f"growth-{files}-files"
    project = Project(
        name="p00",
        files=tuple(
            file for session in range(files // 4) for file in _small_session(session, session, 1_500, 3_000)
        ),
    )
    return Corpus(name, root / name, (project,))


def _small_session(session: int, number: int, smallest: int, biggest: int) -> Iterator[File]:
    """Three sensors of sizes between the two, and labels of the smallest size."""
    for place, name in enumerate((ACCELEROMETER, GYROSCOPE, MAGNETOMETER, LABELS)):
        spread = (number * 7_919 + place * 104_729) % (biggest - smallest)
        about = smallest if name == LABELS else smallest + spread
        yield File(session=f"s{session:04}", name=name, number=number, about_bytes=about)


# Content ----------------------------------------------------------------------------------------------------


def write(path: Path, file: File) -> None:
    """Write one file of a corpus."""
    with path.open("wb") as target:
        if file.name == LABELS:
            target.write(_labels(file))
            return
        axes = ",".join(f"{_PREFIXES[file.name]}_{axis}" for axis in "xyz")
        written = target.write(f"ns_since_reboot,{axes}\n".encode())
        written += target.write(f"{_FIRST_NS + file.number},0.000000,0.000000,9.806650\n".encode())
        for part in _pool_from(file.number * 7_919 % _POOL_LINES, file.about_bytes - written):
            target.write(part)


def _labels(file: File) -> bytes:
    bouts = [
        {"start": _POOL_NS + file.number, "end": _POOL_NS + _STEP_NS * row, "label": "smoking"}
        for row in range(1, max(2, file.about_bytes // 70))
    ]
    return json.dumps(bouts).encode()


def _pool_from(line: int, size_bytes: int) -> Iterator[memoryview]:
    """Whole lines of the pool, from the given one and around again, at most `size_bytes` in all."""
    pool, starts = _pool()
    begin = int(starts[line])
    while size_bytes > 0:
        end = min(begin + size_bytes, len(pool))
        end = int(starts[np.searchsorted(starts, end, side="right") - 1])
        if end <= begin:
            return
        yield pool[begin:end]
        size_bytes -= end - begin
        begin = 0 if end == len(pool) else end


@cache
def _pool() -> tuple[memoryview, NDArray[np.int64]]:
    """Lines of made-up acceleration, and where each begins (and, last, where the pool ends)."""
    chance = np.random.default_rng(2025)
    times = np.arange(_POOL_LINES, dtype=np.int64) * _STEP_NS + _POOL_NS
    lines = csv_lines(times, chance.uniform(-39, 39, (3, _POOL_LINES)))
    ends = np.flatnonzero(np.frombuffer(lines, dtype=np.uint8) == ord("\n")) + 1
    return memoryview(lines), np.concatenate([np.zeros(1, dtype=np.int64), ends])


MAKERS: dict[str, Callable[[Path, float], Corpus]] = {
    "large": large,
    "again": lambda root, size: large(root, size, "again"),
    "one-big": one_big,
    "many-files": many_files,
    "tiny": tiny,
}
"""Every corpus by its name, in the order of running: those whose removal costs much come last."""


def warm(corpora: Iterable[Corpus]) -> None:
    """Read every file once, so that the page cache holds it."""
    buffer = bytearray(1 << 20)
    for corpus in corpora:
        for path in corpus.sizes:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
