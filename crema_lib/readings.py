"""What an encoder's features are like, before any probe: alignment and uniformity, rank and collapse, likeness of encoders, every block.

Features are float (records, features). Each reading comes with its 95 % interval from a bootstrap over patients: a recording counts as
often as its patient was drawn.
"""

from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy.special import entr
from sklearn.preprocessing import normalize

from . import views
from .data.store import check_fits
from .embeddings import frozen
from .errors import CremaError
from .metrics import Interval, interval, patient_counts
from .probes.space import check_features

DEAD = 0.01  # of the root mean square of all features: a deviation below says that a feature is constant (ours)
MOST = 4000  # records for uniformity, whose time and memory grow with their square


# --- features


def batches_of(encoder, store, rows=None, batch_size=256):
    """What an encoder takes of a store, a batch at a time: float (batch, leads, samples) in mV and bool (batch, leads), on the CPU.

    Args:
        rows: row numbers, default all.

    Raises:
        CremaError: no row, or a store whose rate or leads do not fit the encoder.
    """
    check_fits(store, encoder)
    rows = np.arange(len(store)) if rows is None else np.asarray(rows, dtype=np.int64)
    if not len(rows):
        raise CremaError("there is no record to read features of")
    pick = [list(store.meta["leads"]).index(lead) for lead in encoder.leads]
    for i in range(0, len(rows), batch_size):
        chosen = rows[i : i + batch_size]
        yield store.read(chosen)[:, pick], torch.from_numpy(store.lead_mask[chosen][:, pick])


def _finite(features):
    if not features.isfinite().all():
        raise CremaError("the encoder gives features that are NaN or infinite: its weights are damaged")
    return features.float().cpu().numpy()


