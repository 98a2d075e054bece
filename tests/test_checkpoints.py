"""Checkpoints: whole or not there, two kept, damage found; folders held by one run; a real run killed twenty times."""

import contextlib
import errno
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch

from crema_lib import checkpoints
from crema_lib.checkpoints import differences, found, load, lock, save, saved
from crema_lib.data.simulate import simulated_store
from crema_lib.data.store import EcgStore
from crema_lib.engine import Training, fit
from crema_lib.errors import CremaError
from crema_lib.objectives import CRMAE, MAE
from crema_lib.sit import SiT

# Children of a server that has imported everything start at once, and without the threads of this process.
fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload(["crema_lib.engine", "crema_lib.objectives", "crema_lib.data.simulate", "pytest"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 24, seed=0, fs=100, seconds=5)


def state(step, size=100):
    return {"step": step, "module": {"weight": torch.arange(float(size)) + step}, "log": [{"step": step, "loss": 0.5}]}


def names(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir())


# --- one checkpoint after another


def test_the_last_two_are_kept_and_the_newest_is_loaded(tmp_path):
    assert load(tmp_path) is None and checkpoints.kept(tmp_path) == "there is no checkpoint yet"
    for step in (5, 10, 15):
        save(tmp_path, state(step))
    assert names(tmp_path) == ["00000010", "00000015"] and found(tmp_path)[-1].name == "00000015"
    read = load(tmp_path)
    assert torch.equal(read.pop("module")["weight"], state(15)["module"]["weight"])
    assert read == {"step": 15, "log": [{"step": 15, "loss": 0.5}]}
    assert checkpoints.kept(tmp_path) == "the checkpoint of step 15 is kept"


def test_what_a_kill_left_behind_is_no_checkpoint(tmp_path):
    save(tmp_path, state(5))
    (tmp_path / "checkpoints" / "00000010.part").mkdir()
    (tmp_path / "checkpoints" / "00000010.part" / "state.pt").write_bytes(b"half")
    assert load(tmp_path)["step"] == 5
    save(tmp_path, state(10))
    assert names(tmp_path) == ["00000005", "00000010"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, sync, rename = [], os.fsync, type(tmp_path).rename
    monkeypatch.setattr(os, "fsync", lambda number: (done.append(os.readlink(f"/proc/self/fd/{number}")), sync(number))[1])
    monkeypatch.setattr(type(tmp_path), "rename", lambda path, to: (done.append("rename"), rename(path, to))[1])
    save(tmp_path, state(5))
    folder = str(tmp_path / "checkpoints")
    assert done == [f"{folder}/00000005.part/state.pt", f"{folder}/00000005.part", "rename", folder]


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def flip(path):
    data = bytearray(path.read_bytes())
    data[data.index(state(10)["module"]["weight"].numpy().tobytes()) + 7] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    for step in (5, 10):
        save(tmp_path, state(step))
    damage(tmp_path / "checkpoints" / "00000010" / "state.pt")
    with pytest.warns(UserWarning, match=r"00000010 cannot be read \(.*\): going on from the one of step 5"):
        assert load(tmp_path)["step"] == 5
    save(tmp_path, state(7))
    assert names(tmp_path) == ["00000005", "00000007"], "the damaged one does not count among the two"
    for folder in found(tmp_path):
        damage(folder / "state.pt") if damage is not flip else cut(folder / "state.pt")
    with pytest.raises(CremaError, match=r"00000005 cannot be read .*: none is left to go on from; delete .* to start anew"):
        load(tmp_path)


@contextlib.contextmanager
def full_disk():
    """A write of more than 50 kB fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_at_the_end(tmp_path):
    save(tmp_path, state(5))
    model = MAE(SiT(width=64, depth=2, heads=2))
    with full_disk(), pytest.raises(CremaError, match=r"cannot be written to \(.*\): make room .*; the checkpoint of step 5 is kept"):
        saved(model, tmp_path)
    told = []
    saved(model, tmp_path, told.append)
    assert told == [tmp_path / "model"] and MAE.from_pretrained(told[0]).options == model.options


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    save(tmp_path, state(5))
    with full_disk(), pytest.raises(CremaError, match=r"cannot be written to .*: make room .*; the checkpoint of step 5 is kept"):
        save(tmp_path, state(10, size=100_000))
    assert names(tmp_path) == ["00000005"] and load(tmp_path)["step"] == 5
    save(tmp_path, state(10, size=100_000))
    assert load(tmp_path)["step"] == 10


# --- is it this run's


def test_what_came_later_counts_as_its_default():
    now = {"training": {"lr": 0.1, "accumulate": 1}, "data": "abc", "rows": 7, "processes": 1}
    defaults = {"training": {"lr": 0.5, "accumulate": 1, "seed": 3}, "processes": 1}
    old = {"training": {"lr": 0.1}, "data": "abc"}
    assert differences(old, now, defaults) == differences(now, now, defaults) == []
    assert differences(old, {**now, "processes": 2}, defaults) == ["processes (1 there, 2 here)"]
    assert differences(old, {**now, "training": {"lr": 0.2, "accumulate": 4}}, defaults) == [
        "training (lr 0.1 there, 0.2 here, accumulate 1 there, 4 here)"
    ]
    assert differences(old, {**now, "training": {"lr": 0.1, "new": 4}}, defaults) == ["training (new None there, 4 here)"]
    assert differences({**old, "training": {"lr": 0.1, "gone": 2}}, now, defaults) == ["training (gone 2 there, None here)"]
    assert differences({**now, "rows": 8}, now, defaults) == ["rows (8 there, 7 here)"]


# --- the folder


def test_a_folder_that_cannot_be_written_to(tmp_path, store, monkeypatch):
    (tmp_path / "file").write_text("")
    steps = []
    monkeypatch.setattr(CRMAE, "forward", lambda *_: steps.append(1))
    with pytest.raises(CremaError, match=r"file/run cannot be written to \(Not a directory\): make room or give another folder"):
        train(store.path, tmp_path / "file" / "run")

    def read_only(self, *args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(type(tmp_path), "mkdir", read_only)
    with pytest.raises(CremaError, match=r"cannot be written to \(Read-only file system\)"):
        train(store.path, tmp_path / "run")
    assert not steps, "it says so before the first step"


def hold(out, pipe):
    with lock(out):
        pipe.send("held")
        time.sleep(60)


def test_one_run_a_folder(tmp_path, store):
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    assert ours.recv() == "held"
    with pytest.raises(CremaError, match=f"process {process.pid} on .* is training in {tmp_path}: wait for it, or choose another folder"):
        train(store.path, tmp_path)
    process.kill()
    process.join()
    for _ in range(2):
        with lock(tmp_path), pytest.raises(CremaError, match=f"process {os.getpid()} on"), lock(tmp_path):
            pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(checkpoints.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match="there are no locks for"), lock(tmp_path):
        pass
    monkeypatch.setattr(checkpoints, "fcntl", None)
    with pytest.warns(UserWarning, match="there are no locks for"), lock(tmp_path):
        assert (tmp_path / "checkpoints" / "lock").read_text().startswith(f"process {os.getpid()} on ")


# --- the store


def change(path):
    with open(path / "signals.i16", "r+b") as file:
        file.write(b"\x01\x02\x03")


def test_a_store_that_changes_under_a_run(tmp_path, store):
    shutil.copytree(store.path, tmp_path / "store")
    opened = EcgStore(tmp_path / "store")
    opened.check_unchanged()
    os.utime(tmp_path / "store" / "signals.i16")
    for make in (lambda: None, lambda: shutil.rmtree(tmp_path / "store")):
        make()
        with pytest.raises(CremaError, match="store was changed while a run was using it: put it back, or start the run anew"):
            opened.check_unchanged()


def test_a_run_whose_store_changed_keeps_its_checkpoint(tmp_path, store, monkeypatch):
    shutil.copytree(store.path, tmp_path / "store")
    real, seen = CRMAE.forward, []

    def forward(self, batch):
        seen.append(1)
        if len(seen) == 4:
            change(tmp_path / "store")
        return real(self, batch)

    monkeypatch.setattr(CRMAE, "forward", forward)
    with pytest.raises(CremaError, match="was changed while a run was using it"):
        train(tmp_path / "store", tmp_path / "run", epochs=2, checkpoint_every=3)
    assert [folder.name for folder in found(tmp_path / "run")] == ["00000003"]
    with pytest.raises(CremaError, match="was changed while a run was using it"):
        train(tmp_path / "store", tmp_path / "run", epochs=2, checkpoint_every=3)
    shutil.rmtree(tmp_path / "store")
    shutil.copytree(store.path, tmp_path / "store", copy_function=shutil.copy)  # the same data at another time
    train(tmp_path / "store", tmp_path / "run", epochs=2, checkpoint_every=3)
    assert found(tmp_path / "run")[-1].name == "00000006"


def test_a_store_that_is_cut_short_under_a_run(tmp_path, store, monkeypatch):
    """Without the sentence this test would not fail but die, of a bus error."""
    shutil.copytree(store.path, tmp_path / "store")
    signals, real, seen = tmp_path / "store" / "signals.i16", CRMAE.forward, []

    def forward(self, batch):
        seen.append(1)
        if len(seen) == 4:
            os.truncate(signals, 4096)
        return real(self, batch)

    monkeypatch.setattr(CRMAE, "forward", forward)
    with pytest.raises(CremaError, match=r"store was changed while it was read: signals.i16 is cut short"):
        train(tmp_path / "store", tmp_path / "run", epochs=2, checkpoint_every=3)
    assert len(seen) == 4 and [folder.name for folder in found(tmp_path / "run")] == ["00000003"]
    opened = EcgStore(store.path)
    monkeypatch.setattr(opened, "path", tmp_path / "store")
    with pytest.raises(CremaError, match="cut short"):
        opened.read([0])


# --- killed at any moment


def train(path, out, pipe=None, slow=0.0, **options):
    """A pretraining run that tells each step; with `slow`, half of a checkpoint is written, and the rest so many seconds later."""
    torch.set_num_threads(1)
    if slow:
        write = torch.save

        def save_slowly(state, file):
            write(state, out / "whole.tmp")
            data = (out / "whole.tmp").read_bytes()
            file.write(data[: len(data) // 2])
            file.flush()
            time.sleep(slow)
            file.write(data[len(data) // 2 :])

        torch.save = save_slowly
    torch.manual_seed(1)
    module = CRMAE(SiT(fs=100, seconds=5, width=16, depth=1, heads=2), decoder_width=32, decoder_depth=1, projection=8)
    training = Training(**{"epochs": 50, "batch_size": 8, "log_every": 7, "checkpoint_every": 1000, "device": "cpu", **options})
    if pipe is not None:
        module.after_step = lambda step, steps: pipe.send(step)
    log = fit(module, EcgStore(path), np.arange(24), training, out, progress=False)
    if pipe is not None:
        pipe.send(({name: value.numpy() for name, value in module.state_dict().items()}, log))  # tensors would travel as shared memory


def started(*args, **options):
    """A process that trains, and the end of the pipe that it tells its steps, its weights and its log."""
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=train, args=(*args, theirs), kwargs=options)
    process.start()
    theirs.close()
    return process, ours


def finished(pipe):
    while isinstance(told := pipe.recv(), int):
        pass
    return told


def test_killed_twenty_times_and_the_same_weights(tmp_path, store):
    chance, while_saving, steps = random.Random(0), 0, []
    _, whole = started(store.path, tmp_path / "whole")
    for _ in range(20):
        process, pipe = started(store.path, tmp_path / "killed", slow=0.05, checkpoint_every=2)
        steps.append(pipe.recv())
        began, count = time.perf_counter(), chance.randint(1, 5)
        for _ in range(count):
            pipe.recv()
        time.sleep(chance.uniform(0, 1.5) * (time.perf_counter() - began) / count)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        while_saving += any(path.suffix == ".part" for path in (tmp_path / "killed").glob("checkpoints/*"))
    assert 0 < while_saving < 20, "killed within checkpoints and between them"
    assert steps == sorted(steps) and len({*steps}) > 5, "each went on where the one before was killed"
    (expected, log), (weights, log_killed) = finished(whole), finished(started(store.path, tmp_path / "killed")[1])
    assert expected.keys() == weights.keys() and all(np.array_equal(weights[name], value) for name, value in expected.items())
    timing = ["records_per_s", "seconds"]
    pd.testing.assert_frame_equal(log_killed.drop(columns=timing), log.drop(columns=timing), check_exact=True)
