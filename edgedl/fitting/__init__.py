"""The one training loop: early stopping, seeds, GPUs and mixed precision, over memory-mapped arrays.

The caller hands over a model of its own, functional or sequential, which is trained in place and stays float32.
Nothing is written. With the same seed, machine and versions the weights come out the same, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgedl.agent import progress
from edgedl.errors import InputError
from edgedl.fitting.accelerators import choose_devices, fast_float16, foreign_errors, placed, precision
from edgedl.fitting.averaging import Average
from edgedl.fitting.checkpoints import Checkpoint
from edgedl.fitting.losses import Criterion, choose, packed
from edgedl.fitting.pointwise import sampled_first
from edgedl.fitting.samples import TrainingData, batches
from edgedl.models.tensors import specs

if TYPE_CHECKING:
    import keras

Array = NDArray[Any]
Objective = Callable[[Any, Any, Any], Any]  # (inputs, outputs, targets), each by name -> loss of each sample
OnStep = Callable[[Any, int, int], None]  # (the model that trains, steps done, steps in all)


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to train.

    With `patience` training stops after so many epochs without a lower loss on the evaluation data (or on a
    seeded `holdout` share of the training data) and the best weights are kept; without it the last ones are.
    With `average` the mean of the weights of the last steps is kept (`Average`): the rate may then stay high.
    `loss` is a Keras loss, or one by output name; None chooses by outputs and targets. `mixed_precision` None means:
    where there is a GPU for it. `devices` such as ("GPU:0", "GPU:1"); empty: all GPUs, else the CPU. `paces` are
    factors on Adam's learning rate by the `id` of a variable, in its shape; 1 for any other.
    """

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["constant", "cosine"] = "constant"
    loss: Any = None
    average: bool = False
    patience: int | None = None
    holdout: float = 0.1
    seed: int = 0
    mixed_precision: bool | None = None
    devices: tuple[str, ...] = ()
    paces: Mapping[int, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises InputError for a value out of range."""
        rules = {
            "epochs": (self.epochs >= 1, "1 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "optimizer": (self.optimizer in ("adam", "sgd"), "adam or sgd"),
            "schedule": (self.schedule in ("constant", "cosine"), "constant or cosine"),
            "patience": (self.patience is None or self.patience >= 1, "1 or more"),
            "average": (not (self.average and self.patience), "left out where patience chooses the epoch"),
            "holdout": (0 < self.holdout < 1, "in (0, 1)"),
            "seed": (0 <= self.seed < 2**32, "in [0, 2**32)"),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                message = f"{name} must be {allowed}, got {getattr(self, name)!r}"
                raise InputError(message)


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What training did. `history` has one value an epoch; `best_epoch`, from 1, is the one whose weights are kept."""

    epochs: int
    best_epoch: int
    history: dict[str, list[float]]
    evaluation: dict[str, float] | None  # of the kept weights; None without evaluation data
    seconds: float
    devices: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow, and ask for deterministic ops; call it before the model is built."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def fit(
    model: keras.Model,
    data: TrainingData,
    options: FitOptions,
    *,
    evaluation: TrainingData | None = None,
    objective: Objective | None = None,
    on_step: OnStep | None = None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Train `model` in place. Raises InputError where it diverges, or options, data and model do not fit.

    `objective` replaces the losses (distillation: call the teacher on the inputs); targets then only serve the
    metrics. `on_step` is called after each step, with the model that is being trained. With a `checkpoint` a training
    that was killed goes on after its last whole epoch, on one device and in float32.
    """
    started = time.monotonic()
    require_functional(model)
    set_seed(options.seed)
    devices, notes = choose_devices(options.devices)
    if len(devices) > 1:
        notes.append(f"every batch of {options.batch_size} was shared by {', '.join(devices)}")
    if evaluation is None and options.patience:
        whole = data.count
        data, evaluation = data.split(options.holdout, options.seed)
        share = f"{evaluation.count} of {whole} training samples (seed {options.seed})"
        notes.append(f"held out {share} to choose the epoch")
    elif options.patience:
        notes.append("the evaluation data chose the epoch: its figures are optimistic")
    criteria = choose(model, *data.take(np.arange(min(data.count, 256))), options.loss, partial=objective is not None)
    if objective is None:
        notes += [c.note for c in criteria]
    smallest = data.count // math.ceil(data.count / options.batch_size)
    if smallest < len(devices):
        message = f"{data.count} samples in batches of {options.batch_size} do not fill {len(devices)} devices"
        raise InputError(message)
    mixed = _mixed(options, devices, notes)
    paces = [options.paces.get(id(v), 1.0) for v in model.trainable_variables]
    with placed(model, devices) as trainee, precision(trainee, mixed=mixed), sampled_first(trainee):
        judge = _Judge(trainee, data, criteria, objective or _summed(criteria))
        kept = checkpoint if len(devices) == 1 and not mixed else None
        history, best_epoch = _epochs(judge, data, options, evaluation, on_step, kept, paces, mixed=mixed)
        final = judge.evaluate(evaluation, max(options.batch_size, 256)) if evaluation else None
    epochs = len(history["loss"])
    if epochs < options.epochs:
        notes.append(f"stopped after {epochs} of {options.epochs} epochs: no better for {options.patience}")
    seconds = time.monotonic() - started
    return FitResult(
        epochs=epochs,
        best_epoch=best_epoch,
        history=history,
        evaluation=final,
        seconds=seconds,
        devices=devices,
        notes=tuple(notes),
    )


def evaluate(model: keras.Model, data: TrainingData, *, loss: Any = None, batch_size: int = 256) -> dict[str, float]:
    """Loss and metrics of `model` on `data`, such as {"loss": 0.1, "accuracy": 0.98}."""
    criteria = choose(model, *data.take(np.arange(min(data.count, 256))), loss, partial=False)
    return _Judge(model, data, criteria, _summed(criteria)).evaluate(data, batch_size)


def _summed(criteria: Sequence[Criterion]) -> Objective:
    def objective(_: Any, outputs: Any, targets: Any) -> Any:
        return sum(c.loss(outputs, targets) for c in criteria)

    return objective


_BEST = ("best_loss", "best_epoch", "best_weights")


def _epochs(
    judge: _Judge,
    data: TrainingData,
    options: FitOptions,
    evaluation: TrainingData | None,
    on_step: OnStep | None,
    checkpoint: Checkpoint | None,
    paces: Sequence[Any],
    *,
    mixed: bool,
) -> tuple[dict[str, list[float]], int]:
    model = judge.model
    each = math.ceil(data.count / options.batch_size)
    steps = options.epochs * each
    trainer = _Trainer(judge, _optimizer(options, steps, paces, mixed=mixed), options.batch_size)
    average = Average(model.variables) if options.average else None
    variables = [*trainer.variables, *(average.variables if average else ())]
    history: dict[str, list[float]] = {}
    best_loss, best_epoch, best_weights, latest = math.inf, 0, None, ""
    told = checkpoint.restore(variables) if checkpoint else None
    if told:
        history, best_loss, best_epoch, best_weights = (told[k] for k in ("history", *_BEST))
    start = len(history.get("loss", ()))
    done = start * each
    for epoch in range(start, options.epochs):
        if options.patience and epoch - best_epoch >= options.patience:
            break
        order = np.random.default_rng([options.seed, 0, epoch]).permutation(data.count)
        losses, sizes = [], []
        for rows in batches(order, options.batch_size):
            losses.append(trainer.step(*data.take(rows)))
            sizes.append(len(rows))
            done += 1
            progress(f"training, epoch {epoch + 1} of {options.epochs}{latest}", done, steps)
            if on_step:
                on_step(model, done, steps)
            if average:
                average.add()
        figures = {"loss": float(np.average([float(x) for x in losses], weights=sizes))}
        if evaluation:
            figures |= {f"val_{k}": v for k, v in judge.evaluate(evaluation, max(options.batch_size, 256)).items()}
        _check_finite(figures, epoch + 1, options.learning_rate)
        for name, value in figures.items():
            history.setdefault(name, []).append(value)
        latest = "".join(f", {name} {value:.4g}" for name, value in figures.items())
        if not options.patience:
            best_epoch = epoch + 1
        elif figures["val_loss"] < best_loss:
            best_loss, best_epoch, best_weights = figures["val_loss"], epoch + 1, model.get_weights()
        if checkpoint:
            best = dict(zip(_BEST, (best_loss, best_epoch, best_weights), strict=True))
            checkpoint.save(variables, {"history": history, **best})
    if best_weights is not None:
        model.set_weights(best_weights)
    if average:
        average.put()
        if on_step:  # what it holds the mean may not: that of shared values is none of them
            on_step(model, done, steps)
    if checkpoint:
        checkpoint.remove()
    return history, best_epoch


class _Judge:
    """Runs a model on a batch by tensor names, and evaluates it."""

    def __init__(
        self, model: keras.Model, data: TrainingData, criteria: Sequence[Criterion], objective: Objective
    ) -> None:
        import tensorflow as tf

        self.model, self.criteria, self.objective = model, criteria, objective
        inputs, outputs = specs(model)
        self._dtypes, self._outputs = {s.name: s.dtype for s in inputs}, [s.name for s in outputs]
        parts = (data.inputs, data.targets)
        self.signature = [{n: tf.TensorSpec((None, *a.shape[1:]), a.dtype) for n, a in part.items()} for part in parts]
        self._batch = tf.function(self._run_batch, input_signature=self.signature)

    def evaluate(self, data: TrainingData, batch_size: int) -> dict[str, float]:
        """Mean loss and metrics over the samples."""
        totals: dict[str, float] = {}
        for rows in batches(np.arange(data.count), batch_size):
            with foreign_errors(batch_size):
                for name, value in self._batch(*self._typed(data.take(rows))).items():
                    totals[name] = totals.get(name, 0.0) + float(value)
        return {name: total / data.count for name, total in totals.items()}

    def _typed(self, parts: tuple[dict[str, Array], dict[str, Array]]) -> tuple[dict[str, Array], ...]:
        """In the types of the training data: evaluation data may hold int64 where that holds int32."""
        wanted = [{name: spec.dtype.as_numpy_dtype for name, spec in part.items()} for part in self.signature]
        return tuple({n: p[n].astype(t, copy=False) for n, t in w.items()} for p, w in zip(parts, wanted, strict=True))

    def forward(self, inputs: Any, *, training: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs in the model's types, and outputs in float32, by name."""
        import keras
        import tensorflow as tf

        cast = {name: tf.cast(inputs[name], dtype) for name, dtype in self._dtypes.items()}
        outputs = keras.tree.flatten(self.model(packed(self.model, list(cast.values())), training=training))
        return cast, {n: tf.cast(t, tf.float32) for n, t in zip(self._outputs, outputs, strict=True)}

    def _run_batch(self, inputs: Any, targets: Any) -> Any:
        import tensorflow as tf

        cast, outputs = self.forward(inputs, training=False)
        sums = {"loss": tf.reduce_sum(self.objective(cast, outputs, targets))}
        return sums | {c.metric_name: tf.reduce_sum(c.metric(outputs, targets)) for c in self.criteria}


class _Trainer:
    """One compiled step: each replica takes its share of the batch, gradients are summed over the replicas."""

    def __init__(self, judge: _Judge, optimizer: Any, batch_size: int) -> None:
        import tensorflow as tf

        self.judge, self.batch_size = judge, batch_size
        self._optimizer = optimizer
        self._variables = judge.model.trainable_variables
        optimizer.build(self._variables)
        self._strategy = tf.distribute.get_strategy()
        self._replicas = self._strategy.num_replicas_in_sync
        self._step = tf.function(self._run_step, input_signature=judge.signature)

    @property
    def variables(self) -> list[Any]:
        """All that a step changes: weights, statistics, seeds, and what the optimizer remembers."""
        return [*self.judge.model.variables, *self._optimizer.variables]

    def step(self, inputs: dict[str, Array], targets: dict[str, Array]) -> Any:
        """One update on one batch. Returns its mean loss, as a tensor that may still be computing."""
        with foreign_errors(self.batch_size):
            return self._step(inputs, targets)

    def _run_step(self, inputs: Any, targets: Any) -> Any:
        if self._replicas == 1:
            return self._update(inputs, targets)
        return self._strategy.reduce("SUM", self._strategy.run(self._update, args=(inputs, targets)), axis=None)

    def _update(self, inputs: Any, targets: Any) -> Any:
        import tensorflow as tf

        model = self.judge.model
        count = tf.cast(tf.shape(next(iter(inputs.values())))[0], tf.float32)
        if self._replicas > 1:
            first = tf.distribute.get_replica_context().replica_id_in_sync_group
            inputs, targets = tf.nest.map_structure(lambda t: t[first :: self._replicas], (inputs, targets))
        with tf.GradientTape() as tape:
            cast, outputs = self.judge.forward(inputs, training=True)
            loss = tf.reduce_sum(self.judge.objective(cast, outputs, targets)) / count
            if model.losses:
                loss += tf.add_n([tf.cast(x, tf.float32) for x in model.losses]) / self._replicas
            scaled = self._optimizer.scale_loss(loss)
        self._optimizer.apply(tape.gradient(scaled, [v.value for v in self._variables]), self._variables)
        return loss


def _optimizer(options: FitOptions, steps: int, paces: Sequence[Any], *, mixed: bool) -> Any:
    import keras

    rate: Any = float(options.learning_rate)
    if options.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(rate, steps)
    if options.optimizer == "adam":
        optimizer = _paced_adam(rate, paces)
    else:
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)
    return keras.optimizers.LossScaleOptimizer(optimizer) if mixed else optimizer


