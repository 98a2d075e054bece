"""Predictors with and without a covariate under two shifts: tables, simulator, resampling, predictors, and who is robust to what."""

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import null_space
from scipy.special import logit
from scipy.stats import chisquare, multivariate_normal
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from crema_lib.errors import CremaError
from crema_lib.shift import covariates
from crema_lib.shift.covariates import (
    COVARIATE,
    OUTCOME,
    PREDICTORS,
    Predictor,
    association_shift,
    covariate_shift,
    on_features,
    optimal,
    resample,
    run,
    simulate,
    summarise,
)

# --- populations


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_a_covariate_shift_leaves_the_outcome_given_the_covariate(share):
    table = covariate_shift(share, rates=(0.3, 0.6))
    np.testing.assert_allclose(table.sum(1), (1 - share, share))
    np.testing.assert_allclose(table[:, 1] / table.sum(1), (0.3, 0.6))


@pytest.mark.parametrize("log_odds_ratio", [-10, -2, 0, 1e-9, 3, 10])
@pytest.mark.parametrize(("share", "prevalence"), [(0.5, 0.5), (0.2, 0.9), (0.95, 0.03)])
def test_an_association_shift_leaves_the_margins(log_odds_ratio, share, prevalence):
    table = association_shift(log_odds_ratio, share, prevalence)
    np.testing.assert_allclose(table.sum(1), (1 - share, share))
    np.testing.assert_allclose(table.sum(0), (1 - prevalence, prevalence))
    assert (table > 0).all()
    assert np.log(table[1, 1] * table[0, 0] / (table[0, 1] * table[1, 0])) == pytest.approx(log_odds_ratio, abs=1e-4)


def test_simulated_patients_follow_the_equations():
    table = association_shift(1.0, 0.3, 0.6)
    x, a, y = simulate(20000, table, seed=3)
    assert chisquare(np.bincount(2 * a + y), 20000 * table.ravel()).pvalue > 0.001
    rest = x - y[:, None] * OUTCOME - a[:, None] * COVARIATE
    for k in range(4):
        np.testing.assert_allclose(rest[2 * a + y == k].mean(0), 0, atol=0.06)
    np.testing.assert_allclose(np.cov(rest.T), np.eye(2), atol=0.05)
    np.testing.assert_array_equal(simulate(20000, table, seed=3)[0], x)
    assert (simulate(20000, table, seed=4)[0] != x).all()


def test_the_optimal_predictor_is_the_rule_of_bayes():
    table = covariate_shift(0.3)
    x, a, _ = simulate(50, table)
    joint = np.stack(
        [
            table[a, outcome] * [multivariate_normal(outcome * OUTCOME + k * COVARIATE).pdf(row) for row, k in zip(x, a, strict=True)]
            for outcome in (0, 1)
        ]
    )
    np.testing.assert_allclose(optimal(x, a, table), joint[1] / joint.sum(0))


def test_resampled_rows_have_the_association_of_the_table():
    rng = np.random.default_rng(0)
    covariate, target = rng.integers(0, 2, 3000), rng.integers(0, 2, 3000)
    table = association_shift(-3, 0.4, 0.5)
    rows = resample(covariate, target, table, seed=1)
    found = np.bincount(2 * covariate[rows] + target[rows], minlength=4)
    np.testing.assert_allclose(found, len(rows) * table.ravel(), atol=2)
    assert (np.diff(rows) > 0).all(), "ascending, none twice"
    available = np.bincount(2 * covariate + target)
    assert (found == available).any() and (found <= available).all(), "the scarcest cell is used up"
    assert (resample(covariate, target, table, seed=2) != rows).any()
    exact = resample([0, 0, 1, 1], [0, 1, 0, 1], np.full((2, 2), 0.25))
    np.testing.assert_array_equal(exact, range(4))


# --- predictors


def reference(x, a, y, z):
    """Probabilities of a practically unpenalised logistic regression on z."""
    return LogisticRegression(C=1e8, tol=1e-10, max_iter=10000).fit(z, y).predict_proba(z)[:, 1]


def correlated(n=1500):
    """Patients with five correlated features and a covariate in years."""
    x, a, y = simulate(n, association_shift(1.5), seed=5)
    rng = np.random.default_rng(0)
    mixed = np.c_[x, rng.normal(size=(n, 3))] @ rng.normal(size=(5, 5)) + 2
    return mixed, 60 + 10 * a + rng.normal(size=n), y


