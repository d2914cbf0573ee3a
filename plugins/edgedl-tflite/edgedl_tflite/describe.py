"""What is in a .tflite file, without TensorFlow: operators, tensors, weights, signatures, metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgedl.errors import InputError
from edgedl.types import ArtifactInfo, OpInfo, TensorSpec, to_json
from edgedl_tflite import flatbuffer, metadata

IDENTIFIER = b"TFL3"  # at byte 4
WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "CONV_3D", "SVDF")
UNRESOLVED = ("unresolved custom op", "Select TensorFlow op", "regular TensorFlow ops")


def describe(path: str) -> ArtifactInfo:
    """The contents of the file. `metadata` has the keys description, signatures, custom_ops, float_ops, entries,
    output_steps (see `_output_steps`) and, where the file carries TFLITE_METADATA, name, inputs, outputs, labels.

    Raises InputError for a damaged file.
    """
    data = _whole(Path(path))
    model = flatbuffer.read(data)
    try:
        inputs, outputs = _ends(model)
        ops = _operators(model)
        found = _metadata(path, data, model)
    except IndexError as e:
        raise _damaged(Path(path), "an index points at nothing") from e
    return ArtifactInfo(
        format="tflite",
        inputs=inputs,
        outputs=outputs,
        ops=ops,
        weight_bytes=flatbuffer.weight_bytes(model),
        metadata=found,
    )


def _whole(path: Path) -> bytes:
    """The bytes of a file that litert can open. Its verifier checks every offset before anything here follows one."""
    try:
        data = path.read_bytes()
    except OSError as e:
        message = f"{path}: cannot be read ({e.strerror})"
        raise InputError(message) from e
    if data[4:8] != IDENTIFIER:
        found = "an empty file" if not data else f"a file that starts with {data[:8]!r}"
        message = f"{path}: no TFLite model: {found}, where bytes 4 to 8 must be {IDENTIFIER.decode()}"
        raise InputError(message)
    from ai_edge_litert.interpreter import Interpreter

    interpreter = None
    try:
        interpreter = Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError, TypeError) as e:
        unresolved = any(phrase in str(e) for phrase in UNRESOLVED)
        if not unresolved and (interpreter is None or not _has_free_sizes(data)):
            raise _damaged(path, f"litert says {' '.join(str(e).split())[:200]!r}") from e
    return data


def _has_free_sizes(data: bytes) -> bool:
    """Whether sizes are free: litert takes them for 1, which a 3x3 convolution refuses although the file is sound."""
    tensors = (t for graph in flatbuffer.read(data).subgraphs for t in graph.tensors)
    return any(t.shapeSignature is not None and np.any(np.asarray(t.shapeSignature) < 0) for t in tensors)


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: damaged or truncated TFLite model: {why}. Export or copy it again")


def _ends(model: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs by signature name, else by tensor name."""
    graph, sides = _sides(model)
    inputs, outputs = (tuple(_tensor(name, graph.tensors[i]) for name, i in side) for side in sides)
    return inputs, outputs


def _sides(model: Any) -> tuple[Any, list[list[tuple[str, int]]]]:
    """The graph that is run, and (name, tensor index) of its inputs and of its outputs."""
    graph = model.subgraphs[0]
    if model.signatureDefs:
        first = model.signatureDefs[0]
        graph = model.subgraphs[first.subgraphIndex]
        return graph, [
            [(flatbuffer.text(m.name), m.tensorIndex) for m in side] for side in (first.inputs, first.outputs)
        ]
    names = flatbuffer.names(model, graph)
    return graph, [[(names[i], i) for i in side] for side in (graph.inputs, graph.outputs)]


def _output_steps(model: Any) -> dict[str, Any]:
    """Outputs that are float in the file and integers within: their dtype, scale and zero point before DEQUANTIZE."""
    graph, (_, outputs) = _sides(model)
    within = {
        int(op.outputs[0]): graph.tensors[int(op.inputs[0])]
        for op in graph.operators or []
        if flatbuffer.op_name(model, op) == "DEQUANTIZE"
    }
    specs = {name: _tensor(name, within[i]) for name, i in outputs if i in within}
    return {
        name: {"dtype": spec.dtype, "scale": spec.scale, "zero_point": spec.zero_point}
        for name, spec in specs.items()
        if len(spec.scale) == 1
    }


