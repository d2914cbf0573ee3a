"""The step `quantize`: what it asks for, what it keeps, and that training ends on the grid of the file."""

import re

import numpy as np
import pytest

from edgedl import models, toml
from edgedl.compression import quantize
from edgedl.compression.base import Context
from edgedl.errors import InputError, UnsupportedError
from edgedl.fitting.samples import TrainingData
from edgedl.recipes import Step, Training

tf = pytest.importorskip("tensorflow")
WHERE = "recipe: step 1 (quantize)"


@pytest.fixture(scope="module")
def keras():
    import keras

    return keras


def classifier(keras):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="act"),
            layers.Flatten(name="flat"),
            layers.Dense(3, activation="softmax", name="kind"),
        ]
    )
    norm = model.get_layer("norm")
    norm.set_weights([w + 0.1 * np.arange(8) for w in norm.get_weights()])
    return model


def samples(count=128, seed=0, *, labels=True):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    x = rng.random((count, 8, 8, 1)).astype("f")
    for i, label in enumerate(y):
        x[i, :, 3 * label : 3 * label + 2] += 1
    return TrainingData(inputs={"image": x}, targets={"kind": y} if labels else {})


def apply(model, data, training=None, said=None, teacher=None, **options):
    step = Step(kind="quantize", options=quantize.Options(**options), training=training, where=WHERE)
    context = Context(step=step, teacher=teacher, say=said.append if said is not None else lambda _: None)
    return quantize.Quantize().apply(model, data, step.options, context)


@pytest.mark.parametrize("ranges", ["min_max", "percentile", "mse", "moving_average"])
def test_quantize_keeps_the_callers_model_and_answers_nearly_alike(keras, ranges):
    model, data = classifier(keras), samples()
    before = model.get_weights()
    made = apply(model, data, ranges=ranges)
    assert models.carried_scheme(model) is None
    assert models.carried_scheme(made) == "static_wi8_ai8"
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    x = data.inputs["image"]
    difference = np.abs(np.asarray(made(x)) - np.asarray(model(x)))
    assert 0 < difference.max() < 0.03
    assert [[s.name for s in part] for part in models.specs(made)] == [["image"], ["kind"]]
    assert not any(type(layer).__name__ == "BatchNormalization" for layer in made.layers)


@pytest.mark.parametrize("ranges", ["mse", "moving_average"])
def test_quantize_training_learns_and_ends_on_the_grid(keras, ranges):
    from edgedl.compression.rounding import is_on_grid

    model, data = classifier(keras), samples()
    training = Training(epochs=3, learning_rate=1e-2)

    def accuracy(one):
        return np.mean(np.asarray(one(data.inputs["image"])).argmax(-1) == data.targets["kind"])

    made = apply(model, data, training, ranges=ranges)
    assert accuracy(made) > max(0.8, accuracy(model) + 0.2)
    kernels = [made.get_layer("conv"), made.get_layer("kind_linear")]
    assert all(is_on_grid(layer.variable.numpy(), layer.scales) for layer in kernels)
    again = apply(model, data, training, ranges=ranges)
    assert all(np.array_equal(a, b) for a, b in zip(made.get_weights(), again.get_weights(), strict=True))
    assert not any("range" in v.path for v in made.trainable_variables)


def test_quantize_training_may_be_taught_by_the_original_without_labels(keras):
    from edgedl.recipes import Distill

    model = classifier(keras)
    training = Training(epochs=1, distill=Distill(alpha=1.0))
    made = apply(model, samples(labels=False), training, teacher=model)
    assert models.carried_scheme(made) == "static_wi8_ai8"


def test_quantize_training_keeps_zeros_and_shared_codes(keras):
    model = keras.Sequential(
        [keras.Input((12,), name="image"), keras.layers.Dense(24, name="pruned"), keras.layers.Dense(3, name="kind")]
    )
    pruned, shared = model.layers
    kernel = pruned.get_weights()[0]
    kernel[np.random.default_rng(0).random(kernel.shape) < 0.5] = 0
    pruned.set_weights([kernel, np.zeros(24)])
    codes = np.random.default_rng(1).choice([-127, -40, 0, 40, 127], (24, 3))
    codes[0] = 127
    shared.set_weights([codes * np.array([0.01, 0.002, 0.03]), np.zeros(3)])
    rng = np.random.default_rng(2)
    data = TrainingData(
        inputs={"image": rng.normal(0, 1, (96, 12)).astype("f")},
        targets={"kind": rng.normal(0, 1, (96, 3)).astype("f")},
    )
    made = apply(model, data, Training(epochs=2, learning_rate=1e-2))
    after = made.get_layer("pruned").variable.numpy()
    assert (after[kernel == 0] == 0).all()
    assert not np.allclose(after, kernel, atol=1e-3)
    last = made.get_layer("kind_float")
    assert set(np.unique(np.rint(last.variable.numpy() / last.scales).astype(int))) <= {-127, -40, 0, 40, 127}


