from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgedl.agent import OnnxModel, TFLiteModel, quantize
from edgedl.errors import InputError, UnsupportedError
from edgedl.types import Exporter, ExportOptions
from edgedl_onnx.exporter import OnnxExporter
from edgedl_onnx.graphs import weight_bytes
from edgedl_onnx.source import read


def both(tflite, result):
    made = OnnxModel({"artifact": str(result.path)}, {})
    return TFLiteModel({"artifact": str(tflite), "runtime": "litert"}, {}), made


def largest_difference(tflite, result, samples=8):
    """Over random inputs, of the raw outputs in order."""
    reference, made = both(tflite, result)
    rng = np.random.default_rng(3)
    worst = 0.0
    for _ in range(samples):
        feeds = []
        for spec in reference.inputs:
            values = rng.standard_normal(spec["shape"]).astype(np.float32)
            if spec["scale"]:
                values = quantize(values, spec["scale"][0], spec["zero_point"][0], spec["dtype"])
            feeds.append(values.astype(spec["dtype"]))
        reference.feed(feeds)
        made.feed(feeds)
        pairs = zip(reference.invoke(), made.invoke(), strict=True)
        worst = max(worst, *(float(np.max(np.abs(a.astype(float) - b.astype(float)))) for a, b in pairs))
    return worst


def optimized(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path.with_suffix(".opt"))
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node)


def test_exporter_meets_its_protocol():
    exporter: Exporter = OnnxExporter()
    assert exporter.format == "onnx"
    assert exporter.source == ("tflite", "")
    assert "weight_only_wi4_afp32" not in exporter.schemes


@pytest.mark.parametrize(
    ("scheme", "tolerance"),
    [
        ("fp32", 1e-5),
        ("fp16", 1e-5),
        ("dynamic_wi8_afp32", 0.02),
        ("static_wi8_ai8", 0.02),
        ("static_wi8_ai16", 0.01),
    ],
)
def test_cnn_agrees_with_its_tflite_file(export, tflite, scheme, tolerance):
    result = export("cnn", scheme)
    assert largest_difference(tflite("cnn", scheme), result) <= tolerance
    assert any(n.startswith("agrees with the TFLite file on 16 random inputs: top-1 100.0 %") for n in result.notes)


def test_int8_runs_on_integer_kernels_only(export):
    result = export("cnn", "static_wi8_ai8")
    ops = optimized(result.path)
    assert ops["QLinearConv"] == 3
    assert ops["QGemm"] == 1
    assert ops["QLinearAdd"] == 1
    assert not ops["Conv"] + ops["FusedConv"] + ops["Gemm"] + ops["MatMul"]
    assert "4 of 4 convolutions and matrix products run as integer kernels in onnxruntime on this CPU" in result.notes


def test_int8_shifts_activations_and_leaves_weights(export):
    graph = onnx.load(export("cnn", "static_wi8_ai8").path).graph
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert arrays[node.input[2]].dtype == np.uint8
    assert sum(a.nbytes for a in arrays.values() if a.dtype == np.int8 and a.ndim > 1) == 16 * (27 + 9 + 144 + 10)


def test_relu_before_a_shared_scale_does_not_hide_the_convolution(export):
    # The concatenation gives the ReLU's output the scale of a tanh: its zero point is not the smallest code.
    result = export("two", "static_wi8_ai8")
    assert optimized(result.path)["QLinearConv"] == 1
    assert any(n.startswith("4 of 4 ") for n in result.notes)


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_integer_inputs_and_outputs_keep_their_meaning(export, tflite, io):
    result = export("cnn", "static_wi8_ai8", io=io)
    reference, made = both(tflite("cnn", "static_wi8_ai8", io), result)
    assert [s["dtype"] for s in made.inputs + made.outputs] == [io, io]
    assert largest_difference(tflite("cnn", "static_wi8_ai8", io), result) <= 3  # LSB
    spec = reference.inputs[0]
    metadata = onnx.load(result.path).metadata_props
    scales = json.loads({p.key: p.value for p in metadata}["edgedl.quantization"])
    assert scales["image"] == [spec["scale"], spec["zero_point"]]
    assert optimized(result.path)["QLinearConv"] == 3


def test_16_bit_inputs_and_outputs(export, tflite):
    result = export("cnn", "static_wi8_ai16", io="int16")
    assert largest_difference(tflite("cnn", "static_wi8_ai16", "int16"), result) <= 100  # of 65,536
    assert any("it has none for 16-bit activations" in n for n in result.notes)


def test_names_and_order_are_those_of_the_signature(export, tflite):
    for scheme in ("fp32", "static_wi8_ai8"):
        reference, made = both(tflite("two", scheme), export("two", scheme))
        for ours, theirs in ((made.inputs, reference.inputs), (made.outputs, reference.outputs)):
            assert [s["name"] for s in ours] == [s["name"] for s in theirs]
            assert [s["shape"] for s in ours] == [s["shape"] for s in theirs]
        assert {s["name"] for s in made.inputs} == {"zebra", "ant"}
    assert largest_difference(tflite("two"), export("two")) <= 1e-5


