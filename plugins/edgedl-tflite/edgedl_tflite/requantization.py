"""Operators that move numbers and do not change them, made right where the converter gave them two scales.

The converter of TensorFlow 2.21 gives REVERSE_V2, which every Bidirectional layer with sequences has, an output scale
of its own. The kernel copies bytes, so the values come out multiplied by the ratio of the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgedl_tflite import flatbuffer

# One tensor in (operand 0), one out; their kernels in tensorflow/lite/kernels copy without looking at scales.
MOVES = {
    "DEPTH_TO_SPACE",
    "EXPAND_DIMS",
    "GATHER",
    "GATHER_ND",
    "RESHAPE",
    "REVERSE_SEQUENCE",
    "REVERSE_V2",
    "SLICE",
    "SPACE_TO_DEPTH",
    "SQUEEZE",
    "STRIDED_SLICE",
    "TILE",
    "TRANSPOSE",
}


def repair(model: Any) -> int:
    """Let such an operator keep its input's scale, with a QUANTIZE behind it to the output's. Returns how many."""
    repaired = 0
    for graph in model.subgraphs:
        done = []
        for op in graph.operators or []:
            done.append(op)
            if flatbuffer.op_name(model, op) in MOVES and _differs(graph, op):
                done.append(_requantize(model, graph, op))
                repaired += 1
        graph.operators = done
    return repaired


def _parameters(tensor: Any) -> tuple[float, int] | None:
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or len(quantization.scale) != 1:
        return None
    return float(quantization.scale[0]), int(quantization.zeroPoint[0])


def _differs(graph: Any, op: Any) -> bool:
    before, after = (_parameters(graph.tensors[i]) for i in (op.inputs[0], op.outputs[0]))
    return before is not None and after is not None and before != after


def _requantize(model: Any, graph: Any, op: Any) -> Any:
    """Send the operator's output to a new tensor with its input's scale. Returns the QUANTIZE from there."""
    generated = flatbuffer.schema()
    source, target = graph.tensors[op.inputs[0]], int(op.outputs[0])
    wanted = graph.tensors[target]
    moved = generated.TensorT(
        name=f"{flatbuffer.text(wanted.name)}_moved",
        shape=wanted.shape,
        hasRank=True,
        type=wanted.type,
        quantization=source.quantization,
    )
    graph.tensors.append(moved)
    op.outputs = np.array([len(graph.tensors) - 1], np.int32)
    version = 2 if wanted.type == generated.TensorType.INT16 else 1
    return generated.OperatorT(
        opcodeIndex=flatbuffer.add_operator_code(model, "QUANTIZE", version),
        inputs=np.array([len(graph.tensors) - 1], np.int32),
        outputs=np.array([target], np.int32),
    )
