"""Which metric: by name, by default from the data, or the user's own function; and the paired comparison with it.

A metric sees the arrays of one output and its targets, samples on axis 0. Corpus metrics (`Corpus`) also score many
bootstrap resamples at once, from weights: how often each sample was drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl import plugins, user_code
from edgedl.errors import EdgedlError, InputError, PluginError
from edgedl.types import Metric, TensorSpec
from edgedl.validation import statistics
from edgedl.validation.parity import slices
from edgedl.validation.statistics import Floats, Interval, Score

Array = NDArray[Any]


class Corpus:
    """Base of a metric that scores all samples together."""

    name = ""
    unit = "fraction"
    higher_is_better = True
    per_sample = False

    def weighted(self, outputs: Array, targets: Array) -> Score:
        """The score as a function of weights (resamples, samples)."""
        raise NotImplementedError

    def score(self, outputs: Array, targets: Array) -> Array:
        """Shape (). Raises InputError on outputs and targets that do not fit."""
        return np.asarray(self.weighted(outputs, targets)(np.ones((1, len(outputs))))[0])


class Sums(Corpus):
    """Base of a corpus metric that is a function of sums over samples."""

    def terms(self, outputs: Array, targets: Array) -> Floats:
        """What is summed: shape (samples, terms)."""
        raise NotImplementedError

    def combine(self, sums: Floats) -> Floats:
        """The score, shape (resamples,), from sums (resamples, terms)."""
        raise NotImplementedError

    def weighted(self, outputs: Array, targets: Array) -> Score:
        """The score as a function of weights (resamples, samples)."""
        terms = self.terms(outputs, targets)
        return lambda weights: self.combine(weights @ terms)


class FunctionMetric:
    """The user's own `function(outputs, targets)`, giving one number or one a sample.

    Attributes of the function override `higher_is_better` (True) and `unit` (""). `per_sample` is known after the first
    score.
    """

    def __init__(self, name: str, function: Callable[[Array, Array], Any]) -> None:
        self.name = name
        self.function = function
        self.higher_is_better = bool(getattr(function, "higher_is_better", True))
        self.unit = str(getattr(function, "unit", ""))
        self.per_sample = False

    def score(self, outputs: Array, targets: Array) -> Array:
        """Shape () or (samples,). Raises InputError where the function fails, or gives something else or NaN."""
        check_numbers(outputs, targets)
        try:
            result = np.asarray(self.function(outputs, targets), np.float64)
        except EdgedlError:
            raise
        except Exception as e:
            message = f"metric {self.name}: {type(e).__name__}: {e}"
            raise InputError(message) from e
        if result.shape not in ((), (len(outputs),)):
            message = f"metric {self.name}: must give one number or shape ({len(outputs)},), got shape {result.shape}"
            raise InputError(message)
        if not np.all(np.isfinite(result)):
            message = f"metric {self.name}: gave NaN or infinity"
            raise InputError(message)
        self.per_sample = result.ndim == 1
        return result


def check_numbers(outputs: Array, targets: Array) -> None:
    """Raise InputError unless both hold as many samples, at least one, and numbers that are finite."""
    if outputs.ndim == 0 or targets.ndim == 0 or len(outputs) != len(targets) or len(outputs) == 0:
        message = (
            f"outputs {outputs.shape} and targets {targets.shape} must hold the same samples on axis 0, at least one"
        )
        raise InputError(message)
    for name, array in (("outputs", outputs), ("targets", targets)):
        if array.dtype.kind not in "biuf":
            message = f"{name}: must be numbers, got dtype {array.dtype}"
            raise InputError(message)
        parts = slices(len(array), array[:1].nbytes) if array.dtype.kind == "f" else ()
        for part in parts:
            finite = np.isfinite(array[part])
            if not finite.all():
                where = np.argwhere(~finite)[0]
                found = array[part][tuple(where)]
                message = f"{name}: sample {part.start + where[0]} holds {found}; every value must be a finite number"
                raise InputError(message)


def names() -> tuple[str, ...]:
    """The names that metrics are installed under."""
    return tuple(p.name for p in plugins.listing("metrics"))


def resolve(name: str) -> Metric:
    """The metric that `name` stands for: an installed one, `topK`, `NAME_logits`, or `module:function`.

    `NAME_logits` puts the threshold of a sigmoid metric at 0 in place of 0.5.
    Raises PluginError with what is allowed.
    """
    if name in names():
        loaded: Metric = plugins.load("metrics", name)
        return loaded
    if ":" in name:
        return FunctionMetric(name, user_code.function(name, f"metric {name}"))
    if match := re.fullmatch(r"top([1-9]\d*)", name):
        from edgedl.validation.classification import TopK

        return TopK(int(match[1]))
    base = name.removesuffix("_logits")
    if base != name and base in names():
        metric = plugins.load("metrics", base)
        if hasattr(metric, "on_logits"):
            thresholded: Metric = metric.on_logits()
            return thresholded
    message = f"no metric {name!r}; allowed: {', '.join(names())}, topK (such as top3), NAME_logits, module:function"
    raise PluginError(message)


def holds_classes(spec: TensorSpec) -> bool:
    """Whether an output is of integers without a scale: classes themselves."""
    return spec.dtype.startswith(("int", "uint")) and not spec.scale


def default_metric(
    output_shape: tuple[int | None, ...],
    targets: Array | None,
    input_shape: tuple[int | None, ...] | None = None,
    *,
    codes: bool = False,
) -> tuple[str | None, str]:
    """The metric's name and why it was chosen; None where only parity can be judged.

    Shapes have the batch on axis 0. Where `targets` is None and the choice is `mse`, the input is the target.
    `codes` are outputs that `holds_classes`.
    """
    if targets is None:
        if input_shape is not None and tuple(output_shape[1:]) == tuple(input_shape[1:]):
            return "mse", "no targets, and the output has the input's shape: an autoencoder, judged against its input"
        return None, "no targets: only parity with the reference can be judged"
    whole = targets.dtype.kind in "biu" or bool(np.all(np.equal(np.mod(targets, 1), 0)))
    binary = whole and bool(np.isin(targets, (0, 1)).all())
    single = all(size == 1 for size in output_shape[1:])
    if single and binary:
        return "binary", "one output and targets of 0 and 1"
    places = output_shape[1:-1] if output_shape[3:] == (1,) else output_shape[1:]
    drawn = targets.shape[:3] if targets.shape[3:] == (1,) else targets.shape
    if len(places) == 2 and len(drawn) == 3 and all(p in (None, n) for p, n in zip(places, drawn[1:], strict=True)):
        if codes and whole:
            return "miou", "outputs are class maps"
        if binary and len(output_shape) == 4:
            return "miou", "targets are masks of 0 and 1"
    channels = output_shape[-1] or 0
    matches = targets.ndim == len(output_shape) and all(
        wanted in (None, size) for wanted, size in zip(output_shape[1:], targets.shape[1:], strict=True)
    )
    if not single and matches and binary:
        if channels > 1 and bool((targets.sum(axis=-1) == 1).all()):
            return ("miou", "one-hot class maps") if len(output_shape) == 4 else ("top1", "one-hot targets")
        return "multilabel_f1", "several targets of 0 and 1 for each sample"
    if not single and whole and channels > 1 and not matches:
        if len(output_shape) == 4 and output_shape[1:3] != (1, 1):
            return "miou", "targets are class maps"
        return "top1", "targets are class labels"
    return "mae", "targets are real values"


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Reference against artifact on the same samples; `drop` is how much worse the artifact is, in the metric's unit.

    `interval` has 95 % confidence, `bounds` are two one-sided 95 % bounds: what a gate judges by. `counts` (None unless
    samples are right or wrong) has both right, only the reference right, only the artifact right, both wrong.
    """

    reference: float
    artifact: float
    interval: Interval
    bounds: Interval
    samples: int
    method: str
    counts: tuple[int, int, int, int] | None = None

    @property
    def drop(self) -> float:
        """Positive where the artifact is worse."""
        return float(self.interval.estimate)


