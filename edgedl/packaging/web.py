"""The platform `web`: an npm package that runs the model in a browser, with LiteRT.js or onnxruntime-web."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgedl import targets
from edgedl.errors import InputError
from edgedl.packaging import manifest, wrapping
from edgedl.packaging.wrapping import Limits, Tensor, Wrapper
from edgedl.types import Content, Layout

PROFILE = "browser-wasm"
MODULES = ("model.js", "preprocessing.js", "tensors.js")
CONTENT = "package/model"
ARRAYS = {"float32": "Float32Array", "int32": "Int32Array", "uint8": "Uint8Array", "int8": "Int8Array"}
ARRAYS |= {"int16": "Int16Array", "uint16": "Uint16Array"}
NPM_NAME = re.compile(r"[a-z][a-z0-9_.-]*", re.ASCII)
# words that no variable may have: ECMAScript 2024, 12.7.2, in a module
RESERVED = wrapping.words("""
    arguments await break case catch class const continue debugger default delete do else enum eval export extends
    false finally for function if implements import in instanceof interface let new null package private protected
    public return static super switch this throw true try typeof var void while with yield
""")


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What runs a format in a browser: its id in the profile, npm package, module of ours, and what it takes.

    `kernels` is the runtime whose releases have the same numbers and operators, where there is one.
    """

    id: str
    kernels: str = ""
    package: str
    engine: str
    limits: Limits


RUNTIMES = {
    "tflite": Runtime(
        id="litert-js",
        package="@litertjs/core",
        engine="engine_tflite.js",
        limits=Limits(runtime="LiteRT.js", dtypes=("float32", "int32", "uint8")),
    ),
    "onnx": Runtime(
        id="onnxruntime-web",
        kernels="onnxruntime",
        package="onnxruntime-web",
        engine="engine_onnx.js",
        limits=Limits(runtime="onnxruntime-web", dtypes=tuple(ARRAYS), free_batch=True),
    ),
}


class WebPackager:
    """`NAME-VERSION.tgz`."""

    platform = "web"
    formats: tuple[str, ...] = tuple(RUNTIMES)

    def lay_out(self, content: Content, tree: Path) -> Layout:
        """JavaScript modules, their TypeScript types, package.json and a README."""
        told = content.manifest
        runtime = RUNTIMES[told["artifact"]["format"]]
        wrapped = wrapping.wrapper(told, runtime.limits)
        for side, tensors in (("input", wrapped.inputs), ("output", wrapped.outputs)):
            wrapping.check_names(tensors, side, "JavaScript", RESERVED)
        values = _values(wrapped, runtime, content)
        root = tree / "package"
        root.mkdir()
        for file in ("index.js", "index.d.ts", "README.md"):
            _write(root / file, wrapping.render("web", file, values))
        for file in MODULES:
            _write(root / file, (wrapping.FOLDER / "web" / file).read_text(encoding="utf-8"))
        _write(root / "engine.js", (wrapping.FOLDER / "web" / runtime.engine).read_text(encoding="utf-8"))
        _write(root / "package.json", json.dumps(_package(told, runtime), indent=2) + "\n")
        notes = wrapping.notes(told, runtime.limits)
        return Layout(file=f"{told['name']}-{told['version']}.tgz", content=CONTENT, notes=notes)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _package(told: Mapping[str, Any], runtime: Runtime) -> dict[str, Any]:
    """package.json. Raises InputError where the name is none for npm."""
    if not NPM_NAME.fullmatch(told["name"]):
        message = (
            f"--name: {told['name']!r} is no name for npm, which takes lower-case letters, digits and _ . -; see --name"
        )
        raise InputError(message)
    usual = next(r.minimum for r in targets.load(PROFILE).runtimes if r.name == runtime.id)
    minimum = wrapping.runtime_release(told, runtime.kernels, usual)
    package = {
        "name": told["name"],
        "version": told["version"],
        "description": f"The model {told['name']} for {runtime.limits.runtime}, packaged by edgedl",
        "type": "module",
        "exports": {
            ".": {"types": "./index.d.ts", "default": "./index.js"},
            "./model/*": "./model/*",
            "./package.json": "./package.json",
        },
        "types": "./index.d.ts",
        "sideEffects": False,
        "dependencies": {runtime.package: f"^{minimum}"},
    }
    return package | ({"license": told["license"]} if told.get("license") else {})


