"""The wheel: installed in an environment of its own, with numpy and one runtime alone, it gives the golden outputs."""

import json
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from crafted import small_model
from emulation import needs_arm64, run_on_arm64
from packages import text_of, unpacked

from edgedl import packaging, pipeline
from edgedl.errors import InputError
from edgedl.packaging import manifest
from edgedl.packaging.python import module, packager
from edgedl.types import TensorSpec

HERE = Path(sysconfig.get_path("purelib"))
STEP = '[[preprocess]]\nop = "scale"\nfactor = 0.00390625\n'


def _pack(artifact, out, **given):
    return pipeline.package(artifact, platforms=["python"], out=out, **given)[0]


@pytest.fixture(scope="module")
def wheel(tflites, data, tmp_path_factory):
    """int8.tflite with labels and a step of preprocessing, its golden inputs drawn from data."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "d.toml").write_text(f'data = "{data}/test.npz"\nlabels = ["a", "b", "c"]\n{STEP}')
    return _pack(tflites / "int8.tflite", folder / "out", data=str(folder / "d.toml"), name="key-word", version="1.2.0")


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Run code in a fresh environment with the wheel, numpy and tflite-runtime: nothing else of this one is in it."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in ("numpy", "numpy.libs", "tflite_runtime"):
        if not (HERE / name).exists():
            pytest.skip(f"needs {name} beside edgedl: pip install numpy tflite-runtime")
        (site / name).symlink_to(HERE / name)

    def run(*arguments):
        return subprocess.run([str(interpreter), "-I", *arguments], capture_output=True, text=True, check=False)

    return run


def test_wheel_runs_its_golden_samples_in_a_fresh_environment(python):
    done = python("-m", "key_word_model")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["passed"], found["unchanged"]) == (True, True)
    assert found["runtime"] == found["golden_outputs_of"] == "tflite-runtime"
    assert [o["difference"] for o in found["outputs"]] == [0]


@needs_arm64
def test_wheel_runs_its_golden_samples_on_an_emulated_arm64_core(wheel, tmp_path):
    found = run_on_arm64(wheel, "key_word_model", tmp_path, "ai_edge_litert", "flatbuffers")
    assert (found["passed"], found["runtime"], found["golden_outputs_of"]) == (True, "litert", "litert")
    assert [o["difference"] for o in found["outputs"]] == [0]


def test_wheel_first_inference_equals_the_golden_one(python, wheel, tmp_path):
    content = unpacked(wheel, tmp_path) / "key_word_model/content"
    golden = json.loads((content / "manifest.json").read_text())["golden"]
    code = (
        "import json, numpy as np, sys; from key_word_model import Model\n"
        f"x = np.load({str(content / golden['inputs']['image'])!r})\n"
        "print(json.dumps([Model().run(x[:1])[name].tolist() for name in sys.argv[1:]]))\n"
        "print(sorted(m for m in sys.modules if m.partition('.')[0] in ('edgedl', 'tensorflow', 'scipy')))"
    )
    outputs = golden["runtimes"]["tflite-runtime"]["outputs"]
    done = python("-c", code, *outputs)
    first, others = done.stdout.splitlines()
    assert others == "[]"
    for values, file in zip(json.loads(first), outputs.values(), strict=True):
        assert np.array_equal(np.float32(values), np.load(content / file)[:1])


def test_wheel_is_one_for_packaging_tools(wheel, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "wheel", "unpack", str(wheel), "-d", str(tmp_path)], check=True
    )  # reads RECORD
    assert wheel.name == "key_word_model-1.2.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        about = archive.read("key_word_model-1.2.0.dist-info/METADATA").decode()
        sources = [archive.read(n).decode() for n in archive.namelist() if n.endswith(".py")]
        assert "MIT" in archive.read("key_word_model/_edgedl/LICENSE").decode()
    assert "Name: key-word-model\nVersion: 1.2.0\n" in about
    assert "Requires-Dist: numpy\n" in about
    assert "Requires-Dist: ai-edge-litert>=1.0.0; extra == 'litert'\n" in about
    assert not any(re.search(r"^\s*(from|import) edgedl\b", text, re.MULTILINE) for text in sources)


def test_verify_proves_a_wheel_and_its_record(wheel, tmp_path):
    assert packaging.verify(wheel)["findings"] == []
    whole = wheel.read_bytes()
    at = whole.index(b"key_word_model/__init__.py,sha256=")  # in RECORD, which no hash covers: it follows from the rest
    changed = tmp_path / wheel.name
    for place in (at, at + 40):
        changed.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert packaging.verify(changed)["findings"]


@pytest.fixture(scope="module")
def model(wheel, tmp_path_factory):
    """The wheel's model, in this process."""
    content = unpacked(wheel, tmp_path_factory.mktemp("content")) / "key_word_model/content"
    return module.Model(content=content, runtime="litert")


