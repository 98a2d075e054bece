"""Embedding of lead subsets, and of recordings in files."""

import shutil
import threading

import numpy as np
import pandas as pd
import pytest
import torch
import wfdb

from crema_lib.data.leads import LEADS, SUBSETS
from crema_lib.data.simulate import simulated_store
from crema_lib.embeddings import embed_files, embed_store
from crema_lib.errors import CremaError
from crema_lib.shift import corrupt
from crema_lib.sit import SiT
from crema_lib.xresnet import XResNet1d


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 30, seed=0, fs=100, seconds=5)


def encoder(**options):
    torch.manual_seed(0)
    model = SiT(**{"fs": 100, "seconds": 5, "width": 32, "depth": 2, "heads": 2, **options})
    if model.tokens == "time":
        torch.nn.init.normal_(model.missing)  # as training leaves it: otherwise the lead mask would not show
    return model


def test_the_table_of_subsets():
    assert [(n, len(leads)) for n, leads in SUBSETS.items()] == [(n, n) for n in (12, 8, 6, 4, 3, 2, 1)]
    assert all(set(leads) <= set(LEADS) for leads in SUBSETS.values())
    assert SUBSETS is corrupt.SUBSETS


@pytest.mark.parametrize("tokens", ["time", "lead"])
@pytest.mark.parametrize("n", [6, 3, 1])
def test_leads_that_are_not_shown_play_no_part(store, tokens, n):
    model, kept = encoder(tokens=tokens).eval(), torch.from_numpy(np.isin(LEADS, SUBSETS[n]))
    found = embed_store(model, store, range(10), leads=SUBSETS[n])
    signal = torch.where(kept[:, None], store.read(range(10)), torch.zeros(()))
    with torch.no_grad():
        np.testing.assert_allclose(found, model.features(signal, kept.expand(10, -1)), atol=1e-5)
    np.testing.assert_array_equal(found, embed_store(model, corrupt.Shifted(store, corrupt.keep_leads(SUBSETS[n])), range(10)))
    assert not np.allclose(found, embed_store(model, store, range(10)), atol=1e-3)


