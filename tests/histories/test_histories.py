"""Whatever is done to a small lab in which order, at its end all reads as before, and labels are there."""

import os
import time
from collections.abc import Iterator

import pytest

from tests.histories.history import ALPHABET, Player, plan
from tests.support.runs import another_worker
from tests.support.sites import Site

SHORT, PORTION = 150, 50
"""So many in `make test`, and so many in one test."""

_AGAIN = "HISTORIES=1 HISTORY_SEED={} .venv/bin/python -m pytest -m long tests/histories"


@pytest.fixture(scope="module")
def player(module_site: Site) -> Iterator[Player]:
    with another_worker(module_site, "one") as one, another_worker(module_site, "two") as two:
        yield Player(module_site, [one, two])


def check(player: Player, seed: int) -> None:
    steps = plan(seed)
    findings = player.play(steps)
    said = [" + ".join(map(str, step)) for step in steps]
    assert not findings, "\n".join([f"seed {seed}", *said, *findings, _AGAIN.format(seed)])


@pytest.mark.parametrize("first", range(0, SHORT, PORTION))
def test_short_histories_end_with_everything_as_it_was(player: Player, first: int):
    for seed in range(first, first + PORTION):
        check(player, seed)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_many_histories_end_with_everything_as_it_was(player: Player):
    first, count = int(os.environ.get("HISTORY_SEED") or 1000), int(os.environ.get("HISTORIES") or 10_000)
    print(f"histories of the seeds {first} to {first + count - 1}")
    begin = time.monotonic()
    for seed in range(first, first + count):
        check(player, seed)
        if (done := seed - first + 1) % 100 == 0:
            print(f"{done} histories in {time.monotonic() - begin:.0f} s", flush=True)


def test_a_history_follows_from_its_seed_and_all_moves_are_made():
    assert plan(7) == plan(7)
    assert plan(7) != plan(8)
    assert {move.name for seed in range(PORTION) for step in plan(seed) for move in step} == set(ALPHABET)
