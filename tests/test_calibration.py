"""Thresholds, reliability curves, temperature scaling and their figure: against scikit-learn, brute force and known truth."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score, recall_score

from crema_lib import finetune, metrics, plots
from crema_lib.data import splits
from crema_lib.data.labels import matrix
from crema_lib.data.simulate import simulated_store
from crema_lib.errors import CremaError
from crema_lib.folds import score_folds
from crema_lib.metrics import calibration, thresholds
from crema_lib.probes.linear import fit_probe
from crema_lib.sit import SiT


def data(n=400, labels=4, seed=0, decimals=1):
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, labels)) < rng.uniform(0.1, 0.5, labels)).astype(int)
    return targets, expit(1.5 * targets - 1 + rng.normal(size=targets.shape)).round(decimals)


def overconfident(n=4000, labels=3, seed=0, temperature=2.0):
    """Outcomes drawn from probabilities, and the same probabilities with logits times the temperature."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1, 1.5, (n, labels))
    return (rng.random(z.shape) < expit(z)).astype(int), expit(temperature * z)


# --- thresholds


def test_thresholds_are_the_best_of_all():
    targets, scores = data()
    table = thresholds.choose(targets, scores, list("abcd"))
    for k, row in table.iterrows():
        every = np.unique(scores[:, k])
        reached = np.array([f1_score(targets[:, k], scores[:, k] >= t) for t in every])
        assert row["reached"] == pytest.approx(reached.max())
        assert row["threshold"] == every[np.flatnonzero(reached > reached.max() - 1e-9)[-1]], "of equals the highest"
    decided = thresholds.decide(scores, table["threshold"])
    np.testing.assert_allclose(metrics.f1(targets, decided), table["reached"])


@pytest.mark.parametrize("wanted", [0.5, 0.9, 1.0])
def test_threshold_for_a_sensitivity_is_the_highest_that_reaches_it(wanted):
    targets, scores = data(seed=1)
    table = thresholds.choose(targets, scores, list("abcd"), sensitivity=wanted)
    for k, row in table.iterrows():
        assert recall_score(targets[:, k], scores[:, k] >= row["threshold"]) == pytest.approx(row["reached"])
        assert row["reached"] >= wanted - 1e-12
        above = np.unique(scores[:, k])[np.unique(scores[:, k]) > row["threshold"]]
        assert not len(above) or recall_score(targets[:, k], scores[:, k] >= above[0]) < wanted


