"""Where an artifact parts from its model: operators find their layers by values, and a broken one is named."""

import json
from dataclasses import replace

import jsonschema
import numpy as np
import pytest
from conftest import write_model

from edgedl import pipeline
from edgedl.types import ArtifactInfo, OpInfo
from edgedl.validation import layerwise

CONV, DENSE = "conv2d", "kind"


@pytest.fixture(scope="module")
def artifacts(model, data, tmp_path_factory):
    """int8.tflite, and broken.tflite: the same with the weights of the convolution 1.5 times as large."""
    from edgedl_tflite import flatbuffer

    folder = tmp_path_factory.mktemp("layerwise")
    pipeline.export(model, folder / "int8.tflite", scheme="int8", calibration_data=data / "train.npz", samples=50)
    found = flatbuffer.read((folder / "int8.tflite").read_bytes())
    graph = found.subgraphs[0]
    conv = next(op for op in graph.operators if flatbuffer.op_name(found, op) == "CONV_2D")
    weights = graph.tensors[conv.inputs[1]].quantization
    weights.scale = np.asarray(weights.scale) * np.float32(1.5)
    (folder / "broken.tflite").write_bytes(flatbuffer.write(found))
    return folder


def rows(answer):
    (one,) = answer.json["artifacts"]
    return {row["op"]: row for row in one["layers"]}


def test_diff_of_a_model_says_where_the_signal_goes(cli, model, data, artifacts, schema, tmp_path):
    given = ("diff", model, artifacts / "int8.tflite", "--data", data / "test.npz")
    answer = cli(*given, "--json")
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.json, schema("layers"))
    jsonschema.validate(answer.json["artifacts"][0]["report"], schema("validation"))
    found = rows(answer)
    named = {op: row["layer"] for op, row in found.items()}
    assert named["CONV_2D"].startswith(CONV)
    assert named["MEAN"].startswith("global_average_pooling2d")
    assert (named["SOFTMAX"], named["DEQUANTIZE"]) == (DENSE, DENSE)
    assert all(20 < row["sqnr_db"] < 90 for op, row in found.items() if op != "QUANTIZE"), found
    plain = cli(*given, "--junit", tmp_path / "j.xml")
    assert plain.out.startswith(f"{artifacts / 'int8.tflite'}: accuracy_drop")
    assert "most noise is added in" in plain.out
    assert "note: output 'kind': metric top1" in plain.err
    assert "signal to noise" in plain.err
    assert "testsuite" in (tmp_path / "j.xml").read_text()


def test_diff_says_that_an_artifact_is_of_another_model(cli, model, data, artifacts, tmp_path):
    other, on_data = write_model(tmp_path / "other.keras", seed=1), ("--data", data / "test.npz")
    (tmp_path / "bare.tflite").write_bytes((artifacts / "int8.tflite").read_bytes())  # without a sidecar
    own, bare = str(artifacts / "int8.tflite"), str(tmp_path / "bare.tflite")

    def notes(reference, *files):
        answer = cli("diff", reference, *files, *on_data, "--json")
        assert answer.code == 0, answer.err
        said = [line for line in answer.err.splitlines() if "another model" in line]
        return said, [[n for n in one["notes"] if "another model" in n] for one in answer.json["artifacts"]]

    said, told = notes(other, own, bare)
    (note,) = told[0]
    assert note.startswith(f"{own} was exported from another model file than {other} (SHA-256 ")
    assert (said, told[1]) == ([f"note: {note}"], [])
    assert notes(model, own) == ([], [[]])


def test_diff_names_the_layer_that_is_broken(cli, model, data, artifacts):
    answer = cli("diff", model, artifacts / "broken.tflite", "--data", data / "test.npz", "--json")
    found = rows(answer)
    worst = max(found.values(), key=lambda row: row["added_noise"])
    assert (worst["op"], worst["layer"]) == ("CONV_2D", found["CONV_2D"]["layer"])
    assert worst["layer"].startswith(CONV)
    assert worst["added_noise"] > 0.05


def test_diff_refuses_what_it_cannot_compare(cli, model, data, artifacts, tmp_path, monkeypatch):
    def check(code, message, *arguments):
        answer = cli("diff", *arguments)
        assert (answer.code, answer.out) == (code, ""), answer.err
        assert message in answer.err.splitlines()[-1]

    on_data, zips = ("--data", data / "test.npz"), [tmp_path / f"{name}.zip" for name in "abc"]
    check(2, "a model is compared with its artifacts on --data DATA", model, artifacts / "int8.tflite")
    check(2, "is for packages", model, artifacts / "int8.tflite", *on_data, "--max-drop", "1pp")
    check(2, "packages are compared without --data", *zips[:2], *on_data)
    check(2, "two packages are compared, got 3", *zips)
    check(2, "none.tflite: no such file", model, tmp_path / "none.tflite", *on_data)
    silent = replace(layerwise.artifacts.runtime_for("tflite"), inner=None)
    monkeypatch.setattr(layerwise.artifacts, "runtime_for", lambda *_: silent)
    message = "litert does not tell what is inside of a file; layers are compared for onnx, tflite"
    check(3, message, model, artifacts / "int8.tflite", *on_data)


