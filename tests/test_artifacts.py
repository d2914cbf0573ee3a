"""Artifacts on disk, the cache of what was learnt about models, and what `doctor` says of a broken runtime."""

import errno
import json
import os
import shutil
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgedl import artifacts, doctor, model_file, plugins, worker
from edgedl.artifacts import publish, staged
from edgedl.errors import InputError, PluginError
from edgedl.types import ArtifactInfo, Lineage, TensorSpec


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    from edgedl import pipeline

    out = tmp_path_factory.mktemp("exported") / "a.tflite"
    pipeline.export(model, out)
    return out


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of the artifact and its sidecar."""
    shutil.copy(artifacts.sidecar_path(exported), tmp_path)
    return Path(shutil.copy(exported, tmp_path))


# ---- what a file is -------------------------------------------------------------------------------------------------


def test_the_suffix_tells_the_format():
    assert [artifacts.format_of(Path(n)) for n in ("a.tflite", "b.onnx", "b.ort", "c.keras", "d")] == [
        "tflite", "onnx", "onnx", None, None,
    ]  # fmt: skip


def test_require_format_says_what_is_missing_or_allowed(tmp_path):
    with pytest.raises(InputError, match=r"a.tflite: no such file"):
        artifacts.require_format(tmp_path / "a.tflite")
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=r"a.txt: no artifact; one of .mlmodel, .onnx, .ort, .tflite, .vela is needed"):
        artifacts.require_format(tmp_path / "a.txt")


def test_runtime_for_takes_the_first_that_runs_the_format_or_the_named_one():
    assert artifacts.runtime_for("tflite").name == "litert"
    assert artifacts.runtime_for("tflite", "tflite-runtime").alone
    assert artifacts.child_of(artifacts.runtime_for("tflite")) == "runtimes"
    assert artifacts.child_of(artifacts.runtime_for("tflite", "tflite-runtime")) == "tflite-runtime"
    with pytest.raises(InputError, match="runtime 'onnxruntime' runs onnx files, not tflite"):
        artifacts.runtime_for("tflite", "onnxruntime")
    with pytest.raises(PluginError, match=r"no plugin provides a runtime for 'coreml'. Try: pip install edgedl-coreml"):
        artifacts.runtime_for("coreml")


def test_read_takes_lineage_and_tensors_from_the_sidecar(copied):
    sidecar = artifacts.sidecar_path(copied)
    told = json.loads(sidecar.read_text())
    told["lineage"]["labels"] = ["a", "b", "c"]
    sidecar.write_text(json.dumps(told))
    artifact, info = artifacts.read(copied)
    assert artifact.lineage.labels == ("a", "b", "c")
    assert artifact.scheme == "fp32"
    assert (artifact.size_bytes, artifact.compressed_bytes) == (
        copied.stat().st_size, len(zlib.compress(copied.read_bytes(), 9)),
    )  # fmt: skip
    assert "CONV_2D" in {op.name for op in info.ops}


def test_read_does_without_a_sidecar_and_guesses_the_scheme(copied):
    artifacts.sidecar_path(copied).unlink()
    artifact, _ = artifacts.read(copied)
    assert (artifact.scheme, artifact.lineage, artifact.notes) == ("float32 weights", Lineage(), ())
    assert artifacts.guess_scheme(ArtifactInfo(format="tflite", inputs=(), outputs=(), ops=())) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"sha256": "00"}', "another SHA-256"), ("{", "a.tflite.edgedl.json: not readable as JSON"), ("[1]", None)],
)
def test_read_refuses_a_sidecar_of_other_bytes_or_a_damaged_one(copied, content, message):
    artifacts.sidecar_path(copied).write_text(content)
    if message is None:  # no facts at all: as if it was not there
        assert artifacts.read(copied)[0].lineage == Lineage()
        return
    with pytest.raises(InputError, match=message):
        artifacts.read(copied)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("lineage", "'lineage' is missing"), ("inputs", "'inputs' is missing"), (None, "no sidecar of an artifact: ")],
)
def test_read_refuses_a_sidecar_that_says_too_little(copied, missing, message):
    sidecar = artifacts.sidecar_path(copied)
    told = json.loads(sidecar.read_text())
    told = {k: v for k, v in told.items() if k != missing} if missing else told | {"lineage": 3}
    sidecar.write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"a\.tflite\.edgedl\.json: no sidecar .*; remove it, or export") as said:
        artifacts.read(copied)
    assert message in str(said.value)


def test_specs_cross_the_wire_whole():
    spec = TensorSpec(name="x", dtype="int8", shape=(1, None, 3), scale=(0.5, 0.25), zero_point=(0, 1), axis=2)
    told = json.loads(json.dumps({**spec.__dict__, "index": 7}))  # an agent says more than we keep
    assert artifacts.specs_from_json([told]) == (spec,)


# ---- how an output is written ---------------------------------------------------------------------------------------


def test_staged_writes_the_file_and_its_sidecar_together(tmp_path):
    out = tmp_path / "a.bin"
    with staged(out, force=False) as part:
        part.write_text("new")
        artifacts.write_sidecar(part, {"a": 1})
        assert list(tmp_path.iterdir()) == []
    assert (out.read_text(), artifacts.read_sidecar(out)) == ("new", {"a": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "a.bin.edgedl.json"]


def test_staged_leaves_what_was_there_when_the_block_fails(tmp_path):
    out = tmp_path / "a.bin"
    out.write_text("mine")
    with pytest.raises(RuntimeError), staged(out, force=True) as part:
        part.write_text("half")
        raise RuntimeError
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("fails", ["a.bin", "a.bin.edgedl.json"])
def test_publish_moves_all_or_nothing(tmp_path, monkeypatch, fails):
    """Whichever of the two copies the disk has no room for, the user's files stay as they were."""
    out = tmp_path / "out" / "a.bin"
    out.parent.mkdir()
    moves = {}
    for name in ("a.bin", "a.bin.edgedl.json"):
        (tmp_path / name).write_text("new")
        (out.parent / name).write_text("mine")
        moves[tmp_path / name] = out.parent / name
    copy = shutil.copyfile

    def full(source, to):
        copy(source, to)
        if Path(source).name == fails:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(InputError, match=f"{fails}: cannot be written: the disk is full; nothing was changed"):
        publish(moves)
    assert {p.name: p.read_text() for p in out.parent.iterdir()} == dict.fromkeys(
        ("a.bin", "a.bin.edgedl.json"), "mine"
    )


