"""The C package: a compiler for microcontrollers takes it, its array is the file, its arena is enough for TFLM."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packages import unpacked

from edgedl import artifacts, packaging, pipeline, worker
from edgedl.errors import InputError, PluginError, UnsupportedError
from edgedl.packaging.c import source, tflm

FLAGS = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-Os", "-mcpu=cortex-m4", "-mthumb"]
GCC = "arm-none-eabi-gcc"
needs_gcc = pytest.mark.skipif(
    shutil.which(GCC) is None, reason="needs: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi"
)
pytest.importorskip("tflite_micro", reason="needs: pip install tflite-micro")
LABELS = ['say "yes"', "no\\n", "größer*/?"]

# As much of TFLM as the README's program names. Nothing of TFLM runs here: the compiler reads our code against it.
STUBS = """
#pragma once
#include <stddef.h>
#include <stdint.h>
enum TfLiteStatus { kTfLiteOk, kTfLiteError };
struct TfLiteTensor { union { char *raw; } data; };
namespace tflite {
struct Model;
const Model *GetModel(const void *);
template <unsigned int N> class MicroMutableOpResolver {
 public:
  METHODS
};
class MicroInterpreter {
 public:
  template <class R> MicroInterpreter(const Model *, const R &, uint8_t *, size_t);
  TfLiteStatus AllocateTensors();
  TfLiteStatus Invoke();
  TfLiteTensor *input(size_t);
  TfLiteTensor *output(size_t);
};
}
"""


def _pack(artifact, out, **given):
    said = []
    (made,) = pipeline.package(artifact, platforms=["c"], out=out, said=said.append, **given)
    return made, said


@pytest.fixture(scope="module")
def package(tflites, tmp_path_factory):
    folder = tmp_path_factory.mktemp("c")
    (folder / "l.txt").write_text("\n".join(LABELS))
    return _pack(tflites / "int8.tflite", folder / "out", labels=folder / "l.txt", name="Key-Word")[0]


@pytest.fixture(scope="module")
def tree(package, tmp_path_factory):
    return unpacked(package, tmp_path_factory.mktemp("tree"))


def _run(*arguments, cwd):
    return subprocess.run([str(a) for a in arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


def _define(tree, name):
    (header,) = tree.glob("*_model.h")
    return int(re.search(rf"#define {name} \(?(-?\d+)", header.read_text())[1])


def test_package_is_verified_as_any_other(package):
    assert package.name == "Key-Word-1.0.0-c.zip"
    assert packaging.verify(package)["findings"] == []


@needs_gcc
def test_compiler_takes_the_sources_and_they_cost_the_model_in_flash(tree, tflites, tmp_path):
    model = (tflites / "int8.tflite").read_bytes()
    objects = []
    for name in ("key_word_model", "key_word_golden"):
        objects.append(tmp_path / f"{name}.o")
        _run(GCC, "-std=c99", *FLAGS, "-c", f"{name}.c", "-o", objects[-1], cwd=tree)
    rows = [line.split()[:3] for line in _run("arm-none-eabi-size", *objects, cwd=tree).splitlines()[1:]]
    (flash, data, bss), golden = ([int(n) for n in row] for row in rows)
    texts = sum(len(label.encode()) + 5 for label in LABELS) + 4 * len(LABELS)
    assert len(model) <= flash <= len(model) + texts + 32
    assert (data, bss, golden[1:]) == (0, 0, [0, 0])  # nothing of it in RAM
    assert model in objects[0].read_bytes()
    for label in LABELS:
        assert label.encode() + b"\0" in objects[0].read_bytes()
    assert _golden(tree)[0].tobytes() in objects[1].read_bytes()


@needs_gcc
def test_compiler_takes_the_program_of_the_readme(tree, tflites, tmp_path):
    headers = tmp_path / "tensorflow/lite/micro"
    headers.mkdir(parents=True)
    names = re.findall(r"resolver\.(\w+)\(\)", (tree / "key_word_tflm.h").read_text())
    assert names == ["AddConv2D", "AddFullyConnected", "AddMean", "AddSoftmax"]
    stubs = STUBS.replace("METHODS", " ".join(f"TfLiteStatus {name}();" for name in names))
    for file in ("micro_interpreter.h", "micro_mutable_op_resolver.h"):
        (headers / file).write_text(stubs)
    assert "- TFLM: as in tflite-micro 0.dev20231221005749 of PyPI, or newer." in (tree / "README.md").read_text()
    program = re.search(r"```cpp\n(.*?)```", (tree / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "main.cc").write_text(program)
    flags = ["-std=c++11", *FLAGS, "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"]
    _run("arm-none-eabi-g++", *flags, f"-I{tmp_path}", f"-I{tree}", "-c", "main.cc", cwd=tmp_path)
    sizes = _run("arm-none-eabi-size", "main.o", cwd=tmp_path).splitlines()[1].split()
    assert int(sizes[2]) >= _define(tree, "KEY_WORD_MODEL_ARENA_BYTES")  # the arena, in RAM


def _golden(tree):
    """The golden codes of the C text: inputs and outputs, (samples, values)."""
    text = (tree / "key_word_golden.c").read_text()
    arrays = []
    for found in re.finditer(r"const int8_t \w+\[(\d+)\]\[(\d+)\] = \{(.*?)\n\};", text, re.DOTALL):
        codes = [int(n) for n in re.findall(r"-?\d+", found[3])]
        arrays.append(np.array(codes, np.int8).reshape(int(found[1]), int(found[2])))
    return arrays


def test_a_small_file_may_take_a_large_arena(tmp_path):
    import keras

    layers = [keras.layers.Conv2D(n, 3, padding="same") for n in (24, 24, 1)]
    keras.Sequential([keras.Input((128, 128, 1), name="image"), *layers]).save(tmp_path / "m.keras")
    pipeline.export(tmp_path / "m.keras", tmp_path / "m.tflite")
    given = {"image": np.zeros((1, 128, 128, 1), np.float32)}
    artifact = artifacts.read(tmp_path / "m.tflite")[0]
    found = tflm.measure(artifact.path, given, [s.name for s in artifact.outputs])
    assert found.arena_bytes > 2 * 128 * 128 * 24 * 4 > 100 * artifact.size_bytes


def test_arena_and_golden_outputs_are_those_of_tflm(tree, tflites):
    from tflite_micro.python.tflite_micro import runtime

    arena = _define(tree, "KEY_WORD_MODEL_ARENA_BYTES")
    file = (tflites / "int8.tflite").read_bytes()
    model = runtime.Interpreter.from_bytes(file, arena_size=arena)
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(file, arena_size=arena - tflm.STEP_BYTES)
    inputs, outputs = _golden(tree)
    assert len(np.unique(inputs)) > 10
    for given, expected in zip(inputs, outputs, strict=True):
        model.set_input(given.reshape(1, 8, 8, 1), 0)
        model.invoke()
        assert np.array_equal(model.get_output(0)[0], expected)
    header = (tree / "key_word_model.h").read_text()
    assert "emulated: TFLM's own memory planner with its reference kernels, run on a 64-bit host" in header
    assert _define(tree, "KEY_WORD_MODEL_INPUT_0_ELEMENTS") == 64
    assert "#define KEY_WORD_MODEL_LABELS 3" in header


def test_tensors_are_in_the_order_of_tflm(tflites, tmp_path):
    made, _ = _pack(tflites / "two.tflite", tmp_path / "out")
    tree = unpacked(made, tmp_path / "tree")
    from tflite_micro.python.tflite_micro import runtime

    model = runtime.Interpreter.from_file(str(tflites / "two.tflite"), arena_size=100_000)
    for i in range(2):
        assert _define(tree, f"TWO_MODEL_INPUT_{i}_ELEMENTS") == np.prod(model.get_input_details(i)["shape"])
        assert _define(tree, f"TWO_MODEL_OUTPUT_{i}_ELEMENTS") == np.prod(model.get_output_details(i)["shape"])
    assert "extern const float two_golden_input_0" in (tree / "two_golden.h").read_text()


def test_kernels_that_round_otherwise_are_told(tflites, tmp_path, monkeypatch):
    real = worker.call

    def changed(what, kwargs, **options):
        found = real(what, kwargs, **options)
        if what == "edgedl.packaging.c.tflm:run":
            file = Path(kwargs["folder"]) / "output_0.npy"
            np.save(file, np.load(file) - np.int8(7))
        return found

    monkeypatch.setattr(worker, "call", changed)
    _, said = _pack(tflites / "int8.tflite", tmp_path / "out")
    assert any("c: TFLM's output" in note and "is up to 7 lsb from that of litert" in note for note in said)


def test_free_sizes_and_onnx_are_refused(tflites, data, tmp_path):
    with pytest.raises(InputError, match=r"input 'image' has free sizes, \[None, None, None, 1\].*export with --shape"):
        _pack(tflites / "open.tflite", tmp_path / "out", data=data / "test.npz")
    (tmp_path / "m.onnx").touch()
    with pytest.raises(UnsupportedError, match="platform 'c' takes tflite, this is onnx"):
        _pack(tmp_path / "m.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_operator_that_tflm_has_not_is_named(tmp_path):
    import tensorflow as tf

    function = tf.function(lambda x: tf.math.atan2(x, x + 1), [tf.TensorSpec((1, 4), tf.float32, "x")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], tf.Module())
    (tmp_path / "m.tflite").write_bytes(converter.convert())
    with pytest.raises(UnsupportedError, match=r"m\.tflite: TFLM does not take it: .*ATAN2"):
        _pack(tmp_path / "m.tflite", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_tflm_it_says_what_to_install(tflites, monkeypatch):
    monkeypatch.setitem(sys.modules, "tflite_micro", None)
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro", None)
    with pytest.raises(PluginError, match=r"platform 'c' measures the arena with TFLM: .*pip install 'edgedl\[c\]'"):
        tflm.run(str(tflites / "int8.tflite"), "", [], [])


@pytest.mark.parametrize(
    ("op", "method"),
    [
        ("CONV_2D", "AddConv2D"), ("L2_POOL_2D", "AddL2Pool2D"), ("RELU6", "AddRelu6"), ("SPLIT_V", "AddSplitV"),
        ("SELECT_V2", "AddSelectV2"), ("PADV2", "AddPadV2"), ("BATCH_MATMUL", "AddBatchMatMul"), ("SVDF", "AddSvdf"),
        ("UNIDIRECTIONAL_SEQUENCE_LSTM", "AddUnidirectionalSequenceLSTM"), ("ADD_N", "AddAddN"),
        ("SPACE_TO_BATCH_ND", "AddSpaceToBatchNd"),
    ],
)  # fmt: skip
def test_resolver_methods_are_those_of_tflm(op, method):
    assert tflm.resolver_method(op) == method


def test_custom_operator_has_no_resolver_method():
    with pytest.raises(UnsupportedError, match="operator FlexErf is a custom one"):
        tflm.resolver_method("FlexErf")


def test_text_in_c_cannot_end_a_comment_or_a_string():
    assert source._comment("a*/ #error\n/*b") == "/* a* / #error / *b */"
    assert source._literal('ä"\\?') == '"\\303\\244\\042\\134\\077"'
    assert [source._float(v) for v in (1.0, 0.00390625, 1e-9, -3.0)] == ["1.0f", "0.00390625f", "1e-09f", "-3.0f"]
    value = np.float32(0.1) * np.float32(1 / 3)
    assert np.float32(source._float(float(value))[:-1]) == value
