"""Compression: a recipe's steps done to a model, one after the other; one file a technique."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedl import plugins
from edgedl.compression.base import Compressor, Context, Data
from edgedl.errors import EdgedlError, UnsupportedError
from edgedl.models.files import first_line
from edgedl.recipes import Recipe, Step
from edgedl.types import Target

if TYPE_CHECKING:
    import keras

__all__ = ["Compressor", "Context", "Data", "run"]


def run(
    model: keras.Model,
    recipe: Recipe,
    data: Data = None,
    *,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
    folder: Path | None = None,
    target: Target | None = None,
    after: Callable[[Step, keras.Model, int], Any] | None = None,
    start: int = 0,
    teacher: keras.Model | None = None,
) -> keras.Model:
    """The model after the recipe; the caller's stays as it is. `teacher` is what it was before the first step.

    Every step may keep checkpoints in a folder of its own below `folder`. `after` is called with each step, the model
    it made and its number (from 0); a caller that kept those models goes on with `start` and the `teacher`. Raises
    EdgedlErrors that open with file, step and kind.
    """
    teacher = teacher if teacher is not None else model
    told = _once(say) if say else None
    for number, step in enumerate(recipe.steps[start:], start):
        context = Context(
            step=step,
            seed=seed,
            teacher=teacher,
            say=told or (lambda _: None),
            folder=folder / f"step-{number + 1}" if folder else None,
            target=target,
        )
        compressor: Compressor = plugins.load("compressors", step.compressor)
        try:
            model = compressor.apply(model, data, step.options, context)
        except EdgedlError as e:
            if str(e).startswith(step.where):
                raise
            message = f"{step.where}: {e}"
            raise type(e)(message) from e
        except _untaken() as e:
            message = f"{step.where}: model {model.name!r} cannot be taken ({type(e).__name__}: {first_line(e)})"
            raise UnsupportedError(message) from e
        if after:
            after(step, model, number)
    return model


def _untaken() -> tuple[type[Exception], ...]:
    """What a model brings up that a step does not know how to take, or TensorFlow how to run here."""
    import tensorflow as tf

    return AttributeError, IndexError, KeyError, TypeError, ValueError, tf.errors.OpError


def _once(say: Callable[[str], None]) -> Callable[[str], None]:
    """`say`, which hears every note once, however often a step trains."""
    heard: set[str] = set()

    def tell(note: str) -> None:
        if note not in heard:
            heard.add(note)
            say(note)

    return tell
