"""The layers whose gradient oneDNN, which TensorFlow trains with on x86, gets wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgedl.models.tensors import operations

if TYPE_CHECKING:
    import keras

SAFE_INPUTS = 16


def unsafe_layers(model: keras.Model) -> list[Any]:
    """Strided convolutions of size 1 with few inputs; see `edgedl.fitting.pointwise`."""
    return [op for op in operations(model) if _is_unsafe(op)]


def _is_unsafe(layer: Any) -> bool:
    if not hasattr(layer, "convolution_op") or getattr(layer, "data_format", "") != "channels_last":
        return False
    strided = max(layer.kernel_size) == 1 and max(layer.strides) > 1
    return strided and layer.built and int(layer.kernel.shape[-2]) < SAFE_INPUTS
