"""records: what is read equals wfdb and SciPy, and every damaged record gets one clear sentence."""

import math
import re

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import wfdb

from crema_lib.data import tables
from crema_lib.data.leads import LEADS, lead_index
from crema_lib.data.records import parse_age, parse_sex, read, read_hdf5
from crema_lib.errors import CremaError

SPELLINGS = ["V6", "MDC_ECG_LEAD_AVR", "avl", "DI", "lead II", "v1", "V2", "ecg_v3", "V4", "aVF", "iii", "V5"]


@pytest.fixture
def steps():
    return np.random.default_rng(0).integers(-1500, 1500, (500, 12))


def write(folder, steps, name="r1", fmt="16", unit="mV", leads=LEADS, fs=500, gain=200.0, baseline=0):
    n = len(leads)
    wfdb.wrsamp(
        name, fs, [unit] * n, list(leads), d_signal=steps[:, :n], fmt=[fmt] * n, adc_gain=[gain] * n, baseline=[baseline] * n,
        write_dir=str(folder),
    )  # fmt: skip
    return folder / name


def edit(base, pattern, replacement, count=1):
    header = base.with_suffix(".hea")
    text, changed = re.subn(pattern, replacement, header.read_text(), count=count, flags=re.M)
    assert changed
    header.write_text(text)


def reference(base):
    """float64 (12, samples), canonical order, by wfdb."""
    record = wfdb.rdrecord(str(base))
    return record.p_signal.T[[[lead_index(x) for x in record.sig_name].index(i) for i in range(12)]]


@pytest.mark.parametrize("fmt", ["16", "212", "24", "32", "80", "516"])
def test_equals_wfdb_whatever_format_order_and_spelling(tmp_path, steps, fmt):
    steps = np.clip(steps, -127, 127) if fmt == "80" else steps
    lowest = {"16": -(2**15), "212": -(2**11), "24": -(2**23), "32": -(2**31), "80": -(2**7), "516": -(2**15)}[fmt]
    if fmt != "516":  # wfdb itself writes no invalid samples to FLAC
        steps[7, 3] = lowest
    base = write(tmp_path, steps, fmt=fmt, leads=SPELLINGS, gain=317.5, baseline=-12)
    record, expected = read(base), reference(base)
    assert record.signal.dtype == np.float32 and record.fs == 500 and record.name == "r1"
    assert np.isnan(expected).sum() == (fmt != "516")
    np.testing.assert_allclose(record.signal, expected, rtol=1e-6, atol=1e-7)
    assert record.lead_mask.all() and not record.flags


def test_any_file_of_the_record_names_it(tmp_path, steps):
    base = write(tmp_path, steps)
    for path in (base, f"{base}.hea", f"{base}.dat", str(base)):
        assert read(path).name == "r1"
    base.with_suffix(".hea").rename(tmp_path / "a.b.hea")
    assert read(tmp_path / "a.b").name == "a.b"


@pytest.mark.parametrize(("unit", "factor"), [("mV", 1), ("mv", 1), ("uV", 1e-3), ("V", 1e3), ("nV", 1e-6)])
def test_units_become_mv(tmp_path, steps, unit, factor):
    record = read(write(tmp_path, steps, unit=unit))
    np.testing.assert_allclose(record.signal, steps.T / 200 * factor, rtol=1e-6)


def test_gain_and_baseline_of_each_signal(tmp_path, steps):
    base = write(tmp_path, steps)
    edit(base, r"200\.0\(0\)/mV(?= .* V2$)", "50(100)/uV")
    edit(base, r"200\.0\(0\)/mV 16 0(?= .* V3$)", "200/mV 16 30")  # no baseline: the zero of the converter stands for it
    record = read(base)
    np.testing.assert_allclose(record.signal[7], (steps[:, 7] - 100) / 50e3, rtol=1e-5)
    np.testing.assert_allclose(record.signal[8], (steps[:, 8] - 30) / 200, rtol=1e-5)


