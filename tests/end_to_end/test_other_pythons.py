"""Validating without TensorFlow on Python 3.12 and 3.13: a venv with edgedl, both runtimes and nothing else.

Making a venv takes some 25 s and the package registry, so that only EDGEDL_TEST_PYTHONS=1 does it. They are kept in
pytest's cache folder under a hash of the three pyproject.toml, and one that is there is always tested.
"""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import samples

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT, ROOT / "plugins" / "edgedl-tflite", ROOT / "plugins" / "edgedl-onnx")


def interpreter(version):
    """A Python of that version that really starts (a shim may not), or None."""
    found = shutil.which(f"python{version}")
    for path in (found, *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))):
        asked = "import sys, venv; print('%d.%d' % sys.version_info[:2])"
        if path and run(path, "-c", asked).stdout.strip() == version:
            return path
    return None


def run(*command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=300)


def said(done):
    return "\n".join(line for line in done.stderr.splitlines() if not line.startswith("WARNING"))


@pytest.fixture(scope="module", params=["3.12", "3.13"])
def edgedl(request):
    """`edgedl(...)` in the venv of that Python: a finished process."""
    python = interpreter(request.param)
    if python is None:
        pytest.skip(f"no Python {request.param} starts here")
    identity = b"".join((source / "pyproject.toml").read_bytes() for source in SOURCES) + str(ROOT).encode()
    name = f"edgedl-{request.param}-{hashlib.sha256(identity).hexdigest()[:12]}"
    venv = Path(request.config.cache.mkdir(name)) / "venv"
    stamp = venv / "made"
    if not stamp.exists():
        if not os.environ.get("EDGEDL_TEST_PYTHONS"):
            pytest.skip(f"EDGEDL_TEST_PYTHONS=1 makes a venv of {python} and tests there")
        shutil.rmtree(venv, ignore_errors=True)
        assert run(python, "-m", "venv", venv).returncode == 0
        pip = (venv / "bin" / "python", "-m", "pip", "install", "--quiet")
        first = run(*pip, "hatchling", "editables")
        if first.returncode:
            pytest.skip(f"no package registry: {said(first)[-200:]}")
        done = run(*pip, "--no-build-isolation", *(word for source in SOURCES for word in ("-e", source)))
        assert done.returncode == 0, said(done)
        stamp.touch()
    return lambda *arguments: run(venv / "bin" / "edgedl", *arguments)


@pytest.fixture(scope="module")
def files(model, data, tmp_path_factory):
    """float.tflite, int8.tflite, int8.onnx and d.npz, made here with TensorFlow."""
    from edgedl import pipeline

    folder = tmp_path_factory.mktemp("files")
    pipeline.export(model, folder / "float.tflite")
    for name in ("int8.tflite", "int8.onnx"):
        pipeline.export(model, folder / name, scheme="int8", calibration_data=data / "train.npz", samples=50)
    x, y = samples(100)
    np.savez(folder / "d.npz", x=x, y=y)
    return folder


def test_validating_two_artifacts_needs_no_tensorflow(edgedl, files):
    for name in ("int8.tflite", "int8.onnx"):
        given = ("--reference", files / "float.tflite", "--data", files / "d.npz", "--limit", "max_abs=0.05")
        done = edgedl("validate", files / name, *given, "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["verdict"] == "pass"
        assert {"accuracy_drop", "latency_ms", "max_abs"} <= {c["name"] for c in found["checks"]}


def test_a_package_is_made_and_verified(edgedl, files, tmp_path):
    done = edgedl("package", files / "int8.tflite", "--platform", "zip", "--data", files / "d.npz", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert edgedl("verify", done.stdout.strip()).stdout == "pass\n"


def test_what_needs_tensorflow_says_what_to_install(edgedl, files, model):
    done = edgedl("export", model, "-o", files / "no.tflite")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().endswith(
        "needs tensorflow and keras, not installed here. Try: pip install 'edgedl[keras]'"
    )
    problems = json.loads(edgedl("doctor", "--json").stdout)["problems"]
    assert [p for p in problems if p.startswith("training and export need TensorFlow: ")]
