"""How values are written on a report's page."""

import pytest

from producer.report.notation import human_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.8204, "820 ms"),
        (0.9999, "1.0 s"),
        (12.34, "12.3 s"),
        (59.97, "1 min 00 s"),
        (222, "3 min 42 s"),
        (7500, "2 h 05 min"),
        (100_800, "1 d 04 h"),
    ],
)
def test_durations_are_written_in_the_units_that_matter(seconds, text):
    assert human_duration(seconds) == text
