"""Controlled shifts: the same recordings with noise, another gain, band or rate, lost or swapped leads, or cut short.

Noise is added as the WFDB program `nst` adds it (Moody, Muldrow & Mark 1984, "A noise stress test for arrhythmia detectors"): each lead
has its own gain a, so that  SNR = 10 log10(S / (a^2 N)) dB  with  S = p^2 / 8  of the mean peak-to-peak size p of its QRS complexes, and N
the mean square of the noise about its mean in windows of one second; of both the largest and smallest 5 % are left out. Sizes are those
of the noise as it was recorded. It then passes the filter that the recordings of the store have passed, as it would have done had it been
in them from the start: little is left of baseline wander, and this is part of the answer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import wfdb
from scipy.signal import butter, sosfiltfilt

from ..data.leads import LEADS, SUBSETS
from ..data.prepare import condition
from ..errors import CremaError
from ..handcrafted.waves import r_peaks

SNRS = (24.0, 18.0, 12.0, 6.0, 0.0, -6.0)  # dB, those of the Noise Stress Test Database
NSTDB = {"bw": "baseline wander", "ma": "muscle artefact", "em": "electrode motion"}
NOISES = (*NSTDB.values(), "powerline", "white")
KINDS = (*NOISES, "gain", "low-pass", "high-pass", "sampling rate", "lost lead", "leads", "reversal", "length")  # of `conditions`
RATE = 500  # Hz, of simulated noise
# Cables exchanged: what each lead then shows, as (sign, lead). Einthoven's triangle with two corners swapped.
REVERSALS = {
    "RA and LA": {"I": (-1, "I"), "II": (1, "III"), "III": (1, "II"), "aVR": (1, "aVL"), "aVL": (1, "aVR")},
    "RA and LL": {"I": (-1, "III"), "II": (-1, "II"), "III": (-1, "I"), "aVR": (1, "aVF"), "aVF": (1, "aVR")},
    "LA and LL": {"I": (1, "II"), "II": (1, "I"), "III": (-1, "III"), "aVL": (1, "aVF"), "aVF": (1, "aVL")},
    "V1 and V2": {"V1": (1, "V2"), "V2": (1, "V1")},
}


def _trimmed(values):
    """Mean without the largest and the smallest 5 %."""
    values = np.sort(values)
    cut = int(0.05 * len(values))
    return values[cut : len(values) - cut].mean()


@dataclass(frozen=True)
class Noise:
    """A noise recording: `channels` float32 (channels, samples) in mV at the rate of the store and filtered like it; `power` (channels,)
    its N in mV^2 before that filter; `recorded` from an electrode, or simulated."""

    channels: np.ndarray
    power: np.ndarray
    recorded: bool = False

    @property
    def after_filter(self):
        """What a stated signal-to-noise ratio of 0 dB becomes in the filter of the store, dB; below 0 where rare bursts, which N leaves
        out, make up more than the filter takes."""
        return float(10 * np.log10(self.power.mean() / self.channels.var(1).mean()))

    @classmethod
    def of(cls, channels, fs, *, fs_out=100, band=(0.5, 40.0), recorded=False):
        """From channels (channels, samples) at fs Hz, of any unit: only ratios to the ECG count.

        Raises:
            CremaError: shorter than two seconds, not finite, or silent.
        """
        channels = np.atleast_2d(np.asarray(channels, dtype=float))
        second = round(fs)
        if channels.shape[1] < 2 * second or not np.isfinite(channels).all():
            raise CremaError(f"a noise recording of {channels.shape[1]} samples at {fs:g} Hz: give finite values of two seconds or more")
        windows = channels[:, : channels.shape[1] // second * second].reshape(len(channels), -1, second)
        power = np.array([_trimmed(one) ** 2 for one in windows.std(axis=2)])
        if not power.all():
            raise CremaError("a noise recording has a silent channel: it cannot be scaled to a signal-to-noise ratio")
        return cls(condition(channels, fs, fs_out=fs_out, band=band), power, recorded)


def noises(folder=None, *, fs=100, band=(0.5, 40.0), seed=0):
    """Noise recordings by name.

    Args:
        folder: of the MIT-BIH Noise Stress Test Database (records bw, ma, em, those that are there), or None for simulated ones.
        fs, band: of the store. seed: of the simulated ones, five minutes and two channels each.

    Returns:
        dict name -> `Noise`: baseline wander, muscle artefact, electrode motion, powerline, white. Simulated (ours): wander is a random
        walk below .5 Hz, muscle artefact white noise from 20 to 200 Hz whose strength rises and falls, electrode motion steps that decay
        within a second, powerline a sine at 50 Hz with its third harmonic, white noise Gaussian.

    Raises:
        CremaError: the folder holds none of the records.
    """
    rng, n = np.random.default_rng(seed), 300 * RATE
    time, drawn = np.arange(n) / RATE, rng.standard_normal((5, 2, n))
    filtered = lambda x, kind, edge: sosfiltfilt(butter(2, edge, kind, fs=RATE, output="sos"), x, axis=-1)  # noqa: E731
    swell = filtered(drawn[4], "lowpass", 0.3)
    jumps = drawn[2] * (rng.random((2, n)) < 0.7 / RATE)
    decay = np.exp(-np.arange(5 * RATE) / (0.4 * RATE))
    found = {
        "baseline wander": filtered(drawn[0], "bandpass", (0.05, 0.5)),
        "muscle artefact": filtered(drawn[1], "bandpass", (20, 200)) * (0.2 + np.abs(swell) / swell.std()),
        "electrode motion": filtered(np.stack([np.convolve(one, decay)[:n] for one in jumps]), "lowpass", 30),
        "powerline": np.sin(2 * np.pi * 50 * time) + 0.2 * np.sin(2 * np.pi * 150 * time),
        "white": drawn[3],
    }
    made = {name: Noise.of(x, RATE, fs_out=fs, band=band) for name, x in found.items()}
    if folder is None:
        return made
    read = {code: Path(folder) / code for code in NSTDB if (Path(folder) / f"{code}.hea").is_file()}
    if not read:
        raise CremaError(f"{folder} holds none of the records {', '.join(NSTDB)} of the Noise Stress Test Database")
    for code, path in read.items():
        record = wfdb.rdrecord(str(path))
        made[NSTDB[code]] = Noise.of(record.p_signal.T, record.fs, fs_out=fs, band=band, recorded=True)
    return made


def qrs_sizes(store, rows):
    """Mean peak-to-peak size of the QRS complexes within 50 ms of the R peaks, lead by lead: what noise is measured against.

    Returns:
        float32 (records of the store, 12) in mV; NaN in rows that were not asked for. Where no QRS is found the size of the whole trace
        stands in; 0 where a lead is flat or missing, which then gets no noise.
    """
    sizes, around = np.full((len(store), 12), np.nan, dtype=np.float32), max(1, round(0.05 * store.fs))
    for i in range(0, len(rows), 256):
        chosen = np.asarray(rows[i : i + 256])
        signals = store.read(chosen).numpy()
        for row, signal, peaks in zip(chosen, signals, r_peaks(signals, store.fs), strict=True):
            cuts = [signal[:, max(0, peak - around) : peak + around + 1] for peak in peaks] or [signal]
            heights = np.stack([np.ptp(cut, axis=1) for cut in cuts])
            sizes[row] = [_trimmed(lead) for lead in heights.T]
    return np.where(store.lead_mask | np.isnan(sizes), sizes, 0)


@dataclass(frozen=True)
class Condition:
    """One controlled shift.

    Attributes:
        kind, level: place it on a dose-response curve (level in the unit of the kind). name: on a forest plot.
        change: called with (signals (n, 12, samples) in mV, rows, store), gives signals; None leaves them.
        source: int (12,), the lead that each lead shows. kept: bool (12,), the leads that are there.
        key: what else tells it from others of the same name, so that computed features are not mistaken.
    """

    kind: str
    level: float
    name: str
    change: Callable | None = None
    source: np.ndarray = field(default_factory=lambda: np.arange(12))
    kept: np.ndarray = field(default_factory=lambda: np.ones(12, dtype=bool))
    key: str = ""


def _filtered(change):
    """A change of arrays as one of tensors."""
    return lambda x, rows, store: torch.as_tensor(change(x.cpu().numpy(), store).copy(), dtype=x.dtype, device=x.device)


def add_noise(noise, snr, sizes, *, kind="noise", seed=0):
    """Noise at an SNR in dB; every lead of every recording gets its own stretch of one of the channels.

    Args:
        noise: `Noise`. sizes: see `qrs_sizes`. seed: with the row number it decides the stretch, whatever the batch.

    Raises:
        CremaError: at reading, where the size of a recording is not known or the noise is shorter than a recording.
    """

    def change(x, rows, store):
        size, samples = sizes[rows], x.shape[2]
        if np.isnan(size).any():
            raise CremaError("noise is measured against QRS complexes: give the sizes of these recordings, see qrs_sizes")
        if samples > noise.channels.shape[1]:
            raise CremaError(f"a noise recording of {noise.channels.shape[1]} samples is shorter than a recording of {samples}")
        draws = np.stack([np.random.default_rng([seed, row]).random((2, 12)) for row in rows])
        channel = (draws[:, 0] * len(noise.channels)).astype(int)
        start = (draws[:, 1] * (noise.channels.shape[1] - samples + 1)).astype(int)
        stretch = noise.channels[channel[..., None], start[..., None] + np.arange(samples)]
        gain = np.sqrt(size**2 / 8 / noise.power[channel] * 10 ** (-snr / 10))
        return x + torch.as_tensor(gain[..., None] * stretch, dtype=x.dtype, device=x.device)

    return Condition(kind, snr, f"{kind}, {snr:g} dB", change, key=f"{seed} {noise.power}")


def scale(factor):
    """Another gain: every voltage times a factor, as with a wrong mm/mV setting."""
    return Condition("gain", factor, f"gain x {factor:g}", lambda x, rows, store: x * factor)


def narrow(edge, kind="lowpass"):
    """Another bandwidth: a zero-phase Butterworth filter of order 2 at `edge` Hz, `lowpass` or `highpass`."""

    def change(x, store):
        if not 0 < edge < store.fs / 2:
            raise CremaError(f"a filter at {edge:g} Hz needs a sampling rate above {2 * edge:g} Hz, the store has {store.fs:g} Hz")
        return sosfiltfilt(butter(2, edge, kind, fs=store.fs, output="sos"), x, axis=-1)

    return Condition({"lowpass": "low-pass", "highpass": "high-pass"}[kind], edge, f"{kind} {edge:g} Hz", _filtered(change))


def resample(rate):
    """Recorded at `rate` Hz and brought back to the store's rate: what lay above rate / 2 is lost."""

    def change(x, store):
        low = condition(x, store.fs, fs_out=rate, band=None)
        return condition(low, rate, fs_out=store.fs, band=None)[..., : x.shape[2]]

    return Condition("sampling rate", rate, f"{rate:g} Hz", _filtered(change))


