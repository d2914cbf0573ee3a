import math
import re

import numpy as np
import pytest

from edgedl.errors import EdgedlError, InputError, UnsupportedError
from edgedl.types import Scheme, TensorSpec
from edgedl_tflite import calibration, flatbuffer, verification
from edgedl_tflite.describe import describe

TOLERANCE = {
    "fp32": 1e-5,
    "fp16": 5e-3,
    "dynamic_wi8_afp32": 0.05,
    "weight_only_wi8_afp32": 0.02,
    "static_wi8_ai8": 0.08,
    "static_wi8_ai16": 0.03,
}
WEIGHTS = {"fp32": "float32", "fp16": "float16"}


@pytest.mark.parametrize("scheme", TOLERANCE)
def test_export_cnn_agrees_with_keras_on_both_runtimes(export, litert, tflite_runtime, cnn, images, scheme):
    made = export(cnn, scheme, images)
    few = {"image": images["image"][:6]}
    wanted = np.asarray(cnn(few["image"], training=False))
    for run in (litert, tflite_runtime):
        np.testing.assert_allclose(run(made.path, few)["probs"], wanted, atol=TOLERANCE[scheme])
    info = describe(str(made.path))
    assert [(s.name, s.dtype, s.shape) for s in info.inputs] == [("image", "float32", (1, 8, 8, 3))]
    assert [(s.name, s.dtype, s.shape) for s in info.outputs] == [("probs", "float32", (1, 4))]
    assert info.metadata["signatures"] == ["serving_default"]
    assert max(info.weight_bytes, key=info.weight_bytes.get) == WEIGHTS.get(scheme, "int8")
    assert "largest difference to Keras on 4 samples" in made.notes


@pytest.mark.parametrize(
    ("scheme", "io"), [("static_wi8_ai8", "int8"), ("static_wi8_ai8", "uint8"), ("static_wi8_ai16", "int16")]
)
def test_export_integer_io(export, litert, cnn, images, scheme, io):
    made = export(cnn, scheme, images, io=io)
    info = describe(str(made.path))
    assert [s.dtype for s in (*info.inputs, *info.outputs)] == [io, io]
    assert all(s.scale and s.zero_point for s in (*info.inputs, *info.outputs))
    assert not info.metadata["float_ops"]
    assert not info.metadata["output_steps"]
    few = {"image": images["image"][:4]}
    np.testing.assert_allclose(litert(made.path, few)["probs"], cnn(few["image"], training=False), atol=0.08)


@pytest.fixture(scope="module")
def two_in_three_out():
    import keras
    from keras import layers

    keras.utils.set_random_seed(2)
    beta, alpha = keras.Input((6,), name="beta"), keras.Input((4, 4, 1), name="alpha")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(5, 3)(alpha))
    x = layers.Concatenate()([x, layers.Dense(7)(beta)])
    outputs = [layers.Dense(3, name="zeta")(x), layers.Dense(2, name="eta")(x), layers.Dense(3, name="aleph")(x)]
    return keras.Model([beta, alpha], outputs)


@pytest.mark.parametrize("scheme", ["fp32", "static_wi8_ai8"])
def test_export_several_inputs_and_outputs_keep_names_and_order(export, litert, two_in_three_out, scheme):
    rng = np.random.default_rng(3)
    shapes = {"beta": (20, 6), "alpha": (20, 4, 4, 1)}
    data = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    made = export(two_in_three_out, scheme, data)
    info = describe(str(made.path))
    assert [s.name for s in info.inputs] == ["beta", "alpha"]
    assert [s.name for s in info.outputs] == ["zeta", "eta", "aleph"]
    answers = litert(made.path, data)
    wanted = two_in_three_out([data["beta"], data["alpha"]], training=False)
    for name, values in zip(("zeta", "eta", "aleph"), wanted, strict=True):
        np.testing.assert_allclose(answers[name], values, atol=1e-5 if scheme == "fp32" else 0.1)


