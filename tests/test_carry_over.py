"""Keras 2 models, made here with tf_keras, as Keras 3."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from edgedl import models
from edgedl.errors import InputError, UnsupportedError
from edgedl.models.carry_over import carry_over

DATA = Path(__file__).parents[2] / "shared/data"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    keras = pytest.importorskip("keras")
    tf_keras = pytest.importorskip("tf_keras")
    import tensorflow as tf
layers = tf_keras.layers


def randomized(model):
    """Every weight random, so that a swapped pair shows; variances stay positive."""
    random = np.random.default_rng(1)
    for layer in model.submodules:
        if isinstance(layer, layers.Layer) and not list(layer.submodules) and layer.weights:
            layer.set_weights([random.uniform(0.1, 0.9, w.shape) * 0.5 for w in layer.get_weights()])
    return model


def saved(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(path)
    return path


def both(old, new, free=6):
    """The two models' outputs by position on the same input."""
    random = np.random.default_rng(2)
    arrays = {}
    for tensor in old.inputs:
        shape = [3 if i == 0 and n is None else n or free for i, n in enumerate(tensor.shape)]
        integer = tensor.dtype.is_integer
        values = random.integers(0, 5, shape) if integer else random.standard_normal(shape)
        arrays[tensor._keras_history.layer.name] = values.astype(tensor.dtype.name)
    nested = tf.nest.map_structure(lambda t: tf.constant(arrays[t._keras_history.layer.name]), old._nested_inputs)
    theirs = tf.nest.flatten(old(nested, training=False))
    ours = models.infer(new, arrays)
    return zip([ours[s.name] for s in models.specs(new)[1]], theirs, strict=True)


def assert_same(old, new):
    for ours, theirs in both(old, new):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def cnn():
    x = tf_keras.Input((12, 12, 3), name="image")
    y = layers.Conv2D(6, 3, kernel_regularizer="l2", activation="relu")(x)
    y = layers.BatchNormalization(name="Conv/BatchNorm")(y)
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(y)
    y = layers.LeakyReLU(alpha=0.1)(y)
    z = layers.SeparableConv2D(12, 3, padding="same", activation="swish")(y)
    y = layers.Add()([y, layers.Dropout(0.5)(z)])
    y = layers.Conv2DTranspose(4, 2, strides=2, kernel_constraint=tf_keras.constraints.MaxNorm(2))(y)
    y = layers.LayerNormalization()(layers.ThresholdedReLU(theta=0.2)(layers.PReLU(shared_axes=[1, 2])(y)))
    return tf_keras.Model(x, layers.Softmax(name="class")(layers.Dense(3)(layers.GlobalAveragePooling2D()(y))))


def recurrent():
    x = tf_keras.Input((7, 5), name="x")
    y, h, c = layers.LSTM(4, return_sequences=True, return_state=True)(x)
    y = layers.LSTM(4, return_sequences=True, recurrent_activation="hard_sigmoid")(y, initial_state=[h, c])
    y = layers.Bidirectional(layers.GRU(3, return_sequences=True, reset_after=False))(y)
    y = layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)], return_sequences=True)(y)
    y = layers.TimeDistributed(layers.Dense(4, activation="hard_sigmoid"))(y)
    return tf_keras.Model(x, layers.SimpleRNN(3, name="last")(y))


def attention():
    x, ids = tf_keras.Input((6, 8), name="x"), tf_keras.Input((6,), dtype="int32", name="ids")
    y = layers.Embedding(5, 8, input_length=6)(ids)
    y = layers.MultiHeadAttention(2, 4, value_dim=3, dropout=0.1)(x, y)
    y = layers.Attention(use_scale=True)([y, x])
    y = layers.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d")(y)
    return tf_keras.Model({"x": x, "ids": ids}, {"a": layers.Dense(2, name="first")(y), "b": layers.Flatten()(y)})


def functions():
    x = tf_keras.Input((4, 6), name="x")
    y = layers.Multiply(name="multiply")([x, x]) * 2.0 + 1.0 - tf.nn.relu(-x)  # Keras 3 calls its op multiply too
    y = tf.concat([y[:, 1:], y[:, ::2]], axis=1)
    y = tf.transpose(tf.reshape(y, (-1, 5, 3, 2)), perm=[0, 2, 1, 3])
    y = tf.reduce_mean(tf.clip_by_value(y / 3.0, -0.5, 0.5), axis=[1], keepdims=True)
    y = tf.squeeze(tf.cast(tf.nn.softmax(y), tf.float32), axis=1)
    return tf_keras.Model(x, tf.math.maximum(y, tf.math.sigmoid(y) * 0.4))


def nested():
    body = tf_keras.Sequential([layers.Dense(4, input_shape=(5,)), layers.Dropout(0.1), layers.ReLU()], name="body")
    x, z = tf_keras.Input((5,), name="x"), tf_keras.Input((5,), name="z")
    inner = tf_keras.Model(x_in := tf_keras.Input((4,)), layers.Dense(4)(layers.Dense(4)(x_in)), name="inner")
    return tf_keras.Model([z, x], [inner(body(x)), layers.Concatenate(name="joined")([body(z), inner(body(z))])])


