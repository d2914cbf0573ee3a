"""Class activation maps: what each place of an image, or moment of a sequence, says for each class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras

ENDS = ("Activation", "Softmax", "FakeQuantize")  # that a classifier may have behind its Dense layer
BETWEEN = ("Flatten", "Reshape", "Dropout", "FakeQuantize")  # it and the average that it takes
AVERAGES = (
    *("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D"),
    *("AveragePooling1D", "AveragePooling2D", "AveragePooling3D"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A `dense` layer on the average of `features` over all places, (batch, ..., channels)."""

    features: Any
    dense: Any

    def maps(self, features: Any, *, training: bool = False) -> Any:
        """(batch, ..., channels) -> (batch, ..., classes) whose average over the places are the layer's sums.

        Zhou et al., arXiv:1512.04150, eq. (2); the kernel of a quantized layer as it is computed with.
        """
        import tensorflow as tf

        dense = self.dense
        kernel = dense.on_grid(training=training) if hasattr(dense, "on_grid") else dense.kernel.value
        scores = tf.tensordot(tf.cast(features, tf.float32), tf.cast(kernel, tf.float32), 1)
        return scores if dense.bias is None else scores + tf.cast(dense.bias.value, tf.float32)


def head_of(tensor: Any) -> Head | None:
    """What makes this output of a flat model; None where that is no Dense layer on an average over all places."""
    dense = _behind(tensor, ENDS)
    if dense is None or type(dense[0]).__name__ != "Dense":
        return None
    average = _behind(dense[1], BETWEEN)
    if average is None or type(average[0]).__name__ not in AVERAGES:
        return None
    layer, features = average
    whole = "Global" in type(layer).__name__ or np.prod(layer.compute_output_shape(features.shape)[1:-1]) == 1
    whole = whole and layer.data_format == "channels_last" and features.shape[-1] == dense[0].input_spec.axes[-1]
    return Head(features=features, dense=dense[0]) if whole else None


def _behind(tensor: keras.KerasTensor, passed: tuple[str, ...]) -> tuple[Any, Any] | None:
    """The first layer back from this tensor that is not `passed`, and the one tensor that it takes."""
    while True:
        layer, node, _ = tensor._keras_history
        sources = layer._inbound_nodes[node].input_tensors
        if len(sources) != 1:
            return None
        if type(layer).__name__ not in passed:
            return layer, sources[0]
        tensor = sources[0]
