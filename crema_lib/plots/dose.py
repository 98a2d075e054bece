"""Controlled shifts: scores against the dose of a change, and what each change costs."""

import numpy as np

from ..errors import CremaError
from ..metrics import TITLES
from .scores import MARKERS, _dots, _legend_columns, _reference_line
from .style import OKABE_ITO, new_figure, require_columns

# kind of shift -> what its level is; noise is not among them. A recording as it is stands on the left of every axis but that of gain.
AXES = {
    "gain": "Factor",
    "low-pass": "Edge (Hz)",
    "high-pass": "Edge (Hz)",
    "sampling rate": "Rate (Hz)",
    "leads": "Leads",
    "length": "Length (s)",
}
RISING = ("gain", "high-pass")  # axes on which the level rises to the right


def _panels(kinds, measures):
    """Figure and its axes as a dict (measure, kind) -> axes: a row a measure, or panels wrapped where there is one measure."""
    if len(measures) > 1:
        shape = len(measures), len(kinds)
        places = [(m, k) for m in measures for k in kinds]
    else:
        shape = -(-len(kinds) // 3), min(3, len(kinds))
        places = [(measures[0], k) for k in kinds]
    fig = new_figure((1.5 if len(measures) > 1 else 2.1) * shape[0] + 0.7)
    grid = fig.subplots(*shape, squeeze=False, sharey="row" if len(measures) > 1 else True)
    for i, ax in enumerate(grid.flat):
        ax.set_visible(i < len(places))
        if i % shape[1] == 0 and i < len(places):
            name = TITLES.get(places[i][0], places[i][0])
            ax.set_ylabel(f"Macro {name}")
    return fig, dict(zip(places, grid.flat, strict=False))


def dose(table, *, measures=("auroc",)):
    """A score against the dose of each kind of shift, with 95 % intervals: a panel a kind, a line a model.

    Doses stand at equal distances. Several measures make a row each.

    Args:
        table: columns kind, level, model, metric, value, low, high, the recordings as they are among them for every kind; their level
            is NaN for noise, which is an infinite signal-to-noise ratio.
        measures: metrics to draw.

    Raises:
        CremaError: a column is missing, there is nothing to draw, or a level is there twice for a model.
    """
    require_columns(table, ("kind", "level", "model", "metric", "value", "low", "high"))
    table = table[table["metric"].isin(measures)]
    kinds, models = list(table["kind"].unique()), list(table["model"].unique())
    if not kinds:
        raise CremaError(f"the table holds no row of {', '.join(measures)} to draw")
    if (twice := table.duplicated(["kind", "level", "model", "metric"])).any():
        row = table[twice].iloc[0]
        raise CremaError(f"the table has more than one row for {row['kind']} at {row['level']:g} and model {row['model']}")
    fig, panels = _panels(kinds, list(measures))
    handles = {}
    for (measure, kind), ax in panels.items():
        mine = table[(table["kind"] == kind) & (table["metric"] == measure)]
        mine = mine.sort_values("level", ascending=kind in RISING, na_position="first")
        levels = mine["level"].drop_duplicates().tolist()
        for k, model in enumerate(models):
            line = mine[mine["model"] == model]
            x = [levels.index(level) if level == level else 0 for level in line["level"]]
            colour = OKABE_ITO[k % len(OKABE_ITO)]
            ax.fill_between(x, line["low"], line["high"], color=colour, alpha=0.15, lw=0)
            (handles[model],) = ax.plot(x, line["value"], color=colour, marker=MARKERS[k % len(MARKERS)], ms=4, gid=str(model))
        ax.set_xticks(range(len(levels)), ["∞" if np.isnan(level) else f"{level:g}".replace("-", "−") for level in levels])
        ax.set_xlim(-0.3, len(levels) - 0.7)
        ax.grid(axis="y")
        if measure == measures[0]:
            ax.set_title(str(kind), fontsize=10)
        if measure == measures[-1]:
            ax.set_xlabel(AXES.get(kind, "SNR (dB)"))
    fig.align_ylabels()
    fig.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=_legend_columns(models))
    return fig


def drops(table):
    """The drop in macro AUROC that each condition causes, with its 95 % interval, in the table's order; right of zero is worse.

    table: columns sample, model, drop, drop_low, drop_high, one row per sample and model, as from `shift.measure.Yardstick.hold`.
    """
    require_columns(table, ("sample", "model", "drop", "drop_low", "drop_high"))
    if not len(table):
        raise CremaError("the table holds no condition to draw")
    order = table["sample"].drop_duplicates().tolist()
    shown = table[["sample", "model"]].assign(value=table["drop"], low=table["drop_low"], high=table["drop_high"])
    n_models = table["model"].nunique()
    fig = new_figure(max(0.24, 0.1 * n_models) * len(order) + 0.9)
    ax = fig.add_subplot()
    handles, models = _dots(ax, shown, "sample", order)
    ax.set_yticks(range(len(order)), order)
    ax.update_datalim([(0, 0)])
    ax.autoscale_view(scaley=False)
    _reference_line(ax, 0)
    ax.set_xlabel("Drop in macro AUROC (95 % interval)")
    fig.legend(handles, models, loc="outside upper center", ncols=_legend_columns(models))
    return fig
