"""What a frozen encoder knows: the linear probe, and what every probe of a task shares.

Every probe is trained on folds 1-8, what there is to choose is chosen on fold 9, and fold 10 is scored once.
"""

import dataclasses
import inspect
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from joblib import Memory

from ..data import splits
from ..data.labels import matrix
from ..errors import CremaError
from ..metrics import auroc, compare, macro
from . import logistic

STRENGTHS = tuple(float(10.0**k) for k in np.arange(-5, 1.1, 0.5))


def learnable(targets):
    """Bool (labels,): at least one positive and one negative record. A label without them gets NaN for a score, never a constant."""
    targets = np.asarray(targets)
    return (targets == 1).any(0) & (targets == 0).any(0)


def check_records(features, targets, where):
    """Refuse what no probe can be made of; `where` names the records in the sentence."""
    features, targets = np.asarray(features), np.asarray(targets)
    if not len(features) or len(features) != len(targets):
        raise CremaError(f"the probe got {len(features)} features and {len(targets)} targets of the {where} records: check the folds")
    if not np.isin(targets, (0, 1)).all():
        raise CremaError(
            f"targets of the {where} records hold values other than 0 and 1: leave out the records without a label of the task"
        )
    check_finite(features, where)
    if not learnable(targets).any():
        raise CremaError(f"no label has both a positive and a negative among the {where} records: nothing can be learned or chosen")


def check_finite(features, where):
    """Refuse features with NaN or infinite values, looked at in blocks: tokens of a whole data set are large."""
    wrong = sum(
        int((~np.isfinite(features[i : i + 1024])).any(tuple(range(1, features.ndim))).sum()) for i in range(0, len(features), 1024)
    )
    if wrong:
        raise CremaError(f"{wrong} of the {where} records have features that are NaN or infinite: look at the encoder's weights")


class Choice:
    """Keeps the candidate with the best macro AUROC on the validation records (the first of equals), over the labels that can be learned.

    Args:
        targets: 0/1 of the training records (records, labels). valid: (features, targets) of the validation records.
    """

    def __init__(self, targets, valid):
        check_records(*valid, "validation")
        self.known, self.targets = learnable(targets), np.asarray(valid[1])
        self.best, self.kept, self.trail = -np.inf, None, []

    def offer(self, scores, **what):
        """Score a candidate that `what` describes; True where it is the best so far."""
        value = float(macro(auroc(self.targets[:, self.known], scores[:, self.known]))[0])
        self.trail.append({**what, "valid": value})
        better = value > self.best  # a NaN never is
        self.best = value if better else self.best
        return better

    def take(self):
        """The candidate that was kept, and the list of dicts of what each reached (`valid`)."""
        if self.kept is None:
            raise CremaError("no label has a positive and a negative among both training and validation records: nothing can be chosen")
        return self.kept, self.trail


def as_tensor(features, device="cpu"):
    """Features in double precision where they come in it, else in single precision."""
    features = torch.as_tensor(features)
    return features.to(device, torch.float64 if features.dtype == torch.float64 else torch.float32)


