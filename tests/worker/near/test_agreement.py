"""Readings in other digits are the same ones, other readings are not, however little they differ."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.near.agreement import Agreement, Floats, Precision, Verdict

DIGITS = st.integers(3, 9)
SEEDS = st.integers(0, 1_000)


def readings(seed: int, rows: int = 300) -> Floats:
    """A wrist that moves a little, with gravity on the last axis; not a zero among them."""
    chance = np.random.default_rng(seed)
    return np.cumsum(chance.normal(0, 0.1, (rows, 3)), axis=0) + np.array([0.5, -3.0, 9.81])


def agree(first: Floats, second: Floats, *ends: int) -> Verdict | None:
    agreement = Agreement()
    for begin, end in zip([0, *ends], [*ends, len(first)], strict=True):
        if not agreement.take(first[begin:end], second[begin:end]):
            return None
    return agreement.verdict()


@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, digits=DIGITS, is_first=st.booleans(), end=st.integers(0, 300))
def test_rounded_readings_agree(seed: int, digits: int, *, is_first: bool, end: int):
    fine = readings(seed)
    coarse = fine.round(digits)

    verdict = agree(coarse, fine, end) if is_first else agree(fine, coarse, end)

    assert verdict is not None
    if verdict.precision is Precision.ROUNDED:
        assert verdict.coarser == ("first" if is_first else "second")


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(5, 10))
def test_readings_of_some_significant_digits_agree(seed: int, digits: int):
    fine = readings(seed)
    coarse = np.array([float(f"{one:.{digits}g}") for one in fine.ravel()]).reshape(fine.shape)

    # With fewer, an axis may show less than a hundred units of its last digit: then it is no evidence.
    assert agree(fine, coarse) is not None


@settings(deadline=None, max_examples=40)
@given(
    seed=SEEDS,
    digits=st.integers(3, 12),
    factor=st.sampled_from([1 + 1e-6, 1 - 1e-6, 1.001, 1 + 3e-7]),
    is_rounded=st.booleans(),
)
def test_scaled_readings_do_not_agree_whatever_their_digits(
    seed: int, digits: int, factor: float, *, is_rounded: bool
):
    coarse = readings(seed).round(digits)
    scaled = coarse * factor
    if is_rounded:
        scaled = scaled.round(digits)

    # Where the factor is lost in rounding the two are the same, number by number.
    assert np.array_equal(coarse, scaled) or agree(coarse, scaled) is None


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(0, 299), st.integers(0, 2), st.floats(1e-5, 10), st.integers(3, 15))
def test_a_single_other_reading_is_found(seed: int, row: int, axis: int, by: float, digits: int):
    one = readings(seed).round(digits)
    other = one.copy()
    other[row, axis] += max(by, 10.0**-digits)

    assert agree(one, other) is None


def test_single_precision_agrees_and_arithmetic_is_no_difference():
    fine = readings(1)

    single = agree(fine, fine.astype(np.float32).astype(np.float64))
    assert single is not None
    assert single.precision is Precision.SINGLE
    equal = agree(fine, fine * (1 + 2e-16))
    assert equal is not None
    assert equal.precision is Precision.EQUAL


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_missing_and_infinite_readings_agree_only_with_their_like(value: float):
    one, other = readings(1), readings(1)
    one[7, 1] = value

    assert agree(one, other) is None
    assert agree(other, one) is None
    other[7, 1] = value
    assert agree(one, other) is not None
    assert agree(one, other.round(5)) is not None
    one[7, 1] = -value if np.isinf(value) else 0.0
    assert agree(one, other) is None


def test_each_side_rounded_in_another_axis_is_none_the_richer():
    one, other = readings(1), readings(1)
    one[:, 0] = one[:, 0].round(4)
    other[:, 1] = other[:, 1].round(4)

    assert agree(one, other) is None


def test_zeros_are_not_a_small_noise_rounded():
    noise = np.random.default_rng(1).normal(0, 1e-4, (300, 3))

    assert agree(noise, np.zeros((300, 3))) is None
    assert agree(noise[:50], noise[:50].round(6)) is None
