"""Leads by name, the store on disk, and label matrices."""

import shutil

import numpy as np
import pandas as pd
import pytest

from crema_lib.data import labels
from crema_lib.data.leads import LEADS, lead_index, to_canonical
from crema_lib.data.store import COLUMNS, EcgStore, StoreWriter, to_steps
from crema_lib.errors import CremaError


@pytest.mark.parametrize("spelling", ["AVR", "aVR", "MDC_ECG_LEAD_AVR", "Lead aVR", "ecg_avr", " avr "])
def test_spellings(spelling):
    assert lead_index(spelling) == 3


def test_unknown_names_are_not_leads():
    assert [lead_index(name) for name in ("V7", "MLII", "", "X", "VR", "-aVR")] == [None] * 6


def heart(samples=50):
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, samples))
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.stack([*limb, *rng.normal(size=(6, samples))]).astype(np.float32)


@pytest.mark.parametrize("given", [(0, 1), (1, 2), (0, 2)])
def test_limb_leads_follow_from_any_two(given):
    full = heart()
    rows = [*given, *range(6, 12)]
    out, present = to_canonical(full[rows], [LEADS[i] for i in rows])
    assert present.all()
    np.testing.assert_allclose(out, full, atol=1e-5)


def test_order_and_missing_leads():
    full = heart()
    order = np.random.default_rng(1).permutation(12)
    np.testing.assert_array_equal(to_canonical(full[order], [LEADS[i] for i in order])[0], full)
    out, present = to_canonical(full[[1, 7]], ["II", "V2"])
    assert np.flatnonzero(present).tolist() == [1, 7]
    assert not out[~present].any()


@pytest.mark.parametrize(
    ("shape", "names", "sentence"),
    [
        ((2, 5), ["I"], "does not fit 1 lead names"),
        ((2, 5), ["I", "i"], "given twice"),
        ((2, 5), ["V7", "x"], "no known lead"),
        ((5,), ["I"], "shape"),
    ],
)
def test_bad_leads(shape, names, sentence):
    with pytest.raises(CremaError, match=sentence):
        to_canonical(np.zeros(shape), names)


def row(i):
    return {**{name: kind("0") if (kind := {"str": str, "int64": int, "float64": float}[t]) else 0 for name, t in COLUMNS.items()},
            "record": str(i), "fold": i % 10 + 1, "lead_mask": 4095 - (i == 1) * 4}  # fmt: skip


@pytest.fixture
def store(tmp_path):
    signals = np.random.default_rng(0).integers(-3000, 3000, (30, 12, 40)).astype(np.int16)
    writer = StoreWriter(tmp_path / "s", fs=10, seconds=4, band=None)
    writer.append(signals[:20], [row(i) for i in range(20)])
    writer.append(signals[20:], [row(i) for i in range(20, 30)])
    return writer.close(), signals


def test_what_is_written_is_read(store):
    store, signals = store
    rows = [7, 3, 29, 3]
    np.testing.assert_allclose(store.read(rows).numpy(), signals[rows] / 1000, rtol=1e-6)
    assert store.rows((1, 10)).tolist() == [0, 9, 10, 19, 20, 29]
    assert store.lead_mask.sum() == 30 * 12 - 1 and not store.lead_mask[1, 2]
    assert {name: str(kind) for name, kind in EcgStore(store.path).table.dtypes.items()} == COLUMNS


def test_a_store_prepared_before_years_were_kept_still_opens(store, recwarn):
    store, signals = store
    path = store.path / "table.parquet"
    store.table.drop(columns="year").to_parquet(path, index=False)
    old = EcgStore(store.path)
    pd.testing.assert_frame_equal(old.table, store.table.assign(year=0))
    assert len(old) == len(signals) and not recwarn.list


def test_the_hash_is_that_of_the_file(store):
    import hashlib

    store, _ = store
    assert store.meta["sha256"] == hashlib.sha256((store.path / "signals.i16").read_bytes()).hexdigest()


def test_a_new_store_replaces_the_old_one_only_when_it_is_whole(store):
    store, signals = store
    writer = StoreWriter(store.path, fs=10, seconds=4)
    writer.append(signals[:2], [row(0), row(1)])
    assert len(EcgStore(store.path)) == 30
    writer.discard()
    assert len(EcgStore(store.path)) == 30 and not writer.part.exists()


def test_bad_stores(store, tmp_path):
    store, signals = store
    with pytest.raises(CremaError, match="not a prepared data set"):
        EcgStore(tmp_path / "nothing")
    with pytest.raises(CremaError, match="do not fit signals"):
        StoreWriter(tmp_path / "x", fs=10, seconds=4).append(signals[:, :, :10], [])
    shutil.copytree(store.path, tmp_path / "half")
    (tmp_path / "half" / "signals.i16").unlink()
    with pytest.raises(CremaError, match="not a prepared data set"):
        EcgStore(tmp_path / "half")
    with open(store.path / "signals.i16", "ab") as file:
        file.write(b"1")
    with pytest.raises(CremaError, match="prepare the data set again"):
        EcgStore(store.path)
    (store.path / "store.json").write_text("{")
    with pytest.raises(CremaError, match="not a prepared data set"):
        EcgStore(store.path)


def test_steps():
    steps, beyond = to_steps([0.0005, -1.2344, 32.767])
    assert steps.tolist() == [0, -1234, 32767] and not beyond
    assert to_steps([40.0]) == (32767, True)


def test_tasks_have_the_sizes_of_the_benchmark():
    sizes = {task: len(set(labels.task_map(task).values())) for task in labels.TASKS}
    assert sizes == {"all": 71, "diag": 44, "sub": 23, "super": 5, "form": 19, "rhythm": 12}


def test_matrix():
    table = pd.DataFrame({"labels": ["NORM;SR", "IMI;LVH", "SR", "", "NDT;XXX"]})
    targets, names, kept = labels.matrix(table, "super")
    assert names == ["NORM", "MI", "STTC", "CD", "HYP"]
    assert targets.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 1], [0] * 5, [0] * 5, [0, 0, 1, 0, 0]]
    assert kept.tolist() == [True, True, False, False, True]
    assert labels.matrix(table, "all")[2].all()
    assert labels.matrix(table, "rhythm")[2].tolist() == [True, False, True, False, False]
    with pytest.raises(CremaError, match="unknown task"):
        labels.matrix(table, "supper")


def test_counts_of_real_ptbxl(real_data):
    """Superclass counts against a search of the raw text of each record's statements."""
    table = pd.read_csv(real_data / "ptb-xl" / "ptbxl_database.csv", usecols=["scp_codes"])["scp_codes"]
    joined = table.str.findall(r"'([^']+)'").str.join(";")
    targets, names, _ = labels.matrix(pd.DataFrame({"labels": joined}), "super")
    statements = pd.read_csv(real_data / "ptb-xl" / "scp_statements.csv", index_col=0)
    for name, column in zip(names, targets.T, strict=True):
        codes = "|".join(statements.index[statements.diagnostic_class == name])
        assert column.sum() == table.str.contains(f"'(?:{codes})'", regex=True).sum() > 1000
