import keras
import numpy as np
import pytest
from students import context, network, samples

from edgedl import compression, recipes
from edgedl.compression.augmentation import Augmented
from edgedl.compression.base import _Guard, fine_tune, matching_layers
from edgedl.compression.normalization import re_estimate_batch_norm
from edgedl.errors import InputError
from edgedl.fitting.samples import TrainingData
from edgedl.recipes import Distill, Training

K = keras.layers


def test_matching_layers_goes_by_patterns_in_the_models_order_and_into_nested_models():
    inner = keras.Sequential([keras.Input((4,)), K.Dense(4, name="deep_1"), K.Dense(2, name="deep_2")], name="inner")
    model = keras.Sequential([keras.Input((4,)), K.Dense(4, name="first"), inner, K.Dense(2, name="last")])

    def found(*args, **kwargs):
        return {layer.name for layer in matching_layers(model, *args, **kwargs)} - {"inner"}

    assert found(()) == {"first", "deep_1", "deep_2", "last"}
    assert found(("deep*", "last"), ("deep_2",)) == {"deep_1", "last"}
    with pytest.raises(InputError, match=r"here: match 'firts' hits no layer with weights \(did you mean 'first'\?\)"):
        found(("firts",), where="here")
    with pytest.raises(InputError, match="here: skip 'x' hits no layer"):
        found((), ("x",), where="here")
    with pytest.raises(InputError, match="no layer with weights to work on: skip takes them all"):
        found((), ("*",))
    with pytest.raises(InputError, match="no convolution to work on: the model has none"):
        found((), able=lambda layer: False, what="convolution")


def test_re_estimated_statistics_are_those_of_the_data():
    model, data = network(), samples(256)
    assert re_estimate_batch_norm(model, data) == 1
    norm = model.get_layer("norm")
    activations = model.get_layer("conv")(data.inputs["image"]).numpy()
    np.testing.assert_allclose(norm.moving_mean, activations.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, activations.var((0, 1, 2)), rtol=0.02)
    assert norm.momentum == 0.99
    assert re_estimate_batch_norm(model, None) == 0


