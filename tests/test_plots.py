"""The figures: true paper proportions, every trace in its place, nothing clipped or overlapping, units on every axis."""

import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from crema_lib import plots
from crema_lib.data.leads import LEADS
from crema_lib.errors import CremaError

FS = 100


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        plots.use_style()
        yield


def beats(seconds=10, fs=FS, seed=0, scale=1.0):
    """Twelve different spiky signals, about one beat a second, in float32 mV."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * fs)) / fs
    phase = (t + rng.uniform(0, 1)) % 0.9
    height = rng.uniform(-1.5, 2.5, (12, 1))
    wave = height * np.exp(-(((phase - 0.4) / 0.02) ** 2)) + 0.2 * np.exp(-(((phase - 0.65) / 0.05) ** 2))
    return (scale * (wave + rng.normal(0, 0.01, (12, len(t))))).astype(np.float32)


def drawn(fig):
    fig.draw_without_rendering()
    return fig


def lines(fig, gid):
    return [line for ax in fig.axes for line in ax.lines if line.get_gid() == gid]


def spans(fig, gid):
    """Shaded spans as an array (spans, 2) of start and stop in seconds."""
    boxes = [p for ax in fig.axes for p in ax.patches if p.get_gid() == gid]
    return np.array([(p.get_x(), p.get_x() + p.get_width()) for p in boxes]).reshape(-1, 2)


def boxes_overlap(a, b):
    return a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1


def texts(ax):
    return [t for t in (*ax.texts, ax.title, ax._left_title, ax.xaxis.label) if t.get_text()]


def assert_page(fig):
    """Nothing leaves the figure, no text meets another text or a trace, no trace meets the next row."""
    drawn(fig)
    ax = fig.axes[0]
    tight, figure = fig.get_tightbbox(), fig.bbox_inches
    assert tight.x0 >= -0.01 and tight.y0 >= -0.01 and tight.x1 <= figure.x1 + 0.01 and tight.y1 <= figure.y1 + 0.01
    boxes = [t.get_window_extent() for t in texts(ax)]
    for a, b in itertools.combinations(boxes, 2):
        assert not boxes_overlap(a, b)
    paper = ax.get_window_extent()
    for line in ax.lines:
        vertices = ax.transData.transform(line.get_xydata())
        where = np.arange(0, len(vertices) - 1 + 1e-9, 0.1)  # between the samples too: an R wave is steep
        points = np.stack([np.interp(where, np.arange(len(vertices)), column) for column in vertices.T], axis=1)
        assert (points >= paper.min - 0.5).all() and (points <= paper.max + 0.5).all(), "a trace leaves the paper"
        for box in boxes:
            inside = (points > box.min + 1) & (points < box.max - 1)
            assert not inside.all(axis=1).any(), "a trace runs through a label"


def units_everywhere(fig):
    for ax in fig.axes:
        if not ax.get_visible() or not (ax.xaxis.get_visible() or ax.yaxis.get_visible()):
            continue
        yield ax.get_xlabel(), ax.get_ylabel()


def scored(labels, models, key="label"):
    rng = np.random.default_rng(1)
    rows = [(x, 10 + i, m, rng.uniform(0.6, 0.95)) for i, x in enumerate(labels) for m in models]
    table = pd.DataFrame(rows, columns=[key, "n", "model", "value"])
    return table.assign(low=table["value"] - 0.03, high=table["value"] + 0.02)


# --- ECG paper


@pytest.mark.parametrize("fs", [100, 500])
def test_paper_has_25_mm_per_second_and_10_mm_per_millivolt(fs):
    ax = drawn(plots.ecg(beats(fs=fs), fs)).axes[0]
    (x0, y0), (x1, _), (_, y1) = ax.transData.transform([(0, 0), (1, 0), (0, 2.5)])
    assert x1 - x0 == pytest.approx(y1 - y0, rel=1e-3)
    assert "25 mm/s" in ax.get_xlabel() and "10 mm/mV" in ax.get_xlabel()
    minor, major = ({round(p[0][0] / 0.04) for p in c.get_segments() if p[0][0] == p[1][0]} for c in ax.collections)
    assert np.ptp(list(minor)) + 1 == len(minor) and {x % 5 for x in major} == {0} and major < minor


def test_page_fills_the_width_of_the_column():
    fig = drawn(plots.ecg(beats(), FS, title="A title"))
    assert fig.get_figwidth() == plots.WIDTH
    assert fig.axes[0].get_position().width > 0.96
    assert fig.get_tightbbox().height > 0.95 * fig.get_figheight()


def test_calibration_pulse_is_one_millivolt_for_a_fifth_of_a_second():
    pulses = lines(plots.ecg(beats(), FS), "calibration")
    assert len(pulses) == 4
    for pulse in pulses:
        x, y = pulse.get_data()
        assert np.ptp(y) == 1 and np.ptp(x[y == y.max()]) == pytest.approx(0.2) and x.max() <= 0


def test_every_trace_shows_its_part_of_its_lead():
    signal = beats()
    fig = plots.ecg(signal, FS)
    for i, lead in enumerate(LEADS):
        found = lines(fig, lead)
        assert len(found) == (2 if lead == "II" else 1)
        x, y = found[0].get_data()
        start = (i // 3) * 250
        np.testing.assert_allclose(x, np.arange(start, start + 250) / FS)
        base = y - signal[i, start : start + 250]
        np.testing.assert_allclose(base, base[0], atol=1e-5)
    x, y = lines(fig, "II")[1].get_data()
    assert len(x) == 1000
    np.testing.assert_allclose(y - y[0], signal[1] - signal[1, 0], atol=1e-5)


def test_leads_of_a_row_share_a_baseline_and_rows_lie_on_whole_squares():
    signal = beats()
    fig = plots.ecg(signal, FS)
    base = [lines(fig, lead)[0].get_ydata()[0] - signal[i, (i // 3) * 250] for i, lead in enumerate(LEADS)]
    grid = np.array(base).reshape(4, 3)
    np.testing.assert_allclose(grid, grid[:1].repeat(4, axis=0), atol=1e-5)
    np.testing.assert_allclose(grid * 2, np.round(grid * 2), atol=1e-5)
    assert (np.diff(grid[0]) < 0).all()


@pytest.mark.parametrize("scale", [0.1, 4])
def test_nothing_is_clipped_or_overlaps(scale):
    assert_page(plots.ecg(beats(scale=scale), FS, title="Twelve leads"))


def test_rows_never_touch():
    signal = beats(scale=3)
    fig = plots.ecg(signal, FS)
    rows = [np.concatenate([lines(fig, lead)[0].get_ydata() for lead in LEADS[row::3]]) for row in range(3)]
    assert (np.diff([*rows, lines(fig, "II")[1].get_ydata()], axis=0) < 0).all()


@pytest.mark.parametrize("how", ["mask", "zero"])
def test_missing_lead_is_a_dashed_line_with_a_note(how):
    signal, mask = beats(), np.ones(12, dtype=bool)
    mask[3] = False
    signal[3] = 0
    fig = plots.ecg(signal, FS, lead_mask=mask if how == "mask" else None)
    assert_page(fig)
    (line,) = lines(fig, "aVR")
    assert line.get_linestyle() == "--" and np.ptp(line.get_ydata()) == 0 and line.get_color() == plots.GREY
    assert [t.get_text() for t in fig.axes[0].texts if "missing" in t.get_text()] == ["aVR missing"]
    assert all(line.get_linestyle() == "-" for lead in LEADS if lead != "aVR" for line in lines(fig, lead))


def test_page_holds_ten_seconds_and_shorter_records_are_whole():
    x = [line.get_xdata().max() for line in lines(plots.ecg(beats(15), FS), "II")]
    assert max(x) == pytest.approx(9.99)
    fig = plots.ecg(beats(7), FS)
    assert_page(fig)
    assert lines(fig, "V6")[0].get_xdata().max() == pytest.approx(6.99)


def test_figures_do_not_pile_up():
    before = plt.get_fignums()
    plots.ecg(beats(), FS)
    assert plt.get_fignums() == before


def test_superclasses_show_each_class_and_lead():
    signals = {name: beats(seed=k) for k, name in enumerate(["Normal", "Infarction", "ST-T change"])}
    fig = plots.superclasses(signals, FS, leads=("II", "V2", "v5"))
    assert_page(fig)
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(signals)
    for lead, i in (("II", 1), ("V2", 7), ("V5", 10)):
        for line, signal, base in zip(lines(fig, lead), signals.values(), ax.get_yticks(), strict=True):
            np.testing.assert_allclose(line.get_ydata() - base, signal[i, :250], atol=1e-5)


def test_real_records_fit_their_page(real_data):
    folder = real_data / "ptb-xl" / "records100" / "00000"
    files = sorted(folder.glob("*.dat"))[:200]
    if not files:
        pytest.skip("no PTB-XL records unpacked")
    signals = sorted((np.fromfile(f, dtype="<i2").reshape(1000, 12).T.astype(np.float32) / 1000 for f in files), key=np.ptp)
    for signal in (signals[0], signals[len(signals) // 2], signals[-1]):
        assert_page(plots.ecg(signal, FS, title="A record"))


# --- figures of the model


@pytest.mark.parametrize("leads", [None, ("II", "V2")])
def test_reconstruction_shades_and_colours_exactly_the_hidden_patches(leads):
    original, guess = beats(), beats(seed=1)
    hidden = np.zeros(40, dtype=bool)
    hidden[[0, 1, 7, 20, 21, 22, 39]] = True
    fig = drawn(plots.reconstruction(original, guess, hidden, FS, leads=leads))
    np.testing.assert_allclose(spans(fig, "hidden"), [(0, 0.5), (1.75, 2), (5, 5.75), (9.75, 10)])
    inside = np.repeat(hidden, 25)
    for lead in leads or LEADS:
        i = LEADS.index(lead)
        (true,), (made,) = lines(fig, f"{lead} original"), lines(fig, f"{lead} reconstructed")
        base = true.get_ydata()[0] - original[i, 0]
        np.testing.assert_allclose(true.get_ydata() - base, original[i], atol=1e-5)
        np.testing.assert_array_equal(np.isfinite(made.get_ydata()), inside)
        np.testing.assert_allclose((made.get_ydata() - base)[inside], guess[i, inside], atol=1e-5)
        assert made.get_color() in plots.OKABE_ITO and made.get_color() != true.get_color()
    ax = fig.axes[0]
    assert ax.get_xlabel() == "Time (s)" and "mV" in ax.get_ylabel() and ax.get_xlim() == (0, 10)
    (bar,) = lines(fig, "scale bar")
    assert np.ptp(bar.get_ydata()) == 1
    assert fig.legends[0].get_window_extent().y0 >= ax.get_window_extent().y1, "the legend lies outside the axes"
    assert [t.get_text() for t in ax.get_yticklabels()] == list(leads or LEADS)


def test_tokens_are_shaded_in_turn_and_numbered():
    signal = beats(5)[1]
    fig = drawn(plots.tokens(signal, 25, FS))
    starts = np.arange(0, 20, 2) * 0.25
    np.testing.assert_allclose(spans(fig, "even token"), np.stack([starts, starts + 0.25], axis=1))
    ax = fig.axes[0]
    np.testing.assert_allclose(lines(fig, "trace")[0].get_ydata(), signal, atol=1e-6)
    (numbers,) = ax.child_axes
    shown = {int(t.get_text()): t.get_window_extent() for t in numbers.get_xticklabels()}
    assert list(shown) == list(range(20))
    for k, box in shown.items():
        middle = ax.transData.transform(((k + 0.5) * 0.25, 0))[0]
        assert (box.x0 + box.x1) / 2 == pytest.approx(middle, abs=1)
    assert not any(boxes_overlap(a, b) for a, b in itertools.combinations(shown.values(), 2))
    assert "250 ms" in numbers.get_xlabel() and ax.get_xlabel() == "Time (s)" and "mV" in ax.get_ylabel()
    assert len(lines(plots.tokens(beats(), 25, FS), "trace")) == 12


@pytest.mark.parametrize("patch", [5, 10, 25, 50])
def test_token_numbers_do_not_overlap(patch):
    fig = drawn(plots.tokens(beats()[0], patch, FS))
    boxes = [t.get_window_extent() for t in fig.axes[0].child_axes[0].get_xticklabels()]
    assert len(boxes) >= 10
    assert not any(boxes_overlap(a, b) for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("heads", [None, 1, 6])
def test_attention_colours_every_patch_of_every_head(heads):
    weights = np.random.default_rng(0).dirichlet(np.ones(40), heads)
    trace = beats()[1]
    fig = drawn(plots.attention(trace, weights, FS, title="Lead II"))
    rows = [ax for ax in fig.axes if lines(fig, "trace") and ax.lines]
    assert len(rows) == (heads or 1)
    for ax, row in zip(rows, np.atleast_2d(weights), strict=True):
        (image,) = ax.images
        np.testing.assert_allclose(image.get_array()[0], row)
        assert image.get_extent()[:2] == [0, 10] and image.get_clim() == (0, weights.max())
        np.testing.assert_allclose(ax.lines[0].get_ydata(), trace, atol=1e-6)
        assert "mV" in ax.get_ylabel()
    assert rows[-1].get_xlabel() == "Time (s)"
    assert any(ax.get_ylabel() == "Attention weight" for ax in fig.axes)


def test_positions_show_codes_and_cosine_similarity():
    pos = np.random.default_rng(0).normal(size=(20, 8))
    fig = plots.positions(pos)
    codes, alike = (ax.images[0].get_array() for ax in fig.axes[:2])
    np.testing.assert_allclose(codes, pos)
    expected = [[a @ b / np.sqrt((a @ a) * (b @ b)) for b in pos] for a in pos]
    np.testing.assert_allclose(alike, expected, atol=1e-12)
    assert all(x and y for x, y in units_everywhere(fig) if "imilarity" not in x and x != "Value")


# --- figures of training and results


def test_curves_draw_each_column_without_its_gaps():
    log = pd.DataFrame(
        {"step": [10, 20, 30], "loss": [3.0, 2.0, 1.0], "val_loss": [np.nan, 2.5, 1.5], "lr": [1e-3, 2e-3, 1e-3], "tag": list("abc")}
    )
    fig = plots.curves(log)
    assert [ax.get_ylabel() for ax in fig.axes if ax.get_visible()] == ["loss", "val_loss", "Learning rate"]
    fig = plots.curves(log, names={"loss": "Loss (1)", "val_loss": "Loss (1)", "lr": "Learning rate (1)"})
    top, rate = fig.axes
    np.testing.assert_array_equal(top.lines[0].get_xydata(), log[["step", "loss"]])
    np.testing.assert_array_equal(top.lines[1].get_xydata(), [(20, 2.5), (30, 1.5)])
    assert top.lines[0].get_color() != top.lines[1].get_color() and len(top.get_legend().get_texts()) == 2
    assert rate.get_xlabel() == "Training step" and rate.get_ylabel() == "Learning rate (1)"
    assert plots.curves(log.rename(columns={"step": "epoch"})).axes[1].get_xlabel() == "Epoch"


def test_label_forest_sorts_grows_and_draws_every_interval():
    table = scored([f"L{i}" for i in range(71)], ["random", "CR-MAE"])
    fig = drawn(plots.label_forest(table))
    ax = fig.axes[0]
    best = table[table["model"] == "CR-MAE"].sort_values("value", ascending=False)
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"{x} ({n})" for x, n in zip(best["label"], best["n"], strict=True)]
    np.testing.assert_allclose(lines(fig, "CR-MAE")[0].get_xdata(), best["value"])
    whiskers = [np.array(c.get_segments())[:, :, 0] for c in ax.collections]
    np.testing.assert_allclose(whiskers[1], best[["low", "high"]])
    names = [t.get_window_extent() for t in ax.get_yticklabels()]
    assert not any(boxes_overlap(a, b) for a, b in itertools.pairwise(names))
    assert fig.get_figheight() > 3 * plots.label_forest(scored(list("abcde"), ["x", "y"])).get_figheight()
    assert "AUROC" in ax.get_xlabel() and "95 %" in ax.get_xlabel() and ax.get_ylabel()


def test_undefined_label_keeps_its_row_at_the_end():
    table = scored(["a", "b", "c"], ["x", "y"])
    table.loc[table["label"] == "a", ["value", "low", "high"]] = np.nan
    assert plots.label_forest(table).axes[0].get_yticklabels()[-1].get_text().startswith("a ")


@pytest.mark.parametrize("shift", [-0.7, 0.2])
def test_gain_shows_zero(shift):
    table = scored(list("abcdef"), ["CR-MAE minus random"])
    table[["value", "low", "high"]] += shift
    fig = plots.label_forest(table, gain=True)
    ax = fig.axes[0]
    assert ax.get_xlim()[0] <= 0 <= ax.get_xlim()[1]
    assert list(lines(fig, "reference")[0].get_xdata()) == [0, 0]
    assert ax.get_xlabel().startswith("Difference in AUROC") and ax.get_title(loc="left") == "CR-MAE minus random"


def test_chance_is_marked_only_for_auroc():
    table = scored(["a", "b"], ["x", "y"])
    table["low"] = 0.4
    assert list(lines(plots.label_forest(table), "reference")[0].get_xdata()) == [0.5, 0.5]
    assert not lines(plots.comparison(table.rename(columns={"label": "task"}), metric="F1"), "reference")


def test_comparison_keeps_the_order_of_the_table():
    fig = drawn(plots.comparison(scored(["super", "all"], ["random", "CR-MAE", "xresnet"], key="task")))
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["super", "all"]
    dots = [lines(fig, m)[0] for m in ("random", "CR-MAE", "xresnet")]
    assert len({d.get_marker() for d in dots}) == len({d.get_color() for d in dots}) == 3
    heights = np.concatenate([d.get_ydata() for d in dots])
    assert len(np.unique(heights)) == 6 and (np.abs(heights - np.round(heights)) < 0.5).all()
    assert "Macro AUROC" in ax.get_xlabel()


def test_spectra_find_the_mains_hum_where_it_is():
    t = np.arange(5000) / 500
    clean = np.sin(2 * np.pi * 5 * t)
    fig = plots.spectra(clean + 0.5 * np.sin(2 * np.pi * 50 * t), clean[::5], 500, 100)
    upper, lower = fig.axes
    raw, prepared = (line.get_xydata() for line in lower.lines)
    assert raw[raw[:, 0] > 20][raw[raw[:, 0] > 20][:, 1].argmax(), 0] == pytest.approx(50, abs=0.2)
    assert prepared[prepared[:, 1].argmax(), 0] == pytest.approx(5, abs=0.2) and prepared[:, 0].max() <= 50
    width = raw[1, 0] - raw[0, 0]
    assert raw[:, 1].sum() * width == pytest.approx(0.5 + 0.125, rel=0.02), "the area under the density is the power in mV²"
    assert [line.get_xdata().max() for line in upper.lines] == pytest.approx([9.998, 9.99])
    assert (lower.get_xlabel(), upper.get_xlabel(), upper.get_ylabel()) == ("Frequency (Hz)", "Time (s)", "Amplitude (mV)")
    assert "mV²/Hz" in lower.get_ylabel()


# --- style and bad input


def every_figure():
    signal, weights = beats(), np.full((2, 40), 0.025)
    log = pd.DataFrame({"epoch": [1, 2, 3], "loss": [3.0, 2, 1], "lr": [1.0, 2, 1]})
    yield "superclasses", plots.superclasses({"Normal": signal, "Infarction": signal}, FS)
    yield "reconstruction", plots.reconstruction(signal, signal, np.arange(40) % 2 == 0, FS)
    yield "one lead", plots.reconstruction(signal, signal, np.arange(40) % 2 == 0, FS, leads=["II"])
    yield "tokens", plots.tokens(signal[0], 25, FS)
    yield "tokens of 12 leads", plots.tokens(signal, 25, FS)
    yield "attention", plots.attention(signal[0], weights, FS)
    yield "positions", plots.positions(np.eye(10))
    yield "curves", plots.curves(log)
    yield "forest", plots.label_forest(scored([f"L{i}" for i in range(30)], ["x", "y"]))
    yield "two labels", plots.label_forest(scored(["a", "b"], ["x", "y", "z"]))
    yield "gain", plots.label_forest(scored(["a", "b", "c"], ["x"]), gain=True)
    yield "comparison", plots.comparison(scored(["all", "super"], ["x", "y"], key="task"))
    yield "spectra", plots.spectra(signal[0], signal[0], FS, FS)


def test_every_figure_fits_the_column_and_is_readable():
    for name, fig in every_figure():
        drawn(fig)
        tight, figure = fig.get_tightbbox(), fig.bbox_inches
        assert fig.get_figwidth() == plots.WIDTH, name
        assert tight.x0 >= -0.01 and tight.y0 >= -0.01 and tight.x1 <= figure.x1 + 0.01 and tight.y1 <= figure.y1 + 0.01, name
        sizes = [t.get_fontsize() for t in fig.findobj(matplotlib.text.Text) if t.get_text() and t.get_visible()]
        assert min(sizes) >= 8, name
        assert to_hex(fig.get_facecolor()) == "#ffffff", name
        assert all(x or y for x, y in units_everywhere(fig)), name


def test_palette_is_okabe_ito():
    published = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}
    assert {c.lower() for c in plots.OKABE_ITO} == published
    assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(plots.OKABE_ITO)
    assert (matplotlib.rcParams["figure.dpi"], matplotlib.rcParams["savefig.dpi"]) == (110, 160)
    fig = plots.label_forest(scored(["a", "b"], ["x", "y", "z"]))
    assert [lines(fig, m)[0].get_color() for m in "xyz"] == list(plots.OKABE_ITO[:3])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda s: plots.ecg(s[:8], FS), r"\(8, 1000\)"),
        (lambda s: plots.ecg(s, 0), "0 Hz"),
        (lambda s: plots.ecg(np.where(s > 0.1, np.nan, s), FS), "not finite"),
        (lambda s: plots.ecg(s, FS, lead_mask=[True]), "lead mask"),
        (lambda s: plots.superclasses({"Normal": s}, FS, leads=("II", "X9")), "X9"),
        (lambda s: plots.reconstruction(s, s, np.ones(33, bool), FS), "33 equal patches"),
        (lambda s: plots.reconstruction(s, s[:, :500], np.ones(20, bool), FS), "do not fit"),
        (lambda s: plots.tokens(s[0], 30, FS), "patches of 30"),
        (lambda s: plots.attention(s[0], np.ones((2, 2, 40)), FS), "attention weights"),
        (lambda s: plots.attention(s, np.ones((2, 40)), FS), r"give \(samples,\)"),
        (lambda s: plots.positions(np.ones(4)), "position codes"),
        (lambda s: plots.curves(pd.DataFrame({"loss": [1.0]})), "neither a column step nor epoch"),
        (lambda s: plots.curves(pd.DataFrame({"step": [1]}), names={"loss": "Loss (1)"}), "lacks the column loss"),
        (lambda s: plots.label_forest(scored(["a"], ["x"]).drop(columns="n")), "lacks the column n"),
        (lambda s: plots.comparison(scored(["a", "a"], ["x"], key="task")), "more than one row for a and model x"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, message):
    with pytest.raises(CremaError, match=message):
        call(beats())
