"""Recordings, what Label's upload makes of them, and other forms of the same. Knows no store.

The upload is written down here a second time, in pandas and after what Label does (label contract, section
3), so that what the program computes part by part has something to be compared with.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TIME = "ns_since_reboot"
GRAVITY = np.array([0.0, 0.0, 9.81])
GAP_NS = 30 * 60 * 1_000_000_000


def recorded(seed: int, rows: int = 400, *, rate_hz: float = 100.0, start_ns: int = 10**12) -> pd.DataFrame:
    """A recording of a moving wrist, at an uneven rate."""
    chance = np.random.default_rng(seed)
    step = 1e9 / rate_hz
    times = (
        start_ns + seed * 7_777_777_777 + np.cumsum(chance.integers(int(step * 0.7), int(step * 1.3), rows))
    )
    values = np.cumsum(chance.normal(0, 0.05, (rows, 3)), axis=0) + chance.normal(0, 0.02, (rows, 3))
    return frame(times, values + GRAVITY)


def frame(times: Any, values: Any) -> pd.DataFrame:
    """Columns as the watch names them."""
    return pd.DataFrame({TIME: times, "x": values[:, 0], "y": values[:, 1], "z": values[:, 2]})


def uploaded(accelerometer: pd.DataFrame, gyroscope: pd.DataFrame | None = None) -> list[pd.DataFrame]:
    """What an upload leaves of a session's file, or of both."""
    table = _taken(accelerometer, "accel")
    if gyroscope is not None:
        other = _taken(gyroscope, "gyro")
        rates = [1 / (one[TIME].diff().median() * 1e-9) for one in (table, other)]
        table = pd.merge_asof(
            table, other, on=TIME, tolerance=int(1e9 / min(rates)), direction="nearest"
        ).dropna()
    table = table.sort_values(TIME).reset_index(drop=True)
    if not (table[TIME].diff() > GAP_NS).any():
        clock = table.set_index(pd.to_datetime(table[TIME], unit="ns").astype("datetime64[ns]"))
        table = clock.resample("20ms").mean().ffill()
        table[TIME] = table.index.astype("int64")
    return [
        table[[TIME, *(f"{prefix}_{axis}" for axis in "xyz")]].reset_index(drop=True)
        for prefix in ("accel", "gyro")[: 1 if gyroscope is None else 2]
    ]


def _taken(table: pd.DataFrame, prefix: str) -> pd.DataFrame:
    named = table.iloc[:-1].rename(columns={axis: f"{prefix}_{axis}" for axis in "xyz"})
    return named.astype(float).sort_values(TIME).reset_index(drop=True)


def write(table: pd.DataFrame, path: Path, **form: Any) -> Path:
    """A table as CSV, by pandas' own options of form, in a directory that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, **form)
    return path


def scaled(table: pd.DataFrame, factor: float) -> pd.DataFrame:
    """Every reading times a factor."""
    return table.assign(**{axis: table[axis] * factor for axis in "xyz"})


FORMS: Mapping[str, Callable[[pd.DataFrame, Path], Path]] = {
    "line ends": lambda table, path: write(table, path, lineterminator="\r\n"),
    "order of columns": lambda table, path: write(table[["z", TIME, "y", "x"]], path),
    "names": lambda table, path: write(table.rename(columns={axis: f"accel_{axis}" for axis in "xyz"}), path),
    "times as floats": lambda table, path: write(table.astype({TIME: float}), path),
    "quotes": lambda table, path: write(table, path, quoting=1),
    "six decimals": lambda table, path: write(table, path, float_format="%.6f"),
    "exponents": lambda table, path: write(table, path, float_format="%.8e"),
    "single precision": lambda table, path: write(table.astype(dict.fromkeys("xyz", "float32")), path),
}
"""The same records in another form."""
