"""Strided convolutions of size 1 in training, without the CPU kernel that writes past its memory.

oneDNN, which TensorFlow trains with on x86, corrupts the heap in the gradient of such a kernel with fewer than 16 input
channels (github.com/uxlfoundation/oneDNN/issues/6035): the process aborts some steps later, or goes on with whatever
was overwritten. The shortcut of a residual network that has lost channels is one of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from edgedl.models.onednn import unsafe_layers

if TYPE_CHECKING:
    import keras


@contextlib.contextmanager
def sampled_first(model: keras.Model) -> Iterator[None]:
    """Let such layers take every so-manieth place first, and convolve without a stride then: the same numbers."""
    import keras

    layers = unsafe_layers(model)
    for layer in layers:
        if type(layer) is keras.layers.Conv1D:  # which does not ask its convolution_op
            vars(layer)["call"] = partial(_called, layer)
        else:
            vars(layer)["convolution_op"] = partial(_sampled, layer)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("call", None)
            vars(layer).pop("convolution_op", None)


def _sampled(layer: Any, inputs: Any, kernel: Any) -> Any:
    """# inputs (batch, ..., in), strides (2, 2): every second row and column, with padding "same" and "valid" alike"""
    import keras

    places = tuple(slice(None, None, stride) for stride in layer.strides)
    return keras.ops.conv(inputs[(slice(None), *places)], kernel, strides=1, padding="valid")


def _called(layer: Any, inputs: Any) -> Any:
    outputs = _sampled(layer, inputs, layer.kernel)
    if layer.use_bias:
        outputs = outputs + layer.bias
    return outputs if layer.activation is None else layer.activation(outputs)
