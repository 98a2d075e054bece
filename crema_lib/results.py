"""The book's records beside published figures: rows of one table, what holds of a claim, and the distance to the goals.

`results/published.csv` holds figures that others have published, each with its source. They are quoted: nothing was run again.
"""

import re

import numpy as np
import pandas as pd

from .baselines import PRETRAINED
from .data.labels import TASKS
from .errors import CremaError
from .objectives import options
from .paths import resolve
from .pretrain import OWN, PARAMETERS

COLUMNS = ["measure", "task", "model", "protocol", "pretraining", "value", "source", "citation", "note"]
MEASURES = {"macro AUROC": (0.5, 1), "steps": (1, np.inf), "batch size": (1, np.inf)}  # and the values that are possible
FROZEN, TUNED, LABELS = "frozen encoder", "fine-tuned", "labels alone"
# What was done with the labels, and what of the network was trained with them; random weights trained with labels are `supervised`.
PROTOCOLS = {
    "linear probe": FROZEN,
    "attention probe": FROZEN,
    "attention probe on crops": FROZEN,
    "fine-tuned": TUNED,
    "supervised": LABELS,
    "pretraining": "",
}
READINGS = {"": "linear probe", "attention": "attention probe"}  # of a frozen encoder, as the chapter on probes names them
RULES = ("macro AUROC", "macro AUROC, >= 10 positives")
SPREAD = {"value": ("value", "mean"), "low": ("low", "min"), "high": ("high", "max")}  # of rows that a record has once a seed
# Macro AUROC on fold 10 that this book set out for: on any machine, and on two cores alone.
GOALS = pd.DataFrame(
    [
        ("any", "all", FROZEN, 0.940),
        ("any", "all", TUNED, 0.950),
        ("any", "super", FROZEN, 0.925),
        ("any", "super", TUNED, 0.937),
        ("two cores", "all", FROZEN, 0.90),
        ("two cores", "all", TUNED, 0.93),
    ],
    columns=["machine", "task", "group", "goal"],
)


def published(path="results/published.csv"):
    """Figures of others.

    Args:
        path: CSV with `COLUMNS`, relative to the project folder. `source` is the address where the figure stands, `citation` a key of
            book/references.bib, `pretraining` what the encoder saw without labels (`none`: nothing), `note` what one has to know.

    Returns:
        DataFrame of the file, `value` as float64.

    Raises:
        CremaError: unreadable, a column missing, an unknown measure or protocol, an impossible value, no source, a figure there twice.
    """
    path = resolve(path)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise CremaError(f"{path} cannot be read as a table of published figures: {error}") from None
    if missing := [column for column in COLUMNS if column not in table]:
        raise CremaError(f"{path} lacks the columns {', '.join(missing)}")
    value = pd.to_numeric(table["value"], errors="coerce")
    for i, row in enumerate(table.to_dict("records")):
        named = f"{path}, row {i + 1} ({row['model']}, {row['task']})"
        if row["measure"] not in MEASURES or row["protocol"] not in PROTOCOLS:
            raise CremaError(f"{named}: measures are {', '.join(MEASURES)}, protocols are {', '.join(PROTOCOLS)}")
        low, high = MEASURES[row["measure"]]
        if not low <= value[i] <= high:
            raise CremaError(f"{named}: {row['value']!r} is no {row['measure']} between {low:g} and {high:g}")
        if not re.fullmatch(r"https://\S+", row["source"]) or not re.fullmatch(r"\w+", row["citation"]):
            raise CremaError(f"{named} needs a source (https://...) and a citation (a key of references.bib)")
    if (twice := table.duplicated(["measure", "task", "model", "protocol", "pretraining"])).any():
        row = table[twice].iloc[0]
        raise CremaError(f"{path} has two figures of {row['model']}, {row['protocol']}, {row['task']}")
    return table[COLUMNS].assign(value=value.astype(float))


