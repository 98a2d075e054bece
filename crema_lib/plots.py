"""The figures of the book: pure functions of arrays and tables that return a matplotlib Figure.

One style: as wide as the text column, colours of Okabe and Ito (2008) that colour-blind readers can tell apart, a unit on every axis.
Signals are float mV arrays, twelve leads in the order of `crema_lib.leads.LEADS`; times are seconds.
"""

import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.ndimage import maximum_filter1d
from scipy.signal import welch

from .errors import CremaError
from .leads import LEADS, lead_index

WIDTH = 7.2  # inches: the text column of the book
# Okabe & Ito 2008; yellow and black go last because yellow is faint on white and black is the colour of the traces
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
BLUE, VERMILLION = OKABE_ITO[:2]
INK, GREY, SHADE = "#1a1a1a", "#6b6b6b", "#e3e3e3"
PAPER, PAPER_DARK = "#fae3e3", "#eebcbc"  # 1 mm and 5 mm lines
MARKERS = "osD^vPX*"
LAYOUTS = {"3x4+1": (3, 4), "6x2": (6, 2), "12x1": (12, 1)}  # rows, columns
PAGE_SECONDS = 10
CHANCE = {"AUROC": 0.5, "Macro AUROC": 0.5}
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.2,
    "grid.color": SHADE,
    "axes.axisbelow": True,
    "axes.prop_cycle": mpl.cycler(color=OKABE_ITO),
    "svg.fonttype": "none",
}


def use_style():
    """Set the style of the book for this process; in a notebook also ask for images of double resolution."""
    mpl.rcParams.update(STYLE)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")


def _figure(height, width=WIDTH):
    """A figure that pyplot has forgotten: a notebook then shows it once, as the value of its cell, and nothing piles up in memory."""
    fig = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(fig)
    return fig


def _signal(signal, fs, leads=12):
    signal = np.asarray(signal, dtype=float)
    shape = f"({leads}, samples)" if leads > 1 else "(samples,)"
    if signal.shape[:-1] != ((leads,) if leads > 1 else ()) or signal.shape[-1:] in ((), (0,)):
        raise CremaError(f"a signal of shape {signal.shape} cannot be drawn: give {shape} in mV")
    if not fs > 0:
        raise CremaError(f"a sampling rate of {fs} Hz is impossible: give a positive number")
    if not np.isfinite(signal).all():
        raise CremaError("the signal holds values that are not finite: set missing leads to zero and mark them in the lead mask")
    return signal


def _patch_samples(samples, n_patches):
    if n_patches < 1 or samples % n_patches:
        raise CremaError(f"{samples} samples cannot be cut into {n_patches} equal patches: crop the signal to a whole number of patches")
    return samples // n_patches


def _columns(table, needed):
    absent = [c for c in needed if c not in table]
    if absent:
        raise CremaError(f"the table lacks the column {', '.join(absent)}: it has {', '.join(map(str, table.columns))}")


def _baselines(upper, lower, least, step):
    """Heights (rows,) in mV of stacked traces, first row at 0, such that no row touches the one above at any moment.

    upper, lower: (rows, samples) envelopes in mV around each row's own zero. Distances are multiples of `step`, at least `least`.
    """
    need = (upper[1:] - lower[:-1]).max(axis=1, initial=-np.inf) + 0.1
    return -np.concatenate([[0], np.cumsum(np.maximum(least, np.ceil(need / step) * step))])


def _envelope(signal, fs):
    """Running maximum and minimum over 0.2 s: a steep R wave is kept clear of its neighbour sideways too."""
    size = max(1, round(0.2 * fs))
    return maximum_filter1d(signal, size, axis=-1), -maximum_filter1d(-signal, size, axis=-1)


