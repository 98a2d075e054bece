"""Scores, bootstrap and comparison against scikit-learn, torchmetrics and loops."""

import itertools
import time
from functools import partial

import numpy as np
import pytest
import sklearn.metrics
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import binary_calibration_error, multilabel_auroc

from crema_lib import metrics
from crema_lib.errors import CremaError


def data(n=300, labels=6, ties=False, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.random((n, labels)) < rng.uniform(0.05, 0.5, labels)
    scores = targets * rng.uniform(0, 1, labels) + rng.normal(size=(n, labels))
    return targets.astype(int), scores.round(1) if ties else scores


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


SKLEARN = {
    "auroc": sklearn.metrics.roc_auc_score,
    "auprc": sklearn.metrics.average_precision_score,
    "log_loss": sklearn.metrics.log_loss,
    "brier": sklearn.metrics.brier_score_loss,
    "f1": sklearn.metrics.f1_score,
    "sensitivity": sklearn.metrics.recall_score,
    "specificity": partial(sklearn.metrics.recall_score, pos_label=0),
    "precision": sklearn.metrics.precision_score,
}
DECISIONS = ("f1", "sensitivity", "specificity", "precision")


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", SKLEARN)
def test_every_score_equals_scikit_learn(name, weighted):
    """With ties, with labels of one to three positives, and with the counts of a bootstrap as sample weights."""
    rng = np.random.default_rng(3)
    targets, scores = data(250, 7, ties=True, seed=3)
    targets[:, 0], targets[:, 1] = 0, 0
    targets[5, 0], targets[[1, 2, 9], 1] = 1, 1
    scores = (scores > 0.7).astype(float) if name in DECISIONS else sigmoid(scores)
    if name in DECISIONS:
        scores[5, 0] = 1  # something is called, so that the precision is defined
    counts = metrics.patient_counts(rng.integers(0, 120, 250), 6, seed=1) if weighted else np.ones((1, 250), dtype=int)
    counts[:, [1, 5]] += weighted  # every label keeps a positive
    ours = getattr(metrics, name)(targets, scores, counts if weighted else None)
    assert ours.shape == ((6, 7) if weighted else (7,))
    for row, count in zip(np.atleast_2d(ours), counts, strict=True):
        theirs = [SKLEARN[name](t, s, sample_weight=count) for t, s in zip(targets.T, scores.T, strict=True)]
        np.testing.assert_allclose(row, theirs, atol=1e-9)


def test_weights_need_not_be_whole_numbers():
    targets, scores = data(ties=True)
    weights = np.random.default_rng(0).random((3, len(targets)))
    for name in ("auroc", "auprc"):
        ours = getattr(metrics, name)(targets, scores, weights)
        theirs = [[SKLEARN[name](targets[:, k], scores[:, k], sample_weight=w) for k in range(6)] for w in weights]
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def slow_ece(target, p, count, edges):
    """Guo et al. 2017, equation 3: bins (a, b], the lowest one closed."""
    error = 0
    for i, (a, b) in enumerate(itertools.pairwise(edges)):
        inside = ((p > a) | (i == 0)) & (p <= b)
        if count[inside].sum():
            error += abs((count * p)[inside].sum() - (count * target)[inside].sum()) / count.sum()
    return error


def test_ece_equals_its_definition():
    targets, scores = data(300, 4, seed=2)
    p, counts = sigmoid(scores), np.random.default_rng(1).integers(0, 4, (5, 300))
    ours = metrics.ece(targets, p, counts, bins=12)
    edges = np.linspace(0, 1, 13)
    for k in range(4):
        np.testing.assert_allclose(ours[:, k], [slow_ece(targets[:, k], p[:, k], c, edges) for c in counts], atol=1e-12)


def test_ece_equals_torchmetrics_and_reads_both_ends():
    import torch

    targets, scores = data(400, 3, seed=4)
    p = sigmoid(scores)
    theirs = [float(binary_calibration_error(torch.tensor(p[:, k]), torch.tensor(targets[:, k]), n_bins=15)) for k in range(3)]
    np.testing.assert_allclose(metrics.ece(targets, p), theirs, atol=1e-6)
    right = np.array([[0], [1], [1]])
    assert metrics.ece(right, right.astype(float)) == 0
    assert metrics.ece(right, 1.0 - right) == 1


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_equals_scikit_learn_and_torchmetrics(ties):
    import torch

    targets, scores = data(ties=ties)
    ours = metrics.auroc(targets, scores)
    np.testing.assert_allclose(ours, [roc_auc_score(t, s) for t, s in zip(targets.T, scores.T, strict=True)], atol=1e-12)
    if not ties:  # torchmetrics counts in float32
        theirs = multilabel_auroc(torch.tensor(scores).sigmoid(), torch.tensor(targets), 6, average=None)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_auroc_equals_repeating_records(ties):
    targets, scores = data(ties=ties)
    counts = np.random.default_rng(1).integers(0, 4, (5, len(targets)))
    ours = metrics.auroc(targets, scores, counts)
    for row, count in zip(ours, counts, strict=True):
        again = np.repeat(np.arange(len(targets)), count)
        np.testing.assert_allclose(row, [roc_auc_score(targets[again, k], scores[again, k]) for k in range(6)], atol=1e-12)


def test_undefined_is_nan_and_never_a_half():
    targets, scores = data()
    targets[:, 0], targets[:, 1] = 0, 1
    values = metrics.auroc(targets, scores)
    assert np.isnan(values[:2]).all() and np.isfinite(values[2:]).all()
    mean, count = metrics.macro(values)
    assert count == 4 and mean == pytest.approx(values[2:].mean())
    assert np.isnan(metrics.macro(np.full(3, np.nan))[0])


def test_every_ranking_and_decision_score_has_its_undefined():
    targets, scores = data(60, 3)
    targets[:, 0], targets[:, 1] = 0, 1
    called = (scores > 0).astype(float)
    assert np.isnan(metrics.auprc(targets, scores)[:2]).all()
    assert np.isnan(metrics.f1(targets, called)[0]) and np.isnan(metrics.sensitivity(targets, called)[0])
    assert np.isnan(metrics.specificity(targets, called)[1])
    assert np.isnan(metrics.precision(targets, np.zeros_like(called))).all(), "nothing called, nothing to be right about"
    called[:, 2] = np.nan  # no threshold
    for name in DECISIONS:
        values = getattr(metrics, name)(targets, called, np.ones((4, 60), dtype=int))
        assert values.shape == (4, 3) and np.isnan(values[:, 2]).all()
    counts = np.ones((2, 60), dtype=int)
    targets[:, 2] = np.arange(60) == 7
    counts[0, 7] = 0  # a resample without the one positive
    for name in ("auroc", "auprc"):
        values = getattr(metrics, name)(targets, scores, counts)[:, 2]
        assert np.isnan(values[0]) and np.isfinite(values[1])


def test_resampling_is_by_patient():
    patients = np.repeat(["a", "b", "c", "d"], [1, 2, 3, 4])
    counts = metrics.patient_counts(patients, 2000, seed=0)
    for start, size in ((0, 1), (1, 2), (3, 3), (6, 4)):
        assert (counts[:, start : start + size] == counts[:, [start]]).all()
    assert (counts[:, [0, 1, 3, 6]].sum(1) == 4).all(), "as many patients as there are"
    assert counts[:, 0].mean() == pytest.approx(1, abs=0.1) and counts[:, 0].var() == pytest.approx(0.75, abs=0.1)


def test_bootstrap_interval_equals_a_slow_one():
    targets, scores = data(200, 3, seed=1)
    patients = np.arange(200) // 2
    result = metrics.compare(targets, {"m": scores}, patients, list("abc"), n=100, seed=5)
    counts = metrics.patient_counts(patients, 100, seed=5)
    assert (counts @ targets > 0).all(), "every label is defined in every resample of this example"
    slow = []
    for count in counts:
        again = np.repeat(np.arange(200), count)
        slow.append(np.mean([roc_auc_score(targets[again, k], scores[again, k]) for k in range(3)]))
    value = result.macro("m")
    assert value.value == pytest.approx(np.mean([roc_auc_score(targets[:, k], scores[:, k]) for k in range(3)]))
    assert (value.low, value.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))


