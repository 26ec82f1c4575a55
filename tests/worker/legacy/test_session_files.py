"""What rows take from a session's files: the records of its recording, and whether its labels are text."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.trees import (
    hashed,
    open_store,
    store_at,
    write_tree,
)
from worker.legacy.session_files import TextCheck
from worker.sessions_csv import RECORDING
from worker.store.digest import CHUNK_BYTES

CARRIAGE_RETURNS = b"t,x\r\n1,2\r\n3,4\r\n"

# Recordings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "records"),
    [
        (b"t,x\n1,2\n3,4\n", 2),
        (b"t,x\n1,2\n3,4", 2),
        (CARRIAGE_RETURNS, 2),
        (b't,x\n1,"2\n3"\n', 1),
        (b"t,x\n1,2\n\n3,4\n", 2),
        (b"t,x\n", None),
        (b"", None),
        (b"\n\n", None),
        (b"t,x\n1,\xff\n", None),
        (b't,x\n1,"2\n', None),
        (b"t,x\n1,2\n1,2,3\n", None),
    ],
    ids=[
        "plain",
        "no newline at the end",
        "carriage returns",
        "quoted newline",
        "blank line",
        "header only",
        "empty",
        "blank lines only",
        "not text",
        "a quote without end",
        "a line too long",
    ],
)
def test_records_are_those_that_pandas_reads_and_none_where_it_reads_none(
    tmp_path: Path, content: bytes, records: int | None
):
    project = write_tree(tmp_path / "study", {b"session/" + RECORDING.encode(): content})

    assert hashed(project, open_store(tmp_path)).records == {"session": records}


@pytest.mark.parametrize("name", ["recording.csv.gz", "recording.csv.zip", "recording.csv.xz"])
def test_a_linked_recording_is_counted_whatever_its_target_is_called(tmp_path: Path, name: str):
    write_tree(tmp_path / "shared", {name.encode(): CARRIAGE_RETURNS})
    project = write_tree(tmp_path / "study", {b"session": None})
    (project / "session" / RECORDING).symlink_to(tmp_path / "shared" / name)

    assert hashed(project, open_store(tmp_path)).records == {"session": 2}


def test_records_are_counted_for_the_recording_of_a_session_only(tmp_path: Path):
    recording = b"t,x\n1,2\n"
    project = write_tree(
        tmp_path / "study",
        {
            b"one/accelerometer_data.csv": recording,
            b"two/gyroscope_data.csv": recording,
            b"three/deep/accelerometer_data.csv": recording,
            b"accelerometer_data.csv": recording,
            b"four/accelerometer_data.csv/x": recording,
        },
    )

    assert hashed(project, open_store(tmp_path)).records == {"one": 1}


# Labels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "is_text"),
    [
        (b"[]", True),
        (b"", True),
        (b"not json", True),
        ("größe 研究 🙂".encode(), True),
        (b"\xef\xbb\xbf[]", True),
        (b"caf\xe9", False),
        (b"caf\xc3", False),
        (b"\xed\xa0\x80", False),
        (b"a\0b", False),
        (b"x" * (CHUNK_BYTES - 1) + "ü".encode(), True),
        (b"x" * (CHUNK_BYTES - 1) + b"\xc3", False),
        (b"\xff" + b"x" * CHUNK_BYTES, False),
    ],
    ids=[
        "a list",
        "empty",
        "not JSON",
        "all of Unicode",
        "byte order mark",
        "Latin-1",
        "cut short",
        "a surrogate",
        "a null byte",
        "a character across chunks",
        "cut short across chunks",
        "bad in the first chunk",
    ],
)
def test_labels_that_a_row_cannot_hold_are_told_apart_and_kept_as_a_file(
    tmp_path: Path, content: bytes, is_text
):
    project = write_tree(tmp_path / "study", {b"session/labels.json": content})
    store = open_store(tmp_path)

    tree = hashed(project, store)

    assert tree.unreadable_labels == (frozenset() if is_text else {"session"})
    target = store.tree_path("study", tree.manifest.digest)
    store_at(store, tree, target)
    assert (target / "session" / "labels.json").read_bytes() == content


def test_labels_are_checked_right_below_a_session_only(tmp_path: Path):
    bad = b"\xff"
    names = [b"one/labels.json", b"labels.json", b"two/deep/labels.json", b"two/Labels.json"]
    project = write_tree(tmp_path / "study", dict.fromkeys(names, bad))

    assert hashed(project, open_store(tmp_path)).unreadable_labels == {"one"}


@given(
    content=st.binary(max_size=60) | st.text(max_size=40).map(str.encode), cuts=st.lists(st.integers(0, 60))
)
@settings(deadline=None)
def test_text_is_detected_alike_wherever_the_chunks_end(content: bytes, cuts: list[int]):
    check = TextCheck()
    borders = sorted({0, *(cut for cut in cuts if cut < len(content)), len(content)})
    for start, end in zip(borders, borders[1:], strict=False):  # noqa: RUF007 - one border makes no pair
        check.feed(memoryview(content)[start:end])

    try:
        expected = "\0" not in content.decode("utf-8")
    except UnicodeDecodeError:
        expected = False
    assert check.is_text is expected