def test_quantize_corrects_biases(keras):
    data = samples()
    model = classifier(keras)
    kernel = np.full((1, 1, 8, 4), 1.0, "f")
    kernel[..., :7, :] = 0.4 / 127  # all of them round to nothing: the mean moves
    image = keras.Input((8, 8, 1), name="image")
    x = model.get_layer("conv")(image)
    layer = keras.layers.Conv2D(4, 1, name="kind")
    small = keras.Model(image, layer(keras.layers.ReLU()(x)))
    layer.set_weights([kernel, np.zeros(4)])
    x = data.inputs["image"]

    def shift(one):
        return np.abs(np.mean(np.asarray(one(x)) - np.asarray(small(x)), axis=(0, 1, 2))).max()

    plain, corrected = apply(small, data, ranges="min_max"), apply(small, data, ranges="min_max", bias_correction=True)
    assert shift(corrected) < 0.5 * shift(plain)


def test_quantize_adaround_keeps_outputs_better_and_equalize_the_function(keras):
    data, model = samples(256), classifier(keras)
    head = keras.Model(model.inputs[0], model.get_layer("act").output)
    x = data.inputs["image"]

    def error(one):
        return float(np.mean(np.square(np.asarray(one(x)) - np.asarray(head(x)))))

    nearest, adapted = apply(head, data), apply(head, data, rounding="adaround")
    assert error(adapted) <= error(nearest)
    codes = [np.rint(m.get_layer("conv").variable.numpy() / m.get_layer("conv").scales) for m in (nearest, adapted)]
    assert np.abs(codes[0] - codes[1]).max() == 1
    said = []
    apply(model, data, equalize=True, said=said)
    assert "equalize found no two layers" in said[0]


def test_quantize_int4_chooses_the_codes_that_the_file_holds(keras, tmp_path):
    exporter = pytest.importorskip("edgedl_tflite.exporter")
    from edgedl.models.saving import save
    from edgedl_tflite import flatbuffer

    made = apply(classifier(keras), samples(), scheme="int4", rounding="adaround")
    save(made, tmp_path / "m.keras")
    exporter.TFLiteExporter().export(tmp_path / "m.keras", tmp_path / "m.tflite", scheme="weight_only_wi4_afp32")
    graph = flatbuffer.read((tmp_path / "m.tflite").read_bytes())
    stored = [t for t in graph.subgraphs[0].tensors if flatbuffer.dtype_name(t.type) == "int4"]
    held = {len(t.quantization.scale): _int4(flatbuffer.constant(graph, t)) for t in stored}
    for name, channels in (("conv", 8), ("kind", 3)):
        layer = made.get_layer(name)
        codes = np.rint(layer.variable.numpy() / layer.scales).astype(int)
        assert np.abs(codes).max() == 7
        np.testing.assert_array_equal(held[channels], np.moveaxis(codes, -1, 0).ravel())


def test_quantize_int4_leaves_float_in_the_file_what_is_float_in_the_model(keras, tmp_path):
    exporter = pytest.importorskip("edgedl_tflite.exporter")
    from edgedl.models.saving import save
    from edgedl_tflite import flatbuffer

    layers = keras.layers
    keras.utils.set_random_seed(0)
    stack = [
        layers.SeparableConv2D(6, 3, activation="gelu", name="sep"),
        layers.Conv2D(5, 3, name="kept"),
        layers.Reshape((4, 20)),
        layers.TimeDistributed(layers.Dense(7), name="each"),
        layers.Flatten(),
        layers.Dense(3, name="kind"),
    ]
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), *stack])
    made = apply(model, samples(), scheme="int4", keep_float=("kept",))
    save(made, tmp_path / "m.keras")
    exporter.TFLiteExporter().export(tmp_path / "m.keras", tmp_path / "m.tflite", scheme="weight_only_wi4_afp32")
    graph = flatbuffer.read((tmp_path / "m.tflite").read_bytes())
    stored = [t.shape for t in graph.subgraphs[0].tensors if flatbuffer.dtype_name(t.type) == "int4"]
    assert sorted(map(list, stored)) == [[3, 28], [6, 1, 1, 1]]  # the head, and the second half of `sep`
    runtime = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(str(tmp_path / "m.tflite"))
    runtime.allocate_tensors()
    image = samples(1).inputs["image"]
    runtime.set_tensor(runtime.get_input_details()[0]["index"], image)
    runtime.invoke()
    found = runtime.get_tensor(runtime.get_output_details()[0]["index"])
    np.testing.assert_allclose(found, np.asarray(made(image)), atol=1e-5)


