"""Strided convolutions of size 1: the same numbers, without the kernel that corrupts memory."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.update({"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"})

import keras
import tensorflow as tf

from edgedl.fitting.pointwise import sampled_first
from edgedl.models.onednn import is_plain

K = keras.layers


def shortcut(channels=9):
    keras.utils.set_random_seed(0)
    image = keras.Input((7, 6, 3))
    x = K.Conv2D(channels, 3, padding="same")(image)
    x = K.Conv2D(8, 1, strides=2, padding="same", name="short")(x)
    x = K.Reshape((12, 8))(x)
    x = K.Conv1D(4, 1, strides=3, name="row")(x)
    return keras.Model(image, K.Flatten()(x))


def gradients(model, images):
    @tf.function(autograph=False)
    def run(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(x, training=True)))
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    found = run.get_concrete_function(tf.TensorSpec(images.shape, tf.float32))
    strides = [tuple(o.get_attr("strides")) for o in found.graph.get_operations() if o.type == "Conv2DBackpropFilter"]
    return strides, [g.numpy() for g in found(tf.constant(images))]


def test_no_gradient_of_a_strided_pointwise_kernel_is_taken_and_the_numbers_stay():
    model, images = shortcut(), np.random.default_rng(0).random((4, 7, 6, 3), np.float32)
    expected = model(images).numpy()
    plain, wanted = gradients(model, images)
    assert (1, 2, 2, 1) in plain, "the kernel that is worked around"
    with sampled_first(model):
        np.testing.assert_allclose(model(images).numpy(), expected, rtol=1e-5, atol=1e-6)
        strides, found = gradients(model, images)
    assert set(strides) == {(1, 1, 1, 1)}
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert gradients(model, images)[0] == plain, "the layers are as they were"


@pytest.mark.parametrize("channels", [16, 32])
def test_wide_ones_are_left_alone(channels):
    model = shortcut(channels)
    with sampled_first(model):
        assert "convolution_op" not in vars(model.get_layer("short"))


class Conv2D(K.Conv2D):
    """The user's own of that name."""


@pytest.mark.parametrize(
    ("layer", "plain"),
    [
        (lambda: K.Conv2D(4, 3), True),
        (lambda: keras.Sequential([K.Conv2D(4, 3), K.ReLU()]), True),
        (lambda: Conv2D(4, 3), False),
        (lambda: keras.Sequential([Conv2D(4, 3)]), False),
        (lambda: K.EinsumDense("abcd,de->abce", (6, 6, 4)), False),
        (lambda: K.TimeDistributed(K.Dense(3)), False),
        (lambda: lambda x: keras.ops.matmul(x, keras.ops.ones((3, 4))), False),
    ],
)
def test_networks_of_keras_own_plain_layers_train_with_onednn(layer, plain):
    image = keras.Input((6, 6, 3))
    model = keras.Model(image, K.GlobalAveragePooling2D()(layer()(image)))
    assert is_plain(model) is plain
