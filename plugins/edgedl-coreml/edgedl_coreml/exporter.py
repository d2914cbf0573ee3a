"""The exporter `coreml`: Keras to a Core ML neural network with coremltools. Nothing here can run what it writes."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl.errors import InputError, UnsupportedError
from edgedl.types import ExportOptions, ExportResult, TensorSpec

if TYPE_CHECKING:
    import keras

BITS = {"fp32": 32, "fp16": 16, "weight_only_wi8_afp32": 8}  # of a weight
DATE = "com.github.apple.coremltools.conversion_date"


class CoreMLExporter:
    """Writes .mlmodel files, specification version 4 (iOS 13)."""

    format = "coreml"
    suffixes = (".mlmodel",)
    schemes = tuple(BITS)
    source = None

    def export(
        self,
        model: Path,
        out: Path,
        *,
        scheme: str,
        source: Path | None,  # noqa: ARG002
        calibration: Path | None,  # noqa: ARG002
        options: ExportOptions,
    ) -> ExportResult:
        """Write `out`. Raises UnsupportedError: a scheme, option or layer by name; InputError: a size is free."""
        from edgedl import models

        _refuse(scheme, options)
        loaded = models.load(model, trust=options.trust, custom_objects=options.custom_objects).model
        inputs, outputs = models.specs(loaded)
        shapes = [_shape(spec, options) for spec in inputs]
        spec = _converted(loaded, inputs, outputs, shapes, BITS[scheme])
        out.write_bytes(spec.SerializeToString(deterministic=True))
        return ExportResult(path=out, notes=("Core ML runs on Apple's systems alone: nothing here has run this file",))


def _refuse(scheme: str, options: ExportOptions) -> None:
    if scheme not in BITS:
        message = f"Core ML export cannot do scheme {scheme!r}; it can: {', '.join(BITS)}"
        raise UnsupportedError(message)
    asked = {
        "--embed-preprocessing": bool(options.embed_preprocessing),
        f"--io {options.io}": options.io != "float",
        f"--opset {options.opset}": options.opset is not None,
        f"layout {options.layout}": options.layout is not None,
    }
    for name, is_asked in asked.items():
        if is_asked:
            message = f"Core ML export has no {name}; leave it out"
            raise UnsupportedError(message)


def _shape(spec: TensorSpec, options: ExportOptions) -> tuple[int, ...]:
    """The shape of an input, batch 1 where none was asked for. Raises InputError."""
    found: tuple[int | None, ...] = options.shapes.get(spec.name) or (spec.shape[0] or 1, *spec.shape[1:])
    if None in found:
        sizes = ",".join("N" if size is None else str(size) for size in found)
        message = f"input {spec.name!r} has free sizes, and Core ML export fixes them: --shape {spec.name}={sizes}"
        raise InputError(message)
    return tuple(int(size) for size in found if size is not None)


def _converted(
    model: keras.Model,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    shapes: Sequence[tuple[int, ...]],
    bits: int,
) -> Any:
    """The specification (protobuf) of the model, its inputs and outputs under our names."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # it warns of every version it was not tried with
    import coremltools
    from coremltools.models.neural_network import quantization_utils

    function = _function(model, inputs, shapes)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            made = coremltools.convert([function], source="tensorflow", convert_to="neuralnetwork")
        except NotImplementedError as e:
            message = f"Core ML export cannot do this model: {str(e).splitlines()[0]}"
            raise UnsupportedError(message) from e
        if bits < 32:
            made = quantization_utils.quantize_weights(made, bits)
    spec = made.get_spec()
    for old, new in zip(_output_names(function), outputs, strict=True):
        coremltools.utils.rename_feature(spec, old, new.name)  # without inputs it would leave the layers as they are
    spec.description.metadata.userDefined.pop(DATE, None)
    return spec


def _function(model: keras.Model, inputs: Sequence[TensorSpec], shapes: Sequence[tuple[int, ...]]) -> Any:
    """The model as a TensorFlow function of its inputs, in their order, giving a list of its outputs."""
    import keras
    import tensorflow as tf

    given = [tf.TensorSpec(shape, spec.dtype, name=spec.name) for spec, shape in zip(inputs, shapes, strict=True)]

    def call(*values: Any) -> list[Any]:
        return list(keras.tree.flatten(model(list(values) if len(values) > 1 else values[0], training=False)))

    return tf.function(call).get_concrete_function(*given)


def _output_names(function: Any) -> list[str]:
    """What coremltools calls the outputs of a function: the operations that give them."""
    return [tensor.name.split(":")[0] for tensor in function.outputs]
