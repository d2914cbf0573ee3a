import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from edgedl.errors import InputError, PluginError
from edgedl.types import TensorSpec
from edgedl.validation.classification import Auc, TopK, confusion, per_class
from edgedl.validation.metrics import (
    Corpus,
    compare,
    default_metric,
    holds_classes,
    names,
    resolve,
    weighted_score,
)

RNG = np.random.default_rng(0)
N = 400
Y = RNG.integers(0, 5, N)
LOGITS = RNG.normal(size=(N, 5)) + 2 * np.eye(5)[Y]
PROBABILITIES = (np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)).astype(np.float32)
TIED = np.round(PROBABILITIES * 16) / 16
BINARY_Y = RNG.integers(0, 2, N)
SIGMOID = (1 / (1 + np.exp(-RNG.normal(size=(N, 1)) - BINARY_Y[:, None]))).astype(np.float32)


@pytest.fixture(scope="module")
def oracle():
    return pytest.importorskip("sklearn.metrics", reason="scikit-learn is the oracle here")


def value(name, outputs, targets):
    return float(resolve(name).score(np.asarray(outputs), np.asarray(targets)).mean())


def test_every_installed_metric_fulfils_the_protocol():
    assert len(names()) >= 15
    for name in names():
        metric = resolve(name)
        assert metric.name == name
        assert metric.unit
        assert isinstance(metric.higher_is_better, bool)
        assert metric.per_sample is not isinstance(metric, Corpus)


def test_a_share_of_errors_counts_who_was_right():
    wrong = SimpleNamespace(higher_is_better=False, unit="fraction", score=lambda outputs, _: outputs)
    reference, artifact = np.zeros(40), np.zeros(40)
    reference[:2], artifact[:8] = 1, 1
    found = compare(wrong, reference, artifact, np.zeros(40))
    assert found.counts == (32, 6, 0, 2)  # both right, the reference alone, the artifact alone, neither
    assert found.drop == pytest.approx(6 / 40)


@pytest.mark.parametrize("outputs", [PROBABILITIES, LOGITS])
def test_classification_agrees_with_sklearn(oracle, outputs):
    guess = outputs.argmax(axis=1)
    assert value("top1", outputs, Y) == oracle.accuracy_score(Y, guess)
    assert value("top3", outputs, Y) == pytest.approx(oracle.top_k_accuracy_score(Y, outputs, k=3))
    for name in ("precision", "recall", "f1"):
        score = getattr(oracle, f"{name}_score")
        assert value(name, outputs, Y) == pytest.approx(score(Y, guess, average="macro"))
    assert (confusion(outputs, Y) == oracle.confusion_matrix(Y, guess)).all()
    table = per_class(outputs, Y)
    expected = oracle.precision_recall_fscore_support(Y, guess)
    for column, wanted in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert table[column] == pytest.approx(wanted)


def test_macro_averages_leave_out_classes_that_never_occur(oracle):
    outputs, y = PROBABILITIES[Y < 3], Y[Y < 3]
    y = np.minimum(y, 1)
    few = outputs[:, [0, 1, 3, 2, 4]] * [1, 1, 0.001, 1, 0]
    guess = few.argmax(axis=1)
    assert set(guess) == {0, 1, 3}
    for name in ("precision", "recall", "f1"):
        score = getattr(oracle, f"{name}_score")
        assert value(name, few, y) == pytest.approx(score(y, guess, average="macro", zero_division=0))


@pytest.mark.parametrize("targets", [Y, Y[:, None], Y.astype(np.float32), np.eye(5)[Y], np.eye(5, dtype=np.int8)[Y]])
def test_labels_may_be_indices_or_one_hot(targets):
    assert value("top1", PROBABILITIES, targets) == value("top1", PROBABILITIES, Y)
    assert value("f1", PROBABILITIES, targets) == value("f1", PROBABILITIES, Y)


