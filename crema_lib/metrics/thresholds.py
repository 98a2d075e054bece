"""From probabilities to decisions: one threshold a label, chosen on the validation fold and applied to others."""

import numpy as np
import pandas as pd

from ..errors import CremaError
from .scores import FEW


def choose(targets, scores, names, *, sensitivity=None):
    """Choose the threshold of each label on validation records; a score at or above it is called positive.

    Of the thresholds that do equally well the highest is taken, the one with the fewest positive calls.

    Args:
        targets: 0/1 (records, labels). scores: float (records, labels). names: of the labels.
        sensitivity: None for the highest F1, or the share of positives that must be found, for the highest threshold that finds them.

    Returns:
        DataFrame label, threshold, positives, reached (F1 or sensitivity on these records), note. A label without a positive record here
        has no threshold (NaN) and stays without decisions; below ten positives the note says so.

    Raises:
        CremaError: shapes differ, scores are NaN, or the sensitivity is out of range.
    """
    from sklearn.metrics import precision_recall_curve  # here, because it takes a second to load

    targets, scores = np.asarray(targets), np.asarray(scores)
    if targets.shape != scores.shape or targets.ndim != 2 or len(names) != targets.shape[1]:
        raise CremaError(f"targets {targets.shape}, scores {scores.shape} and {len(names)} names do not fit (records, labels)")
    if not np.isfinite(scores).all():
        raise CremaError(f"{int((~np.isfinite(scores)).sum())} scores are NaN or infinite: no threshold can be chosen")
    if sensitivity is not None and not 0 < sensitivity <= 1:
        raise CremaError(f"a sensitivity of {sensitivity} is outside 0 < sensitivity <= 1")
    rows = []
    for label, target, score in zip(names, targets.T, scores.T, strict=True):
        positives, threshold, reached = int(target.sum()), np.nan, np.nan
        if positives:
            precision, recall, values = precision_recall_curve(target, score)  # thresholds rise, recall falls
            precision, recall = precision[:-1], recall[:-1]
            if sensitivity is None:
                quality = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
                best = np.flatnonzero(quality >= quality.max() - 1e-12)[-1]
            else:
                quality, best = recall, np.flatnonzero(recall >= sensitivity - 1e-12)[-1]
            threshold, reached = float(values[best]), float(quality[best])
        note = "" if positives >= FEW else f"chosen on {positives} positives" if positives else "no positive: no threshold"
        rows.append({"label": label, "threshold": threshold, "positives": positives, "reached": reached, "note": note})
    return pd.DataFrame(rows)


def decide(scores, thresholds):
    """Decisions 0 or 1, float (records, labels): is a score at or above its label's threshold? NaN in the column of a label without one."""
    scores, thresholds = np.asarray(scores), np.asarray(thresholds, dtype=float)
    if scores.ndim != 2 or thresholds.shape != scores.shape[1:]:
        raise CremaError(f"thresholds {thresholds.shape} do not fit scores {scores.shape}: one a label is needed")
    if not np.isfinite(scores).all():
        raise CremaError(f"{int((~np.isfinite(scores)).sum())} scores are NaN or infinite: nothing can be decided")
    return np.where(np.isnan(thresholds), np.nan, scores >= thresholds)
