"""The linear probe against scikit-learn, the frozen encoder, and the folds."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from crema_lib import probe
from crema_lib.errors import CremaError
from crema_lib.simulate import simulated_store
from crema_lib.sit import SiT


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 400, seed=0, fs=100, seconds=5)


def encoder(**options):
    torch.manual_seed(0)
    return SiT(**{"fs": 100, "seconds": 5, "width": 32, "depth": 2, "heads": 2, **options})


def test_weights_equal_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 8)) + 3
    y = (x[:, :3] + rng.normal(size=(500, 3)) > [3, 6, 0]).astype(int)
    ours = probe.LinearProbe().fit(x, y, 0.01, iterations=300)
    z = (x - x.mean(0)) / x.std(0, ddof=1)
    for k in range(3):
        theirs = LogisticRegression(C=1 / (0.01 * 500), tol=1e-10, max_iter=10000).fit(z, y[:, k])
        np.testing.assert_allclose(ours.weight[:, k], theirs.coef_[0], atol=2e-3)
        np.testing.assert_allclose(ours.bias[k], theirs.intercept_[0], atol=2e-3)
        np.testing.assert_allclose(ours.scores(x)[:, k], theirs.predict_proba(z)[:, 1], atol=1e-3)


def test_a_warm_start_changes_nothing_but_time():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 10)), rng.integers(0, 2, (300, 4))
    cold = probe.LinearProbe().fit(x, y, 0.01, iterations=300)
    warm = probe.LinearProbe().fit(x, y, 0.01, probe.LinearProbe().fit(x, y, 1.0), iterations=300)
    torch.testing.assert_close(cold.weight, warm.weight, atol=1e-3, rtol=0)


def test_the_strength_is_chosen_on_the_validation_records():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 40)), rng.integers(0, 2, (60, 1))
    valid = rng.normal(size=(500, 40)), rng.integers(0, 2, (500, 1))
    chosen, trail = probe.fit_probe((x, y), valid)
    assert [entry["strength"] for entry in trail] == sorted(probe.STRENGTHS, reverse=True)
    assert chosen.strength == max(trail, key=lambda entry: entry["valid"])["strength"]
    with pytest.raises(CremaError, match="nothing can be chosen"):
        probe.fit_probe((x, y), (valid[0], 0 * valid[1]))
    with pytest.raises(CremaError, match="there are none"):
        probe.fit_probe((x[:0], y[:0]), valid)


def test_embedding_leaves_the_encoder_bit_for_bit_as_it_was(store):
    model = encoder(drop_path=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (probe.embed_store(model, store, batch_size=size) for size in (400, 64))
    np.testing.assert_allclose(first, second, atol=1e-5, err_msg="drop path must be off and batches must not matter")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_embed_store_equals_features(store):
    model = encoder().eval()
    rows = [5, 17, 3]
    with torch.no_grad():
        direct = model.features(store.read(rows), torch.from_numpy(store.lead_mask[rows]), "layers")
    np.testing.assert_allclose(probe.embed_store(model, store, rows, readout="layers"), direct, atol=1e-6)


def test_an_encoder_that_does_not_fit(store):
    with pytest.raises(CremaError, match="the encoder takes 50 Hz"):
        probe.embed_store(encoder(fs=50), store)


def test_probe_task_keeps_folds_apart(store, monkeypatch):
    seen = []
    real = probe.fit_probe
    monkeypatch.setattr(probe, "fit_probe", lambda train, valid: seen.append((len(train[0]), len(valid[0]))) or real(train, valid))
    features = {"id": np.arange(400, dtype=np.float32)[:, None] % 7}
    result, trail = probe.probe_task(store, features, "super", bootstrap=20)
    kept = probe.matrix(store.table, "super")[2]
    fold = store.table["fold"].to_numpy()
    assert seen == [((kept & (fold < 9)).sum(), (kept & (fold == 9)).sum())]
    assert result.positives.sum() > 0 and sum(entry["chosen"] for entry in trail) == 1


def test_the_probe_finds_what_is_there(store):
    targets, *_ = probe.matrix(store.table, "super")
    noise = np.random.default_rng(0).normal(size=(400, 20)).astype(np.float32)
    told = np.concatenate([noise, targets + 0.1 * noise[:, :5]], axis=1)
    result, _ = probe.probe_task(store, {"told": told, "noise": noise}, "super", bootstrap=200)
    assert result.macro("told").value > 0.95
    assert 0.3 < result.macro("noise").value < 0.7
    assert result.gain("told", "noise").low > 0.1