def keep_leads(names):
    """Only these leads: the others are zero and marked as missing."""
    if unknown := set(names) - set(LEADS):
        raise CremaError(f"unknown leads {', '.join(sorted(unknown))}: known are {', '.join(LEADS)}")
    if not names:
        raise CremaError("at least one lead must be kept")
    return Condition("leads", len(names), f"{len(names)} lead{'s' * (len(names) > 1)}", kept=np.isin(LEADS, names))


def lose_lead(name):
    """All leads but one."""
    lost = keep_leads([lead for lead in LEADS if lead != name])
    return replace(lost, kind="lost lead", name=f"without {name}", level=LEADS.index(name))


def reverse(name):
    """Two cables exchanged, see `REVERSALS`; nothing marks it."""
    if name not in REVERSALS:
        raise CremaError(f"unknown reversal {name!r}: known are {', '.join(REVERSALS)}")
    source, sign = np.arange(12), torch.ones(12, 1)
    for lead, (factor, other) in REVERSALS[name].items():
        source[LEADS.index(lead)], sign[LEADS.index(lead)] = LEADS.index(other), factor
    return Condition("reversal", list(REVERSALS).index(name), f"{name} exchanged", lambda x, rows, store: x * sign.to(x.device), source)


def shorten(seconds):
    """Only the first seconds; the encoder is shown the shorter recording as it is."""

    def change(x, rows, store):
        samples = round(seconds * store.fs)
        if not 0 < samples <= x.shape[2]:
            raise CremaError(f"{seconds:g} s cannot be cut from recordings of {x.shape[2] / store.fs:g} s")
        return x[:, :, :samples]

    return Condition("length", seconds, f"{seconds:g} s", change)