def test_publish_removes_the_copy_that_a_killed_session_left(tmp_path):
    killed, at_work = tmp_path / ".a [1].bin.999999999.part", tmp_path / f".a [1].bin.{os.getppid()}.part"
    mine = tmp_path / ".a [1].bin.notes.part"
    for path in (killed, at_work, mine):
        path.write_text("half")
    with staged(tmp_path / "a [1].bin", force=False) as part:
        part.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([at_work.name, mine.name, "a [1].bin"])


def test_check_output_knows_an_input_under_another_name(tmp_path):
    (tmp_path / "m.h5").write_text("mine")
    (tmp_path / "link.h5").symlink_to(tmp_path / "m.h5")
    with pytest.raises(InputError, match=r"link.h5: is read as well, and would be lost"):
        artifacts.check_output(tmp_path / "link.h5", force=True, inputs=(None, "mine:data", tmp_path / "m.h5"))
    artifacts.check_output(tmp_path / "new.h5", force=False, inputs=(tmp_path / "m.h5",))


# ---- the cache ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of our own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgedl" / "reference"


@pytest.fixture
def counted(monkeypatch):
    """The calls that reach a child."""
    calls, call = [], worker.call
    monkeypatch.setattr(worker, "call", lambda what, *a, **k: (calls.append(what), call(what, *a, **k))[1])
    return calls


def predict(opened, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((3, 8, 8, 1), np.float32))
    (path,) = opened.predict({"image": tmp_path / "x.npy"}, key="d").values()
    return path


def test_what_is_learnt_of_a_model_is_kept_by_its_hash(model, cache, counted, tmp_path):
    first = model_file.open_model(str(model), loaded=False)
    outputs = np.load(predict(first, tmp_path))
    assert counted == ["edgedl.models:describe", "edgedl.models:predict"]
    again = model_file.open_model(str(shutil.copy(model, tmp_path / "other.keras")), loaded=False)
    assert again.facts == first.facts
    np.testing.assert_array_equal(np.load(predict(again, tmp_path)), outputs)
    assert len(counted) == 2
    assert model_file.is_known(str(model), trust=False)
    assert not model_file.is_known(str(model), trust=True)  # what code in a file may do is another matter
    assert not [p for p in cache.iterdir() if not p.name.isalnum()]  # nothing half-written


def test_a_model_of_the_users_own_layers_is_not_kept(model, cache, counted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    opened = model_file.open_model(str(model), custom_objects="mine", loaded=False)
    assert predict(opened, tmp_path).exists()
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_none(model, cache, tmp_path):
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file in the way")
    opened = model_file.open_model(str(model), loaded=False)
    path = predict(opened, tmp_path)
    assert np.load(path).shape == (3, 3)
    assert opened.keep("float", path) == path
    assert opened.kept("float", path.name) is None
    assert not model_file.is_known(str(model), trust=False)


def test_the_cache_forgets_what_was_not_used_for_longest(model, cache, tmp_path, monkeypatch):
    opened = model_file.open_model(str(model))
    shutil.rmtree(cache)
    monkeypatch.setattr(model_file, "CACHE_BYTES", 2500)
    for age, key in enumerate("abc"):
        file = tmp_path / "kept.bin"
        file.write_bytes(bytes(1000))
        kept = opened.keep(key, file)
        os.utime(kept.parent, (1e9 + age, 1e9 + age))
    assert [opened.kept(key, "kept.bin") is not None for key in "abc"] == [False, True, True]


def test_what_is_larger_than_the_cache_is_not_kept_and_costs_nothing_of_it(model, cache, tmp_path, monkeypatch):
    opened = model_file.open_model(str(model))
    monkeypatch.setattr(model_file, "CACHE_BYTES", sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) + 500)
    before = sorted(cache.iterdir())
    file = tmp_path / "large.bin"
    file.write_bytes(bytes(1_000_000))
    assert opened.keep("large", file) == file
    assert sorted(cache.iterdir()) == before


