"""`edgedl.compress(model, recipe, data)` on the user's own model object, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import compression, recipes
from edgedl.errors import InputError
from edgedl.fitting.samples import TrainingData
from edgedl.models import specs
from edgedl.models.cleaning import clean

if TYPE_CHECKING:
    import keras


def compress(
    model: keras.Model,
    recipe: Any,
    data: Any,
    *,
    overrides: Sequence[str] = (),
    seed: int = 0,
    said: Callable[[str], None] = lambda _: None,
) -> keras.Model:
    """A new model; `recipe` is a name, a path or a table, `data` x or (x, y), each an array or a dict by name.

    Training-only layers go and mixed precision becomes float32, as in a model that comes from a file; `said` hears it.
    """
    load = recipes.from_table if isinstance(recipe, Mapping) else recipes.load
    chosen, (cleaned, notes) = load(recipe, overrides=overrides), clean(model, take=False)
    for note in notes:
        said(note)
    return compression.run(cleaned, chosen, _samples(model, data), seed=seed, say=said)


def _samples(model: keras.Model, data: Any) -> TrainingData | None:
    if data is None:
        return None
    x, y = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
    takes, gives = ([spec.name for spec in part] for part in specs(model))
    inputs, targets = _by_name(x, takes, "input"), _by_name(y, gives, "output") if y is not None else {}
    if missing := [name for name in takes if name not in inputs]:
        message = f"data: no array for the model's input {missing[0]}; its inputs are {', '.join(takes)}"
        raise InputError(message)
    counts = {name: len(a) for name, a in (inputs | targets).items()}
    if len(set(counts.values())) > 1:
        message = f"data: arrays differ in their number of samples: {counts}"
        raise InputError(message)
    return TrainingData(inputs=inputs, targets=targets)


def _by_name(value: Any, names: Sequence[str], kind: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {name: np.asarray(array) for name, array in value.items()}
    if len(names) != 1:
        message = f"data: the model has {len(names)} {kind}s, {', '.join(names)}: give a dict by name"
        raise InputError(message)
    return {names[0]: np.asarray(value)}
