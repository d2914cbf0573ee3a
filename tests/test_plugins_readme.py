"""plugins/README.md: the exporter it shows is built, installed and run from exactly that text; its metric scores."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fences import fences

from edgedl import plugins, testing

README = Path(__file__).parents[1] / "plugins" / "README.md"
LINES = 35  # what the reader is promised, give or take


def shown(name):
    """The code block under a line that is only the file's name."""
    return next(fence.text for fence in fences(README) if fence.above == f"`{name}`")


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The shown package built by pip from the shown files: the environment of a process that has it installed."""
    source, place = tmp_path_factory.mktemp("edgedl-c"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "edgedl_c.py"):
        (source / name).write_text(shown(name))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--target", place, source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    assert (place / "edgedl_c.py").read_text() == shown("edgedl_c.py")
    return os.environ | {"PYTHONPATH": str(place)}


def edgedl(environment, *arguments, **options):
    command = [sys.executable, "-m", "edgedl.cli", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)


def test_the_exporter_is_as_short_as_promised():
    lines = (shown("pyproject.toml") + shown("edgedl_c.py")).splitlines()
    assert len([line for line in lines if line.strip()]) <= LINES


def test_the_exporter_shown_exports_through_the_command_line(installed, model, data, tmp_path):
    (command,) = (line for f in fences(README) for line in f.text.splitlines() if line.startswith("$ edgedl export"))
    (tmp_path / "model.keras").write_bytes(Path(model).read_bytes())
    (tmp_path / "train.npz").write_bytes((data / "train.npz").read_bytes())
    made = edgedl(installed, *command.removeprefix("$ edgedl ").split(), cwd=tmp_path)
    assert (made.returncode, made.stdout.strip()) == (0, "model.c"), made.stderr
    assert "bytes of flash, as model and model_len" in made.stderr
    assert "no runtime for 'c' is installed: the file was not read back" in made.stderr

    text = (tmp_path / "model.c").read_text()
    content = bytes(int(n) for n in re.search(r"\{(.*)\}", text, re.S)[1].split(","))
    assert f"model_len = {len(content)};" in text
    sidecar = json.loads((tmp_path / "model.c.edgedl.json").read_text())
    assert (sidecar["format"], sidecar["scheme"]) == ("c", "static_wi8_ai8")
    assert [t["name"] for t in (*sidecar["inputs"], *sidecar["outputs"])] == ["image", "kind"]
    assert len(sidecar["lineage"]["calibration_ids"]) == 200

    (tmp_path / "back.tflite").write_bytes(content)  # the array is the TFLite file
    found = edgedl(installed, "inspect", "back.tflite", "--json", cwd=tmp_path)
    assert {op["name"] for op in json.loads(found.stdout)["ops"]} >= {"CONV_2D", "FULLY_CONNECTED"}


def test_what_the_exporter_shown_cannot_do_is_refused(installed, tmp_path):
    refused = edgedl(installed, "export", "a.keras", "--scheme", "fp16", "-o", "a.c", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "exporter 'c' has no scheme fp16; it has fp32, static_wi8_ai8" in refused.stderr
    (tmp_path / "a.c").write_text("const int x;")
    refused = edgedl(installed, "validate", "a.c", "--reference", "a.keras", "--data", "a.npz", cwd=tmp_path)
    assert refused.returncode == 4
    assert "no plugin provides a runtime for 'c'" in refused.stderr


def test_the_test_shown_passes_on_the_exporter_shown(installed, tmp_path):
    (tmp_path / "test_edgedl_c.py").write_text(shown("test_edgedl_c.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path / "test_edgedl_c.py"]
    found = subprocess.run(command, env=installed, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert found.returncode == 0, found.stdout
    assert "1 passed" in found.stdout


def test_the_metric_shown_keeps_the_contract(tmp_path, monkeypatch):
    (code,) = (f.text for f in fences(README) if "class Margin" in f.text)
    space = {}
    exec(code, space)  # noqa: S102  our own text
    monkeypatch.setattr("edgedl.validation.metrics.resolve", lambda name: space["Margin"]())
    rng = np.random.default_rng(0)
    testing.check_metric("margin", rng.random((30, 4)), rng.integers(0, 4, 30))


def test_every_group_is_explained():
    table = README.read_text().split("## The groups")[1]
    assert all(f"`edgedl.{group}`" in table for group in plugins.GROUPS)


def test_every_check_of_edgedl_testing_is_listed():
    table = README.read_text().split("## Checks to run in your tests")[1]
    public = [n for n in vars(testing) if n.startswith(("check_", "write_model")) and not n.endswith("_here")]
    assert sorted(re.findall(r"^\| `(\w+)\(", table, re.M)) == sorted(public)


def test_every_option_of_an_export_is_listed():
    from dataclasses import fields

    from edgedl.types import ExportOptions

    row = next(line for line in README.read_text().splitlines() if line.startswith("| `options`"))
    assert re.findall(r"`(\w+)`", row)[2:] == [f.name for f in fields(ExportOptions)]
