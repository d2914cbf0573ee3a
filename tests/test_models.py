"""Loading, refusing, cleaning, naming, describing and running Keras 3 models."""

import json
import os
import re
import shutil
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from edgedl import models
from edgedl.errors import InputError, UnsupportedError
from edgedl.models.files import first_line
from edgedl.models.macs import table
from edgedl.models.tensors import call_flat, largest_difference

DATA = Path(__file__).parents[2] / "shared/data"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = pytest.importorskip("keras")
layers = keras.layers


def saved(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path)
    return path


def small():
    return keras.Sequential([keras.Input((4,), name="x"), layers.Dense(3, name="y")])


def answer(model, *arrays):
    return [np.asarray(a) for a in call_flat(model, arrays)]


# ---- what is no model ---------------------------------------------------------------------------------------------


def broken_files(folder):
    good = saved(small(), folder / "good.keras").read_bytes()
    old = saved(small(), folder / "good.h5").read_bytes()
    flipped = bytearray(good)
    with zipfile.ZipFile(folder / "good.keras") as archive:
        offset = archive.getinfo("model.weights.h5").header_offset + 500
    flipped[offset] ^= 1
    with zipfile.ZipFile(folder / "other.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    small().save_weights(folder / "only.weights.h5")
    return {
        "text.keras": (b"not a model\n", "a text file"),
        "empty.keras": (b"", "an empty file"),
        "cut.keras": (good[: len(good) // 2], "truncated or damaged"),
        "flipped.keras": (bytes(flipped), "truncated or damaged"),
        "cut.h5": (old[: len(old) // 2], "truncated or damaged"),
        "other.keras": ((folder / "other.keras").read_bytes(), "a zip archive without config.json"),
        "m.tflite": (b"\x1c\0\0\0TFL3" + bytes(64), "a TFLite file"),
        "m.onnx": (b"\x08\x07\x12\x04\xff\xfe", "an ONNX file"),
        "bytes.h5": (b"\xff\xfe\x00\x81" * 9, "unknown format"),
        "pointer.keras": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "only.weights.h5": ((folder / "only.weights.h5").read_bytes(), "weights without the network"),
    }


def test_load_says_what_a_wrong_file_is(tmp_path):
    for name, (content, expected) in broken_files(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError) as e:
            models.load(path)
        assert name in str(e.value)
        assert expected in str(e.value)
        assert "\n" not in str(e.value)


def test_load_refuses_missing_paths_and_plain_folders(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.keras: no such file"):
        models.load(tmp_path / "nothing.keras")
    with pytest.raises(InputError, match=r"a folder without saved_model\.pb"):
        models.load(tmp_path)


def test_the_reason_of_a_traced_function_is_its_last_line():
    traced = ValueError(
        'in user code:\n\n    File "a.py", line 3, in f\n        g()\n\n    ValueError: No gradients.\n'
    )
    assert first_line(traced) == "ValueError: No gradients."
    assert first_line(ValueError("one\ntwo")) == "one"


def test_load_refuses_a_saved_model_without_keras_metadata(tmp_path):
    small().export(tmp_path / "exported", verbose=False)
    with pytest.raises(InputError, match="SavedModel without Keras metadata"):
        models.load(tmp_path / "exported")
    (tmp_path / "exported/saved_model.pb").write_bytes(b"\xff" * 50)
    with pytest.raises(InputError, match="truncated or damaged"):
        models.load(tmp_path / "exported")


def test_load_refuses_an_unbuilt_model(tmp_path):
    path = saved(keras.Sequential([layers.Dense(3)]), tmp_path / "m.keras")
    with pytest.raises(InputError, match=r"never built.*keras\.Input"):
        models.load(path)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_load_takes_an_adapted_normalization_in_a_nested_model(tmp_path, suffix):
    norm = keras.layers.Normalization()
    x = np.random.default_rng(0).normal(100, 20, (16, 4)).astype(np.float32)
    inner = keras.Sequential([keras.Input((4,)), norm])
    norm.adapt(x)
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, keras.layers.Dense(2)(inner(inputs)))
    model.save(tmp_path / f"m{suffix}")
    loaded = models.load(tmp_path / f"m{suffix}").model
    np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5, atol=1e-5)


def test_load_takes_any_suffix_and_unpacked_archives(tmp_path):
    model = small()
    saved(model, tmp_path / "m.keras").rename(tmp_path / "m.model")
    saved(model, tmp_path / "m.h5").rename(tmp_path / "m.weird")
    with zipfile.ZipFile(tmp_path / "m.model") as archive:
        archive.extractall(tmp_path / "unpacked")
    x = np.ones((2, 4), np.float32)
    for name in ("m.model", "m.weird", "unpacked"):
        np.testing.assert_array_equal(answer(models.load(tmp_path / name).model, x), answer(model, x))


# ---- code and custom classes --------------------------------------------------------------------------------------


def lambda_model(marker):
    code = f"lambda x: (open({str(marker)!r}, 'w').close(), x * 2)[1]"
    return layers.Lambda(eval(code), name="evil")  # noqa: S307


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("nesting", ["top", "model", "wrapper"])
def test_load_refuses_lambda_before_it_runs(tmp_path, suffix, nesting):
    marker = tmp_path / "ran"
    evil = lambda_model(marker)
    if nesting == "model":
        evil = keras.Sequential([keras.Input((2, 4)), evil], name="inner")
    if nesting == "wrapper":
        evil = layers.TimeDistributed(evil, name="outer")
    model = keras.Sequential([keras.Input((2, 4)), evil])
    path = saved(model, tmp_path / f"m{suffix}")
    marker.unlink()
    with pytest.raises(InputError, match=r"layer 'evil' \(Lambda\) carries code.*--trust"):
        models.load(path)
    assert not marker.exists()
    loaded = models.load(path, trust=True)
    np.testing.assert_array_equal(answer(loaded.model, np.ones((1, 2, 4), np.float32))[0], 2)


def test_load_refuses_lambda_activations_and_builtin_functions(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu", name="d")])
    path = saved(model, tmp_path / "m.keras")
    for activation in (
        {"class_name": "__lambda__", "config": {"value": ["AAAA", None, None]}},
        {"class_name": "function", "module": "builtins", "config": "exec", "registered_name": "function"},
        {"class_name": "function", "module": "keras.utils", "config": "get_file", "registered_name": "get_file"},
    ):
        edit_config(path, lambda config, a=activation: config["config"]["layers"][1]["config"].update(activation=a))
        with pytest.raises(InputError, match=r"layer 'd' .*carries code.*--trust"):
            models.load(path)


def test_load_does_not_mind_how_the_model_was_compiled(tmp_path):
    def my_loss(y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred))

    model = small()
    model.compile(loss=my_loss)
    assert models.load(saved(model, tmp_path / "m.keras")).notes == ()


def edit_config(path, change):
    with zipfile.ZipFile(path) as archive:
        members = {n: archive.read(n) for n in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


CUSTOM = """
import keras
class {name}(keras.layers.Layer):
    def __init__(self, factor=1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor
    def call(self, x):
        return x * self.factor
    def get_config(self):
        return {{**super().get_config(), "factor": self.factor}}
def {function}(x):
    return keras.ops.abs(x)
"""


@pytest.fixture
def custom(tmp_path, monkeypatch, request):
    """A module in the working directory, its model's two files, and no trace of it in this process."""
    name = f"layers_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(CUSTOM.format(name="Scale", function="absolute"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__(name)
    model = keras.Sequential([keras.Input((4,)), module.Scale(3.0, name="s"), layers.Activation(module.absolute)])
    saved(model, tmp_path / "m.keras")
    saved(model, tmp_path / "m.h5")
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def test_load_names_a_missing_custom_class(custom):
    with pytest.raises(
        InputError, match=rf"layer 's' uses Scale of module '{custom}'.*--custom-objects {custom}.*--trust"
    ):
        models.load(Path("m.keras"))
    with pytest.raises(InputError, match=r"uses 'Scale'.*--custom-objects"):
        models.load(Path("m.h5"))


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_load_takes_custom_objects_from_the_working_directory(custom, suffix):
    x = np.full((1, 4), -2, np.float32)
    for spec in (custom, f"{custom}:Scale,{custom}:absolute"):
        np.testing.assert_array_equal(answer(models.load(Path(f"m.{suffix}"), custom_objects=spec).model, x)[0], 6)
    assert str(Path.cwd()) not in sys.path


def test_load_with_trust_imports_the_module_that_the_file_names(custom):
    model = models.load(Path("m.keras"), trust=True).model
    np.testing.assert_array_equal(answer(model, np.full((1, 4), -2, np.float32))[0], 6)


def test_load_reports_custom_objects_that_do_not_import(custom):
    Path("broken.py").write_text("1 / 0")
    with pytest.raises(InputError, match="no module 'nowhere_at_all' in"):
        models.load(Path("m.keras"), custom_objects="nowhere_at_all")
    with pytest.raises(InputError, match="importing broken failed: ZeroDivisionError: division by zero"):
        models.load(Path("m.keras"), custom_objects="broken")
    with pytest.raises(InputError, match=f"module {custom} has no attribute 'Nothing'"):
        models.load(Path("m.keras"), custom_objects=f"{custom}:Nothing")


# ---- what inference does not need ---------------------------------------------------------------------------------


def augmented():
    x = keras.Input((8, 8, 3), name="image")
    y = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)], name="augment")(x)
    y = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.SpatialDropout2D(0.5)], name="body")(y)
    y = layers.BatchNormalization()(y)
    drop = layers.Dropout(0.5, name="shared_drop")
    y = layers.Add()([drop(y), drop(layers.GaussianNoise(0.1)(y))])
    y = layers.TimeDistributed(layers.Dropout(0.3))(y)
    y = layers.ActivityRegularization(0.1)(layers.Flatten()(y))
    return keras.Model(x, layers.Dropout(0.2, name="probabilities")(layers.Dense(5)(y)))