def test_averaged_weights_have_statistics_of_their_own():
    model, data = network(), samples(256, labels=True)
    training = Training(epochs=2, batch_size=64, learning_rate=1e-2, average=True)
    fine_tune(model, data, training, context())
    activations = model.get_layer("conv")(data.inputs["image"]).numpy()
    np.testing.assert_allclose(model.get_layer("norm").moving_mean, activations.mean((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize(
    "step",
    [
        {"kind": "prune", "method": "magnitude", "sparsity": 0.5},
        {"kind": "cluster", "clusters": 4},
        {"kind": "cluster", "domain": "int", "clusters": 8},
    ],
    ids=lambda step: "-".join(str(v) for v in list(step.values())[:2]),
)
def test_what_a_step_holds_the_average_holds_too(step):
    training = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-2, "average": True}
    recipe = recipes.from_table({"step": [{**step, "match": "kind", "training": training}]})
    made = compression.run(network(), recipe, samples(labels=True))
    kernel = made.get_layer("kind").kernel.numpy()
    assert (kernel == 0).sum() == 6 if step["kind"] == "prune" else len(np.unique(kernel / np.abs(kernel).max(0))) <= 8


@pytest.mark.parametrize("small", [0.1, 1.0])
def test_fine_tune_moves_small_channels_in_proportion_and_no_others_slower(small):
    model = network()
    conv = model.get_layer("conv")
    kernel = np.ones((3, 3, 1, 4), np.float32) * [1, 0.05, 0.001, 0]
    conv.kernel.assign(kernel)
    fine_tune(model, samples(32, labels=True), Training(learning_rate=1e-3, batch_size=32), context(), small=small)
    moved = np.abs(conv.kernel.numpy() - kernel).max(axis=(0, 1, 2))
    limit = small * np.sqrt(2 / 9)  # of what an initialized one has
    paces = np.minimum(np.array([1, 0.05, 0.001, 0]) / limit, 1)
    np.testing.assert_allclose(moved, 1e-3 * paces, rtol=0.01)  # one Adam step


def test_fine_tune_says_what_is_missing():
    with pytest.raises(InputError, match=r"r.toml: step 1 \(x\): training needs data; give --data"):
        fine_tune(network(), None, Training(), context())
    with pytest.raises(InputError, match="the data has no labels; give labelled data, or let the original model teach"):
        fine_tune(network(), samples(), Training(), context())
    with pytest.raises(InputError, match="distill needs the original model as teacher"):
        fine_tune(network(), samples(), Training(distill=Distill()), context())
    with pytest.raises(InputError, match="augment flip is for images"):
        Augmented.of(TrainingData(inputs={"a": np.zeros((4, 3))}, targets={}), ("flip",), 0)


def test_frozen_layers_train_too_which_is_said_and_are_frozen_afterwards():
    model, data, said = network(), samples(256, labels=True), []
    model.get_layer("conv").trainable = False
    model.get_layer("norm").trainable = False
    before = [w.numpy() for w in model.weights]
    fine_tune(model, data, Training(epochs=2, learning_rate=0.01), context(say=said.append))
    assert "r.toml: step 1 (x): trained although frozen (trainable = False): conv, norm" in said
    assert all((a != w.numpy()).any() for a, w in zip(before, model.weights, strict=True))
    assert [v.path for v in model.trainable_variables] == [v.path for v in model.get_layer("kind").weights]
    model.trainable = False
    assert re_estimate_batch_norm(model, data) == 1
    fine_tune(model, data, Training(), context(say=said.append))
    assert any(note.endswith("frozen (trainable = False): conv, kind, norm") for note in said)
    assert not model.trainable_variables


def test_training_that_diverges_keeps_the_last_good_weights(tmp_path):
    model, data = network(), samples(labels=True)
    good = model.get_weights()

    def spoil(trainee, done, total):
        if done == 3:  # the second epoch's first step
            trainee.get_layer("conv").kernel.assign(np.full((3, 3, 1, 4), np.nan))

    training = Training(epochs=3, learning_rate=1e-3)
    told = r"r.toml: step 1 \(x\): training diverged: .*; the weights of epoch 1 are kept in .*last-good.keras"
    with pytest.raises(InputError, match=told):
        fine_tune(model, data, training, context(folder=tmp_path), on_step=spoil)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    saved = keras.saving.load_model(tmp_path / "last-good.keras", compile=False)
    np.testing.assert_array_equal(saved.get_layer("conv").kernel, model.get_layer("conv").kernel)
    assert np.abs(model.get_layer("conv").get_weights()[0] - good[0]).max() > 0


def test_what_is_kept_on_several_devices_is_of_the_copy_that_trains():
    model = network()
    copy = keras.models.clone_model(model)
    copy.set_weights([w + 1 for w in model.get_weights()])
    guard = _Guard(model, 2, None)
    guard(copy, 3, 6)
    assert guard.epoch == 1
    for kept, trained in zip(guard.weights, copy.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, trained)


@pytest.mark.parametrize("stopped", [False, True])
def test_what_is_kept_is_a_whole_epoch_of_what_early_stopping_trains_on_and_after_a_resume(tmp_path, stopped):
    model, seen = network(), {}
    training = Training(epochs=4, learning_rate=1e-3, batch_size=10, patience=4)  # 6 steps on 58 of 64 samples

    def watch(trainee, done, total):
        seen[done] = trainee.get_layer("conv").kernel.numpy()
        if stopped and done == 7 and 8 not in seen:
            seen[8] = None
            raise KeyboardInterrupt
        if done == 8 and (not stopped or seen[8] is not None):
            trainee.get_layer("conv").kernel.assign(np.full((3, 3, 1, 4), np.nan))

    if stopped:
        start = model.get_weights()
        with pytest.raises(KeyboardInterrupt):
            fine_tune(model, samples(labels=True), training, context(folder=tmp_path), on_step=watch)
        model.set_weights(start)  # a new process loads the model that the step starts from
    with pytest.raises(InputError, match="the weights of epoch 1 are kept"):
        fine_tune(model, samples(labels=True), training, context(folder=tmp_path), on_step=watch)
    np.testing.assert_array_equal(model.get_layer("conv").kernel, seen[6])


def test_layers_of_one_name_in_nested_models_train_at_their_own_pace():
    def tower(name, size):
        kernel = keras.initializers.Constant(size)
        return keras.Sequential([keras.Input((4,)), K.Dense(3, kernel_initializer=kernel, name="fc")], name=name)

    x = keras.Input((4,), name="image")
    both = [tower("usual", 1.0), tower("small", 1e-3)]
    model = keras.Model(x, K.Dense(2, name="kind")(K.Add()([both[0](x), both[1](x)])))
    data = TrainingData(
        inputs={"image": np.random.default_rng(0).normal(size=(32, 4)).astype("f")},
        targets={"kind": np.eye(2)[[0, 1] * 16]},
    )
    before = [t.get_layer("fc").get_weights()[0] for t in both]
    fine_tune(model, data, Training(learning_rate=1e-3, batch_size=32), context())
    usual, small = (np.abs(t.get_layer("fc").get_weights()[0] - w).max() for t, w in zip(both, before, strict=True))
    assert usual > 20 * small > 0
