"""Two processes on one CPU against one: the same losses and weights for the same batch, a kill of both, and weights shared between them."""

import contextlib
import functools
import multiprocessing
import os
import signal
import socket

import numpy as np
import pandas as pd
import pytest
import torch

from crema_lib import parallel, sharding
from crema_lib.batches import Batches
from crema_lib.checkpoints import found
from crema_lib.data.simulate import simulated_store
from crema_lib.data.store import EcgStore
from crema_lib.engine import Training, fit
from crema_lib.errors import CremaError
from crema_lib.objectives import CRMAE, JEPA
from crema_lib.sit import SiT

fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload(["crema_lib.engine", "crema_lib.objectives", "crema_lib.data.simulate", "pytest"])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 40, seed=0, fs=100, seconds=5)


def _process(rank, world, port, function, pipe, args):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port), OMP_NUM_THREADS="1",
    )  # fmt: skip
    torch.set_num_threads(1)
    try:
        pipe.send(function(*args))
    except Exception as error:
        pipe.send(error)
    with contextlib.suppress(EOFError):
        pipe.recv()  # the first process holds the store by which they meet: it leaves when all are done


def together(function, *args, world=2):
    """What a function returns or raises in each of so many processes, None for one that was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, processes = [fork.Pipe() for _ in range(world)], []
    for rank, (_, pipe) in enumerate(pipes):
        processes.append(fork.Process(target=_process, args=(rank, world, port, function, pipe, args)))
        processes[-1].start()
        pipe.close()
    results = []
    for pipe, _ in pipes:
        try:
            results.append(pipe.recv())
        except (EOFError, ConnectionResetError):
            results.append(None)
    for (pipe, _), process in zip(pipes, processes, strict=True):
        pipe.close()
        process.join()
    return results


SMALL = functools.partial(CRMAE, projection=8)


def train(path, out, options=(), kill_at=None, stop_at=None, objective=SMALL, companion=None):
    """Ten steps of CR-MAE with leads lost at random: (weights, log)."""
    torch.manual_seed(1)
    encoder = SiT(fs=100, seconds=5, width=16, depth=2, heads=2, cls_token=True)
    module = objective(encoder, decoder_width=32, decoder_depth=1, lead_drop=0.5)
    store, read = EcgStore(path), Batches.__getitem__
    rank = int(os.environ.get("RANK", 0))

    def get(self, step):
        if rank == 0 and step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1 and step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, step)

    Batches.__getitem__ = get
    training = Training(**{"epochs": 2, "batch_size": 8, "log_every": 1, "checkpoint_every": 3, "device": "cpu", **dict(options)})
    try:
        log = fit(module, store, np.arange(40), training, out, companion=companion, progress=False)
    finally:
        Batches.__getitem__ = read
    return {name: value.numpy() for name, value in module.state_dict().items()}, log  # a tensor would travel as shared memory


@pytest.fixture(scope="module")
def pair(store, tmp_path_factory):
    """Weights and logs of an undisturbed run of two processes."""
    return together(train, store.path, tmp_path_factory.mktemp("pair"))


def same(one, other):
    assert all(np.array_equal(one[0][name], value) for name, value in other[0].items())
    timing = ["records_per_s", "seconds"]
    pd.testing.assert_frame_equal(one[1].drop(columns=timing), other[1].drop(columns=timing), check_exact=True)


def close(weights, expected):
    """Within 1e-4, but for what changes no loss: biases of keys, and those before a batch normalisation. Adam scales their rounding up."""
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        if not name.endswith(("attn.qkv.bias", "projector.0.bias", "projector.1.running_mean")):
            np.testing.assert_allclose(weights[name], value, atol=1e-4, rtol=0, err_msg=name)


def test_two_processes_train_like_one(store, tmp_path, pair):
    weights, log = train(store.path, tmp_path)
    same((pair[1][0], pair[0][1]), pair[0])
    for name in ("loss", "mae", "contrast"):
        np.testing.assert_allclose(pair[0][1][name], log[name], atol=1e-4, rtol=0)
        np.testing.assert_array_equal(pair[0][1][name], pair[1][1][name], err_msg="both processes log the mean of both")
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    close(pair[0][0], weights)


def test_two_processes_and_a_batch_in_parts(store, tmp_path):
    """In four parts, a contrast is between two records, wherever they are."""
    options = {"accumulate": 4, "epochs": 0.6}
    _, log = train(store.path, tmp_path / "one", options)
    results = together(train, store.path, tmp_path / "two", options)
    np.testing.assert_allclose(results[0][1]["loss"], log["loss"], atol=1e-4, rtol=0)


def test_one_of_two_is_killed_and_both_go_on(store, tmp_path, pair):
    results = together(train, store.path, tmp_path, (), 7)
    assert results[0] is None and isinstance(results[1], Exception), "the other cannot go on alone"
    assert [folder.name for folder in found(tmp_path)] == ["00000003", "00000006"]
    same(together(train, store.path, tmp_path)[0], pair[0])
    with pytest.raises(CremaError, match=r"another processes \(2 there, 1 here\)"):
        train(store.path, tmp_path)


def test_a_signal_to_one_of_two_stops_both_at_the_same_step(store, tmp_path, pair):
    results = together(train, store.path, tmp_path, {"log_every": 4, "checkpoint_every": 100}, None, 5)
    assert [str(error).split(":")[0] for error in results] == ["stopped by SIGTERM after step 8 of 10"] * 2
    assert [error.status for error in results] == [143] * 2
    weights, _ = together(train, store.path, tmp_path, {"log_every": 4})[0]
    assert all(np.array_equal(weights[name], value) for name, value in pair[0][0].items())
    results = together(train, store.path, tmp_path / "last", {"log_every": 4, "checkpoint_every": 100}, None, 9)
    assert [str(error).split(":")[0] for error in results] == ["stopped by SIGTERM after step 10 of 10"] * 2


def _apart(path, out, *args):
    return train(path, out / os.environ["RANK"], *args)


def test_processes_that_do_not_see_one_folder_are_told(store, tmp_path):
    stopped = together(_apart, store.path, tmp_path, (), None, 5)
    assert [str(error).split(":")[0] for error in stopped] == ["stopped by SIGTERM after step 6 of 10"] * 2
    results = together(_apart, store.path, tmp_path)
    assert all(
        isinstance(error, CremaError) and "do not see one run in" in str(error) and "(steps [6, 0])" in str(error) for error in results
    )


def test_what_is_refused_is_refused_by_both(store, tmp_path):
    (tmp_path / "file").write_text("")
    for out, options, sentence in (
        (tmp_path / "file" / "run", (), "cannot be written to (Not a directory)"),
        (tmp_path / "odd", {"batch_size": 7}, "a batch of 7 cannot be shared by 2 processes in 1 parts: choose a batch_size"),
    ):
        results = together(train, store.path, out, options)
        assert all(isinstance(error, CremaError) and sentence in str(error) for error in results), results


# --- weights shared between processes

SHARD = {"shard": True}


class Watched(JEPA):
    """JEPA that notes after each step which part of each of its blocks' weights this process holds."""

    held = ()

    def after_step(self, step, steps):
        super().after_step(step, steps)
        for block in (*self.encoder.blocks, *self.decoder, *self.teacher.blocks):
            sizes = [(p.to_local().numel(), p.numel()) for p in block.parameters()]
            Watched.held += (np.divide(*map(sum, zip(*sizes, strict=True))),)


