"""Draw the figures of the page "ECG for machine learners" from the book's simulator: `python book/figures/draw.py [NAME ...]`.

They go beside this file as SVG, narrow and with large letters, so that they can be read on a phone.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import LineCollection

from crema_lib.data.leads import LEADS
from crema_lib.data.simulate import simulate
from crema_lib.data.simulate_tables import ATRIA, DELTA, DOWER, LIMB, NORMAL, QRS, REPOL, WAVES
from crema_lib.errors import CremaError
from crema_lib.plots.paper import PAPER, PAPER_DARK
from crema_lib.plots.style import BLUE, GREY, INK, OKABE_ITO, STYLE, VERMILLION, baselines, envelope
from crema_lib.shift.corrupt import REVERSALS, noises

WIDTH = 4.8  # inches: on a phone a letter of 9 points is still 9 pixels high
TIME = np.arange(-260, 480)  # ms after the R peak
PLAIN = np.zeros_like(NORMAL)
LIMB_ANGLES = {"I": 0, "II": 60, "aVF": 90, "III": 120, "aVR": -150, "aVL": -30}  # degrees, clockwise from the patient's left
LINE = (0, (3, 3))


def dipole(change=PLAIN, parts=(ATRIA, QRS, REPOL)):
    """Moving dipole (3, ms) in mV of the simulator's normal beat and a change of its waves: X to the left, Y to the feet, Z to the back."""
    waves = np.concatenate([(NORMAL + change)[part] for part in parts])
    return waves[:, 2:].T @ np.exp(-(((TIME - waves[:, :1]) / np.maximum(waves[:, 1:2], 6)) ** 2) / 2)


def beat(change=PLAIN):
    """The same as a dict from lead to trace (ms,) in mV."""
    return dict(zip(LEADS, LIMB @ DOWER @ dipole(change), strict=True))


def sheet(left, right, low, high):
    """A figure that is one sheet of ECG paper between two times (s) and two voltages (mV), 25 mm/s and 10 mm/mV."""
    fig = plt.figure(figsize=(WIDTH, WIDTH * (high - low) * 0.4 / (right - left)))
    ax = fig.add_axes((0, 0, 1, 1))
    for step, colour, width in ((0.04, PAPER, 0.4), (0.2, PAPER_DARK, 0.6)):
        xs = np.arange(np.ceil(left / step - 1e-6), right / step + 1e-6) * step
        ys = np.arange(np.ceil(low / step / 2.5 - 1e-6), high / step / 2.5 + 1e-6) * step * 2.5
        lines = [[(x, low), (x, high)] for x in xs] + [[(left, y), (right, y)] for y in ys]
        ax.add_collection(LineCollection(lines, colors=colour, linewidths=width, zorder=0))
    ax.set(xlim=(left, right), ylim=(low, high))
    ax.axis("off")
    return fig, ax


def strips(traces, fs):
    """Named traces (samples,) in mV below one another on ECG paper, each with its name above its beginning."""
    stack = np.stack(list(traces.values()))
    seconds = stack.shape[1] / fs
    upper, lower = envelope(stack, fs)
    head, letter = {}, 0.07 * seconds  # mV: the height of a name and some air
    for r, name in enumerate(traces):
        under = slice(round((0.04 + 0.017 * len(name)) * seconds * fs))
        head[name] = upper[r, under].max() + 0.05
        upper[r, under] = head[name] + letter
    base = baselines(upper, lower, least=1, step=0.5)
    fig, ax = sheet(0, seconds, np.floor((base[-1] + lower[-1].min() - 0.1) * 2) / 2, np.ceil((upper[0].max() + 0.05) * 2) / 2)
    for y, (name, trace) in zip(base, traces.items(), strict=True):
        ax.plot(np.arange(len(trace)) / fs, y + trace, color=INK, lw=1)
        ax.text(0.02 * seconds, y + head[name], name, va="bottom", fontweight="bold")
    return fig


