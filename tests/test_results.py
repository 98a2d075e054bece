"""Own rows beside published ones: what is quoted has a source, what is compared has an interval, and what is missing is said."""

import copy
import re

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from crema_lib import results, runs
from crema_lib.data.labels import TASKS
from crema_lib.errors import CremaError


def scored(value, width=0.01):
    return {"value": value, "low": value - width, "high": value + width}


def record(models, *, curves=(), rules=results.RULES, seed=0, data="ptb-xl"):
    """A record with a score of each model on each task; the seeds of a run and the width of its interval can be told apart."""
    metrics = [
        {"name": rule, "task": task, "model": model, **scored(value + 0.001 * i), "n": 40 - i, "seed": seed}
        for rule in rules
        for i, task in enumerate(TASKS)
        for model, value in models.items()
    ]
    return {"metrics": metrics, "data": {"name": data}, "extra": {"curves": {run: {} for run in curves}}}


PROBED = {
    "random initialisation": 0.8,
    "CR-MAE": 0.88,
    "CR-MAE, kNN": 0.83,
    "CR-MAE, attention": 0.87,
    "CR-MAE - random initialisation": 0.08,
}
TUNED = {"CR-MAE, probe": 0.88, "CR-MAE": 0.9, "CR-MAE, last 2 blocks": 0.89, "random initialisation": 0.82, "xresnet1d101": 0.92}
CURVES = [*(f"CR-MAE, seed {i}" for i in range(3)), "CR-MAE, last 2 blocks, seed 4", "xresnet1d101, seed 0"]


def rows_of(probed=PROBED, tuned=TUNED):
    return results.ours(record(probed), record(tuned, curves=CURVES))


# --- published figures


def test_every_published_figure_has_a_source_and_a_citation_that_is_in_the_bibliography():
    table = results.published()
    assert list(table) == results.COLUMNS and len(table) > 30
    known = re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(), re.M)
    assert set(table["citation"]) <= set(known)
    chapter = (ROOT / "book" / "17_results.ipynb").read_text()
    assert all(re.search(rf"\{{cite:p\}}`[\w,]*\b{key}\b", chapter) for key in set(table["citation"])), "a quoted paper is not cited"
    assert table["source"].str.fullmatch(r"https://\S+").all()
    assert set(table["task"]) == {*TASKS, "super, one label", "pretraining"}
    six = table[table["measure"] == "macro AUROC"].groupby(["model", "protocol"])["task"].nunique()
    assert six["xresnet1d101", "supervised"] == six["S4", "supervised"] == six["ECG-CPC", "fine-tuned"] == 6


BAD = {
    "protocol": ({"protocol": "probing"}, r"row 1 \(xresnet1d101, all\): measures are macro AUROC, .*, protocols are linear probe, "),
    "measure": ({"measure": "AUC"}, "measures are macro AUROC, steps"),
    "per cent": ({"value": "92.5"}, "'92.5' is no macro AUROC between 0.5 and 1"),
    "no number": ({"value": "n/a"}, "'n/a' is no macro AUROC"),
    "no source": ({"source": ""}, "needs a source"),
    "no address": ({"source": "their README"}, "needs a source"),
    "no citation": ({"citation": ""}, "and a citation"),
    "twice": ({"task": "diag"}, "two figures of xresnet1d101, supervised, diag"),
}


@pytest.mark.parametrize(("change", "sentence"), BAD.values(), ids=BAD)
def test_a_published_figure_that_cannot_be_trusted_is_refused(tmp_path, change, sentence):
    table = pd.read_csv(ROOT / "results" / "published.csv", dtype=str, keep_default_na=False)
    table.loc[0, list(change)] = list(change.values())
    table.to_csv(tmp_path / "published.csv", index=False)
    with pytest.raises(CremaError, match=sentence):
        results.published(tmp_path / "published.csv")


def test_no_table_or_half_a_table(tmp_path):
    with pytest.raises(CremaError, match="cannot be read as a table of published figures"):
        results.published(tmp_path / "none.csv")
    results.published().drop(columns=["source", "note"]).to_csv(tmp_path / "half.csv", index=False)
    with pytest.raises(CremaError, match="lacks the columns source, note"):
        results.published(tmp_path / "half.csv")


# --- own rows


