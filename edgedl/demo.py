"""The demo: scikit-learn's handwritten digits, from training to a checked package, as a pipeline file to copy from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgedl import artifacts, pipeline, runs, worker
from edgedl.errors import InputError
from edgedl.types import Report

TEST_IMAGES = 597
PIPELINE = """\
# Everything below is what `edgedl train`, `export`, `validate` and `package` take on the command line.
[train]
model = "cnn-small"
data = "train.toml"
epochs = {epochs}
seed = 0

[[export]]
format = "tflite"
scheme = "fp32"

[[export]]
format = "tflite"
scheme = "int8"
calibration-data = "train.toml"

[[export]]
format = "onnx"
scheme = "int8"
calibration-data = "train.toml"

[[validate]]
artifact = "model-int8.tflite"
data = "test.toml"
max-drop = "2pp"
target = ["host", "raspberry-pi-4", "pixel-8", "nucleo-h743zi2"]

[[validate]]
artifact = "model-int8.onnx"
data = "test.toml"
max-drop = "2pp"
target = ["host", "raspberry-pi-5"]

[package]
artifact = "model-int8.tflite"
platform = "zip"
data = "test.toml"
name = "digits"
"""
DATA = """\
data = "{name}.npz"
labels = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
"""


def write_digits(folder: str) -> dict[str, int]:
    """Child side: `train.npz` and `test.npz` with x (n, 8, 8, 1) uint8, 0 to 16, and y; the numbers of images."""
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        message = "the demo's data comes with scikit-learn: pip install 'edgedl[demo]'"
        raise InputError(message) from e
    digits = load_digits()
    x, y = digits.images.astype(np.uint8)[..., None], digits.target
    order = np.random.default_rng(0).permutation(len(x))
    parts = {"test": order[:TEST_IMAGES], "train": order[TEST_IMAGES:]}
    for name, rows in parts.items():
        np.savez(Path(folder, f"{name}.npz"), x=x[rows], y=y[rows])
    return {name: len(rows) for name, rows in parts.items()}


def _check_folder(folder: Path, file: Path) -> None:
    """Raises InputError where the folder holds something else than a demo."""
    first = PIPELINE.splitlines()[0]
    ours = file.is_file() and file.read_text(encoding="utf-8", errors="replace").startswith(first)
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        message = f"{folder}: is not empty and holds no demo; name another folder with -o"
        raise InputError(message)


def run(folder: Path, *, said: Any, epochs: int = 20) -> tuple[dict[str, Any], list[Report]]:
    """Write data and pipeline file into `folder`, do it, and verify the package. What `edgedl demo --json` prints."""
    file = folder / "pipeline.toml"
    _check_folder(folder, file)
    with artifacts.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(PIPELINE.format(epochs=epochs), encoding="utf-8")
        for name in ("train", "test"):
            (folder / f"{name}.toml").write_text(DATA.format(name=name), encoding="utf-8")
    counts = worker.call("edgedl.demo:write_digits", {"folder": str(folder)}, child="data")
    said(f"data: {counts['train']} images to train on, {counts['test']} to judge on")
    found, reports = runs.run(str(file), out=str(folder), said=said)
    package = next((folder / "package").glob("*.zip"))
    verified = pipeline.verify(package)
    said(f"verify {package.name}: {verified['verdict']}")
    return found | {"package": str(package), "verified": verified["verdict"]}, reports