def leads():
    """The leads as directions in two planes, with the loops that the dipole runs through."""
    fig, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.7))
    fig.subplots_adjust(0, 0.09, 1, 0.88, wspace=0)
    chest = {lead: np.degrees(np.arctan2(-DOWER[i, 2], DOWER[i, 0])) for i, lead in enumerate(LEADS[6:], 2)}
    loops = {"P": (OKABE_ITO[2], ATRIA), "QRS": (BLUE, QRS), "T": (VERMILLION, REPOL)}
    for ax, angles, row, sign, title in (
        (axes[0], LIMB_ANGLES, 1, -1, "Frontal plane,\nfrom the front"),
        (axes[1], chest, 2, 1, "Horizontal plane,\nfrom above, chest below"),
    ):
        for lead, angle in angles.items():
            way = np.array([np.cos(np.radians(angle)), -np.sin(np.radians(angle))])
            ax.annotate("", 1.5 * way, (0, 0), arrowprops=dict(arrowstyle="-|>", color=GREY, lw=0.9, shrinkA=0, shrinkB=0), zorder=1)
            ax.text(*(1.82 * way), lead + (f"\n{angle}°".replace("-", "−") if row == 1 else ""), ha="center", va="center", fontsize=8)
            if row == 1:
                ax.plot(*np.transpose([-0.9 * way, (0, 0)]), color=GREY, lw=0.6, ls=LINE, zorder=1)
        for name, (colour, part) in loops.items():
            m = dipole(parts=(part,))
            ax.plot(m[0], sign * m[row], color=colour, lw=1.6, label=name, zorder=3)
        ax.set(xlim=(-2.15, 2.15), ylim=(-2.2, 1.4), aspect="equal")
        ax.set_title(title, loc="center", fontsize=9)
        ax.axis("off")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3, handlelength=1.2)
    return fig


def waves():
    """One beat with the names of its waves and intervals."""
    change = PLAIN.copy()
    change[WAVES.index("Q"), 2:4] = change[WAVES.index("S"), 2:4] = -0.13, -0.10  # Q and S large enough to be seen in lead II
    trace = beat(change)["II"]

    def ends(part):
        size = np.linalg.norm(dipole(change, (part,)), axis=0)
        return TIME[size > 0.06 * size.max()][[0, -1]] / 1000

    (p_on, _), (on, off), (_, end) = ends(ATRIA), ends(QRS), ends(REPOL)
    fig, ax = sheet(-0.24, 0.44, -0.75, 1.1)
    ax.plot(TIME / 1000, trace, color=INK, lw=1.8)
    for x, low in ((p_on, -0.44), (on, -0.68), (off, -0.44), (end, -0.68)):
        ax.plot([x, x], [low, 0.03], color=GREY, lw=0.8, ls=LINE)
    for name, x, y in (("P", -0.13, 0.19), ("Q", -0.052, -0.14), ("R", 0.022, 0.75), ("S", 0.06, -0.19), ("T", 0.262, 0.31)):
        ax.text(x, y, name, ha="center", va="center", fontweight="bold", fontsize=12, color=BLUE)
    for name, start, stop, y in (("PR", p_on, on, -0.4), ("QRS", on, off, -0.4), ("ST", off, 0.15, -0.4), ("QT", on, end, -0.64)):
        ax.annotate("", (stop, y), (start, y), arrowprops=dict(arrowstyle="<->", color=INK, lw=1, shrinkA=0, shrinkB=0))
        ax.text((start + stop) / 2, y + 0.02, name, ha="center", va="bottom")
    bar = dict(arrowstyle="|-|,widthA=.3,widthB=.3", color=INK, lw=1.1, shrinkA=0, shrinkB=0)
    for start, stop, place, text in (((0.2, 0.5), (0.4, 0.5), (0.3, 0.52), "0.2 s"), ((0.4, 0.5), (0.4, 1), (0.385, 0.75), "0.5 mV")):
        ax.annotate("", stop, start, arrowprops=bar)
        ax.text(*place, text, ha="center" if text == "0.2 s" else "right", va="bottom" if text == "0.2 s" else "center")
    return fig


