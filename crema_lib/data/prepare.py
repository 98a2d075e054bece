"""From a folder of recordings to an `EcgStore`: read, screen, resample, filter, crop, write; and a report of what was not fine."""

import errno
import hashlib
import os
from collections import Counter, deque
from contextlib import closing
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
from loky import ProcessPoolExecutor
from scipy.signal import butter, resample_poly, sosfiltfilt
from tqdm import tqdm

from .. import __version__, paths
from ..errors import CremaError
from . import records, tables
from .leads import LEADS
from .sources import rows_of, rows_of_files
from .store import MV_PER_STEP, StoreWriter, to_steps

FILTER_ORDER = 2  # of the Butterworth prototype; run forward and backward, so -6 dB at both edges and no phase shift
MAX_NAN = 0.05  # share of a lead's samples that may be filled by linear interpolation
MIN_SECONDS = 1.0
PLAUSIBLE = (0.05, 20.0)  # mV from the lowest to the highest value of a lead; an error in the unit is a factor of 1000 (ours)
RATES = (20, 20_000)  # Hz; beyond these a header is wrong, and resampling would fill the memory
CHUNK = 64  # records a task: small enough for the cache and for an even load, large enough that NumPy's overhead vanishes
FLUSH_BYTES = 2**26  # signals that a task holds before it conditions them, so that long recordings do not fill the memory
ALONE = 32  # chunks that one process has prepared before others, which load SciPy and pandas first, would have caught up


def condition(signal, fs, *, fs_out=100, band=(0.5, 40.0)):
    """Resample (polyphase) and band-pass (zero-phase Butterworth); the same for a record, a batch, and a user's own array.

    The filter runs after resampling, so that every source meets the same digital filter whatever its rate (`resample_poly` keeps what
    lies above the new Nyquist rate out), and before any crop, so that its transients stay at the ends of the recording. Order 2 at
    0.5 Hz takes wander away (-42 dB at 0.15 Hz) and leaves ST segments, and at 10 Hz the gain is .992.

    Args:
        signal: (..., samples), mV.
        fs: its sampling rate, Hz; need not be an integer.
        fs_out: sampling rate of the result, Hz.
        band: (low, high) in Hz, or None for no filter. Where `high` is not below the source's Nyquist rate the source is narrower than
            the band already, and only the high-pass runs.

    Returns:
        float32 (..., ceil(samples * fs_out / fs)), mV.

    Raises:
        CremaError: a rate outside of `RATES`, a band that does not lie within 0 to fs_out / 2.
    """
    x = np.asarray(signal, dtype=np.float32)
    ratio = _ratio(fs, fs_out)
    if ratio != 1:  # "line": the filter meets the ends without a step, whatever the offset of the baseline
        x = resample_poly(x, ratio.numerator, ratio.denominator, axis=-1, padtype="line")
    if band is None:
        return x
    low, high = band
    if not 0 < low < high < fs_out / 2:
        raise CremaError(f"the band {low} to {high} Hz must lie between 0 and {fs_out / 2:g} Hz, half of the sampling rate {fs_out} Hz")
    edges = {"Wn": low, "btype": "highpass"} if high >= fs / 2 else {"Wn": band, "btype": "bandpass"}
    pad = min(x.shape[-1] - 1, round(2 * fs_out))  # 2 s, the longest time constant of the high-pass several times over
    return sosfiltfilt(butter(FILTER_ORDER, fs=fs_out, output="sos", **edges), x, axis=-1, padlen=pad).astype(np.float32)


def _ratio(fs, fs_out):
    """fs_out / fs as a fraction; exact for rates such as 257 or 62.5 Hz, within 1e-4 of it for any."""
    for rate in (fs, fs_out):
        if not RATES[0] <= rate <= RATES[1]:
            raise CremaError(f"a sampling rate of {rate:g} Hz is implausible for an ECG: it must lie between {RATES[0]} and {RATES[1]} Hz")
    return (Fraction(str(fs_out)) / Fraction(str(fs))).limit_denominator(10_000)