def test_quantize_takes_pixels_that_a_rescaling_makes_numbers_of(keras):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), dtype="uint8", name="image")
    x = layers.Conv2D(4, 3, activation="relu")(layers.Rescaling(1 / 255.0)(image))
    model = keras.Model(image, layers.Dense(3, name="kind")(layers.Flatten()(x)))
    pixels = (samples().inputs["image"] * 100).astype(np.uint8)
    made = apply(model, TrainingData(inputs={"image": pixels}, targets={}))
    expected = np.asarray(model(pixels))
    np.testing.assert_allclose(np.asarray(made(pixels)), expected, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("trained", [False, True])
def test_quantize_follows_the_widest_of_tensors_that_share_a_range(keras, trained):
    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    branches = [layers.Conv2D(4, 3, activation="relu", name=name)(image) for name in ("narrow", "wide")]
    x = layers.Concatenate(name="both")(branches)
    model = keras.Model(image, layers.Dense(3, activation="softmax", name="kind")(layers.Flatten()(x)))
    wide = model.get_layer("wide")
    wide.set_weights([20 * w for w in wide.get_weights()])
    training = Training(epochs=10, batch_size=8, learning_rate=1e-6) if trained else None
    made = apply(model, samples(), training, ranges="moving_average")
    widest = float(np.asarray(wide(samples().inputs["image"])).max())
    ranges = [float(layer.high) for layer in made.layers if type(layer).__name__ == "FakeQuantize"]
    assert any(0.85 * widest < high <= 1.01 * widest for high in ranges), (widest, ranges)


@pytest.mark.parametrize("name", ["out_float", "gate_sigmoid", "b_depthwise"])
def test_quantize_leaves_the_users_names_to_the_user(keras, name):
    layers = keras.layers
    stacks = {
        "out_float": [layers.Conv2D(4, 3, name="out_float"), layers.Flatten(), layers.Dense(3, name="out")],
        "gate_sigmoid": [
            layers.Conv2D(4, 3, activation="sigmoid", name="gate"),
            layers.Activation("tanh", name="gate_sigmoid"),
        ],
        "b_depthwise": [layers.DepthwiseConv2D(3, name="b_depthwise"), layers.SeparableConv2D(3, 3, name="b")],
    }
    made = apply(keras.Sequential([keras.Input((8, 8, 1), name="image"), *stacks[name]]), samples(labels=False))
    assert name in [layer.name for layer in made.layers]


def _int4(packed):
    """Codes of two a byte, the low half first."""
    pairs = np.stack([packed & 15, packed >> 4], axis=1).astype(int).ravel()
    return np.where(pairs > 7, pairs - 16, pairs)


def test_quantize_rounds_a_layer_that_sees_two_sizes(keras):
    layers = keras.layers
    image = keras.Input((8, 8, 1), name="image")
    head = layers.Conv2D(3, 3, name="head")
    wide = layers.Conv2D(4, 3, padding="same", activation="relu", name="wide")(image)
    sizes = [layers.GlobalAveragePooling2D()(head(x)) for x in (wide, layers.MaxPooling2D()(wide))]
    model = keras.Model(image, layers.Add(name="kind")(sizes))
    data = samples()
    made = apply(model, data, rounding="adaround")
    expected = np.asarray(model(data.inputs["image"]))
    np.testing.assert_allclose(np.asarray(made(data.inputs["image"])), expected, atol=0.05 * np.abs(expected).max())


def test_quantize_to_16_bits_keeps_layers_float_under_one_scheme(keras):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            *(keras.layers.Conv2D(8, 3, padding="same", name=f"conv_{i}") for i in range(2)),
        ]
    )
    made = apply(model, samples(), scheme="static_wi8_ai16", keep_float=("conv_0",))
    assert models.carried_scheme(made) == "static_wi8_ai16"


def test_quantize_keeps_an_adapted_normalization_as_it_is(keras):
    norm, layers = keras.layers.Normalization(name="norm"), keras.layers
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), norm, layers.Flatten(), layers.Dense(3)])
    data = samples()
    data = TrainingData(inputs={"image": 100 + 20 * data.inputs["image"]}, targets={})
    norm.adapt(data.inputs["image"])
    made = apply(model, data, keep_float=("norm",))
    expected = np.asarray(model(data.inputs["image"]))
    np.testing.assert_allclose(np.asarray(made(data.inputs["image"])), expected, atol=0.05 * np.abs(expected).max())


