"""prepare: filters against known sines, every adapter, and every bad record reported without stopping the rest."""

import errno
import re

import h5py
import numpy as np
import pandas as pd
import pytest
import wfdb
from scipy.signal import butter, sosfiltfilt

from crema_lib.data.leads import LEADS
from crema_lib.data.prepare import condition, crop_or_pad, fold_of, prepare, store_path
from crema_lib.data.store import EcgStore, StoreWriter
from crema_lib.errors import CremaError


def sine(hz, fs, seconds=10, amplitude=1.0):
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(fs * seconds)) / fs)


@pytest.mark.parametrize("fs", [100, 128, 257, 360, 400, 500, 1000])
@pytest.mark.parametrize("hz", [5, 10, 20])
def test_sines_keep_amplitude_and_phase(fs, hz):
    inside = slice(200, 800)  # away from the ends
    np.testing.assert_allclose(condition(sine(hz, fs), fs, band=None)[inside], sine(hz, 100)[inside], atol=0.005)
    # Butterworth of order 2, twice: gain 1 / (1 + w^4) with w on the warped axis of the bilinear transform
    warp = [np.tan(np.pi * f / 100) for f in (hz, 0.5, 40)]
    w = (warp[0] ** 2 - warp[1] * warp[2]) / (warp[0] * (warp[2] - warp[1]))
    np.testing.assert_allclose(condition(sine(hz, fs), fs)[inside], sine(hz, 100)[inside] / (1 + w**4), atol=0.006)


@pytest.mark.parametrize("hz", [60, 75, 90, 110, 190])
def test_what_would_alias_is_gone(hz):
    assert np.abs(condition(sine(hz, 500), 500, band=None)[200:800]).max() < 0.01
    assert np.abs(condition(sine(hz, 500), 500)[200:800]).max() < 0.01


def test_offset_and_wander_go_and_the_ends_stay_calm():
    wander = sine(0.1, 500, amplitude=0.5) + 3.0
    out = condition(wander + sine(10, 500), 500)
    assert np.abs(out[200:800] - 0.992 * sine(10, 100)[200:800]).max() < 0.02
    assert np.abs(condition(np.full(5000, 3.0), 500)).max() < 1e-3
    assert np.abs(condition(wander, 500)).max() < 0.25


def test_condition_of_a_batch_is_that_of_each_and_linear():
    x = np.random.default_rng(0).normal(size=(3, 12, 2570)).astype(np.float32)
    batch = condition(x, 257)
    assert batch.shape == (3, 12, 1000) and batch.dtype == np.float32
    np.testing.assert_array_equal(batch[1], condition(x[1], 257))
    np.testing.assert_allclose(batch[:, 1] - batch[:, 0], condition(x[:, 1] - x[:, 0], 257), atol=1e-5)  # so Einthoven survives it


def test_condition_of_a_narrow_source_is_high_passed_only():
    x = sine(5, 64) + 1
    np.testing.assert_allclose(condition(x, 64)[200:800], sine(5, 100)[200:800], atol=0.01)


@pytest.mark.parametrize(("arguments", "sentence"), [
    ({"fs": 500, "band": (0.5, 50)}, "the band 0.5 to 50 Hz must lie between 0 and 50 Hz"),
    ({"fs": 500, "band": (40, 0.5)}, "the band 40 to 0.5 Hz"),
    ({"fs": 0}, "a sampling rate of 0 Hz is implausible"),
    ({"fs": float("nan")}, "a sampling rate of nan Hz is implausible"),
    ({"fs": 1e9}, r"a sampling rate of 1e\+09 Hz is implausible"),
])  # fmt: skip
def test_condition_refuses(arguments, sentence):
    with pytest.raises(CremaError, match=sentence):
        condition(np.zeros(1000), **arguments)


def test_crop_or_pad():
    x = np.arange(24).reshape(2, 12)
    out, valid = crop_or_pad(x, 6)
    assert valid == 6 and out[0].tolist() == [3, 4, 5, 6, 7, 8]
    out, valid = crop_or_pad(x, 15)
    assert valid == 12 and out.shape == (2, 15) and (out[:, 12:] == 0).all() and (out[:, :12] == x).all()


