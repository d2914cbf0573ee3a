"""A model with all that a method meets, carried networks, and everything that TFMOT does in one process of its own."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

MISSING = [name for name in ("tensorflow_model_optimization", "edgedl_tfmot") if find_spec(name) is None]


def pytest_collection_modifyitems(items):
    for item in items:
        if MISSING and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"{MISSING[0]} is not installed; it exists for Python 3.11 alone"))


@pytest.fixture(scope="session")
def cnn():
    """Batch norm, depthwise, a nested model called twice, an addition that is an op."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    inner_in = keras.Input((8, 8, 16))
    inner = keras.Model(inner_in, layers.Conv2D(16, 3, padding="same", name="conv")(inner_in), name="inner")
    image = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", name="wide")(x)))
    x = layers.LeakyReLU(0.1)(inner(inner(x)) + y)
    return keras.Model(image, layers.Dense(4, activation="softmax", name="kind")(layers.Flatten()(x)), name="cnn")


@pytest.fixture(scope="session")
def samples():
    """Images whose class is the channel that is bright."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 96)
    x = rng.random((96, 8, 8, 4), np.float32)
    x[np.arange(96), :, :, y] += 1
    return x, y


def _networks(keras):
    """Models whose layers Keras 2 tells in other words."""
    nn = keras.layers
    x = keras.Input((6, 8), name="x")
    a = nn.MultiHeadAttention(2, 4, name="attention")(x, x)
    h = nn.Add()([nn.LayerNormalization()(a), x])
    yield "attention", keras.Model(x, nn.Dense(3, kernel_regularizer="l2")(nn.GlobalAveragePooling1D()(h)))
    x = keras.Input((6, 8), name="x")
    h = nn.Bidirectional(nn.LSTM(5, return_sequences=True))(x)
    h = nn.TimeDistributed(nn.Dense(4, activation="tanh"))(h)
    yield "recurrent", keras.Model(x, {"end": nn.GRU(3, name="end")(h), "all": nn.Identity(name="all")(h)})
    image = keras.Sequential([keras.Input((8, 8, 3), name="image"), nn.Rescaling(1 / 255)])
    image.add(nn.SeparableConv2D(6, 3, activation="silu"))
    image.add(nn.Conv2DTranspose(4, 3, strides=2))
    image.add(nn.Flatten())
    yield "sequential", image
    query, context = keras.Input((4,), name="query"), keras.Input((4,), name="context")
    difference = nn.Subtract()([nn.Dense(3)(query), nn.Dense(3)(context)])
    tower = keras.Model({"query": query, "context": context}, difference, name="tower")
    head = keras.Sequential([keras.Input((3,)), nn.Dense(2)], name="head")
    x, z = keras.Input((4,), name="x"), keras.Input((4,), name="z")
    yield "nested", keras.Model([x, z], head(training=False, inputs=tower({"query": x, "context": z})))


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
    """What in_tfmot.py found: {"networks": {name: difference}, "methods": {name: ...}, "skipped": ...}."""
    import keras

    from edgedl.models.tensors import probe
    from edgedl_tfmot import carrying, process

    folder = tmp_path_factory.mktemp("tfmot")
    for name, model in _networks(keras):
        network = carrying.describe(model)
        (folder / f"{name}.json").write_text(json.dumps(network.graph))
        process.save(folder / f"{name}.weights.npz", network.weights())
        inputs, expected = probe(model)
        process.save(folder / f"{name}.probe.npz", {"inputs": inputs, "expected": expected})
    command = [sys.executable, Path(__file__).with_name("in_tfmot.py"), folder]
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "found.json").read_text())
