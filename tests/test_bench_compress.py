"""`scripts/bench compress`: its techniques, what a side that fails leaves, what the clock holds, what is written."""

import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from edgedl.errors import UnsupportedError
from edgedl.recipes import SHIPPED

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_compress

    return bench_compress


@pytest.fixture
def subject(bench, tmp_path):
    np.savez(tmp_path / "test.npz", x=np.zeros((2, 1)), y=np.zeros(2))
    model, data = tmp_path / "model.keras", tmp_path / "test.npz"
    return bench.Subject(name="ic", model=model, train=data, test=data)


class Judge:
    """Finds every file as good as the float one."""

    def __init__(self, *_):
        from bench_judge import Row

        self.made = Row

    def row(self, technique, made, _):
        if made.path.suffix == ".bad":
            message = "it does not load"
            raise UnsupportedError(message)
        return self.made(group=technique.group, tool=technique.tool, name=technique.name, accuracy=1.0)

    def against(self, *_):
        return (0.0, -0.1, 0.1)


def made(bench, path="model.tflite", seconds=1.0):
    return bench.Made(path=Path(path), work_s=seconds, peak_bytes=1)


def named(bench, name, epochs=None):
    (found,) = (t for t in bench.techniques(epochs) if t.key == name)
    return found


def test_epochs_reach_every_training_of_recipes_too(bench):
    trainings = [(t.key, s["training"]) for t in bench.techniques(1) for s in t.steps if "training" in s]
    assert {key for key, training in trainings if training["epochs"] != 1} == set()
    assert "edgedl: recipe channels-50-int8-long" in {key for key, _ in trainings}


@pytest.mark.parametrize("recipe", ["qat-int8", "int4", "download-half", "download-least", "channels-50-int8-long"])
def test_a_recipe_without_epochs_is_the_shipped_one(bench, recipe):
    steps = named(bench, f"edgedl: recipe {recipe}").steps
    assert list(steps) == tomllib.loads((SHIPPED / f"{recipe}.toml").read_text())["step"]
    assert tomllib.loads(bench._toml(steps))["step"] == list(steps)


def test_tfmot_trains_beside_the_recipe_qat_int8_at_its_rate(bench):
    ours, peer = (t for t in bench.techniques(None) if t.group == "qat-int8")
    trainings = [t.steps[-1]["training"] for t in (ours, peer)]
    assert [t.tool for t in (ours, peer)] == ["edgedl", "TFMOT"]
    assert [(t["epochs"], t["learning_rate"]) for t in trainings] == [(1, 3e-5)] * 2


def test_a_peer_is_found_under_either_of_its_names(bench):
    assert bench._python(("json|no_such_module", "math")) == sys.executable
    assert bench._python(("no_such_module|json", "math")) == sys.executable
    assert bench._python(("json", "no_such_module|no_such_other")) is None
    quantizer = named(bench, "litert-quantizer: static wi8_ai8")
    assert quantizer.modules[0] == "litert_quantizer|ai_edge_quantizer"


def test_a_side_that_fails_has_a_row_that_says_so_and_leaves_the_others(bench, subject, monkeypatch, tmp_path, capsys):
    def make_float(_subject, _folder, suffix):
        if suffix == ".h5":
            message = "ModuleNotFoundError: No module named 'edgedl_tfmot'"
            raise bench.FailedError(message)
        return made(bench)

    def make_ours(technique, *_):
        return made(bench, "a.bad" if technique.steps else "a.tflite")

    for name, fake in (("make_float", make_float), ("make_ours", make_ours), ("why_not", lambda _: None)):
        monkeypatch.setattr(bench, name, fake)
    monkeypatch.setattr(bench, "process", lambda *_, **__: ('{"macs": 1}', 0))
    monkeypatch.setattr(bench, "make_peer", lambda *_: made(bench))
    monkeypatch.setattr(bench, "Judge", Judge)
    keys = ("MCT: PTQ", "edgedl: quantize", "TFMOT: QAT", "edgedl: export --scheme int8", "NNCF: PTQ")
    rows = bench.measure(subject, [named(bench, key) for key in keys], tmp_path)
    assert [row.has_failed for row in rows] == [True, True, False, False, False]
    bench.show(rows, "title")
    out = capsys.readouterr().out
    assert "MCT: PTQ: failed: ModuleNotFoundError: No module named 'edgedl_tfmot'\n" in out
    assert "edgedl: quantize: failed: it does not load\n" in out


def test_a_peer_that_prints_no_seconds_has_failed(bench, tmp_path):
    for program in ("", "print('done')"):
        with pytest.raises(bench.FailedError, match="printed no JSON last"):
            bench.answer(sys.executable, "-c", program, folder=tmp_path)


@pytest.mark.parametrize("indent", [None, 2])
def test_the_object_that_is_printed_last_is_the_answer(bench, tmp_path, indent):
    said = json.dumps({"rows": [{"a": 1}, {"b": [{}]}]}, indent=indent)
    told, peak = bench.answer(sys.executable, "-c", f"print('epoch 1'); print({said!r})", folder=tmp_path)
    assert told == {"rows": [{"a": 1}, {"b": [{}]}]}
    assert peak > 0


def test_both_clocks_hold_the_conversion(bench, subject, monkeypatch, tmp_path):
    rows = [{"seconds": s, "notes": [], "macs": 7} for s in (0.0, 30.0)]

    def answer(*command, **_):
        return ({"rows": rows}, 9) if "compress" in command else ({"seconds": 2.0}, 5)

    monkeypatch.setattr(bench, "answer", answer)
    monkeypatch.setattr(bench, "process", lambda *_, **__: ("", 0))
    ours = bench.make_ours(named(bench, "edgedl: quantize"), subject, tmp_path)
    assert (ours.work_s, ours.peak_bytes, ours.macs) == (32.0, 9, 7)
    assert bench.make_ours(named(bench, "edgedl: export --scheme int8"), subject, tmp_path).work_s == 2.0
    peer = bench.make_peer(named(bench, "NNCF: PTQ"), subject, made(bench, "float.onnx", 3.0), tmp_path)
    assert peer.work_s == 5.0
    assert bench.make_float(subject, tmp_path, ".h5").work_s == 0


@pytest.mark.parametrize("quick", [False, True])
def test_rows_are_written_where_help_says(bench, subject, monkeypatch, tmp_path, capsys, quick):
    failed = bench.Row(group="g", tool="t", name="n", notes=("failed: [why]",), has_failed=True)
    monkeypatch.setattr(bench.bench_models, "missing", lambda _: None)
    monkeypatch.setattr(bench.bench_models, "prepare", lambda *_, **__: subject)
    monkeypatch.setattr(bench, "measure", lambda *_: [failed])
    with pytest.raises(SystemExit, match=r"^1$"):
        bench.main(["-o", str(tmp_path), *(["--quick"] if quick else [])])
    assert "t: n: failed: [why]\n" in capsys.readouterr().out
    written = json.loads((tmp_path / f"ic{'-quick' if quick else ''}.json").read_text())
    assert (written["epochs"], written["rows"][0]["has_failed"]) == (1 if quick else None, True)
    with pytest.raises(SystemExit, match=r"^0$"):
        bench.main(["--help"])
    assert "the rows: MODEL.json, with --quick MODEL-quick.json" in " ".join(capsys.readouterr().out.split())
