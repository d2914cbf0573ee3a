"""The fake-quant layers: their grids, gradients, files, and the .tflite file that is the very same graph."""

import numpy as np
import pytest

from edgedl import models
from edgedl.compression import quantize
from edgedl.compression.base import Context
from edgedl.fitting.samples import TrainingData
from edgedl.models.saving import save
from edgedl.recipes import Step
from edgedl.types import ExportOptions

tf = pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def keras():
    import keras

    keras.utils.set_random_seed(0)
    return keras


def made(keras, shape, *layers):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input(shape, name="image"), *layers])
    return spread(model)


def spread(model):
    """Kernels whose channels differ a hundredfold, and biases that are not zero."""
    rng = np.random.default_rng(2)
    for layer in model.layers:
        weights = layer.get_weights()
        if len(weights) == 2:
            kernel, bias = weights
            out = len(bias)
            shape = (*kernel.shape[-2:-1], -1) if type(layer).__name__ == "DepthwiseConv2D" else (-1,)
            if type(layer).__name__ == "Conv2DTranspose":
                shape = (out, 1)
            factors = rng.permutation(np.geomspace(0.02, 2, out)).reshape(shape)
            layer.set_weights([kernel * factors, rng.normal(0, 0.1, out)])
    return model


def quantized(model, count=24, **options):
    names = [s.name for s in models.specs(model)[0]]
    rng = np.random.default_rng(3)
    shapes = [tuple(t.shape[1:]) for t in model.inputs]
    inputs = {n: rng.normal(0, 1, (count, *s)).astype("f") for n, s in zip(names, shapes, strict=True)}
    data = TrainingData(inputs=inputs, targets={})
    step = Step(kind="quantize", options=quantize.Options(**options), where="recipe: step 1 (quantize)")
    return quantize.Quantize().apply(model, data, step.options, Context(step=step)), inputs


def exported(model, folder, scheme="static_wi8_ai8", **options):
    """The .tflite file that the exporter plugin makes of a model that carries its ranges."""
    exporter = pytest.importorskip("edgedl_tflite.exporter")
    save(model, folder / "model.keras")
    exporter.TFLiteExporter().export(
        folder / "model.keras", folder / "model.tflite", scheme=scheme, options=ExportOptions(**options)
    )
    return (folder / "model.tflite").read_bytes()


