"""What helps away from home, on simulated shifts whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from crema_lib import metrics
from crema_lib.errors import CremaError
from crema_lib.metrics.calibration import fit_temperature
from crema_lib.metrics.thresholds import choose
from crema_lib.probes.linear import fit_probe
from crema_lib.shift import remedies
from crema_lib.shift.home import Model

HOME, AWAY = np.array([0.3, 0.1]), np.array([0.6, 0.04])


def drawn(prevalences, n=6000, features=6, seed=0, turn=0.0):
    """Features, labels and patients: each label moves features of its own; `turn` moves a label's effect to another feature."""
    rng = np.random.default_rng(seed)
    y = (rng.random((n, len(prevalences))) < prevalences).astype(float)
    effect = np.zeros((len(prevalences), features))
    effect[:, : len(prevalences)] = 1.5 * (1 - turn) * np.eye(len(prevalences))
    effect[:, len(prevalences) : 2 * len(prevalences)] = 1.5 * turn * np.eye(len(prevalences))
    return (y @ effect + rng.normal(size=(n, features))).astype(np.float32), y, np.arange(n) // 2


def known(x, prevalences):
    """The true probabilities of `drawn` without a turn."""
    return expit(1.5 * x[:, : len(prevalences)] - 1.5**2 / 2 + logit(prevalences))


@pytest.fixture(scope="module")
def at_home():
    train, valid = (drawn(HOME, n, seed=seed)[:2] for n, seed in ((4000, 1), (1000, 2)))
    probe, _ = fit_probe(train, valid, (1e-3,))
    temperature = fit_temperature(valid[1], probe.scores(valid[0]))
    cuts = choose(valid[1], temperature(probe.scores(valid[0])), "ab")["threshold"].to_numpy()
    return Model("model", None, "mean", ("a", "b"), probe, temperature, cuts), train, valid


# -- Platt


def logistic(scores, y):
    """Slope and intercept by scikit-learn, with Platt's targets: every recording is there twice, weighted."""
    z, n1, n0 = logit(scores).reshape(-1, 1), y.sum(), (1 - y).sum()
    aims = np.where(y.ravel() == 1, (n1 + 1) / (n1 + 2), 1 / (n0 + 2))
    fitted = LogisticRegression(C=np.inf, tol=1e-10)
    fitted.fit(np.r_[z, z], np.r_[np.ones(len(z)), np.zeros(len(z))], sample_weight=np.r_[aims, 1 - aims])
    return pytest.approx((fitted.coef_[0, 0], fitted.intercept_[0]), abs=1e-3)


def test_platt_scaling_is_logistic_regression_on_the_logit():
    x, y, _ = drawn(AWAY)
    scores = known(x, HOME)
    platt = remedies.fit_platt(y, scores)
    for i in range(2):
        assert (platt.slope[i], platt.bias[i]) == logistic(scores[:, i], y[:, i])
    np.testing.assert_allclose(platt.bias, logit(AWAY) - logit(HOME), atol=0.2)
    np.testing.assert_allclose(platt(scores), expit(platt.slope * logit(scores) + platt.bias), atol=1e-6)
    assert platt.own.all()


def test_rare_labels_share_slope_and_bias():
    x, y, _ = drawn(AWAY, 100)
    scores, y = known(x, HOME), np.c_[y[:, 0], np.arange(100) < 3]
    platt = remedies.fit_platt(y, scores)
    assert platt.own.tolist() == [True, False] and platt.positives[1] == 3
    assert (platt.slope[1], platt.bias[1]) == logistic(scores, y)


def test_the_slope_never_turns_the_order_round():
    rng = np.random.default_rng(0)
    scores = rng.random((200, 1))
    platt = remedies.fit_platt((rng.random((200, 1)) > scores).astype(float), scores)
    assert platt.slope[0] == pytest.approx(0.05)
    apart = np.where(np.arange(200) < 20, 0.9, 0.1)[:, None]
    found = remedies.fit_platt((apart > 0.5).astype(float), apart)(apart)
    assert found[[0, -1], 0] == pytest.approx((21 / 22, 1 / 182), abs=1e-3), "labels that lie apart leave probabilities"


