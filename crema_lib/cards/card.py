"""The card of a model, in the form of Mitchell et al. (2019)."""

import json

import pandas as pd

from .. import carbon, publish, search, weights
from ..data import labels, splits
from ..data.manifest import dataset
from ..leakage.checkpoint import SEEN, what_was_seen
from ..metrics import FEW
from ..objectives import TITLES
from ..paths import repository
from . import committed, markdown

RIVALS = {"xresnet1d101": "a convolutional network", "features + boosting": "boosting on features made by hand"}  # trained on labels alone
OFTEN = f"macro AUROC, >= {FEW} positives"
RULES = {"macro AUROC": "every label of fold {test_fold}", OFTEN: f"the labels with at least {FEW} positives there"}  # what is averaged
WORST = 5  # statements among the known failures
ENOUGH = 100  # recordings, of the sets whose calibration error is quoted: chance makes that of few recordings large
LOG = "results/ptbxl/search.csv"


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
    committed.check(records, config, saved["class"])
    parts = (_facts(folder, config, saved, records), _training(folder, records), _results(records), _groups(records), _changes(records))
    values = {key: value for part in (*parts, _failures(records), _leaks(records), _costs(folder, records)) for key, value in part.items()}
    folds = {key: markdown.FOLDS[key] for key in ("held_folds", "valid_fold", "test_fold")}
    return markdown.fill(
        "model_card.md", {"name": folder.name, "command": markdown.COMMAND, "sums": weights.SUMS, "seen": SEEN, **folds, **values}
    )


def _facts(folder, config, saved, records):
    run, young = committed.record(records, "03_pretraining"), committed.record(records, "datasheet")["extra"]["age"][0]
    dtype, parameters = weights.stored(folder)
    band = f"{config['band'][0]:g} to {config['band'][1]:g} Hz" if config.get("band") else "unfiltered"
    files = sorted(folder.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files) / 1e6
    last, at = min(4, config["depth"]), repository()
    log = search.read_log(LOG)
    trained = log[log["note"] == "published"]  # the chapter's record may be of a later run, which found the training done
    rows = [
        ("what", f"Signal Transformer, an encoder of {len(config['leads'])}-lead ECGs, with the heads of its pretraining"),
        ("size", f"width {config['width']}, {config['depth']} blocks, {config['heads']} heads, {parameters:,} parameters in the encoder"),
        ("files", f"{size:.1f} MB of safetensors: {markdown.listed(path.stem for path in files)}; matrices of the weights in {dtype}"),
        ("input", f"millivolts, {config['fs']:g} Hz, up to {config['seconds']:g} s, {band}; `embed` brings other arrays there"),
        ("token", f"{config['patch']} samples ({1000 * config['patch'] / config['fs']:.0f} ms) of all leads"),
        (
            "output",
            f"{config['width']} numbers a recording (`mean`), {last * config['width']:,} (`layers`: the means of the last {last} blocks) "
            f"or {3 * last * config['width']:,} (`moments`: with how their tokens vary)",
        ),
        ("objective", TITLES[run["parameters"]["objective"]]),
        ("options", ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in saved["options"].items())),
        ("made", f"with the code of commit `{trained['commit'].iloc[-1][:7]}` and torch {run['versions']['torch']}"),
        ("licence", "MIT; the recordings have their own, see [](datasheet.md)"),
        ("to cite", f"[CITATION.cff]({at['url']}/blob/{at['branch']}/CITATION.cff)"),
        ("questions", f"[issues of the repository]({at['url']}/issues)"),
    ]
    return {
        "facts": markdown.table(("property", "value"), rows),
        "fs": f"{config['fs']:g}",
        "young": f"{young['records']:,}",
        "youngest": young["age"],
    }


