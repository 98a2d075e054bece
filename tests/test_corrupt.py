"""Controlled shifts: noise has the SNR that is asked for, and every change is what its name says."""

import numpy as np
import pytest
import torch
from scipy.signal import welch

from crema_lib import paths
from crema_lib.data.leads import LEADS
from crema_lib.data.simulate import simulated_store
from crema_lib.embeddings import embed_store
from crema_lib.errors import CremaError
from crema_lib.handcrafted.waves import r_peaks
from crema_lib.params import SHIFTS
from crema_lib.shift import corrupt
from crema_lib.sit import SiT

ROWS = np.arange(40)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("corrupt") / "s", 60, seed=4)


@pytest.fixture(scope="module")
def sizes(store):
    return corrupt.qrs_sizes(store, ROWS)


@pytest.fixture(scope="module")
def found():
    return corrupt.noises()


def read(store, condition, rows=ROWS):
    return corrupt.Shifted(store, condition).read(rows).numpy()


def test_qrs_sizes_are_those_of_a_plain_loop(store, sizes):
    signals = store.read(ROWS).numpy()
    for row in (0, 7, 21):
        (peaks,) = r_peaks(signals[row : row + 1], 100)
        for lead in (1, 8):
            heights = sorted(np.ptp(signals[row, lead, max(0, p - 5) : p + 6]) for p in peaks)
            cut = int(0.05 * len(heights))
            assert sizes[row, lead] == pytest.approx(np.mean(heights[cut : len(heights) - cut]), rel=1e-5)
    assert np.isnan(sizes[len(ROWS) :]).all() and sizes.shape == (60, 12)


def test_without_qrs_the_whole_trace_counts_and_a_flat_lead_gets_no_noise(store, found):
    class Other:
        fs, lead_mask = 100, store.lead_mask.copy()

        def __len__(self):
            return 2

        def read(self, rows, device="cpu"):
            x = torch.zeros(2, 12, 1000)
            x[:, 0, 500:] = 0.3
            return x[torch.as_tensor(rows)]

    Other.lead_mask = np.ones((2, 12), dtype=bool)
    flat = corrupt.qrs_sizes(Other(), np.arange(2))
    assert (flat[:, 1:] == 0).all() and np.isfinite(flat).all()
    noisy = corrupt.add_noise(found["white"], 0, flat).change(torch.zeros(2, 12, 1000), np.arange(2), store)
    assert (noisy[:, 1:] == 0).all()


@pytest.mark.parametrize("snr", [12.0, -6.0])
def test_white_noise_has_the_ratio_that_is_asked_for(store, sizes, found, snr):
    added = read(store, corrupt.add_noise(found["white"], snr, sizes)) - store.read(ROWS).numpy()
    # of white noise at 500 Hz the store's filter leaves the share of the band .5 to 40 Hz in 0 to 250 Hz
    power = added.var(axis=2)
    expected = sizes[ROWS] ** 2 / 8 * 10 ** (-snr / 10) * (40 - 0.5) / 250
    assert np.median(power / expected) == pytest.approx(1, rel=0.1)


def test_the_power_of_noise_is_measured_in_windows_of_a_second_without_the_extremes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=200 * 60) * np.repeat(rng.uniform(0.5, 2, 60), 200)
    spread = np.sort([x[i : i + 200].std() for i in range(0, len(x), 200)])[3:-3]
    assert corrupt.Noise.of(x, 200).power == pytest.approx([spread.mean() ** 2])


def test_the_noises_lie_in_their_bands(found):
    assert set(found) == {"baseline wander", "muscle artefact", "electrode motion", "powerline", "white"}
    share = {}
    for name, noise in found.items():
        assert noise.channels.shape == (1 if name == "powerline" else 2, 30_000)
        f, density = welch(noise.channels, 100, nperseg=1000)
        share[name] = density[:, f > 15].sum() / density.sum()
        share[name + " left"] = noise.channels.var() / noise.power.mean()
    assert share["muscle artefact"] > 0.8 and share["electrode motion"] < 0.2 and share["white"] == pytest.approx(25 / 39.5, abs=0.05)
    assert share["baseline wander left"] < 0.6 and share["powerline left"] < 0.3 and share["electrode motion left"] > 0.3


