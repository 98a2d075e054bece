"""Measurements that a cardiologist would name, of the rhythm and of the median beat.

R peaks come from NeuroKit2 (Makowski et al. 2021, doi:10.3758/s13428-020-01516-y). Everything else is read off the rhythm and off the
median beat of the dominant kind, as electrocardiographs do. What cannot be measured is NaN.

A feature is named `GROUP.NAME`, or `LEAD.NAME` where every lead has one. Units: mV, s, mV s, degrees, beats a minute; else shares, ratios.
"""

import inspect
import sys
import warnings
import zlib
from functools import cache, partial

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.signal import butter, sosfiltfilt
from sklearn.preprocessing import QuantileTransformer, StandardScaler
from tqdm import tqdm

from ..data.leads import LEADS
from ..data.store import MV_PER_STEP
from ..errors import CremaError

CHUNK = 128  # records at a time
COUNT = 306  # measurements of a recording
BEFORE, AFTER = 0.36, 0.64  # s of a beat around its R peak
STEP = 0.002  # s, the grid of the median beat; the recording's band allows one finer than its samples
GRID = np.arange(round(-BEFORE / STEP), round(AFTER / STEP)) * STEP
FREE = [0, 1, 6, 7, 8, 9, 10, 11]  # I, II, V1-V6: the other limb leads are sums of the first two
QUIET = 0.08  # of the peak spatial velocity: slower is outside the QRS complex
FLAT = 0.005  # mV, deviation below which a lead holds no ECG
ALIKE = 0.85  # correlation from which a beat is of the dominant kind
RHYTHM = ("beats", "rate", "rr", "rr_median", "sdnn", "rmssd", "pnn50", "cv", "rmssd_ratio", "step_median", "cosen", "rr_shortest",
          "rr_longest", "early", "late", "alternation")  # fmt: skip
BEATS = ("alike", "likeness", "likeness_least", "other_size", "wide", "wide_most", "p_likeness", "p_likeness_least", "t_likeness")
ATRIAL = ("rms", "share", "frequency", "purity")


@cache
def _neurokit():
    with warnings.catch_warnings():  # imported when first needed, because that takes seconds
        warnings.simplefilter("ignore")
        import neurokit2
    return neurokit2


def r_peaks(signals, fs):
    """R peaks by NeuroKit2's detector, searched in the mean over leads of the rectified 5-15 Hz band (the band of Pan & Tompkins 1985).

    Args:
        signals: float (records, 12, samples), mV. fs: Hz.

    Returns:
        List of int arrays, sample numbers; empty where there is no QRS.
    """
    size = np.abs(sosfiltfilt(butter(2, (5, 15), btype="bandpass", fs=fs, output="sos"), signals[:, FREE], axis=-1))
    size /= np.maximum(np.quantile(size, 0.98, axis=-1, keepdims=True), 0.02)  # no lead outvotes the others, none is all noise
    activity = np.minimum(size, 2).mean(1)
    find = partial(_neurokit().ecg_findpeaks, sampling_rate=fs, method="neurokit")
    peaks = [np.asarray(find(one)["ECG_R_Peaks"], dtype=int) if one.any() else np.empty(0, dtype=int) for one in activity]
    # the detector's threshold is local: in a long pause, and at the ends, it takes P and T waves for beats
    return [p[one[p] >= 0.25 * np.median(one[p])] if len(p) else p for p, one in zip(peaks, activity, strict=True)]


