"""Groups inside a data set, what is confounded with them, splits by group, and label mixes."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2

from crema_lib.data import labels
from crema_lib.data.simulate import simulate
from crema_lib.errors import CremaError
from crema_lib.shift import groups


@pytest.fixture(scope="module")
def people():
    """1,000 simulated recordings: table, targets and names of the superclasses."""
    _, table = simulate(1000, seed=3, seconds=5)
    targets, names, _ = labels.matrix(table, "super")
    return SimpleNamespace(table=table, targets=targets, names=names)


def frame(**columns):
    n = len(next(iter(columns.values())))
    base = {
        "source": "s",
        "patient": [f"p{i}" for i in range(n)],
        "fold": 1,
        "age": 50.0,
        "sex": "F",
        "device": "A",
        "site": "0",
        "year": 0,
    }
    return pd.DataFrame({**base, **columns}, index=range(7, 7 + n))


# --- names


def test_the_family_of_a_device_is_its_model():
    names = ["CS-12", "CS-12 E", "CS100 3", "AT-6 C 5.5", "AT-6 6", "AT-6 C", "AT-60 3", "", None, " AT-6   C  5.8 "]
    assert groups.device_family(names).tolist() == ["CS-12", "CS-12", "CS100", "AT-6", "AT-6", "AT-6", "AT-60", "", "", "AT-6"]


def test_bands_are_half_open_and_cover_everything_that_is_known():
    assert groups.bands([39.9, 40, 59, 60, 75, np.nan, -1], (40, 60, 75)).tolist() == ["<40", "40-59", "40-59", "60-74", ">=75", "", "<40"]
    assert groups.year_bands([0, 1984, 1990, 1994, 1995]).tolist() == ["", "<1990", "1990-1994", "1990-1994", ">=1995"]
    assert groups.age_bands(frame(age=[89.0, 90.0, 300.0, np.nan])).tolist() == [">=75", "", "", ""]
    for edges in ((), (60, 40), (40, 40)):
        with pytest.raises(CremaError, match="make no bands: give ascending numbers"):
            groups.bands([1], edges)


def test_every_grouping_keeps_the_index():
    table = frame(device=["AT-6 C", "CS100 3"], year=[1988, 1999], age=[30.0, 80.0], sex=["F", ""], site=["2", ""], source=["a", "b"])
    expected = {"device": ["AT-6", "CS100"], "site": ["2", ""], "year": ["<1990", ">=1995"], "age": ["<40", ">=75"], "sex": ["F", ""]}
    for by, names in {**expected, "source": ["a", "b"]}.items():
        found = groups.groups(table, by)
        assert found.tolist() == names and found.index.tolist() == [7, 8] and found.name == by
    assert set(groups.GROUPINGS) == {*expected, "source"}


def test_small_groups_are_pooled_and_the_unknown_stay_unknown():
    found = groups.groups(frame(site=["0", "0", "0", "1", "1", "2", "", "3"]), "site", least=2)
    assert found.tolist() == ["0", "0", "0", "1", "1", "other", "", "other"]


def test_groups_that_are_not_there():
    with pytest.raises(CremaError, match="unknown grouping 'nurse': known are device, site"):
        groups.groups(frame(site=["0"]), "nurse")
    with pytest.raises(CremaError, match="no recording of this data set has a known year"):
        groups.groups(frame(year=[0, 0]), "year")


# --- confounding


def test_shares_are_counts():
    table = frame(
        device=["A 1", "A 2", "A 2", "B", "B", ""], patient=["p", "p", "q", "r", "s", "t"], fold=[1, 9, 10, 3, 3, 3],
        age=[20.0, 40.0, 60.0, 300.0, np.nan, 5.0], sex=["F", "M", "", "", "", "F"], year=[1990, 0, 1995, 0, 0, 1980],
    )  # fmt: skip
    targets = np.array([[1, 0], [1, 1], [0, 0], [0, 0], [0, 1], [1, 1]])
    shares, _ = groups.confounding(table, "device", targets, ["x", "y"])
    assert shares.index.tolist() == ["A", "B"] and shares.index.name == "device"
    assert list(shares) == ["n", "patients", "x", "y", "age", "female", "years", "train", "valid", "test"]
    a, b = shares.loc["A"], shares.loc["B"]
    assert a.drop("years").tolist() == pytest.approx([3, 2, 2 / 3, 1 / 3, 40, 0.5, 1 / 3, 1 / 3, 1 / 3]) and a["years"] == "1990-1995"
    assert b[["n", "patients", "x", "y", "train", "valid", "test"]].tolist() == [2, 2, 0, 0.5, 1, 0, 0]
    assert np.isnan(b["age"]) and np.isnan(b["female"]) and b["years"] == ""


def test_association_equals_its_closed_form_on_one_recording_of_each_patient(people):
    table = people.table.assign(device=np.where(people.targets[:, 1] == 1, "A", people.table["device"]))
    _, tests = groups.confounding(table, "device", people.targets, people.names)
    first = table.drop_duplicates("patient").index
    for i, name in enumerate(people.names):
        observed = pd.crosstab(table.loc[first, "device"].str.split().str[0], people.targets[first, i]).to_numpy()
        expected = np.outer(observed.sum(1), observed.sum(0)) / observed.sum()
        statistic = ((observed - expected) ** 2 / expected).sum()
        row = tests.loc[name]
        assert row["chi2"] == pytest.approx(statistic) and row["df"] == len(observed) - 1
        assert row["v"] == pytest.approx(np.sqrt(statistic / observed.sum())) and row["expected"] == pytest.approx(expected.min())
        assert row["p"] == pytest.approx(chi2.sf(statistic, len(observed) - 1)) and row["p_holm"] >= row["p"]
    assert tests["v"].idxmax() == people.names[1]


def test_a_label_that_tells_the_group_has_v_1_and_one_that_does_not_has_0():
    table = frame(sex=["F", "F", "M", "M"] * 5)
    _, tests = groups.confounding(table, "sex", np.array([[1, 1], [1, 0], [0, 1], [0, 0]] * 5), ["tells", "silent"])
    assert tests["v"].tolist() == pytest.approx([1, 0]) and tests["p"].tolist() == pytest.approx([chi2.sf(20, 1), 1])


def test_the_simulator_confounds_site_and_diagnosis(people):
    shares, tests = groups.confounding(people.table, "site", people.targets, people.names)
    assert shares["NORM"].idxmax() == "health check" and tests.loc["NORM", "p_holm"] < 0.001
    assert shares["n"].sum() == len(people.table) and np.allclose(shares[["train", "valid", "test"]].sum(axis=1), 1)


def test_bands_come_in_their_order():
    shares, _ = groups.confounding(frame(age=[80.0, 30.0, 65.0, 50.0]), "age", np.eye(4)[:, :1], ["x"])
    assert shares.index.tolist() == ["<40", "40-59", "60-74", ">=75"]


@pytest.mark.parametrize(
    ("targets", "columns", "sentence"),
    [
        (np.zeros((4, 2)), {}, r"targets of shape \(4, 2\) do not fit 4 recordings and 1 labels"),
        (np.full((4, 1), np.nan), {}, "values other than 0 and 1"),
        (np.zeros((4, 1)), {}, "the label x has no positive among the patients with a known sex"),
        (np.ones((4, 1)), {}, "the label x has no negative among the patients with a known sex"),
        (np.eye(4)[:, :1], {"sex": ["F"] * 4}, "all patients with a known sex are of the group F"),
    ],
)
def test_confounding_refuses(targets, columns, sentence):
    with pytest.raises(CremaError, match=sentence):
        groups.confounding(frame(**{"sex": ["F", "M", "F", "M"], **columns}), "sex", targets, ["x"])


# --- a split by group


def test_home_and_away_share_no_patient(people):
    device = people.table["device"].to_numpy()
    held = groups.device_family(device).value_counts().index[1]
    split = groups.own_split(people.table, "device", held, seed=1)
    patients = [set(people.table["patient"].iloc[rows]) for rows in split]
    assert all(not a & b for i, a in enumerate(patients) for b in patients[:i])
    family = groups.groups(people.table, "device").to_numpy()
    assert set(family[split.away]) == {held} and held not in family[np.concatenate(split[:3])]
    home = set(people.table["patient"][family != held])
    assert set().union(*patients[:3]) == home and patients[3] == set(people.table["patient"]) - home
    assert [len(some) for some in patients[:3]] == pytest.approx([0.8 * len(home), 0.1 * len(home), 0.1 * len(home)], abs=1)
    assert all((np.diff(rows) > 0).all() for rows in split)
    both = set(people.table["patient"][family == held]) & home
    assert both, "some patients are in both worlds, and are at home"


def test_a_split_is_drawn_by_its_seed_and_keeps_what_is_kept(people):
    site = people.table["site"]
    one, same, other = (groups.own_split(people.table, "site", "emergency", seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True)) and not np.array_equal(one.train, other.train)
    kept = people.targets.any(1)
    some = groups.own_split(people.table, "site", ("emergency", "outpatient"), kept=kept)
    rows = np.concatenate(some)
    assert kept[rows].all() and len(rows) == kept.sum(), "nobody changes the site here"
    assert set(site.iloc[some.away]) == {"emergency", "outpatient"} and set(site.iloc[some.train]) == {"health check"}


def test_an_unknown_group_is_in_no_part(people):
    table = people.table.assign(sex=people.table["sex"].where(people.table.index % 3 > 0, ""))
    split = groups.own_split(table, "sex", "F")
    assert (table["sex"].iloc[np.concatenate(split)] != "").all() and (table["sex"].iloc[split.away] == "F").all()


def test_splits_that_cannot_be_made(people):
    with pytest.raises(CremaError, match="no recording is of the site moon: give some of emergency, health check, outpatient"):
        groups.own_split(people.table, "site", "moon")
    with pytest.raises(CremaError, match=r"no recording is of the site \(none\)"):
        groups.own_split(people.table, "site", ())
    with pytest.raises(CremaError, match="no recording is in the part train when the sex F, M is held out"):
        groups.own_split(people.table, "sex", ("F", "M"))
    same = frame(sex=["F", "M"] * 10, patient=[f"p{i // 2}" for i in range(20)])
    with pytest.raises(CremaError, match="no recording is in the part away when the sex M is held out"):
        groups.own_split(same, "sex", "M")


# --- a label mix


def raked_slowly(targets, prevalences, rounds=3000):
    """Iterative proportional fitting, one label after the other."""
    weights = np.full(len(targets), 1 / len(targets))
    for _ in range(rounds):
        for target, p in zip(targets.T, prevalences, strict=True):
            weights = np.where(target == 1, p / weights[target == 1].sum(), (1 - p) / weights[target == 0].sum()) * weights
    return weights


@pytest.mark.parametrize("domain", groups.DOMAINS.index)
def test_weights_equal_iterative_proportional_fitting(people, domain):
    targets = people.targets[people.targets.any(1)]
    weights, wanted = groups.rake(targets, groups.DOMAINS.loc[domain]), groups.DOMAINS.loc[domain].to_numpy()
    np.testing.assert_allclose(weights @ targets, wanted, atol=1e-5)
    assert weights.sum() == pytest.approx(1) and weights.min() > 0
    np.testing.assert_allclose(weights, raked_slowly(targets, wanted), rtol=1e-2, atol=1e-6)


def test_one_label_is_weighted_as_it_must_be():
    np.testing.assert_allclose(groups.rake([[1], [0], [0], [0]], [0.4]), [0.4, 0.2, 0.2, 0.2], atol=1e-6)


@pytest.mark.parametrize("domain", groups.DOMAINS.index)
def test_a_drawn_domain_has_its_prevalences(people, domain):
    kept = np.flatnonzero(people.targets.any(1))
    targets, patients = people.targets[kept], people.table["patient"].to_numpy()[kept]
    n, wanted = 150, groups.DOMAINS.loc[domain]
    rows = groups.resample(targets, patients, wanted, n, seed=4)
    assert len(rows) == n and (np.diff(rows) >= 0).all()
    found = np.unique(targets, axis=0)
    assert (np.abs(targets[rows].sum(0) - n * wanted) <= found.sum(0)).all(), "each combination of labels is right within one"
    drawn = pd.Series(patients[rows])
    assert drawn.nunique() == len(np.unique(rows)), "a patient comes with one recording"
    np.testing.assert_array_equal(rows, groups.resample(targets, patients, wanted, n, seed=4))
    assert not np.array_equal(rows, groups.resample(targets, patients, wanted, n, seed=5))


def test_records_are_drawn_as_often_as_their_weights_say():
    targets = np.array([[1]] * 5 + [[0]] * 20)
    counts = sum(np.bincount(groups.resample(targets, np.arange(25), [0.5], 8, seed), minlength=25) for seed in range(500))
    np.testing.assert_allclose(counts[:5] / 500, 0.8, atol=0.08)
    np.testing.assert_allclose(counts[5:] / 500, 0.2, atol=0.08)
    assert len(np.unique(groups.resample(targets, np.arange(25), [0.5], 8))) == 8, "no weight above 1/8, so none twice"
    repeated = np.bincount(groups.resample(targets, np.arange(25), [0.5], 40), minlength=25)
    assert repeated[:5].tolist() == [4] * 5 and repeated[5:].tolist() == [1] * 20


def test_every_recording_of_a_patient_may_stand_for_him():
    targets, patients = np.array([[1], [1], [0], [0]]), np.array(["p", "p", "q", "q"])
    pairs = {tuple(groups.resample(targets, patients, [0.5], 2, seed)) for seed in range(40)}
    assert pairs == {(0, 2), (0, 3), (1, 2), (1, 3)}


@pytest.mark.parametrize(
    ("targets", "prevalences", "sentence"),
    [
        (np.eye(3), [0.5, 0.5], r"2 prevalences do not fit targets of shape \(3, 3\)"),
        (np.zeros((0, 1)), [0.5], "do not fit targets of shape"),
        (np.full((3, 1), np.nan), [0.5], "values other than 0 and 1"),
        (np.eye(3)[:, :1], [1.0], "the prevalences 1 must lie above 0 and below 1"),
        (np.eye(3)[:, :1], [np.nan], "the prevalences nan must lie"),
        (np.zeros((3, 1)), pd.Series({"MI": 0.5}), "no weights of these 3 records give label MI a prevalence of 0.5"),
        (np.eye(2), pd.Series({"MI": 0.6, "CD": 0.6}), "together with the others: state a mix nearer to theirs"),
    ],
)
def test_mixes_that_cannot_be_had(targets, prevalences, sentence):
    with pytest.raises(CremaError, match=sentence):
        groups.rake(targets, prevalences)


def test_draws_that_cannot_be_made():
    for n in (0, 2.5):
        with pytest.raises(CremaError, match=f"cannot draw {n} recordings"):
            groups.resample(np.eye(2), [1, 2], [0.5, 0.5], n)
    with pytest.raises(CremaError, match="1 patients do not fit 2 records"):
        groups.resample(np.eye(2), [1], [0.5, 0.5], 2)