def test_load_removes_training_only_layers(tmp_path):
    model = augmented()
    model.layers[3].set_weights([np.linspace(0.5, 2, 4, dtype=np.float32)] * 4)
    loaded = models.load(saved(model, tmp_path / "m.keras"))
    text = json.dumps(loaded.model.get_config())
    for name in ("Dropout", "RandomFlip", "RandomRotation", "GaussianNoise", "ActivityRegularization"):
        assert f'"{name}"' not in text
        assert f"({name})" in " ".join(loaded.notes)
    x = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
    np.testing.assert_allclose(answer(loaded.model, x), answer(model, x), atol=1e-6)
    assert all(len(layer._inbound_nodes) == 1 for layer in loaded.model.layers)
    ours, theirs = models.specs(loaded.model), models.specs(model)
    assert ours == theirs
    assert ours[1][0].name == "probabilities"
    again = keras.Model.from_config(loaded.model.get_config())  # and it can be made again
    again.set_weights(loaded.model.get_weights())
    np.testing.assert_allclose(answer(again, x), answer(model, x), atol=1e-6)


def test_load_keeps_a_sequential_model_sequential(tmp_path):
    model = keras.Sequential([keras.Input((4,), name="x"), layers.Dropout(0.5), layers.Dense(2), layers.Dropout(0.1)])
    loaded = models.load(saved(model, tmp_path / "m.keras"))
    assert type(loaded.model) is keras.Sequential
    assert [type(layer).__name__ for layer in loaded.model.layers] == ["Dense", "Identity"]
    assert models.specs(loaded.model) == models.specs(model)


