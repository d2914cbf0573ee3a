"""Kernels fitted again after channels went: the array function, and whole models that keep their outputs."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from edgedl import compression, recipes
from edgedl.compression.normalization import re_estimate_batch_norm
from edgedl.compression.reconstruction import LARGEST, Moments, linear, patches
from edgedl.fitting.samples import TrainingData

K = keras.layers


def test_the_fit_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 1, (400, 6)), rng.normal(size=(400, 3))
    y += x @ rng.normal(size=(6, 3)) + 5
    moments = Moments(6, 3)
    for rows in np.array_split(np.arange(400), 7):
        moments.add(x[rows], y[rows])

    kernel, bias = moments.fitted(np.zeros((6, 3)), shift=True)

    best = np.linalg.lstsq(np.column_stack([x, np.ones(400)]), y, rcond=None)[0]
    np.testing.assert_allclose(kernel, best[:6], rtol=2e-2, atol=1e-2)
    np.testing.assert_allclose(bias, best[6], rtol=2e-2)
    through_zero, none = moments.fitted(np.zeros((6, 3)), shift=False)
    np.testing.assert_allclose(through_zero, np.linalg.lstsq(x, y, rcond=None)[0], rtol=2e-2, atol=2e-2)
    assert (none == 0).all()


def test_what_the_rows_do_not_show_stays():
    moments, start = Moments(3, 2), np.arange(6.0).reshape(3, 2)
    x = np.array([[1.0, 0, 0], [2, 0, 0], [4, 0, 0]])
    moments.add(x, x @ np.full((3, 2), 7.0))

    kernel, _ = moments.fitted(start, shift=False)

    np.testing.assert_allclose(kernel, [[7, 7], *start[1:]], rtol=1e-2)
    assert (moments.fitted(start, shift=False)[0][1:] == start[1:]).all()


@pytest.mark.parametrize(
    "layer",
    [
        K.Conv2D(4, 3, strides=2, padding="same"),
        K.Conv2D(4, (2, 3), padding="valid", activation="relu", use_bias=False),
        K.Conv2D(4, 3, dilation_rate=2, padding="same"),
        K.Dense(4),
    ],
)
def test_patches_times_kernel_is_what_a_layer_sums(layer):
    x = keras.ops.convert_to_tensor(np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32))
    layer.build(x.shape)
    kernel = layer.get_weights()[0]

    made = linear(layer, x).numpy()

    products = patches(layer, x).numpy() @ kernel.reshape(-1, 4)
    np.testing.assert_allclose(products.reshape(made.shape), made, rtol=1e-4, atol=1e-5)


def test_patches_of_sequences():
    layer = K.Conv1D(4, 3, strides=2, padding="same")
    x = keras.ops.convert_to_tensor(np.random.default_rng(0).normal(size=(2, 7, 3)).astype(np.float32))
    layer.build(x.shape)

    products = patches(layer, x).numpy() @ layer.get_weights()[0].reshape(-1, 4)

    np.testing.assert_allclose(products, linear(layer, x).numpy(), rtol=1e-4, atol=1e-5)


def network(norm):
    """Twelve channels of which the last six are mixtures of the first: half of them can go without a loss."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 2), name="image")
    x = K.Conv2D(12, 3, padding="same", use_bias=False, name="one")(image)
    x = K.Conv2D(4, 3, padding="same", use_bias=not norm, name="two")(x)
    x = K.ReLU()(K.BatchNormalization()(x) if norm else x)
    model = keras.Model(image, K.Dense(3, name="kind")(K.GlobalAveragePooling2D()(x)))
    kernel = model.get_layer("one").get_weights()[0]
    kernel[..., 6:] = kernel[..., :6] @ np.random.default_rng(1).normal(0, 0.1, (6, 6))
    model.get_layer("one").set_weights([kernel])
    return model


@pytest.mark.parametrize("norm", [True, False])
def test_a_model_keeps_outputs_that_fewer_channels_can_give(norm):
    model = network(norm)
    data = TrainingData(inputs={"image": np.random.default_rng(2).random((64, 8, 8, 2), np.float32)}, targets={})
    re_estimate_batch_norm(model, data)
    step = {"kind": "prune", "method": "channels", "sparsity": 0.5, "match": "one"}

    def moved(**options):
        made = compression.run(model, recipes.from_table({"step": [step | options]}), data)
        assert made.get_layer("one").filters == 6
        return np.abs(np.asarray(made(data.inputs["image"]) - model(data.inputs["image"]))).max()

    assert moved() < 0.1 * moved(reconstruct=False)


def deep():
    """Three normalized convolutions, trained for their statistics alone."""
    keras.utils.set_random_seed(3)
    x = image = keras.Input((8, 8, 2), name="image")
    for name in ("one", "two", "three"):
        x = K.Conv2D(12, 3, padding="same", use_bias=False, name=name)(x)
        x = K.ReLU()(K.BatchNormalization(beta_initializer="random_normal")(x))
    return keras.Model(image, K.Dense(3, name="kind")(K.GlobalAveragePooling2D()(x)))


def test_layers_are_fitted_to_what_the_normalizations_before_them_give_in_the_end():
    model = deep()
    data = TrainingData(inputs={"image": np.random.default_rng(2).random((64, 8, 8, 2), np.float32)}, targets={})
    re_estimate_batch_norm(model, data)
    step = {"kind": "prune", "method": "channels", "sparsity": 0.5}

    made = compression.run(model, recipes.from_table({"step": [step]}), data)

    ours, theirs = (np.asarray(m(data.inputs["image"])) for m in (made, model))
    np.testing.assert_allclose(ours.mean(axis=0), theirs.mean(axis=0), atol=1e-4)  # the last bias saw to it


def test_without_data_and_beyond_what_fits_in_memory_kernels_stay():
    image = keras.Input((4, 4, 2), name="image")
    x = K.Flatten()(K.Conv2D(LARGEST // 16 + 8, 1, name="one")(image))
    model = keras.Model(image, K.Dense(3, name="kind")(x))
    step = {"kind": "prune", "method": "channels", "sparsity": 0.01, "match": "one"}
    data = TrainingData(inputs={"image": np.random.default_rng(2).random((8, 4, 4, 2), np.float32)}, targets={})

    with_data, without = (compression.run(model, recipes.from_table({"step": [step]}), d) for d in (data, None))

    for ours, theirs in zip(with_data.get_weights(), without.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
