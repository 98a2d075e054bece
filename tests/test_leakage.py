"""Leakage: what is planted is found, what merely resembles is not, and a checkpoint knows what it saw."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from crema_lib import leakage, params, plots
from crema_lib.data.simulate import simulate, simulated_store
from crema_lib.data.store import COLUMNS, TEST, TRAIN, EcgStore, StoreWriter, find
from crema_lib.errors import CremaError
from crema_lib.leakage import duplicates
from crema_lib.pretrain import pretrain

N = 300


def write(path, signals, table=None, fs=100, band=(0.5, 40.0), **changes):
    """A store of int16 signals; rows of `table`, or one patient a record in fold 1; `changes` overrule columns."""
    if table is None:
        table = pd.DataFrame([dict.fromkeys(COLUMNS, "") for _ in signals])
        table = table.assign(record=[f"{path.name}{i}" for i in range(len(signals))], patient=np.arange(len(signals)).astype(str))
        table = table.assign(source=path.name, fold=1, age=50.0, lead_mask=4095, valid=signals.shape[-1], year=0)
    writer = StoreWriter(path, fs=fs, seconds=signals.shape[-1] // fs, band=band, source=path.name)
    writer.append(signals, table.assign(**changes).to_dict("records"))
    return writer.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "all", N, seed=1)


@pytest.fixture(scope="module")
def fine():
    """Twelve seconds at 200 Hz of 40 others, to cut shifted windows and lower rates from."""
    return simulate(40, seed=2, fs=200, seconds=12)[0]


def near(*stores, **options):
    listed = leakage.catalogue(stores)
    found = leakage.near_duplicates(stores, listed, **options)
    return found[found["rule"] != ""], found, listed


def steps(signal):
    return np.rint(signal).astype("<i2")


# -- near duplicates


def test_clean_simulated_cohort_has_none_although_patients_return(store):
    assert store.table["patient"].duplicated().sum() > 50, "other beats of one patient are there"
    found, aligned, _ = near(store)
    assert len(found) == 0
    assert set(aligned["a"]) | set(aligned["b"]) == set(range(N)), "every recording was compared with the one closest to it"
    assert aligned["r"].max() < 0.98


PLANTS = {
    "rescaled": lambda x, rng: 0.4 * x,
    "noisy": lambda x, rng: x + 0.08 * x.std() * rng.standard_normal(x.shape),
    "shifted": lambda x, rng: np.roll(x, 90, axis=-1),
    "shifted the other way, rescaled and noisy": lambda x, rng: 1.5 * np.roll(x, -37, -1) + 0.05 * x.std() * rng.standard_normal(x.shape),
    "one lead spoilt": lambda x, rng: np.concatenate([x[:6], -x[6:7], x[7:]]),
}


def test_planted_near_duplicates_are_found_and_nothing_else(store, tmp_path):
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(store.table["valid"] == 1000)[::6][: 8 * len(PLANTS)]
    kinds = np.array(list(PLANTS))[np.arange(len(rows)) % len(PLANTS)]
    copies = [PLANTS[kind](store.signals[row].astype(float), rng) for kind, row in zip(kinds, rows, strict=True)]
    found, _, _ = near(store, write(tmp_path / "copies", steps(np.stack(copies))))
    assert set(zip(found["a"], found["b"], strict=True)) == {(row, N + i) for i, row in enumerate(rows)}
    kind = kinds[found["b"] - N]
    assert (found["rule"][kind != "one lead spoilt"] == "whole signal").all()
    assert (found["rule"][kind == "one lead spoilt"] == "most leads").sum() >= 6
    for name, shift in (("rescaled", 0), ("noisy", 0), ("shifted", -0.9), ("shifted the other way, rescaled and noisy", 0.37)):
        np.testing.assert_allclose(found["shift"][kind == name], shift, atol=0.003)


def test_shift_is_measured_between_samples(fine, tmp_path):
    early, late = fine[:, :, 0:2000:2], fine[:, :, 131:2131:2]  # 65.5 samples of 100 Hz apart
    found, _, _ = near(write(tmp_path / "early", early), write(tmp_path / "late", late))
    assert list(found["b"] - found["a"]) == [40] * 40
    np.testing.assert_allclose(found["shift"], 0.655, atol=0.0026)
    np.testing.assert_allclose(found["seconds"], 10 - 0.655, atol=0.011)
    assert found["r"].min() > 0.99


def test_stores_of_other_rate_and_length(fine, tmp_path):
    a = write(tmp_path / "fast", fine[:, :, 200:2200], fs=200)
    b = write(tmp_path / "short", fine[:, :, 600:1800:2])  # 6 s, the middle of the others
    found, _, listed = near(a, b)
    assert list(found["b"] - found["a"]) == [40] * 40
    assert (found["r"] > 0.999).all()
    assert len(leakage.exact_duplicates(listed)) == 0


def test_padding_and_missing_leads_are_no_difference(store, tmp_path):
    cut = store.signals[:40].copy()
    cut[..., 650:] = 0
    cut[:, 6:9] = 0
    some = write(tmp_path / "some", store.signals[:40])
    found, _, _ = near(some, write(tmp_path / "cut", cut, valid=650, lead_mask=4095 & ~(0b111 << 6)))
    assert set(zip(found["a"], found["b"], strict=True)) == {(i, 40 + i) for i in range(40)}
    assert (found["seconds"] == 6.5).all()


def test_threshold_is_the_correlation_of_the_copies(store, tmp_path):
    x = store.signals[:30].astype(float)
    scale = x[:, duplicates.INDEPENDENT].std((1, 2))[:, None, None]
    noise = 0.25 * scale * np.random.default_rng(0).standard_normal(x.shape)  # r = 1 / sqrt(1 + .25^2) = .970
    stores = write(tmp_path / "clean", store.signals[:30]), write(tmp_path / "noisy", steps(x + noise))
    assert len(near(*stores)[0]) == 0
    found, _, _ = near(*stores, threshold=0.96)
    assert set(zip(found["a"], found["b"], strict=True)) == {(i, 30 + i) for i in range(30)}
    np.testing.assert_allclose(found["r"], 1 / np.sqrt(1 + 0.25**2), atol=0.003)


def test_a_shared_artefact_is_no_duplicate(store, tmp_path):
    """A step that saturates the amplifier and the ringing of the filter after it: much alike in any two recordings."""
    t = np.arange(1000) / 100
    burst = 20_000 * np.exp(-(((t - 5) / 0.05) ** 2))
    found, aligned, _ = near(write(tmp_path / "artefact", steps(store.signals[:30] + burst)))
    assert aligned["r"].max() > 0.99
    assert len(found) == 0


def test_noise_and_flat_traces_are_no_duplicates(tmp_path):
    rng = np.random.default_rng(0)
    quiet = steps(rng.normal(0, 3, (6, 12, 1000)))  # 3 uV: an unplugged cable
    noise = steps(rng.normal(0, 200, (6, 12, 1000)))
    zeros = np.zeros((6, 12, 1000), "<i2")
    store = write(tmp_path / "nothing", np.concatenate([quiet, noise, zeros]))
    found, aligned, listed = near(store)
    assert list(listed["flat"]) == [True] * 6 + [False] * 6 + [True] * 6
    assert len(found) == 0
    assert aligned["r"].max() < 0.5
    assert len(leakage.exact_duplicates(listed)) == 0
    alone, _, _ = near(write(tmp_path / "alone", zeros))
    assert len(alone) == 0 and "rule" in alone


def test_the_sieve_misses_nothing(store, tmp_path, monkeypatch):
    """What all pairs give, the sieve gives too, shifted by up to a second and with noise."""
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(store.table["valid"] == 1000)[:60]
    moved = [np.roll(store.signals[row], rng.integers(-100, 101), -1) for row in rows]
    copies = write(tmp_path / "moved", steps(np.stack(moved) + rng.normal(0, 10, (len(rows), 12, 1000))))
    some = write(tmp_path / "some", store.signals[rows])
    sieved = near(some, copies)[0]
    monkeypatch.setattr(duplicates, "ALL_PAIRS", 0)
    monkeypatch.setattr(duplicates, "BLOCK", 64)
    pd.testing.assert_frame_equal(near(some, copies)[0], sieved)
    assert len(sieved) >= 57


def test_near_duplicates_say_what_they_cannot_do(store, tmp_path, monkeypatch):
    listed = leakage.catalogue([store])
    with pytest.raises(CremaError, match=r"threshold = 1\.5"):
        leakage.near_duplicates([store], listed, threshold=1.5)
    short = write(tmp_path / "short", store.signals[:5, :, :300])
    with pytest.raises(CremaError, match="prepare at least 5 s"):
        leakage.near_duplicates([short], leakage.catalogue([short]))
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 10)
    with pytest.raises(CremaError, match="resemble each other"):
        leakage.near_duplicates([store], listed)


# -- exact duplicates, patients, the table


def test_exact_duplicates_are_those_with_equal_samples(store, tmp_path):
    signals = store.signals[:6].copy()
    signals[1] = signals[4] = signals[0]
    signals[5] = signals[3]
    signals[5, 0, 0] += 1  # one step of one sample: not equal any more
    listed = leakage.catalogue([write(tmp_path / "a", signals), write(tmp_path / "b", store.signals[2:4])])
    pairs = leakage.exact_duplicates(listed)
    assert set(zip(pairs["a"], pairs["b"], strict=True)) == {(0, 1), (0, 4), (2, 6), (3, 7)}


def test_the_table_counts_what_was_planted(store, tmp_path):
    rows = np.r_[store.rows(TRAIN)[:30], store.rows(TEST)[:10]]
    table = store.table.iloc[rows].reset_index(drop=True)
    signals = store.signals[rows].copy()
    signals[1], table.loc[1, ["patient", "labels"]] = signals[0], ("another", "?")  # equal, same side, other patient and labels
    signals[39] = signals[2]  # equal, across
    signals[38] = steps(0.7 * signals[3].astype(float))  # near, across
    table.loc[[4, 37], ["patient", "source"]] = ["p", "s"]
    own = write(tmp_path / "own", signals, table)
    other = write(tmp_path / "other", np.stack([signals[5], steps(0.5 * signals[6].astype(float))]))
    report = leakage.examine([own, other])
    rows = report.table.set_index(["where", "question", "split"])
    count = rows["count"]
    owners = table.groupby(["source", "patient"])["fold"].agg(lambda folds: folds.isin(TRAIN).any() and folds.isin(TEST).any())
    assert count["own", "patients", "across sides"] == owners.sum() >= 1
    for kind in ("exact duplicates", "near duplicates"):
        assert count["own", kind, "across sides"] == 1
        assert count["own", kind, "in other sets"] == count["other", kind, "in other sets"] == 1
        assert count["other", kind, "within a side"] == count["other", kind, "across sides"] == 0
    assert count["own", "near duplicates", "within a side"] == 0
    within = rows.loc["own", "exact duplicates", "within a side"]
    assert (within["count"], within["other_patients"], within["other_labels"], within["leak"]) == (1, 1, 1, False)
    assert count["own", "patients", "in other sets"] == count["other", "patients", "in other sets"] == 0
    assert rows["leak"].sum() == 7 and (report.table["count"] <= report.table["of"]).all()
    assert "own: 1 exact duplicates across sides" in report.sentence()
    assert not set(report.table) & {"record", "patient", "a", "b"}, "the table names no recording"
    wide = report.wide().set_index(["question", "split"])
    assert list(wide) == ["own", "other"] and wide.loc[("near duplicates", "in other sets"), "other"] == 1
    best = report.best()
    assert best.loc[3, "r"] > 0.99 > best.loc[7, "r"] and (best.loc[3, "other"], best.loc[38, "other"]) == (38, 3)
    assert list(best.index) == [i for i in range(42) if i not in report.exact["b"].to_list()]
    groups = report.listed["store"].where(report.listed["side"] == "train")
    table = report.closest(groups, edges=(0, 0.5, 0.99, 1))
    counted = best[(report.listed["side"] == "train").reindex(best.index)]
    assert table["count"].sum() == len(counted)
    assert table.query("low == 0.99")["count"].sum() == (counted["r"] >= 0.99).sum()


def test_a_patient_in_two_sets_is_a_leak(store, tmp_path):
    a = write(tmp_path / "a", store.signals[:4], store.table[:4], patient=list("pqrs"))
    b = write(tmp_path / "b", store.signals[4:7], store.table[4:7], patient=list("stu"))
    rows = leakage.examine([a, b]).table.query("question == 'patients' and split == 'in other sets'")
    assert list(rows["count"]) == [1, 1] and rows["leak"].all()


def test_a_clean_store_has_no_leak(store):
    report = leakage.examine([store])
    assert report.sentence() == "" and not report.table["leak"].any()
    assert len(report.near) == len(report.exact) == 0


def test_catalogue_refuses(store, tmp_path):
    for stores in ([], [store, store]):
        with pytest.raises(CremaError, match="names of their own"):
            leakage.catalogue(stores)
    with pytest.raises(CremaError, match="none of 1 to 10"):
        leakage.catalogue([write(tmp_path / "odd", store.signals[:2], fold=11)])


def test_find_takes_a_name_or_a_folder(store, tmp_path, monkeypatch):
    monkeypatch.setenv("CREMA_DATA", str(tmp_path))
    assert find(store.path).meta == store.meta
    with pytest.raises(CremaError, match="data prepare mine"):
        find("mine")
    shutil.copytree(store.path, tmp_path / "stores" / "mine-100hz-10s")
    assert find("mine").path.name == "mine-100hz-10s"
    shutil.copytree(store.path, tmp_path / "stores" / "mine-200hz-10s")
    with pytest.raises(CremaError, match=r"mine-100hz-10s, mine-200hz-10s: give the folder"):
        find("mine")
    shutil.move(tmp_path / "stores" / "mine-200hz-10s", tmp_path / "stores" / "mine-extra-100hz-10s")
    assert find("mine").path.name == "mine-100hz-10s", "a longer name is another data set"


def test_figure_of_the_closest():
    bins = pd.DataFrame({"group": list("aabb"), "low": [0, 0.5] * 2, "high": [0.5, 1.0] * 2, "count": [3, 0, 0, 1200]})
    fig = plots.closest(bins, 0.99)
    fig.draw_without_rendering()
    ax = fig.axes[0]
    assert {patch.get_gid() for patch in ax.patches} >= {"a", "b"}
    assert ax.get_yscale() == "log" and "Correlation" in ax.get_xlabel()
    assert [line.get_xdata()[0] for line in ax.lines] == [0.99]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["a (3)", "b (1,200)"]
    with pytest.raises(CremaError, match="counts no recording"):
        plots.closest(bins.assign(count=0), 0.99)


# -- what a checkpoint saw


def test_a_checkpoint_knows_what_it_saw(store, tmp_path):
    rows = store.rows(TRAIN)
    leakage.remember(tmp_path, store, rows)
    known = leakage.seen(tmp_path, store)
    assert np.array_equal(np.flatnonzero(known), rows)
    bits, kept = leakage.what_was_seen(tmp_path)
    assert (kept["items"], kept["fs"], kept["seconds"], kept["data_sha256"]) == (str(len(rows)), "100", "10", store.meta["sha256"])
    assert len(bits) / len(rows) == pytest.approx(28.76, abs=0.1), "bits an item of a filter with one error in a million"
    report = leakage.examine([write(tmp_path / "foreign", store.signals[rows[:8]], fold=10)], checkpoint=tmp_path)
    row = report.table.query("question == 'seen in pretraining' and split == 'test'").iloc[0]
    assert (row["count"], row["of"], row["leak"]) == (8, 8, True)


def test_false_positive_rate_is_the_stated_one(tmp_path):
    rng = np.random.default_rng(0)
    signals = rng.integers(-500, 500, (12_000, 12, 1)).astype("<i2")
    table = pd.DataFrame({"record": np.arange(len(signals))})
    store = SimpleNamespace(signals=signals, table=table, fs=1, seconds=1, meta={"sha256": "-", "band": None}, path=tmp_path)
    rate = 0.02
    leakage.remember(tmp_path, store, np.arange(2000), rate)
    known = leakage.seen(tmp_path, store, np.arange(12_000))
    assert known[:2000].all(), "never a false no"
    assert known[2000:].mean() == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / 10_000))
    leakage.remember(tmp_path, store, np.arange(2000))
    assert not leakage.seen(tmp_path, store, np.arange(2000, 12_000)).any()


def test_one_changed_sample_is_another_recording(store, tmp_path):
    leakage.remember(tmp_path, store, np.arange(20))
    signals = store.signals[:20].copy()
    signals[::2, 11, -1] += 1
    assert list(leakage.seen(tmp_path, write(tmp_path / "x", signals))) == [False, True] * 10


def test_seen_refuses_what_cannot_match(store, tmp_path):
    with pytest.raises(CremaError, match=r"no seen\.safetensors"):
        leakage.seen(tmp_path, store)
    leakage.remember(tmp_path, store, np.arange(20))
    with pytest.raises(CremaError, match="trained on recordings of seconds 10, not 5"):
        leakage.seen(tmp_path, write(tmp_path / "short", store.signals[:4, :, :500]))
    with pytest.raises(CremaError, match=r"band 0\.5-40, not 0\.05-40"):
        leakage.seen(tmp_path, write(tmp_path / "band", store.signals[:4], band=(0.05, 40)))
    for damage in (b"", b"garbage" * 10):
        (tmp_path / leakage.SEEN).write_bytes(damage)
        with pytest.raises(CremaError, match="is damaged"):
            leakage.seen(tmp_path, store)
    save_file({"bits": np.zeros(8, np.uint8)}, tmp_path / leakage.SEEN)
    with pytest.raises(CremaError, match="is damaged"):
        leakage.seen(tmp_path, store)
    for rows, rate in (([], 1e-6), ([1], 0), ([1], 1)):
        with pytest.raises(CremaError, match="false-positive rate"):
            leakage.remember(tmp_path, store, rows, rate)


def test_pretraining_leaves_behind_what_it_saw(tmp_path):
    store = simulated_store(tmp_path / "store", 80, seed=3, seconds=5)
    quick = {**params.load_profile("quick"), "width": 48, "depth": 1, "epochs": 1, "batch_size": 16, "device": "cpu"}
    pretrain(SimpleNamespace(**quick, run_dir=tmp_path), store, progress=False)
    assert np.array_equal(np.flatnonzero(leakage.seen(tmp_path / "pretrain" / "model", store)), store.rows(TRAIN))


def test_the_committed_checkpoint_says_what_it_saw():
    from conftest import ROOT

    folder = ROOT / "weights" / "sit-xs-ptbxl-100hz"
    run = json.loads((ROOT / "results" / "ptbxl" / "03_pretraining.json").read_text())
    bits, kept = leakage.what_was_seen(folder)
    assert kept["data_sha256"] == run["data"]["sha256"]
    assert (int(kept["items"]), float(kept["rate"]), kept["fs"], kept["seconds"]) == (17_418, 1e-6, "100", "10")
    assert 0.45 < bits.mean() < 0.55, "a filter at its optimum is half full"
    assert set(load_file(folder / leakage.SEEN)) == {"bits"}


def test_the_committed_checkpoint_saw_folds_1_to_8_of_ptbxl(monkeypatch):
    """Needs the prepared store ($CREMA_DATA/stores); a dozen recordings of each side."""
    try:
        store = find("ptb-xl")
    except CremaError as error:
        pytest.skip(str(error))
    from conftest import ROOT

    folder = ROOT / "weights" / "sit-xs-ptbxl-100hz"
    assert leakage.seen(folder, store, store.rows(TRAIN)[::1500]).all()
    assert not leakage.seen(folder, store, store.rows(TEST)[::200]).any()
    assert isinstance(store, EcgStore)
