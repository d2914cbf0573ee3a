"""Batch normalization folded into the layer before it: the same function, with one layer fewer.

y = gamma (conv(x) + b - mean) / sqrt(variance + epsilon) + beta is again a convolution, with the kernel scaled a
channel and another bias; Jacob et al., arXiv:1712.05877, section 3.2, eqs. (14) and (15).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import graph
from edgedl.compression.base import Context, Data, matching_layers
from edgedl.graph import Call, Graph, Replacement
from edgedl.recipes import Step, refuse_training

if TYPE_CHECKING:
    import keras

    from edgedl.types import Array

TOLERANCE = 1e-4  # float32 in another order, relative to the largest output (at least 1)
LAST_AXIS = ("Conv1D", "Conv2D", "Conv3D", "Dense", "SeparableConv1D", "SeparableConv2D")
FOLDABLE = {
    **dict.fromkeys(LAST_AXIS, "last"),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), "depthwise"),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), "transposed"),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """`fold` has no keys of its own."""

    def check(self, step: Step) -> None:
        """Raises ValueError for training, of which this does none."""
        refuse_training(step)


def batch_norm_affine(
    gamma: Array | None, beta: Array | None, mean: Array, variance: Array, epsilon: float
) -> tuple[Array, Array]:
    """Batch normalization at inference as y = scale x + shift: the two in float64, each of shape (channels,)."""
    scale = 1.0 / np.sqrt(np.asarray(variance, np.float64) + epsilon)
    if gamma is not None:
        scale = scale * gamma
    shift = -np.asarray(mean, np.float64) * scale
    return scale, shift if beta is None else shift + beta


def scaled_kernel(kernel: Array, scale: Array, layout: str) -> Array:
    """A kernel with its output channels scaled, in float32.

    # last: (3, 3, in, out); depthwise: (3, 3, in, multiplier), out = in * multiplier; transposed: (3, 3, out, in)
    """
    if layout == "depthwise":
        factors = scale.reshape(kernel.shape[-2:])
    elif layout == "transposed":
        factors = scale[:, None]
    else:
        factors = scale
    return np.asarray(kernel * factors, np.float32)


def affine_of(layer: Any) -> tuple[Array, Array]:
    """Scale and shift of a BatchNormalization layer."""
    gamma, beta = (None if w is None else w.numpy() for w in (layer.gamma, layer.beta))
    return batch_norm_affine(gamma, beta, layer.moving_mean.numpy(), layer.moving_variance.numpy(), layer.epsilon)


class Fold:
    """Folds every batch normalization that follows a convolution or Dense layer."""

    kind = "fold"
    options = Options

    def apply(self, model: keras.Model, data: Data, options: Options, context: Context) -> keras.Model:  # noqa: ARG002
        """A flat copy without the batch normalizations that could be folded, proven to answer the same.

        `match` and `skip` choose the layers that are folded into. Says which batch normalizations stay.
        """
        flat = graph.flattened(model)
        chosen = None
        if context.step.match or context.step.skip:
            able = matching_layers(
                flat,
                context.step.match,
                context.step.skip,
                where=context.step.where,
                able=lambda layer: type(layer).__name__ in FOLDABLE,
                what="convolution or Dense layer",
            )
            chosen = {layer.name for layer in able}
        folded, left = fold(flat, chosen)
        if left:
            context.say(f"{context.step.where}: not folded, as no layer before them can take them: {', '.join(left)}")
        return folded


def fold(model: keras.Model, chosen: set[str] | None = None) -> tuple[keras.Model, list[str]]:
    """The model with batch normalizations folded into the `chosen` layers (None: all), and the names of those left.

    Raises EdgedlError where the outputs moved.
    """
    walked = Graph.of(model)
    pairs = _pairs(walked, chosen)
    replace: dict[str, Any] = {}
    for name, norm in pairs.items():
        replace[name] = _folded(walked.layers[name], name, walked.layers[norm])
        replace[norm] = _through
    left = [
        n for n, layer in walked.layers.items() if type(layer).__name__ == "BatchNormalization" and n not in replace
    ]
    if not replace:
        return model, left
    new = graph.rebuild(model, replace)
    graph.prove(model, new, TOLERANCE, what="the model with batch normalization folded")
    return new, left


def _through(tensor: Any, **_: Any) -> Any:
    return tensor


def _pairs(walked: Graph, chosen: set[str] | None) -> dict[str, str]:
    """Layer name -> name of the batch normalization that takes each of its calls, and no other layer's."""
    pairs = {}
    for name, layer in walked.layers.items():
        if type(layer).__name__ not in FOLDABLE or (chosen is not None and name not in chosen):
            continue
        followers = [walked.next(call) for call in walked.calls_of(name)]
        norms = {f.name for f in followers if f is not None and _is_norm_of(f, layer)}
        if len(norms) == 1 and None not in followers and _fed_by(walked, next(iter(norms)), name):
            pairs[name] = next(iter(norms))
    return pairs


def _is_norm_of(call: Call, layer: Any) -> bool:
    if call.kind != "BatchNormalization" or _activation(layer) != "linear":
        return False
    axis, rank = call.layer.axis, len(call.outputs[0].shape)
    channels_first = getattr(layer, "data_format", "channels_last") == "channels_first"
    return bool(axis % rank == (1 if channels_first else rank - 1))


def _activation(layer: Any) -> str:
    return str(getattr(layer.activation, "__name__", layer.activation))


def _fed_by(walked: Graph, norm: str, name: str) -> bool:
    """Whether every call of the batch normalization is on this layer's output, alone."""
    producers = [walked.producer(call.inputs[0]) for call in walked.calls_of(norm)]
    return all(p is not None and p.name == name for p in producers)


def _folded(layer: Any, name: str, norm: Any) -> Replacement:
    scale, shift = affine_of(norm)
    weights = layer.get_weights()
    *kernels, bias = weights if layer.use_bias else [*weights, np.zeros_like(scale)]
    kernels[-1] = scaled_kernel(kernels[-1], scale, FOLDABLE[type(layer).__name__])
    changes: dict[str, Any] = {"use_bias": True}
    new = graph.copied(layer, name, **changes)
    return Replacement(layer=new, weights=[*kernels, np.asarray(bias * scale + shift, np.float32)])
