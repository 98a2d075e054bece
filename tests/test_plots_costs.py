"""Figures of what training costs."""

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


def test_speeds_are_dots_with_ranges_and_values():
    table = pd.DataFrame({"model": ["ours", "reference"], "value": [120.0, 4.0], "low": [100.0, 3.5], "high": [130.0, 4.2]})
    (ax,) = plots.speeds(table).axes
    assert ax.get_xscale() == "log"
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [120, 4])
    assert [text.get_text() for text in ax.texts] == ["120", "4"]


def test_shares_fill_the_bar():
    table = pd.DataFrame({"model": ["ti"] * 3, "kind": ["matmul", "attention", "rest"], "share": [0.7, 0.2, 0.1]})
    (ax,) = plots.time_shares(table).axes
    ends = [bar.patches[0].get_x() + bar.patches[0].get_width() for bar in ax.containers]
    assert ends == pytest.approx([70, 90, 100])


@pytest.mark.parametrize("draw", [plots.speeds, plots.time_shares])
def test_a_table_without_its_columns_is_refused(draw):
    with pytest.raises(CremaError, match="model"):
        draw(pd.DataFrame({"x": [1]}))
