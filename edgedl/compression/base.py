"""What every compressor is, is given and needs: the protocol, the context, choosing layers, fine-tuning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgedl.compression.augmentation import Augmented, check_labels
from edgedl.compression.distillation import Teaching
from edgedl.compression.features import AUTO
from edgedl.compression.normalization import mend_batch_norm, re_estimate_batch_norm, thawed
from edgedl.errors import InputError
from edgedl.fitting import FitOptions, FitResult, OnStep, fit
from edgedl.fitting.checkpoints import Checkpoint
from edgedl.fitting.samples import TrainingData
from edgedl.models import specs
from edgedl.models.cleaning import copy_of
from edgedl.models.saving import save
from edgedl.models.tensors import operations, with_outputs
from edgedl.recipes import Distill, Step, Training, check_data
from edgedl.toml import did_you_mean
from edgedl.training import tasks
from edgedl.types import Target

if TYPE_CHECKING:
    import keras

Array = NDArray[Any]
Data = TrainingData | None
SMALL = 0.1  # of the size that an initialized channel has: below it a channel moves in proportion


def _silent(_: str) -> None:
    """Says nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """What a step may use. `teacher` is the model before the recipe, `say` takes a note for the user.

    `folder`, where there is one, belongs to this step alone: checkpoints that a later run of the same step resumes.
    """

    step: Step
    seed: int = 0
    teacher: keras.Model | None = None
    say: Callable[[str], None] = _silent
    folder: Path | None = None
    target: Target | None = None


class Compressor(Protocol):
    """One technique, an entry point of the group `edgedl.compressors`, such as `prune.channels`."""

    kind: str
    options: type  # a frozen dataclass: the step's own keys

    def apply(self, model: keras.Model, data: Data, options: Any, context: Context) -> keras.Model:
        """A new model; the caller's stays as it is. Raises InputError and UnsupportedError by name."""
        ...


def matching_layers(
    model: keras.Model,
    match: Sequence[str],
    skip: Sequence[str] = (),
    *,
    where: str = "recipe",
    able: Callable[[Any], bool] = lambda layer: bool(getattr(layer, "weights", ())),
    what: str = "layer with weights",
) -> list[Any]:
    """The layers that a step takes, those of nested models too, in the model's order, each once.

    `match` and `skip` are name patterns (fnmatch, case counts); no `match` takes every `able` layer. Raises
    InputError where a pattern hits nothing, or nothing is left.
    """
    found = [op for op in operations(model) if op is not model and hasattr(op, "weights")]
    order = {id(layer): i for i, layer in enumerate(found)}
    taken = [layer for layer in found if able(layer)]
    for key, patterns, layers in (("match", match, taken), ("skip", skip, found)):
        names = [layer.name for layer in layers]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                near = did_you_mean(pattern, names)
                kind = what if key == "match" else "layer"
                message = f"{where}: {key} {pattern!r} hits no {kind}{near}; there are {_listed(names)}"
                raise InputError(message)
    chosen = [
        layer
        for layer in taken
        if (not match or any(fnmatchcase(layer.name, p) for p in match))
        and not any(fnmatchcase(layer.name, p) for p in skip)
    ]
    if not chosen:
        why = "skip takes them all" if taken else "the model has none"
        message = f"{where}: there is no {what} to work on: {why}"
        raise InputError(message)
    return sorted(chosen, key=lambda layer: order[id(layer)])


def _listed(names: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(sorted(names)[:limit]) or "none") + more


def require_data(data: Data, where: str, why: str) -> TrainingData:
    """The data, which `why` needs. Raises InputError where there is none."""
    if data is None or not data.count:
        message = f"{where}: {why} needs data; give --data"
        raise InputError(message)
    return data


def fine_tune(
    model: keras.Model,
    data: Data,
    training: Training,
    context: Context,
    *,
    on_step: OnStep | None = None,
    small: float = SMALL,
) -> FitResult:
    """Train `model` in place as `training` says, taught by `context.teacher` where it says `distill`.

    Channels of less than `small` of their usual size train in proportion to it (see `paces`). Layers that the user
    froze train as well: what a step takes from them they have to make up for.
    Raises InputError: no data, no labels and no teacher, or training that diverged; the weights are then those of the
    last epoch that was finite, which also lie in `context.folder`.
    """
    where = context.step.where
    data = require_data(data, where, "training")
    check_data(training, where, labelled=bool(data.targets))
    options = FitOptions(
        epochs=training.epochs,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        schedule=training.schedule,
        average=training.average,
        patience=training.patience,
        seed=context.seed,
        paces=paces(model, small),
    )
    if training.distill is None or training.distill.alpha < 1:  # the labels teach, too
        tasks.check_classes(data, tasks.class_counts(model, data), ())
        check_labels(data, training.augment, where)
    samples = Augmented.of(data, training.augment, context.seed) if training.augment else data
    guard = _Guard(model, training.epochs, on_step)
    teaching = _teaching(model, training.distill, data, context) if training.distill else None
    trainee = teaching.trainee if teaching else model
    try:
        with thawed(model) as frozen:
            result = fit(
                trainee,
                samples,
                options,
                objective=teaching.objective if teaching else None,
                on_step=guard,
                checkpoint=_checkpoint(
                    model, options, context, {"on_step": on_step, "samples": samples, "guard": guard}
                ),
            )
    except InputError as e:
        if "diverged" not in str(e):
            raise
        raise guard.diverged(e, context) from e
    if training.average:
        re_estimate_batch_norm(model, data, seed=context.seed)
    if frozen:
        context.say(f"{where}: trained although frozen (trainable = False): {_listed(frozen)}")
    for note in result.notes:
        context.say(f"{where}: {note}")
    return result


