"""`edgedl train`'s child side: architectures, the user's own models, the data's mistakes, and what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.update({"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"})

from edgedl import worker
from edgedl.errors import InputError
from edgedl.fitting import set_seed
from edgedl.models.onednn import is_plain
from edgedl.training import architectures, job, tasks
from edgedl.training.architectures import ARCHITECTURES, Affine, Head, build
from edgedl.training.train import train

keras = pytest.importorskip("keras")

SHAPES = {
    "cnn-small": (8, 8, 1),
    "resnet8": (32, 32, 3),
    "mobilenet-tiny": (16, 16, 3),
    "mobilenet-v2": (16, 16, 3),
    "ds-cnn": (49, 10, 1),
    "cnn1d": (26, 3),
    "gru": (26, 3),
    "mlp": (12,),
    "autoencoder": (12,),
}
FAST = {"epochs": 8, "batch_size": 32, "learning_rate": 0.01}


@pytest.fixture
def stage(tmp_path):
    """Writes arrays as .npy files; gives the description that `train` takes."""

    def write(inputs, targets, labels=(), name="data"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        paths = {}
        for key, array in {**inputs, **targets}.items():
            paths[key] = str(folder / f"{key}.npy")
            np.save(paths[key], array)
        count = len(next(iter(inputs.values())))
        described = {"inputs": {k: paths[k] for k in inputs}, "targets": {k: paths[k] for k in targets}}
        return {**described, "labels": list(labels), "count": count}

    return write


def bars(count=160, seed=0):
    """8x8 pictures of 0 to 255, horizontal or vertical bars on noise, and which of the two they are."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    x = rng.integers(0, 100, (count, 8, 8, 1))
    for picture, kind in zip(x, y, strict=True):
        line = rng.integers(0, 8)
        picture[(line, slice(None)) if kind else (slice(None), line)] += 155
    return x.astype(np.uint8), y


X, Y = bars(64)


def accuracy(path, x, y):
    answers = np.asarray(keras.models.load_model(path)(x.astype(np.float32)))
    return float((answers.argmax(-1) == y.reshape(-1)).mean())


@pytest.mark.parametrize(
    ("model", "long", "child"),
    [
        ("cnn-small", True, worker.ONEDNN),
        ("cnn-small", False, worker.TENSORFLOW),
        ("nets:single", True, worker.TENSORFLOW),
    ],
)
def test_a_long_training_of_ours_is_done_with_onednn(tmp_path, monkeypatch, model, long, child):
    def call(what, arguments, *, child):
        called.append((what, child))
        Path(arguments["out"]).write_bytes(b"a model")
        return {"notes": []}

    called = []
    monkeypatch.setattr(worker, "call", call)
    monkeypatch.setattr(worker, "warm", lambda: None)
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    monkeypatch.setattr(job, "LONG_VALUES", 3 * X.size + (0 if long else 1))
    options = {"epochs": 3, "seed": 0}
    given = {"source": str(tmp_path / "data.npz"), "evaluation": None, "options": options, "force": False}
    job.train_to(tmp_path / "m.keras", model=model, **given)
    assert called == [("edgedl.training.train:train", child)]


def test_every_architecture_has_a_shape_here():
    assert list(SHAPES) == [a.name for a in ARCHITECTURES]
    assert all(a.summary and a.takes.startswith("(") for a in ARCHITECTURES)


@pytest.mark.parametrize("name", SHAPES)
def test_architecture_is_made_of_what_targets_take(name):
    set_seed(0)
    model = build(name, SHAPES[name], Head(units=5), Affine(scale=0.5, offset=-1.0))
    assert model.output_shape == (None, 5)
    assert [model.inputs[0].name, *model.output_names] == ["input", "output"]
    allowed = {"Conv1D", "Conv2D", "DepthwiseConv2D", "Dense", "GRU", "BatchNormalization", "ReLU", "Add", "Rescaling"}
    allowed |= {"MaxPooling1D", "MaxPooling2D", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "Dropout"}
    allowed |= {"ZeroPadding2D"}
    assert {type(layer).__name__ for layer in model.layers} - {"InputLayer"} <= allowed
    assert is_plain(model), "trained with oneDNN"
    assert {getattr(layer, "max_value", None) for layer in model.layers} <= {None, 6.0}
    assert len({layer.name for layer in model.layers} & {"normalize", "output"}) == 2


