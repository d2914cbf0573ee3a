"""What a validation concludes of one output: the class that lost most, and whose answers changed."""

import numpy as np
import pytest

from edgedl.types import TensorSpec, Verdict
from edgedl.validation import accuracy, metrics
from edgedl.validation.accuracy import Judged
from edgedl.validation.gates import Gates
from edgedl.validation.validate import _threshold


def judged(reference, artifact, targets):
    spec = TensorSpec(name="kind", dtype="float32", shape=(None, *np.shape(reference)[1:]))
    parts = (np.asarray(part, np.float32) for part in (reference, artifact))
    return Judged(name="kind", **dict(zip(("reference", "artifact"), parts, strict=True)), targets=targets, spec=spec)


def worst(given, gates, metric="top1"):
    found = accuracy.compare(given, metrics.resolve(metric), gates, prefix="", target=None, seed=0)
    return next(c for c in found.checks if c.name == "worst_class_drop")


def classes(sizes, lost):
    """A reference that is right throughout, and an artifact that loses so many of each class to the next."""
    y = np.repeat(np.arange(len(sizes)), sizes)
    said = np.concatenate([np.where(np.arange(n) < k, (i + 1) % len(sizes), i)
                           for i, (n, k) in enumerate(zip(sizes, lost, strict=True))])  # fmt: skip
    rows = np.eye(len(sizes))
    return judged(rows[y], rows[said], y)


@pytest.mark.parametrize("gate", ["detect", "prove"])
def test_no_class_of_enough_samples_is_no_pass(gate):
    check = worst(classes([29, 29, 29], [29, 29, 29]), Gates(gate=gate, limits={"worst_class_drop": 0.05}))
    assert (check.verdict, check.measured) == (Verdict.UNCHECKED, 1.0)
    assert "0 of 3 classes have 30 samples or more" in check.why


def test_the_class_that_is_told_is_the_one_that_decided():
    gates = Gates(gate="detect", limits={"worst_class_drop": 0.05})
    check = worst(classes([2, 400, 400], [2, 100, 0]), gates)
    assert (check.verdict, check.measured) == (Verdict.FAIL, 0.25)
    assert check.why.startswith("class '1', 400 samples; 2 of 3 classes have 30 samples or more")
    assert worst(classes([2, 400, 400], [2, 100, 0]), Gates()).measured == 1.0  # without a limit, that lost most


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
@pytest.mark.parametrize(("name", "shift"), [("binary", 0.5), ("binary_logits", 0.0)])
def test_one_value_a_sample_has_two_classes(shape, name, shift):
    y = np.arange(60) % 2
    good, bad = (y - 0.5) / 2, np.where(np.arange(60) < 20, 0.25, (y - 0.5) / 2)
    given = judged((good + shift).reshape(shape), (bad + shift).reshape(shape), y)
    assert worst(given, Gates(limits={"worst_class_drop": 0.05}), name).measured == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("metric", "reference", "artifact", "flips"),
    [
        ("multilabel_f1", [0.95, 0.62, 0.05], [0.95, 0.38, 0.05], 1),  # a label is lost, the highest is the same
        ("multilabel_f1", [0.9, 0.8, 0.1], [0.8, 0.9, 0.1], 0),
        ("multilabel_f1_logits", [0.9, 0.2, -0.1], [0.9, -0.2, -0.1], 1),
        ("top1", [0.9, 0.8, 0.1], [0.8, 0.9, 0.1], 1),
        ("f1", [0.4, 0.3, 0.2], [0.6, 0.3, 0.2], 0),
        ("binary", [0.6], [0.4], 1),
        ("binary_logits", [0.6], [0.4], 0),
        ("auc", [0.6], [0.4], None),
        (None, [0.6], [0.4], None),
    ],
)
def test_flips_are_changed_answers(metric, reference, artifact, flips):
    given, chosen = judged([reference], [artifact], None), metrics.resolve(metric) if metric else None
    found = accuracy.agreement(
        given, Gates(), prefix="", target=None, has_answers=True, threshold=_threshold(given, chosen)
    )
    assert next((c.measured for c in found.checks if c.name == "flips"), None) == flips