def ecg(fs=500, seconds=12.0, seed=0):
    """Twelve noisy leads in steps of 1/200 mV, int64 (samples, 12)."""
    noise = np.random.default_rng(seed).normal(scale=20, size=(round(fs * seconds), 12))
    return np.rint(noise + 200 * sine(7, fs, seconds)[:, None]).astype(int)


def write(folder, name, steps=None, fs=500, leads=LEADS, comments=(), gain=200.0):
    folder.mkdir(parents=True, exist_ok=True)
    steps = ecg(fs) if steps is None else steps
    n = len(leads)
    wfdb.wrsamp(
        name, fs, ["mV"] * n, list(leads), d_signal=steps[:, :n], fmt=["16"] * n, adc_gain=[gain] * n, baseline=[0] * n,
        write_dir=str(folder), comments=list(comments),
    )  # fmt: skip
    return folder / name


def run(folder, out, name="mine", **kwargs):
    return prepare(name, source=folder, out=out, progress=False, **kwargs)


def test_one_bad_record_never_stops_the_rest(tmp_path):
    folder, flat, gaps, holes = tmp_path / "in", ecg(), ecg(), ecg()
    flat[:, 8], gaps[100:200, 6], holes[:3000, 6] = 5, -32768, -32768
    write(folder, "a_good", comments=["Age: 61", "Sex: Male", "Dx: 59118001,284470004"])
    write(folder, "b_flat", flat)
    write(folder, "c_gaps", gaps)
    write(folder, "d_holes", holes)
    write(folder, "e_zero", ecg() * 0)
    write(folder, "f_short", ecg(seconds=4))
    write(folder, "g_blink", ecg(seconds=0.5))
    write(folder, "h_loud", gain=2.0)
    write(folder, "i_eight", leads=["I", "II", "V1", "V2", "V3", "V4", "V5", "V6"])
    write(folder, "j_two", leads=["II", "V5"])
    write(folder, "k_slow", fs=64)
    with open(write(folder, "l_cut").with_suffix(".dat"), "r+b") as file:
        file.truncate(100)
    for name, pattern, replacement in (
        ("m_unit", "/mV", ""),
        ("n_rate", "n_rate 12 500", "n_rate 12 0"),
        ("o_rate", "o_rate 12 500", "o_rate 12 1000000000"),
        ("p_sum", r"(-?\d+) 0 V6", "77 0 V6"),
    ):
        header = write(folder, name).with_suffix(".hea")
        header.write_text(re.sub(pattern, replacement, header.read_text()))
    (folder / "q_junk.hea").write_bytes(b"\x00\xff junk")

    store, report = run(folder, tmp_path / "out")
    table = store.table.set_index("record")
    assert list(table.index) == ["a_good", "b_flat", "c_gaps", "f_short", "h_loud", "i_eight", "j_two", "k_slow"]
    assert list(report["record"]) == [*sorted(report["record"].iloc[:-1]), "(all)"]
    left_out = report[report["action"] == "left out"].set_index("record")["reason"]
    for name, reason in {
        "d_holes": "50 % of lead V1 are NaN", "e_zero": "every lead is flat", "g_blink": "0.50 s long", "l_cut": "is truncated",
        "m_unit": "names no unit", "n_rate": "no sampling rate", "o_rate": "implausible", "p_sum": "checksum",
        "q_junk": "not a WFDB header",
    }.items():  # fmt: skip
        assert reason in left_out.pop(name)
    assert left_out.empty
    flags = report[report["action"] == "kept with flag"].set_index("record")["reason"]
    assert flags.drop(["j_two", "(all)"]).to_dict() == {
        "b_flat": "flat:V3", "c_gaps": "nan:V1", "f_short": "padded", "h_loud": "clipped", "k_slow": "narrow:32Hz",
    }  # fmt: skip
    assert flags["j_two"].split(";") == [f"missing:{lead}" for lead in LEADS if lead not in ("II", "V5")]
    assert flags["(all)"] == "mixed sampling rates, each brought to 100 Hz: 64 Hz (1), 500 Hz (7)"
    assert table["quality"].to_dict() == {"a_good": "", "i_eight": "", **flags.drop("(all)").to_dict()}
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "report.csv"), report)

    good = table.loc["a_good"]
    assert (good.age, good.sex, good.labels, good.source, good.patient) == (61, "M", "59118001;284470004", "mine", "a_good")
    assert good.year == 0, "the date of a header is often that of a conversion"
    assert good.fold == fold_of("a_good") and good.valid == 1000 and table.loc["f_short"].valid == 400
    expected = condition((ecg().T / 200).astype(np.float32), 500)[:, 100:1100]
    np.testing.assert_allclose(store.read([0])[0], expected, atol=6e-4)
    gaps_filled = store.read([2])[0]
    np.testing.assert_allclose(gaps_filled[[0, 11]], expected[[0, 11]], atol=6e-4)
    assert np.isfinite(gaps_filled).all() and (store.lead_mask[[0, 2, 5]]).all()
    assert not store.signals[1, 8].any() and store.lead_mask[1].sum() == 11
    assert not store.signals[3, :, 400:].any() and np.abs(store.signals[4]).max() == 32767
    assert store.lead_mask[6].nonzero()[0].tolist() == [1, 10]
    eight = store.read([5])[0].numpy()
    np.testing.assert_allclose(eight[0] + eight[2], eight[1], atol=2e-3)  # Einthoven, within the steps of the store
    assert (
        store.meta["band"] == [0.5, 40.0] and store.meta["source"] == "mine" and set(store.meta["versions"]) >= {"numpy", "scipy", "wfdb"}
    )


