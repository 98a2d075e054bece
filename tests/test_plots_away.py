"""Figures of what happens away from home."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from crema_lib import plots
from crema_lib.errors import CremaError


@pytest.fixture(autouse=True)
def style():
    with mpl.rc_context():
        plots.use_style()
        yield


SAMPLES, MODELS = ("georgia", "device CS-12"), ("random", "CR-MAE")


def held():
    rows = []
    for i, sample in enumerate(SAMPLES):
        for j, model in enumerate(MODELS):
            for metric in ("auroc", "sensitivity", "ece"):
                value = 0.7 + 0.05 * i + 0.1 * j
                rows.append((sample, model, metric, value, value - 0.03, value + 0.03, value + 0.05))
    return pd.DataFrame(rows, columns=["sample", "model", "metric", "value", "low", "high", "home"])


def test_every_sample_has_a_dot_away_and_a_bar_at_home():
    table = held()
    fig = plots.away(table)
    assert [ax.get_xlabel() for ax in fig.axes] == ["AUROC", "sensitivity", "ECE"]
    for ax, metric in zip(fig.axes, ("auroc", "sensitivity", "ece"), strict=True):
        mine = table[table["metric"] == metric]
        for model in MODELS:
            dots = next(line for line in ax.lines if line.get_gid() == model)
            np.testing.assert_allclose(dots.get_xdata(), mine[mine["model"] == model]["value"])
        bars = [line for line in ax.lines if line.get_gid() == "home"]
        for bar, model in zip(bars, MODELS, strict=True):
            np.testing.assert_allclose(bar.get_xdata(), mine[mine["model"] == model]["home"])
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == list(SAMPLES)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [*MODELS, "at home"]


def test_a_decision_curve_has_a_panel_for_each_sample():
    at = np.array([0.1, 0.3])
    slopes = {"CR-MAE": 1, "treat all": 3}
    rows = [(s, m, t, 1 - k * t, 0.9 - k * t, 1.1 - k * t) for s in SAMPLES for m, k in slopes.items() for t in at]
    fig = plots.net_benefit(pd.DataFrame(rows, columns=["sample", "model", "at", "value", "low", "high"]))
    assert [ax.get_title(loc="left") for ax in fig.axes] == list(SAMPLES)
    lines = {line.get_label(): line for line in fig.axes[1].lines}
    assert set(lines) == {"treat all", "treat none", "CR-MAE"}
    np.testing.assert_allclose(lines["CR-MAE"].get_ydata(), 1 - at)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["treat all", "treat none", "CR-MAE"]


@pytest.mark.parametrize("draw", [plots.away, plots.net_benefit])
def test_a_table_without_its_columns_is_refused(draw):
    with pytest.raises(CremaError, match="lacks the column"):
        draw(pd.DataFrame({"sample": ["a"], "model": ["b"]}))