def seeds(record, model):
    """How many training runs stand behind a model's row: seeds of its metrics, or of the scores or curves that the record keeps a run."""
    scored = {metric["seed"] for metric in record["metrics"] if metric["model"] == model}
    probed = {row["seed"] for row in record["extra"].get("by_seed", []) if row["model"] == model}
    trained = [run for run in record["extra"].get("curves", {}) if run.rpartition(", seed ")[0] == model]
    return max(len(scored), len(probed), len(trained))


def ours(probed, tuned):
    """Our rows of the headline table.

    Args:
        probed: record of the chapter on probes, for linear and attention probes. tuned: record of the chapter on fine-tuning.

    Returns:
        DataFrame rule (one of `RULES`), task, model, protocol, pretraining, value, low, high, labels, seeds. Where a record scores a model
        once a seed, the value is the mean and the interval reaches from the lowest to the highest end (ours; wider than need be).
    """
    found = []
    for record in (probed, tuned):
        metrics = pd.DataFrame(record["metrics"])
        metrics = metrics[metrics["name"].isin(RULES) & metrics["task"].isin(TASKS) & ~metrics["model"].str.contains(" - ", regex=False)]
        rows = metrics.groupby(["name", "task", "model"], sort=False).agg(**SPREAD, labels=("n", "first")).reset_index()
        rows = rows.rename(columns={"name": "rule"})
        found.append(rows.assign(seeds=[seeds(record, model) for model in rows["model"]]))
    frozen, trained = found
    frozen[["model", "protocol"]] = frozen["model"].str.partition(", ")[[0, 2]]
    frozen = frozen.assign(protocol=frozen["protocol"].map(READINGS)).dropna(subset="protocol")
    trained = trained[~trained["model"].str.endswith(", probe")]
    trained = trained.assign(protocol=np.where(trained["model"].str.startswith(PRETRAINED), "fine-tuned", "supervised"))
    rows = pd.concat([frozen, trained], ignore_index=True)
    rows["pretraining"] = np.where(rows["model"].str.startswith(PRETRAINED), probed["data"]["name"], "none")
    return rows[["rule", "task", "model", "protocol", "pretraining", "value", "low", "high", "labels", "seeds"]]


def beside(own, quoted):
    """Own rows and quoted ones in one table: by what was trained with labels, then by the score on the first task.

    Args:
        own: rows of one rule of `ours`. quoted: rows of `published`.

    Returns:
        DataFrame task, model, protocol, pretraining, quoted (bool), group, value, low, high, seeds; low, high, seeds are NaN where quoted.
    """
    quoted = quoted[(quoted["measure"] == "macro AUROC") & quoted["task"].isin(TASKS)]
    table = pd.concat([own.assign(quoted=False), quoted.assign(quoted=True)], ignore_index=True)
    key = ["model", "protocol", "pretraining", "quoted"]
    first = table[table["task"] == TASKS[0]].set_index(key)["value"].rename("first")
    table = table.join(first, on=key).assign(group=table["protocol"].map(PROTOCOLS))
    order = table["group"].map(list(dict.fromkeys(PROTOCOLS.values())).index)
    table = table.assign(order=order).sort_values(["order", "first"], ascending=[True, False], kind="stable", ignore_index=True)
    return table[["task", *key, "group", "value", "low", "high", "seeds"]]


def paired(record, model, other, tasks=TASKS):
    """Paired differences that a record keeps: DataFrame task, value, low, high over every label; empty where it compares other models.

    Args:
        record: with metrics of the model `MODEL - OTHER`; several seeds become one row as in `ours`. tasks: those to take.
    """
    table = pd.DataFrame(record["metrics"])
    wanted = (table["name"] == RULES[0]) & (table["model"] == f"{model} - {other}") & table["task"].isin(tasks)
    return table[wanted].groupby("task", sort=False).agg(**SPREAD).reset_index()


