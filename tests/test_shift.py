"""Home and away: what is chosen at home, and how a drop is measured."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit

from crema_lib import metrics
from crema_lib.data import splits
from crema_lib.data.labels import matrix
from crema_lib.data.simulate import simulated_store
from crema_lib.embeddings import embed_store
from crema_lib.errors import CremaError
from crema_lib.finetune import Classifier
from crema_lib.metrics.calibration import fit_temperature
from crema_lib.metrics.thresholds import choose, decide
from crema_lib.probes.linear import fit_probe
from crema_lib.shift import corrupt
from crema_lib.shift.home import Sample, encoders, settle, visit
from crema_lib.shift.measure import MEASURES, Yardstick, decision_curve, net_benefit, worst
from crema_lib.sit import SiT
from crema_lib.xresnet import XResNet1d


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("shift") / "s", 500, seed=2)


@pytest.fixture(scope="module")
def models(store):
    encoders = {"SiT": SiT(width=48, depth=2, heads=3), "CNN": XResNet1d(depth="xresnet1d50", width=8, hidden=16)}
    return settle(encoders, store, "super", readout="layers")


@pytest.fixture(scope="module")
def home(store, models):
    return visit(models, store, "super", splits.parts(store.table, matrix(store.table, "super")[2])[2], "home")[0]


def drawn(n=400, labels=3, seed=0, spread=1.0):
    """A sample whose probabilities are right, of two models: one as it is, one with noise of a spread in the logits."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1, 1.5, (n, labels))
    targets = (rng.random((n, labels)) < 1 / (1 + np.exp(-logit))).astype(float)
    scores = {"sharp": 1 / (1 + np.exp(-logit)), "dull": 1 / (1 + np.exp(-(logit + spread * rng.normal(size=logit.shape))))}
    return Sample(f"drawn {seed}", targets, np.arange(n) // 2, scores)


class Named:
    """What `Yardstick` asks of a model."""

    def __init__(self, name, thresholds=(0.4, 0.4, 0.4)):
        self.name, self.names, self.thresholds = name, tuple("abc"), np.array(thresholds)


TWO = [Named("sharp"), Named("dull")]


def test_everything_is_chosen_on_folds_1_to_9(store, models):
    targets, names, kept = matrix(store.table, "super")
    train, valid, _ = splits.parts(store.table, kept)
    model = models[0]
    x = embed_store(model.encoder, store, readout="layers")
    probe, _ = fit_probe((x[train], targets[train]), (x[valid], targets[valid]))
    temperature = fit_temperature(targets[valid], probe.scores(x[valid]))
    assert model.names == tuple(names) and model.readout == "layers" and models[1].readout == "mean"
    np.testing.assert_allclose(model.scores(x[:50]), temperature(probe.scores(x[:50])), atol=1e-4)
    expected = choose(targets[valid], temperature(probe.scores(x[valid])), names)["threshold"]
    np.testing.assert_allclose(model.thresholds, expected, atol=1e-3)


def test_the_encoders_of_the_chapters(tmp_path):
    p, folder = SimpleNamespace(run_dir=tmp_path, seed=3), tmp_path / "pretrain" / "model"
    pretrained, other = SiT(width=48, depth=2, heads=3), SiT(width=24, depth=1, heads=3)
    pretrained.save_pretrained(folder)
    other.save_pretrained(tmp_path / "other")
    assert list(encoders(p, folder)) == ["random, probe", "CR-MAE, probe"]
    network = XResNet1d(depth="xresnet1d50", width=8, hidden=16)
    Classifier(network, columns={"super": ["NORM"]}).save_pretrained(tmp_path / "finetune" / "xresnet1d101-s3" / "model")
    torch.manual_seed(1)
    found = encoders(p, folder, [f"MAE only = {tmp_path / 'other'}"])
    assert list(found) == ["random, probe", "CR-MAE, probe", "xresnet1d101", "MAE only"]
    assert not any(one.training for one in found.values())
    for name, saved in (("CR-MAE, probe", pretrained), ("xresnet1d101", network), ("MAE only", other)):
        for key, value in saved.state_dict().items():
            assert torch.equal(found[name].state_dict()[key], value), (name, key)
    torch.manual_seed(3)
    expected = SiT(width=48, depth=2, heads=3).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found["random, probe"].state_dict().items()), "the seed of the run"
    assert "xresnet1d101" not in encoders(SimpleNamespace(run_dir=tmp_path, seed=4), folder), "of another seed"
    for wrong, sentence in (
        (str(tmp_path / "other"), "is written NAME=FOLDER"),
        ("MAE only=", "is written NAME=FOLDER"),
        (f"CR-MAE, probe={tmp_path / 'other'}", "an encoder named CR-MAE, probe already"),
        (f"none={tmp_path / 'nowhere'}", "is no folder and no model"),
        (f"CNN={tmp_path / 'finetune' / 'xresnet1d101-s3' / 'model'}", "holds no Signal Transformer"),
    ):
        with pytest.raises(CremaError, match=sentence):
            encoders(p, folder, [wrong])


