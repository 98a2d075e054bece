"""Figures of trust: flags, risk and coverage, drops foretold, remedies."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest

from crema_lib import plots
from crema_lib.errors import CremaError

MODELS, PLACES = ("random, probe", "CR-MAE, probe"), ("home, fold 10", "electrode motion, 0 dB")


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        plots.use_style()
        yield


def lines(ax, gid):
    return [line for line in ax.lines if line.get_gid() == gid]


def flagged(models=MODELS):
    rows = [
        (m, s, k, 0.5 + 0.1 * i + 0.05 * j) for m in models for i, s in enumerate(PLACES) for j, k in enumerate(("doubt", "far", "drawn"))
    ]
    table = pd.DataFrame(rows, columns=["model", "sample", "signal", "value"])
    table = table.assign(low=table["value"] - 0.03, high=table["value"] + 0.03)
    return table[(table["model"] != models[0]) | (table["signal"] != "drawn")]


def kept():
    rows = [
        (p, k, c, 0.1 + 0.2 * i + 0.1 * c * (k != "ideal")) for i, p in enumerate(PLACES) for k in ("doubt", "ideal") for c in (0.5, 1.0)
    ]
    return pd.DataFrame(rows, columns=["panel", "signal", "coverage", "risk"])


def told(panels=MODELS):
    rows = [
        (p, kind, x, 0.02 * x) for p in panels for kind, x in (("changed signals", 5.0), ("changed signals", 7.0), ("other people", 6.0))
    ]
    table = pd.DataFrame(rows, columns=["panel", "kind", "signal", "drop"])
    return table.assign(drop_low=table["drop"] - 0.05, drop_high=table["drop"] + 0.05, axis="Mahalanobis")


def helped():
    m = {"as it is": (0,), "EM": (0,), "thresholds": (50, 500), "recalibrated": (50, 500), "all labels": (2000,)}
    rows = [
        (p, r, size, metric, 0.5 + 0.1 * i + size / 1e4)
        for i, p in enumerate(PLACES)
        for r, sizes in m.items()
        for size in sizes
        for metric in ("auroc", "ece", "f1")
    ]
    table = pd.DataFrame(rows, columns=["panel", "remedy", "m", "metric", "value"])
    return table.assign(low=table["value"] - 0.01, high=table["value"] + 0.01)


def test_every_signal_has_a_dot_and_a_colour_of_its_own():
    fig = plots.flags(flagged())
    table = flagged().query("signal == 'far'")
    for ax, model in zip(fig.axes, MODELS, strict=True):
        assert ax.get_title(loc="left") == model
        np.testing.assert_allclose(lines(ax, "far")[0].get_xdata(), table.loc[table["model"] == model, "value"])
        assert list(lines(ax, "reference")[0].get_xdata()) == [0.5, 0.5]
    assert np.isnan(lines(fig.axes[0], "drawn")[0].get_xdata()).all(), "what a model lacks has no dot"
    assert lines(fig.axes[0], "drawn")[0].get_color() == lines(fig.axes[1], "drawn")[0].get_color()
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == list(PLACES)


def test_risk_is_drawn_with_chance_and_the_ideal():
    fig = plots.risk_coverage(kept())
    for i, ax in enumerate(fig.axes):
        assert list(lines(ax, "doubt")[0].get_ydata()) == pytest.approx([0.15 + 0.2 * i, 0.2 + 0.2 * i])
        assert list(lines(ax, "ideal")[0].get_ydata()) == pytest.approx([0.1 + 0.2 * i] * 2)
        assert lines(ax, "chance")[0].get_ydata()[0] == pytest.approx(0.2 + 0.2 * i)
        assert ax.get_ylim()[0] == 0 and ax.get_ylim()[1] > 0.4, "no panel is cut by the first one's range"
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["doubt", "ideal", "by chance"]


def test_drops_are_drawn_with_their_intervals():
    fig = plots.foretold(told())
    ax = fig.axes[1]
    np.testing.assert_allclose(lines(ax, "changed signals")[0].get_xydata(), [(5, 0.1), (7, 0.14)])
    segments = np.array(ax.collections[0].get_segments())
    np.testing.assert_allclose(segments[:, :, 1], [(0.05, 0.15), (0.09, 0.19)])
    assert ax.get_xlabel() == "Mahalanobis" and fig.axes[0].get_ylabel() == "Drop of macro AUROC"


def test_remedies_without_a_dose_are_lines_across():
    fig = plots.remedies(helped())
    assert len(fig.axes) == 6 and [ax.get_ylabel() for ax in fig.axes[:3]] == ["AUROC", "ECE", "F1"]
    ax = fig.axes[3]
    assert ax.get_title(loc="left") == PLACES[1]
    assert lines(ax, "EM")[0].get_ydata() == pytest.approx([0.6, 0.6])
    assert lines(ax, "all labels")[0].get_ydata() == pytest.approx([0.8, 0.8])
    np.testing.assert_allclose(lines(ax, "recalibrated")[0].get_xydata(), [(50, 0.605), (500, 0.65)])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["50", "500"]
    assert len({lines(ax, name)[0].get_linestyle() for name in ("as it is", "EM", "all labels")}) == 3


def every_figure():
    yield plots.flags(flagged())
    yield plots.flags(flagged(tuple("abcd")))
    yield plots.risk_coverage(kept())
    yield plots.foretold(told())
    yield plots.foretold(told(("a", "b", "c")))
    yield plots.remedies(helped())


def test_every_figure_fits_the_column():
    for fig in every_figure():
        fig.draw_without_rendering()
        tight, figure = fig.get_tightbbox(), fig.bbox_inches
        assert fig.get_figwidth() == plots.WIDTH
        assert tight.x0 >= -0.01 and tight.y0 >= -0.01 and tight.x1 <= figure.x1 + 0.01 and tight.y1 <= figure.y1 + 0.01


@pytest.mark.parametrize("draw", [plots.flags, plots.risk_coverage, plots.foretold, plots.remedies])
def test_a_table_without_its_columns_is_refused(draw):
    with pytest.raises(CremaError, match="lacks the column"):
        draw(pd.DataFrame({"model": ["a"]}))
