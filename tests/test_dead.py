import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from edgedl import compression, graph, recipes
from edgedl.compression import dead
from edgedl.compression.constants import constant_depthwise, constant_outputs
from edgedl.errors import UnsupportedError
from edgedl.fitting.samples import TrainingData

K = keras.layers


def network():
    """A residual add, a depthwise branch and a concat; every weight has an effect."""
    image = keras.Input((12, 12, 3), name="image")
    x = K.ReLU()(K.BatchNormalization(name="a_norm")(K.Conv2D(9, 3, padding="same", use_bias=False, name="a")(image)))
    x = K.ReLU()(K.Add()([x, K.BatchNormalization(name="b_norm")(K.Conv2D(9, 3, padding="same", name="b")(x))]))
    deep = K.ReLU()(K.DepthwiseConv2D(3, padding="same", name="deep")(x))
    x = K.Concatenate()([deep, K.Conv2D(6, 1, activation="relu", name="c")(x)])
    x = K.GlobalAveragePooling2D()(K.Conv2D(6, 3, name="e")(x))
    x = K.Dense(12, activation="tanh", name="d")(x)
    model = keras.Model(image, K.Dense(3, activation="softmax", name="kind")(x))
    random = np.random.default_rng(0)
    for weight in model.weights:
        values = random.normal(size=weight.shape) * 0.3
        weight.assign(np.abs(values) + 0.2 if "variance" in weight.path else values)
    return model


def plant(model, layer, weight, channels, value):
    weights = model.get_layer(layer).get_weights()
    weights[weight][..., channels] = value
    model.get_layer(layer).set_weights(weights)


def samples(count=100, seed=1):
    x = np.random.default_rng(seed).normal(size=(count, 12, 12, 3)).astype(np.float32)
    return TrainingData(inputs={"image": x}, targets={})


def run(model, data=None, **step):
    told = []
    recipe = recipes.from_table({"step": [{"kind": "prune", "method": "dead", **step}]})
    return compression.run(model, recipe, data, say=told.append), told


def widths(model):
    return [getattr(model.get_layer(n), "filters", 0) or model.get_layer(n).units for n in ("a", "b", "c", "e", "d")]


def test_a_network_without_dead_channels_stays_whole():
    new, told = run(network(), on_data=False)
    assert widths(new) == [9, 9, 6, 6, 12]
    assert told == ["recipe: step 1 (prune): no dead or constant channels"]


def test_planted_dead_channels_all_go_through_the_residual_add():
    model = network()
    gone = [1, 4, 7]  # a third
    plant(model, "a", 0, gone, 1e-9)
    plant(model, "a_norm", 1, gone, -1.0)
    plant(model, "a_norm", 2, gone, 0.0)
    plant(model, "b", 0, gone, 0.0)
    plant(model, "b", 1, gone, 0.0)
    plant(model, "b_norm", 1, gone, -0.5)
    plant(model, "b_norm", 2, gone, 0.0)
    plant(model, "deep", 1, gone, -0.1)
    new, told = run(model)
    assert widths(new) == [6, 6, 6, 6, 12]
    assert new.get_layer("deep").get_weights()[0].shape == (3, 3, 6, 1)
    assert graph.prove(model, new, 1e-5) <= 1e-5
    assert "removed a 3 of 9, b 3 of 9; the outputs moved by at most" in told[0]


def test_half_a_residual_stays():
    model = network()
    plant(model, "a", 0, [1, 4], 0.0)
    new, _ = run(model)
    assert widths(new)[:2] == [9, 9], "the other side of the add is alive"


def test_a_constant_goes_into_the_next_bias():
    model = network()
    plant(model, "d", 0, [2, 3], 0.0)  # tanh(bias) for ever
    new, _ = run(model)
    assert widths(new)[-1] == 10
    assert graph.prove(model, new, 1e-6) <= 1e-6
    assert np.abs(new.get_layer("kind").get_weights()[1] - model.get_layer("kind").get_weights()[1]).max() > 1e-3


def test_a_constant_before_zero_padding_stays_and_a_zero_goes():
    model = network()
    plant(model, "b", 0, [0], 0.0)
    image = keras.Input((6, 6, 3))
    first = K.Conv2D(4, 1, name="first")
    second = K.Conv2D(2, 3, padding="same", name="second")
    model = keras.Model(image, second(first(image)))
    plant(model, "first", 0, [1, 2], 0.0)
    plant(model, "first", 1, [1, 2], [0.5, 0.0])
    new, _ = run(model)
    assert new.get_layer("first").filters == 3
    np.testing.assert_array_equal(new.get_layer("first").get_weights()[1], [0, 0.5, 0])


