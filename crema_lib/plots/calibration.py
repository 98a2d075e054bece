"""Are the probabilities right: reliability diagrams."""

import numpy as np

from ..errors import CremaError
from ..metrics import FEW
from .scores import MARKERS, _legend_columns
from .style import GREY, OKABE_ITO, WIDTH, new_figure, require_columns


def reliability(table):
    """Reliability diagrams: observed rate against probability with 95 % intervals, below each the number of predictions.

    On the dashed diagonal probabilities are right; below it they promise too much, above it too little. A hollow point has fewer than ten
    predictions.

    Args:
        table: columns panel, model, probability, rate, low, high, count (see `calibration.reliability`), a row for each bin; panels and
            models in the table's order.

    Raises:
        CremaError: a column is missing or the table has no row.
    """
    require_columns(table, ("panel", "model", "probability", "rate", "low", "high", "count"))
    panels, models = table["panel"].unique(), table["model"].unique()
    if not len(panels):
        raise CremaError("the table holds no bin to draw")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    fig = new_figure((min(WIDTH / columns, 3.4) + 0.6) * rows + 0.4)
    grid = fig.subplots(2 * rows, columns, squeeze=False, sharex=True, sharey=False, height_ratios=[4, 1] * rows)
    handles = {}
    for k in range(rows * columns):
        ax, strip = grid[2 * (k // columns) : 2 * (k // columns) + 2, k % columns]
        if k >= len(panels):
            ax.set_visible(False)
            strip.set_visible(False)
            continue
        ax.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", zorder=1, gid="reference")
        for m, model in enumerate(models):
            bins = table[(table["panel"] == panels[k]) & (table["model"] == model)]
            look = dict(color=OKABE_ITO[m % len(OKABE_ITO)], marker=MARKERS[m % len(MARKERS)], ms=4, lw=1, gid=str(model))
            ax.vlines(bins["probability"], bins["low"], bins["high"], color=look["color"], lw=1)
            handles[str(model)] = ax.plot(bins["probability"], bins["rate"], **look)[0]
            few = bins[bins["count"] < FEW]
            ax.plot(few["probability"], few["rate"], **look | {"gid": "few", "lw": 0, "mfc": "white"})
            strip.plot(bins["probability"], bins["count"], **look | {"ms": 2.5})
        ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=np.arange(0, 1.1, 0.5), yticks=np.arange(0, 1.1, 0.5), title=str(panels[k]))
        ax.grid()
        most = table.loc[table["panel"] == panels[k], "count"].max()
        strip.set(yscale="log", ylim=(0.7, 2 * max(most, 10)), yticks=[1, 10 ** int(np.log10(max(most, 10)))])
        strip.minorticks_off()
        strip.grid()
        below = k + columns >= len(panels)
        strip.tick_params(labelbottom=below)
        strip.set_xlabel("Probability" if below else "")
        if k % columns == 0:
            ax.set_ylabel("Observed rate")
            strip.set_ylabel("Predictions")
    fig.align_ylabels()
    if len(models) > 1:
        fig.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=_legend_columns(models))
    return fig