def test_topk_breaks_ties_as_argmax_does():
    tied = np.array([[0.2, 0.4, 0.4, 0.0]])
    assert [value("top1", tied, [k]) for k in range(4)] == [0, 1, 0, 0]
    assert [value("top2", tied, [k]) for k in range(4)] == [0, 1, 1, 0]
    assert [value("top3", tied, [k]) for k in range(4)] == [1, 1, 1, 0]
    flat = np.zeros((1, 4))
    assert [value("top2", flat, [k]) for k in range(4)] == [1, 1, 0, 0]


def test_top1_averages_positions_of_a_sequence():
    outputs = np.eye(3)[np.array([[0, 1], [2, 2]])]
    assert TopK().score(outputs, np.array([[0, 2], [2, 2]])).tolist() == [0.5, 1.0]


def test_binary_agrees_with_sklearn_and_refuses_logits(oracle):
    guess = SIGMOID[:, 0] > 0.5
    assert value("binary", SIGMOID, BINARY_Y) == oracle.accuracy_score(BINARY_Y, guess)
    for name in ("precision", "recall", "f1"):
        assert value(name, SIGMOID, BINARY_Y) == pytest.approx(getattr(oracle, f"{name}_score")(BINARY_Y, guess))
    logits = np.log(SIGMOID / (1 - SIGMOID)) * 2
    message = r"metric binary: output -?[\d.]+ at sample \d+ is no probability; for logits choose binary_logits"
    with pytest.raises(InputError, match=message):
        resolve("binary").score(logits, BINARY_Y)
    for name in ("binary", "f1"):
        assert resolve(f"{name}_logits").name == f"{name}_logits"
        assert value(f"{name}_logits", logits, BINARY_Y) == value(name, SIGMOID, BINARY_Y)
    assert value("binary", SIGMOID, BINARY_Y) != value("binary_logits", SIGMOID, BINARY_Y)


@pytest.mark.parametrize("outputs", [PROBABILITIES, TIED])
def test_auc_agrees_with_sklearn_also_on_ties(oracle, outputs):
    areas = [oracle.roc_auc_score(np.equal(Y, k), outputs[:, k]) for k in range(5)]
    assert value("auc", outputs, Y) == pytest.approx(np.mean(areas))
    coarse = np.round(SIGMOID * 8) / 8
    assert value("auc", coarse, BINARY_Y) == pytest.approx(oracle.roc_auc_score(BINARY_Y, coarse))
    both = np.concatenate([1 - coarse, coarse], axis=1)
    assert value("auc", both, BINARY_Y) == pytest.approx(oracle.roc_auc_score(BINARY_Y, coarse))


def test_auc_needs_two_classes():
    with pytest.raises(InputError, match="needs targets of at least two classes"):
        resolve("auc").score(SIGMOID, np.ones(N, int))


def test_multilabel_agrees_with_sklearn(oracle):
    y = RNG.integers(0, 2, (N, 4))
    outputs = np.clip(y * 0.4 + RNG.random((N, 4)) * 0.6, 0, 1)
    guess = outputs > 0.5
    assert value("multilabel_f1", outputs, y) == pytest.approx(oracle.f1_score(y, guess, average="micro"))
    assert value("multilabel_exact", outputs, y) == oracle.accuracy_score(y, guess)
    assert value("multilabel_f1_logits", outputs - 0.5, y) == value("multilabel_f1", outputs, y)


def test_regression_agrees_with_sklearn(oracle):
    y = RNG.normal(1000, 2, (N, 3))
    outputs = y + RNG.normal(size=(N, 3))
    assert value("mae", outputs, y) == pytest.approx(oracle.mean_absolute_error(y, outputs))
    assert value("mse", outputs, y) == pytest.approx(oracle.mean_squared_error(y, outputs))
    assert value("rmse", outputs, y) == pytest.approx(np.sqrt(oracle.mean_squared_error(y, outputs)))
    assert value("r2", outputs, y) == pytest.approx(oracle.r2_score(y, outputs))
    assert value("mae", outputs[:, :1], y[:, 0]) == pytest.approx(np.abs(outputs - y)[:, 0].mean())
    with pytest.raises(InputError, match="a target is the same for all samples"):
        resolve("r2").score(outputs, np.ones((N, 3)))
    with pytest.raises(InputError, match=r"outputs \(400, 3\) and targets \(400, 2\) must have one shape"):
        resolve("mae").score(outputs, y[:, :2])


