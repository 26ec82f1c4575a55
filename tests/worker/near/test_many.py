"""Among 2,000 recordings every near-duplicate is found and none is invented, for less than two readings of
all; and a recording of a million records takes no more memory than a short one.
"""

import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.support.alike import recorded, uploaded, write
from tests.support.planted import plant, search
from worker.near.compare import Kind
from worker.store.digest import CHUNK_BYTES, new_buffer, new_hasher, read_stored


def by_pair(pairs: Iterable[tuple[Path, Path, Kind]]) -> dict[tuple[Path, ...], Kind]:
    """Of two that differ in form alone either may be the richer; of others the order counts."""
    return {
        tuple(sorted((poorer, richer))) if kind is Kind.FORMAT else (poorer, richer): kind
        for poorer, richer, kind in pairs
    }


@pytest.mark.long
def test_all_pairs_among_two_thousand_recordings_are_found_and_no_other(tmp_path: Path):
    planted = plant(tmp_path, 2_000, each=10)

    found = search(planted.paths)

    assert found.refusals == []
    assert by_pair(
        (planted.paths[one.poorer], planted.paths[one.richer], one.match.kind)
        for one in found.pairs
        # Of two sensors that said the same all the time, all is equal.
        if not (one.match.kind is Kind.FORMAT and one.match.changes == 0)
    ) == by_pair((*pair, kind) for pair, kind in planted.expected.items())
    assert len(planted.expected) == 130


@pytest.mark.long
def test_recordings_that_begin_apart_cost_less_than_to_hash_them_twice(tmp_path: Path):
    paths = [path for path in plant(tmp_path, 1_000, each=0).paths if path.name[-5] not in "01"]
    buffer = new_buffer(CHUNK_BYTES)

    def hash_all() -> None:
        for path in paths:
            hasher = new_hasher("blake3")
            for chunk in read_stored(str(path), buffer):
                hasher.update(chunk)

    def processor_s(work: object) -> float:
        begin = time.process_time()
        assert callable(work)
        work()
        return time.process_time() - begin

    # Of what this program's threads worked, not of what they waited: the machine may be busy.
    ratios = sorted(processor_s(lambda: search(paths)) / processor_s(hash_all) for _ in range(5))
    assert ratios[2] < 2


@pytest.mark.long
def test_memory_does_not_grow_with_a_recording(tmp_path: Path):
    def peak_bytes(rows: int) -> int:
        raw = recorded(1, rows)
        paths = [write(raw, tmp_path / "raw.csv"), write(uploaded(raw)[0], tmp_path / "once.csv")]
        del raw
        tracemalloc.start()
        try:
            assert [one.match.kind for one in search(paths).pairs] == [Kind.RESAMPLED]
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(1_000)
    assert peak_bytes(1_000_000) < 1.5 * peak_bytes(250_000)
