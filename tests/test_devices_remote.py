"""What a device over a link is asked, with a shell of this machine in its place."""

import subprocess

import pytest

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
