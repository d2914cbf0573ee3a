"""Kernels fitted again by least squares after channels were removed, so that what a layer gives stays as it was.

He et al., arXiv:1707.06168, eq. (1) with the channels chosen, and section 3.2: the outputs to keep are those of the
model before, the inputs those of the model that has lost channels already, so that a layer makes up for the ones ahead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.compression.groups import Groups, Use
from edgedl.compression.normalization import re_estimate_batch_norm
from edgedl.compression.preservation import shared_codes, shared_values
from edgedl.fitting.samples import TrainingData, batches
from edgedl.graph import Graph
from edgedl.models import specs
from edgedl.models.tensors import call_flat, with_outputs

if TYPE_CHECKING:
    import keras

    from edgedl.types import Array

SAMPLES, BATCH = 512, 32
ROWS = 16_384  # outputs to fit on, or
ROWS_A_WEIGHT = 8  # times the weights of one output, whichever is more
RIDGE = 1e-3  # of the mean square of the inputs
SAME = 1e-6  # inputs that differ by less, relative, have nothing to make up for
LARGEST = 4_608  # weights of one output: 3 x 3 of 512 channels; the sums take its square
ABLE = ("Conv1D", "Conv2D", "Dense")


class Moments:
    """Sums over rows x (summed,) and y (out,), from which a kernel and a bias are fitted."""

    def __init__(self, summed: int, out: int) -> None:
        self.count = 0
        self.x, self.y = np.zeros(summed), np.zeros(out)
        self.xx, self.xy = np.zeros((summed, summed)), np.zeros((summed, out))

    def add(self, x: Array, y: Array) -> None:
        """Take in rows. # x (rows, summed), y (rows, out)"""
        x, y = x.astype(np.float64), y.astype(np.float64)
        self.count += len(x)
        self.x += x.sum(axis=0)
        self.y += y.sum(axis=0)
        self.xx += x.T @ x
        self.xy += x.T @ y

    def fitted(self, start: Array, *, shift: bool) -> tuple[Array, Array]:
        """The kernel W (summed, out) and bias b (out,) of the least |y - x W - b|^2 + ridge |W - start|^2.

        Without `shift` b is 0. Directions that the rows do not show stay as in `start`.
        """
        xx, xy = self.xx / self.count, self.xy / self.count
        mean_x, mean_y = self.x / self.count, self.y / self.count
        if shift:
            xx, xy = xx - np.outer(mean_x, mean_x), xy - np.outer(mean_x, mean_y)
        ridge = RIDGE * float(np.trace(xx)) / len(xx)
        if ridge <= 0:
            return start, (mean_y - mean_x @ start) * shift
        kernel = start + np.linalg.solve(xx + ridge * np.eye(len(xx)), xy - xx @ start)
        return kernel, (mean_y - mean_x @ kernel) * shift


def reconstruct(
    model: keras.Model, before: keras.Model, groups: Groups, keep: Array, data: TrainingData, *, seed: int = 0
) -> None:
    """Fit the kernels of `model` in place to what `before` gives, layer after layer.

    `model` is `before`, whose channel `groups` these are, without those where mask `keep` (groups.count,) is False.
    Layers that are called more than once, and those whose inputs are what they were, stay as they are, as do other
    kinds than convolutions and Dense, those of more than LARGEST weights an output, and the zeros and clusters of
    earlier steps. Statistics of batch normalizations before a fitted layer are those of the data by then.
    """
    walked = Graph.of(model)
    rows = np.random.default_rng([seed, 6]).permutation(data.count)[:SAMPLES]
    for name, use in groups.uses.items():
        if not _is_able(use) or _is_kept(use.layer.get_weights()[0]):
            continue
        now, then = walked.calls_of(name)[0], use.calls[0]
        watch = [with_outputs(m, call.inputs[0].tensor) for m, call in ((model, now), (before, then))]
        if _alike(watch, data, rows[:BATCH]):
            continue
        re_estimate_batch_norm(watch[0], data, seed=seed, samples=SAMPLES)  # what it gets must not move afterwards
        follower = walked.next(now)
        normalized = follower is not None and follower.kind == "BatchNormalization"
        _fit(now.layer, use, keep[use.outputs], _pairs(watch, data, rows), normalized=normalized)


