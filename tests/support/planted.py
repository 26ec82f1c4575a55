"""Many recordings of which some are near-duplicates and some only look alike. Knows what is to be found."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tests.support.alike import FORMS, GAP_NS, TIME, frame, recorded, scaled, uploaded, write
from worker.near.compare import Kind
from worker.near.records import Sensor
from worker.near.search import Found, Recording, Search
from worker.runtime.throttle import Throttle

THREADS = 2
_ROWS = 3_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """Recordings, and of those that are to be found (poorer, richer) the kind."""

    paths: list[Path]
    expected: Mapping[tuple[Path, Path], Kind]


def plant(folder: Path, count: int, *, each: int) -> Planted:
    """Write `count` recordings, among them `each` pairs of each kind and as many look-alikes of each kind."""
    paths: list[Path] = []
    expected: dict[tuple[Path, Path], Kind] = {}
    for seed in range(each):
        for number, (make, kind) in enumerate(_pairs()):
            raw = recorded(1_000 * number + seed, _ROWS)
            richer = folder / f"pair {number} {seed} richer.csv"
            poorer = make(raw, folder / f"pair {number} {seed} poorer.csv")
            paths += [write(raw, richer), poorer]
            expected[poorer, richer] = kind
        for number, other in enumerate(_look_alikes()):
            raw = recorded(100_000 + 1_000 * number + seed, _ROWS)
            for name, table in (("one", raw), ("other", other(raw))):
                paths.append(write(table, folder / f"look-alike {number} {seed} {name}.csv"))
    paths += _unrelated(folder, count - len(paths))
    random.Random(1).shuffle(paths)
    return Planted(paths=paths, expected=expected)


def _pairs() -> Iterator[tuple[Callable[[pd.DataFrame, Path], Path], Kind]]:
    for form in FORMS.values():
        yield form, Kind.FORMAT
    yield lambda raw, path: write(raw[:-1], path), Kind.LAST_RECORD
    yield lambda raw, path: write(raw[:1_234].round(6), path, lineterminator="\r\n"), Kind.PREFIX
    yield lambda raw, path: write(uploaded(raw)[0], path), Kind.RESAMPLED
    yield lambda raw, path: write(uploaded(uploaded(raw[:2_000])[0])[0], path), Kind.RESAMPLED
    yield lambda raw, path: write(uploaded(raw)[0], path, float_format="%.7g"), Kind.RESAMPLED


def _look_alikes() -> Iterator[Callable[[pd.DataFrame], pd.DataFrame]]:
    yield lambda raw: scaled(raw, 1 + 1e-6)
    yield lambda raw: raw.assign(**{axis: raw[axis].shift(1).bfill() for axis in "xyz"})
    yield lambda raw: raw.rename(columns={"x": "y", "y": "x"})
    yield lambda raw: raw[1:]
    yield lambda raw: raw.assign(x=raw["x"].where(raw.index < _ROWS - 2, raw["x"] + 1e-4))
    yield lambda raw: raw.assign(**{TIME: raw[TIME].where(raw.index < 2_000, raw[TIME] + GAP_NS)})[:-1]


def _unrelated(folder: Path, count: int) -> list[Path]:
    """The same readings, moved on, by other clocks; a tenth of them begin at one and the same moment, and a
    tenth are of sensors at rest or broken.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(7)
    lines = [",".join(f"{one:.6f}" for one in row) for row in chance.normal(0, 1, (_ROWS, 3))]
    paths = []
    for number in range(count):
        path = folder / f"unrelated {number}.csv"
        paths.append(path)
        start = 10**15 + (0 if number % 10 == 0 else number * 3_333_333_337)
        times = range(start, start + _ROWS * 9_876_543, 9_876_543)
        if number % 10 == 1:
            level = (0.0, 9.81)[number % 20 // 10]
            noise = chance.normal(0, 1e-3 * (number % 30 // 10), (_ROWS, 3))
            write(frame(10**14 + np.arange(_ROWS) * 20_000_000 * (1 + number % 3), level + noise), path)
            continue
        turn = (number * 7) % _ROWS
        rows = (f"{time},{line}" for time, line in zip(times, lines[turn:] + lines[:turn], strict=True))
        path.write_text(f"{TIME},x,y,z\n" + "\n".join(rows) + "\n")
    return paths


def search(paths: Sequence[Path]) -> Found:
    """Search among these recordings of the accelerometer; tags are their places."""
    with ThreadPoolExecutor(THREADS) as threads:
        return Search(
            [
                Recording(path=path, sensor=Sensor.ACCELEROMETER, size_bytes=path.stat().st_size, tag=place)
                for place, path in enumerate(paths)
            ],
            wanted=None,
            check=lambda _recording, _pace: None,
            pace=lambda _bytes: None,
            limit=Throttle(None),
            on_progress=lambda _progress: None,
        ).run(threads)
