"""Rounding of kernels: scales, nearest codes, and AdaRound beside them."""

import numpy as np
import pytest

from edgedl.compression import rounding


def test_rounding_scales_by_channel_and_nearest_codes():
    kernel = np.array([[1.27, 0.0, -2.54], [0.5, 0.0, 0.03]], np.float32)
    scales = rounding.kernel_scales(kernel, (0,))
    np.testing.assert_allclose(scales, [[0.01, 1.0, 0.02]], rtol=1e-6)
    np.testing.assert_array_equal(rounding.nearest(kernel, scales), [[127, 0, -127], [50, 0, 2]])
    depthwise = np.arange(12, dtype=np.float32).reshape(2, 2, 3, 1)
    assert rounding.kernel_scales(depthwise, (0, 1)).shape == (1, 1, 3, 1)


def test_rounding_knows_a_kernel_that_is_on_its_grid():
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (50, 4))
    codes[0] = 127
    kernel = (codes * np.array([0.01, 0.3, 1e-5, 2.0])).astype(np.float32)
    scales = rounding.kernel_scales(kernel, (0,))
    assert rounding.is_on_grid(kernel, scales)
    np.testing.assert_array_equal(rounding.nearest(kernel, scales), codes)
    assert not rounding.is_on_grid(kernel * rng.random((50, 1)).astype("f"), scales)


def test_adaround_keeps_outputs_better_than_the_nearest_codes():
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    inputs = (rng.normal(0, 1, (256, 8)) @ rng.normal(0, 1, (8, 24))).astype(
        np.float32
    )  # correlated, as activations are
    kernel = rng.normal(0, 1, (24, 6)).astype(np.float32)
    kernel[3] = 0
    scales = rounding.kernel_scales(kernel, (0,)) * np.float32(127 / 3)  # 3 codes a side: rounding shows
    targets = inputs @ kernel
    options = rounding.AdaRoundOptions(iterations=400, learning_rate=5e-2)
    found = rounding.adaround(kernel, scales, inputs, targets, tf.matmul, options)
    nearest = rounding.nearest(kernel, scales)

    def error(codes):
        return np.mean(np.square(targets - inputs @ (codes * scales)))

    assert error(found) < 0.5 * error(nearest)
    units = kernel / scales
    assert (np.abs(found - units) < 1).all()
    assert (found[3] == 0).all()
    again = rounding.adaround(kernel, scales, inputs, targets, tf.matmul, options)
    np.testing.assert_array_equal(again, found)