def rhythm(peaks, fs):
    """Heart rate and its variability from R peaks: a dict of floats, NaN where there are too few beats.

    Time-domain measures as the Task Force of ESC and NASPE defines them (1996, doi:10.1161/01.CIR.93.5.1043); `early` and `late` are the
    shares of RR intervals 15 % below and above their median, `alternation` is the lag-one autocorrelation of their differences. `cosen` is
    the coefficient of sample entropy, which tells atrial fibrillation from twelve beats (Lake & Moorman 2011,
    doi:10.1152/ajpheart.00561.2010): ln(B / A) + ln(2 r) - ln(mean RR), where B pairs of intervals and A pairs of runs of two differ by at
    most r, the smallest r with A >= 5.
    """
    rr = np.diff(peaks) / fs
    if len(rr) < 2:
        mean = rr.mean() if len(rr) else np.nan
        return dict.fromkeys(RHYTHM, np.nan) | {"beats": len(peaks), "rate": 60 / mean, "rr": mean, "rr_median": mean}
    step, mean, middle = np.diff(rr), rr.mean(), np.median(rr)
    rmssd = np.sqrt((step**2).mean())
    values = (len(peaks), 60 / mean, mean, middle, rr.std(ddof=1), rmssd, (np.abs(step) > 0.05).mean(), rr.std(ddof=1) / mean,
              rmssd / mean, np.median(np.abs(step)) / mean, _cosen(rr), rr.min() / middle, rr.max() / middle,
              (rr < 0.85 * middle).mean(), (rr > 1.15 * middle).mean(),
              (step[1:] * step[:-1]).mean() / max((step**2).mean(), 1e-6) if len(step) > 1 else np.nan)  # fmt: skip
    return dict(zip(RHYTHM, values, strict=True))


def _cosen(rr, least=5):
    first, second = np.triu_indices(len(rr) - 1, 1)
    one = np.abs(rr[first] - rr[second])
    two = np.maximum(one, np.abs(rr[first + 1] - rr[second + 1]))
    if len(two) < least:
        return np.nan
    r = max(np.partition(two, least - 1)[least - 1], 0.01)
    return np.log((one <= r).sum() / (two <= r).sum()) + np.log(2 * r) - np.log(rr.mean())