def crop_or_pad(signal, samples):
    """The middle `samples` of (..., n), or zeros added at the end; returns (signal, number of valid samples)."""
    n = signal.shape[-1]
    if n >= samples:
        start = (n - samples) // 2
        return signal[..., start : start + samples], samples
    return np.pad(signal, [(0, 0)] * (signal.ndim - 1) + [(0, samples - n)]), n


def screen(record):
    """Fill short gaps of a `Record` in place and return flags (`nan:V1`); CremaError where it is too short or has too many gaps."""
    seconds = record.signal.shape[1] / record.fs
    if seconds < MIN_SECONDS:
        raise CremaError(f"record {record.name}: {seconds:.2f} s long, at least {MIN_SECONDS:g} s are needed")
    if not np.isnan(record.signal.sum()):
        return []
    gaps = np.isnan(record.signal)
    leads = np.flatnonzero(gaps.any(axis=1))
    worst = leads[gaps[leads].mean(axis=1).argmax()]
    if gaps[worst].mean() > MAX_NAN:
        share = 100 * gaps[worst].mean()
        raise CremaError(
            f"record {record.name}: {share:.0f} % of lead {LEADS[worst]} are NaN, more than the {100 * MAX_NAN:.0f} % that are filled"
        )
    at = np.arange(record.signal.shape[1])
    for i in leads:
        record.signal[i, gaps[i]] = np.interp(at[gaps[i]], at[~gaps[i]], record.signal[i, ~gaps[i]])
    return [f"nan:{LEADS[i]}" for i in leads]


def implausible(signals, lead_mask, unit=None, step=1.0):
    """Which recordings have not the size of an ECG, as where their unit is another than was said.

    Args:
        signals: (records, leads, samples), after `condition`. lead_mask: bool (records, leads); flat leads, below a step of a
            store, do not count either.
        unit: that was given for them, None where the files say it. step: mV that a step of the signals stands for.

    Returns:
        bool (records,): the leads measure, in the median, less or more than `PLAUSIBLE` from lowest to highest value.

    Raises:
        CremaError: this holds for all recordings.
    """
    sizes = (signals.max(axis=2).astype(float) - signals.min(axis=2)) * step * lead_mask
    sizes = np.array([np.median(leads[leads >= MV_PER_STEP]) if leads.max() >= MV_PER_STEP else 0.0 for leads in sizes])
    odd = (sizes < PLAUSIBLE[0]) | (sizes > PLAUSIBLE[1])
    if odd.all():
        raise CremaError(
            f"the leads measure {np.median(sizes):.3g} mV from lowest to highest value, those of an ECG {PLAUSIBLE[0]:g} to "
            f"{PLAUSIBLE[1]:g} mV: the unit is another than {unit or 'the files say'}"
        )
    return odd


def store_path(name, fs=100, seconds=10):
    """Where `prepare` puts a data set unless told otherwise."""
    return paths.data_home() / "stores" / f"{name}-{fs:g}hz-{seconds:g}s"