def test_predictors_equal_scikit_learn():
    x, a, y = correlated()
    centred = x - x.mean(0)
    within = np.concatenate([a[y == k] - a[y == k].mean() for k in (0, 1)])
    direction = np.concatenate([centred[y == k] for k in (0, 1)]).T @ within
    for kind, z in {
        "without covariate": x,
        "with covariate": np.c_[x, a],
        "invariant": x @ null_space(direction[None]),  # all scores w x with no covariance within an outcome: w . direction = 0
    }.items():
        scores = Predictor(kind, strength=1e-9).fit(x, a, y).scores(x, a)
        np.testing.assert_allclose(scores, reference(x, a, y, z), atol=2e-3, err_msg=kind)


def test_the_score_of_the_invariant_predictor_does_not_covary_with_the_covariate_given_the_outcome():
    x, a, y = correlated()

    def covariance(kind):
        score = logit(Predictor(kind).fit(x, a, y).scores(x, a))
        return abs(sum(np.cov(score[y == k], a[y == k])[0, 1] * ((y == k).sum() - 1) for k in (0, 1)) / len(y))

    assert covariance("invariant") < 1e-8 < 0.5 < covariance("without covariate")


def test_only_one_predictor_looks_at_the_covariate():
    x, a, y = correlated()
    for kind in PREDICTORS:
        predictor = Predictor(kind).fit(x, a, y)
        assert (predictor.scores(x, a) == predictor.scores(x, a + 5)).all() == (kind != "with covariate")


# --- who is robust


def wide(table, metric, seeds_too=False):
    """Values of a metric by test population and predictor."""
    table = table[table["metric"] == metric]
    return table.pivot(index=["test", "seed"] if seeds_too else "test", columns="predictor", values="value")


def test_with_other_patients_only_the_predictor_with_the_covariate_stays_near_the_optimum():
    found = summarise(run("covariate", 0.1, [0.1, 0.5, 0.9], n=2000, seeds=range(10)))
    excess = found[found["metric"] == "excess_risk"].set_index(["predictor", "test"])
    known = excess.loc["with covariate"]
    assert (known["value"].abs() < 0.005).all() and (known["high"] < 0.01).all(), "flat, and at the optimum"
    for kind in ("without covariate", "invariant"):
        other = excess.loc[kind]
        assert (other["low"] > known["high"]).all()
        assert other["low"][0.5] > other["high"][0.1] and other["low"][0.9] > other["high"][0.5], kind
    ranking = wide(found, "auroc")["invariant"]
    assert ranking.max() - ranking.min() < 0.02, "it still ranks as well: its probabilities are wrong"
    assert (wide(found, "auroc")["with covariate"] > ranking).all()


def test_with_another_association_only_the_invariant_predictor_stays_as_it_is():
    found = summarise(run("association", 2, [2, 0, -2], n=2000, seeds=range(10)))
    loss = found[found["metric"] == "log_loss"].set_index(["predictor", "test"])
    invariant, known = loss.loc["invariant"], loss.loc["with covariate"]
    assert invariant["value"].max() - invariant["value"].min() < 0.02
    assert known["high"][2] < invariant["low"][2], "better where the association holds"
    assert known["low"][-2] > invariant["high"][-2], "worse where it is turned"
    assert known["low"][-2] > loss.loc["without covariate"]["high"][-2]


def test_a_run_is_tidy_and_scores_as_scikit_learn():
    table = run("covariate", 0.3, [0.3, 0.6], n=500, seeds=[7])
    assert list(table) == ["shift", "train", "test", "seed", "records", "predictor", "metric", "value"]
    assert len(table) == 2 * 3 * 4 and not table["value"].isna().any()
    pd.testing.assert_frame_equal(table, run("covariate", 0.3, [0.3, 0.6], n=500, seeds=[7]))
    streams = np.random.SeedSequence(7).spawn(3)
    predictor = Predictor("with covariate", 1e-4).fit(*simulate(500, covariate_shift(0.3), streams[0]))
    x, a, y = simulate(500, covariate_shift(0.6), streams[2])
    p = predictor.scores(x, a)
    found = table[(table["test"] == 0.6) & (table["predictor"] == "with covariate")].set_index("metric")["value"]
    assert found["log_loss"] == pytest.approx(sklearn_log_loss(y, p))
    assert found["auroc"] == pytest.approx(roc_auc_score(y, p))
    assert found["accuracy"] == accuracy_score(y, p > 0.5)
    assert found["excess_risk"] == pytest.approx(found["log_loss"] - sklearn_log_loss(y, optimal(x, a, covariate_shift(0.6))))