def test_load_removes_layers_that_are_called_by_keyword(tmp_path):
    x = keras.Input((4,), name="x")
    loaded = models.load(
        saved(keras.Model(x, layers.Dense(2, name="last")(layers.Dropout(0.5)(inputs=x))), tmp_path / "m.keras")
    )
    assert [layer.name for layer in loaded.model.layers] == ["x", "last"]


def test_load_keeps_the_name_of_an_output_of_training_only_layers(tmp_path):
    x = keras.Input((4,), name="x")
    noise = keras.Sequential([keras.Input((4,)), layers.GaussianNoise(0.1)], name="noise")
    model = keras.Model(x, noise(layers.Dense(4)(x)))
    loaded = models.load(saved(model, tmp_path / "m.keras"))
    assert models.specs(loaded.model) == models.specs(model)
    values = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(answer(loaded.model, values), answer(model, values))


def test_load_leaves_a_clean_model_alone(tmp_path):
    loaded = models.load(saved(small(), tmp_path / "m.keras"))
    assert loaded.notes == ()


def test_load_makes_mixed_precision_float32(tmp_path):
    x = keras.Input((6,), name="x")
    y = layers.Dense(8, activation="relu", dtype="mixed_float16")(x)
    y = layers.Bidirectional(layers.LSTM(3, dtype="mixed_float16"), dtype="mixed_float16")(layers.Reshape((4, 2))(y))
    model = keras.Model(x, layers.Dense(2, dtype="mixed_bfloat16", name="y")(y))
    loaded = models.load(saved(model, tmp_path / "m.keras"))
    assert "float16 arithmetic became float32" in loaded.notes[0]
    assert "mixed" not in json.dumps(loaded.model.get_config())
    assert [t.dtype for t in loaded.model.outputs] == ["float32"]
    for ours, theirs in zip(loaded.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@keras.saving.register_keras_serializable("edgedl_test")
class Table(layers.Layer):
    def call(self, x):
        return keras.ops.take(keras.ops.arange(3.0), x)


def test_load_takes_integers_of_a_range_that_no_embedding_tells(tmp_path):
    x = keras.Input((4,), dtype="int32", name="x")
    loaded = models.load(saved(keras.Model(x, layers.Dropout(0.5)(Table()(x))), tmp_path / "m.keras"))
    np.testing.assert_array_equal(answer(loaded.model, np.array([[0, 1, 2, 2]])), [[[0, 1, 2, 2]]])


@pytest.mark.parametrize("behind", [layers.Identity(), layers.Dense(2, kernel_initializer="ones")])
def test_load_compares_what_is_finite(tmp_path, behind):
    x = keras.Input((6,), name="x")
    y = keras.ops.log(layers.Rescaling(2.0, offset=0.5, dtype="mixed_float16")(x))
    loaded = models.load(saved(keras.Model(x, behind(y)), tmp_path / "m.keras"))
    assert 0 < float(re.search(r"differ by at most (\S+)", loaded.notes[0])[1]) < 0.1, "0 is what NaN alone would give"


def test_load_refuses_a_model_that_answers_nothing_finite(tmp_path):
    x = keras.Input((6,), name="x")
    model = keras.Model(x, keras.ops.log(layers.Dropout(0.5)(x) - 9.0))
    with pytest.raises(InputError, match=r"does not run on random input .*: an output is NaN or infinite throughout"):
        models.load(saved(model, tmp_path / "m.keras"))


def test_largest_difference_leaves_out_what_is_infinite_in_both():
    nan, inf = np.nan, np.inf
    assert largest_difference([[nan, inf, -inf, 4.0]], [[nan, inf, -inf, 3.0]]) == (1.0, pytest.approx(1 / 3))
    assert largest_difference([[300.0], [1.0]], [[200.0], [1.0]]) == (100.0, 0.5)
    assert largest_difference([[]], [[]]) == (0.0, 0.0)
    for ours, theirs in (([nan, 1.0], [1.0, 1.0]), ([1.0], [inf]), ([inf], [-inf]), ([nan], [nan])):
        assert largest_difference([ours], [theirs]) == (inf, inf)


def test_load_refuses_a_layer_that_stays_random(tmp_path):
    x = keras.Input((4,))
    model = keras.Model(x, layers.Dropout(0.5, name="mc")(x, training=True))
    with pytest.raises(UnsupportedError, match=r"m\.keras: layer 'mc' is called with training=True"):
        models.load(saved(model, tmp_path / "m.keras"))


def test_load_refuses_keras_quantization(tmp_path):
    model = small()
    model.layers[0].quantize("int8")
    with pytest.raises(UnsupportedError, match="layer 'y' was quantized by Keras"):
        models.load(saved(model, tmp_path / "m.keras"))


@keras.saving.register_keras_serializable("edgedl_test")
class Two(keras.Model):
    def __init__(self, units=3, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.drop, self.units = layers.Dense(units), layers.Dropout(0.5), units

    def call(self, inputs, training=None):
        y = self.drop(self.dense(inputs["a"]), training=training) + inputs["b"]
        return {"sum": y, "twice": y * 2}

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def test_load_wraps_a_subclassed_model(tmp_path):
    model = Two(name="two")
    data = {"a": np.ones((2, 4), np.float32), "b": np.ones((2, 3), np.float32)}
    expected = model(data)
    loaded = models.load(saved(model, tmp_path / "m.keras"))
    assert "Two is a subclassed model" in loaded.notes[0]
    inputs, outputs = models.specs(loaded.model)
    assert [(s.name, s.shape) for s in inputs] == [("a", (None, 4)), ("b", (None, 3))]
    assert [s.name for s in outputs] == ["sum", "twice"]
    ours = models.infer(loaded.model, data)
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-6)


def test_load_is_cached_until_the_file_changes(tmp_path):
    path = saved(small(), tmp_path / "m.keras")
    first = models.load(path)
    assert models.load(path) is first
    assert models.load(path, trust=True) is not first
    saved(small(), path)
    os.utime(path, ns=(1, 1))
    second = models.load(path)
    assert second is not first
    assert second.sha256 != first.sha256


# ---- names, shapes ------------------------------------------------------------------------------------------------


def two_by_two():
    a, b = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    both = layers.Concatenate()([layers.Dense(3)(a), b])
    return keras.Model(
        {"right": b, "left": a}, {"kind": layers.Dense(2, name="k")(both), "left": layers.Dense(1)(both)}
    )


def test_specs_names_are_unique_and_clean():
    x = keras.Input((5, 2), name="in put:0")
    h, *states = layers.LSTM(3, return_state=True, name="rnn")(x)
    model = keras.Model([x], [h, *states, layers.Dense(1, name="größe")(h)])
    inputs, outputs = models.specs(model)
    assert [s.name for s in inputs] == ["in_put_0"]
    assert [s.name for s in outputs] == ["rnn", "rnn_1", "rnn_2", "gr__e"]
    assert inputs[0].shape == (None, 5, 2)
    assert inputs[0].dtype == "float32"


def test_specs_flatten_dictionaries_and_tell_inputs_from_outputs():
    model = two_by_two()
    inputs, outputs = models.specs(model)
    assert [s.name for s in inputs] == [t.name for t in model.inputs]
    by_name = {s.name: s.shape for s in (*inputs, *outputs)}
    assert by_name == {"left": (None, 4), "right": (None, 3), "kind": (None, 2), "left_1": (None, 1)}
    data = {"left": np.ones((2, 4), np.float32), "right": np.zeros((2, 3), np.float32)}
    direct = model(data)
    ours = models.infer(model, data)
    np.testing.assert_array_equal(ours["kind"], direct["kind"])
    np.testing.assert_array_equal(ours["left_1"], direct["left"])


def test_static_shapes_keep_names_and_share_weights():
    model = two_by_two()
    fixed = models.with_static_shapes(model, {"left": (2, 4)})
    assert [(s.name, s.shape) for s in models.specs(fixed)[0]] == [
        (s.name, (2, *s.shape[1:])) for s in models.specs(model)[0]
    ]
    assert [s.name for s in models.specs(fixed)[1]] == [s.name for s in models.specs(model)[1]]
    assert {id(w) for w in fixed.weights} == {id(w) for w in model.weights}
    assert model.layers[-1].output.shape[0] is None


def test_static_shapes_fix_free_sizes():
    x = keras.Input((None, None, 3), name="image")
    model = keras.Model(x, layers.GlobalAveragePooling2D()(layers.Conv2D(2, 3)(x)))
    fixed = models.with_static_shapes(model, {"image": (1, 9, 7, 3)})
    assert fixed.inputs[0].shape == (1, 9, 7, 3)
    with pytest.raises(InputError, match=r"'image' has free sizes .*--shape image=1,H,W,3"):
        models.with_static_shapes(model, {})
    with pytest.raises(InputError, match=r"--shape image=1,9,9,4: the model takes \(None, None, None, 3\)"):
        models.with_static_shapes(model, {"image": (1, 9, 9, 4)})
    with pytest.raises(InputError, match="--shape picture: no such input; the model has image"):
        models.with_static_shapes(model, {"picture": (1, 9, 9, 3)})
    with pytest.raises(InputError, match=r"does not take the shapes"):
        models.with_static_shapes(model, {"image": (1, 2, 2, 3)})


def test_static_shapes_copy_layers_that_keep_state():
    model = keras.Sequential([keras.Input(batch_shape=(4, 3, 2)), layers.LSTM(5, stateful=True), layers.Dense(1)])
    fixed = models.with_static_shapes(model, {})
    assert fixed.outputs[0].shape == (1, 1)
    x = np.random.default_rng(0).random((4, 3, 2), np.float32)
    np.testing.assert_allclose(answer(fixed, x[:1])[0], answer(model, x)[0][:1], atol=1e-6)


def test_sequential_input_keeps_a_name_that_json_escapes(tmp_path):
    model = keras.Sequential([keras.Input((4,), name='"画像"'), layers.Dense(3)])
    assert models.load(saved(model, tmp_path / "m.keras")).model.inputs[0].name == '"画像"'


def test_sequential_input_name_does_not_depend_on_the_process(tmp_path):
    import h5py

    path = saved(keras.Sequential([keras.Input((4,)), layers.Dense(3, name="first")]), tmp_path / "m.h5")
    with h5py.File(path, "r+") as f:  # as Keras 2.2 wrote it
        config = json.loads(f.attrs["model_config"])
        shape = config["config"]["layers"].pop(0)["config"]["batch_shape"]
        config["config"]["layers"][0]["config"]["batch_input_shape"] = shape
        config["config"].pop("build_input_shape")
        f.attrs["model_config"], f.attrs["keras_version"] = json.dumps(config), "2.2.4"
    shutil.copy(path, tmp_path / "again.h5")
    for name in ("m.h5", "again.h5"):
        assert models.specs(models.load(tmp_path / name).model)[0][0].name == "first_input"


# ---- describe and predict -----------------------------------------------------------------------------------------


def test_describe_counts_by_hand(tmp_path):
    x = keras.Input((8, 8, 4), name="x")
    y = layers.Conv2D(6, 3, groups=2, name="conv")(x)  # 6x6 positions x 3x3x2x6
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)  # 6x6 x 3x3x6
    y = layers.SeparableConv2D(5, 3, strides=2, name="separable")(y)  # 2x2 x (3x3x6 + 6x5)
    y = layers.Conv2DTranspose(3, 2, strides=2, name="transposed")(y)  # 2x2 inputs x 2x2x3x5
    y = layers.Reshape((16, 3))(y)
    y = layers.GRU(4, return_sequences=True, name="gru")(y)  # 16 steps x (3x12 + 4x12)
    y = layers.Bidirectional(layers.LSTM(2, return_sequences=True), name="both")(y)  # 2 x 16 x (4x8 + 2x8)
    y = layers.MultiHeadAttention(2, 3, name="attention")(y, y)  # 16 x 4 x 24 projections + 2 x 16 x 16 x 2 x 3
    y = layers.TimeDistributed(layers.Dense(5), name="each")(y)  # 16 x 4 x 5
    y = layers.EinsumDense("abc,cd->abd", output_shape=(16, 7), name="einsum")(y)  # 16 x 5 x 7
    model = keras.Model(x, keras.Sequential([keras.Input((16, 7)), layers.Flatten(), layers.Dense(2)], name="head")(y))
    described = models.describe(str(saved(model, tmp_path / "m.keras")))
    macs = {row["name"]: row["macs"] for row in described["layers"]}
    assert {n: m for n, m in macs.items() if m} == {
        "conv": 3888,
        "depthwise": 1944,
        "separable": 336,
        "transposed": 240,
        "gru": 1344,
        "both": 1536,
        "attention": 4608,
        "each": 320,
        "einsum": 560,
        "head": 224,
    }
    assert described["macs"] == sum(m for m in macs.values())
    assert described["parameters"] == model.count_params() == sum(r["parameters"] for r in described["layers"])
    assert described["inputs"][0]["shape"] == [None, 8, 8, 4]
    assert json.loads(json.dumps(described)) == described