def test_layers_are_found_in_onnx_files_whose_channels_are_first(cli, model, data, artifacts, tmp_path):
    calibrated = {"calibration_data": data / "train.npz", "samples": 50}
    pipeline.export(model, tmp_path / "m.onnx", scheme="int8", **calibrated)
    answer = cli("diff", model, tmp_path / "m.onnx", "--data", data / "test.npz", "--json")
    found = rows(answer)
    assert "Conv" not in found  # the activation, which is in the layer, follows it
    assert any(row["layer"].startswith(CONV) for row in answer.json["artifacts"][0]["layers"])
    assert found["Softmax"]["layer"] == DENSE
    assert all(row["sqnr_db"] > 20 for op, row in found.items() if row["sqnr_db"] is not None), found


def test_as_many_samples_as_fit(monkeypatch, model, data, artifacts):
    opened = layerwise.model_file.open_model(str(model))
    assert layerwise._count(opened) == layerwise.SAMPLES
    monkeypatch.setattr(layerwise, "LAYER_BYTES", 1)
    assert layerwise._count(opened) == 1
    assert layerwise.compare(opened, artifacts / "int8.tflite", str(data / "test.npz"), 0)


# ---- operators and layers -----------------------------------------------------------------------------------------


def _info(*ops):
    """Operators as (inputs, output)."""
    named = tuple(OpInfo(index=i, name=f"OP_{i}", inputs=inputs, outputs=(out,)) for i, (inputs, out) in enumerate(ops))
    return ArtifactInfo(format="tflite", inputs=(), outputs=(), ops=named)


def _values(seed, *shape):
    return np.random.default_rng(seed).normal(size=(4, *shape))


def test_operators_find_their_layers_by_values():
    first, second = _values(0, 6, 1), _values(1, 6, 1)
    layers = {"a": first, "same_as_a": first.copy(), "b": second}
    info = _info((("x",), "t0"), (("t0",), "t1"))
    operators = {0: first[..., 0] + 0.1 * _values(2, 6), 1: second[..., 0] + 0.2 * _values(3, 6)}
    one, two = layerwise.rows(info, operators, layers)
    assert (one["layer"], two["layer"]) == ("a", "b")
    noise = layerwise.noise_share(first[..., 0], operators[0])
    assert one["sqnr_db"] == pytest.approx(-10 * np.log10(noise))
    assert one["added_noise"] == pytest.approx(noise)
    assert two["added_noise"] == pytest.approx(layerwise.noise_share(second[..., 0], operators[1]) - noise)


def test_a_layer_whose_output_is_there_in_another_shape_alone_is_judged_by_that():
    before = _values(0, 2, 3, 4) + 0.5
    after = np.maximum(before, 0)
    layers = {"conv": after, "flat": after.reshape(4, -1)}
    info = _info((("x",), "conv/Conv"), (("conv/Conv",), "flat/Reshape"))
    (row,) = layerwise.rows(info, {0: np.moveaxis(before, -1, 1), 1: after.reshape(4, -1) + 1e-3}, layers)
    assert (row["index"], row["layer"]) == (1, "conv")
    assert row["sqnr_db"] > 50


def test_a_layer_that_nothing_comes_near_is_that_of_the_last_operator_with_its_name():
    layer = _values(0, 5)
    info = _info((("x",), "model/dense_1/MatMul"), (("model/dense_1/MatMul",), "model/dense_1/Softmax"))
    (row,) = layerwise.rows(info, {0: _values(1, 5), 1: _values(2, 5)}, {"dense": layer, "other": _values(3, 4)})
    assert (row["index"], row["layer"]) == (1, "dense")
    assert row["sqnr_db"] < 0


def test_what_is_inside_of_a_layer_hands_the_noise_on():
    start, end = _values(0, 5), _values(1, 5)
    info = _info((("x",), "t0"), (("t0",), "logits"), (("logits",), "t2"))
    operators = {0: start + 0.1, 1: _values(2, 5), 2: end + 0.1}
    first, last = layerwise.rows(info, operators, {"a": start, "b": end})
    assert last["added_noise"] == pytest.approx(
        layerwise.noise_share(end, operators[2]) - layerwise.noise_share(start, operators[0])
    )
    assert (first["index"], last["index"]) == (0, 2)


def test_exact_operators_have_no_ratio():
    values = _values(0, 5)
    (row,) = layerwise.rows(_info((("x",), "t0")), {0: values}, {"a": values})
    assert (row["sqnr_db"], row["added_noise"]) == (None, 0.0)
    json.dumps(row, allow_nan=False)


def test_a_layer_of_zeros_is_left_out():
    assert layerwise.rows(_info((("x",), "t0")), {0: _values(0, 5)}, {"a": np.zeros((4, 5))}) == []


def test_names_of_converters():
    assert layerwise._is_named("model_1/conv2d_8_1/BiasAdd", "conv2d_8")
    assert layerwise._is_named("model/dense/MatMul;model/dense/BiasAdd", "dense")
    assert not layerwise._is_named("model_1/conv2d_8_1/BiasAdd", "conv2")