def test_a_convolutional_network_sees_zeros(store):
    torch.manual_seed(0)
    model = XResNet1d(fs=100, seconds=5, width=4, depth="xresnet1d50", hidden=16).eval()
    found = embed_store(model, store, range(6), leads=["II", "I"])
    with torch.no_grad():
        expected = model.features(torch.cat([store.read(range(6))[:, :2], torch.zeros(6, 10, 500)], dim=1), None, "mean")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_all_leads_are_the_default(store, tmp_path):
    model = encoder()
    first = embed_store(model, store, cache=tmp_path)
    np.testing.assert_array_equal(embed_store(model, store, leads=SUBSETS[12], cache=tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 1


def test_features_of_every_block(store, tmp_path):
    model, rows = encoder(cls_token=True, depth=6).train(), [5, 3, 17]
    blocks, layers = embed_store(model, store, rows, readout=["blocks", "layers"], cache=tmp_path)
    assert blocks.shape == (3, 6 * 32) and blocks.dtype == np.float32 and model.training
    np.testing.assert_array_equal(blocks[:, -4 * 32 :], layers)
    with torch.no_grad():
        tokens = model.eval()(store.read(rows), torch.from_numpy(store.lead_mask[rows]), layers=[0])[0]
    np.testing.assert_allclose(blocks[:, :32], tokens[:, 1:].mean(1), atol=1e-5)


def test_half_precision_is_near_and_kept_apart(store, tmp_path):
    model = encoder(depth=4)
    exact, half = (embed_store(model, store, readout="layers", precision=kind, cache=tmp_path) for kind in ("no", "bf16"))
    assert half.dtype == np.float32 and not np.array_equal(exact, half) and len(list(tmp_path.glob("*.npy"))) == 2
    np.testing.assert_allclose(half, exact, atol=0.1 * exact.std())


def test_threads_that_take_a_batch_each_change_nothing(store, tmp_path, monkeypatch):
    model, before, seen = encoder(), torch.get_num_threads(), set()
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **options: seen.add(threading.get_ident()) or forward(*args, **options))
    try:
        torch.set_num_threads(1)
        alone = embed_store(model, store, batch_size=4)
        assert seen == {threading.get_ident()}
        torch.set_num_threads(3)
        together = embed_store(model, store, batch_size=4, cache=tmp_path)
        assert len(seen) > 1 and torch.get_num_threads() == 3
        np.testing.assert_allclose(together, alone, atol=1e-5)
        monkeypatch.setattr(model, "pool", lambda tokens: tokens[:, 0] / (threading.current_thread() is threading.main_thread()))
        with pytest.raises(CremaError, match="NaN or infinite"):
            embed_store(model, store, batch_size=4)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_cache_tells_subsets_apart(store, tmp_path):
    model = encoder()
    lost = type(store)(store.path)
    lost.lead_mask[:, 7] = False  # then the leads of 3 that are there are those of 2
    for entries, (data, n) in enumerate([(store, 12), (store, 3), (store, 2), (lost, 3), (lost, 12)], 1):
        found = [embed_store(model, data, leads=SUBSETS[n], cache=tmp_path) for _ in range(2)]
        np.testing.assert_array_equal(*found)
        np.testing.assert_array_equal(found[0], embed_store(model, data, leads=SUBSETS[n]))
        assert len(list(tmp_path.iterdir())) == entries


def test_a_cache_that_cannot_be_written(store, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CremaError, match=r"features cannot be kept .* give another folder as the cache"):
        embed_store(encoder(), store, cache=tmp_path / "file" / "below")


def test_leads_that_cannot_be_shown(store):
    for leads in (["V9"], [], "II", ["I", "v1"]):
        with pytest.raises(CremaError, match=r"the leads to show are .* give a list of one or more of I, II, III"):
            embed_store(encoder(), store, leads=leads)
    lost = type(store)(store.path)
    lost.lead_mask[[3, 5], 0] = False
    with pytest.raises(CremaError, match="2 records have none of the leads I: leave them out of the rows"):
        embed_store(encoder(), lost, leads=["I"])
    assert embed_store(encoder(), lost, [0, 1, 2], leads=["I"]).shape == (3, 32)


# --- files


@pytest.fixture(scope="module")
def files(store, tmp_path_factory):
    """Three recordings of 6 s at 200 Hz in a folder of WFDB and one of them as a table, and a file that is damaged."""
    folder = tmp_path_factory.mktemp("files")
    mv = np.random.default_rng(0).normal(scale=0.3, size=(3, 12, 1200)).round(3)
    (folder / "wfdb").mkdir()
    for i, signal in enumerate(mv):
        wfdb.wrsamp(
            f"r{i}", 200, ["mV"] * 12, list(LEADS), p_signal=signal.T, fmt=["16"] * 12, adc_gain=[1000] * 12, baseline=[0] * 12,
            write_dir=str(folder / "wfdb"),
        )  # fmt: skip
    pd.DataFrame(1000 * mv[0].T, columns=LEADS).to_csv(folder / "r0.csv", index=False)
    (folder / "bad.csv").write_text("I,II\n1,x\n")
    return folder, mv


@pytest.mark.parametrize("readout", ["mean", "layers"])
def test_files_give_what_arrays_give(files, readout):
    folder, mv = files
    model = encoder(seconds=5, patch=25)
    found, report = embed_files(model, [folder / "wfdb"], readout=readout)
    assert found["record"].tolist() == ["r0", "r1", "r2"] and not len(report)
    assert list(found.columns[:3]) == ["record", "quality", "f0"] and found["f0"].dtype == np.float32
    np.testing.assert_allclose(found.iloc[:, 2:], model.embed(mv, fs=200, readout=readout), atol=2e-3)


def test_a_table_gives_what_wfdb_gives_and_a_damaged_file_is_named(files):
    folder, _ = files
    found, report = embed_files(encoder(), [folder / "wfdb" / "r0", folder / "r0.csv", folder / "bad.csv"], unit="uV", rate=200)
    assert [name.rpartition("/")[2] for name in found["record"]] == ["r0", "r0.csv"], "one name twice: told apart by their paths"
    np.testing.assert_allclose(found.iloc[0, 2:].astype(float), found.iloc[1, 2:].astype(float), atol=1e-5)
    again, _ = embed_files(encoder(), [folder], unit="uV", rate=200)
    assert again["record"].tolist() == ["r0.csv", "wfdb/r0", "wfdb/r1", "wfdb/r2"], "WFDB and CSV of a folder, at any depth"
    (folder / "tables").mkdir()
    shutil.copy(folder / "r0.csv", folder / "tables")
    tables, _ = embed_files(encoder(), [folder / "tables"], unit="uV", rate=200)
    np.testing.assert_allclose(tables.iloc[0, 2:].astype(float), found.iloc[1, 2:].astype(float), atol=1e-5)
    assert report["record"].tolist() == ["bad"] and "no table of numbers" in report["reason"].item()


def test_a_unit_that_cannot_be_right_is_refused_and_one_doubtful_file_flagged(files):
    folder, _ = files
    for unit in ("mV", "nV"):
        with pytest.raises(CremaError, match=f"the leads measure .* mV from lowest to highest .* the unit is another than {unit}"):
            embed_files(encoder(), [folder / "r0.csv"], unit=unit, rate=200)
    found, _ = embed_files(encoder(), [folder / "wfdb" / "r1", folder / "r0.csv"], unit="mV", rate=200)
    assert found["quality"].iloc[0] == "" and found["quality"].iloc[1].split(";")[-1] == "amplitude"


def test_channels_of_a_file_that_are_no_leads_are_dropped(files, tmp_path):
    folder, _ = files
    table = pd.read_csv(folder / "r0.csv")
    table.assign(Z=7.0, marker=0).to_csv(tmp_path / "r0.csv", index=False)
    expected, found = (embed_files(encoder(), [path / "r0.csv"], unit="uV", rate=200)[0] for path in (folder, tmp_path))
    pd.testing.assert_frame_equal(found, expected)


def test_files_that_are_not_there(files, tmp_path):
    folder, _ = files
    for paths, sentence in (
        ([tmp_path / "none.csv"], "none.csv is not there: name recordings"),
        ([], "no recording is named"),
        ([tmp_path], "holds no recordings"),
        ([folder / "bad.csv"], "none of the 1 records in the files can be used; the first: record bad"),
    ):
        with pytest.raises(CremaError, match=sentence):
            embed_files(encoder(), paths, unit="mV", rate=100)
