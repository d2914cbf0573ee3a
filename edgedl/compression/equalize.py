"""Cross-layer equalization: channels of one size in two layers that follow each other; and bias correction.

Nagel et al., arXiv:1906.04721.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgedl.compression.placement import KERNELS, activation_name, activation_of
from edgedl.compression.preservation import shared_values
from edgedl.compression.rounding import is_on_grid, kernel_scales
from edgedl.graph import Call, Graph

if TYPE_CHECKING:
    import keras

Array = NDArray[Any]
ROUNDS = 20
SETTLED = 1e-3  # a factor that close to 1 everywhere ends it
WIDEST = 1e4  # no channel is scaled by more
SCALE_FREE = ("linear", "relu")  # f(s x) = s f(x) for s > 0


def factors(first: Array, second: Array) -> Array:
    """How much to divide each channel by in the first layer, and multiply in the second, (channels,) float64.

    # first (n, channels) by output channel, second (channels, m) by input channel
    s = sqrt(r1 r2) / r2, eq. (11), with r the largest magnitude of a channel; 1 where either is zero. The factors
    have geometric mean 1: a scale of all channels alike changes nothing.
    """
    one, two = np.abs(first).max(axis=0).astype(np.float64), np.abs(second).max(axis=1).astype(np.float64)
    alive = (one > 0) & (two > 0)
    found = np.where(alive, np.sqrt(np.where(alive, one, 1) / np.where(alive, two, 1)), 1.0)
    found[alive] /= np.exp(np.mean(np.log(found[alive]))) if alive.any() else 1.0
    return np.clip(found, 1 / WIDEST, WIDEST)


def bias_shift(float_outputs: Array, quantized_outputs: Array) -> Array:
    """What to add to a bias so that the mean output of each channel is that of the float layer, (channels,).

    # outputs (..., channels); E[y] - E[y~] of section 4.2, measured on samples
    """
    axes = tuple(range(float_outputs.ndim - 1))
    ours, theirs = (y.mean(axis=axes, dtype=np.float64) for y in (float_outputs, quantized_outputs))
    return np.asarray(ours - theirs)


def output_matrix(kernel: Array, kind: str) -> Array:
    """A kernel as (summed, output channels)."""
    if kind == "Conv2DTranspose":
        kernel = np.moveaxis(kernel, -2, -1)
    width = kernel.shape[-2] * kernel.shape[-1] if kind == "DepthwiseConv2D" else kernel.shape[-1]
    return kernel.reshape(-1, width)


def input_matrix(kernel: Array, kind: str) -> Array:
    """A kernel as (input channels, rest)."""
    at = -1 if kind == "Conv2DTranspose" else -2
    return np.moveaxis(kernel, at, 0).reshape(kernel.shape[at], -1)


def scaled(kernel: Array, kind: str, *, by_output: Array | None = None, by_input: Array | None = None) -> Array:
    """A kernel with its output or input channels multiplied, float32."""
    if by_output is not None:
        shape = {"DepthwiseConv2D": kernel.shape[-2:], "Conv2DTranspose": (-1, 1)}.get(kind, (-1,))
        kernel = kernel * by_output.reshape(shape)
    if by_input is not None:
        kernel = kernel * by_input.reshape((1, -1) if kind == "Conv2DTranspose" else (-1, 1))
    return np.asarray(kernel, np.float32)


def pairs(walked: Graph) -> list[tuple[str, str]]:
    """Layers with kernels where the first feeds the second alone, through ReLU or nothing; both are called once."""
    found = []
    for call in walked.calls:
        follower = _follower(walked, call) if _is_able(walked, call) else None
        if follower is None or not _is_able(walked, follower, activation=False):
            continue
        depthwise = follower.kind == "DepthwiseConv2D"
        apart = follower.layer.depth_multiplier == 1 if depthwise else getattr(follower.layer, "groups", 1) == 1
        if apart and call.outputs[0].shape[-1] == follower.inputs[0].shape[-1]:
            found.append((call.name, follower.name))
    return found


def _is_able(walked: Graph, call: Call, *, activation: bool = True) -> bool:
    if call.kind not in KERNELS or len(walked.calls_of(call.name)) != 1:
        return False
    return not activation or activation_name(call.layer.activation) in SCALE_FREE


def _follower(walked: Graph, call: Call) -> Call | None:
    after = walked.next(call)
    while after is not None and activation_of(after.layer) in SCALE_FREE:
        after = walked.next(after)
    return after


def equalize(model: keras.Model, walked: Graph) -> tuple[int, list[str]]:
    """Equalize the kernels of `model` in place. Returns the number of pairs, and those left as their values are set.

    A kernel that is on its int8 grid already would leave it, and one whose weights share values would have more.
    """
    layers: dict[str, Any] = {layer.name: layer for layer in model.layers}
    found = pairs(walked)
    left = [second for _, second in found if _is_set(layers[second])]
    chosen = [pair for pair in found if pair[1] not in left]
    for _ in range(ROUNDS):
        largest = 0.0
        for first, second in chosen:
            one, two = layers[first], layers[second]
            kinds = [type(layer).__name__ for layer in (one, two)]
            kernel, *bias = one.get_weights()
            after, *rest = two.get_weights()
            s = factors(output_matrix(kernel, kinds[0]), input_matrix(after, kinds[1]))
            biases = [np.asarray(b / s, np.float32) for b in bias]
            one.set_weights([scaled(kernel, kinds[0], by_output=1 / s), *biases])
            two.set_weights([scaled(after, kinds[1], by_input=s), *rest])
            largest = max(largest, float(np.abs(np.log(s)).max()))
        if largest < SETTLED:
            break
    return len(chosen), left


def _is_set(layer: Any) -> bool:
    from edgedl.compression.fake_quant import KERNEL_LAYERS

    kernel, kind = layer.get_weights()[0], type(layer).__name__
    on_grid = is_on_grid(kernel, kernel_scales(kernel, KERNEL_LAYERS[kind].summed))
    return on_grid or shared_values(output_matrix(kernel, kind)) is not None
