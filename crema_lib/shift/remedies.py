"""What helps away from home: new probabilities with a few labels or with none, a new probe, or leaving the doubtful ones to a human.

Without labels: under *label shift* the prevalence changes and P(signal | label) stays. Then the new prevalence can be estimated from
unlabelled recordings, and the probabilities follow. Each label is treated by itself, which is exact only where the others do not
change what its positives and negatives look like. With labels: `fit_platt` moves probabilities, `side_by_side` also fits new probes.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logit
from sklearn.model_selection import GroupKFold

from ..errors import CremaError
from ..metrics import FEW, METRICS, log_loss, macro
from ..metrics.calibration import BOUNDS, _logits
from ..metrics.thresholds import choose, decide
from ..probes.linear import LinearProbe, PrincipalAxes, as_tensor, learnable
from .measure import DECIDED, LESS_IS_BETTER

REMEDIES = ("as it is", "EM", "BBSE", "thresholds", "recalibrated", "probe, home and away", "probe, away alone", "all labels")
MEASURES = ("auroc", "brier", "ece", "f1")
COVERAGE = tuple(np.linspace(0.1, 1, 19))  # shares of the recordings to keep

# -- with a few labels ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Platt:
    """What `fit_platt` found; call it with probabilities (records, labels) to get recalibrated ones.

    Attributes:
        slope, bias: float (labels,), of the logits. positives: int (labels,), among the recordings that it was fitted on.
        own: bool (labels,), the label has a slope and a bias of its own, not the shared ones.
    """

    slope: np.ndarray
    bias: np.ndarray
    positives: np.ndarray
    own: np.ndarray

    def __call__(self, scores):
        return expit(self.slope * _logits(scores) + self.bias)


def fit_platt(targets, scores):
    """Platt scaling (Platt 1999) of independent labels: sigmoid(slope * logit + bias) with the lowest log loss.

    Positives count as (n1 + 1) / (n1 + 2) and negatives as 1 / (n0 + 2), as in that paper: else a few recordings that happen to lie apart
    would make decisions of probabilities. The slope is held within the bounds of a temperature, above zero: the order of the scores of a
    label stays, and so does every AUROC. A label with fewer than `FEW` recordings of either kind takes the slope and the bias of the
    lowest log loss over all labels together.

    Args:
        targets: 0/1 (records, labels), scores: probabilities, both of the labelled recordings away.

    Returns:
        Platt.

    Raises:
        CremaError: shapes differ, scores are no probabilities, or no label has both a positive and a negative recording.
    """
    targets, scores = np.asarray(targets), np.asarray(scores)
    log_loss(targets, scores)  # for its checks
    positives, logits = targets.sum(0).astype(int), _logits(scores)
    rarer = np.minimum(positives, len(targets) - positives)
    if not (rarer > 0).any():
        raise CremaError("no label has both a positive and a negative among the labelled recordings: label more of them")
    own = rarer >= FEW
    values = np.tile((1.0, 0.0) if own.all() else _line(targets, logits), (len(own), 1))
    for i in np.flatnonzero(own):
        values[i] = _line(targets[:, i], logits[:, i])
    return Platt(values[:, 0], values[:, 1], positives, own)


def _line(targets, logits):
    """Slope and bias of the lowest log loss, which is convex in both."""
    positives = targets.sum()
    aims = np.where(targets == 1, (positives + 1) / (positives + 2), 1 / (targets.size - positives + 2))

    def loss(line):
        z = line[0] * logits + line[1]
        residual = expit(z) - aims
        return (np.logaddexp(0, z) - aims * z).mean(), np.array([(residual * logits).mean(), residual.mean()])

    bounds = [(1 / BOUNDS[1], 1 / BOUNDS[0]), (None, None)]
    return minimize(loss, (1.0, 0.0), jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-8}).x


# -- without labels ------------------------------------------------------------------------------------------------------------------


def prevalence_em(scores, home):
    """Prevalence of each label away from home, from unlabelled recordings: the maximum of the likelihood to which EM climbs.

    EM (Saerens, Latinne & Decaestecker 2002, doi:10.1162/089976602753284446) goes back and forth between probabilities adjusted to a
    prevalence and their mean. The likelihood of the prevalence q, the product over recordings of q p / home + (1 - q) (1 - p) / (1 - home),
    is concave in its logarithm, so its maximum is found at once.

    Args:
        scores: probabilities (records, labels) of recordings away, calibrated at home. home: prevalences there (labels,).

    Returns:
        float (labels,), kept half a recording away from 0 and 1.

    Raises:
        CremaError: scores are no probabilities, or prevalences do not fit or are not above 0 and below 1.
    """
    scores, home = _checked(scores, home)
    edge = 0.5 / len(scores)

    def best(up, down):
        found = minimize_scalar(
            lambda q: -np.log(q * up + (1 - q) * down).mean(), bounds=(edge, 1 - edge), method="bounded", options={"xatol": 1e-7}
        )
        return float(found.x)

    return np.array([best(up, down) for up, down in zip((scores / home).T, ((1 - scores) / (1 - home)).T, strict=True)])


def prevalence_bbse(away, valid, targets, home):
    """Prevalence of each label away from home, from unlabelled recordings: black-box shift estimation (Lipton, Wang & Smola 2018).

    Under label shift the mean output away is  q m1 + (1 - q) m0  with the means m1 of positives and m0 of negatives at home; this gives q.

    Args:
        away: outputs (records, labels) of recordings away: decisions 0/1, as in the paper, or probabilities, which need no threshold.
        valid, targets: outputs and 0/1 labels of recordings at home that trained nothing. home: prevalences there (labels,), which
            stay where the outputs do not tell positives from negatives (m1 <= m0, or one of the two is not there).

    Returns:
        float (labels,), kept half a recording away from 0 and 1.

    Raises:
        CremaError: see `prevalence_em`; or targets do not fit.
    """
    away, home = _checked(away, home)
    valid, _ = _checked(valid, home)
    targets = np.asarray(targets)
    if targets.shape != valid.shape or not np.isin(targets, (0, 1)).all():
        raise CremaError(f"targets of shape {targets.shape} must be 0 or 1 and fit the outputs at home, which are {valid.shape}")
    with np.errstate(invalid="ignore"):
        low, high = ((valid * kind).sum(0) / kind.sum(0) for kind in (targets == 0, targets == 1))
    told = high > low + 1e-6  # NaN is not
    found = (away.mean(0) - np.where(told, low, 0)) / np.where(told, high - low, 1)
    edge = 0.5 / len(away)
    return np.clip(np.where(told, found, home), edge, 1 - edge)


def adjust(scores, home, away):
    """Probabilities that were right at one prevalence, made right for another (Saerens et al. 2002, with two classes).

    Args:
        scores: probabilities (records, labels). home, away: prevalences (labels,), above 0 and below 1.

    Returns:
        float (records, labels): the logits move by logit(away) - logit(home), so their order stays.

    Raises:
        CremaError: scores are no probabilities, or prevalences do not fit or are out of range.
    """
    scores, home = _checked(scores, home)
    _, away = _checked(scores, away)
    return expit(_logits(scores) + logit(away) - logit(home))


def expected_thresholds(scores):
    """Threshold of each label with the highest expected F1, from probabilities alone (Lipton, Elkan & Narayanaswamy 2014, arXiv 1402.1892).

    If the probabilities are right, the k largest of them hold their sum of positives:  F1 = 2 sum_k p / (k + sum p)  in expectation.

    Args:
        scores: probabilities (records, labels).

    Returns:
        float (labels,): a score at or above its label's is called positive.
    """
    falling = -np.sort(-np.asarray(scores, dtype=float), axis=0)
    expected = 2 * falling.cumsum(0) / (np.arange(1, len(falling) + 1)[:, None] + falling.sum(0))
    return np.take_along_axis(falling, expected.argmax(0)[None], 0)[0]


def _checked(scores, prevalences):
    scores, prevalences = np.asarray(scores, dtype=float), np.asarray(prevalences, dtype=float)
    if scores.ndim != 2 or not len(scores) or prevalences.shape != scores.shape[1:]:
        raise CremaError(f"prevalences {prevalences.shape} do not fit scores {scores.shape}: give (records, labels) and one for each label")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise CremaError("scores below 0, above 1 or NaN are no probabilities: a sigmoid makes them of logits")
    if not ((prevalences > 0) & (prevalences < 1)).all():
        raise CremaError("prevalences must lie above 0 and below 1: leave out labels without a positive or a negative")
    return scores, prevalences


# -- leaving some to a human ---------------------------------------------------------------------------------------------------------


def risk_coverage(wrong, signals, coverage=COVERAGE):
    """What is wrong among the recordings that are kept, when the strangest are left to a human (El-Yaniv & Wiener 2010, JMLR 11).

    Args:
        wrong: float (records,), share of the labels of a recording that are decided wrongly, see `signals.mistaken`.
        signals: dict name -> float (records,), higher is stranger. coverage: shares of the recordings to keep, above 0 and at most 1.

    Returns:
        DataFrame signal, coverage, risk (mean of wrong), kept (recordings); the signal "ideal" knows what is wrong.

    Raises:
        CremaError: shapes differ, a signal is not finite, or a coverage is out of range.
    """
    wrong, coverage = np.asarray(wrong, dtype=float), np.asarray(coverage, dtype=float)
    if not ((coverage > 0) & (coverage <= 1)).all():
        raise CremaError(f"the coverages {', '.join(f'{c:g}' for c in coverage)} must lie above 0 and be at most 1")
    kept, rows = np.maximum(1, np.rint(coverage * len(wrong)).astype(int)), []
    for name, signal in {**signals, "ideal": wrong}.items():
        signal = np.asarray(signal, dtype=float)
        if signal.shape != wrong.shape or not np.isfinite(signal).all():
            raise CremaError(f"the signal {name} of shape {signal.shape} must be finite and fit {len(wrong)} recordings")
        risk = (wrong[np.argsort(signal, kind="stable")].cumsum() / np.arange(1, len(wrong) + 1))[kept - 1]
        rows.append(pd.DataFrame({"signal": name, "coverage": kept / len(wrong), "risk": risk, "kept": kept}))
    return pd.concat(rows, ignore_index=True)


# -- all of them -----------------------------------------------------------------------------------------------------------------------


def side_by_side(
    model, train, valid, away, patients, *, sizes=(50, 100, 200, 500), draws=5, measures=MEASURES, labels=None, least=FEW, times=10, seed=0
):
    """The remedies on the same recordings away, each with the labels that it needs.

    Every draw puts the patients in a new order. The first max(sizes) recordings are there to be labelled, m of them at a time; all remedies
    are judged on the recordings of the other patients, macro averages over labels.

    - "as it is": probabilities and thresholds of home.
    - "EM", "BBSE": probabilities adjusted to the estimated prevalence, from all recordings away and none of their labels. They go out from
      probabilities that `fit_platt` made right at home, as a temperature alone cannot do (Alexandari, Kundaje & Shrikumar 2020).
    - "thresholds": those of the best F1 on m recordings, for labels with ten positives or more there; probabilities of home.
    - "recalibrated": probabilities of `fit_platt` on m recordings.
    - "probe, home and away": a probe fitted on home and on m recordings that count `times` times each (ours).
    - "probe, away alone": a probe fitted on m recordings; a label that they cannot teach keeps its probabilities of home.
    - "all labels": the probe on home and on two thirds of all recordings away, for the last third, by patient; what labels can buy. The
      scores of three probes are ranked together, which costs AUROC where recordings are few.

    Where probabilities are new, thresholds are the `expected_thresholds` of all recordings away. The probes keep the strength that was
    chosen at home; on m recordings alone it is larger by (recordings at home) / m, so that the prior on the weights is the same.

    Args:
        model: `home.Model`. train, valid, away: (features, 0/1 targets of the labels of the model) of folds 1-8, of fold 9 and away.
        patients: (records away,). sizes: numbers m. measures: of `METRICS`. labels: bool (labels,) to ask for fewer.
        least: positives and negatives away that a label needs to be scored.

    Returns:
        DataFrame remedy, m (labelled recordings), draw, metric, value, labels, records (judged on).

    Raises:
        CremaError: sizes that leave less than half of the recordings to judge on, or no label with enough positives and negatives.
    """
    x, y, patients = np.asarray(away[0]), np.asarray(away[1]), np.asarray(patients)
    if not len(x) == len(y) == len(patients):
        raise CremaError(f"{len(x)} features, {len(y)} targets and {len(patients)} patients do not fit each other")
    if not sizes or min(sizes) < 1 or 2 * max(sizes) > len(y):
        raise CremaError(f"of {len(y)} recordings away at most {len(y) // 2} can be labelled, half must stay to judge on")
    known = np.minimum(y.sum(0), len(y) - y.sum(0)) >= max(least, 1)
    known &= learnable(train[1]) & learnable(valid[1]) & np.isfinite(model.thresholds) & (True if labels is None else np.asarray(labels))
    if not known.any():
        raise CremaError(f"no label has {least} positives and negatives away and can be taught at home: nothing can be compared")
    y, home, cuts = y[:, known], np.asarray(train[1])[:, known], model.thresholds[known]
    raw, at_home, told = model.scores(x)[:, known], model.scores(valid[0])[:, known], np.asarray(valid[1])[:, known]
    rate, right = told.mean(0), fit_platt(told, at_home)
    prevalences = {"EM": prevalence_em(right(raw), rate), "BBSE": prevalence_bbse(right(raw), right(at_home), told, rate)}
    adjusted = {remedy: adjust(right(raw), rate, prevalence) for remedy, prevalence in prevalences.items()}

    axes = PrincipalAxes.of(as_tensor(train[0]))[0].axes

    def refitted(rows):
        more = np.repeat(rows, times)
        both = np.concatenate([train[0], x[more]]), np.concatenate([home, y[more]])
        return LinearProbe().fit(*both, model.probe.strength, axes=axes, tolerance=1e-4).scores(x)

    def alone(rows):
        scores = LinearProbe().fit(x[rows], y[rows], model.probe.strength * len(home) / len(rows)).scores(x)
        return np.where(np.isnan(scores), raw, scores)

    every = np.empty_like(raw)
    for fitted, held in GroupKFold(3, shuffle=True, random_state=seed).split(x, groups=patients):
        every[held] = refitted(fitted)[held]
    free = {
        ("as it is", 0): (raw, cuts),
        **{(remedy, 0): (scores, None) for remedy, scores in adjusted.items()},
        ("all labels", len(y)): (every, None),
    }
    rows = []
    for draw in range(draws):
        order, test = _drawn(patients, max(sizes), np.random.default_rng([seed, draw]))
        found = dict(free)
        for m in sizes:
            some = order[:m]
            platt, chosen = fit_platt(y[some], raw[some]), choose(y[some], raw[some], range(y.shape[1]))
            found["thresholds", m] = raw, np.where(chosen["positives"] >= FEW, chosen["threshold"], cuts)
            found["recalibrated", m] = platt(raw), None
            found["probe, home and away", m] = refitted(some), None
            found["probe, away alone", m] = alone(some), None
        there = learnable(y[test])
        for (remedy, m), (scores, thresholds) in found.items():
            thresholds = expected_thresholds(scores) if thresholds is None else thresholds
            for metric in measures:
                asked = decide(scores[test], thresholds) if metric in DECIDED else scores[test]
                value, labels_scored = macro(METRICS[metric](y[test][:, there], asked[:, there]))
                rows.append((remedy, m, draw, metric, float(value), int(labels_scored), len(test)))
    return pd.DataFrame(rows, columns=["remedy", "m", "draw", "metric", "value", "labels", "records"])


def _drawn(patients, n, rng):
    """(n row numbers to label, patient by patient; row numbers of all other patients)."""
    people, who = np.unique(patients, return_inverse=True)
    order = np.argsort(rng.permutation(len(people))[who], kind="stable")
    return order[:n], np.flatnonzero(~np.isin(who, who[order[:n]]))


def over_draws(table):
    """Mean over the draws of a table of `side_by_side`, and how it differs from "as it is" on the same recordings.

    Returns:
        DataFrame remedy, m, metric, value, low, high, gain, gain_low, gain_high, labels, draws; low and high are the lowest and the highest
        draw. A gain is positive where the remedy helps.
    """
    base = table[table["remedy"] == "as it is"].set_index(["metric", "draw"])["value"]
    sign = np.where(table["metric"].isin(LESS_IS_BETTER), -1, 1)
    gain = sign * (table["value"].to_numpy() - base.loc[pd.MultiIndex.from_frame(table[["metric", "draw"]])].to_numpy())
    parts = table.assign(gain=gain).groupby(["remedy", "m", "metric"], sort=False)
    return parts.agg(
        value=("value", "mean"), low=("value", "min"), high=("value", "max"),
        gain=("gain", "mean"), gain_low=("gain", "min"), gain_high=("gain", "max"),
        labels=("labels", "min"), draws=("draw", "nunique"),
    ).reset_index()  # fmt: skip
