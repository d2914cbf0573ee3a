"""The exporter `coreml`: Keras to a Core ML neural network with coremltools. Nothing here can run what it writes."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl.errors import UnsupportedError
from edgedl.models.files import first_line
from edgedl.models.tensors import call_flat, operations
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
        """Write `out`. Raises UnsupportedError: a scheme, option or layer by name; InputError: a shape that
        does not fit the model, or a free size."""
        from edgedl import models

        _refuse(scheme, options)
        loaded = models.load(model, trust=options.trust, custom_objects=options.custom_objects).model
        fixed = models.with_static_shapes(loaded, options.shapes)
        inputs, outputs = models.specs(fixed)[0], models.specs(loaded)[1]
        spec = _converted(fixed, inputs, outputs, BITS[scheme])
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


def _converted(model: keras.Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], bits: int) -> Any:
    """The specification (protobuf) of the model, its inputs and outputs under our names. Raises UnsupportedError."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # it warns of every version it was not tried with
    import coremltools
    from coremltools.models.neural_network import quantization_utils

    function = _function(model, inputs)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            made = coremltools.convert([function], source="tensorflow", convert_to="neuralnetwork")
            if bits < 32:
                made = quantization_utils.quantize_weights(made, bits)
        except Exception as e:  # it raises whatever a graph that it was not tried with leads to
            message = f"Core ML export cannot do this model: {_why(model, e)}"
            raise UnsupportedError(message) from e
    spec = made.get_spec()
    made_names = [tensor.name.split(":")[0] for tensor in (*function.inputs[: len(inputs)], *function.outputs)]
    wanted = [s.name for s in (*inputs, *outputs)]
    names = {name: f"inner {name}" for name in wanted} | dict(zip(made_names, wanted, strict=True))
    for feature in (*spec.description.input, *spec.description.output):
        feature.name = names[feature.name]
    _rename(spec.neuralNetwork.layers, names)
    spec.description.metadata.userDefined.pop(DATE, None)
    return spec


def _rename(layers: Iterable[Any], names: Mapping[str, str]) -> None:
    """Give tensors of a network other names, all at once, and of those in it: coremltools' own leaves both out."""
    for layer in layers:
        for tensors in (layer.input, layer.output):
            tensors[:] = [names.get(name, name) for name in tensors]
        branch, loop = layer.branch, layer.loop
        for network in (branch.ifBranch, branch.elseBranch, loop.conditionNetwork, loop.bodyNetwork):
            _rename(network.layers, names)


def _why(model: keras.Model, error: Exception) -> str:
    """The layers that run in a loop, which coremltools fails on in many words, else the first line of its error."""
    loops = [op.name for op in operations(model) if getattr(op, "unroll", None) is False]
    if loops:
        return f"layers that run in a loop: {', '.join(sorted(loops))}; build them with unroll=True"
    return f"{type(error).__name__}: {first_line(error)}"


def _function(model: keras.Model, inputs: Sequence[TensorSpec]) -> Any:
    """The model as a TensorFlow function of its inputs, in their order, giving a list of its outputs."""
    import tensorflow as tf

    given = [tf.TensorSpec(spec.shape, spec.dtype, name=f"input_{i}") for i, spec in enumerate(inputs)]
    return tf.function(lambda *values: call_flat(model, values), autograph=False).get_concrete_function(*given)
