"""Marks of waves against annotation files whose waves are known, and reconstruction errors against drawings whose error is known."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import wfdb

from crema_lib.data.leads import LEADS
from crema_lib.data.prepare import prepare
from crema_lib.data.simulate import simulated_store
from crema_lib.errors import CremaError
from crema_lib.metrics import patient_counts
from crema_lib.objectives import CRMAE, MAE, STMEM, SimCLR
from crema_lib.reconstruction import UNMARKED, WAVES, error_by_wave, hidden_sets, lead_marks, read_marks
from crema_lib.sit import SiT

FIVE = Fraction(1, 5)  # 500 Hz to 100 Hz
BEATS = np.arange(700, 4300, 400)  # R peaks, samples at 500 Hz
OFFSETS = {"p": (-100, -80, -55), "N": (-25, 0, 26), "t": (60, 110, 150)}  # onset, peak, offset from the R peak


def annotate(folder, name, late=0):
    """A WFDB record of `bumps` with marks as LUDB has them, the same in each lead but V6, where all is `late` samples later."""
    folder.mkdir(exist_ok=True)
    names, signal = [lead.lower() for lead in LEADS], bumps()
    signal[11] = np.roll(signal[11], late)
    wfdb.wrsamp(name, fs=500, units=["mV"] * 12, sig_name=names, p_signal=signal.T, fmt=["16"] * 12, write_dir=str(folder))
    marks = sorted((beat + at, s) for beat in BEATS for kind, three in OFFSETS.items() for at, s in zip(three, f"({kind})", strict=True))
    for lead in names:
        write_marks(folder, name, lead, np.array([time for time, _ in marks]) + late * (lead == "v6"), [s for _, s in marks])


def write_marks(folder, name, lead, times, symbols):
    wfdb.wrann(name, "marks", times, symbol=symbols, write_dir=str(folder))  # wfdb reads an extension with digits and writes none
    (folder / f"{name}.marks").rename(folder / f"{name}.{lead}")


def bumps(samples=5000):
    """Twelve leads (12, samples) in mV: a bump of its own height under each mark, at 500 Hz."""
    t, signal = np.arange(samples), np.zeros(samples)
    for beat in BEATS:
        for kind, height in (("p", 0.1), ("N", 1.0), ("t", 0.3)):
            onset, peak, offset = OFFSETS[kind]
            signal += height * np.exp(-0.5 * ((t - beat - peak) / ((offset - onset) / 5)) ** 2)
    return np.outer(np.linspace(0.5, 1.5, 12), signal)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("waves") / "s", 12, seed=1, seconds=5)


@pytest.fixture(scope="module")
def marks(store):
    """Random runs of every class, and of none."""
    runs = np.random.default_rng(0).integers(-1, 4, (*store.signals.shape[:2], 50))
    return runs.repeat(10, axis=2)


def encoder(**options):
    torch.manual_seed(0)
    return SiT(**{"fs": 100, "seconds": 5, "width": 32, "depth": 1, "heads": 2, **options})


class Drawn:
    """An objective that draws what a function makes of the truth in the hidden patches."""

    mask_ratio, patch_norm, training = 0.6, False, False

    def __init__(self, draw, **options):
        self.encoder, self.draw, self.asked = encoder(**options), draw, []

    def modules(self):
        return self.encoder.modules()

    def to(self, device):
        return self

    eval = lambda self: self  # noqa: E731

    def reconstruct(self, signal, lead_mask, hidden):
        self.asked.append(hidden)
        flags = torch.zeros(len(signal), signal.shape[2] // self.encoder.patch, dtype=torch.bool).scatter(1, hidden, True)
        return torch.where(flags.repeat_interleave(self.encoder.patch, 1)[:, None], self.draw(signal), signal), flags


# --- marks


def slow_marks(waves, samples, fs=100):
    """Class of each sample from its own time: waves of (onset, offset, class) at 500 Hz."""
    first, last = min(on for on, _, _ in waves), max(off for _, off, _ in waves)
    found = np.full(samples, UNMARKED)
    for i in range(samples):
        time = i * 500 / fs
        found[i] = next((kind for on, off, kind in waves if on <= time <= off), 3 if first <= time <= last else UNMARKED)
    return found


@pytest.mark.parametrize("fs", [100, 250, 500, 360])
def test_a_sample_belongs_to_the_wave_it_lies_in(fs):
    waves = [(131, 158, 0), (170, 195, 1), (231, 300, 2), (500, 555, 0), (566, 599, 1)]
    symbols = [s for *_, kind in waves for s in f"({'pNt'[kind]})"]
    times = [time for on, off, _ in waves for time in (on, (on + off) // 2, off)]
    found = lead_marks(symbols, times, Fraction(fs, 500), 2 * fs)
    np.testing.assert_array_equal(found, slow_marks(waves, 2 * fs, fs))
    assert found.dtype == np.int8 and set(found) == {-1, 0, 1, 2, 3}


@pytest.mark.parametrize(
    ("symbols", "classes"),
    [
        ("(p)N)(t)", "ppp.NN.ttt"),  # the onset is at the peak
        ("(p)N()(t)", "ppp.NNN.ttt"),  # the onset comes a sample late
        ("((tt))(N)", "tttttt.NNN"),  # marked twice
        ("(p)()(t)", "ppp.??.ttt"),  # nobody says what it is
        ("(t(p)(N)", "?????.NNN"),  # an offset is missing: T or P
        ("(N)(t)(N", "NNN.ttt???"),  # the last wave is never closed
        (")(N)(p)", "?NNN.ppp?"),
    ],
)
def test_marks_that_are_not_complete(symbols, classes):
    # a mark every 10 samples at 500 Hz, two samples at 100 Hz; a gap of a mark where `classes` has a dot
    places = [i for i, kind in enumerate(classes) if kind != "."][: len(symbols)]
    found = lead_marks(symbols, [10 * place for place in places], FIVE, 2 * len(classes))
    told = ["".join({0: "p", 1: "N", 2: "t", 3: ".", -1: "?"}[k] for k in found)[2 * place] for place in range(len(classes))]
    assert "".join(told) == classes


def test_a_lead_without_waves_is_unmarked():
    assert (lead_marks([], [], FIVE, 100) == UNMARKED).all()
    assert (lead_marks(["N", "N"], [100, 300], FIVE, 100) == UNMARKED).all()


@pytest.mark.parametrize("seconds", [10, 5, 12], ids=["whole", "cropped", "padded"])
def test_marks_lie_where_prepare_puts_the_waves(tmp_path, seconds):
    annotate(tmp_path / "source", "b")
    annotate(tmp_path / "source", "a", late=50)
    store, _ = prepare("x", source=tmp_path / "source", out=tmp_path / "store", seconds=seconds, progress=False)
    marks = read_marks(store, tmp_path / "source")
    assert marks.shape == store.signals.shape and marks.dtype == np.int8
    start = max(0, (1000 - 100 * seconds) // 2)
    for record, late in (("a", 50), ("b", 0)):
        i = list(store.table["record"]).index(record)
        for lead, moved in ((1, 0), (11, late)):
            signal, beats = store.signals[i, lead], (BEATS + moved) // 5 - start
            beats = beats[(beats >= 6) & (beats < 100 * seconds - 6)]
            whole = [run for run in runs(marks[i, lead] == 1) if run.start > 0 and run.stop < 100 * seconds]
            np.testing.assert_array_equal([run.start + signal[run].argmax() for run in whole], beats)
            assert {run.stop - run.start for run in whole} == {11}, "500 Hz: 25 samples before the peak to 26 after it"
    assert (marks[..., 1000:] == UNMARKED).all()


def runs(flags):
    """Slices of the runs of True."""
    edges = np.flatnonzero(np.diff(np.r_[0, flags.astype(int), 0]))
    return [slice(a, b) for a, b in edges.reshape(-1, 2)]


def test_marks_that_cannot_be_read(tmp_path):
    source = tmp_path / "source"
    annotate(source, "a")
    store, _ = prepare("x", source=source, out=tmp_path / "store", progress=False)
    write_marks(source, "a", "v2", np.array([5]), ["N"])
    with pytest.raises(CremaError, match=r"record a: no P, QRS or T wave is marked in lead V2: expected the symbols \( p N t \)"):
        read_marks(store, source)
    (source / "a.v2").unlink()
    with pytest.raises(CremaError, match=r"the marks of record a in .* cannot be read, a file for each lead"):
        read_marks(store, source)
    (source / "a.hea").rename(source / "b.hea")
    with pytest.raises(CremaError, match=r"the record a of store is not in .* give the folder that the store was prepared from"):
        read_marks(store, source)
    with pytest.raises(CremaError, match="is not a folder"):
        read_marks(store, tmp_path / "none")


def test_real_marks_lie_on_real_waves(real_data, tmp_path):
    store, _ = prepare("ludb", source=real_data / "ludb-1.0.1", out=tmp_path / "store", limit=10, progress=False)
    marks = read_marks(store, real_data / "ludb-1.0.1")
    for k in range(4):
        assert 0.02 < (marks == k).mean() < 0.6
    steep = np.abs(np.gradient(store.signals / 1000.0, axis=2))
    means = [steep[marks == k].mean() for k in range(4)]
    assert means[1] > 4 * max(means[0], means[2], means[3]) and means[3] < min(means[:3])
    lag = [np.abs(np.roll(steep, by, axis=2)[marks == 1]).mean() for by in range(-4, 5)]
    assert abs(int(np.argmax(lag)) - 4) <= 1, "shifted by more than a sample the marks fit worse"
    edges = np.flatnonzero((marks >= 0).any((0, 1)))
    assert edges[0] > 30 and edges[-1] < 970, "the first and last beats are not marked"


# --- error


@pytest.mark.parametrize(("patches", "ratio", "block", "number"), [(40, 0.6, 1, 5), (40, 0.25, 1, 4), (40, 0.33, 1, 40), (40, 0.5, 4, 2)])
def test_every_patch_is_hidden_equally_often(patches, ratio, block, number):
    sets = hidden_sets(patches, ratio, block=block, rounds=3, seed=1)
    assert len(sets) == 3 * number
    for part in np.split(sets, 3):
        assert len(set(np.bincount(part.ravel(), minlength=patches))) == 1
    assert all(len(set(one)) == len(one) == round(ratio * patches / block) * block for one in sets)
    assert (sets.reshape(len(sets), -1, block) // block == sets[:, ::block, None] // block).all(), "blocks stay together"
    assert not np.array_equal(sets[:number], sets[number : 2 * number])
    np.testing.assert_array_equal(sets, hidden_sets(patches, ratio, block=block, rounds=3, seed=1))


def test_the_error_of_drawings_that_are_known(store, marks):
    off = error_by_wave(Drawn(lambda x: x + 0.1), store, marks, rounds=1).table(n=10)
    np.testing.assert_allclose(off[["rmse", "rmse_low", "rmse_high"]], 0.1, rtol=1e-4)
    assert error_by_wave(Drawn(lambda x: x), store, marks, rounds=1).table(n=10)["nmse_high"].max() < 1e-9
    signal = store.read(range(12)).numpy().astype(float)
    flat = error_by_wave(Drawn(torch.zeros_like), store, marks).table(n=10).set_index(["wave", "lead"])
    assert len(flat) == 4 * 13 and (flat["records"] == 12).all()
    for k, wave in enumerate(WAVES):
        x = signal[:, 4][marks[:, 4] == k]
        assert flat.loc[(wave, "aVL"), "rmse"] == pytest.approx(np.sqrt((x**2).mean()), rel=1e-4)
        assert flat.loc[(wave, "aVL"), "nmse"] == pytest.approx((x**2).mean() / x.var(), rel=1e-4)
        every = [signal[:, i][marks[:, i] == k] for i in range(12)]
        expected = np.concatenate([x**2 for x in every]).sum() / sum(len(x) * x.var() for x in every)
        assert flat.loc[(wave, "all"), "nmse"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("make", [MAE, CRMAE, STMEM])
def test_the_error_of_a_model_equals_a_slow_loop(store, marks, make):
    torch.manual_seed(0)
    leads = ("V2", "I", "aVF")
    objective = make(encoder(leads=leads, tokens="lead" if make is STMEM else "time"), decoder_depth=1).train()
    rows, pick = [7, 2, 5], [7, 0, 5]
    found = error_by_wave(objective, store, marks, rows, mask_ratio=0.4, rounds=2, seed=3, batch_size=2)
    assert objective.training
    signal, squared, times = store.read(rows)[:, pick], np.zeros((3, 3, 500)), np.zeros(500)
    for hidden in hidden_sets(20, 0.4, rounds=2, seed=3):
        at = np.isin(np.arange(500) // 25, hidden)
        drawn, _ = objective.reconstruct(signal, None, torch.from_numpy(hidden).expand(3, -1))
        squared[..., at] += (drawn - signal).numpy()[..., at] ** 2
        times += at
    squared /= times
    for record in range(3):
        for lead in range(3):
            for k in range(4):
                at = marks[rows[record], pick[lead]] == k
                x = signal[record, lead].numpy().astype(float)[at]
                expected = [at.sum(), squared[record, lead, at].sum(), x.sum(), (x**2).sum()]
                np.testing.assert_allclose(found.sums[record, lead, k], expected, rtol=1e-3, atol=1e-4)


def test_intervals_are_over_patients(store, marks):
    found = error_by_wave(Drawn(lambda x: 0.5 * x), store, marks, rounds=1)
    row = found.table(n=30).set_index(["wave", "lead"]).loc[("T", "V3")]
    number, error, first, second = found.sums[:, 8, 2].T
    drawn = []
    for counts in patient_counts(store.table["patient"], 30, 0):
        mean = counts @ first / (counts @ number)
        drawn.append((counts @ error) / (counts @ second - counts @ number * mean**2))
    np.testing.assert_allclose([row["nmse_low"], row["nmse_high"]], np.quantile(drawn, [0.025, 0.975]))
    assert row["nmse_low"] < row["nmse"] < row["nmse_high"]


def test_lost_leads_and_rare_waves_are_left_out(store, marks):
    lost = type(store)(store.path)
    lost.lead_mask[:, 3] = False
    rare = marks.copy()
    rare[1:][rare[1:] == 0] = UNMARKED  # P in one record
    table = error_by_wave(Drawn(lambda x: x + 0.1), lost, rare, rounds=1).table(n=10)
    assert set(table["wave"]) == {"QRS", "T", "rest"} and "aVR" not in set(table["lead"]) and len(table) == 3 * 12
    with pytest.raises(CremaError, match="no wave is marked in the recordings of two patients"):
        error_by_wave(Drawn(lambda x: x), store, np.full_like(marks, UNMARKED), rounds=1).table(n=10)


def test_what_cannot_be_measured(store, marks):
    right = Drawn(lambda x: x)
    for call, sentence in (
        (lambda: error_by_wave(SimCLR(encoder()), store, marks), "SimCLR draws nothing"),
        (lambda: error_by_wave(MAE(encoder(), patch_norm=True), store, marks), "told level and size of what it draws"),
        (lambda: error_by_wave(right, store, marks[:, :, :-1]), "do not fit: give"),
        (lambda: error_by_wave(right, store, marks + 1), "do not fit: give"),
        (lambda: error_by_wave(right, store, marks, []), "there is no record"),
        (lambda: error_by_wave(right, store, marks, mask_ratio=1), "at least one must be hidden and one visible"),
        (lambda: error_by_wave(right, store, marks, mask_ratio=0.01), "hides 0 of 20 blocks"),
        (lambda: error_by_wave(right, store, marks, block=3), "20 patches in blocks of 3"),
        (lambda: error_by_wave(right, store, marks, rounds=0), "a round or more"),
        (lambda: error_by_wave(Drawn(lambda x: x, fs=50), store, marks), r"takes 50 Hz .* holds 100 Hz"),
        (lambda: error_by_wave(Drawn(lambda x: x, seconds=2), store, marks), "500 samples do not fit"),
        (lambda: error_by_wave(Drawn(lambda x: x / 0), store, marks), "NaN or infinite: its weights are damaged"),
    ):
        with pytest.raises(CremaError, match=sentence):
            call()
