"""The models and data that `scripts/bench compress` measures on: made once in a folder, from ../shared/data."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_measure import output
from numpy.typing import NDArray

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
EDGEDL = str(Path(sys.executable).with_name("edgedl"))
CLIP = 8_000  # one second at 8 kHz
MFCC = {"op": "mfcc", "sample_rate_hz": 8_000, "frame_length": 320, "frame_step": 160, "coefficients": 10}
Arrays = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A float model with what to train and to judge it on: .npz files with x and y."""

    name: str
    model: Path
    train: Path
    test: Path


def cifar() -> tuple[Arrays, Arrays]:
    """CIFAR-10: 10,000 images to train, 5,000 to judge, as MLPerf Tiny's ResNet8 takes them."""
    train, test = (np.load(SHARED / f"cifar10/{part}.npz") for part in ("train", "test"))
    return (train["x"], train["y"]), (test["x"], test["y"])


def digits() -> tuple[Arrays, Arrays]:
    """Spoken digits as MFCC, shape (49, 10, 1), by edgedl's own preprocessing; the official split."""
    from edgedl import preprocessing

    data = np.load(SHARED / "free_spoken_digits/fsdd.npz")
    signals = np.zeros((len(data["y"]), CLIP), np.float32)
    for row, start, end in zip(signals, data["offsets"], data["offsets"][1:], strict=False):
        clip = data["audio"][start : min(end, start + CLIP)]
        row[: len(clip)] = clip
    ops = preprocessing.parse([{"op": "scale", "factor": 1 / 32768}, MFCC], "bench")
    parts = [preprocessing.apply(ops, signals[at : at + 256]) for at in range(0, len(signals), 256)]
    x, y, test = np.concatenate(parts)[..., None], data["y"].astype(np.int64), data["split"] == "test"
    return (x[~test], y[~test]), (x[test], y[test])


def fashion() -> tuple[Arrays, Arrays]:
    """Fashion-MNIST, shape (28, 28, 1), uint8."""

    def part(name: str) -> Arrays:
        images, labels = (
            np.frombuffer(gzip.decompress((SHARED / f"fashion_mnist/{name}-{kind}-ubyte.gz").read_bytes()), np.uint8)
            for kind in ("images-idx3", "labels-idx1")
        )
        return images[16:].reshape(-1, 28, 28, 1), labels[8:].astype(np.int64)

    return part("train"), part("t10k")


@dataclass(frozen=True, kw_only=True)
class _Source:
    data: Callable[[], tuple[Arrays, Arrays]]
    folder: str  # of SHARED
    model: str | None = None  # a file of SHARED, or
    architecture: str = ""  # what is trained, for so many epochs
    epochs: int = 0


SOURCES = {
    "ic": _Source(data=cifar, folder="cifar10", model="mlperf_tiny/ic/pretrainedResnet.h5"),
    "kws": _Source(data=digits, folder="free_spoken_digits", architecture="ds-cnn", epochs=30),
    "fashion": _Source(data=fashion, folder="fashion_mnist", architecture="mobilenet-tiny", epochs=3),
    "phone": _Source(data=fashion, folder="fashion_mnist", architecture="mobilenet-v2", epochs=3),
}


def missing(name: str) -> str | None:
    """Why a model cannot be had here; None where it can."""
    source = SOURCES[name]
    wanted = [SHARED / source.folder] + ([SHARED / source.model] if source.model else [])
    return next((f"needs {path}" for path in wanted if not path.exists()), None)


def prepare(name: str, folder: Path, *, quick: bool) -> Subject:
    """The model and its data in `folder`, made where missing; `quick` takes few samples and one epoch.

    Raises RuntimeError where the model cannot be trained.
    """
    source = SOURCES[name]
    place = folder / (f"{name}-quick" if quick else name)
    place.mkdir(parents=True, exist_ok=True)
    paths = [place / "train.npz", place / "test.npz"]
    if not all(p.exists() for p in paths):
        for path, (x, y), most in zip(paths, source.data(), (512, 1_000), strict=True):
            rows = np.random.default_rng(0).permutation(len(x))[:most] if quick else np.arange(len(x))
            np.savez(path, x=x[rows], y=y[rows])
    if source.model:
        return Subject(name=name, model=SHARED / source.model, train=paths[0], test=paths[1])
    model = place / "model.keras"
    if not model.exists():
        epochs = 1 if quick else source.epochs
        asked = ["--model", source.architecture, "--data", paths[0], "--epochs", epochs, "--patience", 0, "-o", model]
        told = output(EDGEDL, "train", *asked, "--json")
        (place / "trained.json").write_text(json.dumps(json.loads(told), indent=2))
    return Subject(name=name, model=model, train=paths[0], test=paths[1])
