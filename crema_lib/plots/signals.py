"""What a model sees of a signal and what it makes of it: patches, positions, attention, reconstruction, spectra."""

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.signal import welch

from ..data.leads import LEADS
from ..errors import CremaError
from .style import BLUE, INK, OKABE_ITO, SHADE, VERMILLION, as_signal, baselines, envelope, lead_rows, new_figure, patch_samples


def _spans(ax, mask, seconds, gid):
    """Shade the patches where mask (n_patches,) is true, neighbours as one span, without seams."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    for start, stop in edges.reshape(-1, 2):
        ax.axvspan(start * seconds, stop * seconds, color=SHADE, lw=0, zorder=0, gid=gid)


def _stack(ax, traces, fs, names):
    """Prepare axes for stacked traces (stacks, rows, samples): lead names as ticks, a 1 mV bar; returns the baselines in mV."""
    upper, lower = envelope(np.max(traces, axis=0), fs)[0], envelope(np.min(traces, axis=0), fs)[1]
    base = baselines(upper, lower, least=1.0, step=0.25)
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
    original, reconstructed, hidden = as_signal(original, fs), as_signal(reconstructed, fs), np.asarray(hidden, dtype=bool)
    if original.shape != reconstructed.shape or hidden.ndim != 1:
        raise CremaError(f"original {original.shape}, reconstruction {reconstructed.shape} and hidden patches {hidden.shape} do not fit")
    patch = patch_samples(original.shape[1], len(hidden))
    chosen = lead_rows(LEADS if leads is None else leads)
    original, inside = original[chosen], np.repeat(hidden, patch)
    drawn = np.where(inside, reconstructed[chosen], np.nan)
    fig = new_figure(4)
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
    signal = as_signal(signal, fs, leads=1 if signal.ndim == 1 else 12)
    if patch < 1 or signal.shape[-1] % patch:
        raise CremaError(f"{signal.shape[-1]} samples cannot be cut into patches of {patch}: crop the signal to a whole number of patches")
    n = signal.shape[-1] // patch
    fig = new_figure(2.4)
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
    trace, weights = as_signal(trace, fs, leads=1), np.atleast_2d(np.asarray(weights, dtype=float))
    if weights.ndim != 2:
        raise CremaError(f"attention weights of shape {weights.shape} cannot be drawn: give (heads, n_patches)")
    patch_samples(len(trace), weights.shape[1])
    heads, seconds = len(weights), len(trace) / fs
    fig = new_figure(0.85 * heads + 1.1)
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
    fig = new_figure(3.6)
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


def spectra(before, after, fs_before, fs_after):
    """What `prepare` does to one lead: the trace and its power spectrum (Welch 1967) before and after.

    before, after: (samples,) mV; fs_before, fs_after: Hz.
    """
    fig = new_figure(4.8)
    upper, lower = fig.subplots(2, 1)
    for signal, fs, label, look in (
        (before, fs_before, f"As recorded, {fs_before:g} Hz", dict(color="#9a9a9a", lw=0.8)),
        (after, fs_after, f"Prepared, {fs_after:g} Hz", dict(color=BLUE, lw=1.2)),
    ):
        signal = as_signal(signal, fs, leads=1)
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