def test_resnet8_has_the_topology_of_mlperf_tiny():
    model = build("resnet8", (32, 32, 3), Head(units=10))
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("Conv2D") == 9
    assert kinds.count("Add") == 3
    kernels = sum(w.shape.num_elements() for w in model.trainable_weights if w.name == "kernel")
    assert kernels == 77_360  # conv 432 + 4608 + 4608 + 9216 + 512 + 18432 + 36864 + 2048, dense 640
    assert [model.get_layer(f"stack{i}_add").output.shape[1:] for i in (1, 2, 3)] == [
        (32, 32, 16),
        (16, 16, 32),
        (8, 8, 64),
    ]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cnn9", (8, 8, 1), "no such architecture: 'cnn9'; built in: cnn-small, resnet8"),
        (
            "cnn-small",
            (128, 9),
            r"takes inputs \(height, width, channels\), got \(128, 9\); .*fit: cnn1d, gru",
        ),
        ("mlp", (8, 8, 1), r"mlp takes inputs \(features\), got .*fit: cnn-small, resnet8"),
        ("mobilenet-tiny", (8, 8, 3), r"\(height >= 16, width >= 16, channels\), got \(8, 8, 3\)"),
        ("mlp", (2, 2, 2, 2), "these architectures fit: none; use module:function"),
    ],
)
def test_build_refuses_what_does_not_fit_and_names_what_does(name, shape, message):
    with pytest.raises(InputError, match=message):
        build(name, shape, Head(units=2))


def test_affine_standardizes_and_undoes_itself():
    x = np.random.default_rng(0).normal((5, -3), (0.1, 200), (1000, 2)).astype(np.float32)
    affine = tasks.standardizing(x)
    scaled = np.asarray(affine.layer("a")(x))
    assert np.allclose(scaled.mean(0), 0, atol=1e-3)
    assert np.allclose(scaled.std(0), 1, atol=1e-3)
    assert np.allclose(np.asarray(affine.inverse.layer("b")(scaled)), x, rtol=1e-4)
    rounded = np.full((120, 1), 1.45)
    assert rounded.std() > 0
    assert tasks.standardizing(rounded).scale == (1.0,)
    assert tasks.standardizing(np.full((9, 2), 4.0)) == Affine(scale=(1.0, 1.0), offset=(-4.0, -4.0))


def test_train_learns_raw_pixels_and_writes_a_model(stage, tmp_path):
    x, y = bars()
    out = tmp_path / "model.part"
    options = {**FAST, "patience": 8, "seed": 1}
    result = train("cnn-small", stage({"x": x}, {"y": y}, ["upright", "flat"]), None, str(out), options)
    assert json.loads(json.dumps(result)) == result
    assert accuracy(out.rename(tmp_path / "model.keras"), *bars(seed=5)) > 0.95
    facts = "parameters epochs best_epoch history evaluation seconds device seed classes notes"
    assert set(result) == set(facts.split())
    assert result["classes"] == {"output": 2}
    assert len(result["history"]["loss"]) == result["epochs"]
    assert result["parameters"] == keras.models.load_model(tmp_path / "model.keras").count_params()
    assert any(note.startswith("held out 16 of 160 training samples (seed 1)") for note in result["notes"])