def test_macs_of_products_and_wrapped_layers_by_hand():
    x, image = keras.Input((6, 8), name="x"), keras.Input((8, 8, 3), name="image")
    y, video = keras.Input((5, 8), name="y"), keras.Input((4, 8, 8, 2), name="video")
    grouped = layers.GroupQueryAttention(4, 4, 2)  # heads of 4, 4 for the query and 2 for key and value
    step = 64 * (9 * 2 * 12 + 9 * 3 * 12)  # positions x (kernel + recurrent kernel)
    expected = [
        (grouped(x, y), 6 * (8 * 16 + 16 * 8) + 5 * 2 * 8 * 8 + 2 * 6 * 5 * 16),
        (layers.ConvLSTM2D(3, 3, padding="same")(video), 138_240),
        (layers.Bidirectional(layers.ConvLSTM2D(3, 3, padding="same", return_sequences=True))(video), 2 * 4 * step),
        (layers.SpectralNormalization(layers.Conv2D(4, 3))(image), 36 * 9 * 3 * 4),
        (keras.ops.matmul(x, keras.ops.transpose(y, (0, 2, 1))), 6 * 5 * 8),
        (keras.ops.einsum("bij,bkj->bik", x, y), 6 * 5 * 8),
        (keras.ops.einsum("bij->bi", x), 0),
        (layers.Dot(2)([x, y]), 6 * 5 * 8),
        (layers.Dot((1, 1))([x, layers.Dense(3)(x)]), 8 * 3 * 6),
        (layers.Attention()([x, y]), 2 * 6 * 5 * 8),
        (layers.AdditiveAttention()([x, y]), 2 * 6 * 5 * 8),
        (keras.ops.matmul(x, np.ones((8, 3), np.float32)), None),
        (keras.ops.tensordot(x, np.ones((8, 3), np.float32), 1), None),
        (keras.ops.conv(image, np.ones((3, 3, 3, 4), np.float32)), None),
    ]
    rows = {row["name"]: row["macs"] for row in table(keras.Model([x, y, image, video], [t for t, _ in expected]))}
    assert [rows[t._keras_history.operation.name] for t, _ in expected] == [macs for _, macs in expected]


