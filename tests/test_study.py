"""A study in several sittings: what is stopped goes on, what is done is left alone, and the end is published."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import write_chapter

from crema_lib import bookbuild, params, runs, study
from crema_lib.data.simulate import simulated_store
from crema_lib.engine import Training, fit
from crema_lib.errors import CremaError, Stopped
from crema_lib.objectives import CRMAE
from crema_lib.sit import SiT

STEPS = 40
TRAINING = {"batch_size": 8, "epochs": STEPS / 4, "device": "cpu", "log_every": 10, "checkpoint_every": 1000}
TRAIN = f"""
import time

import torch

from crema_lib.data.simulate import simulated_store
from crema_lib.engine import Training, fit
from crema_lib.objectives import CRMAE
from crema_lib.sit import SiT


def note(step, steps):
    with open(p.run_dir / "steps.txt", "a") as file:
        file.write(f"{{step}}\\n")
    time.sleep(0.5 if (p.run_dir / "slow").exists() else 0)


p.data, store = "simulated", simulated_store(p.run_dir / "store", 40, seed=0, fs=100, seconds=5)
torch.manual_seed(1)
model = CRMAE(SiT(fs=100, seconds=5, width=16, depth=1, heads=2), decoder_width=16, decoder_depth=1, projection=8)
model.after_step = note
log = fit(model, store, range(36), Training(**{TRAINING}), p.run_dir / "fit", progress=False)
"""
RECORD = """
loss = float(log["loss"].iloc[-1])
metric = {"name": "loss", "task": "-", "model": "-", "value": loss, "low": 0, "high": 9, "n": 1, "seed": p.seed}
notebook.record(p, [metric], store)
"""
PRINT = """
from crema_lib import runs

print("committed:", runs.read("results/quick/02_train.json")["metrics"][0]["value"])
"""
COUNT = """
with open(p.run_dir / "first.txt", "a") as file:
    file.write("ran ")
