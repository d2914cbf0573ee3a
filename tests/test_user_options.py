"""--custom-objects, --trust, --embed-preprocessing, --plan, --limit, --report through the command line."""

import json
import os
import re
import zipfile

import numpy as np
import pytest

LAYERS = """
import keras


@keras.saving.register_keras_serializable(package="mine")
class Gain(keras.layers.Layer):
    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain")

    def call(self, x):
        return x * self.gain
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """gain.keras (an own layer of my_layers.py), lambda.keras (code in the file), plain.tflite, and data for all."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    from edgedl import pipeline

    folder = tmp_path_factory.mktemp("models")
    (folder / "my_layers.py").write_text(LAYERS)
    space = {"__name__": "my_layers"}
    exec(LAYERS, space)  # noqa: S102  our own text
    inputs = keras.Input((4,), name="v")
    layers = {"gain": space["Gain"](), "lambda": keras.layers.Lambda(lambda x: x * 2), "plain": keras.layers.ReLU()}
    for name, layer in layers.items():
        hidden = layer(keras.layers.Dense(8)(inputs))
        network = keras.Model(inputs, keras.layers.Dense(2, activation="softmax", name="k")(hidden))
        network.save(folder / f"{name}.keras")
    rng = np.random.default_rng(0)
    np.savez(folder / "d.npz", x=rng.random((50, 4), np.float32), y=rng.integers(0, 2, 50))
    keras.saving.get_custom_objects().pop("mine>Gain")
    pipeline.export(folder / "plain.keras", folder / "plain.tflite")
    return folder


@pytest.fixture
def own(models, monkeypatch):
    """The folder of `models`, worked in."""
    monkeypatch.chdir(models)
    return models


@pytest.mark.parametrize(
    ("model", "option", "refusal"),
    [
        ("gain", ("--custom-objects", "my_layers"), "uses Gain of module 'my_layers'"),
        ("lambda", ("--trust",), "(Lambda) carries code that would run on this machine"),
    ],
)
def test_code_of_the_user_runs_only_when_asked_for(cli, own, model, option, refusal):
    """Each command refuses it by name with exit 2, and does it with the option that the message names."""
    commands = (
        ("export", f"{model}.keras", "-o", f"{model}.tflite"),
        ("validate", "plain.tflite", "--reference", f"{model}.keras", "--data", "d.npz"),
        ("inspect", f"{model}.keras"),
    )
    for arguments in commands:
        refused = cli(*arguments)
        assert (refused.code, refused.out) == (2, ""), arguments
        assert refusal in refused.err
        assert " ".join(option) in refused.err
        assert len(refused.err.splitlines()) == 1
    for arguments in commands:  # afterwards: a process that has loaded such a layer knows it
        done = cli(*arguments, *option)
        assert done.code == 0, done.err


def test_custom_objects_that_are_not_there_are_one_line(cli, own):
    answer = cli("export", "gain.keras", "--custom-objects", "no_such_module", "-o", "a.tflite")
    assert (answer.code, answer.out) == (2, "")
    assert "no_such_module" in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (own / "a.tflite").exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory, model, data):
    """The small model as float and, with its preprocessing inside, as int8; test.toml and train.toml of raw pixels."""
    from edgedl import pipeline

    folder = tmp_path_factory.mktemp("exported")
    for name in ("train", "test"):
        (folder / f"{name}.npz").write_bytes((data / f"{name}.npz").read_bytes())
        (folder / f"{name}.toml").write_text(
            f'data = "{name}.npz"\n[[preprocess]]\nop = "crop"\nheight = 8\nwidth = 8\n'
            '[[preprocess]]\nop = "scale"\nfactor = 0.01\n[[preprocess]]\nop = "normalize"\nmean = 0.5\nstd = 0.25\n'
        )
    pipeline.export(model, folder / "float.tflite")
    for name in ("raw.tflite", "raw.onnx"):
        pipeline.export(
            model, folder / name, scheme="int8", calibration_data=folder / "train.toml", embed_preprocessing=True
        )
    return folder


