"""`edgedl demo`, whole but with few epochs: from scikit-learn's digits to a verified package and a report."""

import json
import zipfile
from pathlib import Path

import jsonschema
import pytest

from edgedl import demo, runs

pytest.importorskip("sklearn", reason="the demo's data comes with scikit-learn")


@pytest.fixture(scope="module")
def short():
    """The demo with the epochs that are enough for its gate."""
    run = demo.run
    patch = pytest.MonkeyPatch()
    patch.setattr(demo, "run", lambda folder, **given: run(folder, **(given | {"epochs": 6})))
    yield
    patch.undo()


def test_the_demo_passes_and_a_second_one_has_nothing_to_do(cli, short, schema, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = cli("demo", "--json")
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.json, schema("demo"))
    assert (answer.json["verdict"], answer.json["verified"]) == ("pass", "pass")
    assert [p.name for p in tmp_path.iterdir()] == ["edgedl-demo"]
    page = Path("edgedl-demo/report.html")
    assert answer.json["report"] == str(page)
    assert page.read_text().startswith("<!doctype html>")
    for report in json.loads(Path("edgedl-demo/report.json").read_text())["reports"]:
        assert report["details"]["accuracy"]["samples"] >= 500
        drop = next(c for c in report["checks"] if c["name"] == "accuracy_drop" and c["target"] == "host")
        assert (drop["limit"], drop["verdict"]) == (0.02, "pass")
        accuracy = next(c for c in report["checks"] if c["name"] == "accuracy_reference" and c["target"] == "host")
        assert accuracy["measured"] > 0.9
    with zipfile.ZipFile(answer.json["package"]) as package:
        assert {"manifest.json", "labels.txt", "report.json", "digits.tflite"} <= set(package.namelist())
    said = []
    found, _ = demo.run(Path("edgedl-demo"), said=said.append)
    assert found["exit_code"] == 0
    steps = [line for line in said if "skipped" in line or line.endswith(" ...")]
    assert steps == [f"{name}: done before, skipped" for name in answer.json["steps"]]


def test_the_demos_pipeline_file_runs_by_itself(tmp_path):
    """It is the example that users copy: every key in it is one that `edgedl run` takes."""
    (tmp_path / "p.toml").write_text(demo.PIPELINE.format(epochs=1))
    for name in ("train", "test"):
        (tmp_path / f"{name}.toml").write_text(demo.DATA.format(name=name))
    steps = runs.pipeline_file.read(str(tmp_path / "p.toml"), tmp_path)
    assert [s.function for s in steps] == ["train", *["export"] * 3, *["validate"] * 2, "package"]
