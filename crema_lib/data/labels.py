"""From statement codes to label matrices: the six PTB-XL tasks, one label space over all data sets, sex and age.

Rules of the PTB-XL benchmark (Strodthoff et al. 2021, doi:10.1109/JBHI.2020.3022989): a statement counts whatever its likelihood;
`all` keeps every record, each other task leaves out the records that carry none of its labels. `scp_statements.csv` is a
reduced copy of the table of that name in PTB-XL 1.0.3 (Wagner et al. 2020, CC BY 4.0).

The task `shared` is ours. `shared_labels.csv` gives one label to codes of equal meaning in four vocabularies: SCP-ECG (PTB-XL and the
simulator), SNOMED CT as in the PhysioNet/CinC Challenge 2021 (`dx_mapping_scored.csv` and `dx_mapping_unscored.csv` of
github.com/physionetchallenges/evaluation-2021), the statements of LUDB and the columns of CODE-15%. A code has one vocabulary and at most
one label whatever the source of the recording, so a source that mixes vocabularies needs no rule. Each label is there in two
vocabularies at least and in SCP-ECG, so that PTB-XL can teach it: left axis deviation, no SCP statement, is out. CODE-15% and SaMi-Trop
as the Challenge of 2025 gives them out say only whether a patient has Chagas disease, Brugada-HUCA only the syndrome and two findings of
it: none of their records is in this task.
"""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import CremaError

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
TASKS = ("all", "diag", "sub", "super", "form", "rhythm")  # the benchmark's
SHARED = "shared"  # the task that all data sets have in common
BINARY = (*TASKS, SHARED, "sex")  # everything with 0/1 targets
# Labels that a source has codes of and does not annotate. CPSC 2018 and Georgia give 426783006 (sinus rhythm) to recordings without any
# other finding (all those in the sample that we have), CPSC 2018 Extra hardly gives it, and PTB's codes are the patient's clinical
# diagnosis: sinus rhythm goes unsaid where something else was found. In Ningbo `dx_mapping_scored.csv` counts 7,615 recordings with flutter
# and none with fibrillation, so flutter there must stand for fibrillation too; the source's name does not tell Chapman from Ningbo.
# Sources by letters and digits of their names: `cpsc_2018` of the Challenge and `cpsc2018` of the manifest are one.
UNSURE = {**dict.fromkeys(("cpsc2018", "cpsc2018extra", "georgia", "ptb"), ("SR",)), "chapmanningbo": ("AFIB", "AFLT")}
OLDEST = 89  # PTB-XL gives every age above as 300, to protect the few who reach it


@cache
def statements():
    """The 71 SCP-ECG statements of PTB-XL, index `code`: description, diagnostic, form, rhythm (0 or 1), diagnostic_class and _subclass."""
    return pd.read_csv(Path(__file__).with_name("scp_statements.csv"), index_col="code", keep_default_na=False)


@cache
def shared_labels():
    """The map of the shared label space: one row per code, columns label, title (of the label), vocabulary, code, note."""
    return pd.read_csv(Path(__file__).with_name("shared_labels.csv"), dtype=str, keep_default_na=False)


@cache
def vocabulary(code):
    """Vocabulary of a code: `scp`, `snomed` (any identifier of 6 to 18 digits), `ludb`, `code15`; empty for what is none of theirs."""
    if code in statements().index:
        return "scp"
    if re.fullmatch(r"\d{6,18}", code):
        return "snomed"
    table = shared_labels()
    return next(iter(table["vocabulary"][table["code"] == code]), "")


def task_map(task):
    """Code -> label of a task; codes outside the task are absent.

    Raises:
        CremaError: the task is not one of `TASKS` or `SHARED`.
    """
    if task == SHARED:
        return dict(zip(shared_labels()["code"], shared_labels()["label"], strict=True))
    table = statements()
    if task == "all":
        return {code: code for code in table.index}
    column = {"diag": "diagnostic", "sub": "diagnostic", "super": "diagnostic", "form": "form", "rhythm": "rhythm"}.get(task)
    if column is None:
        raise CremaError(f"unknown task {task!r}: known are {', '.join(BINARY)}")
    table = table[table[column] == 1]
    target = {"sub": "diagnostic_subclass", "super": "diagnostic_class"}.get(task)
    return {code: (row[target] if target else code) for code, row in table.iterrows()}


