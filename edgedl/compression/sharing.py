"""Weights that share a few values while they train: each update goes to floats behind them, which are set back.

The network always computes with shared values, and their gradient passes straight through to the floats (Bengio et
al., arXiv:1308.3432): after a step of the optimizer, what it added to the shared value is added to the float instead,
and the weight becomes the shared value of that float. No layer changes, so any model and any loss can be trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from edgedl.compression import clustering
from edgedl.compression.clustering import Array, Coded
from edgedl.compression.kernels import Kernel, keyed

SETTLED = 0.7  # of the training: from then on no weight goes over to another float centroid


class Values(Protocol):
    """What the weights of some matrices may be."""

    def project(self, index: int, matrix: Array) -> Array:
        """Matrix `index` with every weight set to a shared value."""
        ...

    def refit(self, matrices: Sequence[Array], *, settled: bool) -> None:
        """Bring the values in line with the floats, after a pass over the data."""
        ...

    def state(self) -> Any:
        """See `edgedl.fitting.checkpoints`."""
        ...

    def restore(self, state: Any) -> None:
        """See `edgedl.fitting.checkpoints`."""
        ...


class Codes:
    """Integer codes of one codebook under per-channel scales."""

    def __init__(self, coded: Coded, bits: float | None) -> None:
        self.coded, self.bits = coded, bits

    def project(self, index: int, matrix: Array) -> Array:
        """Codes times scales."""
        return self.coded.project(index, matrix)

    def refit(self, matrices: Sequence[Array], *, settled: bool) -> None:
        """A higher rate where the codes have grown beyond `bits`; nothing else.

        Codes and scales fitted again to the floats undo what was trained: 1 to 20 points of ResNet8 at each time.
        """
        del settled
        if self.bits is not None and clustering.zipped_bits(self.coded.codes(matrices)) > self.bits:
            self.coded = clustering.at_bits(self.coded, matrices, self.bits)

    def state(self) -> Any:
        """Codebook, scales and prices."""
        book = self.coded.book
        codebook = {"values": book.values, "bits": book.bits, "rate": book.rate}
        return {"book": codebook, "scales": self.coded.scales, "prices": self.coded.prices}

    def restore(self, state: Any) -> None:
        """As they were."""
        book = clustering.Codebook(**state["book"])
        self.coded = Coded(book=book, scales=tuple(state["scales"]), prices=tuple(state["prices"]))


class Centroids:
    """Float centroids, of a tensor or of each channel."""

    def __init__(self, centroids: Sequence[Array]) -> None:
        self.centroids = list(centroids)
        self._fixed: list[Array] | None = None

    def project(self, index: int, matrix: Array) -> Array:
        """The nearest centroids; once settled, the mean of all that had the same one."""
        centroids = self.centroids[index]
        if self._fixed is None:
            indices = clustering.nearest(matrix, centroids)
        else:
            indices = self._fixed[index]
            centroids = self.centroids[index] = clustering.means(matrix, indices, centroids)
        return clustering.taken(centroids, indices).astype(np.float32)

    def refit(self, matrices: Sequence[Array], *, settled: bool) -> None:
        """Centroids to the means of their weights; once `settled` no weight goes over to another any more."""
        pairs = list(zip(matrices, self.centroids, strict=True))
        indices = [clustering.nearest(m, c) for m, c in pairs]
        if settled:
            self._fixed = self._fixed or indices
            return
        moved = [clustering.means(m, i, c) for (m, c), i in zip(pairs, indices, strict=True)]
        self.centroids = [np.sort(c, axis=0) for c in moved]

    def state(self) -> Any:
        """The centroids, and who has which once that is settled."""
        return {"centroids": self.centroids, "fixed": self._fixed}

    def restore(self, state: Any) -> None:
        """As they were."""
        self.centroids, self._fixed = state["centroids"], state["fixed"]


class StraightThrough:
    """An on_step under which the kernels keep to shared values. Zeros stay zeros."""

    def __init__(self, kernels: Sequence[Kernel], values: Values, epochs: int | None) -> None:
        """`epochs` of the training, after each of which the values are refitted; None: never."""
        self.kernels, self.values, self.epochs = list(kernels), values, epochs
        self.floats = [k.matrix(k.read()) for k in kernels]
        self.zero = [f == 0 for f in self.floats]
        self.held = self.floats

    def start(self) -> None:
        """Set the kernels to shared values."""
        self._set({k.key: k.variable for k in self.kernels})

    def __call__(self, trainee: Any, done: int, total: int) -> None:
        """Take what the optimizer did over to the floats, and set the kernels of `trainee` back to shared values."""
        weights = keyed(trainee)
        for i, kernel in enumerate(self.kernels):
            moved = self.floats[i] + (kernel.matrix(weights[kernel.key].numpy()) - self.held[i])
            self.floats[i] = np.where(self.zero[i], np.float32(0), moved)
        if self.epochs and done * self.epochs // total > (done - 1) * self.epochs // total:
            self.values.refit(self.floats, settled=done > SETTLED * total)
        self._set(weights)

    def state(self) -> Any:
        """The floats, the weights that were made of them, and the values."""
        return {"floats": self.floats, "held": self.held, "values": self.values.state()}

    def restore(self, state: Any) -> None:
        """As they were; the weights are restored by whoever holds the model."""
        self.floats, self.held = state["floats"], state["held"]
        self.values.restore(state["values"])

    def _set(self, weights: Mapping[str, Any]) -> None:
        self.held = [self.values.project(i, f) for i, f in enumerate(self.floats)]
        for kernel, values in zip(self.kernels, self.held, strict=True):
            weights[kernel.key].assign(kernel.unmatrix(values))