def test_order_is_the_files_whatever_the_runtime_makes_of_it(tflite, tmp_path):
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(tflite("two").read_bytes())
    orders = []
    for turn in (1, 2):
        signature = model.signatureDefs[0]
        signature.inputs.reverse()
        signature.outputs.reverse()
        source = packed(model, tmp_path / f"{turn}.tflite")
        result = OnnxExporter().export(
            Path("m"),
            tmp_path / f"{turn}.onnx",
            scheme="fp32",
            source=source,
            calibration=None,
            options=ExportOptions(),
        )
        graph = onnx.load(result.path).graph
        orders.append([[v.name for v in graph.input], [v.name for v in graph.output]])
        assert orders[-1] == [[t.name.decode() for t in each] for each in (signature.inputs, signature.outputs)]
    assert orders[0] == [names[::-1] for names in orders[1]]


@pytest.mark.parametrize("scheme", ["fp32", "static_wi8_ai8"])
def test_a_dense_layer_that_flattens_its_input_keeps_its_bias(export, tflite, scheme):
    assert read(tflite("pooled", scheme)).ops["RESHAPE"] == 0
    assert largest_difference(tflite("pooled", scheme), export("pooled", scheme)) <= (
        1e-5 if scheme == "fp32" else 0.02
    )


def test_an_output_that_is_an_input_and_an_input_nobody_reads(export, tflite):
    for name in ("shown_twice", "unused_input"):
        result = export(name)
        reference, made = both(tflite(name), result)
        assert [s["name"] for s in made.inputs] == [s["name"] for s in reference.inputs]
        assert largest_difference(tflite(name), result) <= 1e-6


def test_fp16_is_stored_as_fp16(export):
    result = export("dense", "fp16")
    stored = weight_bytes(onnx.load(result.path))
    assert stored["float16"] == 2 * (64 * 64 + 64 + 64 * 4)
    assert result.path.stat().st_size < export("dense", out="float.onnx").path.stat().st_size * 0.55
    assert any(n.startswith("weights: 8,832 bytes float16") for n in result.notes)


def test_dynamic_stores_int8_and_quantizes_products_as_they_run(export):
    result = export("dense", "dynamic_wi8_afp32")
    model = onnx.load(result.path)
    assert weight_bytes(model)["int8"] >= 64 * 64
    assert "DynamicQuantizeLinear" in {n.op_type for n in model.graph.node}
    assert any(n.startswith("1 of 2 convolutions and matrix products run as integer kernels") for n in result.notes)


def test_dynamic_convolution_weights_fold_to_float_as_the_file_loads(export):
    result = export("conv1d", "dynamic_wi8_afp32")
    assert weight_bytes(onnx.load(result.path))["int8"] == 5 * 32 * 32
    ops = optimized(result.path)
    assert ops["DequantizeLinear"] == ops["Cast"] == 0  # nothing is left to do at every inference


def test_dynamic_that_quantized_nothing_says_so(export):
    notes = export("two", "dynamic_wi8_afp32").notes
    assert any("nothing is int8, as in the TFLite file" in n for n in notes)


def test_weight_only_keeps_int8_weights(tflite, tmp_path):
    source = tmp_path / "weight_only.tflite"
    codes = dequantized_weights(tflite("dense"), source)
    result = OnnxExporter().export(
        Path("m"),
        tmp_path / "out.onnx",
        scheme="weight_only_wi8_afp32",
        source=source,
        calibration=None,
        options=ExportOptions(),
    )
    model = onnx.load(result.path)
    stored = [onnx.numpy_helper.to_array(i) for i in model.graph.initializer]
    assert any(a.dtype == np.int8 and np.array_equal(a, codes.T) for a in stored)
    assert "DynamicQuantizeLinear" not in {n.op_type for n in model.graph.node}
    assert largest_difference(source, result) <= 1e-5


