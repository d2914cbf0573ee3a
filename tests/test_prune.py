import numpy as np
import pytest

from edgedl import recipes
from edgedl.compression import run
from edgedl.compression.kernels import all_kernels
from edgedl.compression.sparsity import lamp_scores
from edgedl.errors import InputError
from edgedl.fitting.samples import TrainingData


@pytest.fixture(scope="module")
def network():
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, padding="same", name="depth")(x)
    x = layers.Conv2DTranspose(4, 3, activation="relu", name="up")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="kind")(x))


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 48)
    x = rng.normal(size=(48, 6, 6, 2)).astype(np.float32) + y[:, None, None, None]
    return TrainingData(inputs={"image": x}, targets={"kind": y})


@pytest.fixture
def compress(network, samples):
    """compress(method="magnitude", ...) -> (the new model, what was said)."""

    def call(*, model=network, data=samples, **step):
        said = []
        recipe = recipes.from_table({"step": [{"kind": "prune", **step}]}, where="recipe.toml")
        return run(model, recipe, data, say=said.append), said

    return call


def kernels_of(model):
    return {k.name: k.read() for k in all_kernels(model)}


def zero_share(values):
    arrays = values.values() if isinstance(values, dict) else [values]
    return sum((a == 0).sum() for a in arrays) / sum(a.size for a in arrays)


TRAINING = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3}


def test_magnitude_zeroes_the_smallest_of_each_kernel_and_leaves_the_callers_model(compress, network):
    before = kernels_of(network)

    made, said = compress(method="magnitude", sparsity=0.5)

    after = kernels_of(made)
    assert np.array_equal(after.pop("depth"), before["depth"])
    for name, values in after.items():
        kept = values != 0
        assert (~kept).sum() == round(0.5 * values.size), name
        assert np.array_equal(values[kept], before[name][kept])
        assert np.abs(before[name][~kept]).max() <= np.abs(values[kept]).min()
    assert zero_share(kernels_of(network)) == 0
    total = sum(v.size for v in after.values())
    assert f"of {total:,} kernel weights are zero (50.0 %): conv 50 %, up 50 %, kind 50 %" in said[-1]
    assert any("left alone, as no layer that sums over input channels: depth" in note for note in said)


def test_depthwise_kernels_are_pruned_where_they_are_named_or_compared_with_all(compress):
    named, _ = compress(method="magnitude", sparsity=0.5, match="depth")
    compared, said = compress(method="magnitude", sparsity=0.9, scope="global")

    assert zero_share(kernels_of(named)["depth"]) == 0.5
    assert zero_share(kernels_of(compared)["depth"]) > 0
    assert not any("left alone" in note for note in said)


def test_global_scope_spreads_the_zeros_where_they_hurt_least(compress):
    made, _ = compress(method="magnitude", sparsity=0.6, scope="global")

    shares = [zero_share(v) for v in kernels_of(made).values()]
    assert zero_share(kernels_of(made)) == pytest.approx(0.6, abs=0.005)
    assert max(shares) - min(shares) > 0.05


def test_global_scope_takes_the_least_lamp_scores(compress, network):
    made, _ = compress(method="magnitude", sparsity=0.5, scope="global")

    before, after = kernels_of(network), kernels_of(made)
    scores = {n: lamp_scores(v) for n, v in before.items()}
    dropped = max(scores[n][after[n] == 0].max(initial=0) for n in scores)
    assert dropped <= min(scores[n][after[n] != 0].min() for n in scores)


@pytest.mark.parametrize(
    "step", [{"training": TRAINING}, {"training": {**TRAINING, "epochs": 1, "batch_size": 48}, "schedule": "constant"}]
)
def test_fine_tuning_ends_at_the_sparsity_however_short(compress, network, step):
    made, _ = compress(method="magnitude", sparsity=0.75, **step)

    values, before = kernels_of(made), kernels_of(network)
    for name in ("conv", "up", "kind"):
        assert (values[name] == 0).sum() == round(0.75 * values[name].size), name
        assert not np.allclose(values[name][values[name] != 0], before[name][values[name] != 0]), name
    if step == {"training": TRAINING}:
        again, _ = compress(method="magnitude", sparsity=0.75, **step)
        assert all(np.array_equal(a, b) for a, b in zip(made.get_weights(), again.get_weights(), strict=True))


def test_early_stopping_cannot_choose_what_is_not_yet_sparse(compress):
    training = {**TRAINING, "epochs": 3, "patience": 1, "learning_rate": 0.05}

    made, said = compress(method="magnitude", sparsity=0.9, training=training)

    assert all(zero_share(v) >= 0.88 for name, v in kernels_of(made).items() if name != "depth")
    assert any("held out" in note for note in said)


def test_zeros_survive_saving_and_a_later_training_step(compress, tmp_path):
    import keras

    pruned, _ = compress(method="magnitude", sparsity=0.5, match="conv")
    pruned.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")

    later, _ = compress(model=loaded, method="magnitude", sparsity=0.3, match="up", training=TRAINING)
    less, _ = compress(model=loaded, method="magnitude", sparsity=0.2, match="conv")

    zero = kernels_of(pruned)["conv"] == 0
    assert np.array_equal(kernels_of(later)["conv"] == 0, zero)
    assert not np.array_equal(kernels_of(later)["conv"], kernels_of(pruned)["conv"])
    assert np.array_equal(kernels_of(less)["conv"] == 0, zero)  # 20 % asked for, 50 % there before: kept


