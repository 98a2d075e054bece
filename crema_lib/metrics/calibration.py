"""Are the probabilities right? Reliability curves, the error that chance alone makes, and temperature scaling."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from scipy.stats import norm

from ..errors import CremaError
from .scores import FEW, bin_index, ece, log_loss

BOUNDS = (0.05, 20.0)  # a temperature below makes a decision of a probability, one above leaves nothing of it
_TINY = 1e-7  # what float32 can still tell from 0 and from 1


def reliability(targets, scores, *, bins=15):
    """Reliability curve: the observed rate of positives against the mean probability, bin by bin.

    Args:
        targets: 0/1, scores: probabilities; (records,) of one label, or (records, labels) for the predictions of all labels pooled.
        bins: of equal width, see `scores.bin_index`.

    Returns:
        DataFrame probability (mean), rate (observed), low, high, count; a row for each bin that holds a prediction. low and high bound the
        95 % interval of the rate (Wilson 1927), which takes predictions for independent: within a patient or pooled they are not quite.
    """
    targets, scores = np.ravel(targets), np.ravel(scores)
    log_loss(targets[:, None], scores[:, None])  # for its checks
    index = bin_index(scores, bins)
    count = np.bincount(index, minlength=bins)
    held = count > 0
    count, total, hits = count[held], *(np.bincount(index, weights, minlength=bins)[held] for weights in (scores, targets))
    z = norm.ppf(0.975)
    centre = (hits + z**2 / 2) / (count + z**2)
    half = z / (count + z**2) * np.sqrt(hits * (count - hits) / count + z**2 / 4)
    return pd.DataFrame({"probability": total / count, "rate": hits / count, "low": centre - half, "high": centre + half, "count": count})


def chance_ece(scores, *, bins=15, n=100, seed=0):
    """ECE of probabilities that are right: outcomes are drawn from the probabilities themselves (Bröcker & Smith 2007).

    Args:
        scores: probabilities (records, labels). bins: see `metrics.ece`. n: draws.

    Returns:
        float64 (n, labels). An ECE on real outcomes that is no larger says nothing against the probabilities.
    """
    scores, rng = np.asarray(scores), np.random.default_rng(seed)
    return np.stack([ece(rng.random(scores.shape) < scores, scores, bins=bins) for _ in range(n)])


@dataclass(frozen=True)
class Temperature:
    """What `fit_temperature` found; call it with probabilities (records, labels) to get calibrated ones.

    Attributes:
        values: float (labels,), what logits are divided by. positives: int (labels,), among the records that it was fitted on.
        own: bool (labels,), the label has a temperature of its own, not the shared one.
    """

    values: np.ndarray
    positives: np.ndarray
    own: np.ndarray

    def __call__(self, scores):
        return expit(_logits(scores) / self.values)

    def table(self, names):
        """DataFrame label, temperature, positives, note: which temperature is shared, and which is at the bound of what is tried."""
        bound = (self.values < BOUNDS[0] * 1.01) | (self.values > BOUNDS[1] / 1.01)
        notes = np.where(bound, "at the bound", np.where(self.own, "", "shared"))
        return pd.DataFrame({"label": names, "temperature": self.values, "positives": self.positives, "note": notes})


def fit_temperature(targets, scores):
    """Temperature scaling (Guo et al. 2017) of independent labels: sigmoid(logit / T) with the T of the lowest log loss.

    It keeps the order of the scores of a label, and so every AUROC. A label with fewer than `FEW` records of either kind takes a shared
    temperature, that of the lowest log loss over all labels: one fitted on two positives is noise.

    Args:
        targets: 0/1 (records, labels), scores: probabilities, both of the validation fold.

    Returns:
        Temperature.

    Raises:
        CremaError: shapes differ, scores are no probabilities, or no label has both a positive and a negative record.
    """
    targets, scores = np.asarray(targets), np.asarray(scores)
    log_loss(targets, scores)  # for its checks
    positives, logits = targets.sum(0).astype(int), _logits(scores)
    rarer = np.minimum(positives, len(targets) - positives)
    if not (rarer > 0).any():
        raise CremaError("no label has both a positive and a negative record in the validation fold: no temperature can be fitted")
    own = rarer >= FEW
    values = np.full(len(own), 1.0 if own.all() else _best(targets, logits))
    values[own] = [_best(targets[:, i], logits[:, i]) for i in np.flatnonzero(own)]
    return Temperature(values, positives, own)


def _best(targets, logits):
    """The temperature of the lowest log loss, which has one minimum in 1 / T."""
    signed = np.where(targets == 1, -logits, logits)
    found = minimize_scalar(
        lambda t: np.logaddexp(0, signed / np.exp(t)).mean(), bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def _logits(scores):
    return logit(np.clip(np.asarray(scores, dtype=float), _TINY, 1 - _TINY))
