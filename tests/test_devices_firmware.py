"""Targets whose device only counts: instructions of a firmware on an emulated Cortex-M, outputs of this machine."""

import shutil

import jsonschema
import numpy as np
import pytest
from conftest import SETUP
from crafted import strided_model

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("qemu-system-arm", "arm-none-eabi-gcc", "gcc")),
    reason=f"needs qemu-system-arm and compilers: {SETUP}",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return strided_model(tmp_path_factory.mktemp("firmware") / "m.tflite")


def test_benchmark_counts_on_the_targets_core(cli, model, schema):
    answer = cli("benchmark", model, "--target", "nucleo-u575zi-q", "--target", "alif-ensemble-e7", "--repeats", 5,
                 "--json")  # fmt: skip
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.json, schema("benchmark"))
    (row,) = (r for r in answer.json["results"] if r["target"] == "nucleo-u575zi-q")
    assert (row["core"], row["method"], row["latency_ms"]) == ("cortex-m33", "emulated", None)
    assert 2000 < row["instructions"] < 20_000
    assert row["runtime_version"].startswith("bakenn 1.0.0, gcc ")
    assert row["runtime_version"].endswith(" -O3, without SOFTMAX")
    assert "instructions are a tripwire, not a speed: published times of 4 networks of MLPerf Tiny" in answer.err
    assert "cycles an instruction on a cortex-m33" in answer.err
    assert "(bakenn plans CMSIS-NN for the DSP extension, not for the Helium of a Cortex-M55)" in answer.err


def test_validate_counts_where_a_limit_is_set(cli, model, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(2).uniform(-6, 6, (8, 8, 8, 2)).astype(np.float32))
    given = (
        "validate",
        model,
        "--reference",
        model,
        "--data",
        tmp_path / "d.npz",
        "--target",
        "nucleo-l4r5zi",
        "--json",
    )
    answer = cli(*given, "--limit", "instructions=1000")
    checks = {c["name"]: c for c in answer.json["checks"]}
    assert answer.code == 6, answer.err
    assert (checks["instructions"]["verdict"], checks["instructions"]["method"]) == ("fail", "emulated")
    assert checks["instructions"]["why"].startswith("cortex-m4, qemu-system-arm ")
    assert checks["flips"]["method"] == "measured-host"  # outputs are not the firmware's
    assert "instructions" not in {c["name"] for c in cli(*given).json["checks"]}
