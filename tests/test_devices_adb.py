"""`adb` devices: the real client against a device side on loopback whose root holds no Python, no /usr."""

import os
import subprocess
import tarfile
import threading
import time

import numpy as np
import phone as phones
import pytest
from conftest import SETUP, samples

from edgedl import artifacts
from edgedl.devices import adb
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
