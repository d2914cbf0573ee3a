import numpy as np
import pytest

from edgedl import recipes
from edgedl.compression import clustering, run
from edgedl.compression.base import Context
from edgedl.compression.kernels import all_kernels
from edgedl.compression.preservation import preserved, shared_codes, shared_values
from edgedl.compression.quantize import Options as QuantizeOptions
from edgedl.compression.quantize import Quantize
from edgedl.compression.sharing import Codes
from edgedl.errors import InputError
from edgedl.fitting.samples import TrainingData
from edgedl.recipes import Step


@pytest.fixture(scope="module")
def network():
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(
        gamma_initializer=keras.initializers.RandomUniform(-2, 2, seed=1),
        moving_variance_initializer=keras.initializers.RandomUniform(0.2, 3, seed=2),
        name="norm",
    )(x)
    x = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="depth")(x)
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="wide")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="kind")(x))
    wide = model.get_layer("wide")
    wide.kernel.assign(wide.kernel.numpy() * np.geomspace(0.2, 2, 12))  # as folding and training leave channels
    return model


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 64)
    x = rng.normal(size=(64, 8, 8, 2)).astype(np.float32) + y[:, None, None, None]
    return TrainingData(inputs={"image": x}, targets={"kind": y})


@pytest.fixture
def compress(network, samples):
    """compress({"kind": "cluster", ...}, ...) -> (the new model, what was said)."""

    def call(*steps, model=network, data=samples):
        said = []
        recipe = recipes.from_table({"step": [{"kind": "cluster", **s} for s in steps]}, where="recipe.toml")
        return run(model, recipe, data, say=said.append), said

    return call


@pytest.fixture
def int8_codes(tmp_path, samples):
    """The kernels in the .tflite file that the exporter makes of a model, by number of weights."""
    from ai_edge_litert.interpreter import Interpreter

    from edgedl.models.saving import save
    from edgedl_tflite.exporter import TFLiteExporter

    def call(model):
        save(model, tmp_path / "m.keras")
        (tmp_path / "data").mkdir(exist_ok=True)
        np.save(tmp_path / "data" / "image.npy", samples.inputs["image"])
        out = tmp_path / "m.tflite"
        TFLiteExporter().export(
            tmp_path / "m.keras", out, scheme="static_wi8_ai8", calibration=tmp_path / "data", options=None
        )
        file = Interpreter(str(out))
        file.allocate_tensors()
        found = {}
        for detail in file.get_tensor_details():
            if detail["dtype"] == np.int8 and len(detail["quantization_parameters"]["scales"]) > 1:
                found[int(np.prod(detail["shape"]))] = file.get_tensor(detail["index"])
        return found

    return call


TRAINING = {
    "epochs": 3,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "schedule": "cosine",
    "distill": {"temperature": 3, "alpha": 1},
}


def kernels_of(model):
    return {k.name: k.read() for k in all_kernels(model)}


def answers(model, samples):
    return np.asarray(model(samples.inputs["image"]))


def test_float_centroids_per_tensor(compress, network, samples):
    made, said = compress({"clusters": 6})

    before = kernels_of(network)
    for name, values in kernels_of(made).items():
        assert len(np.unique(values)) == 6
        centroids = np.unique(values)
        assert np.array_equal(values, centroids[np.abs(before[name][..., None] - centroids).argmin(-1)])
    assert "at most 6 float values a kernel" in said[-1]
    assert len(np.unique(kernels_of(network)["wide"])) > 800
    assert made.get_layer("norm").gamma.numpy() == pytest.approx(network.get_layer("norm").gamma.numpy())


def test_float_centroids_per_channel_err_less(compress, network):
    whole, _ = compress({"clusters": 4})
    each, said = compress({"clusters": 4, "granularity": "per_channel"})

    before, columns = kernels_of(network)["wide"], kernels_of(each)["wide"]
    assert max(len(np.unique(columns[..., c])) for c in range(12)) == 4
    assert np.square(columns - before).sum() < np.square(kernels_of(whole)["wide"] - before).sum()
    assert max(len(np.unique(kernels_of(each)["depth"][..., c, :])) for c in range(8)) == 4
    assert "at most 4 float values a channel" in said[-1]