def test_eight_leads_give_twelve(tmp_path, steps):
    record = read(write(tmp_path, steps, leads=["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"]))
    one, two = steps[:, 0] / 200, steps[:, 1] / 200
    assert record.lead_mask.all() and not record.flags
    expected = [two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    np.testing.assert_allclose(record.signal[2:6], expected, atol=1e-5)


def test_missing_flat_and_foreign_leads(tmp_path, steps):
    steps[:, 1] = 7
    base = write(tmp_path, steps, leads=["V1", "II", "RESP", "I"])
    edit(base, r"/mV(?= .* RESP$)", "/ohm")  # its unit is no concern of ours
    record = read(base)
    assert [LEADS[i] for i in np.flatnonzero(record.lead_mask)] == ["I", "V1"]
    assert "flat:II" in record.flags and "missing:III" in record.flags and "flat:III" not in record.flags
    assert not record.signal[~record.lead_mask].any()
    np.testing.assert_allclose(record.signal[0], steps[:, 3] / 200, rtol=1e-6)


def test_lead_of_nan_is_missing(tmp_path, steps):
    steps[:, 8] = -32768
    record = read(write(tmp_path, steps))
    assert record.flags == ["flat:V3"] and not record.lead_mask[8] and not record.signal[8].any()


def header_of_mat(base, steps, record_line_name):
    """The way of the Challenges: MATLAB version 4, `val` (leads, samples) int16 behind 24 bytes."""
    scipy.io.savemat(f"{base}.mat", {"val": steps.T.astype("<i2")}, format="4")
    sums = (steps.sum(axis=0) + 2**15) % 2**16 - 2**15
    lines = [f"{record_line_name} 12 500 {len(steps)} 05-May-2020 14:50:55"]
    lines += [f"{base.name}.mat 16+24 4880/mV 16 0 {steps[0, i]} {sums[i]} 0 {LEADS[i]}" for i in range(12)]
    base.with_suffix(".hea").write_text("\n".join([*lines, "#Age: 67", "#Sex: Female", "#Dx: 251146004,284470004", "#Rx: Unknown"]) + "\n")


@pytest.mark.parametrize("record_line_name", ["E1", "E1.mat"])
def test_challenge_mat(tmp_path, steps, record_line_name):
    header_of_mat(tmp_path / "E1", steps, record_line_name)
    record = read(tmp_path / "E1.mat")
    np.testing.assert_allclose(record.signal, scipy.io.loadmat(tmp_path / "E1.mat")["val"] / 4880, rtol=1e-6)
    assert (record.name, record.age, record.sex, record.labels) == ("E1", 67, "F", ["251146004", "284470004"])
    if record_line_name == "E1.mat":
        with pytest.raises(Exception):  # noqa: B017 - the reason for a reader of our own; wfdb promises no type
            wfdb.rdrecord(str(tmp_path / "E1"))


def test_comments_of_ludb_and_chagas(tmp_path, steps):
    base = write(tmp_path, steps)
    plain = base.with_suffix(".hea").read_text()
    base.with_suffix(".hea").write_text(plain + "#<age>: >89\n#<sex>: M\n#<diagnoses>:\n#Rhythm: Sinus rhythm.\n")
    record = read(base)
    assert math.isnan(record.age) and record.flags == ["age>89"] and record.sex == "M" and record.comments["rhythm"] == "Sinus rhythm."
    base.with_suffix(".hea").write_text(plain + "# Age: 34\n# Sex: Female\n# Patient ID: 438192\n# Chagas label: True\n")
    record = read(base)
    assert (record.age, record.sex, record.patient, record.labels) == (34, "F", "438192", ["chagas:1"])


def test_age_and_sex():
    assert [parse_age(x) for x in ("74", 56.0, "92")] == [(74, False), (56, False), (92, False)]
    assert all(math.isnan(parse_age(x)[0]) and parse_age(x)[1] for x in (">89", "300", 300.0))
    assert all(math.isnan(parse_age(x)[0]) and not parse_age(x)[1] for x in ("NaN", "Unknown", "", None, math.nan, "-1"))
    assert [parse_sex(x) for x in ("Male", "female", "F\n", "Unknown", None, math.nan)] == ["M", "F", "F", "", "", ""]


def truncate(base):
    data = base.with_suffix(".dat")
    data.write_bytes(data.read_bytes()[:-100])


BAD = {
    "no unit": (lambda b: edit(b, r"200\.0\(0\)/mV(?= .* V2$)", "200(0)"), "signal V2: the header names no unit; pass unit='mV'"),
    "no names": (lambda b: edit(b, r"16 200\.0.*", "16", count=0), r"no known lead among \(unnamed\)"),
    "unknown unit": (lambda b: edit(b, "/mV", "/mmHg"), "signal I: unknown unit mmHg, known are mV"),
    "zero gain": (lambda b: edit(b, r"200\.0\(0\)", "0(0)"), "signal I: the header gives no gain"),
    "zero rate": (lambda b: edit(b, "^r1 12 500", "r1 12 0"), "no sampling rate above zero"),
    "no rate": (lambda b: edit(b, "^r1 12 500 500", "r1 12"), "no sampling rate above zero"),
    "nan rate": (lambda b: edit(b, "^r1 12 500", "r1 12 nan"), "no sampling rate above zero"),
    "truncated": (truncate, r"r1\.dat is truncated, 5950 of 6000 values"),
    "lying length": (lambda b: edit(b, "^r1 12 500 500", "r1 12 500 99999999999999"), r"r1\.dat is truncated"),
    "no signal file": (lambda b: b.with_suffix(".dat").unlink(), r"r1\.dat cannot be read \(No such file"),
    "no header": (lambda b: b.with_suffix(".hea").unlink(), r"r1\.hea cannot be read \(No such file"),
    "empty header": (lambda b: b.with_suffix(".hea").write_text(""), "not a WFDB header"),
    "not a header": (lambda b: b.with_suffix(".hea").write_bytes(bytes(range(256))), "not a WFDB header"),
    "too few signals": (lambda b: edit(b, "^r1 12", "r1 13"), "announces 13 signals and describes 12"),
    "checksum": (lambda b: edit(b, r"0 (-?\d+) (-?\d+) 0 V4$", r"0 \1 1 0 V4"), "signal V4: checksum [0-9]+ where the header says 1"),
    "first value": (lambda b: edit(b, r"0 (-?\d+) (-?\d+) 0 V4$", r"0 9999 \2 0 V4"), "signal V4: first value .* the header says 9999"),
    "unknown leads": (lambda b: edit(b, r" \S+$(?<!500)", " abc", count=0), "no known lead among abc.*known are I II III aVR"),
    "lead twice": (lambda b: edit(b, " V5$", " V4"), "lead V4 is given twice"),
    "mixed formats": (lambda b: edit(b, r"^r1\.dat 16", "r1.dat 212"), "different formats share a file"),
    "unknown format": (lambda b: edit(b, r"^r1\.dat 16", "r1.dat 999", count=0), "unknown signal format 999"),
    "segments": (lambda b: edit(b, "^r1 12", "r1/2 12"), "made of segments"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_record_gives_one_sentence(tmp_path, steps, what):
    damage, sentence = BAD[what]
    base = write(tmp_path, steps)
    read(base)
    damage(base)
    with pytest.raises(CremaError, match=sentence) as caught:
        read(base)
    assert str(caught.value).startswith("record r1") and "\n" not in str(caught.value)


def test_unit_given_by_the_caller(tmp_path, steps):
    base = write(tmp_path, steps)
    edit(base, r"\(0\)/mV", "(0)", count=0)
    np.testing.assert_allclose(read(base, unit="uV").signal, steps.T / 200e3, rtol=1e-6)


@pytest.mark.parametrize("fmt", ["212", "516"])
def test_truncated_in_other_formats(tmp_path, steps, fmt):
    base = write(tmp_path, steps, fmt=fmt)
    data = next(file for file in sorted(tmp_path.iterdir()) if file.suffix != ".hea")  # wfdb writes a FLAC file for each signal
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(CremaError, match=r"record r1: .*truncated"):
        read(base)


def test_flat_record(tmp_path, steps):
    with pytest.raises(CremaError, match="record r1: every lead is flat"):
        read(write(tmp_path, steps * 0))


def test_code15(tmp_path):
    tracings = np.zeros((3, 4096, 12), np.float32)
    tracings[0, 48:4048] = np.random.default_rng(1).normal(size=(4000, 12))
    tracings[2, 648:3448] = np.random.default_rng(2).normal(size=(2800, 12))
    path = tmp_path / "exams_part0.hdf5"
    with h5py.File(path, "w") as file:
        file["tracings"], file["exam_id"] = tracings, np.array([11, 0, 13])
    first, empty, last = read_hdf5(path)
    assert isinstance(empty, CremaError) and "record 0: the tracing is all zero" in str(empty)
    np.testing.assert_array_equal(first.signal, tracings[0, 48:4048].T)
    assert (last.name, last.fs, last.signal.shape) == ("13", 400, (12, 2800)) and last.lead_mask.all()
    assert [record.name for record in read_hdf5(path, [2])] == ["13"]


def test_code15_foreign_file(tmp_path):
    (tmp_path / "a.hdf5").write_bytes(b"no HDF5")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["x"] = [1]
    for name in ("a.hdf5", "b.hdf5", "c.hdf5"):
        with pytest.raises(CremaError, match=f"{name} cannot be read as a CODE-15% file"):
            list(read_hdf5(tmp_path / name))


def test_real_records_equal_wfdb(real_data):
    for folder in ("ptb-xl/records100/00000", "ludb-1.0.1/data", "brugada-huca/files", "chagas-sample", "challenge-2021-sample/georgia"):
        headers = sorted((real_data / folder).rglob("*.hea"))[:3]
        assert headers
        for header in headers:
            np.testing.assert_allclose(read(header).signal, reference(header.with_suffix("")), rtol=1e-5, atol=1e-6)


def test_real_challenge_headers_that_break_wfdb(real_data):
    headers = [h for h in sorted((real_data / "challenge-2021-sample").rglob("*.hea")) if ".mat " in h.read_text().split("\n")[0]]
    assert len(headers) == 63
    for header in headers:
        record = read(header)
        gain = float(re.search(r"16\+24 ([\d.]+)", header.read_text())[1])
        expected = scipy.io.loadmat(header.with_suffix(".mat"))["val"] / gain
        np.testing.assert_allclose(record.signal, expected, rtol=1e-5, atol=1e-6)


# --- CSV


def table(folder, columns, name="mine"):
    path = folder / f"{name}.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_a_table_is_read_by_the_names_of_its_columns(tmp_path):
    mv = np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32)
    path = table(tmp_path, {"time": np.arange(500) / 250, "V2 [uV]": 1000 * mv[0], "lead II (mV)": mv[1], "note": "x", "DI": mv[2]})
    record = tables.read(path, unit="mV")
    assert record.fs == 250 and record.name == "mine"
    one, two = mv[2], mv[1]
    for lead, expected in {"I": one, "II": two, "V2": mv[0], "III": two - one, "aVF": two - one / 2}.items():
        np.testing.assert_allclose(record.signal[LEADS.index(lead)], expected, rtol=1e-5, atol=1e-5)
    assert record.lead_mask.tolist() == [lead in ("I", "II", "III", "aVR", "aVL", "aVF", "V2") for lead in LEADS]
    assert "missing:V1" in record.flags
    holes = table(tmp_path, {"I": [0.1, None, 0.3, 0.2]}, "holes")
    assert np.isnan(tables.read(holes, fs=100, unit="mV").signal[0]).tolist() == [False, True, False, False]
    assert tables.read(path, fs=250, unit="mV").fs == 250
    twice = tmp_path / "twice.csv"
    twice.write_text("I,II,V1,II\n" + "0,1,2,3\n" * 900)
    with pytest.raises(CremaError, match="lead II is given twice"):
        tables.read(twice, fs=100, unit="mV")


@pytest.mark.parametrize(
    ("columns", "given", "sentence"),
    [
        ({"x": [1.0, 2.0]}, {}, r"no column of .* is a lead \('x'\): known are I II III"),
        ({f"c{i}": [1.0] for i in range(7)}, {}, r"no column of .* is a lead \('c0', 'c1', 'c2', 'c3', 'c4', 'c5', ...\): known are"),
        ({"I": [1.0, 2.0]}, {"fs": 100}, r"column I: no unit is not among mV, uV, nV and V: give unit \(by command --unit\)"),
        ({"I [steps]": [1.0, 2.0]}, {"fs": 100}, "column I: steps is not among mV"),
        ({"I": [1.0, 2.0]}, {"unit": "mV"}, r"has no column time: give its sampling rate fs \(by command --rate\)"),
        ({"I": ["0,1", "0,2"]}, {"unit": "mV", "fs": 100}, "is no table of numbers"),
        ({"I": ["a", "b"]}, {"unit": "mV", "fs": 100}, "is no table of numbers"),
        ({"I": [1.0, 1.0]}, {"unit": "mV", "fs": 100}, "every lead is flat"),
        ({"I (mV)": [1.0, 2.0], "DI (mV)": [1.0, 3.0]}, {"fs": 100}, "lead I is given twice"),
        ({"I (mV)": [1.0, 2.0, 3.0], "time": [0.0, 0.1, 0.4]}, {}, "the column time does not rise evenly"),
        ({"I (mV)": [1.0, 2.0, 3.0], "time": [0.0, 0.01, 0.02]}, {"fs": 500}, "its column time says 100 Hz, not 500 Hz"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, columns, given, sentence):
    with pytest.raises(CremaError, match=sentence):
        tables.read(table(tmp_path, columns), **given)


@pytest.mark.parametrize(("separator", "decimal"), [(",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ",")])
def test_separators_and_decimal_marks(tmp_path, separator, decimal):
    path = tmp_path / "mine.csv"
    mv = np.random.default_rng(0).normal(size=(2, 300)).round(3)
    for encoding in ("utf-8", "utf-8-sig"):  # the latter as spreadsheets write it
        columns = {"I (µV)": 1000 * mv[0], "note, of ours": 0, "II": mv[1], "time": np.arange(300) / 250}
        pd.DataFrame(columns).to_csv(path, sep=separator, decimal=decimal, index=False, encoding=encoding)
        record = tables.read(path, unit="mV")
        assert record.fs == 250
        np.testing.assert_allclose(record.signal[:2], mv, atol=1e-6)
    pd.DataFrame({"I": mv[0]}).to_csv(path, sep=separator, index=False)
    np.testing.assert_allclose(tables.read(path, 250, "mV").signal[0], mv[0], atol=1e-6)
    rows = [separator.join(["I", "II"])] + [separator.join([f'"{i}"', str(a), str(b)]) for i, (a, b) in enumerate(mv.T, 1)]
    path.write_text("\n".join(rows).replace(".", decimal))
    np.testing.assert_allclose(
        tables.read(path, 250, "mV").signal[:2], mv, atol=1e-6, err_msg="row numbers without a name, as R writes them"
    )


@pytest.mark.parametrize("text", ["I\n0,1\n0,2\n", "I,II\n0,1,0,2\n0,2,0,3\n", "I,II\n1,2,\n3,4,\n"])
def test_rows_that_would_shift_the_leads_are_told(tmp_path, text):
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(CremaError, match="have more cells than there are names: with decimal commas, separate by semicolons"):
        tables.read(tmp_path / "mine.csv", 100, "mV")


@pytest.mark.parametrize("name", ["note.txt", "a.npy", "t.tsv", "a.mat", "lonely.dat"])
def test_a_file_that_is_neither_is_told(tmp_path, name):
    (tmp_path / name).write_text("I\tII\n")
    with pytest.raises(CremaError, match=rf"{name} is neither WFDB, .* nor a table \*.csv: give what it holds as an array to `SiT.embed`"):
        read(tmp_path / name)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(CremaError, match=r"record none: .* is no table of numbers"):
        tables.read(tmp_path / "none.csv", fs=100, unit="mV")