@dataclasses.dataclass
class PrincipalAxes:
    """Features standardised and turned to their principal axes, which are orthonormal: a penalty on weights stays the same.

    Tensors: mean, deviation (features,); axes (features, k); variances (k,) along them; k is the smaller of records and features.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    axes: torch.Tensor
    variances: torch.Tensor

    @classmethod
    def of(cls, x, axes=None):
        """The axes of features (records, features), and these features along them.

        axes: those of similar records, as tensor (features, features), to take instead: finding axes takes most of the time.
        """
        mean, deviation = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
        x = (x - mean) / deviation
        if axes is not None and axes.shape == (x.shape[1], x.shape[1]):
            along = x @ axes
            return cls(mean, deviation, axes, along.square().mean(0)), along
        if len(x) < x.shape[1]:
            _, sizes, axes = torch.linalg.svd(x, full_matrices=False)
            variances, axes = sizes.square() / len(x), axes.T
        else:
            variances, axes = torch.linalg.eigh((x.T @ x).double() / len(x))
            variances, axes = variances.clamp(min=0).to(x.dtype), axes.to(x.dtype)
        return cls(mean, deviation, axes, variances), x @ axes


class LinearProbe:
    """Multi-label logistic regression on standardised features; `fit_path` makes it for many strengths at once.

    Minimises  mean over records of the binary cross-entropy + strength * |w|^2 / 2  for each label, the intercept free. The mean and
    deviation of the features come from the training records.

    Attributes: tensors mean, deviation (features,), weight (features, labels) on standardised features, bias (labels,); strength; and
    known, bool (labels,): where the training records lack a positive or a negative, weights are zero and `scores` says NaN.
    """

    def fit(self, features, targets, strength, **options):
        """features float (records, features), targets 0/1 (records, labels), strength > 0; options of `fit_path`."""
        self.__dict__.update(next(fit_path(features, targets, [strength], **options)).__dict__)
        return self

    def scores(self, features):
        """Probabilities, float array (records, labels); NaN for a label that the training records lacked."""
        x = (torch.as_tensor(features).to(self.mean) - self.mean) / self.deviation
        scores = torch.sigmoid(torch.addmm(self.bias, x, self.weight))
        return torch.where(self.known, scores, torch.nan).cpu().numpy()


def fit_path(features, targets, strengths, *, axes=None, tolerance=1e-6, device="cpu"):
    """Fit a `LinearProbe` for each strength, from the strongest to the weakest, and yield it: each starts where the last two point to.

    The regressions run along the principal axes of the features, where they are round: along an axis of variance s the curvature of a
    label of prevalence p is at first  p (1 - p) s + strength.

    Args:
        features: float (records, features). targets: 0/1 (records, labels). tolerance: see `logistic.minimise`.
        axes: see `PrincipalAxes.of`; they change how many steps it takes, not where they lead.

    Raises:
        CremaError: no record, features that are not finite, targets other than 0 and 1, a strength that is not positive, or no label
            with both a positive and a negative record.
    """
    check_records(features, targets, "training")
    if min(strengths) <= 0:
        raise CremaError(f"the strength of a penalty must be positive, not {min(strengths)}")
    base, x = PrincipalAxes.of(as_tensor(features, device), axes)
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    y = torch.as_tensor(np.asarray(targets)).to(x)
    known = torch.as_tensor(learnable(targets), device=x.device)
    rate = y.mean(0).clamp(1 / (2 * len(y)), 1 - 1 / (2 * len(y)))
    variances = torch.cat([base.variances, torch.ones_like(base.variances[:1])])[:, None]
    constant, path = torch.zeros(x.shape[1], y.shape[1]).to(x), []
    constant[-1] = torch.logit(rate)
    for strength in sorted(strengths, reverse=True):
        penalty = torch.full_like(variances, strength)
        penalty[-1] = 0
        start = 2 * path[-1] - path[-2] if len(path) > 1 else [constant, *path][-1]
        curvature = rate * (1 - rate) * variances + penalty
        weight = start.clone()
        weight[:, known] = logistic.minimise(x, y[:, known], start[:, known], penalty, curvature[:, known], tolerance=tolerance)
        path, probe = [*path[-1:], weight], LinearProbe()
        probe.strength, probe.known, probe.mean, probe.deviation = strength, known, base.mean, base.deviation
        probe.weight, probe.bias = base.axes @ weight[:-1], weight[-1]
        yield probe


def fit_probe(train, valid, strengths=STRENGTHS, *, device="cpu"):
    """Fit a linear probe for every strength and keep the one with the best macro AUROC on the validation fold.

    Args:
        train, valid: (features, targets) each.

    Returns:
        (probe, list of dicts strength, valid): the chosen probe and what every strength reached.

    Raises:
        CremaError: see `fit_path`; no label can both be learned and be scored on the validation fold.
    """
    choice = Choice(train[1], valid)
    for probe in fit_path(*train, strengths, device=device):
        if choice.offer(probe.scores(valid[0]), strength=probe.strength):
            choice.kept = probe
    return choice.take()


def remembered(folder, fit=fit_probe):
    """`fit` with a memory: features and targets that it has seen with this code are not fitted again, in this process or a later one.

    Args:
        folder: where to keep the probes, a file each (joblib's); like a cache of features it can be deleted at any time. Its files are
            pickles, which can run code: take no such folder from others.
        fit: `fit_probe`, or one like it of another module.
    """
    modules = dict.fromkeys((sys.modules[__name__], logistic, inspect.getmodule(fit)))
    code = zlib.crc32("".join(map(inspect.getsource, modules)).encode())
    return Memory(Path(folder) / f"{code:08x}", verbose=0).cache(fit)


def probe_task(store, arms, task, *, bootstrap=1000, seed=0, device="cpu"):
    """Probes on one task: trained on folds 1-8, chosen on fold 9, scored on fold 10.

    Args:
        arms: dict name -> float (records of the store, features) for a linear probe, or (fit, features) for another one: `fit_neighbours`,
            or `fit_attention` with tokens. task: see `labels.BINARY`; records that do not belong to it are left out.
        bootstrap: resamples of patients.

    Returns:
        (Comparison, list of dicts): AUROC on fold 10, and for each arm what every strength (k, epoch) reached on fold 9. Labels that the
        training folds or fold 10 lack are in `left_out`.

    Raises:
        CremaError: see `splits.check`, `fit_path`.
    """
    targets, names, kept = matrix(store.table, task)
    train, valid, test = splits.parts(store.table, kept)
    known, names, scores, trail = learnable(targets[train]), np.asarray(names), {}, []
    for name, arm in arms.items():
        fit, x = arm if isinstance(arm, tuple) else (fit_probe, arm)
        check_finite(x[test], "test")
        probe, tried = fit((x[train], targets[train]), (x[valid], targets[valid]), device=device)
        scores[name] = probe.scores(x[test])[:, known]
        best = max(range(len(tried)), key=lambda i: tried[i]["valid"])
        trail += [{"model": name, "chosen": i == best, **entry} for i, entry in enumerate(tried)]
    patients = splits.patients(store.table)[test]
    result = compare(targets[test][:, known], scores, patients, names[known], n=bootstrap, seed=seed)
    return dataclasses.replace(result, left_out=(*result.left_out, *names[~known])), trail