def prepare(
    name, *, source=None, out=None, fs=100, seconds=10, band=(0.5, 40), unit=None, rate=None, workers=None, progress=True, limit=None
):
    """Turn a folder of recordings into an `EcgStore`; what is wrong with a record is reported and never stops the rest.

    Args:
        name: data set of the manifest, or any label for a folder.
        source: folder, or a list of files and folders; None: where the manifest finds `name`.
        out: folder of the store; None: `store_path(name, fs, seconds)`.
        fs, seconds, band: as in `condition`; longer recordings give their middle, shorter ones are padded at the end.
        unit, rate: unit and sampling rate (Hz) of recordings that name none (see `records.read`, `tables.read`).
        workers: processes, as parsing headers holds the interpreter lock; None: one a core, and one for a few records. The result does
            not depend on it.
        progress: show a bar.
        limit: take the first records only.

    Returns:
        (EcgStore, report): report is a DataFrame with `record`, `reason`, `action` (`left out`, `kept with flag`, or `passed over` for
        files of a folder that are no recordings), also in report.csv.

    Raises:
        CremaError: an argument out of range, no recordings, not one that can be used, unreadable tables, a bad band, a folder `out` with
            something else than a store, no space left. An earlier store stays then.
    """
    if round(fs * seconds) < 1 or (limit is not None and limit < 1) or (workers is not None and workers < 1):
        raise CremaError(f"cannot prepare {seconds} s at {fs} Hz, {limit} records in {workers} processes: each must be one or more")
    if source is None:
        from . import manifest

        source = manifest.locate(name)
    out = Path(out or store_path(name, fs, seconds))
    named, others = isinstance(source, list | tuple), []
    rows, where = (rows_of_files(source, fs, others), "the files") if named else (rows_of(Path(source), fs, others), source)
    rows = rows[:limit]
    condition(np.zeros((1, round(fs * MIN_SECONDS))), fs, fs_out=fs, band=band)  # a bad band is told before an hour of reading
    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    workers, writer = workers or (os.cpu_count() if len(chunks) > ALONE else 1), None
    try:
        how = {"band": band and [float(edge) for edge in band], "filter_order": FILTER_ORDER, "source": name, "versions": _versions()}
        writer = StoreWriter(out, fs=fs, seconds=seconds, **how)
        report, rates = [], Counter()
        task = partial(_chunk, name=name, fs=fs, samples=writer.samples, band=band, told=(unit, rate))
        bar = tqdm(total=len(rows), unit="record", desc=f"prepare {name}", disable=not progress)
        with bar, closing(_in_order(task, chunks, workers)) as done:
            for chunk, (steps, kept, notes, found) in zip(chunks, done, strict=True):
                writer.append(steps, kept)
                report += notes
                rates.update(found)
                bar.update(len(chunk))
        if not writer.rows:
            raise CremaError(f"none of the {len(rows)} records in {where} can be used; the first: {report[0]['reason']}")
        if others:
            shown = ", ".join(path.name for path in others[:3]) + ", ..." * (len(others) > 3)
            reason = (
                f"passed over in folders, neither WFDB nor CSV with a column a lead: {len(others)} file{'s' * (len(others) > 1)} ({shown})"
            )
            report.append({"record": "(all)", "reason": reason, "action": "passed over"})
        if len(rates) > 1:
            text = ", ".join(f"{rate:g} Hz ({n})" for rate, n in sorted(rates.items()))
            reason = f"mixed sampling rates, each brought to {fs:g} Hz: {text}"
            report.append({"record": "(all)", "reason": reason, "action": "kept with flag"})
        report = pd.DataFrame(report, columns=["record", "reason", "action"])
        report.to_csv(writer.part / "report.csv", index=False)
        writer.meta["source_fs"] = {f"{rate:g}": n for rate, n in sorted(rates.items())}
        return writer.close(), report
    except BaseException as error:
        if writer:
            writer.discard()
        if isinstance(error, OSError):
            reason = "no space left on the device" if error.errno == errno.ENOSPC else error.strerror or error
            raise CremaError(f"cannot write {out}: {reason}; nothing was changed, give another folder or make room") from None
        raise