def _values(wrapped: Wrapper, runtime: Runtime, content: Content) -> dict[str, str]:
    """The words of the templates."""
    names = [tensor.name for tensor in wrapped.inputs]
    golden = content.manifest["golden"]
    files = [
        manifest.NAME,
        content.manifest["artifact"]["file"],
        *golden["inputs"].values(),
        *golden["outputs"].values(),
    ]
    one_in, one_out = len(wrapped.inputs) == 1, len(wrapped.outputs) == 1
    outputs = wrapped.results
    return {
        "NAME": wrapped.name,
        "VERSION": wrapped.version,
        "MODEL": wrapped.model,
        "ENGINE": runtime.limits.runtime,
        "FILES": "\n".join(
            f"  {json.dumps(f)}: new URL({json.dumps('./model/' + f)}, import.meta.url)," for f in files
        ),
        "GIVEN": "input" if one_in else f"{{ {', '.join(names)} }}",
        "SAMPLES": f"{{ {json.dumps(names[0])}: input }}" if one_in else f"{{ {', '.join(names)} }}",
        "RESULT": f"_outputs[{json.dumps(wrapped.outputs[0].name)}]" if one_out else "_outputs",
        "TYPES": "" if one_out else f"\nexport interface {outputs} {{\n{_outputs(wrapped)}\n}}\n",
        "PREDICT": _predict(wrapped, "Float32Array" if one_out else outputs),
        "EXAMPLE": _example(wrapped),
        "INPUTS": "; ".join(_shown(t, _taken(wrapped, t)) for t in wrapped.inputs),
        "OUTPUTS": "; ".join(_shown(t, "Float32Array") for t in wrapped.outputs),
        "STEPS": wrapping.shown_steps(wrapped),
    }


def _taken(wrapped: Wrapper, tensor: Tensor) -> str:
    """The TypeScript type of what an app gives for an input."""
    if wrapped.takes_images:
        return "Sample | ImageData"
    return 'Sample | Sample["data"]' if wrapped.steps else ARRAYS[tensor.dtype]


def _predict(wrapped: Wrapper, result: str) -> str:
    lines = [f"  /** {_doc(wrapped)} */"]
    if len(wrapped.inputs) == 1:
        given = f"input: {_taken(wrapped, wrapped.inputs[0])}"
    else:
        given = "inputs: { " + "; ".join(f"{t.name}: {_taken(wrapped, t)}" for t in wrapped.inputs) + " }"
    return "\n".join([*lines, f"  predict({given}): Promise<{result}>;"])


def _doc(wrapped: Wrapper) -> str:
    before = f"Preprocesses ({wrapping.shown_steps(wrapped)}) and runs" if wrapped.steps else "Runs"
    inputs = " and ".join(wrapping.shown_shape(t) for t in wrapped.inputs)
    outputs = " and ".join(wrapping.shown_shape(t) for t in wrapped.outputs)
    return f"{before} one sample. The model takes {inputs} and gives {outputs} values."


def _outputs(wrapped: Wrapper) -> str:
    return "\n".join(f"  /** {wrapping.shown_shape(t)} values */\n  {t.name}: Float32Array;" for t in wrapped.outputs)


def _example(wrapped: Wrapper) -> str:
    if wrapped.takes_images:
        return "context.getImageData(0, 0, width, height)"
    given = {t.name: f"new {ARRAYS[t.dtype]}({' * '.join(map(str, t.shape)) or 1})" for t in wrapped.inputs}
    if len(given) == 1:
        return next(iter(given.values()))
    return "{ " + ", ".join(f"{name}: {value}" for name, value in given.items()) + " }"


def _shown(tensor: Tensor, type_: str) -> str:
    return f"`{tensor.name}`, {wrapping.shown_shape(tensor)} values (`{type_}`)"