def codes(file, arrays):
    """Outputs by name as codes, with their scales and zero points, and the dtypes of all tensors, from litert."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=file, num_threads=1)
    interpreter.allocate_tensors()
    signature = interpreter._get_full_signature_list()["serving_default"]
    details = {d["index"]: d for d in (*interpreter.get_input_details(), *interpreter.get_output_details())}
    found = {name: [] for name in signature["outputs"]}
    for row in zip(*arrays.values(), strict=True):
        for name, values in zip(arrays, row, strict=True):
            detail = details[signature["inputs"][name]]
            scale, zero = detail["quantization"]
            limits = np.iinfo(detail["dtype"])
            stored = np.clip(np.floor(values[None] / np.float32(scale) + 0.5) + zero, limits.min, limits.max)
            interpreter.set_tensor(detail["index"], stored.astype(detail["dtype"]))
        interpreter.invoke()
        for name, index in signature["outputs"].items():
            found[name].append(interpreter.get_tensor(index)[0].astype(int))
    grids = {name: details[index]["quantization"] for name, index in signature["outputs"].items()}
    dtypes = {np.dtype(t["dtype"]).name for t in interpreter.get_tensor_details()}
    return {name: np.array(rows) for name, rows in found.items()}, grids, dtypes


def agreement(model, folder, arrays, scheme="static_wi8_ai8"):
    """By output: the share of codes that file and Keras model have alike, and the largest distance of two."""
    io = "int8" if scheme == "static_wi8_ai8" else "int16"
    got, grids, dtypes = codes(exported(model, folder, scheme, io=io), arrays)
    assert "float32" not in dtypes
    found = {}
    for name, values in models.infer(model, arrays).items():
        scale, zero = grids[name]
        wanted = np.rint(np.asarray(values) / scale).astype(int) + zero
        assert len(np.unique(wanted)) > 5, name
        apart = np.abs(got[name] - wanted)
        found[name] = (float(np.mean(apart == 0)), int(apart.max()))
    return found


def assert_same_graph(found, *, share=0.95, farthest=1):
    assert found
    for name, (same, apart) in found.items():
        assert same >= (TIES if name == "pools" else share), f"{name}: {same}"
        assert apart <= farthest, f"{name}: {apart}"


TIES = 0.8  # the mean of four codes ends in .5 often, and each kernel rounds that its own way
CASES = {
    "conv": lambda k: [k.Conv2D(8, 3, strides=2, padding="same", activation="relu")],
    "depthwise": lambda k: [k.DepthwiseConv2D(3, depth_multiplier=2, padding="same")],
    "transposed": lambda k: [k.Conv2DTranspose(6, 3, strides=2, padding="same")],
    "one_d": lambda k: [k.Reshape((16, 12)), k.Conv1D(6, 3, padding="causal"), k.MaxPooling1D(2)],
    "dense": lambda k: [k.Flatten(), k.Dense(10)],
    "softmax": lambda k: [k.Flatten(), k.Dense(10, activation="softmax")],
    "sigmoid": lambda k: [k.Conv2D(4, 1, activation="sigmoid")],
    "tanh": lambda k: [k.Conv2D(4, 1, activation="tanh")],
    "relu6": lambda k: [k.Conv2D(4, 1), k.BatchNormalization(), k.ReLU(6.0)],
    "leaky": lambda k: [k.Conv2D(4, 1), k.LeakyReLU()],
    "pools": lambda k: [k.Conv2D(4, 1), k.MaxPooling2D(2), k.AveragePooling2D(2)],
    "mean": lambda k: [k.Conv2D(4, 3), k.GlobalAveragePooling2D()],
    "most": lambda k: [k.Conv2D(4, 3), k.GlobalMaxPooling2D(), k.Dense(7)],
    "moves": lambda k: [k.ZeroPadding2D(1), k.Cropping2D(2), k.Permute((2, 1, 3)), k.Conv2D(4, 3)],
    "separable": lambda k: [k.SeparableConv2D(6, 3, activation="relu")],
    "rescaling": lambda k: [k.Rescaling(0.5, 0.1), k.Conv2D(4, 3)],
    "norm_first": lambda k: [k.BatchNormalization(), k.Conv2D(4, 3)],
    "upsampling": lambda k: [k.Conv2D(4, 3), k.UpSampling2D(2), k.Conv2D(3, 1)],
}
WIDE = ("conv", "depthwise", "dense", "softmax", "tanh", "pools", "mean", "most")


def many(keras, names):
    """One model with an output for each case, all from one image."""
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3), name="image")
    outputs = {}
    for name in names:
        x = image
        for layer in CASES[name](keras.layers):
            x = layer(x)
        outputs[name] = x
    return spread(keras.Model(image, outputs))


def test_fake_quant_file_is_the_same_graph_and_all_integer(keras, tmp_path):
    found = agreement(*placed(quantized(many(keras, CASES)), tmp_path))
    assert set(found) == set(CASES)
    assert_same_graph(found)


def test_fake_quant_of_16_bit_activations_is_the_same_graph(keras, tmp_path):
    scheme = "static_wi8_ai16"
    found = agreement(*placed(quantized(many(keras, WIDE), scheme=scheme), tmp_path), scheme=scheme)
    assert_same_graph(found, share=0.4, farthest=8)  # of 65,536 codes; tanh comes from a table


def placed(pair, folder):
    return pair[0], folder, pair[1]


def branches(keras):
    image = keras.Input((8, 8, 3), name="image")
    first = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(image)
    second = keras.layers.DepthwiseConv2D(3, padding="same", name="second")(first)
    added = keras.layers.ReLU(name="after")(keras.layers.Add(name="added")([first, second]))
    third = keras.layers.Conv2D(3, 1, name="third")(added)
    joined = keras.layers.Concatenate(name="joined")([added, third])
    made = keras.Model(image, keras.layers.MaxPooling2D(2, name="out")(joined))
    return spread(made)


def test_fake_quant_add_and_concat_share_ranges_as_tflite_does(keras, tmp_path):
    model, arrays = quantized(branches(keras))
    assert_same_graph(agreement(model, tmp_path, arrays))
    taken = model.get_layer("third")._inbound_nodes[0].input_tensors[0]._keras_history.operation
    assert taken is model.get_layer("joined")._inbound_nodes[0].input_tensors[0]._keras_history.operation
    assert taken is model.get_layer("joined")._inbound_nodes[0].input_tensors[1]._keras_history.operation
    assert model.get_layer("added")._outbound_nodes[0].operation.name == "after"  # fused: no range between
    assert [s.name for s in models.specs(model)[1]] == ["out"]


def test_fake_quant_concat_with_a_fixed_range_quantizes_again(keras, tmp_path):
    image = keras.Input((8, 8, 3), name="image")
    gate = keras.layers.Conv2D(4, 1, activation="sigmoid")(image)
    plain = keras.layers.Conv2D(4, 1)(image)
    model, arrays = quantized(spread(keras.Model(image, keras.layers.Concatenate(name="both")([gate, plain]))))
    assert_same_graph(agreement(model, tmp_path, arrays))


def test_fake_quant_two_inputs_and_a_shared_layer(keras, tmp_path):
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    shared = keras.layers.Dense(5, activation="relu", name="shared")
    model = keras.Model([left, right], keras.layers.Multiply(name="product")([shared(left), shared(right)]))
    ready, arrays = quantized(spread(model))
    assert_same_graph(agreement(ready, tmp_path, arrays))
    assert len(ready.get_layer("shared")._inbound_nodes) == 2


@pytest.mark.parametrize("io", ["float", "int8", "uint8"])
def test_fake_quant_model_loads_without_custom_objects_and_exports_each_io(keras, tmp_path, io):
    model, arrays = quantized(made(keras, (8, 8, 3), *CASES["softmax"](keras.layers)))
    file = exported(model, tmp_path, io=io)
    loaded = models.load(tmp_path / "model.keras").model
    assert models.carried_scheme(loaded) == "static_wi8_ai8"
    np.testing.assert_array_equal(np.asarray(loaded(arrays["image"])), np.asarray(model(arrays["image"])))
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=file)
    details = (*interpreter.get_input_details(), *interpreter.get_output_details())
    assert {np.dtype(d["dtype"]).name for d in details} == {"float32" if io == "float" else io}


def test_fake_quant_model_is_not_exported_in_another_scheme(keras, tmp_path):
    from edgedl.errors import UnsupportedError

    model, _ = quantized(made(keras, (8, 8, 3), *CASES["conv"](keras.layers)))
    with pytest.raises(UnsupportedError, match="quantized for static_wi8_ai8 and cannot be exported as fp16"):
        exported(model, tmp_path, "fp16")


def test_fake_quant_gradients_pass_straight_through_and_reach_learned_ranges(keras):
    from edgedl.compression.fake_quant import Conv2D, FakeQuantize

    layer = FakeQuantize(adapt="learned")
    layer.build((None, 2))
    layer.set_range(-1, 1)
    x = tf.constant([[0.3, 5.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(layer(x, training=True) * [2.0, 3.0])
    wanted, high = tape.gradient(y, [x, layer.high.value])
    assert wanted.numpy().tolist() == [[2.0, 0.0]]
    assert high.numpy() == 3.0
    conv = Conv2D(2, 1)
    conv.build((None, 4, 4, 3))
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(conv.on_grid(training=True))
    np.testing.assert_array_equal(tape.gradient(y, conv.variable.value), np.ones((1, 1, 3, 2)))


def test_fake_quant_moving_range_follows_batches_in_training_alone(keras):
    from edgedl.compression.fake_quant import MOMENTUM, FakeQuantize

    layer = FakeQuantize(adapt="moving")
    layer.build((None, 2))
    layer.set_range(-1, 1)
    before = float(layer.high)
    layer(np.array([[0.0, 11.0]], "f"), training=False)
    assert float(layer.high) == before
    layer(np.array([[0.0, 11.0]], "f"), training=True)
    assert float(layer.high) == pytest.approx(before + (1 - MOMENTUM) * (11 - before), rel=1e-5)
    layer.settle()
    layer(np.array([[0.0, 99.0]], "f"), training=True)
    assert float(layer.high) < 99 * (1 - MOMENTUM) + 2


def test_fake_quant_zero_channel_keeps_a_scale(keras, tmp_path):
    model = made(keras, (8, 8, 3), keras.layers.Conv2D(4, 3), keras.layers.DepthwiseConv2D(3))
    for layer in model.layers:
        kernel, bias = layer.get_weights()
        kernel[(..., 1, 0) if kernel.shape[-1] == 1 else (..., 1)] = 0
        layer.set_weights([kernel, bias])
    ready, arrays = quantized(model)
    assert_same_graph(agreement(ready, tmp_path, arrays))
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(model_path=str(tmp_path / "model.tflite")).get_tensor_details()
    assert all((d["quantization_parameters"]["scales"] > 0).all() for d in details)
