"""Measure how far instructions on an emulated Cortex-M are from published milliseconds of the same kernels.

    scripts/measure_instructions.py [FOLDER]     # FOLDER has the files of MLPerf Tiny, ../shared/data/mlperf_tiny

The four networks of MLPerf Tiny as firmware, beside the times of microTVM with CMSIS-NN on boards with the same cores.
Its file for visual wake words is not in the folder: a network of its architecture with random weights
stands in, whose values hardly move the count. Writes edgedl/latency/data/instructions.csv, which `edgedl benchmark`
tells from.
"""

from __future__ import annotations

import csv
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from edgedl import artifacts, pipeline, worker  # noqa: E402
from edgedl.latency import figures, instructions  # noqa: E402
from edgedl.validation import benchmark  # noqa: E402
from edgedl_bakenn.device import Firmware, Options  # noqa: E402

RUNTIME, VERSION = "microtvm", "cmsis-nn"


@dataclass(frozen=True, kw_only=True)
class Board:
    """What a submission's results come from, as its system description says; `folder` is in their paths."""

    machine: str
    core: str
    name: str
    clock_hz: float
    folder: str
    system: str


SYSTEMS = "mlcommons/tiny_results_v1.0:closed/OctoML/systems/system_description_"
BOARDS = (
    Board(machine="mps2-an386", core="cortex-m4", name="NUCLEO-L4R5ZI", clock_hz=120e6, folder="L4R5ZI",
          system=f"{SYSTEMS}NUCLEO_L4R5ZI_microtvm_cmsis_nn.json"),
    Board(machine="mps2-an505", core="cortex-m33", name="nRF5340 DK", clock_hz=128e6, folder="NRF5340",
          system=f"{SYSTEMS}NRF5340DK_microtvm_cmsis_nn.json"),
)  # fmt: skip
FILES = {
    "ResNet8 CIFAR-10 32x32x3": "ic/pretrainedResnet_quant.tflite",
    "DS-CNN 49x10x1": "kws/kws_ref_model.tflite",
    "FC autoencoder 640": "ad/ad01_int8.tflite",
    "MobileNetV1 0.25 96x96x3": None,
}


def main(folder: Path) -> None:
    """Count, join and write."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for model, name in FILES.items():
            path = folder / name if name else _wake_words(Path(scratch))
            rows += [_row(board, model, path) for board in BOARDS]
    rows.sort(key=lambda row: row["core"])
    with instructions.FIGURES.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for board in BOARDS:
        print(instructions.beside(board.core))
    worker.close()


def _row(board: Board, model: str, path: Path) -> dict[str, Any]:
    told = _count(path, board.machine)
    found = [f for f in figures.read() if (f.runtime, f.version, f.model) == (RUNTIME, VERSION, model)]
    published = [f for f in found if board.folder in f.source]
    return {
        "core": board.core,
        "model": model,
        "instructions": told.instructions,
        "counted": f"{told.emulator}, {told.runtime}; {told.resolver}",
        "latency_ms": statistics.median(f.latency_ms for f in published),
        "clock_hz": board.clock_hz,
        "published": f"microTVM with CMSIS-NN, {board.name}",
        "source": " ".join(f.source for f in published),
        "system": board.system,
    }


def _count(path: Path, machine: str) -> Any:
    artifact = artifacts.read(path)[0]
    inputs = {name: str(p) for name, p in benchmark.random_inputs(artifact, 0).items()}
    quantization = {s.name: [s.scale, s.zero_point] for s in artifact.inputs}
    asked = {"artifact": str(path), "threads": 1, "inputs": inputs, "quantization": quantization}
    return Firmware().open(Options(machine=machine)).count(asked, 600)


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