def test_interval_covers_as_often_as_it_says():
    """True AUROC of two normals a distance 1 apart is Phi(1 / sqrt 2)."""
    from scipy.stats import norm

    truth, hits = norm.cdf(1 / 2**0.5), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        targets = (rng.random((150, 1)) < 0.4).astype(int)
        scores = targets + rng.normal(size=(150, 1))
        value = metrics.compare(targets, {"m": scores}, np.arange(150), ["x"], n=200, seed=seed).macro("m")
        hits += value.low <= truth <= value.high
    assert hits >= 51  # of 60; a 95 % interval falls below that once in a thousand


def test_paired_gain_is_narrower_than_its_parts():
    targets, scores = data(400, 4)
    worse = scores + 0.3 * np.random.default_rng(2).normal(size=scores.shape)
    result = metrics.compare(targets, {"a": scores, "b": worse}, np.arange(400), list("wxyz"))
    gain, a, b = result.gain("a", "b"), result.macro("a"), result.macro("b")
    assert gain.value == pytest.approx(a.value - b.value)
    assert gain.high - gain.low < (a.high - a.low)
    zero = result.gain("a", "a")
    assert (zero.value, zero.low, zero.high) == (0, 0, 0)


def test_a_difference_is_over_the_labels_that_both_models_have_in_a_resample():
    nan = np.nan
    a, b = np.array([[0.9, nan], [0.9, 0.5]]), np.array([[0.9, 0.1], [0.9, 0.4]])
    two = metrics.Comparison(("x", "y"), np.array([9, 9]), {"a": np.array([0.9, 0.5]), "b": np.array([0.9, 0.4])}, {"a": a, "b": b})
    gain = two.gain("a", "b")
    assert (gain.value, gain.low, gain.high) == pytest.approx((0.05, 0.00125, 0.04875)), "0 of the first resample, 0.05 of the second"


