"""ResNet8 in an AAR: what it adds to the model in a store's download."""

import shutil
import zlib

import pytest

from edgedl import pipeline
from edgedl.packaging import jvm


@pytest.mark.real
@pytest.mark.skipif(not (shutil.which("kotlinc") and shutil.which("javac")), reason=f"needs compilers: {jvm.INSTALL}")
def test_an_aar_adds_little_to_the_model(shared, tmp_path):
    model = shared / "mlperf_tiny" / "ic" / "pretrainedResnet_quant.tflite"
    (tmp_path / "cifar.toml").write_text(f'data = "{shared}/cifar10/test.npz"\nlabels = {list("abcdefghij")}\n')
    pipeline.keygen(tmp_path / "key")
    for key, most in ((None, 12_000), (tmp_path / "key", 17_500)):
        out = tmp_path / str(most)
        (made,) = pipeline.package(
            model, platforms=["android"], out=out, data=tmp_path / "cifar.toml", name="resnet8", sign=key
        )
        added = len(zlib.compress(made.read_bytes(), 9)) - len(zlib.compress(model.read_bytes(), 9))
        assert added <= most