def compare(
    metric: Metric,
    reference: Array,
    artifact: Array,
    targets: Array,
    *,
    groups: Array | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """The paired comparison: Newcombe for right-or-wrong samples, t for real-valued ones, else the bootstrap.

    `groups` (samples,), such as subjects, are what the bootstrap then draws. Raises InputError.
    """
    scores = np.asarray(metric.score(reference, targets)), np.asarray(metric.score(artifact, targets))
    means = float(scores[0].mean()), float(scores[1].mean())
    better, worse = scores if metric.higher_is_better else scores[::-1]
    counts = None
    levels = (0.95, statistics.TWO_BOUNDS)
    if scores[0].ndim == 0 or groups is not None:
        interval, bounds, method = _bootstrap(
            metric, reference, artifact, targets, better - worse, groups, resamples, seed
        )
    elif getattr(metric, "unit", "") in ("fraction", "") and all(bool(np.isin(s, (0, 1)).all()) for s in scores):
        cells = statistics.paired_counts(better, worse)
        interval, bounds = (statistics.newcombe_paired(*cells, confidence=level) for level in levels)
        a, b, c, d = (int(x) for x in cells)
        counts = (a, b, c, d) if metric.higher_is_better else (d, b, c, a)
        method = "Newcombe's paired interval"
    else:
        bounded = getattr(metric, "unit", "") == "fraction"
        interval, bounds = (statistics.mean_interval(better - worse, level, bounded=bounded) for level in levels)
        method = "paired t interval"
    return Comparison(
        reference=means[0],
        artifact=means[1],
        interval=interval,
        bounds=bounds,
        samples=len(targets),
        method=method,
        counts=counts,
    )


def _bootstrap(
    metric: Metric,
    reference: Array,
    artifact: Array,
    targets: Array,
    drops: Array,
    groups: Array | None,
    resamples: int,
    seed: int,
) -> tuple[Interval, Interval, str]:
    """Intervals of the drop; `drops` has one value a sample, or is not used: shape ()."""
    n = len(targets)
    if drops.ndim == 1:

        def drop(weights: Floats) -> Floats:
            mean: Floats = weights @ drops / weights.sum(axis=1)
            return mean

    else:
        sign = 1.0 if metric.higher_is_better else -1.0
        first, second = (weighted_score(metric, outputs, targets) for outputs in (reference, artifact))

        def drop(weights: Floats) -> Floats:
            return sign * (first(weights) - second(weights))

    estimate, draws, units = statistics.resample(drop, n, groups, resamples=resamples, seed=seed)
    bounded = getattr(metric, "unit", "") == "fraction"
    interval, bounds = (
        statistics.percentile(estimate, draws, units, level, bounded=bounded) for level in (0.95, statistics.TWO_BOUNDS)
    )
    noun = "samples" if groups is None else "groups"
    return interval, bounds, f"bootstrap over {units} {noun}, {resamples} resamples"


def weighted_score(metric: Metric, outputs: Array, targets: Array) -> Score:
    """A corpus metric as a function of weights (resamples, samples); a foreign one is called resample by resample."""
    if isinstance(metric, Corpus):
        return metric.weighted(outputs, targets)
    return statistics.from_indices(lambda drawn: float(metric.score(outputs[drawn], targets[drawn])))
