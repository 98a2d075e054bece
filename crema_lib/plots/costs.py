"""What training costs: speeds side by side, and where the time of a step goes."""

import numpy as np

from .style import BLUE, GREY, INK, OKABE_ITO, new_figure, require_columns


def speeds(table):
    """Recordings a second: a dot with its range for each thing that was measured, on a logarithmic axis, the value beside it.

    table: columns model, value, low, high.
    """
    require_columns(table, ("model", "value", "low", "high"))
    fig = new_figure(0.4 * len(table) + 0.8)
    ax = fig.add_subplot()
    ax.hlines(table["model"], table["low"], table["high"], color=BLUE, lw=1.6)
    ax.plot(table["value"], table["model"], "o", color=BLUE, ms=5, ls="none")
    for row in table.itertuples():
        ax.annotate(f"{row.value:,.3g}", (row.value, row.model), (0, 6), textcoords="offset points", ha="center", fontsize=9, color=INK)
    ax.set_xscale("log")
    ax.margins(x=0.15, y=0.25)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_xlabel("ECG/s")
    return fig


def time_shares(table):
    """One bar of 100 % for each model, cut into the kinds of kernels that its time goes into.

    table: columns model, kind, share (0 to 1).
    """
    require_columns(table, ("model", "kind", "share"))
    models = table["model"].drop_duplicates().tolist()
    fig = new_figure(0.55 * len(models) + 1.3)
    ax, left, handles = fig.add_subplot(), np.zeros(len(models)), []
    for i, kind in enumerate(table["kind"].drop_duplicates()):
        share = table[table["kind"] == kind].set_index("model")["share"].reindex(models, fill_value=0).to_numpy()
        colour = GREY if kind == "rest" else OKABE_ITO[i % len(OKABE_ITO)]
        handles.append(ax.barh(models, 100 * share, left=left, height=0.55, color=colour, label=kind))
        left = left + 100 * share
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(0, 100), xlabel="Share of the kernels' time, %")
    fig.legend(handles=handles, loc="outside upper center", ncols=4)
    return fig
