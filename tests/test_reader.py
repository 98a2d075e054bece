"""The reader of a model: files, arrays and stores give the same, the probe and the reference are those of `settle` and `Novelty`."""

import hashlib
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import wfdb
from conftest import ROOT
from safetensors.numpy import load_file

from crema_lib import __main__ as cli
from crema_lib.data import labels, splits
from crema_lib.data.leads import LEADS
from crema_lib.data.prepare import PLAUSIBLE
from crema_lib.data.simulate import simulate, simulated_store
from crema_lib.embeddings import embed_store
from crema_lib.errors import CremaError
from crema_lib.metrics import auroc
from crema_lib.objectives import CMSC, CRMAE
from crema_lib.reader import Reader, Reference, make
from crema_lib.shift import corrupt, home
from crema_lib.shift.signals import Novelty
from crema_lib.sit import SiT

FILES = ("probe-super.safetensors", "novelty.safetensors")


def save(folder, kind=CRMAE, **options):
    torch.manual_seed(0)
    encoder = SiT(fs=100, seconds=5, width=16, depth=2, heads=1, scale=(0.2,) * 12)
    torch.nn.init.normal_(encoder.missing)  # as training leaves it: otherwise the lead mask would not show
    kind(encoder, **options).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 1100, seed=0, seconds=5)


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    folder = save(tmp_path_factory.mktemp("model"), decoder_width=32, decoder_depth=1)
    make(folder, store)
    return folder


@pytest.fixture(scope="module")
def reader(folder):
    return Reader.load(folder)


@pytest.fixture(scope="module")
def raw():
    """Four recordings of 6 s at 200 Hz in uV, leads from V6 to I."""
    return simulate(4, seed=5, fs=200, seconds=6)[0][:, ::-1].astype(np.float32)


@pytest.fixture
def ecgs(reader, raw):
    return reader.read(raw, fs=200, leads=LEADS[::-1], unit="uV")


# --- what is made


def test_the_probe_is_that_of_settle_and_the_reference_that_of_novelty(store, folder, reader):
    encoder = SiT.from_pretrained(folder)
    x = embed_store(encoder, store, readout="layers")
    model = home.settle({"a": encoder}, store, "super", readout="layers", features={"a": x})[0]
    train, valid, test = splits.parts(store.table)
    assert reader.model.names == model.names and reader.model.readout == "layers"
    np.testing.assert_allclose(reader.probabilities(x[test]), model.scores(x[test]), atol=1e-4)
    np.testing.assert_allclose(reader.model.thresholds, model.thresholds, atol=1e-4)
    novelty = Novelty(x[train])
    found = reader.novelty(x[test])
    np.testing.assert_allclose(found["distance"], novelty.mahalanobis(x[test]), rtol=1e-3)
    nearer = [(novelty.mahalanobis(x[valid]) < one).mean() for one in novelty.mahalanobis(x[test])]
    np.testing.assert_allclose(found["percentile"], 100 * np.array(nearer), atol=1.5)


def test_percentiles_of_what_gave_the_scale():
    rng = np.random.default_rng(0)
    reference = Reference.of(rng.normal(size=(500, 6)), held := rng.normal(size=(400, 6)))
    np.testing.assert_allclose(np.sort(reference(held)["percentile"]), np.linspace(0, 100, 400), atol=1)
    far = reference(np.full((1, 6), 50.0))
    assert far["percentile"].item() == 100 and far["distance"].item() > reference.distances[-1]


def test_nothing_of_fold_10_is_in_the_files(store, folder, tmp_path):
    other, shown = save(tmp_path, decoder_width=32, decoder_depth=1), type(store)(store.path)
    shown.signals = store.signals.copy()
    shown.signals[store.rows([10])] = np.random.default_rng(0).integers(-500, 500, (len(store.rows([10])), 12, 500))
    shown.table = store.table.copy()
    shown.table.loc[store.rows([10]), "labels"] = "NORM"
    make(other, shown)
    for name in FILES:
        ours, theirs = load_file(folder / name), load_file(other / name)
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    shown.signals[store.rows([9])[:20]] //= 3
    make(other, shown)
    changed = load_file(other / FILES[1])
    assert np.array_equal(changed["factor"], ours["factor"]) and not np.array_equal(changed["distances"], ours["distances"])


def test_no_recording_can_be_counted_in_the_files(store, folder):
    assert not any(len(store.rows(folds)) in value.shape for folds in (range(1, 9), [9]) for value in load_file(folder / FILES[1]).values())


def test_too_few_recordings_for_a_reference():
    with pytest.raises(CremaError, match="99 recordings are too few for percentiles of their distances: give 100 or more"):
        Reference.of(np.zeros((200, 3)), np.zeros((99, 3)))


# --- what is loaded


