"""Scores against the leads that are shown: every subset in its place with its names, every value and band drawn, nothing clipped."""

import itertools

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest

from crema_lib import plots
from crema_lib.data.leads import SUBSETS
from crema_lib.errors import CremaError
from crema_lib.plots.leads import NAMES

MODELS = ["random initialisation", "CR-MAE"]


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        plots.use_style()
        yield


def measured(counts=(12, 6, 3, 1), tasks=("all", "super"), models=MODELS):
    rows = list(itertools.product(tasks, models, counts))
    value = np.random.default_rng(0).uniform(0.6, 0.95, len(rows))
    return pd.DataFrame(rows, columns=["task", "model", "leads"]).assign(value=value, low=value - 0.03, high=value + 0.02)


def panels(fig):
    return [ax for ax in fig.axes if ax.get_visible()]


def test_most_leads_stand_on_the_left_with_their_names():
    fig = plots.by_leads(measured().sample(frac=1, random_state=1))
    for ax in panels(fig):
        assert [t.get_text() for t in ax.get_xticklabels()] == ["12\nall", "6\nlimbs", "3\nI II\nV2", "1\nI"]
    assert panels(fig)[0].get_ylabel() == "Macro AUROC" and not panels(fig)[1].get_ylabel()
    assert set(NAMES) == set(SUBSETS)


def test_every_value_and_its_band_is_drawn_in_the_panel_of_its_task():
    table = measured()
    for ax in panels(plots.by_leads(table)):
        mine = table[table["task"] == ax.get_title(loc="left")]
        assert [line.get_gid() for line in ax.lines] == MODELS
        for line, band in zip(ax.lines, ax.collections, strict=True):
            one = mine[mine["model"] == line.get_gid()]
            np.testing.assert_allclose(line.get_ydata(), one["value"])
            np.testing.assert_array_equal(line.get_xdata(), range(4))
            edges = band.get_paths()[0].vertices[:, 1]
            assert edges.min() == pytest.approx(one["low"].min()) and edges.max() == pytest.approx(one["high"].max())


def test_a_subset_that_one_model_lacks_leaves_the_others_in_place():
    table = measured(tasks=["all"])
    lacking = table[(table["model"] != "CR-MAE") | (table["leads"] != 6)]
    (ax,) = panels(plots.by_leads(lacking))
    assert [list(line.get_xdata()) for line in ax.lines] == [[0, 1, 2, 3], [0, 2, 3]]


def test_panels_and_lines_are_what_is_asked_for():
    table = measured(tasks=["super"]).rename(columns={"task": "trained"})
    fig = plots.by_leads(table, panel="model", line="trained", metric="Top-1", share=False)
    assert [ax.get_title(loc="left") for ax in panels(fig)] == MODELS
    assert panels(fig)[0].get_ylabel() == "Top-1"
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["super"]


@pytest.mark.parametrize("tasks", [["a"], ["a", "b", "c"]])
def test_figures_fit_the_column_and_can_be_read(tasks):
    fig = plots.by_leads(measured(tuple(SUBSETS), tasks, [*MODELS, "w2v_cmsc_rlm"]))
    fig.draw_without_rendering()
    tight, figure = fig.get_tightbbox(), fig.bbox_inches
    assert len(panels(fig)) == len(tasks) and fig.get_figwidth() == plots.WIDTH
    assert tight.x0 >= -0.01 and tight.y0 >= -0.01 and tight.x1 <= figure.x1 + 0.01 and tight.y1 <= figure.y1 + 0.01
    for ax in panels(fig):
        boxes = [t.get_window_extent() for t in ax.get_xticklabels()]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
        assert ax.get_xlabel() == ("Leads" if ax in panels(fig)[-2:] else "") or len(tasks) == 1


def test_what_cannot_be_drawn_is_said():
    table = measured()
    for wrong, sentence in (
        (lambda: plots.by_leads(table.drop(columns="leads")), "lacks the column leads"),
        (lambda: plots.by_leads(table, panel="measure"), "lacks the column measure"),
        (lambda: plots.by_leads(table[:0]), "no row to draw"),
        (lambda: plots.by_leads(table.replace({"leads": {6: 5}})), "no subset of 5 leads is known: known are 12, 8, 6"),
        (lambda: plots.by_leads(pd.concat([table, table])), "more than one row for 12 leads, all and random initialisation"),
    ):
        with pytest.raises(CremaError, match=sentence):
            wrong()