def test_the_result_does_not_depend_on_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("crema_lib.data.prepare.CHUNK", 3)
    for i in range(20):
        steps = ecg(fs=100, seconds=10 + i % 3, seed=i)
        write(tmp_path / "in", f"r{i:03}", steps if i % 7 else steps * 0, fs=100)
    for workers in (1, 2):
        run(tmp_path / "in", tmp_path / f"out{workers}", workers=workers)
    for file in ("signals.i16", "table.parquet", "store.json", "report.csv"):
        assert (tmp_path / "out1" / file).read_bytes() == (tmp_path / "out2" / file).read_bytes()
    assert len(EcgStore(tmp_path / "out1")) == 17


def test_limit_seconds_and_rate(tmp_path):
    for name in "abc":
        write(tmp_path / "in", name)
    store, _ = run(tmp_path / "in", tmp_path / "out", limit=2, fs=250, seconds=4, band=(0.5, 100))
    assert store.signals.shape == (2, 12, 1000) and (store.fs, store.seconds) == (250, 4)
    for wrong in ({"limit": 0}, {"limit": -1}, {"seconds": 0}, {"seconds": -1}, {"workers": -1}):
        with pytest.raises(CremaError, match="each must be one or more"):
            run(tmp_path / "in", tmp_path / "wrong", **wrong)


def test_a_folder_with_something_else_is_left_as_it_is(tmp_path):
    write(tmp_path / "in", "a")
    before = sorted(path.name for path in (tmp_path / "in").iterdir())
    with pytest.raises(CremaError, match="in holds something else than a prepared data set"):
        run(tmp_path / "in", tmp_path / "in")
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == before
    (tmp_path / "empty").mkdir()
    run(tmp_path / "in", tmp_path / "empty")
    store, _ = run(tmp_path / "in", tmp_path / "empty")
    assert len(store) == 1 and not list(tmp_path.glob("*.part")), "an empty folder and an earlier store give way"


def test_default_place(tmp_path, monkeypatch):
    monkeypatch.setenv("CREMA_DATA", str(tmp_path))
    write(tmp_path / "in", "a")
    store, _ = prepare("mine", source=tmp_path / "in", progress=False)
    assert store.path == store_path("mine", 100, 10) == tmp_path.resolve() / "stores" / "mine-100hz-10s"


