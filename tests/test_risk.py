"""The risk decomposition: against scikit-learn, components that add up, and each component where only its cause is present."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from crema_lib.errors import CremaError
from crema_lib.probes.linear import fit_probe
from crema_lib.shift import risk
from crema_lib.shift.risk import COMPONENTS, decompose


def problem(records=600, features=6, labels=3, seed=0):
    """Features, targets that depend on them, seen and unseen rows, scores of a good supervised network, patients of two records each."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(records, features))
    y = (x @ rng.normal(size=(features, labels)) + rng.normal(size=(records, labels)) > 0).astype(int)
    cut = 2 * records // 3
    supervised = np.clip(0.9 * y[:cut] + 0.1 * rng.random((cut, labels)), 0.02, 0.98)
    return x, y, np.arange(cut), np.arange(cut, records), supervised, np.arange(records) // 2


def values(*data, **options):
    return decompose(*data, **{"n": 20, **options}).set_index("component")["value"]


@pytest.mark.parametrize("metric", ["log_loss", "auroc"])
def test_components_equal_scikit_learn_and_add_up(metric):
    x, y, seen, unseen, supervised, patients = problem()
    table = decompose(x, y, seen, unseen, supervised, patients, metric=metric, seed=3, n=50)
    assert table["component"].tolist() == [*COMPONENTS, "total"] and (table["metric"] == metric).all() and (table["labels"] == 3).all()
    found = table.set_index("component")["value"]
    assert found[list(COMPONENTS)].sum() == pytest.approx(found["total"], abs=1e-12)
    fitted, chosen, held = risk._parts(patients[seen], 0.1, 3)
    strength = fit_probe((x[fitted], y[fitted]), (x[chosen], y[chosen]))[0].strength
    assert (table["strength"] == strength).all()

    def score(truth, p):
        return log_loss(truth, p) if metric == "log_loss" else 1 - roc_auc_score(truth, p)

    def probe(rows, tested):
        scaler, risks = StandardScaler().fit(x[rows]), []
        for k in range(3):
            model = LogisticRegression(C=1 / (strength * len(rows)), tol=1e-10, max_iter=10000).fit(scaler.transform(x[rows]), y[rows, k])
            risks.append(score(y[tested, k], model.predict_proba(scaler.transform(x[tested]))[:, 1]))
        return np.mean(risks)

    risks = [
        np.mean([score(y[seen, k], supervised[:, k]) for k in range(3)]),
        probe(seen, seen),
        probe(np.concatenate([fitted, chosen]), held),
        probe(seen, unseen),
    ]
    np.testing.assert_allclose(found[list(COMPONENTS)], np.diff(risks, prepend=0), atol=2e-3)
    assert found["total"] == pytest.approx(risks[-1], abs=1e-3)


def test_parts_are_split_by_patient_and_nothing_is_lost():
    patients = np.random.default_rng(0).integers(0, 100, 500)
    parts = risk._parts(patients, 0.1, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), range(500))
    people = [set(patients[rows]) for rows in parts]
    assert not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])
    assert [len(group) for group in people] == [80, 10, 10]
    assert (risk._parts(patients, 0.1, 0)[2] == parts[2]).all() and set(risk._parts(patients, 0.1, 1)[2]) != set(parts[2])


@pytest.mark.parametrize("metric", ["log_loss", "auroc"])
def test_each_cause_raises_its_own_component(metric):
    rng = np.random.default_rng(1)
    _, y, seen, unseen, good, patients = problem(1200)
    told = 3.0 * (2 * y - 1) + rng.normal(size=y.shape)
    poor = np.full_like(good, 0.5) + 0.01 * rng.normal(size=good.shape)
    noise = rng.normal(size=y.shape)
    forgotten = np.where(np.arange(1200)[:, None] < 800, told, noise)  # an encoder that knows only what it has seen
    many = np.c_[told + 3 * noise, rng.normal(size=(1200, 600))]  # more features than the labels can tell apart
    cases = {
        "approximation": values(told, y, seen, unseen, poor, patients, metric=metric),
        "usability": values(noise, y, seen, unseen, good, patients, metric=metric),
        "probe generalisation": values(many, y, seen, unseen, good, patients, metric=metric, strengths=[1e-5]),
        "encoder generalisation": values(forgotten, y, seen, unseen, good, patients, metric=metric),
    }
    for component, found in cases.items():
        assert found[component] > 0.1, component
        others = [name for name in COMPONENTS if name != component]
        assert found[component] > 2 * found[others].max(), f"{component}\n{found}"