def test_macs_of_a_nested_model_of_free_sizes_are_those_of_its_call():
    inside = keras.Input((None, None, 3))
    y = layers.Conv2D(8, 3, name="conv")(inside)
    backbone = keras.Model(inside, layers.Conv2D(2, 1)(layers.Concatenate()([y, keras.ops.relu(y)])), name="backbone")
    image, frames = keras.Input((32, 32, 3), name="image"), keras.Input((5, 16, 16, 3), name="frames")
    model = keras.Model([image, frames], [backbone(image), layers.TimeDistributed(backbone, name="each")(frames)])
    macs = {row["name"]: row["macs"] for row in table(model)}
    assert macs["backbone"] == 30 * 30 * (3 * 3 * 3 * 8 + 16 * 2)
    assert macs["each"] == 5 * 14 * 14 * (3 * 3 * 3 * 8 + 16 * 2)
    assert [row["macs"] for row in table(backbone) if row["name"] == "conv"] == [None]


def test_describe_leaves_macs_open_where_a_size_is_free(tmp_path):
    x = keras.Input((None, 4))
    described = models.describe(str(saved(keras.Model(x, layers.LSTM(2)(x)), tmp_path / "m.keras")))
    assert described["macs"] is None
    assert described["layers"][0]["class"] == "LSTM"


