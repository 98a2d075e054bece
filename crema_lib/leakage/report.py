"""All questions about who has seen what, answered in one table."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..data.splits import SPLITS
from .checkpoint import seen
from .duplicates import THRESHOLD, catalogue, exact_duplicates, near_duplicates


@dataclass(frozen=True)
class Report:
    """What `examine` found. The table may be shown and kept; the other DataFrames name recordings and stay in memory.

    Attributes:
        table: DataFrame question, where (store), split, count, of (how many), other_patients and other_labels (of the pairs, those of
            different patients, and of different labels), leak (bool).
        listed: the `catalogue`. exact: pairs a, b. aligned: see `near_duplicates`.
    """

    table: pd.DataFrame
    listed: pd.DataFrame
    exact: pd.DataFrame
    aligned: pd.DataFrame

    @property
    def near(self):
        return self.aligned[self.aligned["rule"] != ""]

    def wide(self):
        """The counts with one column a store."""
        return (
            self.table.pivot_table("count", ["question", "split"], "where", sort=False)
            .astype("Int64")
            .reset_index()
            .rename_axis(None, axis=1)
        )

    def best(self):
        """The recording closest to each: DataFrame other, r over the index of `listed`, without flat and equal ones."""
        sides = [self.aligned.set_index(side)[[other, "r"]].rename(columns={other: "other"}) for side, other in (("a", "b"), ("b", "a"))]
        both = pd.concat(sides).sort_values("r", ascending=False, kind="stable")
        return both[~both.index.duplicated()].sort_index()

    def closest(self, groups, edges=None):
        """How many recordings of each group have their closest one at which correlation.

        Args:
            groups: Series of names over the index of `best()`, NaN for what is not counted. edges: of the bins; 50 from 0 to 1 by default.

        Returns:
            DataFrame group, low, high, count; what lies outside is counted in the first and the last bin.
        """
        edges = np.linspace(0, 1, 51) if edges is None else np.asarray(edges)
        r, rows = self.best()["r"].clip(edges[0], edges[-1]), []
        for group in sorted(groups.dropna().unique()):
            counts = np.histogram(r[groups.reindex(r.index) == group], edges)[0]
            rows += [(group, *edge) for edge in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)]
        return pd.DataFrame(rows, columns=["group", "low", "high", "count"])

    def sentence(self):
        """What is wrong in one sentence, empty where nothing is."""
        leaks = self.table[self.table["leak"]].to_dict("records")
        return "; ".join(f"{row['where']}: {row['count']:,} {row['question']} {row['split']}" for row in leaks)


def examine(stores, *, checkpoint=None, threshold=THRESHOLD, progress=False):
    """Answer every question of this module for some stores.

    A leak is a patient on two sides of a split or in two stores, an equal or near-equal pair on two sides or in two stores, and a
    recording for choosing or testing that pretraining saw.

    Args:
        stores: list of `EcgStore`. checkpoint: folder of a pretrained model, or None. threshold, progress: see `near_duplicates`.

    Returns:
        Report.

    Raises:
        CremaError: see `catalogue`, `near_duplicates`, `seen`.
    """
    known = [seen(checkpoint, store) for store in stores] if checkpoint else []  # what cannot work is told before the long search
    listed = catalogue(stores)
    labels = np.concatenate([store.table["labels"].to_numpy() for store in stores])
    exact = exact_duplicates(listed)
    aligned = near_duplicates(stores, listed, threshold=threshold, progress=progress)
    homes, rows = listed.groupby("patient")["store"].nunique(), []
    for i, (name, own) in enumerate(listed.groupby("store", sort=False)):
        sides, n = own.groupby("patient")["side"].nunique(), len(own)
        people, none = len(sides), (None, None)
        rows += [("recordings", name, "all", n, n, *none), ("patients", name, "all", people, people, *none)]
        rows += [("too flat to compare", name, "all", own["flat"].sum(), n, *none)]
        rows += [("patients", name, "across sides", (sides > 1).sum(), people, *none)]
        rows += [("patients", name, "in other sets", (homes[sides.index] > 1).sum(), people, *none)]
        for question, pairs in (("exact duplicates", exact), ("near duplicates", aligned[aligned["rule"] != ""])):
            mine = pairs[pairs["a"].isin(own.index) | pairs["b"].isin(own.index)]
            a, b = (listed.loc[mine[side]].reset_index(drop=True) for side in ("a", "b"))
            unlike = labels[mine["a"]] != labels[mine["b"]], a["patient"] != b["patient"]
            abroad, across = a["store"] != b["store"], a["side"] != b["side"]
            for split, where in (("within a side", ~abroad & ~across), ("across sides", ~abroad & across), ("in other sets", abroad)):
                differ = [int((where & other).sum()) for other in unlike] if split != "in other sets" else none
                rows.append((question, name, split, where.sum(), n, *differ))
        for side in SPLITS if known else ():
            of = (own["side"] == side).to_numpy()
            rows.append(("seen in pretraining", name, side, known[i][of].sum(), of.sum(), *none))
    table = pd.DataFrame(rows, columns=["question", "where", "split", "count", "of", "other_labels", "other_patients"])
    table = table.astype({"count": "int64", "of": "int64", "other_labels": "Int64", "other_patients": "Int64"})
    leak = table["split"].isin(["across sides", "in other sets", "valid", "test"]) & (table["count"] > 0)
    return Report(table.assign(leak=leak), listed, exact, aligned)