# -- label shift


def em(scores, home, steps=5000):
    """EM as in the paper, step by step."""
    q = home.copy()
    for _ in range(steps):
        up, down = scores * q / home, (1 - scores) * (1 - q) / (1 - home)
        q = (up / (up + down)).mean(0)
    return q


def test_the_maximum_is_where_em_arrives():
    scores = known(drawn(AWAY, 800)[0], HOME)
    np.testing.assert_allclose(remedies.prevalence_em(scores, HOME), em(scores, HOME), atol=1e-5)


def test_both_estimates_find_the_prevalence():
    x, y, _ = drawn(AWAY, 20000, seed=3)
    valid_x, valid_y, _ = drawn(HOME, 20000, seed=4)
    scores, valid = known(x, HOME), known(valid_x, HOME)
    truth = y.mean(0)
    np.testing.assert_allclose(remedies.prevalence_em(scores, HOME), truth, atol=0.015)
    np.testing.assert_allclose(remedies.prevalence_bbse(scores, valid, valid_y, HOME), truth, atol=0.015)
    decided, decided_home = scores > 0.3, valid > 0.3
    found = remedies.prevalence_bbse(decided, decided_home, valid_y, HOME)
    np.testing.assert_allclose(found, truth, atol=0.015)
    # the confusion matrix of the paper, label by label: C w = mean of decisions away, away prevalence = home prevalence times w
    for i in range(2):
        table = np.array([[np.mean((decided_home[:, i] == d) & (valid_y[:, i] == c)) for c in (0, 1)] for d in (0, 1)])
        weights = np.linalg.solve(table, [np.mean(decided[:, i] == d) for d in (0, 1)])
        assert found[i] == pytest.approx(valid_y[:, i].mean() * weights[1])
    naive = scores.mean(0)
    assert (np.abs(naive - truth) > 0.02).all(), "the mean probability is no estimate: it is pulled to home"


def test_adjusted_probabilities_are_those_of_bayes():
    x, y, _ = drawn(AWAY)
    scores = known(x, HOME)
    adjusted = remedies.adjust(scores, HOME, AWAY)
    up, down = scores * AWAY / HOME, (1 - scores) * (1 - AWAY) / (1 - HOME)
    np.testing.assert_allclose(adjusted, up / (up + down), atol=1e-6)
    np.testing.assert_allclose(adjusted, known(x, AWAY), atol=1e-5)
    assert (metrics.log_loss(y, adjusted) < metrics.log_loss(y, scores)).all()


def test_estimates_stay_inside_and_silent_outputs_stay_at_home():
    rare = np.full((50, 1), 1e-6)
    assert remedies.prevalence_em(rare, [0.3]) == pytest.approx(0.01, abs=1e-4)
    valid, targets = np.array([[0.2, 0.3, 0.9], [0.8, 0.3, 0.1]] * 5), np.array([[0, 0, 0], [1, 1, 1]] * 5)
    away = np.tile([0.9, 0.9, 0.9], (50, 1))
    np.testing.assert_allclose(remedies.prevalence_bbse(away, valid, targets, [0.5, 0.4, 0.3]), [0.99, 0.4, 0.3])
    assert remedies.prevalence_bbse(away[:, :1], valid[:, :1], 0 * targets[:, :1], [0.2]) == pytest.approx(0.2)


def test_thresholds_of_the_highest_expected_f1_need_no_label():
    x, y, _ = drawn(AWAY, 20000, seed=9)
    scores = known(x, AWAY)
    cuts = remedies.expected_thresholds(scores)
    best = choose(y, scores, "ab")
    np.testing.assert_allclose(metrics.f1(y, scores >= cuts), best["reached"], atol=0.01)
    f1 = lambda cut: 2 * scores[scores[:, 0] >= cut, 0].sum() / ((scores[:, 0] >= cut).sum() + scores[:, 0].sum())  # noqa: E731
    assert f1(cuts[0]) == pytest.approx(max(map(f1, np.linspace(0.01, 0.99, 99))), abs=1e-3)


