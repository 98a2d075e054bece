"""Groups in the space of features against scikit-learn and slow counts, and a probe that tells them."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, silhouette_samples
from test_maps import blobs, cosine

from crema_lib.errors import CremaError
from crema_lib.metrics import interval, patient_counts
from crema_lib.probes import space
from crema_lib.probes.linear import fit_probe


def test_silhouette_equals_scikit_learn_with_an_interval_over_patients():
    x, group, patient = blobs(noise=3.0)
    group[:9] = ""
    known = group != ""
    z = (x[known] - x[known].mean(0)) / x[known].std(0)
    values = silhouette_samples(z, group[known], metric="cosine")
    found = space.silhouette(x, group, patient, n=200, seed=3)
    counts = patient_counts(patient[known], 200, 3)
    expected = interval(values.mean(), counts @ values / counts.sum(1))
    np.testing.assert_allclose([found.value, found.low, found.high], [expected.value, expected.low, expected.high], atol=1e-5)
    alone = space.silhouette(x, group, np.arange(len(x)), n=200, seed=3)
    assert alone.value == found.value and (alone.low, alone.high) != (found.low, found.high)


def test_purity_equals_a_slow_count():
    x, group, patient = blobs(noise=4.0)
    group = group.astype(object)
    group[::10], group[5] = "", None
    known = np.flatnonzero([bool(g) for g in group])
    similarity, same, chance = cosine(x[known]), [], []
    for i, row in enumerate(known):
        others = [j for j, other in enumerate(known) if patient[other] != patient[row]]
        near = sorted(others, key=lambda j: -similarity[i, j])[:4]
        same.append(np.mean([group[known[j]] == group[row] for j in near]))
        chance.append(np.mean([group[known[j]] == group[row] for j in others]))
    found, expected = space.purity(x, group, patient, 4, n=50)
    assert found.value == pytest.approx(np.mean(same)) and expected == pytest.approx(np.mean(chance))
    assert found.low < found.value < found.high


def test_a_coin_a_patient_is_not_found_in_the_space():
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(150), 2)
    x = rng.normal(size=(150, 8))[patient] + 0.01 * rng.normal(size=(300, 8))
    coin = np.array(["heads", "tails"])[rng.integers(0, 2, 150)][patient]
    fair, chance = space.purity(x, coin, patient, 3, n=300)
    leaky, _ = space.purity(x, coin, np.arange(300), 3, n=300)
    assert fair.low < chance < fair.high
    assert leaky.low > fair.high


def test_separation_puts_it_in_a_table():
    x, group, patient = blobs(noise=3.0)
    half = np.where(np.arange(len(x)) % 2, group, "")
    table = space.separation(x, {"group": group, "half": half}, patient, k=5, n=50)
    assert table[["grouping", "groups", "n"]].to_numpy().tolist() == [["group", 3, 120], ["half", 3, 60]]
    pure, chance = space.purity(x, half, patient, 5, n=50)
    apart = space.silhouette(x, half, patient, n=50)
    row = ["silhouette", "silhouette_low", "silhouette_high", "purity", "purity_low", "purity_high", "chance"]
    np.testing.assert_allclose(table[row].iloc[1].astype(float), [*vars(apart).values(), *vars(pure).values(), chance])


def test_groups_that_cannot_be_used():
    x, group, patient = blobs()
    for function in (space.silhouette, space.purity):
        with pytest.raises(CremaError, match="119 groups and 120 patients do not fit 120 records"):
            function(x, group[1:], patient)
        with pytest.raises(CremaError, match="1 known groups cannot be told apart"):
            function(x, np.where(group == "A", "A", ""), patient)
        with pytest.raises(CremaError, match="every record is a group of its own"):
            function(x, np.arange(120).astype(str), patient)
    with pytest.raises(CremaError, match="from 1 to 118"):
        space.purity(x, group, patient, 119)


def test_neighbours_are_those_of_other_patients():
    x, _, patient = blobs()
    similarity = cosine(x)[17]
    others = np.flatnonzero(patient != patient[17])
    order = others[np.argsort(-similarity[others])][:6]
    rows, distances = space.neighbours(x, 17, 6, patient)
    assert rows.tolist() == order.tolist()
    np.testing.assert_allclose(distances, 1 - similarity[order], atol=1e-5)
    rows, _ = space.neighbours(x, 17, 119)
    assert sorted(rows) == [i for i in range(120) if i != 17]
    for query in (-1, 120):
        with pytest.raises(CremaError, match=f"there is no record {query}: rows run from 0 to 119"):
            space.neighbours(x, query)
    with pytest.raises(CremaError, match="119 neighbours cannot be found"):
        space.neighbours(x, 17, 119, patient)


# --- which hospital


def hospitals(records=300):
    rng = np.random.default_rng(0)
    group = np.array(list("ABC"))[rng.integers(0, 3, records)]
    told = (group[:, None] == list("ABC")) + 0.4 * rng.normal(size=(records, 3))
    rows = np.split(np.arange(records), [records // 2, 3 * records // 4])
    return told.astype(np.float32), rng.normal(size=(records, 3)).astype(np.float32), group, rows, np.arange(records)


def test_the_hospital_is_found_where_it_is_told():
    told, noise, group, rows, patient = hospitals()
    group[rows[0][:4]] = "D"  # too rare to be learned
    group[rows[2][:3]] = ["D", "", ""]
    seen = []

    def fit(train, valid, device):
        seen.append((len(train[0]), train[1].sum(0)))
        return fit_probe(train, valid, device=device)

    found = space.which_group({"told": (fit, told), "noise": noise}, group, rows, patient, n=100)
    assert found["AUROC"].names == ("A", "B", "C") and seen[0][0] == len(rows[0]) - 4
    assert found["AUROC"].macro("told").low > 0.9 > 0.65 > found["AUROC"].macro("noise").value
    test = rows[2][3:]
    targets = (group[:, None] == list("ABC")).astype(np.float32)
    train = rows[0][4:]
    probe, _ = fit_probe((told[train], targets[train]), (told[rows[1]], targets[rows[1]]))
    expected = balanced_accuracy_score(group[test], np.array(list("ABC"))[(probe.scores(told[test]) / targets[train].mean(0)).argmax(1)])
    assert found["balanced accuracy"].macro("told").value == pytest.approx(expected)
    assert expected > 0.8 and found["balanced accuracy"].macro("noise").value < 0.55


def test_a_rare_hospital_is_decided_for_by_what_its_features_tell():
    """Nine of ten recordings are of A: a probability above one half is rare for B, one above its share is not."""
    rng = np.random.default_rng(1)
    group = np.where(rng.random(600) < 0.9, "A", "B")
    told = ((group == "B")[:, None] + rng.normal(size=(600, 1))).astype(np.float32)
    found = space.which_group({"told": told}, group, np.split(np.arange(600), [300, 400]), np.arange(600), n=50)["balanced accuracy"]
    shares = dict(zip(found.names, found.per_label["told"], strict=True))
    assert shares["B"] > 0.5 and shares["A"] > 0.5, "half a deviation is told on both sides"


def test_hospitals_that_cannot_be_asked_for():
    told, _, group, rows, patient = hospitals()
    gone = lambda part: np.where(np.isin(np.arange(300), rows[part]), "", group)  # noqa: E731
    for arguments, sentence in (
        ((group[1:], rows, patient), "told has 300 records, but there are 299 groups and 300 patients"),
        ((np.where(group == "A", "A", ""), rows, patient), "1 groups have 10 or more training and test records"),
        ((gone(2), rows, patient), "0 groups have 10 or more training and test records"),
        ((gone(1), rows, patient), "no validation record is in one of the groups A, B, C"),
        ((group, rows, patient % 225), "patients are among both training and test records"),
    ):
        with pytest.raises(CremaError, match=sentence):
            space.which_group({"told": told}, *arguments)
    broken = np.where(np.isin(np.arange(300), rows[2])[:, None], np.nan, told)
    with pytest.raises(CremaError, match="test records have features that are NaN"):
        space.which_group({"told": broken}, group, rows, patient)
