"""The simulator: lead identities, determinism, who is recorded, and that each label shows in the signal."""

import hashlib
import os

import numpy as np
import pandas as pd
import pytest
from scipy.signal import butter, find_peaks, sosfiltfilt

from crema_lib.data.simulate import DELTA, GROUPS, SITES, simulate, simulated_store
from crema_lib.data.store import COLUMNS, StoreWriter
from crema_lib.errors import CremaError

SUPERCLASS = {
    "NORM": "NORM",
    **dict.fromkeys(("IMI", "ASMI", "ILMI", "AMI", "ALMI"), "MI"),
    **dict.fromkeys(("NDT", "NST_", "ISC_", "ISCAL", "ISCIN"), "STTC"),
    **dict.fromkeys(("CLBBB", "CRBBB", "IRBBB", "IVCD", "LAFB", "1AVB"), "CD"),
    **dict.fromkeys(("LVH", "RVH", "LAO/LAE"), "HYP"),
}
RHYTHM = ("SR", "SBRAD", "STACH", "SARRH", "AFIB", "AFLT")
INDEPENDENT = [0, 1, 6, 7, 8, 9, 10, 11]


def r_peaks(signal, fs, lowest=10):
    """Sample numbers of the R peaks of one record (12, samples) in mV: maxima of the energy from `lowest` to 30 Hz, where T is weak."""
    energy = (sosfiltfilt(butter(2, (lowest, 30), "bandpass", fs=fs, output="sos"), signal[INDEPENDENT], axis=1) ** 2).sum(axis=0)
    smooth = np.convolve(energy, np.hanning(round(0.1 * fs)), "same")
    return find_peaks(smooth, height=0.2 * np.percentile(smooth, 98), distance=round(0.28 * fs))[0]


def median_beat(signal, fs):
    """Median beat (12, samples) from 0.4 s before to 0.5 s after R."""
    before, after = round(0.4 * fs), round(0.5 * fs)
    peaks = r_peaks(signal, fs)
    return np.median([signal[:, p - before : p + after] for p in peaks if before <= p <= signal.shape[1] - after], axis=0)


def qrs_width(beat, fs):
    """Seconds within which the middle 94 % of the slope energy around R lie."""
    energy = (np.gradient(beat[INDEPENDENT], axis=1) ** 2).sum(axis=0)[round(0.25 * fs) : round(0.55 * fs)]
    share = np.cumsum(energy) / energy.sum()
    return np.subtract(*np.interp([0.97, 0.03], share, np.arange(len(share)) / fs))


@pytest.fixture(scope="module")
def data():
    """Signals in mV, table, sets of labels of 1,800 records."""
    signals, table = simulate(1800, seed=1)
    signals = signals / np.float32(1000)
    return signals, table, [set(labels.split(";")) for labels in table["labels"]]


def pick(labels, code, most=40, without=("PVC", "PAC")):
    """Numbers of the first records that carry a code and none of the others."""
    found = [i for i, own in enumerate(labels) if code in own and not own & set(without)][:most]
    assert len(found) >= 8, code
    return found


def test_shape_dtype_and_columns():
    signals, table = simulate(7, seed=4, fs=250, seconds=6)
    assert signals.shape == (7, 12, 1500) and signals.dtype == np.int16
    assert list(table) == list(COLUMNS) and len(table) == 7
    assert (table["valid"] == 1500).all() and (table["lead_mask"] == 4095).all() and (table["year"] == 0).all()
    assert table["record"].is_unique and set(table["source"]) == {"simulated"}


def test_einthoven_and_goldberger_hold(data):
    one, two, three, avr, avl, avf = (1000 * data[0][:, :6].astype(float)).transpose(1, 0, 2)
    for derived, expected in ((three, two - one), (avr, -(one + two) / 2), (avl, one - two / 2), (avf, two - one / 2)):
        assert np.abs(derived - expected).max() <= 1.51  # each of the three values was rounded to 1 uV


def test_same_seed_same_bytes():
    def digest(seed):
        signals, table = simulate(150, seed=seed)
        return hashlib.sha256(signals.tobytes() + table.to_csv().encode()).hexdigest()

    assert digest(5) == digest(5) != digest(6)


def test_patients_and_folds(data):
    table = data[1]
    by_patient = table.groupby("patient")
    assert (by_patient[["fold", "age", "sex", "site"]].nunique() == 1).all(axis=None)
    assert by_patient.size().between(1, 4).all() and (by_patient.size() > 1).any()
    assert set(table["fold"]) == set(range(1, 11))
    assert table["fold"].value_counts(normalize=True).between(0.07, 0.13).all()
    assert table["age"].between(18, 95).all() and set(table["sex"]) == {"F", "M"}


