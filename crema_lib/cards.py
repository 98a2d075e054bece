"""Model card and datasheet, made from run records: no result in them is typed.

Their words are in `model_card.md` and `datasheet.md` beside this file, in the form of Mitchell et al. (2019) and Gebru et al. (2021); what
they say of numbers is filled in here. Both become pages of the book, and the card also the README of its weights. A committed page must
equal what the committed records give: `python -m crema_lib cards` writes all of them anew.
"""

import json
import re
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from . import carbon, composition, runs, weights
from .data import labels, splits
from .data.manifest import dataset, reference
from .errors import CremaError
from .leakage.checkpoint import SEEN, what_was_seen
from .metrics import FEW, Interval
from .objectives import OBJECTIVES, TITLES
from .paths import home
from .sit import SIZES

MODEL, TWIN, PROBE = "CR-MAE", "random initialisation", "CR-MAE, probe"  # rows of the records
RIVALS = {"xresnet1d101": "a convolutional network", "features + boosting": "boosting on features made by hand"}  # trained on labels alone
FLAGS = {"flat": "flat lead", "electrodes_problems": "electrode problems"}  # where the flag of the table is no plain English
SHOWN = ("all", "super", "form", "rhythm")  # tasks on the card
COMMAND = "python -m crema_lib cards"
INSIDE = r"(device|site|year) "  # samples of record 09 that are parts of the home set


# --- records


def read_all(profile="ptbxl"):
    """The committed records of a profile: dict name of the file -> record.

    Raises:
        CremaError: there is none, or one is malformed.
    """
    found = sorted((home() / "results" / profile).glob("*.json"))
    if not found:
        raise CremaError(f"results/{profile} holds no run record: run the chapters with this profile first")
    return {path.stem: runs.read(path) for path in found}


def _record(records, chapter):
    if chapter not in records:
        raise CremaError(f"the cards need the record {chapter}.json, which is not there: run its chapter or command first")
    return records[chapter]


def _metric(records, chapter, name, task, model):
    """The `Interval` of one metric of a record."""
    found = [m for m in _record(records, chapter)["metrics"] if (m["name"], m["task"], m["model"]) == (name, task, model)]
    if len(found) != 1:
        raise CremaError(f"the record {chapter} has {len(found)} rows for {name}, {task}, {model} where the cards need one: run it again")
    return Interval(*(np.nan if found[0][key] is None else found[0][key] for key in ("value", "low", "high")))


def _frame(records, chapter, key, **where):
    """Those rows of a table in the `extra` of a record that have the given values."""
    frame = pd.DataFrame(_record(records, chapter)["extra"].get(key) or [])
    for column, value in where.items():
        frame = frame[frame[column] == value] if column in frame else frame[:0]
    if frame.empty:
        raise CremaError(f"the record {chapter} has no rows of {key} with {where}, which the cards need: run it again")
    return frame.reset_index(drop=True)


def _check(records, config, objective):
    """Refuse records of another model: figures of one model on the card of another would be the worst of errors."""
    p, half = _record(records, "03_pretraining")["parameters"], _record(records, "precision")["extra"]["config"]
    told = {**SIZES[p["model"]], **{key: p[key] for key in ("width", "depth") if p.get(key)}}
    told |= {key: p[key] for key in ("patch", "stem", "fs")} | {"objective": OBJECTIVES[p["objective"]].__name__, "scale": half["scale"]}
    found = {**config, "objective": objective}
    if wrong := [f"{key} {found.get(key)} and not {told[key]}" for key in told if found.get(key) != told[key]]:
        raise CremaError(f"the records are of another model than these weights, which have {', '.join(wrong)}: commit the records of these")


# --- words


def _table(header, rows):
    """A table of Markdown, numbers to the right."""
    rows = [[str(cell) for cell in row] for row in rows]
    right = [all(re.match(r"-?\d", row[i]) for row in rows) for i in range(len(header))]
    lines = [header, ["---:" if one else "---" for one in right], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value, digits=3):
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _score(value, digits=3):
    """An `Interval` as "value [low, high]", with a space in the brackets where no line breaks."""
    return f"{_number(value.value, digits)} [{_number(value.low, digits)},\N{NO-BREAK SPACE}{_number(value.high, digits)}]"


def _share(value):
    return f"{100 * value:.0f} %"


def _of(row):
    return Interval(row["value"], row["low"], row["high"])


def _drop(row):
    return Interval(row["drop"], row["drop_low"], row["drop_high"])


