"""ECG paper: 25 mm/s and 10 mm/mV in true proportion."""

import matplotlib as mpl
import numpy as np
from matplotlib.collections import LineCollection

from ..data.leads import LEADS
from ..errors import CremaError
from .style import GREY, INK, as_signal, baselines, envelope, lead_rows, new_figure

PAPER, PAPER_DARK = "#fae3e3", "#eebcbc"  # 1 mm and 5 mm lines
PAGE_SECONDS = 10


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
    upper, lower = envelope(trace, fs)
    for r, row in enumerate(rows):
        for name, start, y, n in row:
            note = name if y is not None else f"{name} missing"
            under = slice(start, start + min(n, round((0.05 + 0.24 * text_mv * len(note)) * fs)))  # a letter is 0.6 of its height wide
            foot = max(0.25, trace[r, under].max() + 0.1)
            upper[r, under] = np.maximum(upper[r, under], foot + text_mv)
            labels.append((r, start, foot, note, INK if y is not None else GREY))
    base = baselines(upper, lower, least=2, step=0.5)
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


def ecg(signal, fs, *, title=None, lead_mask=None):
    """A page of ECG paper at 25 mm/s and 10 mm/mV in true proportion: four columns of 2.5 s, and lead II as rhythm strip.

    Args:
        signal: (12, samples) mV; at most the first 10 s are drawn.
        fs: sampling rate in Hz.
        lead_mask: bool (12,), True where a lead is present; by default the leads that are not all zero.

    Raises:
        CremaError: wrong shape, sampling rate or lead mask, values that are not finite.
    """
    signal = as_signal(signal, fs)[:, : round(PAGE_SECONDS * fs)]
    present = signal.any(axis=1) if lead_mask is None else np.asarray(lead_mask, dtype=bool)
    if present.shape != (12,):
        raise CremaError(f"a lead mask of shape {present.shape} does not fit 12 leads: give one value per lead")
    edges = np.linspace(0, signal.shape[1], 5).round().astype(int)

    def cell(lead, start, stop):
        return LEADS[lead], start, signal[lead, start:stop] if present[lead] else None, stop - start

    rows = [[cell(r + 3 * c, edges[c], edges[c + 1]) for c in range(4)] for r in range(3)]
    rows.append([cell(1, 0, signal.shape[1])])
    ax = new_figure(4).add_subplot()
    size, _ = _paper(ax, rows, fs)
    if title:
        ax.set_title(title)
    _fit(ax, size)
    return ax.figure


def superclasses(signals, fs, *, leads=("II", "V2", "V5"), seconds=2.5):
    """One example of each class on one sheet of ECG paper: a row per class, the same leads side by side.

    signals: dict from class name to (12, samples) mV; the first `seconds` are drawn. Raises CremaError for an unknown lead.
    """
    chosen, n = lead_rows(leads), round(seconds * fs)
    rows = []
    for signal in signals.values():
        part = as_signal(signal, fs)[:, :n]
        rows.append([(LEADS[i], k * n, part[i] if part[i].any() else None, part.shape[1]) for k, i in enumerate(chosen)])
    ax = new_figure(4).add_subplot()
    size, base = _paper(ax, rows, fs)
    ax.set_yticks(base, list(signals))
    ax.tick_params(axis="y", length=0, labelsize=10)
    _fit(ax, size)
    return ax.figure