def test_folders_that_hold_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, sentence in ((tmp_path / "empty", "empty holds no recordings"), (tmp_path / "none", "none is not a folder")):
        with pytest.raises(CremaError, match=sentence):
            run(folder, tmp_path / "out")
    write(tmp_path / "bad", "a", ecg() * 0)
    with pytest.raises(CremaError, match=r"none of the 1 records in .* can be used; the first: record a: every lead is flat"):
        run(tmp_path / "bad", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("where", ["append", "close"])
def test_no_space_left_keeps_the_earlier_store(tmp_path, monkeypatch, where):
    write(tmp_path / "in", "a")
    run(tmp_path / "in", tmp_path / "out")
    before = (tmp_path / "out" / "signals.i16").read_bytes()

    def full(self, *arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StoreWriter, where, full)
    write(tmp_path / "in", "b")
    with pytest.raises(CremaError, match=r"cannot write .*out: no space left on the device"):
        run(tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert (tmp_path / "out" / "signals.i16").read_bytes() == before and len(EcgStore(tmp_path / "out")) == 1


def test_bad_band_is_told_before_any_reading(tmp_path):
    write(tmp_path / "in", "a")
    with pytest.raises(CremaError, match=r"the band 0.5 to 60 Hz"):
        run(tmp_path / "in", tmp_path / "out", band=(0.5, 60))
    assert not (tmp_path / "out").exists()


PTBXL = {
    "ecg_id": [1, 2, 3], "patient_id": [15709.0, 15709.0, 8.0], "age": [56.0, 300.0, np.nan], "sex": [1, 0, 0],
    "device": ["CS-12   E", "CS100    3", None], "site": [0.0, np.nan, 2.0], "strat_fold": [3, 3, 10],
    "recording_date": ["1984-11-09 09:17:34", None, "1999-01-01 00:00:00"],
    "scp_codes": ["{'NORM': 100.0, 'SR': 0.0}", "{}", "{'IMI': 35.0}"], "baseline_drift": [None, " , V6", None],
    "static_noise": [" , I-V1,  ", None, None], "burst_noise": None, "electrodes_problems": None,
    "filename_lr": [f"records100/00000/0000{i}_lr" for i in (1, 2, 3)], "filename_hr": [f"records500/00000/0000{i}_hr" for i in (1, 2, 3)],
}  # fmt: skip


def test_ptbxl(tmp_path):
    for i in (1, 2):
        write(tmp_path / "in" / "records100" / "00000", f"0000{i}_lr", ecg(100, 10), fs=100)
    pd.DataFrame(PTBXL).to_csv(tmp_path / "in" / "ptbxl_database.csv", index=False)
    store, report = run(tmp_path / "in", tmp_path / "out", name="ptb-xl")
    one, two = store.table.iloc[0], store.table.iloc[1]
    assert one.drop("lead_mask").to_dict() == {
        "record": "00001_lr", "patient": "15709", "source": "ptb-xl", "fold": 3, "age": 56, "sex": "F", "device": "CS-12 E", "site": "0",
        "labels": "NORM;SR", "valid": 1000, "quality": "static_noise", "year": 1984,
    }  # fmt: skip
    assert np.isnan(two.age) and two.quality == "baseline_drift;age>89" and (two.sex, two.labels, two.site, two.year) == ("M", "", "", 0)
    assert report["record"].tolist() == ["00003_lr"] and "cannot be read" in report["reason"][0]
    with pytest.raises(CremaError, match="no folder records500, which 500 Hz needs"):
        run(tmp_path / "in", tmp_path / "out500", fs=500)


@pytest.mark.parametrize(("damage", "sentence"), [
    (lambda t: t.drop(columns="strat_fold"), "ptbxl_database.csv is damaged or not the table .*strat_fold"),
    (lambda t: t.assign(scp_codes="{'NORM'"), "the row of ecg_id 1 cannot be read"),
    (lambda t: t.assign(strat_fold=None), "the row of ecg_id 1 cannot be read"),
    (lambda t: t.assign(recording_date="9.11.1984"), "the row of ecg_id 1 cannot be read"),
])  # fmt: skip
def test_damaged_table(tmp_path, damage, sentence):
    write(tmp_path / "in" / "records100" / "00000", "00001_lr", ecg(100, 10), fs=100)
    damage(pd.DataFrame(PTBXL)).to_csv(tmp_path / "in" / "ptbxl_database.csv", index=False)
    with pytest.raises(CremaError, match=sentence):
        run(tmp_path / "in", tmp_path / "out")


def test_code15(tmp_path):
    tracings = np.zeros((4, 4096, 12), np.float32)
    tracings[0, 48:4048] = ecg(400, 10) / 200
    tracings[1, 648:3448] = ecg(400, 7) / 200
    tracings[3, 48:4048] = ecg(400, 10, seed=1) / 200
    with h5py.File(tmp_path / "exams_part0.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = tracings[:3], np.array([11, 12, 0])
    with h5py.File(tmp_path / "exams_part1.hdf5", "w") as file:
        file["tracings"], file["exam_id"] = tracings[3:], np.array([13])
    labels = {label: [False] * 3 for label in ("1dAVb", "LBBB", "SB", "ST", "normal_ecg")}
    exams = {"exam_id": [13, 12, 11], "age": [70, 30, 40], "is_male": [True, False, True], "patient_id": [5, 5, 6]}
    pd.DataFrame(exams | labels | {"RBBB": [True, False, False], "AF": [True, False, True]}).to_csv(tmp_path / "exams.csv", index=False)
    store, report = run(tmp_path, tmp_path / "out", name="code-15")
    table = store.table.set_index("record")
    assert table["patient"].to_dict() == {"11": "6", "12": "5", "13": "5"} and table["fold"]["12"] == table["fold"]["13"] == fold_of("5")
    assert table["labels"].to_dict() == {"11": "AF", "12": "", "13": "RBBB;AF"} and table["sex"].tolist() == ["M", "F", "M"]
    assert table["valid"].tolist() == [1000, 700, 1000] and table["age"].tolist() == [40, 30, 70]
    assert report.values.tolist() == [["12", "padded", "kept with flag"], ["0", "record 0: the tracing is all zero", "left out"]]
    np.testing.assert_allclose(store.read([2])[0], condition(tracings[3, 48:4048].T, 400), atol=6e-4)


def test_challenge_codes_come_from_the_table_beside(tmp_path):
    write(tmp_path / "in" / "georgia", "E1", comments=["Dx: PVC"])
    write(tmp_path / "in" / "georgia", "E2", comments=["Dx: 59118001"])
    pd.DataFrame({"record": ["E1"], "source": ["georgia"], "snomed": ["427172004 59118001"]}).to_csv(tmp_path / "in" / "labels.csv")
    for folder in (tmp_path / "in", tmp_path / "in" / "georgia"):
        table = run(folder, tmp_path / "out")[0].table
        assert table["labels"].tolist() == ["427172004;59118001", "59118001"] and table["source"].tolist() == ["georgia", "mine"]


def test_somebodys_own_labels_are_passed_over_and_a_record_twice_is_told(tmp_path):
    write(tmp_path / "in", "E1", comments=["Dx: 59118001"])
    labels = tmp_path / "in" / "labels.csv"
    labels.write_text("file,label\nE1,normal\n")
    assert run(tmp_path / "in", tmp_path / "out")[0].table["labels"].tolist() == ["59118001"]
    labels.write_text("record,source,snomed\nE1,georgia,1\nE1,georgia,2\n")
    with pytest.raises(CremaError, match="more than one row for record E1"):
        run(tmp_path / "in", tmp_path / "out")


def test_names_that_repeat_keep_their_folder(tmp_path):
    for folder in "ab":
        write(tmp_path / "in" / folder, "1")
    assert run(tmp_path / "in", tmp_path / "out")[0].table["record"].tolist() == ["a/1", "b/1"]


def test_wfdb_and_tables_of_a_folder_are_read_at_any_depth_and_the_rest_is_counted(tmp_path):
    folder = tmp_path / "in"
    write(folder / "b", "w1")
    write(folder, "w2")
    for name in ("a/t1.csv", "c/d/t2.CSV", ".trash/t3.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(ecg() / 200, columns=LEADS).to_csv(folder / name, index=False)
    (folder / "b" / "w1.atr").write_bytes(b"marks")
    (folder / "b" / "w1_0.dat").write_bytes(b"a signal of its own")
    for name in ("notes.txt", "b/patients.csv", "c/a.npy", "c/RECORDS", ".hidden"):
        (folder / name).write_text("name,age\nx,1\n")
    store, report = run(folder, tmp_path / "out", unit="mV", rate=500)
    assert store.table["record"].tolist() == ["t1", "w1", "t2", "w2"], "in the order of their paths"
    assert report.values.tolist() == [
        [
            "(all)",
            "passed over in folders, neither WFDB nor CSV with a column a lead: 4 files (patients.csv, RECORDS, a.npy, ...)",
            "passed over",
        ]
    ]
    np.testing.assert_allclose(store.read([0])[0], store.read([1])[0], atol=6e-4)
    table, (both, alone) = pd.DataFrame(ecg() / 200, columns=LEADS), (folder / name for name in ("b/w1.csv", "a/w1.csv"))
    table.to_csv(both, index=False)
    table.to_csv(alone, index=False)
    found = run(folder, tmp_path / "out", unit="mV", rate=500)[0].table["record"].tolist()
    assert found == ["a/t1.csv", "a/w1.csv", "b/w1.csv", "b/w1", "c/d/t2.CSV", "w2"], "the same name more than once"


def test_a_folder_of_other_tables_is_told_by_their_columns(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "mine.csv").write_text("ch1;ch2\n0,1;0,2\n")
    with pytest.raises(CremaError, match=r"in holds no recordings: expected .* a column a lead.*; mine.csv begins with 'ch1;ch2'"):
        run(tmp_path / "in", tmp_path / "out")


def test_folds_are_even_and_fixed():
    folds = np.bincount([fold_of(i) for i in range(5000)], minlength=11)
    assert folds[0] == 0 and len(folds) == 11 and folds[1:].min() > 420 and fold_of("15709") == fold_of(15709) == 2


def test_real_ptbxl_equals_wfdb(real_data, tmp_path):
    store, report = run(real_data / "ptb-xl", tmp_path / "out", name="ptb-xl", limit=64)
    assert len(store) == 64 and report.empty
    folder = real_data / "ptb-xl" / "records100" / "00000"
    raw = np.stack([wfdb.rdrecord(str(folder / name)).p_signal.T for name in store.table["record"]])
    expected = sosfiltfilt(butter(2, (0.5, 40), "bandpass", fs=100, output="sos"), raw, padlen=200)
    np.testing.assert_allclose(store.read(range(64)), expected, atol=6e-4)
    assert store.table["patient"].iloc[0] == "15709" and store.table["labels"].iloc[0] == "NORM;LVOLT;SR"


@pytest.mark.parametrize(("name", "records", "flagged"), [
    ("challenge-2021-sample", 354, 6), ("ludb-1.0.1", 200, 0), ("brugada-huca", 363, 0), ("chagas-sample", 353, 238),
])  # fmt: skip
def test_real_sets_are_read_whole(real_data, tmp_path, name, records, flagged):
    store, report = run(real_data / name, tmp_path / "out", name=name)
    single = report[report["record"] != "(all)"]
    assert len(store) == records and (single["action"] == "kept with flag").all() and len(single) == flagged
    assert (store.table["labels"] != "").all() and store.table["fold"].between(1, 10).all()
    assert np.median(np.abs(store.signals[:]).max(axis=2)) > 100  # 0.1 mV: QRS complexes are there, in mV
    if name != "brugada-huca":
        assert store.table["age"].between(0, 120).mean() > 0.98 and store.table["sex"].isin(["F", "M"]).all()
    if name == "challenge-2021-sample":
        assert store.table["source"].value_counts().to_dict() == {
            "cpsc_2018": 164, "chapman_ningbo": 85, "georgia": 73, "cpsc_2018_extra": 29, "ptb": 3,
        }  # fmt: skip
        assert store.meta["source_fs"] == {"500": 351, "1000": 3} and report["record"].iloc[-1] == "(all)"
    if name == "chagas-sample":
        assert set(store.table["labels"]) == {"chagas:0", "chagas:1"} and store.table["patient"].duplicated().any()