def _away(row):
    """ "home → there [low, high]" of a row that is held against home."""
    return f"{_number(row['home'])}\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}{_score(_of(row))}"


def _list(words):
    *most, last = [str(word) for word in words] or ["none"]
    return f"{', '.join(most)} and {last}" if most else last


def _folds(*parts):
    folds = [fold for part in parts for fold in splits.SPLITS[part]]
    return f"{folds[0]} to {folds[-1]}" if len(folds) > 2 else _list(folds)


def _word(part):
    return f"fold{'s' * (len(splits.SPLITS[part]) > 1)} {_folds(part)}"


FOLDS = {f"{part}_fold{'s' * (len(folds) > 1)}": _folds(part) for part, folds in splits.SPLITS.items()}
FOLDS["held_folds"] = _folds("valid", "test")


def _fill(template, values):
    """A page: the template of that name with its values, all of them and no other."""
    page = Template(Path(__file__).with_name(template).read_text(encoding="utf-8"))
    if unequal := set(page.get_identifiers()) ^ set(values):
        raise CremaError(f"{template} and its values differ in {', '.join(sorted(unequal))}")
    return page.substitute(values)


# --- the model card


def model_card(name, records):
    """The model card of weights, a MyST page.

    Args:
        name: of a model in `weights/`. records: those of this model, see `read_all`.

    Returns:
        str, Markdown with the book's citations and links to its chapters.

    Raises:
        CremaError: no such model, records of another one, or a record that lacks what the card reads.
    """
    folder = weights.locate(name)
    config, saved = (json.loads((folder / file).read_text()) for file in ("config.json", "objective.json"))
    _check(records, config, saved["class"])
    parts = (_facts(folder, config, saved, records), _training(folder, records), _results(records), _groups(records), _changes(records))
    values = {key: value for part in (*parts, _failures(records), _leaks(records), _costs(folder, records)) for key, value in part.items()}
    folds = {key: FOLDS[key] for key in ("held_folds", "valid_fold", "test_fold")}
    return _fill("model_card.md", {"name": folder.name, "command": COMMAND, "sums": weights.SUMS, "seen": SEEN, **folds, **values})


def _facts(folder, config, saved, records):
    run, young = _record(records, "03_pretraining"), _record(records, "datasheet")["extra"]["age"][0]
    dtype, parameters = weights.stored(folder)
    band = f"{config['band'][0]:g} to {config['band'][1]:g} Hz" if config.get("band") else "unfiltered"
    files = sorted(folder.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files) / 1e6
    rows = [
        ("what", f"Signal Transformer, an encoder of {len(config['leads'])}-lead ECGs, with the heads of its pretraining"),
        ("size", f"width {config['width']}, {config['depth']} blocks, {config['heads']} heads, {parameters:,} parameters in the encoder"),
        ("files", f"{size:.1f} MB of safetensors: {_list(path.stem for path in files)}; matrices of the weights in {dtype}"),
        ("input", f"millivolts, {config['fs']:g} Hz, up to {config['seconds']:g} s, {band}; `embed` brings other arrays there"),
        ("token", f"{config['patch']} samples ({1000 * config['patch'] / config['fs']:.0f} ms) of all leads"),
        ("output", f"{config['width']} numbers a recording (`mean`), or the means of the last blocks side by side (`layers`)"),
        ("objective", TITLES[run["parameters"]["objective"]]),
        ("options", ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in saved["options"].items())),
        ("made", f"{run['time_utc'][:10]}, commit `{(run['code']['commit'] or 'unknown')[:7]}`, torch {run['versions']['torch']}"),
        ("licence", "MIT; the recordings have their own, see [](datasheet.md)"),
    ]
    return {
        "facts": _table(("property", "value"), rows),
        "fs": f"{config['fs']:g}",
        "young": f"{young['records']:,}",
        "youngest": young["age"],
    }