def _in_order(task, items, workers):
    """Results of a task for each item, in order, from some processes; they are never far ahead, so that nothing piles up in memory."""
    if workers == 1:
        yield from map(task, items)
        return
    pool, waiting = ProcessPoolExecutor(workers), deque()
    try:
        for item in items:
            waiting.append(pool.submit(task, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(kill_workers=bool(waiting))


def _versions():
    return {"crema_lib": __version__, "numpy": np.__version__, "scipy": scipy.__version__, "wfdb": version("wfdb")}


def _read_all(rows, unit, rate):
    """Pairs (row, Record or CremaError), in order; the exams of one HDF5 file are read together."""
    start = 0
    while start < len(rows):
        row, stop = rows[start], start + 1
        try:
            if "index" not in row:
                csv = str(row["path"]).lower().endswith(".csv")
                yield row, tables.read(row["path"], rate, unit) if csv else records.read(row["path"], unit)
            else:
                while stop < len(rows) and rows[stop]["path"] == row["path"]:
                    stop += 1
                group = rows[start:stop]
                yield from zip(group, records.read_hdf5(row["path"], [r["index"] for r in group]), strict=True)
        except CremaError as error:
            yield from ((r, error) for r in rows[start:stop])
        start = stop


def _chunk(rows, name, fs, samples, band, told):
    """Prepare some rows: (int16 (n, 12, samples), table rows, report rows, sampling rates found)."""
    steps, kept, notes, rates = [], [], [], []
    pending, held = {}, 0

    def flush():
        # Records of one rate and length are conditioned as one batch.
        for (rate, _), places in pending.items():
            batch = condition(np.stack([steps[i] for i in places]), rate, fs_out=fs, band=band)
            batch, valid = crop_or_pad(batch, samples)
            whole, clipped = to_steps(batch)
            over = (np.abs(batch) > 32.767).any(axis=(1, 2)) if clipped else np.zeros(len(places), bool)
            for i, signal, beyond in zip(places, whole, over, strict=True):
                steps[i] = signal
                kept[i]["valid"] = valid
                kept[i]["found"] += ["clipped"] * bool(beyond) + ["padded"] * (valid < samples)
        pending.clear()

    for row, record in _read_all(rows, *told):
        try:
            if isinstance(record, CremaError):
                raise record
            _ratio(record.fs, fs)
            found = record.flags + screen(record)
        except CremaError as error:
            notes.append({"record": row["record"], "reason": str(error), "action": "left out"})
            continue
        if band and band[1] >= record.fs / 2:
            found.append(f"narrow:{record.fs / 2:g}Hz")
        pending.setdefault((record.fs, record.signal.shape[1]), []).append(len(steps))
        steps.append(record.signal)
        kept.append({**_table_row(row, record, name), "found": found})
        rates.append(record.fs)
        held += record.signal.nbytes
        if held > FLUSH_BYTES:
            flush()
            held = 0
    flush()
    for entry in kept:
        found = entry.pop("found")
        noted = [flag for flag in entry["quality"].split(";") if flag]
        entry["quality"] = ";".join(dict.fromkeys(found + noted))
        if found:
            notes.append({"record": entry["record"], "reason": ";".join(found), "action": "kept with flag"})
    order = {row["record"]: i for i, row in enumerate(rows)}
    notes.sort(key=lambda note: order[note["record"]])
    return np.array(steps, dtype="<i2").reshape(-1, 12, samples), kept, notes, rates


def _table_row(row, record, name):
    """One row of the store's table: what the data set's own table says, else what the recording's header says."""
    patient = row.get("patient") or record.patient or row["record"]
    return {
        "record": row["record"],
        "patient": patient,
        "source": row.get("source") or record.comments.get("source", "").lower().rstrip("%") or name,
        "fold": row.get("fold") or fold_of(patient),
        "age": row.get("age", record.age),
        "sex": row.get("sex", record.sex),
        "device": row.get("device", ""),
        "site": row.get("site", ""),
        "labels": row["labels"] if "labels" in row else ";".join(record.labels),
        "lead_mask": int((record.lead_mask << np.arange(12)).sum()),
        "quality": row.get("quality", ""),
        "year": row.get("year", 0),  # never from a header: its date is often that of a conversion
    }


def fold_of(patient):
    """Fold 1 to 10 from the patient's identifier alone, so that it is the same in every set that a patient appears in."""
    return int(hashlib.sha1(str(patient).encode()).hexdigest(), 16) % 10 + 1