def test_prevalence_is_near_ptb_xl_and_follows_the_site(data):
    _, table, labels = data
    share = {name: np.mean([any(SUPERCLASS.get(c) == name for c in own) for own in labels]) for name in ("NORM", "MI", "STTC", "CD", "HYP")}
    for name, expected in {"NORM": 0.44, "MI": 0.25, "STTC": 0.24, "CD": 0.22, "HYP": 0.12}.items():
        assert abs(share[name] - expected) < 0.06, (name, share)
    assert set(table["site"]) == set(SITES) and table["device"].nunique() == 3

    def rate(site, *codes):
        return np.mean([bool(own & set(codes)) for own, place in zip(labels, table["site"], strict=True) if place == site])

    check, outpatient, emergency = (site for site in SITES)
    assert rate(check, "NORM") > 0.7 > rate(outpatient, "NORM") > rate(emergency, "NORM")
    assert rate(emergency, "AFIB") > 3 * rate(check, "AFIB")
    assert rate(emergency, "STACH") > 3 * rate(check, "STACH")
    assert rate(emergency, "IMI", "ASMI") > 3 * rate(check, "IMI", "ASMI")
    ages = table.groupby("site")["age"].mean()
    assert ages[check] < ages[outpatient] < ages[emergency]
    assert table.groupby("site")["device"].agg(lambda d: d.value_counts().index[0]).nunique() == 3


def test_labels_are_consistent(data):
    codes = {code for _, _, share in GROUPS for code in share}
    assert codes == set(SUPERCLASS) - {"NORM"} and set(DELTA) == codes - {"1AVB"}  # 1AVB moves P, it has no shape of its own
    for own in data[2]:
        assert len(own & set(RHYTHM)) == 1 and own <= codes | {"NORM", "PAC", "PVC", *RHYTHM}
        assert not ("NORM" in own and own & (codes | {"AFIB", "AFLT", "PVC"}))
        assert not (own & {"AFIB", "AFLT"} and own & {"1AVB", "PAC"})


def test_codes_are_ptb_xl_statements(real_data):
    statements = pd.read_csv(real_data / "ptb-xl" / "scp_statements.csv", index_col=0)
    assert {code: statements.loc[code, "diagnostic_class"] for code in SUPERCLASS} == SUPERCLASS
    assert (statements.loc[list(RHYTHM), "rhythm"] == 1).all() and (statements.loc[["PAC", "PVC"], "form"] == 1).all()


def test_heart_rate_follows_the_rhythm(data):
    signals, _, labels = data
    for code, low, high in (("SBRAD", 38, 60.5), ("SR", 58, 101), ("STACH", 99.5, 155), ("AFIB", 45, 160), ("AFLT", 60, 175)):
        rates = [6000 / np.mean(np.diff(r_peaks(signals[i], 100))) for i in pick(labels, code)]
        assert low < np.min(rates) and np.max(rates) < high, (code, min(rates), max(rates))


def test_fibrillation_is_irregular_and_has_no_p_wave(data):
    signals, _, labels = data
    spread, p_wave = {}, {}
    for code in ("SR", "AFIB"):
        chosen = pick(labels, code, without=("PVC", "PAC", "1AVB"))
        rr = [np.diff(r_peaks(signals[i], 100)) for i in chosen]
        spread[code] = np.median([r.std() / r.mean() for r in rr])
        p_wave[code] = np.median([np.ptp(median_beat(signals[i], 100)[1, 16:33]) for i in chosen])
    assert spread["SR"] < 0.05 and spread["AFIB"] > 0.14
    assert p_wave["AFIB"] < 0.75 * p_wave["SR"]


def test_flutter_waves_are_at_4_to_6_hz(data):
    signals, _, labels = data

    def share(i):  # of the power between the beats of lead II, 2-12 Hz, that lies at 4-6 Hz
        quiet = signals[i][1].copy()
        for p in r_peaks(signals[i], 100):
            quiet[max(p - 8, 0) : p + 9] = np.median(quiet)
        power, f = np.abs(np.fft.rfft(quiet * np.hanning(1000))) ** 2, np.fft.rfftfreq(1000, 0.01)
        return power[(f > 4) & (f < 6)].sum() / power[(f > 2) & (f < 12)].sum()

    flutter, sinus = (np.median([share(i) for i in pick(labels, code)]) for code in ("AFLT", "SR"))
    assert flutter > 1.5 * sinus


def test_first_degree_block_delays_the_qrs(data):
    signals, _, labels = data

    def p_to_r(i):
        return 0.4 - np.argmax(median_beat(signals[i], 100)[1, 5:34]) / 100 - 0.05

    block = np.median([p_to_r(i) for i in pick(labels, "1AVB")])
    normal = np.median([p_to_r(i) for i in pick(labels, "NORM")])
    assert normal < 0.16 < 0.18 < block