def test_a_visit_keeps_rows_labels_and_patients_together(store, models, home):
    targets, _, kept = matrix(store.table, "super")
    test = splits.parts(store.table, kept)[2]
    np.testing.assert_array_equal(home.targets, targets[test])
    assert home.patients[0] == f"simulated/{store.table['patient'].iloc[test[0]]}"
    sample, features = visit(models, store, "super", test[[4, 2]])
    np.testing.assert_allclose(sample.scores["SiT"], home.scores["SiT"][[4, 2]], atol=1e-4)
    assert features["CNN"].shape == (2, 16) and sample.name == "s"
    np.testing.assert_array_equal(home.take([4, 2]).targets, sample.targets)


def test_labels_that_cannot_be_learnt_at_home_are_left_out(store):
    targets, names, kept = matrix(store.table, "super")
    train, valid, _ = splits.parts(store.table, kept)
    some = train[targets[train][:, 1] == 0]
    (model,) = settle({"SiT": SiT(width=48, depth=1, heads=3)}, store, "super", train=some, valid=valid)
    assert model.names == tuple(np.delete(names, 1)) and len(model.thresholds) == 4


def test_a_measure_that_one_side_lacks_is_left_out_of_both():
    home, away = drawn(seed=0), drawn(seed=1)
    for model in away.scores:
        away.scores[model][:, 1] = 0  # nothing there is called positive, so label b has no precision
    ours = Yardstick(TWO, home, n=20)
    table = ours.hold(away, measures=["precision"])
    only = np.array([True, False, True])
    pd.testing.assert_frame_equal(table, ours.hold(away, measures=["precision"], labels=only))
    assert (table["labels"] == 2).all()


def test_a_drop_is_home_less_away_on_shared_labels():
    home, away = drawn(seed=0), drawn(seed=1, spread=3.0)
    away.targets[:, 2] = 0  # nobody there has label c
    table = Yardstick(TWO, home, n=200).hold(away).set_index(["model", "metric"])
    assert (table["labels"] == 2).all() and (table["records"] == 400).all()
    for model in ("sharp", "dull"):
        for metric in MEASURES:
            score = metrics.METRICS[metric]
            values = []
            for sample in (home, away):
                scores = sample.scores[model][:, :2]
                if metric in ("sensitivity", "specificity"):
                    scores = decide(scores, [0.4, 0.4])
                values.append(np.mean(score(sample.targets[:, :2], scores)))
            row = table.loc[(model, metric)]
            worse = values[1] - values[0] if metric in ("brier", "ece") else values[0] - values[1]
            assert row["value"] == pytest.approx(values[1]) and row["home"] == pytest.approx(values[0])
            assert row["drop"] == pytest.approx(worse) and row["relative"] == pytest.approx(worse / values[0])
            if metric == "ece":
                assert row[["drop_low", "drop_high", "relative_low", "relative_high"]].isna().all()
                continue
            assert row["drop_low"] < row["drop_high"] and row["relative_low"] < row["relative_high"]
    assert table.loc[("dull", "auroc"), "drop_low"] > 0 > table.loc[("sharp", "auroc"), "drop_low"]


