"""Run records: what is written is what is read, and what is missing is said."""

import json
import math
import subprocess
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from crema_lib import notebook, runs
from crema_lib.errors import CremaError

METRIC = {"name": "macro_auroc", "task": "super", "model": "pretrained", "value": 0.87, "low": 0.85, "high": 0.89, "n": 2198, "seed": 0}
DATA = {"name": "simulated", "records": 50, "sha256": "00"}


class Store(list):
    def __init__(self):
        self.meta = {"sha256": "00"}


def written(path, **changed):
    given = {"chapter": "04_x", "parameters": {"profile": "quick", "seed": 0}, "metrics": [METRIC], "data": DATA, "wall_seconds": 1.26}
    return runs.write(path, **{**given, **changed})


def test_written_and_read_are_the_same(tmp_path):
    record = written(tmp_path / "deep" / "er" / "04_x.json", extra={"shape": np.arange(3), "where": tmp_path})
    assert runs.read(tmp_path / "deep" / "er" / "04_x.json") == record
    assert record["metrics"] == [METRIC]
    assert record["wall_seconds"] == 1.3
    assert record["extra"] == {"shape": [0, 1, 2], "where": str(tmp_path)}
    assert set(record["versions"]) == {"python", "torch", "timm", "numpy", "crema_lib"}
    assert record["time_utc"].endswith("+00:00")
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["04_x.json"], "nothing half-written stays"


def test_what_is_not_finite_is_null_in_the_file_and_nan_in_the_table(tmp_path):
    written(tmp_path / "a.json", metrics=[{**METRIC, "value": np.float32(0.5), "low": math.nan, "high": np.inf}])
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    row = runs.table([tmp_path / "a.json"]).iloc[0]
    assert row["value"] == 0.5
    assert np.isnan(row["low"])
    assert np.isnan(row["high"])


def test_a_table_is_kept_row_by_row_and_becomes_metrics(tmp_path):
    found = pd.DataFrame({"model": ["a", "b"], "value": [0.9, 0.8], "low": [0.8, math.nan], "high": [0.95, math.nan], "labels": [3, 5]})
    metrics = runs.metrics(found, name="macro_auroc", task=["x", "y"], n=found["labels"], seed=2)
    counted = pd.DataFrame({"code": ["AF", "SR"], "here": pd.array([4, None], dtype="Int64")})
    record = written(tmp_path / "a.json", metrics=metrics, extra={"counted": counted, "none": counted[:0]})
    assert record["metrics"] == [
        {"name": "macro_auroc", "task": "x", "model": "a", "value": 0.9, "low": 0.8, "high": 0.95, "n": 3, "seed": 2},
        {"name": "macro_auroc", "task": "y", "model": "b", "value": 0.8, "low": None, "high": None, "n": 5, "seed": 2},
    ]
    assert record["extra"] == {"counted": [{"code": "AF", "here": 4}, {"code": "SR", "here": None}], "none": []}
    with pytest.raises(KeyError, match="seed"):
        runs.metrics(found, name="macro_auroc", task="x", n=1)


def test_table_has_a_row_a_metric(tmp_path):
    written(tmp_path / "a.json", metrics=[METRIC, {**METRIC, "model": "random"}])
    written(tmp_path / "b.json", chapter="03_y", metrics=[{**METRIC, "seed": 1}])
    table = runs.table(tmp_path / "*.json")
    assert list(table["chapter"]) == ["04_x", "04_x", "03_y"]
    assert list(table["model"]) == ["pretrained", "random", "pretrained"]
    assert list(table["seed"]) == [0, 0, 1]
    assert set(table["profile"]) == {"quick"}


def test_a_failed_write_leaves_the_old_record(tmp_path):
    written(tmp_path / "a.json")
    before = (tmp_path / "a.json").read_text()
    with pytest.raises(CremaError, match=r"metric 0 \(macro_auroc\) has no low, high"):
        written(tmp_path / "a.json", metrics=[{key: value for key, value in METRIC.items() if key not in ("low", "high")}])
    with pytest.raises(CremaError, match="sha256 missing in data"):
        written(tmp_path / "a.json", data={"name": "x", "records": 1})
    with pytest.raises(TypeError):
        written(tmp_path / "a.json", extra={"what": object()})
    assert (tmp_path / "a.json").read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(CremaError, match=r"no run record .*none\.json: run its chapter first"):
        runs.read(tmp_path / "none.json")
    with pytest.raises(CremaError, match="no run record matches"):
        runs.table(str(tmp_path / "*.json"))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(CremaError, match="is no run record"):
        runs.read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(CremaError, match="is no run record"):
        runs.read(tmp_path / "a.json")
    record = written(tmp_path / "b.json")
    del record["versions"]
    (tmp_path / "b.json").write_text(json.dumps(record))
    with pytest.raises(CremaError, match="versions missing"):
        runs.read(tmp_path / "b.json")


def test_of_a_path_the_last_part_is_told():
    told = {
        "/data/ecg/ludb-1.0.1": "…/ludb-1.0.1",
        "MAE, 4 passes=/data/runs/mae-s0/model": "MAE, 4 passes=…/model",
        "reruns/s1/model": "reruns/s1/model",
        "https://doi.org/10.1000/x/y": "https://doi.org/10.1000/x/y",
        "0.9 ECG/s": "0.9 ECG/s",
    }
    assert runs.no_paths([*told, ["/a/b"], 3, None]) == [*told.values(), ["…/b"], 3, None]


def test_a_record_does_not_tell_where_the_run_found_its_files(tmp_path, monkeypatch):
    monkeypatch.setitem(notebook._last_start, "14_x", 0.0)
    given = {"wave_folder": "/somewhere/ecg/ludb", "checkpoints": ["MAE=/somewhere/mae/model", f"Ours={tmp_path}/cr_mae/model"]}
    p = SimpleNamespace(run_dir=tmp_path, chapter="14_x", parameters=given, data="simulated", device="cpu")
    told = notebook.record(p, [], Store())
    assert told["parameters"] == {"wave_folder": "…/ludb", "checkpoints": ["MAE=…/model", "Ours=cr_mae/model"]}


def test_a_device_has_a_name():
    name = runs.device_name("cpu")
    assert runs.processor() in name and name.split()[0] and name.endswith("cores"), "a processor without a name goes by its architecture"


def test_commit_and_whether_files_differ_from_it(tmp_path, monkeypatch):
    def git(*args):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(["git", "-C", tmp_path, *identity, *args], check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setenv("CREMA_HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert runs.git_commit() == (None, None)
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    assert runs.git_commit() == (None, None)
    git("commit", "-m", "a")
    assert runs.git_commit() == (git("rev-parse", "HEAD"), False)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "r").write_text("1")
    git("add", "results")
    assert runs.git_commit() == (git("rev-parse", "HEAD"), False), "what came out of a run does not change the code"
    (tmp_path / "a").write_text("2")
    assert runs.git_commit() == (git("rev-parse", "HEAD"), True)
