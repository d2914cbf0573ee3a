"""How much each channel group matters: the size of its filters, the scale of its batch normalization, or the loss.

The array functions take one layer's numbers; `of_groups` brings the layers of a group together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgedl.compression.base import Data, require_data
from edgedl.compression.groups import KERNELS, Groups, Use
from edgedl.errors import UnsupportedError
from edgedl.fitting.losses import choose, packed
from edgedl.fitting.pointwise import sampled_first
from edgedl.fitting.samples import batches
from edgedl.models import specs

if TYPE_CHECKING:
    import keras

    from edgedl.types import Array

SAMPLES = 2048  # for the first-order criterion
BATCH = 32


def l1_norms(kernel: Array, layout: str) -> Array:
    """Sum of absolute weights of each filter; Li et al., arXiv:1608.08710, section 3.1. # (3, 3, in, out) -> (out,)"""
    axis = -2 if layout == "transposed" else -1
    return np.asarray(np.abs(np.moveaxis(kernel, axis, -1)).reshape(-1, kernel.shape[axis]).sum(axis=0))


def relative(norms: Array) -> Array:
    """A layer's values as multiples of their mean, so that layers compare; arXiv:2301.12900, section 3.3."""
    mean = float(norms.mean()) if norms.size else 0.0
    return np.asarray(norms / mean) if mean > 0 else norms


def first_order(contributions: Array) -> Array:
    """Mean over batches of the squared first-order change of the loss when a channel goes.

    Molchanov et al., arXiv:1906.10771, eqs. (6) and (8), with the sum over the channel's weights inside the square,
    as for their gates. # contributions: gradient times weight, summed a group, (batches, groups) -> (groups,)
    """
    return np.asarray(np.mean(np.square(contributions, dtype=np.float64), axis=0))


def of_groups(
    model: keras.Model, groups: Groups, kind: str, data: Data, *, wanted: Array, seed: int, where: str
) -> Array:
    """The importance of every group, (groups.count,), by `kind`: l1, bn_gamma or taylor; those `wanted` have one.

    Raises UnsupportedError where bn_gamma finds a removable channel without a batch normalization, InputError where
    taylor has no data.
    """
    if kind == "taylor":
        with sampled_first(model):
            values = _taylor(model, groups, require_data(data, where, "importance taylor"), seed)
    else:
        values = _averaged(groups, _gammas(groups) if kind == "bn_gamma" else _norms(groups))
        if kind == "bn_gamma":
            _check_covered(groups, values, wanted, where)
    return values


def _averaged(groups: Groups, found: Sequence[tuple[Array, Array]]) -> Array:
    """The mean over all that speak of a group; nan where nothing does."""
    total, count = np.zeros(groups.count), np.zeros(groups.count)
    for ids, values in found:
        np.add.at(total, ids, values)
        np.add.at(count, ids, 1)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _norms(groups: Groups) -> list[tuple[Array, Array]]:
    found = []
    for use in groups.sources().values():
        layout = KERNELS[type(use.layer).__name__]
        kernel = use.layer.get_weights()[1 if layout == "separable" else 0]
        found.append((use.outputs, relative(l1_norms(kernel, layout))))
    return found


def _gammas(groups: Groups) -> list[tuple[Array, Array]]:
    """Scales of batch normalization; Liu et al. (Network Slimming), arXiv:1708.06519, section 3."""
    norms = [u for u in groups.uses.values() if type(u.layer).__name__ == "BatchNormalization"]
    return [(u.outputs, np.abs(u.layer.gamma.numpy())) for u in norms if u.layer.gamma is not None]


def _check_covered(groups: Groups, values: Array, wanted: Array, where: str) -> None:
    for name, use in groups.sources().items():
        own = np.intersect1d(use.outputs, wanted)
        if np.isnan(values[own]).any():
            message = (
                f"{where}: importance bn_gamma: layer {name!r} has no batch normalization with a scale after it; "
                "use l1 or taylor, or skip the layer"
            )
            raise UnsupportedError(message)


class Gate(NamedTuple):
    """Something that switches channels: by a first-order step the loss changes by gradient times `change`."""

    variable: Any
    change: Array
    groups: Array  # of each channel
    axis: int  # of the channels


