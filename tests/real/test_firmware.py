"""ResNet8 and DS-CNN of MLPerf Tiny as firmware: the bits of the reference kernels, and what they cost."""

import shutil

import numpy as np
import pytest
from conftest import SETUP

from edgedl_bakenn import emulation
from edgedl_tflite import flatbuffer

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("name", "instructions"), [("ic/pretrainedResnet_quant", 33_700_000), ("kws/kws_ref_model", 7_716_000)]
)
def test_firmware_of_a_published_file(shared, tmp_path, name, instructions):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    if shutil.which("qemu-system-arm") is None:
        pytest.skip(f"needs qemu-system-arm: {SETUP}")
    path = shared / "mlperf_tiny" / f"{name}.tflite"
    model = flatbuffer.read(path.read_bytes())
    graph = model.subgraphs[0]
    graph.outputs = list(graph.operators.pop().inputs)  # without SOFTMAX
    kernels = OpResolverType.BUILTIN_REF
    interpreter = Interpreter(model_content=flatbuffer.write(model), experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    taken = interpreter.get_input_details()[0]
    codes = np.random.default_rng(0).integers(-128, 128, taken["shape"]).astype(np.int8)
    interpreter.set_tensor(taken["index"], codes)
    interpreter.invoke()
    found = emulation.run(emulation.generate(path, tmp_path, 100), "mps2-an386", codes.tobytes(), tmp_path, 100)
    wanted = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).ravel()
    assert np.frombuffer(found.output, np.int8).tolist() == wanted.tolist()
    assert found.total == pytest.approx(instructions, rel=0.01)
