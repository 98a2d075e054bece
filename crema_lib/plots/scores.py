"""Training curves, and scores with their intervals."""

import numpy as np

from ..errors import CremaError
from .style import GREY, OKABE_ITO, SHADE, new_figure, require_columns

MARKERS = "osD^vPX*"
CHANCE = {"AUROC": 0.5, "Macro AUROC": 0.5}


def curves(log, *, names=None):
    """Training curves against `step` or `epoch`, a panel per quantity.

    log: DataFrame with a column `step` or `epoch` (step wins) and one column per loss, learning rate or metric; gaps are left out.
    names: dict from column to axis label with its unit; columns with the same label share a panel (for example training and
        validation). Default: every numeric column under its own name.
    """
    time = next((c for c in ("step", "epoch") if c in log), None)
    if time is None:
        raise CremaError(f"the log has neither a column step nor epoch: it has {', '.join(map(str, log.columns))}")
    if names is None:
        names = {c: "Learning rate" if c == "lr" else c for c in log.select_dtypes("number") if c not in ("step", "epoch")}
    require_columns(log, names)
    panels = list(dict.fromkeys(names.values()))
    if not panels:
        raise CremaError("the log holds no numeric column to draw")
    rows = -(-len(panels) // 2)
    fig = new_figure(2.1 * rows + 0.4)
    axes = fig.subplots(rows, min(len(panels), 2), squeeze=False, sharex=True)
    for ax, panel in zip(axes.flat, panels, strict=False):
        mine = [c for c, name in names.items() if name == panel]
        for column, colour, style in zip(mine, OKABE_ITO, ("-", "--", ":", "-.") * 2, strict=False):
            points = log[[time, column]].dropna()
            marker = "o" if len(points) < 3 else None  # one point has no line
            ax.plot(points[time], points[column], color=colour, ls=style, marker=marker, label=column)
        ax.set_ylabel(panel)
        ax.grid(axis="y")
        ax.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
        if len(mine) > 1:
            ax.legend()
    for k, ax in enumerate(axes.flat):
        ax.set_visible(k < len(panels))
        if k + axes.shape[1] >= len(panels):
            ax.set_xlabel({"step": "Training step", "epoch": "Epoch"}[time])
            ax.tick_params(labelbottom=True)
    fig.align_ylabels()
    return fig


def _dots(ax, table, key, order):
    """A dot and its interval for each row of `order` and each model, models side by side within a row; returns (handles, models)."""
    twice = table[table.duplicated([key, "model"])]
    if len(twice):
        raise CremaError(f"the table has more than one row for {twice[key].iloc[0]} and model {twice['model'].iloc[0]}")
    models = list(table["model"].unique())
    handles = []
    for k, model in enumerate(models):
        rows = table[table["model"] == model].set_index(key).reindex(order)
        y = np.arange(len(order)) + (k - (len(models) - 1) / 2) * 0.7 / len(models)
        colour = OKABE_ITO[k % len(OKABE_ITO)]
        ax.hlines(y, rows["low"], rows["high"], color=colour, lw=1.4)
        handles += ax.plot(rows["value"], y, MARKERS[k % len(MARKERS)], color=colour, ms=4.5, ls="none", gid=str(model))
    for y in np.arange(len(order) - 1) + 0.5:
        ax.axhline(y, color=SHADE, lw=0.5, zorder=0)
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    return handles, models


def _legend_columns(models):
    return len(models) if sum(len(str(m)) + 6 for m in models) < 75 else 2  # what fits on one line of the column


def _reference_line(ax, x):
    """A dashed line for chance or no difference, if there is such a value (not None) and the axis shows it."""
    low, high = ax.get_xlim()
    if x is not None and low <= x <= high:
        ax.axvline(x, color=GREY, lw=1, ls="--", zorder=1, gid="reference")
        ax.set_xlim(low, high)


def label_forest(table, *, gain=False):
    """AUROC with its 95 % interval for every label and model, best label of the last model on top.

    Args:
        table: columns label, n (positives), model, value, low, high, one row per label and model; undefined values (NaN) come last.
        gain: the values are paired differences: the axis says so and always shows zero.
    """
    require_columns(table, ("label", "n", "model", "value", "low", "high"))
    last = table[table["model"] == table["model"].iloc[-1]]
    order = last.sort_values("value", ascending=False, na_position="last")["label"].tolist()
    order += [x for x in table["label"].unique() if x not in set(order)]
    count = table.drop_duplicates("label").set_index("label")["n"]
    fig = new_figure(max(0.2, 0.09 * table["model"].nunique()) * len(order) + 1.2)
    ax = fig.add_subplot()
    handles, models = _dots(ax, table, "label", order)
    ax.set_yticks(range(len(order)), [f"{x} ({count[x]:,})" for x in order])
    ax.set(xlabel=f"{'Difference in ' if gain else ''}AUROC (95 % interval)", ylabel="Label (positives)")
    if gain:
        ax.update_datalim([(0, 0)])
        ax.autoscale_view(scaley=False)
    else:
        ax.set_xlim(right=min(1.01, ax.get_xlim()[1]))
    _reference_line(ax, 0 if gain else CHANCE["AUROC"])
    if len(order) > 25:
        ax.tick_params(axis="x", top=True, labeltop=True)  # the bottom axis is a screen away
    if len(models) > 1:
        fig.legend(handles, models, loc="outside upper center", ncols=_legend_columns(models))
    elif gain:
        ax.set_title(models[0])
    return fig


def comparison(table, *, metric="Macro AUROC"):
    """A value with its 95 % interval for every task and model, in the table's order.

    table: columns task, model, value, low, high, one row per task and model.
    """
    require_columns(table, ("task", "model", "value", "low", "high"))
    order = table["task"].drop_duplicates().tolist()
    n_models = table["model"].nunique()
    fig = new_figure(max(0.5, 0.18 * n_models) * len(order) + 0.9 + 0.1 * n_models)
    ax = fig.add_subplot()
    handles, models = _dots(ax, table, "task", order)
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel=f"{metric} (95 % interval)", ylabel="Task")
    _reference_line(ax, CHANCE.get(metric))
    fig.legend(handles, models, loc="outside upper center", ncols=_legend_columns(models))
    return fig