def test_own_rows_are_named_by_what_was_trained_with_labels():
    table = rows_of()
    one = table[(table["rule"] == results.RULES[0]) & (table["task"] == "all")].set_index(["model", "protocol"])
    assert list(one.index) == [
        ("random initialisation", "linear probe"),
        ("CR-MAE", "linear probe"),
        ("CR-MAE", "attention probe"),
        ("CR-MAE", "fine-tuned"),
        ("CR-MAE, last 2 blocks", "fine-tuned"),
        ("random initialisation", "supervised"),
        ("xresnet1d101", "supervised"),
    ]
    assert one["value"].tolist() == [0.8, 0.88, 0.87, 0.9, 0.89, 0.82, 0.92]
    assert one["pretraining"].tolist() == ["none", *["ptb-xl"] * 4, "none", "none"]
    assert one["seeds"].tolist() == [1, 1, 1, 3, 1, 1, 1]
    assert len(table) == 2 * len(TASKS) * len(one)
    labels = table[table["model"] == "xresnet1d101"].groupby("task")["labels"].unique()
    assert [labels[task].tolist() for task in TASKS] == [[40 - i] for i in range(6)]


def test_a_mean_over_seeds_says_how_many():
    probed = record(PROBED)
    probed["extra"]["by_seed"] = [{"task": "all", "seed": seed, "model": "CR-MAE", "value": 0.88} for seed in (0, 1, 2)]
    one = results.ours(probed, record(TUNED)).query("task == 'all'").groupby(["model", "protocol"])["seeds"].first()
    assert (one["CR-MAE", "linear probe"], one["CR-MAE", "attention probe"]) == (3, 1)


def test_rows_of_several_seeds_become_one():
    probed = record(PROBED)
    again = copy.deepcopy(probed["metrics"])
    for metric in again:
        metric |= {**scored(metric["value"] + 0.02, 0.03), "seed": 1}
    probed["metrics"] += again
    table = results.ours(probed, record(TUNED))
    row = table[(table["model"] == "CR-MAE") & (table["protocol"] == "linear probe") & (table["task"] == "all")].iloc[0]
    assert row["seeds"] == 2
    np.testing.assert_allclose(row[["value", "low", "high"]].tolist(), [0.89, 0.87, 0.93])
    (gain,) = results.paired(probed, "CR-MAE", "random initialisation", ("all",)).to_dict("records")
    np.testing.assert_allclose([gain["value"], gain["low"], gain["high"]], [0.09, 0.07, 0.13])


def test_own_and_quoted_rows_stand_in_one_table_by_group_and_score():
    own = rows_of()
    table = results.beside(own[own["rule"] == results.RULES[0]], results.published())
    everything = table[table["task"] == "all"]
    assert everything["group"].drop_duplicates().tolist() == ["frozen encoder", "fine-tuned", "labels alone"]
    for _, rows in everything.groupby("group"):
        assert rows["value"].is_monotonic_decreasing
    assert table.loc[table["quoted"], ["low", "high", "seeds"]].isna().all(axis=None)
    assert table.loc[~table["quoted"], ["low", "high", "seeds"]].notna().all(axis=None)
    assert set(table["task"]) == set(TASKS), "another split and a budget are no rows of this table"
    pair = everything[everything["model"] == "xresnet1d101"]
    assert sorted(pair["quoted"]) == [False, True], "the same network, ours and theirs, are two rows"
    assert not results.beside(own[own["rule"] == results.RULES[1]], results.published()[:0])["quoted"].any()


# --- statements and goals


def test_paired_differences_are_those_of_the_record():
    probed = record(PROBED)
    found = results.paired(probed, "CR-MAE", "random initialisation", ("super", "all"))
    assert found["task"].tolist() == ["all", "super"]
    np.testing.assert_allclose(found["value"], [0.08, 0.083])
    assert results.paired(probed, "CR-MAE", "xresnet1d101").empty


