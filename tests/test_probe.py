"""The probes against their formulas and scikit-learn, the frozen encoder, the cache of embeddings, and the folds."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from crema_lib import embeddings
from crema_lib.data import labels
from crema_lib.data.simulate import simulated_store
from crema_lib.embeddings import embed_store
from crema_lib.errors import CremaError
from crema_lib.metrics import auroc
from crema_lib.probes import linear as probe
from crema_lib.probes import neighbours, pooling, regression
from crema_lib.sit import SiT
from crema_lib.xresnet import XResNet1d


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 400, seed=0, fs=100, seconds=5)


def encoder(**options):
    torch.manual_seed(0)
    return SiT(**{"fs": 100, "seconds": 5, "width": 32, "depth": 2, "heads": 2, **options})


def problem(records=400, features=8, seed=0, hits=None):
    """Correlated features away from zero, and labels with so many positives that depend on them."""
    hits = hits or (records // 2, records // 10, 1)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(records, features)) @ rng.normal(size=(features, features)) + 3
    order = np.argsort(x[:, : len(hits)] + 2 * rng.normal(size=(records, len(hits))), axis=0)
    y = np.zeros((records, len(hits)))
    for k, n in enumerate(hits):
        y[order[-n:], k] = 1
    return x, y


# --- linear


@pytest.mark.parametrize(("records", "features"), [(400, 8), (30, 50)], ids=["more records", "more features"])
def test_weights_equal_scikit_learn(records, features):
    x, y = problem(records, features)
    z = StandardScaler().fit_transform(x)
    strengths = (1.0, 0.1, 0.01)  # the second and third start from those before
    for ours in probe.fit_path(x, y, strengths, tolerance=1e-12):
        for k in range(3):
            theirs = LogisticRegression(C=1 / (ours.strength * records), tol=1e-12, max_iter=10000).fit(z, y[:, k])
            np.testing.assert_allclose(ours.weight[:, k], theirs.coef_[0], atol=2e-5)
            np.testing.assert_allclose(ours.bias[k], theirs.intercept_[0], atol=2e-5)
            np.testing.assert_allclose(ours.scores(x)[:, k], theirs.predict_proba(z)[:, 1], atol=1e-5)


def test_single_precision_and_the_usual_tolerance_are_enough():
    x, y = problem()
    exact = probe.LinearProbe().fit(x, y, 1e-3, tolerance=1e-12).scores(x)
    usual = probe.LinearProbe().fit(x.astype(np.float32), y, 1e-3).scores(x)
    assert usual.dtype == np.float32
    assert 0 < np.abs(usual - exact).max() < 0.01


def test_axes_of_other_records_lead_to_the_same_weights(monkeypatch):
    x, y = problem(400)
    axes = probe.PrincipalAxes.of(probe.as_tensor(x[:300]))[0].axes
    own = probe.LinearProbe().fit(x, y, 0.01, tolerance=1e-14)
    monkeypatch.setattr(torch.linalg, "eigh", None)  # nothing is left to find
    given = probe.LinearProbe().fit(x, y, 0.01, axes=axes, tolerance=1e-14)
    np.testing.assert_allclose(given.weight, own.weight, atol=1e-6)
    np.testing.assert_allclose(given.scores(x), own.scores(x), atol=1e-6)


def test_a_label_that_the_training_records_lack_is_nan_and_leaves_the_others_alone():
    x, y = problem()
    alone = probe.LinearProbe().fit(x, y[:, :2], 0.01)
    padded = probe.LinearProbe().fit(x, np.c_[0 * y[:, :1], y[:, :2], 1 + 0 * y[:, :1]], 0.01)
    assert np.isnan(padded.scores(x)[:, [0, 3]]).all()
    assert padded.weight.isfinite().all() and padded.bias.isfinite().all()
    np.testing.assert_allclose(padded.scores(x)[:, 1:3], alone.scores(x), atol=1e-6)


def test_the_strength_is_chosen_on_the_validation_records():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 40)), rng.integers(0, 2, (60, 1))
    valid = rng.normal(size=(500, 40)), rng.integers(0, 2, (500, 1))
    chosen, trail = probe.fit_probe((x, y), valid)
    assert [entry["strength"] for entry in trail] == sorted(probe.STRENGTHS, reverse=True)
    assert chosen.strength == max(trail, key=lambda entry: entry["valid"])["strength"]


def test_a_remembered_probe_is_not_fitted_again(tmp_path, monkeypatch):
    x, y = problem()
    train, valid = (x[:300], y[:300]), (x[300:], y[300:])
    plain, _ = probe.fit_probe(train, valid)
    first, trail = probe.remembered(tmp_path)(train, valid, device="cpu")
    np.testing.assert_array_equal(first.scores(x), plain.scores(x))
    monkeypatch.setattr(probe.logistic, "minimise", lambda *a, **k: pytest.fail("fitted"))
    again, same = probe.remembered(tmp_path)(train, valid, device="cpu")
    np.testing.assert_array_equal(again.scores(x), first.scores(x))
    assert same == trail
    for other in ((x[:300] + 1e-6, y[:300]), (x[:300], 1 - y[:300])):
        with pytest.raises(pytest.fail.Exception, match="fitted"):
            probe.remembered(tmp_path)(other, valid, device="cpu")
    monkeypatch.setattr(probe.inspect, "getsource", lambda module: "other code")
    with pytest.raises(pytest.fail.Exception, match="fitted"):
        probe.remembered(tmp_path)(train, valid, device="cpu")


def test_a_remembered_attention_probe_is_the_same_one(tmp_path, monkeypatch):
    x, y = problem(120)
    tokens = np.random.default_rng(0).normal(size=(120, 5, x.shape[1])).astype(np.float32)
    parts = (tokens[:80], y[:80]), (tokens[80:], y[80:])
    first, trail = probe.remembered(tmp_path, pooling.fit_attention)(*parts, seed=1, epochs=1)
    monkeypatch.setattr(pooling, "fit_probe", lambda *a, **k: pytest.fail("trained"))
    again, same = probe.remembered(tmp_path, pooling.fit_attention)(*parts, seed=1, epochs=1)
    np.testing.assert_array_equal(again.scores(tokens), first.scores(tokens))
    assert same == trail
    with pytest.raises(pytest.fail.Exception, match="trained"):
        probe.remembered(tmp_path, pooling.fit_attention)(*parts, seed=2, epochs=1)


def test_what_no_probe_can_be_made_of():
    x, y = problem(60)
    broken = np.where(np.arange(60)[:, None] == 7, np.nan, x)
    swapped = np.c_[y[:, 0], 0 * y[:, 0]], np.c_[0 * y[:, 0], y[:, 0]]
    for train, valid, sentence in (
        ((x[:0], y[:0]), (x, y), "0 features and 0 targets of the training records"),
        ((x, y), (x, y[:5]), "60 features and 5 targets of the validation records"),
        ((broken, y), (x, y), "1 of the training records have features that are NaN"),
        ((x, y), (broken, y), "1 of the validation records have features that are NaN"),
        ((x, np.nan * y), (x, y), "training records hold values other than 0 and 1"),
        ((x, 0 * y), (x, y), "no label has both a positive and a negative among the training"),
        ((x, y), (x, 0 * y), "no label has both a positive and a negative among the validation"),
        ((x, swapped[0]), (x, swapped[1]), "among both training and validation records: nothing can be chosen"),
    ):
        for fit in (probe.fit_probe, neighbours.fit_neighbours):
            with pytest.raises(CremaError, match=sentence):
                fit(train, valid)
    with pytest.raises(CremaError, match="must be positive, not 0"):
        probe.LinearProbe().fit(x, y, 0)


# --- nearest neighbours


def test_votes_equal_the_formula():
    x, y = problem(50)
    z = StandardScaler().fit(x)
    unit = z.transform(x) / np.linalg.norm(z.transform(x), axis=1)[:, None]
    near = np.argsort(-(unit @ unit.T), axis=1)[:, :7]
    weight = np.exp(np.take_along_axis(unit @ unit.T, near, 1) / 0.07)
    expected = (weight[:, :, None] * y[near]).sum(1) / weight.sum(1)[:, None]
    ours = neighbours.NeighbourProbe(x, y, k=7)
    np.testing.assert_allclose(ours.scores(x), expected, atol=1e-9)
    np.testing.assert_allclose(ours.votes(x, (3, 7))[1], expected, atol=1e-9)
    assert neighbours.NeighbourProbe(x, y, k=500).scores(x).shape == (50, 3), "fewer records than neighbours asked for"
    assert np.isnan(neighbours.NeighbourProbe(x, np.c_[y, 0 * y[:, 0]]).scores(x)).any(0).tolist() == [False] * 3 + [True]


def test_the_number_of_neighbours_is_chosen_on_the_validation_records():
    x, y = problem(300, hits=(150,))
    chosen, trail = neighbours.fit_neighbours((x[:200], y[:200]), (x[200:], y[200:]), counts=(1, 20, 1000))
    assert [entry["k"] for entry in trail] == [1, 20, 1000]
    assert chosen.k == min(max(trail, key=lambda entry: entry["valid"])["k"], 200)


# --- attention pooling


def test_attention_pooling_is_multi_head_attention_with_one_query():
    x, y = problem(50, 6)
    linear = probe.LinearProbe().fit(x.astype(np.float32), y, 0.1)
    ours, tokens = pooling.AttentionProbe(linear, heads=2), torch.randn(5, 4, 6)
    torch.nn.init.normal_(ours.weight)
    z = (tokens - linear.mean) / linear.deviation
    expected = linear.bias.repeat(5, 1)
    for h in range(2):
        query = ours.query[:, h].expand(5, 1, 6)
        pooled = torch.nn.functional.scaled_dot_product_attention(query, z, z)[:, 0]
        expected = expected + pooled @ ours.weight[6 * h : 6 * h + 6]
    torch.testing.assert_close(ours(tokens), expected)


def test_attention_pooling_starts_as_the_linear_probe_of_the_mean_token():
    x, y = problem(50, 6)
    linear, tokens = probe.LinearProbe().fit(x.astype(np.float32), y, 0.1), np.random.default_rng(0).normal(size=(9, 4, 6))
    start = pooling.AttentionProbe(linear)
    torch.nn.init.zeros_(start.query)
    np.testing.assert_allclose(start.scores(tokens), linear.scores(tokens.mean(1)), atol=1e-5)


def test_attention_pooling_finds_the_token_that_counts():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(900, 10, 8)).astype(np.float16)
    place, y = rng.integers(0, 10, 900), rng.integers(0, 2, (900, 1))
    tokens[np.arange(900), place, 0] += 3  # here is what counts,
    tokens[np.arange(900), place, 1] = 2 * y[:, 0] - 1  # and this is what it says: the mean over tokens drowns it
    train, valid, test = (slice(0, 600), slice(600, 750), slice(750, 900))
    told = (tokens[train], y[train]), (tokens[valid], y[valid])
    chosen, trail = pooling.fit_attention(*told, epochs=15, lr=0.02, query_lr=0.2, batch_size=100)
    mean = probe.fit_probe(*((tokens[part].mean(1, dtype=np.float32), y[part]) for part in (train, valid)))[0]
    attended, averaged = (auroc(y[test], s)[0] for s in (chosen.scores(tokens[test]), mean.scores(tokens[test].mean(1, dtype=np.float32))))
    assert attended > averaged + 0.1
    best = max(trail, key=lambda entry: entry["valid"])["valid"]
    assert auroc(y[valid], chosen.scores(tokens[valid]))[0] == pytest.approx(best), "the kept weights are those of the best epoch"
    short = [pooling.fit_attention(*told, epochs=1)[0].scores(tokens[test]) for _ in range(2)]
    np.testing.assert_array_equal(*short)


def test_attention_pooling_wants_tokens():
    x, y = problem(60)
    with pytest.raises(CremaError, match="takes tokens"):
        pooling.fit_attention((x, y), (x, y))
    chosen, _ = pooling.fit_attention((x[:, None], np.c_[y, 0 * y[:, 0]]), (x[:, None], np.c_[y, y[:, 0]]), epochs=1)
    assert np.isnan(chosen.scores(x[:, None])).any(0).tolist() == [False] * 3 + [True]


# --- a number


@pytest.mark.parametrize(("records", "features"), [(200, 8), (30, 50)], ids=["more records", "more features"])
def test_ridge_equals_scikit_learn(records, features):
    x, _ = problem(records, features, hits=(5,))
    years = 50 + x[:, 0] + np.random.default_rng(1).normal(size=records)
    z = StandardScaler().fit_transform(x)
    for strength in (1.0, 0.01):
        ours, _ = regression.fit_ridge((x, years), (x, years), [strength])
        theirs = Ridge(alpha=strength * records).fit(z, years)
        np.testing.assert_allclose(ours.scores(x), theirs.predict(z), atol=1e-6)
    chosen, trail = regression.fit_ridge((x[::2], years[::2]), (x[1::2], years[1::2]))
    assert chosen.strength == max(trail, key=lambda entry: entry["valid"])["strength"]
    with pytest.raises(CremaError, match="as many finite numbers"):
        regression.fit_ridge((x, np.nan * years), (x, years))


def test_age_is_scored_on_fold_10_without_the_oldest(store):
    years = labels.age(store.table)
    told = np.nan_to_num(years)[:, None] + np.random.default_rng(0).normal(size=(400, 1))
    result, trail = regression.probe_age(store, {"told": told}, bootstrap=200)
    test = (store.table["fold"] == 10).to_numpy() & np.isfinite(years)
    train = (store.table["fold"] < 9).to_numpy() & np.isfinite(years)
    assert result["MAE"].positives.tolist() == [test.sum()]
    assert result["MAE"].macro("told").value < 2 < result["MAE"].macro("mean age").low
    constant = np.full(test.sum(), years[train].mean())
    assert result["R2"].macro("mean age").value == pytest.approx(r2_score(years[test], constant))
    assert result["MAE"].macro("mean age").value == pytest.approx(np.abs(years[test] - constant).mean())
    assert result["R2"].macro("told").low > 0.9
    assert result["MAE"].gain("told", "mean age").high < 0
    assert sum(entry["chosen"] for entry in trail) == 1
    weights = np.random.default_rng(0).integers(0, 3, (5, test.sum()))
    expected = [r2_score(years[test], constant, sample_weight=w) for w in weights]
    np.testing.assert_allclose(regression.r2(years[test], constant, weights), expected)


# --- frozen encoder and cache


@pytest.mark.parametrize("readout", ["mean", "layers", "cls", "tokens"])
def test_embedding_leaves_the_encoder_bit_for_bit_as_it_was(store, readout):
    model = encoder(drop_path=0.5, cls_token=True).train()
    model.blocks[0].eval()  # as partial fine-tuning leaves it
    unchanged(model, store, readout)
    assert [block.training for block in model.blocks] == [True, False][::-1]


def test_a_convolutional_network_is_frozen_too(store):
    model = XResNet1d(fs=100, seconds=5, width=4, depth="xresnet1d50", hidden=16).train()
    unchanged(model, store, "mean")
    with pytest.raises(CremaError, match="unknown readout 'tokens' for this XResNet1d"):
        embed_store(model, store, readout="tokens")


def unchanged(model, store, readout):
    before = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    first, second = (embed_store(model, store, range(24), readout=readout, batch_size=size) for size in (24, 10))
    np.testing.assert_allclose(first, second, atol=1e-2 if readout == "tokens" else 1e-5, err_msg="no drop path, no batch statistics")
    assert model.training
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_embed_store_equals_features(store):
    model = encoder(cls_token=True).eval()
    rows = [5, 17, 3]
    signal, mask = store.read(rows), torch.from_numpy(store.lead_mask[rows])
    *vectors, tokens = embed_store(model, store, rows, readout=["mean", "cls", "layers", "tokens"])
    with torch.no_grad():
        for readout, found in zip(("mean", "cls", "layers"), vectors, strict=True):
            np.testing.assert_allclose(found, model.features(signal, mask, readout), atol=1e-6)
        np.testing.assert_allclose(tokens, model(signal, mask)[:, 1:], atol=1e-2)
    assert tokens.dtype == np.float16 and tokens.shape == (3, 20, 32)


def test_a_second_embedding_comes_from_the_cache(store, tmp_path):
    model = encoder()
    fresh = embed_store(model, store)
    first = embed_store(model, store, cache=tmp_path)
    np.testing.assert_array_equal(first, fresh)
    batches = []
    model.register_forward_hook(lambda _, args, __: batches.append(len(args[0])))
    np.testing.assert_array_equal(embed_store(model, store, cache=tmp_path), first)
    assert batches == [4], "four records are computed, to compare"
    tokens = [embed_store(model, store, readout="tokens", cache=tmp_path) for _ in range(2)]
    assert isinstance(tokens[0], np.memmap) and not tokens[0].flags.writeable
    np.testing.assert_array_equal(*tokens)
    both = embed_store(model, store, readout=["tokens", "mean"], cache=tmp_path)
    np.testing.assert_array_equal(both[0], tokens[0])
    np.testing.assert_array_equal(both[1], first)
    assert sorted(path.name.rsplit("-")[-1] for path in tmp_path.iterdir()) == ["mean.npy", "tokens.npy"]


def test_what_changes_the_features_misses_the_cache(store, tmp_path):
    def entries(model, data=store, **options):
        embed_store(model, data, **{"rows": range(40), "cache": tmp_path, **options})
        return len(list(tmp_path.iterdir()))

    assert entries(encoder()) == 1
    assert entries(encoder()) == 1
    assert entries(encoder(), readout="layers") == 2
    assert entries(encoder(), rows=range(41)) == 3
    assert entries(encoder(heads=4)) == 4, "the same weights, used otherwise"
    model = encoder()
    with torch.no_grad():
        model.blocks[1].mlp.fc2.bias[3] += 1e-6
    assert entries(model) == 5
    model = encoder()
    model.scale += 1e-6
    assert entries(model) == 6
    other, masked = (type(store)(store.path) for _ in range(2))
    other.meta["sha256"] = "0" * 64
    assert entries(encoder(), other) == 7
    masked.lead_mask[3, 2] = False
    assert entries(encoder(), masked) == 8


def test_a_cache_entry_that_does_not_hold_is_made_anew(store, tmp_path):
    model, options = encoder(), {"rows": range(40), "cache": tmp_path}
    right = embed_store(model, store, **options)
    (path,) = tmp_path.iterdir()
    for damage in (lambda: path.write_bytes(path.read_bytes()[:-50]), lambda: path.write_bytes(b""), lambda: np.save(path, right + 1)):
        damage()
        np.testing.assert_array_equal(embed_store(model, store, **options), right)
    path.unlink()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(0) if len(calls) < 4 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        embed_store(model.train(), store, batch_size=8, **options)
    assert not list(tmp_path.iterdir()), "whole or not at all"
    assert model.training


def test_an_encoder_that_does_not_fit(store):
    for model, sentence in (
        (encoder(fs=50), r"takes 50 Hz .* store holds 100 Hz"),
        (encoder(seconds=2), "500 samples do not fit"),
    ):
        with pytest.raises(CremaError, match=sentence):
            embed_store(model, store)
    eight = type(store)(store.path)
    eight.meta["leads"] = store.meta["leads"][:8]
    with pytest.raises(CremaError, match=r"and leads I II III .* holds 100 Hz and leads I II"):
        embed_store(encoder(), eight)
    with pytest.raises(CremaError, match="no record to embed"):
        embed_store(encoder(), store, [])
    damaged = encoder()
    damaged.norm.weight.data[0] = torch.nan
    with pytest.raises(CremaError, match="NaN or infinite: its weights are damaged"):
        embed_store(damaged, store)
    assert embeddings.fingerprint(damaged) != embeddings.fingerprint(encoder())


# --- tasks


def test_probe_task_keeps_folds_apart(store):
    seen = []

    def fit(train, valid, device):
        seen.append((train[0][:, 0].tolist(), valid[0][:, 0].tolist()))
        return probe.fit_probe(train, valid, device=device)

    x = np.arange(400, dtype=np.float32)[:, None]
    result, trail = probe.probe_task(store, {"row": (fit, x)}, "super", bootstrap=20)
    kept, fold = labels.matrix(store.table, "super")[2], store.table["fold"].to_numpy()
    assert seen == [(np.flatnonzero(kept & (fold < 9)).tolist(), np.flatnonzero(kept & (fold == 9)).tolist())]
    assert result.positives.sum() > 0 and sum(entry["chosen"] for entry in trail) == 1


def test_the_probes_find_what_is_there(store):
    targets, *_ = labels.matrix(store.table, "super")
    noise = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    told = targets + 0.1 * noise
    arms = {
        "told": told,
        "told, kNN": (neighbours.fit_neighbours, told),
        "told, attention": (pooling.fit_attention, told[:, None]),
        "noise": noise,
    }
    result, _ = probe.probe_task(store, arms, "super", bootstrap=200)
    assert min(result.macro(name).value for name in arms if name != "noise") > 0.95
    assert 0.3 < result.macro("noise").value < 0.7
    assert result.gain("told", "noise").low > 0.1


def test_sex_is_a_task(store):
    told = (store.table["sex"] == "F").to_numpy(dtype=np.float32)[:, None]
    result, _ = probe.probe_task(store, {"told": told}, "sex", bootstrap=20)
    assert result.names == ("female",) and result.macro("told").value == 1


def test_a_label_that_a_split_lacks_is_left_out_and_named(store, monkeypatch):
    targets, names, kept = labels.matrix(store.table, "super")
    fold = store.table["fold"].to_numpy()
    targets[fold < 9, 1] = 0
    targets[fold == 10, 2] = 0
    monkeypatch.setattr(probe, "matrix", lambda *_: (targets, names, kept))
    noise = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    arms = {"linear": noise, "kNN": (neighbours.fit_neighbours, noise)}
    result, _ = probe.probe_task(store, arms, "super", bootstrap=20)
    assert set(result.left_out) == {names[1], names[2]}
    assert result.names == tuple(np.delete(names, [1, 2]))
    broken = np.where((fold == 10)[:, None], np.nan, noise)
    with pytest.raises(CremaError, match="of the test records have features that are NaN"):
        probe.probe_task(store, {"broken": broken}, "super")


def test_a_split_that_cannot_be_trusted_is_refused(store):
    mixed = type(store)(store.path)
    mixed.table = store.table.assign(patient="one")
    with pytest.raises(CremaError, match="on two sides of the split"):
        probe.probe_task(mixed, {"x": np.zeros((400, 1), dtype=np.float32)}, "super")
