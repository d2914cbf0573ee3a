"""Packages of the published ResNet8 on CIFAR-10."""

import re
from pathlib import Path

import numpy as np
import pytest
from emulation import needs_arm64, run_on_arm64
from packages import manifest_of, text_of

from edgedl import packaging, pipeline

pytestmark = pytest.mark.real
SHARED = Path(__file__).parents[2].parent / "shared" / "data"
CARD = 'purpose = "Tells ten things apart in pictures of 32 by 32."\nlicense = "Apache-2.0"\n'


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """By platform; golden samples from the test images."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    folder = tmp_path_factory.mktemp("packages")
    images = np.load(SHARED / "cifar10/test.npz")["x"][:64]
    np.savez(folder / "few.npz", x=images)
    (folder / "card.toml").write_text(CARD)
    pipeline.keygen(folder / "key")
    platforms = ("zip", "c", "python")
    made = pipeline.package(
        SHARED / "mlperf_tiny/ic/pretrainedResnet_quant.tflite", platforms=platforms, out=folder / "out",
        name="resnet8", data=folder / "few.npz", card=folder / "card.toml", sign=folder / "key",
    )  # fmt: skip
    for one in made:
        assert packaging.verify(one, folder / "key.pub")["findings"] == []
    return dict(zip(platforms, made, strict=True))


def test_what_every_app_carries_is_small(packages):
    found = manifest_of(packages["zip"])
    assert packages["zip"].stat().st_size < found["artifact"]["size_bytes"] + 40_000


def test_arena_is_that_of_tflm(packages):
    header = text_of(packages["c"], "resnet8_model.h")
    assert 50_000 < int(re.search(r"ARENA_BYTES (\d+)", header)[1]) < 60_000


@needs_arm64
@pytest.mark.parametrize(
    ("runtime", "parts"), [("tflite-runtime", ["tflite_runtime"]), ("litert", ["ai_edge_litert", "flatbuffers"])]
)
def test_wheel_gives_its_golden_outputs_on_an_emulated_arm64_core(packages, tmp_path, runtime, parts):
    found = run_on_arm64(packages["python"], "resnet8_model", tmp_path, *parts)
    assert (found["passed"], found["runtime"], found["golden_outputs_of"]) == (True, runtime, runtime)
    if runtime == "litert":
        assert found["outputs"][0]["difference"] == 0
