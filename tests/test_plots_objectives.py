"""Figures that hold objectives against each other."""

import itertools

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


def scores():
    rows = [(score, model, 0.1 * i + 0.2 * k) for i, score in enumerate("abcde") for k, model in enumerate(("one", "two", "none"))]
    table = pd.DataFrame(rows, columns=["score", "model", "value"])
    return table.assign(low=table["value"] - 0.05, high=table["value"] + 0.05)


def test_every_score_has_a_panel_with_a_dot_a_model_and_the_twin():
    fig = plots.score_panels(scores(), twin="none", mark="two")
    shown = [ax for ax in fig.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in shown] == list("abcde") and len(fig.axes) == 8
    for i, ax in enumerate(shown):
        np.testing.assert_allclose(ax.collections[1].get_offsets(), [[0.1 * i + 0.2 * k, k] for k in range(3)])
        (line,) = (line for line in ax.lines if line.get_gid() == "twin")
        assert line.get_xdata()[0] == pytest.approx(0.1 * i + 0.4)
        assert len({tuple(colour) for colour in ax.collections[1].get_facecolors()}) == 2, "one is marked"
    assert shown[0].get_ylim() == (2.5, -0.5), "the first model on top, none at the edge"
    fig.canvas.draw()


def test_differences_have_their_line_at_zero():
    for ax in plots.score_panels(scores(), zero=True).axes[:5]:
        assert [line.get_xdata()[0] for line in ax.lines if line.get_gid() == "twin"] == [0]


def test_single_runs_are_small_dots_below_their_mean():
    runs = pd.DataFrame([("b", "two", 0.28), ("b", "two", 0.32), ("b", "one", 0.1)], columns=["score", "model", "value"])
    first, second = plots.score_panels(scores(), runs=runs).axes[:2]
    (dots,) = (drawn for drawn in second.collections if drawn.get_gid() == "runs")
    np.testing.assert_allclose(dots.get_offsets(), [[0.28, 1.3], [0.32, 1.3], [0.1, 0.3]])
    assert not len(next(drawn for drawn in first.collections if drawn.get_gid() == "runs").get_offsets())


def test_a_long_name_stands_on_two_lines_that_fit_its_row():
    long = scores().replace({"model": {"two": "a long name of a change+and another one"}})
    plain, fig = plots.score_panels(scores()), plots.score_panels(long)
    assert [tick.get_text() for tick in fig.axes[0].get_yticklabels()] == ["one", "a long name of a change\n+and another one", "none"]
    assert [tick.get_text() for tick in plain.axes[0].get_yticklabels()] == ["one", "two", "none"]
    fig.canvas.draw()
    boxes = [tick.get_window_extent() for tick in fig.axes[0].get_yticklabels()]
    assert all(lower.y1 <= upper.y0 for upper, lower in itertools.pairwise(boxes)), "labels do not touch"


def test_a_score_twice_is_refused():
    with pytest.raises(CremaError, match="more than one row for a score and a model"):
        plots.score_panels(pd.concat([scores(), scores().head(1)]))


def test_likeness_is_a_matrix_with_its_numbers():
    names, matrix = ["x", "y", "z"], np.array([[1, 0.25, -0.01], [0.25, 1, 0.7], [-0.01, 0.7, 1]])
    table = pd.DataFrame([{"a": a, "b": b, "value": matrix[i, j]} for i, a in enumerate(names) for j, b in enumerate(names)])
    ax = plots.likeness(table).axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), matrix)
    assert [text.get_text() for text in ax.texts] == ["1.00", ".25", "-.01", ".25", "1.00", ".70", "-.01", ".70", "1.00"]
    assert [label.get_text() for label in ax.get_xticklabels()] == names


def test_a_line_for_each_model_over_the_blocks():
    rows = [(model, block, 0.5 + 0.1 * block + 0.01 * i) for i, model in enumerate("abcdefghi") for block in (3, 1, 2)]
    table = pd.DataFrame(rows, columns=["model", "block", "value"]).assign(low=0.4, high=0.9)
    (ax,) = plots.by_layer(table).axes
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[1, 0.6], [2, 0.7], [3, 0.8]])
    assert len({(line.get_color(), line.get_marker()) for line in ax.lines}) == 9, "nine models can be told apart"


@pytest.mark.parametrize("draw", [plots.score_panels, plots.likeness, plots.by_layer])
def test_a_table_without_its_columns_is_refused(draw):
    with pytest.raises(CremaError, match="value"):
        draw(pd.DataFrame({"x": [1]}))
