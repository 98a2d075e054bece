"""One style for all figures, and what they share: sizes, colours, checks, stacking of traces."""

import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import maximum_filter1d

from ..data.leads import LEADS, lead_index
from ..errors import CremaError

WIDTH = 7.2  # inches: the text column of the book
# Okabe & Ito 2008; yellow and black go last because yellow is faint on white and black is the colour of the traces
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
BLUE, VERMILLION = OKABE_ITO[:2]
INK, GREY, SHADE = "#1a1a1a", "#6b6b6b", "#e3e3e3"
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


def new_figure(height, width=WIDTH):
    """A figure that pyplot has forgotten: a notebook then shows it once, as the value of its cell, and nothing piles up in memory."""
    fig = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(fig)
    return fig


def as_signal(signal, fs, leads=12):
    signal = np.asarray(signal, dtype=float)
    shape = f"({leads}, samples)" if leads > 1 else "(samples,)"
    if signal.shape[:-1] != ((leads,) if leads > 1 else ()) or signal.shape[-1:] in ((), (0,)):
        raise CremaError(f"a signal of shape {signal.shape} cannot be drawn: give {shape} in mV")
    if not fs > 0:
        raise CremaError(f"a sampling rate of {fs} Hz is impossible: give a positive number")
    if not np.isfinite(signal).all():
        raise CremaError("the signal holds values that are not finite: set missing leads to zero and mark them in the lead mask")
    return signal


def patch_samples(samples, n_patches):
    if n_patches < 1 or samples % n_patches:
        raise CremaError(f"{samples} samples cannot be cut into {n_patches} equal patches: crop the signal to a whole number of patches")
    return samples // n_patches


def require_columns(table, needed):
    absent = [c for c in needed if c not in table]
    if absent:
        raise CremaError(f"the table lacks the column {', '.join(absent)}: it has {', '.join(map(str, table.columns))}")


def baselines(upper, lower, least, step):
    """Heights (rows,) in mV of stacked traces, first row at 0, such that no row touches the one above at any moment.

    upper, lower: (rows, samples) envelopes in mV around each row's own zero. Distances are multiples of `step`, at least `least`.
    """
    need = (upper[1:] - lower[:-1]).max(axis=1, initial=-np.inf) + 0.1
    return -np.concatenate([[0], np.cumsum(np.maximum(least, np.ceil(need / step) * step))])


def envelope(signal, fs):
    """Running maximum and minimum over 0.2 s: a steep R wave is kept clear of its neighbour sideways too."""
    size = max(1, round(0.2 * fs))
    return maximum_filter1d(signal, size, axis=-1), -maximum_filter1d(-signal, size, axis=-1)


def lead_rows(leads):
    chosen = [lead_index(lead) for lead in leads]
    if None in chosen or not chosen:
        raise CremaError(f"unknown lead among {', '.join(map(str, leads))}: known are {' '.join(LEADS)}")
    return chosen