def test_cosine_of_embeddings():
    outputs = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    targets = np.array([[6.0, 8.0], [0.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    assert resolve("cosine").score(outputs, targets).tolist() == pytest.approx([1.0, 0.0, 0.0, 1.0])


def _miou(guess, y, classes):
    shares = []
    for k in range(classes):
        union = ((guess == k) | (y == k)).sum()
        if union:
            shares.append(((guess == k) & (y == k)).sum() / union)
    return np.mean(shares)


def test_miou_of_scores_maps_and_one_sigmoid():
    scores = RNG.random((7, 6, 5, 4))
    y = RNG.integers(0, 3, (7, 6, 5))
    guess = scores.argmax(axis=-1)
    expected = _miou(guess, y, 4)
    assert value("miou", scores, y) == pytest.approx(expected)
    assert value("miou", scores, y[..., None]) == pytest.approx(expected)
    assert value("miou", scores, np.eye(4)[y]) == pytest.approx(expected)
    assert value("miou", guess, y) == pytest.approx(expected)
    assert value("miou", guess[..., None].astype(np.int32), y) == pytest.approx(expected)
    sigmoid, mask = scores[..., :1], (y > 0).astype(np.uint8)
    assert value("miou", sigmoid, mask) == pytest.approx(_miou(sigmoid[..., 0] > 0.5, mask, 2))


def test_miou_takes_class_maps_that_runtimes_give_as_floats():
    maps, true = np.array([[[0, 1], [2, 1]]]), np.array([[[0, 1], [2, 2]]])
    expected = resolve("miou").score(maps, true)
    for outputs in (maps.astype(np.float32), maps[..., None].astype(np.float32)):
        assert resolve("miou").score(outputs, true) == expected
    with pytest.raises(InputError, match=r"needs outputs \(samples, h, w, classes\) or integer class maps"):
        resolve("miou").score(maps + 0.5, true)
    few = np.minimum(maps, 1)  # of three classes, the last of which the network never says
    for one in (few[..., None], few[..., None].astype(np.float32)):
        assert resolve("miou").score(one, true) == resolve("miou").score(few, true)


def test_miou_refuses_masks_that_are_none():
    scores, masks = np.eye(2)[np.array([[[0, 1], [1, 0]]])], np.array([[[0, 255], [255, 0]]])
    with pytest.raises(InputError, match="targets are 0 and 255, which means no class; divide masks by 255"):
        resolve("miou").score(scores, masks)
    for nothing in (scores[..., 0] * 0, np.zeros(masks.shape, int), np.zeros((*masks.shape, 1))):
        with pytest.raises(InputError, match="targets are 0 and 255"):
            resolve("miou").score(nothing, masks)
    with pytest.raises(InputError, match=r"targets \(1, 2, 2, 3\) do not fit outputs \(1, 2, 2, 2\)"):
        resolve("miou").score(scores, np.zeros((1, 2, 2, 3), int))


def test_miou_leaves_out_pixels_without_a_class():
    scores, y = RNG.random((3, 4, 4, 2)), RNG.integers(0, 2, (3, 4, 4))
    y[:, :2] = 255
    assert value("miou", scores, y) == pytest.approx(_miou(scores.argmax(-1)[:, 2:], y[:, 2:], 2))
    with pytest.raises(InputError, match="label 2 at sample 1 is out of range; allowed: 0 to 1"):
        resolve("miou").score(scores, np.where(np.arange(3)[:, None, None] == 1, 2, y))


def test_corpus_metrics_score_resamples_as_if_repeated():
    pixels = RNG.random((N, 2, 2, 3))
    cases = {
        "precision": (PROBABILITIES, Y),
        "f1": (SIGMOID, BINARY_Y),
        "auc": (TIED, Y),
        "multilabel_f1": (PROBABILITIES, (LOGITS > 1).astype(int)),
        "miou": (pixels, RNG.integers(0, 3, (N, 2, 2))),
        "rmse": (SIGMOID, BINARY_Y),
        "r2": (SIGMOID, BINARY_Y),
    }
    assert set(cases) | {"recall"} >= {n for n in names() if not resolve(n).per_sample} - {"f1"}
    drawn = RNG.integers(0, N, N)
    weights = np.bincount(drawn, minlength=N).astype(float)
    for name, (outputs, targets) in cases.items():
        metric = resolve(name)
        both = weighted_score(metric, outputs, targets)(np.stack([np.ones(N), weights]))
        assert both[0] == pytest.approx(float(metric.score(outputs, targets)), rel=1e-6), name
        assert both[1] == pytest.approx(float(metric.score(outputs[drawn], targets[drawn])), rel=1e-6), name


def test_auc_of_a_resample_without_positives_is_no_number():
    score = Auc().weighted(np.array([0.1, 0.9, 0.8]), np.array([0, 1, 1]))
    assert np.isnan(score(np.array([[3.0, 0, 0]]))).all()
    assert score(np.array([[1.0, 2, 0]])).tolist() == [1.0]


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        (PROBABILITIES, np.where(np.arange(N) == 7, 12, Y), "label 12 at sample 7 is out of range; allowed: 0 to 4"),
        (PROBABILITIES, np.where(np.arange(N) == 3, -1, Y), "label -1 at sample 3 is out of range"),
        (PROBABILITIES, np.where(np.arange(N) == 3, 1.5, Y), "label 1.5 at sample 3 is out of range"),
        (PROBABILITIES, Y[:-1], r"outputs \(400, 5\) and targets \(399,\) must hold the same samples"),
        (PROBABILITIES[:0], Y[:0], "at least one"),
        (
            np.where(Y[:, None] == 9, 0, np.where(np.arange(N)[:, None] == 5, np.nan, PROBABILITIES)),
            Y,
            "sample 5 holds nan",
        ),
        (PROBABILITIES, np.where(np.arange(N) == 2, np.inf, Y), "targets: sample 2 holds inf"),
        (
            PROBABILITIES,
            np.zeros((N, 2), int),
            r"targets: shape \(400, 2\) does not fit outputs \(400, 5\); give class",
        ),
        (PROBABILITIES, np.ones((N, 5), int), "sample 0 is no one-hot row"),
        (PROBABILITIES, Y.astype(str), "targets: must be numbers"),
    ],
)
def test_targets_that_do_not_fit_are_named(outputs, targets, message):
    with pytest.raises(InputError, match=message):
        resolve("top1").score(outputs, targets)


def test_metrics_name_what_they_need():
    with pytest.raises(InputError, match=r"top5: needs more than 5 classes, got outputs \(400, 5\)"):
        resolve("top5").score(PROBABILITIES, Y)
    with pytest.raises(InputError, match="metric binary: needs one output and one target a sample"):
        resolve("binary").score(PROBABILITIES, Y)
    with pytest.raises(InputError, match="label 2 at sample"):
        resolve("binary").score(SIGMOID, np.full(N, 2))
    with pytest.raises(InputError, match="multilabel_f1: needs outputs and targets"):
        resolve("multilabel_f1").score(PROBABILITIES, Y)


@pytest.mark.parametrize("name", ["top0", "accuracy", "mae_logits", "top", "_logits", ""])
def test_resolve_names_what_is_allowed(name):
    with pytest.raises(
        PluginError, match=rf"no metric '{name}'; allowed: auc, binary, .*topK \(such as top3\).*module:fun"
    ):
        resolve(name)


USER = """
import numpy as np
def within_one(outputs, targets): return np.abs(outputs[:, 0] - targets) <= 1
def worst(outputs, targets): return float(np.abs(outputs[:, 0] - targets).max())
worst.higher_is_better, worst.unit = False, "metre"
def broken(outputs, targets): return outputs.nonsense
def wrong(outputs, targets): return [1, 2]
def nothing(outputs, targets): return float("nan")
constant = 3
"""


@pytest.fixture
def _user(tmp_path, monkeypatch):
    (tmp_path / "my_metrics_for_edgedl.py").write_text(USER)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_user")
def test_resolve_wraps_the_users_function():
    y = np.arange(30.0)
    outputs = (y + np.linspace(0, 2, 30))[:, None]
    metric = resolve("my_metrics_for_edgedl:within_one")
    assert metric.score(outputs, y).tolist() == (np.linspace(0, 2, 30) <= 1).tolist()
    assert (metric.per_sample, metric.higher_is_better) == (True, True)
    worst = resolve("my_metrics_for_edgedl:worst")
    assert (float(worst.score(outputs, y)), worst.per_sample, worst.higher_is_better, worst.unit) == (
        2.0,
        False,
        False,
        "metre",
    )
    assert compare(metric, y[:, None], outputs, y).counts == (15, 15, 0, 0)
    assert compare(worst, y[:, None], outputs, y, resamples=50).drop == 2.0


@pytest.mark.usefixtures("_user")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "metric my_metrics_for_edgedl:broken: AttributeError: .*nonsense"),
        ("wrong", r"must give one number or shape \(400,\), got shape \(2,\)"),
        ("nothing", "gave NaN or infinity"),
        ("constant", "has no function 'constant'"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_the_users_function_may_be_wrong(name, message):
    with pytest.raises(InputError, match=message):
        resolve(f"my_metrics_for_edgedl:{name}").score(SIGMOID, BINARY_Y)


def test_resolve_names_a_module_that_does_not_import():
    with pytest.raises(InputError, match="metric nowhere_at_all:f: no module 'nowhere_at_all' in"):
        resolve("nowhere_at_all:f")


@pytest.mark.parametrize(
    ("output", "targets", "inputs", "name"),
    [
        ((1, 10), np.array([0, 9, 3]), (1, 28, 28), "top1"),
        ((None, 10), np.array([0.0, 9.0, 3.0]), (1, 28, 28), "top1"),
        ((1, 3), np.array([[0], [2]]), (1, 4), "top1"),
        ((1, 3), np.eye(3), (1, 4), "top1"),
        ((1, 7, 3), np.zeros((5, 7), int), (1, 7), "top1"),
        ((1, 1), np.array([0, 1, 1]), (1, 4), "binary"),
        ((1,), np.array([0.0, 1.0]), (1, 4), "binary"),
        ((1, 3), np.array([[1, 1, 0], [0, 0, 0]]), (1, 4), "multilabel_f1"),
        ((1, 8, 8, 3), np.zeros((2, 8, 8), int), (1, 8, 8, 3), "miou"),
        ((1, None, None, 3), np.eye(3)[np.zeros((2, 8, 8), int)], (1, 8, 8, 3), "miou"),
        ((1, 8, 8, 1), np.eye(8, dtype=int)[None], (1, 8, 8, 3), "miou"),
        ((1, 8, 8, 1), np.eye(8)[None, ..., None], (1, 8, 8, 3), "miou"),
        ((1, 1, 3), np.array([0, 2]), (1, 4), "top1"),
        ((1, 1, 1, 3), np.array([0, 2]), (1, 4), "top1"),
        ((1, 1), np.array([0.5, 1.5]), (1, 4), "mae"),
        ((1, 1), np.array([3, 17]), (1, 4), "mae"),
        ((1, 3), np.zeros((2, 3)) + 0.5, (1, 4), "mae"),
        ((1, 640), None, (1, 640), "mse"),
        ((1, 10), None, (1, 640), None),
        ((1, 10), None, None, None),
    ],
)
def test_default_metric_follows_targets_and_shapes(output, targets, inputs, name):
    chosen, why = default_metric(output, targets, inputs)
    assert chosen == name
    assert why


def test_default_metric_takes_integers_of_the_models_for_classes():
    maps = np.arange(128).reshape(2, 8, 8) % 4
    assert default_metric((1, 8, 8), maps, codes=True)[0] == "miou"
    assert default_metric((1, 8, 8), maps)[0] == "mae"


@pytest.mark.parametrize(
    ("dtype", "scale", "classes"),
    [("int64", (), True), ("uint8", (), True), ("int8", (0.1,), False), ("float32", (), False), ("string", (), False)],
)
def test_integers_without_a_scale_are_classes(dtype, scale, classes):
    assert holds_classes(TensorSpec(name="y", dtype=dtype, shape=(1, 8, 8), scale=scale)) is classes


def test_labels_fit_outputs_with_axes_of_one():
    for outputs in (PROBABILITIES[:, None], PROBABILITIES[:, None, None]):
        assert resolve("top1").score(outputs, Y).tolist() == resolve("top1").score(PROBABILITIES, Y).tolist()


def test_default_metric_fits_its_data():
    for output, targets in ((PROBABILITIES, Y), (SIGMOID, BINARY_Y), (PROBABILITIES, (LOGITS > 1).astype(int))):
        name, _ = default_metric(output.shape, targets)
        resolve(name).score(output, targets)


def test_compare_of_right_and_wrong_samples_is_newcombes():
    right = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [36, 12, 2, 0], axis=0)
    reference, artifact = (np.eye(2)[right[:, k]] for k in (0, 1))
    found = compare(resolve("top1"), reference, artifact, np.ones(50, int))
    assert found.counts == (36, 12, 2, 0)
    assert (found.reference, found.artifact, found.drop) == pytest.approx((0.96, 0.76, 0.20))
    assert (found.interval.low, found.interval.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert found.bounds.low > found.interval.low
    assert found.method == "Newcombe's paired interval"


def test_errors_that_are_0_and_1_are_still_errors():
    y = np.arange(20.0)
    found = compare(resolve("mae"), y, y + (np.arange(20) < 5), y)
    assert (found.counts, found.method) == (None, "paired t interval")


def test_r2_of_a_resample_of_one_subject_is_no_number():
    targets = np.repeat([0.1, 0.3, 0.7], 20)
    outputs = targets + np.tile([-0.01, 0.01], 30)
    found = compare(resolve("r2"), outputs, outputs + 0.001, targets, groups=np.repeat(np.arange(3), 20))
    assert abs(found.interval.high) < 1


def test_compare_turns_the_sign_of_errors():
    y = np.linspace(0, 1, 40)
    worse = compare(resolve("mae"), y[:, None], y[:, None] + np.linspace(0.1, 0.3, 40)[:, None], y)
    assert worse.drop == pytest.approx(0.2)
    assert worse.bounds.low > 0.18
    assert worse.method == "paired t interval"
    corpus = compare(resolve("rmse"), y[:, None], y[:, None] + 0.2, y)
    assert corpus.drop == pytest.approx(0.2)


def test_compare_of_a_corpus_metric_is_paired():
    noisy = PROBABILITIES + RNG.normal(0, 0.02, PROBABILITIES.shape)
    found = compare(resolve("f1"), PROBABILITIES, noisy, Y)
    alone = compare(resolve("f1"), np.eye(5)[Y], PROBABILITIES, Y)
    assert found.method == "bootstrap over 400 samples, 1000 resamples"
    assert found.interval.low <= found.drop <= found.interval.high
    assert found.interval.high - found.interval.low < 0.7 * (alone.interval.high - alone.interval.low)
    same = compare(resolve("f1"), PROBABILITIES, PROBABILITIES, Y)
    assert 0 < same.interval.high < 0.02  # nothing differed, which 400 samples do not prove for all


def test_compare_with_groups_draws_groups():
    groups = np.repeat(np.arange(8), 50)
    found = compare(resolve("top1"), np.eye(5)[Y], PROBABILITIES, Y, groups=groups)
    assert found.method == "bootstrap over 8 groups, 1000 resamples"
    assert found.counts is None
    assert found.drop == pytest.approx(1 - value("top1", PROBABILITIES, Y))


def test_compare_is_symmetric_in_every_metric():
    y, other = RNG.random((60, 2)), RNG.random((60, 2))
    for name, swapped in itertools.product(("mae", "mse", "rmse", "r2", "cosine"), (False, True)):
        first, second = (other, y + 0.01) if swapped else (y + 0.01, other)
        found = compare(resolve(name), first, second, y, resamples=20)
        assert (found.drop > 0) != swapped, name