def test_model_takes_raw_samples(model, data):
    raw = np.load(data / "test.npz")["x"][:5]
    found = model.predict(raw)
    (name,) = found
    assert found[name].shape == (5, 3)
    assert np.array_equal(found[name], model.run(raw.astype(np.float32) * np.float32(0.00390625))[name])
    assert np.array_equal(found[name][3:4], model.predict(raw[3:4])[name])
    labels = [("a", "b", "c")[i] for i in found[name].argmax(-1)]
    assert model.classify(raw) == [(label, float(max(row))) for label, row in zip(labels, found[name], strict=True)]


@pytest.mark.parametrize(
    ("logits", "values", "answers"),
    [
        ([], [0.25, 0.75, 0.5], [("healthy", 0.75), ("sick", 0.75), ("healthy", 0.5)]),
        (["sick"], [-2.0, 0.25, 0.0], [("healthy", 2.0), ("sick", 0.25), ("healthy", 0.0)]),
    ],
)
def test_one_value_for_two_labels_is_the_probability_of_the_second_or_its_logit(
    model, monkeypatch, logits, values, answers
):
    output = TensorSpec(name="sick", dtype="float32", shape=(None, 1))
    steps = manifest.postprocessing([output], ["healthy", "sick"], logits)
    assert steps == [{"output": "sick", "op": "threshold", "above": 0.0 if logits else 0.5}]
    monkeypatch.setattr(model, "manifest", model.manifest | {"postprocessing": steps})
    monkeypatch.setattr(model, "labels", ["healthy", "sick"])
    monkeypatch.setattr(model, "predict", lambda _: {"sick": np.array(values)[:, None]})
    assert model.classify({}) == answers


def test_model_says_what_does_not_fit(model, tflites, tmp_path):
    for wrong, message in (
        (np.zeros((2, 8, 8)), r"input 'image' takes samples of shape \[8, 8, 1\], got \[8, 8\]"),
        (np.zeros((2, 9, 8, 1)), r"takes samples of shape \[8, 8, 1\], got \[9, 8, 1\]"),
        (np.zeros((0, 8, 8, 1)), r"as many samples of every input are needed, got \[0\]"),
        ({"picture": np.zeros((1, 8, 8, 1))}, r"the inputs are \['image'\], got \['picture'\]; give arrays by name"),
    ):
        with pytest.raises(ValueError, match=message):
            model.run(wrong)
    with pytest.raises(RuntimeError, match="runtime 'onnxruntime' does not run tflite files; these do: litert, tflite"):
        module.Model(content=model.content, runtime="onnxruntime")
    two = unpacked(_pack(tflites / "two.tflite", tmp_path / "out"), tmp_path / "two") / "two_model/content"
    with pytest.raises(ValueError, match="no output with a value a label; use predict"):
        module.Model(content=two, runtime="litert").classify({})


