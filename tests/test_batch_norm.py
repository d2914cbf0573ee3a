"""Batch-norm statistics re-estimated on the data, by a step of a recipe, or while the original teaches."""

import keras
import numpy as np
import pytest
from students import network, samples

from edgedl import compression, recipes
from edgedl.errors import InputError
from edgedl.fitting import evaluate
from edgedl.fitting.samples import TrainingData

K = keras.layers
STEP = {"kind": "batch_norm"}


def run(model, data, step=STEP):
    told = []
    recipe = recipes.from_table({"step": [step]}, where="r.toml")
    return compression.run(model, recipe, data, say=told.append), told


def statistics(model, name="norm"):
    norm = model.get_layer(name)
    return norm.moving_mean.numpy(), norm.moving_variance.numpy()


def answered(model, data):
    """The data with what the model answers as targets: its own loss is the least."""
    return TrainingData(inputs=data.inputs, targets={"kind": model.predict(data.inputs["image"], verbose=0)})


def test_statistics_are_those_of_the_data_and_nothing_else_moves():
    model, data = network(), samples(512)
    new, told = run(model, data)
    activations = model.get_layer("conv")(data.inputs["image"]).numpy()
    np.testing.assert_allclose(statistics(new)[0], activations.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(statistics(new)[1], activations.var((0, 1, 2)), rtol=0.02)
    assert all((new.get_layer("conv").get_weights()[i] == w).all() for i, w in enumerate(model.layers[0].get_weights()))
    assert (statistics(model)[0] == 0).all()  # the user's own stays as it is
    assert told == [
        "r.toml: step 1 (batch_norm): statistics of 1 batch normalization re-estimated on the data; it has no labels "
        "that say whether they are better"
    ]


def test_labels_say_whether_the_statistics_are_better():
    right = network()
    for weight, value in zip(right.get_layer("norm").weights[2:], (3.0, 0.5), strict=True):
        weight.assign(np.full(4, value, np.float32))
    data = answered(right, samples(512))
    kept, told = run(right, data)
    assert (statistics(kept)[0] == 3.0).all()
    assert "they stay as they are" in told[0]
    mended = run(network(), samples(512))[0]
    data = answered(mended, samples(512))
    new, told = run(network(), data)
    np.testing.assert_array_equal(statistics(new), statistics(mended))
    before, after = (evaluate(m, data)["loss"] for m in (network(), new))
    assert told[0].endswith(f"re-estimated on the data: loss {before:.4g} -> {after:.4g}")
    assert after < before


def test_labels_that_are_none_say_nothing():
    data = samples(512, labels=True)
    data.targets["kind"][3] = -1
    new, told = run(network(), data)
    assert (statistics(new)[0] != 0).any()
    assert told[0].endswith("it has no labels that say whether they are better")


def test_frozen_layers_keep_their_statistics():
    model = network()
    model.get_layer("norm").trainable = False
    new, told = run(model, samples(512))
    assert (statistics(new)[0] == 0).all()
    assert told == ["r.toml: step 1 (batch_norm): no batch normalization that is not frozen: they stay as they are"]


def test_match_and_skip_choose_the_layers_and_the_others_go_on_as_they_were():
    keras.utils.set_random_seed(0)
    layers = [K.Conv2D(4, 3), K.BatchNormalization(name="first"), K.ReLU(), K.BatchNormalization(name="second")]
    end = [K.GlobalAveragePooling2D(), K.Dense(3, name="kind")]
    model, data = keras.Sequential([keras.Input((6, 6, 1), name="image"), *layers, *end]), samples(512)
    new, told = run(model, data, {**STEP, "match": "second"})
    assert "statistics of 1 batch" in told[0]
    assert (statistics(new, "first")[1] == 1).all()
    seen = keras.Model(model.inputs, model.layers[2].output).predict(data.inputs["image"], verbose=0)
    np.testing.assert_allclose(statistics(new, "second")[0], seen.mean((0, 1, 2)), rtol=1e-3)
    assert new.get_layer("first").trainable
    assert (statistics(run(model, data, {**STEP, "skip": "second"})[0], "second")[1] == 1).all()
    with pytest.raises(InputError, match=r"r.toml: step 1 \(batch_norm\): match 'x' hits no batch normalization"):
        run(model, data, {**STEP, "match": "x"})


@pytest.mark.parametrize(
    ("model", "count", "message"),
    [
        (network, 499, "fewer than 500 samples: they stay as they are"),
        (lambda: keras.Sequential([keras.Input((6, 6, 1), name="image"), K.Flatten()]), 512, "no batch normalization"),
    ],
)
def test_without_enough_samples_or_layers_the_model_stays_as_it_is(model, count, message):
    given = model()
    new, told = run(given, samples(count))
    assert message in told[0]
    assert all((a == b).all() for a, b in zip(given.get_weights(), new.get_weights(), strict=True))


def test_bad_input_is_refused():
    with pytest.raises(InputError, match=r"r.toml: step 1 \(batch_norm\): batch_norm needs data; give --data"):
        run(network(), None)
    with pytest.raises(InputError, match="this step trains nothing"):
        run(network(), samples(), {**STEP, "training": {}})
    with pytest.raises(InputError, match=r"samples must be in \[500, inf\)"):
        run(network(), samples(), {**STEP, "samples": 10})


@pytest.mark.parametrize("whose", ["own", "data"])
def test_the_teacher_has_the_statistics_of_the_data_where_the_step_says_so(whose):
    teacher, data = network(1), samples(512)
    mended, kept = run(teacher, data)[0], teacher.get_weights()
    distill = {"alpha": 1, "temperature": 1, "statistics": whose}
    training = {"epochs": 30, "batch_size": 64, "learning_rate": 1e-2, "distill": distill}
    recipe = recipes.from_table({"step": [{"kind": "fine_tune", "training": training}]})
    told = []
    student = compression.run(network(2), recipe, data, say=told.append, teacher=teacher)
    answers = [m.predict(data.inputs["image"], verbose=0) for m in (student, teacher, mended)]
    near, far = (float(np.abs(answers[0] - other).mean()) for other in answers[1:])
    assert (near < far) == (whose == "own")
    assert any("step 1 (fine_tune): the teacher: statistics of 1 batch" in note for note in told) == (whose == "data")
    assert all((a == b).all() for a, b in zip(kept, teacher.get_weights(), strict=True))


def test_statistics_of_the_data_are_not_those_of_varied_samples():
    step = {"kind": "fine_tune", "training": {"augment": ["flip"], "distill": {"alpha": 1, "statistics": "data"}}}
    assert recipes.from_table({"step": [step]}).steps[0].training.augment == ("flip",)
    step["training"]["augment"] = ["flip", "zoom"]
    with pytest.raises(InputError, match="statistics of the data are not those of samples that zoom varies: leave one"):
        recipes.from_table({"step": [step]})
