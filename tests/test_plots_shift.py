"""Figures of controlled shifts: every dose in its place, home among them, nothing clipped or overlapping."""

import itertools

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest

from crema_lib import plots
from crema_lib.errors import CremaError
from crema_lib.metrics import TITLES
from crema_lib.shift import corrupt

MODELS = ["random, probe", "CR-MAE, probe", "xresnet1d101"]
MEASURES = ["auroc", "sensitivity", "specificity", "ece"]
RATIOS = [np.nan, *corrupt.SNRS]
DOSES = {**{noise: RATIOS for noise in corrupt.NOISES}, "gain": [1, 0.5, 2], "high-pass": [0.5, 1, 2], "leads": [12, 8, 1]}


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        plots.use_style()
        yield


def measured(kinds=DOSES, models=MODELS, seed=0):
    rng = np.random.default_rng(seed)
    keys = [(kind, level, model, metric) for kind in kinds for level in DOSES[kind] for model in models for metric in MEASURES]
    value = rng.uniform(0.5, 0.95, len(keys))
    return pd.DataFrame(keys, columns=["kind", "level", "model", "metric"]).assign(value=value, low=value - 0.03, high=value + 0.02)


def dropped(samples, models=MODELS):
    keys = list(itertools.product(samples, models))
    drop = np.linspace(0.01, 0.2, len(keys))
    return pd.DataFrame(keys, columns=["sample", "model"]).assign(drop=drop, drop_low=drop - 0.02, drop_high=drop + 0.03)


def panels(fig):
    return [ax for ax in fig.axes if ax.get_visible()]


def assert_fits(fig):
    fig.draw_without_rendering()
    tight, figure = fig.get_tightbbox(), fig.bbox_inches
    assert fig.get_figwidth() == plots.WIDTH
    assert tight.x0 >= -0.01 and tight.y0 >= -0.01 and tight.x1 <= figure.x1 + 0.01 and tight.y1 <= figure.y1 + 0.01
    for ax in panels(fig):
        for axis in (ax.xaxis, ax.yaxis):
            boxes = [t.get_window_extent() for t in axis.get_ticklabels() if t.get_text() and t.get_visible()]
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    titles = [ax.get_tightbbox() for ax in panels(fig) if ax.get_title(loc="left")]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(titles, 2)), "a title runs into the next panel"
    assert min(t.get_fontsize() for t in fig.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()) >= 8


def test_doses_stand_in_order_with_home_among_them():
    table = measured()
    fig = plots.dose(table.sample(frac=1, random_state=0))
    shown = {ax.get_title(loc="left"): [t.get_text() for t in ax.get_xticklabels()] for ax in panels(fig)}
    assert set(shown) == set(DOSES)
    assert shown["white"] == ["∞", "24", "18", "12", "6", "0", "−6"]
    assert shown["gain"] == ["0.5", "1", "2"] and shown["high-pass"] == ["0.5", "1", "2"] and shown["leads"] == ["12", "8", "1"]
    units = {ax.get_title(loc="left"): ax.get_xlabel() for ax in panels(fig)}
    assert units["powerline"] == "SNR (dB)" and units["gain"] == "Factor" and units["high-pass"] == "Edge (Hz)"
    assert panels(fig)[0].get_ylabel() == "Macro AUROC"


def test_every_value_and_its_band_is_drawn():
    table = measured(["white", "gain"])
    for ax in panels(plots.dose(table)):
        kind = ax.get_title(loc="left")
        order = {"white": DOSES["white"], "gain": [0.5, 1, 2]}[kind]
        assert [line.get_gid() for line in ax.lines] == MODELS
        for line, band in zip(ax.lines, ax.collections, strict=True):
            mine = table[(table["kind"] == kind) & (table["model"] == line.get_gid()) & (table["metric"] == "auroc")].set_index("level")
            np.testing.assert_allclose(line.get_ydata(), mine["value"].reindex(order))
            np.testing.assert_array_equal(line.get_xdata(), range(len(order)))
            edges = band.get_paths()[0].vertices[:, 1]
            assert edges.min() == pytest.approx(mine["low"].min()) and edges.max() == pytest.approx(mine["high"].max())


def test_several_measures_make_a_row_each():
    table = measured(corrupt.NOISES)
    fig = plots.dose(table, measures=MEASURES)
    assert len(panels(fig)) == 4 * 5
    names = [ax.get_ylabel() for ax in panels(fig)]
    assert names[::5] == [f"Macro {TITLES[metric]}" for metric in MEASURES] and not any(names[1:5])
    assert [bool(ax.get_title(loc="left")) for ax in panels(fig)] == [True] * 5 + [False] * 15
    for k, metric in enumerate(MEASURES):
        mine = table[(table["kind"] == "white") & (table["metric"] == metric) & (table["model"] == MODELS[1])]
        np.testing.assert_allclose(panels(fig)[5 * k + 4].lines[1].get_ydata(), mine["value"])


def test_a_forest_of_drops_keeps_the_order_and_shows_zero():
    table = dropped(["without V1", "RA and LA exchanged", "1 lead"])
    fig = plots.drops(table)
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["without V1", "RA and LA exchanged", "1 lead"]
    dots = [line for line in ax.lines if line.get_gid() == MODELS[2]]
    np.testing.assert_allclose(dots[0].get_xdata(), table[table["model"] == MODELS[2]]["drop"])
    whiskers = np.array(ax.collections[0].get_segments())[:, :, 0]
    np.testing.assert_allclose(whiskers, table[table["model"] == MODELS[0]][["drop_low", "drop_high"]])
    far = plots.drops(table.assign(drop=0.5, drop_low=0.4, drop_high=0.6)).axes[0]
    assert far.get_xlim()[0] <= 0 and [list(line.get_xdata()) for line in far.lines if line.get_gid() == "reference"] == [[0, 0]]
    assert ax.get_xlabel() == "Drop in macro AUROC (95 % interval)"


def test_figures_fit_the_column_and_can_be_read():
    assert_fits(plots.dose(measured()))
    assert_fits(plots.dose(measured(["leads"])))
    assert_fits(plots.dose(measured(corrupt.NOISES), measures=MEASURES))
    assert_fits(plots.drops(dropped([f"without V{i}" for i in range(6)] + list(corrupt.REVERSALS), [*MODELS, "MAE only"])))
    assert_fits(plots.drops(dropped(["1 lead"], MODELS[:1])))


def test_what_cannot_be_drawn_is_said():
    table = measured(["gain"])
    for wrong, sentence in (
        (lambda: plots.dose(table.drop(columns="level")), "lacks the column level"),
        (lambda: plots.dose(table, measures=["f1"]), "no row of f1 to draw"),
        (lambda: plots.dose(pd.concat([table, table])), "more than one row for gain at 1 and model random, probe"),
        (lambda: plots.drops(dropped(["a"]).drop(columns="drop_low")), "lacks the column drop_low"),
        (lambda: plots.drops(dropped(["a"])[:0]), "no condition to draw"),
        (lambda: plots.drops(dropped(["a", "a"])), "more than one row for a and model random, probe"),
    ):
        with pytest.raises(CremaError, match=sentence):
            wrong()
