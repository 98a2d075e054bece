"""Own results beside quoted ones: every row in its block, the two kinds told apart, nothing clipped or overlapping."""

import itertools

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from crema_lib import plots
from crema_lib.errors import CremaError

ROWS = [
    ("frozen encoder", "ECG-JEPA ViT-XS, attention on crops", True),
    ("frozen encoder", "CR-MAE, linear", False),
    ("frozen encoder", "random initialisation, attention", False),
    ("fine-tuned", "CR-MAE", False),
    ("labels alone", "xresnet1d101", True),
    ("labels alone", "xresnet1d101", False),
]
TASKS = ["diag", "sub", "super", "form", "rhythm"]


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        plots.use_style()
        yield


def scored(tasks=("all",), rows=ROWS):
    rng = np.random.default_rng(0)
    table = pd.DataFrame([(task, *row) for task in tasks for row in rows], columns=["task", "group", "row", "quoted"])
    value = rng.uniform(0.7, 0.95, len(table))
    own = ~table["quoted"]
    return table.assign(value=value, low=np.where(own, value - 0.02, np.nan), high=np.where(own, value + 0.01, np.nan))


def panels(fig):
    return [ax for ax in fig.axes if ax.get_visible()]


def points(ax, gid):
    (line,) = [line for line in ax.lines if line.get_gid() == gid]
    return line


def test_rows_stand_under_the_heading_of_their_block():
    (ax,) = plots.beside(scored()).axes
    labels = ax.get_yticklabels()
    assert [t.get_text() for t in labels] == [
        "Frozen encoder",
        *(row for group, row, _ in ROWS if group == "frozen encoder"),
        "Fine-tuned",
        "CR-MAE",
        "Labels alone",
        "xresnet1d101",
        "xresnet1d101",
    ]
    assert [i for i, t in enumerate(labels) if t.get_fontweight() == "bold"] == [0, 4, 6]
    assert [i for i, t in enumerate(labels) if to_hex(t.get_color()) == plots.GREY] == [1, 7], "names of quoted rows are grey"
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first row is on top"


def test_own_scores_have_intervals_and_quoted_ones_are_hollow():
    table = scored()
    (ax,) = plots.beside(table).axes
    own, quoted = points(ax, "ours"), points(ax, "quoted")
    np.testing.assert_allclose(own.get_xdata(), table.loc[~table["quoted"], "value"])
    np.testing.assert_array_equal(own.get_ydata(), [2, 3, 5, 8])
    np.testing.assert_allclose(quoted.get_xdata(), table.loc[table["quoted"], "value"])
    np.testing.assert_array_equal(quoted.get_ydata(), [1, 7])
    assert quoted.get_markerfacecolor() == "white" and to_hex(own.get_color()) == plots.BLUE.lower()
    whiskers = np.array(ax.collections[0].get_segments())
    np.testing.assert_allclose(whiskers[:, :, 0], table.loc[~table["quoted"], ["low", "high"]])


def test_a_panel_a_task_and_a_row_that_lacks_one_stays_empty():
    table = scored(TASKS)
    table = table[~((table["task"] == "form") & (table["row"] == "CR-MAE"))]
    fig = plots.beside(table)
    assert [ax.get_title(loc="left") for ax in panels(fig)] == TASKS
    assert [ax.get_xlabel() for ax in panels(fig)] == ["", "", *["Macro AUROC"] * 3]
    assert len(points(panels(fig)[0], "ours").get_ydata()) == 4 and len(points(panels(fig)[3], "ours").get_ydata()) == 3


def test_only_own_or_only_quoted_rows():
    for quoted in (True, False):
        (ax,) = plots.beside(scored(rows=[row for row in ROWS if row[2] == quoted])).axes
        assert not len(points(ax, "ours" if quoted else "quoted").get_xdata())


def test_what_cannot_be_drawn():
    table = scored()
    with pytest.raises(CremaError, match="lacks the column group"):
        plots.beside(table.drop(columns="group"))
    with pytest.raises(CremaError, match="no score to draw"):
        plots.beside(table[:0])
    with pytest.raises(CremaError, match="more than one score of CR-MAE, linear on all"):
        plots.beside(pd.concat([table, table[1:2]]))


@pytest.mark.parametrize("tasks", [["all"], ["all", "super"], TASKS], ids=len)
def test_figures_fit_the_column_and_can_be_read(tasks):
    fig = plots.beside(scored(tasks))
    fig.draw_without_rendering()
    tight, figure = fig.get_tightbbox(), fig.bbox_inches
    assert fig.get_figwidth() == plots.WIDTH
    assert tight.x0 >= -0.01 and tight.y0 >= -0.01 and tight.x1 <= figure.x1 + 0.01 and tight.y1 <= figure.y1 + 0.01
    for ax in panels(fig):
        for axis in (ax.xaxis, ax.yaxis):
            boxes = [t.get_window_extent() for t in axis.get_ticklabels() if t.get_text() and t.get_visible()]
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    assert min(t.get_fontsize() for t in fig.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()) >= 8


def test_trials_stand_around_the_profile_as_it_is():
    table = pd.DataFrame([(c, t, v) for t, shift in (("all", 0.0), ("super", 0.02)) for c, v in
                          (("as it is", 0.88 + shift), ("patch=50", 0.87), ("patch=50", 0.875), ("lr=1e-3", 0.9))],
                         columns=["change", "task", "value"])  # fmt: skip
    fig = plots.tried(table)
    assert [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes] == ["all", "super"]
    for ax, base in zip(fig.axes, (0.88, 0.90), strict=True):
        assert next(line for line in ax.lines if line.get_gid() == "base").get_xdata()[0] == pytest.approx(base)
        dots = next(line for line in ax.lines if line.get_gid() != "base")
        assert list(dots.get_ydata()) == [0, 1, 1, 2], "two seeds of a change share its row"
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["as it is", "patch=50", "lr=1e-3"]
    assert not [line for line in plots.tried(table[table["change"] != "as it is"]).axes[0].lines if line.get_gid() == "base"]
    with pytest.raises(CremaError, match="no trial to draw"):
        plots.tried(table[:0])
