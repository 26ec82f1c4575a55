"""What must hold of the order of a migration's calls to the system, checked on the calls that were written
down.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from tests.faults.child import End
from tests.support.shim import REMOVALS, SENDS, SYNCS, Call
from tests.support.sites import Site

_OPENS = {"open", "open64", "openat", "openat64", "creat", "creat64"}
_FILLS = {
    *("write", "writev", "pwrite", "pwrite64", "pwritev", "pwritev64", "pwritev2", "pwritev64v2"),
    *("fallocate", "ftruncate", "ftruncate64", "sendfile64", "copy_file_range"),
    *("fchmod", "ioctl"),
}
"""What changes a file that is open."""
_NAMES = {"link", "linkat", "rename", "renameat", "renameat2"}


def check_order(site: Site, end: End) -> None:
    """Everything that is said of the order above, of one whole migration."""
    done = [call for call in end.calls if call.result is not None and call.result >= 0]
    commit = conversion(done)
    for name in names_of_blobs(site, done) + manifests(site, done):
        check_durable_before_named(done, name)
    lasting = last_sync(done, commit)
    for call in done:
        if call.name not in SENDS | SYNCS | REMOVALS and call.started < commit.started:
            assert call.before(lasting) or is_clearing_up(site, call), (
                f"not on the disk at the commit: {call}"
            )
    assert [call for call in files(done) if call.started > commit.started] == []
    check_places(site, end.calls)


def conversion(done: Sequence[Call]) -> Call:
    """The commit of the transaction that makes the project refer to the dataset."""
    sends = [call for call in done if call.name in SENDS]
    (converting,) = [call for call in sends if "insert into project_conversions" in call.text]
    return next(
        call
        for call in sends
        if call.thread == converting.thread and converting.before(call) and "COMMIT" in call.text
    )


def manifests(site: Site, done: Sequence[Call]) -> list[Call]:
    """The calls that give manifests their names. A row file gets its own sooner than its bytes are on the
    disk: it has a checksum, and counts for nothing before there is a row, or a database to be made again.
    """
    folder = f"{site.settings.store_dir}/manifests/"
    return [
        call
        for call in done
        if call.name in _NAMES and call.target.startswith(folder) and not call.target.endswith(".row.json")
    ]


def names_of_blobs(site: Site, done: Sequence[Call]) -> list[Call]:
    """The calls that give blobs their names."""
    blobs = f"{site.settings.store_dir}/blobs/"
    return [call for call in done if call.name in _NAMES and call.target.startswith(blobs)]


def check_durable_before_named(done: Sequence[Call], name: Call) -> None:
    """The bytes that get a name were written, and a sync that began after that was over, when they got it."""
    written = [call for call in done if call.name in _FILLS and call.path == name.path]
    assert written, f"nobody wrote {name.path}"
    assert any(
        is_sync_of(call, name.path) and call.before(name) and all(write.before(call) for write in written)
        for call in done
    ), f"named before its bytes were on the disk: {name}"
    assert not [call for call in done if call.name in _FILLS and call.path == name.target]


def is_sync_of(call: Call, path: str) -> bool:
    """Does the call wait until a file is on the disk?"""
    return call.name == "syncfs" or (call.name in SYNCS and call.path == path)


def last_sync(done: Sequence[Call], commit: Call) -> Call:
    """The last sync of the whole file system that was over before the commit was sent."""
    return [call for call in done if call.name == "syncfs" and call.before(commit)][-1]


def is_clearing_up(site: Site, call: Call) -> bool:
    """Does the call open a directory of staging so that its entries can be removed?"""
    inside = call.path.startswith(f"{site.settings.store_dir}/staging/")
    return inside and call.name in OPENING_FOR_REMOVAL and not is_a_file_of_staging(call.path)


OPENING_FOR_REMOVAL = {"chmod", "fchmod"}


def is_a_file_of_staging(path: str) -> bool:
    """By its name: a copy, a draft or a manifest; anything else there is a directory."""
    return re.search(r"/([0-9a-f]{64}|[0-9a-f]{32}|\d+|[^/]+\.json)$", path) is not None


def check_places(site: Site, calls: Sequence[Call]) -> None:
    """Files are made in staging and in quarantine only; names of trees come by rename; the legacy directory
    is left alone.
    """
    store, trees = site.settings.store_dir, site.settings.datasets_dir
    for call in calls:
        if call.name in _OPENS | _FILLS:
            assert is_below(call.path, [store / "staging", store / "quarantine"]), call
        if is_below(call.target, [trees]):
            assert call.name == "rename", call
            assert is_below(call.path, [store / "staging"]), call
        assert not is_below(call.path, [site.legacy_root]), call
        assert not is_below(call.target, [site.legacy_root]), call


def is_below(path: str, folders: Collection[Path]) -> bool:
    """Is the path inside one of the folders?"""
    return any(path.startswith(f"{folder}/") for folder in folders)


def files(calls: Sequence[Call]) -> list[Call]:
    """The calls that concern files, not the server."""
    return [call for call in calls if call.name not in SENDS]


def syncs(end: End) -> Counter[str]:
    """How often each call that waits for the disk was made."""
    return Counter(call.name for call in end.calls if call.name in SYNCS)
