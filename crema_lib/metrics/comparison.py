"""Models against each other on the same records: any score of `scores`, with intervals and tests from `bootstrap`."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from ..errors import CremaError
from .bootstrap import Interval, holm, interval, p_value, patient_counts
from .scores import FEW, METRICS, macro

REFLECTED = ("auprc", "ece")  # biased upwards in small sets: see `interval` and tests/test_metrics.py for what reflecting them gains


@dataclass(frozen=True)
class Comparison:
    """One metric of several models on the same records.

    Arrays by model name: per_label (labels,), resampled (n, labels). `left_out` names the labels that cannot be scored. Intervals are 95 %
    percentile intervals, those of `REFLECTED` metrics basic ones: chance makes such a metric larger in every resample, as it did in the
    records themselves, so its interval lies mostly below the value. Differences have percentile intervals, which go with their p-values.
    """

    names: tuple
    positives: np.ndarray
    per_label: dict
    resampled: dict
    metric: str = "auroc"
    left_out: tuple = ()

    @property
    def frequent(self):
        """Bool (labels,): at least ten positives; of the others an interval says little."""
        return self.positives >= FEW

    def _interval(self, value, resamples):
        found = interval(value, resamples, reflect=self.metric in REFLECTED)
        return Interval(found.value, *np.clip([found.low, found.high], 0, 1).tolist()) if self.metric in REFLECTED else found

    def macro(self, model, labels=slice(None)):
        """Macro average of a model over some labels, an `Interval`."""
        return self._interval(macro(self.per_label[model][labels])[0], macro(self.resampled[model][:, labels])[0])

    def label(self, model, i):
        return self._interval(self.per_label[model][i], self.resampled[model][:, i])

    def _differences(self, model, other, labels):
        return macro(self.resampled[model][:, labels] - self.resampled[other][:, labels])[0]  # over labels that both have in a resample

    def gain(self, model, other, labels=slice(None)):
        """Macro average of a model less that of another, paired: both on the same resamples."""
        value = macro(self.per_label[model][labels])[0] - macro(self.per_label[other][labels])[0]
        return interval(value, self._differences(model, other, labels))

    def gains(self, pairs, labels=slice(None)):
        """Several paired differences at once: DataFrame model, other, value, low, high, p, p_holm (see `p_value`, `holm`).

        Args:
            pairs: (model, other) for each difference.
        """
        rows = []
        for model, other in pairs:
            found = self.gain(model, other, labels)
            p = p_value(self._differences(model, other, labels))
            rows.append({"model": model, "other": other, "value": found.value, "low": found.low, "high": found.high, "p": p})
        table = pd.DataFrame(rows, columns=["model", "other", "value", "low", "high", "p"])
        return table.assign(p_holm=holm(table["p"]))


def compare(targets, scores, patients, names, *, n=1000, seed=0, metric="auroc", counts=None):
    """Score several models on the same records with a patient-level bootstrap.

    Args:
        targets: 0/1 (records, labels). scores: dict model -> float (records, labels). patients: (records,). names: of the labels.
        metric: one of `METRICS`, or a function like them.
        counts: int (n, records), how often each record is in each resample, where that was drawn elsewhere; `patient_counts` if not given.

    Returns:
        Comparison over the labels that have a positive and a negative record and are defined for every model.
    """
    score = METRICS.get(metric, metric)
    if not callable(score):
        raise CremaError(f"unknown metric {metric!r}: known are {', '.join(METRICS)}")
    targets, names = np.asarray(targets), np.asarray(names)
    if len(patients) != len(targets) or len(names) != targets.shape[1]:
        raise CremaError(f"{len(patients)} patients and {len(names)} names do not fit targets of shape {targets.shape}")
    values = {model: score(targets, s) for model, s in scores.items()}
    defined = (targets.sum(0) > 0) & (targets.sum(0) < len(targets)) & np.isfinite(list(values.values())).all(0)
    if not defined.any():
        raise CremaError("no label has both a positive and a negative record: nothing can be scored")
    counts = patient_counts(patients, n, seed) if counts is None else counts
    return Comparison(
        tuple(names[defined]),
        targets[:, defined].sum(0).astype(int),
        {model: value[defined] for model, value in values.items()},
        {model: score(targets[:, defined], np.asarray(s)[:, defined], counts) for model, s in scores.items()},
        (score.func if isinstance(score, partial) else score).__name__,
        tuple(names[~defined]),
    )
