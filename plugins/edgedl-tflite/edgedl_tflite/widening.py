"""A model that carries int16 ranges, through a converter that turns fake quantization into int8 alone.

The converter of TensorFlow 2.21 fails on 16-bit fake quantization. So it is given the 8-bit twin: the same steps
between codes, on a range that 8 bits hold. Nothing runs that file; its activations are made int16 and its biases
int64 with the very same scales, which is all that tells the two forms apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.errors import EdgedlError, UnsupportedError
from edgedl.models.tensors import operations
from edgedl_tflite import flatbuffer

if TYPE_CHECKING:
    import keras

# (scale, zero point) that int8 kernels give -> the scale of their int16 form
FIXED = {"SOFTMAX": (1 / 256, -128), "LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}
WIDE = 1 / 32768
WITH_KERNEL = {"CONV_2D": (1, 2), "DEPTHWISE_CONV_2D": (1, 2), "FULLY_CONNECTED": (1, 2), "TRANSPOSE_CONV": (1, 3)}
ARITHMETIC = {"ADD", "SUB"}


@contextmanager
def twin(model: keras.Model, *, wide: bool) -> Iterator[None]:
    """While a model with int16 ranges is traced, its ranges are those of the twin."""
    ranges = [op for op in operations(model) if wide and hasattr(op, "edgedl_twin")]
    for layer in ranges:
        layer.edgedl_twin = True
    try:
        yield
    finally:
        for layer in ranges:
            layer.edgedl_twin = False


def widen(model: Any) -> None:
    """Make activations int16 and biases int64, in place. Raises UnsupportedError for a constant among activations."""
    generated = flatbuffer.schema()
    kernels, biases = set(), set()
    for _, op in flatbuffer.operators(model):
        name = flatbuffer.op_name(model, op)
        if name in WITH_KERNEL:
            kernel, bias = WITH_KERNEL[name]
            kernels.add(int(op.inputs[kernel]))
            biases |= {int(op.inputs[bias])} if len(op.inputs) > bias else set()
        if name in ARITHMETIC and op.builtinOptions is not None:
            op.builtinOptions.potScaleInt16 = False
        if name in ("QUANTIZE", "DEQUANTIZE"):
            version = 2 if name == "QUANTIZE" else 3
            op.opcodeIndex = flatbuffer.add_operator_code(model, name, version)
    graph = model.subgraphs[0]
    for index, tensor in enumerate(graph.tensors):
        if index in biases and tensor.type == generated.TensorType.INT32:
            _widen_bias(model, tensor)
        elif tensor.type == generated.TensorType.INT8 and index not in kernels:
            _widen_activation(model, tensor)


def _widen_bias(model: Any, tensor: Any) -> None:
    generated = flatbuffer.schema()
    data = np.frombuffer(bytes(flatbuffer.constant(model, tensor)), np.int32)
    if (np.abs(data.astype(np.int64)) >= 2**30).any():
        message = f"{flatbuffer.text(tensor.name)}: a bias is too large for the step of its int16 input and int8 kernel"
        raise EdgedlError(message)
    tensor.type = generated.TensorType.INT64
    tensor.buffer = flatbuffer.add_buffer(model, data.astype(np.int64).tobytes())


def _widen_activation(model: Any, tensor: Any) -> None:
    name = flatbuffer.text(tensor.name)
    if flatbuffer.constant(model, tensor) is not None:
        message = f"static_wi8_ai16: {name} is a constant beside activations, which int16 kernels have no form for"
        raise UnsupportedError(message)
    quantization = tensor.quantization
    scale, zero_point = float(quantization.scale[0]), int(quantization.zeroPoint[0])
    if (scale, zero_point) in FIXED.values():
        quantization.scale = np.array([WIDE], np.float32)
    elif zero_point:
        message = f"{name}: has the zero point {zero_point} in the twin of an int16 model, where all are 0"
        raise EdgedlError(message)
    quantization.zeroPoint = np.array([0], np.int64)
    quantization.min = quantization.max = None
    tensor.type = flatbuffer.schema().TensorType.INT16