def _training(folder, records):
    run = _record(records, "03_pretraining")
    p, extra, source = run["parameters"], run["extra"], dataset(run["data"]["name"])
    items = int(what_was_seen(folder)[1]["items"])
    rows = [
        ("recordings", f"{items:,} without labels: {source['title']}, version {source['version']}, folds {FOLDS['train_folds']}"),
        ("passes", f"{p['epochs']:g}, in batches of {p['batch_size']}: {extra['log']['step'][-1]:,} steps"),
        ("optimiser", f"AdamW, learning rate {p['lr']:g}, weight decay {p['weight_decay']:g}"),
        ("warm-up", f"{_share(p['warmup'])} of the steps, then a cosine"),
        ("time", f"{extra['minutes']:.0f} minutes, {extra['records_per_s']:.0f} recordings a second"),
        ("machine", run["device"]["name"]),
        ("runs", f"one, seed {p['seed']}: what another seed would change is not known"),
    ]
    explained = _metric(records, "03_pretraining", "variance explained", "pretraining", p["objective"])
    return {"training": _table(("property", "value"), rows), "explained": _share(explained.value)}


def _results(records):
    def score(task, model):
        return _metric(records, "05_fine_tuning", "macro AUROC", task, model)

    tuning, scored = _record(records, "05_fine_tuning"), pd.DataFrame(_record(records, "04_linear_probing")["extra"]["labels"]["all"])
    rivals = [one for one in RIVALS if any(metric["model"] == one for metric in tuning["metrics"])]
    arms = {f"{TWIN}, probe": "random, probe", PROBE: "pretrained, probe", TWIN: "random, fine-tuned", MODEL: "pretrained, fine-tuned"}
    arms |= {one: one for one in rivals}
    rows = [(title, *(_score(score(task, arm)) for task in SHOWN)) for arm, title in arms.items()]
    worth = []
    for other in (TWIN, *rivals):
        gain = score("all", f"{MODEL} - {other}")
        side = "above" if gain.low > 0 else "below" if gain.high < 0 else "neither above nor below"
        worth.append(f"{side} {'its random twin' if other == TWIN else other} ({_score(gain)})")
    points = _frame(records, "06_label_efficiency", "points", task="all", model=PROBE).sort_values("share").iloc[0]
    return {
        "seeds": tuning["extra"]["seeds"],
        "rivals": f"Trained on labels alone: {'; '.join(f'`{one}`, {RIVALS[one]}' for one in rivals)}." if rivals else "",
        "results": _table(("macro AUROC", *(f"`{task}`" for task in SHOWN)), rows),
        "worth": _list(worth),
        "rare": int((scored[scored["model"] == MODEL]["n"] < FEW).sum()),
        "few": FEW,
        "share": _share(points["share"]),
        "share_records": f"{points['records']:,.0f}",
        "share_labels": points["labels"],
        "share_score": _score(_of(points)),
        "age_error": _score(_metric(records, "04_linear_probing", "MAE", "age", MODEL), 1),
        "age_mean": _score(_metric(records, "04_linear_probing", "MAE", "age", "mean age"), 1),
    }


def _outside(records, **where):
    """Rows of record 09 on the sets of other hospitals."""
    places = _frame(records, "09_other_hospitals", "other places", model=PROBE, **where)
    return places[~places["sample"].str.match(INSIDE)]


def _worst(rows):
    return rows.loc[rows["drop"].idxmax()]


def _groups(records):
    def held(*tables):
        rows = []
        for _, of in pd.concat(tables).groupby("sample", sort=False):
            rank, found = (of[of["metric"] == metric].iloc[0] for metric in ("auroc", "sensitivity"))
            name = rank["sample"].replace("<", "&lt;").replace("_", " ")
            rows.append((name, f"{rank['records']:,}", _away(rank), _score(_drop(rank)), _away(found)))
        return _table(("group", "recordings", "AUROC, home → there", "drop", "sensitivity, home → there"), rows)

    people = _frame(records, "09_other_hospitals", "people", model=PROBE)
    places = _frame(records, "09_other_hospitals", "other places", model=PROBE)
    inside = places[places["sample"].str.match(INSIDE) & ~places["sample"].str.startswith("year")]
    worst = _worst(pd.concat([people, inside]).query("metric == 'auroc'").reset_index())
    error = _worst(_outside(records, metric="ece"))
    domains = _frame(records, "09_other_hospitals", "clinical domains", model=PROBE, metric="ece")
    expected = _frame(records, "07_calibration", "expected", task="super", model=PROBE, scaled="no").iloc[0]
    return {
        "wanted": _share(_record(records, "09_other_hospitals")["parameters"]["sensitivity"]),
        "groups": held(people, inside),
        "worst_group": worst["sample"].replace("<", "&lt;"),
        "worst_drop": _score(_drop(worst)),
        "hospitals": held(_outside(records)),
        "worst_error": f"{_away(error)} ({error['sample']})",
        "domains": _list(domains["sample"]),
        "domain_errors": _list(_score(_of(row)) for _, row in domains.iterrows()),
        "domain_home": _number(domains["home"].iloc[0]),
        "calibration": _number(expected["ECE"]),
        "if_right": _number(expected["if right"]),
    }


