"""Maps of embeddings in two dimensions, how far they can be trusted, and what holds in the space that they were drawn from.

Distances in that space are cosine distances between standardised features, as in the nearest-neighbour probe; a function that looks at
the space standardises the features it is given. A map is drawn by UMAP (McInnes, Healy & Melville 2018, arXiv 1802.03426, umap-learn).
Its axes have no unit, and gaps and sizes of its islands mean little; `silhouette`, `purity` and `which_group` therefore never see it.
"""

import contextlib
import warnings
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy.spatial import procrustes
from sklearn import manifold
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_samples
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from .data.labels import matrix
from .errors import CremaError
from .handcrafted import r_peaks, rhythm
from .metrics import FEW, compare, interval, patient_counts
from .probes.linear import check_finite, fit_probe

AXES = 50  # principal axes that a map is drawn from
BLOCK = 512  # records at a time


@cache
def _umap():
    """umap-learn, imported when first needed; its slowest compilations are kept on disk, as it keeps others itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP, layouts, umap_
    compiled = (umap_.smooth_knn_dist, umap_.compute_membership_strengths, layouts._nb_optimize_layout_euclidean_single_epoch)
    with contextlib.suppress(AttributeError, RuntimeError):  # another version, or no folder to write to: it compiles again
        for function in compiled:
            function.enable_caching()
    return UMAP


def _features(features, least=3):
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or len(features) < least or features.shape[1] < 2:
        raise CremaError(
            f"features of shape {features.shape} make no map: give (records, features), at least {least} records and 2 features"
        )
    check_finite(features, "mapped")
    return features


def _space(features):
    return StandardScaler().fit_transform(_features(features))


def _coordinates(coordinates, records):
    coordinates = np.asarray(coordinates, dtype=float)
    if coordinates.ndim != 2 or len(coordinates) != records:
        raise CremaError(f"a map of shape {coordinates.shape} does not fit {records} records: give one point a record")
    if not np.isfinite(coordinates).all():
        raise CremaError("the map holds points that are NaN or infinite")
    return coordinates


def _neighbour_count(k, most):
    if not 1 <= k <= most:
        raise CremaError(f"{k} neighbours cannot be found: with these records the number must be from 1 to {most}")
    return int(k)


# --- the map


@dataclass(frozen=True)
class FeatureMap:
    """A fitted map; `embedding` holds the points of the records it was fitted on, float32 (records, 2)."""

    embedding: np.ndarray
    axes: Pipeline
    near: NearestNeighbors
    umap: object

    def transform(self, features):
        """Points of further records on the same map, float32 (records, 2); the map itself stays as it is."""
        features = _features(features, least=1)
        if features.shape[1] != self.axes.n_features_in_:
            raise CremaError(f"the map was fitted on {self.axes.n_features_in_} features a record, not {features.shape[1]}")
        graph = self.near.kneighbors_graph(self.axes.transform(features), mode="distance")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.umap.transform(_positive(graph))


def _positive(graph):
    graph.data = np.maximum(graph.data, 1e-6)  # a sparse matrix would forget a distance of zero
    return graph


def fit_map(features, *, neighbours=15, min_dist=0.1, seed=0, metric="cosine", start="pca", epochs=200):
    """Fit UMAP to features: standardised, turned to their first `AXES` principal axes, nearest neighbours found exactly.

    Fifty axes and exact neighbours are ours. They make the map reproducible and spare the compilation of an approximate search.
    One seed gives one map on one machine; another processor may round otherwise.

    Args:
        features: float (records, features) of the records that may shape the map (the training folds).
        neighbours: how many neighbours of a record count; few show detail, many the large order.
        min_dist: least distance of points in the map, 0 to 1. metric: "cosine" or "euclidean", along the axes.
        start: "pca", the first two axes, which keeps the large order (Kobak & Linderman 2021), "spectral" (umap-learn's) or "random".
        epochs: passes over the pairs of neighbours.

    Returns:
        FeatureMap.

    Raises:
        CremaError: features that are not finite or too few, or a parameter out of range.
    """
    features = _features(features)
    neighbours = _neighbour_count(neighbours, len(features) - 1)
    for wrong, why in (
        (neighbours < 2, "a map needs at least 2 neighbours a record"),
        (not 0 <= min_dist <= 1, f"min_dist = {min_dist} is outside 0 to 1"),
        (metric not in ("cosine", "euclidean"), f"unknown metric {metric!r}: known are cosine, euclidean"),
        (start not in ("pca", "spectral", "random"), f"unknown start {start!r}: known are pca, spectral, random"),
        (epochs < 10, f"{epochs} epochs draw no map: give at least 10"),
    ):
        if wrong:
            raise CremaError(why)
    axes = make_pipeline(StandardScaler(), PCA(min(AXES, *features.shape), random_state=0))
    x = axes.fit_transform(features)
    near = NearestNeighbors(n_neighbors=neighbours, metric=metric, algorithm="brute").fit(x)
    graph = _positive(near.kneighbors_graph(mode="distance"))
    options = {"n_neighbors": neighbours, "min_dist": min_dist, "n_epochs": epochs, "random_state": seed, "transform_seed": seed}
    init = x[:, :2] if start == "pca" else start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a map of given distances cannot be inverted
        umap = _umap()(metric="precomputed", init=init, n_jobs=1, **options).fit(graph.maximum(graph.T))
    return FeatureMap(umap.embedding_, axes, near, umap)


def one_label(table, task):
    """Name of a record's label in a task where it has exactly one, else '': str (records,)."""
    targets, names, _ = matrix(table, task)
    return np.where(targets.sum(1) == 1, np.asarray(names)[targets.argmax(1)], "")


def rate(store, rows):
    """Heart rate of some records, beats a minute, float (rows,), from `handcrafted.r_peaks`; NaN with fewer than two beats.

    The detector takes some 5 ms a record on one core, so two minutes for all of PTB-XL.
    """
    rows, valid, found = np.asarray(rows), store.table["valid"].to_numpy(), []
    if not len(rows):
        raise CremaError("no recording was given to count the heart rate of")
    for block in np.split(rows, range(BLOCK, len(rows), BLOCK)):
        peaks = r_peaks(store.read(block).numpy(), store.fs)
        found += [rhythm(p[p < end], store.fs)["rate"] for p, end in zip(peaks, valid[block], strict=True)]
    return np.array(found)


# --- how far the map can be trusted


def _nearest(x, k, patients=None, queries=None):
    """Rows (queries, k) of the nearest records and their cosine distances, those of the same patient (or the record itself) left out."""
    patients = np.arange(len(x)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    queries = np.arange(len(x)) if queries is None else np.asarray(queries)
    k = _neighbour_count(k, len(x) - np.bincount(patients)[patients[queries]].max())
    z, patient = torch.from_numpy(normalize(x)), torch.from_numpy(patients)
    found = []
    for block in torch.from_numpy(queries).split(BLOCK):
        similarity = z[block] @ z.T
        similarity[patient[block, None] == patient] = -torch.inf
        found.append(similarity.topk(k, dim=1))
    rows, similarity = (torch.cat([getattr(top, name) for top in found]).numpy() for name in ("indices", "values"))
    return rows, 1 - similarity


def _nearest_points(coordinates, k):
    return NearestNeighbors(n_neighbors=_neighbour_count(k, len(coordinates) - 1)).fit(coordinates).kneighbors(return_distance=False)


def _overlap(some, others):
    return float((some[:, :, None] == others[:, None, :]).any(2).mean())


def _subsample(features, coordinates, k, records, seed):
    x = _space(features)
    coordinates = _coordinates(coordinates, len(x))
    if len(x) > records:
        pick = np.sort(np.random.default_rng(seed).choice(len(x), records, replace=False))
        x, coordinates = x[pick], coordinates[pick]
    return x, coordinates, _neighbour_count(k, (len(x) - 1) // 2)


def trustworthiness(features, coordinates, k=15, *, records=2000, seed=0):
    """Are neighbours in the map neighbours in the space? (Venna & Kaski 2001, scikit-learn's); 1 is best, about .5 is chance.

    Args:
        features: float (records, features). coordinates: float (records, 2), their points.
        k: neighbours. records: at most so many, drawn by `seed`, because time and memory grow with their square; neighbourhoods of a
            sample are wider than those of all records.

    Raises:
        CremaError: shapes that do not fit, values that are not finite, or k not below half the records.
    """
    x, coordinates, k = _subsample(features, coordinates, k, records, seed)
    return float(manifold.trustworthiness(x, coordinates, n_neighbors=k, metric="cosine"))


def continuity(features, coordinates, k=15, *, records=2000, seed=0):
    """Are neighbours in the space neighbours in the map? (Venna & Kaski 2001): `trustworthiness` with the two exchanged."""
    x, coordinates, k = _subsample(features, coordinates, k, records, seed)
    return float(manifold.trustworthiness(coordinates, normalize(x), n_neighbors=k))  # on the sphere the order is that of the cosine


def preservation(features, coordinates, k=15):
    """Share of a record's k nearest neighbours in the space that are also among its k nearest in the map, mean over records.

    Returns:
        (share, chance): chance is k / (records - 1), what points thrown at random reach.
    """
    x = _space(features)
    coordinates = _coordinates(coordinates, len(x))
    return _overlap(_nearest(x, k)[0], _nearest_points(coordinates, k)), k / (len(x) - 1)


def stability(maps, k=15):
    """Maps of the same records against each other, whatever their shift, turn, reflection and scale.

    Args:
        maps: dict name -> float (records, 2). k: neighbours.

    Returns:
        (table, aligned): DataFrame a, b, disparity (of `scipy.spatial.procrustes`: squared distances left after alignment, 0 the same,
        1 nothing in common) and overlap (share of a point's k neighbours that both maps have), a row for each pair; and dict name ->
        coordinates aligned to the first map, centred and of unit size.

    Raises:
        CremaError: fewer than two maps, or maps of different records.
    """
    names = list(maps)
    if len(names) < 2:
        raise CremaError("stability compares maps: give at least two of the same records")
    first = np.asarray(maps[names[0]], dtype=float)
    points = {name: _coordinates(one, len(first)) for name, one in maps.items()}
    for name, one in points.items():
        if not np.ptp(one, axis=0).any():
            raise CremaError(f"all points of the map {name} are in one place: nothing can be aligned")
    near = {name: _nearest_points(one, k) for name, one in points.items()}
    rows = [
        {"a": a, "b": b, "disparity": procrustes(points[a], points[b])[2], "overlap": _overlap(near[a], near[b])}
        for a, b in combinations(names, 2)
    ]
    fitted = {name: procrustes(first, one) for name, one in points.items()}
    aligned = {name: fit[1] if name != names[0] else fit[0] for name, fit in fitted.items()}
    return pd.DataFrame(rows), aligned


# --- what holds in the space


def _names(groups):
    return pd.Series(np.asarray(groups, dtype=object)).fillna("").astype(str).to_numpy(dtype=str)


def _grouped(features, groups, patients):
    """Standardised features, group and patient numbers of the records whose group is known; and how many groups there are."""
    features, names, patients = np.asarray(features), _names(groups), np.asarray(patients)
    if not len(features) == len(names) == len(patients):
        raise CremaError(f"{len(names)} groups and {len(patients)} patients do not fit {len(features)} records: give one each")
    known = names != ""
    found, group = np.unique(names[known], return_inverse=True)
    if len(found) < 2:
        raise CremaError(f"{len(found)} known groups cannot be told apart: give at least two")
    if len(found) == known.sum():
        raise CremaError("every record is a group of its own: give groups that hold several records")
    return _space(features[known]), group, np.unique(patients[known], return_inverse=True)[1]


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
    rows, _ = _nearest(x, k, patients)
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
        least: groups with fewer training records are left out with their records. n: resamples of patients.

    Returns:
        dict "AUROC" and "balanced accuracy" -> `Comparison`. The first is one against the rest for each group; the second holds the
        share of each group that gets the highest score for it, its macro average is the balanced accuracy, of which chance has
        1 / groups.

    Raises:
        CremaError: shapes that do not fit, fewer than two groups, a part without a record, or a patient on two sides.
    """
    groups, patients = _names(groups), np.asarray(patients)
    arms = {name: arm if isinstance(arm, tuple) else (fit_probe, arm) for name, arm in arms.items()}
    for name, (_, x) in arms.items():
        if not len(x) == len(groups) == len(patients):
            raise CremaError(f"{name} has {len(x)} records, but there are {len(groups)} groups and {len(patients)} patients")
    names, count = np.unique(groups[rows[0]], return_counts=True)
    names = names[(count >= least) & (names != "")]
    if len(names) < 2:
        raise CremaError(f"{len(names)} groups have {least} or more training records: at least two are needed")
    train, valid, test = (np.asarray(part)[np.isin(groups[part], names)] for part in rows)
    for part, name in ((valid, "validation"), (test, "test")):
        if not len(part):
            raise CremaError(f"no {name} record is in one of the groups {', '.join(names)}")
        if shared := len(np.intersect1d(patients[train], patients[part])):
            raise CremaError(f"{shared} patients are among both training and {name} records: split by patient")
    targets = (groups[:, None] == names).astype(np.float32)
    scores, decisions = {}, {}
    for name, (fit, x) in arms.items():
        check_finite(x[test], "test")
        probe, _ = fit((x[train], targets[train]), (x[valid], targets[valid]), device=device)
        scores[name] = probe.scores(x[test])
        decisions[name] = np.eye(len(names))[scores[name].argmax(1)]
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
    x = _space(features)
    if not 0 <= query < len(x):
        raise CremaError(f"there is no record {query}: rows run from 0 to {len(x) - 1}")
    rows, distances = _nearest(x, k, patients, [query])
    return rows[0], distances[0]
