"""Recordings that are there twice, as they are or nearly.

A *near duplicate* is one stretch of one heart recorded once and kept twice, whatever happened to the copies: another gain, a little noise,
a shifted window, one lead spoilt. At the shift of the best match the two traces correlate with r >= threshold, over the whole signal or
in most leads, and not in one stretch alone. Other beats of the same patient do not reach this, not even from a pacemaker, as a rule.
"""

import hashlib

import numpy as np
import pandas as pd
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.signal import resample
from scipy.signal.windows import hann
from tqdm import tqdm

from ..data.leads import lead_index
from ..data.splits import SPLITS
from ..data.store import MV_PER_STEP
from ..errors import CremaError

THRESHOLD = 0.99  # correlation from which two recordings count as one; noise of 14 % of the signal's standard deviation leads there
MAX_SHIFT = 1.0  # s between the two windows
SIEVE_HZ, SIEVE_BAND, SIEVE = 25, (0.8, 10.0), 0.8  # coarse rate, band (Hz) of the amplitude spectra, their least correlation
SLACK = 0.25  # a coarse correlation may be lower than the exact one by so much: it knows nothing of padding, overlap and spoilt leads
LOCAL = 0.9  # median correlation of one-second windows: a shared artefact gives a high one over the whole signal and none beside it
MIN_SECONDS = 4.0  # overlap; in less there are too few beats to tell two hearts apart
FLAT_MV = 0.01  # root mean square of a trace that holds nothing to compare
ALL_PAIRS = 256  # up to so many recordings every pair is aligned
MOST_PAIRS = 5_000_000
FINE = 4  # steps a sample in the search for the shift: at 10 Hz half a sample of 100 Hz costs .05 of the correlation
BLOCK = 2048
INDEPENDENT = [lead_index(lead) for lead in ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")]  # the other four follow from I and II


def digests(store, rows=None):
    """BLAKE2b-128 of each prepared recording (int16 little-endian, 12 leads x samples): uint64 (records, 2)."""
    rows = range(len(store)) if rows is None else rows
    found = b"".join(hashlib.blake2b(np.ascontiguousarray(store.signals[row]), digest_size=16).digest() for row in rows)
    return np.frombuffer(found, "<u8").reshape(-1, 2)


def catalogue(stores):
    """Every recording of some stores in one table.

    Returns:
        DataFrame, one row a recording: store (name of its folder), row, record, patient (source/identifier), side (train, valid, test),
        flat (bool: too little signal to compare), hash (two columns, see `digests`).

    Raises:
        CremaError: no store, two of one name, or a fold outside 1 to 10.
    """
    names = [store.path.name for store in stores]
    if not names or len(set(names)) < len(names):
        raise CremaError(f"give one or more data sets with names of their own, not {', '.join(names) or 'none'}")
    side = {fold: name for name, folds in SPLITS.items() for fold in folds}
    parts = []
    for name, store in zip(names, stores, strict=True):
        table, hashes = store.table, digests(store)
        blocks = [np.asarray(store.signals[i : i + BLOCK], np.float32) for i in range(0, len(store), BLOCK)]
        rms = np.concatenate([np.sqrt(np.square(block).mean((1, 2))) for block in blocks]) * MV_PER_STEP
        part = {"store": name, "row": np.arange(len(store)), "record": table["record"].to_numpy()}
        part |= {"patient": (table["source"] + "/" + table["patient"]).to_numpy(), "side": table["fold"].map(side).to_numpy()}
        parts.append(pd.DataFrame({**part, "flat": rms < FLAT_MV, "hash0": hashes[:, 0], "hash1": hashes[:, 1]}))
    found = pd.concat(parts, ignore_index=True)
    if len(wrong := found[found["side"].isna()]):
        raise CremaError(f"recording {wrong['record'].iloc[0]} of {wrong['store'].iloc[0]} is in a fold that is none of 1 to 10")
    return found


def exact_duplicates(listed):
    """Recordings with the same samples: DataFrame a, b of index values of a `catalogue`; the first of k is paired with the rest."""
    some = listed[~listed["flat"]].assign(index=lambda table: table.index)
    first = some.groupby(["hash0", "hash1"])["index"].transform("first")
    copies = some.index[first != some.index]
    return pd.DataFrame({"a": first[copies].to_numpy(), "b": copies})


def near_duplicates(stores, listed, *, threshold=THRESHOLD, progress=False):
    """Search all pairs of recordings for near duplicates; equal and flat recordings are left out.

    Three steps: amplitude spectra at 25 Hz, which a shift does not change, sieve all pairs (one matrix product); cross-correlation at
    25 Hz sieves their candidates; what is left is aligned at the lowest rate of the stores and compared over the common samples and leads.
    Stores of different length are compared on their middle. About 25 kB of memory a recording.

    Args:
        stores, listed: the stores and their `catalogue`. threshold: least correlation, 0.5 to 1. progress: show a bar.

    Returns:
        DataFrame of the aligned pairs, the closest pair of every recording among them: a, b (index values of `listed`), r (over all
        common leads), r_leads (median over the leads), r_seconds (median over one-second windows and leads), shift (s, of a against b),
        seconds (overlap), rule (`whole signal`, `most leads`, or empty: no near duplicate).

    Raises:
        CremaError: a threshold out of range, recordings shorter than 5 s, or too many that resemble each other.
    """
    if not 0.5 <= threshold <= 1:
        raise CremaError(f"threshold = {threshold} must lie within 0.5 to 1")
    seconds, fs = min(store.seconds for store in stores), min(store.fs for store in stores)
    if seconds < MIN_SECONDS + 1:
        raise CremaError(f"recordings of {seconds:g} s are too short to look for near duplicates: prepare at least {MIN_SECONDS + 1:g} s")
    kept = listed.index.difference(listed.index[listed["flat"]].union(exact_duplicates(listed)["b"]))
    columns = {"a": "int64", "b": "int64", **dict.fromkeys(("r", "r_leads", "r_seconds", "shift", "seconds"), "float64"), "rule": "str"}
    if len(kept) < 2:
        return pd.DataFrame(columns=list(columns)).astype(columns)
    where = listed.loc[kept, ["store", "row"]]

    coarse = np.empty((len(where), len(INDEPENDENT), round(SIEVE_HZ * seconds)), np.float32)
    for i in range(0, len(where), BLOCK):
        coarse[i : i + BLOCK] = _traces(stores, where[i : i + BLOCK], SIEVE_HZ, seconds)[0]
    pairs = _sieve(coarse, seconds, progress)
    rough = _coarse_correlations(coarse, pairs, round(MAX_SHIFT * SIEVE_HZ), progress)
    order = np.argsort(-rough, kind="stable")
    closest = order[np.unique(pairs[order].ravel(), return_index=True)[1] // 2]  # the best pair that each recording is in
    pairs = pairs[np.union1d(np.flatnonzero(rough >= threshold - SLACK), closest)]

    parts = []
    for i in tqdm(range(0, len(pairs), BLOCK // 4), desc="alignment", unit="block", disable=not progress):
        sides = [_traces(stores, where.iloc[pairs[i : i + BLOCK // 4, side]], fs, seconds) for side in (0, 1)]
        parts.append(_align(*sides, fs))
    found = pd.concat(parts, ignore_index=True)
    valid = (found["r_seconds"] >= LOCAL) & (found["seconds"] >= MIN_SECONDS)
    rule = np.select([valid & (found["r"] >= threshold), valid & (found["r_leads"] >= threshold)], ["whole signal", "most leads"], "")
    found = found.assign(a=kept[pairs[:, 0]], b=kept[pairs[:, 1]], rule=rule)
    return found[list(columns)].astype(columns).sort_values("r", ascending=False, ignore_index=True)


def _traces(stores, where, fs, seconds):
    """Middle `seconds` of some recordings at fs: float32 (n, 8, samples) mV, span (n, 2) of valid samples, lead mask (n, 8)."""
    n = round(fs * seconds)
    x, span = np.empty((len(where), len(INDEPENDENT), n), np.float32), np.empty((len(where), 2))
    present = np.empty((len(where), len(INDEPENDENT)), bool)
    for store in stores:
        places = np.flatnonzero(where["store"] == store.path.name)
        if not len(places):
            continue
        rows, whole = where["row"].to_numpy()[places], round(fs * store.seconds)
        signal = store.signals[rows][:, INDEPENDENT].astype(np.float32) * MV_PER_STEP
        signal = signal if whole == signal.shape[-1] else resample(signal, whole, axis=-1)
        start = (whole - n) // 2
        x[places] = signal[..., start : start + n]
        span[places, 0] = 0
        span[places, 1] = np.clip(store.table["valid"].to_numpy()[rows] * fs / store.fs - start, 0, n).round()
        present[places] = store.lead_mask[rows][:, INDEPENDENT]
    return x, span, present


def _sieve(x, seconds, progress):
    """Pairs (n, 2) of rows i < j of x (records, 8, samples at 25 Hz) whose amplitude spectra correlate, and each row's closest one."""
    n = len(x)
    if n <= ALL_PAIRS:
        return np.stack(np.triu_indices(n, 1), axis=1)
    low, high = (round(edge * seconds) for edge in SIEVE_BAND)
    window = hann(x.shape[-1], sym=False).astype(np.float32)
    spectra = [np.abs(rfft(x[i : i + BLOCK] * window)[..., low : high + 1]).reshape(len(x[i : i + BLOCK]), -1) for i in range(0, n, BLOCK)]
    f = np.concatenate(spectra)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    f -= f.mean(0)  # what all have in common tells nobody apart
    f /= np.linalg.norm(f, axis=1, keepdims=True) + np.float32(1e-12)
    pairs, closest, height = [], np.zeros(n, np.int64), np.full(n, -2, np.float32)
    tiles = [(i, j) for i in range(0, n, BLOCK) for j in range(i, n, BLOCK)]
    for i, j in tqdm(tiles, desc="all pairs", unit="tile", disable=not progress):
        r = f[i : i + BLOCK] @ f[j : j + BLOCK].T
        if i == j:
            np.fill_diagonal(r, -1)
        for start, other, block in ((i, j, r), (j, i, r.T)):  # the closest one of the rows, and of the columns
            top = block.argmax(1)
            value, rows = block[np.arange(len(block)), top], np.arange(start, start + len(block))
            better = rows[value > height[rows]]
            closest[better], height[better] = other + top[better - start], value[better - start]
        a, b = np.nonzero(r > SIEVE)
        a, b = a + i, b + j
        pairs.append(np.stack([a, b], 1)[a < b])
        if sum(map(len, pairs)) > MOST_PAIRS:
            raise CremaError(f"more than {MOST_PAIRS:,} pairs of recordings resemble each other: compare fewer data sets at a time")
    nearest = np.sort(np.stack([np.arange(n), closest], 1), axis=1)
    return np.unique(np.concatenate([*pairs, nearest]), axis=0)


def _coarse_correlations(x, pairs, shift, progress):
    """Largest cross-correlation (pairs,) of rows of x (records, leads, samples) within some samples of shift, mean of the common leads."""
    size = next_fast_len(x.shape[-1] + 2 * shift, real=True)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)  # lead by lead, so that a spoilt one costs its share and not its energy
    alive = norm[..., 0] > FLAT_MV / 10 * np.sqrt(x.shape[-1])
    spectra = np.empty((*x.shape[:2], size // 2 + 1), np.complex64)
    for i in range(0, len(x), BLOCK):
        spectra[i : i + BLOCK] = rfft(x[i : i + BLOCK] / np.maximum(norm[i : i + BLOCK], 1e-9), size) * alive[i : i + BLOCK, :, None]
    lags, found = np.arange(-2 * shift, 2 * shift + 1), np.empty(len(pairs), np.float32)
    for i in tqdm(range(0, len(pairs), BLOCK), desc="candidates", unit="block", disable=not progress):
        a, b = pairs[i : i + BLOCK].T
        cross = irfft(np.einsum("plf,plf->pf", spectra[a], spectra[b].conj()), 2 * size)  # at 25 Hz alone it would miss the peak
        found[i : i + BLOCK] = 2 * cross[:, lags].max(1) / np.maximum((alive[a] & alive[b]).sum(1), 1)
    return found


def _align(first, second, fs):
    """Shift the second of each pair onto the first and correlate over common leads and samples; arguments as `_traces` returns them."""
    (a, span_a, present_a), (b, span_b, present_b) = first, second
    n, reach = a.shape[-1], round(MAX_SHIFT * fs * FINE)
    size = next_fast_len(n + reach // FINE + 1, real=True)
    present = (present_a & present_b)[..., None]
    a, b = a * present, b * present
    spectrum = rfft(b, size)
    cross = irfft((rfft(a, size) * spectrum.conj()).sum(1), FINE * size)
    lags = np.arange(-reach, reach + 1)
    whole = np.rint(lags / FINE).astype(int)
    overlap = np.sqrt(
        _energy(a, np.maximum(whole, 0), n + np.minimum(whole, 0)) * _energy(b, np.maximum(-whole, 0), n - np.maximum(whole, 0))
    )
    lag = lags[(cross[:, lags] / np.maximum(overlap, 1e-9)).argmax(1)] / FINE
    b = irfft(spectrum * np.exp(-2j * np.pi * rfftfreq(size)[None] * lag[:, None]).astype(np.complex64)[:, None], size)[..., :n]

    time = np.arange(n)
    common = (time >= np.maximum(span_a[:, :1], span_b[:, :1] + lag[:, None])) & (
        time < np.minimum(span_a[:, 1:], span_b[:, 1:] + lag[:, None])
    )
    count = common.sum(1)
    a, b = (_centred(x, common, count) for x in (a, b))
    products = np.stack([a * b, a * a, b * b])  # (3, pairs, leads, samples)
    whole, step = products.sum(-1, dtype=np.float64), round(fs)
    whole[:, (whole[1:] <= count[:, None] * (FLAT_MV / 10) ** 2).any(0)] = np.nan  # a lead that is flat in one of the two
    windows = products[..., : n // step * step].reshape(*products.shape[:3], -1, step).sum(-1, dtype=np.float64)
    found = {"r": _correlation(np.nansum(whole, -1)), "r_leads": _median(_correlation(whole))}
    found["r_seconds"] = _median(_median(_correlation(windows).swapaxes(1, 2)))
    return pd.DataFrame({**found, "shift": lag / fs, "seconds": count / fs}).fillna({"r": 0, "r_leads": 0, "r_seconds": 0})


def _energy(x, start, stop):
    """Sum of squares of x (pairs, leads, samples) over leads and from start to stop, (pairs, number of starts)."""
    total = np.cumsum(np.square(x).sum(1), axis=1, dtype=np.float64)
    total = np.concatenate([np.zeros((len(x), 1)), total], axis=1)
    return total[:, stop] - total[:, start]


def _centred(x, common, count):
    """x (pairs, leads, samples) less its mean over the common samples (pairs, samples), zero elsewhere."""
    x = x * common[:, None]
    return (x - x.sum(-1, keepdims=True) / np.maximum(count, 1)[:, None, None]).astype(np.float32) * common[:, None]


def _correlation(products):
    """From sums of a b, a a and b b, stacked; NaN where one is flat."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return products[0] / np.sqrt(products[1] * products[2])


def _median(values):
    """Median over the last axis of what is not NaN; NaN where nothing is left."""
    values = np.sort(values, axis=-1)  # NaN come last
    count = np.isfinite(values).sum(-1, keepdims=True)
    middle = np.concatenate([np.maximum(count - 1, 0) // 2, count // 2], -1)
    return np.take_along_axis(values, middle, -1).mean(-1)