@pytest.mark.parametrize("build", [cnn, recurrent, attention, functions, nested])
def test_carry_over_gives_the_same_outputs(build):
    old = randomized(build())
    new, notes = carry_over(old)
    assert_same(old, new)
    assert [s.name for s in models.specs(new)[0]] == [t._keras_history.layer.name for t in old.inputs]
    assert "carried over from Keras 2 layer by layer; outputs differ by at most" in notes[0]
    again = keras.Model.from_config(new.get_config(), custom_objects=None)
    again.set_weights(new.get_weights())
    assert_same(old, again)


def test_carry_over_keeps_output_names():
    assert [s.name for s in models.specs(carry_over(cnn())[0])[1]] == ["class"]
    old = functions()
    assert [s.name for s in models.specs(carry_over(old)[0])[1]] == old.output_names
    assert [s.name for s in models.specs(carry_over(attention())[0])[1]] == ["a", "b"]


def test_carry_over_says_what_it_removed():
    _, notes = carry_over(nested())
    assert notes[1].startswith("training-only layers removed: dropout")


def test_load_carries_over_h5_and_saved_model(tmp_path):
    old = randomized(tf_keras.Sequential([layers.DepthwiseConv1D(3, input_shape=(6, 2)), layers.Dense(2)]))
    for name in ("m.h5", "folder"):
        loaded = models.load(saved(old, tmp_path / name))
        assert "carried over from Keras 2" in loaded.notes[0]
        assert_same(old, loaded.model)
    assert loaded.sha256


@pytest.mark.parametrize("name", ["m.h5", "folder"])
def test_load_takes_embeddings_whose_input_keras_2_declares_float(tmp_path, name):
    middle = layers.LSTM(4) if name == "m.h5" else layers.GlobalAveragePooling1D()
    old = randomized(tf_keras.Sequential([layers.Embedding(100, 8, input_length=20), middle, layers.Dense(1)]))
    loaded = models.load(saved(old, tmp_path / name))
    (spec,), (out,) = models.specs(loaded.model)
    words = np.random.default_rng(0).integers(0, 100, (3, 20)).astype(spec.dtype)
    np.testing.assert_allclose(models.infer(loaded.model, {spec.name: words})[out.name], old(words), atol=1e-5)


def test_load_does_not_take_the_new_hard_sigmoid_for_the_old(tmp_path):
    old = tf_keras.Sequential([layers.Dense(4, activation="hard_sigmoid", input_shape=(3,))])
    loaded = models.load(saved(randomized(old), tmp_path / "m.h5"))
    assert_same(old, loaded.model)
    path = tmp_path / "again.keras"
    loaded.model.save(path)
    again = models.load(path)
    assert again.notes == ()
    assert_same(old, again.model)


def test_load_carries_over_a_keras_2_archive(tmp_path):
    old = randomized(tf_keras.Sequential([layers.LSTM(3, input_shape=(4, 2), recurrent_activation="hard_sigmoid")]))
    assert_same(old, models.load(saved(old, tmp_path / "m.keras")).model)


def test_load_sees_weights_in_another_order(tmp_path):
    """Keras fills a model by position; Keras 3 may count its layers in another order than the file does."""
    import h5py

    x = tf_keras.Input((4,), name="x")
    model = randomized(
        tf_keras.Model(x, layers.Concatenate()([layers.Dense(3, name="a")(x), layers.Dense(3, name="b")(x)]))
    )
    path = saved(model, tmp_path / "m.h5")
    with h5py.File(path, "r+") as f:
        names = list(f["model_weights"].attrs["layer_names"])
        i, j = names.index("a"), names.index("b")
        names[i], names[j] = names[j], names[i]
        f["model_weights"].attrs["layer_names"] = names
    loaded = models.load(path)
    assert "carried over from Keras 2" in loaded.notes[0]
    assert_same(tf_keras.models.load_model(path, compile=False), loaded.model)


def test_carry_over_transfers_statistics_and_state():
    norm = layers.Normalization(axis=-1)
    norm.adapt(np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32))
    old = tf_keras.Sequential([tf_keras.Input((4,)), norm, layers.Dense(2)])
    assert_same(old, carry_over(old)[0])
    old = tf_keras.Sequential([layers.LSTM(3, stateful=True, batch_input_shape=(3, 4, 2)), layers.Dense(1)])
    new, _ = carry_over(randomized(old))
    old.reset_states()
    new.layers[0].reset_state()
    assert_same(old, new)


