import os

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras

from edgedl import compression, graph, recipes
from edgedl.compression.groups import channel_groups, families
from edgedl.compression.importance import first_order, l1_norms, of_groups, relative
from edgedl.compression.normalization import re_estimate_batch_norm
from edgedl.compression.removal import Costs, removed, sliced
from edgedl.errors import InputError, UnsupportedError
from edgedl.fitting.samples import TrainingData
from edgedl.models.macs import table

K = keras.layers
STEP = {"kind": "prune", "method": "channels"}


def tangled():
    """Residual add, depthwise with a multiplier, concat, squeeze and excite, separable, transposed, reshape."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3), name="image")
    x = K.ReLU()(K.BatchNormalization(name="a_norm")(K.Conv2D(8, 3, padding="same", name="a")(image)))
    x = K.Add()([x, K.BatchNormalization(name="b_norm")(K.Conv2D(8, 3, padding="same", name="b")(x))])
    deep = K.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="deep")(x)
    x = K.Concatenate()([deep, K.Conv2D(4, 1, activation="relu", name="c")(x)])
    gate = K.Conv2D(4, 1, activation="relu", name="squeeze")(K.GlobalAveragePooling2D(keepdims=True)(x))
    x = x * K.Conv2D(20, 1, activation="sigmoid", name="excite")(gate)
    x = K.PReLU(shared_axes=[1, 2])(K.SeparableConv2D(6, 3, name="sep")(x))
    x = K.Flatten()(K.Conv2DTranspose(5, 2, name="up")(x))
    x = keras.ops.relu(K.Dense(10, name="dense")(x))
    x = K.Reshape((10,))(K.Reshape((1, 10))(x))
    return graph.flattened(keras.Model(image, K.Dense(3, activation="softmax", name="kind")(x)))


def small(norm=True):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    x = K.Conv2D(8, 3, padding="same", use_bias=not norm, name="one")(image)
    x = K.ReLU()(K.BatchNormalization()(x) if norm else x)
    x = K.ReLU()(K.Conv2D(12, 3, padding="same", name="two")(x))
    return keras.Model(image, K.Dense(3, activation="softmax", name="kind")(K.GlobalAveragePooling2D()(x)))


def striped(count=240, seed=0):
    """Noise, with columns or rows of stripes or none."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, count)
    x = random.random((count, 8, 8, 1)).astype(np.float32) * 0.3
    x[y == 1, :, ::2] += 1
    x[y == 2, ::2] += 1
    return TrainingData(inputs={"image": x}, targets={"kind": y})


def run(model, data=None, **kwargs):
    folder = kwargs.pop("folder", None)
    told = []
    recipe = recipes.from_table({"step": [STEP | kwargs]})
    return compression.run(model, recipe, data, say=told.append, folder=folder), told


def macs(model):
    return sum(row["macs"] for row in table(model))


def test_what_is_left_undone_without_data_is_said():
    _, said = run(small(), sparsity=0.3)
    assert any("no data: kernels were not fitted, statistics are those of before" in line for line in said)
    with pytest.raises(InputError, match="per_cost weighs channels by what they save of a goal"):
        run(small(), sparsity=0.3, per_cost=True)


def test_groups_follow_adds_concats_and_depthwise():
    groups = channel_groups(tangled())
    together = {frozenset(names): len(ids) for names, ids in families(groups, list(groups.sources()))}
    assert together == {
        frozenset({"a", "b", "c", "excite"}): 12,
        frozenset({"squeeze"}): 4,
        frozenset({"sep"}): 6,
        frozenset({"up"}): 5,
        frozenset({"dense"}): 10,
    }
    assert (groups.uses["a"].outputs == groups.uses["b"].outputs).all()
    assert (groups.uses["deep"].outputs == np.repeat(groups.uses["a"].outputs, 2)).all()
    assert groups.frozen[groups.uses["kind"].outputs].all(), "outputs of the model stay"
    assert groups.frozen[groups.uses["a"].inputs].all(), "inputs of the model stay"


