"""Why performance drops: the parts of a risk, and predictors with and without a covariate."""

import numpy as np

from .scores import MARKERS, _legend_columns
from .style import GREY, INK, OKABE_ITO, new_figure, require_columns


def risk_parts(table):
    """Stacked bars of the components of a risk (log loss), a bar for each model; a component below zero hangs below it.

    table: columns model, component, value, low, high, as from `shift.risk.decompose`; the component "total" is a dot with its interval.
    """
    require_columns(table, ("model", "component", "value", "low", "high"))
    models = table["model"].drop_duplicates().tolist()
    parts = [part for part in table["component"].unique() if part != "total"]
    fig = new_figure(0.55 * len(models) + 1.3)
    ax = fig.add_subplot()
    up, down, handles = np.zeros(len(models)), np.zeros(len(models)), []
    for part, colour in zip(parts, OKABE_ITO, strict=False):
        value = table[table["component"] == part].set_index("model")["value"].reindex(models).to_numpy()
        left = np.where(value >= 0, up, down)
        handles.append(ax.barh(models, value, left=left, height=0.55, color=colour, label=part))
        up, down = up + np.maximum(value, 0), down + np.minimum(value, 0)
    total = table[table["component"] == "total"].set_index("model").reindex(models)
    ax.hlines(models, total["low"], total["high"], color=INK, lw=1.4)
    handles += ax.plot(total["value"], models, "o", color=INK, ms=4.5, ls="none", label="total, 95 % interval")
    ax.axvline(0, color=GREY, lw=0.8)
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_xlabel("Risk (log loss, nats)")
    names = [handle.get_label() for handle in handles]
    fig.legend(handles, names, loc="outside upper center", ncols=3)
    return fig


def covariate_curves(table, *, metric="log_loss", names=None, units=None):
    """A metric of each predictor against what the test population differs in, a panel for each shift; dotted, the training population.

    table: columns shift, train, test, predictor, metric, value, low, high, as from `shift.covariates.summarise`.
    names: dict shift -> title of its panel. units: dict shift -> label of its horizontal axis.
    """
    require_columns(table, ("shift", "train", "test", "predictor", "metric", "value", "low", "high"))
    table = table[table["metric"] == metric]
    shifts, names, units = table["shift"].drop_duplicates().tolist(), names or {}, units or {}
    fig = new_figure(3.0)
    axes = fig.subplots(1, len(shifts), squeeze=False)[0]
    for ax, shift in zip(axes, shifts, strict=True):
        mine, handles = table[table["shift"] == shift], []
        for k, (predictor, one) in enumerate(mine.groupby("predictor", sort=False)):
            one, colour = one.sort_values("test"), OKABE_ITO[k % len(OKABE_ITO)]
            ax.fill_between(one["test"], one["low"], one["high"], color=colour, alpha=0.15, lw=0)
            handles += ax.plot(one["test"], one["value"], color=colour, marker=MARKERS[k % len(MARKERS)], ms=4, label=predictor)
        ax.axvline(mine["train"].iloc[0], color=GREY, lw=1, ls=":", gid="train")
        ax.set_title(names.get(shift, shift), fontsize=10)
        ax.set_xlabel(units.get(shift, shift))
        ax.grid(axis="y")
    axes[0].set_ylabel({"log_loss": "Log loss, nats", "excess_risk": "Excess log loss, nats"}.get(metric, metric))
    labels = [handle.get_label() for handle in handles]
    fig.legend(handles, labels, loc="outside upper center", ncols=_legend_columns(labels))
    return fig
