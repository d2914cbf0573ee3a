"""Multiply-accumulates of Keras layers for one sample, from weights and shapes; no model is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from edgedl.models.tensors import graph_nodes, graph_operations, is_graph

Shape = Sequence[int | None]


def layer_macs(layer: Any, inputs: Sequence[Shape], output: Shape) -> int | None:
    """Multiply-accumulates of one call of a layer for one sample; None where a free size or a foreign class hides them.

    Convolution: output positions x kernel size; transposed: input positions x kernel size; Dense and EinsumDense:
    output values x summed sizes; RNN: steps x (kernel + recurrent kernel), of ConvLSTM at every output position;
    attention: its projections and both products; matmul, einsum and Dot: output values x summed sizes. Bias,
    activation, normalization, pooling and other element-wise work count 0, as is usual.
    """
    try:
        if is_graph(layer):
            parts = [row["macs"] for row in _rows(layer, _shapes(layer, inputs))]
            return None if None in parts else sum(parts)
        return _count(layer, [_known(s) for s in inputs], _known(output))
    except UnknownSizeError:
        return None


class UnknownSizeError(Exception):
    """A size that the count needs is free or another operand's, or the class is none of Keras's."""


def _size(weight: Any) -> int:
    return int(prod(weight.shape))


def _known(shape: Shape) -> list[int]:
    """Sizes without the batch, -1 where free."""
    return [-1 if n is None else n for n in shape[1:]]


def _free(sizes: Sequence[int]) -> Shape:
    """Of (steps, sizes): the shape of one step, None where free."""
    return (None, *(None if n < 0 else n for n in sizes[1:]))


def _product(sizes: Sequence[int]) -> int:
    if min(sizes, default=0) < 0:
        raise UnknownSizeError
    return prod(sizes)


def _count(layer: Any, inputs: list[list[int]], output: list[int]) -> int:
    name = type(layer).__name__
    if name == "TimeDistributed":
        inner = layer_macs(layer.layer, [_free(s) for s in inputs], _free(output))
        if inner is None:
            raise UnknownSizeError
        return _product(inputs[0][:1]) * inner
    if name == "Bidirectional":
        both = (layer.forward_layer, layer.backward_layer)
        return sum(_recurrent(rnn, inputs[0], output) for rnn in both)
    if hasattr(layer, "cell") or name in ("LSTM", "GRU", "SimpleRNN"):
        return _recurrent(layer, inputs[0], output)
    if name in ("MultiHeadAttention", "GroupedQueryAttention"):
        return _attention(layer, inputs)
    if name == "EinsumDense":
        return _einsum_dense(layer, output)
    if name == "Dense":
        return _product(output) * int(layer.kernel.shape[0])
    is_known = type(layer).__module__.split(".")[0] in ("keras", "edgedl")  # ours are Keras's on integer grids
    if is_known and name in PRODUCTS:
        return PRODUCTS[name](layer, inputs, output)
    if is_known and hasattr(layer, "layer"):  # SpectralNormalization, which changes its layer in training alone
        return _count(layer.layer, inputs, output)
    if "Conv" in name and is_known:
        return _convolution(layer, inputs[0], output)
    if not is_known and getattr(layer, "weights", None):
        raise UnknownSizeError
    return 0


def _positions(layer: Any, shape: list[int]) -> int:
    return _product(shape[1:] if layer.data_format == "channels_first" else shape[:-1])


def _convolution(layer: Any, source: list[int], output: list[int]) -> int:
    name = type(layer).__name__
    if not hasattr(layer, "weights"):  # an op: its kernel is an operand
        raise UnknownSizeError
    if name.endswith("Transpose"):
        return _positions(layer, source) * _size(layer.kernel)
    if name.startswith("Separable"):
        kernels = _size(layer.depthwise_kernel) + _size(layer.pointwise_kernel)
        return _positions(layer, output) * kernels
    return _positions(layer, output) * _size(layer.kernel)  # (3, 3, in / groups, out); depthwise (3, 3, in, 1)


def _recurrent(layer: Any, source: list[int], output: list[int]) -> int:
    cells = getattr(layer.cell, "cells", [layer.cell])
    kernels = [getattr(c, k, None) for c in cells for k in ("kernel", "recurrent_kernel")]
    if any(k is None for k in kernels):
        raise UnknownSizeError
    rank = getattr(layer.cell, "rank", 0)  # of a ConvLSTM: (steps, 8, 8, channels), rank 2
    positions = _positions(layer.cell, output[-rank - 1 :]) if rank else 1
    return _product(source[:1]) * positions * sum(_size(k) for k in kernels if k is not None)


def _einsum_dense(layer: Any, output: list[int]) -> int:
    letters, result = layer.equation.split(",")[1].split("->")
    summed = [int(n) for letter, n in zip(letters, layer.kernel.shape, strict=True) if letter not in result]
    return int(_product(output) * prod(summed))  # abc,cde->abde, c summed


def _matmul(layer: Any, inputs: list[list[int]], output: list[int]) -> int:
    if len(inputs) < 2 or type(layer).__name__ == "Tensordot":  # a constant's axes, or any
        raise UnknownSizeError
    axes = getattr(layer, "axes", -1)  # of the layer Dot, the batch counted; the ops sum the last axis
    axis = axes if isinstance(axes, int) else axes[0]
    return _product(output) * _product(inputs[0][axis - (axis > 0) :][:1])


def _einsum(layer: Any, inputs: list[list[int]], _: list[int]) -> int:
    terms = layer.subscripts.replace(" ", "").split("->")[0].split(",")
    if len(terms) != len(inputs) or "." in layer.subscripts:
        raise UnknownSizeError
    sizes: dict[str, int] = {}
    for letters, shape in zip(terms, inputs, strict=True):
        sizes |= zip(letters[1:], shape, strict=True)  # bij,bkj->bik: i x k x j
    return _product(list(sizes.values())) if len(terms) > 1 else 0


def _weighted_sum(_: Any, inputs: list[list[int]], output: list[int]) -> int:
    query, value = inputs[:2]  # (queries, size), (values, size): scores, then the sums of values
    return _product(value[:1]) * (_product(query) + _product(output))


PRODUCTS: dict[str, Callable[[Any, list[list[int]], list[int]], int]]
PRODUCTS = {"Matmul": _matmul, "Dot": _matmul, "Inner": _matmul, "Tensordot": _matmul, "Einsum": _einsum}
PRODUCTS |= dict.fromkeys(("Attention", "AdditiveAttention", "DotProductAttention"), _weighted_sum)


def _attention(layer: Any, inputs: list[list[int]]) -> int:
    query, value = _product(inputs[0][:-1]), _product(inputs[min(1, len(inputs) - 1)][:-1])
    weights = {w.path.split("/")[-2]: _size(w) for w in layer.weights if w.name == "kernel"}
    steps = {"query": query, "key": value, "value": value, "gate": query, "attention_output": query}
    grouped = hasattr(layer, "head_dim")
    heads, key_size = (layer.num_query_heads, layer.head_dim) if grouped else (layer.num_heads, layer.key_dim)
    value_size = getattr(layer, "value_dim", None) or key_size
    projections = sum(steps[k] * n for k, n in weights.items() if k in steps)
    return projections + query * value * int(heads * (key_size + value_size))


def table(model: Any) -> list[dict[str, Any]]:
    """One row a call of a graph model: name, class, output shape, parameters, macs; a nested model is one row.

    A layer that is called again has its parameters in its first row.
    """
    return _rows(model, {})


def _rows(model: Any, shapes: Mapping[int, Shape]) -> list[dict[str, Any]]:
    """The table, a tensor's shape the one under its id in `shapes`, where there is one."""
    calls: dict[int, list[Any]] = {}
    for node in graph_nodes(model):
        calls.setdefault(id(node.operation), []).append(node)
    rows: list[dict[str, Any]] = []
    for operation in graph_operations(model):
        for i, node in enumerate(calls.get(id(operation), [])):
            inputs, outputs = ([shapes.get(id(t), t.shape) for t in ts] for ts in (node.input_tensors, node.outputs))
            row = {"name": operation.name, "class": type(operation).__name__, "output_shape": list(outputs[0])}
            row["parameters"] = 0 if i else _parameters(operation)
            row["macs"] = layer_macs(operation, inputs, outputs[0])
            rows.append(row)
    return rows


def _shapes(model: Any, inputs: Sequence[Shape]) -> dict[int, Shape]:
    """The shapes in a nested model on these inputs, by the tensor's id. Raises UnknownSizeError where it refuses them.

    # declared (None, None, None, 3), called on (None, 32, 32, 3)
    """
    import keras

    if [tuple(t.shape) for t in model.inputs] == [tuple(shape) for shape in inputs]:
        return {}
    given = zip(model.inputs, inputs, strict=True)
    found = {id(t): keras.KerasTensor(shape, t.dtype) for t, shape in given}
    try:
        for node in graph_nodes(model):
            args, kwargs = node.arguments.fill_in(found)
            made = keras.tree.flatten(node.operation.compute_output_spec(*args, **kwargs))
            found |= zip([id(t) for t in node.outputs], made, strict=True)
    except Exception as e:  # the user's own layer may raise anything
        raise UnknownSizeError from e
    return {i: tuple(t.shape) for i, t in found.items()}


def _parameters(operation: Any) -> int:
    return sum(_size(w) for w in getattr(operation, "weights", ()))