def test_predict_reads_several_inputs_in_slices(tmp_path):
    model = two_by_two()
    path = saved(model, tmp_path / "m.keras")
    left = np.random.default_rng(0).integers(0, 255, (23, 4), np.uint8)  # cast, never rescaled
    right = np.random.default_rng(1).random((23, 3))
    np.save(tmp_path / "left.npy", left)
    np.save(tmp_path / "right.npy", right)
    inputs = {n: str(tmp_path / f"{n}.npy") for n in ("left", "right")}
    made = models.predict(str(path), inputs, str(tmp_path / "out"), batch_size=5)
    expected = model({"left": left.astype(np.float32), "right": right.astype(np.float32)})
    assert set(made) == {"kind", "left_1"}
    kind = np.load(made["kind"])
    assert kind.dtype == np.float32
    np.testing.assert_allclose(kind, expected["kind"], rtol=1e-5)
    np.testing.assert_allclose(np.load(made["left_1"]), expected["left"], rtol=1e-5)
    part = models.predict(str(path), inputs, str(tmp_path / "part"), batch_size=5, start=7, stop=11)
    np.testing.assert_array_equal(np.load(part["kind"]), kind[7:11])
    none = models.predict(str(path), inputs, str(tmp_path / "none"), start=4, stop=4)
    assert np.load(none["kind"]).shape == (0, 2)


