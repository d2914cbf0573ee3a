"""MLPerf Tiny's keyword model (a Keras 2 .h5) and autoencoder on seeded input: parity with float, no accuracy claim."""

import numpy as np
import pytest

pytestmark = pytest.mark.real


@pytest.fixture
def data(tmp_path):
    """Seeded noise of a shape, mean and deviation: paths of a training and a test .npz, without targets."""

    def make(shape, mean, deviation):
        for seed, name in enumerate(("train", "test")):
            x = np.random.default_rng(seed).normal(mean, deviation, (200, *shape)).astype(np.float32)
            np.savez(tmp_path / f"{name}.npz", x=x)
        return tmp_path / "train.npz", tmp_path / "test.npz"

    return make


def reached(cli, model, train, test, folder):
    """The checks of each export by file name, judged against the model itself."""
    found = {}
    for file, scheme in (("f.tflite", "fp32"), ("f.onnx", "fp32"), ("q.tflite", "int8"), ("q.onnx", "int8")):
        given = ("--calibration-data", train) if scheme == "int8" else ()
        made = cli("export", model, "--scheme", scheme, *given, "-o", folder / file)
        assert made.code == 0, made.err
        answer = cli("validate", folder / file, "--reference", model, "--data", test, "--json")
        assert answer.code == 0, answer.err
        found[file] = {c["name"]: c["measured"] for c in answer.json["checks"]}
    return found


def test_the_keyword_model_is_carried_over_and_exported(cli, shared, data, tmp_path):
    """It classifies: outputs are probabilities, and without targets nothing is said of accuracy."""
    model = shared / "mlperf_tiny" / "kws" / "kws_model_qualcomm_v1.3.h5"
    (spec,) = cli("inspect", model, "--json").json["inputs"]
    found = reached(cli, model, *data(spec["shape"][1:], 0, 1), tmp_path)
    assert not [name for checks in found.values() for name in checks if "accuracy" in name]
    assert max(found[f]["max_abs"] for f in ("f.tflite", "f.onnx")) < 1e-5
    assert max(found[f]["max_abs"] for f in ("q.tflite", "q.onnx")) < 0.2
    assert found["q.tflite"]["size_bytes"] < 53_936  # MLPerf's own int8 file


def test_the_autoencoder_is_carried_over_and_exported(cli, shared, data, tmp_path):
    """Its outputs span some 50; what it is judged by is how well it gives back its input."""
    model = shared / "mlperf_tiny" / "ad" / "ad01.h5"
    found = reached(cli, model, *data((640,), -20, 10), tmp_path)
    assert max(found[f]["max_abs"] for f in ("f.tflite", "f.onnx")) < 1e-3
    assert max(found[f]["max_abs"] for f in ("q.tflite", "q.onnx")) < 5
    for file in ("q.tflite", "q.onnx"):
        assert abs(found[file]["mse_drop"]) < 0.03 * found[file]["mse_reference"]
    assert found["q.tflite"]["size_bytes"] < 0.3 * found["f.tflite"]["size_bytes"]
