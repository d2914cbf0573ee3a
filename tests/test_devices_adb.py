"""`adb` devices: the real client against a device side on loopback whose root holds no Python, no /usr."""

import os
import subprocess
import tarfile
import threading
import time

import jsonschema
import numpy as np
import phone as phones
import pytest
from conftest import SETUP, samples

from edgedl import artifacts
from edgedl.devices import adb, benchmark_model
from edgedl.devices.adb import Adb, Options
from edgedl.errors import InputError, WorkerError

PROFILE = """
name = "My phone"
source = "data sheet 1"
formats = ["tflite"]
[runtime.litert]
format = "tflite"
resolver = "xnnpack"
[cpu]
architecture = "aarch64"
[runner]
device = "adb"
serial = "{serial}"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The phone's storage, and an adb server of our own."""
    if phones.missing():
        pytest.skip(f"needs {phones.missing()}: {SETUP}")
    if os.geteuid() != 0:
        pytest.skip("needs root, to chroot")
    made = tmp_path_factory.mktemp("phone")
    phones.make_root(made)
    if subprocess.run(["mount", "-t", "proc", "proc", made / "proc"], capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(20_000 + os.getpid() % 10_000))
        yield made
        subprocess.run(["adb", "kill-server"], capture_output=True)
    subprocess.run(["umount", made / "proc"], check=True)


@pytest.fixture
def phone(root, sysroots):
    """Plugged in; nothing lies on it when the test is over."""
    plugged = phones.start(root)
    yield plugged
    for _ in range(100):
        if not any(plugged.folder.iterdir()):
            break
        time.sleep(0.1)
    assert list(plugged.folder.iterdir()) == []
    plugged.unplug()


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory):
    from edgedl import pipeline

    out = tmp_path_factory.mktemp("adb") / "m.tflite"
    pipeline.export(model, out)
    return artifacts.read(out)[0]


def profile(tmp_path, phone, more=""):
    path = tmp_path / "phone.toml"
    path.write_text(PROFILE.format(serial=phone.serial) + more)
    return path


def test_validate_runs_on_a_phone_without_python(cli, phone, artifact, data, tmp_path):
    assert not (phone.root / "usr").exists()
    parts = [p for p in phone.root.iterdir() if p.name not in ("proc", "dev")]
    assert not [found for part in parts for found in part.rglob("*python*")]
    answer = cli("validate", artifact.path, "--reference", artifact.path, "--data", data / "test.npz",
                 "--target", profile(tmp_path, phone), "--json")  # fmt: skip
    assert answer.code == 0, answer.err
    checks = {c["name"]: c for c in answer.json["checks"]}
    assert (checks["flips"]["measured"], checks["flips"]["method"]) == (0, "emulated")  # it says so by ro.boot.qemu
    assert checks["max_abs"]["measured"] < 1e-5
    assert "latency_ms" not in checks
    assert f"litert 2.3.0 (xnnpack) on phone {phone.serial} (aarch64, emulated)" in answer.err


def test_an_unplugged_phone_is_one_error_and_is_left_clean(phone, artifact, tmp_path):
    device = Adb().open(Options(serial=phone.serial))
    np.save(tmp_path / "x.npy", samples(1)[0].astype(np.float32))
    there = {path: device.push(path, artifacts.file_sha256(path)) for path in (artifact.path, tmp_path / "x.npy")}
    asked = {"artifact": there[artifact.path], "inputs": {"image": there[tmp_path / "x.npy"]}, "runtime": "litert",
             "warmup": 0, "repeats": 10**9}  # fmt: skip
    threading.Timer(1, phone.unplug).start()
    with pytest.raises(WorkerError, match=f"phone {phone.serial}: the agent ended, or the connection was lost"):
        device.call("run", asked, 60)
    device.close()


