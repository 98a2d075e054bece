"""Probabilities of one task on fold 9, which chooses thresholds and temperatures, and on fold 10, which judges them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import finetune, metrics
from .data import splits
from .data.labels import matrix
from .probes.linear import fit_probe, learnable


@dataclass(frozen=True)
class Folds:
    """Targets and probabilities of the labels of a task that the training folds can teach.

    Attributes:
        task, names: of the labels. rate: share of positives in folds 1-8 (labels,).
        valid, test: 0/1 (records, labels) of folds 9 and 10. patients: of fold 10 (records,).
        scores: dict model -> (probabilities on fold 9, on fold 10), float (records, labels) each.
    """

    task: str
    names: tuple
    rate: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    patients: np.ndarray
    scores: dict

    def compare(self, metric, scores=None, *, n=1000, seed=0):
        """`metrics.compare` on fold 10; scores: dict model -> float (records of fold 10, labels), the probabilities if not given."""
        scores = {model: test for model, (_, test) in self.scores.items()} if scores is None else scores
        return metrics.compare(self.test, scores, self.patients, self.names, n=n, seed=seed, metric=metric)

    def table(self, names, scores=None, *, n=1000, seed=0):
        """Macro averages on fold 10: DataFrame task, metric, model, value, low, high, labels; a row for each metric and model."""
        rows = []
        for result in (self.compare(name, scores, n=n, seed=seed) for name in names):
            head = {"task": self.task, "metric": result.metric}
            rows += [{**head, "model": model, **vars(result.macro(model)), "labels": len(result.names)} for model in result.per_label]
        return pd.DataFrame(rows)


def score_folds(store, task, features, networks=None, *, device="cpu"):
    """Score folds 9 and 10 with linear probes of some encoders and with trained networks.

    Args:
        task: see `labels.BINARY`. features: dict model -> float (records of the store, features); the probe's penalty is chosen on fold 9.
        networks: dict model -> `finetune.Classifier`; one that was not trained on the task is left out.

    Returns:
        Folds.
    """
    targets, names, kept = matrix(store.table, task)
    train, valid, test = splits.parts(store.table, kept)
    known = learnable(targets[train])
    names, scores = np.asarray(names)[known], {}
    for model, x in features.items():
        probe, _ = fit_probe((x[train], targets[train]), (x[valid], targets[valid]), device=device)
        scores[model] = tuple(probe.scores(x[rows])[:, known] for rows in (valid, test))
    for model, network in (networks or {}).items():
        if finetune.covers(network.columns, task, names):
            both = finetune.scores(network, store, np.r_[valid, test], device=device)
            both = finetune.of_task(network.columns, both, task, names)
            scores[model] = both[: len(valid)], both[len(valid) :]
    rate, patients = targets[train][:, known].mean(0), splits.patients(store.table)[test]
    return Folds(task, tuple(names), rate, targets[valid][:, known], targets[test][:, known], patients, scores)
