"""Figures of why performance drops."""

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


PARTS = {"approximation": 0.2, "usability": -0.05, "probe generalisation": 0.1, "total": 0.25}


def test_the_parts_of_a_risk_stand_on_each_other_and_end_at_the_total():
    rows = [(model, part, k * v, k * v - 0.01, k * v + 0.01) for model, k in (("a", 1), ("b", 2)) for part, v in PARTS.items()]
    fig = plots.risk_parts(pd.DataFrame(rows, columns=["model", "component", "value", "low", "high"]))
    (ax,) = fig.axes
    bars = {container.get_label(): container.patches for container in ax.containers}
    assert list(bars) == ["approximation", "usability", "probe generalisation"]
    assert [bar.get_x() for bar in bars["probe generalisation"]] == pytest.approx([0.2, 0.4])
    assert [bar.get_x() + bar.get_width() for bar in bars["usability"]] == pytest.approx([-0.05, -0.1]), "below zero it hangs to the left"
    dots = next(line for line in ax.lines if line.get_label().startswith("total"))
    np.testing.assert_allclose(dots.get_xdata(), [0.25, 0.5])


def test_curves_of_covariates_have_a_panel_for_each_shift_and_a_line_at_home():
    rows = [
        (shift, home, test, kind, metric, test + offset, test + offset - 0.1, test + offset + 0.1)
        for shift, home in (("covariate", 0.1), ("association", 1.0))
        for test in (0.9, 0.1, 1.0)
        for kind, offset in (("with", 0.0), ("without", 0.5))
        for metric in ("log_loss", "auroc")
    ]
    columns = ["shift", "train", "test", "predictor", "metric", "value", "low", "high"]
    fig = plots.covariate_curves(pd.DataFrame(rows, columns=columns), names={"covariate": "A shift"}, units={"association": "ratio"})
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["A shift", "association"] and fig.axes[1].get_xlabel() == "ratio"
    for ax, home in zip(fig.axes, (0.1, 1.0), strict=True):
        lines = {line.get_label(): line for line in ax.lines}
        np.testing.assert_allclose(lines["without"].get_xdata(), [0.1, 0.9, 1.0])
        np.testing.assert_allclose(lines["without"].get_ydata(), [0.6, 1.4, 1.5])
        assert next(line for line in ax.lines if line.get_gid() == "train").get_xdata()[0] == home
    assert fig.axes[0].get_ylabel() == "Log loss, nats"


@pytest.mark.parametrize("draw", [plots.risk_parts, plots.covariate_curves])
def test_a_table_without_its_columns_is_refused(draw):
    with pytest.raises(CremaError, match="lacks the column"):
        draw(pd.DataFrame({"model": ["a"], "value": [1.0]}))
