"""A resolved path is opened as it was resolved: a directory on the way that has become a link leads
nowhere.
"""

import errno
import os
from pathlib import Path

import pytest

from worker.store import beneath
from worker.store.beneath import directory, open_resolved, status_of


@pytest.fixture(params=["openat2", "step by step"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Open by the kernel's own call, and as on kernels and in sandboxes that do not have it."""
    if request.param == "step by step":
        monkeypatch.setattr(beneath, "_has_openat2", lambda: False)
    elif not beneath._has_openat2():
        pytest.skip("this kernel or sandbox has no openat2")
    return str(request.param)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "above" / "folder" / "file"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"content")
    return path


def content_of(path: Path | str, dir_fd: int | None = None) -> bytes:
    descriptor = open_resolved(str(path), os.O_RDONLY, dir_fd=dir_fd)
    with open(descriptor, "rb") as opened:
        return opened.read()


def become_a_link(path: Path) -> None:
    os.symlink(path.rename(path.with_name("elsewhere")), path)


def test_a_file_without_links_on_the_way_is_opened_by_path_and_beneath_a_directory(file: Path):
    assert content_of(file) == b"content"
    assert status_of(str(file)).st_size == 7
    with directory(str(file.parent.parent)) as above, directory("folder", dir_fd=above) as folder:
        assert content_of("folder/file", above) == content_of("file", folder) == b"content"
    with directory("/") as root:
        assert os.fstat(root).st_ino == os.stat("/").st_ino


@pytest.mark.parametrize("depth", range(3), ids=["the file", "its directory", "the one above"])
def test_a_link_at_any_place_of_the_way_is_not_followed(file: Path, depth: int):
    become_a_link([file, *file.parents][depth])

    with pytest.raises(OSError, match=r"symbolic links|Not a directory") as refused:
        content_of(file)

    assert refused.value.errno in {errno.ELOOP, errno.ENOTDIR}
    with (
        directory(str(file.parents[2])) as top,
        pytest.raises(OSError, match=r"symbolic links|Not a directory"),
    ):
        content_of("above/folder/file", top)


def test_nothing_above_a_directory_is_reached_from_it(file: Path):
    with directory(str(file.parent)) as folder:
        with pytest.raises(ValueError, match="not a resolved path"):
            open_resolved("../folder/file", os.O_RDONLY, dir_fd=folder)
        with pytest.raises(OSError, match="Invalid cross-device link"):
            open_resolved(str(file), os.O_RDONLY, dir_fd=folder)


def test_a_new_file_gets_its_mode_and_never_takes_the_place_of_a_link(file: Path):
    new = file.parent / "new"
    os.close(open_resolved(str(new), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
    (file.parent / "link").symlink_to(new)

    assert new.stat().st_mode & 0o777 == 0o640
    with pytest.raises(OSError, match="symbolic links"):
        open_resolved(str(file.parent / "link"), os.O_WRONLY)


def test_a_path_may_be_longer_than_one_system_call_takes(tmp_path: Path):
    names = ["d" * 200] * 50
    descriptors = [os.open(tmp_path, os.O_RDONLY)]
    for name in names:
        os.mkdir(name, dir_fd=descriptors[-1])
        descriptors.append(os.open(name, os.O_RDONLY, dir_fd=descriptors[-1]))
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=descriptors[-1]))
    open_before = len(os.listdir("/proc/self/fd"))

    assert content_of("/".join([str(tmp_path), *names, "file"])) == b""

    assert len(os.listdir("/proc/self/fd")) == open_before
    for name, above, below in reversed(list(zip(names, descriptors, descriptors[1:], strict=False))):
        if below == descriptors[-1]:
            os.unlink("file", dir_fd=below)
        os.close(below)
        os.rmdir(name, dir_fd=above)
    os.close(descriptors[0])
