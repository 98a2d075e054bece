"""What holds in the space of features: how far groups are apart, which recordings are near, and whether a probe tells the groups.

Distances are cosine distances between standardised features, as in the nearest-neighbour probe; a function standardises the features that
it is given. Nothing here sees a map.
"""

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import silhouette_samples
from sklearn.preprocessing import StandardScaler, normalize

from ..errors import CremaError
from ..metrics import FEW, compare, interval, patient_counts
from .linear import check_finite, fit_probe

BLOCK = 512  # records at a time


def check_features(features, least=3):
    """Features as float32 (records, features); CremaError where they are too few or not finite."""
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) < least or features.shape[1] < 2:
        raise CremaError(
            f"features of shape {features.shape} are too few: give (records, features), {least} records and 2 features or more"
        )
    check_finite(features, "given")
    return features


def standardise(features):
    """Each feature with mean 0 and deviation 1, float32 (records, features)."""
    return StandardScaler().fit_transform(check_features(features))


def neighbour_count(k, most):
    """The number of neighbours as int; CremaError where there are not so many."""
    if not 1 <= k <= most:
        raise CremaError(f"{k} neighbours cannot be found: with these records the number must be from 1 to {most}")
    return int(k)


def nearest(x, k, patients=None, queries=None):
    """Rows (queries, k) of the nearest records and their cosine distances, those of the same patient (or the record itself) left out.

    Args:
        x: float32 (records, features), standardised. patients: (records,). queries: row numbers, default all.
    """
    patients = np.arange(len(x)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    queries = np.arange(len(x)) if queries is None else np.asarray(queries)
    k = neighbour_count(k, len(x) - np.bincount(patients)[patients[queries]].max())
    z, patient = torch.from_numpy(normalize(x)), torch.from_numpy(patients)
    found = []
    for block in torch.from_numpy(queries).split(BLOCK):
        similarity = z[block] @ z.T
        similarity[patient[block, None] == patient] = -torch.inf
        found.append(similarity.topk(k, dim=1))
    rows, similarity = (torch.cat([getattr(top, name) for top in found]).numpy() for name in ("indices", "values"))
    return rows, 1 - similarity


def _names(groups):
    return pd.Series(np.asarray(groups, dtype=object)).fillna("").astype(str).to_numpy(dtype=str)


def _grouped(features, groups, patients):
    """Standardised features, group and patient numbers of the records whose group is known."""
    features, names, patients = np.asarray(features), _names(groups), np.asarray(patients)
    if not len(features) == len(names) == len(patients):
        raise CremaError(f"{len(names)} groups and {len(patients)} patients do not fit {len(features)} records: give one each")
    known = names != ""
    found, group = np.unique(names[known], return_inverse=True)
    if len(found) < 2:
        raise CremaError(f"{len(found)} known groups cannot be told apart: give at least two")
    if len(found) == known.sum():
        raise CremaError("every record is a group of its own: give groups that hold several records")
    return standardise(features[known]), group, np.unique(patients[known], return_inverse=True)[1]


def _mean(values, patients, n, seed):
    """Mean of one value a record, an `Interval` over patients; the values themselves are not computed again."""
    counts = patient_counts(patients, n, seed)
    return interval(values.mean(), counts @ values / counts.sum(1))


def silhouette(features, groups, patients, *, n=1000, seed=0):
    """Mean silhouette of groups in the space, cosine distance (Rousseeuw 1987): 1 apart, 0 on top of each other, below 0 mixed up.

    Args:
        features: float (records, features). groups: str (records,), '' where it is unknown: such records are left out.
        patients: (records,). n: resamples of patients; the silhouettes are held and their mean is resampled, because a record drawn
            twice would be its own neighbour.

    Returns:
        Interval.

    Raises:
        CremaError: shapes that do not fit, features that are not finite, or fewer than two groups.
    """
    x, group, patients = _grouped(features, groups, patients)
    return _mean(silhouette_samples(x, group, metric="cosine").astype(float), patients, n, seed)


def purity(features, groups, patients, k=15, *, n=1000, seed=0):
    """Share of a record's k nearest neighbours in the space that are in its group, among the recordings of other patients.

    Two recordings of one heart are close whatever the group; without that rule purity would be high for anything a patient keeps.

    Args and Raises: as `silhouette`; k: neighbours.

    Returns:
        (Interval, chance): chance is what neighbours drawn at random from the other patients reach, so it is large where one group is.
    """
    x, group, patients = _grouped(features, groups, patients)
    rows, _ = nearest(x, k, patients)
    same = (group[rows] == group[:, None]).mean(1)
    pair = np.unique(np.stack([group, patients]), axis=1, return_inverse=True)[1].ravel()
    size, own, both = (np.bincount(index)[index] for index in (group, patients, pair))
    return _mean(same, patients, n, seed), float(((size - both) / (len(x) - own)).mean())


def separation(features, groupings, patients, *, k=15, n=1000, seed=0):
    """`silhouette` and `purity` of several groupings in one table.

    Args:
        groupings: dict name -> str (records,), '' unknown.

    Returns:
        DataFrame grouping, groups, n (records of a known group), silhouette, silhouette_low, silhouette_high, purity, purity_low,
        purity_high, chance.
    """
    rows = []
    for name, groups in groupings.items():
        apart = silhouette(features, groups, patients, n=n, seed=seed)
        pure, chance = purity(features, groups, patients, k, n=n, seed=seed)
        known = pd.Series(_names(groups)).replace("", np.nan).dropna()
        row = {"grouping": name, "groups": known.nunique(), "n": len(known)}
        for what, found in (("silhouette", apart), ("purity", pure)):
            row |= {what: found.value, f"{what}_low": found.low, f"{what}_high": found.high}
        rows.append(row | {"chance": chance})
    return pd.DataFrame(rows)


def which_group(arms, groups, rows, patients, *, least=FEW, n=1000, seed=0, device="cpu"):
    """Which hospital is it? Linear probes that tell a group from features, one group against the rest.

    Args:
        arms: dict name -> float (records, features), or (fit, features) for another probe than `fit_probe`, see `probe_task`.
        groups: str (records,), '' unknown.
        rows: (train, valid, test) row numbers, see `splits.parts`. patients: (records,), different for different sources.
        least: groups with fewer training records, or fewer test records, are left out with their records. n: resamples of patients.

    Returns:
        dict "AUROC" and "balanced accuracy" -> `Comparison`. The first is one against the rest for each group; the second holds the
        share of each group whose probability rises most over its share of the training records (what decides best where groups
        count alike, whatever their size); its macro average is the balanced accuracy, of which chance has 1 / groups.

    Raises:
        CremaError: shapes that do not fit, fewer than two groups, a part without a record, or a patient on two sides.
    """
    groups, patients = _names(groups), np.asarray(patients)
    arms = {name: arm if isinstance(arm, tuple) else (fit_probe, arm) for name, arm in arms.items()}
    for name, (_, x) in arms.items():
        if not len(x) == len(groups) == len(patients):
            raise CremaError(f"{name} has {len(x)} records, but there are {len(groups)} groups and {len(patients)} patients")
    common = [set(names[count >= least]) - {""} for names, count in (np.unique(groups[rows[i]], return_counts=True) for i in (0, 2))]
    names = np.array(sorted(set.intersection(*common)))
    if len(names) < 2:
        raise CremaError(f"{len(names)} groups have {least} or more training and test records: at least two are needed")
    train, valid, test = (np.asarray(part)[np.isin(groups[part], names)] for part in rows)
    if not len(valid):
        raise CremaError(f"no validation record is in one of the groups {', '.join(names)}")
    for part, name in ((valid, "validation"), (test, "test")):
        if shared := len(np.intersect1d(patients[train], patients[part])):
            raise CremaError(f"{shared} patients are among both training and {name} records: split by patient")
    targets = (groups[:, None] == names).astype(np.float32)
    scores, decisions = {}, {}
    for name, (fit, x) in arms.items():
        check_finite(x[test], "test")
        probe, _ = fit((x[train], targets[train]), (x[valid], targets[valid]), device=device)
        scores[name] = probe.scores(x[test])
        decisions[name] = np.eye(len(names))[(scores[name] / targets[train].mean(0)).argmax(1)]
    options = {"patients": patients[test], "names": names, "n": n, "seed": seed}
    return {
        "AUROC": compare(targets[test], scores, **options),
        "balanced accuracy": compare(targets[test], decisions, metric="sensitivity", **options),
    }


def neighbours(features, query, k=5, patients=None):
    """The recordings nearest to one recording in the space, among other patients.

    Args:
        features: float (records, features). query: row number. patients: (records,), or None to leave out only the record itself.

    Returns:
        (rows, distances): int64 and float (k,), cosine distances, nearest first.

    Raises:
        CremaError: no such row, or fewer than k recordings of other patients.
    """
    x = standardise(features)
    if not 0 <= query < len(x):
        raise CremaError(f"there is no record {query}: rows run from 0 to {len(x) - 1}")
    rows, distances = nearest(x, k, patients, [query])
    return rows[0], distances[0]