def _runs(path, folder):
    """Dict of what runs return or raise, one after another in this process: torch takes seconds until its first shared step."""
    stopped, parts = {"stop_at": 5}, {"accumulate": 4, "epochs": 0.6, "precision": "bf16"}
    found = {}
    for name, out, options, more in (
        ("undisturbed", "undisturbed", SHARD, {}),
        ("first half", "shared", SHARD, stopped),
        ("recomputed", "shared", {**SHARD, "recompute": True}, {}),
        ("first half, to go on whole", "shared, whole", SHARD, stopped),
        ("shared, whole", "shared, whole", (), {}),
        ("first half, whole", "whole, shared", (), stopped),
        ("whole, shared", "whole, shared", SHARD, {}),
        ("parts", "parts", {**parts, **SHARD}, {}),
        ("whole parts", "whole parts", parts, {}),
        ("jepa", "jepa", SHARD, {"objective": functools.partial(Watched, momentum=0.5)}),
        ("companion", "companion", SHARD, {"companion": print}),
    ):
        try:
            found[name] = train(path, folder / out, options, **more)
        except CremaError as error:
            found[name] = error
    return found, Watched.held


@pytest.fixture(scope="module")
def shared(store, tmp_path_factory):
    return together(_runs, store.path, tmp_path_factory.mktemp("shared"))


