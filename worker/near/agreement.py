"""Whether two recordings have the same readings, to the digits that the coarser one was written with.

Two readings are the same if they differ by no more than arithmetic does (a part in 10^12 of the largest
nearby), or are the same in single precision, or if one is the other, rounded. What it was rounded to is read
off the coarser recording itself and has to fit all of it: the decimals, or the significant digits, that every
reading of an axis has at most. So a difference is never small enough by itself: readings that are a
millionth larger, and have digits to say so, are others.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_ARITHMETIC = 1e-12
_SINGLE = 2.0**-23
_FEWEST, _MOST = 3, 9
"""Decimals; of significant digits one more. A recording with fewer is compared as if it had these."""

_ON_GRID = 1e-4
_LEAST_RECORDS = 100
_LEAST_STEPS = 100
_LEAST_LEFT = 0.01
_FEW = 64


class Precision(StrEnum):
    """How alike readings are, from the same to rounded."""

    EQUAL = "equal"
    SINGLE = "single precision"
    ROUNDED = "rounded"


Side = Literal["first", "second"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How alike the readings of two recordings are. `coarser` is the one that was rounded, if either was
    for all axes that differ; `digits` says to what, such as "4 decimals".
    """

    precision: Precision
    coarser: Side | None = None
    digits: str | None = None


class Agreement:
    """Takes two recordings part by part and says whether their readings are the same."""

    def __init__(self) -> None:
        self._axes = [_Axis(), _Axis(), _Axis()]
        self._before: Floats | None = None
        self.changes = 0
        """In so many records of the second recording a reading is another than in the record before."""

    def take(self, first: Floats, second: Floats) -> bool:
        """Take the next records of both, three columns each; False as soon as they are not the same."""
        agree = all(axis.take(first[:, place], second[:, place]) for place, axis in enumerate(self._axes))
        if agree and len(second):
            since = second if self._before is None else np.concatenate((self._before, second))
            self.changes += int((since[1:] != since[:-1]).any(axis=1).sum())
            self._before = second[-1:]
        return agree

    def verdict(self) -> Verdict | None:
        """How alike all that was taken is; None if what differs does not look as if it were rounded."""
        verdicts = [axis.verdict() for axis in self._axes]
        found = [one for one in verdicts if one is not None]
        if len(found) < len(verdicts):
            return None
        rounded = [one for one in found if one.precision is Precision.ROUNDED]
        if rounded:
            sides = {one.coarser for one in rounded}
            # Which is the finer recording cannot be said if that is another one for each axis.
            return max(rounded, key=lambda one: one.digits or "") if len(sides) == 1 else None
        return max(found, key=lambda one: list(Precision).index(one.precision))


class _Axis:
    """One axis of two recordings. Everything is counted from the first part on in which they differ."""

    def __init__(self) -> None:
        self._is_equal = True
        self._is_single = True
        self._roundings = [
            _Rounding(side=side, significant=significant)
            for side in ("first", "second")
            for significant in (False, True)
        ]
        self._fit = _Fit()

    def take(self, first: Floats, second: Floats) -> bool:
        is_missing = np.isnan(first)
        if (is_missing != np.isnan(second)).any():
            return False
        same = is_missing | (first == second)
        if self._is_equal and same.all():
            return True
        first, second = np.where(is_missing, 0.0, first), np.where(is_missing, 0.0, second)
        if not (np.isfinite(first) | same).all() or not (np.isfinite(second) | same).all():
            return False
        first, second = first[np.isfinite(first)], second[np.isfinite(second)]
        apart = np.abs(second - first)
        larger = np.maximum(np.abs(first), np.abs(second))
        apart[apart <= _ARITHMETIC * larger.max(initial=0.0)] = 0.0
        if self._is_equal and not apart.any():
            return True
        self._is_equal = False
        self._is_single = self._is_single and bool((apart <= _SINGLE * larger).all())
        self._fit.take(second - first, second)
        self._roundings = [
            one for one in self._roundings if one.take(first if one.side == "first" else second, apart)
        ]
        return self._is_single or bool(self._roundings)

    def verdict(self) -> Verdict | None:
        if self._is_equal:
            return Verdict(precision=Precision.EQUAL)
        if self._is_single:
            return Verdict(precision=Precision.SINGLE)
        proven = [one for one in self._roundings if one.is_proven(self._fit)]
        if not proven:
            return None
        return Verdict(precision=Precision.ROUNDED, coarser=proven[0].side, digits=proven[0].digits)


