"""`ssh` devices against a real sshd on loopback, and agents there that die, hang and lie."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import sshd
from conftest import SETUP, samples

from edgedl import artifacts, data, devices, worker
from edgedl.devices import sysroot
from edgedl.devices.ssh import Options, Ssh
from edgedl.errors import InputError, WorkerError
from edgedl.validation import on_device
from edgedl.validation.evaluate import Setting

BROKEN = Path(__file__).parent / "broken_agent.py"
PROFILE = """
name = "My board"
source = "data sheet 1"
formats = ["tflite"]
[runtime.litert]
format = "tflite"
resolver = "xnnpack"
[cpu]
architecture = "aarch64"
[runner]
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    pytest.importorskip("asyncssh")
    if sshd.missing():
        pytest.skip(f"needs {sshd.missing()}: {SETUP}")
    running = sshd.start(tmp_path_factory.mktemp("sshd"))
    yield running
    running.stop()


@pytest.fixture
def base(tmp_path):
    """Where a device may write; empty again at the end of every test."""
    folder = tmp_path / "base"
    folder.mkdir()
    yield folder
    for _ in range(100):  # an agent whose connection is lost leaves by itself
        if not any(folder.iterdir()):
            break
        time.sleep(0.1)
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory):
    from edgedl import pipeline

    out = tmp_path_factory.mktemp("ssh") / "m.tflite"
    pipeline.export(model, out)
    return artifacts.read(out)[0]


@pytest.fixture
def inputs(tmp_path):
    np.save(tmp_path / "x.npy", samples(40)[0].astype(np.float32))
    return {"image": tmp_path / "x.npy"}


def opened(board, base, **more):
    return Ssh().open(Options(**{**board.keys, "folder": str(base), "python": sys.executable, **more}))


def broken(board, base, how, tmp_path):
    script = tmp_path / "broken-python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {BROKEN} {how} "$@"\n')
    script.chmod(0o755)
    return {"device": "ssh", "options": Options(**{**board.keys, "folder": str(base), "python": str(script)})}


def ran(artifact, inputs, place):
    setting = Setting(runtime=artifacts.runtime_for("tflite"), place=devices.Place(**place))
    return on_device.run(artifact, setting, inputs, repeats=5)


def profile(tmp_path, runner):
    path = tmp_path / "board.toml"
    path.write_text(PROFILE + runner)
    return path


def test_validate_on_a_board_measures_it(cli, board, base, artifact, data, tmp_path):
    target = profile(tmp_path, board.runner(folder=str(base), python=sys.executable))
    answer = cli("validate", artifact.path, "--reference", artifact.path, "--data", data / "test.npz",
                 "--target", target, "--limit", "latency_ms=10000", "--json")  # fmt: skip
    assert answer.code == 0, answer.err
    checks = {c["name"]: c for c in answer.json["checks"]}
    assert (checks["flips"]["measured"], checks["flips"]["method"]) == (0, "measured-device")
    for name in ("latency_ms", "latency_p90_ms", "load_ms", "first_inference_ms", "peak_rss_bytes"):
        assert checks[name]["method"] == "measured-device"
        assert checks[name]["measured"] > 0
    assert checks["latency_ms"]["verdict"] == "pass"
    assert f"outputs are those of litert 2.3.0 (xnnpack) on 127.0.0.1:{board.port}" in answer.err


def test_benchmark_measures_the_board(cli, board, base, artifact, tmp_path):
    target = profile(tmp_path, board.runner(folder=str(base), python=sys.executable))
    answer = cli("benchmark", artifact.path, "--target", target, "--repeats", 5, "--json")
    assert answer.code == 0, answer.err
    row = answer.json["results"][1]
    assert (row["target"], row["method"], row["repeats"]) == ("board", "measured-device", 5)
    assert row["latency_ms"] > 0
    assert "instructions" not in row


def test_a_board_that_is_an_emulator_gives_no_milliseconds(sysroots, board, base, artifact, inputs, tmp_path):
    root, site = sysroot.as_core("qemu-arm64", "cortex-a72"), sysroot.folder("qemu-arm64") / "sysroot" / "site"
    script = tmp_path / "pi-python"
    script.write_text(
        f"#!/bin/sh\nPYTHONHOME={root}/usr PYTHONPATH={site} exec qemu-aarch64 -cpu cortex-a72 -L {root} "
        f'{root}/usr/bin/python3.11 "$@"\n'
    )
    script.chmod(0o755)
    options = Options(**{**board.keys, "folder": str(base), "python": str(script)})
    found = ran(artifact, inputs, {"device": "ssh", "options": options})
    assert found.figures.method == "emulated"
    assert found.figures.times is None
    assert f"127.0.0.1:{board.port} (aarch64, emulated by qemu-aarch64)" in found.figures.where
    here = on_device.run_all(artifact, [Setting(runtime=artifacts.runtime_for("tflite"))], inputs, repeats=1)
    (there,) = found.outputs.values()
    (expected,) = here[0].outputs.values()
    np.testing.assert_allclose(np.load(there), np.load(expected), atol=1e-5)


