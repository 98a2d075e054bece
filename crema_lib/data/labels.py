"""From statement codes to label matrices: the six PTB-XL tasks, sex and age.

Rules of the PTB-XL benchmark (Strodthoff et al. 2021, doi:10.1109/JBHI.2020.3022989): a statement counts whatever its likelihood;
`all` keeps every record, each other task leaves out the records that carry none of its labels. `scp_statements.csv` is a
reduced copy of the table of that name in PTB-XL 1.0.3 (Wagner et al. 2020, CC BY 4.0).
"""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import CremaError

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
TASKS = ("all", "diag", "sub", "super", "form", "rhythm")  # the benchmark's
BINARY = (*TASKS, "sex")  # everything with 0/1 targets
OLDEST = 89  # PTB-XL gives every age above as 300, to protect the few who reach it


@cache
def statements():
    """The 71 SCP-ECG statements of PTB-XL, index `code`: description, diagnostic, form, rhythm (0 or 1), diagnostic_class and _subclass."""
    return pd.read_csv(Path(__file__).with_name("scp_statements.csv"), index_col="code", keep_default_na=False)


def task_map(task):
    """Code -> label of a task; codes outside the task are absent.

    Raises:
        CremaError: the task is not one of `TASKS`.
    """
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
        task: one of `BINARY`. `sex` needs the column `sex` and has one label, female; who has no sex on record is left out.

    Returns:
        (targets, names, kept): float32 (records, labels) of 0/1, the label names, and bool (records,): the record belongs to the task.
    """
    if task == "sex":
        sex = table["sex"].to_numpy()
        return (sex == "F").astype(np.float32)[:, None], ["female"], np.isin(sex, ("F", "M"))
    codes = task_map(task)
    names = list(SUPERCLASSES) if task == "super" else sorted(set(codes.values()))
    column = {name: i for i, name in enumerate(names)}
    targets = np.zeros((len(table), len(names)), dtype=np.float32)
    for row, joined in enumerate(table["labels"]):
        for code in joined.split(";"):
            if code in codes:
                targets[row, column[codes[code]]] = 1
    kept = np.ones(len(table), dtype=bool) if task == "all" else targets.any(axis=1)
    return targets, names, kept


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
