"""TFLM as a runtime of edgedl: its outputs, what it refuses, its crash, and where it differs from litert."""

import numpy as np
import pytest
from crafted import images, small_model

from edgedl import artifacts, testing, worker
from edgedl.errors import InputError, WorkerError
from edgedl.validation import evaluate
from edgedl.validation.evaluate import Setting


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("tflm") / "m.tflite")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "image.npy"
    np.save(path, images(70))
    return {"image": path}


def outputs(path, data, name, resolver=None):
    setting = Setting(runtime=artifacts.runtime_for("tflite", name), resolver=resolver)
    return np.load(evaluate.outputs(artifacts.read(path)[0], setting, data)["kind"])


def test_contract(model):
    testing.check_runtime("tflm", model)


def test_outputs_are_those_of_the_builtin_kernels(model, data):
    ours = outputs(model, data, "tflm")
    assert ours.shape == (70, 3)
    np.testing.assert_allclose(ours, outputs(model, data, "litert", "builtin"), atol=0.2 + 1e-6)  # one step


def test_shares_of_several_processes_are_put_together_in_order(model, data, monkeypatch):
    monkeypatch.setattr(evaluate.os, "sched_getaffinity", lambda _: range(1))
    alone = outputs(model, data, "tflm")
    monkeypatch.setattr(evaluate.os, "sched_getaffinity", lambda _: range(2))
    np.testing.assert_array_equal(outputs(model, data, "tflm"), alone)


def test_an_op_that_tflm_lacks_is_named(tmp_path, data):
    path = small_model(tmp_path / "m.tflite", op="BITCAST")
    setting = Setting(runtime=artifacts.runtime_for("tflite", "tflm"))
    artifact = artifacts.read(small_model(tmp_path / "whole.tflite"))[0]
    asked = evaluate.request(artifact, setting, data) | {
        "artifact": str(path),
        "outputs": {"kind": str(tmp_path / "o.npy")},
    }
    with pytest.raises(InputError, match=r"tflm does not load it: .*BITCAST"):
        worker.call("run", asked, child="tflm")


def test_a_degenerate_scale_is_one_line_and_runs_nothing(tmp_path, data):
    path = small_model(tmp_path / "m.tflite", conv_scale=0.0)
    with pytest.raises(InputError, match=r"m\.tflite: .*unsupported scale value"):
        outputs(path, data, "tflm")


def test_an_abort_of_tflm_ends_its_child_alone(tmp_path, monkeypatch):
    (tmp_path / "aborting.py").write_text("import os\n\ndef Model(*_):\n    os.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked = {"artifact": "m.tflite", "runtime": "tflm", "model": "aborting:Model"}
    with worker.fresh("tflm") as child, pytest.raises(WorkerError, match="SIGABRT"):
        child.call("describe", asked)


def test_files_without_a_signature_go_by_their_tensors_names(tmp_path, data):
    path = small_model(tmp_path / "m.tflite", named=False)
    assert outputs(path, data, "tflm").shape == (70, 3)