def test_export_batch_and_free_sizes_from_shapes(export, litert):
    import keras
    from keras import layers

    free = keras.Input((None, None, 2), name="x")
    model = keras.Model(free, layers.GlobalAveragePooling2D(name="y")(layers.Conv2D(3, 3)(free)))
    with pytest.raises(InputError, match=r"'x' has free sizes .* --shape x=1,H,W,2"):
        export(model, "fp32")
    made = export(model, "fp32", shapes={"x": (2, 6, 5, 2)})
    assert describe(str(made.path)).inputs[0].shape == (2, 6, 5, 2)
    with pytest.raises(InputError, match="no such input; the model has x"):
        export(model, "fp32", shapes={"y": (1, 6, 6, 2)})


def test_calibration_batches_cover_every_sample():
    spec = TensorSpec(name="x", dtype="float32", shape=(4, 1))
    samples = calibration.Samples(specs=(spec,), arrays=(np.arange(10.0)[:, None],))
    assert [b[0].ravel().tolist() for b in samples.batches()] == [[0, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 9]]
    few = calibration.Samples(specs=(spec,), arrays=(np.arange(3.0)[:, None],))
    assert [b[0].ravel().tolist() for b in few.batches()] == [[0, 1, 2, 0]]


# ---- notes --------------------------------------------------------------------------------------------------------


def test_dynamic_says_what_stayed_float_and_when_nothing_was_quantized(export, cnn):
    import keras

    made = export(cnn, "dynamic")
    assert "int8 weights: 6,400 bytes" in made.notes
    assert re.search(r"stay float: cnn_1/conv2d\w*/convolution", made.notes)  # Keras counts layers up in a process
    fully_connected = [op for op in describe(str(made.path)).ops if op.name == "FULLY_CONNECTED"]
    assert fully_connected[0].version < 12  # 12 is what tflite-runtime lacks
    small = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    assert "quantized nothing" in export(small, "dynamic").notes


@pytest.fixture(scope="module")
def attention():
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    tokens = keras.Input((6, 8), name="tokens")
    x = layers.LayerNormalization()(tokens + layers.MultiHeadAttention(2, 4)(tokens, tokens))
    return keras.Model(tokens, layers.Dense(3, name="y")(layers.GlobalAveragePooling1D()(x)))


def test_attention_int8_names_its_float_ops_and_int16_is_refused(export, litert, attention):
    data = {"tokens": np.random.default_rng(0).standard_normal((20, 6, 8)).astype(np.float32)}
    wanted = np.asarray(attention(data["tokens"]))
    made = export(attention, "int8", data)
    assert "stays float: NEG x1" in made.notes
    np.testing.assert_allclose(litert(made.path, data)["y"], wanted, atol=0.1)
    made = export(attention, "fp32")
    np.testing.assert_allclose(litert(made.path, data)["y"], wanted, atol=1e-5)
    with pytest.raises(UnsupportedError, match=r"static_wi8_ai16: the converter cannot quantize NEG\. Use"):
        export(attention, "int16x8", data)


@pytest.mark.parametrize("scheme", ["fp32", "int8"])
def test_exact_gelu_and_conv1d(export, litert, scheme):
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((16, 3), name="signal"),
            layers.Conv1D(8, 3, activation="gelu"),
            layers.MaxPooling1D(),
            layers.Flatten(),
            layers.Dense(2, name="y"),
        ]
    )
    data = {"signal": np.random.default_rng(0).standard_normal((30, 16, 3)).astype(np.float32)}
    made = export(model, scheme, data)
    wanted = np.asarray(model(data["signal"]))
    np.testing.assert_allclose(litert(made.path, data)["y"], wanted, atol=1e-5 if scheme == "fp32" else 0.1)


