"""Emulated Arm cores: their outputs, their instruction counts, and what becomes of an agent that dies under QEMU."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import jsonschema
import numpy as np
import orphans
import pytest
from conftest import SETUP, samples

from edgedl import artifacts, devices, targets
from edgedl.devices import qemu
from edgedl.errors import InputError, WorkerError
from edgedl.validation import benchmark


@pytest.fixture(scope="module")
def int8(model, data, tmp_path_factory):
    """The small classifier in int8."""
    from edgedl import pipeline

    out = tmp_path_factory.mktemp("int8") / "int8.tflite"
    pipeline.export(model, out, scheme="int8", calibration_data=data / "train.npz")
    return out


@pytest.fixture(scope="module")
def float32(model, tmp_path_factory):
    """The same in float: tflite-runtime 2.14 ends with SIGSEGV on Arm in this int8 file, which litert runs."""
    from edgedl import pipeline

    out = tmp_path_factory.mktemp("float32") / "float32.tflite"
    pipeline.export(model, out)
    return out


@pytest.fixture(scope="module")
def core(sysroots):
    place, missing = devices.place_of(targets.load("raspberry-pi-4"))
    assert not missing
    with place.opened() as device:
        yield device


def asked(artifact, tmp_path, **more):
    np.save(tmp_path / "x.npy", samples(4)[0].astype(np.float32))
    inputs = {"image": str(tmp_path / "x.npy")}
    return {"artifact": str(artifact), "runtime": "litert", "inputs": inputs, "threads": 1, **more}


def test_validate_runs_on_the_cores_of_its_targets(cli, sysroots, int8, model, data):
    given = [part for t in ("raspberry-pi-4", "generic-android-arm64", "raspberry-pi-5") for part in ("--target", t)]
    answer = cli("validate", int8, "--reference", model, "--data", data / "test.npz", *given, "--json")
    assert answer.code == 0, answer.err
    checks = {(c["name"], c["target"]): c for c in answer.json["checks"]}
    for name in ("accuracy", "accuracy_drop", "flips", "max_abs", "instructions"):
        assert checks[name, "raspberry-pi-4"]["method"] == "emulated"
    assert checks["accuracy_reference", "raspberry-pi-4"]["method"] == "measured-host"
    counted = {t: checks["instructions", t]["measured"] for t in ("raspberry-pi-4", "raspberry-pi-5")}
    assert 10_000 < counted["raspberry-pi-5"] < counted["raspberry-pi-4"] < 10_000_000  # it has dot products
    assert checks["instructions", "generic-android-arm64"]["measured"] == counted["raspberry-pi-4"]  # one device
    assert not any(name.endswith("_ms") or name == "peak_rss_bytes" for name, _ in checks)
    why = checks["instructions", "raspberry-pi-5"]["why"]
    assert why.startswith("cortex-a76, qemu-aarch64 ")
    assert "simd_fp" in why
    assert "target raspberry-pi-5: outputs are those of litert 2.3.0 (xnnpack) on an emulated cortex-a76" in answer.err


def test_the_core_is_an_arm_and_says_that_it_is_emulated(core):
    told = core.call("info", {"runtimes": ["litert", "tflite-runtime", "onnxruntime"]}, 100)
    assert (told["machine"], told["emulator"]) == ("aarch64", "qemu-aarch64")
    assert all(r["version"] for r in told["runtimes"].values()), told["runtimes"]


@pytest.fixture(scope="module")
def counts(core, int8):
    """Of three runs, on the input that `benchmark` draws: a few instructions depend on the values."""
    drawn = benchmark.random_inputs(artifacts.read(int8)[0], 0)
    inputs = {name: str(path) for name, path in drawn.items()}
    wanted = {"artifact": str(int8), "runtime": "litert", "inputs": inputs, "threads": 1}
    return [core.count(wanted, 200) for _ in range(3)]


def test_the_same_instructions_are_counted_in_three_runs(counts):
    assert counts[0] == counts[1] == counts[2]
    assert sum(counts[0].classes.values()) == counts[0].instructions
    assert counts[0].classes["simd_fp"] > 1000
    assert (counts[0].core, counts[0].runtime, counts[0].threads) == ("cortex-a72", "litert 2.3.0", 1)


def test_the_gate_holds_the_count_of_an_earlier_run(cli, sysroots, counts, int8, schema, tmp_path):
    earlier = dataclasses.asdict(counts[0]) | {"artifact": "earlier.tflite", "target": "raspberry-pi-4"}
    earlier |= {"resolver": "xnnpack", "runtime_version": counts[0].runtime}
    lower = earlier | {"instructions": int(0.98 * counts[0].instructions)}
    (tmp_path / "baseline.json").write_text(json.dumps({"results": [lower]}))
    answer = cli("benchmark", int8, "--target", "raspberry-pi-4", "--gate", tmp_path / "baseline.json", "--repeats", 5,
                 "--json")  # fmt: skip
    assert answer.code == 6, answer.err
    jsonschema.validate(answer.json, schema("benchmark"))
    assert [r["method"] for r in answer.json["results"]] == ["measured-host", "emulated"]
    assert answer.json["results"][1]["latency_ms"] is None
    (entry,) = answer.json["gate"]["entries"]
    assert entry["measured"] == pytest.approx(counts[0].instructions, rel=1e-3)  # another request, another memory
    assert entry["growth"] == pytest.approx(0.0204, abs=0.001)


def test_a_truncated_file_never_reaches_a_device(cli, sysroots, int8, data, tmp_path, monkeypatch):
    """tflite-runtime crashes or hangs on one; litert, which does not, reads it first."""
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(int8.read_bytes()[: int8.stat().st_size // 2])
    monkeypatch.setattr(devices.Place, "opened", lambda self: pytest.fail("a device was opened"))
    given = ("--data", data / "test.npz", "--runtime", "tflite-runtime", "--target", "raspberry-pi-4")
    answer = cli("validate", cut, "--reference", int8, *given)
    assert (answer.code, answer.out) == (2, "")
    assert f"{cut}: " in answer.err


def test_a_32_bit_core_runs_tflite_runtime(sysroots, float32, tmp_path):
    place = devices.Place(device="qemu", options=qemu.Options(architecture="armv7l", cpu="cortex-a7"))
    if missing := place.plugin.missing(place.options):
        pytest.skip(f"needs {missing}: {SETUP}")
    with place.opened() as device:
        assert device.call("info", {"runtimes": ["tflite-runtime"]}, 100)["machine"] == "armv7l"
        wanted = asked(float32, tmp_path, runtime="tflite-runtime")
        device.call("run", wanted | {"outputs": {"kind": str(tmp_path / "y.npy")}}, 100)
        assert np.load(tmp_path / "y.npy").sum(1) == pytest.approx(np.ones(4), abs=0.02)
        count = device.count(wanted, 100)
        assert (count.core, count.classes) == ("cortex-a7", {})
        assert count.instructions > 10_000


def test_a_counting_emulator_ends_with_edgedl(tmp_path):
    code = (
        "import os; from edgedl.devices.qemu import QemuDevice; core = QemuDevice.__new__(QemuDevice)\n"
        f"core._environment = dict(os.environ); core._once({orphans.WRITES_ITS_ID}, 100)"
    )
    assert not orphans.outlives(code, tmp_path)


def test_more_threads_are_not_counted(core, int8, tmp_path):
    with pytest.raises(InputError, match="threads must be 1, got 2"):
        core.count(asked(int8, tmp_path) | {"threads": 2}, 100)


def test_a_core_that_nobody_described_is_refused(sysroots, tmp_path):
    place, _ = devices.place_of(targets.load("raspberry-pi-4"))
    other = devices.Place(device="qemu", options=type(place.options)(cpu="cortex-a77"))
    with pytest.raises(
        InputError, match=r"cpu 'cortex-a77' \(did you mean 'cortex-a7.'\?\) is not one of qemu-arm64: cor"
    ):
        other.plugin.open(other.options)


def test_an_agent_that_dies_on_the_core_is_one_error_and_no_process_is_left(core):  # the last to use it
    os.kill(core.child.process.pid, signal.SIGSEGV)
    with pytest.raises(WorkerError, match="worker 'qemu-arm64-cortex-a72' was killed by SIGSEGV in info"):
        core.call("info", {}, 100)
    assert not Path(f"/proc/{core.child.process.pid}").exists()
