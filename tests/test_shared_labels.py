"""One label space over four vocabularies: the map itself, matrices of it, and who annotates what."""

import numpy as np
import pandas as pd
import pytest

from crema_lib.data import labels
from crema_lib.data.simulate import simulate
from crema_lib.data.sources import CODE15_LABELS, rows_of
from crema_lib.errors import CremaError
from crema_lib.metrics import challenge

MAP = labels.shared_labels()


def table(*rows):
    return pd.DataFrame(rows, columns=["source", "labels"])


def row_of(names, *positive):
    return [float(name in positive) for name in names]


def test_a_code_has_one_label_and_one_vocabulary():
    assert not MAP["code"].duplicated().any() and not (MAP[["label", "title", "vocabulary", "code"]] == "").any(axis=None)
    assert (MAP.groupby("label")["title"].nunique() == 1).all() and MAP["title"].nunique() == MAP["label"].nunique()
    assert MAP["code"].map(labels.vocabulary).equals(MAP["vocabulary"].rename("code"))


def test_each_label_is_in_two_vocabularies_and_can_be_learnt_on_ptbxl():
    vocabularies = MAP.groupby("label")["vocabulary"].agg(set)
    assert vocabularies.map(len).min() >= 2 and vocabularies.map(lambda found: "scp" in found).all()
    codes = MAP.groupby("vocabulary")["code"].agg(set)
    assert codes["scp"] <= set(labels.statements().index) and codes["code15"] == set(CODE15_LABELS)


def test_the_map_agrees_with_the_challenge():
    """Codes that the Challenge scores as one have one label, and its class of an SCP statement is ours, where we take both."""
    ours = labels.task_map("shared")
    differ = {}
    for row in challenge.classes().reset_index().itertuples():
        equal = [code for code in row.snomed.split("|") if code in ours]
        assert len(equal) in (0, len(row.snomed.split("|")))
        found = {ours[code] for code in equal}
        assert len(found) <= 1
        for code in filter(None, row.scp.split(";")):
            if code in ours and found and {ours[code]} != found:
                differ[code] = found
    assert differ == {"NORM": {"SR"}}  # there the sinus rhythm of a normal ECG


def test_matrix_of_every_vocabulary():
    rows = table(
        ("ptb-xl", "NORM;SR"),
        ("georgia", "164889003;59118001"),
        ("ludb", "Atrial fibrillation;Complete right bundle branch block"),
        ("code-15", "AF;RBBB"),
        ("mixed", "AFIB;59118001;1dAVb"),
        ("ptb-xl", "ABQRS"),
        ("georgia", "251139008"),
    )
    targets, names, kept = labels.matrix(rows, "shared")
    assert names == list(dict.fromkeys(MAP["label"])) and targets.dtype == np.float32
    both = row_of(names, "AFIB", "CRBBB")
    expected = [row_of(names, "NORM", "SR"), both, both, both, row_of(names, "AFIB", "CRBBB", "1AVB"), row_of(names), row_of(names)]
    assert targets.tolist() == expected and kept.all()
    joined, columns = labels.joint(rows, ["shared"])
    np.testing.assert_array_equal(joined[:, columns["shared"][0]], targets)


def test_infarction_is_not_injury_and_a_pacemaker_may_be_told_twice():
    targets, names, _ = labels.matrix(table(("a", "IMI;AMI"), ("a", "INJAS"), ("b", "10370003;251266004")), "shared")
    assert targets.tolist() == [row_of(names, "MI"), row_of(names), row_of(names, "PACE")]


def test_records_without_a_known_code_are_left_out():
    rows = table(("chagas", "chagas:1"), ("hospital", ""), ("ludb", "Sinus rhythm"), ("x", "12345"), ("y", "basal_pattern;PVC"))
    assert labels.matrix(rows, "shared")[2].tolist() == [False, False, True, False, True]


