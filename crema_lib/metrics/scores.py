"""Scores per label and their macro average, for all labels and all resamples of a bootstrap at once.

Every score is a function of (targets, scores, weights):
    targets: 0/1 (records, labels).
    scores: float (records, labels): any number for `auroc` and `auprc`; probabilities for `log_loss`, `brier` and `ece`; decisions 0/1
        for `f1`, `sensitivity`, `specificity` and `precision` (see `thresholds`), NaN in a whole column where nothing was decided.
    weights: None, or how often each record counts (resamples, records), see `bootstrap.patient_counts`.
It returns float64 (labels,), or (resamples, labels) with weights.

Rules: a label without a positive or without a negative in the records scored has no AUROC and no AUPRC (NaN, never .5) and is left out of
the macro average, which says how many labels it holds. In a resample a label that became undefined is left out of that resample only.
"""

import numpy as np

from ..errors import CremaError

FEW = 10  # with fewer positives an interval says little, and the benchmark's second rule leaves the label out


def _check(targets, scores, weights=None):
    """Bool targets, scores and weights (resamples, records) as arrays that fit each other."""
    targets, scores = np.asarray(targets), np.asarray(scores)
    if targets.shape != scores.shape or targets.ndim != 2:
        raise CremaError(f"targets {targets.shape} and scores {scores.shape} must have one shape (records, labels)")
    if not np.isin(targets, (0, 1)).all():
        raise CremaError("targets hold values other than 0 and 1: leave out the records that do not belong to the task")
    if not np.isfinite(scores).all():
        raise CremaError(f"{int((~np.isfinite(scores)).sum())} scores are NaN or infinite")
    weights = np.ones((1, len(scores)), dtype=np.float32) if weights is None else np.asarray(weights)
    if weights.ndim != 2 or weights.shape[1] != len(scores):
        raise CremaError(f"weights {weights.shape} must be (resamples, records) for {len(scores)} records")
    return targets.astype(bool), scores, weights


def _probabilities(targets, scores, weights):
    targets, scores, weights = _check(targets, scores, weights)
    if scores.size and (scores.min() < 0 or scores.max() > 1):
        raise CremaError(f"scores from {scores.min():g} to {scores.max():g} are no probabilities: a sigmoid makes them of logits")
    return targets, scores, weights


def _divide(a, b):
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=np.asarray(b) != 0)


# --- ranking


def _sums(group, size, rows, weights):
    """Sum the rows of weights (records, resamples) by group: (size, resamples)."""
    order = np.argsort(group, kind="stable")
    present, first = np.unique(group[order], return_index=True)
    total = np.zeros((size, weights.shape[1]), dtype=weights.dtype)
    total[present] = np.add.reduceat(weights[rows[order]], first, axis=0)
    return total


def _ranked(targets, scores, weights, formula):
    """Call `formula(hits, below, tied, negatives)` for each label and put the results together.

    Its arguments are sums of weights (k, resamples) at the k distinct scores that positives have, in rising order: of the positives there,
    of the negatives below and of those with the same score; and of all negatives (resamples,). It returns (resamples,).
    """
    targets, scores, counts = _check(targets, scores, weights)
    exact = np.float32 if counts.dtype.kind in "iub" or weights is None else np.float64  # whole numbers below 2^24
    counts = np.ascontiguousarray(counts.T, dtype=exact)
    result = np.full((counts.shape[1], targets.shape[1]), np.nan)
    for label in range(targets.shape[1]):
        positives, negatives = np.flatnonzero(targets[:, label]), np.flatnonzero(~targets[:, label])
        if not len(positives) or not len(negatives):
            continue
        levels, level = np.unique(scores[positives, label], return_inverse=True)
        left, right = (np.searchsorted(levels, scores[negatives, label], side) for side in ("left", "right"))
        hits = _sums(level, len(levels), positives, counts)
        others = _sums(left + right, 2 * len(levels) + 1, negatives, counts)  # even: between two levels, odd: tied with one
        below = others.cumsum(0)
        defined = (hits.sum(0) > 0) & (below[-1] > 0)
        result[defined, label] = formula(hits, below[:-1:2], others[1::2], below[-1])[defined]
    return result[0] if weights is None else result


def auroc(targets, scores, weights=None):
    """AUROC of each label: chance that a random positive scores above a random negative, ties count half (Hanley & McNeil 1982)."""

    def formula(hits, below, tied, negatives):
        won = np.einsum("kr,kr->r", hits, below + tied / 2, dtype=np.float64)
        return _divide(won, hits.sum(0, dtype=np.float64) * negatives)

    return _ranked(targets, scores, weights, formula)


def auprc(targets, scores, weights=None):
    """Average precision of each label: the precision at the score of each positive, averaged over the positives.

    It is the area under the precision-recall curve drawn in steps; scores by chance reach the prevalence of the label.
    """

    def formula(hits, below, tied, negatives):
        found = hits[::-1].cumsum(0, dtype=np.float64)[::-1]  # positives at this score or above
        return _divide((hits * _divide(found, found + negatives - below)).sum(0, where=hits > 0), found[0])

    return _ranked(targets, scores, weights, formula)


