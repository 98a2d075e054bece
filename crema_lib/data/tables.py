"""Read one recording from a CSV table: a column a lead, a row a sample."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import CremaError
from .leads import LEADS, lead_index
from .records import canonical, mv_per

_COLUMN = re.compile(r"\s*(.*?)\s*(?:[\[(]\s*(\S+?)\s*[\])])?\s*$")


def _layout(path):
    """How a CSV table is written: (names of its columns, separator, decimal mark), by the separator that shows most leads."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        first, *rest = [line for line in file.read(2**16).splitlines() if line.strip()] or [""]
    split = {one: next(csv.reader([first], delimiter=one, skipinitialspace=True), []) for one in ",;\t"}
    separator = max(split, key=lambda one: sum(map(_is_lead, split[one])))
    return split[separator], separator, "," if separator != "," and any("," in line for line in rest) else "."


def _is_lead(column):
    return lead_index(_COLUMN.match(column[:80])[1]) is not None  # a file of one long line is no table


def has_leads(path):
    """Whether a column of a CSV file is a lead; so also where the file cannot be opened, which `read` tells."""
    try:
        return any(map(_is_lead, _layout(path)[0]))
    except OSError:
        return True


def shown(path):
    """The names of the columns of a CSV file for a sentence, the first of many."""
    names = _layout(path)[0]
    return ", ".join(repr(name[:30]) for name in names[:6]) + ", ..." * (len(names) > 6)


def read(path, fs=None, unit=None):
    """Read a table with a column a lead and a row a sample.

    Args:
        path: CSV file whose first line names the leads (any spelling, the unit may follow as in `V1 [uV]` or `V1 (mV)`). Other columns are
            passed over, but for one called `time`, in seconds. Columns are separated by commas; or by semicolons or tabs, and then a
            comma may be the decimal mark.
        fs: sampling rate, Hz, where there is no such column; in conflict with it the column is right, and a sentence says so.
        unit: of columns that name none.

    Returns:
        `Record`. An empty cell is a missing sample (NaN).

    Raises:
        CremaError: no table of numbers, no lead, no or an unknown unit, no sampling rate, uneven or conflicting times.
    """
    name = Path(path).stem
    try:
        header, separator, decimal = _layout(path)
        table = pd.read_csv(path, sep=separator, decimal=decimal, skipinitialspace=True)  # which renames what is given twice
        named = {column: _COLUMN.match(str(column)).groups() for column in table}
        leads = {column: found for column, found in named.items() if lead_index(found[0]) is not None}
        values = table[list(leads)].to_numpy(dtype=np.float32).T
        times = [table[column].to_numpy(dtype=float) for column, found in named.items() if found[0].lower() == "time"]
    except (OSError, ValueError) as error:
        raise CremaError(f"record {name}: {path} is no table of numbers: {error}") from None
    counted = Counter(lead_index(_COLUMN.match(column)[1]) for column in header)
    rows = table.index.to_numpy()  # of rows with a cell more than there are names pandas makes row names, which may be a lead
    if rows.dtype.kind != "i" or (np.diff(rows) != 1).any():
        raise CremaError(f"record {name}: rows of {path} have more cells than there are names: with decimal commas, separate by semicolons")
    if twice := [LEADS[i] for i, n in counted.items() if i is not None and n > 1]:
        raise CremaError(f"record {name}: lead {twice[0]} is given twice in {path}: leave one out")
    if not leads:
        raise CremaError(f"record {name}: no column of {path} is a lead ({shown(path)}): known are {' '.join(LEADS)}")
    for lead, given in leads.values():
        if mv_per(given or unit) is None:
            raise CremaError(
                f"record {name}, column {lead}: {given or unit or 'no unit'} is not among mV, uV, nV and V: give unit (by command --unit)"
            )
    if times:
        step = np.diff(times[0])
        if not len(step) or not step.min() > 0 or step.max() - step.min() > 0.1 * np.median(step):
            raise CremaError(
                f"record {name}: the column time does not rise evenly, in seconds: mend it, or take it out and give fs (by command --rate)"
            )
        found = float(f"{(len(times[0]) - 1) / (times[0][-1] - times[0][0]):.6g}")
        if fs is not None and abs(found - fs) > 0.01 * fs:
            raise CremaError(f"record {name}: its column time says {found:g} Hz, not {fs:g} Hz")
        fs = found
    if fs is None:
        raise CremaError(f"record {name}: {path} has no column time: give its sampling rate fs (by command --rate)")
    scale = np.array([mv_per(given or unit) for _, given in leads.values()], dtype=np.float32)[:, None]
    return canonical(name, values * scale, [lead for lead, _ in leads.values()], float(fs), {})