def matrix(table, task):
    """Multi-label targets of a task.

    Args:
        table: DataFrame with a column `labels` of codes joined by ';'.
        task: one of `BINARY`. `sex` needs the column `sex` and has one label, female; who has no sex on record is left out. `shared`
            needs the column `source` and keeps every record that has a code of one of its vocabularies, even one without a label there:
            that source looked, and found none. A record without any known code is left out, except in a source that has CODE-15% codes,
            where each exam is told of all seven findings and no code says that all are absent. See `annotated` before scoring.

    Returns:
        (targets, names, kept): float32 (records, labels) of 0/1, the label names, and bool (records,): the record belongs to the task.
    """
    if task == "sex":
        sex = table["sex"].to_numpy()
        return (sex == "F").astype(np.float32)[:, None], ["female"], np.isin(sex, ("F", "M"))
    codes = task_map(task)
    names = {"super": list(SUPERCLASSES), SHARED: list(dict.fromkeys(codes.values()))}.get(task, sorted(set(codes.values())))
    column = {name: i for i, name in enumerate(names)}
    targets = np.zeros((len(table), len(names)), dtype=np.float32)
    for row, joined in enumerate(table["labels"]):
        for code in joined.split(";"):
            if code in codes:
                targets[row, column[codes[code]]] = 1
    if task == SHARED:
        return targets, names, _looked_at(table)
    kept = np.ones(len(table), dtype=bool) if task == "all" else targets.any(axis=1)
    return targets, names, kept


def _looked_at(table):
    """Bool (records,): see `shared` in `matrix`."""
    found = [{vocabulary(code) for code in joined.split(";")} - {""} for joined in table["labels"]]
    whole = table["source"][["code15" in vocabularies for vocabularies in found]].unique()
    return np.array([bool(vocabularies) for vocabularies in found], dtype=bool) | (
        (table["labels"] == "") & table["source"].isin(whole)
    ).to_numpy(dtype=bool)


def annotated(table):
    """Which shared labels each source annotates: a set that never speaks of a label is no set of negatives for it.

    A source annotates a label where at least one of its records in the table has a code of it, those of `UNSURE` excepted. This is a
    guess from the data (ours): a label that a source knows but has no record of cannot be scored on it either.
    `annotated(table).loc[table["source"]].to_numpy()` is a mask like the targets of `matrix`.

    Args:
        table: DataFrame with columns `source` and `labels`.

    Returns:
        bool DataFrame, index source, columns the shared labels.
    """
    targets, names, _ = matrix(table, SHARED)
    found = pd.DataFrame(targets == 1, columns=names).groupby(table["source"].to_numpy()).any()
    for source in found.index:
        found.loc[source, list(UNSURE.get(re.sub(r"[^a-z0-9]", "", source.lower()), ()))] = False
    return found.rename_axis("source")


def joint(table, tasks):
    """Targets of several tasks side by side, for one network with one head.

    Returns:
        (targets, columns): float32 (records, labels of all tasks), NaN where a record is left out of a task; and for each task the
        slice of its columns with the label names: dict task -> (slice, names).
    """
    parts, columns, start = [], {}, 0
    for task in tasks:
        targets, names, kept = matrix(table, task)
        parts.append(np.where(kept[:, None], targets, np.float32(np.nan)))
        columns[task] = (slice(start, start + len(names)), names)
        start += len(names)
    return np.concatenate(parts, axis=1), columns


def age(table):
    """Age in years, float64 (records,), NaN where it is unknown or above 89 (see `OLDEST`)."""
    years = table["age"].to_numpy(dtype=float)
    return np.where(years <= OLDEST, years, np.nan)
