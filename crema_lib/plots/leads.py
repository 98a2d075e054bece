"""Fewer leads: a score against the leads that are shown."""

from ..data.leads import SUBSETS
from ..errors import CremaError
from .scores import MARKERS, _legend_columns
from .style import OKABE_ITO, new_figure, require_columns

# What stands below the number of leads on an axis, see `data.leads.SUBSETS`.
NAMES = {12: "all", 8: "I II\nV1–V6", 6: "limbs", 4: "I–III\nV2", 3: "I II\nV2", 2: "I II", 1: "I"}


def by_leads(table, *, panel="task", line="model", metric="Macro AUROC", share=True):
    """A score against the subset of leads, most leads on the left at equal distances, with 95 % intervals as bands.

    Args:
        table: columns leads (their number, see `data.leads.SUBSETS`), value, low, high, and those of `panel` and `line`; one row for each
            number of leads, panel and line.
        panel, line: columns whose values make a panel, and a line within it. metric: name of the score on the axis. share: one axis
            of scores for all panels.

    Raises:
        CremaError: a column is missing, there is nothing to draw, a number of leads is unknown, or a point is there twice.
    """
    require_columns(table, ("leads", "value", "low", "high", panel, line))
    if not len(table):
        raise CremaError("the table holds no row to draw")
    if unknown := set(table["leads"]) - set(SUBSETS):
        raise CremaError(f"no subset of {unknown.pop()} leads is known: known are {', '.join(map(str, SUBSETS))}")
    if (twice := table.duplicated(["leads", panel, line])).any():
        row = table[twice].iloc[0]
        raise CremaError(f"the table has more than one row for {row['leads']} leads, {row[panel]} and {row[line]}")
    panels, lines, counts = list(table[panel].unique()), list(table[line].unique()), sorted(table["leads"].unique(), reverse=True)
    columns = min(len(panels), 2 if len(counts) > 4 or len(panels) == 4 else 3)
    rows = -(-len(panels) // columns)
    fig = new_figure(2.3 * rows + 0.7)
    axes = fig.subplots(rows, columns, squeeze=False, sharey=share)
    handles = {}
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < len(panels))
        if i >= len(panels):
            continue
        mine = table[table[panel] == panels[i]].sort_values("leads", ascending=False)
        for k, name in enumerate(lines):
            one, colour = mine[mine[line] == name], OKABE_ITO[k % len(OKABE_ITO)]
            x = [counts.index(count) for count in one["leads"]]
            ax.fill_between(x, one["low"], one["high"], color=colour, alpha=0.15, lw=0)
            (handles[name],) = ax.plot(x, one["value"], color=colour, marker=MARKERS[k % len(MARKERS)], ms=4, gid=str(name))
        ax.set_xticks(range(len(counts)), [f"{count}\n{NAMES[count]}" for count in counts])
        ax.set_xlim(-0.3, len(counts) - 0.7)
        ax.grid(axis="y")
        ax.set_title(str(panels[i]), fontsize=10)
        if i % columns == 0:
            ax.set_ylabel(metric)
        if i + columns >= len(panels):
            ax.set_xlabel("Leads")
    fig.legend(list(handles.values()), list(map(str, handles)), loc="outside upper center", ncols=_legend_columns(lines))
    return fig
