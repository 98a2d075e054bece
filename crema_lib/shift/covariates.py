"""Should a predictor know the patient's age or sex? It depends on what changes between training and use.

A covariate A (age, sex) has an effect on the outcome Y, and both have an effect on the recording X:  A -> Y,  A -> X,  Y -> X. Blaas,
Miller, Zappella, Jacobsen & Heinze-Deml ("Considerations for Distribution Shift Robustness in Health", ICLR 2023 workshop on
Trustworthy Machine Learning for Healthcare; longer as arXiv 2410.19575) say: where the covariate's association with the outcome is
causal, neither a predictor f(X) nor one that is made independent of the covariate is robust, and f(X, A) is. What their simulation shifts
is taken from an independent reproduction (github.com/tmehari/considerations_distribution_shifts). Two shifts of the table P(A, Y) are
here, for simulated data (`run`) and for features of real recordings (`on_features`); P(X | A, Y) stays as it is in both:

- "covariate": P(A) changes, P(Y | A) stays. It is the paper's setting: other patients, the same disease. P(Y | X, A) stays as it is, so
  f(X, A) goes on being right; P(Y | X) and the prevalence P(Y) change.
- "association": the margins P(A) and P(Y) stay, P(Y | A) changes. It is the opposite case, and ours: the association is one of selection,
  f(X, A) relies on it more than the others do, and a score that is independent of A given Y is the robust one (Veitch, D'Amour, Yadlowsky
  & Eisenstein 2021, arXiv 2106.00545, on the direction Y -> X).

In the first shift, robust means that the log loss stays at that of the Bayes-optimal predictor of each population (`optimal`); in the
second, that it stays what it was. The AUROC of the invariant predictor moves in neither: where it fails, its probabilities are wrong, not
its ranking.
"""

from functools import partial

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from ..errors import CremaError
from ..metrics import auroc, interval, log_loss, patient_counts
from ..probes.linear import LinearProbe, check_finite

PREDICTORS = ("without covariate", "with covariate", "invariant")
RATES = (0.2, 0.9)  # P(Y = 1 | A = 0) and P(Y = 1 | A = 1), those of the reproduction
OUTCOME, COVARIATE = np.array([1.0, 1.0]), np.array([0.0, 1.0])  # what Y and A add to the mean of X: ours


def covariate_shift(share, rates=RATES):
    """P(A, Y) for a share P(A = 1) of patients with the covariate, at fixed P(Y = 1 | A).

    Args:
        share: 0 < share < 1. rates: P(Y = 1 | A = 0) and P(Y = 1 | A = 1), within 0 to 1.

    Returns:
        float (2, 2), a row for each value of the covariate and a column for each of the outcome; its sum is 1.

    Raises:
        CremaError: out of range.
    """
    _within("share of the covariate", share)
    for rate in rates:
        _within("rate of the outcome", rate)
    return np.array([1 - share, share])[:, None] * np.array([[1 - rate, rate] for rate in rates])


def association_shift(log_odds_ratio, share=0.5, prevalence=0.5):
    """P(A, Y) with an association of covariate and outcome, at fixed margins P(A = 1) = share and P(Y = 1) = prevalence.

    The cell P(A = 1, Y = 1) solves the quadratic equation of the odds ratio (Plackett 1965).

    Args:
        log_odds_ratio: natural logarithm of the odds ratio; 0 is independence, its sign that of the association.

    Returns:
        float (2, 2), see `covariate_shift`.

    Raises:
        CremaError: out of range.
    """
    _within("share of the covariate", share)
    _within("prevalence of the outcome", prevalence)
    if not abs(log_odds_ratio) <= 10:
        raise CremaError(f"a log odds ratio of {log_odds_ratio} is outside -10 to 10")
    ratio = np.exp(log_odds_ratio)
    b = 1 + (share + prevalence) * (ratio - 1)
    both = 2 * ratio * share * prevalence / (b + np.sqrt(b**2 - 4 * ratio * (ratio - 1) * share * prevalence))
    return np.array([[1 - share - prevalence + both, prevalence - both], [share - both, both]])


def _within(name, value):
    if not 0 < value < 1:
        raise CremaError(f"a {name} of {value} is outside 0 < value < 1")