def test_two_processes_write_the_same_file(stage, tmp_path):
    data, options = stage({"x": X}, {"y": Y}), {"epochs": 2, "seed": 5, "patience": 2}
    code = "import json, sys; from edgedl.training.train import train; train(*json.loads(sys.argv[1]))"
    calls = [json.dumps(["cnn-small", data, None, str(tmp_path / out), options]) for out in ("a", "b")]
    children = [subprocess.Popen([sys.executable, "-c", code, call], stderr=subprocess.PIPE) for call in calls]
    for child in children:
        assert child.communicate()[1] is not None
        assert child.returncode == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_evaluation_data_is_judged_and_may_have_other_integers(stage, tmp_path):
    x, y = bars()
    other_x, other_y = bars(seed=9)
    data = stage({"x": x}, {"y": y.astype(np.int32)})
    judged = stage({"x": other_x.astype(np.int32)}, {"y": other_y.astype(np.uint8)[:, None]}, name="judged")
    result = train("cnn-small", data, judged, str(tmp_path / "m"), FAST)
    assert result["evaluation"]["accuracy"] == pytest.approx(
        accuracy((tmp_path / "m").rename(tmp_path / "m.keras"), other_x, other_y)
    )
    assert result["evaluation"]["accuracy"] > 0.9


def test_numbers_are_learned_on_their_own_scale(stage, tmp_path):
    x = np.random.default_rng(0).normal(40, 5, (256, 6)).astype(np.float32)
    y = (1000 * x[:, 0] - 500 * x[:, 1] + 7e5).astype(np.float64)
    result = train("mlp", stage({"x": x}, {"y": y}), None, str(tmp_path / "m"), {**FAST, "epochs": 20})
    (tmp_path / "m").rename(tmp_path / "m.keras")
    answers = np.asarray(keras.models.load_model(tmp_path / "m.keras")(x))[:, 0]
    assert np.abs(answers - y).mean() < 0.2 * y.std()
    assert result["classes"] == {}
    assert any("mean_squared_error" in note for note in result["notes"])


def test_several_labels_a_sample_end_in_sigmoid(stage, tmp_path):
    x = np.random.default_rng(0).normal(size=(256, 6)).astype(np.float32)
    y = (x[:, :3] > 0).astype(np.uint8)
    result = train("mlp", stage({"x": x}, {"y": y}), stage({"x": x}, {"y": y}), str(tmp_path / "m"), FAST)
    assert result["evaluation"]["accuracy"] > 0.9
    assert any("binary_crossentropy" in note for note in result["notes"])


def test_as_many_classes_as_features_are_still_classes(stage, tmp_path):
    x = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
    y = x.argmax(1)
    result = train("mlp", stage({"x": x}, {"y": y}), stage({"x": x}, {"y": y}), str(tmp_path / "m"), FAST)
    assert result["classes"] == {"output": 3}
    assert result["evaluation"]["accuracy"] > 0.9


def test_preprocessing_asks_which_arrays_are_inputs(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.zeros((4, 3), np.uint8), label=np.zeros(4))
    (tmp_path / "a.toml").write_text('data = "a.npz"\n[[preprocess]]\nop = "cast"\ndtype = "float32"\n')
    given = {"model": "mlp", "source": str(tmp_path / "a.toml"), "evaluation": None, "options": {}, "force": False}
    with pytest.raises(InputError, match=r"a\.toml: preprocessing is for inputs, and which of image, label are inputs"):
        job.train_to(tmp_path / "m.keras", **given)


def test_autoencoder_learns_its_input_and_needs_no_targets(stage, tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(256, 2)) @ rng.normal(size=(2, 12)) * 30 + 100).astype(np.float32)
    y = np.zeros(256, np.int64)
    with_labels, without = stage({"x": x}, {"y": y}), stage({"x": x}, {}, name="bare")
    for data in (with_labels, without):
        result = train("autoencoder", data, data, str(tmp_path / "m"), {**FAST, "epochs": 15})
        assert result["evaluation"]["mae"] < 0.35 * np.abs(x - x.mean(0)).mean()
        assert any("learns its own input" in note for note in result["notes"])
    with pytest.raises(InputError, match=r"mlp needs targets \(y\), the data has none"):
        train("mlp", without, None, str(tmp_path / "n"), FAST)


