"""Bits that flip in the store: every one is found by one full verification and named, and healed while a good
copy exists anywhere.
"""

import os
import random
import re
from pathlib import Path

import pytest

from tests.estate import snapshot_tree
from tests.support.damages import contents, flip, separate
from tests.support.runs import migrate_all, verify_datasets
from tests.support.sites import Site
from tests.support.studies import check_store, plain_study
from worker.jobs.tools import Tools
from worker.messages import Outcome, Status

_PROJECTS, _SESSIONS = 6, 4


def make(site: Site, tools: Tools) -> list[Path]:
    """Datasets that share half of their sessions, some files of which are copies; their trees."""
    for number in range(_PROJECTS):
        plain_study(site, f"study {number}", *range(2 * number, 2 * number + _SESSIONS), rows=20 + 7 * number)
    trees = [Path(str(outcome.dataset_path)) for outcome in migrate_all(site, tools)]
    for tree in trees[::2]:
        separate(next(iter(sorted(tree.glob("*/accelerometer_data.csv")))))
    return trees


def targets(site: Site, trees: list[Path]) -> list[Path]:
    """Everything that holds bytes: blobs, manifests, row files, files of trees that are no links."""
    store = site.settings.store_dir
    blobs = sorted(store.glob("blobs/*/*"))
    inodes = {path.stat().st_ino for path in blobs}
    copies = [path for tree in trees for path in sorted(tree.glob("*/*")) if path.stat().st_ino not in inodes]
    return [*blobs, *sorted(store.glob("manifests/*")), *copies]


def flip_some(site: Site, trees: list[Path], chance: random.Random, bits: int) -> set[str]:
    """Flip bits of different files at random places; the files."""
    chosen = chance.sample(targets(site, trees), bits)
    for path in chosen:
        flip(path, chance.randrange(path.stat().st_size), chance.randrange(8))
    return {str(path) for path in chosen}


def named(outcomes: list[Outcome]) -> set[str]:
    return {damage.path for outcome in outcomes for damage in outcome.damaged}


def play(site: Site, tools: Tools, bits: int, seed: int) -> None:
    chance = random.Random(seed)
    trees = make(site, tools)
    before = [contents(tree) for tree in trees]
    legacy = snapshot_tree(site.legacy_root)
    left = bits
    while left:
        flipped = flip_some(site, trees, chance, min(left, chance.randint(1, 12)))
        left -= len(flipped)

        found = verify_datasets(tools)
        assert flipped - named(found) <= _of_damaged_manifests(flipped, trees), (seed, flipped - named(found))
        healed = verify_datasets(tools, repair=True)

        assert flipped <= named(healed), (seed, flipped - named(healed))
        assert Status.FAILED not in {one.status for one in healed}, (seed, healed)
        assert [contents(tree) for tree in trees] == before, seed
        assert snapshot_tree(site.legacy_root) == legacy
        check_store(site)
        assert os.listdir(site.settings.store_dir / "staging") == []
        for tree in chance.sample(trees, 2):
            separate(chance.choice(sorted(tree.glob("*/accelerometer_data.csv"))))


def _of_damaged_manifests(flipped: set[str], trees: list[Path]) -> set[str]:
    """Copies in trees whose manifest is damaged, too: nothing says what their bytes should be, until the
    manifest is whole again.
    """
    manifests = {Path(path).stem[:12] for path in flipped if re.search(r"/[0-9a-f]+\.json$", path)}
    return {
        path
        for path in flipped
        for tree in trees
        if tree.name[-12:] in manifests and path.startswith(f"{tree}/")
    }


def test_every_flipped_bit_is_found_and_healed(site: Site, tools: Tools):
    play(site, tools, 80, seed=12)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_flipped_bits_are_found_and_healed(site: Site, tools: Tools):
    play(site, tools, 10_000, seed=4_711)