def _runs(seed, records):
    """How many seeds of pretraining there are, and what the linear probe reaches over all of them."""
    each = committed.frame(records, "04_linear_probing", "by_seed", task="all", model=committed.MODEL)
    if len(each) == 1:
        return f"one, seed {seed}: what another seed would change is not known"
    over = (
        f"{markdown.number(committed.metric(records, '04_linear_probing', 'macro AUROC', task, committed.MODEL))} on `{task}`"
        for task in ("all", "super")
    )
    by_seed = markdown.listed(f"{markdown.number(row['value'], 4)} with seed {row['seed']}" for _, row in each.iterrows())
    return (
        f"{len(each)}; these weights are those of seed {seed}. Over all of them the linear probe reaches {markdown.listed(over)}; on `all` "
        f"it is {by_seed} ([](04_linear_probing.ipynb)). Below, the probes that predict age, sex and single statements are means over "
        "them, and all else is of these weights"
    )


def _training(folder, records):
    run = committed.record(records, "03_pretraining")
    p, extra, source = run["parameters"], run["extra"], dataset(run["data"]["name"])
    items = int(what_was_seen(folder)[1]["items"])
    rows = [
        ("recordings", f"{items:,} without labels: {source['title']}, version {source['version']}, folds {markdown.FOLDS['train_folds']}"),
        ("passes", f"{p['epochs']:g}, in batches of {p['batch_size']}: {extra['log']['step'][-1]:,} steps"),
        ("optimiser", f"AdamW, learning rate {p['lr']:g}, weight decay {p['weight_decay']:g}"),
        ("warm-up", f"{markdown.share(p['warmup'])} of the steps, then a cosine"),
        (
            "time",
            f"{extra['minutes']:.0f} minutes, {extra['log']['step'][-1] * p['batch_size'] / extra['minutes'] / 60:.0f} recordings a second",
        ),
        ("machine", run["device"]["name"]),
        ("runs", _runs(p["seed"], records)),
    ]
    explained = committed.metric(records, "03_pretraining", "variance explained", "pretraining", p["objective"])
    return {"training": markdown.table(("property", "value"), rows), "explained": markdown.share(explained.value)}


def _results(records):
    def score(task, model):
        return committed.metric(records, "05_fine_tuning", "macro AUROC", task, model)

    tuning, scored = (
        committed.record(records, "05_fine_tuning"),
        pd.DataFrame(committed.record(records, "04_linear_probing")["extra"]["labels"]["all"]),
    )
    rivals = [one for one in RIVALS if any(metric["model"] == one for metric in tuning["metrics"])]
    arms = {
        f"{committed.TWIN}, probe": "random, probe",
        committed.PROBE: "pretrained, probe",
        committed.TWIN: "random, fine-tuned",
        committed.MODEL: "pretrained, fine-tuned",
    }
    arms |= {one: one for one in rivals}
    tables = (
        markdown.table(
            ("macro AUROC", *(f"`{task}`" for task in tasks)),
            [(title, *(markdown.number(score(task, arm)) for task in tasks)) for arm, title in arms.items()],
        )
        for tasks in (labels.TASKS[:3], labels.TASKS[3:])  # six intervals in a row would not fit a page
    )
    others = (committed.TWIN, *rivals)
    often = [committed.metric(records, "05_fine_tuning", OFTEN, "all", f"{committed.MODEL} - {other}") for other in others]
    points = committed.frame(records, "06_label_efficiency", "points", task="all", model=committed.PROBE).sort_values("share").iloc[0]
    return {
        "seeds": tuning["extra"]["seeds"],
        "readout": committed.record(records, "04_linear_probing")["parameters"]["readout"],
        "rivals": f"Trained on labels alone: {'; '.join(f'`{one}`, {RIVALS[one]}' for one in rivals)}." if rivals else "",
        "results": "\n\n".join(tables),
        "worth": markdown.listed(_worth(records, other) for other in others),
        "worth_often": markdown.listed(map(markdown.difference, often)),
        "rare": int((scored[scored["model"] == committed.MODEL]["n"] < FEW).sum()),
        "few": FEW,
        "share": markdown.share(points["share"]),
        "share_records": f"{points['records']:,.0f}",
        "share_labels": points["labels"],
        "share_score": markdown.number(markdown.interval(points)),
        "age_error": markdown.number(committed.metric(records, "04_linear_probing", "MAE", "age", committed.MODEL), 1),
        "age_mean": markdown.number(committed.metric(records, "04_linear_probing", "MAE", "age", "mean age"), 1),
    }


