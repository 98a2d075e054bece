"""Measurements against beats that are known, against NeuroKit2 and by hand; bad recordings; and the boosting on top."""

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier

from crema_lib.data import labels
from crema_lib.data.leads import LEADS
from crema_lib.data.simulate import simulated_store
from crema_lib.errors import CremaError
from crema_lib.handcrafted import boosting, waves
from crema_lib.handcrafted.boosting import Boosting
from crema_lib.handcrafted.waves import measure
from crema_lib.metrics import auroc, macro


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 150, seed=0, fs=100, seconds=10)


def drawn(beats, fs=100, axis=50.0, seconds=10, qrs=0.011):
    """A recording of Gaussian waves: P .15 mV at -160 ms, QRS 1 mV, T .3 mV at 260 ms along `axis` (degrees) in the frontal plane."""
    t = np.arange(round(seconds * fs)) / fs
    trace = np.zeros_like(t)
    for beat in beats:
        for size, at, width in ((0.15, -0.16, 0.02), (1.0, 0, qrs), (0.3, 0.26, 0.035)):
            trace += size * np.exp(-(((t - beat - at) / width) ** 2) / 2)
    angles = {"I": 0, "II": 60, "III": 120, "aVF": 90, "aVL": -30, "aVR": -150}
    gain = [
        np.cos(np.radians(axis - angles[lead])) * (np.sqrt(3) / 2 if lead[0] == "a" else 1) if lead in angles else 1.0 for lead in LEADS
    ]
    gain[LEADS.index("V1")] *= -1
    return np.array(gain)[:, None] * trace


