"""What keeps bakenn from a .tflite file that it could compile, mended in place.

A free batch is 1. A RESHAPE has its shape in its options, and stands before a FULLY_CONNECTED that takes more than
rows. What bakenn lacks is left out where hardly any work comes after it, as SOFTMAX at the end of a classifier.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

from edgedl.errors import UnsupportedError
from edgedl_tflite import flatbuffer

COVERED = (
    "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "AVERAGE_POOL_2D", "MAX_POOL_2D", "RESHAPE",
)  # fmt: skip
HARDLY = 0.02  # of the multiply-accumulates
WITH_BIAS, WITHOUT_BIAS = 4, 6  # the versions of FULLY_CONNECTED in int8 that bakenn knows; older ones mean the same


def mend(model: Any) -> list[str]:
    """The operators that were left out, by name. Raises UnsupportedError for what bakenn cannot compile."""
    graph = model.subgraphs[0]
    left_out = [*_cut_front(model, graph), *_cut_end(model, graph)]
    if len(model.subgraphs) != 1 or len(graph.inputs) != 1 or len(graph.outputs) != 1:
        message = "bakenn takes one graph with one input and one output"
        raise UnsupportedError(message)
    if any(flatbuffer.dtype_name(graph.tensors[i].type) != "int8" for i in (graph.inputs[0], graph.outputs[0])):
        message = "bakenn takes int8 files; export with --scheme int8"
        raise UnsupportedError(message)
    for tensor in graph.tensors:
        tensor.shapeSignature = None
    for op in list(graph.operators):
        name = flatbuffer.op_name(model, op)
        if name == "RESHAPE" and op.builtinOptions is None:
            _say_shape(op, graph.tensors[op.outputs[0]].shape)
        elif name == "FULLY_CONNECTED":
            has_bias = len(op.inputs) > 2 and op.inputs[2] >= 0
            op.opcodeIndex = flatbuffer.add_operator_code(model, name, WITH_BIAS if has_bias else WITHOUT_BIAS)
            _flatten(model, op)
    model.signatureDefs = None
    return left_out


def _cut_front(model: Any, graph: Any) -> list[str]:
    """Start after a QUANTIZE."""
    left_out = []
    while graph.operators and flatbuffer.op_name(model, graph.operators[0]) == "QUANTIZE":
        graph.inputs = list(graph.operators.pop(0).outputs)
        left_out.append("QUANTIZE")
    return left_out


def _cut_end(model: Any, graph: Any) -> list[str]:
    """End before the first operator that bakenn lacks.

    Raises UnsupportedError where that leaves out work, or would not give one output.
    """
    names = [flatbuffer.op_name(model, op) for op in graph.operators]
    first = next((i for i, name in enumerate(names) if name not in COVERED), len(names))
    kept, rest = graph.operators[:first], graph.operators[first:]
    if not rest:
        return []
    made = {int(i) for op in kept for i in op.outputs}
    used = made & {int(i) for part in (graph.outputs, *(op.inputs for op in rest)) for i in part}
    share = _macs(model, graph, rest) / max(1, _macs(model, graph, graph.operators))
    if share > HARDLY or len(used) != 1:
        why = f"{len(used)} tensors from before it would be outputs, and bakenn takes one"
        if share > HARDLY:
            why = f"{share:.0%} of the multiply-accumulates come after it"
        message = f"bakenn reads {', '.join(COVERED)}, and not {names[first]}, operator {first}; {why}"
        raise UnsupportedError(message)
    graph.operators, graph.outputs = kept, sorted(used)
    return names[first:]


def _macs(model: Any, graph: Any, ops: Sequence[Any]) -> int:
    """Multiply-accumulates of convolutions and fully connected layers."""
    total = 0
    for op in ops:
        name = flatbuffer.op_name(model, op)
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            weights, out = (graph.tensors[i].shape for i in (op.inputs[1], op.outputs[0]))
            each = math.prod(weights[1:3]) if name == "DEPTHWISE_CONV_2D" else math.prod(weights[1:])
            total += math.prod(out) * each
    return total


def _say_shape(op: Any, shape: Any) -> None:
    op.builtinOptions = flatbuffer.schema().ReshapeOptionsT()
    op.builtinOptions.newShape = [int(size) for size in shape]
    op.builtinOptionsType = flatbuffer.schema().BuiltinOptions.ReshapeOptions


def _flatten(model: Any, op: Any) -> None:
    """Put a RESHAPE before a FULLY_CONNECTED that takes more than rows: TFLite's converter leaves it out."""
    graph = model.subgraphs[0]
    before = graph.tensors[op.inputs[0]]
    if len(before.shape) == 2:
        return
    flat = copy.copy(before)
    flat.name, flat.shape = b"flat of " + flatbuffer.text(before.name).encode(), [1, math.prod(before.shape)]
    graph.tensors.append(flat)
    reshape = flatbuffer.schema().OperatorT(
        opcodeIndex=flatbuffer.add_operator_code(model, "RESHAPE", 1),
        inputs=[op.inputs[0]],
        outputs=[len(graph.tensors) - 1],
    )
    _say_shape(reshape, flat.shape)
    graph.operators.insert(graph.operators.index(op), reshape)
    op.inputs = [reshape.outputs[0], *op.inputs[1:]]