def _changes(records):
    changed = _frame(records, "10_corruptions", "conditions", model=PROBE, metric="auroc")
    worst = changed.loc[changed.groupby("kind")["drop"].idxmax()].sort_values("drop", ascending=False)
    leads = _frame(records, "15_any_leads", "scores", model=MODEL, task=_record(records, "15_any_leads")["parameters"]["curve_tasks"][0])
    scores = {(row["trained"], row["leads"]): _score(_of(row)) for _, row in leads.iterrows()}
    shown = sorted(set(leads["leads"]), reverse=True)
    return {
        "shift_task": _record(records, "10_corruptions")["parameters"]["shift_task"],
        "at_home": _number(worst["home"].iloc[0]),
        "changes": _table(
            ("change", "level", "macro AUROC", "drop"),
            [_change(row) for _, row in worst.iterrows()],
        ),
        "lead_task": leads["task"].iloc[0],
        "leads": _table(
            ("leads shown", "probe of the most leads", "probe of these leads"),
            [(number, *(scores.get((trained, number), "") for trained in ("full", "own"))) for number in shown],
        ),
        "lead_all": f"macro AUROC {scores['full', shown[0]]} with {shown[0]} leads",
        "lead_one": f"{scores['full', shown[-1]]} with {shown[-1]}",
    }


def _change(row):
    return row["kind"], row["sample"].removeprefix(f"{row['kind']}, "), _score(_of(row)), _score(_drop(row))


def _failures(records):
    changed = _frame(records, "10_corruptions", "conditions", model=PROBE, metric="auroc")

    def hardest(*kinds):
        row = _worst(changed[changed["kind"].isin(kinds)])
        return f"{row['sample']}, macro AUROC {_away(row)}"

    least = 0.01
    kinds = changed.groupby("kind")["drop"].max()
    harmless = list(kinds.index[kinds < least])
    missed = _worst(_outside(records, metric="sensitivity"))
    doubt = _frame(records, "11_trust", "flags", model=PROBE, signal="doubt")
    worst = doubt.loc[doubt["value"].idxmin()]
    return {
        "swap": hardest("reversal"),
        "noise": hardest("baseline wander", "muscle artefact", "electrode motion", "powerline", "white"),
        "narrow": hardest("low-pass", "high-pass", "sampling rate", "gain"),
        "harmless": f"What costs less than {least} at every level tried: {_list(harmless)}." if harmless else "",
        "missed": f"{_away(missed)} ({missed['sample']})",
        "doubt_home": _score(_of(doubt[doubt["sample"].str.startswith("home")].iloc[0])),
        "doubt_worst": f"{_score(_of(worst))} ({worst['sample']})",
    }


def _leaks(records):
    table = _frame(records, "08_leakage", "table")
    own = table[table["where"] == table["where"].iloc[0]].set_index(["question", "split"])
    seen, own = own.loc["seen in pretraining"], own["count"]
    people = _frame(records, "15_any_leads", "people", model=MODEL, measure="top-1")
    best = people[people["leads"] == people["leads"].max()].sort_values("value").iloc[-1]
    traces = _frame(records, "12_maps", "hospital", model=MODEL, metric="AUROC")
    saw = [f"{seen['count'][part]:,} of {seen['of'][part]:,} recordings of {_word(part)}" for part in splits.SPLITS]
    found = [f"{own[name, 'across sides']:,} {title}" for name, title in (("patients", "patients"), ("exact duplicates", "equal"))]
    return {
        "saw": _list(saw),
        "across": _list([*found, f"{own['near duplicates', 'across sides']:,} nearly equal recordings"]),
        "named": _share(best["value"]),
        "candidates": f"{_record(records, '15_any_leads')['extra']['counts']['candidates']:,}",
        "sex": _score(_metric(records, "04_linear_probing", "macro AUROC", "sex", MODEL)),
        "traces": _list(f"{row['task']} ({_score(_of(row))})" for _, row in traces.iterrows() if row["task"] != "superclass"),
    }