def test_a_full_phone_is_the_users_to_know(cli, phone, artifact, data, tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,uid=2000", "none", phone.folder], check=True)
    try:
        answer = cli("validate", artifact.path, "--reference", artifact.path, "--data", data / "test.npz",
                     "--target", profile(tmp_path, phone))  # fmt: skip
        assert (answer.code, answer.out) == (2, "")
        assert f"phone {phone.serial}: the disk of the device is full at /data/local/tmp/edgedl-" in answer.err
        assert "sysroot.tar has 1" in answer.err
        assert list(phone.folder.iterdir()) == []
    finally:
        subprocess.run(["umount", phone.folder], check=True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"folder": "/system"}, "mktemp failed: .*; name a .runner. folder that may be written in"),
        ({"python": "/system/bin/python3"}, "there is no /system/bin/python3; name .runner. python"),
    ],
)
def test_a_wrong_runner_is_named(phone, more, message):
    with pytest.raises(InputError, match=f"phone {phone.serial}: {message}"):
        Adb().open(Options(serial=phone.serial, **more))


def test_a_phone_that_is_not_there_is_named(root):
    with pytest.raises(InputError, match=r"phone 127\.0\.0\.1:9: adb does not reach it"):
        Adb().open(Options(serial="127.0.0.1:9"))


def test_without_a_sysroot_the_command_that_sets_it_up_is_named(phone, monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEDL_DEVICES_FOLDER", str(tmp_path))
    with pytest.raises(InputError, match=r"has no Python, .* Try: edgedl devices setup qemu-arm64"):
        Adb().open(Options(serial=phone.serial))


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        ('echo "error: device unauthorized." >&2; exit 1', InputError, "allow USB debugging on its screen"),
        ('echo "error: device offline" >&2; exit 1', WorkerError, "adb does not reach it .device offline."),
        ('echo "error: device not found" >&2; exit 1', InputError, "adb does not reach it .device not found."),
    ],
)
def test_what_the_client_says_of_a_phone_is_passed_on(tmp_path, script, error, message):
    client = tmp_path / "adb"
    client.write_text(f"#!/bin/sh\n{script}\n")
    client.chmod(0o755)
    with pytest.raises(error, match=f"phone XYZ: .*{message}"):
        Adb().open(Options(serial="XYZ", adb=str(client)))


@pytest.mark.parametrize(
    ("attached", "message"), [("", "adb has no phone attached"), ("A\tdevice\nB\tdevice", "adb has A, B attached")]
)
def test_without_a_serial_there_must_be_one_phone(tmp_path, attached, message):
    client = tmp_path / "adb"
    client.write_text(f"#!/bin/sh\nprintf 'List of devices attached\\n{attached}\\n'\n")
    client.chmod(0o755)
    with pytest.raises(InputError, match=message):
        Adb().open(Options(adb=str(client)))


def test_the_only_phone_is_known_by_its_serial(tmp_path):
    client = tmp_path / "adb"
    client.write_text("#!/bin/sh\n[ $1 = devices ] && printf 'List\\nA1\\tdevice\\n' || echo device\n")
    client.chmod(0o755)
    assert Adb().board(Options(adb=str(client))) == "A1" == Adb().board(Options(serial="A1"))


def test_without_a_client_its_package_is_named():
    with pytest.raises(InputError, match=r"no-adb: not on this machine\. Try: sudo apt-get install adb"):
        Adb().open(Options(adb="no-adb"))


def test_a_runtime_that_cannot_be_sent_is_refused():
    with pytest.raises(ValueError, match="runtimes: tflm is none of litert, tflite-runtime, onnxruntime"):
        Options(runtimes=("tflm",))


def test_only_what_runs_is_sent(sysroots, tmp_path):
    adb.pack("qemu-arm64", ("litert",), tmp_path / "s.tar")
    with tarfile.open(tmp_path / "s.tar") as tar:
        names = tar.getnames()
    assert {"root/usr/bin/python3.11", "root/lib/ld-linux-aarch64.so.1", "site/numpy/__init__.py"} <= set(names)
    assert not any("/tests" in n or n.startswith(("site/onnxruntime", "site/tflite_runtime")) for n in names)
    assert (tmp_path / "s.tar").stat().st_size < 150e6