def _check_table(table):
    table = np.asarray(table, dtype=float)
    if table.shape != (2, 2) or not (table > 0).all() or not np.isclose(table.sum(), 1):
        raise CremaError("a table P(covariate, target) is four positive numbers (2, 2) of sum 1: see covariate_shift and association_shift")
    return table


def _tables(shift, train, tests, **fixed):
    """P(A, Y) of training and of each test population: (table, list of tables)."""
    shifts = {"covariate": covariate_shift, "association": association_shift}
    if shift not in shifts:
        raise CremaError(f"unknown shift {shift!r}: known are {', '.join(shifts)}")
    if not len(tests):
        raise CremaError("no test population is given: name at least one value to test at")
    table = partial(shifts[shift], **fixed)
    return table(train), [table(at) for at in tests]


def simulate(n, table, seed=0):
    """Patients of the structural model:  (A, Y) ~ table,  X | A, Y ~ N(Y u + A v, identity),  u = (1, 1), v = (0, 1).

    The first feature speaks of the outcome alone, the second of outcome and covariate. The paper's X is Gaussian given (A, Y) too; the
    two dimensions and the means are ours.

    Args:
        n: patients. table: float (2, 2), P(A, Y), see `covariate_shift`.

    Returns:
        (x, a, y): float (n, 2), int (n,) of 0/1, int (n,) of 0/1.

    Raises:
        CremaError: n below 1, or no table of probabilities.
    """
    if n < 1:
        raise CremaError(f"{n} patients cannot be simulated: give at least one")
    rng = np.random.default_rng(seed)
    a, y = np.divmod(rng.choice(4, size=n, p=_check_table(table).ravel()), 2)
    return rng.normal(size=(n, 2)) + y[:, None] * OUTCOME + a[:, None] * COVARIATE, a, y


def optimal(x, a, table):
    """P(Y = 1 | X, A) in the population of a table, for patients of `simulate`: the Bayes-optimal predictor, float (n,)."""
    rates = table[:, 1] / table.sum(1)
    return expit(logit(rates)[a] + x @ OUTCOME - OUTCOME @ OUTCOME / 2 - a * (OUTCOME @ COVARIATE))


def resample(covariate, target, table, seed=0):
    """Rows of real recordings drawn without replacement such that covariate and target have the association of a table.

    As many rows as the scarcest cell allows: each cell has its share of them, rounded down.

    Args:
        covariate: 0/1 (records,). target: 0/1 (records,). table: float (2, 2), P(covariate, target), see `covariate_shift`.

    Returns:
        int row numbers, ascending.

    Raises:
        CremaError: values other than 0 and 1, no table of probabilities, or too few rows for a cell of the table.
    """
    covariate, target = np.asarray(covariate), np.asarray(target)
    if covariate.shape != target.shape or covariate.ndim != 1:
        raise CremaError(f"covariate {covariate.shape} and target {target.shape} must have one shape (records,)")
    for name, values in (("covariate", covariate), ("target", target)):
        if not np.isin(values, (0, 1)).all():
            raise CremaError(f"the {name} holds values other than 0 and 1: leave out the records where it is unknown, bin what is no 0/1")
    cell, shares = (2 * covariate + target).astype(int), _check_table(table).ravel()
    available = np.bincount(cell, minlength=4)
    size = np.floor((available / shares).min() * shares + 1e-9).astype(int)
    if not size.all():
        a, y = divmod(int((available / shares).argmin()), 2)
        raise CremaError(
            f"too few records have covariate {a} and target {y}: of {len(cell)} records {available.tolist()} are in the cells "
            "(0, 0), (0, 1), (1, 0), (1, 1); take more records or a weaker shift"
        )
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.choice(np.flatnonzero(cell == k), size[k], replace=False) for k in range(4)]))


