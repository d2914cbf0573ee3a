"""What oneDNN, which TensorFlow computes with on x86 unless told otherwise, trains right.

It trains ResNet8 1.6 times as fast, but in TensorFlow 2.21 it is known to write past its memory: in the gradient of
some convolutions (`unsafe_layers`) and in products of matrices with a broadcast
(github.com/tensorflow/tensorflow/pull/120199). So only networks of plain layers are trained with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgedl.models.tensors import operations

if TYPE_CHECKING:
    import keras

SAFE_INPUTS = 16
PLAIN = (
    *("Functional", "Sequential", "Flatten", "Reshape", "Permute", "Rescaling", "Normalization"),
    *("Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv1D", "SeparableConv2D"),
    *("Conv2DTranspose", "Dense", "GRU", "GRUCell", "LSTM", "LSTMCell", "BatchNormalization", "LayerNormalization"),
    *("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "Dropout", "SpatialDropout1D", "SpatialDropout2D"),
    *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"),
    *("MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D"),
    *("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D"),
    *("ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D", "UpSampling1D", "UpSampling2D"),
    *("FakeQuantize", "Barrier"),
)


def is_plain(model: keras.Model) -> bool:
    """Whether every layer is one of Keras's, or of edgedl's fake quantization, that oneDNN is known to train right.

    Those of `unsafe_layers` count as right: training samples before they convolve.
    """
    types = [type(op) for op in operations(model)]
    return all(t.__name__ in PLAIN and t.__module__.split(".")[0] in ("keras", "edgedl") for t in types)


def unsafe_layers(model: keras.Model) -> list[Any]:
    """Strided convolutions of size 1 with few inputs; see `edgedl.fitting.pointwise`."""
    return [op for op in operations(model) if _is_unsafe(op)]


def _is_unsafe(layer: Any) -> bool:
    if not hasattr(layer, "convolution_op") or getattr(layer, "data_format", "") != "channels_last":
        return False
    strided = max(layer.kernel_size) == 1 and max(layer.strides) > 1
    return strided and layer.built and int(layer.kernel.shape[-2]) < SAFE_INPUTS
