"""Measure how far instructions on an emulated Cortex-M4 are from published milliseconds of the same kernels.

    scripts/measure_instructions.py [FOLDER]     # FOLDER has the files of MLPerf Tiny, ../shared/data/mlperf_tiny

The four networks of MLPerf Tiny as firmware, beside the times of microTVM with CMSIS-NN on a NUCLEO-L4R5ZI, both
calling CMSIS-NN. Its file for visual wake words is not in the folder: a network of its architecture with random weights
stands in, whose values hardly move the count. Writes edgedl/latency/data/instructions.csv, which `edgedl benchmark`
tells from.
"""

from __future__ import annotations

import csv
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from edgedl import artifacts, pipeline, worker  # noqa: E402
from edgedl.latency import figures, instructions  # noqa: E402
from edgedl.validation import benchmark  # noqa: E402
from edgedl_bakenn.device import Firmware, Options  # noqa: E402

CORE, MACHINE, KERNELS = "cortex-m4", "mps2-an386", ("microtvm", "cmsis-nn")
FILES = {
    "ResNet8 CIFAR-10 32x32x3": "ic/pretrainedResnet_quant.tflite",
    "DS-CNN 49x10x1": "kws/kws_ref_model.tflite",
    "FC autoencoder 640": "ad/ad01_int8.tflite",
    "MobileNetV1 0.25 96x96x3": None,
}
ANOTHER_BOARD = "/NRF5340-DK/"  # a submission's folder; its results name no board of their own


def main(folder: Path) -> None:
    """Count, join and write."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for model, name in FILES.items():
            path = folder / name if name else _wake_words(Path(scratch))
            told, published = _count(path), _published(model)
            latency_ms = statistics.median(f.latency_ms for f in published)
            rows.append(
                {
                    "core": CORE,
                    "model": model,
                    "instructions": told.instructions,
                    "counted": f"{told.emulator}, {told.runtime} with {told.resolver}",
                    "latency_ms": latency_ms,
                    "clock_hz": published[0].clock_hz,
                    "published": f"microTVM with CMSIS-NN on a {published[0].board}",
                    "source": " ".join(f.source for f in published),
                }
            )
    with instructions.FIGURES.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(instructions.beside(CORE))
    worker.close()


def _published(model: str) -> list[figures.Figure]:
    wanted = (*KERNELS, CORE, model)
    found = [f for f in figures.read() if (f.runtime, f.version, f.core, f.model) == wanted]
    return [f for f in found if ANOTHER_BOARD not in f.source]


def _count(path: Path) -> Any:
    artifact = artifacts.read(path)[0]
    inputs = {name: str(p) for name, p in benchmark.random_inputs(artifact, 0).items()}
    quantization = {s.name: [s.scale, s.zero_point] for s in artifact.inputs}
    asked = {"artifact": str(path), "threads": 1, "inputs": inputs, "quantization": quantization}
    return Firmware().open(Options(machine=MACHINE)).count(asked, 600)


def _wake_words(folder: Path) -> Path:
    """MobileNetV1 0.25 as https://github.com/mlcommons/tiny trains it for visual wake words, untrained, in int8."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    x = given = keras.Input((96, 96, 3))

    def normalized(x: Any) -> Any:
        return layers.ReLU()(layers.BatchNormalization()(x))

    x = normalized(layers.Conv2D(8, 3, strides=2, padding="same")(x))
    blocks = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)]
    for channels, stride in blocks:
        x = normalized(layers.DepthwiseConv2D(3, strides=stride, padding="same")(x))
        x = normalized(layers.Conv2D(channels, 1)(x))
    x = layers.Flatten()(layers.AveragePooling2D(3)(x))
    keras.Model(given, layers.Dense(2, activation="softmax")(x)).save(folder / "vww.keras")
    np.savez(folder / "vww.npz", x=np.random.default_rng(0).random((50, 96, 96, 3), np.float32))
    out = folder / "vww.tflite"
    pipeline.export(
        folder / "vww.keras", out, scheme="int8", calibration_data=folder / "vww.npz", samples=50, io="int8"
    )
    return out


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared/data/mlperf_tiny")
