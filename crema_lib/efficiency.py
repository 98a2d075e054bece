"""How many labels? Draws of a share of the labelled recordings, and the score as a function of their number."""

import dataclasses
import itertools

import numpy as np
import pandas as pd

from . import runs
from .data import splits
from .errors import CremaError
from .evaluation import average
from .metrics import compare, macro
from .probes.linear import learnable


@dataclasses.dataclass(frozen=True, eq=False)
class Draw:
    """Some of the training recordings: `share` of them, drawn by patient for the `number`-th time; `rows` are their row numbers."""

    share: float
    number: int
    rows: np.ndarray

    @property
    def name(self):
        return f"-{100 * self.share:g}pc-d{self.number}"


def draws(table, rows, shares, *, times=3, seed=0):
    """Draw each share of the recordings by patient so many times; all of them only once, for there is only one way.

    Within one number the draws are nested: 1 % is part of 5 %, so that a curve does not mix more recordings with other ones.

    Args:
        rows: row numbers of the training recordings. shares: each above 0 and at most 1.

    Returns:
        list of `Draw`, by share.

    Raises:
        CremaError: see `splits.fraction`; no share, or one given twice.
    """
    if not len(shares) or len(set(shares)) < len(shares):
        raise CremaError(f"label fractions {', '.join(f'{share:g}' for share in shares) or 'none'}: give one or more, each once")
    return [
        Draw(share, number, splits.fraction(table, rows, share, (seed, number)))
        for share in sorted(shares)
        for number in range(times if share < 1 else 1)
    ]


def common_labels(targets, drawn, test):
    """Labels that every draw can learn and the test records can score: bool (labels,).

    A label without a positive in a draw has no score there: left out of that draw alone it would make the means of two fractions means of
    different things, and any constant in its place would be an invention. So a curve is drawn over these labels, the same everywhere.

    Args:
        targets: 0/1 (records of the table, labels). drawn: list of row number arrays. test: row numbers.

    Raises:
        CremaError: there is none.
    """
    common = np.logical_and.reduce([learnable(targets[rows]) for rows in (*drawn, test)])
    if not common.any():
        raise CremaError("no label has a positive and a negative in every draw and in the test records: take larger label fractions")
    return common


def curve(targets, scores, patients, names, pairs=(), *, n=1000, seed=0):
    """Macro AUROC of each model and share: the mean over its draws, with a bootstrap over patients of the test records.

    Args:
        targets: 0/1 (records, labels). scores: dict (model, Draw) -> float (records, labels). patients: (records,). names: of the labels.
        pairs: (model, other) whose paired differences are wanted. n: resamples, the same for every model and share.

    Returns:
        (points, gains): DataFrames. points: model, share, records (mean over draws), value, low, high, lowest and highest of the draws,
        draws. gains: model, other, share, records, value, low, high. Intervals say what other test patients would change, `lowest` and
        `highest` what other training patients would.
    """
    result = compare(targets, scores, patients, names, n=n, seed=seed)
    groups = {}
    for model, draw in scores:
        groups.setdefault((model, draw.share), []).append((model, draw))
    mean, points, gains = average(result, groups), [], []
    for (model, share), keys in groups.items():
        single = [float(macro(result.per_label[key])[0]) for key in keys]
        head = {"model": model, "share": share, "records": float(np.mean([len(draw.rows) for _, draw in keys]))}
        spread = {"lowest": min(single), "highest": max(single), "draws": len(keys)}
        points.append({**head, **dataclasses.asdict(mean.macro((model, share))), **spread})
        for other in (other for one, other in pairs if one == model and (other, share) in groups):
            gains.append({**head, "other": other, **dataclasses.asdict(mean.gain((model, share), (other, share)))})
    return pd.DataFrame(points), pd.DataFrame(gains, columns=["model", "other", "share", "records", "value", "low", "high"])


def worth(points, pairs):
    """For each point of a model the number of recordings with which its twin reaches the same score.

    Between its points the twin's curve, made rising by its running maximum, is a line in the logarithm of the number of recordings.

    Args:
        points: columns task, model, records, value, see `curve`. pairs: (model, twin).

    Returns:
        DataFrame task, model, recordings, AUROC, "the twin needs": NaN where the twin never reaches it, its smallest number of recordings
        where it is better from the start.
    """
    rows = []
    for (task, part), (model, twin) in itertools.product(points.groupby("task", sort=False), pairs):
        other = part[part["model"] == twin].sort_values("records")
        best, sizes = other["value"].cummax().to_numpy(), np.log(other["records"].to_numpy())
        for point in part[part["model"] == model].itertuples():
            needed = float(np.exp(np.interp(point.value, best, sizes, right=np.nan)))
            rows.append({"task": task, "model": model, "recordings": point.records, "AUROC": point.value, "the twin needs": needed})
    return pd.DataFrame(rows)


def entries(points, gains, *, seed=0):
    """Metrics of a curve for a run record, see `runs.METRIC_KEYS`: n is the number of labels. A difference is named "model - other".

    points, gains: see `curve`, with the columns task and labels.
    """
    named = pd.concat([points, gains.assign(model=gains["model"] + " - " + gains["other"])])
    name = [f"macro AUROC, {100 * share:g} % of labels" for share in named["share"]]
    return runs.metrics(named, name=name, n=named["labels"], seed=seed)