def view_features(encoder, store, rows=None, *, gain=0.2, noise=0.03, lead_drop=0.5, seed=0, batch_size=256, device="cpu"):
    """Features of two random views of each record from a frozen encoder: mean tokens, nothing hidden.

    A view starts at a random time and has a random gain, noise, and lost leads (see `views`). The views are those that CR-MAE trains
    with; one seed and batch size give every encoder of the same leads the same views, whatever it was trained with (ours).

    Args:
        encoder: with `features`. gain: spread of the logarithm. noise: largest level, mV. lead_drop: probability that leads are lost.

    Returns:
        (a, b): float32 (records, features) each, row i of both from record i.

    Raises:
        CremaError: a parameter out of range, a store that does not fit the encoder, or features that are not finite.
    """
    if not (0 <= gain < np.inf and 0 <= noise < np.inf and 0 <= lead_drop <= 1):
        raise CremaError(
            f"views with gain={gain}, noise={noise} and lead_drop={lead_drop}: give gain and noise >= 0, lead_drop from 0 to 1"
        )
    found = [], []
    with frozen(encoder, device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for signal, mask in batches_of(encoder, store, rows, batch_size):
            for features in found:
                view = views.noise(views.gain(views.shift(signal), gain), noise, encoder.fs)
                features.append(_finite(encoder.features(view.to(device), views.drop_leads(mask, lead_drop).to(device))))
    return np.concatenate(found[0]), np.concatenate(found[1])


# --- on the sphere


def _checked(patients, *features, least=3):
    """Each matrix of features as float64, and an array of as many patients."""
    features, patients = [check_features(x, least).astype(float) for x in features], np.asarray(patients)
    if any(len(x) != len(patients) for x in features):
        raise CremaError(
            f"{len(patients)} patients do not fit features of {', '.join(str(len(x)) for x in features)} records: give one each"
        )
    if len(np.unique(patients)) < 2:
        raise CremaError("all records are of one patient: a bootstrap over patients needs at least two")
    return *features, patients


def _directions(x):
    if zero := int((~x.any(axis=1)).sum()):
        raise CremaError(f"the features of {zero} records are all zero and have no direction: look at the encoder")
    return normalize(x)


def _alignment(a, b, counts):
    """Mean of |f(x) - f(y)|^2 over two views of a record, features of length 1 (Wang & Isola 2020, arXiv 2005.10242)."""
    distance = np.linalg.norm(_directions(a) - _directions(b), axis=1) ** 2
    return interval(distance.mean(), counts @ distance / counts.sum(1))


def _uniformity(x, patients, n, seed):
    """Log of the mean of exp(-2 |f(x) - f(y)|^2) over pairs (Wang & Isola 2020).

    Pairs are of different patients (ours), so that two recordings of one heart, or the copies of a bootstrap, are no collapse.
    """
    if len(x) > MOST:
        pick = np.sort(np.random.default_rng(seed).choice(len(x), MOST, replace=False))
        x, patients = _checked(patients[pick], x[pick])
    z = _directions(x)
    other = (patients[:, None] != patients).astype(float)
    near = other * np.exp(4 * (z @ z.T - 1))

    def value(counts):
        with np.errstate(invalid="ignore"):  # a resample of one patient has no pair
            return np.log(((counts @ near) * counts).sum(1) / ((counts @ other) * counts).sum(1))

    return interval(value(np.ones((1, len(x))))[0], value(patient_counts(patients, n, seed)))


# --- rank


def _drawn(x, counts):
    """Features less their mean, each row scaled by the root of how often it counts."""
    there = counts > 0
    return np.sqrt(counts[there])[:, None] * (x[there] - counts @ x / counts.sum())


def _varying(x):
    """Refuse features that are the same for all records, up to the rounding of single precision."""
    if x.var(axis=0).sum() <= 1e-10 * (x**2).mean(axis=0).sum():
        raise CremaError("all records have the same features: the encoder has collapsed to a point")
    return x


def _variances(x):
    """Squared singular values, ascending."""
    return np.linalg.eigvalsh(x.T @ x if len(x) >= x.shape[1] else x @ x.T).clip(min=0)


def _rank(spectra, most):
    """exp(H(p)), p_i = s_i / sum(s) of the singular values (Roy & Vetterli 2007, EUSIPCO).

    RankMe (Garrido et al. 2023, arXiv 2210.02885) is this number without centring. We take the mean off, because a common offset of all
    records is one large singular value and says nothing about them.
    """
    values = [np.exp(entr(np.sqrt(variances) / np.sqrt(variances).sum()).sum()) for variances in spectra]
    found = interval(values[0], values[1:], reflect=True)
    return Interval(found.value, *np.clip([found.low, found.high], 1, most).tolist())


def _first(spectra):
    values = [variances[-1] / variances.sum() for variances in spectra]
    return interval(values[0], values[1:])


def _dead(x, counts):
    least, x = DEAD * np.sqrt((x**2).mean()), x - x.mean(0)

    def value(counts):
        share = counts / counts.sum(1, keepdims=True)
        return ((share @ x**2 - (share @ x) ** 2).clip(min=0) <= least**2).mean(1)

    return interval(value(np.ones((1, len(x))))[0], value(counts))


def geometry(pairs, patients, *, n=1000, seed=0):
    """How the features of several encoders lie in space: alignment of two views of each record, the other readings of the first view.

    - "alignment": how near two views of a record are, the mean squared distance of their directions (Wang & Isola 2020, arXiv
      2005.10242). That is 2 - 2 cos: 0 where both are the same, 2 the mean of unrelated directions.
    - "uniformity": how evenly records lie on the sphere (Wang & Isola 2020). 0 where all lie in one direction, lower is more even, near
      -4 for independent directions in many dimensions. Of more than `MOST` records so many are drawn by `seed`.
    - "effective rank": how many directions the features use, from 1 to min(records, features) (Roy & Vetterli 2007, EUSIPCO). Its ends
      are basic ones (see `metrics.interval`): a sample of few records has a lower rank than its population, and each resample a lower
      one than the sample. With few records they lie above the value.
    - "first axis": share of the variance along the first principal axis, 1 where all records lie on a line.
    - "dead features": share of features that are constant over the records, see `DEAD`.

    Args:
        pairs: dict encoder -> (a, b), float (records, features) each, row i of both from record i, see `view_features`.
        patients: (records,). n: resamples of patients.

    Returns:
        DataFrame encoder, reading, value, low, high.

    Raises:
        CremaError: shapes that do not fit, features that are not finite, all zero or the same for all records, or one patient.
    """
    rows = []
    for encoder, (a, b) in pairs.items():
        if np.shape(a) != np.shape(b):
            raise CremaError(f"views of shapes {np.shape(a)} and {np.shape(b)} cannot be compared: give two equal (records, features)")
        x, y, people = _checked(patients, a, b)
        counts = patient_counts(people, n, seed)
        _varying(x)
        spectra = [_variances(_drawn(x, drawn)) for drawn in (np.ones(len(x)), *counts)]  # what takes the time
        found = {
            "alignment": _alignment(x, y, counts),
            "uniformity": _uniformity(x, people, n, seed),
            "effective rank": _rank(spectra, min(x.shape)),
            "first axis": _first(spectra),
            "dead features": _dead(x, counts),
        }
        rows += [{"encoder": encoder, "reading": reading, **vars(one)} for reading, one in found.items()]
    return pd.DataFrame(rows)


# --- likeness


def _cka(x, starts, debiased=False):
    """CKA of every two blocks of columns of centred features: float (blocks, blocks)."""
    blocks = lambda square, axis: np.add.reduceat(square, starts, axis=axis)  # noqa: E731
    likeness, n = blocks(blocks((x.T @ x) ** 2, 0), 1), len(x)
    if debiased:
        size = blocks(x**2, 1)
        likeness -= n / (n - 2) * size.T @ size
        likeness += np.outer(size.sum(0), size.sum(0)) / ((n - 1) * (n - 2))
    own = np.sqrt(np.diag(likeness))
    return likeness / np.outer(own, own)


def cka_matrix(features, patients, *, debiased=False, n=1000, seed=0):
    """Linear centred kernel alignment of every two encoders (Kornblith et al. 2019, arXiv 1905.00414).

    With centred features X and Y CKA is |Y' X|^2 / (|X' X| |Y' Y|) in Frobenius norms: 1 where one is a rotation and scaling of the other.

    Args:
        features: dict name -> float (records, features), the same records in each; blocks of one encoder can stand side by side.
        patients: (records,).
        debiased: take the unbiased estimator of the dependence of two kernels (Song et al. 2012, JMLR 13). The plain one is well
            above 0 for unrelated features as soon as there are not many more records than features.
        n: resamples of patients. The plain CKA is resampled in both cases, and its resamples' distance to it laid around the value (a
            basic interval, see `metrics.interval`), because copies of a record bring back what debiasing takes off.

    Returns:
        DataFrame a, b, value, low, high, a row for each ordered pair, so that `table.pivot(index="a", columns="b", values="value")` is
        the matrix. Below 0 only where debiased.

    Raises:
        CremaError: fewer than two encoders, shapes that do not fit, fewer than four records, features that are not finite or the same
            for all records, or one patient.
    """
    names = list(features)
    if len(names) < 2:
        raise CremaError("likeness compares encoders: give the features of at least two")
    *parts, patients = _checked(patients, *features.values(), least=4)
    parts = [_varying(x) / np.linalg.norm(x - x.mean(0)) for x in parts]  # of one size, so that none costs the others their digits
    x, starts = np.concatenate(parts, axis=1), np.cumsum([0] + [part.shape[1] for part in parts[:-1]])
    once = _drawn(x, np.ones(len(x)))
    plain = _cka(once, starts)
    value = _cka(once, starts, debiased=True) if debiased else plain
    with np.errstate(invalid="ignore"):  # a resample of one record has no variance
        resamples = np.array([_cka(_drawn(x, counts), starts) for counts in patient_counts(patients, n, seed)])
    rows = []
    for i, j in product(range(len(names)), repeat=2):
        found = interval(plain[i, j], resamples[:, i, j], reflect=True)
        low, high = np.clip(np.array([found.low, found.high]) + value[i, j] - plain[i, j], -1 if debiased else 0, 1).tolist()
        rows.append({"a": names[i], "b": names[j], "value": float(value[i, j]), "low": low, "high": high})
    return pd.DataFrame(rows)


def linear_cka(a, b, patients, *, debiased=False, n=1000, seed=0):
    """Linear CKA of two encoders, an `Interval`; see `cka_matrix`.

    Args:
        a, b: float (records, features) each, the same records in both.
    """
    found = cka_matrix({"a": a, "b": b}, patients, debiased=debiased, n=n, seed=seed).iloc[1]
    return Interval(found["value"], found["low"], found["high"])
