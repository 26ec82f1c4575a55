"""Sizes and durations as people read them."""

import pytest

from worker.units import human_bytes, human_duration


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (1_237_000, "1.24 MB"),
        (999_600, "1 MB"),
        (12_345_678_901, "12.3 GB"),
        (4_000 * 10**15, "4e+03 PB"),
    ],
)
def test_bytes_have_three_figures_and_a_decimal_unit(size: int, text: str):
    assert human_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7_620, "2 h 07 min")]
)
def test_durations_have_the_units_that_matter(seconds: float, text: str):
    assert human_duration(seconds) == text