def test_unpaired_bounds_hold_the_paired_interval_of_scores_that_rise_and_fall_together():
    rng = np.random.default_rng(0)
    shared, own = rng.normal(0, 0.01, 5000), rng.normal(0, 0.004, (2, 5000))
    resampled = {"a": 0.9 + shared + own[0], "b": 0.88 + shared + own[1]}
    ends = lambda x: dict(zip(("low", "high"), np.percentile(x, [2.5, 97.5]), strict=True))  # noqa: E731
    table = pd.DataFrame([{"task": "all", "model": name, "value": x.mean(), **ends(x)} for name, x in resampled.items()])
    table = pd.concat([table, table[:1].assign(task="super")])
    (found,) = results.unpaired(table, "a", "b").to_dict("records")
    exact = ends(resampled["a"] - resampled["b"])
    assert found["task"] == "all" and found["value"] == pytest.approx(np.mean(resampled["a"] - resampled["b"]))
    assert found["low"] < exact["low"] and found["high"] > exact["high"]
    assert found["low"] == table["low"].iloc[0] - table["high"].iloc[1]
    assert results.unpaired(table, "a", "c").empty


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(0.01, 0.02), (0.001, 0.1)], "held"),
        ([(0.01, 0.02), (-0.01, 0.1)], "in part"),
        ([(0.01, 0.02), (-0.2, -0.1)], "in part"),
        ([(-0.01, 0.02), (0.0, 0.1)], "open"),
        ([(-0.01, 0.02), (-0.2, -0.1)], "did not hold"),
        ([(-0.02, -0.01)], "did not hold"),
        ([], "not tested here"),
    ],
)
def test_a_verdict_is_read_from_intervals(intervals, expected):
    assert results.verdict(pd.DataFrame(intervals, columns=["low", "high"])) == expected


def test_a_difference_without_an_interval_decides_nothing():
    for low, high in ((np.nan, 0.1), (0.2, 0.1)):
        with pytest.raises(CremaError, match="needs an interval with low <= high"):
            results.verdict(pd.DataFrame({"low": [low], "high": [high]}))


def test_evidence_lists_few_differences_and_counts_many():
    table = pd.DataFrame([{"task": task, **scored(value)} for task, value in zip("abcde", (0.02, -0.03, 0.0, 0.05, 0.01), strict=True)])
    assert results.evidence(table[:0]) == "–"
    assert results.evidence(table[:2]) == "a +0.020 [+0.010, +0.030]; b −0.030 [−0.040, −0.020]"
    many = "5 differences, 2 above zero, 1 below: from b −0.030 [−0.040, −0.020] to d +0.050 [+0.040, +0.060]"
    assert results.evidence(table.drop(index=4)).startswith("4 differences, 2 above zero, 1 below: from b ")
    assert results.evidence(table.assign(low=table["low"] - 1e-9)) == many
    assert results.text(table.iloc[0]) == "0.020 [0.010, 0.030]"


def test_differing_names_what_of_the_training_another_record_did_otherwise():
    here, there = (
        {"patch": 25, "decoder_depth": 0, "lr": 1e-3, "tasks": ["all"]},
        {"patch": 10, "decoder_depth": 1, "lr": 1e-3, "tasks": []},
    )
    assert results.differing(here, there) == "patch 25 instead of 10, decoder_depth 0 (as the objective says) instead of 1"
    assert results.differing(here, here) == "the same"
    assert results.differing({}, {"measured_weight": 10.0}) == "measured_weight 0.0 instead of 10.0"


def test_the_distance_to_a_goal_is_that_of_the_pretrained_encoder_alone():
    own = rows_of({**PROBED, "CR-MAE": 0.945, "CR-MAE, attention": 0.935}, {**TUNED, "CR-MAE": 0.9, "xresnet1d101": 0.99})
    table = results.distance(results.beside(own[own["rule"] == results.RULES[0]], results.published()))
    one = table.set_index(["machine", "task", "protocol"])
    assert one.loc[("any", "all", "linear probe"), "reached"] == "yes"
    assert one.loc[("any", "all", "attention probe"), "reached"] == "within the interval"
    assert one.loc[("any", "all", "fine-tuned"), "reached"] == "no"
    np.testing.assert_allclose(one["distance"], one["value"] - one["goal"])
    assert one["seeds"].notna().all() and len(one) == 9, "two probes for each goal of a frozen encoder, and a row for each of fine-tuning"
    assert one.loc[("two cores", "all", "fine-tuned"), "goal"] == 0.93


def test_the_committed_records_can_be_laid_beside_the_published_figures():
    probed, tuned = (runs.read(f"results/ptbxl/{name}.json") for name in ("04_linear_probing", "05_fine_tuning"))
    own = results.ours(probed, tuned)
    table = results.beside(own[own["rule"] == results.RULES[0]], results.published())
    assert not table.duplicated(["task", "model", "protocol", "pretraining", "quoted"]).any()
    assert {"CR-MAE", "random initialisation", "xresnet1d101", "features + boosting"} <= set(own["model"])
    assert len(results.distance(table)) >= len(results.GOALS)