# -- abstention


def test_risk_is_the_share_of_mistakes_among_what_is_kept():
    rng = np.random.default_rng(0)
    wrong, good = rng.random(200) < 0.3, rng.random(200)
    told = wrong + 0.3 * rng.normal(size=200)
    table = remedies.risk_coverage(wrong, {"told": told, "chance": good}, (0.25, 0.5, 1.0)).set_index(["signal", "coverage"])
    assert table.loc[("told", 0.5), "risk"] == pytest.approx(wrong[told <= np.sort(told)[99]].mean())
    assert table.loc[("told", 0.5), "risk"] < 0.1 < 0.2 < table.loc[("chance", 0.5), "risk"]
    assert (table.xs(1.0, level="coverage")["risk"] == wrong.mean()).all()
    assert table.loc[("ideal", 0.5), "risk"] == 0 and table.loc[("ideal", 0.25), "kept"] == 50
    assert len(remedies.risk_coverage(wrong, {})) == len(remedies.COVERAGE)


def test_risk_may_be_a_share_of_labels():
    table = remedies.risk_coverage([0.5, 0.25, 0, 0.25], {"backwards": [0, 1, 3, 2]}, (0.5, 1)).set_index(["signal", "coverage"])
    assert table["risk"].to_dict() == {("backwards", 0.5): 0.375, ("backwards", 1): 0.25, ("ideal", 0.5): 0.125, ("ideal", 1): 0.25}


# -- side by side


@pytest.fixture(scope="module")
def turned(at_home):
    model, train, valid = at_home
    x, y, patients = drawn(AWAY, 1200, seed=5, turn=0.7)
    table = remedies.side_by_side(model, train, valid, (x, y), patients, sizes=(60, 300), draws=2)
    return table, (x, y, patients)


