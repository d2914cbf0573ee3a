"""Which weights a pruning sets to zero, and when: array functions, a mask being True where a weight is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Schedule = Literal["constant", "polynomial"]
UPDATES = 100  # of the masks in one fine-tuning, at most
EXPONENT = 3


def magnitude_mask(weights: Array, sparsity: float) -> Mask:
    """The mask without the round(sparsity * size) weights of least magnitude; of equal ones the earlier go first."""
    return _without_least([np.abs(weights)], sparsity)[0]


def global_masks(weights: Sequence[Array], sparsity: float) -> list[Mask]:
    """One mask an array, without the round(sparsity * total) weights of least LAMP score over all of them."""
    return _without_least([lamp_scores(w) for w in weights], sparsity)


def lamp_scores(weights: Array) -> Array:
    """Each weight's square over the sum of all that are no smaller, same shape: LAMP, eq. (4) of arXiv:2010.07611.

    The scores of layers compare, whatever their scale, and the largest weight of each has 1, so that it goes last.
    """
    squares = np.square(weights.astype(np.float64)).ravel()
    order = np.argsort(squares, kind="stable")
    rest = np.cumsum(squares[order][::-1])[::-1]
    scores = np.empty(squares.size)
    scores[order] = squares[order] / np.maximum(rest, np.finfo(np.float64).tiny)
    return scores.reshape(weights.shape)


def _without_least(scores: Sequence[Array], sparsity: float) -> list[Mask]:
    joined = np.concatenate([s.ravel() for s in scores]) if scores else np.zeros(0)
    kept = np.ones(joined.size, bool)
    kept[np.argsort(joined, kind="stable")[: round(sparsity * joined.size)]] = False
    parts = np.split(kept, np.cumsum([s.size for s in scores])[:-1])
    return [part.reshape(s.shape) for part, s in zip(parts, scores, strict=True)]


def n_m_mask(weights: Array, n: int, m: int) -> Mask:
    """The mask that keeps the n largest magnitudes of every m neighbours along axis 0, the summed one.

    # (channels in, ...), n 2, m 4 -> half of it; a last group that is shorter keeps its n largest too.
    Mishra et al., arXiv:2104.08378, section 3.
    """
    size = weights.shape[0]
    groups = math.ceil(size / m)
    padding = [(0, groups * m - size), *[(0, 0)] * (weights.ndim - 1)]
    magnitudes = np.pad(np.abs(weights), padding, constant_values=-1).reshape(groups, m, *weights.shape[1:])
    ranks = np.argsort(np.argsort(-magnitudes, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray((ranks < n).reshape(groups * m, *weights.shape[1:])[:size])


def block_mask(weights: Array, block: tuple[int, int], sparsity: float) -> Mask:
    """The mask without the blocks of least mean magnitude: as many as make at least `sparsity` of the weights zero.

    # weights (..., in, out), block (4, 1) -> blocks of 4 inputs by 1 output; at the edges they are smaller.
    """
    high, wide = block
    rows, columns = weights.shape[-2:]
    grid = (math.ceil(rows / high), math.ceil(columns / wide))
    padding = [(0, 0)] * (weights.ndim - 2) + [(0, grid[0] * high - rows), (0, grid[1] * wide - columns)]
    lead = weights.shape[:-2]

    def summed(values: Array) -> Array:
        tiles = np.pad(values, padding).reshape(*lead, grid[0], high, grid[1], wide)
        return np.asarray(tiles.sum(axis=(-3, -1)))

    counts = summed(np.ones(weights.shape)).ravel()
    scores = summed(np.abs(weights).astype(np.float64)).ravel() / counts
    order = np.argsort(scores, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]  # zeros made by the blocks ahead
    kept = np.ones(scores.size, bool)
    kept[order[before < math.ceil(round(sparsity * weights.size, 6))]] = False
    tiles = np.broadcast_to(kept.reshape(*lead, grid[0], 1, grid[1], 1), (*lead, grid[0], high, grid[1], wide))
    return np.asarray(tiles.reshape(*lead, grid[0] * high, grid[1] * wide)[..., :rows, :columns])


def sparsity_at(step: int, last: int, *, final: float, schedule: Schedule) -> float:
    """The sparsity after `step` steps of a schedule that arrives at step `last`, and stays: exactly `final` then.

    polynomial: s = s_f + (s_i - s_f) (1 - t / T)^3 with s_i = 0; Zhu and Gupta, arXiv:1710.01878, eq. (1).
    """
    if schedule == "constant" or step >= last:
        return final
    return final * (1 - (1 - step / last) ** EXPONENT)


def last_update(steps: int, ramp: float) -> int:
    """The step, from 1 to `steps`, at which a schedule over a share `ramp` of the steps arrives."""
    return min(steps, max(1, round(ramp * steps)))


def is_update(step: int, last: int, most: int = UPDATES) -> bool:
    """Whether the masks are made again after `step`: `most` times at most, evenly, and at step `last` without fail."""
    if step >= last:
        return step == last
    every = math.ceil(last / most)
    return (last - step) % every == 0


def zero_share(arrays: Sequence[Array]) -> float:
    """The share of values that are zero, over all arrays."""
    total = sum(a.size for a in arrays)
    return sum(int(np.count_nonzero(a == 0)) for a in arrays) / total if total else 0.0
