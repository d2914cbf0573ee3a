"""Which channels are the same number everywhere: by the weights alone, and as seen on data.

Values that are never the same are nan. By the weights, constants start where a filter's weights are nothing, and go on
through batch normalization, activations, sums and layers all of whose inputs are constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.compression.fold import affine_of
from edgedl.compression.groups import DEPTHWISE, KERNELS, Use, is_elementwise, passes, spread
from edgedl.fitting.losses import packed
from edgedl.fitting.samples import TrainingData, batches
from edgedl.graph import Call, Graph, Role, Value, role
from edgedl.models import specs
from edgedl.models.tensors import with_outputs

if TYPE_CHECKING:
    import keras

    from edgedl.types import Array

BATCH = 64
_ZERO_ONLY = ("ZeroPadding1D", "ZeroPadding2D")  # they put zeros beside what is there


def constant_outputs(inputs: Array, kernel: Array, bias: Array, tolerance: float, *, padded: bool) -> Array:
    """A convolution's constant outputs. # inputs (in,), kernel (3, 3, in, out), bias (out,) -> (out,), nan elsewhere.

    An output is constant where every input that has weights is; a constant other than zero counts as one that varies
    where `padded`, as zeros are put beside it. Weights up to `tolerance` are nothing.
    """
    summed = kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0)  # (in, out)
    strongest = np.abs(kernel).reshape(-1, *kernel.shape[-2:]).max(axis=0)
    varies = np.isnan(inputs) | (padded & (inputs != 0))
    moved = (varies[:, None] & (strongest > tolerance)).any(axis=0)
    values = np.where(varies, 0.0, inputs) @ summed.astype(np.float64) + bias
    return np.where(moved, np.nan, values)


def constant_depthwise(inputs: Array, kernel: Array, bias: Array, tolerance: float, *, padded: bool) -> Array:
    """The same for depthwise convolution. # inputs (in,), kernel (3, 3, in, multiplier) -> (in * multiplier,)"""
    flat = kernel.reshape(-1, *kernel.shape[-2:])
    summed, strongest = flat.sum(axis=0).reshape(-1), np.abs(flat).max(axis=0).reshape(-1)
    inputs = np.repeat(inputs, kernel.shape[-1])
    varies = np.isnan(inputs) | (padded & (inputs != 0))
    values = np.where(varies, 0.0, inputs) * summed + bias
    return np.where(varies & (strongest > tolerance), np.nan, values)


def by_weights(graph: Graph, tolerance: float) -> dict[Value, Array]:
    """The constant of every channel of every value, (channels,), nan where it varies, from the weights alone."""
    found: dict[Value, Array] = {value: _unknown(value) for value in graph.inputs}
    for call in graph.calls:
        arrays = [found[v] for v in call.inputs]
        made = _constants(call, arrays, tolerance)
        for value in call.outputs:
            width = len(_unknown(value))
            fits = made is not None and len(made) == width
            found[value] = np.asarray(made, np.float64) if fits else _unknown(value)
    return found


def _unknown(value: Value) -> Array:
    width = value.shape[-1] if len(value.shape) > 1 else 0
    return np.full(width or 0, np.nan)


def _constants(call: Call, arrays: Sequence[Array], tolerance: float) -> Array | None:
    kind, layer = call.kind, call.layer
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        return None
    if kind in KERNELS or kind in DEPTHWISE:
        return _of_kernel(call, arrays[0], tolerance)
    if kind == "BatchNormalization" and passes(call):
        scale, shift = affine_of(layer)
        scale = np.where(np.abs(scale) <= tolerance, 0.0, scale)
        return np.where(scale == 0, shift, scale * np.nan_to_num(arrays[0]) + shift + 0 * arrays[0] * (scale != 0))
    if kind in ("Add", "Average", "Maximum", "Minimum", "Subtract", "Multiply") and len(arrays) > 1:
        return _merged(kind, arrays) if len({len(a) for a in arrays}) == 1 else None
    if kind in _ZERO_ONLY:
        return np.where(arrays[0] == 0, 0.0, np.nan)
    if kind == "PReLU":
        return np.where(arrays[0] >= 0, arrays[0], np.nan)
    structural = kind in ("Flatten", "Reshape", "Permute", "Concatenate") or role(layer) is Role.POOLING
    if structural or kind in ("Identity", "Cropping1D", "Cropping2D", "UpSampling1D", "UpSampling2D"):
        return spread(call, arrays, [v.shape for v in call.inputs])
    if role(layer) is Role.ACTIVATION and len(arrays) == 1 and passes(call):
        return _called(layer, arrays[0])
    return None


