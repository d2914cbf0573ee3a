"""Ranges of quantized tensors, as array functions: how wide one should be, and the grid of codes that it spans.

A range is (low, high), two floats with low <= 0 <= high. Widths are in bits; asymmetric grids have all 2**bits codes,
symmetric ones leave the lowest out, so that 0 is the middle code.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Range = tuple[float, float]
Estimator = Literal["min_max", "percentile", "mse", "moving_average"]
# what integer kernels give, whatever their input: int8 in steps of 1/256 (tanh 1/128), int16 in steps of 1/32768
FIXED = {"softmax": (0.0, 255 / 256), "sigmoid": (0.0, 255 / 256), "tanh": (-1.0, 127 / 128)}
FIXED_16 = (-32767 / 32768, 32767 / 32768)
TAIL = 0.01  # percent of the values that `percentile` cuts off at either end
MOMENTUM = 0.9
OCTAV_ROUNDS = 50
SETTLED = 1e-6  # relative change of a range at which OCTAV stops
NARROW = 8  # bits up to which clipping pays: a wider grid has steps to spare
SMALLEST = 1e-6  # width of a range
OF_ZEROS = 1.0  # of one of zeros: they are exact in any, and kernels refuse a scale that is far from the others


def min_max(values: Array) -> Range:
    """The range of all values, of any shape, zero included."""
    return min(0.0, float(values.min())), max(0.0, float(values.max()))


def percentile(values: Array, tail: float = TAIL) -> Range:
    """The range without `tail` percent of the values at either end, zero included."""
    low, high = np.percentile(values, (tail, 100 - tail))
    return min(0.0, float(low)), max(0.0, float(high))


def moving_average(lows: Array, highs: Array, momentum: float = MOMENTUM) -> Range:
    """The range of batch after batch, (batches,) each, with exponentially fading weight of the earlier ones.

    Jacob et al., arXiv:1712.05877, section 3.1. It starts from the first batch.
    """
    low, high = float(lows[0]), float(highs[0])
    for next_low, next_high in zip(lows[1:], highs[1:], strict=True):
        low += (1 - momentum) * (float(next_low) - low)
        high += (1 - momentum) * (float(next_high) - high)
    return min(0.0, low), max(0.0, high)


def mse(values: Array, bits: int = 8, *, symmetric: bool = False) -> Range:
    """The clipping range of least mean squared error, OCTAV: the fixed point of eq. (6) of arXiv:2206.06501.

    That equation has one clipping value, of a signed symmetric or an unsigned grid. With two ends the error is
    (high - low)^2 / (12 * 4^bits) a value inside, and the squared distance outside; setting its derivative to zero
    gives, with k = 4^-bits / 12 * (share inside), high = (E[x; x > high] + k low) / (P[x > high] + k), and the mirror
    image for low. Zeros have no error and do not count, as in the paper.
    """
    nonzero = values[values != 0].astype(np.float64, copy=False)
    if not nonzero.size:
        return 0.0, 0.0
    if symmetric:
        limit = mse(np.abs(nonzero), bits - 1)[1]
        return -limit, limit
    ordered = np.sort(nonzero, axis=None)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    bounds = min_max(ordered)
    low, high = bounds
    for _ in range(OCTAV_ROUNDS):
        first, last = np.searchsorted(ordered, low, "left"), np.searchsorted(ordered, high, "right")
        k = 4.0**-bits / 12 * float(last - first)
        below, above = float(sums[first]), float(sums[-1] - sums[last])
        new_high = (above + k * low) / (float(ordered.size - last) + k) if bounds[1] > 0 else 0.0
        new_low = (below + k * high) / (float(first) + k) if bounds[0] < 0 else 0.0
        new = (min(0.0, max(new_low, bounds[0])), max(0.0, min(new_high, bounds[1])))
        if last == ordered.size and first == 0:  # nothing is clipped yet: the first step inwards, from the mean
            new = _start(ordered, bounds)
        moved = abs(new[0] - low) + abs(new[1] - high)
        low, high = new
        if moved <= SETTLED * (high - low):
            break
    return _better(ordered, (low, high), bounds, bits)


def _start(ordered: Array, bounds: Range) -> Range:
    """Three standard deviations around zero, within the bounds."""
    reach = 3 * float(np.sqrt(np.mean(np.square(ordered))))
    return max(bounds[0], -reach), min(bounds[1], reach)


def _better(ordered: Array, found: Range, bounds: Range, bits: int) -> Range:
    """The clipped range where it has less error than the whole one: OCTAV takes rounding for uniform noise."""
    errors = [clipping_error(ordered, r, bits) for r in (found, bounds)]
    return found if errors[0] < errors[1] else bounds


def clipping_error(values: Array, range_: Range, bits: int) -> float:
    """Mean squared error of values rounded to the grid of a range and clipped to it."""
    low, high, scale = nudged(*range_, bits, symmetric=False)
    rounded = np.clip(np.rint((values - low) / scale) * scale + low, low, high)
    return float(np.mean(np.square(rounded - values)))


def nudged(low: float, high: float, bits: int, *, symmetric: bool) -> tuple[float, float, float]:
    """The range with zero exactly on its grid, as (low, high, scale); its width stays.

    Jacob et al., arXiv:1712.05877, section 3.1. Symmetric: the wider side counts on both.
    """
    low, high = min(0.0, low), max(0.0, high)
    if high - low < SMALLEST:
        high = low + (SMALLEST if high > low else OF_ZEROS)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        limit = max(-low, high)
        return -limit, limit, limit / top
    steps = 2**bits - 1
    scale = (high - low) / steps
    zero = min(max(round(-low / scale), 0), steps)  # the code that stands for 0
    return -zero * scale, (steps - zero) * scale, scale