def test_noise_does_not_depend_on_the_batch_and_is_new_for_each_record_and_seed(store, sizes, found):
    one = corrupt.add_noise(found["muscle artefact"], 6, sizes)
    whole, part = read(store, one), read(store, one, ROWS[10:12])
    np.testing.assert_array_equal(whole[10:12], part)
    other = read(store, corrupt.add_noise(found["muscle artefact"], 6, sizes, seed=1))
    assert not np.allclose(whole, other)
    added = whole - store.read(ROWS).numpy()
    correlation = np.corrcoef(added[0, 1], added[1, 1])[0, 1]
    assert abs(correlation) < 0.3


def test_records_of_the_noise_stress_test_database_are_read(tmp_path, found):
    import wfdb

    rng = np.random.default_rng(1)
    wander = np.cumsum(rng.normal(size=(360 * 20, 2)), axis=0)
    wfdb.wrsamp(
        "bw", fs=360, units=["mV"] * 2, sig_name=["noise1", "noise2"], p_signal=wander / 100, fmt=["16"] * 2, write_dir=str(tmp_path)
    )
    read = corrupt.noises(tmp_path)
    assert read["baseline wander"].channels.shape == (2, 2000)
    np.testing.assert_array_equal(read["white"].channels, found["white"].channels)
    assert read["baseline wander"].recorded and not read["white"].recorded and not found["baseline wander"].recorded
    with pytest.raises(CremaError, match="none of the records bw, ma, em"):
        corrupt.noises(tmp_path / "nowhere")


def test_gain_band_and_rate(store):
    x = store.read(ROWS).numpy()
    np.testing.assert_allclose(read(store, corrupt.scale(0.5)), 0.5 * x)
    f, before = welch(x, 100, nperseg=500)
    for condition, gone, kept in (
        (corrupt.narrow(10), f > 20, (f > 1) & (f < 5)),
        (corrupt.narrow(2, "highpass"), f < 1, (f > 6) & (f < 30)),
        (corrupt.resample(25), f > 14, (f > 1) & (f < 8)),
    ):
        after = welch(read(store, condition), 100, nperseg=500)[1]
        assert after[..., gone].sum() < 0.1 * before[..., gone].sum()
        assert after[..., kept].sum() == pytest.approx(before[..., kept].sum(), rel=0.1)


def test_lost_leads_are_zero_and_marked(store):
    for condition, kept in ((corrupt.keep_leads(["I", "II"]), [0, 1]), (corrupt.lose_lead("V3"), [i for i in range(12) if i != 8])):
        view = corrupt.Shifted(store, condition)
        signals, lost = view.read(ROWS).numpy(), np.setdiff1d(np.arange(12), kept)
        np.testing.assert_array_equal(signals[:, kept], store.read(ROWS).numpy()[:, kept])
        assert (signals[:, lost] == 0).all() and not view.lead_mask[:, lost].any() and view.lead_mask[:, kept].all()


@pytest.mark.parametrize(("name", "swap"), [("RA and LA", ("RA", "LA")), ("RA and LL", ("RA", "LL")), ("LA and LL", ("LA", "LL"))])
def test_reversals_are_what_swapped_electrodes_give(name, swap):
    rng = np.random.default_rng(0)
    potential = {electrode: rng.normal(size=50) for electrode in ("RA", "LA", "LL", *LEADS[6:])}

    def leads(p):
        ra, la, ll = p["RA"], p["LA"], p["LL"]
        wilson = (ra + la + ll) / 3
        limb = [la - ra, ll - ra, ll - la, ra - (la + ll) / 2, la - (ra + ll) / 2, ll - (ra + la) / 2]
        return np.stack([*limb, *(p[v] - wilson for v in LEADS[6:])])

    one, other = swap
    expected = leads({**potential, one: potential[other], other: potential[one]})
    condition = corrupt.reverse(name)
    x = torch.from_numpy(leads(potential))[None, condition.source]
    np.testing.assert_allclose(condition.change(x, None, None)[0].numpy(), expected, atol=1e-12)


