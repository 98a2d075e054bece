"""Patient identification: are two recordings of one patient? After Oh et al. 2022 (PMLR 174), from features of a frozen encoder.

Retrieval: a recording is compared with others by the cosine of their features, and the best one of the same patient has a rank. The
measures are the share of ranks up to k ("top-1", "top-5") and the mean of 1 / rank ("MRR"). Verification: pairs of one patient
("genuine") against pairs of two ("impostor"), by AUROC and by the equal error rate ("EER"). Nothing is trained on identities here, where
Oh et al. fine-tune the encoder on them first.

What cannot be told: PTB-XL's recordings carry a date (moved by one offset for each patient), but a store keeps the year alone. So repeats
of the same day, with electrodes that may never have been moved, are not told from those of months later. `years` leaves out all repeats
of one calendar year.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from .data import splits
from .data.store import TEST, TRAIN, VALID
from .errors import CremaError
from .metrics import Comparison, patient_counts
from .probes.linear import check_finite

VARIANCE = 0.999  # share of the training variance that whitening keeps (ours): what is left is noise that it would blow up
PER_AXIS = 5  # training recordings for each axis that is whitened (ours): the variance of fewer is mostly chance
SPACES = {"centred": partial(StandardScaler, with_std=False), "whitened": partial(PCA, VARIANCE, whiten=True)}
BLOCK = 4_000_000  # numbers held at once


@dataclass(frozen=True)
class Identification:
    """How well encoders tell patients.

    Attributes:
        scores: dict measure ("top-1", ..., "MRR", "AUROC", "EER") -> `Comparison` of a single column, so that `macro(model)` is the
            interval of a model and `gain(model, other)` a paired difference. Of EER the lower is the better.
        thresholds: dict model -> the cosine that the share EER of impostor pairs exceeds, and about the same share of genuine ones misses.
        counts: dict patients, recordings, queries, candidates (of a query, at least), genuine, impostors.
    """

    scores: dict
    thresholds: dict
    counts: dict

    def table(self):
        """DataFrame model, measure, value, low, high, n; n counts queries for retrieval and genuine pairs for verification."""
        rows = []
        for measure, comparison in self.scores.items():
            for model in comparison.per_label:
                found, n = comparison.macro(model), int(comparison.positives[0])
                rows.append({"model": model, "measure": measure, "value": found.value, "low": found.low, "high": found.high, "n": n})
        return pd.DataFrame(rows)


# --- features


def fit_space(space, features):
    """A space for cosines that takes its statistics from training recordings.

    Args:
        space: "centred", the training mean taken away, as all features of an encoder have a large part in common; or "whitened", along
            the principal axes of the training recordings that hold the share `VARIANCE`, at most one for `PER_AXIS` recordings, with
            variance 1 on each.
        features: float (records, features) of training recordings, of patients other than those to be told.

    Returns:
        A fitted scikit-learn transformer: call `transform`.

    Raises:
        CremaError: unknown space, features that are no matrix, not finite or all equal.
    """
    if space not in SPACES:
        raise CremaError(f"unknown space {space!r}: known are cosine (features as they are), {', '.join(SPACES)}")
    x = _matrix(features, "training")
    if not (np.ptp(x, axis=0) > 0).any():
        raise CremaError("the features of all training recordings are equal: there is nothing to centre or whiten")
    fitted, most = SPACES[space]().fit(x), max(1, len(x) // PER_AXIS)
    return PCA(most, whiten=True).fit(x) if space == "whitened" and fitted.n_components_ > most else fitted


def _matrix(features, where):
    """Features as float64 (records, features) without NaN."""
    x = np.asarray(features, dtype=float)
    if x.ndim != 2 or not x.size:
        raise CremaError(f"features of the {where} records have shape {x.shape}: give (records, features)")
    check_finite(x, where)
    return x


def _unit(features):
    """Features scaled to length 1, float64 (records, features)."""
    x = _matrix(features, "given")
    size = np.linalg.norm(x, axis=1, keepdims=True)
    if not size.all():
        raise CremaError(f"{int((size == 0).sum())} recordings have features that are all zero: they have no cosine")
    return x / size


# --- retrieval


def _codes(patients, years=None):
    """Patients numbered from 0, int (records,), and years, int (records,) or None."""
    patients = pd.Series(np.asarray(patients))
    if (unknown := int((patients.isna() | (patients.astype(str) == "")).sum())) or not len(patients):
        raise CremaError(f"{unknown} of {len(patients)} recordings have no patient: give an identifier for each")
    if years is not None and np.shape(years) != patients.shape:
        raise CremaError(f"{np.size(years)} years do not fit {len(patients)} recordings: give one each, 0 where it is unknown")
    return np.unique(patients.astype(str), return_inverse=True)[1], None if years is None else np.asarray(years)


def _apart(years, i, j):
    """Bool: two recordings count as repeats; always without years, else in two known years."""
    return True if years is None else (years[i] != years[j]) & (years[i] > 0) & (years[j] > 0)


def ranks(features, patients, *, years=None):
    """Rank of the best recording of the same patient among the candidates, by cosine, for every query.

    As in the code of Oh et al. the candidates, the gallery, are the first recording, in the order given, of each patient with several; the
    other recordings of these patients are queries (all of them: ours, theirs takes the second).

    Args:
        features: float (records, features). patients: (records,), of any type.
        years: None, or int (records,), 0 unknown: two recordings of a patient that are not of two known years are not compared.

    Returns:
        (queries, rank, candidates): int64 row numbers (queries,) and ranks from 1 on; the smallest number of candidates of a query.
        Of equal cosines those of other patients come first.

    Raises:
        CremaError: shapes that do not fit, features that are not finite or zero, no patient with two recordings.
    """
    z, (patient, years) = _unit(features), _codes(patients, years)
    if len(z) != len(patient):
        raise CremaError(f"{len(patient)} patients do not fit features of {len(z)} recordings: give one each")
    first = np.zeros(len(patient), dtype=bool)
    first[np.unique(patient, return_index=True)[1]] = True
    several = np.bincount(patient)[patient] > 1
    gallery, asked = np.flatnonzero(several & first), np.flatnonzero(several & ~first)
    found, found_ranks, least = [], [], []
    for rows in np.array_split(asked, len(asked) * len(gallery) // BLOCK + 1):
        same = patient[rows, None] == patient[gallery]
        right = same & _apart(years, rows[:, None], gallery)
        kept = right.any(1)
        rows, same, right = rows[kept], same[kept], right[kept]
        cosine = z[rows] @ z[gallery].T
        best = np.where(right, cosine, -np.inf).max(1, initial=-np.inf, keepdims=True)
        found.append(rows)
        found_ranks.append(1 + ((cosine >= best) & ~same).sum(1))
        least.append((right | ~same).sum(1))
    if not sum(map(len, found)):
        raise _no_repeat(patient, years)
    return np.concatenate(found), np.concatenate(found_ranks), int(np.concatenate(least).min())


def _no_repeat(patient, years):
    apart = "" if years is None else " of two known years"
    return CremaError(f"none of {patient.max() + 1} patients has two recordings{apart}: there is nobody to identify")


# --- verification


def pairs(patients, *, impostors=100_000, years=None, seed=0):
    """Pairs of recordings: all of one patient, and some or all of two patients.

    Args:
        patients: (records,). impostors: about so many pairs of two patients, drawn without repeats (of pairs drawn, those of one patient
            fall out); None for all, which are records^2 / 2. years: see `ranks`; it holds for pairs of one patient.

    Returns:
        (rows, genuine): int64 (pairs, 2) and bool (pairs,), genuine pairs first.

    Raises:
        CremaError: no patient with two recordings, no two patients, or `impostors` below 1.
    """
    patient, years = _codes(patients, years)
    if impostors is not None and impostors < 1:
        raise CremaError(f"{impostors} impostor pairs cannot be drawn: give a number from 1 on, or None for all")
    member = csr_array((np.ones(len(patient)), (patient, np.arange(len(patient)))))
    i, j = (member.T @ member).nonzero()
    genuine = np.stack([i, j], axis=1)[(i < j) & _apart(years, i, j)].astype(np.int64)
    if not len(genuine):
        raise _no_repeat(patient, years)
    total = len(patient) * (len(patient) - 1) // 2
    some = impostors is not None and impostors < total
    number = np.random.default_rng(seed).choice(total, impostors, replace=False) if some else np.arange(total)
    j = ((1 + np.sqrt(1 + 8 * number)) // 2).astype(np.int64)  # pairs i < j in the order (0, 1), (0, 2), (1, 2), (0, 3), ...
    i = number - j * (j - 1) // 2
    wrong = np.stack([i, j], axis=1)[patient[i] != patient[j]]
    if not len(wrong):
        raise CremaError(f"no impostor pair among {len(patient)} recordings of {patient.max() + 1} patients: give more of either")
    return np.concatenate([genuine, wrong]), np.arange(len(genuine) + len(wrong)) < len(genuine)


def cosines(features, rows):
    """Cosine of each pair of recordings: features float (records, features), rows int (pairs, 2) -> float64 (pairs,)."""
    z = _unit(features)
    blocks = np.array_split(rows, rows.size * z.shape[1] // BLOCK + 1)
    return np.concatenate([np.einsum("pf,pf->p", z[block[:, 0]], z[block[:, 1]]) for block in blocks])


def verify(genuine, scores, weights=None):
    """AUROC and equal error rate of "one patient where the score is high enough".

    At a threshold t the false accept rate is the share of impostor pairs with a score of t or more, the false reject rate that of genuine
    pairs below t. EER is where they are equal on the ROC curve, its points joined by straight lines.

    Args:
        genuine: bool (pairs,). scores: float (pairs,), the higher the more alike. weights: None, or how often each pair counts
            (resamples, pairs).

    Returns:
        (auroc, eer): floats, or arrays (resamples,) with weights, NaN in a resample that lacks a kind of pair.

    Raises:
        CremaError: shapes that do not fit, scores that are not finite, or only one kind of pair.
    """
    genuine, scores = np.asarray(genuine, dtype=bool), np.asarray(scores, dtype=float)
    counts = np.ones((1, len(genuine))) if weights is None else np.asarray(weights)
    if genuine.ndim != 1 or scores.shape != genuine.shape or counts.shape[1:] != genuine.shape:
        raise CremaError(f"genuine {genuine.shape}, scores {scores.shape} and weights {counts.shape} do not fit: give (pairs,)")
    if not np.isfinite(scores).all():
        raise CremaError(f"{int((~np.isfinite(scores)).sum())} scores are NaN or infinite")
    if genuine.all() or not genuine.any():
        raise CremaError("verification takes both pairs of one patient and pairs of two: only one kind was given")
    levels, level = np.unique(scores[genuine], return_inverse=True)
    sides = sum(np.searchsorted(levels, scores[~genuine], side) for side in ("left", "right"))  # even: between levels, odd: tied with one
    with np.errstate(invalid="ignore"):  # the corners of the curve, from the highest threshold on
        hits = _shares(level, len(levels), counts.T[genuine]).repeat(2, axis=0)
        accepts = _shares(sides, 2 * len(levels) + 1, counts.T[~genuine])
    excess = accepts - (1 - hits)  # rises from -1 to 1
    at = (excess >= 0).argmax(0)[None]
    (low, high), (before, after) = ([np.take_along_axis(rate, k, 0)[0] for k in (at - 1, at)] for rate in (excess, accepts))
    found = np.trapezoid(hits, accepts, axis=0), before - low / (high - low) * (after - before)
    return found if weights is not None else tuple(float(one[0]) for one in found)


def _shares(group, size, weights):
    """Share of weights (pairs, resamples) in the 0, 1, ..., all highest of some groups: float (1 + size, resamples)."""
    member = csr_array((np.ones(len(group), np.float32), (group, np.arange(len(group)))), shape=(size, len(group)))
    total = (member @ weights)[::-1].cumsum(0, dtype=float)
    return np.pad(total / total[-1], [(1, 0), (0, 0)])


# --- both


def identify(arms, patients, *, ks=(1, 5), impostors=100_000, years=None, n=1000, seed=0):
    """Retrieval and verification of patients by several encoders on the same queries and pairs, with a bootstrap over patients.

    A drawn patient brings all queries along, while the candidates stay, since a smaller gallery would be an easier one. A pair of one
    patient counts as often as the patient is drawn, a pair of two by the product for both (the two-sample form of the bootstrap).

    Args:
        arms: dict model -> float (records, features). patients: (records,), different for different sources.
        years: see `ranks`. ks: of top-k. impostors: see `pairs`. n: resamples of patients. seed: of pairs and resamples.

    Returns:
        Identification.

    Raises:
        CremaError: see `ranks`, `pairs`; no model, a k below 1, or fewer candidates than the largest k.
    """
    if not arms:
        raise CremaError("there is no encoder to identify patients with: give features by name")
    if not len(ks) or min(ks) < 1:
        raise CremaError(f"top-k is counted from 1 on, not for k = {', '.join(map(str, ks)) or 'nothing'}")
    patient, _ = _codes(patients, years)
    rows, genuine = pairs(patient, impostors=impostors, years=years, seed=seed)
    counts = patient_counts(np.arange(patient.max() + 1), n, seed)
    blocks = [block for block in np.array_split(counts, n * len(rows) // BLOCK + 1) if len(block)]
    values, resampled, thresholds, scores = {}, {}, {}, {}
    for model, features in arms.items():
        queries, rank, candidates = ranks(features, patient, years=years)
        if candidates < max(ks):
            raise CremaError(f"top-{max(ks)} takes {max(ks)} candidates or more, a query here has {candidates}")
        outcome = np.stack([*(rank <= k for k in ks), 1 / rank], axis=1)
        drawn = counts[:, patient[queries]].astype(float)
        with np.errstate(invalid="ignore"):  # a resample without a query
            means = drawn @ outcome / drawn.sum(1, keepdims=True)
        cosine = cosines(features, rows)
        auroc, eer = verify(genuine, cosine)
        errors = [np.stack(verify(genuine, cosine, _pair_counts(block, patient[rows], genuine)), axis=1) for block in blocks]
        values[model], thresholds[model] = np.array([*outcome.mean(0), auroc, eer]), float(np.quantile(cosine[~genuine], 1 - eer))
        resampled[model] = np.concatenate([means, np.concatenate(errors)], axis=1)
    sizes = {f"top-{k}": len(queries) for k in ks} | {"MRR": len(queries), "AUROC": genuine.sum(), "EER": genuine.sum()}
    for i, (measure, size) in enumerate(sizes.items()):
        columns = ({model: found[model][..., i : i + 1] for model in arms} for found in (values, resampled))
        scores[measure] = Comparison(("patients",), np.array([size]), *columns, measure)
    people = {"patients": len(np.unique(patient[queries])), "recordings": len(patient), "queries": len(queries), "candidates": candidates}
    return Identification(scores, thresholds, people | {"genuine": int(genuine.sum()), "impostors": int((~genuine).sum())})


def _pair_counts(counts, people, genuine):
    """How often each pair counts, (resamples, pairs): counts of patients (resamples, patients), people (pairs, 2)."""
    one, two = (np.ascontiguousarray(counts.T, np.float32)[side] for side in people.T)
    two[genuine] = 1
    return (one * two).T


def identify_store(store, arms, *, folds=VALID + TEST, space="cosine", apart=False, **options):
    """`identify` on the recordings of a store.

    Args:
        arms: dict model -> float (records of the store, features).
        folds: 9 and 10 hold the patients that pretraining has not seen; others are for those who know what they ask.
        space: "cosine" of the features as they are, or of those in a space of `fit_space`, fitted on folds 1-8.
        apart: True leaves out repeats of one calendar year, and of unknown years.
        options: of `identify`.

    Returns:
        Identification.

    Raises:
        CremaError: see `splits.check`, `identify`, `fit_space`; no recording in the folds, features that do not fit the store, or a space
            fitted on patients that are to be told.
    """
    splits.check(store.table)
    rows, train = store.rows(folds), store.rows(TRAIN)
    if not len(rows):
        raise CremaError(f"no recording is in the folds {', '.join(map(str, folds))}")
    if space != "cosine" and (seen := len(np.intersect1d(rows, train))):
        raise CremaError(f"{seen} of the recordings are among those that the space {space} is fitted on: take folds 9 and 10, or cosine")
    for model, x in arms.items():
        if len(x) != len(store):
            raise CremaError(f"{model} has features of {len(x)} recordings, the store holds {len(store)}: embed all of them")
    told = {model: np.asarray(x)[rows] for model, x in arms.items()}
    if space != "cosine":
        told = {model: fit_space(space, arms[model][train]).transform(_matrix(x, "given")) for model, x in told.items()}
    patients = splits.patients(store.table)[rows]
    return identify(told, patients, years=store.table["year"].to_numpy()[rows] if apart else None, **options)
