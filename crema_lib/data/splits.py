"""Who trains, who chooses, who is read once: folds by patient, and label fractions drawn by patient."""

import numpy as np

from ..errors import CremaError
from .store import TEST, TRAIN, VALID

SPLITS = {"train": TRAIN, "valid": VALID, "test": TEST}


def check(table):
    """Refuse a table whose split cannot be trusted.

    Args:
        table: DataFrame with columns source, record, patient, fold.

    Raises:
        CremaError: a recording is listed twice, or a patient is on two sides of the split. A patient in two training folds is no leak.
    """
    twice = table.duplicated(["source", "record"])
    if twice.any():
        raise CremaError(
            f"{int(twice.sum())} recordings are listed twice, the first is {table['record'][twice].iloc[0]}: prepare the data set again"
        )
    side = table["fold"].map({fold: name for name, folds in SPLITS.items() for fold in folds})
    if side.isna().any():
        raise CremaError(f"fold {table['fold'][side.isna()].iloc[0]} is none of 1 to 10")
    sides = side.groupby([table["source"], table["patient"]]).nunique()
    if (sides > 1).any():
        source, patient = sides.index[sides > 1][0]
        raise CremaError(
            f"{int((sides > 1).sum())} patients are on two sides of the split, the first is {patient} of {source}: split by patient"
        )


def parts(table, kept=None):
    """Row numbers (train, valid, test) of a checked table: folds 1-8, 9 and 10, of these the rows with `kept` (bool) where it is given.

    Raises:
        CremaError: see `check`; or a part is empty.
    """
    check(table)
    kept = np.ones(len(table), dtype=bool) if kept is None else np.asarray(kept)
    found = tuple(np.flatnonzero(table["fold"].isin(folds).to_numpy() & kept) for folds in SPLITS.values())
    for name, rows in zip(SPLITS, found, strict=True):
        if not len(rows):
            raise CremaError(f"no recording of this task is in the {name} folds {', '.join(map(str, SPLITS[name]))}")
    return found


def patients(table):
    """Whom each recording is of, text (records,): a number of one source is another patient in the next."""
    return (table["source"].astype(str) + "/" + table["patient"].astype(str)).to_numpy()


def fraction(table, rows, share, seed=0):
    """A share of some recordings, drawn by patient: a drawn patient brings all recordings along.

    For one seed the draws are nested: those of 1 % are among those of 5 %.

    Args:
        rows: row numbers to draw from. share: 0 < share <= 1, of the recordings.

    Returns:
        int64 row numbers, ascending; at least one patient.

    Raises:
        CremaError: share out of range.
    """
    if not 0 < share <= 1:
        raise CremaError(f"a label fraction of {share} is outside 0 < fraction <= 1")
    rows = np.asarray(rows)
    _, patient = np.unique(patients(table)[rows], return_inverse=True)
    order = np.random.default_rng(seed).permutation(patient.max() + 1)
    total = np.bincount(patient)[order].cumsum()
    people = order[: np.searchsorted(total, round(share * len(rows))) + 1]
    return rows[np.isin(patient, people)]
