"""Who resembles whom: how close the closest recording is."""

import numpy as np

from ..errors import CremaError
from .style import GREY, OKABE_ITO, new_figure, require_columns


def closest(table, threshold):
    """How many recordings have their closest one at which correlation, an outline for each group, counts on a logarithmic axis.

    Args:
        table: columns group, low, high (edges of a bin of correlation) and count; the bins of a group in order, without gaps.
        threshold: correlation from which two recordings count as one; a dashed line.

    Raises:
        CremaError: a column is missing, or no group holds a recording.
    """
    require_columns(table, ("group", "low", "high", "count"))
    if not table["count"].sum() > 0:
        raise CremaError("the table counts no recording")
    fig = new_figure(3.2)
    ax = fig.add_subplot()
    for (group, bins), colour in zip(table.groupby("group", sort=False), OKABE_ITO, strict=False):
        edges = np.append(bins["low"], bins["high"].iloc[-1])
        ax.stairs(bins["count"], edges, fill=True, color=colour, alpha=0.2, baseline=0.5)
        ax.stairs(bins["count"], edges, color=colour, lw=1.4, baseline=0.5, label=f"{group} ({bins['count'].sum():,})", gid=str(group))
    ax.axvline(threshold, color=GREY, lw=1, ls="--", gid="threshold")
    ax.set(yscale="log", xlim=(table["low"].min(), 1.005), xlabel="Correlation with the closest recording", ylabel="Recordings")
    ax.set_ylim(bottom=0.5)
    ax.grid(axis="y")
    fig.legend(loc="outside upper center", ncols=min(3, table["group"].nunique()))
    return fig
