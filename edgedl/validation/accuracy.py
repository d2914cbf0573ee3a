"""Accuracy of an artifact beside its reference on one output: checks, and what the report's pictures are drawn from."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedl.errors import InputError
from edgedl.types import Check, Method, Metric, TensorSpec, Verdict
from edgedl.validation import classification, metrics, parity, statistics
from edgedl.validation.gates import Gates

Array = NDArray[Any]
ACCURACY = ("top1", "binary", "binary_logits")  # the metrics that the field calls accuracy
MOST_CLASSES = 100  # a confusion matrix beyond this is no picture


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """One output: what the reference and the artifact gave, (samples, ...), and what was right."""

    name: str
    reference: Array
    artifact: Array
    targets: Array | None
    spec: TensorSpec
    labels: tuple[str, ...] = ()
    groups: Array | None = None
    slices: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Checks, and entries of a report's details."""

    checks: tuple[Check, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def about(where: str) -> Iterator[None]:
    """Where a metric refuses the targets, a message that begins with `where` they are."""
    try:
        yield
    except InputError as e:
        message = f"{where}: {e}"
        raise InputError(message) from e


def compare(judged: Judged, metric: Metric, gates: Gates, *, prefix: str, target: str | None, seed: int) -> Findings:
    """One metric on one output, paired on the same samples. Raises InputError where targets do not fit the output."""
    assert judged.targets is not None  # noqa: S101
    found = metrics.compare(metric, judged.reference, judged.artifact, judged.targets, groups=judged.groups, seed=seed)
    unit = getattr(metric, "unit", "")
    name = prefix + ("accuracy" if metric.name in ACCURACY else metric.name.replace(":", "."))
    shared: dict[str, Any] = {"target": target, "unit": unit, "method": Method.MEASURED_HOST}
    checks = [
        Check(name=name, measured=found.artifact, **shared),
        Check(name=f"{name}_reference", measured=found.reference, **shared),
        gates.drop(f"{name}_drop", found, unit, target),
    ]
    values = {"reference": {"value": found.reference}, "artifact": {"value": found.artifact}}
    if found.counts:
        both, reference_only, artifact_only, _ = found.counts
        for key, right in (("reference", both + reference_only), ("artifact", both + artifact_only)):
            interval = statistics.wilson(right if metric.higher_is_better else found.samples - right, found.samples)
            values[key] |= {"low": float(interval.low), "high": float(interval.high)}
        p = statistics.mcnemar(reference_only, artifact_only)
        checks.append(
            Check(name=f"{prefix}mcnemar_p", measured=p, target=target, method=Method.MEASURED_HOST,
                  why=f"right before and wrong now: {reference_only}, wrong before and right now: {artifact_only}")
        )  # fmt: skip
    drop = {"value": found.drop, "low": float(found.interval.low), "high": float(found.interval.high)}
    details: dict[str, Any] = {
        "metric": {"name": name, "unit": unit, "higher_is_better": metric.higher_is_better, "output": judged.name},
        "accuracy": values | {"drop": drop | {"confidence": 0.95}, "samples": found.samples},
    }
    if judged.slices is not None:
        details["slices"] = _slices(judged, metric)
    if metric.name in ACCURACY:
        classes = _classes(judged, metric, gates, prefix, target)
        notes = _guessing(judged, values["reference"])
        return Findings(checks=(*checks, *classes.checks), details=details | classes.details, notes=notes)
    return Findings(checks=tuple(checks), details=details)


def agreement(
    judged: Judged,
    gates: Gates,
    *,
    prefix: str,
    target: str | None,
    has_answers: bool,
    threshold: float | None = None,
) -> Findings:
    """How far the outputs are from the reference's; flips where the highest one, or those above, are an answer."""
    found = parity.compare(judged.artifact, judged.reference, judged.spec, threshold=threshold)
    shared: dict[str, Any] = {"method": Method.MEASURED_HOST, "target": target}
    checks = [_renamed(gates.check("max_abs", found.max_abs, **shared), prefix)]
    if found.max_lsb is not None:
        checks.append(_renamed(gates.check("max_lsb", found.max_lsb, **shared), prefix))
    if found.flips is not None and has_answers:
        why = f"of {found.samples:,} samples, the answer changed"
        checks.append(_renamed(gates.check("flips", found.flips, why=why, **shared), prefix))
    if found.nonfinite:
        sides = {"artifact": judged.artifact, "reference": judged.reference}
        given = " and ".join(side for side, values in sides.items() if not parity.is_finite(values))
        why = f"{found.nonfinite:,} of {found.values:,} output values are NaN or infinite: those of the {given}"
        checks.append(Check(name=f"{prefix}nonfinite", measured=found.nonfinite, limit=0, unit="count",
                            verdict=Verdict.FAIL, why=why, **shared))  # fmt: skip
    entry = {
        "output": judged.name,
        "max_abs": found.max_abs,
        "mean_abs": found.mean_abs,
        "max_lsb": found.max_lsb,
        "mean_lsb": found.mean_lsb,
        "differing": found.differing,
        "agreement": 1 - found.flip_share if has_answers and found.flip_share is not None else None,
    }
    return Findings(checks=tuple(checks), details={"parity": {k: v for k, v in entry.items() if v is not None}})


def _renamed(check: Check, prefix: str) -> Check:
    return replace(check, name=prefix + check.name) if prefix else check


def _classes(judged: Judged, metric: Metric, gates: Gates, prefix: str, target: str | None) -> Findings:
    """Confusion matrices, precision, recall and F1 before and after, and the class that lost most."""
    assert judged.targets is not None  # noqa: S101
    if judged.reference.ndim > 2:
        return Findings()
    threshold = getattr(metric, "threshold", 0.5)
    tables = [classification.per_class(o, judged.targets, threshold) for o in (judged.reference, judged.artifact)]
    count = len(tables[0]["support"])
    labels = list(judged.labels) if len(judged.labels) == count else [str(i) for i in range(count)]
    rows = [
        {
            "label": labels[i],
            "support": int(tables[0]["support"][i]),
            "reference": {k: float(tables[0][k][i]) for k in ("precision", "recall", "f1")},
            "artifact": {k: float(tables[1][k][i]) for k in ("precision", "recall", "f1")},
        }
        for i in range(count)
    ]
    details: dict[str, Any] = {"per_class": rows}
    if count <= MOST_CLASSES:
        reference, artifact = (
            classification.confusion(o, judged.targets, threshold).tolist() for o in (judged.reference, judged.artifact)
        )
        details["confusion"] = {"labels": labels, "reference": reference, "artifact": artifact}
    return Findings(checks=(_worst_class(judged, metric, gates, labels, prefix, target),), details=details)


def _worst_class(
    judged: Judged, metric: Metric, gates: Gates, labels: Sequence[str], prefix: str, target: str | None
) -> Check:
    """The class that lost most, under a limit of those that the verdict hangs on."""
    assert judged.targets is not None  # noqa: S101
    before, after = (np.asarray(metric.score(o, judged.targets)) > 0 for o in (judged.reference, judged.artifact))
    counts = statistics.paired_counts(before, after, classes=_true_classes(judged))
    present = np.flatnonzero(np.sum(counts, axis=0))
    cells = (counts[0][present], counts[1][present], counts[2][present], counts[3][present])
    sizes = np.sum(cells, axis=0)
    drops = statistics.newcombe_paired(*cells)
    candidates, verdict, why = np.arange(len(present)), Verdict.INFO, ""
    limit = gates.limits.get("worst_class_drop")
    if limit is not None:
        verdicts = statistics.decide_classes(gates.gate, cells, limit)
        known = int((sizes >= statistics.LEAST).sum())
        verdict = Verdict.worst(list(verdicts)) if known else Verdict.UNCHECKED
        candidates = np.flatnonzero([v is verdict or not known for v in verdicts])
        why = (
            f"; {known} of {len(present)} classes have {statistics.LEAST} samples or more and are judged, "
            "a failure by Holm's correction"
        )
    worst = int(candidates[drops.estimate[candidates].argmax()])
    label = labels[present[worst]] if present[worst] < len(labels) else str(present[worst])
    return Check(
        name=f"{prefix}worst_class_drop", target=target, measured=float(drops.estimate[worst]),
        low=float(drops.low[worst]), high=float(drops.high[worst]), limit=limit, unit="fraction",
        method=Method.MEASURED_HOST, verdict=verdict, why=f"class {label!r}, {int(sizes[worst])} samples{why}",
    )  # fmt: skip


def _guessing(judged: Judged, reference: Mapping[str, float]) -> tuple[str, ...]:
    """A note where the reference is not shown to know more than which class is the commonest."""
    if judged.reference.ndim > 2 or "low" not in reference or reference["value"] == 1:
        return ()
    share = np.bincount(_true_classes(judged)).max() / len(judged.reference)
    if reference["low"] > share:
        return ()
    return (
        f"output {judged.name!r}: the reference is right on {reference['value']:.1%}, and the commonest class is "
        f"{share:.1%} of the data: are the labels, their order and the preprocessing the model's?",
    )


def _true_classes(judged: Judged) -> Array:
    assert judged.targets is not None  # noqa: S101
    if judged.artifact.size == len(judged.artifact):
        return np.asarray(judged.targets).reshape(-1).astype(np.int64)
    return classification.class_labels(judged.artifact, judged.targets)


def _slices(judged: Judged, metric: Metric) -> list[dict[str, Any]]:
    """The metric on each slice, worst loss first."""
    assert judged.slices is not None  # noqa: S101
    assert judged.targets is not None  # noqa: S101
    rows: list[dict[str, Any]] = []
    for value in np.unique(judged.slices):
        chosen = judged.slices == value
        row: dict[str, Any] = {"slice": str(value), "samples": int(chosen.sum())}
        try:
            before, after = (
                float(np.mean(metric.score(o[chosen], judged.targets[chosen])))
                for o in (judged.reference, judged.artifact)
            )
            row |= {"reference": before, "artifact": after}
            row["drop"] = before - after if metric.higher_is_better else after - before
        except InputError:  # a slice of one class has no auc
            row |= {"reference": None, "artifact": None, "drop": None}
        rows.append(row)
    return sorted(rows, key=lambda row: math.inf if row["drop"] is None else -row["drop"])
