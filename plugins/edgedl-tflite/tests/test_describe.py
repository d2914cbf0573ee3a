import numpy as np
import pytest
from edgedl_tflite import flatbuffer
from edgedl_tflite.describe import describe
from edgedl_tflite.runtimes import LITERT, TFLITE_RUNTIME

from edgedl.errors import InputError
from edgedl.types import ArtifactInfo


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