def test_a_label_that_the_validation_fold_lacks_has_no_threshold_and_no_decision():
    targets, scores = data()
    targets[:, 0] = 0
    targets[:, 1] = np.arange(len(targets)) == 7
    table = thresholds.choose(targets, scores, list("abcd"))
    assert np.isnan(table["threshold"][0]) and table["note"][0] == "no positive: no threshold"
    assert table["threshold"][1] > 0 and table["note"][1] == "chosen on 1 positives" and table["note"][2] == ""
    decided = thresholds.decide(scores, table["threshold"])
    assert np.isnan(decided[:, 0]).all() and np.isin(decided[:, 1:], (0, 1)).all()
    full, _ = data()
    result = metrics.compare(full, {"m": decided}, np.arange(400), list("abcd"), n=5, metric="f1")
    assert result.names == ("b", "c", "d") and result.left_out == ("a",)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda t, s: thresholds.choose(t, s[:, :2], "ab"), "do not fit"),
        (lambda t, s: thresholds.choose(t, np.where(s > 0.5, np.nan, s), "abcd"), "scores are NaN"),
        (lambda t, s: thresholds.choose(t, s, "abcd", sensitivity=90), "outside 0 < sensitivity"),
        (lambda t, s: thresholds.decide(s, [0.5]), "one a label"),
        (lambda t, s: thresholds.decide(s * np.nan, [0.5] * 4), "are NaN"),
        (lambda t, s: calibration.reliability(t, 2 * s), "no probabilities"),
        (lambda t, s: calibration.fit_temperature(t, s - 1), "no probabilities"),
        (lambda t, s: calibration.fit_temperature(0 * t, s), "no temperature can be fitted"),
        (lambda t, s: plots.reliability(pd.DataFrame({"panel": ["a"]})), "lacks the column model"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(CremaError, match=sentence):
        call(*data())


# --- reliability


def test_reliability_curve_equals_scikit_learn():
    targets, scores = data(decimals=9)
    for target, score in ((targets[:, 0], scores[:, 0]), (targets.ravel(), scores.ravel())):
        rate, probability = calibration_curve(target, score, n_bins=8)
        table = calibration.reliability(target, score, bins=8)
        np.testing.assert_allclose(table["rate"], rate, atol=1e-12)
        np.testing.assert_allclose(table["probability"], probability, atol=1e-12)
        gap = (table["count"] * (table["rate"] - table["probability"]).abs()).sum() / table["count"].sum()
        assert gap == pytest.approx(metrics.ece(target[:, None], score[:, None], bins=8)[0])
    pd.testing.assert_frame_equal(calibration.reliability(targets, scores, bins=8), table)


def test_wilson_interval_on_published_numbers():
    """81 of 263 and 0 of 20: Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I, method 3."""
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        table = calibration.reliability(np.arange(n) < hits, np.full(n, 0.3))
        assert table[["low", "high"]].to_numpy()[0] == pytest.approx((low, high), abs=5e-5)


def test_chance_alone_makes_the_ece_of_right_probabilities():
    targets, scores = overconfident(600, 3, temperature=1.0)
    chance = calibration.chance_ece(scores, n=200, bins=10)
    assert chance.shape == (200, 3)
    real = metrics.ece(targets, scores, bins=10)
    assert (real < np.quantile(chance, 0.999, axis=0)).all() and (real > np.quantile(chance, 0.001, axis=0)).all()
    wrong = metrics.ece(targets, expit(2 * logit(scores)), bins=10)
    assert (wrong > chance.max(0)).all()


# --- temperature


def lowest(targets, scores):
    """The temperature of the lowest log loss, by another optimiser."""
    z = logit(np.clip(scores, 1e-7, 1 - 1e-7))

    def loss(log_t):
        return np.mean(np.logaddexp(0, z / np.exp(log_t)) - targets * z / np.exp(log_t))

    return pytest.approx(np.exp(minimize(loss, 0.0, method="L-BFGS-B", tol=1e-12).x[0]), rel=1e-3)


def test_temperature_is_found_and_has_the_lowest_log_loss():
    targets, scores = overconfident()
    fitted = calibration.fit_temperature(targets, scores)
    assert fitted.values == pytest.approx(2, rel=0.12) and fitted.own.all()
    for k in range(3):
        assert fitted.values[k] == lowest(targets[:, k], scores[:, k])


def test_scaling_mends_the_probabilities_and_keeps_the_order():
    targets, scores = overconfident()
    other, unseen = overconfident(seed=1)
    fitted = calibration.fit_temperature(targets, scores)
    after = fitted(unseen)
    np.testing.assert_allclose(metrics.auroc(other, after), metrics.auroc(other, unseen), atol=1e-12)
    for name in ("log_loss", "brier", "ece"):
        assert (getattr(metrics, name)(other, after) < getattr(metrics, name)(other, unseen)).all()
    assert (metrics.ece(other, after) < calibration.chance_ece(after, n=50).max(0) + 0.01).all()
    np.testing.assert_allclose(calibration.Temperature(np.ones(3), None, None)(unseen.astype(np.float32)), unseen, atol=1e-6)


def test_labels_with_few_positives_share_a_temperature_and_are_named():
    targets, scores = overconfident(300, 5)
    targets[:, 0] = 0
    targets[:, 1] = 1
    targets[:, 2] = np.arange(300) == 4
    targets[:, 3] = scores[:, 3] > 0.5  # told apart without a mistake: no temperature is low enough
    fitted = calibration.fit_temperature(targets, scores)
    table = fitted.table(list("abcde"))
    assert table["note"].tolist() == ["shared", "shared", "shared", "at the bound", ""] and fitted.own.tolist() == [False] * 3 + [True] * 2
    assert len(set(fitted.values)) == 3 and fitted.values[0] == lowest(targets, scores)
    assert np.isfinite(fitted(np.array([[0.0, 1, 0, 1, 0.5]]))).all()


# --- folds 9 and 10


def test_folds_hold_what_probes_and_networks_say(tmp_path):
    store = simulated_store(tmp_path / "store", 200, seed=0, fs=100, seconds=5)
    targets, names, kept = matrix(store.table, "super")
    x = targets @ np.random.default_rng(0).normal(size=(5, 12)) + np.random.default_rng(1).normal(size=(200, 12))
    small = SiT(fs=100, seconds=5, width=16, depth=1, heads=2)
    networks = {
        name: finetune.Classifier(small, columns=columns) for name, columns in (("net", {"super": names}), ("other", {"sex": ["female"]}))
    }
    found = score_folds(store, "super", {"probe": x.astype(np.float32)}, networks)
    train, valid, test = splits.parts(store.table, kept)
    known = [list(names).index(name) for name in found.names]
    assert (found.valid == targets[valid][:, known]).all() and (found.test == targets[test][:, known]).all()
    np.testing.assert_allclose(found.rate, targets[train][:, known].mean(0))
    probe, _ = fit_probe((x[train].astype(np.float32), targets[train]), (x[valid].astype(np.float32), targets[valid]))
    assert set(found.scores) == {"probe", "net"}, "a network that was trained on something else is left out"
    for part, rows in zip((0, 1), (valid, test), strict=True):
        np.testing.assert_allclose(found.scores["probe"][part], probe.scores(x[rows])[:, known], atol=1e-4)
        np.testing.assert_allclose(found.scores["net"][part], finetune.scores(networks["net"], store, rows)[:, known], atol=1e-5)
    table = found.table(["auroc", "brier"], n=20)
    assert table[["metric", "model"]].to_numpy().tolist() == [["auroc", "probe"], ["auroc", "net"], ["brier", "probe"], ["brier", "net"]]
    assert (
        table["value"][0] == pytest.approx(found.compare("auroc", n=20).macro("probe").value)
        and (table["labels"] == len(found.names)).all()
    )


# --- figure


def test_reliability_figure_shows_every_bin_and_fits_the_column():
    with matplotlib.rc_context():
        plots.use_style()
        parts, models = [], ("before", "after")
        for k, panel in enumerate(("NORM", "MI", "STTC", "all labels")):
            for t, model in zip((2.0, 1.0), models, strict=True):
                targets, scores = overconfident(300, 1, seed=k, temperature=t)
                parts.append(calibration.reliability(targets, scores, bins=10).assign(panel=panel, model=model))
        table = pd.concat(parts)
        fig = plots.reliability(table)
        fig.draw_without_rendering()
    tight, figure = fig.get_tightbbox(), fig.bbox_inches
    assert fig.get_figwidth() == plots.WIDTH
    assert tight.x0 >= -0.01 and tight.y0 >= -0.01 and tight.x1 <= figure.x1 + 0.01 and tight.y1 <= figure.y1 + 0.01
    shown = [ax for ax in fig.axes if ax.get_visible()]
    curves, strips = [ax for ax in shown if ax.get_title(loc="left")], [ax for ax in shown if ax.get_yscale() == "log"]
    assert [ax.get_title(loc="left") for ax in curves] == ["NORM", "MI", "STTC", "all labels"] and len(strips) == 4
    for ax in curves:
        for model in models:
            rows = table[(table["panel"] == ax.get_title(loc="left")) & (table["model"] == model)]
            (line,) = [line for line in ax.lines if line.get_gid() == model]
            np.testing.assert_allclose(line.get_xydata(), rows[["probability", "rate"]])
    counted = [line.get_ydata().sum() for strip in strips for line in strip.lines]
    assert counted == [300] * 8
    assert {ax.get_ylabel() for ax in shown} == {"Observed rate", "Predictions", ""}
    assert min(t.get_fontsize() for t in fig.findobj(matplotlib.text.Text) if t.get_text()) >= 8
