"""The exporter `onnx`: one route, TFLite to ONNX, so that both formats have one set of scales."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgedl.errors import EdgedlError, InputError, UnsupportedError
from edgedl.types import ExportOptions, ExportResult, to_json
from edgedl_onnx.graphs import all_nodes, left_float_bytes, refill, weight_bytes

if TYPE_CHECKING:
    import onnx

    from edgedl_onnx.source import Source

ORT_SCHEMES = ("fp32", "static_wi8_ai8", "static_wi8_ai16")
LAYOUTS = (None, "nhwc", "nchw")


class OnnxExporter:
    """Writes .onnx and .ort from the TFLite file of the same scheme."""

    format = "onnx"
    suffixes = (".onnx", ".ort")
    schemes = (
        "fp32",
        "fp16",
        "dynamic_wi8_afp32",
        "weight_only_wi8_afp32",
        "static_wi8_ai8",
        "static_wi8_ai16",
    )
    source = ("tflite", "")

    def export(
        self,
        model: Path,
        out: Path,
        *,
        scheme: str,
        source: Path | None,
        calibration: Path | None,
        options: ExportOptions,
    ) -> ExportResult:
        """Write `out` from the TFLite file `source`. Raises UnsupportedError: a scheme, opset, layout or op by name."""
        from edgedl_onnx import check, files
        from edgedl_onnx.source import read

        _refuse(self, out, scheme, options)
        if source is None:
            message = f"{model}: ONNX is made from the TFLite file of scheme {scheme}, and none was given"
            raise InputError(message)
        found = read(source)
        proto = build(found, scheme=scheme, options=options)
        if "wi8" in scheme:
            check.nothing_lost(found, proto)
        notes = [_weights_note(found, proto, scheme)]
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "model.onnx"
            made.write_bytes(proto.SerializeToString(deterministic=True))
            notes += check.integer_kernels(made, scheme)
            if out.suffix == ".ort":
                made, note = files.to_ort(made)
                notes.append(note)
            comparison = check.Comparison(source, made, scheme, channels_first=options.layout == "nchw")
            notes.append(comparison.agreement(calibration, options.seed))
            files.publish(made, out)
        return ExportResult(path=out, notes=tuple(notes))


def _refuse(exporter: OnnxExporter, out: Path, scheme: str, options: ExportOptions) -> None:
    """Raises UnsupportedError or InputError for what no model can be exported with."""
    from edgedl_onnx.convert import OPSETS

    if scheme not in exporter.schemes:
        message = f"ONNX export cannot do scheme {scheme!r}; it can: {', '.join(exporter.schemes)}"
        raise UnsupportedError(message)
    if options.opset is not None and options.opset not in OPSETS:
        message = f"ONNX export cannot write opset {options.opset}; allowed: {OPSETS[0]} to {OPSETS[-1]}"
        raise UnsupportedError(message)
    if options.layout not in LAYOUTS:
        message = f"ONNX export cannot write layout {options.layout!r}; allowed: nhwc, nchw"
        raise UnsupportedError(message)
    if out.suffix == ".ort" and scheme not in ORT_SCHEMES:
        message = f"a .ort file stores the weights of scheme {scheme} as float32; write .onnx instead"
        raise UnsupportedError(message)
    if out.suffix not in exporter.suffixes:
        message = f"{out}: an ONNX file ends in {' or '.join(exporter.suffixes)}"
        raise InputError(message)


def build(source: Source, *, scheme: str, options: ExportOptions) -> onnx.ModelProto:
    """The ONNX model of a TFLite file: converted, its integer kernels opened up, small, with its metadata."""
    from onnx import checker

    from edgedl_onnx import convert, dynamic, graphs, qdq, unsigned

    channels_first = options.layout == "nchw"
    model = convert.convert(source, opset=options.opset or convert.DEFAULT_OPSET, channels_first=channels_first)
    graph = model.graph
    if scheme.startswith("static_"):
        qdq.integer_bias_to_float(graph)
        qdq.merge_bias(model)
        qdq.drop_identity_pairs(graph)
        qdq.settle_ties(graph)
        unsigned.shift_activations(model)
        if scheme == "static_wi8_ai8":
            qdq.settle_clamps(graph)
    elif scheme != "fp32":
        dynamic.integer_products(graph)
        dynamic.open_weights(graph)
    if scheme == "fp16":
        graphs.store_half(graph)
    graphs.merge_initializers(graph)
    inputs = {t: s.name for t, s in zip(source.input_tensors, source.inputs, strict=True)}
    outputs = [(t, s.name) for t, s in zip(source.output_tensors, source.outputs, strict=True)]
    graphs.set_interface(graph, inputs, outputs)
    graphs.shorten(graph)
    qdq.mark_16_bit(model)
    if options.slim:
        graphs.drop_defaults(model)
    _label(model, source, scheme, options)
    try:
        checker.check_model(model, full_check=True)
    except Exception as e:  # ONNX's own errors share no base
        message = f"the converted ONNX model is not valid: {type(e).__name__}: {e}"
        raise EdgedlError(message) from e
    return model


def _label(model: onnx.ModelProto, source: Source, scheme: str, options: ExportOptions) -> None:
    """Metadata under `edgedl.` keys, each a JSON text; without tf2onnx's documentation."""
    from onnx import helper

    quantization = {s.name: [s.scale, s.zero_point] for s in (*source.inputs, *source.outputs) if s.scale}
    content = {
        "scheme": scheme,
        "labels": options.labels,
        "preprocessing": options.preprocessing,
        "embedded": options.embed_preprocessing,
        "quantization": quantization,
        "layout": options.layout,
    }
    helper.set_model_props(model, {f"edgedl.{k}": json.dumps(to_json(v)) for k, v in content.items() if v})
    model.graph.name = "main"
    for name in ("doc_string", "producer_name", "producer_version"):
        model.ClearField(name)
    domains = {"", *(n.domain for n in all_nodes(model.graph))}
    refill(model.opset_import, [o for o in model.opset_import if o.domain in domains])


def _weights_note(source: Source, model: onnx.ModelProto, scheme: str) -> str:
    """Weight bytes by dtype. Raises EdgedlError where small weights of the TFLite file became float32."""
    found = weight_bytes(model)
    narrow = {"fp32": (), "fp16": ("float16",)}.get(scheme, ("int8", "uint8"))
    before = sum(source.weight_bytes.get(d, 0) for d in narrow)
    after = sum(found.get(d, 0) for d in narrow)
    if after + (left_float_bytes(model) / 2 if scheme == "fp16" else 0) < before / 2:
        message = f"ONNX export of scheme {scheme} lost it: {before} bytes of {narrow[0]} weights became {after}"
        raise EdgedlError(message)
    listed = ", ".join(f"{n:,} bytes {d}" for d, n in sorted(found.items(), key=lambda p: -p[1])) or "none"
    if narrow and not after:
        why = "too few values in each" if before else "as in the TFLite file"
        return f"weights: {listed}; nothing is {narrow[0]}, {why}: the file is as large as a float one"
    return f"weights: {listed}"