MODULE = """
import keras

def image(input_shape, classes):
    inputs = keras.Input(input_shape, name="picture")
    x = keras.layers.Flatten()(inputs)
    return keras.Model(inputs, keras.layers.Dense(classes, "softmax", name="kind")(x))

def by_shape(shape):
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2, "softmax")])

def fixed():
    model = image((8, 8, 1), 2)
    model.compile("sgd", "mean_absolute_error")
    return model

def only_classes(*, classes):
    return image((8, 8, 1), classes)

def two(input_shape, classes):
    left, right = keras.Input(input_shape["left"], name="left"), keras.Input(input_shape["right"], name="right")
    x = keras.layers.Concatenate()([left, right])
    return keras.Model([left, right], [keras.layers.Dense(classes["kind"], "softmax", name="kind")(x),
                                       keras.layers.Dense(1, name="size")(x)])

def needy(depth, width, height): pass
def raises(input_shape):
    return 1 / 0
def text(): return "model"
def wide(): return image((9, 9, 1), 2)
def many(): return image((8, 8, 1), 4)
class Own(keras.Model):
    def call(self, x): return x
def subclassed(): return Own()
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    (tmp_path / "mynets_for_test.py").write_text(MODULE)
    (tmp_path / "broken_for_test.py").write_text("import no_such_package_here\n")
    return "mynets_for_test:"


@pytest.mark.parametrize("function", ["image", "by_shape", "only_classes"])
def test_own_models_are_called_with_what_they_take(stage, nets, tmp_path, function):
    x, y = bars()
    result = train(nets + function, stage({"x": x}, {"y": y}), None, str(tmp_path / "m"), {**FAST, "epochs": 1})
    assert keras.models.load_model((tmp_path / "m").rename(tmp_path / "m.keras")).output_shape == (None, 2)
    assert list(result["classes"].values()) == [2]


def test_own_model_keeps_the_loss_it_was_compiled_with(stage, nets, tmp_path):
    x, y = bars()
    data = stage({"x": x}, {"y": np.eye(2, dtype=np.float32)[y]})
    notes = " ".join(train(nets + "fixed", data, None, str(tmp_path / "m"), {**FAST, "epochs": 1})["notes"])
    assert "loss taken from the model's compile()" in notes
    assert "mean_absolute_error, as given" in notes


def test_own_model_of_two_inputs_and_two_outputs_is_bound_by_name(stage, nets, tmp_path):
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(128, 3)).astype(np.float32), rng.normal(size=(128, 2)).astype(np.float32)
    kind, size = (left[:, 0] > 0).astype(np.int64), right.sum(1)
    data = stage({"left": left, "right": right, "spare": left}, {"kind": kind, "size": size})
    result = train(nets + "two", data, data, str(tmp_path / "m"), {**FAST, "epochs": 20})
    assert result["evaluation"]["kind_accuracy"] > 0.9
    assert result["evaluation"]["size_mae"] < 0.4
    assert any("not used, as the model has nothing of that name: spare" in note for note in result["notes"])
    del data["inputs"]["right"]
    with pytest.raises(InputError, match="KeyError: 'right'"):
        train(nets + "two", data, None, str(tmp_path / "n"), FAST)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mynets_for_test:nothing", "has no function 'nothing'; it has image, by_shape"),
        ("mynets_for_test:needy", r"called with \(input_shape, classes\) or fewer.*requires \(depth, width, height\)"),
        ("mynets_for_test:raises", "mynets_for_test.py line 28: ZeroDivisionError: division by zero"),
        ("mynets_for_test:text", "must return a keras.Model, got builtins.str"),
        ("mynets_for_test:subclassed", "subclassed or unbuilt"),
        ("mynets_for_test:wide", r"input 'picture' takes samples of shape \(9, 9, 1\), the data has \(8, 8, 1\)"),
        ("no_module_for_test:f", "no module 'no_module_for_test' in"),
        ("broken_for_test:f", "importing broken_for_test failed: No module named 'no_such_package_here'"),
    ],
)
def test_own_models_that_are_no_good_are_refused(stage, nets, tmp_path, model, message):
    with pytest.raises(InputError, match=message):
        train(model, stage({"x": bars(8)[0]}, {"y": bars(8)[1]}), None, str(tmp_path / "m"), FAST)
    assert not (tmp_path / "m").exists()


def spoiled(array, sample, value):
    array = array.copy()
    array[sample] = value
    return array


@pytest.mark.parametrize(
    ("x", "y", "labels", "message"),
    [
        (spoiled(X.astype(np.float32), 41, np.nan), Y, (), r"x \(.*x.npy\): sample 41 holds nan; allowed: finite"),
        (X, spoiled(Y, 7, -1), (), r"output \(.*y.npy\): sample 7 holds -1; allowed: classes 0 to 1"),
        (X, spoiled(Y, 7, 2), ("a", "b"), "output 'output' gives 3 classes, the data names 2 labels"),
        (X, spoiled(Y.astype(np.float64), 5, np.inf), (), r"y \(.*y.npy\): sample 5 holds inf"),
        (X, spoiled(Y, 7, 99_999), (), "0 to 99999 in 64 samples are too many; store amounts as floats"),
        (X, np.zeros((64, 3, 3), np.float32), (), r"the targets have \(3, 3\); use module:function"),
    ],
)
def test_bad_values_are_refused_with_file_and_sample(stage, tmp_path, x, y, labels, message):
    with pytest.raises(InputError, match=message):
        train("cnn-small", stage({"x": x}, {"y": y}, labels), None, str(tmp_path / "m"), FAST)
    assert not (tmp_path / "m").exists()


def test_bad_evaluation_data_is_refused(stage, tmp_path):
    data = stage({"x": X}, {"y": Y})
    with pytest.raises(InputError, match=r"judged/y.npy\): sample 3 holds 4; allowed: classes 0 to 1"):
        train("cnn-small", data, stage({"x": X}, {"y": spoiled(Y, 3, 4)}, name="judged"), str(tmp_path / "m"), FAST)
    with pytest.raises(InputError, match=r"has float64 of shape \(\) a sample, the training data int64"):
        train("cnn-small", data, stage({"x": X}, {"y": Y / 1.0}, name="judged"), str(tmp_path / "m"), FAST)
    with pytest.raises(InputError, match=r"takes samples of shape \(8, 8, 1\), the data has \(4, 8, 1\)"):
        train("cnn-small", data, stage({"x": X[:, :4]}, {"y": Y}, name="judged"), str(tmp_path / "m"), FAST)


def test_labels_beyond_an_own_models_classes_are_refused(stage, nets, tmp_path):
    with pytest.raises(InputError, match="sample 6 holds 4; allowed: classes 0 to 3"):
        train(nets + "many", stage({"x": X}, {"y": spoiled(Y, 6, 4)}), None, str(tmp_path / "m"), FAST)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"count": 65}, {}, r"x \(.*x.npy\): has 64 samples, the data has 65"),
        ({}, {"epoch": 3}, "unknown training options: epoch; allowed: epochs, batch_size"),
        ({"targets": {}}, {}, "cnn-small needs targets"),
        ({}, {"devices": ["GPU:0"]}, "devices: got GPU:0; this machine has CPU:0"),
    ],
)
def test_bad_descriptions_and_options_are_refused(stage, tmp_path, change, options, message):
    with pytest.raises(InputError, match=message):
        train("cnn-small", stage({"x": X}, {"y": Y}) | change, None, str(tmp_path / "m"), options)


def test_two_inputs_need_an_own_model(stage, tmp_path):
    with pytest.raises(InputError, match="one input and one output, the data has inputs a, b and targets y"):
        train(architectures.AUTOENCODER, stage({"a": X, "b": X}, {"y": Y}), None, str(tmp_path / "m"), FAST)
