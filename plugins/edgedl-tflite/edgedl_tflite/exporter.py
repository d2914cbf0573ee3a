"""The exporter `tflite`: Keras to a .tflite file of any scheme. Runs in a child that holds TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import models
from edgedl.errors import InputError, UnsupportedError
from edgedl.types import ExportOptions, ExportResult, Scheme, TensorSpec
from edgedl_tflite import (
    calibration,
    conversion,
    embedding,
    flatbuffer,
    int4,
    metadata,
    recurrent,
    requantization,
    slim,
    verification,
    weight_only,
    widening,
)
from edgedl_tflite.calibration import Samples
from edgedl_tflite.embedding import Affine

if TYPE_CHECKING:
    import keras

SCHEMES = tuple(s.value for s in Scheme)
IO = {Scheme.STATIC_WI8_AI8: ("float", "int8", "uint8"), Scheme.STATIC_WI8_AI16: ("float", "int16")}
VERIFIED_SAMPLES = 4
NAMED = 6  # tensors and ops that a note spells out
NOTED = 64  # elements of a float tensor worth a word


class TFLiteExporter:
    """Writes .tflite files with fixed shapes, one signature, metadata, and canonical names throughout."""

    format = "tflite"
    suffixes = (".tflite",)
    schemes = SCHEMES
    source: tuple[str, str] | None = None

    def export(
        self,
        model: Path,
        out: Path,
        *,
        scheme: str,
        source: Path | None = None,  # noqa: ARG002  this one is made from Keras
        calibration: Path | None = None,
        options: ExportOptions | None = None,
    ) -> ExportResult:
        """Write `out`, checked against Keras on a few samples.

        `calibration` holds one <input>.npy an input, raw values where preprocessing is embedded. Raises InputError for
        data that is missing or does not fit, UnsupportedError for what TFLite cannot hold, EdgedlError: a wrong file.
        """
        options = options or ExportOptions()
        wanted = _check(scheme, options)
        job = _prepare(model, wanted, calibration, options)
        graph, notes = _make(job)
        names = slim.slim(graph) if options.slim else {}
        file = flatbuffer.write(graph, sharing=options.slim)
        notes.append(verification.verify(file, job.model, job.checked, job.affines, wanted))
        out.write_bytes(metadata.append_labels(file, options.labels) if options.labels else file)
        return ExportResult(path=out, notes=tuple(notes), names=names)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """One export: the model with fixed shapes, its tensors, and what it is calibrated and checked on."""

    model: keras.Model
    scheme: Scheme
    options: ExportOptions
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    affines: Mapping[int, Affine]
    samples: Samples | None
    checked: Samples
    carried: bool  # the model has ranges of its own


def _check(scheme: str, options: ExportOptions) -> Scheme:
    wanted = Scheme.parse(scheme)
    for option in ("opset", "layout"):
        if getattr(options, option) is not None:
            message = f"--{option}: a .tflite file has none; leave it out"
            raise InputError(message)
    allowed = IO.get(wanted, ("float",))
    if options.io not in allowed:
        message = f"--io {options.io}: {wanted.value} has {', '.join(allowed)}"
        raise UnsupportedError(message)
    return wanted


def _prepare(path: Path, scheme: Scheme, folder: Path | None, options: ExportOptions) -> _Job:
    loaded = models.load(path, trust=options.trust, custom_objects=options.custom_objects).model
    carried = _carried(loaded, scheme, folder)
    recurrent.refuse_stateful(loaded)
    model = models.with_static_shapes(loaded, options.shapes)
    inputs, _ = models.specs(model)
    _, outputs = models.specs(loaded)
    for spec in inputs:
        if spec.dtype == "string":
            message = f"input {spec.name!r} is text; TFLite has no ops for it. Export the model behind its text layers"
            raise UnsupportedError(message)
    affines = embedding.parse(options.embed_preprocessing, [s.name for s in inputs])
    samples = calibration.read(folder, inputs) if folder is not None and not carried else None
    if samples is not None:
        checked = samples.pick(VERIFIED_SAMPLES)
    else:
        checked = calibration.seeded(model, inputs, affines, options.seed, VERIFIED_SAMPLES)
    return _Job(
        model=model,
        scheme=scheme,
        options=options,
        inputs=inputs,
        outputs=outputs,
        affines=affines,
        samples=samples,
        checked=checked,
        carried=carried,
    )


def _carried(model: keras.Model, scheme: Scheme, folder: Path | None) -> bool:
    """Whether the model brings the scheme with its ranges. Raises UnsupportedError: another; InputError: no data."""
    carried = models.carried_scheme(model)
    if carried is None and scheme.is_static and folder is None:
        message = f"{scheme.value} needs calibration data to set the activation ranges: give --calibration-data DATA"
        raise InputError(message)
    if carried is not None and carried is not scheme:
        message = f"model {model.name!r} was quantized for {carried.value} and cannot be exported as {scheme.value}"
        raise UnsupportedError(message)
    return carried is not None


def _make(job: _Job) -> tuple[Any, list[str]]:
    """The finished model as objects, and notes."""
    scheme, io = job.scheme, job.options.io
    outside = {i: a for i, a in job.affines.items() if embedding.in_scale(a, scheme)}
    inside = {i: a for i, a in job.affines.items() if i not in outside}
    notes: list[str] = []
    wide = job.carried and scheme is Scheme.STATIC_WI8_AI16
    with widening.twin(job.model, wide=wide):
        function, model = conversion.trace(job.model, job.inputs, inside, static=scheme.is_static), job.model
    if scheme.is_static and not job.carried:
        model, function, notes = conversion.without_loops(model, function, job.checked, job.affines, inside)
    narrow = "int8" if wide and io == "int16" else io
    types = ("float" if job.affines else narrow, narrow)
    raw = conversion.convert(
        model, function, scheme, io=types, samples=job.samples, outside=outside, carried=job.carried
    )
    if scheme is Scheme.WEIGHT_ONLY_WI4_AFP32:
        raw = int4.quantize(raw, carried=job.carried)
    graph = flatbuffer.read(raw)
    if wide:
        widening.widen(graph)
    if scheme is Scheme.WEIGHT_ONLY_WI8_AFP32:
        weight_only.quantize(graph)
    if repaired := requantization.repair(graph):
        notes.append(f"the converter gave {repaired} operators that only move numbers two scales; mended")
    slim.merge(graph)
    slim.shorten_names(graph)
    flatbuffer.name_signature(graph, [s.name for s in job.inputs], [s.name for s in job.outputs])
    if job.affines:
        notes += embedding.finish(graph, job.affines, scheme, io)
    notes += _types(graph, job) + _float_notes(graph, scheme)
    _add_metadata(graph, job)
    return graph, notes


def _types(graph: Any, job: _Job) -> list[str]:
    """Notes on inputs and outputs that hold integers anyway. Raises UnsupportedError where `io` was not met."""
    notes = []
    for side, specs in (("input", job.inputs), ("output", job.outputs)):
        for i, (spec, entry) in enumerate(zip(specs, getattr(graph.signatureDefs[0], f"{side}s"), strict=True)):
            found = flatbuffer.dtype_name(graph.subgraphs[0].tensors[entry.tensorIndex].type)
            if job.options.io == "float" or found == job.options.io or (side == "input" and i in job.affines):
                continue
            if found == "float32":
                message = f"{side} {spec.name!r} stays float32: the op beside it cannot be quantized. Use --io float"
                raise UnsupportedError(message)
            notes.append(f"{side} {spec.name!r} stays {found}: it is no real number to quantize")
    return notes


def _float_notes(graph: Any, scheme: Scheme) -> list[str]:
    """What stayed float although the scheme says otherwise, by name. Raises UnsupportedError: indices cut to int8."""
    if scheme.is_static:
        found = flatbuffer.float_ops(graph)
        if "CAST" in found and _casts_quantized(graph):
            message = (
                f"{scheme.value}: a CAST to integers would read quantized numbers: an input of indices is declared "
                "float. Declare it keras.Input(dtype='int32')"
            )
            raise UnsupportedError(message)
        return [f"stays float: {_listed([f'{n} x{k}' for n, k in sorted(found.items())])}"] if found else []
    if scheme in (Scheme.FP32, Scheme.FP16):
        return []
    sizes, width = flatbuffer.weight_bytes(graph), "int4" if scheme is Scheme.WEIGHT_ONLY_WI4_AFP32 else "int8"
    integers, floats = sizes.get(width, 0), sizes.get("float32", 0)
    tensors = [
        t for g in graph.subgraphs for t in g.tensors if t.type == 0 and t.shape is not None and len(t.shape) > 1
    ]
    constants = [(flatbuffer.constant(graph, t), t) for t in tensors]
    large = [
        (len(data), flatbuffer.text(t.name)) for data, t in constants if data is not None and len(data) >= 4 * NOTED
    ]
    stays = f"; stay float: {_listed([name for _, name in sorted(large, reverse=True)])}" if large else ""
    if not integers:
        return [f"{scheme.value} quantized nothing: no weight tensor is large enough{stays}"]
    return [f"{width} weights: {integers:,} bytes, float32: {floats:,} bytes{stays}"]


def _casts_quantized(graph: Any) -> bool:
    """Whether a CAST turns a dequantized tensor into integers."""
    dequantized = set()
    for g, op in flatbuffer.operators(graph):
        name = flatbuffer.op_name(graph, op)
        if name == "DEQUANTIZE":
            dequantized.add((id(g), int(op.outputs[0])))
        elif name == "CAST" and (id(g), int(op.inputs[0])) in dequantized:
            return "int" in flatbuffer.dtype_name(g.tensors[op.outputs[0]].type)
    return False


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


# ---- metadata -----------------------------------------------------------------------------------------------------


def _add_metadata(graph: Any, job: _Job) -> None:
    generated, labels = flatbuffer.schema(), job.options.labels
    axis = next((s.name for s in job.outputs if labels and s.shape[-1:] == (len(labels),)), None)
    content = metadata.ModelMetadata(
        name=job.model.name,
        inputs=tuple(_input_metadata(s, job.options, embedded=i in job.affines) for i, s in enumerate(job.inputs)),
        outputs=tuple(
            metadata.TensorMetadata(name=s.name, labels=metadata.LABELS_FILE if s.name == axis else None)
            for s in job.outputs
        ),
        labels=metadata.LABELS_FILE if labels and axis is None else None,
    )
    place = flatbuffer.add_buffer(graph, metadata.build(content))
    graph.metadata = [*(graph.metadata or []), generated.MetadataT(name=metadata.ENTRY, buffer=place)]


def _input_metadata(spec: TensorSpec, options: ExportOptions, *, embedded: bool) -> metadata.TensorMetadata:
    image = len(spec.shape) == 4 and spec.shape[-1] == 3
    factor, offset = _normalization(options.preprocessing)
    if embedded or (np.all(factor == 1) and np.all(offset == 0)):
        return metadata.TensorMetadata(name=spec.name, image=image)
    mean, std = np.broadcast_arrays(-offset / factor, 1 / factor)
    return metadata.TensorMetadata(
        name=spec.name, image=image, mean=tuple(mean.ravel().tolist()), std=tuple(std.ravel().tolist())
    )


def _normalization(steps: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    """The scale and normalize steps of a preprocessing list as one x * factor + offset."""
    factor, offset = np.ones(1), np.zeros(1)
    for step in steps:
        if step.get("op") == "scale":
            factor, offset = factor * step["factor"], offset * step["factor"] + step["offset"]
        elif step.get("op") == "normalize":
            std = np.asarray(step["std"], float)
            factor, offset = factor / std, (offset - np.asarray(step["mean"], float)) / std
    return factor, offset