def test_the_summary_is_mean_and_percentiles_over_seeds():
    table = run("association", 1, [0], n=200, seeds=range(5))
    found = summarise(table)
    assert len(found) == 3 * 4
    part = table[(table["predictor"] == "invariant") & (table["metric"] == "auroc")]["value"]
    row = found[(found["predictor"] == "invariant") & (found["metric"] == "auroc")].iloc[0]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((part.mean(), *np.quantile(part, (0.025, 0.975))))


# --- features


def recordings(people=3000):
    """Two recordings of each of so many people, a standardised age, eight features; train and test rows."""
    x, old, y = simulate(people, association_shift(2.5, 0.4, 0.4), seed=11)
    rng = np.random.default_rng(1)
    person = np.repeat(np.arange(people), 2)
    features = np.c_[x[person], rng.normal(size=(2 * people, 6))] @ rng.normal(size=(8, 8))
    train = person < people // 2
    age = old[person] * 2 - 1 + 0.1 * rng.normal(size=people)[person]
    return features, age, y[person], np.flatnonzero(train), np.flatnonzero(~train), person


def test_features_keep_the_order_of_the_simulation():
    *data, patients = recordings()
    table = on_features(*data, "covariate", 0.1, [0.1, 0.9], patients=patients, cut=0, seeds=range(8))
    loss = wide(table, "log_loss", seeds_too=True)
    for kind in ("without covariate", "invariant"):
        gap = loss[kind] - loss["with covariate"]
        assert (gap[0.9] > 0).all() and gap[0.9].min() > gap[0.1].max()
    table = on_features(*data, "association", 2, [2, -2], patients=patients, cut=0, seeds=range(8))
    gap = wide(table, "log_loss", seeds_too=True).pipe(lambda loss: loss["invariant"] - loss["with covariate"])
    assert (gap[2] > 0).all() and (gap[-2] < 0).all()
    assert set(table["metric"]) == {"log_loss", "auroc", "accuracy"} and table["records"].between(200, 3000).all()


@pytest.mark.parametrize("shift", ["covariate", "association"])
def test_populations_are_those_named_and_sides_stay_apart(shift, monkeypatch):
    features, age, y, train, test, patients = recordings()
    features[:, 0] = np.arange(len(features))
    calls = []

    class Spy(Predictor):
        def fit(self, x, a, y):
            calls.append((x[:, 0].astype(int), a, y))
            return super().fit(x, a, y)

        def scores(self, x, a):
            calls.append((x[:, 0].astype(int), a, None))
            return super().scores(x, a)

    monkeypatch.setattr(covariates, "Predictor", Spy)
    on_features(features, age, y, train, test, shift, 0.3, [0.6], patients=patients, seeds=[0])
    fits, scored = calls[:3], calls[3:]
    old = age > np.median(age[train])
    assert all(np.isin(rows, train).all() for rows, *_ in fits) and all(np.isin(rows, test).all() for rows, *_ in scored)
    for at, (rows, a, _) in ((0.3, fits[0]), (0.6, scored[0])):
        np.testing.assert_array_equal(a, age[rows])
        drawn = np.bincount(2 * old[rows] + y[rows], minlength=4).reshape(2, 2) / len(rows)
        rates = [y[train][old[train] == k].mean() for k in (0, 1)]
        expected = covariate_shift(at, rates) if shift == "covariate" else association_shift(at, old[train].mean(), y[train].mean())
        np.testing.assert_allclose(drawn, expected, atol=0.01)
    people, counts = np.unique(patients[fits[0][0]], return_counts=True)
    assert len(people) < 0.75 * len(np.unique(patients[train])) and counts.max() > 2, "people are drawn with replacement"


def test_a_drawn_patient_brings_all_rows_along():
    features, age, y, train, test, _ = recordings(1000)
    one = np.isin(np.arange(2000), test)  # a single patient on each side: every draw is the same rows
    same, varied = (
        on_features(features, age, y, train, test, "covariate", 0.3, [0.6], patients=patients, seeds=range(4))["records"].nunique()
        for patients in (one, None)
    )
    assert same == 1 < varied