@pytest.mark.parametrize(
    "mixing",
    [
        lambda x: K.LayerNormalization()(x),
        lambda x: K.Softmax()(x),
        lambda x: K.Permute((1, 3, 2))(x),
        lambda x: x[..., :2],
        lambda x: x * np.array([1.0, 2.0, 3.0, 4.0], np.float32),
        lambda x: K.Conv2D(4, 1, groups=2)(x),
        lambda x: keras.ops.max(x, axis=-1, keepdims=True),
    ],
)
def test_groups_are_frozen_where_channels_cannot_be_told_apart(mixing):
    image = keras.Input((4, 4, 2))
    model = keras.Model(image, K.Dense(2)(K.Flatten()(mixing(K.Conv2D(4, 1, name="conv")(image)))))
    groups = channel_groups(graph.flattened(model))
    assert groups.frozen[groups.uses["conv"].outputs].all()
    with pytest.raises(UnsupportedError, match="no channel of conv can be removed"):
        run(model, sparsity=0.5, match="conv")


def test_groups_of_shared_layers_agree():
    image = keras.Input((4, 4, 4))
    first, shared = K.Conv2D(4, 1, name="first"), K.Conv2D(4, 1, name="shared")
    model = keras.Model(image, K.Dense(2)(K.Flatten()(shared(shared(first(image))))))
    groups = channel_groups(graph.flattened(model))
    found = groups.uses["shared"]
    assert (found.inputs == found.outputs).all()
    assert (found.inputs == groups.uses["first"].outputs).all()


def test_removal_equals_zeroing_and_costs_are_those_of_the_model():
    model = tangled()
    groups = channel_groups(model)
    keep = groups.frozen | (np.random.default_rng(0).random(groups.count) > 0.4)
    slim = removed(model, groups, keep)
    costs = Costs.of(model, groups)
    assert costs.of_choice(np.ones(groups.count, bool)) == (macs(model), model.count_params())
    assert costs.of_choice(keep) == (macs(slim), slim.count_params())
    silenced = graph.flattened(model)
    for use in groups.uses.values():
        layer, gone = silenced.get_layer(use.name), ~keep[use.outputs]
        weights = layer.get_weights()
        if use.name == "up":
            weights[0][..., gone, :] = 0
        elif use.name == "deep":
            weights[0].reshape(3, 3, -1)[..., gone] = 0
        elif use.sink:
            weights[-2][..., gone] = 0
        for weight in weights[-1:] if use.sink or use.name == "deep" else []:
            weight[gone] = 0
        layer.set_weights(weights)
    assert graph.prove(silenced, slim, 1e-6) <= 1e-6
    assert slim.get_layer("deep").output.shape[-1] == int(keep[groups.uses["deep"].outputs].sum())


@pytest.mark.parametrize("importance", ["l1", "bn_gamma", "taylor"])
@pytest.mark.parametrize("scope", ["global", "layer", "balanced"])
def test_goal_is_reached_in_iterations(importance, scope):
    model = small()
    step = {"goal": {"macs": 0.5}, "importance": importance, "scope": scope, "iterations": 2}
    skip = {"skip": ["two"]} if importance == "bn_gamma" else {}
    new, told = run(model, striped(64), **step, **skip)
    assert 0.35 * macs(model) < macs(new) <= 0.5 * macs(model)
    assert "channels removed; " in told[-1]
    assert f"{macs(new) / macs(model):.1%} of the MACs" in told[-1]
    assert macs(model) == macs(small()), "the caller's model stays"


def test_goal_of_parameters():
    new, _ = run(small(), goal={"parameters": 0.3})
    assert new.count_params() <= 0.3 * small().count_params()


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("iterations", [1, 3])
def test_sparsity_removes_its_share(scope, iterations):
    new, told = run(small(), sparsity=0.5, scope=scope, iterations=iterations)
    filters = [new.get_layer(name).filters for name in ("one", "two")]
    assert sum(filters) == 10
    assert filters == [4, 6] or scope == "global"
    assert told[-1].startswith("recipe: step 1 (prune): 10 of 20 channels removed")


@pytest.mark.parametrize(("goal", "left"), [(0.34, 6), (0.06, 3), (0.02, 1)])
def test_a_layer_of_little_importance_keeps_a_share_of_its_channels(goal, left):
    """A quarter, or an eighth, or one, as far as the goal can be reached otherwise."""
    image = keras.Input((8, 8, 4))
    layers = [K.Conv2D(24, 1, name=name, use_bias=False) for name in ("faint", "loud")]
    model = keras.Sequential([image, *layers, K.Conv2D(4, 1)])
    kernel = model.get_layer("faint").get_weights()[0]
    model.get_layer("faint").set_weights([kernel * np.where(np.arange(24) > 0, np.float32(1e-3), 1)])

    new, _ = run(model, goal={"macs": goal})

    assert new.get_layer("faint").filters == left
    assert macs(new) <= goal * macs(model)