def rhythms():
    """Lead II in four rhythms."""
    signals, _ = simulate(1200, seed=3)
    chosen = {"Sinus rhythm": (1, 0), "Atrial fibrillation": (180, 0), "Atrial flutter": (565, 60), "Ventricular ectopic beat": (118, 300)}
    return strips({name: signals[row, 1, start : start + 420] / 1000 for name, (row, start) in chosen.items()}, 100)


def findings():
    """Beats of six findings in four leads, each over the normal beat."""
    rows = {
        "MI, anteroseptal": "ASMI",
        "MI, inferior": "IMI",
        "STTC, ischaemia": "ISCAL",
        "CD, left bundle": "CLBBB",
        "CD, right bundle": "CRBBB",
        "HYP, left ventricle": "LVH",
    }
    columns, wide, high = ("III", "V1", "V3", "V6"), 0.76, 3.5
    fig = plt.figure(figsize=(WIDTH, 6.6))
    ax = fig.add_axes((0, 0, 1, 0.96))
    for c, lead in enumerate(columns):
        fig.text((c + 0.45) / len(columns), 0.985, lead, ha="center", va="center", fontweight="bold")
        for r, code in enumerate(rows.values()):
            for change, look in ((PLAIN, dict(color="#9a9a9a", lw=1.1)), (DELTA[code], dict(color=VERMILLION, lw=1.4))):
                ax.plot(wide * c + (TIME + 270) / 1000, beat(change)[lead] - high * r, **look)
    for r, name in enumerate(rows):
        ax.text(0.02, 1.5 - high * r, name, va="center", fontweight="bold", bbox=dict(color="white", pad=1, alpha=0.8, lw=0))
    x, y = wide * len(columns) - 0.02, 0.8 - high * (len(rows) - 1)
    ax.plot([x - 0.2, x, x], [y, y, y + 1], color=INK, lw=1.2)
    ax.text(x - 0.03, y + 0.5, "1 mV", ha="right", va="center", fontsize=8)
    ax.text(x - 0.1, y - 0.1, "0.2 s", ha="center", va="top", fontsize=8)
    ax.set(xlim=(0, wide * len(columns)), ylim=(-high * len(rows) + 1, 1.8))
    ax.axis("off")
    return fig


def artefacts():
    """Three seconds of lead II without and with four kinds of noise, and lead I with the arm cables exchanged."""
    fs, seconds = 500, 3
    signals, table = simulate(60, seed=3, fs=fs)
    row = np.flatnonzero((table.labels == "NORM;SR") & (table.device == "Rest-12"))[1]
    clean, noise = signals[row, :, : fs * seconds] / 1000, noises(fs=fs, band=None)

    def spoilt(name, size, start):
        part = noise[name].channels[0][start * fs :][: fs * seconds]
        return clean[1] + size * (part - part.mean()) / part.std()

    sign, lead = REVERSALS["RA and LA"]["I"]
    return strips(
        {
            "Lead II as it should be": clean[1],
            "Baseline wander": spoilt("baseline wander", 0.25, 20),
            "Powerline": spoilt("powerline", 0.06, 0),
            "Muscle": spoilt("muscle artefact", 0.08, 40),
            "Electrode motion": spoilt("electrode motion", 0.3, 60),
            "Lead I": clean[0],
            "Lead I, arm cables exchanged": sign * clean[LEADS.index(lead)],
        },
        fs,
    )


FIGURES = {one.__name__: one for one in (leads, waves, rhythms, findings, artefacts)}


def draw(names, folder=Path(__file__).parent):
    """Write figures, names of `FIGURES`, as SVG into a folder.

    Raises:
        CremaError: there is no figure of a name.
    """
    if unknown := [name for name in names if name not in FIGURES]:
        raise CremaError(f"no figure {', '.join(unknown)}: known are {', '.join(FIGURES)}")
    with mpl.rc_context({**STYLE, "font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "crema"}):
        for name in names:
            fig = FIGURES[name]()
            fig.savefig(Path(folder) / f"ecg-{name}.svg", metadata={"Date": None})
            plt.close(fig)


if __name__ == "__main__":
    draw(sys.argv[1:] or FIGURES)
