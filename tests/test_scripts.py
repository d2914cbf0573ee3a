"""`scripts/setup` with interpreters that only pretend: which one it takes, what it installs, what it leaves out."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHIM = "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n"
PRETENDING = """#!/bin/sh
# Answers as Python {version} would, and writes down what pip was asked for.
case "$*" in
  *"print("*) echo {version} ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *"pip install"*) echo {version} "$*" >> "$(dirname "$0")/../../pip.log" ;;
esac
"""
NAMES = ("python3.11", "python3", "python3.12", "python3.13")


@pytest.fixture
def setup(tmp_path):
    """`setup(python3="3.12", ...)` runs a copy of scripts/setup where the other interpreters are shims."""
    (tmp_path / "bin").mkdir()
    for path in ("scripts/setup", "pyproject.toml", "constraints.txt", "plugins/edgedl-tflite/pyproject.toml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)

    def run(environment=(), *options, **versions):
        for name in NAMES:
            version = versions.get(name.replace(".", "_"))
            (tmp_path / "bin" / name).write_text(PRETENDING.format(version=version) if version else SHIM)
            (tmp_path / "bin" / name).chmod(0o755)
        path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
        given = {k: v for k, v in os.environ.items() if k != "PYTHON"} | {"PATH": path} | dict(environment)
        log = tmp_path / "pip.log"
        log.unlink(missing_ok=True)
        command = [tmp_path / "scripts" / "setup", *options]
        done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
        return done, log.read_text().splitlines() if log.exists() else []

    return run


def test_setup_takes_the_first_python_that_starts(setup):
    done, pip = setup(python3="3.12", python3_13="3.13")
    assert done.returncode == 0, done.stderr
    assert len(pip) == 1
    assert pip[0].startswith("3.12 -m pip install")


def test_setup_pins_everything_on_3_11_and_only_there(setup):
    (pinned,) = setup(python3_11="3.11")[1]
    assert "-c constraints.txt" in pinned
    assert "tflite-runtime" in pinned
    done, (newer,) = setup({"PYTHON": "python3.13"}, python3_11="3.11", python3_13="3.13")
    assert "constraints.txt" not in newer
    assert "tflite-runtime" not in newer
    assert "tflite-runtime exist for 3.11 alone and are left out" in done.stderr


def test_setup_is_quick_when_done_and_begins_again_when_something_changed(setup, tmp_path):
    assert len(setup(python3_11="3.11")[1]) == 1
    assert setup(python3_11="3.11")[1] == []
    with (tmp_path / "constraints.txt").open("a") as f:
        f.write("# another line\n")
    assert len(setup(python3_11="3.11")[1]) == 1
    (tmp_path / ".venv" / "bin" / "python").write_text(SHIM)  # the interpreter it was made of is gone
    assert len(setup(python3_11="3.11")[1]) == 1


def test_setup_keeps_the_python_of_a_venv_until_another_is_asked_for(setup, tmp_path):
    both = {"python3_11": "3.11", "python3_12": "3.12"}
    assert setup({"PYTHON": "python3.12"}, **both)[1][0].startswith("3.12 ")
    assert setup(**both)[1] == []
    with (tmp_path / "constraints.txt").open("a") as f:
        f.write("# another line\n")
    assert setup(**both)[1][0].startswith("3.12 ")
    assert setup({"PYTHON": "python3.11"}, **both)[1][0].startswith("3.11 ")


def test_setup_refuses_options_that_it_does_not_know(setup):
    done, pip = setup((), "--device", python3_11="3.11")
    assert (done.returncode, pip) == (2, [])
    assert done.stderr == "setup: unknown arguments: --device; there is one option, --devices\n"


def test_setup_says_which_python_it_could_not_start(setup):
    done, pip = setup({"PYTHON": "/no/such/python"}, python3_11="3.11")
    assert (done.returncode, pip) == (2, [])
    assert done.stderr == "setup: PYTHON=/no/such/python does not start as Python 3.11 to 3.13\n"
    done, pip = setup()
    assert (done.returncode, pip) == (2, [])
    assert "no Python 3.11 to 3.13 found; name one: PYTHON=" in done.stderr