def _worth(records, other):
    """On which side of another model the fine-tuned one lies by its interval, and the adjusted p-value where that says less."""
    gain = committed.frame(records, "05_fine_tuning", "gains", task="all", model=committed.MODEL, other=other).iloc[0]
    side = "above" if gain["low"] > 0 else "below" if gain["high"] < 0 else "neither above nor below"
    doubted = f", adjusted p = {markdown.number(gain['p_holm'])}" if gain["low"] * gain["high"] > 0 and gain["p_holm"] >= 0.05 else ""
    name = "its random twin" if other == committed.TWIN else f"`{other}`"
    return f"{side} {name} ({markdown.difference(markdown.interval(gain))}{doubted})"


def _worst(rows):
    return rows.loc[rows["drop"].idxmax()]


def _groups(records):
    def held(*tables):
        rows = []
        for _, of in pd.concat(tables).groupby("sample", sort=False):
            rank, found = (of[of["metric"] == metric].iloc[0] for metric in ("auroc", "sensitivity"))
            name = rank["sample"].replace("<", "&lt;").replace("_", " ")
            rows.append((name, f"{rank['records']:,}", markdown.away(rank), markdown.number(markdown.drop(rank)), markdown.away(found)))
        return markdown.table(("group", "recordings", "AUROC, home → there", "drop", "sensitivity, home → there"), rows)

    people = committed.frame(records, "09_other_hospitals", "people", model=committed.PROBE)
    places = committed.frame(records, "09_other_hospitals", "other places", model=committed.PROBE)
    inside = places[places["sample"].str.match(committed.INSIDE) & ~places["sample"].str.startswith("year")]
    worst = _worst(pd.concat([people, inside]).query("metric == 'auroc'").reset_index())
    errors = committed.outside(records, metric="ece")
    enough = min(ENOUGH, errors["records"].max())
    error = _worst(errors[errors["records"] >= enough])
    domains = committed.frame(records, "09_other_hospitals", "clinical domains", model=committed.PROBE, metric="ece")
    expected = committed.frame(records, "07_calibration", "expected", task="super", model=committed.PROBE, scaled="no").iloc[0]
    return {
        "wanted": markdown.share(committed.record(records, "09_other_hospitals")["parameters"]["sensitivity"]),
        "groups": held(people, inside),
        "worst_group": worst["sample"].replace("<", "&lt;"),
        "worst_drop": markdown.number(markdown.drop(worst)),
        "hospitals": held(committed.outside(records)),
        "worst_error": f"{markdown.away(error)} ({error['sample']})",
        "enough": enough,
        "domains": markdown.listed(domains["sample"]),
        "domain_errors": markdown.listed(markdown.number(markdown.interval(row)) for _, row in domains.iterrows()),
        "domain_home": markdown.number(domains["home"].iloc[0]),
        "calibration": markdown.number(expected["ECE"]),
        "if_right": markdown.number(expected["if right"]),
    }


def _changes(records):
    changed = committed.frame(records, "10_corruptions", "conditions", model=committed.PROBE, metric="auroc")
    worst = changed.loc[changed.groupby("kind")["drop"].idxmax()].sort_values("drop", ascending=False)
    leads = committed.frame(
        records,
        "15_any_leads",
        "scores",
        model=committed.MODEL,
        task=committed.record(records, "15_any_leads")["parameters"]["curve_tasks"][0],
    )
    scores = {(row["trained"], row["leads"]): markdown.number(markdown.interval(row)) for _, row in leads.iterrows()}
    shown = sorted(set(leads["leads"]), reverse=True)
    return {
        "shift_task": committed.record(records, "10_corruptions")["parameters"]["shift_task"],
        "at_home": markdown.number(worst["home"].iloc[0]),
        "changes": markdown.table(
            ("change", "level", "macro AUROC", "drop"),
            [_change(row, _simulated(records)) for _, row in worst.iterrows()],
        ),
        "lead_task": leads["task"].iloc[0],
        "leads": markdown.table(
            ("leads shown", "probe of the most leads", "probe of these leads"),
            [(number, *(scores.get((trained, number), "") for trained in ("full", "own"))) for number in shown],
        ),
        "tuned": _tuned(records, leads["task"].iloc[0]),
        "lead_all": f"macro AUROC {scores['full', shown[0]]} with {shown[0]} leads",
        "lead_one": f"{scores['full', shown[-1]]} with {shown[-1]}",
    }


