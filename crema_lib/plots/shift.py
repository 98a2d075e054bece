"""Away from home: metrics there beside those at home, and the net benefit of acting on probabilities."""

import numpy as np

from ..metrics import TITLES
from .scores import MARKERS, _dots, _legend_columns
from .style import GREY, OKABE_ITO, new_figure, require_columns


def away(table, *, measures=("auroc", "sensitivity", "ece")):
    """Metrics of every sample and model with 95 % interval, a panel each; a bar marks what the model reached at home on the same labels.

    table: columns sample, model, metric, value, low, high, home, as from `shift.measure.Yardstick.hold`. measures: metrics to show.
    """
    require_columns(table, ("sample", "model", "metric", "value", "low", "high", "home"))
    table = table[table["metric"].isin(measures)]
    order, models = table["sample"].drop_duplicates().tolist(), table["model"].unique()
    fig = new_figure(max(0.34, 0.13 * len(models) + 0.1) * len(order) + 1.0)
    axes = fig.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for ax, metric in zip(axes, measures, strict=True):
        mine = table[table["metric"] == metric]
        handles, names = _dots(ax, mine, "sample", order)
        for k, model in enumerate(names):
            rows = mine[mine["model"] == model].set_index("sample").reindex(order)
            y = np.arange(len(order)) + (k - (len(names) - 1) / 2) * 0.7 / len(names)
            ax.plot(rows["home"], y, "|", color=OKABE_ITO[k % len(OKABE_ITO)], ms=9, mew=1.6, alpha=0.6, ls="none", gid="home")
        ax.set_xlabel(TITLES.get(metric, metric))
    axes[0].set_yticks(range(len(order)), order)
    bar = axes[0].plot([], [], "|", color=GREY, ms=9, mew=1.6, ls="none")
    fig.legend(handles + bar, [*names, "at home"], loc="outside upper center", ncols=_legend_columns([*names, "at home"]))
    return fig


def net_benefit(table):
    """Decision curves: net benefit against the threshold probability, a panel for each sample.

    table: columns sample, model, at, value, low, high, as from `shift.measure.decision_curve`; "treat all" is drawn in grey.
    """
    require_columns(table, ("sample", "model", "at", "value", "low", "high"))
    samples = table["sample"].drop_duplicates().tolist()
    rows = -(-len(samples) // 2)
    fig = new_figure(2.3 * rows + 0.5)
    axes = fig.subplots(rows, min(2, len(samples)), sharex=True, squeeze=False)
    models = [model for model in table["model"].unique() if model != "treat all"]
    for ax, sample in zip(axes.flat, samples, strict=False):
        mine = table[table["sample"] == sample]
        every = mine[mine["model"] == "treat all"]
        handles = ax.plot(every["at"], every["value"], color=GREY, ls=":", label="treat all")
        handles += [ax.axhline(0, color=GREY, lw=0.8, label="treat none")]
        for k, model in enumerate(models):
            one = mine[mine["model"] == model]
            colour = OKABE_ITO[k % len(OKABE_ITO)]
            ax.fill_between(one["at"], one["low"], one["high"], color=colour, alpha=0.15, lw=0)
            handles += ax.plot(one["at"], one["value"], color=colour, marker=MARKERS[k % len(MARKERS)], ms=4, label=model)
        ax.set_title(sample, fontsize=10)
        ax.set_ylim(bottom=max(ax.get_ylim()[0], -0.25 * max(mine["value"].max(), 0.1)))
        ax.grid(axis="y")
    for k, ax in enumerate(axes.flat):
        ax.set_visible(k < len(samples))
        if k % axes.shape[1] == 0:
            ax.set_ylabel("Net benefit")
        if k + axes.shape[1] >= len(samples):
            ax.set_xlabel("Threshold probability")
            ax.tick_params(labelbottom=True)
    names = [handle.get_label() for handle in handles]
    fig.legend(handles, names, loc="outside upper center", ncols=_legend_columns(names))
    return fig
