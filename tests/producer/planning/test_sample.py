"""Estimates by heads of files: within the hard bounds always, exact where all is read, and honest where
little is.
"""

import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from producer.planning.sample import Counted, estimate, extrapolated, head_of_file
from tests.support.trees import RECORDING
from worker.store.digest import HEAD_BYTES, digest_of

_SIZES = st.dictionaries(
    st.integers(1, 10**9), st.lists(st.integers(1, 6), min_size=1, max_size=8), min_size=1, max_size=15
)
"""By size, the contents of its files."""


def paths_of(sizes: Mapping[int, Sequence[int]], place: str = "lab") -> dict[int, list[str]]:
    return {
        size: [f"{place}/{size}/{number}/{content}" for number, content in enumerate(contents)]
        for size, contents in sizes.items()
    }


def heads_of(paths: Sequence[str]) -> dict[str, str | None]:
    """The head of a file by its path, of which the size and the content are parts."""
    return {path: f"{path.split('/')[1]} {path.split('/')[3]}" for path in paths}


def stored_by(sizes: Mapping[int, Sequence[int]], before: Mapping[int, Sequence[int]]) -> int:
    return sum(size * len(set(of) - set(before.get(size, ()))) for size, of in sizes.items())


@given(_SIZES, st.data())
def test_where_every_head_is_read_the_estimate_is_what_is_stored(sizes, data):
    some = data.draw(st.sets(st.sampled_from(sorted(sizes))))
    before = {size: data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)) for size in some}

    found = estimate(paths_of(sizes), paths_of(before, "store"), heads_of)

    assert found.stored.is_exact
    assert found.stored.likely == stored_by(sizes, before)
    assert found.read_bytes == sum(size * len(of) for size, of in sizes.items())


@given(_SIZES, st.integers(0, 20))
def test_however_few_heads_are_read_the_band_keeps_to_what_is_possible(sizes, most):
    found = estimate(paths_of(sizes), {}, heads_of, most)

    assert found.heads_read <= most
    assert sum(sizes) <= found.stored.low <= found.stored.likely <= found.stored.high <= found.read_bytes


@given(_SIZES, st.integers(0, 20), st.data())
def test_a_file_that_cannot_be_read_counts_as_new(sizes, most, data):
    lost = set(data.draw(st.lists(st.sampled_from([path for of in paths_of(sizes).values() for path in of]))))

    def with_losses(paths: Sequence[str]) -> dict[str, str | None]:
        return {path: None if path in lost else head for path, head in heads_of(paths).items()}

    found = estimate(paths_of(sizes), {}, with_losses, most)

    assert found.unreadable <= len(lost)
    assert found.stored.likely <= found.read_bytes


def test_a_sample_of_many_sizes_comes_near_and_its_band_holds_the_truth():
    """Two hundred labs, of which each has a chance of its own that a file is there twice; also hardly any."""
    held, off = 0, []
    for seed in range(200):
        chance = random.Random(seed)
        doubled = chance.random()
        sizes = {chance.randint(10**6, 10**8): [1, 1 if chance.random() < doubled else 2] for _ in range(400)}
        real = stored_by(sizes, {})

        found = estimate(paths_of(sizes), {}, heads_of, 100)

        held += found.stored.holds(real)
        off.append(abs(real - found.stored.likely) / real)

    assert held >= 180
    assert sum(off) / len(off) < 0.06


def test_what_was_not_sampled_at_all_has_the_widest_band():
    band = extrapolated([], [(300, 100), (50, 0)])

    assert (band.low, band.likely, band.high) == (100, 225, 350)
    assert extrapolated([Counted(total=10, stored=5)] * 3, []).high == 0


def test_a_head_is_as_a_worker_makes_it_and_nothing_but_a_file_is_waited_for(tmp_path: Path):
    small, large, link, pipe = (tmp_path / name for name in ("small", "large", "link", "pipe"))
    small.write_bytes(RECORDING)
    large.write_bytes(b"7" * HEAD_BYTES + b"8")
    link.symlink_to(small)
    os.mkfifo(pipe)

    assert head_of_file(str(small), "blake3") == digest_of("blake3", RECORDING)
    assert head_of_file(str(large), "blake3") == digest_of("blake3", b"7" * HEAD_BYTES)
    assert [head_of_file(str(path), "blake3") for path in (link, pipe, tmp_path, tmp_path / "none")] == [
        None
    ] * 4