def _tuned(records, task):
    """What fine-tuning on fewer leads reaches and what pretraining adds to it, with a sentence before; nothing where none was tried."""
    run = committed.record(records, "15_any_leads")
    if not run["extra"]["tuned"]:
        return ""
    own = committed.frame(records, "15_any_leads", "tuned", task=task, model=committed.MODEL).sort_values("leads", ascending=False)

    def added(leads):
        model, other = (f"{one}, {leads} lead{'s' * (leads > 1)}" for one in (committed.MODEL, committed.TWIN))
        return committed.frame(records, "15_any_leads", "tuned_differences", task=task, model=model, other=other).iloc[0]

    rows = [
        (row["leads"], markdown.number(markdown.interval(row)), markdown.difference(markdown.interval(added(row["leads"]))))
        for _, row in own.iterrows()
    ]
    learnt = markdown.listed(f"`{one}`" for one in run["parameters"]["curve_tasks"])
    return (
        f"Fine-tuned on the leads that are left, on `{task}`, and paired with the random twin on the same leads; one run each, of networks "
        f"that learn {learnt}:\n\n" + markdown.table(("leads", "fine-tuned", "what pretraining adds"), rows)
    )


def _simulated(records):
    """The kinds of noise of which there was no recording."""
    noises = committed.frame(records, "10_corruptions", "noises", origin="simulated")
    return set(noises["noise"])


def _change(row, simulated):
    return (
        f"{row['kind']}{' (simulated)' if row['kind'] in simulated else ''}",
        row["sample"].removeprefix(f"{row['kind']}, "),
        markdown.number(markdown.interval(row)),
        markdown.number(markdown.drop(row)),
    )


def _failures(records):
    changed = committed.frame(records, "10_corruptions", "conditions", model=committed.PROBE, metric="auroc")

    def hardest(*kinds):
        row = _worst(changed[changed["kind"].isin(kinds)])
        return f"{row['sample']}{' (simulated)' if row['kind'] in _simulated(records) else ''}, macro AUROC {markdown.away(row)}"

    least = 0.01
    kinds = changed.groupby("kind")["drop"].max()
    harmless = list(kinds.index[kinds < least])
    missed = _worst(committed.outside(records, metric="sensitivity"))
    doubt = committed.frame(records, "11_trust", "flags", model=committed.PROBE, signal="doubt")
    worst = doubt.loc[doubt["value"].idxmin()]
    return {
        **_poorest(records),
        "simpler": _simpler(records),
        "swap": hardest("reversal"),
        "noise": hardest("baseline wander", "muscle artefact", "electrode motion", "powerline", "white"),
        "narrow": hardest("low-pass", "high-pass", "sampling rate", "gain"),
        "harmless": f"What costs less than {least} at every level tried: {markdown.listed(harmless)}." if harmless else "",
        "missed": f"{markdown.away(missed)} ({missed['sample']})",
        "doubt_home": markdown.number(markdown.interval(doubt[doubt["sample"].str.startswith("home")].iloc[0])),
        "doubt_worst": f"{markdown.number(markdown.interval(worst))} ({worst['sample']})",
    }


def _poorest(records):
    """The statements that a linear probe ranks worst, of those with enough positives, and how many these are."""
    told = pd.DataFrame(committed.record(records, "04_linear_probing")["extra"]["labels"]["all"])
    told, named = told[(told["model"] == committed.MODEL) & (told["n"] >= FEW)].sort_values("value"), labels.statements()["description"]
    worst = (f"{named[row['label']]} (`{row['label']}`, {markdown.number(markdown.interval(row))})" for _, row in told[:WORST].iterrows())
    return {"often": len(told), "statements": markdown.listed(worst)}


