"""int8 activations as uint8, zero point moved by 128: the same real values, weights untouched.

onnxruntime's x86 kernels for convolutions, sums and matrix products take uint8 activations with int8 weights.
int16 becomes uint16 the same way, which is what NPU providers expect.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl_onnx.graphs import arrays, consumers, refill, subgraphs

if TYPE_CHECKING:
    import onnx

    Array = np.ndarray[Any, Any]

UNSIGNED = {np.dtype(np.int8): np.dtype(np.uint8), np.dtype(np.int16): np.dtype(np.uint16)}
# Ops that only move elements; all but Concat move their first input.
MOVES = frozenset(
    {
        "Compress",
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "MaxPool",
        "Reshape",
        "ReverseSequence",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
WEIGHTED = frozenset(["Conv", "ConvTranspose", "MatMul", "Gemm"])


def shift_activations(model: onnx.ModelProto) -> None:
    """Make every signed activation unsigned, but graph inputs and outputs, which get a conversion beside them."""
    graph = model.graph
    dtypes = _dtypes(model)
    for group in _groups(graph, {name for name, dtype in dtypes.items() if dtype in UNSIGNED}):
        pairs = [n for n in graph.node if _quantized(n) in group]
        if pairs and _shiftable(graph, group, pairs):
            _shift(graph, group, pairs)


def _dtypes(model: onnx.ModelProto) -> dict[str, np.dtype[Any]]:
    from onnx import helper, shape_inference

    graph = shape_inference.infer_shapes(model).graph
    found = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.value_info, *graph.output]}
    found |= {i.name: i.data_type for i in graph.initializer}
    return {name: np.dtype(helper.tensor_dtype_to_np_dtype(kind)) for name, kind in found.items() if kind}


def _quantized(node: onnx.NodeProto) -> str:
    """The integer side of a QuantizeLinear or DequantizeLinear, "" for other nodes."""
    if node.op_type == "QuantizeLinear":
        return str(node.output[0])
    return str(node.input[0]) if node.op_type == "DequantizeLinear" else ""


def _moved(node: onnx.NodeProto) -> list[str]:
    """The tensors whose elements a node only moves: its outputs and what they come from."""
    if node.op_type not in MOVES:
        return []
    return [*(node.input if node.op_type == "Concat" else node.input[:1]), *node.output]


def _groups(graph: onnx.GraphProto, names: Iterable[str]) -> list[set[str]]:
    """Tensors of `names` that must keep one dtype, since a node moves elements between them."""
    group_of = {name: {name} for name in names}
    for node in graph.node:
        moved = [n for n in _moved(node) if n in group_of]
        for name in moved[1:]:
            if group_of[name] is not group_of[moved[0]]:
                merged = group_of[moved[0]] | group_of[name]
                group_of |= dict.fromkeys(merged, merged)
    return list({id(g): g for g in group_of.values()}.values())


def _shiftable(graph: onnx.GraphProto, group: set[str], pairs: list[onnx.NodeProto]) -> bool:
    """Whether only moves and per-tensor Q and DQ touch the group, all in this graph, and it holds no weights."""
    values, readers = arrays(graph), consumers(graph)
    for node in graph.node:
        if group & {n for inner in subgraphs(node) for n in _names(inner)}:
            return False
        used = group & {*node.input, *node.output}
        if used and not used <= {*_moved(node), _quantized(node)}:
            return False
    if any(len(n.input) < 3 or values.get(n.input[1], np.zeros(2)).size != 1 for n in pairs):
        return False
    constant = [n for n in pairs if n.op_type == "DequantizeLinear" and n.input[0] in values]
    return not any(_is_weight(n.output[0], readers) for n in constant)


def _names(graph: onnx.GraphProto) -> set[str]:
    return {*consumers(graph), *(o.name for o in graph.output)}


def _is_weight(name: str, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    for node in readers.get(name, []):
        if node.op_type in WEIGHTED and name in node.input[1:]:
            return True
        if node.op_type in MOVES and any(_is_weight(o, readers) for o in node.output):
            return True
    return False


def _shift(graph: onnx.GraphProto, group: set[str], pairs: list[onnx.NodeProto]) -> None:
    from onnx import numpy_helper

    values = arrays(graph)
    scale, signed = pairs[0].input[1], pairs[0].input[2]
    for node in pairs:
        name = f"{node.input[2]}:unsigned"
        if name not in values:
            values[name] = _raised(values[node.input[2]])
            graph.initializer.append(numpy_helper.from_array(values[name], name))
        node.input[2] = name
    for item in graph.initializer:
        if item.name in group:
            item.CopyFrom(numpy_helper.from_array(_raised(values[item.name]), item.name))
    _convert_interface(graph, group, scale, signed)


def _raised(codes: Array) -> Array:
    half = 1 << (8 * codes.dtype.itemsize - 1)
    raised: Array = (codes.astype(np.int32) + half).astype(UNSIGNED[codes.dtype])
    return raised


def _convert_interface(graph: onnx.GraphProto, group: set[str], scale: str, signed: str) -> None:
    """A graph input or output keeps its dtype: DQ, Q between it and the unsigned tensor inside."""
    from onnx import helper

    unsigned = f"{signed}:unsigned"
    inputs = [v.name for v in graph.input if v.name in group]
    outputs = [v.name for v in graph.output if v.name in group]
    inside = {name: f"{name}:unsigned" for name in (*inputs, *outputs)}
    for node in graph.node:
        node.input[:] = [inside.get(n, n) for n in node.input]
        node.output[:] = [inside.get(n, n) for n in node.output]

    def through(name: str, came: str, came_zero: str, went: str, went_zero: str) -> list[onnx.NodeProto]:
        real = f"{name}:real"
        return [
            helper.make_node("DequantizeLinear", [came, scale, came_zero], [real]),
            helper.make_node("QuantizeLinear", [real, scale, went_zero], [went]),
        ]

    first = [n for name in inputs for n in through(name, name, signed, inside[name], unsigned)]
    last = [n for name in outputs for n in through(name, inside[name], unsigned, name, signed)]
    refill(graph.node, [*first, *graph.node, *last])
