"""TFLite flatbuffers as objects: read, look through, rename, write. Needs ai-edge-litert, no TensorFlow.

A model here is a `ModelT` of `ai_edge_litert.schema_py_generated`, the field names are those of TFLite's schema.fbs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

SIGNATURE = "serving_default"
ALIGNMENT = 16  # bytes; schema.fbs: `data:[ubyte] (force_align: 16)`, which the generated Python packer leaves out
BRIDGES = ("QUANTIZE", "DEQUANTIZE")


@cache
def schema() -> Any:
    """The generated schema module; importing it takes 0.2 s."""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


@cache
def _names(enum: str) -> dict[int, str]:
    return {value: name for name, value in vars(getattr(schema(), enum)).items() if not name.startswith("_")}


def read(data: bytes) -> Any:
    """The model in `data`. It is trusted to be a whole flatbuffer: check a user's file with litert first."""
    generated = schema()
    return generated.ModelT.InitFromObj(generated.Model.GetRootAsModel(data, 0))


def write(model: Any, *, sharing: bool = False) -> bytes:
    """The file of `model`, every constant on a 16-byte boundary; with `sharing`, what is equal is in it once."""
    import flatbuffers

    from edgedl_tflite.packing import SharingBuilder

    content = sum(len(b.data) for b in model.buffers if b.data is not None)
    builder = (SharingBuilder if sharing else flatbuffers.Builder)(content + 65_536)
    model.buffers = [_aligned_buffer()(data=b.data) for b in model.buffers]
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@cache
def _aligned_buffer() -> Any:
    generated = schema()

    class AlignedBuffer(generated.BufferT):  # type: ignore[misc, name-defined]
        def Pack(self, builder: Any) -> Any:  # noqa: N802
            place = None
            if self.data is not None and len(self.data):
                content = bytes(np.asarray(self.data, np.uint8))
                builder.StartVector(1, len(content), ALIGNMENT)
                builder.head -= len(content)
                builder.Bytes[builder.head : builder.head + len(content)] = content
                place = builder.EndVector()
            generated.BufferStart(builder)
            if place is not None:
                generated.BufferAddData(builder, place)
            return generated.BufferEnd(builder)

    return AlignedBuffer


# ---- looking ------------------------------------------------------------------------------------------------------


def text(name: bytes | str | None) -> str:
    """A name as the flatbuffer holds it, as str."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""


def names(model: Any, graph: Any) -> list[str]:
    """The names of a subgraph's tensors; where there is none, `#12` or, in subgraph 3, `#3.12`: its place."""
    number = next(i for i, g in enumerate(model.subgraphs) if g is graph)
    prefix = f"#{number}." if number else "#"
    return [text(t.name) or f"{prefix}{i}" for i, t in enumerate(graph.tensors)]


def op_code(model: Any, op: Any) -> int:
    """The operator's `BuiltinOperator`; files older than TF 2.4 keep it in a byte of its own."""
    code = model.operatorCodes[op.opcodeIndex]
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def op_name(model: Any, op: Any) -> str:
    """CONV_2D; CUSTOM:name for a custom op; a SELECT_TF op is a custom op whose name starts with Flex."""
    name = _names("BuiltinOperator").get(op_code(model, op), f"UNKNOWN_{op_code(model, op)}")
    custom = model.operatorCodes[op.opcodeIndex].customCode
    return f"{name}:{text(custom)}" if custom else name


def dtype_name(tensor_type: int) -> str:
    """float32, int8, ... of a `TensorType`."""
    return _names("TensorType").get(tensor_type, f"unknown_{tensor_type}").lower()


def operators(model: Any) -> Iterator[tuple[Any, Any]]:
    """(subgraph, operator) in order of execution."""
    for graph in model.subgraphs:
        for op in graph.operators or []:
            yield graph, op


def operands(op: Any) -> list[int]:
    """The tensor indices of an operator, optional ones that are absent left out."""
    return [int(i) for part in (op.inputs, op.outputs) if part is not None for i in part if i >= 0]


def constant(model: Any, tensor: Any) -> Any:
    """The bytes of a constant tensor as a uint8 array, or None."""
    data = model.buffers[tensor.buffer].data
    return data if data is not None and len(data) else None


def weight_bytes(model: Any) -> dict[str, int]:
    """Bytes of constants by dtype; a buffer that several tensors share counts once."""
    counted: dict[int, tuple[str, int]] = {}
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = constant(model, tensor)
            if data is not None:
                counted[tensor.buffer] = (dtype_name(tensor.type), len(data))
    found: Counter[str] = Counter()
    for dtype, size in counted.values():
        found[dtype] += size
    return dict(found)


def float_ops(model: Any) -> dict[str, int]:
    """How many operators of each name compute on float32; those that quantize and dequantize are not among them."""
    found: Counter[str] = Counter()
    for graph, op in operators(model):
        name = op_name(model, op)
        if name not in BRIDGES and any(dtype_name(graph.tensors[i].type) == "float32" for i in operands(op)):
            found[name] += 1
    return dict(found)


# ---- changing -----------------------------------------------------------------------------------------------------


def name_signature(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Make one signature `serving_default` with these names in this order, and name the tensors alike.

    The signature must map `input_<i>` and `output_<i>`, i being the place in `inputs` and `outputs`.
    """
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    for prefix, names, maps, side in (
        ("input", inputs, signature.inputs, "inputs"),
        ("output", outputs, signature.outputs, "outputs"),
    ):
        place = {text(m.name): m for m in maps}
        ordered = [place[f"{prefix}_{i}"] for i in range(len(names))]
        for name, entry in zip(names, ordered, strict=True):
            entry.name = name
            graph.tensors[entry.tensorIndex].name = name
        setattr(signature, side, ordered)
        setattr(graph, side, np.array([m.tensorIndex for m in ordered], np.int32))
    signature.signatureKey = SIGNATURE
    model.signatureDefs = [signature]


def add_buffer(model: Any, data: bytes) -> int:
    """The index of a new buffer that holds `data`."""
    model.buffers.append(schema().BufferT(data=np.frombuffer(data, np.uint8)))
    return len(model.buffers) - 1


def add_operator_code(model: Any, name: str, version: int) -> int:
    """The index of the operator code of builtin `name` at `version`, added where it is not there."""
    generated = schema()
    builtin = getattr(generated.BuiltinOperator, name)
    for i, code in enumerate(model.operatorCodes):
        if code.builtinCode == builtin and code.version == version:
            return i
    code = generated.OperatorCodeT(builtinCode=builtin, deprecatedBuiltinCode=min(builtin, 127), version=version)
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
