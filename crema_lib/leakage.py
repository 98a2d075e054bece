"""Who has seen what: patients on both sides of a split, recordings that are there twice, and recordings that pretraining saw.

A *near duplicate* is one stretch of one heart recorded once and kept twice, whatever happened to the copies: another gain, a little noise,
a shifted window, one lead spoilt. At the shift of the best match the two traces correlate with r >= threshold, over the whole signal or
in most leads, and not in one stretch alone. Other beats of the same patient do not reach this, not even from a pacemaker, as a rule.
"""

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.signal import resample
from scipy.signal.windows import hann
from tqdm import tqdm

from .data.leads import lead_index
from .data.splits import SPLITS
from .data.store import MV_PER_STEP, EcgStore
from .errors import CremaError
from .paths import data_home

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
SEEN = "seen.safetensors"


# -- what there is -----------------------------------------------------------------------------------------------------------------


def find(name):
    """The prepared data set of a name (`ptb-xl`) or a folder.

    Raises:
        CremaError: there is none, or there are several of that name.
    """
    if (Path(name) / "store.json").is_file():
        return EcgStore(Path(name).resolve())
    found = sorted((data_home() / "stores").glob(f"{name}-*hz-*s"))
    if len(found) != 1:
        several = f"it is prepared as {', '.join(path.name for path in found)}: give the folder of one"
        none = f"it is neither a folder with a store.json nor prepared in {data_home() / 'stores'}: python -m crema_lib data prepare {name}"
        raise CremaError(f"cannot open the data set {name}: {several if found else none}")
    return EcgStore(found[0])


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


# -- twice the same ----------------------------------------------------------------------------------------------------------------


def exact_duplicates(listed):
    """Recordings with the same samples: DataFrame a, b of index values of a `catalogue`; the first of k is paired with the rest."""
    some = listed[~listed["flat"]].assign(index=lambda table: table.index)
    first = some.groupby(["hash0", "hash1"])["index"].transform("first")
    copies = some.index[first != some.index]
    return pd.DataFrame({"a": first[copies].to_numpy(), "b": copies})


