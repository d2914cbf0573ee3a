"""ResNet8 of MLPerf Tiny on CIFAR-10, from ../shared/data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgedl.agent import OnnxModel, TFLiteModel
from edgedl.types import ExportOptions
from edgedl_onnx.exporter import OnnxExporter

DATA = Path(__file__).parents[3].parent / "shared/data"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (DATA / "cifar10/test.npz").is_file(), reason=f"{DATA} is not there"),
]


@pytest.fixture(scope="module")
def resnet8(tmp_path_factory):
    """Paths of the int8 TFLite file, its calibration folder."""
    import keras
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("resnet8")
    model = keras.models.load_model(DATA / "mlperf_tiny/ic/pretrainedResnet.h5", compile=False)
    images = np.load(DATA / "cifar10/train.npz")["x"]
    chosen = images[np.random.default_rng(0).choice(len(images), 200, replace=False)].astype(np.float32)
    np.save(folder / f"{model.inputs[0].name}.npy", chosen)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = lambda: ([v[None]] for v in chosen)
    path = folder / "resnet8.tflite"
    path.write_bytes(converter.convert())
    return path, folder


@pytest.mark.filterwarnings("ignore:Statistics for quantized inputs")
def test_resnet8_int8_is_integer_and_has_the_tflite_files_top1(resnet8, tmp_path):
    source, calibration = resnet8
    result = OnnxExporter().export(
        Path("m"),
        tmp_path / "resnet8.onnx",
        scheme="static_wi8_ai8",
        source=source,
        calibration=calibration,
        options=ExportOptions(),
    )
    assert "10 of 10 convolutions and matrix products run as integer kernels in onnxruntime on this CPU" in result.notes
    assert result.path.stat().st_size < source.stat().st_size
    data = np.load(DATA / "cifar10/test.npz")
    images, labels = data["x"].astype(np.float32), data["y"].reshape(-1)
    models = [
        TFLiteModel({"artifact": str(source), "runtime": "litert"}, {}),
        OnnxModel({"artifact": str(result.path)}, {}),
    ]
    top1 = [np.array([_answer(model, image) for image in images]) for model in models]
    assert np.mean(top1[0] == top1[1]) >= 0.998
    assert np.mean(top1[1] == labels) >= 0.86


def _answer(model, image):
    model.feed([image[None]])
    return model.invoke()[0].argmax()