def test_float_centroids_are_trained_and_zeros_kept(compress, network, samples):
    pruned, _ = compress({"kind": "prune", "method": "magnitude", "sparsity": 0.5})
    plain, _ = compress({"clusters": 5}, model=pruned)

    made, _ = compress({"clusters": 5, "training": TRAINING}, model=pruned)

    for name, values in kernels_of(made).items():
        assert len(np.unique(values)) <= 5
        assert (values[kernels_of(pruned)[name] == 0] == 0).all()
        assert not np.isin(np.unique(values[values != 0]), kernels_of(plain)[name]).any(), name


def test_integer_codes_survive_export_and_are_counted_in_the_file(compress, samples, int8_codes):
    pruned, _ = compress({"kind": "prune", "method": "magnitude", "sparsity": 0.4, "match": "*", "skip": "kind"})

    made, said = compress({"domain": "int", "clusters": 7, "training": TRAINING}, model=pruned)

    context = Context(step=Step(kind="quantize", where="recipe.toml: step 3 (quantize)"))
    quantized = Quantize().apply(made, samples, QuantizeOptions(), context)

    codes = int8_codes(quantized)
    kernels = {k.shape: k for k in all_kernels(made)}
    assert all(np.array_equal(c, codes[size]) for size, c in int8_codes(made).items())
    assert sorted(codes) == sorted(int(np.prod(s)) for s in kernels)
    assert len(np.unique(np.concatenate([c.ravel() for c in codes.values()]))) <= 7
    for shape, kernel in kernels.items():
        stored = codes[int(np.prod(shape))]
        ours = clustering.codes_of(kernel.matrix(kernel.read()))
        assert np.array_equal(np.unique(stored), np.unique(ours))
        assert (stored == 0).sum() == (ours == 0).sum()
        if kernel.name != "kind":
            assert (stored == 0).mean() >= 0.39
    assert any("4 kernels share the codes -127 " in note for note in said)


def test_integer_codes_stay_nearer_to_the_network_than_float_centroids(compress, network, samples, int8_codes):
    """Per-channel scales make of float centroids another integer in every channel."""
    codes, _ = compress({"domain": "int", "clusters": 8})
    floats, _ = compress({"clusters": 8})

    few, many = int8_codes(codes), int8_codes(floats)

    assert all(len(np.unique(c)) <= 8 for c in few.values())
    assert len(np.unique(many[8 * 9 * 12])) > 12
    wanted = answers(network, samples)
    assert np.square(answers(codes, samples) - wanted).mean() < np.square(answers(floats, samples) - wanted).mean()


def test_integer_codes_fold_batch_norm_first(compress, network, samples):
    made, _ = compress({"domain": "int", "clusters": 255})

    assert not [layer for layer in made.layers if type(layer).__name__ == "BatchNormalization"]
    assert answers(made, samples) == pytest.approx(answers(network, samples), abs=0.02)


def test_training_brings_the_codes_nearer_to_the_teacher(compress, network, samples):
    plain, _ = compress({"domain": "int", "clusters": 4})
    trained, _ = compress({"domain": "int", "clusters": 4, "training": {**TRAINING, "epochs": 6}})

    wanted = answers(network, samples)
    errors = [np.square(answers(m, samples) - wanted).mean() for m in (plain, trained)]
    assert errors[1] < 0.7 * errors[0]


def test_bits_are_what_the_zip_takes(compress):
    made, said = compress({"domain": "int", "clusters": 16, "bits": 3.0, "smallest": 100})

    kernels = [k for k in all_kernels(made) if k.name in ("conv", "wide")]
    codes = [clustering.codes_of(k.matrix(k.read())) for k in kernels]
    assert 2.5 < clustering.zipped_bits(codes) <= 3.0
    assert any("left alone, as no layer with int8 codes of 100 weights or more: depth, kind" in n for n in said)


