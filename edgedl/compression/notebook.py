"""`edgedl.compress(model, recipe, data)` on the user's own model object, in this process."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl import compression, recipes
from edgedl.data import check_shape
from edgedl.errors import InputError
from edgedl.fitting.samples import TrainingData
from edgedl.models import specs
from edgedl.models.cleaning import clean
from edgedl.training import tasks
from edgedl.types import Target

if TYPE_CHECKING:
    import keras


def compress(
    model: keras.Model,
    recipe: Any,
    data: Any,
    *,
    overrides: Sequence[str] = (),
    seed: int = 0,
    target: Target | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> keras.Model:
    """A new model; `recipe` is a name, a path or a table, `data` x or (x, y), each an array or a dict by name.

    Training-only layers go and mixed precision becomes float32, as in a model that comes from a file; `said` hears it.
    """
    if not model.built:
        message = f"model {model.name!r} is not built: give it an Input, or call it on data once"
        raise InputError(message)
    load = recipes.from_table if isinstance(recipe, Mapping) else recipes.load
    with _own_state():
        chosen, (cleaned, notes) = load(recipe, overrides=overrides), clean(model, take=False)
        for note in notes:
            said(note)
        return compression.run(cleaned, chosen, _samples(cleaned, data), seed=seed, say=said, target=target)


@contextlib.contextmanager
def _own_state() -> Iterator[None]:
    """Layers of float32 whatever the session's policy; its random numbers go on as if nothing had been drawn."""
    import keras

    policy, drawn, drawn_by_numpy = keras.config.dtype_policy(), random.getstate(), np.random.get_state()
    try:
        keras.config.set_dtype_policy("float32")
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)


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
    samples = TrainingData(inputs=inputs, targets=targets)
    tasks.check_finite(samples)
    for spec in specs(model)[0]:
        check_shape("data", spec, samples.inputs[spec.name])
    return samples


def _by_name(value: Any, names: Sequence[str], kind: str) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {name: _array(array, f"data: {kind} {name}") for name, array in value.items()}
    if len(names) != 1:
        message = f"data: the model has {len(names)} {kind}s, {', '.join(names)}: give a dict by name"
        raise InputError(message)
    return {names[0]: _array(value, f"data: {kind} {names[0]}")}


def _array(value: Any, where: str) -> Any:
    """An array of numbers, samples on axis 0. Raises InputError for anything else."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.empty((), object)
    if array.dtype.kind not in "biuf" or not array.ndim or not len(array):
        message = (
            f"{where}: is {type(value).__name__}; give numbers as x or (x, y), each an array with the samples on "
            "axis 0, or a dict of such arrays by name"
        )
        raise InputError(message)
    return array
