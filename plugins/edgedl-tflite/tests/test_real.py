from pathlib import Path

import numpy as np
import pytest

from edgedl.types import ExportOptions
from edgedl_tflite.describe import describe
from edgedl_tflite.exporter import TFLiteExporter

DATA = Path(__file__).parents[4] / "shared/data"
MODEL = DATA / "mlperf_tiny/ic/pretrainedResnet.h5"
pytestmark = [pytest.mark.real, pytest.mark.skipif(not MODEL.exists(), reason=f"{MODEL} is not there")]


def test_official_metadata_and_labels_are_read():
    found = describe(str(DATA / "mobilenet/mobilenet_v1_0.25_128_quant.tflite")).metadata
    assert len(found["labels"]) == 1001
    assert found["labels"][0] == "background"
    assert (found["inputs"][0]["image"], found["inputs"][0]["mean"]) == (True, [127.5])


def test_resnet8_int8_keeps_its_accuracy(tmp_path, folder_of, litert):
    rng = np.random.default_rng(0)
    with np.load(DATA / "cifar10/train.npz") as train, np.load(DATA / "cifar10/test.npz") as test:
        chosen = train["x"][rng.choice(len(train["x"]), 200, replace=False)].astype(np.float32)
        x, y = test["x"][:2000].astype(np.float32), test["y"][:2000].ravel()
    out = tmp_path / "resnet8.tflite"
    made = TFLiteExporter().export(
        MODEL,
        out,
        scheme="static_wi8_ai8",
        source=None,
        calibration=folder_of({"input_1": chosen}),
        options=ExportOptions(io="int8"),
    )
    assert "stays float" not in " ".join(made.notes)
    assert out.stat().st_size < 98_464  # TFLiteConverter's own
    info = describe(str(out))
    assert not info.metadata["float_ops"]
    answers = litert(out, {"input_1": x})[info.outputs[0].name]
    assert np.mean(answers.argmax(-1) == y) > 0.855  # float has 86.86 % on all 5,000