@pytest.mark.parametrize("code", ["PAC", "PVC"])
def test_ectopic_beats_are_early_and_only_pvc_is_wide(data, code):
    signals, _, labels = data
    early, wide = [], []
    for i in pick(labels, code, without=("AFIB", "AFLT", "SARRH", "CLBBB", "CRBBB", "IVCD")):
        peaks = r_peaks(signals[i], 100, lowest=3)  # a wide beat has little above 10 Hz
        rr = np.diff(peaks)
        k = 1 + np.argmin(rr[1:] / rr[:-1])  # the beat that comes soonest after the last
        early.append(rr[k] / np.median(rr))
        width = []
        for p in peaks[[k + 1, k]]:
            window = signals[i][:, max(p - 40, 0) : p + 50]
            width.append(qrs_width(window, 100) if window.shape[1] == 90 else np.nan)
        wide.append(width[0] / width[1])
    assert np.median(early) < 0.75
    assert np.nanmedian(wide) > 1.4 if code == "PVC" else 0.9 < np.nanmedian(wide) < 1.1


def test_shapes_of_the_findings(data):
    signals, _, labels = data
    beats = {
        code: np.stack([median_beat(signals[i], 100) for i in pick(labels, code, without=("PVC", "PAC", "AFIB", "AFLT"))])
        for code in ("NORM", "CLBBB", "CRBBB", "LVH", "RVH", "IMI", "ASMI", "ISC_", "LAFB")
    }
    beats = {code: b - np.median(b[:, :, 30:34], axis=2, keepdims=True) for code, b in beats.items()}
    width = {code: np.median([qrs_width(beat, 100) for beat in b]) for code, b in beats.items()}
    assert width["CLBBB"] > 1.4 * width["NORM"] and width["CRBBB"] > 1.2 * width["NORM"]
    assert width["LVH"] < 1.2 * width["NORM"]

    def median(code, lead, part, reduce):
        row = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"].index(lead)
        return np.median(reduce(beats[code][:, row, part], axis=1))

    qrs, early, t = slice(34, 54), slice(33, 40), slice(58, 72)
    sokolow = {code: median(code, "V5", qrs, np.max) - median(code, "V1", qrs, np.min) for code in ("NORM", "LVH")}
    assert sokolow["LVH"] > 1.4 * sokolow["NORM"] and sokolow["LVH"] > 3  # Sokolow-Lyon: 3.5 mV is the clinical threshold
    assert median("CRBBB", "V1", slice(42, 54), np.max) > 0.3 and median("CRBBB", "V1", t, np.mean) < 0
    assert median("CLBBB", "V1", qrs, np.min) < -1 and median("CLBBB", "V6", t, np.mean) < 0 < median("CLBBB", "V1", t, np.mean)
    assert median("RVH", "V1", qrs, np.max) > -median("RVH", "V1", qrs, np.min)
    assert median("IMI", "aVF", early, np.min) < median("NORM", "aVF", early, np.min) - 0.1
    assert median("ASMI", "V2", early, np.max) < median("NORM", "V2", early, np.max) - 0.2
    assert median("ISC_", "V5", t, np.mean) < 0 < median("NORM", "V5", t, np.mean)
    assert median("LAFB", "aVF", qrs, np.min) < -0.3 < 0.3 < median("LAFB", "aVL", qrs, np.max)
    # normal: aVR points down, R grows from V1 to V4, T follows R
    assert median("NORM", "aVR", qrs, np.min) < -0.4
    growing = [median("NORM", lead, qrs, np.max) for lead in ("V1", "V2", "V3", "V4")]
    assert np.all(np.diff(growing) > 0)
    assert all(median("NORM", lead, t, np.mean) > 0.05 for lead in ("I", "II", "V4", "V5", "V6"))


def test_amplitudes_are_physiological(data):
    span = np.ptp(data[0], axis=2)
    low, high = np.percentile(span, (5, 95))
    assert 0.3 < low < 0.6 and 2.2 < high < 4 and span.max() < 15  # PTB-XL: 0.46 and 3.2 mV
    assert np.abs(data[0].mean(axis=2)).max() < 0.05  # the 0.5 Hz high-pass leaves no offset
    assert (data[0].std(axis=2) > 0.01).all()


