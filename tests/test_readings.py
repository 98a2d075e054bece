"""Readings of features against slow loops, explicit resamples, scikit-learn and closed forms; features of every block and of views."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from crema_lib import readings
from crema_lib.data.simulate import simulated_store
from crema_lib.errors import CremaError
from crema_lib.metrics import patient_counts
from crema_lib.sit import SiT

WHO = np.arange(60) // 2  # two recordings of each patient
MANY = np.arange(600)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(float)


def resampled(reading, *features, n=40, patients=WHO):
    """A reading of each resample, its records written out as often as they were drawn."""
    drawn = [np.repeat(np.arange(len(patients)), counts) for counts in patient_counts(patients, n, 0)]
    return np.array([reading(*(x[rows] for x in features)) for rows in drawn])


def ends(values):
    return np.quantile(values, [0.025, 0.975])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("readings") / "s", 24, seed=0, seconds=5)


def encoder(seed=0, **options):
    torch.manual_seed(seed)
    return SiT(**{"fs": 100, "seconds": 5, "width": 32, "depth": 3, "heads": 2, **options})


def read(reading, a, patients=WHO, b=None, **options):
    """One reading of one encoder: (value, low, high)."""
    table = readings.geometry({"one": (a, a if b is None else b)}, patients, **options).set_index("reading")
    return table.loc[reading, ["value", "low", "high"]].astype(float)


# --- on the sphere


def test_alignment_is_the_mean_distance_of_directions():
    a, b = normal(60, 5), normal(60, 5, seed=1)
    distance = np.array([np.linalg.norm(x / np.linalg.norm(x) - y / np.linalg.norm(y)) ** 2 for x, y in zip(a, b, strict=True)])
    found = read("alignment", a, b=b, n=40)
    assert found.value == pytest.approx(distance.mean(), rel=1e-6)
    np.testing.assert_allclose([found.low, found.high], ends(resampled(np.mean, distance)), rtol=1e-6)


def test_alignment_of_equal_and_of_opposite_views():
    a = normal(60, 5)
    assert read("alignment", a, b=3 * a, n=5).high < 1e-12
    assert read("alignment", a, b=-a, n=5).value == pytest.approx(4)


def test_uniformity_is_that_of_its_definition():
    x = normal(60, 3)
    z = x / np.linalg.norm(x, axis=1, keepdims=True)

    def slow(counts):
        pairs = [(i, j) for i in range(60) for j in range(i) if WHO[i] != WHO[j]]
        weights = np.array([counts[i] * counts[j] for i, j in pairs])
        return np.log(np.average([np.exp(-2 * ((z[i] - z[j]) ** 2).sum()) for i, j in pairs], weights=weights))

    found = read("uniformity", x, n=15)
    assert found.value == pytest.approx(slow(np.ones(60)), abs=1e-5)
    np.testing.assert_allclose([found.low, found.high], ends([slow(c) for c in patient_counts(WHO, 15, 0)]), atol=1e-5)
    assert read("uniformity", np.outer(np.arange(1, 61), normal(4)), n=5).value == pytest.approx(0, abs=1e-6)
    assert read("uniformity", normal(600, 400), MANY, n=2).value == pytest.approx(-4, abs=0.05)


def test_uniformity_of_a_sample_is_near_that_of_all(monkeypatch):
    x = normal(600, 3) + 0.5
    of_all, few = read("uniformity", x, MANY, n=5), read("uniformity", x[:300], MANY[:300], n=5)
    monkeypatch.setattr(readings, "MOST", 300)
    sample = read("uniformity", x, MANY, n=5)
    assert sample.value == pytest.approx(of_all.value, abs=0.1) and sample.value != of_all.value
    assert read("uniformity", x[:300], MANY[:300], n=5).equals(few)


# --- rank


def slow_rank(x):
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    p = s[s > 1e-6 * s[0]] / s.sum()
    return np.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize("shape", [(60, 7), (60, 90)], ids=["more records", "more features"])
def test_effective_rank_is_that_of_the_singular_values(shape):
    x = normal(*shape) * np.arange(1, shape[1] + 1) + 5
    found = read("effective rank", x, n=40)
    assert found.value == pytest.approx(slow_rank(x), rel=1e-4)
    low, high = ends(resampled(slow_rank, x))
    basic = np.clip([2 * found.value - high, 2 * found.value - low], 1, min(shape))
    np.testing.assert_allclose([found.low, found.high], basic, rtol=1e-4)


def test_effective_rank_in_closed_form():
    x = normal(60, 9)
    axes = np.linalg.qr(x - x.mean(0))[0]  # orthonormal, each of mean 0
    assert read("effective rank", axes[:, :8], n=5).value == pytest.approx(8, rel=1e-4)
    line = np.outer(np.arange(1, 61), normal(6))
    assert read("effective rank", line, n=5).value == pytest.approx(1, abs=1e-3)
    assert read("first axis", line, n=5).low == pytest.approx(1, abs=1e-6)
    two = axes[:, :2] * [3, 1]  # p = 3/4, 1/4
    assert read("effective rank", two, n=5).value == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)), rel=1e-4)


def test_the_interval_holds_the_rank_of_the_population():
    sizes = np.arange(1, 31.0) ** -0.5
    p = sizes / sizes.sum()
    true, hits, below = np.exp(-(p * np.log(p)).sum()), 0, 0
    for seed in range(20):
        x = normal(600, 30, seed=seed) * sizes
        found = read("effective rank", x, MANY, n=60, seed=seed)
        hits += found.low <= true <= found.high
        below += 2 * found.value - found.low < true  # upper end of the percentile interval
    assert hits >= 17
    assert below >= 15, "the percentile interval lies below it"


def test_first_axis_equals_scikit_learn():
    x = normal(60, 6) @ normal(6, 6, seed=1) + 4
    found = read("first axis", x, n=40)
    share = lambda z: PCA().fit(z).explained_variance_ratio_[0]  # noqa: E731
    assert found.value == pytest.approx(share(x), rel=1e-5)
    np.testing.assert_allclose([found.low, found.high], ends(resampled(share, x)), rtol=1e-5)


def test_dead_features_are_counted():
    x = normal(60, 8)
    x[:, 0] = 3
    x[:, 1] = 3 + 1e-4 * x[:, 1]
    x[:, 2] *= 0.1
    assert read("dead features", x, n=40).tolist() == [0.25, 0.25, 0.25]
    x[:, 2] *= 0.1  # 0.01 of a normal deviate is below 0.01 of the root mean square, which the constants enlarge
    assert read("dead features", x, n=5).value == 0.375
    x[:, 3] = WHO == 7  # alive in one patient alone, whom some resamples lack
    assert read("dead features", x, n=200).high == 0.5


# --- likeness


def slow_cka(x, y):
    k, l = ((z - z.mean(0)) @ (z - z.mean(0)).T for z in (x, y))  # noqa: E741
    return (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())


def slow_debiased(x, y):
    """CKA from the estimator of Song et al. on Gram matrices without their diagonals."""

    def hsic(k, l):  # noqa: E741
        n, one = len(k), np.ones(len(k))
        mixed = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ l) + mixed - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))

    k, l = (z @ z.T * (1 - np.eye(len(z))) for z in (x, y))  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def test_cka_equals_that_of_the_gram_matrices():
    x = normal(60, 5) + 2
    y = x @ normal(5, 9, seed=1) + 3 * normal(60, 9, seed=2)
    plain, debiased = (readings.linear_cka(x, y, WHO, debiased=flag, n=40) for flag in (False, True))
    assert plain.value == pytest.approx(slow_cka(x, y), rel=1e-5)
    assert debiased.value == pytest.approx(slow_debiased(x, y), rel=1e-4)
    low, high = ends(resampled(slow_cka, x, y))
    np.testing.assert_allclose([plain.low, plain.high], [2 * plain.value - high, min(1, 2 * plain.value - low)], rtol=1e-4)
    assert debiased.high - debiased.low == pytest.approx(plain.high - plain.low, rel=1e-6)


def test_cka_does_not_see_rotation_scale_and_offset():
    x = normal(60, 6)
    turned = 7 * x @ np.linalg.qr(normal(6, 6, seed=1))[0] + 4
    assert readings.linear_cka(x, turned, WHO, n=5).value == pytest.approx(1, abs=1e-6)
    assert readings.linear_cka(x, x * [9, 1, 1, 1, 1, 1], WHO, n=5).value < 0.9


def test_debiasing_takes_off_what_few_records_bring():
    x, y = normal(60, 50), normal(60, 50, seed=1)
    assert readings.linear_cka(x, y, WHO, n=5).value > 0.4
    assert abs(readings.linear_cka(x, y, WHO, debiased=True, n=5).value) < 0.1


@pytest.mark.parametrize("debiased", [False, True])
def test_the_matrix_holds_every_pair(debiased):
    x = normal(60, 4)
    features = {"a": x, "b": 100 * np.c_[x[:, :2], normal(60, 3, seed=1)], "c": normal(60, 7, seed=2)}
    table = readings.cka_matrix(features, WHO, debiased=debiased, n=20)
    matrix = table.pivot(index="a", columns="b", values="value")
    assert matrix.shape == (3, 3) and len(table) == 9
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(matrix), 1)
    slow = slow_debiased if debiased else slow_cka
    for a, b in (("a", "b"), ("b", "c")):
        assert matrix.loc[a, b] == pytest.approx(slow(features[a], features[b]), abs=1e-5)
    assert ((table["low"] <= table["high"] + 1e-12) & (table["high"] <= 1)).all()


# --- features


def test_every_encoder_gets_the_same_two_views(store):
    seen = {}
    state = torch.get_rng_state()
    for name in ("first", "second"):
        model = encoder(seed=len(seen))
        torch.set_rng_state(state)
        seen[name] = []
        model.register_forward_pre_hook(lambda _, args, into=seen[name]: into.append(torch.cat([args[0], args[1][..., None]], dim=2)))
        a, b = readings.view_features(model, store, batch_size=10)
        assert torch.equal(torch.get_rng_state(), state), "nobody else's draws change"
        assert a.shape == b.shape == (24, 32) and not np.allclose(a, b)
        np.testing.assert_array_equal(a, readings.view_features(model, store, batch_size=10)[0])
    assert all(torch.equal(x, y) for x, y in zip(seen["first"], seen["second"], strict=True))
    assert not torch.equal(seen["first"][0], seen["first"][1]), "two views differ"


def test_views_without_any_change_but_the_start(store):
    total = SiT(fs=100, seconds=5, width=32, depth=1, heads=2, patch=500)
    total.features = lambda signal, mask: torch.cat([signal.sum(2), mask.float()], dim=1)
    a, b = readings.view_features(total, store, gain=0, noise=0, lead_drop=0)
    np.testing.assert_allclose(a, b, atol=1e-2)
    np.testing.assert_allclose(a[:, :12], store.read(range(24)).sum(2), atol=1e-2)
    lost = readings.view_features(total, store, lead_drop=1)[0][:, 12:]
    assert 0.2 < lost.mean() < 0.8


def test_the_table_holds_each_reading_of_each_encoder():
    x, y = normal(60, 4), normal(60, 4, seed=1)
    table = readings.geometry({"a": (x, y), "b": (2 * x, x)}, WHO, n=10)
    assert list(table.columns) == ["encoder", "reading", "value", "low", "high"] and len(table) == 10
    found = table.set_index(["encoder", "reading"])
    assert found.loc[("b", "alignment"), "value"] == pytest.approx(0, abs=1e-12)
    for reading in ("uniformity", "effective rank", "first axis", "dead features"):
        np.testing.assert_allclose(*(found.loc[(name, reading)].tolist() for name in "ab"), err_msg="scale says nothing")


# --- what is refused


def test_what_cannot_be_read():
    x, broken = normal(60, 4), np.where(np.arange(60)[:, None] == 7, np.nan, normal(60, 4))
    zero = np.where(np.arange(60)[:, None] == 7, 0, x)
    point = np.full((60, 4), 0.1) + 1e-7 * x
    for call, sentence in (
        (lambda: read("alignment", broken), "1 of the given records have features that are NaN"),
        (lambda: read("alignment", x[:, 0]), "give \\(records, features\\)"),
        (lambda: read("alignment", x[:2], WHO[:2]), "are too few"),
        (lambda: read("alignment", x, WHO[:-1]), "59 patients do not fit features of 60, 60 records"),
        (lambda: read("alignment", x, 0 * WHO), "all records are of one patient"),
        (lambda: read("alignment", x, n=0), "at least one resample"),
        (lambda: read("alignment", x, b=x[:, :3]), "cannot be compared: give two equal"),
        (lambda: read("alignment", x, b=broken), "1 of the given records have features that are NaN"),
        (lambda: read("alignment", x, b=zero), "features of 1 records are all zero"),
        (lambda: read("uniformity", zero), "features of 1 records are all zero"),
        (lambda: read("effective rank", point), "collapsed to a point"),
        (lambda: readings.cka_matrix({"a": x}, WHO), "give the features of at least two"),
        (lambda: readings.linear_cka(x, point, WHO), "collapsed to a point"),
        (lambda: readings.linear_cka(x, x[:50], WHO), "60 patients do not fit features of 60, 50 records"),
        (lambda: readings.linear_cka(x[:3], x[:3], WHO[:3]), "4 records and 2 features or more"),
    ):
        with pytest.raises(CremaError, match=sentence):
            call()


def test_what_no_features_can_be_had_of(store):
    damaged = encoder()
    damaged.norm.weight.data[0] = torch.nan
    with pytest.raises(CremaError, match=r"takes 50 Hz .* holds 100 Hz"):
        readings.view_features(encoder(fs=50), store)
    with pytest.raises(CremaError, match="there is no record"):
        readings.view_features(encoder(), store, [])
    with pytest.raises(CremaError, match="its weights are damaged"):
        readings.view_features(damaged, store)
    for wrong in ({"gain": -1}, {"noise": np.nan}, {"lead_drop": 1.5}):
        with pytest.raises(CremaError, match="give gain and noise >= 0, lead_drop from 0 to 1"):
            readings.view_features(encoder(), store, **wrong)