def test_the_same_recordings_are_compared_in_pairs():
    home = drawn()
    rng = np.random.default_rng(3)
    nudged = {model: np.clip(scores + 0.002 * rng.normal(size=scores.shape), 0, 1) for model, scores in home.scores.items()}
    yardstick = Yardstick(TWO, home, n=200)
    paired = yardstick.hold(Sample("nudged", home.targets, home.patients, nudged), measures=["auroc"])
    apart = yardstick.hold(Sample("others", home.targets, home.patients + 1000, nudged), measures=["auroc"])
    width = lambda table: (table["drop_high"] - table["drop_low"]).to_numpy()  # noqa: E731
    assert (width(paired) < 0.2 * width(apart)).all()
    same = yardstick.hold(home)
    assert (same["drop"] == 0).all() and (same.query("metric != 'ece'")[["drop_low", "drop_high"]] == 0).all(axis=None)


def test_a_group_of_home_is_held_against_home_with_the_same_patients():
    home, n = drawn(n=600), 300
    group = np.sort(np.random.default_rng(1).permutation(600)[:450])  # of some patients one recording, of others both
    yardstick = Yardstick(TWO, home, n=n, seed=4)
    row = yardstick.hold(home.take(group, "most of home"), measures=["auroc"]).iloc[0]
    counts, model = metrics.patient_counts(home.patients, n, 4), row["model"]
    drops = []
    for one in counts:
        of_group = np.zeros(600, int)
        of_group[group] = one[group]
        drops.append([np.mean(metrics.auroc(home.targets, home.scores[model], weights[None])) for weights in (one, of_group)])
    drops = np.diff(drops)[:, 0] * -1
    assert np.quantile(drops, [0.025, 0.975]) == pytest.approx(row[["drop_low", "drop_high"]].to_numpy(float), abs=1e-9)
    strangers = Sample("others", home.targets[group], home.patients[group] + 1000, {k: v[group] for k, v in home.scores.items()})
    apart = yardstick.hold(strangers, measures=["auroc"]).iloc[0]
    assert row["drop_high"] - row["drop_low"] < 0.6 * (apart["drop_high"] - apart["drop_low"])


@pytest.mark.parametrize("sizes", [(2000, 300), (800, 800)], ids=["other recordings", "the same"])
def test_no_resampling_finds_the_drop_of_a_calibration_error(sizes):
    """Right probabilities at home; away they are right too, or 1.5 times as sure. Why a drop of ECE is given without an interval."""
    paired = sizes[0] == sizes[1]

    def both(rng, sizes):
        logits = [rng.normal([-2, -3, -1], 1.5, (size, 3)) for size in sizes]
        home, away = ((rng.random(one.shape) < expit(one), expit(one)) for one in logits)
        return home, (home[0], expit(1.5 * logits[0])) if paired else away

    error = lambda of, *counts: metrics.macro(metrics.ece(*of, *counts))[0]  # noqa: E731
    here, there = both(np.random.default_rng(99), (200_000, 200_000))
    truth, hits = error(here) - error(there), {False: 0, True: 0}
    for seed in range(40):
        here, there = both(np.random.default_rng(seed), sizes)
        counts = [metrics.patient_counts(np.arange(size), 100, seed + 100 * (i and not paired)) for i, size in enumerate(sizes)]
        differences = error(here, counts[0]) - error(there, counts[1])
        for reflect in hits:
            found = metrics.interval(error(here) - error(there), differences, reflect=reflect)
            hits[reflect] += found.low <= truth <= found.high
    assert hits[False] <= 4 and hits[True] <= 25, "of 40; an interval of 95 % covers 38"


