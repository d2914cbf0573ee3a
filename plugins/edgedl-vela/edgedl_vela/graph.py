"""The operators of a .tflite file, read with the schema of ai-edge-litert."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from edgedl.errors import InputError


def operators(path: Path) -> list[tuple[str, str]]:
    """(name, first output) of each operator; a custom op goes by its own name. Raises InputError: a damaged file."""
    try:
        return _operators(path.read_bytes())
    except (struct.error, IndexError, TypeError, ValueError, AttributeError) as e:
        message = f"{path}: damaged or truncated TFLite model: {e}"
        raise InputError(message) from e


def _operators(content: bytes) -> list[tuple[str, str]]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    return [
        (_name(model.operatorCodes[op.opcodeIndex], names), _text(graph.tensors[op.outputs[0]].name))
        for graph in model.subgraphs
        for op in graph.operators or []
    ]


def _name(code: Any, names: dict[int, str]) -> str:
    number = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
    return _text(code.customCode) or names.get(number, f"UNKNOWN_{number}")


def _text(name: bytes | str | None) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""