def dequantized_weights(path, out):
    """Writes a copy whose 64 x 64 weights are int8 behind a DEQUANTIZE; returns the codes."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    graph = model.subgraphs[0]
    index = next(i for i, t in enumerate(graph.tensors) if list(t.shape) == [64, 64])
    tensor = graph.tensors[index]
    weights = np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.float32).reshape(64, 64)
    scale = np.abs(weights).max(axis=1) / 127
    codes = np.rint(weights / scale[:, None]).astype(np.int8)
    model.buffers.append(schema.BufferT(data=np.frombuffer(codes.tobytes(), np.uint8)))
    quantization = schema.QuantizationParametersT(scale=scale, zeroPoint=np.zeros(64, np.int64), quantizedDimension=0)
    graph.tensors.append(
        schema.TensorT(
            name=b"codes",
            shape=tensor.shape,
            type=schema.TensorType.INT8,
            buffer=len(model.buffers) - 1,
            quantization=quantization,
        )
    )
    tensor.buffer = 0
    code = schema.BuiltinOperator.DEQUANTIZE
    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=5))
    operator = schema.OperatorT(
        opcodeIndex=len(model.operatorCodes) - 1,
        inputs=np.array([len(graph.tensors) - 1], np.int32),
        outputs=np.array([index], np.int32),
    )
    graph.operators.insert(0, operator)
    packed(model, out)
    return codes


def packed(model, out):
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    out.write_bytes(bytes(builder.Output()))
    return out


def test_metadata_says_scheme_labels_and_preprocessing(export):
    steps = ({"op": "cast", "to": "float32"},)
    result = export("two", labels=("cat", "dog"), preprocessing=steps)
    found = {p.key: json.loads(p.value) for p in onnx.load(result.path).metadata_props}
    assert found == {"edgedl.scheme": "fp32", "edgedl.labels": ["cat", "dog"], "edgedl.preprocessing": list(steps)}


def test_the_file_is_small_and_always_the_same(export):
    first, second = export("cnn", out="a.onnx"), export("cnn", out="b.onnx")
    assert first.path.read_bytes() == second.path.read_bytes()
    model = onnx.load(first.path)
    assert not model.doc_string + model.graph.doc_string + "".join(n.name for n in model.graph.node)
    contents = [(i.data_type, tuple(i.dims), i.raw_data) for i in model.graph.initializer]
    assert len(contents) == len(set(contents))
    assert first.path.stat().st_size < sum(weight_bytes(model).values()) + 2000


def test_no_slim_spells_out_the_defaults(export):
    slim, whole = (onnx.load(export("cnn", slim=flag, out=f"{flag}.onnx").path) for flag in (True, False))
    assert "dilations" not in {a.name for n in slim.graph.node for a in n.attribute}
    assert "dilations" in {a.name for n in whole.graph.node for a in n.attribute}
    assert slim.ByteSize() < whole.ByteSize()


def test_opset_is_what_was_asked_for(export):
    assert [o.version for o in onnx.load(export("cnn").path).opset_import] == [17]
    model = onnx.load(export("cnn", "static_wi8_ai8", opset=13).path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 13)]


@pytest.mark.parametrize("opset", [12, 19])
def test_other_opsets_are_refused(export, opset):
    with pytest.raises(UnsupportedError, match=rf"opset {opset}; allowed: 13 to 18"):
        export("cnn", opset=opset)


def test_refusals_name_what_is_allowed(export, tflite, tmp_path):
    with pytest.raises(UnsupportedError, match=r"layout 'chwn'; allowed: nhwc, nchw"):
        export("cnn", layout="chwn")
    with pytest.raises(InputError, match=r"model\.bin: an ONNX file ends in \.onnx or \.ort"):
        export("cnn", out="model.bin")
    with pytest.raises(UnsupportedError, match=r"stores the weights of scheme fp16 as float32; write \.onnx"):
        export("dense", "fp16", out="model.ort")
    common = {"calibration": None, "options": ExportOptions()}
    exporter = OnnxExporter()
    with pytest.raises(UnsupportedError, match=r"scheme 'weight_only_wi4_afp32'; it can: fp32, fp16"):
        exporter.export(Path("m"), tmp_path / "m.onnx", scheme="weight_only_wi4_afp32", source=tflite("cnn"), **common)
    with pytest.raises(InputError, match=r"model\.keras: ONNX is made from the TFLite file of scheme fp32"):
        exporter.export(Path("model.keras"), tmp_path / "m.onnx", scheme="fp32", source=None, **common)
    assert not list(tmp_path.glob("*.o*"))


def test_channels_first_layout(export, tflite):
    result = export("decoder", layout="nchw")
    reference, made = both(tflite("decoder"), result)
    assert made.inputs[0]["shape"] == [1, 8, 6, 6]
    values = np.random.default_rng(0).standard_normal(reference.inputs[0]["shape"]).astype(np.float32)
    reference.feed([values])
    made.feed([values.transpose(0, 3, 1, 2)])
    assert np.allclose(reference.invoke()[0].transpose(0, 3, 1, 2), made.invoke()[0], atol=1e-5)


def test_ort_form_runs_and_says_what_it_is(export, tflite):
    result = export("cnn", "static_wi8_ai8", out="model.ort")
    assert result.path.read_bytes()[4:8] == b"ORTM"
    assert largest_difference(tflite("cnn", "static_wi8_ai8"), result) <= 0.02
    assert any(n.startswith(".ort: ") and f"bound to onnxruntime {onnxruntime.__version__}" in n for n in result.notes)


def test_an_unwritable_output_is_the_users_mistake_and_leaves_nothing(export, tmp_path):
    with pytest.raises(InputError, match=r"missing/model\.onnx: cannot be written: No such file or directory"):
        export("cnn", out="missing/model.onnx")
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        export("cnn")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\x1c\0\0\0TFL3" + b"\xff" * 64])
def test_a_source_that_is_no_tflite_file(tmp_path, content):
    source = tmp_path / "m.tflite"
    source.write_bytes(content)
    with pytest.raises(InputError, match="TFLite file"):
        OnnxExporter().export(
            Path("m"), tmp_path / "m.onnx", scheme="fp32", source=source, calibration=None, options=ExportOptions()
        )
