"""AUROC and bootstrap against scikit-learn and loops."""

import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import multilabel_auroc

from crema_lib import metrics
from crema_lib.errors import CremaError


def data(n=300, labels=6, ties=False, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.random((n, labels)) < rng.uniform(0.05, 0.5, labels)
    scores = targets * rng.uniform(0, 1, labels) + rng.normal(size=(n, labels))
    return targets.astype(int), scores.round(1) if ties else scores


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


def test_labels_that_cannot_be_scored_are_left_out_by_name():
    targets, scores = data(100, 3)
    targets[:, 1] = 0
    result = metrics.compare(targets, {"m": scores}, np.arange(100), ["a", "b", "c"], n=10)
    assert result.names == ("a", "c") and len(result.positives) == 2
    with pytest.raises(CremaError, match="nothing can be scored"):
        metrics.compare(np.zeros((100, 3)), {"m": scores}, np.arange(100), ["a", "b", "c"])


def test_bad_scores():
    targets, scores = data()
    scores[3, 2] = np.nan
    with pytest.raises(CremaError, match="1 scores are NaN"):
        metrics.auroc(targets, scores)
    with pytest.raises(CremaError, match="one shape"):
        metrics.auroc(targets[:, :2], scores)
    with pytest.raises(CremaError, match="at least one resample"):
        metrics.patient_counts([1, 2], 0)


def test_a_thousand_resamples_of_the_benchmark_take_seconds():
    targets, scores = data(2198, 71)
    start = time.process_time()
    metrics.compare(targets, {"m": scores}, np.arange(2198), [str(i) for i in range(71)], n=1000)
    assert time.process_time() - start < 20  # CPU seconds over both cores: 10 s on two idle ones