def test_files_that_do_not_fit(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(
        CremaError, match=r"copy has no probe-form.safetensors: make it with python -m crema_lib reader DATA --checkpoint copy"
    ):
        Reader.load(copy, task="form")
    (copy / FILES[1]).write_bytes(b"x" * 20)
    with pytest.raises(CremaError, match=r"novelty.safetensors is damaged .* fetch it again, or make it"):
        Reader.load(copy)
    other = SiT.from_pretrained(copy)
    torch.nn.init.normal_(other.missing)
    other.save_pretrained(copy)
    with pytest.raises(CremaError, match=r"probe-super\.safetensors was made for other weights than those beside it"):
        Reader.load(copy)
    with pytest.raises(CremaError, match="no-such-model"):
        Reader.load("no-such-model")


def test_probe_and_reference_of_one_readout(store, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    made = make(copy, store, task="sex", readout="mean")
    assert made.model.names == ("female",) and made.embed(store).shape == (1100, 16)
    with pytest.raises(CremaError, match="read different features: make both anew"):
        Reader.load(copy)


def test_checksums_are_kept_and_compared(store, folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    others = ("config.json", "heads.safetensors", "model.safetensors", "objective.json")
    sums = {name: hashlib.sha256((copy / name).read_bytes()).hexdigest() for name in others}
    (copy / "SHA256SUMS").write_text("".join(f"{value}  {name}\n" for name, value in sums.items()))
    assert cli.main(["reader", str(store.path), "--checkpoint", str(copy)]) == 0
    sums |= {name: hashlib.sha256((copy / name).read_bytes()).hexdigest() for name in FILES}
    assert (copy / "SHA256SUMS").read_text() == "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    Reader.load(copy)
    shutil.copy(copy / FILES[0], copy / FILES[1])
    with pytest.raises(CremaError, match=r"novelty\.safetensors is damaged or was exchanged"):
        Reader.load(copy)


def test_the_committed_reader_reads():
    reader = Reader.load("sit-xs-ptbxl-100hz")
    signals, table = simulate(80, seed=3)
    ecgs = reader.read(signals.astype(np.float32), fs=100, leads=LEADS, unit="uV")
    features = reader.embed(ecgs)
    found, (targets, names, kept) = reader.probabilities(features), labels.matrix(table, "super")
    assert list(found.columns) == names == list(labels.SUPERCLASSES)
    assert auroc(targets[kept], found.to_numpy()[kept])[0] > 0.8, "NORM"
    exchanged = reader.novelty(reader.embed(corrupt.Shifted(ecgs, corrupt.reverse("RA and LA"))))
    assert (exchanged["distance"] > reader.novelty(features)["distance"]).mean() > 0.8


# --- recordings


def test_arrays_files_and_embed_agree(reader, raw, ecgs, tmp_path):
    for i, signal in enumerate(raw):
        wfdb.wrsamp(
            f"r{i}", 200, ["uV"] * 12, list(LEADS[::-1]), p_signal=signal.T.astype(float), fmt=["16"] * 12, adc_gain=[1] * 12,
            baseline=[0] * 12, write_dir=str(tmp_path),
        )  # fmt: skip
    table = pd.DataFrame(raw[0].T, columns=[f"{lead} [uV]" for lead in LEADS[::-1]])
    table.assign(time=np.arange(1200) / 200).to_csv(tmp_path / "mine.csv", index=False)
    files = reader.read([tmp_path / f"r{i}" for i in range(4)] + [tmp_path / "mine.csv"])
    assert files.table["record"].tolist() == ["r0", "r1", "r2", "r3", "mine"]
    np.testing.assert_array_equal(files.signals, ecgs.signals[[0, 1, 2, 3, 0]])
    expected = reader.encoder.embed(raw, 200, LEADS[::-1], "uV", readout="layers")
    found = reader.embed(ecgs)
    assert found.index.tolist() == ["0", "1", "2", "3"] and found.index.name == "record"
    np.testing.assert_allclose(found, expected, atol=5e-3)
    np.testing.assert_array_equal(reader.read(tmp_path).signals, ecgs.signals[[0, 0, 1, 2, 3]], err_msg="the folder, in order of paths")
    assert len(files) == 5 and (files.fs, files.seconds) == (100, 5)


def test_recordings_of_any_length_and_leads_and_what_is_noted(reader, raw):
    lost = raw[2].copy()
    lost[0] = 7.0  # V6
    gap = raw[3].copy()
    gap[11, 100:110] = np.nan  # I
    found = reader.read([raw[0, :, :700], raw[1], lost, gap, 1000 * raw[0]], fs=200, leads=LEADS[::-1], unit="uV")
    assert found.table["quality"].tolist() == ["padded", "", "flat:V6", "nan:I", "amplitude"]
    assert found.report["reason"].tolist() == ["padded", "flat:V6", "nan:I"]
    assert not found.lead_mask[2, 11] and found.lead_mask.sum() == 59
    np.testing.assert_array_equal(found.signals[0, :, 350:], 0)
    few = reader.read(raw[1][-2:], fs=200, leads=["Lead II", "DI"], unit="uV")
    np.testing.assert_array_equal(few.lead_mask, [np.isin(LEADS, LEADS[:6])])
    assert few.table["quality"].item() == "missing:V1;missing:V2;missing:V3;missing:V4;missing:V5;missing:V6"


def test_a_shift_reads_recordings_like_a_store(reader, ecgs):
    exchanged = corrupt.Shifted(ecgs, corrupt.reverse("RA and LA"))
    np.testing.assert_allclose(exchanged.read([1])[0, 0], -ecgs.read([1])[0, 0])
    assert not np.allclose(reader.embed(exchanged), reader.embed(ecgs), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fs": None}, r"an array does not say what it holds: give fs \(Hz\), leads \(their names\) and unit"),
        ({"leads": None}, "an array does not say what it holds"),
        ({"unit": None}, "an array does not say what it holds"),
        ({"unit": "mv/s"}, "unknown unit 'mv/s': known are mV, uV"),
        ({"unit": "mV"}, r"the leads measure .* mV from lowest to highest value, those of an ECG 0.05 to 20 mV: the unit is another"),
        ({"unit": "nV"}, "the unit is another than nV"),
        ({"fs": 0}, "a sampling rate of 0 Hz is implausible"),
        ({"leads": LEADS[:3]}, r"recording 0 has shape \(12, 1200\), which does not fit 3 lead names: give \(leads, samples\)"),
        ({"leads": ["I", *LEADS[:11]]}, "record 0: lead I is given twice"),
        ({"leads": [f"ch{i}" for i in range(12)]}, "no known lead is called ch0, ch1"),
        ({"leads": [*LEADS[:11], "Z"]}, "no known lead is called Z: known are I II"),
        ({"source": np.zeros((12, 500))}, "record 0: every lead is flat"),
        ({"source": np.ones(500)}, r"recording 0 has shape \(500,\), which does not fit 12 lead names"),
        ({"source": np.full((12, 500), np.inf)}, "recording 0 holds infinite values: write NaN where a sample is missing"),
        ({"source": [np.random.default_rng(0).normal(size=(12, 100))]}, "record 0: 0.50 s long, at least 1 s are needed"),
        ({"source": np.zeros((0, 12, 500))}, "there is no recording in the list"),
        ({"source": []}, "no recording is named"),
        ({"source": ["none.csv"]}, "none.csv is not there"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(reader, raw, change, sentence):
    with pytest.raises(CremaError, match=sentence):
        reader.read(**{"source": raw, "fs": 200, "leads": LEADS[::-1], "unit": "uV", **change})


def test_real_amplitudes_are_plausible(store):
    sizes = np.median(np.ptp(store.signals.astype(int), axis=2), axis=1) / 1000
    assert PLAUSIBLE[0] < sizes.min() and sizes.max() < PLAUSIBLE[1]


def test_features_of_another_reader(reader, ecgs):
    for wrong in (np.zeros((2, 5)), np.full((2, 32), np.nan), np.zeros(32)):
        for ask in (reader.probabilities, reader.novelty):
            with pytest.raises(
                CremaError, match=r"must be finite \(records, 32\): make them with `embed` of the same reader, or by command with --readout"
            ):
                ask(wrong)


# --- reconstruction


def test_reconstruction_is_that_of_the_objective(reader, ecgs):
    drawn, hidden = reader.reconstruct(ecgs, hidden=[3, 9, 4])
    assert np.flatnonzero(hidden).tolist() == [3, 4, 9]
    signal, mask = ecgs.read(range(4)), torch.from_numpy(ecgs.lead_mask)
    expected, _ = reader.objective.eval().reconstruct(signal, mask, torch.tensor([3, 4, 9]).expand(4, -1))
    np.testing.assert_allclose(drawn, expected, atol=1e-6)
    inside = np.repeat(hidden, 25)
    np.testing.assert_allclose(drawn[..., ~inside], signal[..., ~inside], atol=1e-6)
    assert np.abs(drawn - signal.numpy())[..., inside].mean() > 1e-3


def test_a_random_share_by_seed(reader, ecgs):
    drawn, hidden = reader.reconstruct(ecgs, seed=1)
    again, same = reader.reconstruct(ecgs, seed=1)
    assert hidden.sum() == round(0.6 * 20) and np.array_equal(hidden, same) and np.array_equal(drawn, again)
    assert not np.array_equal(hidden, reader.reconstruct(ecgs, seed=2)[1])


@pytest.mark.parametrize("hidden", [[], [20], [-1], range(20)])
def test_patches_that_cannot_be_hidden(reader, ecgs, hidden):
    with pytest.raises(CremaError, match="hide some of the patches 0 to 19 and leave one"):
        reader.reconstruct(ecgs, hidden=hidden)


def test_a_model_without_a_decoder(store, tmp_path):
    reader = make(save(tmp_path / "cmsc", CMSC), store)
    with pytest.raises(CremaError, match="cmsc was pretrained with CMSC, which draws nothing"):
        reader.reconstruct(store)
    assert (tmp_path / "cmsc" / "novelty.safetensors").is_file() and not (ROOT / "weights" / "cmsc").exists()
