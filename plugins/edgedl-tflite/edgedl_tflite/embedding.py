"""Preprocessing inside the model: the affine step of an input, in the graph or in the input's scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl.errors import InputError, UnsupportedError
from edgedl.types import Scheme
from edgedl_tflite import flatbuffer

RAW_DTYPES = ("uint8", "int8", "int16", "int32", "float32")
BYTES = {"uint8": (0, 255), "int8": (-128, 127)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Affine:
    """raw * factor + offset in float32; one value, or one a channel (the last axis)."""

    factor: NDArray[np.float32]
    offset: NDArray[np.float32]
    dtype: str

    def apply(self, raw: Any) -> Any:
        """The model's own input from raw values, numpy or TensorFlow, in float32."""
        return raw * self.factor + self.offset

    @property
    def quantization(self) -> tuple[float, int] | None:
        """(scale, zero point) of raw bytes taken as a quantized tensor, where the step is exactly that.

        x = factor * (raw - zero_point), so zero_point = -offset / factor, a whole number in the range of the dtype.
        """
        factor, offset = np.unique(self.factor), np.unique(self.offset)
        if self.dtype not in BYTES or len(factor) != 1 or len(offset) != 1 or factor[0] <= 0:
            return None
        exact = -float(offset[0]) / float(factor[0])
        low, high = BYTES[self.dtype]
        near = abs(exact - round(exact)) < 1e-4
        return (float(factor[0]), round(exact)) if near and low <= round(exact) <= high else None


def parse(entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[int, Affine]:
    """The affine steps by place of the input. Raises InputError, UnsupportedError."""
    found = {}
    for entry in entries:
        if entry.get("op") != "affine":
            message = f"only folded `affine` steps can be embedded in a .tflite file, got {entry.get('op')!r}"
            raise UnsupportedError(message)
        if entry["input"] not in names:
            message = f"embedded preprocessing names input {entry['input']!r}; the model has {', '.join(names)}"
            raise InputError(message)
        if entry["dtype"] not in RAW_DTYPES:
            message = (
                f"input {entry['input']!r}: raw values of type {entry['dtype']} cannot go into a .tflite file; "
                f"allowed: {', '.join(RAW_DTYPES)}"
            )
            raise UnsupportedError(message)
        found[names.index(entry["input"])] = Affine(
            factor=np.atleast_1d(np.asarray(entry["factor"], np.float32)),
            offset=np.atleast_1d(np.asarray(entry["offset"], np.float32)),
            dtype=entry["dtype"],
        )
    return found


def in_scale(affine: Affine, scheme: Scheme) -> bool:
    """Whether the step disappears into the input's scale."""
    return scheme is Scheme.STATIC_WI8_AI8 and affine.quantization is not None


def finish(model: Any, affines: Mapping[int, Affine], scheme: Scheme, io: str) -> list[str]:
    """Make the inputs of a converted `model` (float so far) take raw values; the others take `io`. Returns notes."""
    notes = []
    for i, entry in enumerate(model.signatureDefs[0].inputs):
        affine, name = affines.get(i), flatbuffer.text(entry.name)
        if affine is None:
            if io != "float" and model.subgraphs[0].tensors[entry.tensorIndex].type == 0:
                _retype(model, i, io, None)
        elif scheme is Scheme.STATIC_WI8_AI8 and affine.dtype in BYTES:
            folded = affine.quantization
            _retype(model, i, affine.dtype, folded or (1.0, 0))
            where = "in the input's scale" if folded else "in the graph, quantized: it is not one scale and zero point"
            notes.append(f"input {name!r} takes raw {affine.dtype} values; the preprocessing is {where}")
        else:
            if affine.dtype != "float32":
                _prepend_cast(model, i, affine.dtype)
            notes.append(f"input {name!r} takes raw {affine.dtype} values; the preprocessing is in the graph, in float")
    return notes


def _retype(model: Any, place: int, dtype: str, quantization: tuple[float, int] | None) -> None:
    """Turn float input `place` into a quantized one; QUANTIZE behind it then changes one scale to another.

    Without `quantization` it takes that of the tensor behind.
    """
    generated = flatbuffer.schema()
    graph, entry = model.subgraphs[0], model.signatureDefs[0].inputs[place]
    users = [op for op in graph.operators if entry.tensorIndex in op.inputs]
    tensor = graph.tensors[entry.tensorIndex]
    if any(flatbuffer.op_name(model, op) != "QUANTIZE" for op in users):
        names = ", ".join(sorted({flatbuffer.op_name(model, op) for op in users}))
        message = f"input {flatbuffer.text(entry.name)!r} cannot be {dtype}: {names} takes it in float32"
        raise UnsupportedError(message)
    if quantization is None and users:
        inner = graph.tensors[users[0].outputs[0]].quantization
        shift = 128 if dtype == "uint8" else 0
        quantization = (float(inner.scale[0]), int(inner.zeroPoint[0]) + shift)
    scale, zero_point = quantization or (1.0, 0)
    tensor.type = getattr(generated.TensorType, dtype.upper())
    tensor.quantization = generated.QuantizationParametersT(
        scale=np.array([scale], np.float32), zeroPoint=np.array([zero_point], np.int64)
    )


def _prepend_cast(model: Any, place: int, dtype: str) -> None:
    generated = flatbuffer.schema()
    graph, entry = model.subgraphs[0], model.signatureDefs[0].inputs[place]
    inner = graph.tensors[entry.tensorIndex]
    kind = getattr(generated.TensorType, dtype.upper())
    graph.tensors.append(generated.TensorT(name=entry.name, shape=inner.shape, type=kind, buffer=0, hasRank=True))
    inner.name = f"{flatbuffer.text(entry.name)}_float"
    raw = len(graph.tensors) - 1
    cast = generated.OperatorT(
        opcodeIndex=flatbuffer.add_operator_code(model, "CAST", 1),
        inputs=np.array([raw], np.int32),
        outputs=np.array([entry.tensorIndex], np.int32),
        builtinOptionsType=generated.BuiltinOptions.CastOptions,
        builtinOptions=generated.CastOptionsT(inDataType=kind, outDataType=inner.type),
    )
    graph.operators = [cast, *graph.operators]
    graph.inputs = np.array([raw if i == entry.tensorIndex else i for i in graph.inputs], np.int32)
    entry.tensorIndex = raw
