"""A model as a table of operators: read from a CSV, or from what a plugin says is in a file."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedl.errors import InputError
from edgedl.types import ArtifactInfo, OpInfo

Shape = tuple[int, ...]
WEIGHTED = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 4, "FULLY_CONNECTED": 2}  # and the rank of their weights
COLUMNS = ("model", "op", "dtype", "in_shape", "weight_shape", "out_shape", "stride", "macs")


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator. Shapes as TFLite has them, weights (out, height, width, in); () where there is none."""

    op: str
    dtype: str  # of its output
    inputs: Shape  # of its first input
    weights: Shape
    outputs: Shape
    stride: Shape
    macs: int


def read_table(path: Path) -> dict[str, tuple[Operator, ...]]:
    """The operators of each model in a CSV with COLUMNS, shapes as `1x96x96x3`. Raises InputError with the line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        message = f"{path}: cannot be read as a table of operators ({getattr(e, 'strerror', None) or e})"
        raise InputError(message) from e
    rows = csv.DictReader(text.splitlines())
    missing = [c for c in COLUMNS if c not in (rows.fieldnames or ())]
    if missing:
        message = f"{path}: no column {missing[0]!r}; a table of operators has {', '.join(COLUMNS)}"
        raise InputError(message)
    tables: dict[str, list[Operator]] = {}
    for row in rows:
        tables.setdefault(row["model"], []).append(_operator(row, f"{path}:{rows.line_num}"))
    if not tables:
        message = f"{path}: holds no operators"
        raise InputError(message)
    return {model: tuple(operators) for model, operators in tables.items()}


def _operator(row: Mapping[Any, Any], where: str) -> Operator:
    if None in row.values() or None in row:
        has = sum(v is not None for k, v in row.items() if k) + len(row.get(None, ()))
        message = f"{where}: a row has {has} columns, the first line {len(row) - (None in row)}"
        raise InputError(message)
    if empty := [c for c in ("model", "op", "dtype") if not row[c]]:
        message = f"{where}: a row needs model, op and dtype; {empty[0]} is empty"
        raise InputError(message)
    shapes = {c: _shape(row[c], f"{where}: {c}") for c in ("in_shape", "weight_shape", "out_shape", "stride")}
    rank = WEIGHTED.get(row["op"])
    if rank and len(shapes["weight_shape"]) != rank:
        message = f"{where}: weight_shape of {row['op']} must have {rank} sizes, got {row['weight_shape']!r}"
        raise InputError(message)
    if rank and (empty := [c for c in ("in_shape", "out_shape") if not shapes[c]]):
        message = f"{where}: {empty[0]} of {row['op']} must be sizes such as 1x96x96x3, got ''"
        raise InputError(message)
    macs = row["macs"].strip()
    if not (macs or "0").isdecimal():
        message = f"{where}: macs must be a whole number, got {row['macs']!r}"
        raise InputError(message)
    inputs, weights, outputs = shapes["in_shape"], shapes["weight_shape"], shapes["out_shape"]
    return Operator(
        op=row["op"],
        dtype=row["dtype"],
        inputs=inputs,
        weights=weights,
        outputs=outputs,
        stride=shapes["stride"],
        macs=int(macs) if macs else count_macs(row["op"], inputs, weights, outputs),
    )


def _shape(text: str, where: str) -> Shape:
    try:
        shape = tuple(int(size) for size in text.split("x")) if text else ()
    except ValueError:
        shape = (-1,)
    if any(size < 0 for size in shape):
        message = f"{where} must be sizes such as 1x96x96x3, got {text!r}"
        raise InputError(message)
    return shape


def from_info(info: ArtifactInfo) -> tuple[Operator, ...]:
    """The operators of a file that a plugin has described with shapes. Raises InputError where it states none."""
    if not any(op.out_shape for op in info.ops):
        message = f"a prediction needs the shapes of operators, which the plugin for {info.format} does not state"
        raise InputError(message)
    return tuple(_from_op(op) for op in info.ops)


def _from_op(op: OpInfo) -> Operator:
    return Operator(
        op=op.name.partition(":")[0],
        dtype=op.dtype,
        inputs=op.in_shape,
        weights=op.weight_shape,
        outputs=op.out_shape,
        stride=op.stride,
        macs=count_macs(op.name, op.in_shape, op.weight_shape, op.out_shape),
    )


def count_macs(op: str, inputs: Shape, weights: Shape, outputs: Shape) -> int:
    """Multiply-accumulates of one inference; 0 where an operator has no weights.

    CONV_2D: outputs (1, h, w, out) of weights (out, kh, kw, in) take h w out kh kw in.
    """
    if not weights:
        return 0
    if op == "DEPTHWISE_CONV_2D":
        return math.prod(outputs) * math.prod(weights[1:3])
    if op == "TRANSPOSE_CONV":
        return math.prod(inputs[:-1]) * math.prod(weights)
    if op in ("CONV_2D", "CONV_3D", "FULLY_CONNECTED"):
        return math.prod(outputs) * math.prod(weights) // max(1, weights[0])
    return math.prod(weights)


def precision(operators: Iterable[Operator]) -> str:
    """The type in which most multiply-accumulates are done, or most operators where there are none."""
    counts: dict[str, list[int]] = {}
    for op in operators:
        count = counts.setdefault(op.dtype, [0, 0])
        count[0] += op.macs
        count[1] += 1
    return max(counts, key=lambda dtype: counts[dtype])
