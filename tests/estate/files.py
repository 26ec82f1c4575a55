"""Small session directories as Label's watch and upload leave them on disk. Knows no database."""

import json
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

GAP_NS = 31 * 60 * 1_000_000_000
"""The silence of a gap: more than the 30 minutes at which Label starts a new segment."""

_STEP_NS = 20_000_000


class Form(StrEnum):
    """The forms of accelerometer_data.csv (label contract, section 3)."""

    RECORDED = "recorded"
    """As the watch wrote it: x,y,z, whole nanoseconds at an uneven rate."""

    UPLOADED = "uploaded"
    """After an upload: accel_x,accel_y,accel_z, whole nanoseconds on a 20 ms grid."""

    GAPPED = "gapped"
    """After an upload with gaps: as uploaded, but not resampled, and times are written as floats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a written file holds. `segments` are half-open ranges of data rows between the gaps."""

    path: Path
    rows: int
    start_ns: int
    stop_ns: int
    segments: tuple[tuple[int, int], ...]


def write_recording(
    directory: Path,
    *,
    rows: int = 40,
    seed: int = 0,
    form: Form = Form.UPLOADED,
    gaps: Sequence[int] = (),
    gyroscope: bool = False,
    newline: str = "\n",
    final_newline: bool = True,
    blank_lines: Collection[int] = (),
) -> Recording:
    """Write a session directory's accelerometer_data.csv (and gyroscope_data.csv), making the directory if
    need be.

    A gap lies before each data row in `gaps`; a blank line stands before each data row in `blank_lines`.
    Equal arguments give equal bytes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    times = _times(rows, seed, form, gaps)
    for name, prefix in (("accelerometer_data.csv", "accel"), ("gyroscope_data.csv", "gyro"))[
        : 1 + gyroscope
    ]:
        lines = _lines(times, random.Random(f"{seed} {prefix}"), form, prefix, blank_lines)
        text = newline.join(lines) + (newline if final_newline else "")
        (directory / name).write_bytes(text.encode())
    borders = [0, *gaps, rows]
    return Recording(
        path=directory / "accelerometer_data.csv",
        rows=rows,
        start_ns=times[0] if times else 0,
        stop_ns=times[-1] if times else 0,
        segments=tuple(pairwise(borders)),
    )


def write_labels(directory: Path, content: object) -> Path:
    """Write labels.json: bytes as they are, anything else as JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "labels.json"
    path.write_bytes(
        content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
    )
    return path


def _times(rows: int, seed: int, form: Form, gaps: Sequence[int]) -> list[int]:
    chance = random.Random(f"{seed} times")
    now = 1_000_000_000_000 + seed * _STEP_NS
    times = []
    for row in range(rows):
        now += GAP_NS if row in gaps else 0
        times.append(now)
        now += _STEP_NS if form is Form.UPLOADED else chance.randint(9_000_000, 31_000_000)
    return times


def _lines(
    times: Sequence[int], chance: random.Random, form: Form, prefix: str, blank_lines: Collection[int]
) -> list[str]:
    names = "x,y,z" if form is Form.RECORDED else f"{prefix}_x,{prefix}_y,{prefix}_z"
    lines = [f"ns_since_reboot,{names}"]
    for row, time in enumerate(times):
        if row in blank_lines:
            lines.append("")
        shown = f"{float(time)!r}" if form is Form.GAPPED else str(time)
        lines.append(",".join((shown, *(repr(round(chance.uniform(-12, 12), 6)) for _ in range(3)))))
    return lines