def _costs(folder, records):
    run, half = _record(records, "03_pretraining"), _record(records, "precision")
    dtype, chosen, moved = weights.stored(folder)[0], weights.gentlest(half), half["extra"]["moved"]

    def differences(kind, task):
        for part in ("valid", "test"):
            yield _score(_metric(records, "precision", f"macro AUROC, fold {_folds(part)}", task, f"{kind} - float32"), 5)

    tasks = dict.fromkeys(metric["task"] for metric in half["metrics"])
    rows = [(kind, f"`{task}`", *differences(kind, task), f"{moved[kind]:.5f}") for kind in moved for task in tasks]
    kwh, device = [carbon.energy(record) for record in records.values()], run["device"]
    return {
        "choice": f"Fold {FOLDS['valid_fold']} chose {chosen}{'' if dtype == chosen else f', but the files hold {dtype}'}.",
        "precision": _table(("matrices", "task", f"fold {FOLDS['valid_fold']}", f"fold {FOLDS['test_fold']}", "features move by"), rows),
        "seconds": f"{run['wall_seconds']:,.0f}",
        "machine": f"{device['cpus']} cores" if device["type"] == "cpu" else device["name"],
        "watts": f"{carbon.CORE_WATTS:g} W a core" if device["type"] == "cpu" else f"{carbon.power(device):g} W",
        "kwh": f"{carbon.energy(run):.2f}",
        "grams": f"{carbon.energy(run) * carbon.INTENSITY:,.0f}",
        "all_hours": f"{sum(record['wall_seconds'] for record in records.values()) / 3600:.1f}",
        "all_kwh": f"{sum(kwh):.2f}",
        "all_grams": f"{sum(kwh) * carbon.INTENSITY:,.0f}",
        "overhead": f"{carbon.OVERHEAD:g}",
        "intensity": f"{carbon.INTENSITY:g}",
    }


# --- the datasheet


def datasheet(records):
    """The datasheet of the recordings that the models of this book were trained and judged on, a MyST page.

    Args:
        records: see `read_all`; `datasheet` among them, see `write_counts`.

    Returns:
        str, Markdown with the book's citations and links to its chapters.

    Raises:
        CremaError: a record is missing, or a data set is not in the manifest.
    """
    record = _record(records, "datasheet")
    source, told = dataset(record["data"]["name"]), record["extra"]
    statements, made, parts = told["statements"], told["prepared"], list(splits.SPLITS)
    rare = [f"`{row['code']}`" for row in statements if row["test"] < FEW]
    frequent = sorted(statements, key=lambda row: -sum(row[part] for part in parts))[:10]
    named = labels.statements()["description"]
    sexes, quartiles = {"F": "female", "M": "male"}, dict(zip(("low", "middle", "high"), told["age quartiles"], strict=True))
    ages = [(row["age"].replace("<", "&lt;"), f"{row['records']:,}") for row in told["age"] if row["records"]]
    sizes = {f"{by}_table": _table((by, "recordings", "patients"), [_thousands(row) for row in told[by]]) for by in ("device", "site")}
    values = {
        **{key: source[key] for key in ("name", "title", "version", "url", "licence", "note")},
        **{key: f"{told[key]:,}" for key in ("patients", "several", "most", "whole", "shorter", "devices", "sites")},
        **{f"age_{key}": f"{value:.0f}" for key, value in quartiles.items()},
        **sizes,
        **FOLDS,
        "command": COMMAND,
        "citation": source["citation"].replace(";", ","),
        "archive": source["url"].split("/")[2],
        "records": f"{record['data']['records']:,}",
        "sha": record["data"]["sha256"][:16],
        "parts": _table(("part", *parts), _compositions(told["parts"])),
        "quality": _list(f"{count:,} {FLAGS.get(flag, flag.replace('_', ' '))}" for flag, count in told["quality"].items()),
        "sex": _list(f"{count:,} {sexes.get(sex, sex)}" for sex, count in told["sex"].items()),
        "oldest": labels.OLDEST,
        "ages": _table(("age, years", "recordings"), ages),
        "statements": len(statements),
        "frequent": _table(("code", "statement", *parts), [(row["code"], named[row["code"]], *_thousands(row)[1:]) for row in frequent]),
        "rare_count": len(rare),
        "rare": ", ".join(rare),
        "few": FEW,
        "least": composition.LEAST,
        "dates": "Dates run from {} to {}, but each patient's were".format(*told["years"]) if told["years"] else "Dates, where known, are",
        "rates": _list(f"{count:,} recordings at {rate} Hz" for rate, count in (made["source_fs"] or {}).items()),
        "fs": f"{made['fs']:g}",
        "seconds": f"{made['seconds']:g}",
        "band": "filtered to {:g} to {:g} Hz without shift of phase".format(*made["band"]) if made["band"] else "filtered nothing",
        "left_out": f"{told['left out']:,}",
        "reasons": "".join(f", {count:,} because {reason}" for reason, count in told["reasons"].items()),
        "others": _others(records),
    }
    return _fill("datasheet.md", values)


