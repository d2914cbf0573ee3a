"""What works here: interpreter, packages, runtimes that really start, plugins that load, accelerators, caches."""

from __future__ import annotations

import platform
import shutil
import sys
from typing import Any

from edgedl import artifacts, devices, model_file, plugins, worker
from edgedl.errors import EdgedlError

PACKAGES = (
    "tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-litert", "tflite-runtime", "onnx",
    "onnxruntime", "tf2onnx", "numpy", "scipy", "matplotlib", "jinja2", "scikit-learn", "pillow",
    "cryptography", "tflite-micro",
)  # fmt: skip
TOOLS = ("kotlinc", "javac")  # of `package --platform android`


def accelerators() -> dict[str, Any]:
    """Child side: TensorFlow's version and the accelerators it sees."""
    import tensorflow as tf

    return {"tensorflow": tf.__version__, "gpus": [d.name for d in tf.config.list_physical_devices("GPU")]}


def examine() -> dict[str, Any]:
    """Facts, and `problems`: one line each with what to do."""
    problems: list[str] = []
    runtimes = [_runtime(p.name, problems) for p in plugins.listing("runtimes")]
    exporters = [_exporter(p.name, problems) for p in plugins.listing("exporters")]
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "packages": artifacts.versions(*PACKAGES),
        "runtimes": runtimes,
        "exporters": exporters,
        "devices": devices.overview(),
        "tools": {name: shutil.which(name) for name in TOOLS},
        "training": _training(problems),
        "cache": str(model_file.cache_folder()),
        "free_bytes": shutil.disk_usage(worker.pool().folder).free,
        "problems": problems,
    }


def _runtime(name: str, problems: list[str]) -> dict[str, Any]:
    try:
        runtime = plugins.load("runtimes", name)
        asked = artifacts.probe(runtime)
        child, interpreter = artifacts.child_of(runtime), artifacts.interpreter_of(runtime)
        found = worker.call("info", asked, child=child, interpreter=interpreter, timeout_s=60)["runtimes"][name]
    except EdgedlError as e:
        problems.append(f"runtime {name}: {e}")
        return {"name": name, "version": None, "why": str(e)}
    if found["version"] is None:
        problems.append(f"runtime {name} does not start here: {found['why']}. Try: {runtime.install}")
    return {"name": name, **found}


def _exporter(name: str, problems: list[str]) -> dict[str, Any]:
    try:
        exporter = plugins.load("exporters", name)
    except EdgedlError as e:
        problems.append(str(e))
        return {"name": name, "schemes": [], "why": str(e)}
    return {"name": name, "schemes": list(exporter.schemes), "why": None}


def _training(problems: list[str]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = worker.call("edgedl.doctor:accelerators", {}, child=model_file.CHILD, timeout_s=300)
    except EdgedlError as e:
        problems.append(f"training and export need TensorFlow: {e}. Try: pip install 'edgedl[keras]'")
        return {"tensorflow": None, "gpus": []}
    return found
