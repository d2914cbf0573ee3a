"""What a device over a link is asked, with a shell of this machine in its place."""

import shutil
import subprocess
import threading

import numpy as np
import pytest

from edgedl import agent, data
from edgedl.devices import remote
from edgedl.errors import InputError


class Shell:
    """A link to a shell whose home is a folder of the test."""

    where = "board"

    def __init__(self, home):
        self.home = home

    def run(self, command, timeout_s=remote.COMMAND_S):
        done = subprocess.run(["sh", "-c", command], env={"HOME": str(self.home)}, capture_output=True, text=True)
        return done.stdout

    def put(self, local, remote_path):
        shutil.copy(local, remote_path)

    get = put


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def test_a_python_in_the_home_there_is_found(shell, tmp_path):
    (tmp_path / "my venv").mkdir()
    python = tmp_path / "my venv" / "python"
    python.write_text("#!/bin/sh\necho started\n")
    python.chmod(0o755)
    program = remote.installed_python(shell, "~/my venv/python")
    assert shell.run(f"exec {program} -u") == "started\n"


@pytest.mark.parametrize("python", ["~/no/python", "no~/python", "$HOME/python; echo x"])
def test_a_python_that_is_not_there_is_named(shell, python):
    with pytest.raises(InputError) as e:
        remote.installed_python(shell, python)
    assert str(e.value) == f"board: there is no {python}; name [runner] python"


def test_a_folder_in_the_home_there_is_written_in(shell, tmp_path):
    (tmp_path / "my data").mkdir()
    made = remote.folder_in(shell, "~/my data")
    assert made.startswith(f"{tmp_path}/my data/edgedl-")


class Patient(remote.RemoteDevice):
    """Answers in this process, and notes how long it may take."""

    def __init__(self, link):
        self._link, self._calls, self._busy, self._pushed = link, 0, threading.RLock(), {}
        self.folder = str(link.home)
        self.times_s = {}

    def _wait(self, verb, folder, timeout_s):
        self.times_s[verb] = timeout_s
        agent.answer(folder)


def test_a_hash_may_take_as_long_as_the_file_is_large(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what the agent sets is put back
    monkeypatch.setenv("EDGEDL_PROGRESS", "")
    monkeypatch.setitem(agent.VERBS, "run", lambda request: {"y": np.save(request["outputs"]["y"], np.zeros(10_000))})
    device = Patient(shell)
    file = tmp_path / "m.tflite"
    file.write_bytes(bytes(500_000))
    device.push(file, data.file_sha256(file))
    assert device.times_s == {"digest": remote.COMMAND_S + 10}
    device.call("run", {"outputs": {"y": str(tmp_path / "y.npy")}}, 7)
    assert device.times_s == {"digest": remote.COMMAND_S + (80_000 + 128) / 50_000, "run": 7}
