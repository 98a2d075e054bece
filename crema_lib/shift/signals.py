"""What shows a shift without a single label: signals of a recording, and of a set of recordings, from features and probabilities.

Signals of a recording (higher: stranger) are calibrated to nothing; signals of a set are means of these, and distances between sets of
features. How well they foretell a loss of performance is measured by `flagging` and `foretold`.
"""

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..embeddings import frozen
from ..errors import CremaError
from ..metrics import FEW, compare, interval
from ..metrics.thresholds import decide


class Novelty:
    """How far features lie from those of home.

    Features are standardised and turned to the principal axes of home that carry 99 % of its variance.
    `mahalanobis` is the distance to the mean under the shrunk covariance (Ledoit & Wolf 2004; Lee et al. 2018, arXiv 1807.03888, without
    classes), `neighbours` the mean Euclidean distance to the k nearest recordings of home (Sun et al. 2022, arXiv 2204.06507).

    Args:
        features: float (records, features) of home. k: neighbours. most: recordings of home kept for distances. seed: of that draw.

    Raises:
        CremaError: fewer recordings than k + 1, or features that are not finite.
    """

    def __init__(self, features, *, k=10, most=4000, seed=0):
        features = _finite(features)
        if len(features) <= k:
            raise CremaError(f"{len(features)} recordings of home are too few for {k} neighbours")
        self.mean, self.deviation = features.mean(0), np.maximum(features.std(0), 1e-6)
        x = (features - self.mean) / self.deviation
        variances, axes = np.linalg.eigh(x.T @ x / len(x))
        kept = np.cumsum(variances) > 0.01 * variances.sum()  # eigenvalues rise
        self.axes = axes[:, kept]
        x = x @ self.axes
        self.covariance = LedoitWolf(assume_centered=True).fit(x)
        some = np.random.default_rng(seed).permutation(len(x))[:most]
        self.near, self.k = NearestNeighbors(n_neighbors=k).fit(x[some]), k

    def _turned(self, features):
        return (_finite(features) - self.mean) / self.deviation @ self.axes

    def mahalanobis(self, features):
        """float (records,)."""
        return np.sqrt(self.covariance.mahalanobis(self._turned(features)))

    def neighbours(self, features):
        """float (records,); a recording of home that is asked for finds itself, so ask with others."""
        return self.near.kneighbors(self._turned(features))[0].mean(1)


def doubt(probabilities):
    """Mean binary entropy of the labels of a recording in bits, float (records,): what the model itself does not know."""
    p = np.clip(np.asarray(probabilities, dtype=float), 1e-7, 1 - 1e-7)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean(1)


def reconstruction_error(objective, store, rows, *, draws=4, batch_size=256, seed=0, device="cpu"):
    """How badly the masked autoencoder draws what it does not see, float (records,).

    Squared error over the hidden patches of the leads that are there, as a share of their mean square, summed over `draws` random masks;
    every recording has the same masks.

    Args:
        objective: with an encoder and `reconstruct`, see `objectives.CRMAE`. store: as for `embed_store`. rows: row numbers.

    Raises:
        CremaError: the objective has no decoder.
    """
    if not hasattr(objective, "reconstruct"):
        raise CremaError(f"{type(objective).__name__} draws nothing: the reconstruction error needs a masked autoencoder")
    encoder, found = objective.encoder, []
    pick = [list(store.meta["leads"]).index(lead) for lead in encoder.leads]
    with frozen(objective, device):
        for i in range(0, len(rows), batch_size):
            chosen = np.asarray(rows[i : i + batch_size])
            signals = store.read(chosen, device)[:, pick]
            mask = torch.from_numpy(store.lead_mask[chosen][:, pick]).to(device)
            patches = signals.shape[2] // encoder.patch
            masks = torch.stack([objective.places(patches, seed + d) for d in range(draws)])
            error, size = torch.zeros(len(chosen), device=device), torch.zeros(len(chosen), device=device)
            for hidden in masks.to(device):
                drawn, flags = objective.reconstruct(signals, mask, hidden.expand(len(chosen), -1))
                asked = (flags.repeat_interleave(encoder.patch, 1)[:, None] & mask[..., None]) / encoder.scale[:, None] ** 2
                error += ((drawn - signals).square() * asked).sum((1, 2))
                size += (signals.square() * asked).sum((1, 2))
            found.append((error / size.clamp(min=1e-6)).cpu())
    return torch.cat(found).numpy()


