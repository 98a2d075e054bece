"""How much worse is it away from home? The same metrics there and here, with the difference and its interval."""

from functools import partial

import numpy as np
import pandas as pd

from ..errors import CremaError
from ..metrics import METRICS, compare, interval, macro, patient_counts
from ..metrics.thresholds import decide

MEASURES = ("auroc", "auprc", "sensitivity", "specificity", "brier", "ece")
DECIDED = ("sensitivity", "specificity", "precision", "f1")  # metrics of decisions at a threshold
LESS_IS_BETTER = ("brier", "ece", "log_loss")
UNBOUNDED = ("ece",)  # chance adds to it by size and model, and no resampling takes that out of a difference: see tests/test_shift.py


def net_benefit(targets, scores, weights=None, *, at=0.1):
    """Net benefit of acting on scores of `at` or more, label by label (Vickers & Elkin 2006, doi:10.1177/0272989X06295361).

    TP / n - FP / n * at / (1 - at):  a false alarm costs as much as the odds say at which one is willing to act.

    Args:
        targets: 0/1, scores: probabilities, (records, labels). weights: (resamples, records), how often each record is in each.
        at: threshold probability, 0 < at < 1.

    Returns:
        float (labels,), or (resamples, labels).

    Raises:
        CremaError: `at` out of range, or shapes that differ.
    """
    if not 0 < at < 1:
        raise CremaError(f"a threshold probability of {at} is outside 0 < at < 1")
    targets, scores = np.asarray(targets), np.asarray(scores)
    if targets.shape != scores.shape:
        raise CremaError(f"targets {targets.shape} and scores {scores.shape} differ in shape")
    value = (scores >= at) * np.where(targets == 1, 1.0, -at / (1 - at))
    return value.mean(0) if weights is None else np.asarray(weights, dtype=float) @ value / np.sum(weights, axis=1, keepdims=True)


def decision_curve(sample, names, at=(0.05, 0.1, 0.2, 0.3, 0.5), *, n=1000, seed=0):
    """Net benefit, summed over the labels, at several threshold probabilities, beside acting on all and on none (which is 0).

    Returns:
        DataFrame sample, model, at, value, low, high; the model "treat all" acts on every recording.
    """
    rows = []
    for threshold in at:
        scores = {**sample.scores, "treat all": np.ones_like(sample.targets, dtype=float)}
        found = compare(sample.targets, scores, sample.patients, names, n=n, seed=seed, metric=_benefit(threshold))
        for model in scores:
            value = interval(found.per_label[model].sum(), found.resampled[model].sum(1))
            rows.append({"sample": sample.name, "model": model, "at": threshold, **vars(value)})
    return pd.DataFrame(rows)


def _benefit(at):
    return partial(net_benefit, at=at)


class Yardstick:
    """Home, measured: every sample away is held against it.

    Args:
        models: of `home.settle`; their thresholds are applied everywhere. sample: `home.Sample` of recordings at home that chose nothing.
        n: resamples of patients. seed: of them.
        least: positives and negatives that a label needs, at home and away.
    """

    def __init__(self, models, sample, *, n=1000, seed=0, least=1):
        self.names, self.sample, self.n, self.seed, self.least = np.asarray(models[0].names), sample, n, seed, least
        self.thresholds = {model.name: model.thresholds for model in models}
        self._known = {}

    def _counts(self, sample):
        """How often each recording is in each resample, int (n, records): of a patient of home as often as there, others by themselves."""
        people, first = np.unique(self.sample.patients, return_index=True)
        known = np.isin(sample.patients, people)
        counts = np.empty((self.n, len(known)), dtype=np.int64)
        if known.any():
            at_home = patient_counts(self.sample.patients, self.n, self.seed)
            counts[:, known] = at_home[:, first[np.searchsorted(people, sample.patients[known])]]
        if not known.all():
            counts[:, ~known] = patient_counts(sample.patients[~known], self.n, self.seed + 1)
        return counts

    def _measure(self, sample, metric, labels, counts):
        scores = {model: values[:, labels] for model, values in sample.scores.items()}
        if metric in DECIDED:
            scores = {model: decide(values, self.thresholds[model][labels]) for model, values in scores.items()}
        return compare(sample.targets[:, labels], scores, sample.patients, self.names[labels], metric=metric, counts=counts)

    def labels(self, sample):
        """Bool (labels,): enough positives and negatives both at home and in the sample."""
        rarer = [np.minimum(one.targets.sum(0), (1 - one.targets).sum(0)) for one in (self.sample, sample)]
        return np.minimum(*rarer) >= max(self.least, 1)

    def hold(self, sample, *, measures=MEASURES, labels=None):
        """Measure a sample away from home and how far it falls short of home, on the labels that both have.

        Patients who are in both come as often in a resample of one as of the other: a drop between the same recordings is paired, and what
        a group of home shares with home is taken out. All others are resampled by themselves.

        Args:
            measures: of `METRICS`. labels: bool (labels,) to ask for fewer.

        Returns:
            DataFrame sample, model, metric, records, labels, value, low, high, home, drop, drop_low, drop_high, relative, relative_low,
            relative_high. A drop is positive where it is worse away, `relative` is the drop as a share of what home reached. The ends of
            a drop of the calibration error are NaN: it has no interval that holds.

        Raises:
            CremaError: no label has enough positives and negatives on both sides.
        """
        shared = self.labels(sample) & (True if labels is None else np.asarray(labels))
        if not shared.any():
            raise CremaError(f"{sample.name} and home share no label with at least {self.least} positives and negatives: compare others")
        counts = self._counts(sample)
        rows = []
        for metric in measures:
            if metric not in METRICS:
                raise CremaError(f"unknown metric {metric!r}: known are {', '.join(METRICS)}")
            key = metric, shared.tobytes()
            if key not in self._known:
                self._known[key] = self._measure(self.sample, metric, shared, self._counts(self.sample))
            home, away = self._known[key], self._measure(sample, metric, shared, counts)
            sign = -1 if metric in LESS_IS_BETTER else 1
            here_too, there_too = np.isin(home.names, away.names), np.isin(away.names, home.names)
            if not there_too.any():
                raise CremaError(f"{sample.name} and home share no label whose {metric} is defined on both sides: leave it out")
            for model in sample.scores:
                value, here = away.macro(model, there_too), home.macro(model, here_too)
                at_home = macro(home.resampled[model][:, here_too])[0]
                differences = sign * (at_home - macro(away.resampled[model][:, there_too])[0])
                if metric in UNBOUNDED:
                    differences = np.full_like(differences, np.nan)
                drop = interval(sign * (here.value - value.value), differences)
                share = interval(drop.value / here.value, differences / at_home)
                rows.append(
                    {
                        "sample": sample.name,
                        "model": model,
                        "metric": metric,
                        "records": len(sample.targets),
                        "labels": int(there_too.sum()),
                        **vars(value),
                        "home": here.value,
                        **{f"drop{end}": v for end, v in zip(("", "_low", "_high"), vars(drop).values(), strict=True)},
                        **{f"relative{end}": v for end, v in zip(("", "_low", "_high"), vars(share).values(), strict=True)},
                    }
                )
        return pd.DataFrame(rows)


def worst(table):
    """The worst sample of each model and metric: the rows of a table of `Yardstick.hold` with the largest drop."""
    table = table.reset_index(drop=True)
    return table.loc[table.groupby(["model", "metric"], sort=False)["drop"].idxmax()].reset_index(drop=True)