def test_intervals_are_those_of_patients():
    x, y, seen, unseen, supervised, patients = problem()
    patients = np.arange(600)
    once = decompose(x, y, seen, unseen, supervised, patients, n=200)
    twice = np.repeat(np.arange(600), 2)
    again = decompose(x[twice], y[twice], np.arange(800), np.arange(800, 1200), np.repeat(supervised, 2, axis=0), patients[twice], n=200)
    pd.testing.assert_frame_equal(once, again, atol=1e-4, rtol=0)
    assert (once["low"] < once["value"]).all() and (once["value"] < once["high"]).all()
    other = decompose(x, y, seen, unseen, supervised, patients, n=200, seed=1)
    assert (other["low"] != once["low"]).all()


def test_the_interval_of_the_total_is_that_of_the_unseen_patients():
    data = problem(3000)
    table = decompose(*data, n=400).set_index("component")
    x, y, seen, unseen, _, patients = data
    probe = risk.LinearProbe().fit(x[seen], y[seen], table["strength"].iloc[0])
    p = np.clip(probe.scores(x[unseen]), 1e-9, 1 - 1e-9)
    losses = -np.log(np.where(y[unseen] == 1, p, 1 - p)).mean(1)
    people = pd.Series(losses).groupby(patients[unseen]).mean()
    width = 2 * 1.96 * people.std() / len(people) ** 0.5
    assert table.loc["total", "high"] - table.loc["total", "low"] == pytest.approx(width, rel=0.15)


def test_a_label_that_a_part_lacks_counts_nowhere():
    x, y, seen, unseen, supervised, patients = problem(labels=3)
    for rows in (unseen, seen[risk._parts(patients[seen], 0.1, 0)[2]]):
        lacking = y.copy()
        lacking[rows, 1] = 0
        found = decompose(x, lacking, seen, unseen, supervised, patients, n=20, strengths=[0.01])
        without = decompose(x, y[:, [0, 2]], seen, unseen, supervised[:, [0, 2]], patients, n=20, strengths=[0.01])
        assert (found["labels"] == 2).all()
        np.testing.assert_allclose(found[["value", "low", "high"]], without[["value", "low", "high"]], atol=1e-5)


def test_a_label_that_one_stage_lacks_in_a_resample_leaves_all_stages_of_that_resample():
    stages = np.array([[[1.0, 2.0], [3.0, 4.0]], [[np.nan, 5.0], [6.0, 8.0]]])  # stages, resamples, labels
    np.testing.assert_array_equal(risk._macro(list(stages)), [[2.0, 3.5], [5.0, 7.0]])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"metric": "accuracy"}, "unknown metric 'accuracy': known are log_loss, auroc"),
        ({"share": 0.5}, "held-out share of 0.5 is outside"),
        ({"share": 0.0}, "held-out share of 0.0 is outside"),
        ({"patients": np.arange(5)}, r"patients \(5,\) must be of the same records"),
        ({"targets": np.zeros(600)}, r"targets \(600,\) and patients"),
        ({"supervised_scores": np.zeros((400, 2))}, r"supervised scores \(400, 2\) must be \(seen rows, labels\), here \(400, 3\)"),
        ({"seen_rows": np.r_[0, np.arange(399)]}, "1 of the seen rows are given twice"),
        ({"unseen_rows": [500, 500]}, "1 of the unseen rows are given twice"),
        ({"unseen_rows": []}, "0 features and 0 targets of the unseen records"),
        ({"features": np.full((600, 6), np.nan)}, "400 of the seen records have features that are NaN"),
        ({"targets": np.full((600, 3), 2)}, "targets of the seen records hold values other than 0 and 1"),
        ({"unseen_rows": np.arange(399, 600)}, "1 patients are among the seen and the unseen, the first is 199"),
        ({"supervised_scores": np.full((400, 3), 2.0)}, "are no probabilities"),
        ({"share": 0.002}, "200 seen patients are too few to hold out a share of 0.002 twice"),
        ({"n": 0}, "at least one resample"),
    ],
)
def test_mistakes_are_named(change, sentence):
    names = ("features", "targets", "seen_rows", "unseen_rows", "supervised_scores", "patients")
    with pytest.raises(CremaError, match=sentence):
        decompose(**{**dict(zip(names, problem(), strict=True)), **change})


def test_no_label_in_each_part_is_named():
    x, y, seen, unseen, supervised, patients = problem(labels=1)
    y[seen[risk._parts(patients[seen], 0.1, 0)[2]]] = 0
    with pytest.raises(CremaError, match="no label has a positive and a negative record in each part"):
        decompose(x, y, seen, unseen, supervised, patients)