def test_every_remedy_is_judged_on_the_same_recordings(turned, at_home):
    table, (x, y, _) = turned
    assert set(table["remedy"]) == set(remedies.REMEDIES)
    assert table.groupby(["remedy", "draw"])["m"].unique().map(list).to_dict()["recalibrated", 0] == [60, 300]
    assert (table["records"] == 900).all() and (table["labels"] == 2).all()
    order, test = remedies._drawn(np.arange(1200) // 2, 300, np.random.default_rng([0, 0]))
    assert not set(order // 2) & set(test // 2) and len(set(order)) == 300
    base = table.query("remedy == 'as it is' and draw == 0").set_index("metric")["value"]
    model = at_home[0]
    assert base["auroc"] == pytest.approx(metrics.auroc(y[test], model.scores(x[test])).mean())
    assert base["f1"] == pytest.approx(metrics.f1(y[test], model.scores(x[test]) >= model.thresholds).mean())


def test_labels_help_where_the_signal_has_changed(turned):
    table = turned[0]
    found = remedies.over_draws(table).set_index(["remedy", "metric", "m"])
    best = found.loc[("all labels", "auroc", 1200)]
    assert found.loc[("probe, home and away", "auroc", 300), "gain_low"] > 0.05
    assert best["value"] > found.loc[("as it is", "auroc", 0), "value"] + 0.1
    for free in ("EM", "BBSE"):
        assert found.loc[(free, "auroc", 0), "gain"] == pytest.approx(0, abs=1e-6), "the order stays"
    assert found.loc[("recalibrated", "auroc", 300), "gain"] == pytest.approx(0, abs=1e-6)
    assert found.loc[("recalibrated", "brier", 300), "gain"] > 0.01
    row = found.loc[("recalibrated", "ece", 60)]
    values = table.query("remedy == 'recalibrated' and metric == 'ece' and m == 60")["value"]
    base = table.query("remedy == 'as it is' and metric == 'ece'")["value"]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((values.mean(), values.min(), values.max()))
    assert row["gain"] == pytest.approx(base.mean() - values.mean()) and row["draws"] == 2


def test_the_prevalence_is_enough_under_label_shift(at_home):
    model, train, valid = at_home
    x, y, patients = drawn(AWAY, 2000, seed=6)
    table = remedies.side_by_side(model, train, valid, (x, y), patients, sizes=(50,), draws=2, measures=("brier",))
    found = remedies.over_draws(table).set_index("remedy")
    assert found.loc["EM", "gain_low"] > 0.005 and found.loc["BBSE", "gain_low"] > 0.005


def test_recordings_away_keep_home_for_what_they_cannot_teach(at_home):
    model, train, valid = at_home
    x, y, patients = drawn(AWAY, 800, seed=7)
    order, test = remedies._drawn(patients, 30, np.random.default_rng([0, 0]))
    y[order, 1] = 0
    y[test[:40], 1] = 1
    side = lambda label: remedies.side_by_side(  # noqa: E731
        model, train, valid, (x, y), patients, sizes=(30,), draws=1, measures=("auroc",), labels=label
    ).set_index("remedy")["value"]
    both, first = side(None), side([True, False])
    second = {remedy: 2 * both[remedy] - first[remedy] for remedy in ("probe, away alone", "as it is")}
    assert second["probe, away alone"] == pytest.approx(second["as it is"])
    assert first["probe, away alone"] != first["as it is"]


def test_what_cannot_be_done_is_said(at_home):
    model, train, valid = at_home
    x, y, patients = drawn(AWAY, 200, seed=8)
    p = known(x, HOME)
    side = lambda **options: remedies.side_by_side(model, train, valid, (x, y), patients, **{"sizes": (20,), "draws": 1, **options})  # noqa: E731
    for call, sentence in (
        (lambda: remedies.fit_platt(0 * y, p), "among the labelled recordings: label more"),
        (lambda: remedies.fit_platt(y, 2 + p), "are no probabilities"),
        (lambda: remedies.fit_platt(y[:5], p), "must have one shape"),
        (lambda: remedies.prevalence_em(p, [0.5]), r"prevalences \(1,\) do not fit scores \(200, 2\)"),
        (lambda: remedies.prevalence_em(p + 1, HOME), "are no probabilities"),
        (lambda: remedies.prevalence_em(p * np.nan, HOME), "are no probabilities"),
        (lambda: remedies.prevalence_em(p, [0, 0.5]), "must lie above 0 and below 1"),
        (lambda: remedies.adjust(p, HOME, [0.5, 1]), "must lie above 0 and below 1"),
        (lambda: remedies.prevalence_bbse(p, p, y[:5], HOME), r"targets of shape \(5, 2\) must be 0 or 1"),
        (lambda: remedies.risk_coverage(y[:, 0], {}, (0, 1)), "must lie above 0 and be at most 1"),
        (lambda: remedies.risk_coverage(y[:, 0], {"s": p[:5, 0]}), r"the signal s of shape \(5,\) must be finite"),
        (lambda: remedies.risk_coverage(y[:, 0], {"s": np.full(200, np.nan)}), "must be finite"),
        (lambda: side(sizes=(150,)), "of 200 recordings away at most 100 can be labelled"),
        (lambda: side(sizes=()), "at most 100 can be labelled"),
        (lambda: side(least=150), "no label has 150 positives and negatives"),
        (lambda: remedies.side_by_side(model, train, valid, (x, y[:9]), patients), "9 targets and 200 patients do not fit"),
    ):
        with pytest.raises(CremaError, match=sentence):
            call()
    assert isinstance(side(labels=[True, False]), pd.DataFrame) and (side(labels=[True, False])["labels"] == 1).all()
