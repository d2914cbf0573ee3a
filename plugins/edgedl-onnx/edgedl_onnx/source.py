"""The TFLite file that an ONNX file is made from: its signature, operators, weights, and a copy that tf2onnx reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgedl.errors import InputError, UnsupportedError
from edgedl.types import TensorSpec

Array = np.ndarray[Any, Any]
SIGNATURE = "serving_default"
LAYERS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "CONV_3D"})
DTYPES = frozenset({"int8", "int32", "int64", "float16", "float32"})


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is in the file. `content` is a copy in which every tensor has a name of its own, as tf2onnx needs:
    graph inputs and outputs are `input_tensors` and `output_tensors`, in signature order. `weights` are the constants
    that layers multiply with and add, as stored (int64 biases as float32 values), by layer and operand."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_tensors: tuple[str, ...]
    output_tensors: tuple[str, ...]
    ops: Counter[str]
    weight_bytes: dict[str, int]
    weights: dict[str, Array]
    content: bytes


def read(path: Path) -> Source:
    """The TFLite file at `path`. Raises InputError: not a TFLite file, or one without a signature."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = _parse(path, schema)
    signature = _signature(path, model)
    graph = model.subgraphs[signature.subgraphIndex]
    _refuse_shared_names(path, signature)
    for number, each in enumerate(model.subgraphs):
        each.name = f"g{number}"
        for index, tensor in enumerate(each.tensors):
            tensor.name = f"g{number}_t{index}"
    graph.inputs = [t.tensorIndex for t in signature.inputs]
    graph.outputs = [t.tensorIndex for t in signature.outputs]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return Source(
        inputs=tuple(_spec(t, graph, schema) for t in signature.inputs),
        outputs=tuple(_spec(t, graph, schema) for t in signature.outputs),
        input_tensors=tuple(graph.tensors[i].name for i in graph.inputs),
        output_tensors=tuple(graph.tensors[i].name for i in graph.outputs),
        ops=_ops(model, schema),
        weight_bytes=_weight_bytes(model, schema),
        weights=_weights(model, schema),
        content=bytes(builder.Output()),
    )


def _parse(path: Path, schema: Any) -> Any:
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        message = f"{path}: not a TFLite file"
        raise InputError(message)
    try:
        return schema.ModelT.InitFromPackedBuf(data)
    except Exception as e:  # flatbuffers raises whatever a wrong offset leads to
        message = f"{path}: a damaged TFLite file: {type(e).__name__}: {e}"
        raise InputError(message) from e


def _signature(path: Path, model: Any) -> Any:
    found = {s.signatureKey.decode(): s for s in model.signatureDefs or []}
    if SIGNATURE in found:
        return found[SIGNATURE]
    message = f"{path}: no signature {SIGNATURE!r}; found: {', '.join(found) or 'none'}. Export the TFLite file again"
    raise InputError(message)


def _refuse_shared_names(path: Path, signature: Any) -> None:
    shared = {t.name for t in signature.inputs} & {t.name for t in signature.outputs}
    if shared:
        name = min(shared).decode()
        message = f"{path}: {name!r} is an input and an output; ONNX needs two names. Rename one of the layers"
        raise UnsupportedError(message)


def _spec(entry: Any, graph: Any, schema: Any) -> TensorSpec:
    tensor = graph.tensors[entry.tensorIndex]
    shape = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    quantization = tensor.quantization
    scale = quantization.scale if quantization is not None else None
    return TensorSpec(
        name=entry.name.decode(),
        dtype=_dtype(tensor, schema),
        shape=tuple(None if v < 0 else int(v) for v in (shape if shape is not None else ())),
        scale=() if scale is None else tuple(float(v) for v in scale),
        zero_point=() if scale is None else tuple(int(v) for v in quantization.zeroPoint),
    )


def _dtype(tensor: Any, schema: Any) -> str:
    names = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    return str(names[tensor.type]).lower()


def _ops(model: Any, schema: Any) -> Counter[str]:
    operators = [op for graph in model.subgraphs for op in graph.operators or []]
    return Counter(_op_name(op, model, schema) + _fused(op, schema) for op in operators)


def _fused(op: Any, schema: Any) -> str:
    """ "+NAME" for a fused activation that tf2onnx drops."""
    kinds = schema.ActivationFunctionType
    fused = getattr(op.builtinOptions, "fusedActivationFunction", kinds.NONE)
    return {kinds.RELU_N1_TO_1: "+RELU_N1_TO_1", kinds.SIGN_BIT: "+SIGN_BIT"}.get(fused, "")


def _op_name(op: Any, model: Any, schema: Any) -> str:
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    code = model.operatorCodes[op.opcodeIndex]
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    return str(code.customCode.decode() if code.customCode else names.get(builtin, f"builtin {builtin}"))


def _weights(model: Any, schema: Any) -> dict[str, Array]:
    """Constant operands of layers: of the second input on, or of a DEQUANTIZE."""
    found = {}
    for graph in model.subgraphs:
        for number, op in enumerate(graph.operators or []):
            name = _op_name(op, model, schema)
            operands = {"DEQUANTIZE": op.inputs[:1]}.get(name, op.inputs[1:] if name in LAYERS else ())
            for i in (int(i) for i in operands if i >= 0):
                tensor = graph.tensors[i]
                data, dtype = model.buffers[tensor.buffer].data, _dtype(tensor, schema)
                if data is None or not len(data) or dtype not in DTYPES:
                    continue
                values = np.frombuffer(bytes(data), dtype)
                if dtype == "int64":
                    values = (values * np.float64(tensor.quantization.scale)).astype(np.float32)
                found[f"{name} {number}: {dtype}{list(tensor.shape)}"] = values
    return found


def _weight_bytes(model: Any, schema: Any) -> dict[str, int]:
    """Bytes of constant tensors by dtype, a buffer that several share counted once."""
    found: Counter[str] = Counter()
    seen = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is not None and len(data) and tensor.buffer not in seen:
                seen.add(tensor.buffer)
                found[_dtype(tensor, schema)] += len(data)
    return dict(found)