def test_a_covariate_of_0_and_1_is_cut_between_them():
    features, age, y, train, test, patients = recordings(1000)
    sex = (age > 0).astype(int)
    one = on_features(features, sex, y, train, test, "covariate", 0.3, [0.6], patients=patients, seeds=[0])
    other = on_features(features, sex, y, train, test, "covariate", 0.3, [0.6], patients=patients, seeds=[0], cut=0.5)
    pd.testing.assert_frame_equal(one, other)
    assert on_features(features, sex, y, train, test, "covariate", 0.3, [0.6], seeds=[0])["value"].notna().all(), "every row a patient"


# --- mistakes


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: covariate_shift(1), "share of the covariate of 1 is outside"),
        (lambda: covariate_shift(0.5, (0, 0.5)), "rate of the outcome of 0 is outside"),
        (lambda: association_shift(1, share=0), "share of the covariate of 0 is outside"),
        (lambda: association_shift(1, prevalence=float("nan")), "prevalence of the outcome of nan is outside"),
        (lambda: association_shift(float("nan")), "log odds ratio of nan is outside -10 to 10"),
        (lambda: simulate(0, covariate_shift(0.5)), "0 patients cannot be simulated"),
        (lambda: simulate(5, np.full((2, 2), 0.5)), "four positive numbers .* of sum 1"),
        (lambda: resample([0, 1], [0, 1], [0.5, 0.5]), "four positive numbers"),
        (lambda: resample([0, 1], [0, 1, 1], covariate_shift(0.5)), r"covariate \(2,\) and target \(3,\) must have one shape"),
        (lambda: resample([0, 2], [0, 1], covariate_shift(0.5)), "the covariate holds values other than 0 and 1"),
        (lambda: resample([0, 1], [0, np.nan], covariate_shift(0.5)), "the target holds values other than 0 and 1"),
        (lambda: resample([0, 0, 1], [0, 1, 1], covariate_shift(0.5)), r"covariate 1 and target 0: of 3 records \[1, 1, 0, 1\]"),
        (lambda: Predictor("causal"), "unknown predictor 'causal': known are without"),
        (lambda: run("prior", 0.1, [0.2]), "unknown shift 'prior': known are covariate, association"),
        (lambda: run("covariate", 0.1, []), "no test population"),
        (lambda: run("covariate", 0.1, [0.2], seeds=[]), "no seed"),
        (lambda: run("association", 0, [25]), "log odds ratio of 25"),
        (lambda: run("covariate", 0.5, [0.5], n=1), "no label has both a positive and a negative among the training"),
    ],
)
def test_mistakes_are_named(call, sentence):
    with pytest.raises(CremaError, match=sentence):
        call()


def test_a_simulated_test_set_of_one_outcome_is_named(monkeypatch):
    first = iter([simulate])
    monkeypatch.setattr(covariates, "simulate", lambda *args: next(first, lambda n, *_: (np.zeros((n, 2)), *np.zeros((2, n), int)))(*args))
    with pytest.raises(CremaError, match=r"all 50 simulated patients at 0\.5 have one outcome"):
        run("covariate", 0.5, [0.5], n=50, seeds=[0])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"features": np.zeros(2000)}, r"features \(2000,\), covariate .* do not fit"),
        ({"covariate": np.zeros(5)}, r"covariate \(5,\), .* do not fit"),
        ({"train_rows": []}, "no training row"),
        ({"test_rows": []}, "no test row"),
        ({"covariate": np.full(2000, np.nan)}, "1000 training rows have no covariate"),
        ({"target": np.full(2000, np.nan)}, "targets of the training rows hold values other than 0 and 1"),
        ({"features": np.full((2000, 2), np.inf)}, "1000 of the training records have features that are NaN"),
        ({"test_rows": [0, 1500]}, "1 patients are in training and test, the first is 0"),
        ({"cut": 99}, "no training row is in group 1 when the covariate is cut at 99"),
        ({"target": np.ones(2000)}, "rate of the outcome of 1.0 is outside"),
        ({"test_rows": [1999]}, "too few records have covariate"),
        ({"shift": "prior"}, "unknown shift 'prior'"),
        ({"tests": []}, "no test population"),
        ({"seeds": []}, "no seed"),
    ],
)
def test_mistakes_with_features_are_named(change, sentence):
    names = ("features", "covariate", "target", "train_rows", "test_rows", "patients")
    given = {**dict(zip(names, recordings(1000), strict=True)), "shift": "covariate", "train": 0.3, "tests": [0.6], "seeds": [0], **change}
    with pytest.raises(CremaError, match=sentence):
        on_features(**given)
