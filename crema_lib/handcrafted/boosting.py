"""Gradient boosting on top of the measurements; the trees take a NaN as it is."""

from functools import partial
from itertools import islice

import numpy as np
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier
from tqdm import tqdm

from ..errors import CremaError
from ..metrics import auroc, macro

OPTIONS = {
    "learning_rate": 0.1,
    "max_leaf_nodes": 8,
    "min_samples_leaf": 20,
    "l2_regularization": 10.0,
    "max_features": 0.2,
    "max_bins": 63,
}


class Boosting:
    """Gradient-boosted trees on measurements, one ensemble a label: scikit-learn's histogram gradient boosting, made after LightGBM.

    A label that lacks a positive or a negative in training is not learned; `scores` says NaN.

    Args:
        iterations: trees of an ensemble, at most. seed: of the choice of features, a share of them for each split.
        options: of scikit-learn's estimator.
    """

    def __init__(self, iterations=120, *, seed=0, **options):
        self.iterations = iterations
        options = {"max_iter": iterations, "early_stopping": False, "random_state": seed, **OPTIONS, **options}
        self.make = partial(HistGradientBoostingClassifier, **options)

    def fit(self, features, targets, valid=None, *, progress=False):
        """Grow the trees; with `valid`, keep as many as serve the validation records best.

        The number kept is one for all labels, that of the best macro AUROC: a label alone may have a handful of validation positives.

        Args:
            features: float (records, features), NaN allowed. targets: 0/1 (records, labels), NaN where a record is left out of a label.
            valid: (features, targets) of other patients, or None to keep all trees.

        Returns:
            self, with `known`, bool (labels,), and `trees`, the number kept.

        Raises:
            CremaError: shapes that do not fit, infinite measurements, or nothing to learn or to choose by.
        """
        features, targets = _fitting(features, targets)
        self.models = []
        for target in tqdm(targets.T, desc="boosting", unit="label", disable=not progress):
            here = ~np.isnan(target)
            learnable = (target == 1).any() and (target == 0).any()
            self.models.append(self.make().fit(features[here], target[here]) if learnable else None)
        self.known = np.array([model is not None for model in self.models])
        if not self.known.any():
            raise CremaError("no label has both a positive and a negative among the training records: nothing can be learned")
        self.trees = self.iterations
        if valid is not None:
            self._choose(*_fitting(*valid))
        return self

    def _choose(self, features, targets):
        counts = np.unique(np.linspace(1, self.iterations, 31).round().astype(int))
        reached = np.full((len(counts), len(self.models)), np.nan)
        for label in np.flatnonzero(self.known):
            here = ~np.isnan(targets[:, label])
            if not here.any():
                continue
            tried = np.stack([said for k, said in enumerate(self._stages(label, features[here]), 1) if k in counts], axis=1)
            wanted = np.repeat(targets[here, label, None], len(counts), axis=1)
            reached[:, label] = auroc(wanted, tried)
        values, _ = macro(reached)
        if not np.isfinite(values).all():
            raise CremaError("no label has a positive and a negative among both training and validation records: nothing can be chosen")
        self.trees = int(counts[values.argmax()])

    def _stages(self, label, features):
        """What the first tree says, the first two, ...: log odds, (records,) each."""
        return map(np.ravel, self.models[label].staged_decision_function(features))

    def scores(self, features):
        """Probabilities, float32 (records, labels); NaN for a label that was not learned."""
        result = np.full((len(features), len(self.models)), np.nan, dtype=np.float32)
        for label in np.flatnonzero(self.known):
            said = next(islice(self._stages(label, features), self.trees - 1, None))
            result[:, label] = expit(said)
        return result


def _fitting(features, targets):
    features, targets = np.asarray(features, dtype=np.float32), np.asarray(targets, dtype=np.float32)
    if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets) or not len(features):
        raise CremaError(f"measurements {features.shape} and targets {targets.shape} must be (records, features) and (records, labels)")
    if np.isinf(features).any():
        raise CremaError("measurements hold infinite values: only numbers and NaN can be used")
    return features, targets
