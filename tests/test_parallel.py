"""Two processes on one CPU against one: the same losses and weights for the same batch, and a kill of both."""

import multiprocessing
import os
import signal
import socket

import numpy as np
import pandas as pd
import pytest
import torch

from crema_lib import parallel
from crema_lib.batches import Batches
from crema_lib.checkpoints import found
from crema_lib.data.simulate import simulated_store
from crema_lib.data.store import EcgStore
from crema_lib.engine import Training, fit
from crema_lib.errors import CremaError
from crema_lib.objectives import CRMAE
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
    pipe.close()


def together(function, *args, world=2):
    """What a function returns or raises in each of so many processes, None for one that was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, processes = [fork.Pipe(duplex=False) for _ in range(world)], []
    for rank, (_, pipe) in enumerate(pipes):
        processes.append(fork.Process(target=_process, args=(rank, world, port, function, pipe, args)))
        processes[-1].start()
        pipe.close()
    results = []
    for (pipe, _), process in zip(pipes, processes, strict=True):
        try:
            results.append(pipe.recv())
        except EOFError:
            results.append(None)
        process.join()
    return results


def train(path, out, options=(), kill_at=None, stop_at=None):
    """Ten steps of CR-MAE with leads lost at random: (weights, log)."""
    torch.manual_seed(1)
    module = CRMAE(
        SiT(fs=100, seconds=5, width=16, depth=2, heads=2, cls_token=True), decoder_width=32, decoder_depth=1, projection=8, lead_drop=0.5
    )
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
        log = fit(module, store, np.arange(40), training, out, progress=False)
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


def test_two_processes_train_like_one(store, tmp_path, pair):
    weights, log = train(store.path, tmp_path)
    same((pair[1][0], pair[0][1]), pair[0])
    for name in ("loss", "mae", "contrast"):
        np.testing.assert_allclose(pair[0][1][name], log[name], atol=1e-4, rtol=0)
        np.testing.assert_array_equal(pair[0][1][name], pair[1][1][name], err_msg="both processes log the mean of both")
    assert log["loss"].iloc[-1] < log["loss"].iloc[0]
    for name, value in weights.items():
        # Biases of keys and those before a batch normalisation change no loss: their gradient is rounding, which Adam scales up.
        if not name.endswith(("attn.qkv.bias", "projector.0.bias", "projector.1.running_mean")):
            np.testing.assert_allclose(pair[0][0][name], value, atol=1e-4, rtol=0, err_msg=name)


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


def test_what_is_refused_is_refused_by_both(store, tmp_path):
    (tmp_path / "file").write_text("")
    for out, options, sentence in (
        (tmp_path / "file" / "run", (), "cannot be written to (Not a directory)"),
        (tmp_path / "odd", {"batch_size": 7}, "a batch of 7 cannot be shared by 2 processes in 1 parts: choose a batch_size"),
    ):
        results = together(train, store.path, out, options)
        assert all(isinstance(error, CremaError) and sentence in str(error) for error in results)


def _means_of_writing():
    torch.distributed.init_process_group("gloo")
    rank = parallel.place()[0]
    done = []
    parallel.by_main(done.append, rank)
    values = parallel.of_all({"rank": rank})
    try:
        parallel.by_main(_fail)
    except CremaError as error:
        return done, values, str(error)


def _fail():
    raise CremaError("no room")


def test_one_writes_and_all_know():
    first, second = together(_means_of_writing)
    assert first == ([0], [{"rank": 0}, {"rank": 1}], "no room")
    assert second == ([], [{"rank": 0}, {"rank": 1}], "no room")
    assert parallel.of_all(3) == [3]
    with pytest.raises(CremaError, match="no room"):
        parallel.by_main(_fail)
