"""Instructions on an emulated Cortex-M: they repeat, the C that is counted gives the reference kernels' bits."""

import os
import shutil

import crafted
import numpy as np
import orphans
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from conftest import SETUP

from edgedl.errors import InputError, UnsupportedError
from edgedl_bakenn import emulation, mending
from edgedl_bakenn.device import PACKAGES, Firmware, FirmwareDevice, Options
from edgedl_tflite import flatbuffer

needs_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in PACKAGES), reason=f"needs qemu-system-arm and compilers: {SETUP}"
)


def reference(content, codes):
    """What TFLite's reference kernels give."""
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.set_tensor(taken["index"], codes.reshape(taken["shape"]))
    interpreter.invoke()
    return interpreter.get_tensor(given["index"]).ravel()


def without_softmax(path):
    model = flatbuffer.read(path.read_bytes())
    op = model.subgraphs[0].operators.pop()
    model.subgraphs[0].outputs = list(op.inputs)
    return flatbuffer.write(model)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return crafted.strided_model(tmp_path_factory.mktemp("firmware") / "m.tflite")


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    return emulation.generate(model, tmp_path_factory.mktemp("c"), 100)


@needs_tools
def test_the_c_that_is_counted_gives_the_bits_of_the_reference_kernels(model, made, tmp_path):
    codes = np.random.default_rng(1).integers(-128, 128, 128).astype(np.int8)
    found = emulation.run(made, "mps2-an386", codes.tobytes(), tmp_path, 100)
    assert np.frombuffer(found.output, np.int8).tolist() == reference(without_softmax(model), codes).tolist()
    assert made.left_out == ["SOFTMAX"]
    assert found == emulation.run(made, "mps2-an386", codes.tobytes(), tmp_path, 100)
    assert sum(found.functions.values()) == found.total
    assert found.functions["arm_nn_mat_mult_kernel_s8_s16"] > 0.3 * found.total  # CMSIS-NN's, padded as it is
    assert 64 * 9 * 2 < found.total < 20_000  # a multiplication each, and what is around them


def test_what_comes_after_the_work_is_left_out(tmp_path):
    model = flatbuffer.read(crafted.strided_model(tmp_path / "m.tflite", middle="MEAN").read_bytes())
    assert mending.mend(model) == ["MEAN", "FULLY_CONNECTED", "SOFTMAX"]
    assert [flatbuffer.op_name(model, op) for op in model.subgraphs[0].operators] == ["CONV_2D"]
    assert model.subgraphs[0].outputs == [3]


def test_a_dense_layer_behind_an_image_gets_its_rows(tmp_path):
    model = flatbuffer.read(crafted.small_model(tmp_path / "m.tflite", float_output=True).read_bytes())
    assert mending.mend(model) == ["DEQUANTIZE"]
    graph = model.subgraphs[0]
    assert [flatbuffer.op_name(model, op) for op in graph.operators] == ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]
    assert list(graph.tensors[graph.operators[2].inputs[0]].shape) == [1, 8 * 8 * 4]


def test_work_behind_an_operator_that_bakenn_lacks_is_not_left_out(tmp_path):
    path = crafted.strided_model(tmp_path / "m.tflite", middle="LOGISTIC")
    with pytest.raises(UnsupportedError, match=r"and not LOGISTIC, operator 1; 14% of the multiply-accumulates come"):
        emulation.generate(path, tmp_path, 100)


def test_an_end_of_two_tensors_is_the_reason_where_it_is(tmp_path):
    model = flatbuffer.read(crafted.strided_model(tmp_path / "m.tflite").read_bytes())
    model.subgraphs[0].outputs = [9, 3]
    with pytest.raises(UnsupportedError, match=r"and not SOFTMAX, operator 3; 2 tensors from before it would be outp"):
        mending.mend(model)


def test_a_network_that_begins_with_what_bakenn_lacks_is_refused(tmp_path):
    model = flatbuffer.read(crafted.strided_model(tmp_path / "m.tflite").read_bytes())
    graph = model.subgraphs[0]
    graph.operators, graph.inputs = graph.operators[3:], [8]
    with pytest.raises(UnsupportedError, match=r"and not SOFTMAX, operator 0; 0 tensors from before it would be outp"):
        mending.mend(model)


def test_what_bakenn_says_of_a_file_is_passed_on(tmp_path):
    with pytest.raises(UnsupportedError, match=r"bakenn: .*scale"):  # those of this file are no converter's
        emulation.generate(crafted.small_model(tmp_path / "m.tflite"), tmp_path, 100)


def test_a_file_that_bakenn_dies_of_is_refused(tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"no model")
    with pytest.raises(UnsupportedError, match="bakenn ended with 1: "):
        emulation.generate(tmp_path / "m.tflite", tmp_path, 100)


def test_a_float_file_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="bakenn takes int8 files; export with --scheme int8"):
        emulation.generate(crafted.float_model(tmp_path / "m.tflite"), tmp_path, 100)


def test_what_does_not_fit_the_board_is_told(made, tmp_path, monkeypatch):
    linker = tmp_path / "gcc"
    linker.write_text('#!/bin/sh\necho "ld: region \\`ROM\' overflowed by 12 bytes" >&2\necho more >&2\nexit 1\n')
    linker.chmod(0o755)
    monkeypatch.setattr(emulation, "COMPILER", str(linker))
    with pytest.raises(InputError, match=r"does not fit the 4 MB .* region `ROM' overflowed by 12 bytes"):
        emulation.run(made, "mps2-an386", bytes(128), tmp_path, 100)


def test_a_tool_that_is_not_there_is_the_users_to_know(tmp_path):
    with pytest.raises(InputError, match="no-gcc: not on this machine, or no program"):
        emulation._run(["no-gcc"], tmp_path, 100, "gcc")


def test_an_emulator_ends_with_edgedl(tmp_path):
    code = f"from edgedl_bakenn import emulation; emulation._run({orphans.WRITES_ITS_ID}, '.', 100, 'a core')"
    assert not orphans.outlives(code, tmp_path)


@needs_tools
def test_the_folder_of_a_firmware_is_one_that_is_swept(model, tmp_path, monkeypatch):
    folders = []

    def killed(source, folder, timeout_s):
        folders.append(folder.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(emulation, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        FirmwareDevice("mps2-an386").count({"artifact": str(model), "threads": 1}, 100)
    assert folders[0].startswith(f"edgedl-{os.getpid()}-firmware-")


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "qemu-system-arm" else tool)
    assert Firmware().missing(Options(machine="mps2-an386")) == "sudo apt-get install qemu-system-arm"


def test_a_machine_that_is_none_is_refused():
    with pytest.raises(ValueError, match="machine: 'stm32' is none of mps2-an386, mps2-an500, mps2-an505"):
        Options(machine="stm32")