# What a benchmark_model of TensorFlow 2.19 prints, but for the numbers; a shell script says it in its place.
SAID = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Graph: [/data/local/tmp/m.tflite]
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 0.098496
INFO: Initialized session in 2.579ms.
INFO: Running benchmark for at least 10 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=1000 first=903 curr=488 min=470 max=903 avg=496.2 std=30 p5=480 median=490 p95=520

INFO: Running benchmark for at least 100 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=2050 first=486 curr=487 min=469 max=1210 avg=4.87e+02 std=24 p5=475 median=482 p95=511

INFO: Inference timings in us: Init: 2579, First inference: 903, Warmup (avg): 496.2, Inference (avg): 4.87e+02
INFO: Overall peak memory footprint (MB) via periodic monitoring: 12.25"""


@pytest.fixture
def bought_phone(phone):
    """One that does not say that it is emulated."""
    prop = phone.root / "system" / "bin" / "getprop"
    before = prop.read_text()
    prop.write_text("#!/system/bin/sh\ntrue\n")
    yield phone
    prop.write_text(before)


def program(path, says=SAID, then="exit 0"):
    """A stand-in for benchmark_model: it prints what that does, and what it was asked."""
    path.write_text(f"#!/system/bin/sh\necho \"$@\" >>/data/local/tmp/asked\ncat <<'END'\n{says}\nEND\n{then}\n")
    return path


def asked_flags(phone):
    asked = phone.folder / "asked"
    lines = asked.read_text().splitlines()
    asked.unlink()
    return [line.split() for line in lines]


def test_benchmark_model_is_sent_run_and_read(cli, bought_phone, artifact, tmp_path, schema):
    brought = program(tmp_path / "benchmark_model")
    target = profile(tmp_path, bought_phone, f"benchmark_model = '{brought}'\n")
    answer = cli("benchmark", artifact.path, "--target", target, "--threads", "2", "--repeats", "100", "--json")
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.json, schema("benchmark"))
    row = answer.json["results"][1]
    assert (row["method"], row["device"]) == ("measured-device", f"phone {bought_phone.serial}, by benchmark_model")
    assert (row["latency_ms"], row["load_ms"], row["first_inference_ms"]) == (0.482, 2.579, 0.903)
    assert (row["repeats"], row["peak_rss_bytes"]) == (2050, 12.25 * 1024**2)
    timed, watched = asked_flags(bought_phone)
    assert {"--num_threads=2", "--num_runs=100", "--warmup_runs=10", "--use_xnnpack=true"} <= set(timed)
    assert timed[0].startswith("--graph=/data/local/tmp/edgedl-")
    assert "--report_peak_memory_footprint=true" in watched
    assert "--report_peak_memory_footprint=true" not in timed  # watching costs time


def test_validate_judges_its_times_and_outputs_of_this_machine(cli, bought_phone, artifact, data, tmp_path):
    there = program(bought_phone.folder / "mine")
    there.chmod(0o755)
    target = profile(tmp_path, bought_phone, "benchmark_model = '/data/local/tmp/mine'\n")
    given = ("--reference", artifact.path, "--data", data / "test.npz", "--target", target, "--limit", "latency_ms=0.4")
    answer = cli("validate", artifact.path, *given, "--json")
    there.unlink()
    asked_flags(bought_phone)
    assert answer.code == 6, answer.err
    checks = {c["name"]: c for c in answer.json["checks"]}
    assert (checks["latency_ms"]["measured"], checks["latency_ms"]["method"]) == (0.482, "measured-device")
    assert checks["latency_ms"]["why"].endswith("by benchmark_model, 2050 inferences, their median")
    assert checks["flips"]["method"] == "measured-host"
    assert "by benchmark_model, outputs this machine's" in answer.err


@pytest.mark.parametrize(
    ("says", "then", "error", "message"),
    [
        ("INFO: STARTING!\nERROR: Failed to load model\nERROR: Benchmarking failed.", "exit 1", InputError,
         "it ended with 1: ERROR: Failed to load model$"),
        ("WARN: Unconsumed cmdline flags: --use_xnnpack=true", "exit 0", InputError,
         "this benchmark_model has no --use_xnnpack=true; take a newer one"),
        ("INFO: STARTING!", "kill -SEGV $$", WorkerError, "it was killed by SIGSEGV; it last said: .*INFO: STARTING!"),
        ("hello", "exit 0", InputError, "what it prints is not understood, .*: hello"),
        ("INFO: STARTING!", "sleep 60", WorkerError, "no answer to adb shell in 2 s"),
    ],
)  # fmt: skip
def test_a_benchmark_model_that_fails_is_one_error(bought_phone, artifact, tmp_path, says, then, error, message):
    brought = program(tmp_path / "benchmark_model", says, then)
    device = Adb().open(Options(serial=bought_phone.serial, benchmark_model=str(brought)))
    with pytest.raises(error, match=message):
        device.time({"artifact": str(artifact.path), "threads": 1, "resolver": "xnnpack"}, 5, 2)
    device.close()
    asked_flags(bought_phone)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"benchmark_model": "/no/where"}, "benchmark_model: /no/where is neither a file here nor one on phone"),
        ({"benchmark_model": "x", "emulated": True}, "is an emulator, whose times say nothing"),
    ],
)
def test_a_benchmark_model_that_cannot_be_used_is_named(bought_phone, more, message):
    with pytest.raises(InputError, match=message):
        Adb().open(Options(serial=bought_phone.serial, **more))


def test_a_program_that_cannot_be_executed_is_named(bought_phone, artifact):
    there = program(bought_phone.folder / "mine")
    there.chmod(0o644)
    device = Adb().open(Options(serial=bought_phone.serial, benchmark_model="/data/local/tmp/mine"))
    with pytest.raises(InputError, match=r"/data/local/tmp/mine cannot be executed there: .*Permission denied"):
        device.time({"artifact": str(artifact.path), "threads": 1}, 5, 20)
    with pytest.raises(InputError, match=r"benchmark_model runs \.tflite files, not m\.onnx"):
        device.time({"artifact": "m.onnx", "threads": 1}, 5, 20)
    device.close()
    there.unlink()


TIMINGS = "INFO: Inference timings in us: Init: 5617, First inference: 119340, Warmup (avg): 107466, Inference (avg): "


@pytest.mark.parametrize(
    ("runs", "average", "times"),
    [
        (
            "first=103238 curr=102789 min=102639 max=103238 avg=102879 std=119",
            "102879",
            (102.879, "mean"),
        ),  # before 2.15
        ("curr=102879(all same)", "102879", (102.879, "mean")),
        ("curr=1357602 p5=1357602 median=1357602 p95=1357602", "1.3576e+06", (1357.602, "median")),
    ],
)
def test_what_older_and_newer_ones_print_is_read(runs, average, times):
    read = benchmark_model.read(f"INFO: count=5 curr=1\nINFO: count=50 {runs}\n\n{TIMINGS}{average}\n", "", "a phone")
    assert (read.latency_ms, read.kind) == times
    assert (read.load_ms, read.first_inference_ms, read.inferences, read.peak_rss_bytes) == (5.617, 119.34, 50, None)


@pytest.mark.parametrize("text", ["", f"INFO: count=0\n{TIMINGS}-nan\n", f"{TIMINGS}1\n"])
def test_no_number_is_made_of_what_is_none(text):
    with pytest.raises(InputError, match="a phone: what it prints is not understood"):
        benchmark_model.read(text, "", "a phone")
