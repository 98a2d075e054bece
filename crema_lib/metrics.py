"""Area under the ROC curve per label, macro averages, and a patient-level bootstrap, vectorised over resamples.

Rules: a label without a positive or without a negative in the records scored has no AUROC (NaN, never .5) and is left out of the
macro average, which says how many labels it holds. In a resample a label that became undefined is left out of that resample only.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .errors import CremaError


def _check(targets, scores):
    targets, scores = np.asarray(targets), np.asarray(scores)
    if targets.shape != scores.shape or targets.ndim != 2:
        raise CremaError(f"targets {targets.shape} and scores {scores.shape} must have one shape (records, labels)")
    if not np.isfinite(scores).all():
        raise CremaError(f"{int((~np.isfinite(scores)).sum())} scores are NaN or infinite")
    return targets.astype(bool), scores


def auroc(targets, scores, weights=None):
    """AUROC of each label: the probability that a random positive scores above a random negative, ties count half (Hanley & McNeil 1982).

    Args:
        targets: 0/1 (records, labels). scores: float (records, labels), higher means more likely.
        weights: None, or counts (resamples, records): one AUROC for each resample.

    Returns:
        float64 (labels,), or (resamples, labels) with weights; NaN where a label has no positive or no negative.
    """
    targets, scores = _check(targets, scores)
    counts = np.ones((1, len(scores))) if weights is None else np.asarray(weights)
    counts = torch.as_tensor(counts, dtype=torch.float32)  # whole numbers below 2^24: exact
    result = torch.empty(len(counts), targets.shape[1], dtype=torch.float64)
    for label in range(targets.shape[1]):
        order = np.argsort(scores[:, label], kind="stable")
        ordered, positive = scores[order, label], targets[order, label]
        drawn = counts[:, torch.from_numpy(order)]
        below = torch.nn.functional.pad((drawn * torch.from_numpy(~positive)).cumsum(1), (1, 0))  # negatives among the first k
        hits = drawn[:, torch.from_numpy(np.flatnonzero(positive))]
        lower, upper = (torch.from_numpy(np.searchsorted(ordered, ordered[positive], side)) for side in ("left", "right"))
        won = (hits * (below[:, lower] + below[:, upper]) / 2).sum(1, dtype=torch.float64)
        pairs = hits.sum(1, dtype=torch.float64) * below[:, -1]
        result[:, label] = torch.where(pairs > 0, won / pairs, torch.nan)
    return result[0].numpy() if weights is None else result.numpy()


def macro(per_label):
    """Mean over the defined labels (last axis): (mean, number of defined labels)."""
    per_label = np.asarray(per_label)
    defined = np.isfinite(per_label)
    total = np.where(defined, per_label, 0).sum(-1)
    return np.where(defined.any(-1), total / np.maximum(defined.sum(-1), 1), np.nan), defined.sum(-1)


def patient_counts(patients, n=1000, seed=0):
    """Bootstrap over patients: int (n, records), how often each record is in each resample; a drawn patient brings all records along."""
    if n < 1:
        raise CremaError(f"a bootstrap needs at least one resample, not {n}")
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    people = patient.max() + 1
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=n)
    return drawn[:, patient]


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % percentile-bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interval(value, resamples, level=0.95):
    """Percentile interval (Efron & Tibshirani 1993) of resampled values around the value itself."""
    low, high = np.nanquantile(resamples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """AUROC of several models on the same records. Arrays: per_label (labels,), resampled (n, labels), by model name."""

    names: tuple
    positives: np.ndarray
    per_label: dict
    resampled: dict

    def macro(self, model, labels=slice(None)):
        """Macro AUROC of a model over some labels, an `Interval`."""
        return interval(macro(self.per_label[model][labels])[0], macro(self.resampled[model][:, labels])[0])

    def gain(self, model, other, labels=slice(None)):
        """Macro AUROC of a model less that of another, paired: both on the same resamples."""
        value = macro(self.per_label[model][labels])[0] - macro(self.per_label[other][labels])[0]
        return interval(value, macro(self.resampled[model][:, labels])[0] - macro(self.resampled[other][:, labels])[0])

    def label(self, model, i):
        return interval(self.per_label[model][i], self.resampled[model][:, i])


def compare(targets, scores, patients, names, *, n=1000, seed=0):
    """Score several models on the same records with a patient-level bootstrap.

    Args:
        targets: 0/1 (records, labels). scores: dict model -> float (records, labels). patients: (records,). names: of the labels.

    Returns:
        Comparison over the defined labels only.
    """
    targets = np.asarray(targets)
    defined = (targets.sum(0) > 0) & (targets.sum(0) < len(targets))
    if not defined.any():
        raise CremaError("no label has both a positive and a negative record: nothing can be scored")
    counts = patient_counts(patients, n, seed)
    targets = targets[:, defined]
    return Comparison(
        tuple(np.asarray(names)[defined]),
        targets.sum(0).astype(int),
        {model: auroc(targets, np.asarray(s)[:, defined]) for model, s in scores.items()},
        {model: auroc(targets, np.asarray(s)[:, defined], counts) for model, s in scores.items()},
    )
