"""Masked attention and recurrent layers in static schemes answer as in Keras, and Keras is left as it was."""

import numpy as np
import pytest
from keras.src.backend.tensorflow import nn

from edgedl_tflite import masks

STEPS = 6


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    kept = np.arange(STEPS) < rng.integers(3, STEPS + 1, (64, 1))
    return {"x": rng.normal(size=(64, STEPS, 8)).astype(np.float32), "kept": kept}


def attention(keras, kind):
    keras.utils.set_random_seed(0)
    x, kept = keras.Input((STEPS, 8), name="x"), keras.Input((STEPS,), dtype="bool", name="kept")
    heads = keras.layers.MultiHeadAttention(2, 8, dropout=0.1 if kind == "softmax" else 0.0)
    if kind == "causal":
        made = heads(x, x, use_causal_mask=True)
    elif kind == "attention":
        made = keras.layers.Attention(use_scale=True)([x, x], mask=[None, kept])
    else:
        made = heads(x, x, attention_mask=kept[:, None, :])
    return keras.Model([x, kept] if kind != "causal" else x, keras.layers.Dense(4, name="y")(made))


@pytest.mark.parametrize("kind", ["causal", "padded", "softmax", "attention"])
def test_masked_attention_keeps_its_preferences_in_int8(export, litert, sequences, kind):
    import keras

    model = attention(keras, kind)
    given = {tensor.name: sequences[tensor.name] for tensor in model.inputs}
    arrays = list(given.values()) if len(given) > 1 else given["x"]
    expected = np.asarray(model(arrays))
    made = export(model, "int8", given)
    got = litert(made.path, given)["y"]
    assert np.sqrt(np.mean((got - expected) ** 2)) < 0.06 * expected.std()
    np.testing.assert_array_equal(np.asarray(model(arrays)), expected)


def test_many_masked_steps_weigh_nothing():
    import keras

    scores = np.zeros((1, 1, 512, 512), np.float32)
    with masks.near():
        weights = np.asarray(keras.layers.Softmax()(scores, mask=np.tri(512, dtype=bool)))
        first = nn._apply_masks(scores, None, is_causal=True)
    assert weights[0, 0, 0, 0] > 0.999
    assert np.asarray(keras.ops.softmax(first))[0, 0, 0, 0] > 0.999


def test_padded_sequences_in_both_directions_end_where_they_end(export, litert):
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    tokens = keras.Input((8,), dtype="int32", name="x")
    normal = keras.initializers.RandomNormal
    h = layers.Embedding(20, 8, mask_zero=True, embeddings_initializer=normal(0, 1, seed=1))(tokens)
    h = layers.Bidirectional(layers.GRU(6, return_sequences=True))(h)
    h = layers.Bidirectional(layers.LSTM(6))(h)
    model = keras.Model(tokens, layers.Dense(4, kernel_initializer=normal(0, 2, seed=2), name="y")(h))
    rng = np.random.default_rng(1)
    x = rng.integers(1, 20, (32, 8)).astype(np.int32)
    for row in x[1:]:
        row[rng.integers(2, 8) :] = 0
    expected = np.asarray(model(x))
    got = litert(export(model, "int8", {"x": x}).path, {"x": x})["y"]
    assert np.abs(got - expected).max() < 0.1 * np.abs(expected).max()