@pytest.mark.parametrize(("domain", "match"), [("int", "conv"), ("float", "conv"), ("int", "[cw]*")])
def test_clusters_survive_a_later_training_step(compress, domain, match):
    clustered, _ = compress({"domain": domain, "clusters": 8, "match": "wide"})
    later = {"kind": "prune", "method": "magnitude", "sparsity": 0.3, "match": match, "training": TRAINING}

    made, _ = compress(later, model=clustered)

    before, after = kernels_of(clustered)["wide"], kernels_of(made)["wide"]
    if domain == "int":
        kernel = next(k for k in all_kernels(made) if k.name == "wide")
        codes = [clustering.codes_of(kernel.matrix(v)) for v in (before, after)]
        assert len(np.unique(codes[0])) == 8
        assert set(np.unique(codes[1])) <= set(np.unique(codes[0]))
    else:
        assert set(np.unique(after)) <= set(np.unique(before))
    assert not np.array_equal(kernels_of(made)["depth"], kernels_of(clustered)["depth"])


@pytest.mark.parametrize("options", [{"equalize": True}, {"rounding": "adaround"}])
def test_float_clusters_survive_quantization(compress, options):
    clustered, _ = compress({"domain": "float", "clusters": 8, "match": "wide"})

    made, said = compress({"kind": "quantize", **options}, model=clustered)

    scales = made.get_layer("wide").scales
    wide = next(k for k in all_kernels(made) if k.name == "wide")
    codes = wide.matrix(np.rint(wide.read() / scales))
    assert max(len(np.unique(column)) for column in codes.T) <= 8
    assert any("not equalized, as their weights share values or codes: wide" in n for n in said) == (
        "equalize" in options
    )


def test_codes_and_scales_stay_while_weights_train_and_the_rate_holds_the_size():
    draw = np.random.default_rng(0).normal
    matrix = draw(size=(300, 8)).astype(np.float32)
    values = Codes(clustering.fit_codes([matrix], 16, bits=2.5), 2.5)
    fitted = values.coded

    values.refit([matrix], settled=False)
    assert values.coded is fitted

    wider = matrix + draw(size=matrix.shape).astype(np.float32)
    assert clustering.zipped_bits(fitted.codes([wider])) > 2.5
    values.refit([wider], settled=False)
    assert clustering.zipped_bits(values.coded.codes([wider])) <= 2.5
    np.testing.assert_array_equal(values.coded.book.values, fitted.book.values)
    np.testing.assert_array_equal(values.coded.scales[0], fitted.scales[0])


def test_a_plain_network_has_nothing_to_preserve(network):
    assert preserved(network) is None


def test_a_sparse_kernel_is_not_taken_for_a_clustered_one():
    sparse = np.random.default_rng(0).normal(size=(9, 32)).astype(np.float32)
    sparse[np.abs(sparse) < np.sort(np.abs(sparse), axis=0)[-2:-1]] = 0  # two a channel are left
    single = np.where(sparse == sparse.max(axis=0), sparse, 0)

    assert shared_codes(sparse) is None
    assert shared_values(sparse) is None
    assert shared_codes(single) is None
    assert shared_values(single) is None


def test_shared_values_are_found_by_channel_and_by_kernel():
    column = np.tile(np.float32([0, 1.1, 2.3, 2.3]), 30).reshape(-1, 1)
    columns = column * np.geomspace(1, 2, 60, dtype=np.float32)
    few = np.float32([[1.1, 2.3], [2.3, 1.1], [0.7, 1.1], [1.1, 0.7], [2.3, 2.3], [0.7, 0.7]])

    assert shared_values(columns).shape == (3, 60)
    assert shared_values(few).tolist() == pytest.approx([0.7, 1.1, 2.3])
    assert shared_values(np.arange(1, 13, dtype=np.float32).reshape(6, 2)) is None


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"clusters": 1}, r"recipe.toml: step 1 \(cluster\): clusters must be in \[2, 256\], got 1"),
        ({"domain": "int", "clusters": 3}, "clusters must be 4 to 255 with domain = 'int', got 3"),
        ({"domain": "int", "granularity": "per_channel"}, "granularity is for domain = 'float'"),
        ({"bits": 2.0}, "bits is for domain = 'int'"),
        ({"domain": "int", "bits": 0.05}, r"step 1 \(cluster\): bits = 0.05 is out of reach: the fewest are \d"),
        ({"match": "none"}, "'none' hits no layer with a kernel"),
        ({"smallest": 5000}, "no layer with a kernel of 5000 weights or more"),
        ({"method": "k_means"}, "kind 'cluster' has no methods"),
    ],
)
def test_what_cannot_be_done_is_refused(compress, step, message):
    with pytest.raises(InputError, match=message):
        compress(step)