def test_batch_norm_statistics_are_those_of_the_pruned_network(compress, network, samples):
    made, said = compress(method="magnitude", sparsity=0.5)

    x = samples.inputs["image"]
    values = np.asarray(made.get_layer("conv")(x))
    assert made.get_layer("norm").moving_mean.numpy() == pytest.approx(values.mean((0, 1, 2)), abs=1e-3)
    assert any("batch-norm statistics re-estimated" in note for note in said)
    _, said = compress(method="magnitude", sparsity=0.5, data=None)
    assert any("no data to re-estimate" in note for note in said)


def test_n_m_keeps_two_of_four_along_the_input_channels(compress):
    made, said = compress(method="n_m", n=2, m=4, training=TRAINING)

    values = kernels_of(made)
    up = values["up"].reshape(3, 3, 4, 2, 4)  # (height, width, out, groups, in)
    assert ((up != 0).sum(axis=-1) == 2).all()
    assert ((values["kind"].reshape(1, 4, 3) != 0).sum(axis=1) == 2).all()
    assert zero_share(values["depth"]) == zero_share(values["conv"]) == 0
    assert any("left alone, as no layer that sums over 4 input channels or more: conv, depth" in n for n in said)


def test_block_zeroes_whole_blocks(compress):
    made, said = compress(method="block", sparsity=0.5, block=[4, 2])

    up = kernels_of(made)["up"].reshape(3, 3, 2, 2, 2, 4)  # (height, width, out, 2 of it, in, 4 of it)
    counts = (up == 0).sum(axis=(3, 5))
    assert set(np.unique(counts)) == {0, 8}
    assert zero_share(kernels_of(made)["up"]) >= 0.5
    assert any("left alone" in n and "conv, depth" in n for n in said)


def test_recurrent_and_attention_kernels_are_pruned_too(compress):
    import keras

    inputs = keras.Input((5, 8), name="sound")
    x = keras.layers.MultiHeadAttention(2, 4, name="heads")(inputs, inputs)
    x = keras.layers.Bidirectional(keras.layers.LSTM(4), name="both")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="kind")(x))

    made, _ = compress(model=model, data=None, method="magnitude", sparsity=0.5)
    groups, _ = compress(model=model, data=None, method="n_m")

    assert len(kernels_of(made)) == 9
    assert all(zero_share(v) == pytest.approx(0.5, abs=0.01) for v in kernels_of(made).values())
    query = next(k for k in all_kernels(groups) if k.key.endswith("query/kernel"))
    assert ((query.read().reshape(2, 4, 8) != 0).sum(axis=1) == 2).all()


def test_a_subclassed_model_keeps_its_class(compress, samples):
    import keras

    class Own(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.flat, self.kind = keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax", name="kind")

        def call(self, inputs):
            return self.kind(self.flat(inputs))

        def get_config(self):
            return {"name": self.name}

        @classmethod
        def from_config(cls, config):
            return cls(**config)

    inputs = keras.Input((6, 6, 2), name="image")
    model = keras.Model(inputs, Own(name="own")(inputs))

    made, _ = compress(model=model, data=None, method="magnitude", sparsity=0.5)

    assert zero_share(kernels_of(made)) == 0.5
    assert zero_share(kernels_of(model)) == 0


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"method": "magnitude", "sparsity": 1.0},
            r"recipe.toml: step 1 \(prune\): sparsity must be in \[0, 1\), got 1",
        ),
        ({"method": "magnitude"}, r"recipe.toml: step 1 \(prune\).*sparsity"),
        ({"method": "magnitude", "sparsity": 0.99}, "leaves nothing of kind; ask for less, or skip it"),
        ({"method": "magnitude", "sparsity": 0.999, "scope": "global"}, "sparsity 0.999 leaves nothing of"),
        ({"method": "magnitude", "sparsity": 0.01, "match": "kind"}, "0.01 of 12 weights is less than one weight"),
        (
            {"method": "magnitude", "sparsity": 0.5, "match": "cnov"},
            "'cnov' hits no layer with a kernel .did you mean 'conv'",
        ),
        ({"method": "magnitude", "sparsity": 0.5, "scope": "all"}, "scope must be one of layer, global"),
        ({"method": "n_m", "n": 4, "m": 4}, "n must be below m, or nothing is pruned; got n = 4, m = 4"),
        ({"method": "n_m", "match": "depth"}, "'depth' hits no layer that sums over 4 input channels or more"),
        ({"method": "block", "sparsity": 0.5, "block": [1, 1]}, r"block must be two sizes, not both 1.*got \[1, 1\]"),
        ({"method": "block", "sparsity": 0.95, "match": "kind"}, "sparsity 0.95 leaves nothing of kind"),
        ({"method": "magnitude", "sparsity": 0.5, "block": [4, 1]}, "unknown key 'block'"),
    ],
)
def test_what_cannot_be_done_is_refused(compress, step, message):
    with pytest.raises(InputError, match=message):
        compress(**step)


def test_training_without_data_is_refused(compress):
    with pytest.raises(InputError, match="training needs data"):
        compress(method="magnitude", sparsity=0.5, training=TRAINING, data=None)