def test_channels_go_in_multiples():
    image = keras.Input((8, 8, 16))
    model = keras.Sequential([image, K.Conv2D(16, 1, name="one"), K.Conv2D(24, 1, name="two"), K.Conv2D(8, 1)])
    new, _ = run(model, goal={"macs": 0.6}, multiple=4)
    widths = [new.get_layer(name).filters for name in ("one", "two")]
    assert all(width % 4 == 0 for width in widths)
    assert widths < [16, 24]
    assert macs(new) <= 0.6 * macs(model)


def test_the_least_important_channels_go():
    model = small(norm=False)
    kernel, bias = model.get_layer("one").get_weights()
    kernel[..., [0, 3, 5, 6]] *= 0.01
    model.get_layer("one").set_weights([kernel, bias])
    new, _ = run(model, sparsity=0.5, match="one")
    np.testing.assert_array_equal(new.get_layer("one").get_weights()[0], kernel[..., [1, 2, 4, 7]])
    np.testing.assert_array_equal(
        new.get_layer("two").get_weights()[0], model.get_layer("two").get_weights()[0][:, :, [1, 2, 4, 7]]
    )


@pytest.mark.parametrize("labelled", [True, False])
def test_taylor_finds_the_channels_that_the_output_does_not_hang_on(labelled):
    model = small()
    kernel, bias = model.get_layer("two").get_weights()
    kernel[:, :, [1, 4]] *= 1e-4
    model.get_layer("two").set_weights([kernel, bias])
    data = striped(64)
    data = data if labelled else TrainingData(inputs=data.inputs, targets={})
    flat = graph.flattened(model)
    groups = channel_groups(flat)
    ids = groups.uses["one"].outputs
    values = of_groups(flat, groups, "taylor", data, wanted=ids, seed=0, where="here")[ids]
    assert set(np.argsort(values)[:2]) == {1, 4}


@pytest.mark.parametrize("center", [True, False])
def test_taylor_weighs_a_normalization_without_a_scale_as_one_whose_scale_is_1(center):
    def values(**scale):
        keras.utils.set_random_seed(1)
        image = keras.Input((6, 6, 2), name="image")
        x = K.Conv2D(8, 3, name="one")(image)
        x = K.BatchNormalization(center=center, beta_initializer="random_normal", name="norm", **scale)(x)
        model = keras.Model(image, K.Dense(3, name="kind")(K.GlobalAveragePooling2D()(K.ReLU()(x))))
        groups = channel_groups(model)
        ids = groups.uses["one"].outputs
        data = TrainingData(inputs={"image": np.random.default_rng(0).random((32, 6, 6, 2), np.float32)}, targets={})
        re_estimate_batch_norm(model, data)
        return of_groups(model, groups, "taylor", data, wanted=ids, seed=0, where="here")[ids]

    plain = values(scale=True)
    assert plain.min() > 0
    np.testing.assert_allclose(values(scale=False), plain, rtol=1e-3)


def test_skip_keeps_a_layer_and_all_that_is_tied_to_it():
    new, _ = run(tangled(), sparsity=0.4, skip=["b", "sq*"])
    widths = {name: new.get_layer(name).filters for name in ("a", "b", "squeeze", "sep")}
    assert (widths["a"], widths["b"], widths["squeeze"]) == (8, 8, 4)
    assert new.get_layer("c").filters < 4 or widths["sep"] < 6


def test_a_layer_that_would_lose_all_channels_is_named():
    with pytest.raises(
        InputError, match=r"recipe: step 1 \(prune\): the goal would leave layer '\w+' fewer than 1 .*macs 0.0"
    ):
        run(small(), goal={"macs": 0.001})
    with pytest.raises(InputError, match=r"sparsity 0.99 would leave layer 'one' fewer than 1 channels; ask for less"):
        run(small(), sparsity=0.99, match="one")
    with pytest.raises(InputError, match="would leave layer 'two' fewer than 7"):
        run(small(), sparsity=0.5, match="two", minimum=7)


