"""Signals of a shift that need no label."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from crema_lib.data.simulate import simulated_store
from crema_lib.errors import CremaError
from crema_lib.objectives import CRMAE, load
from crema_lib.shift import corrupt, signals
from crema_lib.shift.home import Sample
from crema_lib.sit import SiT

RNG = np.random.default_rng(0)
HOME = RNG.normal(size=(600, 8)) * np.arange(1, 9)


class Decided:
    name, names, thresholds = "model", ("a", "b", "c"), np.array([0.5, 0.5, np.nan])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("signals") / "s", 60, seed=4)


def test_mahalanobis_is_the_distance_under_the_covariance_of_home():
    novelty = signals.Novelty(HOME)
    x = RNG.normal(size=(5, 8)) * 3
    z, base = (x - HOME.mean(0)) / HOME.std(0), (HOME - HOME.mean(0)) / HOME.std(0)
    exact = np.sqrt(np.einsum("ij,jk,ik->i", z, np.linalg.inv(base.T @ base / len(base)), z))
    np.testing.assert_allclose(novelty.mahalanobis(x), exact, rtol=0.05)  # but for the shrinkage


def test_axes_that_carry_nothing_are_left_out():
    narrow = np.c_[HOME, HOME[:, 0] + 1e-4 * RNG.normal(size=600)]
    novelty = signals.Novelty(narrow)
    assert novelty.axes.shape == (9, 8)


def test_strange_recordings_are_strange_by_both_distances():
    novelty, other, far = signals.Novelty(HOME), RNG.normal(size=(200, 8)) * np.arange(1, 9), HOME[:200] + 4 * np.arange(1, 9)
    for distance in (novelty.mahalanobis, novelty.neighbours):
        assert roc_auc_score([0] * 200 + [1] * 200, np.r_[distance(other), distance(far)]) > 0.95
    z = (other[0] - HOME.mean(0)) / HOME.std(0)
    nearest = np.sort(np.linalg.norm((HOME - HOME.mean(0)) / HOME.std(0) - z, axis=1))[:10]
    assert novelty.neighbours(other[:1])[0] == pytest.approx(nearest.mean(), rel=1e-6)


def test_doubt_is_one_bit_at_one_half():
    np.testing.assert_allclose(signals.doubt([[0.5, 0.5], [0, 1], [0.25, 0.5]]), [1, 0, (0.8112781 + 1) / 2], atol=1e-5)


def test_the_domain_classifier_finds_a_shift_and_no_other():
    same, moved = RNG.normal(size=(400, 8)) * np.arange(1, 9), HOME[:400] + 2 * np.arange(1, 9)
    auc, distance = signals.domain_auc(HOME, same)
    assert 0.4 < auc < 0.6 and 0 <= distance < 0.2
    auc, distance = signals.domain_auc(HOME, moved)
    assert auc > 0.97 and 1.5 < distance <= 2


def test_a_patient_does_not_give_a_domain_away():
    # each patient brings 20 recordings that are nearly the same: seen in training they would be known again
    person = RNG.normal(size=(20, 8)).repeat(20, axis=0) + 0.01 * RNG.normal(size=(400, 8))
    other = RNG.normal(size=(20, 8)).repeat(20, axis=0) + 0.01 * RNG.normal(size=(400, 8))
    who = np.arange(20).repeat(20)
    apart, together = signals.domain_auc(person, other, (who, who))[0], signals.domain_auc(person, other)[0]
    assert together > apart + 0.1


def test_mmd_is_that_of_its_definition():
    x, y = RNG.normal(size=(30, 3)), RNG.normal(size=(40, 3)) + 0.5
    mean, deviation = x.mean(0), x.std(0)
    a, b = (x - mean) / deviation, (y - mean) / deviation
    square = lambda p, q: ((p - q) ** 2).sum()  # noqa: E731
    every = [[square(p, q) for q in z] for z, p in ((b, p) for p in a)]
    inside = [[square(z[i], z[j]) for i in range(len(z)) for j in range(i + 1, len(z))] for z in (a, b)]
    width = np.median(np.concatenate([*inside, np.ravel(every)]))
    expected = sum(np.exp(-np.array(one) / width).mean() for one in inside) - 2 * np.exp(-np.array(every) / width).mean()
    assert signals.mmd(x, y) == pytest.approx(expected)
    assert abs(signals.mmd(HOME, RNG.normal(size=(600, 8)) * np.arange(1, 9))) < 0.01 < signals.mmd(HOME, HOME[:300] + np.arange(1, 9))


def test_the_reconstruction_error_is_that_of_the_hidden_patches(store):
    torch.manual_seed(0)
    objective = CRMAE(SiT(width=48, depth=1, heads=3, scale=tuple(np.linspace(0.1, 0.4, 12))), mask_ratio=0.5)
    error = signals.reconstruction_error(objective, store, [3, 5], draws=1, seed=7)
    order = objective.places(40, 7)
    assert len(order.unique()) == 20
    x = store.read([5])
    drawn, _ = objective.reconstruct(x, None, order[None])
    scale = objective.encoder.scale[:, None]
    hidden = torch.zeros(40, dtype=torch.bool).index_fill(0, order, True).repeat_interleave(25)
    expected = (((drawn - x) / scale)[..., hidden].square().sum() / (x / scale)[..., hidden].square().sum()).item()
    assert error[1] == pytest.approx(expected, rel=1e-4)
    again = signals.reconstruction_error(objective, store, [5, 3, 8], draws=1, seed=7, batch_size=2)
    np.testing.assert_allclose(again[[1, 0]], error, rtol=1e-4)
    assert objective.training


def test_an_objective_is_loaded_by_what_its_folder_says(store, tmp_path):
    objective = CRMAE(SiT(width=48, depth=1, heads=3), mask_ratio=0.5)
    objective.save_pretrained(tmp_path)
    again, before = (signals.reconstruction_error(one, store, [1, 2], draws=1) for one in (load(tmp_path), objective))
    np.testing.assert_allclose(again, before, rtol=1e-5)
    (tmp_path / "objective.json").write_text('{"class": "Other"}')
    for folder, sentence in ((tmp_path, "holds no objective of a known class"), (tmp_path / "nowhere", "is no folder and no model")):
        with pytest.raises(CremaError, match=sentence):
            load(folder)


def test_missing_leads_are_not_asked_for(store):
    torch.manual_seed(0)
    objective = CRMAE(SiT(width=48, depth=1, heads=3))
    view = corrupt.Shifted(store, corrupt.keep_leads(["II"]))
    assert np.isfinite(signals.reconstruction_error(objective, view, [0, 1], draws=2)).all()


def test_flagging_is_the_auroc_for_a_wrong_decision():
    targets = RNG.integers(0, 2, (300, 3)).astype(float)
    scores = np.clip(targets * 0.5 + 0.7 * RNG.random((300, 3)) - 0.1, 0, 1)
    sample = Sample("away", targets, np.arange(300), {"model": scores})
    wrong = (scores >= 0.5)[:, :2] != targets[:, :2]
    np.testing.assert_array_equal(signals.mistaken(sample, Decided), wrong)
    noisy = wrong.sum(1) + RNG.normal(size=300)
    table = signals.flagging(sample, Decided, {"noisy": noisy, "chance": RNG.random(300)}, n=50).set_index("signal")
    assert table.loc["noisy", "value"] == pytest.approx(np.mean([roc_auc_score(wrong[:, k], noisy) for k in (0, 1)]))
    assert (table["wrong"] == wrong.mean()).all() and (table["labels"] == 2).all()
    assert table.loc["noisy", "low"] > 0.6 > table.loc["chance", "value"]
    scores[:, 1] = targets[:, 1]  # no mistake there
    (one,) = signals.flagging(sample, Decided, {"noisy": noisy}, n=50).to_dict("records")
    assert one["value"] == pytest.approx(roc_auc_score(wrong[:, 0], noisy)) and one["labels"] == 1


def test_a_drop_foretold_is_a_rank_correlation_over_shifts():
    drops = RNG.normal(size=20)
    told = pd.DataFrame({"told": np.exp(drops) + 0.01, "against": -drops, "noise": RNG.normal(size=20)})
    table = signals.foretold(told, drops, n=200).set_index("signal")
    assert table.loc["told", ["value", "low", "high"]].tolist() == pytest.approx([1, 1, 1])
    assert table.loc["against", "value"] == pytest.approx(-1) and table.index[-1] == "noise"
    assert table.loc["noise", "value"] == pytest.approx(spearmanr(told["noise"], drops).statistic)
    assert table.loc["noise", "low"] < table.loc["noise", "value"] < table.loc["noise", "high"]


def test_what_cannot_be_told_is_said(store):
    right = Sample("away", np.ones((4, 3)), np.arange(4), {"model": np.ones((4, 3))})
    wrong = Sample("away", np.zeros((4, 3)), np.arange(4), {"model": np.ones((4, 3))})
    for call, sentence in (
        (lambda: signals.Novelty(HOME[:10]), "too few for 10 neighbours"),
        (lambda: signals.Novelty(np.where(HOME > 20, np.nan, HOME)), "must be finite"),
        (lambda: signals.domain_auc(HOME[:9], HOME), "needs 10 patients or more on each side"),
        (lambda: signals.mmd(HOME, HOME[:1]), "needs two recordings of each"),
        (lambda: signals.flagging(right, Decided, {}), "no label of model on away has 10 wrong and 10 right decisions"),
        (lambda: signals.flagging(wrong, Decided, {}), "no label of model on away has 10 wrong"),
        (lambda: signals.foretold(pd.DataFrame({"x": [1, 2, 3]}), [1, 2, 3]), "give five shifts or more"),
        (lambda: signals.foretold(pd.DataFrame({"x": [1, 2, 3, 4, np.nan]}), np.arange(5)), "is NaN or infinite"),
        (lambda: signals.reconstruction_error(torch.nn.Linear(2, 2), store, [0]), "Linear draws nothing"),
    ):
        with pytest.raises(CremaError, match=sentence):
            call()
