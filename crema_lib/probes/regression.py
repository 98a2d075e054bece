"""A number from frozen features: ridge regression, and age by it ("heart age")."""

import dataclasses

import numpy as np
import torch
from sklearn.metrics import r2_score

from ..data import splits
from ..data.labels import age
from ..errors import CremaError
from ..metrics import Comparison
from ..metrics.bootstrap import patient_counts
from .linear import STRENGTHS, PrincipalAxes, check_finite


@dataclasses.dataclass
class RidgeProbe:
    """Linear regression on standardised features that minimises  mean squared error + strength * |w|^2  (Hoerl & Kennard 1970).

    Tensors of double precision: mean, deviation, weight (features,), bias ().
    """

    strength: float
    mean: torch.Tensor
    deviation: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def scores(self, features):
        """Predictions, float64 array (records,)."""
        x = (torch.as_tensor(features).to(self.mean) - self.mean) / self.deviation
        return (x @ self.weight + self.bias).cpu().numpy()


def fit_ridge(train, valid, strengths=STRENGTHS, *, device="cpu"):
    """Fit a `RidgeProbe` for every strength, in closed form, and keep the one with the best R^2 on the validation fold.

    Args:
        train, valid: (features, numbers), float (records, features) and (records,).

    Returns:
        (probe, list of dicts strength, valid).

    Raises:
        CremaError: no record, a single one to choose on, features or numbers that are not finite.
    """
    for (x, y), where in ((train, "training"), (valid, "validation")):
        if not len(x) or len(x) != len(y) or not np.isfinite(y).all():
            raise CremaError(f"the {where} records need features and as many finite numbers: {len(x)} features, {len(y)} numbers")
        check_finite(np.asarray(x), where)
    if len(valid[0]) < 2:
        raise CremaError("nothing can be chosen on one validation record: give two or more")
    base, x = PrincipalAxes.of(torch.as_tensor(train[0]).to(device, torch.float64))
    y = torch.as_tensor(np.asarray(train[1])).to(x)
    projected = x.T @ (y - y.mean()) / len(x)
    probes = [
        RidgeProbe(s, base.mean, base.deviation, base.axes @ (projected / (base.variances + s)), y.mean())
        for s in sorted(strengths, reverse=True)
    ]
    trail = [{"strength": probe.strength, "valid": float(r2_score(valid[1], probe.scores(valid[0])))} for probe in probes]
    return probes[int(np.argmax([entry["valid"] for entry in trail]))], trail


def mean_absolute_error(targets, predictions, counts):
    """Float (resamples,): mean of |target - prediction|, each record counted as often as `counts` (resamples, records) says."""
    return counts @ np.abs(targets - predictions) / counts.sum(1)


def r2(targets, predictions, counts):
    """R^2 of each resample, float (resamples,): 1 less the squared error as a share of that of the resample's mean."""
    n, total, square = (counts @ v for v in (np.ones(len(targets)), targets, targets**2))
    return 1 - counts @ (targets - predictions) ** 2 / (square - total**2 / n)


def compare_ages(years, predictions, patients, *, n=1000, seed=0):
    """Score predictions of age on the same records with a patient-level bootstrap.

    Args:
        years: float (records,). predictions: dict model -> years (records,). patients: (records,). n: resamples.

    Returns:
        dict "MAE" (years, the lower the better) and "R2" -> Comparison with the one label `age`, whose "positives" are all records.
    """
    counts, once, result = patient_counts(patients, n, seed), np.ones((1, len(years))), {}
    for metric, score in (("MAE", mean_absolute_error), ("R2", r2)):
        values = {model: score(years, one, once) for model, one in predictions.items()}
        resampled = {model: score(years, one, counts)[:, None] for model, one in predictions.items()}
        result[metric] = Comparison(("age",), np.array([len(years)]), values, resampled, metric)
    return result


def probe_age(store, arms, *, bootstrap=1000, seed=0, device="cpu"):
    """Age from frozen features by ridge regression, trained on folds 1-8, chosen on fold 9, scored on fold 10 ("heart age").

    Args:
        arms: dict name -> float (records of the store, features). Recordings without an age, or with one above 89, are left out.

    Returns:
        (see `compare_ages`, list of dicts). Beside the arms there is "mean age": the mean of the training records for everybody.

    Raises:
        CremaError: see `splits.check`, `fit_ridge`.
    """
    years = age(store.table)
    train, valid, test = splits.parts(store.table, np.isfinite(years))
    predictions, trail = {"mean age": np.full(len(test), years[train].mean())}, []
    for name, x in arms.items():
        probe, tried = fit_ridge((x[train], years[train]), (x[valid], years[valid]), device=device)
        predictions[name] = probe.scores(x[test])
        trail += [{"model": name, "chosen": entry["strength"] == probe.strength, **entry} for entry in tried]
    return compare_ages(years[test], predictions, splits.patients(store.table)[test], n=bootstrap, seed=seed), trail
