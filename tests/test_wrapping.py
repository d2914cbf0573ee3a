"""What the wrappers are written from, and what none is written for: names, types, shapes and steps."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from wrappers import cases

from edgedl import types
from edgedl.errors import InputError, UnsupportedError
from edgedl.packaging import android, ios, web, wrapping

TENSOR = {"name": "image", "dtype": "float32", "shape": [1, 8, 8, 1], "scale": [], "zero_point": [], "axis": None}


def manifest(name="keyword", inputs=(TENSOR,), outputs=(TENSOR | {"name": "kind", "shape": [1, 3]},), **rest):
    base = {"name": name, "version": "1.2.0", "artifact": {"file": f"{name}.tflite", "format": "tflite"}}
    base |= {"inputs": list(inputs), "outputs": list(outputs), "labels": [], "preprocessing": [], "embedded": []}
    base |= {"targets": [], "license": None, "files": {}, "runtime": {"minimums": {}}}
    return base | {"golden": {"inputs": {}, "outputs": {}, "samples": 1, "tolerance": {}}} | rest


def content(folder, **told):
    return types.Content(folder=folder, manifest=manifest(**told))


@pytest.fixture(params=[android.AndroidPackager, ios.IosPackager, web.WebPackager])
def packager(request):
    return request.param()


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        (
            {"inputs": [TENSOR, TENSOR | {"name": "left/in:0"}]},
            InputError,
            r"input 'left/in:0' is no name in \w+: letters, digits and _ are allowed, .*rename the layer",
        ),
        (
            {"outputs": [TENSOR, TENSOR | {"name": "class"}]},
            InputError,
            r"output 'class' is no name in \w+: .*no word of the language",
        ),
        (
            {"inputs": [TENSOR | {"shape": [8, 8, 8, 1]}]},
            InputError,
            r"input 'image' has shape \[8, 8, 8, 1\]: wrappers feed one sample of a fixed shape; export with --shape",
        ),
        ({"inputs": [TENSOR | {"shape": [1, None, 8, 1]}]}, InputError, r"input 'image' has shape \[1, any, 8, 1\]"),
        (
            {"inputs": [TENSOR | {"dtype": "int16", "scale": [0.1], "zero_point": [0]}]},
            UnsupportedError,
            r"input 'image' is int16, .* takes .*; export with --io float",
        ),
        (
            {"inputs": [TENSOR | {"dtype": "int64"}]},
            UnsupportedError,
            r"input 'image' is int64, .* takes .*; declare it with keras.Input\(dtype='int32'\) or 'float32' in",
        ),
        (
            {"outputs": [TENSOR | {"dtype": "int64"}]},
            UnsupportedError,
            r"output 'image' is int64, .* takes .*; cast it to int32 or float32 in the Keras model and export again",
        ),
        (
            {"preprocessing": [{"op": "mfcc", "sample_rate_hz": 16000}]},
            UnsupportedError,
            r"preprocess step 1 \(mfcc\) is left to the app, and wrappers have none; they have cast, resize, crop",
        ),
        (
            {"preprocessing": [{"op": "grayscale"}, {"op": "window", "length": 16}]},
            UnsupportedError,
            r"preprocess step 2 \(window\) is left to the app",
        ),
        (
            {"preprocessing": [{"op": "cast", "dtype": "float64"}]},
            UnsupportedError,
            r"preprocess step 1 \(cast to float64\) is left to the app",
        ),
    ],
)
def test_no_wrapper_for_what_it_cannot_say_or_do(packager, told, error, message, tmp_path):
    with pytest.raises(error, match=message):
        packager.lay_out(content(tmp_path, **told), tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_open_batch_is_noted_where_litert_may_refuse_it(tmp_path):
    told = {"inputs": [TENSOR | {"shape": [None, 8, 8, 1]}]}
    (note,) = web.WebPackager().lay_out(content(tmp_path, **told), tmp_path).notes
    assert "input 'image' leaves the batch open, which LiteRT.js refuses in files of newer converters" in note
    onnx = {"artifact": {"file": "m.onnx", "format": "onnx"}}
    (tmp_path / "onnx").mkdir()
    assert web.WebPackager().lay_out(content(tmp_path, **told, **onnx), tmp_path / "onnx").notes == ()


def test_names_of_a_package_that_a_language_has_for_itself(tmp_path):
    with pytest.raises(InputError, match="--name: 'object' is a word of Kotlin or Java, which no package may have"):
        android.AndroidPackager().lay_out(content(tmp_path, name="object"), tmp_path)
    with pytest.raises(InputError, match="--name: 'swift' makes Swift, which Swift has already; name another"):
        ios.IosPackager().lay_out(content(tmp_path, name="swift"), tmp_path)
    with pytest.raises(
        InputError, match="--name: 'Keyword' is no name for npm, which takes lower-case letters, digits"
    ):
        web.WebPackager().lay_out(content(tmp_path, name="Keyword"), tmp_path)


def test_names_of_tensors_hide_nothing_of_the_wrappers(tmp_path):
    two = {"inputs": [TENSOR | {"name": "outputs"}, TENSOR | {"name": "runner"}]}
    for packager in (web.WebPackager(), ios.IosPackager(), android.AndroidPackager()):
        tree = tmp_path / packager.platform
        tree.mkdir()
        packager.lay_out(content(tmp_path, **two), tree)
    assert "const outputs" not in (tmp_path / "web/package/index.js").read_text()
    assert any("let _found = try self.runner.predict(" in f.read_text() for f in tmp_path.rglob("*.swift"))


def test_a_swift_string_has_swifts_escapes():
    assert ios._literal('größe "a"\\\n') == '"größe \\u{22}a\\u{22}\\u{5c}\\u{a}"'


def test_web_refuses_int8_tensors_that_litert_js_does_not_take(tmp_path):
    told = {"inputs": [TENSOR | {"dtype": "int8", "scale": [0.1], "zero_point": [0]}]}
    with pytest.raises(UnsupportedError, match=r"input 'image' is int8, LiteRT.js takes float32, int32, uint8; export"):
        web.WebPackager().lay_out(content(tmp_path, **told), tmp_path)


def test_names_become_classes():
    assert wrapping.camel_case("keyword-int8.v2_a") == "KeywordInt8V2A"
    assert android.package_name("Keyword-int8.v2") == "edgedl.keyword_int8_v2"


def test_android_asks_for_the_accelerator_of_a_target_and_the_newest_runtime_that_one_needs(tmp_path, monkeypatch):
    sources = {}
    monkeypatch.setattr(android.jvm, "compile_", lambda texts, *_: sources.update(texts))
    runtime = {"name": "litert", "resolver": "gpu", "fallback": []}
    targets = [
        {"id": "a", "accelerator": {}, "runtimes": [runtime | {"minimum": "2.9.0"}]},
        {"id": "b", "accelerator": {"kind": "gpu", "name": "G"}, "runtimes": [runtime | {"minimum": "2.10.1"}]},
    ]
    layout = android.AndroidPackager().lay_out(content(tmp_path, targets=targets), tmp_path)
    assert "accelerator: Accelerator = Accelerator.GPU" in sources["edgedl/keyword/Model.kt"]
    assert "litert:2.10.1" in (tmp_path / "README.md").read_text()
    assert any("litert-gpu:2.10.1" in note for note in layout.notes)


def test_wrappers_ask_for_the_runtime_that_the_model_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(android.jvm, "compile_", lambda *_: None)
    usual = {"litert": "1.0.0", "onnxruntime": "1.15.1"}
    newer = {"litert": "2.10.0", "onnxruntime": "1.100.0"}
    onnx = {"artifact": {"file": "m.onnx", "format": "onnx"}}
    for minimums, litert, web_ort, swift_ort in (
        (usual, "2.3.0", "1.30.0", "1.20.0"),
        (newer, "2.10.0", *["1.100.0"] * 2),
    ):
        told = {"runtime": {"minimums": minimums}}
        tree = tmp_path / litert
        tree.mkdir()
        android.AndroidPackager().lay_out(content(tmp_path, **told), tree)
        assert f"litert:{litert}" in (tree / "README.md").read_text()
        web.WebPackager().lay_out(content(tmp_path, **told, **onnx), tree)
        package = json.loads((tree / "package/package.json").read_text())
        assert package["dependencies"] == {"onnxruntime-web": f"^{web_ort}"}
        ios.IosPackager().lay_out(content(tmp_path, **told, **onnx), tree)
        assert f'from: "{swift_ort}"' in (tree / "Keyword/Package.swift").read_text()


def test_several_inputs_and_outputs_are_parameters_and_properties(tmp_path, monkeypatch):
    sources = {}
    monkeypatch.setattr(android.jvm, "compile_", lambda texts, *_: sources.update(texts))
    told = {
        "inputs": [TENSOR | {"name": "left"}, TENSOR | {"name": "ids", "dtype": "int32", "shape": [1, 4]}],
        "outputs": [TENSOR | {"name": "angle", "shape": [1, 1]}, TENSOR | {"name": "kind", "shape": [1, 3]}],
    }
    android.AndroidPackager().lay_out(content(tmp_path, **told), tmp_path)
    kotlin = sources["edgedl/keyword/Model.kt"]
    assert "fun predict(left: FloatArray, ids: IntArray): KeywordOutputs" in kotlin
    assert "class KeywordOutputs internal constructor(val angle: FloatArray, val kind: FloatArray)" in kotlin
    (tmp_path / "web").mkdir()
    web.WebPackager().lay_out(content(tmp_path, **told), tmp_path / "web")
    types_ = (tmp_path / "web/package/index.d.ts").read_text()
    assert "predict(inputs: { left: Float32Array; ids: Int32Array }): Promise<KeywordOutputs>;" in types_
    assert "  angle: Float32Array;" in types_


def test_every_template_is_used_and_none_keeps_a_word(tmp_path, monkeypatch):
    sources = {}
    monkeypatch.setattr(android.jvm, "compile_", lambda texts, *_: sources.update(texts))
    steps = [{"op": "grayscale"}]
    for key, packager in ((None, web.WebPackager()), (None, ios.IosPackager()), (bytes(32), android.AndroidPackager())):
        for format_ in ("tflite", "onnx"):
            tree = tmp_path / packager.platform / format_
            tree.mkdir(parents=True)
            told = manifest(preprocessing=steps, artifact={"file": "m", "format": format_})
            packager.lay_out(types.Content(folder=tmp_path, manifest=told, public_key=key), tree)
    texts = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.suffix not in ("", ".jar")}
    texts |= {Path(name).name: text for name, text in sources.items()}
    templates = {file.name for file in wrapping.FOLDER.rglob("*") if file.is_file() and "stubs" not in file.parts}
    assert templates - {"engine_tflite.js", "engine_onnx.js"} <= set(texts)
    assert not [name for name, text in texts.items() if wrapping.WORD.search(text)]


def test_javascript_preprocesses_as_python_does(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js: apt-get install nodejs")
    asked = cases.make()
    (tmp_path / "cases.json").write_text(json.dumps(asked))
    script = Path(__file__).parent / "wrappers" / "steps.mjs"
    command = [node, script, tmp_path / "cases.json", wrapping.FOLDER / "web"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for case, answer in zip(asked, found, strict=True):
        assert answer == case["expected"], case["steps"]


def test_javascript_labels_of_top(tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js: apt-get install nodejs")
    for module in web.MODULES:
        shutil.copy(wrapping.FOLDER / "web" / module, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "engine.js").write_text("export const open = null;")
    (tmp_path / "top.js").write_text(
        'import { Model } from "./model.js";\n'
        f"const answers = {json.dumps(cases.TOP)}.map(({{ labels, values }}) =>\n"
        "  new Model({ labels }, null, {}).top(Float32Array.from(values), 3).map((s) => [String(s.label), s.value]));\n"
        "console.log(JSON.stringify(answers));\n"
    )
    told = subprocess.run([node, tmp_path / "top.js"], check=True, capture_output=True, text=True)
    for case, found in zip(cases.TOP, json.loads(told.stdout), strict=True):
        assert [(label, pytest.approx(value)) for label, value in found] == case["expected"]