def test_shared_weights_train_like_whole_ones(shared, pair):
    same(shared[0][0]["undisturbed"], shared[1][0]["undisturbed"])
    close(shared[0][0]["undisturbed"][0], pair[0][0])
    for one, other in ((shared[0][0]["undisturbed"], pair[0]), (shared[0][0]["parts"], shared[0][0]["whole parts"])):
        np.testing.assert_allclose(one[1]["loss"], other[1]["loss"], atol=1e-4, rtol=0)


def test_each_of_two_holds_half_of_every_block(shared, store, tmp_path):
    """A network with a second one that follows its weights: both are shared, and it trains like one process."""
    weights, log = train(store.path, tmp_path, objective=functools.partial(JEPA, momentum=0.5))
    for runs, held in shared:
        assert held == pytest.approx([0.5] * 10 * 5)
        close(runs["jepa"][0], weights)
        np.testing.assert_allclose(runs["jepa"][1]["loss"], log["loss"], atol=1e-4, rtol=0)


def test_shared_weights_stop_and_go_on_shared_or_whole(shared, pair):
    for runs, _ in shared:
        for name in ("first half", "first half, to go on whole", "first half, whole"):
            assert str(runs[name]).startswith("stopped by SIGTERM after step 6 of 10")
        same(runs["recomputed"], runs["undisturbed"])
        close(runs["shared, whole"][0], pair[0][0])
        close(runs["whole, shared"][0], pair[0][0])


def test_where_weights_cannot_be_shared(shared, store, tmp_path, monkeypatch):
    for runs, _ in shared:
        assert str(runs["companion"]).startswith("a companion (the moving average of fine-tuning) needs whole weights after each step")
    with pytest.raises(CremaError, match="shard shares the weights among processes, and this is the only one: use accelerate launch"):
        train(store.path, tmp_path, SHARD)
    monkeypatch.setattr(sharding, "fully_shard", None)
    with pytest.raises(CremaError, match=r"shard needs torch 2\.6 or newer: install one, or leave shard off"):
        train(store.path, tmp_path, SHARD)


def _means_of_writing():
    torch.distributed.init_process_group("gloo")
    rank = parallel.place()[0]
    done = []
    parallel.by_main(done.append, rank)
    values = parallel.of_all({"rank": rank})
    try:
        parallel.by_main(_fail)
    except CremaError as error:
        said = str(error)
    try:
        parallel.by_main(_break)
    except (CremaError, ZeroDivisionError) as error:
        return done, values, said, type(error).__name__, str(error)


def _fail():
    raise CremaError("no room")


def _break():
    1 / 0  # noqa: B018


def test_one_writes_and_all_know():
    first, second = together(_means_of_writing)
    assert first[:3] == ([0], [{"rank": 0}, {"rank": 1}], "no room") and first[3] == "ZeroDivisionError"
    assert second[:3] == ([], [{"rank": 0}, {"rank": 1}], "no room")
    assert second[3] == "CremaError" and "the main process stopped: ZeroDivisionError" in second[4], "no process waits for one that failed"
    assert parallel.of_all(3) == [3]
    with pytest.raises(CremaError, match="no room"):
        parallel.by_main(_fail)
