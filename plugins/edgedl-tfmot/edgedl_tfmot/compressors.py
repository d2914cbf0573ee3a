"""The compressors `tfmot.prune`, `tfmot.cluster`, `tfmot.qat`, `tfmot.pqat`, `tfmot.cqat`, `tfmot.pcqat`.

A step's keys are in TFMOT's words. Training is TFMOT's own: without a teacher, early stopping or augmentation.
"""

from __future__ import annotations

import dataclasses
import mmap
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgedl.errors import InputError
from edgedl.models.onednn import unsafe_layers
from edgedl.models.tensors import probe, specs
from edgedl_tfmot import carrying, process

if TYPE_CHECKING:
    import keras
    from numpy.typing import NDArray

TFLITE = "tfmot-int8.tflite"


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """`sparsity` of every layer's kernel; `block` of Dense kernels is one zero.

    `m_by_n` = (2, 4) zeros two of four, at once, in the place of all these.
    """

    sparsity: float = 0.5
    schedule: Literal["polynomial", "constant"] = "polynomial"
    block: tuple[int, ...] = (1, 1)
    m_by_n: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        if self.m_by_n is not None and (self.sparsity, self.schedule, self.block) != (0.5, "polynomial", (1, 1)):
            message = "m_by_n says how many go, at once: leave sparsity, schedule and block out"
            raise ValueError(message)
        if not 0 < self.sparsity < 1:
            message = f"sparsity must be in (0, 1), got {self.sparsity}"
            raise ValueError(message)
        if len(self.block) != 2 or min(self.block) < 1:
            message = f"block must be [height, width], got {list(self.block)}"
            raise ValueError(message)
        if self.m_by_n is not None and (len(self.m_by_n) != 2 or not 0 < self.m_by_n[0] < self.m_by_n[1]):
            message = f"m_by_n must be [m, n] with 0 < m < n, such as [2, 4], got {list(self.m_by_n)}"
            raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """`clusters` values in every kernel, or with `per_channel` in every channel of a Conv2D."""

    clusters: int = 16
    initialization: Literal["kmeans_plus_plus", "linear", "density_based", "random"] = "kmeans_plus_plus"
    per_channel: bool = False
    preserve_sparsity: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        least = 3 if self.preserve_sparsity else 2
        if self.clusters < least:
            message = f"clusters must be {least} or more, got {self.clusters}"
            raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class QatOptions:
    """The quantization-aware methods have no keys of their own."""


class _Tfmot:
    """Carries the model to TFMOT's process and the weights back."""

    kind = "tfmot"
    method: str
    options: type
    trains = True  # whether it can do nothing without training

    def apply(self, model: keras.Model, data: Any, options: Any, context: Any) -> keras.Model:
        """A copy of the model with TFMOT's weights. Says what was measured, and where TFMOT's own int8 file lies.

        Raises InputError and UnsupportedError by name.
        """
        copy, reply = self.run(model, data, options, context)
        for note in reply["notes"]:
            context.say(f"{context.step.where}: {note}")
        return copy

    def run(self, model: keras.Model, data: Any, options: Any, context: Any) -> tuple[keras.Model, dict[str, Any]]:
        """The copy, and `notes`, `tflite` (the path of TFMOT's int8 file, or None) and `seconds` of its own work."""
        step = context.step
        training = self._training(data, step.training, step.where)
        network = carrying.describe(model)
        inputs, expected = probe(model)
        tflite = context.folder / TFLITE if context.folder is not None and self.options is QatOptions else None
        with tempfile.TemporaryDirectory(prefix="edgedl-tfmot-") as folder:
            request = {
                "method": self.method,
                "graph": network.graph,
                "options": dataclasses.asdict(options),
                "training": training and training | _files(model, data, Path(folder), step.where, context.seed),
                "match": step.match,
                "skip": step.skip,
                "seed": context.seed,
                "tflite": str(tflite) if tflite else None,
            }
            reply, weights, answers = process.call(
                request, network.weights(), inputs, expected, Path(folder), onednn=not unsafe_layers(model)
            )
        copy, difference = carrying.carried_back(model, network, weights, inputs, answers)
        worst = max(difference, reply["difference"])
        reply["notes"].append(f"carried to Keras 2 and back; outputs differ by at most {worst:.2g} on seeded input")
        if tflite:
            reply["notes"].append("the weights are floats on the 8-bit grid: a quantize step comes next")
            reply["notes"].append(f"TFMOT's own int8 file, with the ranges that it trained: {tflite}")
        return copy, {"notes": reply["notes"], "seconds": reply["seconds"], "tflite": tflite}

    def _training(self, data: Any, training: Any, where: str) -> dict[str, Any] | None:
        """The step's training table. Raises InputError for what is missing or TFMOT's training cannot do."""
        if training is None:
            if self.trains:
                hint = "give training = { epochs = 1 }, or take edgedl's own kind"
                message = f"{where}: TFMOT's {self.method} trains; {hint}"
                raise InputError(message)
            return None
        for key in ("distill", "augment", "average", "patience"):
            if getattr(training, key):
                message = f"{where}: TFMOT's training has no {key}; leave it out, or take edgedl's own kind"
                raise InputError(message)
        if data is None or not data.count:
            message = f"{where}: training needs data; give --data"
            raise InputError(message)
        return {k: getattr(training, k) for k in ("epochs", "batch_size", "learning_rate", "schedule")}


def _files(model: keras.Model, data: Any, folder: Path, where: str, seed: int) -> dict[str, Any]:
    """The data's arrays as .npy files in the model's order."""
    inputs, outputs = specs(model)
    missing = [s.name for s in outputs if s.name not in data.targets]
    if missing:
        message = f"{where}: TFMOT trains on labels; the data has none for {', '.join(missing)}"
        raise InputError(message)
    rows = getattr(data, "rows", None)
    return {
        "inputs": [_file(data.inputs[s.name], rows, folder / f"input-{i}.npy") for i, s in enumerate(inputs)],
        "targets": [_file(data.targets[s.name], rows, folder / f"target-{i}.npy") for i, s in enumerate(outputs)],
        "input_dtypes": [s.dtype for s in inputs],
        "seed": seed,
    }


def _file(array: NDArray[Any], rows: Any, path: Path) -> str:
    """The .npy file that an array is mapped from, where it is all of it, else one written to `path`."""
    if rows is None and isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.filename:
        return str(array.filename)
    np.save(path, array if rows is None else array[rows])
    return str(path)


class Prune(_Tfmot):
    """`method = "prune"`: magnitude pruning; the sparsity is reached however short the run."""

    method, options = "prune", PruneOptions


class Cluster(_Tfmot):
    """`method = "cluster"`: weight clustering, which without training sets the centroids alone."""

    method, options, trains = "cluster", ClusterOptions, False


class Qat(_Tfmot):
    """`method = "qat"`: quantization-aware training."""

    method, options = "qat", QatOptions


class Pqat(_Tfmot):
    """`method = "pqat"`: quantization-aware training that keeps the zeros of a pruned model."""

    method, options = "pqat", QatOptions


class Cqat(_Tfmot):
    """`method = "cqat"`: quantization-aware training that keeps the values of a clustered model."""

    method, options = "cqat", QatOptions


class Pcqat(_Tfmot):
    """`method = "pcqat"`: quantization-aware training that keeps zeros and clusters."""

    method, options = "pcqat", QatOptions
