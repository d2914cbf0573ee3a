"""ResNet8 in packages: how long one for every platform takes, and what an AAR adds in a store's download."""

import shutil
import time
import zlib

import pytest

from edgedl import pipeline
from edgedl.packaging import jvm

PLATFORMS = {"tflite": ["android", "c", "python", "zip"], "onnx": ["ios", "web"]}


@pytest.mark.real
@pytest.mark.skipif(not (shutil.which("kotlinc") and shutil.which("javac")), reason=f"needs compilers: {jvm.INSTALL}")
def test_packages_are_built_soon_and_an_aar_adds_little_to_the_model(shared, tmp_path):
    pytest.importorskip("tflite_micro", reason="needs: pip install tflite-micro")
    folder = shared / "mlperf_tiny" / "ic"
    models = {"tflite": folder / "pretrainedResnet_quant.tflite", "onnx": folder / "ic_float_tf2onnx.onnx"}
    (tmp_path / "cifar.toml").write_text(f'data = "{shared}/cifar10/test.npz"\nlabels = {list("abcdefghij")}\n')
    pipeline.keygen(tmp_path / "key")

    def build(format_, platforms, key):
        data = tmp_path / "cifar.toml" if format_ == "tflite" else None  # the .onnx takes channels first
        out = tmp_path / f"{format_}-{bool(key)}"
        return pipeline.package(models[format_], platforms=platforms, out=out, data=data, name="resnet8", sign=key)

    start = time.monotonic()
    made = [path for format_, platforms in PLATFORMS.items() for path in build(format_, platforms, tmp_path / "key")]
    assert time.monotonic() - start <= 15
    plain, signed = build("tflite", ["android"], None)[0], next(path for path in made if path.suffix == ".aar")
    model_bytes = len(zlib.compress(models["tflite"].read_bytes(), 9))
    for package, most in ((plain, 12_000), (signed, 17_500)):
        assert len(zlib.compress(package.read_bytes(), 9)) - model_bytes <= most
