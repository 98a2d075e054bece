"""Own results beside quoted ones."""

import numpy as np
from matplotlib.lines import Line2D

from ..errors import CremaError
from .style import BLUE, GREY, INK, SHADE, new_figure, require_columns


def beside(table):
    """Own macro AUROCs with their 95 % intervals and quoted ones without, a panel a task, a row a model, under headings.

    Args:
        table: columns task, group (the heading), row (the name), quoted (bool), value, low, high, in the order to draw; one row for each
            task, group, name and quoted; low and high of quoted rows are not drawn.

    Raises:
        CremaError: a column is missing, there is nothing to draw, or a point is there twice.
    """
    require_columns(table, ("task", "group", "row", "quoted", "value", "low", "high"))
    key = ["group", "row", "quoted"]
    if not len(table):
        raise CremaError("the table holds no score to draw")
    if (twice := table.duplicated(["task", *key])).any():
        raise CremaError(f"the table has more than one score of {table[twice]['row'].iloc[0]} on {table[twice]['task'].iloc[0]}")
    slots = []  # (group, None) is a heading
    for group, rows in table.groupby("group", sort=False):
        slots += [(group, None), *rows[key].drop_duplicates().itertuples(index=False, name=None)]
    tasks, place = list(dict.fromkeys(table["task"])), {slot: y for y, slot in enumerate(slots)}
    rows, columns = -(-len(tasks) // 3), min(3, len(tasks))
    fig = new_figure(rows * (0.2 * len(slots) + 0.5) + 0.5)
    axes = fig.subplots(rows, columns, sharey=True, squeeze=False)
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(tasks))
        if i >= len(tasks):
            continue
        mine = table[table["task"] == tasks[i]]
        y = np.array([place[slot] for slot in mine[key].itertuples(index=False, name=None)])
        own, quoted = (mine["quoted"].to_numpy(bool) == flag for flag in (False, True))
        ax.hlines(y[own], mine["low"][own], mine["high"][own], color=BLUE, lw=1.6)
        ax.plot(mine["value"][own], y[own], "o", color=BLUE, ms=5, ls="none", gid="ours")
        ax.plot(mine["value"][quoted], y[quoted], "D", color=GREY, mfc="white", ms=4.5, ls="none", gid="quoted")
        for slot, at in place.items():
            if slot[1] is None and at:
                ax.axhline(at - 0.5, color=SHADE, lw=1, zorder=0)
        if len(tasks) > 1:
            ax.set_title(str(tasks[i]), fontsize=10)
        ax.grid(axis="x")
        ax.locator_params(axis="x", nbins=4 if columns > 1 else 8)
        if i + columns >= len(tasks):
            ax.set_xlabel("Macro AUROC")
    axes[0, 0].set_ylim(len(slots) - 0.5, -0.5)
    for ax in axes[:, 0]:
        ax.set_yticks(range(len(slots)), [slot[1] or str(slot[0]).capitalize() for slot in slots])
        for tick, slot in zip(ax.get_yticklabels(), slots, strict=True):
            tick.set(fontweight="bold" if slot[1] is None else "normal", color=GREY if slot[1] and slot[2] else INK)
    for ax in axes.flat:
        ax.tick_params(axis="y", length=0)
    handles = [
        Line2D([], [], color=BLUE, marker="o", ms=5, lw=1.6, label="ours, with 95 % interval"),
        Line2D([], [], color=GREY, marker="D", mfc="white", ms=4.5, ls="none", label="quoted"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=2)
    return fig


def tried(table):
    """What each trial of a search reached on fold 9, a panel a task, a row a change, a dashed line at the row "as it is".

    Args:
        table: columns change, task, value, in the order to draw; several rows of one change and task are several seeds.

    Raises:
        CremaError: a column is missing, or there is nothing to draw.
    """
    require_columns(table, ("change", "task", "value"))
    if not len(table):
        raise CremaError("the table holds no trial to draw")
    changes, tasks = list(dict.fromkeys(table["change"])), list(dict.fromkeys(table["task"]))
    fig = new_figure(0.24 * len(changes) + 0.8)
    for ax, task in zip(fig.subplots(1, len(tasks), sharey=True, squeeze=False)[0], tasks, strict=True):
        mine = table[table["task"] == task]
        known = mine[mine["change"] == "as it is"]["value"]
        if len(known):
            ax.axvline(known.mean(), color=GREY, lw=1, ls="--", gid="base")
        ax.plot(mine["value"], [changes.index(change) for change in mine["change"]], "o", color=BLUE, ms=5, alpha=0.8)
        ax.set(title=str(task), ylim=(len(changes) - 0.5, -0.5))
        ax.set_yticks(range(len(changes)), changes)
        ax.grid(axis="both")
        ax.locator_params(axis="x", nbins=4)
        ax.tick_params(axis="y", length=0)
    fig.supxlabel("Macro AUROC on fold 9", fontsize=10)  # once: beside long names of changes the panels are too narrow for a label each
    return fig
