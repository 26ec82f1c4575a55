"""Small projects for the machine to work against, and what must be true of the store whatever it did."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.estate import Project, make_project, record_session, snapshot_tree
from tests.support.sites import Site
from worker.messages import Outcome
from worker.store.digest import BIG_BYTES, digest_of
from worker.store.manifest import Manifest
from worker.store.row_file import parse

_LINE = b"1000000000000,0.100000,0.200000,0.300000\n"


def study(site: Site, name: str, *seeds: int) -> Project:
    """A project of two small files a session; equal seeds are equal recordings."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name)
        for seed in seeds:
            record_session(conn, project, f"day {seed}", rows=20, seed=seed, gyroscope=True)
    return project


def plain_study(site: Site, name: str, *sessions: int, rows: int = 60) -> Path:
    """A project with the sessions of these seeds; equal seeds are equal recordings."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name)
        for seed in sessions:
            record_session(conn, project, f"day {seed}", rows=rows, seed=seed)
    return Path(project.path)


def study_with_everything(
    site: Site, name: str = "study", *, directory: str | None = None, seed: int = 0
) -> Path:
    """A project with everything that a directory can hold, and its directory."""
    with site.engine.begin() as conn:
        project = make_project(conn, site.legacy_root, name, directory=directory)
        record_session(conn, project, "s", rows=40, seed=seed)
    assert project.directory is not None
    session = project.directory / "s"
    (session / "empty").mkdir()
    (session / "empty file").touch()
    (session / "program").write_text("#!/bin/sh\n")
    (session / "program").chmod(0o755)
    (session / "sealed").mkdir()
    (session / "sealed" / "inside").write_text("inside")
    (session / ("n" * 255)).write_text("a name of 255 bytes")
    deep = os.fsencode(session) + b"/deep/caf\xe9/\xff\xfe"
    os.makedirs(deep)
    Path(os.fsdecode(deep + b"/not \xc3\x28 utf-8")).write_text("content")
    (project.directory / "at the top").write_text("not in a session")
    stamp = 1_600_000_000_123_456_789
    for number, (folder, _, names) in enumerate(os.walk(os.fsencode(project.directory), topdown=False)):
        for file in names:
            os.utime(os.path.join(folder, file), ns=(stamp, stamp + number))
        os.utime(folder, ns=(stamp, stamp + 1_000 + number))
    os.chmod(session / "sealed" / "inside", 0o400)
    os.chmod(session / "sealed", 0o555)
    os.chmod(project.directory, 0o750)
    return project.directory


def folder_of(project: Project) -> Path:
    """Where a project's files are."""
    assert project.directory is not None
    return project.directory


def make_big(project: Project, seed: int) -> Path:
    """Let a session's recording be big; equal seeds are equal recordings."""
    path = folder_of(project) / f"day {seed}" / "accelerometer_data.csv"
    path.write_bytes(
        b"ns_since_reboot,x,y,z\n%d,0,0,0\n" % seed + _LINE * (BIG_BYTES // len(_LINE) + 1000 * seed)
    )
    return path


def damage(path: Path) -> None:
    """Other bytes of the same length in the same file, as a bad disk or a careless program leaves them."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    path.chmod(mode)


def check_tree(tree: Path, project: Project) -> None:
    """The tree is the project's directory byte for byte and name for name, and read-only."""
    stored, legacy = snapshot_tree(tree), snapshot_tree(folder_of(project))
    assert {name: (entry.kind, entry.content) for name, entry in stored.items()} == {
        name: (entry.kind, entry.content) for name, entry in legacy.items()
    }
    assert {(entry.kind, entry.mode) for entry in stored.values()} <= {("directory", 0o555), ("file", 0o444)}


def check_store(site: Site) -> None:
    """Every blob and every manifest has the bytes that its name promises, and a row file beside it that can
    be read; and a mode that keeps it so.
    """
    for blob in (site.settings.store_dir / "blobs").glob("*/*"):
        assert digest_of("blake3", blob.read_bytes()) == blob.name
        assert mode(blob) == 0o444
    for path in (site.settings.store_dir / "manifests").glob("*"):
        digest = path.name.partition(".")[0]
        if path.name.endswith(".row.json"):
            parse(path.read_bytes(), digest, str(path))
        else:
            assert f"{Manifest.parse(path.read_bytes()).digest}.json" == path.name
        assert mode(path) == 0o444


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.lstat().st_mode)


def staged(site: Site) -> list[str]:
    """What is in staging."""
    return sorted(os.listdir(site.settings.store_dir / "staging"))


@contextmanager
def counting_writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the bytes that anybody of this process writes into blobs."""
    written: list[int] = []
    really = os.pwritev
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", lambda *args: (written.append(count := really(*args)), count)[1])
        yield written


def check_stored_once(site: Site, outcomes: list[Outcome], written: list[int]) -> None:
    """What was written, what is there and what the outcomes say are the same, and every tree is its
    project.
    """
    store = site.settings.store_dir
    blobs = {blob.name: blob.stat().st_size for blob in (store / "blobs").glob("*/*")}
    unique = sum(blobs.values())
    assert sum(written) <= 1.05 * unique, f"{sum(written)} bytes were written for {unique}"
    assert sum(outcome.bytes.stored for outcome in outcomes) == unique
    assert sum(outcome.files.stored for outcome in outcomes) == len(blobs)
    for outcome in outcomes:
        stored, legacy = (
            snapshot_tree(Path(str(path))) for path in (outcome.dataset_path, outcome.original_path)
        )
        assert {name: entry.content for name, entry in stored.items()} == {
            name: entry.content for name, entry in legacy.items()
        }
    assert os.listdir(store / "staging") == []
    assert os.listdir(store / "quarantine") == []
