"""The npm package: npm installs it, and in Chromium it gives what the artifact gives here."""

import json
import shutil
import subprocess
import tarfile

import browser
import numpy as np
import pytest
from wrappers import models

from edgedl import packaging, pipeline, preprocessing

NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH")
IMPORTS = {
    "shapes": "/node_modules/shapes/index.js",
    "pairs": "/node_modules/pairs/index.js",
    "@litertjs/core": "/node_modules/@litertjs/core/dist/index.js",
    "@litertjs/wasm-utils": "/node_modules/@litertjs/wasm-utils/dist/index.js",
    "onnxruntime-web/wasm": "/node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs",
    "onnxruntime-web/webgpu": "/node_modules/onnxruntime-web/dist/ort.webgpu.bundle.min.mjs",
}
SCRIPT = """
import {{ ShapesModel }} from "shapes";
import {{ PairsModel }} from "pairs";

const given = {given};
const refusal = (promise) => promise.then(() => null, (error) => error.message);

export default async function main() {{
  const shapes = await ShapesModel.load();
  const sample = {{ data: Uint8Array.from(given.pixels), shape: [14, 9, 3] }};
  const rgba = new ImageData(9, 14);
  sample.data.forEach((value, i) => (rgba.data[Math.floor(i / 3) * 4 + (i % 3)] = value));
  const values = await shapes.predict(sample);
  const pairs = await PairsModel.load({{ accelerator: "webgpu" }});
  const [left, right] = [Float32Array.from(given.left), Float32Array.from(given.right)];
  const found = {{
    accelerator: shapes.accelerator,
    test: await shapes.selfTest(),
    values: Array.from(values),
    best: shapes.top(values, 2)[0],
    canvas: Array.from(await shapes.predict(rgba)),
    refused: await refusal(shapes.predict({{ data: new Uint8Array(8), shape: [8] }})),
    onnx: {{ accelerator: pairs.accelerator, fallback: pairs.fallback, test: await pairs.selfTest() }},
    pairs: await pairs.predict({{ left, right }}).then(({{ angle, kind }}) => [Array.from(angle), Array.from(kind)]),
    missing: await refusal(pairs.predict({{ left }})),
  }};
  shapes.close();
  return found;
}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with shapes.tflite and pairs.onnx, and out/ with the packages of both."""
    folder = tmp_path_factory.mktemp("web")
    models.write_tflite(folder / "shapes.tflite")
    models.write_onnx(folder / "pairs.onnx", ("left", "right"), ("angle", "kind"))
    pipeline.package(folder / "shapes.tflite", platforms=["web"], out=folder / "out", data=models.write_data(folder))
    pipeline.package(folder / "pairs.onnx", platforms=["web"], out=folder / "out")
    return folder


@pytest.fixture(scope="module")
def app(made):
    """A folder whose node_modules npm has filled with both packages."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm: apt-get install npm")
    folder = made / "app"
    folder.mkdir()
    (folder / "package.json").write_text('{"private": true}')
    packages = sorted(str(path) for path in (made / "out").glob("*.tgz"))
    flags = ["--no-audit", "--no-fund", "--prefer-offline", "--ignore-scripts"]
    told = subprocess.run(["npm", "install", *flags, *packages], cwd=folder, capture_output=True, text=True)
    if told.returncode and any(code in told.stderr for code in NETWORK):
        pytest.skip("needs the npm registry")
    assert told.returncode == 0, told.stderr
    return folder


def test_chromium_gives_what_the_artifacts_give_here(made, app):
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (14, 9, 3), dtype=np.uint8)
    left, right = rng.random((2, 1, 8, 8, 1), dtype=np.float32)
    given = {"pixels": pixels.reshape(-1).tolist(), "left": left.ravel().tolist(), "right": right.ravel().tolist()}
    found = browser.run(app, SCRIPT.format(given=json.dumps(given)), IMPORTS)
    expected = _shapes(made, app, pixels)
    assert found["accelerator"] == "wasm"
    assert found["test"]["passed"]
    assert [c["output"] for c in found["test"]["checks"]] == ["output_0"]
    assert found["test"]["checks"][0]["measured"] < 1e-6
    assert found["values"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert found["canvas"] == found["values"]
    best = int(expected.argmax())
    assert (found["best"]["index"], found["best"]["label"]) == (best, models.LABELS[best])
    assert found["refused"] == "preprocess step 1 (grayscale): needs RGB images (height, width, 3), got [8]"
    assert found["onnx"]["accelerator"] == "wasm"
    assert "webgpu" in found["onnx"]["fallback"].lower()
    assert found["onnx"]["test"]["passed"]
    for values, wanted in zip(found["pairs"], _pairs(made, left, right), strict=True):
        assert values == pytest.approx(wanted[0].tolist(), abs=1e-5)
    assert found["missing"] == 'input "right" is missing'


def _shapes(made, app, pixels):
    from ai_edge_litert.interpreter import Interpreter

    manifest = json.loads((app / "node_modules/shapes/model/manifest.json").read_text())
    values = preprocessing.apply(preprocessing.parse(manifest["preprocessing"], "test"), pixels[None])
    model = Interpreter(str(made / "shapes.tflite"))
    model.allocate_tensors()
    model.set_tensor(model.get_input_details()[0]["index"], values)
    model.invoke()
    return model.get_tensor(model.get_output_details()[0]["index"])[0]


def _pairs(made, left, right):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(made / "pairs.onnx"))
    return session.run(["angle", "kind"], {"left": left, "right": right})


def test_the_types_hold_for_typescript(made, app):
    compiler = shutil.which("tsc")
    if compiler is None:
        pytest.skip("needs TypeScript: apt-get install node-typescript")
    (app / "use.ts").write_text(
        'import { ShapesModel } from "shapes";\nimport { PairsModel, type PairsOutputs } from "pairs";\n'
        "const model = await ShapesModel.load();\n"
        "const values: Float32Array = await model.predict(new ImageData(2, 2));\n"
        "const best: string | null = model.top(values)[0].label;\n"
        "const pairs = await PairsModel.load({ accelerator: 'webgpu' });\n"
        "const both: PairsOutputs = await pairs.predict({ left: values, right: values });\n"
        "// @ts-expect-error\nawait pairs.predict(values);\n"
        "console.log(best, both.angle, (await model.selfTest()).checks[0].measured);\n"
    )
    options = {"noEmit": True, "strict": True, "target": "es2022", "module": "es2022", "moduleResolution": "node"}
    (app / "tsconfig.json").write_text(json.dumps({"compilerOptions": options | {"types": []}, "files": ["use.ts"]}))
    told = subprocess.run([compiler, "-p", "."], cwd=app, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout


def test_packages_hold_and_are_the_same_twice(made, tmp_path):
    for path in (made / "out").glob("*.tgz"):
        assert packaging.verify(path)["verdict"] == "pass"
    (again,) = pipeline.package(made / "pairs.onnx", platforms=["web"], out=tmp_path / "out")
    assert again.read_bytes() == (made / "out" / again.name).read_bytes()
    with tarfile.open(again) as archive:
        package = json.load(archive.extractfile("package/package.json"))
    assert package["dependencies"] == {"onnxruntime-web": "^1.30.0"}
