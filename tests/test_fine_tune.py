"""The step `fine_tune`: training alone, in which what earlier steps made stays."""

import numpy as np
import pytest
from students import network, samples

from edgedl import compression, recipes
from edgedl.errors import InputError

HALF = {"kind": "prune", "method": "magnitude", "sparsity": 0.5}
TAUGHT = {"epochs": 3, "learning_rate": 1e-2, "batch_size": 32, "distill": {"alpha": 1}}


def run(model, *steps, data=None):
    return compression.run(model, recipes.from_table({"step": list(steps)}, where="r.toml"), data or samples())


def test_fine_tune_trains_all_layers_and_leaves_zeros():
    model = network()
    pruned = run(model, HALF)
    tuned = run(model, HALF, {"kind": "fine_tune", "training": TAUGHT})
    for layer in ("conv", "kind"):
        before, after = (m.get_layer(layer).kernel.numpy() for m in (pruned, tuned))
        np.testing.assert_array_equal(before == 0, after == 0)
        assert (before[before != 0] != after[before != 0]).all()


def test_the_model_that_is_given_stays():
    model = network()
    before = model.get_weights()
    run(model, {"kind": "fine_tune", "training": {"epochs": 1}}, data=samples(labels=True))
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({}, r"r.toml: step 1 \(fine_tune\): training is missing: it is all that this step does"),
        ({"training": TAUGHT, "match": "conv"}, "it trains all layers; leave match and skip out"),
    ],
)
def test_fine_tune_refuses(step, told):
    with pytest.raises(InputError, match=told):
        run(network(), {"kind": "fine_tune", **step})
