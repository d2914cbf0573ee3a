"""What earlier steps made and a later one must keep while it trains: zeros, shared floats, shared integer codes.

Nothing is stored beside the model: zeros are zeros; a kernel whose weights are int8 codes times max |w| / 127 of their
channel, or that has few values, shows it. A step that trains passes `preserved(model)` to `fine_tune` as on_step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.compression import clustering
from edgedl.compression.clustering import Codebook, Coded
from edgedl.compression.kernels import Kernel, all_kernels
from edgedl.compression.masks import Hold, zeros
from edgedl.compression.sharing import Centroids, Codes, StraightThrough
from edgedl.fitting import OnStep
from edgedl.fitting.checkpoints import Keeper

if TYPE_CHECKING:
    import keras

    from edgedl.types import Array

USES = 4  # of a value on average, below which sharing is chance
TELLING = 4  # whole codes that show that no chance made them whole


def preserved(model: keras.Model, *, without: Sequence[Kernel] = ()) -> OnStep | None:
    """An on_step that keeps zeros and clusters of the model's kernels; None where there are none.

    Codes stay in the codebook and under the scales that they have, and floats among the values that they share; which
    weight has which of them is free to change. `without` are kernels that the step itself takes care of.
    """
    skipped = {k.key for k in without}
    found = [k for k in all_kernels(model) if k.key not in skipped]
    coded = {k.key: codes for k in found if (codes := shared_codes(k.matrix(k.read()))) is not None}
    keys = set(coded)
    shared = {k.key: shared_values(k.matrix(k.read())) for k in found if k.key not in keys}
    floats = [(k, values) for k in found if (values := shared.get(k.key)) is not None]
    keys |= {k.key for k, _ in floats}
    steps: list[OnStep] = [
        StraightThrough([k], Codes(_as_coded(k.matrix(k.read()), coded[k.key]), None), None)
        for k in found
        if k.key in coded
    ]
    if floats:
        steps.append(StraightThrough([k for k, _ in floats], Centroids([c for _, c in floats]), None))
    if masks := zeros([k for k in found if k.key not in keys]):
        steps.append(Hold(masks))
    return Steps(steps) if steps else None


def shared_codes(matrix: Array) -> Array | None:
    """The int8 codes of a matrix whose weights are codes times scales, each code used often; None for any other.

    The largest weight of a channel and zeros are whole codes in any matrix: it takes others to tell.
    """
    used = int(np.count_nonzero(matrix))
    telling = used - int(np.count_nonzero(matrix.any(axis=0)))
    codes = clustering.codes_of(matrix) if telling >= TELLING else None
    few = codes is not None and np.unique(codes[codes != 0]).size * USES <= used
    return codes if few else None


def shared_values(matrix: Array) -> Array | None:
    """The values of a matrix that has few a channel, (k, channels), or else few in all, (k,); None for any other.

    Zeros do not count: they may come from pruning.
    """
    each = [np.unique(c[c != 0]).size * USES <= np.count_nonzero(c) for c in matrix.T]
    if all(each) and matrix.any():
        return clustering.k_means_per_channel(matrix, len(matrix))
    values = np.unique(matrix)
    return values if 0 < np.count_nonzero(values) * USES <= np.count_nonzero(matrix) else None


def _as_coded(matrix: Array, codes: Array) -> Coded:
    values = np.unique(np.append(codes, [-clustering.TOP, 0, clustering.TOP]).astype(np.int64))
    peaks = np.abs(matrix).max(axis=0).astype(np.float64)
    scales = np.where(peaks > 0, peaks, clustering.TOP) / clustering.TOP
    book = Codebook(values=values, bits=np.zeros(values.size))
    return Coded(book=book, scales=(scales,), prices=(0.0,))


class Steps:
    """Several on_steps as one; those that are None are left out."""

    def __init__(self, steps: Sequence[OnStep | None]) -> None:
        self.steps = [step for step in steps if step is not None]

    def __call__(self, trainee: Any, done: int, total: int) -> None:
        """One after the other."""
        for step in self.steps:
            step(trainee, done, total)

    def state(self) -> list[Any]:
        """Of each, None where it keeps nothing; see `edgedl.fitting.checkpoints`."""
        return [step.state() if isinstance(step, Keeper) else None for step in self.steps]

    def restore(self, state: Sequence[Any]) -> None:
        """As they were."""
        for step, kept in zip(self.steps, state, strict=True):
            if isinstance(step, Keeper):
                step.restore(kept)