def test_quantize_keep_float_leaves_layers_float_in_the_file(keras, tmp_path):
    exporter = pytest.importorskip("edgedl_tflite.exporter")
    from edgedl.models.saving import save
    from edgedl_tflite import flatbuffer

    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            *(layers.Conv2D(8, 3, padding="same", name=f"conv_{i}") for i in range(4)),
        ]
    )
    made = apply(model, samples(), keep_float=("conv_1", "conv_3"))
    save(made, tmp_path / "m.keras")
    exporter.TFLiteExporter().export(tmp_path / "m.keras", tmp_path / "m.tflite", scheme="static_wi8_ai8")
    graph = flatbuffer.read((tmp_path / "m.tflite").read_bytes())
    kinds = [
        flatbuffer.dtype_name(g.tensors[op.inputs[0]].type)
        for g, op in flatbuffer.operators(graph)
        if flatbuffer.op_name(graph, op) == "CONV_2D"
    ]
    assert kinds == ["int8", "float32", "int8", "float32"]


def from_file(made, data, folder):
    """What its .tflite file answers, by the interpreter with XNNPACK."""
    exporter = pytest.importorskip("edgedl_tflite.exporter")
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    from edgedl.models.saving import save

    save(made, folder / "m.keras")
    exporter.TFLiteExporter().export(folder / "m.keras", folder / "m.tflite", scheme="static_wi8_ai8")
    runtime = interpreter.Interpreter(str(folder / "m.tflite"))
    (values,), (given,) = data.inputs.values(), runtime.get_input_details()
    runtime.resize_tensor_input(given["index"], values.shape)
    runtime.allocate_tensors()
    runtime.set_tensor(given["index"], coded(values, given))
    runtime.invoke()
    return [decoded(runtime.get_tensor(o["index"]), o) for o in runtime.get_output_details()]


def coded(values, detail):
    scale, zero = detail["quantization"]
    return np.clip(np.rint(values / scale) + zero, -128, 127).astype(np.int8) if scale else values


def decoded(values, detail):
    scale, zero = detail["quantization"]
    return (values.astype(np.float32) - zero) * scale if scale else values


def test_quantize_hands_masks_on_from_layers_that_stay_float(keras):
    layers = keras.layers
    ids = keras.Input((8,), dtype="int32", name="ids")
    words = layers.Embedding(500, 8, mask_zero=True, name="words")(ids)
    mixed = layers.Add()([words, layers.MultiHeadAttention(2, 4, name="mha")(words, words)])
    model = keras.Model(ids, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(mixed)))
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.5, w.shape).astype(np.float32) for w in model.get_weights()])
    padded = np.where(np.arange(8) < rng.integers(1, 8, (64, 1)), rng.integers(1, 500, (64, 8)), 0).astype(np.int32)
    made = apply(model, TrainingData(inputs={"ids": padded}, targets={}), keep_float=("words", "mha"))
    assert np.abs(np.asarray(made(padded)) - np.asarray(model(padded))).max() < 0.05


@pytest.mark.parametrize("twice", [True, False])
def test_quantize_takes_outputs_of_one_name_and_of_one_range(keras, twice):
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    head = keras.layers.Dense(2, name="head")
    seen = head(first)
    outputs = [seen, head(second)] if twice else [seen, keras.layers.Reshape((2, 1))(seen)]
    model = keras.Model([first, second] if twice else first, outputs)
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    inputs = {"first": x, "second": x} if twice else {"first": x}
    made = apply(model, TrainingData(inputs=inputs, targets={}))
    given = list(inputs.values()) if twice else x
    for ours, theirs in zip(made(given), model(given), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.1)


def test_quantize_may_keep_a_layer_float_that_moves_numbers(keras):
    made = apply(classifier(keras), samples(), keep_float=("conv", "act", "flat"))
    x = samples().inputs["image"]
    np.testing.assert_allclose(made(x), classifier(keras)(x), atol=0.1)