class Predictor:
    """A logistic regression (`probes.linear.LinearProbe`) that does or does not know the covariate.

    - "without covariate": on X.
    - "with covariate": on X and A side by side.
    - "invariant": on X with one direction taken out, the covariance of X with A among records of equal outcome (pooled over the outcomes).
      No linear score of what is left then covaries with A given Y in the training records: linear concept erasure (Ravfogel et al. 2020,
      Belrose et al. 2023) given the outcome, in place of the penalties of the literature. What is not linear in X stays.

    Args:
        kind: one of `PREDICTORS`. strength: of the penalty on the weights, see `LinearProbe`; the same for all kinds.
    """

    def __init__(self, kind, strength=1e-3):
        if kind not in PREDICTORS:
            raise CremaError(f"unknown predictor {kind!r}: known are {', '.join(PREDICTORS)}")
        self.kind, self.strength = kind, strength

    def fit(self, x, a, y):
        """x float (records, features), a (records,) 0/1 or standardised, y 0/1 (records,)."""
        x, a, y = np.asarray(x, dtype=float), np.asarray(a, dtype=float), np.asarray(y, dtype=int)
        self.mean, self.deviation = x.mean(0), np.maximum(x.std(0), 1e-6)
        within = a - (np.bincount(y, a) / np.maximum(np.bincount(y), 1))[y]  # A less its mean among records of the same outcome
        direction = ((x - self.mean) / self.deviation).T @ within
        self.direction = direction / max(np.linalg.norm(direction), np.finfo(float).tiny)
        self.probe = LinearProbe().fit(self._design(x, a), y[:, None], self.strength)
        return self

    def _design(self, x, a):
        x = (np.asarray(x, dtype=float) - self.mean) / self.deviation
        if self.kind == "invariant":
            return x - (x @ self.direction)[:, None] * self.direction
        return np.column_stack([x, a]) if self.kind == "with covariate" else x

    def scores(self, x, a):
        """P(Y = 1) for each record, float (records,); only "with covariate" looks at a."""
        return self.probe.scores(self._design(x, a))[:, 0]


def _metrics(y, p):
    """Scores of probabilities p (records,) for outcomes y (records,)."""
    y, p = np.asarray(y)[:, None], p[:, None]
    return {"log_loss": log_loss(y, p)[0], "auroc": auroc(y, p)[0], "accuracy": float(((p > 0.5) == y).mean())}


def _check_seeds(seeds):
    if not len(seeds):
        raise CremaError("no seed is given: name at least one")


def run(shift, train, tests, *, n=4000, seeds=range(20), strength=1e-4):
    """Train the three predictors on one simulated population and score them on others.

    Args:
        shift: "covariate" or "association". train, tests: what the populations differ in, one value and several: the share P(A = 1) with
            "covariate", the log odds ratio of A and Y with "association". n: patients to train on, and as many to test on.
        seeds: one repetition each, with patients of its own. strength: see `Predictor`.

    Returns:
        DataFrame shift, train, test, seed, records (tested), predictor, metric, value. Metrics: log_loss (nats), auroc, accuracy, and
        excess_risk: the log loss less that of `optimal` in the test population on the same patients.

    Raises:
        CremaError: an unknown shift, a value out of range, no test value, no seed, or so few patients that an outcome is missing.
    """
    _check_seeds(seeds)
    source, targets = _tables(shift, train, tests)
    rows = []
    for seed in seeds:
        streams = np.random.SeedSequence(seed).spawn(1 + len(tests))
        data = simulate(n, source, streams[0])
        fitted = {kind: Predictor(kind, strength).fit(*data) for kind in PREDICTORS}
        for at, table, stream in zip(tests, targets, streams[1:], strict=True):
            x, a, y = simulate(n, table, stream)
            if y.min() == y.max():
                raise CremaError(f"all {n} simulated patients at {at} have one outcome: take more patients")
            best = _metrics(y, optimal(x, a, table))["log_loss"]
            for kind, predictor in fitted.items():
                found = _metrics(y, predictor.scores(x, a))
                found["excess_risk"] = found["log_loss"] - best
                rows += [(shift, train, at, seed, n, kind, metric, value) for metric, value in found.items()]
    return _tidy(rows)


def _tidy(rows):
    return pd.DataFrame(rows, columns=["shift", "train", "test", "seed", "records", "predictor", "metric", "value"])