def test_a_lost_lead_moves_with_the_cables(store):
    condition = corrupt.reverse("V1 and V2")
    view = corrupt.Shifted(corrupt.Shifted(store, corrupt.lose_lead("V1")), condition)
    assert not view.lead_mask[:, 7].any() and view.lead_mask[:, 6].all()
    np.testing.assert_array_equal(view.read(ROWS).numpy()[:, 6], store.read(ROWS).numpy()[:, 7])


def test_a_shifted_store_is_embedded_like_any_other(store, sizes, found, tmp_path):
    encoder = SiT(width=48, depth=1, heads=3)
    listed = corrupt.conditions(found, sizes, snrs=(12.0, 0.0))
    assert len({one.name for one in listed}) == len(listed) == 5 * 2 + 4 + 5 + 2 + 12 + 5 + 4 + 2
    home = embed_store(encoder, store, ROWS)
    for one in listed:
        away = embed_store(encoder, corrupt.Shifted(store, one), ROWS, cache=tmp_path)
        assert away.shape == home.shape and not np.array_equal(away, home), one.name
    assert len(list(tmp_path.iterdir())) == len(listed), "no condition is taken for another"


def test_kinds_are_those_of_the_conditions_and_of_the_parameter(sizes, found):
    kinds = dict.fromkeys(one.kind for one in corrupt.conditions(found, sizes))
    assert set(kinds) == set(corrupt.KINDS) == set(SHIFTS) and tuple(kinds)[:5] == corrupt.NOISES == tuple(found)


def test_at_its_unchanged_level_a_kind_changes_nothing(store):
    level, x = corrupt.unchanged(store), store.read(ROWS).numpy()
    assert set(level) == set(corrupt.KINDS) - {*corrupt.NOISES, "lost lead", "reversal"}
    assert (level["high-pass"], level["low-pass"]) == tuple(store.meta["band"])
    assert level["leads"] == len(LEADS)
    for same in (corrupt.scale(level["gain"]), corrupt.resample(level["sampling rate"]), corrupt.shorten(level["length"])):
        np.testing.assert_allclose(read(store, same), x, atol=1e-6)


def test_what_a_stated_ratio_becomes_in_the_filter(found):
    one = corrupt.Noise.of(np.random.default_rng(0).normal(size=(2, 500 * 120)), 500)
    assert one.after_filter == pytest.approx(-10 * np.log10(39.5 / 250), abs=0.4), "of white noise the share of the band is left"
    assert found["powerline"].after_filter > 20 > found["muscle artefact"].after_filter > 0 > found["electrode motion"].after_filter


def test_the_folder_of_noise_is_the_given_one_or_the_fetched_one(tmp_path, monkeypatch):
    monkeypatch.setenv("CREMA_DATA", str(tmp_path))
    assert paths.fetched("nstdb") is None
    (tmp_path / "nstdb").mkdir()
    assert paths.fetched("nstdb", "") == tmp_path / "nstdb"
    assert paths.fetched("nstdb", str(tmp_path / "mine")) == tmp_path / "mine"


def test_what_cannot_be_done_is_said(store, sizes, found):
    for wrong, sentence in (
        (lambda: read(store, corrupt.add_noise(found["white"], 6, sizes), np.arange(38, 44)), "give the sizes of these recordings"),
        (lambda: corrupt.Noise.of(np.zeros(5000), 500), "silent channel"),
        (lambda: corrupt.Noise.of(np.ones(500), 500), "two seconds or more"),
        (lambda: corrupt.Noise.of(np.full(5000, np.nan), 500), "give finite values"),
        (lambda: corrupt.keep_leads(["V9"]), "unknown leads V9"),
        (lambda: corrupt.keep_leads([]), "at least one lead"),
        (lambda: corrupt.reverse("RA and RL"), "unknown reversal 'RA and RL'"),
        (lambda: read(store, corrupt.shorten(20)), "20 s cannot be cut from recordings of 10 s"),
        (lambda: read(store, corrupt.narrow(60)), "needs a sampling rate above 120 Hz"),
    ):
        with pytest.raises(CremaError, match=sentence):
            wrong()
    short = corrupt.Noise.of(np.random.default_rng(0).normal(size=2000), 500)
    with pytest.raises(CremaError, match="is shorter than a recording of 1000"):
        read(store, corrupt.add_noise(short, 6, sizes))
