"""The agent in this process, on a file that a few lines of TensorFlow make."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgedl import agent


@pytest.fixture(scope="module")
def doubler(tmp_path_factory):
    """A .tflite that gives 2 x + 1 for x of shape (1, 3), made without Keras."""
    import tensorflow as tf

    class Doubler(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 3), tf.float32)])
        def run(self, x):
            return {"y": 2 * x + 1}

    module = Doubler()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.run.get_concrete_function()], module)
    path = tmp_path_factory.mktemp("agent") / "doubler.tflite"
    path.write_bytes(converter.convert())
    return path


@pytest.fixture
def pool_child():
    from edgedl import worker

    with worker.fresh("litert") as child:
        yield child


def request(path, tmp_path, x, **more):
    np.save(tmp_path / "x.npy", x)
    inputs = {"x": str(tmp_path / "x.npy")}
    return {"artifact": str(path), "runtime": "litert", "inputs": inputs, **more}


@pytest.mark.parametrize("workers", [1, 2])
def test_run_gives_every_sample_its_output(doubler, tmp_path, workers):
    x = np.random.default_rng(0).random((700, 3), np.float32)
    reply = agent.run(request(doubler, tmp_path, x, outputs={"y": str(tmp_path / "y.npy")}, workers=workers))
    assert (reply["samples"], reply["workers"]) == (700, workers)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), 2 * x + 1, rtol=1e-6)


def test_threads_share_a_session_of_onnxruntime_and_no_inputs(tmp_path):
    onnx = pytest.importorskip("onnx")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in "xy"]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "same", value[:1], value[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    request = {"runtime": "onnxruntime", "artifact": str(tmp_path / "m.onnx")}
    first, second = (agent._load(request, {}, copy=i) for i in range(2))
    assert first.session is second.session
    for model, number in ((first, 1), (second, 2)):
        model.feed([np.full((1, 2), number, np.float32)])
    assert [int(model.invoke()[0][0, 0]) for model in (first, second)] == [1, 2]


def test_run_takes_a_slice_and_casts_integers(doubler, tmp_path):
    x = np.arange(30, dtype=np.uint8).reshape(10, 3)
    agent.run(request(doubler, tmp_path, x, outputs={"y": str(tmp_path / "y.npy")}, start=2, stop=4))
    assert np.load(tmp_path / "y.npy").tolist() == (2.0 * x[2:4] + 1).tolist()


def test_run_takes_fortran_order_and_batches_that_the_samples_do_not_fill(doubler, tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "CHUNK_SAMPLES", 4)
    x = np.asfortranarray(np.random.default_rng(0).random((11, 3), np.float32))
    agent.run(request(doubler, tmp_path, x, outputs={"y": str(tmp_path / "y.npy")}, workers=1))
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), 2 * x + 1, rtol=1e-6)


def test_large_samples_are_read_a_few_at_a_time(doubler, tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "CHUNK_BYTES", 5 * 3 * 4)
    np.save(tmp_path / "x.npy", np.zeros((100, 3), np.float32))
    model = agent._load({"runtime": "litert", "artifact": str(doubler)}, {})
    feeds = agent._Feeds(model, {"x": str(tmp_path / "x.npy")}, False)
    assert feeds.chunk_samples == 5
    assert [len(v) for v in feeds.chunk(0, 5)] == [5]


@pytest.mark.parametrize(("room", "most"), [(5 * 40_000 * 4, 5), (1, 1), (16_000_000, 100)])
def test_large_outputs_are_kept_a_few_at_a_time(tmp_path, monkeypatch, room, most):
    """One value a sample goes in, an image comes out."""
    onnx = pytest.importorskip("onnx")
    ends = [onnx.helper.make_tensor_value_info(*end) for end in (("x", 1, ["n", 1]), ("y", 1, ["n", None]))]
    ones = onnx.numpy_helper.from_array(np.ones((1, 40_000), np.float32), "ones")
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "ones"], ["y"])], "g", *zip(ends), [ones])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    monkeypatch.setattr(agent, "CHUNK_BYTES", room)
    written = []
    write = agent._Output.write
    monkeypatch.setattr(agent._Output, "write", lambda *given: written.append(len(given[2])) or write(*given))
    x = np.arange(100, dtype=np.float32)[:, None]
    asked = request(tmp_path / "m.onnx", tmp_path, x, outputs={"y": str(tmp_path / "y.npy")}, workers=1)
    agent.run(asked | {"runtime": "onnxruntime"})
    assert (max(written), sum(written)) == (most, 100)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy")[:, [0, -1]], np.hstack([x, x]))


def test_run_times_inferences(doubler, tmp_path):
    reply = agent.run(request(doubler, tmp_path, np.zeros((1, 3), np.float32), warmup=1, repeats=7))
    assert len(reply["nanoseconds"]) == 7
    assert min(reply["nanoseconds"]) > 0
    assert reply["peak_rss_bytes"] > 10_000_000


class Elsewhere(agent.TFLiteModel):
    """A model that says what it took where it runs."""

    load_ms, took_ns, peak_rss_bytes = 3.5, 250_000, None


def test_run_reports_what_a_model_in_another_process_says_of_itself(doubler, tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "_loaded", {})
    timed = {"warmup": 1, "repeats": 2, "model": f"{__name__}:Elsewhere"}
    reply = agent.run(request(doubler, tmp_path, np.zeros((1, 3), np.float32), **timed))
    assert (reply["load_ms"], reply["first_inference_ms"], reply["nanoseconds"]) == (3.5, 0.25, [250_000] * 2)
    assert reply["peak_rss_bytes"] is None
    assert agent.run(request(doubler, tmp_path, np.zeros((1, 3), np.float32), **timed))["load_ms"] is None


def test_peak_memory_is_of_the_child_alone(pool_child, doubler, tmp_path):
    big = np.ones(60_000_000)  # 480 MB here, which the child must not report as its own
    reply = pool_child.call("run", request(doubler, tmp_path, np.zeros((1, 3), np.float32), warmup=1, repeats=3))
    assert reply["peak_rss_bytes"] < big.nbytes


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 4), np.float32), r"input 'x' takes \[None, 3\], the data is \[2, 4\]"),
        (np.zeros((2, 3, 1), np.float32), r"input 'x' takes \[None, 3\], the data is \[2, 3, 1\]"),
    ],
)
def test_run_refuses_another_shape(doubler, tmp_path, x, message):
    with pytest.raises(agent.RefusedError, match=message):
        agent.run(request(doubler, tmp_path, x, outputs={"y": str(tmp_path / "y.npy")}))


@pytest.mark.parametrize("resolver", [None, "builtin", "xnnpack"])
def test_run_takes_the_kernels_of_the_cpu(doubler, resolver):
    assert agent.describe({"artifact": str(doubler), "runtime": "litert", "resolver": resolver})["inputs"]


@pytest.mark.parametrize("resolver", ["gpu", "npu"])
def test_run_refuses_kernels_that_it_lacks(doubler, resolver):
    with pytest.raises(agent.RefusedError, match=f"the agent has no '{resolver}' kernels; it has builtin, xnnpack"):
        agent.describe({"artifact": str(doubler), "runtime": "litert", "resolver": resolver})


@pytest.mark.parametrize("content", [b"just text", b"", bytes(range(256)) * 8])
def test_run_refuses_what_is_no_model(tmp_path, content):
    (tmp_path / "a.tflite").write_bytes(content)
    with pytest.raises(agent.RefusedError, match="litert does not load it"):
        agent.describe({"artifact": str(tmp_path / "a.tflite"), "runtime": "litert"})


@pytest.mark.parametrize(
    ("values", "codes"), [([0.0, 0.5, 1.0], [-10, -5, 0]), ([-100.0, 100.0], [-128, 127]), ([0.24, 0.26], [-8, -7])]
)
def test_quantize_rounds_and_saturates(values, codes):
    assert agent.quantize(np.array(values), 0.1, -10, np.int8).tolist() == codes


def test_info_tells_which_runtimes_start():
    runtimes = agent.info({"runtimes": ["litert", "onnxruntime"]})["runtimes"]
    assert runtimes["litert"]["version"]
    assert runtimes["litert"]["why"] is None


def test_info_says_why_a_runtime_does_not_start(monkeypatch):
    monkeypatch.setitem(agent.MODULES, "gone", "no_such_runtime")
    assert "No module named 'no_such_runtime'" in agent.info({"runtimes": ["gone"]})["runtimes"]["gone"]["why"]


def test_the_file_alone_answers_one_request(doubler, tmp_path):
    """Copied elsewhere, without edgedl beside it, as on a device."""
    copy = tmp_path / "device" / "agent.py"
    copy.parent.mkdir()
    copy.write_bytes(Path(agent.__file__).read_bytes())
    asked = request(doubler, tmp_path, np.ones((2, 3), np.float32), outputs={"y": str(tmp_path / "y.npy")})
    (tmp_path / "request.json").write_text(json.dumps({"verb": "run", "kwargs": asked}))
    subprocess.run([sys.executable, "-I", copy, tmp_path], check=True, capture_output=True)
    assert json.loads((tmp_path / "reply.json").read_text())["result"]["samples"] == 2
    assert np.load(tmp_path / "y.npy").tolist() == [[3.0] * 3] * 2


def test_a_tied_command_gives_what_it_gives_alone():
    done = subprocess.run(agent.tied(["sh", "-c", "echo $X; exit 3"]), env={"X": "a"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "a\n", "")


def test_a_tied_command_that_is_not_there_is_named():
    done = subprocess.run(agent.tied(["/no/such/program"]), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "/no/such/program: No such file or directory\n")


def test_the_file_parses_on_python_3_7():
    import ast

    ast.parse(Path(agent.__file__).read_text(), feature_version=(3, 7))
