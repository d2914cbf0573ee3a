"""Cross-layer equalization: the arrays, which layers pair, and a model that answers as before."""

import numpy as np
import pytest

from edgedl.compression import equalize
from edgedl.graph import Graph

tf = pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def keras():
    import keras

    keras.utils.set_random_seed(0)
    return keras


def test_equalize_factors_make_ranges_equal_but_for_a_common_scale():
    rng = np.random.default_rng(0)
    first = rng.normal(0, 1, (9, 4)) * [0.01, 1, 5, 0]
    second = rng.normal(0, 1, (4, 7)) * np.array([[3], [1], [0.2], [1]])
    s = equalize.factors(first, second)
    ratio = (np.abs(first / s).max(axis=0) / np.abs(second * s[:, None]).max(axis=1))[:3]
    np.testing.assert_allclose(ratio, ratio[0])
    assert s[3] == 1
    assert np.prod(s[:3]) == pytest.approx(1)


def test_equalize_bias_shift_is_the_mean_difference_of_each_channel():
    ours = np.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_allclose(equalize.bias_shift(ours, ours - [1.0, -2.0]), [1.0, -2.0])


def test_equalize_model_answers_the_same_with_ranges_closer(keras):
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, activation="relu", name="a")(image)
    x = keras.layers.DepthwiseConv2D(3, name="b")(x)
    x = keras.layers.ReLU()(x)
    y = keras.layers.Conv2D(5, 1, name="c")(x)
    z = keras.layers.Conv2D(5, 1, activation="sigmoid", name="d")(y)
    z = keras.layers.Conv2D(2, 1, name="e")(z)
    model = keras.Model(image, [z, y])
    kernel, bias = model.get_layer("a").get_weights()
    model.get_layer("a").set_weights([kernel * np.geomspace(0.01, 10, 6), bias + 0.1])
    before = [np.asarray(v) for v in model(np.random.default_rng(0).normal(0, 1, (4, 8, 8, 3)).astype("f"))]

    def unequal():
        ranges = np.abs(model.get_layer("a").get_weights()[0]).max(axis=(0, 1, 2))
        return ranges.max() / ranges.min()

    start = unequal()
    pairs, left = equalize.equalize(model, Graph.of(model))
    assert (pairs, left) == (2, [])  # a-b and b-c: y is an output, and a sigmoid is not scale-free
    assert unequal() < start / 10
    after = [np.asarray(v) for v in model(np.random.default_rng(0).normal(0, 1, (4, 8, 8, 3)).astype("f"))]
    for one, two in zip(before, after, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_equalize_passes_over_grouped_convolutions(keras):
    layers = keras.layers
    image = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, activation="relu", name="one")(image)
    x = layers.Conv2D(8, 3, groups=2, activation="relu", name="grouped")(x)
    model = keras.Model(image, layers.Conv2D(4, 1, name="last")(x))
    assert equalize.pairs(Graph.of(model)) == [("grouped", "last")]


@pytest.mark.parametrize("kind", ["Conv2DTranspose", "Dense", "Conv1D"])
def test_equalize_scales_the_channels_of_other_kernels(keras, kind):
    layers = keras.layers
    pair = {
        "Conv2DTranspose": (layers.Conv2DTranspose(4, 2), layers.Conv2DTranspose(3, 2), (6, 6, 2)),
        "Dense": (layers.Dense(4), layers.Dense(3), (5,)),
        "Conv1D": (layers.Conv1D(4, 3), layers.Conv1D(3, 3), (9, 2)),
    }[kind]
    model = keras.Sequential([keras.Input(pair[2]), *pair[:2]])
    kernel, bias = pair[0].get_weights()
    wide = np.array([0.01, 1, 3, 10.0])
    pair[0].set_weights([kernel * (wide[:, None] if kind == "Conv2DTranspose" else wide), bias])
    x = np.random.default_rng(0).normal(0, 1, (4, *pair[2])).astype("f")
    before = np.asarray(model(x))
    assert equalize.equalize(model, Graph.of(model))[0] == 1
    assert not np.allclose(pair[0].get_weights()[0], kernel)
    np.testing.assert_allclose(np.asarray(model(x)), before, atol=1e-4)
