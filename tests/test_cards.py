"""Model card and datasheet: that they say what the records say, and that the committed pages are those of the committed records."""

import copy
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT

from crema_lib import __main__ as cli
from crema_lib import carbon, cards, composition, runs, weights
from crema_lib.cards import card as card_page
from crema_lib.cards import committed as source
from crema_lib.cards import markdown, sheet
from crema_lib.data import labels, manifest
from crema_lib.data.simulate import simulated_store
from crema_lib.errors import CremaError

NAME = weights.names()[0]
TEMPLATES = ("model_card.md", "datasheet.md")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 400, seed=0, fs=100, seconds=5)


@pytest.fixture(scope="module")
def committed():
    return cards.read_all()


@pytest.fixture(scope="module")
def card(committed):
    return cards.model_card(NAME, committed)


@pytest.fixture
def records(committed):
    return copy.deepcopy(committed)


# --- the committed pages


def test_the_committed_pages_are_what_the_records_say():
    for path, text in cards.pages().items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"{path} is not what the records say now: run {cards.COMMAND}"


def test_pages_cite_and_link_what_is_there(card, committed):
    keys = set(re.findall(r"@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text()))
    for page in (card, cards.datasheet(committed)):
        cited = {key for group in re.findall(r"\{cite:[tp]\}`([\w,]+)`", page) for key in group.split(",")}
        assert cited and cited <= keys
        links = re.findall(r"\]\((?!https://)([^)]+)\)", page)
        assert links and all((ROOT / "book" / link).is_file() for link in links)
        assert page.count("\n# ") + page.startswith("# ") == 1
        assert "nan" not in page.lower().split() and "None" not in page


def test_no_result_is_typed():
    """Numbers in the words are those of names (12 leads, 95 %, float32), and the rest comes from records."""
    for name in TEMPLATES:
        words = (ROOT / "crema_lib" / "cards" / name).read_text()
        words = re.sub(r"\{cite:\w\}`[^`]+`|\[\]\([^)]+\)|```.*?```", "", words, flags=re.DOTALL)
        assert set(re.findall(r"\d+", words)) <= {"12", "95", "32", "256"}


def test_the_readme_is_a_page_of_the_hub(card, committed):
    text = cards.readme(NAME, card, committed)
    _, front, body = text.split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["license"] == "mit" and data["library_name"] == "crema_lib" and "ecg" in data["tags"]
    results = data["model-index"][0]["results"]
    assert [one["dataset"]["config"] for one in results] == ["all", "diag", "sub", "super", "form", "rhythm"]
    rows = committed["04_linear_probing"]["extra"]["by_seed"]
    (expected,) = (row["value"] for row in rows if (row["task"], row["seed"], row["model"]) == ("form", 0, "CR-MAE"))
    assert results[4]["metrics"] == [{"type": "roc_auc", "value": round(expected, 4), "name": "macro AUROC of a linear probe"}]
    assert "{cite" not in body and "[](" not in body
    for link in re.findall(r"\]\((\.\./[^)]+)\)", body):
        assert (ROOT / "weights" / NAME / link).resolve().is_file()
    assert "[Mitchell et al. (2019)](https://doi.org/10.1145/3287560.3287596)" in body


# --- what the card says


def test_the_card_follows_the_records(card, records):
    def change(chapter, name, task, model, **values):
        (found,) = [m for m in records[chapter]["metrics"] if (m["name"], m["task"], m["model"]) == (name, task, model)]
        found.update(values)

    change("05_fine_tuning", "macro AUROC", "all", "CR-MAE", value=0.12345, low=0.11111, high=0.13333)
    told = {
        "random initialisation": {"value": -0.5, "low": -0.6, "high": -0.4, "p_holm": 0.01},
        "xresnet1d101": {"value": -0.01, "low": -0.02, "high": -0.0004, "p_holm": 0.06},
        "features + boosting": {"value": 0.01, "low": -0.0001, "high": 0.02, "p_holm": 0.01},
    }
    for row in records["05_fine_tuning"]["extra"]["gains"]:
        if row["task"] == "all" and row["model"] == "CR-MAE":
            row.update(told.get(row["other"], {}))
    place = next(
        row
        for row in records["09_other_hospitals"]["extra"]["other places"]
        if (row["sample"], row["metric"], row["model"]) == ("ludb", "sensitivity", source.PROBE)
    )
    place.update(home=0.99, value=0.01, low=0.0, high=0.02, drop=0.98)
    for row in records["10_corruptions"]["extra"]["conditions"]:
        if row["kind"] == "reversal" and row["metric"] == "auroc" and row["model"] == source.PROBE:
            row.update(drop=0.4 if row["sample"].startswith("V1") else 0.1, value=0.444, low=0.4, high=0.5, home=0.9)
    after = cards.model_card(NAME, records).replace("\N{NO-BREAK SPACE}", " ")
    assert "0.123 [0.111, 0.133]" in after and "0.123 [0.111, 0.133]" not in card.replace("\N{NO-BREAK SPACE}", " ")
    assert "below its random twin (-0.500 [-0.600, -0.400])" in after
    assert "below `xresnet1d101` (-0.0100 [-0.0200, -0.0004], adjusted p = 0.060)" in after, "what is near zero does not look like zero"
    assert "neither above nor below `features + boosting` (0.0100 [-0.0001, 0.0200])" in after
    assert "the sensitivity, home → there, is 0.990 → 0.010 [0.000, 0.020] (ludb)" in after
    assert "V1 and V2 exchanged, macro AUROC 0.900 → 0.444 [0.400, 0.500]" in after


def test_the_card_says_where_the_model_fails(records):
    told = [("NDT", 9, 0.1), ("NST_", 10, 0.3), ("AMI", 50, 0.2), *((code, 20, 0.9) for code in ("NORM", "AFIB", "PAC", "CRBBB"))]
    rows = [{"label": code, "n": n, "model": source.MODEL, "value": x, "low": x - 0.01, "high": x + 0.01} for code, n, x in told]
    records["04_linear_probing"]["extra"]["labels"]["all"] = [*rows, {**rows[0], "n": 99, "model": source.TWIN}]
    for row in records["05_fine_tuning"]["metrics"]:
        if row["model"] == "CR-MAE - xresnet1d101":
            worse = row["task"] in ("diag", "sex") or (row["name"], row["task"]) == (card_page.OFTEN, "sub")
            row["high"] = -0.001 if worse else 0.001
    text = " ".join(cards.model_card(NAME, records).replace("\N{NO-BREAK SPACE}", " ").split())
    first = "anterior myocardial infarction (`AMI`, 0.200 [0.190, 0.210]), non-specific ST changes (`NST_`, 0.300 [0.290, 0.310]), "
    assert f"of the 6 of `all` with at least 10 positives in fold 10, by a linear probe: {first}" in text and "`NDT`" not in text
    worse = (
        "on `diag` and `sex` over every label of fold 10, and on `diag`, `sub` and `sex` over the labels with at least 10 positives there"
    )
    assert f"worse than `xresnet1d101`, a convolutional network, {worse}; and than `features + boosting`" in text
    records["05_fine_tuning"]["metrics"] = [row for row in records["05_fine_tuning"]["metrics"] if not row["model"].startswith("CR-MAE - ")]
    assert card_page._simpler(records) == "none was tried"


def test_the_card_shows_every_task_and_fine_tuning_on_fewer_leads(card, records):
    text = card.replace("\N{NO-BREAK SPACE}", " ")
    assert all(f"| `{task}` " in text for task in labels.TASKS)
    extra = records["15_any_leads"]["extra"]
    tuned = {(row["model"], row["leads"]): row for row in extra["tuned"] if row["task"] == "all"}
    differences = {(row["model"], row["other"]): row for row in extra["tuned_differences"] if row["task"] == "all"}
    for leads in (12, 6, 4, 3, 2, 1):
        own, words = tuned["CR-MAE", leads], f"{leads} lead{'s' * (leads > 1)}"
        gain = differences[f"CR-MAE, {words}", f"random initialisation, {words}"]
        row = [f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in (own, gain)]
        assert f"| {leads} | {row[0]} | {row[1]} |" in text
    extra["tuned"] = []
    assert "Fine-tuned on the leads" not in cards.model_card(NAME, records)


def test_the_card_says_what_was_fitted_where(card):
    text = " ".join(card.split())
    assert "for held-out devices, sites and years probe, thresholds and temperatures come from the patients of the remaining groups" in text


def test_the_card_says_how_many_encoders_stand_behind_a_score(records):
    extra = records["04_linear_probing"]["extra"]
    several = "| 3; these weights are those of seed 0. Over all of them the linear probe reaches 0.9"
    for seeds, said in (((0,), "| one, seed 0: what another"), ((0, 1, 2), several)):
        extra["by_seed"] = [{"task": "all", "seed": seed, "model": source.MODEL, "value": 0.9} for seed in seeds]
        assert said in cards.model_card(NAME, records)
    several = (
        "on `all` it is 0.9000 with seed 0, 0.9000 with seed 1 and 0.9000 with seed 2 ([](04_linear_probing.ipynb)). Below, the probes that"
    )
    assert several in cards.model_card(NAME, records)


def test_tables_and_numbers():
    assert (
        markdown.table(("a", "b"), [("x", "1,000"), ("y", "-2.5 [1, 2]")])
        == "| a | b |\n| --- | ---: |\n| x | 1,000 |\n| y | -2.5 [1, 2] |"
    )
    assert markdown.number(source.Interval(-0.0001, -0.2, 0.3)) == "0.000 [-0.200,\N{NO-BREAK SPACE}0.300]"
    near = [source.Interval(-0.01, -0.02, high) for high in (-0.005, -0.0004, -0.00004, 0.0)]
    ends = ["-0.005]", "-0.0004]", "-0.00004]", "0.000]"]
    assert [markdown.difference(one).split("\N{NO-BREAK SPACE}")[1] for one in near] == ends
    assert [markdown.listed(words) for words in ("", "a", "abc")] == ["none", "a", "a, b and c"]
    assert markdown.FOLDS["train_folds"] == "1 to 8" and markdown.FOLDS["held_folds"] == "9 and 10"


def test_energy_is_hours_times_watts_times_the_building():
    cpu = {"wall_seconds": 7200, "device": {"type": "cpu", "name": "x", "cpus": 3}}
    assert carbon.energy(cpu) == pytest.approx(2 * 3 * carbon.CORE_WATTS / 1000 * carbon.OVERHEAD)
    gpu = {"wall_seconds": 1800, "device": {"type": "cuda", "name": "Tesla T4", "cpus": 2}}
    assert carbon.energy(gpu) == pytest.approx(0.5 * 0.07 * carbon.OVERHEAD)
    with pytest.raises(CremaError, match="the watts of Abacus are not known: add the device to GPU_WATTS"):
        carbon.energy({"wall_seconds": 1, "device": {"type": "cuda", "name": "Abacus", "cpus": 2}})


def test_what_training_took_counts_though_the_chapter_found_it_done(records):
    run = records["03_pretraining"]
    run["wall_seconds"], run["extra"]["minutes"] = 14, 120
    run["device"] = {"type": "cpu", "name": "x", "cpus": 2}
    kwh = carbon.energy(run | {"wall_seconds": 7200})
    text = cards.model_card(NAME, records)
    assert f"Pretraining took 120 minutes on a machine with 2 cores: about {kwh:.2f} kWh" in " ".join(text.split())


def test_the_datasheet_tells_of_the_people_and_who_keeps_what(records):
    for row in records["15_any_leads"]["extra"]["people"]:
        if (row["measure"], row["leads"], row["space"]) == ("top-1", 12, "whitened"):
            row.update(dict(value=0.9, low=0.8, high=0.95) if row["model"] == source.MODEL else dict(value=0.5, low=0.4, high=0.6))
    text = " ".join(cards.datasheet(records).replace("\N{NO-BREAK SPACE}", " ").split())
    assert "for a share of 0.900 [0.800, 0.950] of 535 recordings of people with another one in folds 9 and 10" in text
    assert "out of 417; without any training it is 0.500 [0.400, 0.600] ([](15_any_leads.ipynb))" in text
    assert "the authors do not tell whether the people were notified or asked" in text
    assert "**Errata.**" in text and "**The prepared form** is kept by nobody but those who make it" in text
    assert "German" not in text and "country" not in text, "no record and no cited source holds the country"


# --- records that do not fit


def test_records_of_another_model_are_refused(records):
    records["03_pretraining"]["parameters"]["depth"] = 7
    with pytest.raises(CremaError, match=r"the records are of another model than these weights, which have depth 6 and not 7: commit"):
        cards.model_card(NAME, records)
    records["03_pretraining"]["parameters"]["depth"] = 0
    records["03_pretraining"]["parameters"]["objective"] = "mae"
    with pytest.raises(CremaError, match="objective CRMAE and not MAE"):
        cards.model_card(NAME, records)
    records["03_pretraining"]["parameters"]["objective"] = "cr_mae"
    records["precision"]["extra"]["config"]["scale"] = [1.0] * 12
    with pytest.raises(CremaError, match="which have scale"):
        cards.model_card(NAME, records)


def test_what_a_record_lacks(records, tmp_path, monkeypatch):
    extra = records["10_corruptions"]["extra"]
    extra["conditions"] = [row for row in extra["conditions"] if row["model"] != source.PROBE]
    with pytest.raises(CremaError, match=r"the record 10_corruptions has no rows of conditions with .*CR-MAE, probe.*run it again"):
        cards.model_card(NAME, records)
    records["05_fine_tuning"]["metrics"] = [m for m in records["05_fine_tuning"]["metrics"] if m["task"] != "form"]
    with pytest.raises(CremaError, match=r"the record 05_fine_tuning has 0 rows for macro AUROC, form, .* where the cards need one"):
        cards.model_card(NAME, records)
    del records["datasheet"]
    for page in (lambda: cards.model_card(NAME, records), lambda: cards.datasheet(records)):
        with pytest.raises(CremaError, match=r"the cards need the record datasheet\.json, which is not there"):
            page()
    monkeypatch.setenv("CREMA_HOME", str(tmp_path))
    with pytest.raises(CremaError, match="weights/ holds no model: python -m crema_lib publish"):
        cards.pages()
    with pytest.raises(CremaError, match="results/ptbxl holds no run record"):
        cards.read_all()


def test_words_and_values_must_meet():
    with pytest.raises(CremaError, match=r"datasheet\.md and its values differ in .*surplus"):
        markdown.fill("datasheet.md", {"surplus": 1})


# --- counts of a data set


def test_counts_are_those_of_the_table(store, tmp_path):
    folder = shutil.copytree(store.path, tmp_path / "store")
    copied = type(store)(folder)
    (folder / "report.csv").unlink(missing_ok=True)
    with pytest.raises(CremaError, match=r"report\.csv is not there: prepare the data set again"):
        composition.count(copied)
    report = [("a", "record a: too short", "left out"), ("b", "record b: too short", "left out"), ("c", "nan:V1", "kept with flag")]
    pd.DataFrame(report, columns=["record", "reason", "action"]).to_csv(folder / "report.csv", index=False)
    copied.table.loc[:2, "quality"] = ["age>89", "flat:V1;static_noise", "flat:V2"]
    copied.table.loc[0, "age"] = np.nan
    table, told = copied.table, composition.count(copied)
    assert told["left out"] == 2 and told["reasons"] == {"too short": 2}
    assert told["patients"] == table["patient"].nunique()
    assert told["several"] == (table["patient"].value_counts() > 1).sum() and told["most"] == table["patient"].value_counts().max()
    assert [part["records"] for part in told["parts"]] == [
        (table["fold"] < 9).sum(),
        (table["fold"] == 9).sum(),
        (table["fold"] == 10).sum(),
    ]
    norm = table["labels"].str.split(";").map(lambda codes: "NORM" in codes)
    assert [part["NORM"] for part in told["parts"]] == [
        norm[table["fold"] < 9].sum(),
        norm[table["fold"] == 9].sum(),
        norm[table["fold"] == 10].sum(),
    ]
    (row,) = [row for row in told["statements"] if row["code"] == "NORM"]
    assert row["train"] + row["valid"] + row["test"] == norm.sum()
    bands = {row["age"]: row["records"] for row in told["age"]}
    assert sum(bands.values()) == 400 and bands[">=90"] == 1
    assert bands["40-59"] == table["age"].between(40, 59.999).sum()
    assert told["quality"]["flat"] == 2 and "age>89" not in told["quality"]
    assert sum(row["records"] for row in told["device"]) == 400 == sum(told["sex"].values())
    assert told["site"] == [{"site": "other", "records": 400, "patients": told["patients"]}], "small sites are counted together"
    text = json.dumps(told)
    assert not any(f'"{name}"' in text for name in [*table["record"], *table["patient"]]), "counts only"


def test_the_command_counts_and_writes_all_pages(store, tmp_path, monkeypatch, capsys):
    (store.path / "report.csv").write_text("record,reason,action\n")
    for folder in ("results", "weights"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "book").mkdir()
    shutil.copy(ROOT / "_config.yml", tmp_path)
    monkeypatch.setenv("CREMA_HOME", str(tmp_path))
    for page in (card_page, sheet):
        monkeypatch.setattr(page, "dataset", lambda name: manifest.dataset("ptb-xl" if name == "simulated" else name))
    assert cli.main(["cards", "--count", str(store.path)]) == 0
    told = capsys.readouterr().out.split()
    assert told == [f"weights/{NAME}/README.md", "book/model_card.md", "book/datasheet.md"]
    record = runs.read(tmp_path / "results" / "ptbxl" / "datasheet.json")
    assert record["data"] == {"name": "simulated", "records": 400, "sha256": store.meta["sha256"]}
    assert "400 recordings of" in (tmp_path / "book" / "datasheet.md").read_text()
    (tmp_path / "results" / "ptbxl" / "12_maps.json").unlink()
    assert cli.main(["cards"]) == 1
    assert "the cards need the record 12_maps.json" in capsys.readouterr().err
