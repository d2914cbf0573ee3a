from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgedl.errors import EdgedlError, InputError, UnsupportedError
from edgedl.types import ExportOptions
from edgedl_onnx import exporter
from edgedl_onnx.check import Comparison, integer_kernels, nothing_lost
from edgedl_onnx.source import read


def spoiled(path, change):
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda i: numpy_helper.to_array(i).size)
    largest.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(largest)), largest.name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("change", [lambda w: w * np.float32(np.nan), lambda w: w * np.float32(1.5)])
def test_a_wrong_file_is_refused_with_figures(export, tflite, change):
    path = spoiled(export("dense").path, change)
    with pytest.raises(
        EdgedlError, match=r"disagrees with its TFLite file at output 'output_0' on 16 random inputs: to"
    ):
        Comparison(tflite("dense"), path, "fp32").agreement(None, 0)


def test_calibration_samples_are_what_it_is_judged_on(export, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "zebra.npy", rng.standard_normal((70, 8, 8, 3)).astype(np.float32))
    np.save(tmp_path / "ant.npy", rng.standard_normal((70, 5)).astype(np.float32))
    note = export("two", "static_wi8_ai8", calibration=tmp_path).notes[-1]
    assert note.startswith("agrees with the TFLite file on 64 calibration samples: ")
    assert "yak: top-1" in note
    assert "bee: top-1" in note


def test_calibration_of_another_shape_is_named(export, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((10, 63), np.float32))
    with pytest.raises(InputError, match=r"x\.npy: shape \(10, 63\), input 'x' takes \('samples', 64\)"):
        export("dense", calibration=tmp_path)


def test_weights_that_became_float_are_an_error(tflite, tmp_path, monkeypatch):
    monkeypatch.setattr("edgedl_onnx.graphs.store_half", lambda graph: None)
    with pytest.raises(EdgedlError, match=r"scheme fp16 lost it: \d+ bytes of float16 weights became 0"):
        exporter.OnnxExporter().export(
            Path("m"),
            tmp_path / "m.onnx",
            scheme="fp16",
            source=tflite("dense", "fp16"),
            calibration=None,
            options=ExportOptions(),
        )
    assert not (tmp_path / "m.onnx").exists()


def test_a_lost_bias_is_found_by_name(export, tflite):
    model = onnx.load(export("pooled", "static_wi8_ai8").path)
    source = read(tflite("pooled", "static_wi8_ai8"))
    nothing_lost(source, model)
    bias = next(i for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT32 and list(i.dims) == [5])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
    with pytest.raises(EdgedlError, match=r"lost constants of the TFLite file: FULLY_CONNECTED \d+: int32\[5\]$"):
        nothing_lost(source, model)


def test_a_model_that_onnxruntime_cannot_run_is_refused(tmp_path):
    node = onnx.helper.make_node("Erf", ["x"], ["y"])
    shown = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.INT16, [2]) for n in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", shown[:1], shown[1:]), ir_version=8)
    model.opset_import[0].version = 17
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match=r"onnxruntime does not run the converted model: .*Erf"):
        integer_kernels(tmp_path / "m.onnx", "static_wi8_ai8")


def test_source_reads_signature_ops_and_weights(tflite):
    found = read(tflite("cnn", "static_wi8_ai8", "int8"))
    assert [s.name for s in found.inputs] == ["image"]
    assert found.inputs[0].dtype == "int8"
    assert found.inputs[0].shape == (1, 12, 12, 3)
    assert len(found.inputs[0].scale) == 1
    assert found.ops["CONV_2D"] == 2
    assert found.ops["DEPTHWISE_CONV_2D"] == 1
    assert found.weight_bytes["int8"] == 16 * (27 + 9 + 144 + 10)
    assert read(tflite("dense", "fp16")).weight_bytes["float16"] == 2 * (64 * 64 + 64 + 64 * 4 + 4)


def test_weights_too_small_to_be_worth_a_cast_stay_float_and_are_said(export):
    assert "nothing is float16, too few values in each: " in export("tiny", "fp16").notes[0]