def _teaching(model: keras.Model, options: Distill, data: TrainingData, context: Context) -> Teaching:
    where = context.step.where
    if context.teacher is None:
        message = f"{where}: distill needs the original model as teacher, and there is none"
        raise InputError(message)
    teacher = context.teacher
    if options.statistics == "data":
        teacher = copy_of(teacher)
        context.say(f"{where}: the teacher: {mend_batch_norm(teacher, data, seed=context.seed)}")
    teaching = Teaching(model, teacher, options, data, where)
    if plain := [name for name, kind in teaching.kinds.items() if kind == "values"]:
        why = "neither probabilities nor logits of labelled classes"
        context.say(f"{where}: imitated by squared error, without temperature, as {why}: {_listed(plain)}")
    if AUTO in options.features:
        context.say(f"{where}: distill features auto: {_listed(teaching.features)}")
    return teaching


def _checkpoint(
    model: keras.Model, options: FitOptions, context: Context, keepers: Mapping[str, Any]
) -> Checkpoint | None:
    """A file in the step's folder that goes by what the training starts from; None where there is no folder."""
    if context.folder is None:
        return None
    start = hashlib.sha256(repr(replace(options, paces={})).encode())  # which follow from the weights
    for weights in model.get_weights():
        start.update(weights.tobytes())
    return Checkpoint(context.folder / f"training-{start.hexdigest()[:16]}.npz", keepers)


def paces(model: keras.Model, small: float) -> dict[int, Array]:
    """How fast each weight of a kernel may move: in proportion to its channel's size where that is `small`.

    Adam moves every weight by about the learning rate. Channels that take raw pixels, or that batch normalization was
    folded into, may be hundreds of times smaller than the sqrt(2 / fan_in) that He et al., arXiv:1502.01852, eq. (10),
    draws, and are lost in a few steps. Steps relative to the weights are those of Adafactor: Shazeer and Stern,
    arXiv:1804.04235, section 8. With SMALL the sizes that trained kernels usually have are left at Adam's pace: slowed
    in proportion they recover from pruning far slower. By the `id` of the variable; those at Adam's pace are left out.
    """
    from edgedl.compression.kernels import all_kernels

    found = {}
    for kernel in all_kernels(model):
        matrix = kernel.matrix(kernel.read())
        pace = np.sqrt(np.square(matrix).mean(axis=0) * kernel.fan_in / 2) / small
        if (pace < 1).any():
            full = np.broadcast_to(np.minimum(pace, 1), matrix.shape)
            found[id(kernel.variable)] = kernel.unmatrix(full).astype(np.float32)
    return found


class _Guard:
    """Keeps the weights of the last epoch that was finite."""

    def __init__(self, model: keras.Model, epochs: int, on_step: OnStep | None) -> None:
        self.model, self.epochs, self.on_step = model, epochs, on_step
        self.weights, self.epoch = model.get_weights(), 0
        self.subject: Any = None

    def __call__(self, trainee: Any, done: int, total: int) -> None:
        self.subject = self.subject or self._subject(trainee)
        if self.on_step:
            self.on_step(self.subject, done, total)
        steps = total // self.epochs
        if done % steps == 0:  # on several devices it is a copy that trains
            weights = self.subject.get_weights()
            if all(np.isfinite(w).all() for w in weights if w.dtype.kind == "f"):
                self.weights, self.epoch = weights, done // steps

    def _subject(self, trainee: Any) -> Any:
        """What has the trained variables in the model's order: with features as outputs they are in another."""
        known = {id(v) for v in trainee.weights}
        if all(id(v) in known for v in self.model.weights):
            return self.model
        if len(trainee.outputs) == len(self.model.outputs):
            return trainee
        return with_outputs(trainee, [trainee.output[spec.name] for spec in specs(self.model)[1]])

    def state(self) -> int:
        """The epoch; its weights are those of the checkpoint."""
        return self.epoch

    def restore(self, state: int) -> None:
        """Go on with the model's weights, which are that epoch's again."""
        self.weights, self.epoch = self.model.get_weights(), state

    def diverged(self, error: InputError, context: Context) -> InputError:
        """The error to raise, once the good weights are back."""
        self.model.set_weights(self.weights)
        kept = f"the weights of epoch {self.epoch} are kept" if self.epoch else "the weights from before it are kept"
        if context.folder is not None:
            context.folder.mkdir(parents=True, exist_ok=True)
            path = context.folder / "last-good.keras"
            save(self.model, path)
            kept += f" in {path}"
        return InputError(f"{context.step.where}: {error}; {kept}")