@pytest.mark.parametrize("name", ["raw.tflite", "raw.onnx"])
def test_an_embedded_artifact_is_judged_on_raw_data_and_packed_for_raw_data(cli, exported, model, tmp_path, name):
    """Only the crop is left to the app; the answers are those of the model on preprocessed data."""
    given = ("--reference", model, "--data", exported / "test.toml", "--limit", "max_abs=0.05")
    answer = cli("validate", exported / name, *given)
    assert answer.code == 0, answer.err
    packed = cli("package", exported / name, "--platform", "zip", "--data", exported / "test.toml", "-o", tmp_path)
    assert packed.code == 0, packed.err
    with zipfile.ZipFile(packed.out.strip()) as archive:
        told = json.loads(archive.read("preprocessing.json"))
    assert [step["op"] for step in told["preprocessing"]] == ["crop"]
    assert [step["op"] for step in told["embedded"]] == ["scale", "normalize"]
    assert cli("verify", packed.out.strip()).code == 0


def test_an_embedded_artifact_refuses_data_that_says_something_else(cli, exported, model):
    answer = cli("validate", exported / "raw.tflite", "--reference", model, "--data", exported / "test.npz")
    assert (answer.code, answer.out) == (2, "")
    assert "name the .toml it was exported with" in answer.err


def test_plan_needs_a_loss_and_counts_the_samples_there_are(cli, exported):
    given = ("validate", "none.tflite", "--reference", "none.keras", "--data", exported / "test.toml", "--plan")
    answer = cli(*given)
    assert (answer.code, answer.out) == (2, "")
    assert "--plan: name the loss that is allowed with --max-drop" in answer.err
    assert (
        "--max-drop: 0.5pp, or a number in the metric's unit, is needed, got 'much'"
        in cli(*given, "--max-drop", "much").err
    )
    loose, tight = (cli(*given, "--max-drop", d, "--json").json for d in ("5pp", "0.5pp"))
    assert loose["have"] == tight["have"] == 400
    assert loose["samples"] < 400 < tight["samples"]
    assert "400 samples, some" in cli(*given, "--max-drop", "5pp").out


@pytest.mark.parametrize(
    ("limit", "code", "verdict"),
    [
        ("max_abs=0.001", 0, "pass"),
        ("size_bytes=10", 6, "fail"),
        ("arena_bytes=1000", 7, "unchecked"),
        ("max_lsb=1", 7, "unchecked"),
    ],
)
def test_a_limit_passes_fails_or_cannot_be_checked(cli, exported, model, limit, code, verdict):
    given = ("--reference", model, "--data", exported / "test.npz", "--limit", limit)
    answer = cli("validate", exported / "float.tflite", *given, "--json")
    assert answer.code == code, answer.err
    name, _, value = limit.partition("=")
    (check,) = (c for c in answer.json["checks"] if c["name"] == name)
    assert (check["verdict"], check["limit"]) == (verdict, float(value))


@pytest.mark.parametrize("limit", ["max_abs", "max_abs=small", "max_ab=1"])
def test_a_limit_that_is_none_is_one_line(cli, limit):
    answer = cli("validate", "a.tflite", "--reference", "b", "--data", "c", "--limit", limit)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("Error: --limit: ")
    assert len(answer.err.splitlines()) == 1


def test_validate_keeps_the_reports_that_are_there(cli, exported, model, tmp_path):
    """Before anything runs; --force overwrites."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "report.html").write_text("mine")
    (tmp_path / "report.json").write_text("mine")
    given = ("validate", exported / "float.tflite", "--reference", model, "--data", exported / "test.npz")
    for option in (("--report", tmp_path), ("--report", tmp_path / "r"), ("--junit", tmp_path / "report.json")):
        answer = cli(*given, *option)
        assert (answer.code, answer.out) == (2, "")
        assert re.search("report.(json|html): exists; --force overwrites it", answer.err)
    assert (tmp_path / "r" / "report.html").read_text() == "mine"
    assert (tmp_path / "report.json").read_text() == "mine"
    assert cli(*given, "--report", tmp_path, "--force").code == 0
    assert (tmp_path / "report.html").exists()