def _paced_adam(rate: Any, paces: Sequence[Any]) -> Any:
    """Adam, with a factor on the learning rate for each variable, in the model's order."""
    import keras

    class PacedAdam(keras.optimizers.Adam):  # type: ignore[misc]
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            pace = paces[self._get_variable_index(variable)]
            super().update_step(gradient, variable, learning_rate * pace)

    return PacedAdam(rate)


def require_functional(model: keras.Model) -> None:
    """Raises InputError for a model whose inputs and outputs are not known before it runs."""
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        message = f"model {model.name!r} is a subclassed or unbuilt keras.Model; make it keras.Model(inputs, outputs)"
        raise InputError(message)


def _mixed(options: FitOptions, devices: Sequence[str], notes: list[str]) -> bool:
    """Whether to compute in float16: asked for or not said, and every device is a GPU with fast float16."""
    able = fast_float16(devices)
    if options.mixed_precision and not able:
        notes.append(f"mixed precision needs GPUs of compute capability 7.0 up: {', '.join(devices)} used float32")
    used = able and options.mixed_precision is not False
    if used:
        notes.append("trained in mixed precision (float16 with loss scaling); the model itself is float32")
    return used


def _check_finite(figures: Mapping[str, float], epoch: int, learning_rate: float) -> None:
    for name, value in figures.items():
        if not math.isfinite(value):
            message = (
                f"training diverged: {name} is {value} after epoch {epoch} at learning_rate {learning_rate:g}; "
                f"try {learning_rate / 10:g}"
            )
            raise InputError(message)
