"""How removed channels are shared out among layers: the array functions, and the choice among them."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from edgedl import compression, recipes
from edgedl.compression.allocation import ORDERS, Family, balanced, by_rank, evenly
from edgedl.errors import InputError
from edgedl.fitting.samples import TrainingData

K = keras.layers


def family(*groups, layers=("a",), size=None, cost=1.0):
    return Family(layers=layers, groups=np.array(groups), size=size or len(groups), cost=cost)


def left_of(order, families, dropped):
    gone = set(order[:dropped].tolist())
    return [sum(int(g) not in gone for g in f.groups) / f.size for f in families]


def test_by_rank_takes_the_least_of_all():
    values = np.array([5.0, 1, 4, 2, 3, 0])
    assert by_rank([family(0, 1, 2), family(3, 5)], values).tolist() == [5, 1, 3, 2, 0]


def test_evenly_takes_the_same_share_of_each_and_the_least_of_it():
    values = np.array([5.0, 1, 4, 2, 30, 10, 20, 0])
    families = [family(0, 1, 2, 3), family(4, 5, 6, 7)]
    order = evenly(families, values)
    assert left_of(order, families, 4) == [0.5, 0.5]
    assert set(order[:4].tolist()) == {1, 3, 7, 5}


def test_evenly_counts_what_went_in_earlier_iterations():
    families = [family(0, 1, size=4), family(2, 3, 4, 5)]
    assert set(evenly(families, np.arange(6.0))[:2].tolist()) == {2, 3}


def test_balanced_leaves_shares_that_fall_with_the_root_of_the_cost_and_what_several_layers_write_last():
    cheap, dear = family(*range(64)), family(*range(64, 128), cost=4.0)
    families = [cheap, family(*range(128, 192), layers=("b", "c"), cost=9.0), dear]
    order = balanced(families, np.arange(192.0))
    shares = left_of(order, families, 48)
    assert shares[0] == pytest.approx(2 * shares[2], abs=0.05)
    assert shares[1] == 1
    assert left_of(order, families, 160) == [0, 0.5, 0]


def network():
    """Of layer `wide` two channels count, of `deep` all eight."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 2), name="image")
    x = K.Conv2D(8, 1, activation="relu", name="wide")(image)
    x = K.Conv2D(8, 3, activation="relu", name="deep")(x)
    model = keras.Model(image, K.Dense(3, activation="softmax", name="kind")(K.Flatten()(x)))
    kernel, bias = model.get_layer("wide").get_weights()
    model.get_layer("wide").set_weights([kernel * np.where(np.arange(8) < 2, 1, 1e-4).astype(np.float32), bias])
    return model


def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 64)
    x = rng.random((64, 6, 6, 2), np.float32) + y[:, None, None, None]
    return TrainingData(inputs={"image": x}, targets={"kind": y})


def run(samples, folder=None, **options):
    goal = {} if "sparsity" in options else {"goal": {"macs": 0.4}}
    step = {"kind": "prune", "method": "channels", "importance": "taylor", **goal, **options}
    told = []
    made = compression.run(network(), recipes.from_table({"step": [step]}), samples, say=told.append, folder=folder)
    return made, told


def losses_of(told):
    note = next(t for t in told if "scope " in t)
    tried = note.rsplit(": ", 1)[1].split(", ")
    return note, {scope: float(loss) for scope, loss in (t.split(" ") for t in tried)}


@pytest.mark.parametrize("training", [None, {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2}])
def test_best_goes_on_with_the_scope_of_least_loss(training):
    step = {"training": training} if training else {}
    made, told = run(data(), scope="best", **step)

    note, losses = losses_of(told)
    assert set(losses) == set(ORDERS)
    chosen = min(losses, key=losses.get)
    assert f"scope {chosen}, by the " in note
    assert ("loss after 2 epochs" if training else "outputs moved") in note
    alone, _ = run(data(), scope=chosen, **step)
    for ours, theirs in zip(made.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_step_that_goes_on_does_not_choose_again(tmp_path):
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "scope.txt").write_text("layer")
    made, told = run(data(), folder=tmp_path, scope="best")
    alone, _ = run(data(), scope="layer")
    assert not any("scope " in t for t in told)
    for ours, theirs in zip(made.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_iterations_end_where_one_step_does():
    once, often = (run(data(), scope="balanced", importance="l1", reconstruct=False, iterations=n)[0] for n in (1, 4))
    widths = [[made.get_layer(name).filters for name in ("wide", "deep")] for made in (once, often)]
    assert widths[0] == widths[1]


def test_what_cannot_be_chosen_is_refused():
    with pytest.raises(InputError, match="scope best weighs what channels cost: give a goal"):
        run(data(), scope="best", sparsity=0.5)
    with pytest.raises(InputError, match="scope best needs data; give --data"):
        run(None, scope="best", importance="l1")
    with pytest.raises(InputError, match="the goal would leave layer"):
        run(data(), scope="best", goal={"macs": 0.001})