def test_labels_that_cannot_be_scored_are_left_out_by_name():
    targets, scores = data(100, 3)
    targets[:, 1] = 0
    result = metrics.compare(targets, {"m": scores}, np.arange(100), ["a", "b", "c"], n=10)
    assert result.names == ("a", "c") and len(result.positives) == 2
    with pytest.raises(CremaError, match="nothing can be scored"):
        metrics.compare(np.zeros((100, 3)), {"m": scores}, np.arange(100), ["a", "b", "c"])


def test_a_label_with_one_positive_is_scored_and_marked_as_rare():
    targets, scores = data(100, 2, seed=7)
    targets[:, 0] = np.arange(100) == 3
    result = metrics.compare(targets, {"m": scores}, np.arange(100), ["rare", "b"], n=50)
    assert result.names == ("rare", "b") and result.frequent.tolist() == [False, True] and result.left_out == ()
    assert np.isnan(result.resampled["m"][:, 0]).any() and np.isfinite(result.label("m", 0).low)
    none = metrics.interval(0.5, np.full(4, np.nan))
    assert np.isnan([none.low, none.high]).all() and none.value == 0.5


@pytest.mark.parametrize("name", metrics.METRICS)
def test_compare_takes_every_score(name):
    targets, scores = data(300, 4, seed=5)
    scores = {"a": sigmoid(scores), "b": sigmoid(0.5 * scores + 0.3 * np.random.default_rng(0).normal(size=scores.shape))}
    if name in DECISIONS:
        scores = {model: (s > 0.5).astype(float) for model, s in scores.items()}
        scores["a"][:, 3] = np.nan  # no threshold for one model: the label is left out for both
    patients = np.arange(300) // 2
    result = metrics.compare(targets, scores, patients, list("wxyz"), n=60, seed=2, metric=name)
    kept = 3 if name in DECISIONS else 4
    assert result.metric == name and result.names == tuple("wxyz")[:kept] and result.left_out == tuple("wxyz")[kept:]
    counts = metrics.patient_counts(patients, 60, seed=2)
    again = [np.repeat(np.arange(300), c) for c in counts]
    score = getattr(metrics, name)
    slow = {m: np.array([metrics.macro(score(targets[r], s[r])[:kept])[0] for r in again]) for m, s in scores.items()}
    gain = result.gain("a", "b")
    assert (gain.low, gain.high) == pytest.approx(tuple(np.quantile(slow["a"] - slow["b"], [0.025, 0.975])))
    value, (low, high) = result.macro("b"), np.quantile(slow["b"], [0.025, 0.975])
    expected = np.clip([2 * value.value - high, 2 * value.value - low], 0, 1) if name in metrics.REFLECTED else (low, high)
    assert (value.low, value.high) == pytest.approx(tuple(expected))


