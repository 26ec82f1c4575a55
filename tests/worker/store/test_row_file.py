"""Row files: what they say comes back, and what they should not say is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import RowFileError
from worker.store.row_file import DatasetRow, SessionRow, parse
from worker.store.store import Store

HASH = "ab" * 32
TIME = "2026-11-30T06:00:00.123456+00:00"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
maybe_times = st.sampled_from([None, TIME, "2026-11-30T06:00:00"])
numbers = st.integers(1, 2**63 - 1)
sessions = st.builds(
    SessionRow,
    raw_session_id=numbers,
    session_name=texts,
    session_path=texts,
    file_count=st.none() | st.integers(0, 2**31 - 1),
    labels=st.none() | st.just(True) | texts,
    created_at=maybe_times,
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3),
    max_leaves=5,
)
rows = st.builds(
    DatasetRow,
    dataset_id=numbers,
    dataset_name=texts,
    dataset_hash=st.just(HASH),
    file_path=st.just("/data/raw_datasets/study-abababababab"),
    upload_timestamp=maybe_times,
    file_size_bytes=st.none() | st.integers(0, 2**63 - 1),
    session_count=st.none() | st.integers(0, 2**31 - 1),
    description=st.none() | texts,
    metadata=values,
    created_at=maybe_times,
    updated_at=maybe_times,
    sessions=st.lists(sessions, max_size=3).map(tuple),
    label_hash=st.none() | st.just("cd" * 32),
    has_label_hash=st.booleans(),
    registered_hash=st.none() | st.just("ef" * 32),
)


def a_row(**changes: Any) -> DatasetRow:
    said: dict[str, Any] = {
        "dataset_id": 7,
        "dataset_name": "study",
        "dataset_hash": HASH,
        "file_path": "/data/raw_datasets/study-abababababab",
        "upload_timestamp": TIME,
        "file_size_bytes": 10,
        "session_count": 1,
        "description": None,
        "metadata": {"original_source": "/legacy/study"},
        "created_at": TIME,
        "updated_at": TIME,
        "sessions": (
            SessionRow(
                raw_session_id=9,
                session_name="day",
                session_path="day",
                file_count=2,
                labels=True,
                created_at=TIME,
            ),
        ),
    }
    return DatasetRow(**said | changes)


@given(rows)
def test_what_a_row_file_says_comes_back(row: DatasetRow):
    assert parse(row.content, HASH, "file") == row


def test_a_row_file_lies_beside_the_manifest_and_is_read_only(tmp_path: Path):
    store = Store.open(tmp_path / "store", tmp_path / "trees", "blake3", create=True)
    assert store.read_row(HASH) is None

    with store.staging("attempt") as staging:
        store.write_row(a_row(), staging)
        store.write_row(a_row(dataset_id=8), staging)
        store.write_row(a_row(dataset_id=None), staging)

    (file,) = (tmp_path / "store/manifests").iterdir()
    assert file.name == f"{HASH}.row.json"
    assert file.stat().st_mode & 0o777 == 0o444
    assert store.read_row(HASH) == a_row(dataset_id=8)


def changed(**changes: Any) -> bytes:
    return json.dumps(json.loads(a_row().content) | changes).encode()


BAD = {
    b"": "is not JSON",
    b"\xff\xfe": "is not JSON",
    b"[]": "not of a format that this version reads",
    changed(format=2): r"not of a format that this version reads \(1\)",
    changed(dataset_id="7"): "is malformed: dataset_id",
    changed(dataset_id=0): "is malformed: dataset_id",
    changed(dataset_id=None): "does not say what was written",
    a_row(dataset_id=None).content: "is malformed: it lacks ids",
    changed(sessions=[{}]): r"is malformed: sessions\.0\.",
    changed(created_at="yesterday"): "is malformed: created_at",
    changed(more=1): "is malformed: more",
    changed(description="another"): "does not say what was written: its checksum differs",
    a_row().content[:-20]: "is not JSON",
    a_row(dataset_hash="cd" * 32).content: "is of another dataset, cdcd",
}


@pytest.mark.parametrize("content", BAD)
def test_a_bad_row_file_is_refused_with_its_name_and_the_reason(tmp_path: Path, content: bytes):
    store = Store.open(tmp_path / "store", tmp_path / "trees", "blake3", create=True)
    Path(store.row_path(HASH)).write_bytes(content)

    with pytest.raises(RowFileError, match=BAD[content]) as refused:
        store.read_row(HASH)

    assert store.row_path(HASH) in str(refused.value)