def test_int4_weights_take_half_a_byte_and_the_file_runs(export, cnn, images, litert):
    made = export(cnn, "int4", images, calibrate=False)
    model = flatbuffer.read(made.path.read_bytes())
    stored = flatbuffer.weight_bytes(model)
    kernels = [layer.kernel.shape for layer in cnn.layers if type(layer).__name__ in ("Conv2D", "Dense")]
    assert stored["int4"] == sum(math.prod(shape) // 2 for shape in kernels)  # a depthwise one stays float
    assert f"int4 weights: {stored['int4']:,} bytes, float32: {stored['float32']:,} bytes" in made.notes
    wanted = np.asarray(cnn(images["image"]))
    found = next(iter(litert(made.path, images).values()))
    assert 0 < np.abs(found - wanted).max() < 0.5


# ---- refusals -----------------------------------------------------------------------------------------------------


def test_export_refuses_what_a_scheme_cannot(export, cnn, images):
    with pytest.raises(InputError, match="static_wi8_ai8 needs calibration data"):
        export(cnn, "int8")
    with pytest.raises(UnsupportedError, match="--io int8: fp32 has float"):
        export(cnn, "fp32", io="int8")
    with pytest.raises(UnsupportedError, match="--io int16: static_wi8_ai8 has float, int8, uint8"):
        export(cnn, "int8", images, io="int16")
    with pytest.raises(InputError, match=r"--opset: a \.tflite file has none"):
        export(cnn, "fp32", opset=17)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"picture": np.zeros((3, 8, 8, 3), np.float32)}, r"image\.npy: calibration data for input 'image' cannot be"),
        ({"image": np.zeros((3, 8, 9, 3), np.float32)}, r"has shape \(3, 8, 9, 3\); input 'image' takes \(8, 8, 3\)"),
        ({"image": np.zeros((0, 8, 8, 3), np.float32)}, r"has shape \(0, 8, 8, 3\)"),
    ],
)
def test_export_refuses_calibration_data_that_does_not_fit(export, cnn, data, message):
    with pytest.raises(InputError, match=message):
        export(cnn, "int8", data)


def test_export_refuses_ops_without_a_builtin_by_name(export):
    import keras

    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(2)(keras.ops.erf(x)))
    with pytest.raises(UnsupportedError, match=r"no TFLite op for Erf \(at .*/Erf\)") as caught:
        export(model, "fp32")
    assert "\n" not in str(caught.value)


def test_export_says_why_a_layer_name_cannot_be_used(export):
    import keras

    model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="my dense")])
    with pytest.raises(UnsupportedError, match=r"fails on inputs .*: 'my dense' is not a valid scope name"):
        export(model, "fp32")
    keras.utils.clear_session()  # Keras stays in the scope that it could not enter


def test_export_refuses_indices_declared_float_with_integer_io(export):
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    data = {"ids": np.random.default_rng(0).integers(0, 10, (20, 4)).astype(np.float32)}
    ids = keras.Input((4,), name="ids")
    model = keras.Model(ids, layers.Dense(2)(layers.GlobalMaxPooling1D()(layers.Embedding(10, 4)(ids))))
    with pytest.raises(UnsupportedError, match=r"declared float\. Declare it keras\.Input\(dtype='int32'\)"):
        export(model, "int8", data, io="int8")
    ids = keras.Input((4,), name="ids", dtype="int32")
    model = keras.Model(ids, layers.Dense(2, name="y")(layers.GlobalMaxPooling1D()(layers.Embedding(10, 4)(ids))))
    made = export(model, "int8", {"ids": data["ids"].astype(np.int32)}, io="int8")
    assert "input 'ids' stays int32" in made.notes
    assert [s.dtype for s in describe(str(made.path)).outputs] == ["int8"]


# ---- the check of the result --------------------------------------------------------------------------------------


def test_verify_refuses_a_file_that_answers_something_else(export, cnn, images):
    import keras

    file = export(cnn, "fp32").path.read_bytes()
    spec = TensorSpec(name="image", dtype="float32", shape=(1, 8, 8, 3))
    samples = calibration.Samples(specs=(spec,), arrays=(images["image"][:4],))
    assert "(output 'probs', values up to " in verification.verify(file, cnn, samples, {}, Scheme.FP32)
    other = keras.models.clone_model(cnn)
    with pytest.raises(EdgedlError, match=r"output 'probs' differs from Keras by .* where fp32 allows 0\.001"):
        verification.verify(file, other, samples, {}, Scheme.FP32)


def test_verify_refuses_nan(export):
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(2, name="y")])
    broken = keras.models.clone_model(model)
    broken.set_weights([np.full((3, 2), np.nan), np.zeros(2)])
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3))
    samples = calibration.Samples(specs=(spec,), arrays=(np.ones((2, 3), np.float32),))
    made = export(broken, "fp32")
    assert "Keras itself gives NaN or infinity in output 'y'" in made.notes
    file = made.path.read_bytes()
    with pytest.raises(EdgedlError, match="answers NaN in output 'y', where Keras does not"):
        verification.verify(file, model, samples, {}, Scheme.FP32)
