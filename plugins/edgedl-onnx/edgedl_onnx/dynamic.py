"""Passes on a graph with int8 weights and float activations: which products run on integers, and how the rest loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl_onnx.graphs import all_graphs, arrays, producers, refill, sort

if TYPE_CHECKING:
    import onnx

    Array = np.ndarray[Any, Any]


def integer_products(main: onnx.GraphProto) -> None:
    """Products of a dynamically quantized input and int8 weights as MatMulInteger, which runs as such everywhere.

    tf2onnx writes them as float products of dequantized values, and quantizes a float bias along with the input.
    """
    for graph in all_graphs(main):
        values, made = arrays(graph), producers(graph)
        nodes = []
        for node in graph.node:
            for i, name in enumerate(node.input):
                source = _quantized_as_run(name, made)
                if source is not None and source.input[0] in values:
                    node.input[i] = source.input[0]
            nodes += _integer_product(graph, node, values, made) or [node]
        refill(graph.node, nodes)
    sort(main)


def _quantized_as_run(name: str, made: dict[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The DynamicQuantizeLinear whose dequantized output is tensor `name`."""
    node = made.get(name)
    if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in made:
        return None
    source = made[node.input[0]]
    return source if source.op_type == "DynamicQuantizeLinear" else None


def _integer_product(
    graph: onnx.GraphProto, node: onnx.NodeProto, values: dict[str, Array], made: dict[str, onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """What replaces a MatMul or Gemm, nothing for another node."""
    from onnx import TensorProto, helper, numpy_helper

    source = _quantized_as_run(node.input[0], made) if node.op_type in ("MatMul", "Gemm") else None
    weights = made.get(node.input[1]) if source is not None else None
    if source is None or weights is None or weights.op_type != "DequantizeLinear" or weights.input[0] not in values:
        return []
    plain = all(a.name in ("alpha", "beta") or not a.i for a in node.attribute)  # tf2onnx writes alpha = beta = 1
    if not plain or values[weights.input[0]].ndim != 2 or np.any(values[weights.input[2]]):
        return []
    codes, input_scale, zero_point = source.output
    y = node.output[0]
    scale = _broadcast(values[weights.input[1]], weights, 2)
    graph.initializer.append(numpy_helper.from_array(scale, f"{y}:weight_scale"))
    biased = [helper.make_node("Add", [f"{y}:product", node.input[2]], [y])] if len(node.input) > 2 else []
    return [
        helper.make_node("MatMulInteger", [codes, weights.input[0], zero_point], [f"{y}:sum"]),
        helper.make_node("Cast", [f"{y}:sum"], [f"{y}:float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [input_scale, f"{y}:weight_scale"], [f"{y}:scale"]),
        helper.make_node("Mul", [f"{y}:float", f"{y}:scale"], [f"{y}:product" if biased else y]),
        *biased,
    ]


def open_weights(main: onnx.GraphProto) -> None:
    """Dequantize constant weights by Cast and Mul, which onnxruntime folds as it loads: int8 on disk, float speed.

    It keeps DequantizeLinear for its integer kernels and, where none takes it, runs it at every inference.
    """
    from onnx import TensorProto, helper, numpy_helper

    for graph in all_graphs(main):
        values = arrays(graph)
        nodes = []
        for node in graph.node:
            name = node.output[0]
            codes = values.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
            if codes is None or np.any(values[node.input[2]]):
                nodes.append(node)
                continue
            scale = _broadcast(values[node.input[1]], node, codes.ndim)
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}:scale"))
            nodes.append(helper.make_node("Cast", [node.input[0]], [f"{name}:codes"], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [f"{name}:codes", f"{name}:scale"], [name]))
        refill(graph.node, nodes)


def _broadcast(scale: Array, node: onnx.NodeProto, rank: int) -> Array:
    """One scale as a scalar, one a channel along the node's axis: (16,), axis 0, rank 4 -> (16, 1, 1, 1)."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    return scale.reshape([-1 if i == axis else 1 for i in range(rank)] if scale.size > 1 else [])
