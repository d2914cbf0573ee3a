"""A small network, samples for it and the context of a step, for tests of fine-tuning."""

import keras
import numpy as np

from edgedl.compression.base import Context
from edgedl.fitting.samples import TrainingData
from edgedl.recipes import Step

K = keras.layers


def network(seed=0, end="softmax"):
    keras.utils.set_random_seed(seed)
    layers = [K.Conv2D(4, 3, name="conv"), K.BatchNormalization(name="norm"), K.ReLU(), K.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((6, 6, 1), name="image"), *layers, K.Dense(3, activation=end, name="kind")])


def samples(count=64, labels=False):
    random = np.random.default_rng(0)
    x = random.normal(2.0, 3.0, (count, 6, 6, 1)).astype(np.float32)
    return TrainingData(inputs={"image": x}, targets={"kind": random.integers(0, 3, count)} if labels else {})


def context(**kwargs):
    return Context(step=Step(kind="x", where="r.toml: step 1 (x)"), **kwargs)