def near_duplicates(stores, listed, *, threshold=THRESHOLD, max_shift=MAX_SHIFT, progress=False):
    """Search all pairs of recordings for near duplicates; equal and flat recordings are left out.

    Three steps: amplitude spectra at 25 Hz, which a shift does not change, sieve all pairs (one matrix product); cross-correlation at
    25 Hz sieves their candidates; what is left is aligned at the lowest rate of the stores and compared over the common samples and leads.
    Stores of different length are compared on their middle. About 25 kB of memory a recording.

    Args:
        stores, listed: the stores and their `catalogue`. threshold: least correlation, 0.5 to 1. max_shift: s, at most 1.
        progress: show a bar.

    Returns:
        DataFrame of the aligned pairs, the closest pair of every recording among them: a, b (index values of `listed`), r (over all
        common leads), r_leads (median over the leads), r_seconds (median over one-second windows and leads), shift (s, of a against b),
        seconds (overlap), rule (`whole signal`, `most leads`, or empty: no near duplicate).

    Raises:
        CremaError: an argument out of range, recordings shorter than 5 s, or too many that resemble each other.
    """
    if not 0.5 <= threshold <= 1 or not 0 <= max_shift <= 1:
        raise CremaError(f"threshold = {threshold} must lie within 0.5 to 1, max_shift = {max_shift} within 0 to 1 s")
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
    rough = _coarse_correlations(coarse, pairs, round(max_shift * SIEVE_HZ), progress)
    order = np.argsort(-rough, kind="stable")
    closest = order[np.unique(pairs[order].ravel(), return_index=True)[1] // 2]  # the best pair that each recording is in
    pairs = pairs[np.union1d(np.flatnonzero(rough >= threshold - SLACK), closest)]

    parts = []
    for i in tqdm(range(0, len(pairs), BLOCK // 4), desc="alignment", unit="block", disable=not progress):
        sides = [_traces(stores, where.iloc[pairs[i : i + BLOCK // 4, side]], fs, seconds) for side in (0, 1)]
        parts.append(_align(*sides, fs, max_shift))
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


def _align(first, second, fs, max_shift):
    """Shift the second of each pair onto the first and correlate over common leads and samples; arguments as `_traces` returns them."""
    (a, span_a, present_a), (b, span_b, present_b) = first, second
    n, reach = a.shape[-1], round(max_shift * fs * FINE)
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


# -- what a checkpoint saw ---------------------------------------------------------------------------------------------------------


def remember(folder, store, rows, rate=1e-6):
    """Write into a model's folder which recordings it was trained on, as a Bloom filter of their hashes: `seen.safetensors`.

    A Bloom filter (Bloom 1970, doi:10.1145/362686.362692) of m bits with k positions an item says "no" only where it is sure, and "yes"
    wrongly with probability (1 - exp(-k n / m))^k, here `rate` for its n items. No recording and no hash can be read back from it. The k
    positions come from the two halves of one hash (Kirsch & Mitzenmacher 2008, doi:10.1002/rsa.20208).

    Args:
        folder: of the model. store, rows: what it was trained on. rate: probability of a false "seen", 0 < rate < 1.
    """
    rows = np.asarray(rows)
    if not len(rows) or not 0 < rate < 1:
        raise CremaError(f"{len(rows)} recordings and a false-positive rate of {rate}: give one or more, and a rate within 0 to 1")
    size = 8 * int(np.ceil(-len(rows) * np.log(rate) / np.log(2) ** 2 / 8))
    positions = max(1, round(size / len(rows) * np.log(2)))
    bits = np.zeros(size, bool)
    bits[_positions(digests(store, rows), size, positions)] = True
    kept = {"items": len(rows), "positions": positions, "rate": rate, "hash": "BLAKE2b-128 of int16 (12, samples), 1 uV a step"}
    kept |= {**_grid(store), "source": store.meta.get("source", ""), "data_sha256": store.meta["sha256"], "scipy": version("scipy")}
    save_file({"bits": np.packbits(bits)}, Path(folder) / SEEN, {key: str(value) for key, value in kept.items()})


def what_was_seen(folder):
    """(bool (bits,), dict of texts): the Bloom filter of a model's folder with its `items`, `positions`, `rate`, `fs`, `data_sha256`, ...

    Raises:
        CremaError: the folder has none, or it is damaged.
    """
    path = Path(folder) / SEEN
    if not path.is_file():
        raise CremaError(f"{folder} does not say what it was trained on (no {SEEN}): pretrain again, or write it with leakage.remember")
    try:
        with safe_open(path, framework="numpy") as file:
            bits, kept = np.unpackbits(file.get_tensor("bits")).astype(bool), dict(file.metadata() or {})
        int(kept["positions"]), int(kept["items"]), float(kept["rate"]), [kept[key] for key in ("fs", "seconds", "band")]
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CremaError(f"{path} is damaged ({error}): fetch or write it again") from None
    return bits, kept


def seen(folder, store, rows=None):
    """Whether a model was trained on recordings of a store.

    Equal means equal in every prepared sample. A recording that was prepared in another way, or the near duplicate of one, is not found.

    Returns:
        bool (records,): True is wrong with the probability `rate` of the filter, False is never wrong.

    Raises:
        CremaError: no or a damaged `seen.safetensors`, or the store was prepared at another rate, length or band.
    """
    bits, kept = what_was_seen(folder)
    grid = {key: str(value) for key, value in _grid(store).items()}
    if wrong := [f"{key} {kept[key]}, not {value}" for key, value in grid.items() if kept[key] != value]:
        raise CremaError(f"{folder} was trained on recordings of {', '.join(wrong)}: prepare {store.path.name} in the same way to compare")
    return bits[_positions(digests(store, rows), len(bits), int(kept["positions"]))].all(1)


def _grid(store):
    """How a store was prepared, as far as equal samples need it."""
    band = store.meta.get("band")
    return {"fs": f"{store.fs:g}", "seconds": f"{store.seconds:g}", "band": "-".join(f"{edge:g}" for edge in band) if band else "none"}


def _positions(hashes, size, count):
    """Bit numbers (records, count)."""
    with np.errstate(over="ignore"):
        return ((hashes[:, :1] + np.arange(count, dtype=np.uint64) * (hashes[:, 1:] | np.uint64(1))) % np.uint64(size)).astype(np.int64)


# -- the table ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """What `examine` found. The table may be shown and kept; the other DataFrames name recordings and stay in memory.

    Attributes:
        table: DataFrame question, where (store), split, count, of (how many), other_patients and other_labels (of the pairs, those of
            different patients, and of different labels), leak (bool).
        listed: the `catalogue`. exact: pairs a, b. aligned: see `near_duplicates`.
    """

    table: pd.DataFrame
    listed: pd.DataFrame
    exact: pd.DataFrame
    aligned: pd.DataFrame

    @property
    def near(self):
        return self.aligned[self.aligned["rule"] != ""]

    def wide(self):
        """The counts with one column a store."""
        return (
            self.table.pivot_table("count", ["question", "split"], "where", sort=False)
            .astype("Int64")
            .reset_index()
            .rename_axis(None, axis=1)
        )

    def best(self):
        """The recording closest to each: DataFrame other, r over the index of `listed`, without flat and equal ones."""
        sides = [self.aligned.set_index(side)[[other, "r"]].rename(columns={other: "other"}) for side, other in (("a", "b"), ("b", "a"))]
        both = pd.concat(sides).sort_values("r", ascending=False, kind="stable")
        return both[~both.index.duplicated()].sort_index()

    def closest(self, groups, edges=None):
        """How many recordings of each group have their closest one at which correlation.

        Args:
            groups: Series of names over the index of `best()`, NaN for what is not counted. edges: of the bins; 50 from 0 to 1 by default.

        Returns:
            DataFrame group, low, high, count; what lies outside is counted in the first and the last bin.
        """
        edges = np.linspace(0, 1, 51) if edges is None else np.asarray(edges)
        r, rows = self.best()["r"].clip(edges[0], edges[-1]), []
        for group in sorted(groups.dropna().unique()):
            counts = np.histogram(r[groups.reindex(r.index) == group], edges)[0]
            rows += [(group, *edge) for edge in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)]
        return pd.DataFrame(rows, columns=["group", "low", "high", "count"])

    def sentence(self):
        """What is wrong in one sentence, empty where nothing is."""
        leaks = self.table[self.table["leak"]].to_dict("records")
        return "; ".join(f"{row['where']}: {row['count']:,} {row['question']} {row['split']}" for row in leaks)


def examine(stores, *, checkpoint=None, threshold=THRESHOLD, progress=False):
    """Answer every question of this module for some stores.

    A leak is a patient on two sides of a split or in two stores, an equal or near-equal pair on two sides or in two stores, and a
    recording for choosing or testing that pretraining saw.

    Args:
        stores: list of `EcgStore`. checkpoint: folder of a pretrained model, or None. threshold, progress: see `near_duplicates`.

    Returns:
        Report.

    Raises:
        CremaError: see `catalogue`, `near_duplicates`, `seen`.
    """
    known = [seen(checkpoint, store) for store in stores] if checkpoint else []  # what cannot work is told before the long search
    listed = catalogue(stores)
    labels = np.concatenate([store.table["labels"].to_numpy() for store in stores])
    exact = exact_duplicates(listed)
    aligned = near_duplicates(stores, listed, threshold=threshold, progress=progress)
    homes, rows = listed.groupby("patient")["store"].nunique(), []
    for i, (name, own) in enumerate(listed.groupby("store", sort=False)):
        sides, n = own.groupby("patient")["side"].nunique(), len(own)
        people, none = len(sides), (None, None)
        rows += [("recordings", name, "all", n, n, *none), ("patients", name, "all", people, people, *none)]
        rows += [("too flat to compare", name, "all", own["flat"].sum(), n, *none)]
        rows += [("patients", name, "across sides", (sides > 1).sum(), people, *none)]
        rows += [("patients", name, "in other sets", (homes[sides.index] > 1).sum(), people, *none)]
        for question, pairs in (("exact duplicates", exact), ("near duplicates", aligned[aligned["rule"] != ""])):
            mine = pairs[pairs["a"].isin(own.index) | pairs["b"].isin(own.index)]
            a, b = (listed.loc[mine[side]].reset_index(drop=True) for side in ("a", "b"))
            unlike = labels[mine["a"]] != labels[mine["b"]], a["patient"] != b["patient"]
            abroad, across = a["store"] != b["store"], a["side"] != b["side"]
            for split, where in (("within a side", ~abroad & ~across), ("across sides", ~abroad & across), ("in other sets", abroad)):
                differ = [int((where & other).sum()) for other in unlike] if split != "in other sets" else none
                rows.append((question, name, split, where.sum(), n, *differ))
        for side in SPLITS if known else ():
            of = (own["side"] == side).to_numpy()
            rows.append(("seen in pretraining", name, side, known[i][of].sum(), of.sum(), *none))
    table = pd.DataFrame(rows, columns=["question", "where", "split", "count", "of", "other_labels", "other_patients"])
    table = table.astype({"count": "int64", "of": "int64", "other_labels": "Int64", "other_patients": "Int64"})
    leak = table["split"].isin(["across sides", "in other sets", "valid", "test"]) & (table["count"] > 0)
    return Report(table.assign(leak=leak), listed, exact, aligned)