def named(signals, fs=100, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, names = measure(np.asarray(signals, dtype=np.float32), fs, **options)
    assert values.shape == (len(signals), len(names)) and values.dtype == np.float32 and len(set(names)) == len(names)
    assert not np.isinf(values).any()
    return dict(zip(names, values.T, strict=True))


BEATS = np.arange(0.5, 10, 0.8)


@pytest.mark.parametrize("fs", [100, 250, 500])
def test_known_waves_are_measured_at_any_rate(fs):
    found = named([drawn(BEATS, fs, axis) for axis in (50, -45, 140)], fs)
    assert found["rhythm.beats"] == pytest.approx(len(BEATS))
    assert found["rhythm.rate"] == pytest.approx(75, rel=0.01)
    assert found["axis.qrs"] == pytest.approx([50, -45, 140], abs=2)
    assert found["axis.qrs_t"] == pytest.approx(0, abs=3)
    assert found["p.pr"] + found["qrs.on"] == pytest.approx(0.16, abs=0.012)
    assert found["t.peak"] - found["qrs.on"] == pytest.approx(0.26, abs=0.012)
    assert found["V2.r"] == pytest.approx(1, abs=0.05)
    assert found["V1.s"] == pytest.approx(1, abs=0.05)
    assert found["V1.r"] == pytest.approx(0, abs=0.02)
    assert found["II.r"] == pytest.approx(np.maximum(np.cos(np.radians([-10, -105, 80])), 0), abs=0.05)
    assert found["V2.t_up"] == pytest.approx(0.3, abs=0.02)
    assert found["V1.t_down"] == pytest.approx(0.3, abs=0.02)
    assert found["V2.p_up"] == pytest.approx(0.15, abs=0.02)
    assert found["V2.st60"] == pytest.approx(0, abs=0.02)
    assert found["voltage.sokolow_lyon"] == pytest.approx(2, abs=0.1)
    assert found["voltage.cornell"] == pytest.approx(np.maximum(np.cos(np.radians([80, -15, 170])), 0) * np.sqrt(3) / 2, abs=0.05)
    assert found["beats.alike"] == pytest.approx(1)
    # the tangent at the inflection of a Gaussian meets the baseline two deviations after its peak
    assert found["t.qt"] - found["qrs.on"] == pytest.approx(0.26 + 2 * 0.035, abs=0.012)


def test_durations_follow_the_heart():
    slow, fast = drawn(np.arange(0.5, 10, 1.2)), drawn(np.arange(0.5, 10, 0.6))
    wide = drawn(BEATS, qrs=0.022)
    found = named([slow, fast, wide])
    assert found["rhythm.rate"] == pytest.approx([50, 100, 75], rel=0.01)
    assert found["t.qt"][0] == pytest.approx(found["t.qt"][1], abs=0.012)
    assert found["t.qtc_bazett"][:2] == pytest.approx(found["t.qt"][:2] / np.sqrt([1.2, 0.6]), rel=0.01)
    assert found["qrs.width"][2] == pytest.approx(2 * found["qrs.width"][0], rel=0.1)


def test_rhythm_equals_neurokit(store):
    signals = store.signals[:40] * np.float32(0.001)
    peaks = [found for found in waves.r_peaks(signals, 100) if len(found) > 4]
    assert len(peaks) > 35
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = [waves._neurokit().hrv_time(found, sampling_rate=100).iloc[0] for found in peaks[:8]]
    for found, reference in zip(peaks, theirs, strict=False):
        ours = waves.rhythm(found, 100)
        assert 1000 * ours["rr"] == pytest.approx(reference["HRV_MeanNN"])
        assert 1000 * ours["sdnn"] == pytest.approx(reference["HRV_SDNN"])
        assert 1000 * ours["rmssd"] == pytest.approx(reference["HRV_RMSSD"])
        assert ours["cv"] == pytest.approx(reference["HRV_CVNN"])


def test_sample_entropy_by_counting():
    rr = np.random.default_rng(0).normal(0.8, 0.1, 13)
    best = None
    for r in sorted({abs(x - y) for x in rr for y in rr}):  # A grows with r and jumps only at a difference
        close = [[abs(rr[i + k] - rr[j + k]) <= r for k in (0, 1)] for i in range(12) for j in range(i + 1, 12)]
        a, b = sum(x and y for x, y in close), sum(x for x, _ in close)
        if a >= 5:
            best = -np.log(a / b) + np.log(2 * r) - np.log(rr.mean())
            break
    assert waves.rhythm(np.round(np.cumsum([0, *rr]) * 1e6).astype(int), 1e6)["cosen"] == pytest.approx(best, abs=1e-3)


def test_irregular_rhythm_and_extra_beats_stand_out():
    rng = np.random.default_rng(0)
    irregular = np.cumsum(rng.uniform(0.5, 1.1, 12))
    extra = drawn(np.delete(BEATS, 6))
    t = np.arange(1000) / 100
    extra -= 2 * np.exp(-(((t - BEATS[6] + 0.2) / 0.05) ** 2) / 2)  # wide, early, against the others
    found = named([drawn(BEATS), drawn(irregular[irregular < 9.5]), extra])
    assert found["rhythm.cosen"][1] > found["rhythm.cosen"][0] + 1
    assert found["rhythm.rmssd"][1] > 0.1 > found["rhythm.rmssd"][0]
    assert found["beats.alike"][2] == pytest.approx(1 - 1 / (len(BEATS) - 2), abs=0.03), "of the whole beats one is not like the others"
    assert found["rhythm.early"][2] > 0 == found["rhythm.early"][0]
    assert found["V2.r"][2] == pytest.approx(1, abs=0.05), "the median beat is that of the dominant kind"


def test_recordings_that_hold_little():
    rng = np.random.default_rng(0)
    whole = drawn(BEATS)
    no_lead, damaged = whole.copy(), whole.copy()
    no_lead[7] = 0
    damaged[3, 100:300] = np.nan
    noise = rng.normal(0, 0.3, (12, 1000))
    step = np.where(np.arange(1000) > 500, 3.0, 0.0) * np.ones((12, 1))
    found = named([np.zeros((12, 1000)), np.full((12, 1000), np.nan), noise, step, no_lead, damaged, whole])
    assert np.isnan(found["II.r"][:2]).all() and (found["rhythm.beats"][:2] == 0).all()
    assert np.isnan(found["V2.r"][4]) and found["quality.absent"][4] == 1
    assert found["V3.r"][4] == pytest.approx(found["V3.r"][6], abs=0.02)
    assert np.isfinite(found["V2.r"][5])
    assert found["V2.noise"][2] > 10 * found["V2.noise"][6]
    mask = np.ones((1, 12), dtype=bool)
    mask[0, 8] = False
    assert np.isnan(named([whole], lead_mask=mask)["V3.r"][0])


def test_one_beat_has_waves_and_no_rate():
    found = named([drawn([1.0], seconds=2)])
    assert found["rhythm.beats"][0] == 1 and np.isnan(found["rhythm.rate"][0]) and np.isnan(found["rhythm.cosen"][0])
    assert found["V2.r"][0] == pytest.approx(1, abs=0.05) and found["axis.qrs"][0] == pytest.approx(50, abs=2)


def test_padding_is_not_heart():
    whole = drawn(BEATS)
    short = whole.copy()
    short[:, 600:] = 0
    found = named([short], valid=np.array([600]))
    assert found["rhythm.beats"][0] == (BEATS < 6).sum()
    assert found["V2.r"][0] == pytest.approx(1, abs=0.05)


def test_signals_of_another_shape():
    with pytest.raises(CremaError, match=r"\(records, 12, samples\) at 50 Hz or more, not \(2, 8, 1000\) at 100 Hz"):
        measure(np.zeros((2, 8, 1000)), 100)


def test_measurements_tell_simulated_findings(store):
    values, names = waves.features(store)
    column = dict(zip(names, values.T, strict=True))
    targets, codes, _ = labels.matrix(store.table, "all")
    told = dict(zip(codes, targets.T.astype(bool), strict=True))
    assert np.nanmedian(column["qrs.width"][told["CLBBB"] | told["CRBBB"]]) > np.nanmedian(column["qrs.width"][told["NORM"]]) + 0.02
    assert np.nanmedian(column["rhythm.cosen"][told["AFIB"]]) > np.nanmedian(column["rhythm.cosen"][told["SR"]]) + 0.5


def test_a_store_in_chunks(store, monkeypatch):
    rows = np.array([7, 149, 3, 80])
    direct, names = measure(store.signals[rows] * np.float32(0.001), 100, store.lead_mask[rows])
    values, same = waves.features(store, rows)
    assert names == same
    np.testing.assert_array_equal(values, direct)
    monkeypatch.setattr(waves, "CHUNK", 2)
    np.testing.assert_allclose(waves.features(store, rows)[0], values, rtol=1e-4, atol=1e-5)
    with pytest.raises(CremaError, match="no recording"):
        waves.features(store, [])


def test_measurements_are_kept_beside_the_recordings(tmp_path, monkeypatch):
    store = simulated_store(tmp_path / "s", 12, seed=3, seconds=5)
    first = waves.kept(store)
    assert first.shape == (12, waves.COUNT) and np.array_equal(first, waves.features(store)[0], equal_nan=True)
    monkeypatch.setattr(waves, "features", lambda *args, **options: (np.zeros((12, 2)), None))
    np.testing.assert_array_equal(waves.kept(store), first)
    (path,) = (store.path / "derived").iterdir()
    path.unlink()
    monkeypatch.setattr("os.access", lambda *args: False)
    assert waves.kept(store).shape == (12, 2) and not list((store.path / "derived").iterdir()), "a folder that is only read"
    monkeypatch.undo()
    waves.kept(store)
    again = simulated_store(tmp_path / "s", 12, seed=4, seconds=5)
    assert not (again.path / "derived").exists() and not np.array_equal(waves.kept(again), first, equal_nan=True)


def test_normal_scores():
    rng = np.random.default_rng(0)
    values = np.stack([np.exp(3 * rng.normal(size=4000)), np.full(4000, 7.0), (rng.random(4000) < 0.3) * rng.random(4000)], axis=1)
    values[::5, 0] = np.nan
    scores = waves.normal_scores(values)
    assert scores.dtype == np.float32 and np.array_equal(np.isnan(scores), np.isnan(values))
    np.testing.assert_allclose(np.nanmean(scores[:, [0, 2]], 0), 0, atol=1e-5)
    np.testing.assert_allclose(np.nanstd(scores[:, [0, 2]], 0), 1, rtol=1e-4)
    assert stats.kstest(scores[1::5, 0], "norm").pvalue > 0.01 and not scores[:, 1].any()
    known = ~np.isnan(values[:, 0])
    assert (np.diff(scores[known, 0][values[known, 0].argsort()]) >= 0).all(), "the order is kept"
    assert len(np.unique(scores[values[:, 2] == 0, 2])) == 1, "ties stay ties"


def test_heart_rate_is_the_measured_one(store):
    values, names = waves.features(store, rows := [5, 31, 2])
    np.testing.assert_allclose(waves.rate(store, rows), values[:, names.index("rhythm.rate")], rtol=1e-6)
    with pytest.raises(CremaError, match="no recording was given to count"):
        waves.rate(store, [])


def problem(n=600, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    y = (x[:, :2] + 0.7 * rng.normal(size=(n, 2)) > [0.5, 1]).astype(np.float32)
    return x, y


def test_boosting_learns_what_is_there():
    x, y = problem()
    model = Boosting(30).fit(x, y)
    p = model.scores(problem(seed=1)[0])
    assert p.shape == (600, 2) and p.min() > 0 and p.max() < 1
    assert (auroc(problem(seed=1)[1], p) > 0.85).all()
    np.testing.assert_array_equal(p, Boosting(30).fit(x, y).scores(problem(seed=1)[0]))


def test_a_record_left_out_of_a_label_teaches_it_nothing():
    x, y = problem()
    gaps = y.copy()
    gaps[:200, 0] = np.nan
    whole, part = Boosting(10).fit(x, gaps), Boosting(10).fit(x[200:], y[200:])
    np.testing.assert_array_equal(whole.scores(x)[:, 0], part.scores(x)[:, 0])
    np.testing.assert_array_equal(whole.scores(x)[:, 1], Boosting(10).fit(x, y).scores(x)[:, 1])


def test_a_label_that_cannot_be_learned_has_no_score():
    x, y = problem()
    y = np.concatenate([y, np.zeros((600, 1))], axis=1)
    model = Boosting(5).fit(x, y)
    assert list(model.known) == [True, True, False]
    assert np.isnan(model.scores(x)[:, 2]).all() and np.isfinite(model.scores(x)[:, :2]).all()
    with pytest.raises(CremaError, match="nothing can be learned"):
        Boosting(5).fit(x, 0 * y)


def test_the_number_of_trees_is_chosen_on_the_validation_records():
    x, y = problem(100)
    rng = np.random.default_rng(1)
    y = np.where(rng.random(y.shape) < 0.3, 1 - y, y)  # noise that many trees would learn by heart
    valid = problem(500, seed=2)
    model = Boosting(60, min_samples_leaf=3, l2_regularization=0.0).fit(x, y, valid)
    tried = {k: Boosting(k, min_samples_leaf=3, l2_regularization=0.0).fit(x, y) for k in np.linspace(1, 60, 31).round().astype(int)}
    reached = {k: macro(auroc(valid[1], one.scores(valid[0])))[0] for k, one in tried.items()}
    assert model.trees == max(reached, key=reached.get) < 60
    np.testing.assert_allclose(model.scores(x), tried[model.trees].scores(x), atol=1e-6)
    theirs = HistGradientBoostingClassifier(
        max_iter=model.trees,
        early_stopping=False,
        random_state=0,
        **(boosting.OPTIONS | {"min_samples_leaf": 3, "l2_regularization": 0.0}),
    ).fit(x, y[:, 1])
    np.testing.assert_allclose(model.scores(x)[:, 1], theirs.predict_proba(x)[:, 1], atol=1e-6)
    with pytest.raises(CremaError, match="nothing can be chosen"):
        Boosting(3).fit(x, y, (x, 0 * y))


def test_what_boosting_refuses():
    x, y = problem(20)
    with pytest.raises(CremaError, match="must be"):
        Boosting(3).fit(x, y[:-1])
    with pytest.raises(CremaError, match="infinite"):
        Boosting(3).fit(np.where(x > 1, np.inf, x), y)
