"""Maps of embeddings in two dimensions, and how far they can be trusted.

A map is drawn by UMAP (McInnes, Healy & Melville 2018, arXiv 1802.03426, umap-learn). Its axes have no unit, and gaps and sizes of its
islands mean little; what holds in the space that it was drawn from is asked of the space itself, in `probes.space`.
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
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from .data.labels import matrix
from .errors import CremaError
from .probes.space import check_features, nearest, neighbour_count, standardise

AXES = 50  # principal axes that a map is drawn from
EPOCHS = 200  # passes over the pairs of neighbours


@cache
def _umap():
    """umap-learn, imported when first needed; its slowest compilations are kept on disk, as it keeps others itself."""
    with _calm():
        from umap import UMAP, layouts, umap_
    compiled = (umap_.smooth_knn_dist, umap_.compute_membership_strengths, layouts._nb_optimize_layout_euclidean_single_epoch)
    with contextlib.suppress(AttributeError, RuntimeError):  # another version, or no folder to write to: it compiles again
        for function in compiled:
            function.enable_caching()
    return UMAP


@contextlib.contextmanager
def _calm():
    """Without umap-learn's warnings, and with torch's number of threads as it was: numba sets that of all OpenMP code in the process."""
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one of them: that a map of given distances cannot be inverted
            yield
    finally:
        torch.set_num_threads(threads)


def _coordinates(coordinates, records):
    coordinates = np.asarray(coordinates, dtype=float)
    if coordinates.ndim != 2 or len(coordinates) != records:
        raise CremaError(f"a map of shape {coordinates.shape} does not fit {records} records: give one point a record")
    if not np.isfinite(coordinates).all():
        raise CremaError("the map holds points that are NaN or infinite")
    return coordinates


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
        features = check_features(features, least=1)
        if features.shape[1] != self.axes.n_features_in_:
            raise CremaError(f"the map was fitted on {self.axes.n_features_in_} features a record, not {features.shape[1]}")
        graph = self.near.kneighbors_graph(self.axes.transform(features), mode="distance")
        with _calm():
            return self.umap.transform(_positive(graph))


def _positive(graph):
    graph.data = np.maximum(graph.data, 1e-6)  # a sparse matrix would forget a distance of zero
    return graph


def fit_map(features, *, neighbours=15, seed=0, start="pca"):
    """Fit UMAP to features: standardised, turned to their first `AXES` principal axes, nearest neighbours by cosine found exactly.

    Fifty axes and exact neighbours are ours. They make the map reproducible and spare the compilation of an approximate search.
    One seed gives one map on one machine; another processor may round otherwise.

    Args:
        features: float (records, features) of the records that may shape the map (the training folds).
        neighbours: how many neighbours of a record count; few show detail, many the large order.
        start: "pca", the first two axes, which keeps the large order (Kobak & Linderman 2021), or "random".

    Returns:
        FeatureMap.

    Raises:
        CremaError: features that are not finite or too few, a number of neighbours out of range, or an unknown start.
    """
    features = check_features(features)
    neighbours = neighbour_count(neighbours, len(features) - 1)
    if neighbours < 2:
        raise CremaError("a map needs at least 2 neighbours a record")
    if start not in ("pca", "random"):
        raise CremaError(f"unknown start {start!r}: known are pca, random")
    axes = make_pipeline(StandardScaler(), PCA(min(AXES, *features.shape), random_state=0))
    x = axes.fit_transform(features)
    near = NearestNeighbors(n_neighbors=neighbours, metric="cosine", algorithm="brute").fit(x)
    graph = _positive(near.kneighbors_graph(mode="distance"))
    options = {"n_neighbors": neighbours, "n_epochs": EPOCHS, "random_state": seed, "transform_seed": seed}
    init = x[:, :2] if start == "pca" else start
    with _calm():
        umap = _umap()(metric="precomputed", init=init, n_jobs=1, **options).fit(graph.maximum(graph.T))
    return FeatureMap(umap.embedding_, axes, near, umap)


def one_label(table, task):
    """Name of a record's label in a task where it has exactly one, else '': str (records,)."""
    targets, names, _ = matrix(table, task)
    return np.where(targets.sum(1) == 1, np.asarray(names)[targets.argmax(1)], "")


# --- how far the map can be trusted


def _nearest_points(coordinates, k):
    return NearestNeighbors(n_neighbors=neighbour_count(k, len(coordinates) - 1)).fit(coordinates).kneighbors(return_distance=False)


def _overlap(some, others):
    return float((some[:, :, None] == others[:, None, :]).any(2).mean())


def _subsample(features, coordinates, k, records, seed):
    x = standardise(features)
    coordinates = _coordinates(coordinates, len(x))
    if len(x) > records:
        pick = np.sort(np.random.default_rng(seed).choice(len(x), records, replace=False))
        x, coordinates = x[pick], coordinates[pick]
    return x, coordinates, neighbour_count(k, (len(x) - 1) // 2)


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
    x = standardise(features)
    coordinates = _coordinates(coordinates, len(x))
    return _overlap(nearest(x, k)[0], _nearest_points(coordinates, k)), k / (len(x) - 1)


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