def test_model_with_several_inputs_and_one_with_free_sizes(tflites, data, tmp_path):
    two = unpacked(_pack(tflites / "two.tflite", tmp_path / "a"), tmp_path / "two") / "two_model/content"
    found = module.Model(content=two, runtime="litert")
    assert found.self_test()["passed"]
    one = found.run({"right": np.ones((3, 2)), "left": np.zeros((3, 4))})
    assert sorted(v.shape for v in one.values()) == [(3, 1), (3, 3)]
    wheel = _pack(tflites / "open.tflite", tmp_path / "b", data=str(data / "test.npz"))
    free = module.Model(content=unpacked(wheel, tmp_path / "open") / "open_model/content", runtime="litert")
    assert free.self_test()["passed"]
    for size in (5, 9):
        assert next(iter(free.run(np.ones((2, size, size, 1))).values())).shape == (2, 2)


def test_self_test_fails_for_another_file_and_other_outputs(wheel, tmp_path):
    content = unpacked(wheel, tmp_path) / "key_word_model/content"
    found = json.loads((content / "manifest.json").read_text())
    golden = content / found["golden"]["outputs"][found["outputs"][0]["name"]]
    np.save(golden, np.load(golden) + 5 * found["outputs"][0]["scale"][0])
    done = module.Model(content=content, runtime="litert").self_test()
    assert (done["passed"], done["unchanged"], done["outputs"][0]["difference"]) == (False, True, 5)
    with (content / found["artifact"]["file"]).open("ab") as f:
        f.write(b"\0")
    assert module.Model(content=content, runtime="litert").self_test()["unchanged"] is False


def test_runtime_that_is_missing_is_named_with_its_install(python, wheel):
    code = "import sys; sys.modules['tflite_runtime'] = None; import key_word_model; key_word_model.Model()"
    done = python("-c", code)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: no runtime for tflite starts here: litert: ModuleNotFoundError")
    assert last.endswith("Try: pip install ai-edge-litert")


@pytest.mark.parametrize(
    ("version", "python"),
    [("1.2.0", "1.2.0"), ("1.2.0-rc.1", "1.2.0rc1"), ("1.2.0-beta2", "1.2.0b2"), ("1.0.0-dev.3", "1.0.0.dev3")],
)
def test_versions_are_those_of_python(version, python):
    assert packager.python_version(version) == python


def test_version_that_python_has_not_is_refused(tflites, tmp_path):
    with pytest.raises(InputError, match=r"1\.2\.0-nightly is no version for Python; use -rc\.1, -beta\.1 or -dev\.1"):
        _pack(tflites / "int8.tflite", tmp_path / "out", version="1.2.0-nightly")
    assert not (tmp_path / "out").exists()


def test_wheel_has_no_extra_for_a_runtime_that_lacks_an_operator(tmp_path):
    artifact, said = small_model(tmp_path / "m.tflite", dense_version=12), []
    made = _pack(artifact, tmp_path / "out", said=said.append)
    about = text_of(made, "METADATA")
    assert "Requires-Dist: ai-edge-litert>=1.0.0; extra == 'litert'\n" in about
    assert "tflite-runtime" not in about
    assert (
        "python: no release of tflite-runtime has every operator of the model, and the wheel has no extra" in said[-1]
    )
    assert "- runs on: `litert 1.0.0 or newer, no known tflite-runtime, tflm 0.dev" in text_of(made, "MODEL_CARD.md")


def test_module_has_no_name_of_the_standard_library():
    names = {packager.module_name(name) for name in ("keyword", "Key-Word.8", "types", "a_model")}
    assert names == {"keyword_model", "key_word_8_model", "types_model", "a_model"}
    assert not names & set(sys.stdlib_module_names)


def test_wheel_of_an_onnx_file_names_its_runtime(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs: pip install onnx onnxruntime")
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 4]) for n in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    content = unpacked(_pack(tmp_path / "m.onnx", tmp_path / "out"), tmp_path / "w") / "m_model/content"
    done = module.Model(content=content).self_test()
    assert (done["passed"], done["runtime"], done["golden_outputs_of"]) == (True, "onnxruntime", "onnxruntime")