def _of_kernel(call: Call, inputs: Array, tolerance: float) -> Array | None:
    layer, kind = call.layer, call.kind
    weights = layer.get_weights()
    if (getattr(layer, "groups", 1) > 1 and kind not in DEPTHWISE) or not is_elementwise(layer):
        return None
    width = len(_unknown(call.outputs[0]))
    bias = weights[-1] if layer.use_bias else np.zeros(width)
    padded = is_padded(layer)
    if kind in DEPTHWISE:
        values = constant_depthwise(inputs, weights[0], bias, tolerance, padded=padded)
    elif KERNELS[kind] == "separable":
        inner = constant_depthwise(inputs, weights[0], np.zeros(1), tolerance, padded=padded)
        values = constant_outputs(inner, weights[1], bias, tolerance, padded=False)
    elif KERNELS[kind] == "transposed":  # its outputs differ by position: only nothing is the same everywhere
        values = constant_outputs(inputs, np.swapaxes(weights[0], -1, -2), bias, tolerance, padded=True)
    else:
        values = constant_outputs(inputs, weights[0], bias, tolerance, padded=padded)
    return _called(layer.activation, values)


def is_padded(layer: Any) -> bool:
    """Whether a layer puts zeros beside its input."""
    size = getattr(layer, "kernel_size", (1,))
    return getattr(layer, "padding", "valid") != "valid" and any(k > 1 for k in size)


def _called(function: Any, values: Array) -> Array:
    """An element-wise function of each constant."""
    known = np.where(np.isnan(values), 0.0, values)
    return np.where(np.isnan(values), np.nan, np.asarray(function(np.asarray(known, np.float32)), np.float64))


def _merged(kind: str, arrays: Sequence[Array]) -> Array:
    stacked = np.stack(arrays)
    if kind == "Multiply":
        return np.where((stacked == 0).any(axis=0), 0.0, stacked.prod(axis=0))
    if kind == "Subtract":
        return np.asarray(stacked[0] - stacked[1])
    combine = {"Add": np.sum, "Average": np.mean, "Maximum": np.max, "Minimum": np.min}[kind]
    return np.asarray(combine(stacked, axis=0))  # type: ignore[operator]


def by_data(model: keras.Model, uses: Sequence[Use], data: TrainingData, tolerance: float) -> dict[str, Array]:
    """The constant of each input channel of the layers `uses`, by name, as all samples show it; nan where it varies.

    A channel is constant where its smallest and largest value differ by at most `tolerance`.
    """
    import tensorflow as tf

    if not uses:
        return {}
    taken = {use.name: [call.inputs[0].tensor for call in use.calls] for use in uses}
    watch = with_outputs(model, taken)
    dtypes = {spec.name: spec.dtype for spec in specs(model)[0]}

    def extremes(arrays: Any) -> Any:
        tensors = watch(packed(model, [tf.cast(arrays[n], d) for n, d in dtypes.items()]), training=False)
        return tf.nest.map_structure(_range, tensors)

    run = tf.function(extremes, autograph=False, reduce_retracing=True)
    low: dict[str, Array] = {}
    high: dict[str, Array] = {}
    for rows in batches(np.arange(data.count), BATCH):
        inputs, _ = data.take(rows)
        for name, ranges in run({n: tf.constant(inputs[n]) for n in dtypes}).items():
            bottom, top = np.min([r[0] for r in ranges], axis=0), np.max([r[1] for r in ranges], axis=0)
            low[name] = np.minimum(low.get(name, bottom), bottom)
            high[name] = np.maximum(high.get(name, top), top)
    return {name: _settled(low[name], high[name], tolerance) for name in low}


def _range(tensor: Any) -> Any:
    import tensorflow as tf

    axes = list(range(tensor.shape.rank - 1))
    return tf.stack([tf.reduce_min(tensor, axis=axes), tf.reduce_max(tensor, axis=axes)])


def _settled(low: Array, high: Array, tolerance: float) -> Array:
    low, high = low.astype(np.float64), high.astype(np.float64)
    middle = (low + high) / 2
    middle = np.where(np.maximum(np.abs(low), np.abs(high)) <= tolerance, 0.0, middle)
    return np.where(high - low <= tolerance, middle, np.nan)


def agreed(use: Use, constants: Mapping[Value, Array], tolerance: float) -> Array:
    """The constants of a layer's inputs that all of its calls have, (in,)."""
    found = np.stack([constants[call.inputs[0]] for call in use.calls])
    return np.where(np.ptp(found, axis=0) <= tolerance, found[0], np.nan)
