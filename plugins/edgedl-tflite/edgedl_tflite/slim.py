"""What no runtime reads, out of a TFLite model, and equal things made one. Outputs stay the same, bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from edgedl_tflite import flatbuffer

# Of the converter, for people: read by no kernel and no delegate. Others are: TFLITE_METADATA by apps,
# reduced_precision_support by delegates, OfflineMemoryAllocation by microcontrollers.
NEEDLESS_METADATA = ("CONVERSION_METADATA", "min_runtime_version")


def slim(model: Any) -> dict[str, str]:
    """Drop what only people read: tensor names but those of inputs and outputs, descriptions, ranges beside scales.

    Returns the names by what stands for them: `#12`, see `flatbuffer.names`. Zero points stay although those of weights
    are all zero: litert, tflite-runtime and TFLM refuse a scale without as many of them.
    """
    model.description = None
    model.metadata = [m for m in model.metadata or [] if flatbuffer.text(m.name) not in NEEDLESS_METADATA] or None
    for graph in model.subgraphs:
        graph.name = None
        for tensor in graph.tensors:
            _drop_ranges(tensor)
    merge(model)
    _order_buffers(model)
    before = [flatbuffer.names(model, graph) for graph in model.subgraphs]
    for graph in model.subgraphs:
        first = graph is model.subgraphs[0]
        shown = _in_signatures(model, graph) | (_indices(graph.inputs, graph.outputs) if first else set())
        for i, tensor in enumerate(graph.tensors):
            if i not in shown:
                tensor.name = None
    after = [flatbuffer.names(model, graph) for graph in model.subgraphs]
    return {n: o for old, new in zip(before, after, strict=True) for o, n in zip(old, new, strict=True) if o != n}


def _drop_ranges(tensor: Any) -> None:
    quantization = tensor.quantization
    if quantization is not None:
        quantization.min = quantization.max = None
        if quantization.scale is None and quantization.details is None:
            tensor.quantization = None


def _in_signatures(model: Any, graph: Any) -> set[int]:
    return {
        int(entry.tensorIndex)
        for signature in model.signatureDefs or []
        if model.subgraphs[signature.subgraphIndex] is graph
        for entry in [*signature.inputs, *signature.outputs]
    }


def _order_buffers(model: Any) -> None:
    """Sort the constants by type and size: zlib codes like numbers better when they are neighbours."""
    types = {t.buffer: int(t.type) for g in model.subgraphs for t in g.tensors}
    sizes = [0 if b.data is None else len(b.data) for b in model.buffers]
    _keep_buffers(model, [0, *sorted(range(1, len(sizes)), key=lambda i: (types.get(i, -1), sizes[i]))])


# ---- merging ------------------------------------------------------------------------------------------------------


def merge(model: Any) -> None:
    """Let equal buffers, operator codes and constant tensors of a subgraph be one, and drop what nothing uses.

    An unrolled LSTM repeats its weights at every step.
    """
    first: dict[bytes, int] = {}
    same = {}
    for i, buffer in enumerate(model.buffers):
        content = b"" if buffer.data is None else bytes(buffer.data)
        same[i] = first.setdefault(content, i) if content else 0
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.buffer = same[tensor.buffer]
        _merge_tensors(model, graph)
    for entry in model.metadata or []:
        entry.buffer = same[entry.buffer]
    model.metadataBuffer = None  # deprecated in the schema: buffers that `metadata` names today
    _keep_buffers(model, sorted({0, *(h.buffer for h in _holders(model))}))
    _merge_codes(model)


def _holders(model: Any) -> list[Any]:
    return [*(t for g in model.subgraphs for t in g.tensors), *(model.metadata or [])]


def _keep_buffers(model: Any, order: list[int]) -> None:
    place = {old: new for new, old in enumerate(order)}
    for holder in _holders(model):
        holder.buffer = place[holder.buffer]
    model.buffers = [model.buffers[i] for i in order]


def _merge_codes(model: Any) -> None:
    first: dict[Any, int] = {}
    kept: list[Any] = []
    for _, op in flatbuffer.operators(model):
        code = model.operatorCodes[op.opcodeIndex]
        key = (flatbuffer.op_code(model, op), code.customCode, code.version)
        if key not in first:
            first[key] = len(kept)
            kept.append(code)
        op.opcodeIndex = first[key]
    model.operatorCodes = kept


def _merge_tensors(model: Any, graph: Any) -> None:
    if any(t.quantization is not None and t.quantization.details is not None for t in graph.tensors):
        return  # blockwise scales are tensors that a tensor, not an operator, points at
    ends = _indices(graph.inputs, graph.outputs) | _in_signatures(model, graph)
    seen: dict[Any, int] = {}
    same = {}
    for i, tensor in enumerate(graph.tensors):
        if (
            flatbuffer.constant(model, tensor) is not None
            and tensor.sparsity is None
            and not tensor.isVariable
            and i not in ends
        ):
            same[i] = seen.setdefault(_identity(tensor), i)
    for op in graph.operators or []:
        op.inputs = np.array([same.get(int(i), int(i)) for i in op.inputs], np.int32)
    used = ends | {i for op in graph.operators or [] for i in _indices(op.inputs, op.outputs, op.intermediates)}
    _drop_tensors(model, graph, used)


def _indices(*sides: Iterable[int] | None) -> set[int]:
    return {int(i) for side in sides if side is not None for i in side if i >= 0}


def _drop_tensors(model: Any, graph: Any, used: set[int]) -> None:
    place = {old: new for new, old in enumerate(sorted(used))} | {-1: -1}
    graph.tensors = [graph.tensors[i] for i in sorted(used)]
    graph.inputs, graph.outputs = (
        np.array([place[int(i)] for i in s], np.int32) for s in (graph.inputs, graph.outputs)
    )
    for op in graph.operators or []:
        for part in ("inputs", "outputs", "intermediates"):
            indices = getattr(op, part)
            if indices is not None:
                setattr(op, part, np.array([place[int(i)] for i in indices], np.int32))
    for signature in model.signatureDefs or []:
        if model.subgraphs[signature.subgraphIndex] is graph:
            for entry in [*signature.inputs, *signature.outputs]:
                entry.tensorIndex = place[entry.tensorIndex]


def _identity(tensor: Any) -> tuple[Any, ...]:
    quantization = tensor.quantization
    numbers = (None,) * 2 if quantization is None else (quantization.scale, quantization.zeroPoint)
    shape = () if tensor.shape is None else tuple(int(n) for n in tensor.shape)
    dimension = 0 if quantization is None else int(quantization.quantizedDimension)
    return (
        tensor.buffer,
        int(tensor.type),
        shape,
        dimension,
        *(None if v is None else np.asarray(v).tobytes() for v in numbers),
    )


def shorten_names(model: Any) -> None:
    """Cut the names of fused operators, `a;b;c`, to their first part: they can be most of a file. Names stay unique."""
    for graph in model.subgraphs:
        taken: Counter[str] = Counter()
        for tensor in graph.tensors:
            base = flatbuffer.text(tensor.name).partition(";")[0]
            tensor.name = base
            while tensor.name in taken:
                tensor.name = f"{base}_{taken[base]}"
                taken[base] += 1
            taken[tensor.name] += 1
