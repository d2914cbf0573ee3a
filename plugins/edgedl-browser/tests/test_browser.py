"""LiteRT.js and onnxruntime-web in a real headless Chromium; what is said where a part of it is missing."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from crafted import float_model, small_model

from edgedl import artifacts, testing
from edgedl.errors import InputError
from edgedl.validation import evaluate, validate
from edgedl.validation.cases import Request
from edgedl.validation.evaluate import Setting
from edgedl.validation.gates import Gates
from edgedl_browser import places
from edgedl_browser.server import Server

MODULES = places.modules()  # before the tests get a cache of their own


def missing(package):
    try:
        places.version_of(package)
    except ImportError as e:
        return str(e)
    return ""


needs_litert = pytest.mark.skipif(bool(missing("@litertjs/core")), reason=missing("@litertjs/core"))
needs_onnx = pytest.mark.skipif(bool(missing("onnxruntime-web")), reason=missing("onnxruntime-web"))


@pytest.fixture(scope="module", autouse=True)
def _modules():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEDL_BROWSER_MODULES", str(MODULES))
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "row.npy"
    np.save(path, np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32))
    return {"row": path}


def outputs(path, inputs, name, threads=1):
    artifact = artifacts.read(path)[0]
    setting = Setting(runtime=artifacts.runtime_for(artifact.format, name), threads=threads)
    return np.load(evaluate.outputs(artifact, setting, inputs)["out"])


@needs_litert
def test_litert_js_gives_the_outputs_of_litert(tmp_path, rows):
    path = float_model(tmp_path / "m.tflite")
    expected = outputs(path, rows, "litert")
    np.testing.assert_allclose(outputs(path, rows, "litert-js"), expected, atol=1e-6)
    np.testing.assert_allclose(outputs(path, rows, "litert-js", threads=2), expected, atol=1e-6)


WORKERS = """
import sys
import numpy as np
from edgedl_browser.model import BrowserModel
asked = {"artifact": sys.argv[1], "runtime": sys.argv[2]}
cores = BrowserModel(asked, {})._page.evaluate("navigator.hardwareConcurrency")
model = BrowserModel({**asked, "threads": cores + 3}, {})
model.feed([np.zeros(s["shape"], s["dtype"]) for s in model.inputs])
model.invoke()
for _ in range(100):  # the browser tells of a worker some time after it started
    if len(model._page.workers) >= cores + 2:
        break
    model._page.wait_for_timeout(50)
print(len(model._page.workers) - cores)
"""


@needs_litert
def test_litert_js_starts_the_threads_that_are_asked_for(tmp_path):
    command = [sys.executable, "-c", WORKERS, float_model(tmp_path / "m.tflite"), "litert-js"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert told.stdout.split() == ["2"]  # and the page's own thread


@needs_litert
def test_times_are_the_page_s_and_the_memory_of_a_browser_is_unchecked(tmp_path):
    path = str(float_model(tmp_path / "m.tflite"))
    np.savez(tmp_path / "d.npz", row=np.zeros((4, 4), np.float32))
    gates = Gates(limits={"load_ms": 1e6, "peak_rss_bytes": 8e7})
    asked = Request(artifact=Path(path), reference=path, data=str(tmp_path / "d.npz"), gates=gates, runtime="litert-js")
    found = {check.name: check for check in validate.validate(asked).checks}
    assert found["load_ms"].verdict == "pass"
    assert (found["peak_rss_bytes"].verdict, found["peak_rss_bytes"].measured) == ("unchecked", None)


@needs_litert
def test_contract(tmp_path):
    testing.check_runtime("litert-js", float_model(tmp_path / "m.tflite"))


@needs_litert
def test_an_int8_file_is_refused_as_litert_js_refuses_it(tmp_path):
    path = small_model(tmp_path / "m.tflite")
    np.save(tmp_path / "image.npy", np.zeros((1, 8, 8, 1), np.float32))
    with pytest.raises(InputError, match=r"m\.tflite: litert-js does not load it: .*\b9\b|int8"):
        outputs(path, {"image": tmp_path / "image.npy"}, "litert-js")


@needs_onnx
def test_onnxruntime_web_gives_the_outputs_of_onnxruntime(tmp_path, rows):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")
    weights = np.random.default_rng(2).standard_normal((4, 3)).astype(np.float32)
    tensor, helper = onnx.TensorProto.FLOAT, onnx.helper
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["row", "w"], ["y"]), helper.make_node("Relu", ["y"], ["out"])],
        "small",
        [helper.make_tensor_value_info("row", tensor, ["batch", 4])],
        [helper.make_tensor_value_info("out", tensor, ["batch", 3])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    expected = outputs(tmp_path / "m.onnx", rows, "onnxruntime")
    np.testing.assert_allclose(outputs(tmp_path / "m.onnx", rows, "onnxruntime-web"), expected, atol=1e-5)


@needs_onnx
@pytest.mark.parametrize("dtype", ["float16", "uint32", "uint64"])
def test_values_have_the_type_of_their_tensor(tmp_path, dtype):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    values = [onnx.helper.make_tensor_value_info(name, kind, ["batch", 2]) for name in ("in", "out")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["in"], ["out"])], "g", values[:1], values[1:])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "m.onnx")
    np.save(tmp_path / "in.npy", np.array([[0, 1]], dtype))
    told = outputs(tmp_path / "m.onnx", {"in": tmp_path / "in.npy"}, "onnxruntime-web")
    assert told.tolist() == [[0, 1]]


def test_a_browser_that_does_not_start_says_why(tmp_path):
    pytest.importorskip("playwright")
    (tmp_path / "chromium").write_text("#!/bin/sh\necho no memory >&2\nexit 1\n")
    (tmp_path / "chromium").chmod(0o755)
    command = [sys.executable, "-c", "from edgedl_browser.model import _started; _started()"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert told.stderr.endswith(f"RuntimeError: {tmp_path}/chromium does not start: no memory\n")


def test_what_is_missing_is_said_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(places.shutil, "which", lambda _: "/a/chromium")
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setenv("EDGEDL_BROWSER_MODULES", str(tmp_path / "node_modules"))
    with pytest.raises(ImportError, match=rf"npm install --prefix {tmp_path} onnxruntime-web"):
        places.version_of("onnxruntime-web")
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match="pip install playwright"):
        places.version_of("onnxruntime-web")
    monkeypatch.setattr(places.shutil, "which", lambda _: None)
    with pytest.raises(ImportError, match="apt-get install chromium"):
        places.version_of("onnxruntime-web")


def test_the_server_gives_packages_and_named_models_and_nothing_else(tmp_path):
    (tmp_path / "node_modules" / "p").mkdir(parents=True)
    (tmp_path / "node_modules" / "p" / "a.mjs").write_text("")
    (tmp_path / "secret").write_text("")
    server = Server(tmp_path / "node_modules")
    try:
        server.models["0.tflite"] = tmp_path / "secret"
        assert server.find("/node_modules/p/a.mjs") == tmp_path / "node_modules" / "p" / "a.mjs"
        assert server.find("/models/0.tflite?x=1") == tmp_path / "secret"
        assert server.find("/node_modules/../secret") is None
        assert server.find("/models/../secret") is None
        assert server.find("/etc/passwd") is None
    finally:
        server.close()
