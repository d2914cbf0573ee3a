import numpy as np
import pytest

from edgedl.errors import InputError, UnsupportedError
from edgedl_tflite.describe import describe
from edgedl_tflite.embedding import Affine

ONE = {"op": "affine", "input": "image", "factor": [1 / 255], "offset": [0.0], "dtype": "uint8"}
CENTERED = {**ONE, "factor": [1 / 127.5], "offset": [-1.0]}  # zero point 127.5: no whole number
CHANNELS = {**ONE, "factor": [0.01, 0.02, 0.03], "offset": [-1.0, -2.0, -3.0]}


@pytest.fixture(scope="module")
def raw():
    return {"image": np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)}


def outputs(model, entry, raw):
    values = raw["image"].astype(np.float32) * np.float32(entry["factor"]) + np.float32(entry["offset"])
    return np.asarray(model(values.astype(np.float32), training=False))


@pytest.mark.parametrize("entry", [ONE, CHANNELS])
def test_float_model_takes_raw_bytes(export, litert, tflite_runtime, cnn, raw, entry):
    made = export(cnn, "fp32", embed_preprocessing=(entry,))
    few = {"image": raw["image"][:4]}
    for run in (litert, tflite_runtime):
        np.testing.assert_allclose(run(made.path, few)["probs"], outputs(cnn, entry, few), atol=2e-5)
    assert [(s.name, s.dtype) for s in describe(str(made.path)).inputs] == [("image", "uint8")]


def test_int8_model_has_a_scalar_step_in_its_scale(export, litert, tflite_runtime, cnn, raw):
    made = export(cnn, "int8", raw, embed_preprocessing=(ONE,))
    (spec,) = describe(str(made.path)).inputs
    assert (spec.dtype, spec.zero_point) == ("uint8", (0,))
    assert spec.scale == pytest.approx((1 / 255,))
    names = [op.name for op in describe(str(made.path)).ops]
    assert "MUL" not in names
    assert "CAST" not in names
    assert "the preprocessing is in the input's scale" in made.notes
    few = {"image": raw["image"][:4]}
    for run in (litert, tflite_runtime):
        np.testing.assert_allclose(run(made.path, few)["probs"], outputs(cnn, ONE, few), atol=0.08)


@pytest.mark.parametrize("entry", [CENTERED, CHANNELS])
def test_int8_model_keeps_other_steps_in_the_graph(export, litert, cnn, raw, entry):
    made = export(cnn, "int8", raw, embed_preprocessing=(entry,), io="int8")
    info = describe(str(made.path))
    assert (info.inputs[0].dtype, info.inputs[0].scale, info.inputs[0].zero_point) == ("uint8", (1.0,), (0,))
    assert info.outputs[0].dtype == "int8"
    assert "in the graph, quantized" in made.notes
    few = {"image": raw["image"][:8]}
    np.testing.assert_allclose(litert(made.path, few)["probs"], outputs(cnn, entry, few), atol=0.1)


def test_int16_model_casts_raw_bytes(export, litert, tflite_runtime, cnn, raw):
    made = export(cnn, "int16x8", raw, embed_preprocessing=(CHANNELS,))
    assert "CAST x1" in made.notes
    few = {"image": raw["image"][:4]}
    for run in (litert, tflite_runtime):
        np.testing.assert_allclose(run(made.path, few)["probs"], outputs(cnn, CHANNELS, few), atol=0.05)


def test_one_embedded_input_beside_one_with_integer_io(export, litert):
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    image, extra = keras.Input((4, 4, 1), name="image"), keras.Input((3,), name="extra")
    x = layers.Concatenate()([layers.Flatten()(layers.Conv2D(4, 3)(image)), extra])
    model = keras.Model([image, extra], layers.Dense(2, name="y")(x))
    rng = np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 256, (30, 4, 4, 1)).astype(np.uint8),
        "extra": rng.standard_normal((30, 3)).astype(np.float32),
    }
    made = export(model, "int8", data, embed_preprocessing=(ONE,), io="uint8")
    info = describe(str(made.path))
    assert [s.dtype for s in (*info.inputs, *info.outputs)] == ["uint8"] * 3
    wanted = model([data["image"].astype(np.float32) / 255, data["extra"]])
    np.testing.assert_allclose(litert(made.path, data)["y"], wanted, atol=0.06)


def test_quantization_of_an_affine_step():
    def of(factor, offset, dtype="uint8"):
        return Affine(factor=np.float32(factor), offset=np.float32(offset), dtype=dtype).quantization

    assert of([1 / 255], [0.0]) == (pytest.approx(1 / 255), 0)
    assert of([1 / 64] * 3, [-2.0] * 3) == (1 / 64, 128)
    assert of([1 / 64], [2.0], "int8") == (1 / 64, -128)
    assert of([1 / 127.5], [-1.0]) is None
    assert of([1.0], [1.0]) is None  # zero point -1 is no uint8
    assert of([-1.0], [0.0]) is None
    assert of([1.0, 2.0], [0.0, 0.0]) is None
    assert of([1.0], [0.0], "float32") is None


def test_embedding_refuses_by_name(export, cnn):
    with pytest.raises(InputError, match="names input 'picture'; the model has image"):
        export(cnn, "fp32", embed_preprocessing=({**ONE, "input": "picture"},))
    with pytest.raises(UnsupportedError, match=r"raw values of type float64 cannot go into a .* allowed: uint8"):
        export(cnn, "fp32", embed_preprocessing=({**ONE, "dtype": "float64"},))