@pytest.mark.parametrize("also_given", [False, True])
def test_quantize_keeps_a_layer_of_several_outputs_float(keras, tmp_path, also_given):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 4), name="image")
    x = keras.layers.Conv2D(6, 3, activation="relu", name="conv")(image)
    parts = keras.ops.split(x, 3, axis=-1)
    parts[0]._keras_history.operation.name = "parts"
    last = keras.layers.Conv2D(3, 3, name="last")(keras.layers.Concatenate()([parts[0], parts[2]]))
    model = keras.Model(image, [last, parts[1], parts[2]] if also_given else last)
    data = TrainingData(inputs={"image": np.random.default_rng(0).random((32, 8, 8, 4)).astype("f")}, targets={})
    made = apply(model, data, keep_float=("parts",))
    assert [s.name for s in models.specs(made)[1]] == [s.name for s in models.specs(model)[1]]
    expected = [np.asarray(y) for y in keras.tree.flatten(model(data.inputs["image"]))]
    for found in (
        [np.asarray(y) for y in keras.tree.flatten(made(data.inputs["image"]))],
        from_file(made, data, tmp_path),
    ):
        assert sorted(y.shape for y in found) == sorted(y.shape for y in expected)
        for y in expected:
            assert min(np.abs(y - f).max() for f in found if f.shape == y.shape) < 0.05


def test_quantize_tells_of_tensors_that_are_zero_on_the_samples(keras, tmp_path):
    image = keras.Input((8, 8, 1), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    model = keras.Model(image, keras.layers.Conv2D(2, 3, name="last")(x))
    kernel, bias = model.get_layer("conv").get_weights()
    model.get_layer("conv").set_weights([kernel, bias - 100])
    said = []
    made = apply(model, samples(), said=said)
    assert said == [f"{WHERE}: nothing but 0 on the samples, so their ranges are a guess: conv, last"]
    (found,) = from_file(made, samples(4), tmp_path)
    np.testing.assert_array_equal(found, 0)


def test_quantize_names_a_pattern_that_hits_nothing(keras):
    words = "keep_float 'cnov' hits no layer (did you mean 'conv'?); there are act, conv, flat, kind"
    with pytest.raises(InputError, match=re.escape(words)):
        apply(classifier(keras), samples(), keep_float=("cnov",))


def test_quantize_needs_data_and_takes_no_quantized_model(keras):
    model = classifier(keras)
    with pytest.raises(InputError, match=re.escape(f"{WHERE}: quantize needs data")):
        apply(model, None)
    made = apply(model, samples())
    with pytest.raises(InputError, match="is quantized already, for static_wi8_ai8"):
        apply(made, samples())


def test_what_does_not_go_with_quantize_is_told_when_the_recipe_is_read(keras):
    from edgedl import recipes

    features = {"kind": "quantize", "training": {"distill": {"features": ["conv"]}}}
    (step,) = recipes.from_table({"step": [features]}).steps
    apply(classifier(keras), samples(), step.training, teacher=classifier(keras))
    why = r"^recipe: step 2 \(quantize\): equalize scales what layers give, and distill features .*; leave one out$"
    with pytest.raises(InputError, match=why):
        recipes.from_table({"step": [{"kind": "fold"}, features | {"equalize": True}]})
    rounded = {"kind": "quantize", "rounding": "adaround", "training": {}}
    with pytest.raises(InputError, match=r"step 1 \(quantize\): rounding adaround chooses each weight's code for good"):
        recipes.from_table({"step": [rounded]})
    with pytest.raises(InputError, match=r"step 1 \(quantize\): match and skip do not go with quantize; name the lay"):
        recipes.from_table({"step": [{"kind": "quantize", "match": "conv"}]})


def test_quantize_names_layers_without_integer_form(keras):
    image = keras.Input((8, 4), name="image")
    data = TrainingData(inputs={"image": np.zeros((4, 8, 4), "f")}, targets={})
    with pytest.raises(UnsupportedError, match=r"layer 'memory' \(LSTM\) .* keep_float = \['memory'\]"):
        apply(keras.Model(image, keras.layers.LSTM(3, name="memory")(image)), data)
    with pytest.raises(UnsupportedError, match="layer 'wavy': activation softplus has no integer operator"):
        apply(keras.Model(image, keras.layers.Dense(3, activation="softplus", name="wavy")(image)), data)


def test_quantize_options_name_what_is_allowed():
    for table, words in (
        ({"scheme": "fp16"}, "static_wi8_ai16, weight_only_wi4_afp32; fp16 is made by edgedl export"),
        ({"ranges": "octav"}, "ranges must be one of min_max, percentile, mse, moving_average, got 'octav'"),
        ({"samples": 0}, "samples must be in [1, inf), got 0"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            toml.build(quantize.Options, table, WHERE)
    assert toml.build(quantize.Options, {"scheme": "int16x8"}, WHERE).scheme == "int16x8"
