"""Figures that hold objectives against each other: many scores of each, likeness, and what each layer knows."""

import numpy as np

from ..errors import CremaError
from .scores import MARKERS
from .style import BLUE, GREY, OKABE_ITO, VERMILLION, new_figure, require_columns

COLOURS = (*OKABE_ITO[:6], OKABE_ITO[7], GREY, "#8c564b", "#6a3d9a")  # a line a model: no yellow on white
LONG = 24  # letters of a name that stand on one line beside the panels


def score_panels(table, *, runs=None, twin=None, mark=None, zero=False):
    """Several scores of many models: a panel a score, a row a model, a dot with its 95 % interval.

    Args:
        table: columns score, model, value, low, high, one row per score and model, both in the order to draw. Long names stand on
            several lines, broken before each "+".
        runs: columns score, model, value, the single runs that the values are means of, drawn as small dots below them.
        twin: model whose value is drawn through each panel as a dashed line, the one to beat. mark: model in another colour.
        zero: a dashed line at zero, for differences.
    """
    require_columns(table, ("score", "model", "value", "low", "high"))
    if table.duplicated(["score", "model"]).any():
        raise CremaError("the table has more than one row for a score and a model")
    scores, models = list(dict.fromkeys(table["score"])), list(dict.fromkeys(table["model"]))
    rows, columns = -(-len(scores) // 4), min(4, len(scores))
    names = [model if len(model) <= LONG else model.replace("+", "\n+") for model in models]
    lines = max(name.count("\n") for name in names) + 1
    fig = new_figure(rows * ((0.09 + 0.1 * lines) * len(models) + 0.65))
    axes = fig.subplots(rows, columns, sharey=True, squeeze=False)
    for ax in axes.flat[len(scores) :]:
        ax.set_visible(False)
    y = np.arange(len(models))
    for ax, score in zip(axes.flat, scores, strict=False):
        panel = table[table["score"] == score].set_index("model").reindex(models)
        colours = [VERMILLION if model == mark else BLUE for model in models]
        ax.hlines(y, panel["low"], panel["high"], color=colours, lw=1.4)
        ax.scatter(panel["value"], y, color=colours, s=16, zorder=2)
        if runs is not None:
            some = runs[runs["score"] == score]
            ax.scatter(some["value"], [models.index(model) + 0.3 for model in some["model"]], color=GREY, s=3, gid="runs")
        if zero or twin is not None:
            ax.axvline(0 if zero else panel.loc[twin, "value"], color=GREY, lw=1, ls="--", zorder=1, gid="twin")
        ax.set_title(score, fontsize=9)
        ax.set_yticks(y, names)
        ax.tick_params(labelsize=8)
        ax.locator_params(axis="x", nbins=3)
        ax.grid(axis="x")
    axes[0, 0].set_ylim(len(models) - 0.5, -0.5)
    return fig


def likeness(table):
    """How alike encoders are: a matrix of CKA with its values.

    table: columns a, b, value, a row for each ordered pair, as from `readings.cka_matrix`.
    """
    require_columns(table, ("a", "b", "value"))
    names = list(dict.fromkeys(table["a"]))
    matrix = table.pivot(index="a", columns="b", values="value").loc[names, names].to_numpy()
    fig = new_figure(0.36 * len(names) + 1.6, width=min(7.2, 0.5 * len(names) + 2.6))
    ax = fig.add_subplot()
    image = ax.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(matrix.shape):
        ink = "white" if matrix[i, j] > 0.6 else "black"
        ax.text(j, i, f"{matrix[i, j]:.2f}".replace("0.", "."), ha="center", va="center", fontsize=8, color=ink)
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.spines[:].set_visible(False)
    fig.colorbar(image, label="Linear CKA", shrink=0.8)
    return fig


def by_layer(table):
    """Macro AUROC after each block, a line a model, with 95 % intervals as bands.

    table: columns model, block (from 1), value, low, high.
    """
    require_columns(table, ("model", "block", "value", "low", "high"))
    models = list(dict.fromkeys(table["model"]))
    fig = new_figure(3.4)
    ax = fig.add_subplot()
    for i, model in enumerate(models):
        line, colour = table[table["model"] == model].sort_values("block"), COLOURS[i % len(COLOURS)]
        ax.fill_between(line["block"], line["low"], line["high"], color=colour, alpha=0.08, lw=0)
        ax.plot(line["block"], line["value"], color=colour, marker=MARKERS[i % len(MARKERS)], ms=4.5, label=model)
    ax.set_xticks(sorted(set(table["block"])))
    ax.set(xlabel="Transformer block", ylabel="Macro AUROC (95 % interval)")
    ax.grid()
    fig.legend(loc="outside right upper")
    return fig
