"""Passes on a quantized (QDQ) graph that let integer kernels run. Each leaves every real value as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl_onnx.graphs import arrays, consumers, producers, refill, sort

if TYPE_CHECKING:
    import onnx

    Array = np.ndarray[Any, Any]

BEFORE_CLAMP = ("Conv", "MatMul", "Gemm", "Add", "Mul")  # ops with an integer kernel


def drop_identity_pairs(graph: onnx.GraphProto) -> None:
    """Remove DequantizeLinear -> QuantizeLinear with one scale and zero point: the integers come back as they were."""
    values, made, readers = arrays(graph), producers(graph), consumers(graph)
    outputs = {o.name for o in graph.output}
    for node in graph.node:
        before = made.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if before is None or before.op_type != "DequantizeLinear" or node.output[0] in outputs:
            continue
        if all(_same(values, a, b) for a, b in zip(node.input[1:], before.input[1:], strict=True)):
            for reader in readers.get(node.output[0], []):
                reader.input[:] = [before.input[0] if n == node.output[0] else n for n in reader.input]
    sort(graph)


def _same(values: dict[str, Array], a: str, b: str) -> bool:
    x, y = values.get(a), values.get(b)
    return a == b or (x is not None and y is not None and x.dtype == y.dtype and np.array_equal(x, y))


def merge_bias(model: onnx.ModelProto) -> None:
    """MatMul of a matrix and constant weights, plus a dequantized bias, as one Gemm: that has an integer kernel."""
    from onnx import shape_inference

    graph = model.graph
    made, readers, values = producers(graph), consumers(graph), arrays(graph)
    inferred = shape_inference.infer_shapes(model).graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in [*inferred.input, *inferred.value_info]}
    for add in graph.node:
        product = made.get(add.input[0]) if add.op_type == "Add" else None
        if product is None or product.op_type != "MatMul" or len(readers[product.output[0]]) > 1:
            continue
        bias, weights = made.get(add.input[1]), made.get(product.input[1])
        if bias is None or weights is None or ranks.get(product.input[0]) != 2:
            continue
        constant = all(n.op_type == "DequantizeLinear" and n.input[0] in values for n in (bias, weights))
        if constant and values[bias.input[0]].ndim == 1 and values[weights.input[0]].ndim == 2:
            add.op_type = "Gemm"
            add.input[:] = [*product.input, bias.output[0]]
    sort(graph)


def settle_ties(graph: onnx.GraphProto) -> None:
    """Make average pools round ties as TFLite does, away from code 0, where QuantizeLinear rounds them to even.

    Their output scale changes by less than one in 10,000, enough to push a tie and too little to push anything else.
    On ResNet8 it is what stood between the two formats' outputs: with it they are bit-identical.
    Wants signed codes. Source: AveragePool in tensorflow/lite/kernels/internal/reference/integer_ops/pooling.h.
    """
    from onnx import helper, numpy_helper

    values, made = arrays(graph), producers(graph)
    for node in graph.node:
        pool = made.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        if pool is None or pool.op_type != "AveragePool" or any(n not in values for n in node.input[1:]):
            continue
        scale, zero_point = values[node.input[1]], values[node.input[2]]
        if zero_point.dtype != np.int8 or scale.size != 1:
            continue
        count = np.prod(next(helper.get_attribute_value(a) for a in pool.attribute if a.name == "kernel_shape"))
        # Real values spread from the zero point: codes between it and 0 go away from 0 as the scale grows.
        sign = 1 if abs(int(zero_point)) > 64 else -1
        name = f"{node.output[0]}:scale"
        graph.initializer.append(numpy_helper.from_array(scale * np.float32(1 + sign / (512 * count)), name))
        node.input[1] = name


def settle_clamps(graph: onnx.GraphProto) -> None:
    """Free convolutions and products of the Relu or Clip before their quantization, which hides the integer kernel.

    Where the codes saturate at the bounds it is dropped; elsewhere a Q, DQ pair goes before it. Rounding is monotonic,
    so clamping the codes gives the very codes of the clamped values.
    """
    from onnx import helper

    values, made, readers = arrays(graph), producers(graph), consumers(graph)
    shown = {o.name for o in graph.output}
    nodes = []
    for node in graph.node:
        after = [] if shown & set(node.output) else readers.get(node.output[0], [])
        if node.op_type in ("Relu", "Clip") and after and _one_quantization(after, values):
            if _saturates(after[0], values, *_bounds(node, values)):
                for reader in after:
                    reader.input[0] = node.input[0]
            elif node.input[0] in made and made[node.input[0]].op_type in BEFORE_CLAMP:
                x, scales = node.input[0], list(after[0].input[1:])
                nodes.append(helper.make_node("QuantizeLinear", [x, *scales], [f"{x}:codes"]))
                nodes.append(helper.make_node("DequantizeLinear", [f"{x}:codes", *scales], [f"{x}:real"]))
                node.input[0] = f"{x}:real"
        nodes.append(node)
    refill(graph.node, nodes)
    sort(graph)


def _one_quantization(nodes: list[onnx.NodeProto], values: dict[str, Array]) -> bool:
    if any(n.op_type != "QuantizeLinear" or len(n.input) < 3 for n in nodes):
        return False
    first = nodes[0].input[1:]
    return all(_same(values, a, b) for n in nodes for a, b in zip(n.input[1:], first, strict=True))


def _bounds(node: onnx.NodeProto, values: dict[str, Array]) -> tuple[float, float]:
    """Lower and upper bound of a Relu or Clip; NaN where a Clip's bound is no constant."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    low, high = [*node.input[1:], "", ""][:2]
    nan = np.array(np.nan)
    return (
        float(values.get(low, nan)) if low else -np.inf,
        float(values.get(high, nan)) if high else np.inf,
    )


def _saturates(node: onnx.NodeProto, values: dict[str, Array], low: float, high: float) -> bool:
    if any(n not in values for n in node.input[1:]):
        return False
    scale, zero_point = values[node.input[1]], values[node.input[2]]
    limits = np.iinfo(zero_point.dtype)
    smallest, largest = np.rint(low / scale) + zero_point, np.rint(high / scale) + zero_point
    return bool(np.all(smallest <= limits.min) and np.all(largest >= limits.max))


def integer_bias_to_float(graph: onnx.GraphProto) -> None:
    """Replace dequantized int64 biases, which ONNX lacks, by their float32 values (16-bit activations have them)."""
    from onnx import numpy_helper

    values = arrays(graph)
    for node in list(graph.node):
        codes = values.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if codes is not None and codes.dtype == np.int64:
            real = (codes.astype(np.float64) * values[node.input[1]]).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(real, node.output[0]))
            graph.node.remove(node)
    sort(graph)


def mark_16_bit(model: onnx.ModelProto) -> None:
    """Put 16-bit QuantizeLinear and DequantizeLinear into onnxruntime's own domain: ONNX has them from opset 21 on."""
    from onnx import helper

    values = arrays(model.graph)
    found = False
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and _is_16_bit(node, values):
            node.domain = "com.microsoft"
            found = True
    if found:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _is_16_bit(node: onnx.NodeProto, values: dict[str, Array]) -> bool:
    return len(node.input) > 2 and node.input[2] in values and values[node.input[2]].dtype.itemsize == 2