def _correlation(x, y):
    """Along the last axis."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    return (x * y).sum(-1) / np.maximum(np.sqrt((x**2).sum(-1) * (y**2).sum(-1)), 1e-9)


def _beats(x, peaks, fs):
    """The median beat of the dominant kind, and how the single beats differ from it.

    The beat whose QRS resembles the others' most is the model; all beats are shifted to where they match it best, and those that
    correlate with it by `ALIKE` or more are the dominant kind.

    Args:
        x: float (12, samples), mV. peaks: int array.

    Returns:
        (beat, values): float (12, samples of a beat) and a dict; beat None where no whole beat is in the recording.
    """
    window = np.arange(-int(np.ceil(BEFORE * fs)), int(np.ceil(AFTER * fs)) + 1)
    slack = np.arange(-round(0.04 * fs), round(0.04 * fs) + 1)
    whole = peaks[(peaks + window[0] + slack[0] >= 0) & (peaks + window[-1] + slack[-1] < x.shape[1])]
    if not len(whole):
        return None, dict.fromkeys(BEATS, np.nan)
    free = x[FREE]
    qrs = np.arange(-round(0.1 * fs), round(0.1 * fs) + 1)

    def cut(where, span):
        return free[:, where[:, None] + span].swapaxes(0, 1).reshape(len(where), -1)  # (beats, leads x span)

    model = cut(whole, qrs)
    model = model[np.corrcoef(model).sum(0).argmax()] if len(whole) > 1 else model[0]
    shifted = np.stack([_correlation(cut(whole + lag, qrs), model) for lag in slack])
    likeness, whole = shifted.max(0), whole + slack[shifted.argmax(0)]
    same = likeness >= min(ALIKE, likeness.max())
    beat = np.median(x[:, whole[same][:, None] + window], axis=1)

    size = np.sqrt((free[:, whole[:, None] + np.arange(-round(0.14 * fs), round(0.14 * fs) + 1)] ** 2).mean(0))
    wide = (size > 0.3 * size.max(1, keepdims=True)).mean(1)
    energy = size.max(1)
    p, t = (np.arange(round(a * fs), round(b * fs) + 1) for a, b in ((-0.26, -0.06), (0.14, 0.40)))
    alike_p, alike_t = (_correlation(cut(whole[same], span), beat[FREE][:, span - window[0]].reshape(1, -1)) for span in (p, t))
    values = (same.mean(), likeness.mean(), likeness.min(), energy[~same].mean() / energy[same].mean() if not same.all() else 1.0,
              np.median(wide), wide.max(), alike_p.mean(), alike_p.min(), alike_t.mean())  # fmt: skip
    return beat, dict(zip(BEATS, values, strict=True))


def _atrial(x, peaks, beat, fs):
    """The atria in II and V1: what is left when the ventricles' part of the median beat is taken out of every beat.

    QRST cancellation (Stridh & Sörnmo 2001, doi:10.1109/10.900266). Fibrillation waves lie at 4-9 Hz: share of that band in 3-15 Hz,
    frequency of its peak (Hz), share of the peak (`purity`), and the rms of what is left (mV).
    """
    start = int(np.ceil(BEFORE * fs))
    position = np.arange(x.shape[1])
    nearest = np.searchsorted(peaks - round(0.08 * fs), position, side="right") - 1  # a beat begins 80 ms before its R
    offset = position - peaks[np.maximum(nearest, 0)] + start
    inside = (nearest >= 0) & (offset < beat.shape[1])
    leads = [1, 6]
    rest = x[leads] - np.where(inside, beat[leads][:, np.clip(offset, 0, beat.shape[1] - 1)], 0)
    power = np.abs(np.fft.rfft(rest * np.hanning(rest.shape[1]))) ** 2
    frequency = np.fft.rfftfreq(rest.shape[1], 1 / fs)
    wide, band = (frequency >= 3) & (frequency <= 15), (frequency >= 4) & (frequency <= 9)
    total = np.maximum(power[:, wide].sum(1), 1e-9)
    peak = frequency[band][power[:, band].argmax(1)]
    around = np.abs(frequency - peak[:, None]) <= 0.35
    values = (rest.std(1), power[:, band].sum(1) / total, peak, (power * (around & wide)).sum(1) / total)
    return {f"{lead}_{name}": value[i] for name, value in zip(ATRIAL, values, strict=True) for i, lead in enumerate(("II", "V1"))}


def _waves(beat, rr, absent):
    """Amplitudes, durations and axes of median beats.

    Onset and end of the QRS complex are where the spatial velocity, the root of the summed squared slopes of the eight independent leads,
    falls below `QUIET` of its peak and stays there for 20 ms; amplitudes are relative to the mean just before the onset. The T wave ends
    where the tangent at its steepest descent meets that level (Lepeschkin & Surawicz 1952). QTc after Bazett (1920) and Fridericia (1920);
    voltages after Sokolow & Lyon (1949), Casale et al. (1985, Cornell), Lewis (1914) and Peguero et al. (2017,
    doi:10.1016/j.jacc.2017.01.037). The frontal axis is atan2(2 aVF / sqrt 3, I) of the areas under the wave.

    Args:
        beat: float (records, 12, len(GRID)), mV. rr: (records,), s. absent: bool (records, 12), leads that hold nothing.

    Returns:
        dict name -> float (records,) or (records, 12).
    """
    n, _, length = beat.shape
    row = np.arange(n)

    def index(time):
        return np.clip(np.rint((time - GRID[0]) / STEP), 0, length - 1).astype(int)

    def between(low, high):  # (records, samples)
        return (np.reshape(low, (-1, 1)) <= GRID) & (np.reshape(high, (-1, 1)) >= GRID)

    def mean(values, where):
        return (values * where[:, None]).sum(-1) / np.maximum(where.sum(-1), 1)[:, None]

    def extreme(values, where, sign):
        """Largest value of this sign, 0 where there is none, and its time, (records, 12) each; without one: the QRS onset."""
        inside = np.where(where, sign * values, 0)
        at = inside.argmax(-1)
        value = np.maximum(np.take_along_axis(inside, at[..., None], -1)[..., 0], 0)
        return value, np.where(value > 0, GRID[at], on[:, None])

    velocity = np.sqrt((np.gradient(beat[:, FREE], STEP, axis=-1) ** 2).sum(1))
    limit = QUIET * np.where(np.abs(GRID) <= 0.08, velocity, 0).max(-1, keepdims=True)
    still = round(0.02 / STEP)
    busy = np.pad((velocity > limit).cumsum(-1), ((0, 0), (1, 0)))
    quiet = busy[:, still:] == busy[:, :-still]  # the `still` samples from here on are all quiet
    until = GRID[: quiet.shape[1]]
    before = quiet & (until + 0.02 <= -0.01) & (until >= -0.18)
    after = quiet & (until >= 0.02) & (until <= 0.22)
    on = np.where(before.any(1), until[length - still - before[:, ::-1].argmax(1)] + 0.02, -0.18)
    off = np.where(after.any(1), until[after.argmax(1)], 0.22)

    beat = beat - mean(beat, between(on - 0.03, on - 0.006))[..., None]
    size = np.sqrt((beat[:, FREE] ** 2).mean(1))
    out = {"qrs.width": off - on, "qrs.on": -on}

    # QRS: R is the tallest upward deflection, Q and S the deepest downward ones before and after it, R' the next upward one after S
    qrs = between(on, off)[:, None]
    r, r_time = extreme(beat, qrs, 1)
    q, q_time = extreme(beat, qrs & (r_time[..., None] > GRID), -1)
    s, s_time = extreme(beat, qrs & (r_time[..., None] < GRID), -1)
    r2, _ = extreme(beat, qrs & (s_time[..., None] < GRID) & (s[..., None] > 0), 1)
    area = (beat * qrs).sum(-1) * STEP
    span = np.maximum(r + np.maximum(q, s), 1e-3)
    early = beat[row, :, index(on + 0.04)]
    slope = np.abs(np.diff(beat, axis=-1)) * qrs[..., 1:]
    out |= {"q": q, "r": r, "s": s, "r2": r2, "q_time": q_time - on[:, None], "r_time": r_time - on[:, None],
            "s_time": s_time - on[:, None], "area": area, "early": early, "notches": slope.sum(-1) / span}  # fmt: skip

    # ST and T
    j, j60, j80 = (beat[row, :, index(off + late)] for late in (0.0, 0.06, 0.08))
    t_last = np.minimum(0.55 * np.sqrt(rr), GRID[-1])
    t = between(off + 0.06, t_last)
    t_up, _ = extreme(beat, t[:, None], 1)
    t_down, _ = extreme(beat, t[:, None], -1)
    t_area = (beat * t[:, None]).sum(-1) * STEP
    t_peak = GRID[np.where(t, size, -1).argmax(-1)]
    fall = np.where(between(t_peak, t_last + 0.04), -np.gradient(size, STEP, axis=-1), -1)
    steepest = fall.argmax(-1)
    t_end = GRID[steepest] + size[row, steepest] / np.maximum(fall[row, steepest], 1e-3)
    t_end = np.where((t_end < t_peak + 0.3) & (t_end > t_peak), t_end, np.nan)
    qt = t_end - on
    out |= {"j": j, "st60": j60, "st_slope": (j80 - j) / 0.08, "t_up": t_up, "t_down": t_down, "t_area": t_area,
            "t.peak": t_peak - on, "t.qt": qt, "t.qtc_bazett": qt / np.sqrt(rr), "t.qtc_fridericia": qt / np.cbrt(rr),
            "t.peak_to_end": t_end - t_peak, "t.size": size[row, index(t_peak)]}  # fmt: skip

    # P: looked for between the end of the T wave before and the QRS onset
    p = between(np.maximum(-0.34, 0.45 * np.sqrt(rr) - rr), on - 0.03)
    p_peak = GRID[np.where(p, size, -1).argmax(-1)]
    p_near = p & between(p_peak - 0.06, p_peak + 0.06)
    p_up, _ = extreme(beat, p_near[:, None], 1)
    p_down, _ = extreme(beat, p_near[:, None], -1)
    p_size = size[row, index(p_peak)]
    p_wide = (p & (size > 0.4 * p_size[:, None])).sum(-1) * STEP
    first = np.where(p.any(1), p.argmax(1), 0)
    out |= {"p_up": p_up, "p_down": p_down, "p_area": (beat * p_near[:, None]).sum(-1) * STEP,
            "p.pr": on - p_peak, "p.width": p_wide, "p.size": p_size, "p.share": p_size / np.maximum(size.max(-1), 1e-3),
            "p.prominence": p_size - size[row, first]}  # fmt: skip

    out = {name: np.where(absent, np.nan, value) if np.ndim(value) == 2 else value for name, value in out.items()}
    v = {name: dict(zip(LEADS, out[name].T, strict=True)) for name in ("q", "r", "s", "area", "t_area", "p_area", "p_down")}

    def axis(area):
        return np.degrees(np.arctan2(2 / np.sqrt(3) * area["aVF"], area["I"]))

    qrs_axis, t_axis = axis(v["area"]), axis(v["t_area"])
    deepest = {lead: np.maximum(v["q"][lead], v["s"][lead]) for lead in LEADS}
    chest = np.stack([v["r"][lead] > deepest[lead] for lead in LEADS[6:]], axis=1)
    cornell = v["r"]["aVL"] + deepest["V3"]
    total = out["r"] + np.maximum(out["q"], out["s"])
    onset = np.sqrt((np.diff(beat[:, FREE], 2, axis=-1) ** 2).sum(1)) / STEP**2
    return out | {
        "axis.p": axis(v["p_area"]), "axis.qrs": qrs_axis, "axis.t": t_axis, "axis.qrs_t": np.abs((qrs_axis - t_axis + 180) % 360 - 180),
        "voltage.sokolow_lyon": deepest["V1"] + np.maximum(v["r"]["V5"], v["r"]["V6"]),
        "voltage.sokolow_lyon_right": v["r"]["V1"] + np.maximum(deepest["V5"], deepest["V6"]),
        "voltage.cornell": cornell, "voltage.cornell_product": cornell * out["qrs.width"],
        "voltage.lewis": v["r"]["I"] + deepest["III"] - v["r"]["III"] - deepest["I"],
        "voltage.peguero": np.max(list(deepest.values()), axis=0) + deepest["V4"],
        "voltage.limb": total[:, :6].max(1), "voltage.chest": total[:, 6:].max(1),
        "voltage.transition": np.where(chest.any(1), chest.argmax(1) + 1.0, 7.0),
        "voltage.r_share_v1": v["r"]["V1"] / np.maximum(v["r"]["V1"] + deepest["V1"], 1e-3),
        "voltage.r_share_v6": v["r"]["V6"] / np.maximum(v["r"]["V6"] + deepest["V6"], 1e-3),
        "qrs.sharpness": np.where(between(on - 0.04, on + 0.04)[:, 1:-1], onset, 0).max(-1) / np.maximum(onset.max(-1), 1e-3),
        "qrs.jt": t_end - off,
    }  # fmt: skip


def _quality(x, fs):
    """Noise of each lead, the median size of its second differences, and drift, the deviation below 1 Hz; both mV."""
    spectrum = np.abs(np.fft.rfft(x)) ** 2 * 2 / x.shape[-1] ** 2
    frequency = np.fft.rfftfreq(x.shape[-1], 1 / fs)
    slow = np.sqrt(spectrum[..., (frequency > 0) & (frequency < 1)].sum(-1))
    noise = np.median(np.abs(np.diff(x, 2, axis=-1)), axis=-1)
    return {"noise": noise, "quality.drift": slow.max(1), "quality.drift_median": np.median(slow, axis=1)}


def measure(signals, fs, lead_mask=None, valid=None):
    """Measurements of 12-lead recordings.

    Args:
        signals: float (records, 12, samples), mV, canonical leads. fs: Hz, at least 50. lead_mask: bool (records, 12), False: missing.
        valid: int (records,), samples before padding.

    Returns:
        (values, names): float32 (records, features), NaN where something cannot be measured, and the names.
    """
    if signals.ndim != 3 or signals.shape[1] != 12 or fs < 50:
        raise CremaError(f"measurements need signals (records, 12, samples) at 50 Hz or more, not {signals.shape} at {fs} Hz")
    x = np.nan_to_num(np.array(signals, dtype=np.float32), copy=False)
    absent = x.std(-1) < FLAT
    if lead_mask is not None:
        absent |= ~lead_mask
    end = np.full(len(x), x.shape[-1]) if valid is None else np.asarray(valid)
    for i in np.flatnonzero(end < x.shape[-1]):
        x[i, :, end[i] :] = x[i, :, end[i] - 1, None]  # a drop to zero would look like a QRS complex
    window = np.arange(-int(np.ceil(BEFORE * fs)), int(np.ceil(AFTER * fs)) + 1)
    beat = np.zeros((len(x), 12, len(window)), dtype=np.float32)
    groups = {"rhythm": RHYTHM, "beats": BEATS, "atrial": [f"{lead}_{name}" for name in ATRIAL for lead in ("II", "V1")]}
    columns = {f"{group}.{name}": np.full(len(x), np.nan) for group, names in groups.items() for name in names}
    for i, found in enumerate(r_peaks(x, fs)):
        found = found[found < end[i]]
        one, values = _beats(x[i, :, : end[i]], found, fs)
        measured = {"rhythm": rhythm(found, fs), "beats": values}
        if one is not None:
            beat[i] = one
            measured["atrial"] = _atrial(x[i, :, : end[i]], found, one, fs)
        for group, values in measured.items():
            for name, value in values.items():
                columns[f"{group}.{name}"][i] = value
    none = ~beat.any((1, 2))
    rr = np.nan_to_num(columns["rhythm.rr_median"], nan=0.8)
    waves = _waves(CubicSpline(window / fs, beat, axis=-1)(GRID).astype(np.float32), rr, absent)
    for name, value in waves.items():
        value = value.astype(np.float32)
        value[none] = np.nan
        columns[name] = value
    columns |= _quality(x, fs)
    columns["quality.absent"] = absent.sum(1)
    table = {}
    for name, value in columns.items():
        table |= {f"{lead}.{name}": value[:, k] for k, lead in enumerate(LEADS)} if value.ndim == 2 else {name: value}
    return np.stack(list(table.values()), axis=1).astype(np.float32), list(table)


def features(store, rows=None, *, progress=False):
    """Measurements of the records of a store, see `measure`.

    Args:
        rows: row numbers, default all.

    Returns:
        (values, names): float32 (rows, features), NaN where something cannot be measured, and the names.
    """
    rows = np.arange(len(store)) if rows is None else np.asarray(rows)
    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    if not chunks:
        raise CremaError("no recording was given to measure")
    valid, done = store.table["valid"].to_numpy(), []
    for chunk in tqdm(chunks, desc="measuring", unit="chunk", disable=not progress):
        signals = store.signals[chunk] * np.float32(MV_PER_STEP)
        done.append(measure(signals, store.fs, store.lead_mask[chunk], valid[chunk]))
    return np.concatenate([values for values, _ in done]), done[0][1]


def kept(store, *, progress=False):
    """Measurements of all records of a store, float32 (records, `COUNT`); taken once by this code and kept beside the recordings."""
    code = zlib.crc32(inspect.getsource(sys.modules[__name__]).encode())
    return store.derived(f"measurements-{code:08x}", lambda: features(store, progress=progress)[0])


def normal_scores(values):
    """Measurements on one scale, whatever their units and tails: ranks turned into normal quantiles, then mean 0 and deviation 1.

    Ties, such as the zeros of an R' wave, which most leads do not have, share a value; what lies outside three deviations is put there.

    Args:
        values: float (records, measurements), NaN where something could not be measured.

    Returns:
        float32 of the same shape, NaN in the same places; 0 for a measurement that is the same in all records.
    """
    ranks = QuantileTransformer(n_quantiles=min(1000, len(values)), subsample=None, output_distribution="normal", random_state=0)
    return StandardScaler().fit_transform(ranks.fit_transform(values).clip(-3, 3)).astype(np.float32)


def rate(store, rows):
    """Heart rate of some records, beats a minute, float (rows,), from `r_peaks`; NaN with fewer than two beats.

    The detector takes some 5 ms a record on one core, so two minutes for all of PTB-XL.

    Raises:
        CremaError: no row is given.
    """
    rows, valid, found = np.asarray(rows), store.table["valid"].to_numpy(), []
    if not len(rows):
        raise CremaError("no recording was given to count the heart rate of")
    for block in np.split(rows, range(CHUNK, len(rows), CHUNK)):
        peaks = r_peaks(store.read(block).numpy(), store.fs)
        found += [rhythm(p[p < end], store.fs)["rate"] for p, end in zip(peaks, valid[block], strict=True)]
    return np.array(found)