def test_the_basic_interval_of_ece_covers_better():
    """Probabilities off by a known amount: chance adds to every ECE and again to every resample of it."""
    from scipy.special import expit, logit

    def draw(n, rng):
        p = expit(rng.normal(-1, 1.5, (n, 1)))
        return (rng.random((n, 1)) < expit(logit(p) - 0.2)).astype(int), p

    targets, p = draw(200_000, np.random.default_rng(9))
    truth, hits = metrics.ece(targets, p, bins=10)[0], {True: 0, False: 0}
    for seed in range(60):
        targets, p = draw(800, np.random.default_rng(seed))
        resampled = metrics.ece(targets, p, metrics.patient_counts(np.arange(800), 200, seed), bins=10)[:, 0]
        for reflect in hits:
            found = metrics.interval(metrics.ece(targets, p, bins=10)[0], resampled, reflect=reflect)
            hits[reflect] += found.low <= truth <= found.high
    assert hits[True] >= 45 > hits[False] + 10, "of 60"


def test_the_basic_interval_of_rare_auprc_covers_better():
    """Six labels of about five positives: a positive drawn twice counts as two recordings with one score, and raises the precision."""

    def draw(n, seed):
        rng = np.random.default_rng(seed)
        targets = rng.random((n, 6)) < 0.01
        return targets, 1.5 * targets + rng.normal(size=targets.shape)

    truth, hits = metrics.auprc(*draw(200_000, 999)).mean(), {True: 0, False: 0, "around": 0}
    for seed in range(50):
        targets, scores = draw(500, seed)
        value = metrics.macro(metrics.auprc(targets, scores))[0]
        resampled = metrics.macro(metrics.auprc(targets, scores, metrics.patient_counts(np.arange(500), 150, seed)))[0]
        for reflect in (True, False):
            found = metrics.interval(value, resampled, reflect=reflect)
            hits[reflect] += found.low <= truth <= found.high
        hits["around"] += found.low - resampled.mean() <= truth - value <= found.high - resampled.mean()
    assert hits[True] >= 40 > hits[False] + 10 and hits[True] > hits["around"] > hits[False], "of 50"


