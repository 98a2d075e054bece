"""Patient identification against slow references, scikit-learn and closed forms; the bootstrap, the spaces and every refusal."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from crema_lib import identity
from crema_lib.data.simulate import simulated_store
from crema_lib.data.store import TRAIN
from crema_lib.errors import CremaError
from crema_lib.metrics import auroc, patient_counts


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 300, seed=0, fs=100, seconds=5)


def people(number=40, spread=0.7, features=6, seed=0):
    """Features of patients with one to four recordings each, in mixed order, and their names."""
    rng = np.random.default_rng(seed)
    patients = rng.permutation(np.repeat(np.arange(number), rng.integers(1, 5, number)))
    x = rng.normal(size=(number, features))[patients] + spread * rng.normal(size=(len(patients), features)) + 1
    return x, np.array([f"p{i}" for i in patients])


X, PATIENTS = people()


def slow_ranks(x, patients, years):
    """Recording by recording, candidate by candidate: dict query -> rank."""
    cosine = lambda i, j: float(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]))  # noqa: E731
    several = [i for i in range(len(x)) if list(patients).count(patients[i]) > 1]
    first = [i for i in several if list(patients).index(patients[i]) == i]
    found = {}
    for i in sorted(set(several) - set(first)):
        known = [j for j in first if patients[j] == patients[i]]
        known = [j for j in known if years is None or (years[i] and years[j] and years[i] != years[j])]
        if known:
            best = max(cosine(i, j) for j in known)
            found[i] = 1 + sum(cosine(i, j) >= best for j in first if patients[j] != patients[i])
    return found


# --- retrieval


@pytest.mark.parametrize("block", [10**7, 500], ids=["at once", "in blocks"])
@pytest.mark.parametrize("dated", [False, True])
def test_ranks_equal_a_slow_reference(dated, block, monkeypatch):
    monkeypatch.setattr(identity, "BLOCK", block)
    x, patients = people()
    years = np.random.default_rng(1).choice([0, 1990, 1991], len(x)) if dated else None
    queries, rank, candidates = identity.ranks(x, patients, years=years)
    expected = slow_ranks(x, patients, years)
    assert dict(zip(queries.tolist(), rank.tolist(), strict=True)) == expected
    assert len(set(expected.values())) > 1, "not all of them are easy"
    sizes = {name: list(patients).count(name) for name in patients}
    assert candidates == sum(size > 1 for size in sizes.values())


def test_a_known_order():
    angles = np.deg2rad([0, 10, 25, 90, 30, 200])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array([[1, 5, 2, 1, 3, 9]]).T
    patients = ["a", "b", "a", "b", "c", "d"]
    queries, rank, candidates = identity.ranks(x, patients)
    assert queries.tolist() == [2, 3] and candidates == 2, "c and d have one recording"
    assert rank.tolist() == [2, 1], "25 degrees lie nearer to b at 10 than to a at 0, and 90 nearer to b"


def test_equal_cosines_count_against():
    _, rank, _ = identity.ranks(np.ones((6, 2)), ["a", "a", "b", "b", "c", "c"])
    assert rank.tolist() == [3, 3, 3], "an encoder that says the same of all identifies nobody"


# --- verification


def test_pairs_are_all_pairs():
    _, patients = people()
    rows, genuine = identity.pairs(patients, impostors=None)
    assert sorted(map(tuple, rows.tolist())) == list(combinations(range(len(patients)), 2))
    np.testing.assert_array_equal(patients[rows[:, 0]] == patients[rows[:, 1]], genuine)
    assert genuine.any()


def test_a_sample_of_impostors():
    _, patients = people()
    everything, genuine = identity.pairs(patients, impostors=None)
    rows, same = identity.pairs(patients, impostors=200, seed=3)
    drawn = set(map(tuple, rows[~same].tolist()))
    np.testing.assert_array_equal(rows[same], everything[genuine])
    assert len(drawn) == (~same).sum() and 150 < len(drawn) <= 200, "no pair twice"
    assert drawn <= set(map(tuple, everything[~genuine].tolist()))
    assert drawn == set(map(tuple, identity.pairs(patients, impostors=200, seed=3)[0][~same].tolist()))
    assert drawn != set(map(tuple, identity.pairs(patients, impostors=200, seed=4)[0].tolist()))


def test_the_number_of_a_pair_is_exact_for_large_sets(monkeypatch):
    patients = np.arange(30_000)
    patients[-1] = 0
    total = 30_000 * 29_999 // 2

    class Drawn:
        def choice(self, *_, **__):
            return np.array([0, 1, 2, total - 2, total - 29_999, total - 30_000])

    monkeypatch.setattr(np.random, "default_rng", lambda _: Drawn())
    rows, same = identity.pairs(patients, impostors=6)
    assert rows[same].tolist() == [[0, 29_999]]
    assert rows[~same].tolist() == [[0, 1], [0, 2], [1, 2], [29_997, 29_999], [29_997, 29_998]]


def test_repeats_of_one_year_are_left_out():
    patients, years = ["a", "a", "a", "b", "b", "c"], [1990, 1990, 1991, 1990, 0, 1992]
    rows, genuine = identity.pairs(patients, years=np.array(years))
    assert rows[genuine].tolist() == [[0, 2], [1, 2]]
    queries, _, candidates = identity.ranks(np.eye(6) + 1, patients, years=np.array(years))
    assert queries.tolist() == [2] and candidates == 2


def test_cosines_in_blocks(monkeypatch):
    x, patients = people()
    rows, _ = identity.pairs(patients, impostors=50)
    expected = [x[i] @ x[j] / np.sqrt((x[i] @ x[i]) * (x[j] @ x[j])) for i, j in rows]
    for block in (10**6, 40):
        monkeypatch.setattr(identity, "BLOCK", block)
        np.testing.assert_allclose(identity.cosines(x, rows), expected)


@pytest.mark.parametrize("decimals", [9, 1], ids=["distinct", "ties"])
def test_verification_equals_scikit_learn(decimals):
    rng = np.random.default_rng(0)
    genuine = rng.random(300) < 0.3
    scores = (rng.normal(size=300) + 1.2 * genuine).round(decimals)
    weights = rng.integers(0, 4, size=(5, 300))
    found = np.stack(identity.verify(genuine, scores, weights), axis=1)
    for (area, eer), w in zip([identity.verify(genuine, scores), *found], [np.ones(300), *weights], strict=True):
        accepts, hits, _ = roc_curve(genuine, scores, sample_weight=w, drop_intermediate=False)
        np.testing.assert_allclose(area, roc_auc_score(genuine, scores, sample_weight=w))
        grid = np.linspace(0, 1, 200_001)
        np.testing.assert_allclose(eer, grid[np.abs(1 - np.interp(grid, accepts, hits) - grid).argmin()], atol=1e-5)
    np.testing.assert_allclose(found[:, 0], auroc(genuine[:, None], scores[:, None], weights)[:, 0])


def test_verification_in_closed_form():
    assert identity.verify([True, True, False], [0.9, 0.8, 0.1]) == (1, 0)
    assert identity.verify([True, False], [0.1, 0.9]) == (0, 1)
    assert identity.verify([True, False, False], [0.5] * 3) == (0.5, 0.5), "one point of the curve: the diagonal"
    assert identity.verify([True, True, False, False], [4, 2, 3, 1]) == (0.75, 0.5)
    genuine = np.arange(4000) < 2000
    grid = norm.ppf((np.arange(2000) + 0.5) / 2000)
    area, eer = identity.verify(genuine, np.concatenate([grid + 2, grid]))
    assert area == pytest.approx(norm.cdf(2 / 2**0.5), abs=1e-3), "two normal distributions, two deviations apart"
    assert eer == pytest.approx(norm.cdf(-1), abs=1e-3)


def test_a_resample_without_a_kind_of_pair_is_undefined():
    weights = np.array([[1, 1, 1], [0, 0, 1], [1, 1, 0]])
    found = np.stack(identity.verify([True, True, False], [0.9, 0.8, 0.1], weights), axis=1)
    assert found[0].tolist() == [1, 0] and np.isnan(found[1:]).all()


# --- both


def test_identify_equals_its_parts():
    x, patients = people()
    arms = {"good": x, "bad": x + 2 * np.random.default_rng(5).normal(size=x.shape)}
    found = identity.identify(arms, patients, ks=(1, 3), impostors=None, n=50, seed=7)
    assert list(found.scores) == ["top-1", "top-3", "MRR", "AUROC", "EER"]
    rows, genuine = identity.pairs(patients, impostors=None)
    names, person = np.unique(patients, return_inverse=True)
    counts = patient_counts(names, 50, 7)
    for model, features in arms.items():
        queries, rank, _ = identity.ranks(features, patients)
        cosine = identity.cosines(features, rows)
        area, eer = identity.verify(genuine, cosine)
        expected = [(rank <= 1).mean(), (rank <= 3).mean(), (1 / rank).mean(), area, eer]
        np.testing.assert_allclose([one.per_label[model][0] for one in found.scores.values()], expected)
        errors = (cosine[~genuine] > found.thresholds[model]).mean(), (cosine[genuine] < found.thresholds[model]).mean()
        np.testing.assert_allclose(errors, eer, atol=1.5 / genuine.sum())
        for resample in (0, 49):  # a drawn patient once more in the list, with all recordings
            drawn = counts[resample]
            again = np.repeat(rank, drawn[person[queries]])
            i, j = person[rows].T
            times = np.where(genuine, drawn[i], drawn[i] * drawn[j])
            pair = np.repeat(np.arange(len(rows)), times)
            expected = [(again <= 1).mean(), (again <= 3).mean(), (1 / again).mean(), *identity.verify(genuine[pair], cosine[pair])]
            np.testing.assert_allclose([one.resampled[model][resample, 0] for one in found.scores.values()], expected)
    assert found.counts == {
        "patients": len(np.unique(patients[queries])),
        "recordings": len(x),
        "queries": len(queries),
        "candidates": len(np.unique(patients[queries])),
        "genuine": genuine.sum(),
        "impostors": (~genuine).sum(),
    }


def test_blocks_of_resamples_change_nothing(monkeypatch):
    x, patients = people()
    first = identity.identify({"x": x}, patients, n=30)
    monkeypatch.setattr(identity, "BLOCK", 3000)
    again = identity.identify({"x": x}, patients, n=30)
    for measure, one in first.scores.items():
        np.testing.assert_allclose(one.resampled["x"], again.scores[measure].resampled["x"], atol=1e-12)


def test_intervals_and_paired_differences():
    x, patients = people(number=80)
    arms = {"good": x, "twin": 3 * x, "noise": np.random.default_rng(5).normal(size=x.shape)}
    found = identity.identify(arms, patients, n=200)
    table = found.table()
    assert len(table) == 15 and (table["low"] < table["value"]).all() and (table["value"] < table["high"]).all()
    assert set(table.query("measure == 'EER'")["n"]) == {found.counts["genuine"]}
    assert set(table.query("measure == 'MRR'")["n"]) == {found.counts["queries"]}
    for measure, one in found.scores.items():
        sign = -1 if measure == "EER" else 1
        gain = one.gain("good", "noise")
        assert min(sign * gain.low, sign * gain.high) > 0
        equal = one.gain("good", "twin")
        assert max(abs(equal.low), abs(equal.high)) < 1e-9, "a cosine knows no scale"
    assert 0.4 < found.scores["AUROC"].macro("noise").value < 0.6
    assert found.scores["top-1"].gains([("good", "noise")])["p_holm"][0] < 0.05


def test_the_interval_covers_the_spread_over_samples_of_patients():
    drawn = [identity.identify({"x": x}, p, n=1).scores for x, p in (people(seed=s) for s in range(100, 140))]
    one = identity.identify({"x": X}, PATIENTS, n=500).scores
    for measure in ("MRR", "AUROC", "EER"):
        spread = np.std([scores[measure].per_label["x"][0] for scores in drawn])
        assert 0.5 < one[measure].resampled["x"].std() / spread < 2, measure


# --- spaces and stores


def test_centred_and_whitened():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)) @ np.array([[3, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0.5, 0], [0, 0, 0, 1e-7]]) + 5
    centred = identity.fit_space("centred", x).transform(x[:10])
    np.testing.assert_allclose(centred, x[:10] - x.mean(0))
    white = identity.fit_space("whitened", x).transform(x)
    np.testing.assert_allclose(np.cov(white.T), np.eye(3), atol=1e-9, err_msg="the direction of no variance is left out")


def test_a_common_part_hides_patients_until_it_is_taken_away():
    x, patients = people(number=100)
    x = x * [9, 1, 1, 1, 1, 1] + 20  # one loud direction, and a part common to all
    seen = np.isin(patients, [f"p{i}" for i in range(50)])
    found = {}
    for space in ("centred", "whitened"):
        told = identity.fit_space(space, x[seen]).transform(x[~seen])
        found[space] = identity.identify({"x": told}, patients[~seen], n=10).scores["AUROC"].macro("x").value
    plain = identity.identify({"x": x[~seen]}, patients[~seen], n=10).scores["AUROC"].macro("x").value
    assert plain < found["centred"] < found["whitened"]


def test_a_store(store):
    rng = np.random.default_rng(0)
    patient = np.unique(store.table["patient"], return_inverse=True)[1]
    x = rng.normal(size=(patient.max() + 1, 8))[patient] + 0.3 * rng.normal(size=(len(store), 8)) + 4
    rows = store.rows((9, 10))
    found = identity.identify_store(store, {"x": x}, n=20)
    direct = identity.identify({"x": x[rows]}, store.table["patient"].to_numpy()[rows], n=20)
    assert found.table().equals(direct.table()) and found.counts == direct.counts
    train = store.rows(TRAIN)
    white = identity.identify_store(store, {"x": x}, space="whitened", n=20)
    told = identity.fit_space("whitened", x[train]).transform(x[rows])
    assert white.table().equals(identity.identify({"x": told}, store.table["patient"].to_numpy()[rows], n=20).table())
    every = identity.identify_store(store, {"x": x}, folds=range(1, 11), n=20)
    assert every.counts["recordings"] == len(store) and every.counts["patients"] > found.counts["patients"]
    dated = type(store)(store.path)
    dated.table = store.table.assign(year=1990 + store.table.groupby("patient").cumcount() // 2)
    later = identity.identify_store(dated, {"x": x}, folds=range(1, 11), apart=True, n=20)
    assert 0 < later.counts["genuine"] < every.counts["genuine"]


def test_patients_of_two_sources_are_two(store):
    mixed = type(store)(store.path)
    mixed.table = store.table.assign(source=np.where(store.table.groupby("patient").cumcount() % 2, "b", "a"))
    rows = mixed.rows((9, 10))
    pairs = identity.pairs((mixed.table["source"] + mixed.table["patient"]).to_numpy()[rows])[1].sum()
    x = np.random.default_rng(0).normal(size=(len(store), 8))
    assert identity.identify_store(mixed, {"x": x}, ks=(1,), n=5).counts["genuine"] == pairs


def test_few_recordings_whiten_few_axes():
    x = np.random.default_rng(0).normal(size=(40, 100))
    white = identity.fit_space("whitened", x).transform(x)
    assert white.shape == (40, 40 // identity.PER_AXIS)
    np.testing.assert_allclose(np.cov(white.T), np.eye(8), atol=1e-9)
    assert identity.fit_space("whitened", x[:, :7]).n_components_ == 7


# --- refusals


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: identity.identify({"x": np.eye(4)}, list("abcd")), "none of 4 patients has two recordings: there is nobody"),
        (lambda: identity.ranks(np.eye(3), list("abc")), "none of 3 patients has two recordings"),
        (lambda: identity.ranks(np.eye(3), list("aab"), years=[1990, 1990, 1991]), "has two recordings of two known years"),
        (lambda: identity.pairs(list("aab"), years=[0, 1990, 1991]), "has two recordings of two known years"),
        (lambda: identity.identify({"x": np.eye(4)}, list("aabb")), "top-5 takes 5 candidates or more, a query here has 2"),
        (lambda: identity.identify({"x": X}, PATIENTS, ks=(0, 1)), "top-k is counted from 1 on, not for k = 0, 1"),
        (lambda: identity.identify({"x": X}, PATIENTS, ks=()), "not for k = nothing"),
        (lambda: identity.identify({}, PATIENTS), "there is no encoder"),
        (lambda: identity.identify({"x": X}, PATIENTS, n=0), "at least one resample"),
        (lambda: identity.identify({"x": X[1:]}, PATIENTS), r"patients do not fit features of \d+ recordings"),
        (lambda: identity.identify({"x": X[:, 0]}, PATIENTS), r"have shape \(\d+,\): give \(records, features\)"),
        (lambda: identity.identify({"x": np.where(X > 3, np.nan, X)}, PATIENTS), "of the given records have features that are NaN"),
        (lambda: identity.identify({"x": X * (np.arange(len(X)) > 0)[:, None]}, PATIENTS), "1 recordings have features that are all zero"),
        (lambda: identity.identify({"x": X}, PATIENTS, impostors=0), "0 impostor pairs cannot be drawn"),
        (lambda: identity.identify({"x": np.eye(3)}, list("aaa")), "no impostor pair among 3 recordings of 1 patients"),
        (lambda: identity.identify({"x": X}, [None, "", *PATIENTS[2:]]), r"2 of \d+ recordings have no patient"),
        (lambda: identity.identify({"x": X}, []), "0 of 0 recordings have no patient"),
        (lambda: identity.identify({"x": X}, PATIENTS, years=[1990]), r"1 years do not fit \d+ recordings"),
        (lambda: identity.verify([True, False], [1.0]), r"genuine \(2,\), scores \(1,\) and weights \(1, 2\) do not fit"),
        (lambda: identity.verify([True, False], [1.0, np.nan]), "1 scores are NaN"),
        (lambda: identity.verify([True, True], [1.0, 2.0]), "only one kind was given"),
        (lambda: identity.verify([False], [1.0]), "only one kind was given"),
        (lambda: identity.fit_space("euclid", X), r"unknown space 'euclid': known are cosine \(features as they are\), centred, whitened"),
        (lambda: identity.fit_space("centred", np.ones((9, 2))), "the features of all training recordings are equal"),
        (lambda: identity.fit_space("centred", np.full((9, 2), np.inf)), "of the training records have features that are NaN"),
        (lambda: identity.fit_space("centred", np.ones((0, 2))), r"features of the training records have shape \(0, 2\)"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(CremaError, match=sentence):
        call()


def test_refusals_of_a_store(store):
    x = np.random.default_rng(0).normal(size=(len(store), 8))
    for arms, options, sentence in (
        ({"x": x[1:]}, {}, "x has features of 299 recordings, the store holds 300"),
        ({"x": x}, {"folds": (11,)}, "no recording is in the folds 11"),
        ({"x": x}, {"folds": range(1, 11), "space": "centred"}, "recordings are among those that the space centred is fitted on"),
        ({"x": x}, {"space": "euclid"}, "unknown space 'euclid'"),
    ):
        with pytest.raises(CremaError, match=sentence):
            identity.identify_store(store, arms, **options)
    leak = type(store)(store.path)
    leak.table = store.table.assign(patient="one")
    with pytest.raises(CremaError, match="on two sides of the split"):
        identity.identify_store(leak, {"x": x})
