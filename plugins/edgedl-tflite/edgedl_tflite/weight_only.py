"""Weight-only int8: a float flatbuffer whose weights are stored as int8 and dequantized when it is loaded or run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl_tflite import flatbuffer

# The operand that holds the weights, and their output-channel axis: schema.fbs, kernels' comments.
WEIGHTS = {"CONV_2D": (1, 0), "DEPTHWISE_CONV_2D": (1, 3), "FULLY_CONNECTED": (1, 0), "TRANSPOSE_CONV": (1, 0)}
MIN_ELEMENTS = 256  # under this, the scales and the operator take what the bytes save
DEQUANTIZE_VERSION = 5  # the first that knows one scale a channel


def quantize_channels(weights: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale a slice of `axis`, |code| <= 127. Returns codes and scales of shape (channels,).

    weights (8, 3, 3, 16), axis 0 -> scales (8,)
    """
    others = tuple(i for i in range(weights.ndim) if i != axis)
    largest = np.abs(weights).max(axis=others)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    broadcast = scales.reshape([-1 if i == axis else 1 for i in range(weights.ndim)])
    codes = np.clip(np.rint(weights / broadcast), -127, 127).astype(np.int8)
    return codes, scales


def quantize(model: Any) -> int:
    """Store the weights of a float `model` as int8. Returns how many weight tensors were."""
    done = 0
    for graph in model.subgraphs:
        added: dict[int, Any] = {}
        for op in graph.operators or []:
            place = WEIGHTS.get(flatbuffer.op_name(model, op))
            if place and int(op.inputs[place[0]]) not in added:
                made = _dequantize(model, graph, int(op.inputs[place[0]]), place[1])
                if made is not None:
                    added[int(op.inputs[place[0]])] = made
        graph.operators = [*added.values(), *(graph.operators or [])]
        done += len(added)
    return done


def _dequantize(model: Any, graph: Any, index: int, axis: int) -> Any | None:
    """The operator that fills float tensor `index` from int8, or None where that is no large float constant."""
    generated = flatbuffer.schema()
    tensor = graph.tensors[index]
    data = flatbuffer.constant(model, tensor)
    if data is None or tensor.type != generated.TensorType.FLOAT32 or len(data) < 4 * MIN_ELEMENTS:
        return None
    codes, scales = quantize_channels(np.frombuffer(bytes(data), np.float32).reshape(tensor.shape), axis)
    stored = generated.TensorT(
        name=f"{flatbuffer.text(tensor.name)}_int8",
        shape=tensor.shape,
        hasRank=True,
        type=generated.TensorType.INT8,
        buffer=flatbuffer.add_buffer(model, codes.tobytes()),
        quantization=generated.QuantizationParametersT(
            scale=scales, zeroPoint=np.zeros(len(scales), np.int64), quantizedDimension=axis
        ),
    )
    graph.tensors.append(stored)
    tensor.buffer = 0
    return generated.OperatorT(
        opcodeIndex=flatbuffer.add_operator_code(model, "DEQUANTIZE", DEQUANTIZE_VERSION),
        inputs=np.array([len(graph.tensors) - 1], np.int32),
        outputs=np.array([index], np.int32),
    )
