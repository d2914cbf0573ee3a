"""Run by conftest in a process of its own: networks carried to Keras 2, and TFMOT's methods on a small model."""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras

from edgedl.errors import EdgedlError
from edgedl_tfmot import keras_2, methods, process, qat
from edgedl_tfmot.training import Training

PRUNE = {"sparsity": 0.7, "schedule": "polynomial", "block": [1, 1], "m_by_n": None}
CLUSTER = {"clusters": 8, "initialization": "kmeans_plus_plus", "per_channel": False, "preserve_sparsity": False}
RUNS = {  # name: what it starts from, method, options
    "three steps": (None, "prune", PRUNE),
    "again": (None, "prune", PRUNE),
    "constant": (None, "prune", {**PRUNE, "schedule": "constant", "sparsity": 0.9}),
    "2:4": (None, "prune", {**PRUNE, "m_by_n": [2, 4]}),
    "block": (None, "prune", {**PRUNE, "block": [4, 1]}),
    "cluster": (None, "cluster", CLUSTER),
    "per channel": (None, "cluster", {**CLUSTER, "clusters": 4, "per_channel": True}),
    "sparse clusters": ("three steps", "cluster", {**CLUSTER, "preserve_sparsity": True}),
    "pqat": ("three steps", "pqat", {}),
    "cqat": ("cluster", "cqat", {}),
    "pcqat": ("sparse clusters", "pcqat", {}),
    "pqat alone": (None, "pqat", {}),
    "cqat alone": (None, "cqat", {}),
}


def network():
    nn = tf_keras.layers
    tf_keras.utils.set_random_seed(1)
    image = tf_keras.Input((8, 8, 4), name="image")
    x = nn.Conv2D(16, 3, padding="same", name="conv")(image)
    x = nn.ReLU(name="relu")(nn.BatchNormalization(name="norm")(x))
    x = nn.ReLU(name="relu2")(nn.DepthwiseConv2D(3, name="wide")(x))
    return tf_keras.Model(image, nn.Dense(4, activation="softmax", name="kind")(nn.Flatten(name="flat")(x)))


def with_weights(weights):
    model = network()
    for name, arrays in weights.items():
        model.get_layer(name).set_weights(arrays)
    return model


def run(weights, method, options, training):
    try:
        found = methods.run(with_weights(weights), method, options, training)
    except EdgedlError as e:
        return {}, {"error": f"{type(e).__name__}: {e}"}
    model = with_weights(found.weights)
    kernels = {layer.name: np.asarray(layer.weights[0]) for layer in model.layers if layer.weights}
    kernels = {name: k for name, k in kernels.items() if k.ndim > 1}
    return found.weights, {
        "zeros": {name: float((k == 0).mean()) for name, k in kernels.items()},
        "values": {name: max(len(np.unique(p)) for p in np.moveaxis(k, -1, 0)) for name, k in kernels.items()},
        "sum": {name: float(np.abs(k).astype(np.float64).sum()) for name, k in kernels.items()},
        "fours": float(((kernels["kind"].reshape(-1, 4, 4) == 0).all(axis=1)).mean()),
        "pairs": int(((kernels["conv"].reshape(9, 4, 16) == 0).sum(axis=1) == 2).sum()),
        "notes": found.notes,
    }


def skipped():
    """The largest change that QAT without a training step makes to layers left out, by layer."""
    nn = tf_keras.layers
    x = tf_keras.Input((6, 4), name="x")
    both = nn.Bidirectional(nn.LSTM(5, return_sequences=True), name="both")(x)
    mixed = nn.Flatten(name="flat")(nn.MultiHeadAttention(2, 10, name="attention")(both, both))
    model = tf_keras.Model(x, nn.Dense(3, name="kind")(mixed))
    before = {name: model.get_layer(name).get_weights() for name in ("both", "attention")}
    made = qat.quantize(model, "qat", lambda *_: None, ([], list(before)))
    return {
        name: max(float(np.abs(a - b).max()) for a, b in zip(old, made.weights[name], strict=True))
        for name, old in before.items()
    }


def main(folder):
    tf.config.experimental.enable_op_determinism()
    networks = {}
    for path in sorted(folder.glob("*.json")):
        probe = process.load(path.with_suffix(".probe.npz"))
        model = keras_2.build(json.loads(path.read_text()), process.load(path.with_suffix(".weights.npz")))
        networks[path.stem] = keras_2.require_equal(keras_2.outputs(model, probe["inputs"]), probe["expected"])
    rng = np.random.default_rng(0)
    training = Training(
        inputs=[rng.random((96, 8, 8, 4), np.float32)],
        targets=[rng.integers(0, 4, 96)],
        input_dtypes=["float32"],
        epochs=1,
        batch_size=32,
        learning_rate=1e-3,
        schedule="cosine",
        seed=0,
    )
    done, weights = {}, {None: {}}
    for name, (start, method, options) in RUNS.items():
        weights[name], done[name] = run(weights[start], method, options, training)
    (folder / "found.json").write_text(json.dumps({"networks": networks, "methods": done, "skipped": skipped()}))


main(Path(sys.argv[1]))