def test_a_patient_is_recognisable(data):
    signals, table, labels = data
    sinus = [i for i, own in enumerate(labels) if "SR" in own and not own & {"PVC", "PAC"}]
    beats = {i: median_beat(signals[i], 100)[:, 25:75].ravel() for i in sinus[:200]}
    same, other = [], []
    for a, b in zip(list(beats)[:-1], list(beats)[1:], strict=True):
        (same if table["patient"][a] == table["patient"][b] else other).append(np.corrcoef(beats[a], beats[b])[0, 1])
    assert len(same) > 20 and np.median(same) > 0.95 > 0.9 > np.median(other)


def test_another_rate_gives_the_same_physiology():
    (low, table), (high, other) = simulate(80, seed=3), simulate(80, seed=3, fs=500)
    pd.testing.assert_frame_equal(table.drop(columns="valid"), other.drop(columns="valid"))
    sinus = table["labels"].str.endswith(("SR", "SBRAD", "STACH")) & ~table["labels"].str.contains("PVC|PAC")
    rates = np.array(
        [[60 * fs / np.median(np.diff(r_peaks(x[i] / 1000, fs))) for x, fs in ((low, 100), (high, 500))] for i in np.flatnonzero(sinus)]
    )
    assert np.abs(rates[:, 0] / rates[:, 1] - 1).max() < 0.06
    spans = [np.ptp(x[sinus.to_numpy()], axis=2).astype(float) for x in (low, high)]
    assert abs(np.median(spans[0] / spans[1]) - 1) < 0.08


def test_normal_records_resemble_real_ones(real_data):
    root = real_data / "ptb-xl"
    frame = pd.read_csv(root / "ptbxl_database.csv")
    frame = frame[frame["scp_codes"].str.contains("'NORM': 100.0") & (frame["strat_fold"] <= 8)].head(200)
    sos = butter(2, (0.5, 40), "bandpass", fs=100, output="sos")
    real = np.stack([np.fromfile(root / f"{name}.dat", "<i2").reshape(1000, 12).T for name in frame["filename_lr"]])
    signals, table = simulate(500, seed=2)
    normal = signals[table["labels"].str.startswith("NORM").to_numpy()]
    found = {}
    for name, x in (("real", sosfiltfilt(sos, real, axis=2)), ("simulated", normal)):
        found[name] = np.median(np.percentile(x, (0.5, 99.5), axis=2), axis=1)
    assert np.abs(found["simulated"] - found["real"]).max() < 350  # uV, every lead's deepest and highest values
    assert np.corrcoef(found["simulated"].ravel(), found["real"].ravel())[0, 1] > 0.95


def test_store_is_written_once(tmp_path):
    signals, table = simulate(140, seed=8, seconds=5)
    store = simulated_store(tmp_path / "sim", 140, seed=8, seconds=5)
    assert np.array_equal(store.signals, signals) and store.meta["source"] == "simulated"
    pd.testing.assert_frame_equal(store.table, table)
    written = (tmp_path / "sim" / "signals.i16").stat().st_mtime_ns
    simulated_store(tmp_path / "sim", 140, seed=8, seconds=5)
    assert (tmp_path / "sim" / "signals.i16").stat().st_mtime_ns == written
    for change in ({"seed": 9}, {"fs": 200}, {"seconds": 6}):
        again = simulated_store(tmp_path / "sim", 140, **{"seed": 8, "seconds": 5, **change})
        assert again.meta["sha256"] != store.meta["sha256"]
    (tmp_path / "sim" / "store.json").write_text("{")
    assert simulated_store(tmp_path / "sim", 140, seed=8, seconds=5).meta["sha256"] == store.meta["sha256"]


def test_a_store_that_another_process_finishes_first_is_the_one_that_stays(tmp_path, monkeypatch):
    append, pid, first = StoreWriter.append, os.getpid(), []

    def overtaken(self, *arguments):
        if not first:
            first.append(None)
            monkeypatch.setattr(os, "getpid", lambda: pid + 1)
            first[0] = simulated_store(tmp_path / "sim", 40, seconds=5)
            monkeypatch.setattr(os, "getpid", lambda: pid)
        append(self, *arguments)

    monkeypatch.setattr(StoreWriter, "append", overtaken)
    second = simulated_store(tmp_path / "sim", 40, seconds=5)
    first[0].check_unchanged()
    assert second.stamp == first[0].stamp and [path.name for path in tmp_path.iterdir()] == ["sim"]


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": 2.5}, {"seed": -1}, {"fs": 20}, {"seconds": 0}, {"fs": float("nan")}, {"n": "3"}])
def test_bad_arguments_are_named(wrong, tmp_path):
    arguments = {"n": 3, **wrong}
    for call in (lambda: simulate(**arguments), lambda: simulated_store(tmp_path / "sim", **arguments)):
        with pytest.raises(CremaError, match=next(iter(wrong))):
            call()
    assert not any(tmp_path.iterdir())
