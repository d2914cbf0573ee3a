"""Parent side of `edgedl train`: data staged, the child run, the model published with its sidecar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgedl import artifacts, data, model_file, preprocessing, worker
from edgedl.data import Dataset
from edgedl.errors import InputError
from edgedl.training import architectures
from edgedl.types import Lineage, to_json

LONG_VALUES = 1e8  # of all inputs in all epochs: 30,000 images of 32 x 32 x 3


def train_to(
    out: Path, *, model: str, source: str, evaluation: str | None, options: dict[str, Any], force: bool
) -> dict[str, Any]:
    """Train and write `out`, a .keras, with labels, preprocessing and lineage beside it. The facts of the run.

    Raises InputError, WorkerError.
    """
    artifacts.check_model_output(out)
    if ":" not in model:
        architectures.find(model)  # an unknown name is said before anything is read
    model_file.require_keras("edgedl train")
    artifacts.check_output(out, force=force, inputs=(source, evaluation))
    worker.warm()  # TensorFlow loads while the data is read
    staged = data.load(source)
    judged = data.in_order_of(data.load(evaluation), staged.labels) if evaluation else None
    with artifacts.staged(out, force=force) as part:
        arguments = {
            "model": model,
            "data": _arrays(staged),
            "evaluation": _arrays(judged) if judged else None,
            "out": str(part),
            "options": options,
        }
        facts = model_file.train("edgedl.training.train:train", arguments, onednn=_is_long(arguments))
        sha256 = data.path_sha256(part)
        lineage = Lineage(
            model_sha256=sha256,
            data_sha256=staged.sha256,
            preprocessing=tuple(_preprocessing(staged)),
            labels=staged.labels,
            seed=options["seed"],
            versions=artifacts.versions(*model_file.FRAMEWORKS),
        )
        told = facts | {"model": model, "path": out.name, "sha256": sha256, "labels": staged.labels, "lineage": lineage}
        artifacts.write_sidecar(part, to_json(told))
    return facts | {"path": str(out)}


def _arrays(dataset: Dataset) -> dict[str, Any]:
    """Inputs are `x`, or every array whose name does not begin with y; the model's own names then decide.

    Raises InputError where preprocessing is for the inputs, and the names do not tell which those are.
    """
    others = [n for n in dataset.arrays if not n.startswith("y")]
    if dataset.ops and len(others) > 1:
        message = (
            f"{dataset.source}: preprocessing is for inputs, and which of {', '.join(others)} are inputs is not known "
            "before the model is; begin the names of targets with y, or store several inputs preprocessed"
        )
        raise InputError(message)
    raw = [n for n in others if n == "x"] or others
    ready = data.prepare(dataset, dataset.ops, raw)
    return {
        "inputs": {name: str(ready.arrays[name]) for name in raw},
        "targets": {name: str(path) for name, path in ready.arrays.items() if name not in raw},
        "labels": list(dataset.labels),
        "count": ready.count,
    }


def _is_long(arguments: dict[str, Any]) -> bool:
    """Whether one of edgedl's own networks, whose layers are plain, sees so much that a second TensorFlow pays."""
    seen = sum(np.load(path, mmap_mode="r").size for path in arguments["data"]["inputs"].values())
    return ":" not in arguments["model"] and seen * arguments["options"]["epochs"] >= LONG_VALUES


def _preprocessing(dataset: Dataset) -> tuple[dict[str, Any], ...]:
    return preprocessing.to_json((*dataset.applied, *dataset.ops))
