"""Scores against the number of labelled recordings."""

from matplotlib.ticker import NullLocator

from .scores import MARKERS
from .style import OKABE_ITO, new_figure, require_columns


def label_efficiency(table):
    """Macro AUROC against the number of labelled recordings on a logarithmic axis, a panel a task and a line a model.

    Bands are 95 % intervals, whiskers reach from the lowest to the highest draw.

    Args:
        table: columns model, share, records, value, low, high, lowest, highest, and task where there is more than one.
    """
    require_columns(table, ("model", "share", "records", "value", "low", "high", "lowest", "highest"))
    tasks = list(dict.fromkeys(table["task"])) if "task" in table else [None]
    fig = new_figure(3.7)
    axes = fig.subplots(1, len(tasks), squeeze=False)[0]
    models = list(dict.fromkeys(table["model"]))
    for ax, task in zip(axes, tasks, strict=True):
        panel = table if task is None else table[table["task"] == task]
        for model, colour, marker in zip(models, OKABE_ITO, MARKERS, strict=False):
            line = panel[panel["model"] == model].sort_values("records")
            ax.fill_between(line["records"], line["low"], line["high"], color=colour, alpha=0.15, lw=0)
            ax.vlines(line["records"], line["lowest"], line["highest"], color=colour, lw=1.2)
            ax.plot(line["records"], line["value"], color=colour, marker=marker, ms=5, label=model)
        ticks = panel.groupby("share")["records"].mean()
        ax.set_xscale("log")
        ax.set_xticks(ticks, [f"{100 * share:g}" for share in ticks.index])  # counts would run into each other in two panels
        ax.xaxis.set_minor_locator(NullLocator())
        whole = ticks.iloc[-1] / ticks.index[-1]
        ax.set(xlabel=f"Labelled recordings, % of {whole:,.0f}", ylabel="Macro AUROC (95 % interval)", title=task or "")
        ax.grid()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(models), 2))
    return fig