def test_net_benefit_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    targets, scores = rng.integers(0, 2, (200, 2)), rng.random((200, 2))
    for at in (0.1, 0.6):
        called = scores >= at
        expected = [(called & (targets == 1))[:, k].mean() - (called & (targets == 0))[:, k].mean() * at / (1 - at) for k in (0, 1)]
        np.testing.assert_allclose(net_benefit(targets, scores, at=at), expected)
        counts = metrics.patient_counts(np.arange(200), 20)
        again = [net_benefit(targets[np.repeat(np.arange(200), c)], scores[np.repeat(np.arange(200), c)], at=at) for c in counts]
        np.testing.assert_allclose(net_benefit(targets, scores, counts, at=at), again)


def test_a_decision_curve_has_the_bounds_that_it_must():
    sample = drawn(2000)
    table = decision_curve(sample, list("abc"), n=100).set_index(["model", "at"])
    prevalence = sample.targets.mean(0).sum()
    assert table.loc[("treat all", 0.1), "value"] == pytest.approx(prevalence - (3 - prevalence) / 9)
    for at in (0.05, 0.1, 0.2, 0.3, 0.5):
        sharp, dull = table.loc[("sharp", at)], table.loc[("dull", at)]
        assert sharp["low"] < sharp["value"] < sharp["high"] and sharp["value"] > max(dull["value"] - 0.005, -0.005)
    assert table.loc[("sharp", 0.3), "value"] > table.loc[("treat all", 0.3), "value"]


def test_the_worst_sample_has_the_largest_drop():
    yardstick = Yardstick(TWO, drawn(), n=50)
    table = pd.concat(
        [yardstick.hold(drawn(seed=seed, spread=spread), measures=["auroc"]) for seed, spread in ((1, 1.0), (2, 5.0), (3, 1.5))]
    )
    found = worst(table).set_index("model")
    assert found.loc["dull", "sample"] == "drawn 2" and len(found) == 2
    assert found.loc["sharp", "drop"] == table[table["model"] == "sharp"]["drop"].max()


def test_noise_is_a_shift_like_any_other(store, models, home):
    rows = splits.parts(store.table, matrix(store.table, "super")[2])[2]
    noise = corrupt.add_noise(corrupt.noises()["electrode motion"], -6, corrupt.qrs_sizes(store, rows))
    sample, _ = visit(models, corrupt.Shifted(store, noise), "super", rows, noise.name)
    table = Yardstick(models, home, n=50).hold(sample, measures=["auroc", "ece"])
    assert set(table["model"]) == {"SiT", "CNN"} and (table["sample"] == "noise, -6 dB").all()
    np.testing.assert_array_equal(sample.targets, home.targets)


def test_what_cannot_be_compared_is_said(store):
    home, away = drawn(), drawn(seed=1)
    with pytest.raises(CremaError, match="at least 500 positives"):
        Yardstick(TWO, home, n=10, least=500).hold(away)
    with pytest.raises(CremaError, match="unknown metric 'accuracy'"):
        Yardstick(TWO, home, n=10).hold(away, measures=["accuracy"])
    with pytest.raises(CremaError, match="outside 0 < at < 1"):
        net_benefit(home.targets, home.scores["dull"], at=1)
    with pytest.raises(CremaError, match="differ in shape"):
        net_benefit(home.targets, home.scores["dull"][:3])
    targets, _, kept = matrix(store.table, "super")
    train = splits.parts(store.table, kept)[0]
    healthy = train[targets[train][:, 0] == 1][:20]
    with pytest.raises(CremaError, match="no label of the task super can both be learnt"):
        settle({"SiT": SiT(width=48, depth=1, heads=3)}, store, "super", train=healthy, valid=healthy)
