"""In TFMOT's process: a tf_keras model trained on .npy files, with the batches that edgedl's own training takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgedl.agent import progress
from edgedl.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

LOSS_SAMPLES = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """What to train on, in the model's order, and how."""

    inputs: Sequence[Array]
    targets: Sequence[Array]
    input_dtypes: Sequence[str]
    epochs: int
    batch_size: int
    learning_rate: float
    schedule: str
    seed: int

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Training:
        """Of a request's "training", its .npy files memory-mapped."""
        files = {k: [np.load(Path(p), mmap_mode="r") for p in request[k]] for k in ("inputs", "targets")}
        return cls(**{**request, **files})

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.inputs[0])

    @property
    def steps_an_epoch(self) -> int:
        """Batches of nearly equal size, none above `batch_size`."""
        return math.ceil(self.count / self.batch_size)

    @property
    def steps(self) -> int:
        """The optimizer's steps in all."""
        return self.steps_an_epoch * self.epochs

    def batch(self, rows: Array) -> tuple[list[Array], list[Array]]:
        """Inputs in the model's types, and targets."""
        typed = [a[rows].astype(t, copy=False) for a, t in zip(self.inputs, self.input_dtypes, strict=True)]
        return typed, [a[rows] for a in self.targets]

    def batches(self) -> Iterator[tuple[list[Array], list[Array]]]:
        """The batches of every epoch, shuffled by the seed."""
        for epoch in range(self.epochs):
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.count)
            for rows in np.array_split(order, self.steps_an_epoch):
                yield self.batch(rows)


def losses(model: Any, training: Training) -> list[Any]:
    """A tf_keras loss an output, from a few of the answers and targets. Raises InputError where none fits."""
    import tensorflow as tf

    inputs, targets = training.batch(np.arange(min(LOSS_SAMPLES, training.count)))
    answers = model([tf.constant(a) for a in inputs], training=False)
    flat = [np.asarray(a) for a in (answers if isinstance(answers, (list, tuple)) else [answers])]
    return [_loss(n, a, t) for n, a, t in zip(model.output_names, flat, targets, strict=True)]


def _loss(name: str, answer: Array, target: Array) -> Any:
    import tf_keras

    classes = answer.shape[-1] if answer.ndim > 1 else 1
    numbers = target.shape[:-1] if target.ndim == answer.ndim and target.shape[-1] == 1 else target.shape
    unit = bool(answer.min() >= 0 and answer.max() <= 1)
    probabilities = classes > 1 and unit and bool(np.abs(answer.sum(-1) - 1).max() < 0.05)
    if target.dtype.kind in "iub" and classes > 1 and numbers == answer.shape[:-1]:
        return tf_keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities)
    if target.shape != answer.shape and (*target.shape, 1) != answer.shape:
        message = f"output {name!r} gives {answer.shape[1:]} a sample, its targets have {target.shape[1:]}"
        raise InputError(message)
    if probabilities and np.allclose(target.sum(-1), 1, atol=1e-3):
        return tf_keras.losses.CategoricalCrossentropy()
    if unit and np.isin(target, (0, 1)).all():
        return tf_keras.losses.BinaryCrossentropy()
    return tf_keras.losses.MeanSquaredError()


def fit(model: Any, training: Training, chosen: Sequence[Any], callbacks: Sequence[Any] = ()) -> None:
    """Train `model` in place with Adam. Raises InputError where it diverges."""
    import tf_keras

    rate: Any = training.learning_rate
    if training.schedule == "cosine":
        rate = tf_keras.optimizers.schedules.CosineDecay(rate, training.steps)
    model.compile(optimizer=tf_keras.optimizers.Adam(rate), loss=list(chosen))
    history = model.fit(
        training.batches(),
        steps_per_epoch=training.steps_an_epoch,
        epochs=training.epochs,
        callbacks=[*callbacks, _told(training.steps)],
        verbose=0,
    )
    last = history.history["loss"][-1]
    if not math.isfinite(last):
        rate = training.learning_rate
        message = f"training diverged: loss is {last} at learning_rate {rate:g}; try {rate / 10:g}"
        raise InputError(message)


def _told(steps: int) -> Any:
    """A callback that tells whoever waits how far training is."""
    import tf_keras

    class Told(tf_keras.callbacks.Callback):  # type: ignore[misc]
        done = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            self.done += 1
            progress("training with TFMOT", self.done, steps)

    return Told()
