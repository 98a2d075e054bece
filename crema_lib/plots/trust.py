"""Knowing when not to trust: signals that flag mistakes, what leaving the doubtful to a human gains, drops foretold, remedies."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from ..metrics import TITLES
from .scores import MARKERS, _dots, _legend_columns, _reference_line
from .style import GREY, INK, OKABE_ITO, new_figure, require_columns

FLAT = {"as it is": (INK, "-"), "EM": (GREY, "--"), "BBSE": (GREY, ":"), "all labels": (INK, "-.")}  # what does not depend on m


def flags(table):
    """How well signals flag wrong decisions: AUROC with 95 % interval for every place and signal, a panel for each model.

    table: columns model, sample, signal, value, low, high, as from `shift.signals.flagging`. A signal that a model lacks has no dot.
    """
    require_columns(table, ("model", "sample", "signal", "value", "low", "high"))
    order, signals, models = (table[column].drop_duplicates().tolist() for column in ("sample", "signal", "model"))
    columns = min(3, len(models))
    rows = -(-len(models) // columns)
    fig = new_figure(((0.14 * len(signals) + 0.16) * len(order) + 0.4) * rows + 0.8)
    axes = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax, model in zip(axes.flat, models, strict=False):
        mine = table[table["model"] == model].drop(columns="model").rename(columns={"signal": "model"})
        frame = mine.set_index(["sample", "model"]).reindex([(s, k) for k in signals for s in order]).reset_index()
        handles, names = _dots(ax, frame, "sample", order)
        ax.set_title(model)
    axes[0, 0].xaxis.set_major_locator(MaxNLocator(4))
    for k, ax in enumerate(axes.flat):
        ax.set_visible(k < len(models))
        _reference_line(ax, 0.5)
        ax.tick_params(labelbottom=k + columns >= len(models))
    axes[0, 0].set_yticks(range(len(order)), order)
    fig.supxlabel("AUROC of the signal for a wrong decision (95 % interval)", fontsize=10)
    fig.legend(handles, names, loc="outside upper center", ncols=_legend_columns(names))
    return fig


def risk_coverage(table):
    """Share of wrong decisions among the recordings that are kept, against the share that is kept, a panel for each place.

    table: columns panel, signal, coverage, risk, as from `shift.remedies.risk_coverage`; "ideal" is drawn in grey, and a dashed line shows
        what leaving out recordings by chance would do.
    """
    require_columns(table, ("panel", "signal", "coverage", "risk"))
    panels, signals = table["panel"].unique(), [name for name in table["signal"].unique() if name != "ideal"]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    fig = new_figure(2.5 * rows + 0.6)
    axes = fig.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    handles = {}
    for ax, panel in zip(axes.flat, panels, strict=False):
        mine = table[table["panel"] == panel]
        for k, signal in enumerate(signals):
            one = mine[mine["signal"] == signal]
            look = {"color": OKABE_ITO[k % len(OKABE_ITO)], "marker": MARKERS[k % len(MARKERS)], "ms": 3, "markevery": 3}
            handles[signal] = ax.plot(one["coverage"], one["risk"], gid=signal, **look)[0]
        ideal = mine[mine["signal"] == "ideal"]
        handles["ideal"] = ax.plot(ideal["coverage"], ideal["risk"], color=GREY, lw=1, ls=":", gid="ideal")[0]
        everyone = mine.loc[mine["coverage"] == mine["coverage"].max(), "risk"].iloc[0]
        handles["by chance"] = ax.axhline(everyone, color=GREY, lw=1, ls="--", gid="chance", zorder=1)
        ax.set_title(panel)
        ax.grid(axis="y")
    axes[0, 0].set(xlim=(0, 1.02), ylim=(0, 1.05 * table["risk"].max()))
    _outer(axes, panels, "Share of recordings kept", "Wrong decisions among them")
    fig.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=min(3, len(handles)))
    return fig


def foretold(table):
    """True drop of macro AUROC, with its 95 % interval, against a signal that needs no label: a dot a shift, a panel a model.

    table: columns panel, kind (of shift), signal (number), drop, drop_low, drop_high, and axis (name of the signal).
    """
    require_columns(table, ("panel", "kind", "signal", "drop", "drop_low", "drop_high", "axis"))
    panels, kinds = table["panel"].unique(), table["kind"].unique()
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    fig = new_figure(2.8 * rows + 0.5)
    axes = fig.subplots(rows, columns, sharey=True, squeeze=False)
    handles = {}
    for ax, panel in zip(axes.flat, panels, strict=False):
        mine = table[table["panel"] == panel]
        ax.axhline(0, color=GREY, lw=1, ls="--", zorder=1, gid="reference")
        for k, kind in enumerate(kinds):
            one = mine[mine["kind"] == kind]
            colour = OKABE_ITO[k % len(OKABE_ITO)]
            ax.vlines(one["signal"], one["drop_low"], one["drop_high"], color=colour, alpha=0.3, lw=1, zorder=0)
            look = {"color": colour, "marker": MARKERS[k % len(MARKERS)], "ms": 4.5, "ls": "none"}
            handles[kind] = ax.plot(one["signal"], one["drop"], gid=str(kind), **look)[0]
        ax.set_title(panel)
        ax.set_xlabel(mine["axis"].iloc[0])
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("Drop of macro AUROC")
    fig.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=_legend_columns(handles))
    return fig


def remedies(table):
    """AUROC, ECE and F1 that remedies reach against the number of labelled recordings, a row of panels for each place.

    Remedies without labels ("as it is", "EM", "BBSE") and the one with all labels are horizontal lines; shading spans the lowest and the
    highest draw.

    table: columns panel, remedy, m, metric, value, low, high, as from `shift.remedies.over_draws`.
    """
    require_columns(table, ("panel", "remedy", "m", "metric", "value", "low", "high"))
    panels, names = table["panel"].unique(), table["remedy"].drop_duplicates().tolist()
    curves, measures = [name for name in names if name not in FLAT], ("auroc", "ece", "f1")
    fig = new_figure(2.1 * len(panels) + 0.9)
    axes = fig.subplots(len(panels), len(measures), squeeze=False)
    handles = {}
    for i, panel in enumerate(panels):
        for ax, metric in zip(axes[i], measures, strict=True):
            mine = table[(table["panel"] == panel) & (table["metric"] == metric)]
            for name in names:
                one = mine[mine["remedy"] == name].sort_values("m")
                if name in FLAT:
                    colour, style = FLAT[name]
                    handles[name] = ax.axhline(one["value"].iloc[0], color=colour, ls=style, lw=1.2, gid=name, zorder=1)
                    continue
                k = curves.index(name)
                look = {"color": OKABE_ITO[k % len(OKABE_ITO)], "marker": MARKERS[k % len(MARKERS)], "ms": 4}
                ax.fill_between(one["m"], one["low"], one["high"], color=look["color"], alpha=0.12, lw=0)
                handles[name] = ax.plot(one["m"], one["value"], gid=name, **look)[0]
            sizes = np.unique(mine.loc[mine["remedy"].isin(curves), "m"])
            ax.set_xscale("log")
            ax.set_xticks(sizes, [f"{m}" for m in sizes])
            ax.minorticks_off()
            ax.grid(axis="y")
            ax.set_ylabel(TITLES.get(metric, metric))
        axes[i, 0].set_title(panel)
    for ax in axes[-1]:
        ax.set_xlabel("Labelled recordings")
    fig.align_ylabels()
    names = [name for name in names if name in handles]
    fig.legend([handles[name] for name in names], names, loc="outside upper center", ncols=4)
    return fig


def _outer(axes, panels, x, y):
    """Labels on the outer axes of a grid whose last panels may be empty."""
    for k, ax in enumerate(axes.flat):
        ax.set_visible(k < len(panels))
        if k + axes.shape[1] >= len(panels):
            ax.set_xlabel(x)
            ax.tick_params(labelbottom=True)
        if k % axes.shape[1] == 0:
            ax.set_ylabel(y)
