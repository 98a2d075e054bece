"""The search: what a trial changes, that fold 10 plays no part in it, and that the log keeps every trial once."""

from types import SimpleNamespace

import numpy as np
import pytest

from crema_lib import params, search
from crema_lib.__main__ import main
from crema_lib.data.simulate import simulated_store
from crema_lib.errors import CremaError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 200, seed=0, fs=100, seconds=5)


def parameters(run_dir):
    small = {
        "width": 48,
        "depth": 2,
        "objective_epochs": 1,
        "finetune_epochs": 1.0,
        "finetune_checks": 1,
        "device": "cpu",
        "heads": ["all", "super"],
    }
    return SimpleNamespace(**{**params.load_profile("quick"), **small, "run_dir": run_dir})


def test_a_change_is_read_by_the_types_of_the_parameters():
    assert params.parse_change("") == {}
    assert params.parse_change("patch=50+lr=1e-3+objective=jepa") == {"patch": 50, "lr": 1e-3, "objective": "jepa"}
    with pytest.raises(CremaError, match="patch is no name=value"):
        params.parse_change("lr=1e-3+patch")


def test_an_objective_of_a_comparison_may_be_changed():
    assert params.parse_variant("mae") == ("mae", {})
    assert params.parse_variant("cr_mae+contrast_weight=0.0+lr=1e-3") == ("cr_mae", {"contrast_weight": 0.0, "lr": 1e-3})
    assert params.check({"objectives": ["mae", "cr_mae+contrast_weight=0.0"]})["objectives"][1] == "cr_mae+contrast_weight=0.0"
    for wrong, word in (("bert", "bert"), ("cr_mae+contrast=0.0", "contrast_weight"), ("cr_mae+contrast_weight", "no name=value")):
        with pytest.raises(CremaError, match=word):
            params.check({"objectives": [wrong]})
    with pytest.raises(CremaError, match="not known"):
        params.check({"objective": "cr_mae+contrast_weight=0.0"})


def test_which_stage_a_change_belongs_to():
    assert search.stage_of({}) == search.stage_of({"patch": 50, "seed": 1}) == "pretraining"
    assert search.stage_of({"finetune_lr": 1e-3, "seed": 1}) == search.stage_of({"crop": 2.5, "readout": "mean"}) == "fine-tuning"
    assert search.stage_of({"readout": "mean"}) == "pretraining"
    with pytest.raises(CremaError, match="crop belongs to fine-tuning and patch to pretraining"):
        search.stage_of({"patch": 50, "crop": 2.5})
    with pytest.raises(CremaError, match="changed by bins"):
        search.stage_of({"bins": 10})


def test_trials_are_kept_once_and_wrong_ones_stop_all(store, tmp_path, monkeypatch, capsys):
    p, log = parameters(tmp_path / "run"), tmp_path / "log" / "search.csv"
    with pytest.raises(CremaError, match="neither"):
        search.search(p, store, ["", "bins=10"], log)
    for idle, name in (("objective=simclr+mask_ratio=0.9", "mask_ratio"), ("objective=mae+momentum=0.9", "momentum"), ("fs=250", "fs")):
        with pytest.raises(CremaError, match=rf"is the same whatever {name} is: leave it out"):
            search.search(p, store, ["", idle], log)
    assert not (tmp_path / "run").exists() and len(search.read_log(log)) == 0
    first = search.search(p, store, ["", "objective=mae+seed=1"], log, note="a note")
    assert list(first.columns) == list(search.COLUMNS) and list(first["change"]) == ["", "objective=mae+seed=1"]
    assert sorted(path.name for path in (tmp_path / "run" / "objectives").iterdir()) == ["cr_mae-s0", "mae-s1"]
    assert first["all"].between(0.4, 1).all() and list(first["seed"]) == [0, 1] and set(first["note"]) == {"a note"}
    monkeypatch.setattr(search, "trial", lambda *a: pytest.fail("it ran again"))
    assert search.search(p, store, ["objective=mae+seed=1", ""], log).equals(search.read_log(log))
    assert len(search.read_log(log)) == 2


def test_fold_ten_plays_no_part(store, tmp_path):
    """Recordings and labels of fold 10 are exchanged: a pretraining trial and a fine-tuning trial say the same."""
    spoilt = simulated_store(tmp_path / "store", 200, seed=0, fs=100, seconds=5)
    test = spoilt.rows([10])
    spoilt.signals = np.array(spoilt.signals)
    spoilt.signals[test] = 123
    truth = [column for column in spoilt.table.columns if column not in ("source", "record", "patient", "fold")]
    spoilt.table.loc[test, truth] = spoilt.table.loc[np.roll(test, 7), truth].to_numpy()
    assert not spoilt.table.equals(store.table)
    found = {}
    for name, here in (("whole", store), ("spoilt", spoilt)):
        p = parameters(tmp_path / name)
        pretrained = search.trial(p, here, "mask_ratio=0.75")
        tuned = search.trial(
            p, here, "finetune_lr=1e-3", tmp_path / "whole" / "objectives" / "cr_mae-s0-mask_ratio-0.75" / "pretrain" / "model"
        )
        found[name] = [[row[task] for task in search.TASKS] for row in (pretrained, tuned)]
    assert found["whole"] == found["spoilt"]
    assert found["whole"][0] != found["whole"][1]


def test_another_readout_trains_nothing_anew(store, tmp_path):
    p = parameters(tmp_path)
    as_it_is = search.trial(p, store, "")
    folders = sorted(path.name for path in (tmp_path / "objectives").iterdir())
    read = search.trial(p, store, "readout=layers")
    assert sorted(path.name for path in (tmp_path / "objectives").iterdir()) == folders
    assert [read[task] for task in search.TASKS] != [as_it_is[task] for task in search.TASKS]


def test_the_command(tmp_path, monkeypatch, capsys):
    done = []
    monkeypatch.setattr(
        "crema_lib.search.search", lambda p, store, changes, log, **options: done.append((p.run_dir, changes, log, options))
    )
    monkeypatch.setattr("crema_lib.notebook.open_data", lambda p: None)
    assert main(["search", "mask_ratio=0.75", "", "--profile", "quick", "--out", str(tmp_path), "--log", str(tmp_path / "a.csv")]) == 0
    assert done == [(tmp_path, ["mask_ratio=0.75", ""], str(tmp_path / "a.csv"), {"checkpoint": None})]
    assert main(["search", "lr=fast", "--profile", "nowhere"]) == 1 and "no profile nowhere" in capsys.readouterr().err


def test_fine_tuning_needs_somewhere_to_start(store, tmp_path):
    p = parameters(tmp_path)
    with pytest.raises(CremaError, match="needs a checkpoint"):
        search.trial(p, store, "layer_decay=0.5")
    p.heads = ["super", "sex"]
    with pytest.raises(CremaError, match="name all among the heads"):
        search.trial(p, store, "layer_decay=0.5", tmp_path)