def output_error(model: keras.Model, before: keras.Model, data: TrainingData, *, seed: int = 0) -> float:
    """The mean square by which the outputs of `model` differ from those of `before`, on samples of the data."""
    rows = np.random.default_rng([seed, 6]).permutation(data.count)[:SAMPLES]
    total, count = 0.0, 0
    for pair in _pairs([model, before], data, rows):
        for ours, theirs in zip(*pair, strict=True):
            total += float(np.square(ours - theirs).sum())
            count += int(np.prod(ours.shape))
    return total / count


def _is_able(use: Use) -> bool:
    if type(use.layer).__name__ not in ABLE or len(use.calls) > 1 or getattr(use.layer, "padding", "") == "causal":
        return False
    return int(np.prod(use.layer.kernel.shape[:-1])) <= LARGEST


def _is_kept(kernel: Array) -> bool:
    """Whether an earlier step pruned or clustered it."""
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return not matrix.all() or shared_codes(matrix) is not None or shared_values(matrix) is not None


def _pairs(models: list[keras.Model], data: TrainingData, rows: Array) -> Iterator[list[list[Any]]]:
    """What both models give for the samples, batch by batch: the outputs of each."""
    import tensorflow as tf

    for part in batches(rows, BATCH):
        arrays, _ = data.take(np.sort(part))
        yield [call_flat(m, [tf.cast(arrays[s.name], s.dtype) for s in specs(m)[0]]) for m in models]


def _fit(layer: Any, use: Use, keep: Array, pairs: Iterator[list[list[Any]]], *, normalized: bool) -> None:
    """Fit a layer to inputs that changed, its bias too; `normalized` says that a mean is taken off after it."""
    kernel, *bias = layer.get_weights()
    start = kernel.reshape(-1, kernel.shape[-1])
    moments = Moments(*start.shape)
    most = max(ROWS, ROWS_A_WEIGHT * len(start))
    for number, ((now,), (then,)) in enumerate(pairs):
        x, y = patches(layer, now).numpy(), linear(use.layer, then).numpy()[..., keep]
        y = y.reshape(*x.shape[:2], -1)
        step = max(1, x.shape[1] * SAMPLES // most)
        moments.add(*(a[:, number % step :: step].reshape(-1, a.shape[-1]) for a in (x, y)))
    found, shift = moments.fitted(start.astype(np.float64), shift=bool(bias) or normalized)
    layer.set_weights([found.reshape(kernel.shape), *([shift] if bias else [])])


def _alike(models: list[keras.Model], data: TrainingData, rows: Array) -> bool:
    ours, theirs = (given.numpy() for (given,) in next(_pairs(models, data, rows)))
    return ours.shape == theirs.shape and bool(np.abs(ours - theirs).max() <= SAME * np.abs(theirs).max())


def patches(layer: Any, x: Any) -> Any:
    """What each output sums over. # (batch, height, width, in) -> (batch, places, summed); Dense (batch, ..., in)"""
    import tensorflow as tf

    if type(layer).__name__ == "Dense":
        found = x
    else:
        sizes, strides, dilation = (list(v) for v in (layer.kernel_size, layer.strides, layer.dilation_rate))
        if len(sizes) == 1:
            x, sizes, strides, dilation = x[:, :, None], [*sizes, 1], [*strides, 1], [*dilation, 1]
        found = tf.image.extract_patches(x, [1, *sizes, 1], [1, *strides, 1], [1, *dilation, 1], layer.padding.upper())
    return tf.reshape(found, (x.shape[0], -1, found.shape[-1]))


def linear(layer: Any, x: Any) -> Any:
    """What a layer gives without its activation."""
    import keras

    kernel = layer.kernel.value
    made = keras.ops.matmul(x, kernel) if type(layer).__name__ == "Dense" else layer.convolution_op(x, kernel)
    return made + layer.bias.value if layer.use_bias else made
