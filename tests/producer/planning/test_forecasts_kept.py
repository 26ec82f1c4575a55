"""Forecasts beside what became of them, over generated estates: bytes to the byte, times and estimates as a
table.
"""

import pytest

from tests.support.forecasts import Played, by_kind, play, table
from tests.support.sites import Site


def check(played: list[Played]) -> None:
    """What must hold of every estate, on any machine."""
    kinds = by_kind(played)
    for words in ("bytes, the dry run's own report", "bytes, kept by a real run of all that is left"):
        assert [one.percent for one in kinds[words]] == [0.0] * len(kinds[words]), words
    assert all(one.inside for one in kinds["bytes, an estimate by all heads"])
    assert all(one.inside for one in kinds["bytes, kept by a real run of a pilot of some projects"])
    assert all(one.inside for one in kinds["room on disk at the most"])
    for one in played:
        for report in one.real:
            assert report["plan"]["off"]["stored_in_band"]
            assert report["plan"]["off"]["projects"] == 0


def test_what_a_dry_run_forecasts_is_what_real_runs_store(emptied_site: Site):
    played = []
    for seed in range(6):
        emptied_site.empty()
        played.append(play(emptied_site, seed, most_projects=6, most_rows=4_000))

    check(played)


@pytest.mark.long
def test_fifty_estates_are_forecast_to_the_byte(emptied_site: Site):
    """The table goes to docs/planning.md by hand: `-s` shows it. Not the seeds by which bands were chosen."""
    played = []
    for seed in range(100, 150):
        emptied_site.empty()
        played.append(play(emptied_site, seed))

    print(f"\n{table(by_kind(played))}")
    check(played)
