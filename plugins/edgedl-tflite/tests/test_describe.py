import numpy as np
import pytest

from edgedl.errors import InputError
from edgedl.types import ArtifactInfo
from edgedl_tflite import flatbuffer
from edgedl_tflite.describe import describe
from edgedl_tflite.runtimes import LITERT, TFLITE_RUNTIME


@pytest.fixture(scope="module")
def int8(export, cnn, images):
    return export(cnn, "int8", images).path.read_bytes()


def test_describe_lists_ops_tensors_and_weights(tmp_path, int8):
    (tmp_path / "m.tflite").write_bytes(int8)
    info = describe(str(tmp_path / "m.tflite"))
    assert [op.name for op in info.ops] == [
        *("QUANTIZE", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "ADD"),
        *("RESHAPE", "FULLY_CONNECTED", "SOFTMAX", "DEQUANTIZE"),
    ]
    assert info.ops[0].inputs == ("image",)
    assert info.ops[-1].outputs == ("probs",)
    assert all(op.version for op in info.ops)
    assert info.weight_bytes["int8"] == 3 * 3 * 3 * 16 + 3 * 3 * 16 + 3 * 3 * 16 * 16 + 8 * 8 * 16 * 4
    assert info.metadata["float_ops"] == {}
    assert info.metadata["output_steps"] == {"probs": {"dtype": "int8", "scale": (1 / 256,), "zero_point": (-128,)}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no TFLite model: an empty file"),
        (b"a text, renamed by hand\n", "no TFLite model: a file that starts with b'a text, '"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(40), "damaged or truncated TFLite model"),
    ],
)
def test_describe_refuses_other_files_in_one_line(tmp_path, content, message):
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        describe(str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_describe_survives_truncation_and_flipped_bytes(tmp_path, int8):
    path = tmp_path / "m.tflite"
    for length in (100, len(int8) // 3, len(int8) // 2, len(int8) - 300):
        path.write_bytes(int8[:length])
        with pytest.raises(InputError, match="damaged or truncated"):
            describe(str(path))
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(int8)
        for place in rng.integers(8, len(int8), 4):
            damaged[place] ^= 0xFF
        path.write_bytes(bytes(damaged))
        try:
            assert isinstance(describe(str(path)), ArtifactInfo)  # a weight was hit
        except InputError as e:
            assert "\n" not in str(e)  # either is right


@pytest.fixture(scope="module")
def free_sizes():
    """The converter's own file of a network that takes any image of 3x3 up; litert allocates it for one pixel."""
    import keras
    import tensorflow as tf

    image = keras.Input((None, None, 2), name="image")
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D(name="y")(keras.layers.Conv2D(3, 3)(image)))
    return tf.lite.TFLiteConverter.from_keras_model(model).convert()


def test_describe_reads_a_file_whose_free_sizes_litert_cannot_allocate(tmp_path, free_sizes):
    path = tmp_path / "m.tflite"
    path.write_bytes(free_sizes)
    (image,) = describe(str(path)).inputs
    assert image.shape == (None, None, None, 2)
    assert "CONV_2D" in [op.name for op in describe(str(path)).ops]


def test_describe_still_refuses_such_a_file_when_it_is_damaged(tmp_path, free_sizes):
    path = tmp_path / "m.tflite"
    path.write_bytes(free_sizes[: len(free_sizes) // 2])
    with pytest.raises(InputError, match="damaged or truncated"):
        describe(str(path))
    model = flatbuffer.read(free_sizes)
    model.subgraphs[0].operators[0].inputs = np.array([99, 1, 2], np.int32)
    path.write_bytes(flatbuffer.write(model))
    with pytest.raises(InputError, match="damaged or truncated TFLite model: an index points at nothing"):
        describe(str(path))


def test_describe_names_custom_ops(tmp_path, int8):
    model = flatbuffer.read(int8)
    softmax = next(op for _, op in flatbuffer.operators(model) if flatbuffer.op_name(model, op) == "SOFTMAX")
    code = model.operatorCodes[softmax.opcodeIndex]
    code.builtinCode = code.deprecatedBuiltinCode = flatbuffer.schema().BuiltinOperator.CUSTOM
    code.customCode = "FlexErf"
    softmax.builtinOptionsType, softmax.builtinOptions = 0, None
    path = tmp_path / "m.tflite"
    path.write_bytes(flatbuffer.write(model))
    info = describe(str(path))
    assert info.metadata["custom_ops"] == ["FlexErf"]
    assert "CUSTOM:FlexErf" in [op.name for op in info.ops]


def test_runtimes_say_how_they_are_described_and_run_alone():
    assert LITERT.describe == TFLITE_RUNTIME.describe == "edgedl_tflite.describe:describe"
    assert (LITERT.alone, TFLITE_RUNTIME.alone) == (False, True)
    assert TFLITE_RUNTIME.python_variable == "EDGEDL_TFLITE_RUNTIME_PYTHON"
