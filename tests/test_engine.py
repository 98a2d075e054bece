"""The training loop: batches as a function of the step, resuming, determinism, and what stops it."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from crema_lib import engine
from crema_lib.data.simulate import simulated_store
from crema_lib.engine import Batches, Training, cosine, fit, parameter_groups
from crema_lib.errors import CremaError
from crema_lib.objectives import CRMAE
from crema_lib.sit import SiT

QUICK = {"batch_size": 8, "epochs": 2, "log_every": 3, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 40, seed=0, fs=100, seconds=5)


def model(leads=None):
    torch.manual_seed(1)
    options = {"leads": leads} if leads else {}
    return CRMAE(SiT(fs=100, seconds=5, width=16, depth=2, heads=2, **options), decoder_width=32, decoder_depth=1, projection=8)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.state_dict().values() if p.is_floating_point()])


def test_an_epoch_sees_every_record_once_and_the_next_in_another_order(store):
    batches = Batches(store, np.arange(4, 36), 8, seed=3)
    first = torch.cat([batches[i]["row"] for i in range(4)])
    second = torch.cat([batches[i]["row"] for i in range(4, 8)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(4, 36))
    assert first.tolist() != second.tolist()
    again = Batches(store, np.arange(4, 36), 8, seed=3)
    assert torch.equal(again[6]["signal"], batches[6]["signal"]), "any step can be asked for alone"
    assert Batches(store, np.arange(4, 36), 8, seed=4)[0]["row"].tolist() != batches[0]["row"].tolist()


def test_targets_and_leads_follow_their_rows(store):
    rows = np.arange(10, 40)
    batch = Batches(store, rows, 8, targets=rows.astype(float) * 10, leads=[1, 7])[2]
    assert torch.equal(batch["target"], batch["row"].double() * 10)
    assert torch.equal(batch["signal"], store.read(batch["row"])[:, [1, 7]])
    assert batch["lead_mask"].shape == (8, 2)


def test_ranks_share_a_batch_without_overlap(store):
    parts = [Batches(store, np.arange(40), 8, seed=1, rank=r, world=2)[3]["row"] for r in range(2)]
    assert torch.cat(parts).tolist() == Batches(store, np.arange(40), 8, seed=1)[3]["row"].tolist()


def test_fewer_records_than_a_batch(store):
    with pytest.raises(CremaError, match="3 records are fewer than a batch of 8"):
        Batches(store, np.arange(3), 8)


def test_schedule():
    factors = [cosine(i, 100, 0.1) for i in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1
    assert np.all(np.diff(factors[10:]) <= 0) and factors[-1] < 0.001
    assert factors[55] == pytest.approx(0.5)


def test_decay_is_for_matrices(store):
    m = model()
    decayed, rest = (set(map(id, g["params"])) for g in parameter_groups(m, 0.1))
    names = {name: id(p) for name, p in m.named_parameters()}
    assert names["encoder.blocks.0.attn.qkv.weight"] in decayed
    assert {names["encoder.norm.weight"], names["encoder.stem.bias"], names["hidden_token"]} <= rest
    assert len(decayed | rest) == len(names) and not decayed & rest


def test_it_learns_and_logs(store, tmp_path):
    log = fit(model(), store, np.arange(40), Training(**{**QUICK, "epochs": 10}), tmp_path, progress=False)
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    pd.testing.assert_frame_equal(pd.DataFrame(lines), log)
    assert {"step", "epoch", "lr", "loss", "mae", "contrast", "records_per_s", "seconds"} == set(log)
    assert log["step"].iloc[-1] == 50 and len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_same_seed_same_weights(store, tmp_path):
    runs = []
    for i, seed in enumerate((0, 0, 1)):
        m = model()
        fit(m, store, np.arange(40), Training(**QUICK, seed=seed), tmp_path / str(i), progress=False)
        runs.append(weights(m))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_every_weight_moves(store, tmp_path):
    m = model()
    before = {name: p.detach().clone() for name, p in m.named_parameters()}
    fit(m, store, np.arange(40), Training(**QUICK), tmp_path, progress=False)
    assert [name for name, p in m.named_parameters() if torch.equal(p, before[name])] == []


def test_an_interrupted_run_ends_like_an_undisturbed_one(store, tmp_path, monkeypatch):
    whole = model()
    fit(whole, store, np.arange(40), Training(**QUICK), tmp_path / "whole", progress=False)
    real, calls = engine.Batches.__getitem__, []

    def interrupted(self, step):
        calls.append(step)
        if step == 7 and calls.count(7) == 1:
            raise KeyboardInterrupt
        return real(self, step)

    monkeypatch.setattr(engine.Batches, "__getitem__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(model(), store, np.arange(40), Training(**QUICK), tmp_path / "cut", progress=False)
    resumed = model()
    log = fit(resumed, store, np.arange(40), Training(**QUICK), tmp_path / "cut", progress=False)
    assert calls == [*range(8), *range(5, 10)], "it goes on from the checkpoint of step 5"
    assert torch.equal(weights(whole), weights(resumed))
    assert log["step"].tolist() == [3, 6, 9, 10]
    untouched = model()
    fit(untouched, store, np.arange(40), Training(**QUICK), tmp_path / "cut", progress=False)
    assert torch.equal(weights(untouched), weights(whole)), "a finished run is only loaded"


def test_another_run_in_the_same_folder(store, tmp_path):
    fit(model(), store, np.arange(40), Training(**QUICK), tmp_path, progress=False)
    with pytest.raises(CremaError, match="holds a run with another training"):
        fit(model(), store, np.arange(40), Training(**{**QUICK, "lr": 1e-4}), tmp_path, progress=False)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    (newest / "state.pt").write_bytes(b"broken")
    with pytest.raises(CremaError, match="cannot be read"):
        fit(model(), store, np.arange(40), Training(**QUICK), tmp_path, progress=False)


def test_a_loss_that_is_not_finite_stops(store, tmp_path):
    class Broken(CRMAE):
        def forward(self, batch):
            losses = super().forward(batch)
            return {**losses, "loss": losses["loss"] * float("nan")}

    m = model()
    m.__class__ = Broken
    with pytest.raises(CremaError, match="the loss is nan within steps 1 to 3"):
        fit(m, store, np.arange(40), Training(**QUICK), tmp_path, progress=False)


def test_a_model_of_fewer_leads_gets_its_leads(store, tmp_path):
    m = model(leads=("II", "V2"))
    log = fit(m, store, np.arange(40), Training(**QUICK), tmp_path, progress=False)
    assert np.isfinite(log["loss"]).all()
