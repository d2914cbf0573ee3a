"""Which of its codes a weight becomes: the nearest, or the one that keeps the layer's outputs (AdaRound)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
KERNEL_TOP = 127  # int8 codes of a kernel; -128 is left out, so that the grid is symmetric
KERNEL_TOP_4 = 7  # int4 codes likewise
ON_GRID = 1e-3  # of a code; float32 arithmetic is far closer
ZETA, GAMMA = 1.1, -0.1  # how far the sigmoid is stretched so that it reaches 0 and 1; AdaRound, section 3.3
ANNEAL = (20.0, 2.0)  # the regularizer's beta, from start to end
WARM_UP = 0.2  # of the iterations without the regularizer


def kernel_scales(kernel: Array, summed: tuple[int, ...], top: int = KERNEL_TOP) -> Array:
    """The step of each channel's codes: its largest magnitude over `top`, float32; 1 for a channel of zeros.

    # kernel (3, 3, in, out), summed (0, 1, 2) -> (1, 1, 1, out)
    """
    limits = np.abs(kernel).max(axis=summed, keepdims=True).astype(np.float32)
    return np.asarray(np.where(limits > 0, limits, np.float32(top)) / np.float32(top), np.float32)


def nearest(kernel: Array, scales: Array, top: int = KERNEL_TOP) -> Array:
    """The nearest codes, int32 in [-top, top]."""
    return np.clip(np.rint(kernel / scales), -top, top).astype(np.int32)


def is_on_grid(kernel: Array, scales: Array) -> bool:
    """Whether every weight is a whole multiple of its scale already: codes that an earlier step chose."""
    units = kernel / scales
    return bool(np.abs(units - np.rint(units)).max(initial=0.0) < ON_GRID)


@dataclass(frozen=True, kw_only=True)
class AdaRoundOptions:
    """The numbers of AdaRound. `regularization` is the regularizer at its most, over the error of the nearest codes.

    Codes are in [-top, top].
    """

    top: int = KERNEL_TOP
    iterations: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-2
    regularization: float = 5.0
    seed: int = 0


def adaround(
    kernel: Array,
    scales: Array,
    inputs: Array,
    targets: Array,
    layer: Callable[[Any, Any], Any],
    options: AdaRoundOptions,
) -> Array:
    """Codes that keep a layer's outputs, int32, found as in section 3.3 of arXiv:2004.10568.

    Each weight goes up or down: floor(w / s) + h(V), h a stretched sigmoid; V minimizes |targets - layer(inputs,
    kernel)|^2 + strength * mean(1 - |2 h(V) - 1|^beta), with beta annealed. The paper has one strength for all; here it
    follows the error of the nearest codes, so that it fits outputs of any size. `inputs` (samples, ...) are what the
    quantized layers before give, `targets` what the float layer gives; `layer` is a TensorFlow function of both.
    A weight that is zero stays zero, and the largest of a channel stays at the top.
    """
    import tensorflow as tf

    units, top = kernel / scales, options.top
    floor = np.clip(np.floor(units), -top, top)
    rest = np.clip(units - floor, 1e-4, 1 - 1e-4)
    start = -np.log((ZETA - GAMMA) / (rest - GAMMA) - 1).astype(np.float32)
    v = tf.Variable(start)
    moments = [tf.Variable(tf.zeros_like(v)) for _ in range(2)]
    low, step = tf.constant(floor.astype(np.float32)), tf.constant(scales)

    def distance(one: Any, two: Any) -> Any:
        return tf.reduce_mean(tf.reduce_sum(tf.square(one - two), axis=-1))

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def update(x: Any, y: Any, beta: Any, strength: Any, count: Any) -> None:
        with tf.GradientTape() as tape:
            up = _rectified(v)
            soft = tf.clip_by_value(low + up, -top, top) * step
            loss = distance(y, layer(x, soft)) + strength * tf.reduce_mean(1 - tf.pow(tf.abs(2 * up - 1), beta))
        gradient = tape.gradient(loss, v)
        moments[0].assign(0.9 * moments[0] + 0.1 * gradient)
        moments[1].assign(0.999 * moments[1] + 0.001 * tf.square(gradient))
        first, second = moments[0] / (1 - tf.pow(0.9, count)), moments[1] / (1 - tf.pow(0.999, count))
        v.assign_sub(options.learning_rate * first / (tf.sqrt(second) + 1e-8))

    rng = np.random.default_rng([options.seed, 4])
    size = min(options.batch_size, len(inputs))
    most = options.regularization * float(
        distance(targets[:size], layer(inputs[:size], tf.constant(nearest(kernel, scales, top) * scales, tf.float32)))
    )
    for i in range(options.iterations):
        rows = np.sort(rng.choice(len(inputs), size, replace=False))
        numbers = (*_annealed(i / options.iterations, most), i + 1)
        update(inputs[rows], targets[rows], *(tf.constant(n, tf.float32) for n in numbers))
    codes = floor + (_rectified(v).numpy() >= 0.5)
    exact = np.abs(units - np.rint(units)) < ON_GRID
    return np.where(exact, np.rint(units), np.clip(codes, -top, top)).astype(np.int32)


def _rectified(v: Any) -> Any:
    """h(V) of eq. (23): a sigmoid stretched to (-0.1, 1.1) and clipped to [0, 1]."""
    import tensorflow as tf

    return tf.clip_by_value(tf.sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def _annealed(share: float, most: float) -> tuple[float, float]:
    """Beta and the regularizer's weight after a share of the iterations; the weight is 0 while warming up."""
    if share < WARM_UP:
        return ANNEAL[0], 0.0
    left = (1 - share) / (1 - WARM_UP)
    return ANNEAL[1] + (ANNEAL[0] - ANNEAL[1]) * left, most
