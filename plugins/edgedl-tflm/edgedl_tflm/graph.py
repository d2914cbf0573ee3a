"""The flatbuffer as tflite-micro's own schema reads it: tensors, operators, signatures."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

STATEFUL = ("SEQUENCE", "SVDF", "VARIABLE", "VAR_HANDLE", "CALL_ONCE")


@cache
def schema() -> Any:
    """The generated schema module of tflite-micro."""
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated

    return schema_py_generated


@cache
def _names(enum: str) -> dict[int, str]:
    return {value: name for name, value in vars(getattr(schema(), enum)).items() if not name.startswith("_")}


def read(content: bytes) -> Any:
    """The model as a `ModelT`. The file is trusted to be whole: edgedl has described it before."""
    return schema().ModelT.InitFromObj(schema().Model.GetRootAsModel(content, 0))


def op_name(model: Any, op: Any) -> str:
    """CONV_2D, or the name of a custom op."""
    code = model.operatorCodes[op.opcodeIndex]
    if code.customCode:
        return text(code.customCode)
    number = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
    return _names("BuiltinOperator").get(number, f"UNKNOWN_{number}")


def dtype(tensor: Any) -> str:
    """int8, float32, ..."""
    return _names("TensorType").get(tensor.type, "unknown").lower()


def text(name: bytes | str | None) -> str:
    """A name as str."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""


def shape(tensor: Any) -> tuple[int, ...]:
    """The shape, () for a scalar."""
    return tuple(int(n) for n in tensor.shape) if tensor.shape is not None else ()


def size_bytes(tensor: Any) -> int:
    """What the values of a tensor take."""
    width = {"bool": 1, "int4": 0.5}.get(dtype(tensor))
    if width is None:
        width = np.dtype(dtype(tensor)).itemsize
    return int(np.ceil(np.prod(shape(tensor), dtype=np.int64) * width))


def is_constant(model: Any, tensor: Any) -> bool:
    """Whether the file holds the values."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def is_stateful(model: Any) -> bool:
    """Whether an inference leaves something for the next."""
    ops = (op_name(model, op) for graph in model.subgraphs for op in graph.operators or [])
    return any(word in name for name in ops for word in STATEFUL)


def ends(model: Any) -> tuple[dict[str, int], dict[str, int]]:
    """The places of inputs and outputs in the first subgraph's lists, by signature name, else by tensor name."""
    graph = model.subgraphs[0]
    sides = []
    for side in ("inputs", "outputs"):
        places = [int(i) for i in getattr(graph, side)]
        if model.signatureDefs:
            maps = getattr(model.signatureDefs[0], side)
            sides.append({text(m.name): places.index(m.tensorIndex) for m in maps})
        else:
            sides.append({text(graph.tensors[i].name) or f"#{i}": at for at, i in enumerate(places)})
    return sides[0], sides[1]