# --- probabilities


def _mean(values, weights):
    """Weighted means (resamples, columns) of values (records, columns)."""
    return weights.astype(float) @ values / weights.sum(1, dtype=float)[:, None]


def log_loss(targets, scores, weights=None):
    """Mean negative log-likelihood of each label, nats; probabilities are kept off 0 and 1 by the resolution of their type."""
    targets, p, counts = _probabilities(targets, scores, weights)
    eps = np.finfo(p.dtype).eps if p.dtype.kind == "f" else np.finfo(float).eps
    p = np.clip(p, eps, 1 - eps).astype(float)
    result = _mean(-np.log(np.where(targets, p, 1 - p)), counts)
    return result[0] if weights is None else result


def brier(targets, scores, weights=None):
    """Brier score of each label: mean squared difference between probability and outcome (Brier 1950); the lower, the better."""
    targets, p, counts = _probabilities(targets, scores, weights)
    result = _mean((p.astype(float) - targets) ** 2, counts)
    return result[0] if weights is None else result


def bin_index(scores, bins):
    """Bin of each probability, of so many of equal width from 0 to 1: int, shape of the scores; a value on an edge belongs below it."""
    if bins < 1:
        raise CremaError(f"{bins} bins cannot hold a probability: give at least one")
    return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], scores)


def ece(targets, scores, weights=None, *, bins=15):
    """Expected calibration error: mean distance between probability and observed rate over bins (Naeini et al. 2015, Guo et al. 2017).

    Zero means that of all recordings given a probability p, a share p is positive. In small sets chance alone makes it larger (see
    `calibration.chance_ece`), and differences between models near that level too small: judge those by log loss or Brier score.

    Args:
        bins: of equal width, see `bin_index`.
    """
    targets, p, counts = _probabilities(targets, scores, weights)
    index, gap = bin_index(p, bins), np.zeros((*p.shape, bins))
    np.put_along_axis(gap, index[:, :, None], (p.astype(float) - targets)[:, :, None], axis=2)
    result = np.abs(_mean(gap.reshape(len(p), -1), counts)).reshape(len(counts), -1, bins).sum(2)
    return result[0] if weights is None else result


# --- decisions


def _confusion(targets, decisions, weights):
    """Weights (resamples, labels) of true positives, false positives, false negatives, true negatives; NaN where nothing was decided."""
    decisions = np.asarray(decisions, dtype=float)
    undecided = np.isnan(decisions).all(0) if decisions.ndim == 2 else False
    targets, decisions, counts = _check(targets, np.where(undecided, 0, decisions), weights)
    if not np.isin(decisions, (0, 1)).all():
        raise CremaError("decisions are 0 or 1: choose thresholds and apply them first (thresholds.choose, thresholds.decide)")
    called, counts = decisions.astype(bool), counts.astype(float)
    cells = [counts @ cell for cell in (targets & called, ~targets & called, targets & ~called, ~targets & ~called)]
    cells = [np.where(undecided, np.nan, cell) for cell in cells]
    return [cell[0] for cell in cells] if weights is None else cells


def f1(targets, scores, weights=None):
    """F1 of the decisions on each label, 2 TP / (2 TP + FP + FN); NaN without a positive."""
    tp, fp, fn, _ = _confusion(targets, scores, weights)
    return np.where(tp + fn > 0, _divide(2 * tp, 2 * tp + fp + fn), np.nan)


def sensitivity(targets, scores, weights=None):
    """Share of the positives that are called positive (recall); NaN without a positive."""
    tp, _, fn, _ = _confusion(targets, scores, weights)
    return _divide(tp, tp + fn)


def specificity(targets, scores, weights=None):
    """Share of the negatives that are called negative; NaN without a negative."""
    _, fp, _, tn = _confusion(targets, scores, weights)
    return _divide(tn, tn + fp)


def precision(targets, scores, weights=None):
    """Share of the positive calls that are right (positive predictive value); NaN where nothing is called positive."""
    tp, fp, _, _ = _confusion(targets, scores, weights)
    return _divide(tp, tp + fp)


METRICS = {f.__name__: f for f in (auroc, auprc, log_loss, brier, ece, f1, sensitivity, specificity, precision)}
TITLES = dict(
    zip(METRICS, ("AUROC", "AUPRC", "log loss", "Brier score", "ECE", "F1", "sensitivity", "specificity", "precision"), strict=True)
)


def macro(per_label):
    """Mean over the defined labels (last axis): (mean, number of defined labels)."""
    per_label = np.asarray(per_label)
    defined = np.isfinite(per_label)
    total = np.where(defined, per_label, 0).sum(-1)
    return np.where(defined.any(-1), total / np.maximum(defined.sum(-1), 1), np.nan), defined.sum(-1)
