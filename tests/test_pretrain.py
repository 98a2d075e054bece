"""From parameters to a probe: the whole road, twice, gives the same numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crema_lib import bookbuild, notebook, objectives, params
from crema_lib.data.simulate import simulated_store
from crema_lib.data.store import TRAIN
from crema_lib.embeddings import embed_store
from crema_lib.handcrafted import waves
from crema_lib.objectives import CRMAE
from crema_lib.objectives.cr_mae import CONTRASTED, REGULARISERS, SCHEDULES
from crema_lib.objectives.losses import known_loss
from crema_lib.pretrain import OPTIONS, PARAMETERS, lead_scale, new_encoder, pretrain, seeded, unused
from crema_lib.probes.linear import probe_task
from crema_lib.sit import SiT


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 300, seed=0, fs=100, seconds=5)


def parameters(run_dir, **changes):
    quick = {**params.load_profile("quick"), "width": 48, "depth": 2, "epochs": 2, "batch_size": 32, "device": "cpu"}
    return SimpleNamespace(**{**quick, **changes, "run_dir": run_dir})


def test_lead_scale_is_the_root_mean_square_of_leads_that_are_there(store):
    rows = store.rows(TRAIN)
    x = store.signals[rows].astype(float) / 1000
    np.testing.assert_allclose(lead_scale(store, rows), np.sqrt((x**2).mean((0, 2))), atol=1e-4)


def test_parameters_reach_the_encoder(store, tmp_path):
    encoder = new_encoder(parameters(tmp_path, stem="conv", patch=20), store, store.rows(TRAIN))
    assert (encoder.width, len(encoder.blocks), encoder.patch, encoder.seconds) == (48, 2, 20, 5)
    assert type(encoder.stem).__name__ == "ConvStem"
    assert tuple(encoder.band) == tuple(store.meta["band"])


def test_same_profile_and_seed_same_metrics(store, tmp_path):
    values = []
    for i, seed in enumerate((0, 0, 1)):
        p = parameters(tmp_path / str(i), seed=seed)
        pretrain(p, store, progress=False)
        encoder = SiT.from_pretrained(p.run_dir / "pretrain" / "model")
        result, _ = probe_task(store, {"m": embed_store(encoder, store)}, "super", bootstrap=50)
        values.append((result.macro("m"), result.per_label["m"].tolist()))
    assert values[0] == values[1]
    assert values[0] != values[2]


def test_further_runs_are_of_further_seeds_and_the_next_chapter_finds_them(store, tmp_path, capsys):
    p = parameters(tmp_path, seed=3, pretrainings=3, width=24, depth=1, epochs=1, batch_size=64, checkpoint="")
    runs = seeded(p)
    assert list(runs) == [3, 4, 5] and runs[3] is p and [runs[seed].seed for seed in runs] == list(runs)
    models = [pretrain(runs[seed], store, progress=False)[0] for seed in (3, 4)]
    x = store.read([0, 1])
    assert not torch.equal(*(model.eval().encoder.features(x) for model in models))
    found = notebook.checkpoints(p)
    assert list(found) == [3, 4] and capsys.readouterr().out == "Not pretrained here and left out: seed 5 (chapter 03 makes them)\n"
    for folder, model in zip(found.values(), models, strict=True):
        assert torch.equal(objectives.load(folder).eval().encoder.features(x), model.encoder.features(x))
    alone = pretrain(parameters(tmp_path / "alone", seed=4, width=24, depth=1, epochs=1, batch_size=64), store, progress=False)[0]
    assert torch.equal(alone.eval().encoder.features(x), models[1].encoder.features(x)), "a further run is the run of its seed"


def test_what_is_saved_is_what_was_trained(store, tmp_path):
    p = parameters(tmp_path, contrast_weight=0.7, mask_ratio=0.5)
    model, log = pretrain(p, store, progress=False)
    again = CRMAE.from_pretrained(tmp_path / "pretrain" / "model").eval()
    assert (again.contrast_weight, again.mask_ratio) == (0.7, 0.5)
    x, hidden = store.read([0, 1]), torch.tensor([[2, 3]] * 2)
    assert torch.equal(model.reconstruct(x, hidden=hidden)[0], again.reconstruct(x, hidden=hidden)[0])
    assert log["epoch"].iloc[-1] == 2
    resumed, same = pretrain(p, store, progress=False)
    assert same.equals(log) and torch.equal(resumed.reconstruct(x, hidden=hidden)[0], again.reconstruct(x, hidden=hidden)[0])


def test_every_objective_goes_the_whole_road(store, tmp_path):
    assert params.SCHEMA["objective"].choices == tuple(objectives.OBJECTIVES)
    for name in objectives.OBJECTIVES:
        p = parameters(tmp_path / name, objective=name, width=24, depth=1, epochs=1, batch_size=64, lead_drop=0.25)
        model, log = pretrain(p, store, progress=False)
        assert np.isfinite(log["loss"]).all() and model.lead_drop == 0.25
        again = objectives.load(p.run_dir / "pretrain" / "model")
        assert type(again) is objectives.OBJECTIVES[name] and again.options == model.options
        features = again.eval().encoder.features(store.read([0, 1]))
        assert torch.equal(features, model.encoder.features(store.read([0, 1])))


def test_an_objective_gets_those_parameters_that_it_has():
    assert set(OPTIONS) < set(PARAMETERS) < set(params.SCHEMA)
    for name, known in {"regulariser": REGULARISERS, "contrast_schedule": SCHEDULES, "contrasted": CONTRASTED}.items():
        assert params.SCHEMA[name].choices == tuple(known)
    assert unused("cr_mae") == ["momentum"] and unused("cr_mae", 0.5) == [] and "momentum" not in unused("jepa")
    weighted, read = (
        ["contrast_weight", "contrast_schedule", "regulariser"],
        ["contrasted", "projected", "latent_weight", "measured_weight"],
    )
    assert unused("mae") == [*weighted, "temperature", *read, "momentum"]
    masked = ["mask_ratio", "block", "decoder_width", "decoder_depth"]
    assert unused("simclr") == [*masked, *weighted, *read, "momentum", "patch_norm"]
    for option in OPTIONS:
        assert any(option in objectives.options(name) for name in objectives.OBJECTIVES), option


def test_measurements_reach_the_loss(store, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("crema_lib.objectives.cr_mae.known_loss", lambda p, t: seen.append((p.shape, t)) or known_loss(p, t))
    p = parameters(tmp_path, measured_weight=0.5, width=24, depth=1, epochs=2, batch_size=64)
    model, log = pretrain(p, store, progress=False)
    expected = waves.normal_scores(waves.features(store)[0][store.rows(range(1, 9))])
    assert {tuple(shape) for shape, _ in seen} == {(32, waves.COUNT)} and model.targets(store, [0, 5]).shape == (2, waves.COUNT)
    known = np.unique(expected[~np.isnan(expected)])
    assert all(np.isin(t[~t.isnan()].numpy(), known).all() and t.isnan().any() for _, t in seen)
    assert log["measured"].iloc[-1] < 1.1 and (log["loss"] > log["mae"] + 0.5 * log["measured"]).all()
    assert pretrain(p, store, progress=False)[1].equals(log), "a run that is complete is only loaded"


def test_the_regulariser_reaches_the_model(store, tmp_path):
    p = parameters(tmp_path, regulariser="uniformity", width=24, depth=1, epochs=1, batch_size=64)
    assert pretrain(p, store, progress=False)[0].regulariser == "uniformity"


def test_the_chapter_declares_what_pretraining_reads():
    declared = set(bookbuild.declared("book/03_pretraining.ipynb"))
    assert declared == set(PARAMETERS) | {"profile", "out", "pretrainings"}