def unpaired(table, model, other):
    """Differences of two models whose paired resamples are not at hand, with intervals that err on the wide side.

    Scores on the same recordings rise and fall together, so that paired intervals would be narrower.

    Args:
        table: columns task, model, value, low, high (95 %), one row for each task and model.

    Returns:
        DataFrame task, value, low, high for the tasks that both have; low is the low end of the model less the high end of the other, and
        high the other way round.
    """
    one, two = (table[table["model"] == name].set_index("task")[["value", "low", "high"]] for name in (model, other))
    swapped = two.rename(columns={"low": "high", "high": "low"})
    return (one - swapped)[["value", "low", "high"]].dropna(subset="value").rename_axis("task").reset_index()


def verdict(differences):
    """What differences say of the claim that they are above zero.

    Args:
        differences: DataFrame with low, high, one row a difference.

    Returns:
        `held`: every interval lies above zero; `did not hold`: none does, and some lie below; `open`: all of them hold zero;
        `in part`: some lie above zero and others do not; `not tested here`: there is none.

    Raises:
        CremaError: an end is NaN, or a low end lies above its high end.
    """
    if not len(differences):
        return "not tested here"
    if not (differences["low"] <= differences["high"]).all():
        raise CremaError("a difference needs an interval with low <= high: score it with `bootstrap` resamples first")
    above, below = differences["low"] > 0, differences["high"] < 0
    if above.all():
        return "held"
    if above.any():
        return "in part"
    return "did not hold" if below.any() else "open"


def text(row, signed=False):
    """A score or difference (value, low, high) as `0.882 [0.870, 0.897]`, with signs where asked for."""
    value, low, high = (f"{row[key]:{'+' if signed else ''}.3f}".replace("-", "−") for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def differing(given, other):
    """In which parameters of pretraining and readout one record's differ from another's: "patch 25 instead of 10, ...".

    What a record does not give, as its chapter has no such parameter, is that of CR-MAE by itself.
    """
    given, other = ({**options("cr_mae"), **one} for one in (given, other))
    names = [name for name in (*PARAMETERS, "readout") if name in given and name in other and given[name] != other[name]]
    own = {name: f"{given[name]}{' (as the objective says)' * (name in OWN and not given[name])}" for name in names}
    return ", ".join(f"{name} {own[name]} instead of {other[name]}" for name in names) or "the same"


def evidence(differences):
    """Differences in one line: each of them, or of more than three their count, the least and the largest; a dash for none.

    Args:
        differences: DataFrame task, value, low, high.
    """
    named = differences.apply(lambda row: f"{row['task']} {text(row, signed=True)}", axis=1) if len(differences) else ()
    if len(named) <= 3:
        return "; ".join(named) or "–"
    above, below = (differences["low"] > 0).sum(), (differences["high"] < 0).sum()
    least, most = named[differences["value"].idxmin()], named[differences["value"].idxmax()]
    return f"{len(named)} differences, {above} above zero, {below} below: from {least} to {most}"


def distance(rows):
    """How far the pretrained encoder is from `GOALS`.

    Args:
        rows: table of `beside`, or rows of one rule of `ours`.

    Returns:
        DataFrame machine, task, goal, protocol, value, low, high, seeds, distance (value less goal), reached (`yes`; `no`; `within the
        interval`: only the upper end reaches the goal). A goal for frozen encoders has a row a probe.
    """
    mine = rows[(rows["model"] == PRETRAINED) & rows["seeds"].notna()].assign(group=rows["protocol"].map(PROTOCOLS))
    table = GOALS.merge(mine[["task", "group", "protocol", "value", "low", "high", "seeds"]], on=["task", "group"])
    table["distance"] = table["value"] - table["goal"]
    there = [table["value"] >= table["goal"], table["high"] >= table["goal"]]
    return table.drop(columns="group").assign(reached=np.select(there, ["yes", "within the interval"], "no"))