def test_a_file_is_sent_once(board, base, tmp_path):
    options = Options(**{**board.keys, "folder": str(base), "python": sys.executable})
    with devices.Place(device="ssh", options=options).opened() as device:
        (tmp_path / "a.npy").write_bytes(b"content")
        sha256 = data.file_sha256(tmp_path / "a.npy")
        first = device.push(tmp_path / "a.npy", sha256)
        Path(first).write_bytes(b"marked")
        assert device.push(tmp_path / "a.npy", sha256) == first
        assert Path(first).read_bytes() == b"marked"


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"known_hosts": "wrong_hosts"}, InputError, "its host key is not the one in known_hosts"),
        ({"known_hosts": "none"}, InputError, "none: no such file"),
        ({"key": "other"}, InputError, "lets no one in with these keys"),
        ({"key": "config"}, InputError, "cannot be read: Invalid private key"),
        ({"port": 1}, WorkerError, "not reached, or lost"),
        ({"python": "/no/python"}, InputError, "there is no /no/python; name .runner. python"),
        ({"folder": "/no/folder"}, InputError, "mktemp failed: .*; name a .runner. folder"),
    ],
)
def test_what_keeps_a_board_from_being_reached_is_named(board, base, more, error, message):
    more = {k: str(board.folder / v) if k in ("known_hosts", "key") else v for k, v in more.items()}
    with pytest.raises(error, match=message):
        opened(board, base, **more)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("dies", r"the agent ended, or the connection was lost \(run\)"),
        ("lies", "has SHA-256 0000000000000000 there and"),
        ("changed", "the agent has SHA-256 .*or the agent there is another"),
        ("shape", r"gave float32 \(40, 2\) for output 'kind', not float32 \(40, 3\)"),
        ("mute", 'the agent did not introduce itself, but said {"hello": "world"}'),
    ],
)
def test_an_agent_that_dies_or_lies_is_one_error(board, base, artifact, inputs, how, message, tmp_path):
    with pytest.raises(WorkerError, match=message) as e:
        ran(artifact, inputs, broken(board, base, how, tmp_path))
    assert "\n" not in str(e.value)


def test_an_agent_that_hangs_is_ended(board, base, artifact, inputs, tmp_path):
    device = Ssh().open(broken(board, base, "hangs", tmp_path)["options"])
    with pytest.raises(WorkerError, match="made no sign in the time it has, and was ended"):
        device.call("run", {}, 0.5)
    assert not Path(f"/proc/{device._pid}").exists()
    device.close()


def test_a_lost_connection_leaves_nothing(board, base, artifact, inputs, tmp_path):
    device = Ssh().open(broken(board, base, "hangs", tmp_path)["options"])
    sessions = subprocess.run(["ps", "-o", "pid=", "--ppid", str(board.process.pid)], capture_output=True, text=True)
    threading.Timer(0.5, lambda: [os.kill(int(pid), signal.SIGKILL) for pid in sessions.stdout.split()]).start()
    with pytest.raises(WorkerError, match=f"127.0.0.1:{board.port}: .*lost"):
        device.call("run", {}, 60)
    device.close()


def test_a_full_disk_is_the_users_to_know_and_leaves_nothing(cli, board, base, artifact, data, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", base], check=True)
    try:
        target = profile(tmp_path, board.runner(folder=str(base), python=sys.executable))
        answer = cli("validate", artifact.path, "--reference", artifact.path, "--data", data / "test.npz",
                     "--target", target)  # fmt: skip
        assert (answer.code, answer.out) == (2, ""), answer.err
        assert f"127.0.0.1:{board.port}: the disk of the device is full at {base}/edgedl-" in answer.err
        assert list(base.iterdir()) == []
    finally:
        subprocess.run(["umount", base], check=True)


def test_a_runtime_that_the_board_lacks_is_named_with_what_installs_it(board, base, artifact, inputs, tmp_path):
    script = tmp_path / "bare-python"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    script.chmod(0o755)
    options = Options(**{**board.keys, "folder": str(base), "python": str(script)})
    with pytest.raises(InputError, match=r"litert does not start on .*No module .* There: pip install ai-edge-litert"):
        ran(artifact, inputs, {"device": "ssh", "options": options})


def test_devices_without_asyncssh_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with pytest.raises(worker.EdgedlError, match=r"pip install 'edgedl\[ssh\]'"):
        Ssh().open(Options(host="board"))