def conditions(found, sizes, *, snrs=SNRS, seed=0):
    """The controlled shifts of the book: noises (see `noises`) at each SNR in dB, then gain, band, rate, leads, cables, length."""
    listed = [add_noise(noise, snr, sizes, kind=kind, seed=seed) for kind, noise in found.items() for snr in snrs]
    listed += [scale(factor) for factor in (0.5, 0.8, 1.25, 2.0)]
    listed += [narrow(edge) for edge in (25.0, 15.0, 10.0)] + [narrow(edge, "highpass") for edge in (1.0, 2.0)]
    listed += [resample(rate) for rate in (50, 25)]
    listed += [lose_lead(lead) for lead in LEADS] + [keep_leads(SUBSETS[n]) for n in (8, 6, 3, 2, 1)]
    return listed + [reverse(name) for name in REVERSALS] + [shorten(seconds) for seconds in (5.0, 2.5)]


def unchanged(store):
    """Level of a kind at which a recording stays as it is: dict, without noise and without kinds that have no dose."""
    low, high = store.meta["band"] or (0.0, store.fs / 2)
    edges = {"low-pass": high, "high-pass": low}
    return {"gain": 1.0, **edges, "sampling rate": store.fs, "leads": len(LEADS), "length": store.seconds}


class Shifted:
    """A store under a `Condition`, for everything that reads a store: the same table, other signals and lead masks.

    Attributes: as of `EcgStore`; `meta["sha256"]` names store and condition.
    """

    def __init__(self, store, condition):
        self.store, self.condition = store, condition
        self.path, self.table, self.fs, self.seconds = store.path, store.table, store.fs, store.seconds
        self.lead_mask = store.lead_mask[:, condition.source] & condition.kept
        self.meta = {**store.meta, "sha256": f"{store.meta['sha256']} {condition.kind} {condition.name} {condition.key}"}

    def __len__(self):
        return len(self.store)

    def read(self, rows, device="cpu"):
        """As `EcgStore.read`."""
        rows = np.asarray(rows)
        signals = self.store.read(rows, device)[:, self.condition.source]
        if self.condition.change is not None:
            signals = self.condition.change(signals, rows, self.store)
        return signals if self.condition.kept.all() else signals * torch.as_tensor(self.condition.kept, device=device)[:, None]