def test_channels_that_nothing_takes_go_with_what_fed_them_alone():
    model = network()
    weights = model.get_layer("kind").get_weights()
    weights[0][[0, 5]] = 0
    model.get_layer("kind").set_weights(weights)
    kernel, bias = model.get_layer("d").get_weights()
    alive = [i for i in range(12) if i not in (0, 5)]
    kernel[np.ix_([3], alive)] = 0  # only the dead ones take e's channel 3
    model.get_layer("d").set_weights([kernel, bias])
    new, _ = run(model)
    assert widths(new) == [9, 9, 6, 5, 10]
    assert graph.prove(model, new, 1e-6) <= 1e-6


def test_outputs_that_never_change_on_the_data_go():
    model = network()
    plant(model, "d", 1, [0], 30.0)  # tanh is saturated
    plant(model, "c", 1, [5], -30.0)  # relu never opens
    without, _ = run(model)
    data = samples()
    new, told = run(model, data)
    assert widths(without) == [9, 9, 6, 6, 12]
    assert widths(new) == [9, 9, 5, 6, 11]
    assert "on 100 samples" in told[0]
    assert graph.prove(model, new, 1e-5, [data.inputs["image"]]) <= 1e-5
    assert widths(run(model, data, on_data=False)[0]) == [9, 9, 6, 6, 12]


def test_one_channel_stays_of_a_layer_that_is_all_dead():
    model = network()
    plant(model, "c", 0, list(range(6)), 0.0)
    new, _ = run(model)
    assert widths(new) == [9, 9, 1, 6, 12]
    assert graph.prove(model, new, 1e-6) <= 1e-6


def test_match_and_skip_choose_the_layers():
    model = network()
    plant(model, "d", 0, [2, 3], 0.0)
    plant(model, "c", 0, [0], 0.0)
    assert widths(run(model, match="c")[0]) == [9, 9, 5, 6, 12]
    assert widths(run(model, skip="c")[0]) == [9, 9, 6, 6, 10]


def test_a_tolerance_that_moves_the_outputs_is_refused():
    with pytest.raises(
        UnsupportedError, match=r"step 1 \(prune\): .* differs .*tolerance 0.5 are not .*; try tolerance 0.05"
    ):
        run(network(), tolerance=0.5)


def test_report_tells_what_would_go_and_why():
    model = network()
    plant(model, "d", 0, [2, 3], 0.0)
    plant(model, "d", 1, [0], 30.0)
    assert dead.report(model, samples()) == [{"layer": "d", "channels": 12, "nothing": 2, "constant": 1}]
    assert dead.report(model) == [{"layer": "d", "channels": 12, "nothing": 2, "constant": 0}]


def test_array_functions():
    kernel = np.ones((3, 3, 2, 3), np.float32)
    kernel[:, :, 0, 1] = 0
    kernel[..., 2] = 1e-9
    inputs, bias = np.array([np.nan, 2.0]), np.array([0.0, 1.0, 5.0])
    found = constant_outputs(inputs, kernel, bias, 1e-6, padded=False)
    np.testing.assert_allclose(found, [np.nan, 19.0, 5.0], atol=1e-6)
    found = constant_outputs(inputs, kernel, bias, 1e-6, padded=True)
    np.testing.assert_allclose(found, [np.nan, np.nan, 5.0], atol=1e-6)
    deep = np.ones((3, 3, 2, 2), np.float32)
    deep[:, :, 0, 0] = 0
    found = constant_depthwise(inputs, deep, np.zeros(4), 1e-6, padded=False)
    np.testing.assert_allclose(found, [0, np.nan, 18, 18])


def test_a_model_without_channels_that_may_go_has_none_that_are_dead():
    model = keras.Sequential([keras.Input((6, 4), name="x"), K.LSTM(5)])
    x = np.random.default_rng(0).normal(size=(16, 6, 4)).astype(np.float32)
    said = []
    recipe = recipes.from_table({"step": [{"kind": "prune", "method": "dead"}]})
    compression.run(model, recipe, TrainingData(inputs={"x": x}, targets={}), say=said.append)
    assert "no dead or constant channels" in said[-1]