def test_predict_refuses_data_that_does_not_fit(tmp_path):
    path = str(saved(two_by_two(), tmp_path / "m.keras"))
    for name, shape in {"four": (5, 4), "three": (5, 3), "six": (6, 3)}.items():
        np.save(tmp_path / f"{name}.npy", np.zeros(shape, np.float32))
    files = {n: str(tmp_path / f"{n}.npy") for n in ("four", "three", "six")}
    for inputs, message in (
        ({"left": files["four"]}, "the model takes left, right"),
        ({"left": files["three"], "right": files["three"]}, r"'left': the data has shape \(5, 3\)"),
        ({"left": files["four"], "right": files["six"]}, "different numbers of samples"),
    ):
        with pytest.raises(InputError, match=message):
            models.predict(path, inputs, str(tmp_path / "out"))


def test_predict_says_why_a_name_cannot_be_used(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 4), np.float32))
    for name, message in (
        ("my dense", r"model 'm' fails on inputs \(64, 4\): 'my dense' is not a valid scope name\..*>-\]\*\$$"),
        ("y" * 252, r"output y{30}\.\.\.: 252 characters; a file's name holds 251\. Rename its layer"),
    ):
        model = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(3, name=name)], name="m")
        path = saved(model, tmp_path / "m.keras")
        with pytest.raises((InputError, UnsupportedError), match=message):
            models.predict(str(path), {"x": str(tmp_path / "x.npy")}, str(tmp_path / "out"))
    keras.utils.clear_session()  # Keras stays in the scope that it could not enter