"""


@pytest.fixture
def book(project):
    """A book of two chapters: one that counts its runs, and one that trains, prints its record and needs the first."""
    (project / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nchapters:\n  - file: book/01_first\n  - file: book/02_train\n")
    (project / "_runs" / "quick-s0").mkdir(parents=True)
    parameters = 'profile: str = "quick"  # profile\nseed: int = 0  # start\nout: str = ""  # folder'
    write_chapter(project / "book" / "01_first.ipynb", COUNT, parameters=parameters)
    train = project / "book" / "02_train.ipynb"
    write_chapter(train, TRAIN, RECORD, PRINT, parameters=parameters)
    train.write_text(train.read_text().replace('"# 02_train"', '"# 02_train **You need** [](01_first.ipynb). **Time**: none"'))
    return project


@pytest.fixture
def whole(tmp_path):
    """The last loss of the same training in one sitting."""
    store = simulated_store(tmp_path / "one", 40, seed=0, fs=100, seconds=5)
    torch.manual_seed(1)
    model = CRMAE(SiT(fs=100, seconds=5, width=16, depth=1, heads=2), decoder_width=16, decoder_depth=1, projection=8)
    return fit(model, store, range(36), Training(**TRAINING), tmp_path / "whole", progress=False)["loss"].iloc[-1]


def test_a_study_that_is_stopped_goes_on_and_ends_with_the_same_record(book, whole, capsys):
    folder = book / "_runs" / "quick-s0"
    steps, slow = folder / "steps.txt", folder / "slow"
    slow.touch()

    def stop():
        until = time.monotonic() + 600
        while not steps.exists() and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Stopped, match="asked to stop, 1 of 2 chapters remain: the same command goes on") as stopped:
        study.study("quick", jobs=1)
    assert stopped.value.status == 143
    told = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in told[-2:]] == ["done", "to do"]
    begun = [int(step) for step in steps.read_text().split()]
    assert begun == list(range(1, len(begun) + 1)) and len(begun) < STEPS
    assert [int(path.name) for path in (folder / "fit" / "checkpoints").glob("0*")] == [len(begun)], "the kernel saved before it ended"
    assert not (book / "results").exists()

    slow.unlink()
    study.study("quick", minutes=60, jobs=1)
    assert [int(step) for step in steps.read_text().split()] == list(range(1, STEPS + 1)), "no step is computed twice"
    record = runs.read(book / "results" / "quick" / "02_train.json")
    assert record["metrics"][0]["value"] == pytest.approx(whole, rel=1e-4)
    page = (book / "results" / "quick" / "pages" / "02_train.json").read_text()
    assert f"committed: {record['metrics'][0]['value']}" in page, "a chapter prints the record that is about to be committed"
    assert (book / "results" / "quick" / "pages" / "01_first.json").is_file()
    assert "CREMA_RECORDS" not in os.environ

    capsys.readouterr()
    study.study("quick")
    assert capsys.readouterr().out.count("done before") == 2
    assert (folder / "first.txt").read_text().split() == ["ran"], "what is done is not run again"
    (folder / "records" / "02_train.json").unlink()
    with pytest.raises(CremaError, match=r"the 1e-09 minutes are spent, 1 of 2 chapters remain: the same command goes on"):
        study.study("quick", minutes=1e-9)


def test_a_key_changes_with_all_that_a_chapter_depends_on(book):
    picked = bookbuild.chapters()
    values = params.load_profile("quick")
    first, train = before = list(study.keys_of(picked, values).values())
    assert list(study.keys_of(picked, values | {"lr": 0.5, "out": "elsewhere"}).values()) == before, "a parameter that neither declares"
    changed = list(study.keys_of(picked, values | {"seed": 1}).values())
    assert changed[0] != first and changed[1] != train
    source = book / "book" / "01_first.ipynb"
    source.write_text(source.read_text().replace("ran ", "went "))
    changed = list(study.keys_of(picked, values).values())
    assert changed[0] != first and changed[1] != train, "what a chapter needs is part of its key"


def test_a_key_changes_with_the_data(book, tmp_path, monkeypatch):
    monkeypatch.setenv("CREMA_DATA", str(tmp_path / "data"))
    write_chapter(book / "book" / "01_first.ipynb", "1", parameters='data: str = "mine"  # set\nothers: list = []  # sets')
    picked, values = [Path("book/01_first.ipynb")], params.load_profile("quick") | {"data": "mine", "others": ["other"]}
    with pytest.raises(CremaError, match="mine is not prepared"):
        study.keys_of(picked, values)
    at = tmp_path / "data" / "stores"
    simulated_store(at / "mine-100hz-10s", 20, seed=0)
    alone = study.keys_of(picked, values)
    simulated_store(at / "other-100hz-10s", 20, seed=0)
    both = study.keys_of(picked, values)
    store = at / "mine-100hz-10s" / "store.json"
    store.write_text(json.dumps(json.loads(store.read_text()) | {"sha256": "0" * 64}))
    other = study.keys_of(picked, values)
    assert len({*alone.values(), *both.values(), *other.values()}) == 3


def test_budgets_and_parameters_that_are_none(book):
    with pytest.raises(CremaError, match="minutes 0 is no budget: give a number above zero"):
        study.study("quick", minutes=0)
    with pytest.raises(CremaError, match="no chapter that is to be run has a parameter lr"):
        study.study("quick", overrides=["lr=0.1"])


def test_a_record_of_the_run_stands_for_the_committed_one_of_its_profile(project, monkeypatch):
    def record(folder, profile, value):
        metric = {"name": "x", "task": "-", "model": "-", "value": value, "low": 0, "high": 9, "n": 1, "seed": 0}
        about = {"data": {"name": "d", "records": 1, "sha256": "0"}, "wall_seconds": 1}
        runs.write(folder / "01_x.json", chapter="01_x", parameters={"profile": profile}, metrics=[metric], **about)

    def value():
        return runs.read("results/ptbxl/01_x.json")["metrics"][0]["value"]

    record(project / "results" / "ptbxl", "ptbxl", 1.0)
    monkeypatch.setenv("CREMA_RECORDS", str(project / "run"))
    assert value() == 1
    record(project / "run", "quick", 2.0)
    assert value() == 1, "the run is of another profile"
    record(project / "run", "ptbxl", 3.0)
    assert value() == 3
    monkeypatch.delenv("CREMA_RECORDS")
    assert value() == 1