@pytest.mark.parametrize(
    ("narrow", "why"),
    [(6, "is out of reach for channels that go 8 at a time"), (8, "would leave layer 'narrow' fewer than 1 channels")],
)
def test_layers_too_small_for_a_multiple_stay(narrow, why):
    image = keras.Input((8, 8, 1), name="image")
    x = K.Conv2D(16, 3, activation="relu", name="wide")(K.Conv2D(narrow, 3, activation="relu", name="narrow")(image))
    model = keras.Model(image, K.Dense(3, name="kind")(K.GlobalAveragePooling2D()(x)))
    new, _ = run(model, sparsity=0.5, multiple=8, scope="layer")
    assert [new.get_layer(n).filters for n in ("narrow", "wide")] == [narrow, 8]
    with pytest.raises(
        InputError, match=r"sparsity 0.5 removes nothing: channels go 20 at a time, and no layer can lose"
    ):
        run(model, sparsity=0.5, multiple=20)
    with pytest.raises(InputError, match=r"sparsity 0.99 would leave layer 'narrow' fewer than 1 channels"):
        run(model, sparsity=0.99, multiple=2, match="narrow")
    with pytest.raises(InputError, match=r"sparsity 0.01 removes nothing: it is less than one channel of a layer"):
        run(model, sparsity=0.01)
    with pytest.raises(InputError, match=f"the goal {why}; the least .*macs"):
        run(model, goal={"macs": 0.1}, multiple=8, match="narrow")


@pytest.mark.parametrize(
    ("widths", "sparsity", "left"),
    [((16, 16), 0.5, (8, 8)), ((16, 16), 0.75, None), ((10, 32), 0.7, (2, 8)), ((8, 8), 0.5, None)],
)
def test_a_share_in_multiples_is_reached_or_refused(widths, sparsity, left):
    image = keras.Input((8, 8, 1), name="image")
    x = K.Conv2D(widths[0], 3, activation="relu", name="one")(image)
    x = K.Conv2D(widths[1], 3, activation="relu", name="two")(x)
    model = keras.Model(image, K.Dense(3, name="kind")(K.GlobalAveragePooling2D()(x)))
    if left is None:
        with pytest.raises(InputError, match=r"fewer than 1 channels|no layer can lose so many"):
            run(model, sparsity=sparsity, multiple=8, scope="layer")
        return
    new, _ = run(model, sparsity=sparsity, multiple=8, scope="layer")
    assert tuple(new.get_layer(n).filters for n in ("one", "two")) == left


def test_taylor_goes_by_the_real_outputs():
    model = small()
    classes = keras.ops.argmax(model.outputs[0], axis=-1)
    data = TrainingData(inputs=striped().inputs, targets={})
    new, _ = run(keras.Model(model.inputs[0], [model.outputs[0], classes]), data, sparsity=0.5, importance="taylor")
    alone, _ = run(model, data, sparsity=0.5, importance="taylor")
    np.testing.assert_array_equal(new.get_layer("two").get_weights()[0], alone.get_layer("two").get_weights()[0])
    with pytest.raises(UnsupportedError, match=r"importance taylor needs labels, or an output .*: use l1"):
        run(keras.Model(model.inputs[0], classes), data, sparsity=0.5, importance="taylor")


def test_the_op_reshape_keeps_its_channels_where_the_layer_loses_them():
    image = keras.Input((4, 4, 1), name="image")
    x = keras.ops.reshape(K.Conv2D(8, 3, padding="same", name="one")(image), (-1, 16, 8))
    x = K.Conv1D(8, 3, activation="relu", name="two")(x)
    model = keras.Model(image, K.Dense(3, name="kind")(K.GlobalAveragePooling1D()(x)))
    new, _ = run(model, sparsity=0.5)
    assert [new.get_layer(n).filters for n in ("one", "two")] == [8, 4]


def test_bad_steps_are_refused_by_name():
    with pytest.raises(
        InputError, match=r"match 'thre\*' hits no convolution or Dense layer.*there are kind, one, two"
    ):
        run(small(), sparsity=0.5, match="thre*")
    with pytest.raises(UnsupportedError, match="bn_gamma: layer 'two' has no batch normalization"):
        run(small(), sparsity=0.5, importance="bn_gamma")
    with pytest.raises(InputError, match=r"importance taylor needs data; give --data"):
        run(small(), sparsity=0.5, importance="taylor")
    with pytest.raises(InputError, match="training needs data"):
        run(small(), sparsity=0.5, training={"epochs": 1})
    int4 = compression.run(small(), recipes.from_table({"step": [{"kind": "quantize", "scheme": "int4"}]}), striped())
    with pytest.raises(InputError, match="is quantized, for weight_only_wi4_afp32; remove channels before that"):
        run(int4, sparsity=0.5)