def test_predict_starts_each_batch_of_a_stateful_model_afresh(tmp_path):
    model = keras.Sequential([keras.Input(batch_shape=(1, 3, 2), name="x"), layers.LSTM(2, stateful=True, name="y")])
    np.save(tmp_path / "x.npy", np.ones((3, 3, 2), np.float32))
    path = saved(model, tmp_path / "m.keras")
    made = models.predict(str(path), {"x": str(tmp_path / "x.npy")}, str(tmp_path))
    values = np.load(made["y"])
    np.testing.assert_array_equal(values[1:], values[:-1])


@pytest.mark.real
@pytest.mark.parametrize(
    "name", ["mlperf_tiny/ic/pretrainedResnet.h5", "mlperf_tiny/ad/ad01.h5", "st_har_wrist/model.h5"]
)
def test_load_published_models(name):
    if not (DATA / name).exists():
        pytest.skip(f"needs {DATA / name}")
    loaded = models.load(DATA / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        direct = keras.saving.load_model(DATA / name, compile=False)
    shape = (4, *direct.inputs[0].shape[1:])
    x = np.random.default_rng(0).random(shape, np.float32)
    np.testing.assert_allclose(answer(loaded.model, x), answer(direct, x), atol=1e-6)
    assert not any("carried over" in note for note in loaded.notes)


@pytest.mark.real
def test_describe_matches_the_published_size_of_resnet8():
    path = DATA / "mlperf_tiny/ic/pretrainedResnet.h5"
    if not path.exists():
        pytest.skip(f"needs {path}")
    described = models.describe(str(path))
    assert described["macs"] == 12_501_632
    assert described["parameters"] == 78_666