def _paper(ax, rows, fs):
    """Draw rows of leads on ECG paper, 25 mm/s and 10 mm/mV, with a calibration pulse before each row.

    rows: list of rows, each a list of (name, start sample on the page, trace (samples,) in mV or None and its length).
    Returns the paper's size (width, height) in mm and the rows' baselines in mV. Lines carry the lead name as gid.
    """
    length = max(start + n for row in rows for _, start, _, n in row)
    left, right = -0.4, np.ceil(round(length / fs / 0.2, 6)) * 0.2 + 0.2
    inches = ax.figure.get_figwidth() * ax.get_position().width
    text_mv = 1.2 * mpl.rcParams["font.size"] / 72 / inches * (right - left) * 2.5  # height of a lead name, in mV of paper
    trace, labels = np.zeros((len(rows), length)), []
    for r, row in enumerate(rows):
        for _, start, y, n in row:
            if y is not None:
                trace[r, start : start + n] = y
    upper, lower = _envelope(trace, fs)
    for r, row in enumerate(rows):
        for name, start, y, n in row:
            note = name if y is not None else f"{name} missing"
            under = slice(start, start + min(n, round((0.05 + 0.24 * text_mv * len(note)) * fs)))  # a letter is 0.6 of its height wide
            foot = max(0.25, trace[r, under].max() + 0.1)
            upper[r, under] = np.maximum(upper[r, under], foot + text_mv)
            labels.append((r, start, foot, note, INK if y is not None else GREY))
    base = _baselines(upper, lower, least=2, step=0.5)
    top = max(1.5, np.ceil((upper[0].max() + 0.1) / 0.5) * 0.5)
    bottom = np.floor((base[-1] + lower[-1].min() - 0.1) / 0.5) * 0.5

    for step, colour, width in ((0.04, PAPER, 0.4), (0.2, PAPER_DARK, 0.6)):
        xs, ys = np.arange(round(left / step), round(right / step) + 1) * step, np.arange(bottom, top + 1e-6, step * 2.5)
        lines = [[(x, bottom), (x, top)] for x in xs] + [[(left, y), (right, y)] for y in ys]
        ax.add_collection(LineCollection(lines, colors=colour, linewidths=width, zorder=0, gid=f"grid {step}"))
    for r, row in enumerate(rows):
        ax.plot([-0.32, -0.26, -0.26, -0.06, -0.06, 0], base[r] + np.array([0, 0, 1, 1, 0, 0]), color=GREY, lw=0.9, gid="calibration")
        for name, start, y, n in row:
            t = (start + np.arange(n)) / fs
            look = dict(color=INK, lw=0.9) if y is not None else dict(color=GREY, lw=0.9, ls="--")
            ax.plot(t, base[r] + (y if y is not None else np.zeros(n)), gid=name, solid_joinstyle="round", **look)
            if start:
                ax.plot([start / fs] * 2, base[r] + np.array([-0.25, 0.25]), color=GREY, lw=0.9, gid="separator")
    for r, start, foot, note, colour in labels:
        ax.text(start / fs + 0.05, base[r] + foot, note, va="bottom", ha="left", color=colour, fontweight="bold")
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect=0.4)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("25 mm/s, 10 mm/mV (small square: 0.04 s, 0.1 mV)", loc="left", fontsize=9, color=GREY)
    return ((right - left) * 25, (top - bottom) * 10), base


def _fit(ax, size):
    """Make the figure as high as paper of this size (width, height) needs at the width that labels and titles leave it."""
    fig = ax.figure
    ax.set_aspect("auto")  # the layout engine measures labels and titles right only where the axes fill their place
    fig.draw_without_rendering()
    box = ax.get_position()
    ax.set_aspect(0.4)
    fig.set_figheight(fig.get_figheight() * (1 - box.height) + fig.get_figwidth() * box.width * size[1] / size[0])


def ecg(signal, fs, *, title=None, lead_mask=None, layout="3x4+1", ax=None):
    """A page of ECG paper at 25 mm/s and 10 mm/mV in true proportion.

    Args:
        signal: (12, samples) mV; at most the first 10 s are drawn.
        fs: sampling rate in Hz.
        lead_mask: bool (12,), True where a lead is present; by default the leads that are not all zero.
        layout: "3x4+1" (four columns of 2.5 s and lead II as rhythm strip), "6x2" or "12x1" (rows x columns).
        ax: axes to draw on; by default a new figure that is as high as the voltages need.

    Raises:
        CremaError: unknown layout, wrong shape, sampling rate or lead mask, values that are not finite.
    """
    signal = _signal(signal, fs)[:, : round(PAGE_SECONDS * fs)]
    present = signal.any(axis=1) if lead_mask is None else np.asarray(lead_mask, dtype=bool)
    if present.shape != (12,):
        raise CremaError(f"a lead mask of shape {present.shape} does not fit 12 leads: give one value per lead")
    if layout not in LAYOUTS:
        raise CremaError(f"unknown layout {layout!r}: known are {', '.join(LAYOUTS)}")
    n_rows, n_columns = LAYOUTS[layout]
    edges = np.linspace(0, signal.shape[1], n_columns + 1).round().astype(int)

    def cell(lead, start, stop):
        return LEADS[lead], start, signal[lead, start:stop] if present[lead] else None, stop - start

    rows = [[cell(r + n_rows * c, edges[c], edges[c + 1]) for c in range(n_columns)] for r in range(n_rows)]
    if layout == "3x4+1":
        rows.append([cell(1, 0, signal.shape[1])])
    own = ax is None
    ax = _figure(4).add_subplot() if own else ax
    size, _ = _paper(ax, rows, fs)
    if title:
        ax.set_title(title)
    if own:
        _fit(ax, size)
    return ax.figure