def test_carry_over_makes_mixed_precision_models_loadable(tmp_path):
    x = tf_keras.Input((5,), name="x")
    y = layers.Dense(4, dtype=tf_keras.mixed_precision.Policy("mixed_float16"), activation="hard_sigmoid")(x)
    old = randomized(tf_keras.Model(x, layers.Dense(2, dtype="float32")(y)))
    loaded = models.load(saved(old, tmp_path / "m.h5"))
    assert any("float16 arithmetic became float32" in note for note in loaded.notes)
    for ours, theirs in both(old, loaded.model):
        np.testing.assert_allclose(ours, theirs, atol=5e-3)


def test_carry_over_refuses_by_name():
    x = tf_keras.Input((4, 3), name="x")
    for layer, message in (
        (layers.LSTM(2, time_major=True, name="rnn"), r"layer 'rnn' \(LSTM\): Keras 3 has no time_major=True"),
        (layers.LocallyConnected1D(2, 2, name="local"), "layer 'local': LocallyConnected1D is no Keras 3 layer"),
    ):
        with pytest.raises(UnsupportedError, match=message):
            carry_over(tf_keras.Model(x, layer(x)))
    with pytest.raises(UnsupportedError, match=r"layer 'tf\.\S+': the TensorFlow function tf\.math\.bessel_i0 has no"):
        carry_over(tf_keras.Model(x, tf.math.bessel_i0(x)))
    drop = layers.Dropout(0.5, name="mc")
    with pytest.raises(UnsupportedError, match="layer 'mc' is called with training=True"):
        carry_over(tf_keras.Model(x, drop(x, training=True)))


def test_carry_over_refuses_outputs_that_differ(monkeypatch):
    from edgedl.models import carry_over as module

    monkeypatch.setattr(module, "hard_sigmoid_2", keras.ops.hard_sigmoid)
    old = randomized(tf_keras.Sequential([layers.Dense(4, activation="hard_sigmoid", input_shape=(3,))]))
    with pytest.raises(UnsupportedError, match=r"the outputs differ by 0\.\d+ on seeded input"):
        carry_over(old)


def test_carry_over_refuses_subclassed_models(tmp_path):
    class Mine(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Mine()
    model(np.ones((1, 3), np.float32))
    with pytest.raises((InputError, UnsupportedError), match=r"folder: .*(subclassed|Mine)"):
        models.load(saved(model, tmp_path / "folder"))


@pytest.mark.parametrize("name", ["m.h5", "folder"])
def test_load_refuses_lambda_of_keras_2(tmp_path, name):
    marker = tmp_path / "ran"
    code = f"lambda x: (open({str(marker)!r}, 'w').close(), x * 2)[1]"
    inner = tf_keras.Sequential([layers.Lambda(eval(code), name="evil", input_shape=(3,))])  # noqa: S307
    path = saved(tf_keras.Sequential([tf_keras.Input((3,)), inner]), tmp_path / name)
    marker.unlink()
    with pytest.raises(InputError, match=r"layer 'evil' \(Lambda\) carries code.*--trust"):
        models.load(path)
    assert not marker.exists()
    assert_same(tf_keras.models.load_model(path), models.load(path, trust=True).model)


def test_load_refuses_a_saved_model_that_writes_files(tmp_path):
    class Writer(layers.Layer):
        def call(self, x):
            tf.io.write_file(str(tmp_path / "written"), "x")
            return x * 2

    path = saved(tf_keras.Sequential([tf_keras.Input((3,)), Writer(name="writer")]), tmp_path / "folder")
    (tmp_path / "written").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"its graph runs WriteFile.*--trust"):
        models.load(path)
    assert not (tmp_path / "written").exists()


def test_load_refuses_a_tensorflow_function_that_writes_files(tmp_path):
    x = tf_keras.Input((3,), name="x")
    path = saved(tf_keras.Model(x, tf.nn.relu(x) + 1.0), tmp_path / "m.h5")
    edit_h5_config(path, lambda text: text.replace('"nn.relu"', '"io.write_file"'))
    with pytest.raises(UnsupportedError, match=r"m\.h5: layer 'tf\.nn\.relu\S*': .* tf\.io\.write_file has no Keras 3"):
        models.load(path)


def edit_h5_config(path, change):
    import h5py

    with h5py.File(path, "r+") as f:
        f.attrs["model_config"] = change(f.attrs["model_config"])


@pytest.mark.real
@pytest.mark.parametrize("name", ["kws_model_qualcomm_v1.3.h5", "kws_ref_model"])
def test_carry_over_of_the_published_keyword_model(name):
    path = DATA / "mlperf_tiny/kws" / name
    if not path.exists():
        pytest.skip(f"needs {path}")
    loaded = models.load(path)
    difference = re.search(r"carried over from Keras 2 .* differ by at most (\S+)", loaded.notes[0])
    assert 0 < float(difference[1]) <= 1e-5
    assert "dropout (Dropout)" in loaded.notes[1]
    assert [s.name for s in (*models.specs(loaded.model)[0], *models.specs(loaded.model)[1])] == ["input_1", "dense"]
