"""Read one recording from disk: WFDB (any format, Challenge `.mat`) and the HDF5 files of CODE-15%; CSV tables are in `tables`.

What is read is trusted only after it was checked: units, gain, sampling rate, length, first value and checksum of the header.
Formats: https://wfdb.io/spec/header-files.html and https://wfdb.io/spec/signal-files.html.
"""

import functools
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import CremaError
from .leads import LEADS, lead_index, to_canonical

UNITS = {"mv": 1.0, "uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "v": 1e3, "nv": 1e-6}  # mV; the micro sign and the Greek letter
# The lowest code of a format means "no sample here" (WFDB_INVALID_SAMPLE).
_INVALID = {"16": -(2**15), "61": -(2**15), "160": -(2**15), "212": -(2**11), "310": -(2**9), "311": -(2**9), "80": -(2**7)}
_INVALID |= {"24": -(2**23), "32": -(2**31), "508": -(2**7), "516": -(2**15), "524": -(2**23)}
_FORMAT = re.compile(r"(\d+)(x\d+)?(:\d+)?(?:\+(\d+))?$")
_GAIN = re.compile(r"([-+.\deE]+)(?:\(([-+]?\d+)\))?(?:/(\S+))?$")
_COMMENT = re.compile(r"#\s*<?([A-Za-z ]+?)>?\s*:\s*(.*)")
CODE15_FS, CODE15_LEADS = 400.0, ("DI", "DII", "DIII", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6")


@dataclass
class Record:
    """One recording in canonical form.

    Attributes:
        signal: float32 (12, samples), mV, leads in canonical order; zero where a lead is missing, NaN where a sample is.
        fs: sampling rate, Hz.
        lead_mask: bool (12,), False where the lead is missing or flat.
        name: record name; age: years, NaN unknown; sex: F, M or empty; patient: identifier or empty.
        labels: diagnosis codes of the header; comments: the header's `key: value` comments, keys in lower case.
        flags: what was found, such as `flat:V3`, `missing:V4`, `age>89`.
    """

    signal: np.ndarray
    fs: float
    lead_mask: np.ndarray
    name: str
    age: float = math.nan
    sex: str = ""
    patient: str = ""
    labels: list = field(default_factory=list)
    comments: dict = field(default_factory=dict)
    flags: list = field(default_factory=list)


class _Signal(NamedTuple):
    file: str
    format: str
    framed: bool  # several samples a frame, or a skew: left to wfdb
    offset: int  # bytes before the first sample
    gain: float  # steps per unit; NaN: not given
    baseline: int
    unit: str
    first: int | None
    checksum: int | None
    lead: str


def read(path, unit=None):
    """Read a WFDB record.

    Args:
        path: the record or one of its files (`100`, `100.hea`, `100.dat`, `A0001.mat`).
        unit: the unit of signals whose header names none. WFDB's own rule would be mV; a header that is silent is refused unless the
            caller says so.

    Returns:
        `Record`.

    Raises:
        CremaError: unreadable header, no or unknown unit, no gain, no sampling rate, truncated or missing signal file, wrong first value
            or checksum, formats mixed within a file, no known lead, every lead flat.
    """
    base = Path(re.sub(r"\.(hea|dat|mat)$", "", str(path)))
    name, fs, samples, signals, comments = _header(base, Path(path))
    steps = _steps(base, samples, signals)
    _verify(name, steps, signals)
    known = [i for i, s in enumerate(signals) if lead_index(s.lead) is not None]
    if not known:
        given = ", ".join(s.lead or "(unnamed)" for s in signals)
        raise CremaError(f"record {name}: no known lead among {given}: known are {' '.join(LEADS)}")
    if len(known) < len(signals):
        steps, signals = steps[known], [signals[i] for i in known]
    scale = np.array([_mv_per_step(name, s, unit) for s in signals], dtype=np.float32)[:, None]
    baseline = np.array([s.baseline for s in signals], dtype=np.float32)[:, None]
    mv = (steps - baseline) * scale
    invalid = _INVALID[signals[0].format] if len({s.format for s in signals}) == 1 else np.array([[_INVALID[s.format]] for s in signals])
    if (steps.min(axis=1, keepdims=True) == invalid).any():
        mv[steps == invalid] = np.nan
    return canonical(name, mv, [s.lead for s in signals], fs, comments)


def read_hdf5(path, rows=None):
    """Iterate over the exams of a CODE-15% file (`exams_part*.hdf5`: `tracings` (exams, 4096, 12), `exam_id` (exams,), 400 Hz).

    The zeros that pad a tracing to 4096 samples at both ends are stripped.
    Values are taken as mV. The authors' text contradicts itself ("scale 1e-4V ... in V ... multiplied by 1000", that is mV); the
    2025 Challenge reads mV, and QRS of about 2 mV peak to peak in lead II agree: tenths of a millivolt would make it 0.2 mV.

    Args:
        path: HDF5 file.
        rows: row numbers in ascending order; None: all.

    Yields:
        `Record` or the `CremaError` that says why an exam cannot be used, in the order of `rows`.

    Raises:
        CremaError: not an HDF5 file of this layout.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            tracings, ids = file["tracings"], file["exam_id"][:]
            if tracings.ndim != 3 or tracings.shape[2] != 12 or len(ids) != len(tracings):
                raise CremaError(f"{path}: tracings have shape {tracings.shape} with {len(ids)} exam_id, expected (exams, samples, 12)")
            for row in range(len(ids)) if rows is None else rows:
                yield _exam(str(ids[row]), tracings, row)
    except (OSError, KeyError) as error:
        raise CremaError(f"{path} cannot be read as a CODE-15% file (HDF5 with tracings and exam_id): {error}") from None


def _exam(name, tracings, row):
    """`Record` of one padded tracing, or the CremaError against it."""
    try:
        tracing = tracings[row].T.astype(np.float32)
        used = np.flatnonzero((tracing != 0).any(axis=0))
        if not len(used):
            raise CremaError(f"record {name}: the tracing is all zero")
        return canonical(name, tracing[:, used[0] : used[-1] + 1], CODE15_LEADS, CODE15_FS, {})
    except OSError as error:
        return CremaError(f"record {name}: its part of the HDF5 file is damaged ({error})")
    except CremaError as error:
        return error


def canonical(name, mv, leads, fs, comments):
    """`Record` from mV rows in the source's own lead order. A flat row is missing: nothing is derived from it, and it is not derived."""
    if not mv.shape[1]:
        raise CremaError(f"record {name}: it has no samples")
    spread = mv.max(axis=1) - mv.min(axis=1)
    if np.isnan(spread).any():  # the slow way round the NaN, which gives NaN only for a row of nothing else
        spread = np.fmax.reduce(mv, axis=1) - np.fmin.reduce(mv, axis=1)
    live = spread > 0
    if not live.any():
        raise CremaError(f"record {name}: every lead is flat, so there is no signal")
    try:
        if not live.all():
            to_canonical(mv[:, :1], leads)  # a lead that is given twice is an error even where one of the two is flat
        signal, mask = to_canonical(mv[live], [lead for lead, ok in zip(leads, live, strict=True) if ok])
    except CremaError as error:
        raise CremaError(f"record {name}: {error}") from None
    flat = sorted(lead_index(lead) for lead, ok in zip(leads, live, strict=True) if not ok)
    signal[flat], mask[flat] = 0, False
    flags = [f"flat:{LEADS[i]}" for i in flat] + [f"missing:{LEADS[i]}" for i in np.flatnonzero(~mask) if i not in flat]
    age, old = parse_age(comments.get("age"))
    codes = re.split(r"[,\s]+", comments.get("dx", ""))
    labels = [code for code in codes if code and code != "Unknown"]
    if "chagas label" in comments:
        labels.append(f"chagas:{int(comments['chagas label'].lower() == 'true')}")
    patient = comments.get("patient id", "")
    return Record(signal, fs, mask, name, age, parse_sex(comments.get("sex")), patient, labels, comments, flags + ["age>89"] * old)


def mv_per(unit):
    """How many mV a unit is, whatever the case of its letters: mV, uV, nV or V. None for any other, or for none."""
    return UNITS.get((unit or "").lower())


def parse_age(value):
    """(years, masked): age as float, NaN where unknown; ages above 89, which archives mask (`>89`, 300), are NaN and True."""
    number = re.match(r"\s*>?\s*(\d+(\.\d+)?)", str(value))
    age = float(number[1]) if number else math.nan
    masked = age >= 300 or ">" in str(value)
    return (math.nan, True) if masked else (age, False)


def parse_sex(value):
    """F, M or empty from `Female`, `male`, `F`, ...; anything else is empty."""
    first = str(value).strip()[:1].upper()
    return first if first in ("F", "M") else ""


def _header(base, given):
    """(name, fs, samples or 0, [_Signal], comments) of a `.hea` file; given: the path that was to lead there."""
    try:
        lines = Path(f"{base}.hea").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        if given.is_file() and isinstance(error, FileNotFoundError):
            raise CremaError(
                f"record {base.name}: {given} is neither WFDB, which has a header {base.name}.hea beside it, nor a table *.csv: give what "
                "it holds as an array to `SiT.embed`"
            ) from None
        raise CremaError(f"record {base.name}: {base}.hea cannot be read ({error.strerror})") from None
    found = [m.groups() for m in map(_COMMENT.match, (line for line in lines if line.startswith("#"))) if m]
    comments = {key.lower(): value.strip() for key, value in found}
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    # The record line's own name is not used: 63 Challenge headers write `NAME.mat` there, which wfdb refuses.
    record = lines[0].split() if lines else []
    if record and "/" in record[0]:
        raise CremaError(f"record {base.name}: it is made of segments; prepare its segments, which are records of their own")
    try:
        count, samples = int(record[1]), int(record[3]) if len(record) > 3 else 0
        fs = float(record[2].split("/")[0].split("(")[0]) if len(record) > 2 else 0.0
        signals = [_signal_line(line) for line in lines[1 : count + 1]]
        if count < 1 or samples < 0:
            raise ValueError
    except (ValueError, IndexError, TypeError):
        raise CremaError(f"record {base.name}: {base}.hea is not a WFDB header") from None
    if not (math.isfinite(fs) and fs > 0):
        raise CremaError(f"record {base.name}: the header gives no sampling rate above zero")
    if len(signals) != count:
        raise CremaError(f"record {base.name}: the header announces {count} signals and describes {len(signals)}")
    return base.name, fs, samples, signals, comments


def _signal_line(line):
    file, form, *rest = line.split(None, 8)
    form, frame, skew, offset = _FORMAT.match(form).groups()
    gain, baseline, unit = _gain(rest[0]) if rest else (math.nan, None, "")
    numbers = [int(x) for x in rest[1:6]]
    first, checksum = (*numbers[2:4], None, None)[:2]
    baseline = baseline if baseline is not None else numbers[1] if len(numbers) > 1 else 0
    return _Signal(
        file, form, bool(frame or skew), int(offset or 0), gain, baseline, unit, first, checksum, rest[6].strip() if len(rest) > 6 else ""
    )


@functools.lru_cache(maxsize=1024)  # a data set repeats a few gains a million times
def _gain(text):
    gain, baseline, unit = _GAIN.match(text).groups()
    return float(gain), None if baseline is None else int(baseline), unit or ""


def _mv_per_step(name, signal, unit):
    unit = signal.unit or unit
    if not unit:
        raise CremaError(
            f"record {name}, signal {signal.lead}: the header names no unit; pass unit='mV' (by command --unit mV) if it is mV"
        )
    if mv_per(unit) is None:
        raise CremaError(f"record {name}, signal {signal.lead}: unknown unit {unit}, known are mV, uV, nV and V")
    if not (math.isfinite(signal.gain) and signal.gain != 0):
        raise CremaError(f"record {name}, signal {signal.lead}: the header gives no gain")
    return mv_per(unit) / signal.gain


def _steps(base, samples, signals):
    """Digital values, int16 or wider (signals, samples). Format 16 in one file is read here: wfdb takes 8 ms a record, this 0.1 ms."""
    unknown = {s.format for s in signals} - set(_INVALID)
    if unknown:
        raise CremaError(f"record {base.name}: unknown signal format {unknown.pop()}")
    layouts = {(s.file, s.format, s.framed, s.offset) for s in signals}
    first, folder = signals[0], base.parent
    if len({s.file for s in signals}) < len(layouts):
        raise CremaError(f"record {base.name}: signals of different formats share a file")
    if len(layouts) == 1 and first.format == "16" and not first.framed:
        try:
            there = max(0, ((folder / first.file).stat().st_size - first.offset) // 2)
            samples = samples or there // len(signals)
            # Never more than is there: a header that lies about its length must not reserve the memory.
            values = np.fromfile(folder / first.file, "<i2", min(there, samples * len(signals)), offset=first.offset)
        except OSError as error:
            raise CremaError(f"record {base.name}: {folder / first.file} cannot be read ({error.strerror or error})") from None
        if len(values) < samples * len(signals) or not samples:
            raise CremaError(f"record {base.name}: {first.file} is truncated, {len(values)} of {samples * len(signals)} values are there")
        return np.ascontiguousarray(values[: samples * len(signals)].reshape(samples, len(signals)).T)
    import wfdb

    try:
        steps = wfdb.rdrecord(str(base), physical=False).d_signal.T
    except Exception as error:  # wfdb and soundfile raise whatever the bytes lead them to
        raise CremaError(f"record {base.name}: wfdb cannot read it, the files may be truncated or damaged ({error})") from None
    if (steps.shape[1] != samples and samples) or not steps.shape[1]:
        raise CremaError(f"record {base.name}: {first.file} is truncated, {steps.shape[1]} of {samples} samples are there")
    return steps


def _verify(name, steps, signals):
    """Compare the header's first values and checksums (sum of all values modulo 2^16) with the signal."""
    sums = steps.sum(axis=1, dtype=np.int64)
    for signal, total, first in zip(signals, sums.tolist(), steps[:, 0].tolist(), strict=True):
        if signal.framed:
            continue  # wfdb averages the frames, so the values that were summed are gone
        if signal.checksum is not None and (total - signal.checksum) % 65536:
            raise CremaError(
                f"record {name}, signal {signal.lead}: checksum {total % 65536} where the header says {signal.checksum % 65536}"
            )
        if signal.first is not None and first != signal.first:
            raise CremaError(f"record {name}, signal {signal.lead}: first value {first} where the header says {signal.first}")