def test_a_cache_that_can_only_be_read_is_read(model, cache, tmp_path, monkeypatch):
    opened = model_file.open_model(str(model), loaded=False)
    predict(opened, tmp_path)

    def refused(*_, **__):
        raise PermissionError

    monkeypatch.setattr(model_file.os, "utime", refused)
    assert predict(opened, tmp_path).is_relative_to(cache)


def test_a_reference_that_is_used_again_counts_as_new(model, cache, tmp_path):
    opened = model_file.open_model(str(model), loaded=False)
    folder = predict(opened, tmp_path).parent
    kept = next(p for p in cache.iterdir() if (p / "0.npy").exists())
    os.utime(kept, (1e9, 1e9))
    predict(opened, tmp_path)
    assert kept.stat().st_mtime > 1e9
    assert folder.exists()


# ---- doctor ---------------------------------------------------------------------------------------------------------

PROBLEM = "runtime tflite-runtime"


@pytest.fixture
def examined(monkeypatch):
    """`doctor.examine` of one runtime, TFLite's own, in the interpreter that its variable names."""

    def examine(interpreter):
        worker.kill()
        monkeypatch.setenv("EDGEDL_TFLITE_RUNTIME_PYTHON", str(interpreter))
        found = plugins.listing
        only = {"runtimes": [p for p in found("runtimes") if p.name == "tflite-runtime"], "exporters": []}
        monkeypatch.setattr(plugins, "listing", lambda group: only.get(group) or found(group))
        monkeypatch.setattr(doctor, "_training", lambda problems: {"tensorflow": None, "gpus": []})
        return doctor.examine()

    return examine


def test_doctor_names_a_wrong_interpreter(examined):
    found = examined("/no/such/python")
    line = next(p for p in found["problems"] if p.startswith(PROBLEM))
    assert "/no/such/python" in line
    assert found["runtimes"][0]["version"] is None


def test_doctor_names_an_interpreter_that_is_only_a_shim(examined, tmp_path):
    shim = tmp_path / "python"
    shim.write_text("#!/bin/sh\necho 'pyenv: python: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    line = next(p for p in examined(shim)["problems"] if p.startswith(PROBLEM))
    assert "exited with 127" in line
    assert "pyenv: python: command not found" in line


def test_doctor_says_why_a_runtime_does_not_start_and_what_to_install(examined, tmp_path, monkeypatch):
    """An interpreter whose tflite_runtime imports and then fails, as it does beside numpy 2."""
    package = tmp_path / "lib" / "tflite_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '2.14.0'\n")
    (package / "interpreter.py").write_text("raise ImportError('_ARRAY_API not found')\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "lib"} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    line = next(p for p in examined(python)["problems"] if p.startswith(PROBLEM))
    assert "does not start here: ImportError: _ARRAY_API not found. Try: pip install tflite-runtime 'numpy<2'" in line


def test_doctor_tells_exporters_that_do_not_import(monkeypatch):
    def broken(group, name):
        message = f"exporter {name!r} of mine does not import: ImportError: no onnx"
        raise PluginError(message)

    monkeypatch.setattr(plugins, "load", broken)
    problems: list[str] = []
    assert doctor._exporter("onnx", problems)["schemes"] == []
    assert problems == ["exporter 'onnx' of mine does not import: ImportError: no onnx"]


def test_a_runtime_of_its_own_interpreter_runs_there(exported, tmp_path, monkeypatch):
    """tflite-runtime in the interpreter that its variable names, told from ours by what it leaves behind."""
    runtime = artifacts.runtime_for("tflite", "tflite-runtime")
    with worker.fresh("probe") as child:
        told = child.call("info", {"runtimes": ["tflite-runtime"]})["runtimes"]["tflite-runtime"]
    if told["version"] is None:
        pytest.skip(f"tflite-runtime does not start here: {told['why']}")
    mark, python = tmp_path / "started", tmp_path / "python"
    python.write_text(f'#!/bin/sh\ntouch {mark}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("EDGEDL_TFLITE_RUNTIME_PYTHON", str(python))
    assert artifacts.interpreter_of(runtime) == str(python)
    from edgedl.validation import evaluate

    artifact = replace(artifacts.read(exported)[0], path=exported)
    np.save(tmp_path / "x.npy", np.ones((2, 8, 8, 1), np.float32))
    found = evaluate.outputs(artifact, evaluate.Setting(runtime=runtime), {"image": tmp_path / "x.npy"})
    assert mark.exists()
    assert np.load(found["kind"]).sum(axis=1) == pytest.approx([1, 1], abs=1e-5)
