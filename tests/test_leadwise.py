"""Probes and fine-tuning by subset of leads: against probes made one by one, and every refusal."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from crema_lib import baselines, finetune, leadwise
from crema_lib.data import splits
from crema_lib.data.labels import matrix
from crema_lib.data.leads import LEADS, SUBSETS
from crema_lib.data.simulate import simulated_store
from crema_lib.errors import CremaError
from crema_lib.metrics import holm
from crema_lib.probes.linear import fit_probe
from crema_lib.sit import SiT


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 240, seed=0, fs=100, seconds=5)


@pytest.fixture(scope="module")
def features(store):
    """Of two models: superclasses behind noise that grows as leads go, and an offset that differs with the subset."""
    y, rng = np.nan_to_num(matrix(store.table, "super")[0]), np.random.default_rng(0)
    turn = {count: rng.normal(size=(y.shape[1], 8)) for count in (12, 3, 1)}
    noise = {("good", 12): 0.3, ("good", 3): 0.6, ("good", 1): 2.0, ("twin", 12): 1.0, ("twin", 3): 2.0, ("twin", 1): 4.0}
    return {key: (y @ turn[key[1]] + s * rng.normal(size=(len(y), 8))).astype(np.float32) for key, s in noise.items()}


@pytest.fixture(scope="module")
def result(store, features):
    return leadwise.probe_leads(store, features, "super", bootstrap=100)


def test_each_probe_is_what_one_made_by_hand_is(store, features, result):
    targets, _, kept = matrix(store.table, "super")
    train, valid, test = splits.parts(store.table, kept)
    shown = {count: features["good", count] for count in (12, 3, 1)}

    def fit(x):
        return fit_probe((x[train], targets[train]), (x[valid], targets[valid]), finetune.STARTS)[0]

    own, mixed = {count: fit(x) for count, x in shown.items()}, fit(leadwise.mixture(shown))
    found = leadwise.table(result).set_index(["model", "trained", "leads"])["value"]
    assert len(found) == 2 * 3 * 3
    for count, x in shown.items():
        for trained, probe in (("own", own[count]), ("full", own[12]), ("mixed", mixed)):
            auroc = roc_auc_score(targets[test], probe.scores(x[test]), average="macro")
            assert found["good", trained, count] == pytest.approx(auroc, abs=1e-9), (trained, count)
    assert found["good", "full", 3] < found["good", "own", 3] - 0.1, "turned another way, and nobody told the probe"


def test_a_mixture_takes_each_recording_from_one_subset_drawn_at_random():
    parts = {12: np.full((3000, 2), 12.0), 3: np.full((3000, 2), 3.0), 1: np.full((3000, 2), 1.0)}
    mixed = leadwise.mixture(parts, seed=1)
    assert (mixed[:, 0] == mixed[:, 1]).all()
    assert np.allclose([(mixed[:, 0] == count).mean() for count in parts], 1 / 3, atol=0.03)
    np.testing.assert_array_equal(mixed, leadwise.mixture(parts, seed=1))
    assert (mixed != leadwise.mixture(parts, seed=2)).any()
    assert (parts[12] == 12).all(), "what was given is left as it is"


def test_differences_are_paired_and_adjusted_within_their_kind(result):
    found = leadwise.differences(result, "twin")
    values = leadwise.table(result).set_index(["model", "trained", "leads"])["value"]
    for row in found.itertuples():
        other = {"12 leads": (row.model, row.trained, 12), "own": (row.model, "own", row.leads), "twin": ("twin", "own", row.leads)}
        assert row.value == pytest.approx(values[row.model, row.trained, row.leads] - values[other[row.less]])
        assert row.low <= row.value <= row.high
    sizes = found.groupby(["less", "trained"]).size().to_dict()
    every = {("12 leads", trained): 4 for trained in leadwise.TRAINED}
    assert sizes == {**every, ("own", "full"): 4, ("own", "mixed"): 6, ("twin", "own"): 3}
    one = found[(found["less"] == "own") & (found["trained"] == "mixed")]
    np.testing.assert_allclose(one["p_holm"], holm(one["p"]))
    assert set(leadwise.differences(result)["less"]) == {"12 leads", "own"}
    row = found[(found["model"] == "good") & (found["trained"] == "own") & (found["leads"] == 1)].iloc[0]
    gain = result.gain(("good", "own", 1), ("good", "own", 12))
    assert (row["low"], row["high"]) == (gain.low, gain.high)


def test_the_loss_of_a_label_is_that_of_its_own_auroc(result):
    found = leadwise.by_label(result)
    assert len(found) == 2 * 3 * len(result.names)
    value = found.set_index(["model", "leads", "label"])["value"]
    for row in found.itertuples():
        assert row.loss == pytest.approx(value[row.model, 12, row.label] - row.value)
        assert row.loss_low <= row.loss <= row.loss_high
        assert row.n == result.positives[list(result.names).index(row.label)]
    assert (found[found["leads"] == 12]["loss"] == 0).all()
    assert (found[(found["leads"] == 1) & (found["model"] == "good")]["loss"] > 0).all()


def test_one_subset_alone_has_nothing_to_lose(store, features):
    alone = leadwise.probe_leads(store, {("good", 3): features["good", 3]}, "super", bootstrap=20)
    assert leadwise.table(alone)["value"].nunique() == 1
    found = leadwise.differences(alone)
    assert found["less"].tolist() == ["own"] and found["value"].tolist() == [0.0], "the mixture of one subset is that subset"


def test_numbers_of_leads_in_words():
    assert [leadwise.called(count) for count in (12, 2, 1)] == ["12 leads", "2 leads", "1 lead"]


def settings(tmp_path, **changed):
    values = {"heads": ["super"], "finetune_epochs": 0.5, "finetune_batch": 16, "finetune_lr": 1e-3, "finetune_checks": 1,
              "weight_decay": 0.05, "precision": "no", "device": "cpu", "seed": 0, "crop": 0.0, "token_drop": 0.5, "readout": "mean",
              "layer_decay": 0.75, "drop_path": 0.0, "run_dir": tmp_path}  # fmt: skip
    return SimpleNamespace(**{**values, **changed})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    SiT(fs=100, seconds=5, patch=25, width=16, depth=1, heads=2).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("arm", [baselines.PRETRAINED, baselines.RANDOM])
def test_a_tuned_network_has_learnt_and_sees_nothing_of_other_leads(arm, store, checkpoint, tmp_path):
    p = settings(tmp_path)
    model, log = baselines.train(arm, p, store, checkpoint, leads=SUBSETS[2], name="-2-leads", progress=False)
    assert list(log["epoch"])[-1] == pytest.approx(0.5, abs=0.1)
    start = baselines.new_encoder(arm, checkpoint, seed=0).state_dict()
    now = model.encoder.state_dict()
    assert not torch.equal(now["stem.weight"], start["stem.weight"])
    signal = torch.randn(3, 12, 500, generator=torch.Generator().manual_seed(0))
    other = signal.clone()
    other[:, [LEADS.index(lead) for lead in LEADS if lead not in SUBSETS[2]]] += 3
    said = model.outputs(signal)
    torch.testing.assert_close(model.outputs(other), said)
    other[:, 0] += torch.randn(3, 500)
    assert (model.outputs(other) - said).abs().max() > 1e-6, "lead I is among those that it sees"
    again = finetune.Classifier.from_pretrained(next(tmp_path.glob("finetune/*-s0-2-leads/model"))).eval()
    torch.testing.assert_close(again.outputs(signal), said)


def test_what_cannot_be_done_is_said(store, features, result):
    short = {key: x[:-1] for key, x in features.items()}
    holed = {key: np.where((store.table["fold"] == 10).to_numpy()[:, None], np.nan, x) for key, x in features.items()}
    for wrong, sentence in (
        (lambda: leadwise.embedded({}), "nothing to probe"),
        (lambda: leadwise.embedded({("a", 5): np.zeros((3, 2))}), "no subset of 5 leads is known: known are 12, 8, 6"),
        (lambda: leadwise.embedded({("a", 12): np.zeros((3, 2)), ("a", 1): np.zeros((2, 2))}), r"shapes \(2, 2\), \(3, 2\)"),
        (lambda: leadwise.embedded({k: x for k, x in features.items() if k != ("twin", 1)}), "twin has no features of 1 lead"),
        (lambda: leadwise.probe_leads(store, short, "super"), "good has features of 239 recordings, the store holds 240"),
        (lambda: leadwise.probe_leads(store, holed, "super"), r"\d+ of the test records have features that are NaN"),
        (lambda: leadwise.differences(result, "nobody"), "no model 'nobody' to hold the others against: there are good, twin"),
    ):
        with pytest.raises(CremaError, match=sentence):
            wrong()
