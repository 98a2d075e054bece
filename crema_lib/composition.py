"""What a prepared data set holds, as counts of groups and never record by record: what the datasheet is made of."""

import time

import numpy as np
import pandas as pd

from . import runs
from .data import labels, splits
from .data.leads import LEADS
from .errors import CremaError
from .shift import groups

AGES = (18, *groups.AGES, labels.OLDEST + 1)  # years, edges of the age bands
LEAST = 500  # recordings; sites with fewer are counted together


def count(store):
    """Counts of a prepared data set.

    Args:
        store: `EcgStore` with the columns of PTB-XL and the report.csv of `prepare` beside it.

    Returns:
        dict of counts, texts and lists of dicts, for the `extra` of a run record.

    Raises:
        CremaError: no report.csv, or a table that `splits.check` refuses.
    """
    table, path = store.table, store.path / "report.csv"
    if not path.is_file():
        raise CremaError(f"{path} is not there: prepare the data set again, so that it is known what was left out")
    left_out = pd.read_csv(path).query("action == 'left out'")["reason"].str.replace(r"^record \S+: ", "", regex=True)
    years, visits = labels.age(table), table.groupby("patient").size()
    flags = table["quality"].str.split(";").explode().str.split(":").str[0]
    hidden = flags.eq(f"age>{labels.OLDEST}")
    bands = groups.bands(np.where(hidden.groupby(level=0).any(), labels.OLDEST + 1, years), AGES)
    parts = dict(zip(splits.SPLITS, splits.parts(table), strict=True))
    marks, codes, _ = labels.matrix(table, "all")
    known = table["year"][table["year"] > 0]
    return {
        "patients": len(visits),
        "several": int((visits > 1).sum()),
        "most": int(visits.max()),
        "parts": [_part(table.iloc[rows], name) for name, rows in parts.items()],
        "statements": [{"code": code, **{name: int(marks[rows, i].sum()) for name, rows in parts.items()}} for i, code in enumerate(codes)],
        "age": [{"age": band or "unknown", "records": int((bands == band).sum())} for band in (*groups.bands([0, *AGES], AGES), "")],
        "age quartiles": np.nanquantile(years, (0.25, 0.5, 0.75)).tolist(),
        "sex": table["sex"].replace("", "unknown").value_counts().sort_index().to_dict(),
        "devices": int(table["device"].nunique()),
        "device": _sizes(table, "device", 1),
        "sites": int(table["site"].nunique()),
        "site": _sizes(table, "site", LEAST),
        "years": [int(known.min()), int(known.max())] if len(known) else [],
        "quality": flags[(flags != "") & ~hidden].value_counts().sort_index().to_dict(),
        "whole": int((table["lead_mask"] == 2 ** len(LEADS) - 1).sum()),
        "shorter": int((table["valid"] < store.signals.shape[2]).sum()),
        "left out": len(left_out),
        "reasons": left_out.value_counts().to_dict(),
        "prepared": {key: store.meta.get(key) for key in ("fs", "seconds", "band", "source_fs")},
    }


def _part(table, name):
    targets, names, kept = labels.matrix(table, "super")
    counts = {"records": len(table), "patients": table["patient"].nunique(), "female": int((table["sex"] == "F").sum())}
    found = dict(zip(names, targets.sum(0).astype(int).tolist(), strict=True))
    return {"part": name, **counts, "median age": float(np.nanmedian(labels.age(table))), **found, "none": int((~kept).sum())}


def _sizes(table, by, least):
    found = groups.groups(table, by, least).replace("", "unknown")
    rows = [{by: name, "records": len(of), "patients": of["patient"].nunique()} for name, of in table.groupby(found)]
    return sorted(rows, key=lambda row: -row["records"])


def write_counts(store, path):
    """Write the record of `count` that the datasheet reads; returns it."""
    start, name = time.perf_counter(), store.meta.get("source", store.path.name)
    return runs.write(
        path,
        chapter="datasheet",
        parameters={"data": name},
        metrics=[],
        data={"name": name, "records": len(store), "sha256": store.meta["sha256"]},
        extra=count(store),
        wall_seconds=time.perf_counter() - start,
    )
