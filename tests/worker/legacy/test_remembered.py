"""What is remembered of a file counts only while `stat` says the same of it, and if that can be believed."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.legacy import remembered
from worker.legacy.file_list import ScannedFile
from worker.legacy.remembered import Devices, Draft, Known, Remembered
from worker.store.digest import Signature

NUMBERS = st.integers(0, 2**64 - 1)
TIMES = st.integers(-(2**63), 2**63 - 1)
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
SIGNATURES = st.builds(
    Signature,
    device=NUMBERS,
    inode=NUMBERS,
    size_bytes=st.integers(0, 2**63 - 1),
    mtime_ns=TIMES,
    ctime_ns=TIMES,
)
KNOWN = st.one_of(
    st.builds(Known, digest=DIGESTS, is_counted=st.just(True), records=st.none() | st.integers(1, 2**40)),
    st.builds(Known, digest=DIGESTS, is_text=st.none() | st.booleans(), head=st.none() | DIGESTS),
)
SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
FILE = Signature(device=7, inode=12, size_bytes=9, mtime_ns=NOW, ctime_ns=NOW)


def kept(*entries: tuple[Signature, Known]) -> bytes:
    draft = Draft()
    for said, known in entries:
        draft.add(said.device, said, known)
    return draft.packed()


def scanned(said: Signature, source: str = "/") -> ScannedFile:
    return ScannedFile(path="a", source=source, signature=said, mode=0o644, owner=(0, 0))


@given(st.dictionaries(SIGNATURES, KNOWN, max_size=20), st.integers(1, 7))
def test_everything_is_found_as_it_was_kept_in_however_many_parts(
    entries: dict[Signature, Known], files: int
):
    draft = Draft()
    for said, known in entries.items():
        draft.add(said.device, said, known)
    heads = {known.digest: known.head for known in entries.values() if known.head is not None}

    found = Remembered(portion.packed() for portion in draft.portions(files))

    assert len(found) == len(entries)
    for said, known in entries.items():
        assert found.of(said.device, said) == replace(known, head=heads.get(known.digest))


@given(SIGNATURES, KNOWN, st.sampled_from(["device", "inode", "size_bytes", "mtime_ns", "ctime_ns"]))
def test_a_file_of_which_anything_else_is_said_is_not_known(said: Signature, known: Known, field: str):
    value = getattr(said, field)
    other = replace(said, **{field: value - 1 if value > 0 else value + 1})

    assert Remembered([kept((said, known))]).of(other.device, other) is None


def test_of_two_the_later_one_counts_and_files_of_one_inode_are_told_apart():
    first, second = (Known(digest=letter * 64) for letter in "ab")
    elsewhere = replace(FILE, device=8)

    found = Remembered([kept((FILE, second), (FILE, first)), kept((FILE, second), (elsewhere, first))])

    assert found.of(7, FILE) == second
    assert found.of(8, elsewhere) == first


def test_a_time_that_no_row_holds_is_not_kept():
    draft = Draft()
    draft.add(7, replace(FILE, mtime_ns=2**63), Known(digest="a" * 64))

    assert len(draft) == 0


# What can be believed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "is_settled"),
    [
        (FILE, False),
        (replace(FILE, mtime_ns=NOW - 3 * SECOND), False),
        (replace(FILE, ctime_ns=NOW - 3 * SECOND), False),
        (replace(FILE, mtime_ns=NOW - 3 * SECOND, ctime_ns=NOW - SECOND), False),
        (replace(FILE, mtime_ns=NOW - 3 * SECOND, ctime_ns=NOW - 3 * SECOND), True),
        (replace(FILE, mtime_ns=NOW + 3 * SECOND, ctime_ns=NOW - 3 * SECOND), False),
        (replace(FILE, mtime_ns=0, ctime_ns=0), True),
        (replace(FILE, mtime_ns=0, ctime_ns=0, inode=0), False),
        (replace(FILE, mtime_ns=0, ctime_ns=None), False),
    ],
)
def test_a_file_that_was_just_written_may_change_without_another_time(said: Signature, *, is_settled: bool):
    assert Devices().is_settled(scanned(said), NOW) is is_settled


def test_a_file_server_s_clock_is_trusted_a_minute_less_and_its_device_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(remembered, "is_remote", lambda _descriptor, _device: True)
    devices = Devices()
    old = NOW - 30 * SECOND
    file = scanned(replace(FILE, mtime_ns=old, ctime_ns=old))

    assert not devices.is_settled(file, NOW)
    assert devices.is_settled(file, NOW + 31 * SECOND)
    assert devices.number(file) == 0


def test_what_cannot_be_asked_is_taken_for_a_file_server(tmp_path: Path):
    file = scanned(replace(FILE, device=99), os.fspath(tmp_path / "gone/file"))

    assert Devices().number(file) == 0