def superclasses(signals, fs, *, leads=("II", "V2", "V5"), seconds=2.5, title=None):
    """One example of each class on one sheet of ECG paper: a row per class, the same leads side by side.

    signals: dict from class name to (12, samples) mV; the first `seconds` are drawn. Raises CremaError for an unknown lead.
    """
    chosen, n = _chosen(leads), round(seconds * fs)
    rows = []
    for signal in signals.values():
        part = _signal(signal, fs)[:, :n]
        rows.append([(LEADS[i], k * n, part[i] if part[i].any() else None, part.shape[1]) for k, i in enumerate(chosen)])
    ax = _figure(4).add_subplot()
    size, base = _paper(ax, rows, fs)
    ax.set_yticks(base, list(signals))
    ax.tick_params(axis="y", length=0, labelsize=10)
    if title:
        ax.set_title(title)
    _fit(ax, size)
    return ax.figure


def _chosen(leads):
    chosen = [lead_index(lead) for lead in leads]
    if None in chosen or not chosen:
        raise CremaError(f"unknown lead among {', '.join(map(str, leads))}: known are {' '.join(LEADS)}")
    return chosen


def _spans(ax, mask, seconds, gid):
    """Shade the patches where mask (n_patches,) is true, neighbours as one span, without seams."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    for start, stop in edges.reshape(-1, 2):
        ax.axvspan(start * seconds, stop * seconds, color=SHADE, lw=0, zorder=0, gid=gid)


def _stack(ax, traces, fs, names):
    """Prepare axes for stacked traces (stacks, rows, samples): lead names as ticks, a 1 mV bar; returns the baselines in mV."""
    upper, lower = _envelope(np.max(traces, axis=0), fs)[0], _envelope(np.min(traces, axis=0), fs)[1]
    base = _baselines(upper, lower, least=1.0, step=0.25)
    seconds = upper.shape[1] / fs
    top, bottom = max(upper[0].max(), 0.4) + 0.1, base[-1] + min(lower[-1].min(), -0.4) - 0.1
    ax.set(xlim=(0, seconds), ylim=(bottom, top), xlabel="Time (s)", ylabel="Lead (bar: 1 mV)")
    ax.set_yticks(base, names)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    x = 1.015
    ax.plot([x, x], base[-1] + np.array([0, 1]), transform=ax.get_yaxis_transform(), clip_on=False, color=INK, lw=2, gid="scale bar")
    ax.text(x + 0.01, base[-1] + 0.5, "1 mV", transform=ax.get_yaxis_transform(), va="center", fontsize=9)
    ax.figure.set_figheight(np.clip(0.3 * (top - bottom), 2.2, 9) + 1)
    return base


def reconstruction(original, reconstructed, hidden, fs, *, leads=None):
    """What the model was shown, what was hidden, and what it drew there.

    Args:
        original, reconstructed: (12, samples) mV.
        hidden: bool (n_patches,), True where the patch was hidden from the encoder; patches divide the samples evenly.
        fs: sampling rate in Hz.
        leads: names of the leads to draw, default all twelve.
    """
    original, reconstructed, hidden = _signal(original, fs), _signal(reconstructed, fs), np.asarray(hidden, dtype=bool)
    if original.shape != reconstructed.shape or hidden.ndim != 1:
        raise CremaError(f"original {original.shape}, reconstruction {reconstructed.shape} and hidden patches {hidden.shape} do not fit")
    patch = _patch_samples(original.shape[1], len(hidden))
    chosen = _chosen(LEADS if leads is None else leads)
    original, inside = original[chosen], np.repeat(hidden, patch)
    drawn = np.where(inside, reconstructed[chosen], np.nan)
    fig = _figure(4)
    ax = fig.add_subplot()
    base = _stack(ax, [original, np.where(inside, drawn, original)], fs, [LEADS[i] for i in chosen])
    _spans(ax, hidden, patch / fs, "hidden")
    t = np.arange(original.shape[1]) / fs
    for b, i, true, guess in zip(base, chosen, original, drawn, strict=True):
        ax.plot(t, b + true, color=INK, lw=0.8, gid=f"{LEADS[i]} original")
        ax.plot(t, b + guess, color=VERMILLION, lw=1.5, gid=f"{LEADS[i]} reconstructed")
    keys = [Line2D([], [], color=INK, lw=0.8), Line2D([], [], color=VERMILLION, lw=1.5), Patch(color=SHADE)]
    fig.legend(keys, ["Original", "Reconstruction", "Hidden from the encoder"], loc="outside upper center", ncols=3)
    return fig


def tokens(signal, patch, fs):
    """How a signal is cut into patches, each of which becomes one token: alternate shading, numbers on top.

    signal: (samples,) or (12, samples) mV; patch: samples per patch; fs: Hz. Numbers start at 0, as in the code.
    """
    signal = np.asarray(signal, dtype=float)
    signal = _signal(signal, fs, leads=1 if signal.ndim == 1 else 12)
    if patch < 1 or signal.shape[-1] % patch:
        raise CremaError(f"{signal.shape[-1]} samples cannot be cut into patches of {patch}: crop the signal to a whole number of patches")
    n = signal.shape[-1] // patch
    fig = _figure(2.4)
    ax = fig.add_subplot()
    _spans(ax, np.arange(n) % 2 == 0, patch / fs, "even token")
    t = np.arange(signal.shape[-1]) / fs
    if signal.ndim == 1:
        ax.plot(t, signal, color=BLUE, gid="trace")
        ax.set(xlim=(0, n * patch / fs), xlabel="Time (s)", ylabel="Amplitude (mV)")
    else:
        base = _stack(ax, [signal], fs, LEADS)
        ax.plot(t, (base[:, None] + signal).T, color=BLUE, lw=0.9, gid="trace")
    numbers = ax.secondary_xaxis("top", functions=(lambda s: s * fs / patch - 0.5, lambda k: (k + 0.5) * patch / fs))
    every = next(k for k in (1, 2, 5, 10, 20, 50, 100, n) if n / k <= 25 or k == n)  # about as many numbers as fit side by side
    numbers.set_ticks(np.arange(0, n, every))
    numbers.tick_params(length=0)
    numbers.spines["top"].set_visible(False)
    numbers.set_xlabel(f"Token number (one token: {patch} samples, {1000 * patch / fs:g} ms)")
    return fig


def attention(trace, weights, fs, *, title=None):
    """Attention weights as the background of one lead's trace, one row per head, one colour scale for all.

    trace: (samples,) mV; weights: (heads, n_patches) or (n_patches,), not negative; fs: Hz.
    """
    trace, weights = _signal(trace, fs, leads=1), np.atleast_2d(np.asarray(weights, dtype=float))
    if weights.ndim != 2:
        raise CremaError(f"attention weights of shape {weights.shape} cannot be drawn: give (heads, n_patches)")
    _patch_samples(len(trace), weights.shape[1])
    heads, seconds = len(weights), len(trace) / fs
    fig = _figure(0.85 * heads + 1.1)
    axes = fig.subplots(heads, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    low, high = trace.min(), trace.max()
    pad = 0.08 * (high - low) or 0.1
    colours = sns.light_palette(OKABE_ITO[3], as_cmap=True)
    for h, ax in enumerate(axes):
        strip = ax.imshow(
            weights[h : h + 1],
            extent=(0, seconds, low - pad, high + pad),
            aspect="auto",
            interpolation="nearest",
            cmap=colours,
            vmin=0,
            vmax=weights.max(),
        )
        ax.plot(np.arange(len(trace)) / fs, trace, color=INK, lw=0.9, gid="trace")
        ax.set(xlim=(0, seconds), ylim=(low - pad, high + pad), ylabel=f"Head {h + 1}\n(mV)" if heads > 1 else "Amplitude (mV)")
    axes[-1].set_xlabel("Time (s)")
    fig.colorbar(strip, ax=axes, label="Attention weight", pad=0.015, aspect=max(12, 8 * heads), fraction=0.05)
    if title:
        axes[0].set_title(title)
    return fig


def positions(pos):
    """Position codes (n_patches, width) as a heat map, and the cosine similarity of every pair of positions beside it."""
    pos = np.asarray(pos, dtype=float)
    if pos.ndim != 2:
        raise CremaError(f"position codes of shape {pos.shape} cannot be drawn: give (n_patches, width)")
    unit = pos / np.maximum(np.linalg.norm(pos, axis=1, keepdims=True), 1e-12)
    fig = _figure(3.6)
    left, right = fig.subplots(1, 2)
    limit = np.abs(pos).max()
    look = dict(cmap="RdBu_r", interpolation="nearest", aspect="auto")
    codes = left.imshow(pos, vmin=-limit, vmax=limit, **look)
    alike = right.imshow(unit @ unit.T, vmin=-1, vmax=1, **look)
    left.set(title="Codes", xlabel="Dimension (number)", ylabel="Position (patch number)")
    right.set(title="Similarity", xlabel="Position (patch number)", ylabel="Position (patch number)")
    fig.colorbar(codes, ax=left, label="Value", location="bottom", aspect=25)
    fig.colorbar(alike, ax=right, label="Cosine similarity", location="bottom", aspect=25)
    return fig


def curves(log, *, names=None):
    """Training curves against `step` or `epoch`, a panel per quantity.

    log: DataFrame with a column `step` or `epoch` (step wins) and one column per loss, learning rate or metric; gaps are left out.
    names: dict from column to axis label with its unit; columns with the same label share a panel (for example training and
        validation). Default: every numeric column under its own name.
    """
    time = next((c for c in ("step", "epoch") if c in log), None)
    if time is None:
        raise CremaError(f"the log has neither a column step nor epoch: it has {', '.join(map(str, log.columns))}")
    if names is None:
        names = {c: "Learning rate" if c == "lr" else c for c in log.select_dtypes("number") if c not in ("step", "epoch")}
    _columns(log, names)
    panels = list(dict.fromkeys(names.values()))
    if not panels:
        raise CremaError("the log holds no numeric column to draw")
    rows = -(-len(panels) // 2)
    fig = _figure(2.1 * rows + 0.4)
    axes = fig.subplots(rows, min(len(panels), 2), squeeze=False, sharex=True)
    for ax, panel in zip(axes.flat, panels, strict=False):
        mine = [c for c, name in names.items() if name == panel]
        for column, colour, style in zip(mine, OKABE_ITO, ("-", "--", ":", "-.") * 2, strict=False):
            points = log[[time, column]].dropna()
            marker = "o" if len(points) < 3 else None  # one point has no line
            ax.plot(points[time], points[column], color=colour, ls=style, marker=marker, label=column)
        ax.set_ylabel(panel)
        ax.grid(axis="y")
        ax.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
        if len(mine) > 1:
            ax.legend()
    for k, ax in enumerate(axes.flat):
        ax.set_visible(k < len(panels))
        if k + axes.shape[1] >= len(panels):
            ax.set_xlabel({"step": "Training step", "epoch": "Epoch"}[time])
            ax.tick_params(labelbottom=True)
    fig.align_ylabels()
    return fig


def _dots(ax, table, key, order):
    """A dot and its interval for each row of `order` and each model, models side by side within a row; returns (handles, models)."""
    twice = table[table.duplicated([key, "model"])]
    if len(twice):
        raise CremaError(f"the table has more than one row for {twice[key].iloc[0]} and model {twice['model'].iloc[0]}")
    models = list(table["model"].unique())
    handles = []
    for k, model in enumerate(models):
        rows = table[table["model"] == model].set_index(key).reindex(order)
        y = np.arange(len(order)) + (k - (len(models) - 1) / 2) * 0.7 / len(models)
        colour = OKABE_ITO[k % len(OKABE_ITO)]
        ax.hlines(y, rows["low"], rows["high"], color=colour, lw=1.4)
        handles += ax.plot(rows["value"], y, MARKERS[k % len(MARKERS)], color=colour, ms=4.5, ls="none", gid=str(model))
    for y in np.arange(len(order) - 1) + 0.5:
        ax.axhline(y, color=SHADE, lw=0.5, zorder=0)
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    return handles, models


def _legend_columns(models):
    return len(models) if sum(len(str(m)) + 6 for m in models) < 75 else 2  # what fits on one line of the column


def _reference_line(ax, x):
    """A dashed line for chance or no difference, if there is such a value (not None) and the axis shows it."""
    low, high = ax.get_xlim()
    if x is not None and low <= x <= high:
        ax.axvline(x, color=GREY, lw=1, ls="--", zorder=1, gid="reference")
        ax.set_xlim(low, high)


def label_forest(table, *, gain=False, metric="AUROC"):
    """A value with its 95 % interval for every label and model, best label of the last model on top.

    Args:
        table: columns label, n (positives), model, value, low, high, one row per label and model; undefined values (NaN) come last.
        gain: the values are paired differences: the axis says so and always shows zero.
        metric: name of the value on the axis.
    """
    _columns(table, ("label", "n", "model", "value", "low", "high"))
    last = table[table["model"] == table["model"].iloc[-1]]
    order = last.sort_values("value", ascending=False, na_position="last")["label"].tolist()
    order += [x for x in table["label"].unique() if x not in set(order)]
    count = table.drop_duplicates("label").set_index("label")["n"]
    fig = _figure(max(0.2, 0.09 * table["model"].nunique()) * len(order) + 1.2)
    ax = fig.add_subplot()
    handles, models = _dots(ax, table, "label", order)
    ax.set_yticks(range(len(order)), [f"{x} ({count[x]:,})" for x in order])
    ax.set(xlabel=f"{'Difference in ' if gain else ''}{metric} (95 % interval)", ylabel="Label (positives)")
    if gain:
        ax.update_datalim([(0, 0)])
        ax.autoscale_view(scaley=False)
    else:
        ax.set_xlim(right=min(1.01, ax.get_xlim()[1]))
    _reference_line(ax, 0 if gain else CHANCE.get(metric))
    if len(order) > 25:
        ax.tick_params(axis="x", top=True, labeltop=True)  # the bottom axis is a screen away
    if len(models) > 1:
        fig.legend(handles, models, loc="outside upper center", ncols=_legend_columns(models))
    elif gain:
        ax.set_title(models[0])
    return fig


def comparison(table, *, metric="Macro AUROC"):
    """A value with its 95 % interval for every task and model, in the table's order.

    table: columns task, model, value, low, high, one row per task and model.
    """
    _columns(table, ("task", "model", "value", "low", "high"))
    order = table["task"].drop_duplicates().tolist()
    n_models = table["model"].nunique()
    fig = _figure(max(0.5, 0.18 * n_models) * len(order) + 0.9 + 0.1 * n_models)
    ax = fig.add_subplot()
    handles, models = _dots(ax, table, "task", order)
    ax.set_yticks(range(len(order)), order)
    ax.set(xlabel=f"{metric} (95 % interval)", ylabel="Task")
    _reference_line(ax, CHANCE.get(metric))
    fig.legend(handles, models, loc="outside upper center", ncols=_legend_columns(models))
    return fig


def spectra(before, after, fs_before, fs_after):
    """What `prepare` does to one lead: the trace and its power spectrum (Welch 1967) before and after.

    before, after: (samples,) mV; fs_before, fs_after: Hz.
    """
    fig = _figure(4.8)
    upper, lower = fig.subplots(2, 1)
    for signal, fs, label, look in (
        (before, fs_before, f"As recorded, {fs_before:g} Hz", dict(color="#9a9a9a", lw=0.8)),
        (after, fs_after, f"Prepared, {fs_after:g} Hz", dict(color=BLUE, lw=1.2)),
    ):
        signal = _signal(signal, fs, leads=1)
        upper.plot(np.arange(len(signal)) / fs, signal, label=label, **look)
        frequency, power = welch(signal, fs, nperseg=min(len(signal), round(5 * fs)))
        lower.loglog(frequency[1:], power[1:], **look)  # a logarithmic axis has no place for 0 Hz
    upper.set(xlabel="Time (s)", ylabel="Amplitude (mV)")
    upper.margins(x=0)
    lower.set(xlabel="Frequency (Hz)", ylabel="Power density (mV²/Hz)")
    lower.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    lower.set_ylim(bottom=max(lower.get_ylim()[0], 1e-10))  # steps of 1 µV at 500 Hz alone give 3e-10: below lies nothing recorded
    lower.grid()
    fig.legend(loc="outside upper center", ncols=2)
    return fig
