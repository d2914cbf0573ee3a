"""Ranges: array functions against brute force and by hand."""

import numpy as np
import pytest

from edgedl.compression import ranges


def test_ranges_min_max_and_percentile_hold_zero():
    values = np.array([[2.0, 5.0], [3.0, 4.0]])
    assert ranges.min_max(values) == (0.0, 5.0)
    assert ranges.min_max(-values) == (-5.0, 0.0)
    many = np.concatenate([np.linspace(-1, 1, 10_000), [50.0]])
    low, high = ranges.percentile(many)
    assert -1 <= low < -0.99
    assert 0.99 < high <= 1


def test_ranges_moving_average_fades():
    low, high = ranges.moving_average(np.array([-1.0, -1.0]), np.array([1.0, 11.0]), momentum=0.9)
    assert (low, high) == (-1.0, pytest.approx(2.0))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", ["normal", "relu", "laplace", "skewed"])
def test_ranges_mse_is_near_the_best_of_all_ranges(bits, shape):
    rng = np.random.default_rng(0)
    values = {
        "normal": rng.normal(0, 1, 50_000),
        "relu": np.maximum(rng.normal(0, 1, 50_000), 0),
        "laplace": rng.laplace(0, 1, 50_000),
        "skewed": np.where(rng.random(50_000) < 0.5, rng.normal(0, 0.2, 50_000), rng.exponential(1, 50_000)),
    }[shape]
    found = ranges.mse(values, bits)
    counted = values[values != 0]  # zeros have no error on any grid
    error = ranges.clipping_error(counted, found, bits)
    low, high = ranges.min_max(values)
    best = min(
        ranges.clipping_error(counted, (a * low, b * high), bits)
        for a in np.linspace(0.1, 1, 19)
        for b in np.linspace(0.1, 1, 19)
    )
    assert error <= 1.1 * best
    assert error <= ranges.clipping_error(counted, (low, high), bits)
    assert found[0] <= 0 <= found[1]


def test_ranges_mse_clips_an_outlier_and_keeps_a_grid_that_fits():
    rng = np.random.default_rng(1)
    assert ranges.mse(np.append(rng.normal(0, 1, 100_000), 100.0), 4)[1] < 10
    exact = np.repeat(np.arange(256.0), 5)
    assert ranges.mse(exact, 8) == (0.0, 255.0)
    assert ranges.mse(np.zeros(5)) == (0.0, 0.0)
    low, high = ranges.mse(rng.normal(0, 1, 10_000), 4, symmetric=True)
    assert low == -high


def test_ranges_nudged_has_zero_on_the_grid():
    low, high, scale = ranges.nudged(-1.0, 2.03, 8, symmetric=False)
    assert high - low == pytest.approx(3.03)
    assert -low / scale == pytest.approx(round(-low / scale), abs=1e-9)
    assert ranges.nudged(0.3, 2.55, 8, symmetric=False) == (0.0, 2.55, pytest.approx(0.01))
    low, high, scale = ranges.nudged(-1.0, 2.0, 16, symmetric=True)
    assert (low, high, scale) == (-2.0, 2.0, pytest.approx(2.0 / 32767))
    assert ranges.nudged(0.0, 0.0, 8, symmetric=False)[2] > 0