def test_an_empty_cell_of_code15_says_none_of_seven():
    rows = table(("code-15", "AF"), ("code-15", ""), ("ptb-xl", ""), ("code-15", "chagas:0"))
    targets, _, kept = labels.matrix(rows, "shared")
    assert kept.tolist() == [True, True, False, False] and not targets[1].any()


def test_annotated_is_what_a_source_has_shown():
    rows = table(
        ("ptb-xl", "AFIB;IMI"), ("ptb-xl", "NORM"), ("cpsc_2018", "426783006"), ("cpsc_2018", "284470004"), ("chapman_ningbo", "164890007"),
        ("chapman_ningbo", "426783006"), ("chagas", "chagas:1"),
    )  # fmt: skip
    found = labels.annotated(rows)
    assert list(found.columns) == labels.matrix(rows, "shared")[1] and found.to_numpy().dtype == bool
    shown = {source: set(found.columns[row]) for source, row in zip(found.index, found.to_numpy(), strict=True)}
    assert shown == {"ptb-xl": {"AFIB", "MI", "NORM"}, "cpsc_2018": {"PAC"}, "chapman_ningbo": {"SR"}, "chagas": set()}
    mask = found.loc[rows["source"]].to_numpy()
    assert mask.shape == (7, len(found.columns)) and mask[0].tolist() == mask[1].tolist()


def test_unsure_names_labels_of_the_map():
    assert {label for left_out in labels.UNSURE.values() for label in left_out} <= set(MAP["label"])


def test_simulated_recordings_have_the_task():
    _, people = simulate(300, seed=2)
    targets, names, kept = labels.matrix(people, "shared")
    assert kept.all()
    for code, label in (("AFIB", "AFIB"), ("CLBBB", "CLBBB"), ("LAO/LAE", "LAE")):
        expected = people["labels"].str.split(";").map(lambda codes, code=code: code in codes)
        assert expected.any() and (targets[:, names.index(label)] == expected).all()


def test_the_sentence_of_an_unknown_task_names_it():
    with pytest.raises(CremaError, match=r"unknown task 'sharde': known are .*shared"):
        labels.matrix(table(("a", "SR")), "sharde")


def test_real_sets_speak_the_vocabularies(real_data):
    ludb = pd.DataFrame(rows_of(real_data / "ludb-1.0.1", 100)).assign(source="ludb")
    used = set(ludb["labels"].str.split(";").explode())
    assert set(MAP["code"][MAP["vocabulary"] == "ludb"]) <= used and labels.matrix(ludb, "shared")[2].all()
    codes = pd.read_csv(real_data / "challenge-2021-sample" / "labels.csv", dtype=str)
    sample = codes.assign(labels=codes["snomed"].str.split().str.join(";"))
    targets, names, kept = labels.matrix(sample, "shared")
    assert kept.all()
    for label, pattern in {"AFIB": "164889003", "CRBBB": "713427006|59118001", "PAC": "284470004|63593006", "LVH": "164873001"}.items():
        assert targets[:, names.index(label)].sum() == sample["snomed"].str.contains(pattern).sum() > 5
    shown = labels.annotated(sample)
    assert shown.loc["cpsc_2018", "CLBBB"] and not shown.loc["cpsc_2018", ["SR", "SBRAD", "LVH"]].any()


@pytest.mark.parametrize("name", ["chagas-sample", "brugada-huca"])
def test_sets_of_one_question_have_no_record_in_the_task(real_data, name):
    folder = real_data / name
    if name == "brugada-huca":
        found = pd.DataFrame(rows_of(folder, 100)).assign(source=name)
    else:
        headers = sorted(folder.rglob("*.hea"))[:30]
        assert headers and all("Chagas label" in header.read_text() for header in headers)
        found = table((name, "chagas:0"), (name, "chagas:1"))
    assert not labels.matrix(found, "shared")[2].any() and not labels.annotated(found).any(axis=None)
