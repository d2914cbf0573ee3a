"""`edgedl export` through the command line: artifacts, sidecars, notes and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from edgedl import artifacts
from edgedl.validation import benchmark


@pytest.fixture(scope="session")
def pixels(data):
    """train.toml and test.toml: raw pixels normalized to [0, 1]."""
    for name in ("train", "test"):
        (data / f"{name}.toml").write_text(
            f'data = "{name}.npz"\nlabels = ["left", "middle", "right"]\n'
            '[[preprocess]]\nop = "normalize"\nmean = 0\nstd = 255\n'
        )
    return data


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "dynamic", "weight_only_wi8_afp32", "int8", "int16x8"])
def test_export_writes_tflite_in_every_scheme(cli, model, data, tmp_path, scheme, schema):
    import jsonschema

    out = tmp_path / "a.tflite"
    calibrated = ["--calibration-data", data / "train.npz"] if scheme.startswith("int") else []
    answer = cli("export", model, "--scheme", scheme, *calibrated, "-o", out, "--json")
    assert answer.code == 0, answer.err
    made = answer.json
    jsonschema.validate(made, schema("export"))
    assert made["size_bytes"] == out.stat().st_size
    assert [t["name"] for t in (*made["inputs"], *made["outputs"])] == ["image", "kind"]
    assert len(made["lineage"]["calibration_ids"]) == (200 if calibrated else 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tflite", "a.tflite.edgedl.json"]


def test_export_slims_and_inspect_still_shows_the_names(cli, model, tmp_path):
    slim, whole = tmp_path / "slim.tflite", tmp_path / "whole.tflite"
    assert cli("export", model, "-o", slim).code == cli("export", model, "--no-slim", "-o", whole).code == 0
    assert slim.stat().st_size < whole.stat().st_size
    shown, wanted = (cli("inspect", file, "--json").json for file in (slim, whole))
    assert shown["ops"] == wanted["ops"]
    artifacts.sidecar_path(slim).unlink()
    names = {n for op in cli("inspect", slim, "--json").json["ops"] for n in (*op["inputs"], *op["outputs"])}
    assert {n for n in names if not n.startswith("#")} == {"image", "kind"}


def test_export_onnx_is_made_from_the_tflite_file_of_the_same_scheme(cli, model, data, tmp_path):
    answer = cli(
        "export", model, "--scheme", "int8", "--calibration-data", data / "train.npz", "-o", tmp_path / "a.onnx"
    )
    assert answer.code == 0, answer.err
    assert "agrees with the TFLite file" in answer.err
    sidecar = artifacts.read_sidecar(tmp_path / "a.onnx")
    assert [t["name"] for t in (*sidecar["inputs"], *sidecar["outputs"])] == ["image", "kind"]


@pytest.mark.parametrize("saturates", [True, False])
def test_a_figure_of_an_int8_onnx_file_says_where_float_stands_in(cli, model, data, tmp_path, monkeypatch, saturates):
    monkeypatch.setattr(benchmark, "saturates", lambda: saturates)
    given = ("--calibration-data", data / "train.npz")
    files = {scheme: tmp_path / f"{scheme}.onnx" for scheme in ("int8", "fp32")}
    for scheme, out in files.items():
        assert cli("export", model, "--scheme", scheme, *given, "-o", out).code == 0
    answer = cli("benchmark", *files.values(), "--json")
    assert answer.code == 0, answer.err
    told = [note for note in answer.json["notes"] if "VNNI" in note]
    assert [note.split()[0] for note in told] == (["int8.onnx"] if saturates else [])
    report = cli("validate", files["int8"], "--reference", model, "--data", data / "test.npz")
    assert ("VNNI" in report.err) == saturates


def test_export_onnx_takes_an_opset(cli, model, tmp_path):
    import onnx

    given = ("export", model, "-o", tmp_path / "a.onnx")
    assert cli(*given, "--opset", 13).code == 0
    assert [o.version for o in onnx.load(tmp_path / "a.onnx").opset_import] == [13]
    refused = cli(*given, "--opset", 99, "--force")
    assert (refused.code, refused.out) == (3, "")
    assert "cannot write opset 99; allowed: 13 to 18" in refused.err


def test_export_is_the_same_twice_and_another_with_another_seed(cli, model, data, tmp_path):
    shas = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        given = ("--scheme", "int8", "--calibration-data", data / "train.npz", "--samples", 40, "--seed", seed)
        shas.append(cli("export", model, *given, "-o", tmp_path / f"{name}.tflite", "--json").json["sha256"])
    assert shas[0] == shas[1] != shas[2]


def test_export_embeds_preprocessing_and_takes_raw_pixels(cli, model, pixels, tmp_path):
    """The same network with the normalization inside gives the same answers on raw uint8 pixels."""
    given = ("--scheme", "int8", "--calibration-data", pixels / "train.toml")
    made = cli("export", model, *given, "--embed-preprocessing", "--io", "uint8", "-o", tmp_path / "a.tflite", "--json")
    assert made.code == 0, made.err
    assert made.json["inputs"][0]["dtype"] == "uint8"
    assert made.json["lineage"]["preprocessing"] == []
    assert made.json["lineage"]["embedded"] == [{"op": "normalize", "mean": 0.0, "std": 255.0}]
    assert made.json["lineage"]["labels"] == ["left", "middle", "right"]
    plain = cli("export", model, *given, "-o", tmp_path / "b.tflite", "--json")
    assert [op["op"] for op in plain.json["lineage"]["preprocessing"]] == ["normalize"]
    checked = cli(
        "validate",
        tmp_path / "a.tflite",
        "--reference",
        tmp_path / "b.tflite",
        "--data",
        pixels / "test.toml",
        "--json",
    )
    assert checked.code == 0, checked.err
    flips = next(c for c in checked.json["checks"] if c["name"] == "flips")
    assert flips["measured"] <= 4


def test_export_embedding_needs_preprocessing_to_embed(cli, model, data, tmp_path):
    given = ("--calibration-data", data / "train.npz", "--embed-preprocessing")
    answer = cli("export", model, *given, "-o", tmp_path / "a.tflite")
    assert answer.code == 2
    assert "nothing to embed" in answer.err
    answer = cli("export", model, "--embed-preprocessing", "-o", tmp_path / "a.tflite")
    assert answer.code == 2
    assert "name a .toml with --calibration-data" in answer.err


def test_export_target_decides_inputs_and_outputs(cli, model, data, tmp_path):
    given = ("--scheme", "int8", "--calibration-data", data / "train.npz", "--target", "nucleo-l4r5zi")
    made = cli("export", model, *given, "-o", tmp_path / "a.tflite", "--json").json
    assert {t["dtype"] for t in (*made["inputs"], *made["outputs"])} == {"int8"}


def test_export_keeps_what_is_there_without_force(cli, model, tmp_path):
    out = tmp_path / "a.tflite"
    out.write_text("mine")
    answer = cli("export", model, "-o", out)
    assert (answer.code, out.read_text()) == (2, "mine")
    assert "exists; --force overwrites it" in answer.err
    assert cli("export", model, "-o", out, "--force").code == 0
    assert out.stat().st_size > 1000


def test_export_refuses_data_of_another_shape(cli, model, tmp_path):
    np.savez(tmp_path / "wide.npz", x=np.zeros((4, 9, 9, 1), np.float32))
    answer = cli(
        "export", model, "--scheme", "int8", "--calibration-data", tmp_path / "wide.npz", "-o", tmp_path / "a.tflite"
    )
    assert answer.code == 2
    assert "input 'image' takes samples of shape (8, 8, 1), the data has (9, 9, 1)" in answer.err
    assert not (tmp_path / "a.tflite").exists()


def test_export_fixes_free_sizes_and_wants_data_of_them(cli, data, tmp_path):
    import keras

    image = keras.Input((None, None, 1), name="image")
    kind = keras.layers.Dense(3, name="kind")(keras.layers.GlobalAveragePooling2D()(image))
    keras.Model(image, kind).save(tmp_path / "free.keras")
    given = ("--scheme", "int8", "--calibration-data", data / "train.npz", "-o", tmp_path / "a.tflite")
    free = cli("export", tmp_path / "free.keras", *given)
    assert (free.code, "fix them with --shape image=1,H,W,1" in free.err) == (2, True)
    other = cli("export", tmp_path / "free.keras", *given, "--shape", "image=1,9,9,1")
    assert (other.code, "'image' takes samples of shape (9, 9, 1), the data has (8, 8, 1)" in other.err) == (2, True)
    made = cli("export", tmp_path / "free.keras", *given, "--shape", "image=2,8,8,1", "--json")
    assert made.json["inputs"][0]["shape"] == [2, 8, 8, 1]


def test_export_carries_the_labels_of_the_trained_model(cli, model, tmp_path):
    copy = tmp_path / "m.keras"
    copy.write_bytes(Path(model).read_bytes())
    (tmp_path / "m.keras.edgedl.json").write_text(json.dumps({"labels": ["a", "b", "c"]}))
    made = cli("export", copy, "-o", tmp_path / "a.tflite", "--json").json
    assert made["lineage"]["labels"] == ["a", "b", "c"]
    assert cli("inspect", tmp_path / "a.tflite", "--json").json["metadata"]["labels"] == ["a", "b", "c"]


def test_two_inputs_and_two_outputs_go_the_whole_way(cli, tmp_path):
    import keras

    keras.utils.set_random_seed(0)
    left, right = keras.Input((4,), name="left"), keras.Input((6,), name="right")
    joined = keras.layers.Concatenate()([keras.layers.Dense(8, activation="relu")(x) for x in (left, right)])
    total = keras.layers.Dense(1, name="total")(joined)
    kind = keras.layers.Dense(3, activation="softmax", name="kind")(joined)
    keras.Model([right, left], [total, kind]).save(tmp_path / "m.keras")
    rng = np.random.default_rng(0)
    arrays = {"left": rng.random((300, 4), np.float32), "right": rng.random((300, 6), np.float32)}
    np.savez(tmp_path / "d.npz", **arrays, kind=rng.integers(0, 3, 300), total=rng.random((300, 1), np.float32))
    for name in ("a.tflite", "a.onnx"):
        given = ("--scheme", "int8", "--calibration-data", tmp_path / "d.npz")
        made = cli("export", tmp_path / "m.keras", *given, "-o", tmp_path / name, "--json")
        assert made.code == 0, made.err
        assert [t["name"] for t in (*made.json["inputs"], *made.json["outputs"])] == ["right", "left", "total", "kind"]
        given = ("--reference", tmp_path / "m.keras", "--data", tmp_path / "d.npz")
        checked = cli("validate", tmp_path / name, *given, "--limit", "max_abs=0.05", "--json")
        assert checked.code == 0, checked.err
        measured = {c["name"]: c["measured"] for c in checked.json["checks"]}
        assert {"kind.accuracy", "total.mae", "kind.accuracy_drop", "total.mae_drop"} <= set(measured)
        packed = cli(
            "package", tmp_path / name, "--platform", "zip", "--data", tmp_path / "d.npz", "-o", tmp_path, "--force"
        )
        assert packed.code == 0, packed.err
        assert cli("verify", packed.out.strip()).out.strip() == "pass"


def test_export_refuses_labels_that_do_not_fit_the_output(cli, model, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\n")
    answer = cli("export", model, "--labels", tmp_path / "names.txt", "-o", tmp_path / "a.tflite")
    assert (answer.code, answer.out) == (2, "")
    assert "names.txt: 2 labels for output 'kind' of 3 values" in answer.err


def test_export_refuses_a_calibrated_scheme_without_data(cli, model, tmp_path):
    answer = cli("export", model, "--scheme", "int8", "-o", tmp_path / "a.tflite")
    assert (answer.code, answer.out) == (2, "")
    assert "--calibration-data" in answer.err
    assert not list(tmp_path.iterdir())