def _tensor(name: str, tensor: Any) -> TensorSpec:
    free = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    shape = () if free is None else tuple(int(n) if n >= 0 else None for n in free)
    quantization = tensor.quantization
    scale = () if quantization is None or quantization.scale is None else np.asarray(quantization.scale).tolist()
    zero = () if quantization is None or quantization.zeroPoint is None else np.asarray(quantization.zeroPoint).tolist()
    return TensorSpec(
        name=name,
        dtype=flatbuffer.dtype_name(tensor.type),
        shape=shape,
        scale=tuple(scale),
        zero_point=tuple(zero),
        axis=int(quantization.quantizedDimension) if len(scale) > 1 else None,
    )


def _operators(model: Any) -> tuple[OpInfo, ...]:
    names = {id(graph): flatbuffer.names(model, graph) for graph in model.subgraphs}
    return tuple(_operator(model, i, g, names[id(g)], op) for i, (g, op) in enumerate(flatbuffer.operators(model)))


def _operator(model: Any, index: int, graph: Any, names: list[str], op: Any) -> OpInfo:
    inputs, outputs = (
        tuple(names[i] for i in (side if side is not None else ()) if i >= 0) for side in (op.inputs, op.outputs)
    )
    version = int(model.operatorCodes[op.opcodeIndex].version)
    work = _work(model, graph, op)
    return OpInfo(
        index=index, name=flatbuffer.op_name(model, op), version=version, inputs=inputs, outputs=outputs, **work
    )


def _work(model: Any, graph: Any, op: Any) -> dict[str, Any]:
    """The shapes that say how much an operator has to do."""
    inside = [graph.tensors[i] for i in (op.inputs if op.inputs is not None else ()) if i >= 0]
    outside = [graph.tensors[i] for i in (op.outputs if op.outputs is not None else ()) if i >= 0]
    computed = [t for t in inside if flatbuffer.constant(model, t) is None]
    weights = [t for t in inside if len(_sizes(t)) > 1 and flatbuffer.constant(model, t) is not None]
    options = op.builtinOptions
    strides = [getattr(options, name, None) for name in ("strideH", "strideW")]
    return {
        "dtype": flatbuffer.dtype_name(outside[0].type) if outside else "",
        "in_shape": _sizes(computed[0]) if computed else (),
        "weight_shape": _sizes(weights[0]) if weights and flatbuffer.op_name(model, op) in WEIGHTED else (),
        "out_shape": _sizes(outside[0]) if outside else (),
        "stride": tuple(int(s) for s in strides if s is not None),
    }


def _sizes(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(n) for n in tensor.shape)


def _metadata(path: str, data: bytes, model: Any) -> dict[str, Any]:
    custom = {flatbuffer.text(code.customCode) for code in model.operatorCodes if code.customCode}
    entries = {flatbuffer.text(m.name): model.buffers[m.buffer].data for m in model.metadata or []}
    found: dict[str, Any] = {
        "description": flatbuffer.text(model.description),
        "signatures": [flatbuffer.text(s.signatureKey) for s in model.signatureDefs or []],
        "custom_ops": sorted(custom),
        "float_ops": flatbuffer.float_ops(model),
        "entries": sorted(entries),
        "output_steps": _output_steps(model),
    }
    if entries.get(metadata.ENTRY) is None:
        return found
    try:
        said = metadata.parse(bytes(entries[metadata.ENTRY]))
    except ValueError as e:
        message = f"{path}: damaged {metadata.ENTRY}: {e}"
        raise InputError(message) from e
    file = next((t.labels for t in said.outputs if t.labels), said.labels)
    labels = metadata.read_labels(data, file) if file else ()
    return {**found, **to_json(said), "labels": list(labels)}
