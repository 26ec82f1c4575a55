"""What a listing of a legacy tree takes, and what it refuses: always with the entry named, and never waiting
for it.
"""

import itertools
import os
import re
import socket
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.folders import passable_folder
from tests.support.trees import STUDY, as_ordinary_user, hashed, open_store, read_tree, roots_of, write_tree
from tests.support.waiting import PATIENCE_S
from worker.errors import (
    EntryRefusedError,
    EntryUnreadableError,
    LeaseLostError,
    NoSessionsError,
    PathRefusedError,
    SourceChangedError,
)
from worker.legacy.hash import hash_tree
from worker.legacy.roots import Roots
from worker.legacy.scan import (
    Scan,
    check_same,
    scan,
)
from worker.runtime.throttle import Pace
from worker.store import beneath
from worker.store.digest import Signature
from worker.store.removal import remove_tree


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Give a project with one session, in a folder that may hold projects."""
    return write_tree(tmp_path / "study", {b"session/accelerometer_data.csv": b"t,x\n1,2\n"})


def scanned(project: Path | str) -> Scan:
    return scan(str(project), roots_of(Path(project).parent))


def paths(found: Scan) -> set[str]:
    return {entry.path for entry in [*found.directories, *found.files]}


# What is taken ----------------------------------------------------------------------------------------------


def test_every_entry_is_listed_with_size_mode_and_times(tmp_path: Path):
    project = write_tree(tmp_path / "study")
    (project / "notes.txt").chmod(0o640)

    found = scanned(project)

    listed = {os.fsencode(path) for path in paths(found)}
    assert listed == read_tree(project).keys()
    assert found.size_bytes == sum(len(content) for content in STUDY.values() if content is not None)
    assert found.root == str(project)
    assert found.root_mtime_ns == project.stat().st_mtime_ns
    assert {file.path: file.mode for file in found.files}["notes.txt"] == 0o640
    for entry in found.directories:
        status = (project / entry.path).stat()
        assert (entry.mode, entry.mtime_ns) == (stat.S_IMODE(status.st_mode), status.st_mtime_ns)
    for file in found.files:
        assert file.source == f"{project}/{file.path}"
        assert file.signature.inode == os.lstat(file.source).st_ino
    assert found.session_names == ("2025-07-01_10_00_00", "2025-07-01_12_00_00", "2025-07-01_14_00_00")


def test_an_empty_session_directory_is_a_session(tmp_path: Path):
    assert scanned(write_tree(tmp_path / "study", {b"empty": None})).session_names == ("empty",)


def test_hidden_files_and_directories_are_taken_like_others(project: Path):
    write_tree(project, {b".git/config": b"x", b".env": b"x"})

    assert {".git", ".git/config", ".env"} <= paths(scanned(project))


def test_names_that_differ_in_case_only_are_two(project: Path):
    write_tree(project, {b"A/x": b"", b"a/x": b""})

    assert {"A/x", "a/x"} <= paths(scanned(project))


@pytest.mark.parametrize(
    "name", [b"x" * 255, b"\xff" * 255, b"new\nline", b"-rf", b"\\", b"'\";--", b" ", b"\x01"]
)
def test_a_file_may_have_any_name(project: Path, name: bytes):
    write_tree(project, {b"session/" + name: b"x"})

    (found,) = (file for file in scanned(project).files if file.path != "session/accelerometer_data.csv")

    assert os.fsencode(found.path) == b"session/" + name
    assert found.signature.size_bytes == 1


def test_a_session_may_have_a_name_of_255_bytes(tmp_path: Path):
    assert scanned(write_tree(tmp_path / "study", {b"s" * 255: None})).session_names == ("s" * 255,)


def dig(directory: Path, name: str, levels: int) -> None:
    """Make directories of one name in each other, deeper than one path may be long."""
    here = os.open(directory, os.O_RDONLY)
    try:
        for _ in range(levels):
            os.mkdir(name, dir_fd=here)
            below = os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)


def test_a_tree_deeper_than_pythons_stack_is_taken_to_its_end(project: Path):
    dig(project / "session", "d", 1200)

    found = scanned(project)

    assert "/".join(["session", *["d"] * 1200]) in paths(found)
    assert len(found.directories) == 1201
    remove_tree(str(project))


def test_a_tree_deeper_than_a_path_can_be_is_refused_by_name(project: Path):
    dig(project / "session", "d" * 250, 30)

    with pytest.raises(EntryRefusedError, match=r"Path is too long to be stored: session/ddd.* … ddd"):
        scanned(project)

    # Nobody, pytest included, can remove the whole of it by one path.
    top = project / "session" / ("d" * 250)
    while top.exists():
        aside = top.rename(project / "aside")
        for below in aside.iterdir():
            below.rename(top)
        aside.rmdir()


# Links ------------------------------------------------------------------------------------------------------


def test_a_link_to_a_file_inside_the_roots_is_the_file_it_points_to(tmp_path: Path, project: Path):
    write_tree(tmp_path / "shared", {b"recording.csv": b"12345"})
    (project / "session" / "link.csv").symlink_to("../../shared/recording.csv")

    found = scanned(project)

    (file,) = (file for file in found.files if file.path == "session/link.csv")
    assert file.source == f"{tmp_path}/shared/recording.csv"
    assert file.signature.size_bytes == 5
    assert found.links == 1


def test_a_link_to_a_directory_inside_the_roots_is_all_that_is_in_it(tmp_path: Path, project: Path):
    shared = write_tree(tmp_path / "shared", {b"deep/x": b"1", b"y": b"2"})
    (project / "linked").symlink_to(shared)

    found = scanned(project)

    assert {"linked", "linked/deep", "linked/deep/x", "linked/y"} <= paths(found)
    assert found.session_names == ("linked", "session")
    assert found.links == 1


def test_two_links_to_one_directory_and_links_beside_each_other_are_no_loop(tmp_path: Path, project: Path):
    shared = write_tree(tmp_path / "shared", {b"x": b"1"})
    for name in ("one", "two"):
        (project / name).symlink_to(shared)
    (project / "three").symlink_to("session")

    found = scanned(project)

    assert {"one/x", "two/x", "three/accelerometer_data.csv"} <= paths(found)
    assert found.links == 3


def test_links_to_links_are_followed_to_the_end(tmp_path: Path, project: Path):
    write_tree(tmp_path, {b"target": b"1"})
    (tmp_path / "second").symlink_to("target")
    (project / "session" / "first").symlink_to(tmp_path / "second")

    assert "session/first" in paths(scanned(project))


def test_a_project_path_that_is_a_link_is_its_target(tmp_path: Path, project: Path):
    (tmp_path / "alias").symlink_to(project)

    assert paths(scanned(tmp_path / "alias")) == paths(scanned(project))


def dangling(project: Path) -> str:
    (project / "session/bad").symlink_to("nowhere")
    return "Link leads nowhere: session/bad"


def to_itself(project: Path) -> str:
    (project / "session/bad").symlink_to("bad")
    return "Link cannot be followed (Too many levels of symbolic links): session/bad"


def to_each_other(project: Path) -> str:
    (project / "session/bad").symlink_to("worse")
    (project / "session/worse").symlink_to("bad")
    return "Link cannot be followed (Too many levels of symbolic links): session/bad"


def to_its_own_directory(project: Path) -> str:
    (project / "session/bad").symlink_to(".")
    return "Link leads to a directory that contains it: session/bad"


def to_the_project(project: Path) -> str:
    (project / "session/bad").symlink_to(project)
    return "Link leads to a directory that contains it: session/bad"


def to_a_directory_around_the_project(project: Path) -> str:
    around = project / "group"
    write_tree(around / "study", {b"session/x": b"1"})
    (around / "study/session/bad").symlink_to("../..")
    return "Link leads to a directory that contains it: session/bad"


def to_an_ancestor_through_another_link(project: Path) -> str:
    beside = write_tree(project.parent / "beside", {b"x": b"1"})
    (beside / "back").symlink_to(project)
    (project / "out").symlink_to(beside)
    return "Link leads to a directory that contains it: out/back"


def out_of_the_roots(project: Path) -> str:
    (project / "session/bad").symlink_to("/etc/hostname")
    return "Link leaves LEGACY_ROOTS: session/bad -> /etc/hostname"


def to_a_directory_out_of_the_roots(project: Path) -> str:
    (project / "session/bad").symlink_to("/etc")
    return "Link leaves LEGACY_ROOTS: session/bad -> /etc"


def to_the_root(project: Path) -> str:
    (project / "session/bad").symlink_to("/")
    return "Link leaves LEGACY_ROOTS: session/bad -> /"


def into_the_store(project: Path) -> str:
    write_tree(project.parent / "dataset_store", {b"blobs/ab/abcd": b"1"})
    (project / "session/bad").symlink_to(project.parent / "dataset_store/blobs/ab/abcd")
    return f"Link session/bad overlaps the store's directory {project.parent}/dataset_store"


def to_a_stored_tree(project: Path) -> str:
    write_tree(project.parent / "raw_datasets", {b"tree/session/x": b"1"})
    (project / "bad").symlink_to(project.parent / "raw_datasets/tree")
    return f"Link bad overlaps the store's directory {project.parent}/raw_datasets"


def to_a_pipe(project: Path) -> str:
    os.mkfifo(project.parent / "pipe")
    (project / "session/bad").symlink_to(project.parent / "pipe")
    return "Entry cannot be stored, it is a named pipe: session/bad"


@pytest.mark.parametrize(
    "make",
    [
        dangling,
        to_itself,
        to_each_other,
        to_its_own_directory,
        to_the_project,
        to_a_directory_around_the_project,
        to_an_ancestor_through_another_link,
        out_of_the_roots,
        to_a_directory_out_of_the_roots,
        to_the_root,
        into_the_store,
        to_a_stored_tree,
        to_a_pipe,
    ],
)
@pytest.mark.timeout(PATIENCE_S)
def test_a_link_that_may_not_be_followed_is_named(project: Path, make: Callable[[Path], str]):
    message = make(project)
    inner = project / "group" / "study"

    with pytest.raises(EntryRefusedError, match=f"^{re.escape(message)}$"):
        scan(str(inner if inner.exists() else project), roots_of(project.parent))


def test_a_refused_link_whose_name_is_not_utf_8_is_named(project: Path):
    os.symlink(b"nowhere", os.fsencode(project) + b"/session/caf\xe9")

    with pytest.raises(EntryRefusedError, match=r"Link leads nowhere: session/caf\\xe9"):
        scanned(project)


# Special files ----------------------------------------------------------------------------------------------


def pipe(path: str) -> None:
    os.mkfifo(path)


def listening_socket(path: str) -> None:
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(os.path.dirname(path))  # a socket's address holds 107 bytes only
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.basename(path))
    finally:
        os.chdir(here)
        os.close(here)


def character_device(path: str) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))


def block_device(path: str) -> None:
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 0))


ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (pipe, "a named pipe"),
        (listening_socket, "a socket"),
        pytest.param(character_device, "a character device", marks=ROOT_ONLY),
        pytest.param(block_device, "a block device", marks=ROOT_ONLY),
    ],
)
@pytest.mark.parametrize("place", ["special", "session/special", "session/deep/special"])
@pytest.mark.timeout(PATIENCE_S)
def test_a_special_file_is_named_with_its_kind(
    project: Path, make: Callable[[str], None], kind: str, place: str
):
    (project / "session/deep").mkdir()
    make(f"{project}/{place}")

    with pytest.raises(EntryRefusedError, match=f"^Entry cannot be stored, it is {kind}: {place}$"):
        scanned(project)


@pytest.mark.timeout(PATIENCE_S)
def test_a_pipe_that_takes_a_files_place_after_the_scan_does_not_block_the_reading(tmp_path: Path):
    store = open_store(tmp_path)
    project = write_tree(tmp_path / "study", {b"session/a.csv": b"1" * 1000, b"session/b.csv": b"2"})

    def replace(_files: int, _bytes: int) -> None:
        path = project / "session/b.csv"
        if path.is_file():
            path.unlink()
            os.mkfifo(path)

    with pytest.raises((SourceChangedError, EntryRefusedError), match=r"session/b\.csv"):
        hashed(project, store, replace)


# Names that rows cannot hold --------------------------------------------------------------------------------


def test_a_session_directory_whose_name_is_not_utf_8_is_refused(project: Path):
    write_tree(project, {b"caf\xe9/x": b"1"})

    with pytest.raises(EntryRefusedError, match=r"^Session directory's name is not UTF-8: caf\\xe9$"):
        scanned(project)


def test_a_linked_session_directory_whose_name_is_not_utf_8_is_refused(project: Path):
    os.symlink(b"session", os.fsencode(project) + b"/caf\xe9")

    with pytest.raises(EntryRefusedError, match=r"Session directory's name is not UTF-8: caf\\xe9"):
        scanned(project)


@pytest.mark.parametrize("name", [b"session/caf\xe9", b"session/caf\xe9/x", b"caf\xe9"])
def test_a_deeper_directory_or_any_file_keeps_its_name_byte_for_byte(project: Path, name: bytes):
    write_tree(project, {name: b"1"})

    assert name in {os.fsencode(path) for path in paths(scanned(project))}


def test_a_session_directory_may_have_any_utf_8_name(project: Path):
    write_tree(project, {"2025 ümläut 研究 '\"\\\n".encode(): None})

    assert "2025 ümläut 研究 '\"\\\n" in scanned(project).session_names


# What becomes a link meanwhile ------------------------------------------------------------------------------


@pytest.fixture(params=["openat2", "step by step"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walk by the kernel's own call, and as where there is none."""
    if request.param == "step by step":
        monkeypatch.setattr(beneath, "_has_openat2", lambda: False)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Give a directory that no project may lie in."""
    return write_tree(tmp_path / "secret", {b"shadow": b"the secret", b"deeper/shadow": b"another"})


def at_entry(number: int, happening: Callable[[], object]) -> Pace:
    """Let something happen before the walk looks at its entry of this number, from 1."""
    seen = itertools.count(1)
    return lambda _size: happening() if next(seen) == number else None


def become_a_link(place: Path, target: Path) -> None:
    place.rename(place.with_name("away"))
    place.symlink_to(target)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("place", "entry"), [("day", 2), ("day/deeper", 5)])
def test_a_directory_that_becomes_a_link_before_it_is_listed_leads_nowhere(
    tmp_path: Path, secret: Path, place: str, entry: int
):
    project = write_tree(tmp_path / "root/study", {b"day/deeper/x": b"1", b"day/z": b"", b"zz/y": b"2"})
    roots = Roots(allowed=(tmp_path / "root",), store=())
    # When the entry after it is looked at, it is known for a directory and not listed yet.
    swap = at_entry(entry, lambda: become_a_link(project / place, secret))

    with pytest.raises(SourceChangedError, match=f"vanished while it was read: {project / place}"):
        scan(str(project), roots, swap)


@pytest.mark.usefixtures("way")
def test_the_root_that_becomes_a_link_before_it_is_listed_again_is_no_way_out(tmp_path: Path, secret: Path):
    project = write_tree(tmp_path / "root/study", {b"day/x": b"1"})
    roots = Roots(allowed=(tmp_path / "root",), store=())
    before = scan(str(project), roots)

    become_a_link(project, secret)

    with pytest.raises(PathRefusedError, match="outside LEGACY_ROOTS"):
        check_same(before, roots)


@pytest.mark.usefixtures("way")
def test_bytes_are_not_read_through_a_directory_that_became_a_link_since(tmp_path: Path):
    """Not even those of the very file that was listed."""
    project = write_tree(tmp_path / "root/study", {b"day/deeper/x": b"1" * 300})
    store = open_store(tmp_path / "label")
    roots = Roots(allowed=(tmp_path / "root",), store=(store.root, store.trees))
    listed = scan(str(project), roots)
    become_a_link(project / "day", (project / "day").with_name("away"))

    with ThreadPoolExecutor(1) as threads, pytest.raises(SourceChangedError, match="day/deeper/x"):
        hash_tree(listed, roots=roots, store=store, threads=threads)


def test_a_walk_keeps_few_directories_open_however_deep_the_tree(project: Path):
    dig(project / "session", "d", 600)
    most = 0

    def count(_size: int) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))

    before = len(os.listdir("/proc/self/fd"))
    scan(str(project), roots_of(project.parent), count)

    assert most <= before + 2
    remove_tree(str(project))


def test_a_tree_beyond_what_one_path_can_name_is_listed_and_read(tmp_path: Path):
    folder = tmp_path.joinpath(*["f" * 200] * 19)
    project = write_tree(folder / "study", {b"day/accelerometer_data.csv": b"t,x\n1,2\n"})
    dig(project / "day", "d" * 200, 3)
    store = open_store(tmp_path / "label")
    roots = Roots(allowed=(tmp_path,), store=(store.root, store.trees))
    listed = scan(str(project), roots)
    with ThreadPoolExecutor(1) as threads:
        tree = hash_tree(listed, roots=roots, store=store, threads=threads)

    assert len(str(project)) + 1 + len(tree.manifest.directories[-1].path) > 4095
    assert tree.records == {"day": 1}
    # Shorter by a rename, so that it can be removed.
    remove_tree(os.fspath((tmp_path / ("f" * 200)).joinpath(*["f" * 200] * 9).rename(tmp_path / "f")))


# Listening --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "again",
    [
        lambda project, _, pace: scan(str(project), roots_of(project.parent), pace),
        lambda project, before, pace: check_same(before, roots_of(project.parent), pace),
    ],
    ids=["first", "second"],
)
def test_a_listing_ends_at_the_next_entry_when_the_work_is_to_stop(
    project: Path, again: Callable[[Path, Scan, Pace], object]
):
    write_tree(project, {b"session/%d" % number: b"" for number in range(50)})
    roots = roots_of(project.parent)

    def stop() -> None:
        raise LeaseLostError("not ours any more")

    before = scan(str(project), roots)
    with pytest.raises(LeaseLostError):
        again(project, before, at_entry(20, stop))


def test_links_in_linked_directories_that_stand_for_more_than_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("worker.legacy.scan._NESTED_MOST", 1000)
    project = tmp_path / "study"
    for level in range(40):
        (project / f"d{level}").mkdir(parents=True)
        for name in "ab" if level else "":
            (project / f"d{level}" / name).symlink_to(f"../d{level - 1}")

    with pytest.raises(EntryRefusedError, match="Links in linked directories stand for more than 1000"):
        scanned(project)


# Odd figures and odd names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [1901, 1969, 2263, 2446])
def test_any_time_that_a_file_system_can_hold_is_kept_to_the_nanosecond(project: Path, year: int):
    seconds = (year - 1970) * 31_556_952
    recording = project / "session/accelerometer_data.csv"
    os.utime(recording, ns=(0, seconds * 10**9 + 7))
    os.utime(project / "session", ns=(0, seconds * 10**9 + 7))

    found = scanned(project)

    assert found.files[0].signature == Signature.of(recording.stat())
    assert found.directories[0].mtime_ns == (project / "session").stat().st_mtime_ns
    assert abs(found.files[0].signature.mtime_ns) // 10**9 >= min(abs(seconds), 2**31) - 1
    check_same(found, roots_of(project.parent))


def test_what_other_programs_left_is_counted_and_named_by_its_topmost_entry(project: Path):
    write_tree(
        project,
        {
            b"@eaDir/session/SYNOFILE": b"1",
            b".git/objects/._x": b"1",
            b"session/._accelerometer_data.csv": b"1",
            b"session/.hidden": b"1",
        },
    )

    found = scanned(project)

    assert found.noise.count == 3
    assert sorted(found.noise.first) == [".git", "@eaDir", "session/._accelerometer_data.csv"]


# Permissions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o000, 0o311, 0o444], ids=["none", "enter only", "list only"])
def test_a_directory_that_may_not_be_read_fails_the_project(mode: int):
    with passable_folder() as folder:
        project = write_tree(folder / "study", {b"session/x": b"1", b"secret/y": b"2"})
        (project / "secret").chmod(mode)

        with pytest.raises(EntryUnreadableError, match=f"Cannot read {project}/secret.*: Permission denied"):
            as_ordinary_user(lambda: scanned(project))


def test_a_project_that_may_not_be_read_is_named():
    with passable_folder() as folder:
        project = write_tree(folder / "study", {b"session/x": b"1"})
        project.chmod(0o000)

        with pytest.raises(EntryUnreadableError, match=f"Cannot read {project}: Permission denied"):
            as_ordinary_user(lambda: scanned(project))


def test_a_project_below_a_directory_that_may_not_be_entered_is_named():
    with passable_folder() as folder:
        project = write_tree(folder / "closed" / "study", {b"session/x": b"1"})
        (folder / "closed").chmod(0o000)

        with pytest.raises(EntryUnreadableError, match=f"Cannot read {project}: Permission denied"):
            as_ordinary_user(lambda: scan(str(project), roots_of(folder)))


# The project's own path -------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [{}, {b"file": b"1"}], ids=["empty", "files only"])
def test_a_project_without_session_directories_is_named(tmp_path: Path, entries: dict[bytes, bytes]):
    project = tmp_path / "study"
    project.mkdir()
    write_tree(project, entries)

    with pytest.raises(NoSessionsError, match=f"^No session directories found: {project}$"):
        scanned(project)
    assert scan(str(project), roots_of(tmp_path), needs_sessions=False).session_names == ()


def test_a_path_with_slashes_too_many_is_the_same_directory(project: Path):
    path = f"{project.parent}//study///"

    assert paths(scan(path, roots_of(project.parent))) == paths(scanned(project))