def _gates(groups: Groups) -> list[Gate]:
    """Batch normalization's scale and shift where one follows a layer alone, else the layer's own kernel and bias:
    setting them to nothing silences the channel.
    """
    found: list[Gate] = []
    for use in groups.sources().values():
        followers = [groups.graph.next(call) for call in use.calls]
        kinds = {None if f is None else f.kind for f in followers}
        if kinds != {"BatchNormalization"}:
            found += _own_gates(use)
    for use in groups.uses.values():
        if type(use.layer).__name__ == "BatchNormalization":
            found += [Gate(*gate, use.outputs, -1) for gate in _switches(use.layer)]
    return found


def _switches(norm: Any) -> list[tuple[Any, Array]]:
    """The variables of a batch normalization, and what silences its channels by them.

    Without a scale the variance stands in: y = s (x - mean) (variance + epsilon)^-1/2 gives
    dL/ds = -2 (variance + epsilon) dL/dvariance at s = 1.
    """
    found = [(v, v.numpy()) for v in (norm.gamma, norm.beta) if v is not None]
    if norm.gamma is None:
        found.append((norm.moving_variance, -2 * (norm.moving_variance.numpy() + norm.epsilon)))
    return found


def _own_gates(use: Use) -> list[Gate]:
    layer, layout = use.layer, KERNELS[type(use.layer).__name__]
    kernel = layer.pointwise_kernel if layout == "separable" else layer.kernel
    own = [Gate(kernel, kernel.numpy(), use.outputs, -2 if layout == "transposed" else -1)]
    return own + ([Gate(layer.bias, layer.bias.numpy(), use.outputs, -1)] if layer.use_bias else [])


def _taylor(model: keras.Model, groups: Groups, data: Any, seed: int) -> Array:
    """First-order importance on seeded samples; without labels, the sensitivity of all outputs (random signs)."""
    import tensorflow as tf

    found = _gates(groups)
    variables = [gate.variable for gate in found]
    inputs, targets = data.take(np.arange(min(data.count, 256)))
    criteria = choose(model, inputs, targets, None, partial=True)
    takes, gives = specs(model)
    names = [s.name for s in gives]
    real = [s.name for s in gives if "float" in s.dtype]
    if not criteria and not real:
        message = f"importance taylor needs labels, or an output that is real; {', '.join(names)} is none: use l1"
        raise UnsupportedError(message)
    rng = np.random.default_rng([seed, 4])

    @tf.function(autograph=False, reduce_retracing=True)  # type: ignore[untyped-decorator]
    def gradients(arrays: Any, labels: Any, signs: Any) -> Any:
        import keras

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in variables])
            flat = keras.tree.flatten(model(packed(model, [tf.cast(arrays[s.name], s.dtype) for s in takes])))
            outputs = dict(zip(names, flat, strict=True))
            if criteria:
                loss = sum(tf.reduce_mean(c.loss(outputs, labels)) for c in criteria)
            else:
                loss = tf.add_n([tf.reduce_sum(tf.cast(outputs[n], tf.float32) * signs[n]) for n in real]) / tf.cast(
                    tf.shape(flat[0])[0], tf.float32
                )
        return tape.gradient(loss, [v.value for v in variables], unconnected_gradients="zero")

    rows = []
    for positions in batches(rng.permutation(data.count)[:SAMPLES], BATCH):
        arrays, labels = data.take(np.sort(positions))
        shapes = {n: (len(positions), *t.shape[1:]) for n, t in zip(names, model.outputs, strict=True)}
        signs = {n: tf.constant(_signs(rng, shapes[n])) for n in real} if not criteria else {}
        answers = gradients(_tensors(arrays), _tensors(labels), signs)
        row = np.zeros(groups.count)
        for gate, gradient in zip(found, answers, strict=True):
            moved = np.moveaxis(gradient.numpy() * gate.change, gate.axis, -1)
            np.add.at(row, gate.groups, moved.reshape(-1, moved.shape[-1]).sum(axis=0))
        rows.append(row)
    return first_order(np.stack(rows))


def _tensors(arrays: Any) -> Any:
    import tensorflow as tf

    return {name: tf.constant(a) for name, a in arrays.items()}


def _signs(rng: np.random.Generator, shape: Sequence[int | None]) -> Array:
    return rng.choice(np.array([-1.0, 1.0], np.float32), [1 if n is None else n for n in shape])
