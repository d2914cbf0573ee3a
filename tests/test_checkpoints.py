"""A training that is killed goes on after its last whole epoch, and ends as if nothing had been: bit for bit."""

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from edgedl import compression, recipes
from edgedl.compression import base
from edgedl.fitting import FitOptions, fit
from edgedl.fitting.checkpoints import Checkpoint
from edgedl.fitting.samples import TrainingData

K = keras.layers
TRAINING = {"epochs": 4, "learning_rate": 0.01, "batch_size": 16, "augment": ["flip", "shift"]}


def network():
    keras.utils.set_random_seed(0)
    layers = [K.Conv2D(8, 3, name="conv"), K.BatchNormalization(name="norm"), K.ReLU(), K.Flatten()]
    layers = [keras.Input((6, 6, 1), name="image"), *layers, K.Dense(3, "softmax", name="y")]
    return keras.Sequential(layers, name="network")  # a name of its own: paths are alike in every process


def samples():
    random = np.random.default_rng(0)
    images = random.normal(0, 1, (48, 6, 6, 1)).astype(np.float32)
    return TrainingData(inputs={"image": images}, targets={"y": random.integers(0, 3, 48)})


class Killed(BaseException):
    """What no `except Exception` holds up."""


def killing(monkeypatch, at):
    """From step `at` of a training on, as if the process were gone (None: never). The steps that are done."""
    plain, steps = base._Guard.__call__, []

    def call(self, trainee, done, total):
        if done == at:
            raise Killed
        steps.append(done)
        plain(self, trainee, done, total)

    monkeypatch.setattr(base._Guard, "__call__", call)
    return steps


@pytest.mark.parametrize(
    "step",
    [
        {"kind": "cluster", "domain": "int", "clusters": 8, "bits": 2.5},
        {"kind": "cluster", "clusters": 4},
        {"kind": "prune", "method": "magnitude", "sparsity": 0.5, "scope": "global"},
        {"kind": "quantize", "scheme": "int8"},
        {"kind": "quantize", "scheme": "int8", "training": TRAINING | {"average": True}},
    ],
    ids=lambda step: "-".join(str(v) for v in list(step.values())[:2]),
)
def test_a_step_that_is_killed_goes_on_after_its_last_whole_epoch(step, tmp_path, monkeypatch):
    recipe = recipes.from_table({"step": [{"training": TRAINING} | step]})
    whole = compression.run(network(), recipe, samples())
    with monkeypatch.context() as patch:
        killing(patch, at=8)  # in the third epoch of three steps each
        with pytest.raises(Killed):
            compression.run(network(), recipe, samples(), folder=tmp_path)
    assert len(list(tmp_path.rglob("training-*.npz"))) == 1
    steps = killing(monkeypatch, at=None)
    again = compression.run(network(), recipe, samples(), folder=tmp_path)
    assert sorted(set(steps)) == [7, 8, 9, 10, 11, 12]  # the last again where the average was put
    for ours, theirs in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not list(tmp_path.rglob("training-*.npz"))


def test_early_stopping_remembers_the_best_epoch(tmp_path):
    options = FitOptions(epochs=6, batch_size=16, learning_rate=0.03, patience=2)
    models = [network(), network()]
    whole = fit(models[0], samples(), options)

    def kill(trainee, done, total):
        if done == 8:
            raise Killed

    kept = Checkpoint(tmp_path / "c.npz", {})
    with pytest.raises(Killed):
        fit(models[1], samples(), options, on_step=kill, checkpoint=kept)
    again = fit(models[1], samples(), options, checkpoint=kept)
    assert (again.best_epoch, again.history) == (whole.best_epoch, whole.history)
    for ours, theirs in zip(*(m.get_weights() for m in models), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_checkpoint_of_another_start_is_left_alone(tmp_path):
    recipe = recipes.from_table({"step": [{"kind": "cluster", "clusters": 4, "training": TRAINING}]})
    context = base.Context(step=recipe.steps[0], folder=tmp_path)
    options = FitOptions(epochs=2)
    first, second = (base._checkpoint(network(), replaced, context, {}) for replaced in (options, FitOptions(epochs=3)))
    other = network()
    other.get_layer("conv").kernel.assign(other.get_layer("conv").kernel * 2)
    assert len({first.path, second.path, base._checkpoint(other, options, context, {}).path}) == 3
