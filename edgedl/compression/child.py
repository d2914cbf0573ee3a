"""Child side of `edgedl compress`: one step of a recipe, from file to file."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgedl import compression, models, recipes, targets
from edgedl.fitting import set_seed
from edgedl.fitting.samples import TrainingData
from edgedl.models.saving import save


def step(
    model: str,
    teacher: str,
    recipe: str,
    overrides: list[str],
    number: int,
    data: dict[str, Any] | None,
    out: str,
    folder: str | None,
    seed: int,
    target: str | None,
    trust: bool,
    custom_objects: str | None,
) -> dict[str, Any]:
    """Do step `number` (from 0) of a recipe to `model` and write `out`; its notes, and the seconds it took.

    `folder` is for checkpoints; without one nothing is trained: the caller only tries what the step leaves.
    `data` is {"inputs": {name: .npy}, "targets": {name: .npy}} by the model's own names.
    """
    models.warm()  # starting TensorFlow is no part of the step
    begun = time.monotonic()
    loading: dict[str, Any] = {"trust": trust, "custom_objects": custom_objects}
    whole = recipes.load(recipe, overrides)
    steps = whole.steps[: number + 1]
    if folder is None:
        steps = tuple(replace(s, training=None) for s in steps)
    notes: list[str] = []
    set_seed(seed)
    made = compression.run(
        models.load(Path(model), **loading).model,
        replace(whole, steps=steps),
        TrainingData.open(data["inputs"], data["targets"]) if data else None,
        seed=seed,
        say=notes.append,
        folder=Path(folder) if folder else None,
        target=targets.load(target) if target else None,
        start=number,
        teacher=models.load(Path(teacher), **loading).model,
    )
    save(made, Path(out))
    return {"notes": notes, "seconds": time.monotonic() - begun}