def test_training_brings_accuracy_back_and_a_seed_repeats_it():
    data = striped()
    model = small()
    from edgedl.fitting import FitOptions, evaluate, fit

    fit(model, data, FitOptions(epochs=6, learning_rate=1e-2, mixed_precision=False))
    unlabelled = TrainingData(inputs=data.inputs, targets={})
    step = {"goal": {"macs": 0.15}}
    training = {"epochs": 10, "learning_rate": 2e-2, "distill": {"temperature": 2, "alpha": 1.0}}
    bare, _ = run(model, unlabelled, **step, reconstruct=False)
    first, second = (run(model, unlabelled, **step, training=training)[0] for _ in range(2))
    assert macs(first) <= 0.15 * macs(model)
    scores = [evaluate(m, striped(seed=1))["accuracy"] for m in (model, bare, first)]
    assert scores[2] > max(0.9, scores[1])
    for ours, theirs in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_zeros_and_clusters_of_earlier_steps_are_kept():
    zeroed = {"kind": "prune", "method": "magnitude", "sparsity": 0.5, "match": "two"}
    shared = {"kind": "cluster", "clusters": 4, "match": "kind"}
    step = STEP | {"sparsity": 0.25, "skip": "one"}
    trained = step | {"training": {"epochs": 2, "learning_rate": 1e-2}}
    bare, made = (
        compression.run(small(), recipes.from_table({"step": [zeroed, shared, last]}), data)
        for last, data in ((step, None), (trained, striped(64)))
    )
    two, kind = (made.get_layer(name).get_weights()[0] for name in ("two", "kind"))
    assert (two == 0).mean() > 0.4
    np.testing.assert_array_equal(two == 0, bare.get_layer("two").get_weights()[0] == 0)
    assert len(np.unique(kind)) <= 4


def test_an_interrupted_step_goes_on_where_it_was(tmp_path, monkeypatch):
    step = {"sparsity": 0.5, "iterations": 2, "training": {"epochs": 1}}
    whole, _ = run(small(), striped(64), **step)
    from edgedl.compression import channels

    left = [1]

    def interrupted(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return of_groups(*args, **kwargs)

    monkeypatch.setattr(channels.criteria, "of_groups", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(small(), striped(64), folder=tmp_path, **step)
    left[0] = 1
    again, told = run(small(), striped(64), folder=tmp_path, **step)
    assert "recipe: step 1 (prune): went on after iteration 1 of 2" in told
    for ours, theirs in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_array_functions():
    kernel = np.zeros((3, 3, 2, 4), np.float32)
    kernel[0, 0, :, 1] = [1, -2]
    assert l1_norms(kernel, "convolution").tolist() == [0, 3, 0, 0]
    assert l1_norms(np.swapaxes(kernel, -1, -2), "transposed").tolist() == [0, 3, 0, 0]
    assert relative(np.array([1.0, 3.0])).tolist() == [0.5, 1.5]
    assert relative(np.zeros(2)).tolist() == [0, 0]
    assert first_order(np.array([[1.0, -2.0], [3.0, 0.0]])).tolist() == [5.0, 2.0]
    ins, outs = np.array([True, False]), np.array([False, True, True, False])
    assert sliced(kernel, ins, outs, "convolution").shape == (3, 3, 1, 2)
    assert sliced(np.swapaxes(kernel, -1, -2), ins, outs, "transposed").shape == (3, 3, 2, 1)


def test_a_goal_of_macs_needs_sizes():
    image = keras.Input((None, None, 3), name="image")
    model = keras.Model(image, K.GlobalAveragePooling2D()(K.Conv2D(4, 1)(K.Conv2D(16, 3, name="open")(image))))
    recipe = recipes.from_table({"step": [{**STEP, "goal": {"macs": 0.5}}]})
    with pytest.raises(InputError, match="goal macs: those of 'open' cannot be counted, its sizes are free; fix them"):
        compression.run(model, recipe, None)


def test_a_users_layer_that_is_called_a_pooling_freezes_what_it_takes():
    class StatsPool(K.Layer):
        def call(self, x):
            return keras.ops.concatenate([keras.ops.mean(x, 1), keras.ops.std(x, 1)], -1)

    wave = keras.Input((16, 3), name="wave")
    x = StatsPool()(K.Conv1D(8, 3, name="held")(K.Conv1D(8, 3, activation="relu", name="free")(wave)))
    model = keras.Model(wave, K.Dense(3)(x))
    recipe = recipes.from_table({"step": [{**STEP, "sparsity": 0.5}]})
    made = compression.run(model, recipe, None)
    assert [made.get_layer(n).kernel.shape[-1] for n in ("free", "held")] == [4, 8]