def _thousands(row):
    return [f"{value:,}" if isinstance(value, int) else value for value in row.values()]


def _compositions(parts):
    """Rows of a table with a column a part of the split."""
    yield "folds", *(_folds(part["part"]) for part in parts)
    yield "recordings", *(f"{part['records']:,}" for part in parts)
    yield "patients", *(f"{part['patients']:,}" for part in parts)
    yield "female", *(_share(part["female"] / part["records"]) for part in parts)
    yield "median age, years", *(f"{part['median age']:.0f}" for part in parts)
    for name in labels.SUPERCLASSES:
        yield name, *(f"{part[name]:,}" for part in parts)
    yield "no superclass", *(f"{part['none']:,}" for part in parts)


def _others(records):
    """The sets of other hospitals in record 09, with what the manifest knows of them."""
    rows = []
    for _, row in _outside(records, metric="auroc").iterrows():
        source = dataset(re.sub("^cpsc-", "cpsc", row["sample"].replace("_", "-")))
        cited = f"{{cite:t}}`{source['citation'].split(';')[0]}`"
        rows.append((source["title"], f"{row['records']:,}", row["labels"], source["licence"], cited))
    return _table(("set", "recordings", "labels scored", "licence", "source"), rows)


# --- pages


def readme(name, card, records):
    """The card as the README of its weights: front matter of the Hugging Face hub, plain references, links into the repository."""
    scores = [(task, _metric(records, "04_linear_probing", "macro AUROC", task, MODEL).value) for task in labels.TASKS]
    data = {"dataset_type": "ptb-xl", "dataset_name": "PTB-XL", "dataset_split": "fold 10"}
    what = {**data, "task_type": "feature-extraction", "metric_type": "roc_auc", "metric_name": "macro AUROC of a linear probe"}
    data = ModelCardData(
        license="mit",
        library_name="crema_lib",
        pipeline_tag="feature-extraction",
        tags=["ecg", "electrocardiogram", "biosignals", "self-supervised-learning", "masked-autoencoder"],
        model_name=name,
        eval_results=[EvalResult(**what, dataset_config=task, metric_value=round(value, 4)) for task, value in scores],
    )
    body = re.sub(r"\{cite:t\}`(\w+)`", lambda found: _reference(found[1]), card)
    body = re.sub(r"\[\]\((\w+)\.(ipynb|md)\)", lambda found: f"[{_title(found[1])}](../../book/{found[1]}.{found[2]})", body)
    return f"---\n{data.to_yaml().strip()}\n---\n\n{body}"


def _reference(key):
    """Authors and year with a link, "[Mitchell et al. (2019)](https://doi.org/...)"."""
    who, year, address = re.fullmatch(r"(.+?) \((\d{4})\)\. .*?(https://\S+)?", reference(key)).groups()
    return f"[{who} ({year})]({address})" if address else f"{who} ({year})"


def _title(stem):
    number, _, words = stem.partition("_")
    return f"chapter {int(number)}, {words.replace('_', ' ')}" if number.isdigit() else stem.replace("_", " ")


def pages(profile="ptbxl"):
    """All pages of this module as the committed records give them: dict path from the project folder -> text.

    The book's page is the card of the model that its chapters take, the first in `weights/`.

    Raises:
        CremaError: no weights, or see `model_card` and `datasheet`.
    """
    if not weights.names():
        raise CremaError("weights/ holds no model: python -m crema_lib publish FOLDER NAME")
    records = read_all(profile)
    cards = {name: model_card(name, records) for name in weights.names()}
    texts = {f"weights/{name}/README.md": readme(name, card, records) for name, card in cards.items()}
    return {**texts, "book/model_card.md": next(iter(cards.values())), "book/datasheet.md": datasheet(records)}


def write(profile="ptbxl"):
    """Write all `pages`; returns their paths from the project folder."""
    texts = pages(profile)
    for path, text in texts.items():
        (home() / path).write_text(text, encoding="utf-8")
    return list(texts)