def on_features(
    features, covariate, target, train_rows, test_rows, shift, train, tests, *, patients=None, cut=None, seeds=range(20), strength=1e-3
):
    """The three predictors on features of real recordings and a real covariate; `resample` makes the populations.

    The covariate is cut in two for the populations; "with covariate" gets it uncut. What stays fixed in a shift (P(Y | A), or the margins)
    is that of the training rows. Each seed draws patients with replacement, of the training and of the test rows, before it resamples: the
    spread over seeds is a patient-level bootstrap of training and testing.

    Args:
        features: float (records, features). covariate: float (records,), 0/1 or standardised, known for every row used. target: 0/1
            (records,). train_rows, test_rows: row numbers without a patient in common. shift, train, tests: see `run`.
        patients: (records,), or None if every row is a patient. cut: the covariate is 1 above it; None for .5 where the covariate is 0/1
            and for the median of the training rows elsewhere. strength: see `Predictor`.

    Returns:
        DataFrame as that of `run`, without excess_risk: the optimal predictor is not known.

    Raises:
        CremaError: shapes that do not fit, a covariate or feature that is NaN, a target other than 0 and 1, a patient in training and test,
            a group without a record, a shift that the records do not allow, or what `run` refuses.
    """
    _check_seeds(seeds)
    features, covariate, target = np.asarray(features), np.asarray(covariate, dtype=float), np.asarray(target)
    patients = np.arange(len(features)) if patients is None else np.asarray(patients)
    if features.ndim != 2 or any(part.shape != (len(features),) for part in (covariate, target, patients)):
        raise CremaError(
            f"features {features.shape}, covariate {covariate.shape}, target {target.shape} and patients {patients.shape} do not fit: "
            "give (records, features) and (records,)"
        )
    sides = {"training": np.asarray(train_rows, dtype=int), "test": np.asarray(test_rows, dtype=int)}
    for name, rows in sides.items():
        if not len(rows):
            raise CremaError(f"no {name} row is given")
        if not np.isfinite(covariate[rows]).all():
            raise CremaError(f"{int((~np.isfinite(covariate[rows])).sum())} {name} rows have no covariate: leave them out")
        if not np.isin(target[rows], (0, 1)).all():
            raise CremaError(f"targets of the {name} rows hold values other than 0 and 1: leave out the rows without the label")
        check_finite(features[rows], name)
    if len(both := np.intersect1d(patients[sides["training"]], patients[sides["test"]])):
        raise CremaError(f"{len(both)} patients are in training and test, the first is {both[0]}: split by patient")
    known = covariate[sides["training"]]
    cut = (0.5 if np.isin(known, (0, 1)).all() else float(np.median(known))) if cut is None else cut
    group, learned = (covariate > cut).astype(int), target[sides["training"]]
    for value in (0, 1):
        if not (group[sides["training"]] == value).any():
            raise CremaError(f"no training row is in group {value} when the covariate is cut at {cut:g}: choose another cut")
    if shift == "association":
        fixed = {"share": group[sides["training"]].mean(), "prevalence": learned.mean()}
    else:
        fixed = {"rates": tuple(learned[group[sides["training"]] == value].mean() for value in (0, 1))}
    source, targets = _tables(shift, train, tests, **fixed)
    rows = []
    for seed in seeds:
        streams = np.random.SeedSequence(seed).spawn(3 + len(tests))
        drawn = [
            np.repeat(side, patient_counts(patients[side], 1, stream)[0]) for side, stream in zip(sides.values(), streams[:2], strict=True)
        ]
        used = drawn[0][resample(group[drawn[0]], target[drawn[0]], source, streams[2])]
        fitted = {kind: Predictor(kind, strength).fit(features[used], covariate[used], target[used]) for kind in PREDICTORS}
        for at, table, stream in zip(tests, targets, streams[3:], strict=True):
            used = drawn[1][resample(group[drawn[1]], target[drawn[1]], table, stream)]
            for kind, predictor in fitted.items():
                found = _metrics(target[used], predictor.scores(features[used], covariate[used]))
                rows += [(shift, train, at, seed, len(used), kind, metric, value) for metric, value in found.items()]
    return _tidy(rows)


def summarise(table):
    """Mean over the seeds, with the middle 95 % of them.

    Args:
        table: DataFrame of `run` (then low and high say where one study of that size lands) or of `on_features` (then they are the
            percentile interval of its bootstrap).

    Returns:
        DataFrame shift, train, test, predictor, metric, value, low, high.
    """
    keys = ["shift", "train", "test", "predictor", "metric"]
    rows = []
    for key, part in table.groupby(keys, sort=False):
        found = interval(part["value"].mean(), part["value"])
        rows.append((*key, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=[*keys, "value", "low", "high"])
