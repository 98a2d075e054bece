"""Label fractions: draws, the labels a curve is drawn over, its points, and its figure."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from crema_lib import efficiency, plots
from crema_lib.errors import CremaError


def table(records=300):
    patient = np.arange(records) // 2
    return pd.DataFrame({"source": "x", "patient": patient.astype(str), "record": np.arange(records).astype(str)})


def test_draws_are_by_patient_nested_and_different():
    rows = np.arange(20, 300)
    drawn = efficiency.draws(table(), rows, [1.0, 0.1, 0.5], times=3, seed=1)
    assert [(d.share, d.number) for d in drawn] == [(0.1, 0), (0.1, 1), (0.1, 2), (0.5, 0), (0.5, 1), (0.5, 2), (1.0, 0)]
    for d in drawn:
        assert np.isin(d.rows, rows).all()
        assert len(d.rows) == pytest.approx(280 * d.share, abs=2)
        assert (np.bincount(d.rows // 2)[np.unique(d.rows // 2)] == 2).all(), "a patient is half in"
    assert set(drawn[0].rows) < set(drawn[3].rows) < set(drawn[6].rows)
    assert set(drawn[0].rows) != set(drawn[1].rows)
    assert len({d.name for d in drawn}) == 7
    again = efficiency.draws(table(), rows, [0.1], times=1, seed=1)
    np.testing.assert_array_equal(again[0].rows, drawn[0].rows)
    assert set(efficiency.draws(table(), rows, [0.1], times=1, seed=2)[0].rows) != set(drawn[0].rows)
    for shares, sentence in (([], "none: give one or more"), ([0.1, 0.1], "each once"), ([0.0], "outside 0 < fraction <= 1")):
        with pytest.raises(CremaError, match=sentence):
            efficiency.draws(table(), rows, shares)


def test_a_curve_is_drawn_over_labels_that_every_draw_can_learn():
    targets = np.array([[1, 1, 0, 1, 0], [0, 0, 1, 1, 0], [1, 0, 1, 0, 1], [0, 1, 0, 1, 1]])
    first, second, test = [0, 1], [0, 1, 2], [2, 3]
    assert efficiency.common_labels(targets, [first, second], test).tolist() == [True, True, True, False, False]
    assert efficiency.common_labels(targets, [second], test).tolist() == [True, True, True, True, False], (
        "the last: not in the test records"
    )
    with pytest.raises(CremaError, match="take larger label fractions"):
        efficiency.common_labels(targets[:, 3:], [first], test)


def points(bootstrap=200):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (200, 3))
    drawn = efficiency.draws(table(), np.arange(300), [0.1, 1.0], times=2)
    scores = {
        (model, d): targets * (d.share + more) + rng.normal(size=(200, 3))
        for model, more in (("better", 1.0), ("twin", 0.0))
        for d in drawn
    }
    patients = np.arange(200) // 2
    return targets, scores, efficiency.curve(targets, scores, patients, list("abc"), [("better", "twin")], n=bootstrap)


def test_points_are_means_over_draws_with_their_spread():
    targets, scores, (curve, gains) = points()
    single = {key: np.mean([roc_auc_score(targets[:, k], s[:, k]) for k in range(3)]) for key, s in scores.items()}
    for row in curve.itertuples():
        mine = [value for (model, d), value in single.items() if (model, d.share) == (row.model, row.share)]
        assert row.value == pytest.approx(np.mean(mine))
        assert (row.lowest, row.highest, row.draws) == (pytest.approx(min(mine)), pytest.approx(max(mine)), len(mine))
        assert row.low < row.value < row.high
    assert curve["draws"].tolist() == [2, 1, 2, 1]
    assert curve["records"].tolist() == pytest.approx([30, 300, 30, 300], abs=2)
    by = curve.set_index(["model", "share"])["value"]
    for row in gains.itertuples():
        assert row.value == pytest.approx(by["better", row.share] - by["twin", row.share])
        assert 0 < row.low < row.value < row.high
    assert len(gains) == 2


def test_what_a_label_is_worth():
    rows = [("m", 10, 0.6), ("m", 100, 0.8), ("m", 1000, 0.9), ("twin", 10, 0.7), ("twin", 100, 0.65), ("twin", 1000, 0.9 - 1e-9)]
    curve = pd.DataFrame(rows, columns=["model", "records", "value"]).assign(task="t")
    found = efficiency.worth(curve, [("m", "twin")])["the twin needs"].tolist()
    assert found[0] == pytest.approx(10), "better from the start"
    assert found[1] == pytest.approx(10**2.5, rel=1e-6), "half way from .7 to .9, between 100 and 1000"
    assert np.isnan(found[2]), "never"


def test_the_figure_shows_bands_and_whiskers_against_a_logarithmic_axis():
    _, _, (curve, _) = points(bootstrap=50)
    both = pd.concat([curve.assign(task="all"), curve.assign(task="super", value=curve["value"] - 0.1)])
    with mpl.rc_context():
        plots.use_style()
        fig = plots.label_efficiency(both)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["all", "super"]
    for ax in fig.axes:
        assert ax.get_xscale() == "log"
        assert [text.get_text() for text in ax.get_xticklabels()] == ["10", "100"] and "% of" in ax.get_xlabel()
    line = fig.axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), curve["value"][:2])
    np.testing.assert_allclose(line.get_xdata(), curve["records"][:2])
    whiskers = fig.axes[0].collections[1].get_segments()
    np.testing.assert_allclose([segment[:, 1] for segment in whiskers], curve[["lowest", "highest"]][:2])
    band = fig.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(curve["low"][:2].min())
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["better", "twin"]
    assert len(plots.label_efficiency(curve).axes) == 1
    with pytest.raises(CremaError, match="lacks the column lowest"):
        plots.label_efficiency(curve.drop(columns="lowest"))