def _simpler(records):
    """On which tasks models trained on labels alone are better than the fine-tuned one: the interval of the difference lies below zero."""
    rows, said = pd.DataFrame(committed.record(records, "05_fine_tuning")["metrics"]), []
    for other, what in RIVALS.items():
        pair = rows[rows["model"] == f"{committed.MODEL} - {other}"]
        worse = [markdown.listed(f"`{task}`" for task in pair["task"][(pair["name"] == rule) & (pair["high"] < 0)]) for rule in RULES]
        counted = [f"on {tasks} over {over.format(**markdown.FOLDS)}" for tasks, over in zip(worse, RULES.values(), strict=True)]
        said += [f"`{other}`, {what}, {', and '.join(counted)}"] if len(pair) else []
    return f"by paired intervals the fine-tuned network is worse than {'; and than '.join(said)}" if said else "none was tried"


def _leaks(records):
    table = committed.frame(records, "08_leakage", "table")
    own = table[table["where"] == table["where"].iloc[0]].set_index(["question", "split"])
    seen, own = own.loc["seen in pretraining"], own["count"]
    traces = committed.frame(records, "12_maps", "hospital", model=committed.MODEL, metric="AUROC")
    saw = [f"{seen['count'][part]:,} of {seen['of'][part]:,} recordings of {markdown.word(part)}" for part in splits.SPLITS]
    found = [f"{own[name, 'across sides']:,} {title}" for name, title in (("patients", "patients"), ("exact duplicates", "equal"))]
    return {
        "saw": markdown.listed(saw),
        "across": markdown.listed([*found, f"{own['near duplicates', 'across sides']:,} nearly equal recordings"]),
        "named": markdown.share(committed.recognised(records)["value"]),
        "candidates": f"{committed.record(records, '15_any_leads')['extra']['counts']['candidates']:,}",
        "sex": markdown.number(committed.metric(records, "04_linear_probing", "macro AUROC", "sex", committed.MODEL)),
        "traces": markdown.listed(
            f"{row['task']} ({markdown.number(markdown.interval(row))})" for _, row in traces.iterrows() if row["task"] != "superclass"
        ),
    }


def _costs(folder, records):
    run, half = committed.record(records, "03_pretraining"), committed.record(records, "precision")
    dtype, chosen, moved = weights.stored(folder)[0], publish.gentlest(half), half["extra"]["moved"]

    def differences(kind, task):
        for part in ("valid", "test"):
            yield markdown.number(
                committed.metric(records, "precision", f"macro AUROC, fold {markdown.folds(part)}", task, f"{kind} - float32"), 5
            )

    tasks = dict.fromkeys(metric["task"] for metric in half["metrics"])
    rows = [(kind, f"`{task}`", *differences(kind, task), f"{moved[kind]:.5f}") for kind in moved for task in tasks]
    device, kwh = run["device"], [carbon.energy(record) for record in records.values()]
    return {
        "half_readout": half["parameters"]["readout"],
        "choice": f"Fold {markdown.FOLDS['valid_fold']} chose {chosen}{'' if dtype == chosen else f', but the files hold {dtype}'}.",
        "precision": markdown.table(
            ("matrices", "task", f"fold {markdown.FOLDS['valid_fold']}", f"fold {markdown.FOLDS['test_fold']}", "features move by"), rows
        ),
        "minutes": f"{carbon.seconds(run) / 60:,.0f}",
        "machine": f"{device['cpus']} cores" if device["type"] == "cpu" else device["name"],
        "watts": f"{carbon.CORE_WATTS:g} W a core" if device["type"] == "cpu" else f"{carbon.power(device):g} W",
        "kwh": f"{carbon.energy(run):.2f}",
        "grams": f"{carbon.energy(run) * carbon.INTENSITY:,.0f}",
        "all_hours": f"{sum(map(carbon.seconds, records.values())) / 3600:.1f}",
        "search_hours": f"{search.read_log(LOG)['minutes'].sum() / 60:.1f}",
        "all_kwh": f"{sum(kwh):.2f}",
        "all_grams": f"{sum(kwh) * carbon.INTENSITY:,.0f}",
        "overhead": f"{carbon.OVERHEAD:g}",
        "intensity": f"{carbon.INTENSITY:g}",
    }