class _Rounding:
    """The supposition that one side is the other, rounded to decimals or to significant digits."""

    def __init__(self, *, side: Side, significant: bool) -> None:
        self.side = side
        self._significant = significant
        self._decimals = _FEWEST
        self._apart = 0.0
        self._lowest = np.inf
        self._highest = -np.inf

    @property
    def digits(self) -> str:
        """What the side was rounded to, for people."""
        return (
            f"{self._decimals + 1} significant digits" if self._significant else f"{self._decimals} decimals"
        )

    def take(self, coarse: Floats, apart: Floats) -> bool:
        """Take readings of the coarse side and how far the other's are away; False: it is no rounding."""
        if not len(coarse):
            return True
        self._lowest = min(self._lowest, float(coarse.min()))
        self._highest = max(self._highest, float(coarse.max()))
        if self._significant:
            scale = _leading(coarse)
            coarse, apart = coarse / scale, apart / scale
        self._apart = max(self._apart, float(apart.max()))
        return self._raise(coarse[:_FEW]) and self._raise(coarse)

    def _raise(self, coarse: Floats) -> bool:
        """Find how many decimals these readings have at least; False if too many for what differs."""
        while self._apart <= self._half_step and self._decimals <= _MOST:
            on = coarse * 10.0**self._decimals
            if bool((np.abs(on - np.rint(on)) <= _ON_GRID).all()):
                return True
            self._decimals += 1
        return False

    @property
    def _half_step(self) -> float:
        return 0.5 * 10.0**-self._decimals * (1 + 1e-6)

    def is_proven(self, fit: "_Fit") -> bool:
        """Is it more than a small difference? The coarse side has to show a hundred times its last digit,
        in a hundred records, and what was rounded off must not follow a line, as it does where one recording
        was scaled or shifted.
        """
        step = 10.0**-self._decimals
        if self._significant:
            step *= float(_leading(np.array([max(abs(self._lowest), abs(self._highest))]))[0])
        return (
            fit.count >= _LEAST_RECORDS
            and self._highest - self._lowest >= _LEAST_STEPS * step
            and fit.left >= _LEAST_LEFT
        )


def _leading(values: Floats) -> Floats:
    """The power of ten of each value's first digit; 1 for zero."""
    sizes = np.abs(values)
    scale: Floats = 10.0 ** np.floor(np.log10(np.where(sizes > 0, sizes, 1.0)))
    return scale


class _Fit:
    """How much of the differences between two recordings a straight line through them leaves over."""

    def __init__(self) -> None:
        self.count = 0
        self._at: float | None = None
        self._sums = np.zeros(5)

    def take(self, apart: Floats, values: Floats) -> None:
        """Take differences, and the values at which they are."""
        if not len(values):
            return
        if self._at is None:
            self._at = float(values[0])
        moved = values - self._at
        self.count += len(values)
        self._sums += [
            apart.sum(), moved.sum(), (apart * apart).sum(), (moved * moved).sum(), (apart * moved).sum(),
        ]  # fmt: skip

    @property
    def left(self) -> float:
        """The part of the squared differences that is left over, from 0 to 1."""
        apart, values, apart2, values2, both = self._sums / max(1, self.count)
        if apart2 == 0:
            return 1.0
        varies, moves, together = apart2 - apart**2, values2 - values**2, both - apart * values
        left = varies - (together**2 / moves if moves > 0 else 0.0)
        return float(left / apart2)