def domain_auc(home, away, patients=None, *, folds=5, most=1000, seed=0):
    """Can a classifier tell where features come from?

    Logistic regression, cross-validated by patient (Ben-David et al. 2010, doi:10.1007/s10994-009-5152-4). The larger set is drawn down
    to the size of the smaller one, and both to `most` recordings.

    Args:
        home, away: float (records, features). patients: (identifiers of home, of away), every recording its own if not given.

    Returns:
        (AUROC, proxy A-distance): .5 and 0 where nothing tells them apart, 1 and 2 where everything does. The distance is
        2 (1 - 2 error) and never below 0.

    Raises:
        CremaError: fewer than two patients a fold on one side.
    """
    rng = np.random.default_rng(seed)
    people = [np.arange(len(home)), np.arange(len(away))] if patients is None else [np.asarray(one) for one in patients]
    n = min(len(home), len(away), most)
    some = [np.sort(rng.permutation(len(x))[:n]) for x in (home, away)]
    if min(len(np.unique(who[rows])) for who, rows in zip(people, some, strict=True)) < 2 * folds:
        raise CremaError(f"a domain classifier with {folds} folds needs {2 * folds} patients or more on each side")
    x = np.concatenate([_finite(home)[some[0]], _finite(away)[some[1]]])
    y = np.repeat([0, 1], n)
    groups = np.concatenate([[f"{side}/{one}" for one in who[rows]] for side, who, rows in zip("ha", people, some, strict=True)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    shuffled = rng.permutation(len(x))  # GroupKFold fills folds in order
    scores = np.empty(len(x))
    cv = GroupKFold(folds, shuffle=True, random_state=seed)
    scores[shuffled] = cross_val_predict(model, x[shuffled], y[shuffled], groups=groups[shuffled], cv=cv, method="predict_proba")[:, 1]
    return float(roc_auc_score(y, scores)), max(0.0, float(2 * (2 * accuracy_score(y, scores >= 0.5) - 1)))


def mmd(home, away, *, most=1000, seed=0):
    """Squared maximum mean discrepancy with a Gaussian kernel, the unbiased estimate (Gretton et al. 2012, JMLR 13, eq. 3).

    The bandwidth is the median distance in the pooled sample. At most `most` recordings of each side are drawn. Features are standardised
    by home. Near 0, below it too, where the two do not differ.
    """
    rng = np.random.default_rng(seed)
    home, away = _finite(home), _finite(away)
    mean, deviation = home.mean(0), np.maximum(home.std(0), 1e-6)
    x, y = ((z[np.sort(rng.permutation(len(z))[:most])] - mean) / deviation for z in (home, away))
    if min(len(x), len(y)) < 2:
        raise CremaError("the discrepancy of two sets needs two recordings of each")
    squared = lambda a, b: np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)  # noqa: E731
    xx, yy, xy = squared(x, x), squared(y, y), squared(x, y)
    width = np.median(np.concatenate([one[np.triu_indices(len(one), 1)] for one in (xx, yy)] + [xy.ravel()]))
    kernel = lambda d: np.exp(-d / width)  # noqa: E731
    inside = [(kernel(one).sum() - len(one)) / (len(one) * (len(one) - 1)) for one in (xx, yy)]
    return float(sum(inside) - 2 * kernel(xy).mean())


def mistaken(sample, model):
    """Bool (records, labels with a threshold): the label of a recording is decided wrongly.

    Args:
        sample: `home.Sample`. model: `home.Model`, whose thresholds decide; a label without one (NaN) is not asked.
    """
    usable = np.isfinite(model.thresholds)
    return decide(sample.scores[model.name][:, usable], model.thresholds[usable]) != sample.targets[:, usable]


def flagging(sample, model, signals, *, n=1000, seed=0, least=FEW):
    """How well signals of a recording flag wrong decisions: AUROC of each signal for "this label is decided wrongly", mean over labels.

    With many labels hardly a recording is right in all of them, so that labels are asked one by one.

    Args:
        sample, model: see `mistaken`. signals: dict name -> float (records,), higher is stranger.
        least: wrong and right decisions that a label needs.

    Returns:
        DataFrame signal, value, low, high, records, labels, wrong (share of the decisions on these labels).

    Raises:
        CremaError: no label has enough wrong and right decisions.
    """
    wrong = mistaken(sample, model)
    asked = np.minimum(wrong.sum(0), (~wrong).sum(0)) >= max(least, 1)
    if not asked.any():
        raise CremaError(f"no label of {model.name} on {sample.name} has {least} wrong and {least} right decisions: nothing can be flagged")
    wrong = wrong[:, asked]
    values = {name: np.repeat(np.asarray(signal, dtype=float)[:, None], asked.sum(), axis=1) for name, signal in signals.items()}
    names = np.asarray(model.names)[np.isfinite(model.thresholds)][asked]
    result = compare(wrong.astype(float), values, sample.patients, names, n=n, seed=seed)
    head = {"records": len(wrong), "labels": len(names), "wrong": wrong.mean()}
    return pd.DataFrame([{"signal": name, **vars(result.macro(name)), **head} for name in values])


def foretold(signals, drops, *, n=1000, seed=0):
    """Spearman correlation, over shifts, between a label-free signal and the true drop, with a bootstrap over the shifts.

    Args:
        signals: DataFrame, a row for each shift and a column for each signal. drops: float (shifts,), positive where it is worse away.

    Returns:
        DataFrame signal, value, low, high, shifts; the strongest first.

    Raises:
        CremaError: fewer than five shifts, or values that are not finite.
    """
    drops = np.asarray(drops, dtype=float)
    if len(drops) < 5 or len(signals) != len(drops):
        raise CremaError(f"{len(signals)} rows of signals and {len(drops)} drops: give five shifts or more, a row for each")
    if not (np.isfinite(drops).all() and np.isfinite(signals.to_numpy(dtype=float)).all()):
        raise CremaError("a signal or a drop is NaN or infinite: leave that shift out")
    drawn, rows = np.random.default_rng(seed).integers(0, len(drops), (n, len(drops))), []
    for name in signals:
        x = signals[name].to_numpy(dtype=float)
        found = interval(float(_spearman(x, drops)), _spearman(x[drawn], drops[drawn]))
        rows.append({"signal": name, **vars(found), "shifts": len(drops)})
    return pd.DataFrame(rows).sort_values("value", ascending=False, key=np.abs, ignore_index=True)


def _spearman(x, y):
    """Rank correlation along the last axis, NaN where one of the two is constant."""
    x, y = (rankdata(one, axis=-1) - (one.shape[-1] + 1) / 2 for one in (x, y))
    size = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return np.divide((x * y).sum(-1), size, out=np.full(np.shape(size), np.nan), where=size > 0)


def _finite(features):
    features = np.asarray(features, dtype=float)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise CremaError(f"features of shape {features.shape} must be finite (records, features)")
    return features
