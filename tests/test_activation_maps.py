import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from edgedl.compression.activation_maps import head_of

K = keras.layers


def built(size, *layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(size), *layers])


HEADS = {
    "global": ((5, 4, 2), [K.GlobalAveragePooling2D(), K.Dropout(0.5), K.Dense(3)]),
    "average": ((4, 4, 2), [K.ReLU(), K.AveragePooling2D(4), K.Flatten(), K.Dense(3, use_bias=False)]),
    "sequence": ((7, 2), [K.GlobalAveragePooling1D(keepdims=True), K.Reshape((2,)), K.Dense(3)]),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_average_of_the_maps_is_what_the_dense_layer_gives(name):
    size, layers = HEADS[name]
    model = built(size, *layers)
    x = np.random.default_rng(0).normal(0, 1, (6, *size)).astype(np.float32)
    head = head_of(keras.layers.Softmax()(model.outputs[0]))
    maps = head.maps(keras.Model(model.inputs[0], head.features)(x)).numpy()
    assert maps.shape == (6, *size[:-1], 3)
    np.testing.assert_allclose(maps.reshape(6, -1, 3).mean(1), model(x), atol=1e-6)


def test_other_ends_have_no_maps():
    others = [
        [K.Flatten(), K.Dense(3)],
        [K.GlobalMaxPooling2D(), K.Dense(3)],
        [K.GlobalAveragePooling2D(), K.ReLU(), K.Dense(3)],
        [K.GlobalAveragePooling2D(), K.Reshape((2, 1)), K.Dense(3)],
        [K.AveragePooling2D(2), K.Flatten(), K.Dense(3)],
        [K.GlobalAveragePooling2D(data_format="channels_first"), K.Dense(3)],
        [K.GlobalAveragePooling2D(), K.Dense(3), K.Dense(3)],
        [K.Conv2D(3, 4), K.GlobalAveragePooling2D()],
    ]
    for layers in others:
        assert head_of(built((4, 4, 2), *layers).outputs[0]) is None