def test_p_values_are_uniform_without_a_difference_and_small_with_one():
    rng = np.random.default_rng(0)
    found = []
    for seed in range(80):
        targets = (rng.random((120, 2)) < 0.4).astype(int)
        scores = {"a": targets + rng.normal(size=(120, 2)), "b": targets + rng.normal(size=(120, 2))}
        result = metrics.compare(targets, scores, np.arange(120), ["x", "y"], n=199, seed=seed)
        table = result.gains([("a", "b")])
        found.append(table["p"].item())
        inside = table["low"].item() <= 0 <= table["high"].item()
        assert inside == (found[-1] > 0.05) or abs(found[-1] - 0.05) < 0.03, "test and interval say the same"
    assert 1 <= sum(p < 0.1 for p in found) <= 18  # of 80, 8 expected
    assert metrics.p_value(np.linspace(1, 2, 999)) == pytest.approx(2 / 1000)
    assert metrics.p_value(np.linspace(-1, 1, 999)) == 1 and metrics.p_value(np.zeros(9)) == 1
    assert np.isnan(metrics.p_value(np.full(3, np.nan)))


def test_holm_on_a_worked_example():
    adjusted = metrics.holm([0.04, 0.01, 0.03, np.nan, 0.005])
    np.testing.assert_allclose(adjusted, [0.06, 0.03, 0.06, np.nan, 0.02])
    np.testing.assert_allclose(metrics.holm([0.6, 0.9]), [1, 1])
    assert metrics.holm([]).shape == (0,)


def test_several_gains_come_with_adjusted_p_values():
    targets, _ = data(300, 3)
    noise = np.random.default_rng(1).normal(size=targets.shape)
    models = {"a": targets + noise, "b": 0.97 * targets + noise, "c": noise}
    table = metrics.compare(targets, models, np.arange(300), list("xyz"), n=300).gains([("a", "b"), ("a", "c")])
    assert table["value"].is_monotonic_increasing and (table["p_holm"] >= table["p"]).all()
    assert table["p"].iloc[1] == pytest.approx(2 / 301) and table["p_holm"].iloc[1] == pytest.approx(4 / 301)


def test_bad_scores():
    targets, scores = data()
    scores[3, 2] = np.nan
    with pytest.raises(CremaError, match="1 scores are NaN"):
        metrics.auroc(targets, scores)
    with pytest.raises(CremaError, match="one shape"):
        metrics.auroc(targets[:, :2], scores)
    with pytest.raises(CremaError, match="at least one resample"):
        metrics.patient_counts([1, 2], 0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda t, s: metrics.brier(t, s), "are no probabilities"),
        (lambda t, s: metrics.ece(t, s + 0.5), "are no probabilities"),
        (lambda t, s: metrics.log_loss(t, s), "are no probabilities"),
        (lambda t, s: metrics.ece(t, sigmoid(s), bins=0), "at least one"),
        (lambda t, s: metrics.f1(t, s), "decisions are 0 or 1"),
        (lambda t, s: metrics.auroc(np.where(t == 1, np.nan, t), s), "other than 0 and 1"),
        (lambda t, s: metrics.auroc(t, s, np.ones(300)), r"\(resamples, records\) for 300"),
        (lambda t, s: metrics.compare(t, {"m": s}, range(300), list("abcdef"), metric="auc"), "unknown metric 'auc': known are auroc"),
        (lambda t, s: metrics.compare(t, {"m": s}, range(9), list("abcdef")), "9 patients and 6 names do not fit"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(CremaError, match=sentence):
        call(*data())


@pytest.mark.parametrize(("name", "resamples", "limit"), [("auroc", 1000, 10), ("auprc", 200, 2), ("brier", 1000, 5), ("ece", 1000, 5)])
def test_the_bootstrap_of_the_benchmark_takes_seconds(name, resamples, limit):
    """71 labels and 2,198 records, as frequent as in PTB-XL; CPU seconds of one thread, of which a thousand resamples may take ten."""
    rng = np.random.default_rng(0)
    targets = (rng.random((2198, 71)) < np.geomspace(0.002, 0.4, 71)).astype(int)
    targets[:2], scores = [[0], [1]], rng.normal(size=targets.shape)
    start = time.process_time()
    metrics.compare(targets, {"m": sigmoid(scores)}, np.arange(2198), [str(i) for i in range(71)], n=resamples, metric=name)
    assert time.process_time() - start < limit
