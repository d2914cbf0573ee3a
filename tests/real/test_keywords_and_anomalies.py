"""The keyword model (a Keras 2 .h5) and the autoencoder of MLPerf Tiny on seeded input: parity, and no accuracy claim."""

import numpy as np
import pytest

pytestmark = pytest.mark.real

MODELS = {"kws": ("kws/kws_model_qualcomm_v1.3.h5", 0.13), "ad": ("ad/ad01.h5", 0.35)}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Seeded data for a model by the shape of its input: (training, test) .npz, no targets."""

    def make(shape):
        folder = tmp_path_factory.mktemp("inputs")
        for seed, name in enumerate(("train", "test")):
            x = np.random.default_rng(seed).normal(0, 1, (200, *shape)).astype(np.float32)
            np.savez(folder / f"{name}.npz", x=x)
        return folder / "train.npz", folder / "test.npz"

    return make


@pytest.mark.parametrize("name", MODELS)
def test_carry_over_and_export_agree_with_the_float_model(cli, shared, inputs, tmp_path, name):
    path, tolerance = MODELS[name]
    model = shared / "mlperf_tiny" / path
    (spec,) = cli("inspect", model, "--json").json["inputs"]
    train, test = inputs([size for size in spec["shape"][1:]])
    reached = {}
    for file, scheme in (("f.tflite", "fp32"), ("f.onnx", "fp32"), ("q.tflite", "int8"), ("q.onnx", "int8")):
        given = ("--calibration-data", train) if scheme == "int8" else ()
        made = cli("export", model, "--scheme", scheme, *given, "-o", tmp_path / file)
        assert made.code == 0, made.err
        answer = cli("validate", tmp_path / file, "--reference", model, "--data", test, "--json")
        assert answer.code == 0, answer.err
        checks = {c["name"]: c for c in answer.json["checks"]}
        assert not [n for n in checks if n.startswith("accuracy")] or name == "ad"
        reached[file] = checks["max_abs"]["measured"]
    assert max(reached["f.tflite"], reached["f.onnx"]) < 1e-4
    assert max(reached["q.tflite"], reached["q.onnx"]) < tolerance
    assert (tmp_path / "q.tflite").stat().st_size < 0.5 * (tmp_path / "f.tflite").stat().st_size
