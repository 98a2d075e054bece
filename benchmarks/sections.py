"""`python -m benchmarks`: speed of the pretraining step and of every part, on this machine, as a run record.

Sections: peak (what the device can do), compare (this loop, the reference and the bound, in turns), halves (what bf16 brings), compiled
(whether torch.compile pays), steps (sizes and sampling rates), recompute (what it saves and takes), networks (embedding and fine-tuning
for sizes and rates), parts (everything else), whole (a set as large as PTB-XL: its files embedded, and its map), profile (where a step's
time goes). Offline: recordings are simulated.
"""

import argparse
import functools
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks import bound, reference
from crema_lib import cost, finetune, maps, runs
from crema_lib.batches import Batches
from crema_lib.data import manifest
from crema_lib.data.prepare import prepare
from crema_lib.data.simulate import simulate, simulated_store
from crema_lib.data.store import TEST, TRAIN, VALID
from crema_lib.embeddings import BATCH as AT_ONCE
from crema_lib.embeddings import embed_files, embed_store
from crema_lib.engine import Training
from crema_lib.objectives import build
from crema_lib.paths import home
from crema_lib.precision import HALF, autocast, chosen_device, matmul_precision
from crema_lib.sit import SiT

DTYPES = {"no": torch.float32, **HALF}
PATCH = {100: 25, 250: 50, 500: 125}  # samples a token at each rate: a quarter of a second, or what divides the recording
BATCH = {"cpu": {"xs": 64, "ti": 64, "s": 32, "b": 16}, "cuda": {"xs": 2048, "ti": 2048, "s": 1024, "b": 512}}


SIDE = "pretraining side by side"


def median_of(values):
    """(median, lowest, highest)."""
    return statistics.median(values), min(values), max(values)


class Bench:
    """The device, the simulated recordings, and the rows measured so far."""

    def __init__(self, options, folder):
        self.options, self.folder, self.rows, self.peak = options, Path(folder), [], None
        self.device = chosen_device(options.device)
        self.precision = options.precision = options.precision or cost.fast_precision(self.device)  # that of the processes it starts, too
        self.records = options.records or (8192 if self.device == "cuda" else 512)

    def batch(self, size):
        """Records a step."""
        return min(BATCH[self.device][size], self.records)

    def add(self, name, task, model, values, n=0):
        """Keep one figure: a number, or (value, low, high) where it was measured several times."""
        value, low, high = values if isinstance(values, tuple) else (values, float("nan"), float("nan"))
        self.rows.append({"name": name, "task": task, "model": model, "value": value, "low": low, "high": high, "n": n, "seed": 0})
        print(f"{task:42} {model:12} {name:34} {value:12.4g}", flush=True)

    @functools.cache  # noqa: B019 - there is one of it
    def store(self, fs=100):
        return simulated_store(self.folder / f"store-{fs}", self.records, fs=fs)

    def objective(self, size, fs=100):
        """CR-MAE on a SiT of a size."""
        torch.manual_seed(0)
        return build("cr_mae", SiT.of_size(size, fs=fs, patch=PATCH[fs])).to(self.device)

    def ours(self, size, fs=100, **changed):
        """Durations of steps of `engine.fit`, s. changed: fields of `Training`."""
        o, store = self.options, self.store(fs)
        given = {"batch_size": self.batch(size), "precision": self.precision, "device": self.device, "compile": o.compile}
        training = Training(**{**given, **changed})
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            return cost.step_seconds(self.objective(size, fs), store, range(len(store)), training, out, o.steps)


def peak(bench):
    """Fastest matrix product, in the precision that training uses."""
    bench.peak = cost.matmul_peak(bench.device, DTYPES[bench.precision])
    bench.add("TFLOP/s", "matrix product, best", "", bench.peak / 1e12)


def compare(bench):
    """This loop beside the reference and the bound, in turns."""
    o, store = bench.options, bench.store()
    size, batch = o.size, bench.batch(o.size)
    files = bench.folder / "wfdb"
    reference.write_files(files, batch if bench.device == "cpu" else 4 * batch)
    signals, lead_mask = store.read(range(len(store)), bench.device), torch.from_numpy(store.lead_mask).to(bench.device)
    hand = bound.loop(bench.objective(size), signals, lead_mask, batch_size=batch, precision=bench.precision, compile=o.compile)
    plain = reference.loop(files, size, batch_size=batch, device=bench.device, workers=0 if bench.device == "cpu" else 8)
    hand(2), plain(1)
    loops = {
        "this book": functools.partial(bench.ours, size),
        "by hand": functools.partial(hand, o.steps),
        "reference": functools.partial(plain, max(1, o.steps // 4)),
    }
    seconds = cost.in_turns(loops, o.rounds)
    for name, found in seconds.items():
        bench.add("ECG/s", SIDE, name, median_of([batch / s for s in found]), o.rounds)
    for other in ("reference", "by hand"):
        bench.add(f"times the speed of: {other}", SIDE, "this book", cost.speed_ratio(seconds, "this book", other), o.rounds)


def halves(bench):
    """This loop in half precision beside the same one in single precision, in turns, for each size."""
    half = bench.precision if bench.precision != "no" else "bf16"
    for size in bench.options.sizes:
        loops = {precision: functools.partial(bench.ours, size, precision=precision) for precision in ("no", half)}
        seconds = cost.in_turns(loops, bench.options.rounds)
        bench.add("times the speed of: single precision", half, size, cost.speed_ratio(seconds, half, "no"), bench.options.rounds)


def compiled(bench):
    """This loop as it is beside the same one through torch.compile, in turns; compilation itself is not counted."""
    size, rounds = bench.options.size, bench.options.rounds
    loops = {"this book": functools.partial(bench.ours, size), "compiled": functools.partial(bench.ours, size, compile=True)}
    seconds = cost.in_turns(loops, rounds)
    bench.add("times the speed of: this book", "torch.compile", "compiled", cost.speed_ratio(seconds, "compiled", "this book"), rounds)


def one_step(options, folder, size, fs, recompute=False):
    """Speed, operations and memory of one size at one rate; for a process of its own, so that the memory is its own."""
    bench = Bench(options, folder)
    with matmul_precision(Training.matmul):
        batch, seconds = bench.batch(size), bench.ours(size, fs, recompute=recompute)
    objective, store = bench.objective(size, fs), bench.store(fs)
    few = min(batch, 8)
    inputs = {"signal": store.read(range(few), bench.device), "lead_mask": torch.from_numpy(store.lead_mask[:few]).to(bench.device)}
    operations = cost.flops(lambda: objective(inputs)["loss"].backward()) / few
    rates = median_of([batch / s for s in seconds])
    return {
        "ECG/s": rates,
        "GFLOP an ECG": operations / 1e9,
        "TFLOP/s": operations * rates[0] / 1e12,
        "peak memory, GB": cost.peak_memory(bench.device) / 1e9,
    }


def alone(function, *args):
    """What a function returns in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def recompute(bench):
    """The pretraining step of the largest size with activations kept, and computed a second time."""
    size, fs = bench.options.sizes[-1], bench.options.rates[0]
    bench.store(fs)
    for task, again in (("activations kept", False), ("recompute", True)):
        found = alone(one_step, bench.options, bench.folder, size, fs, again)
        for name in ("ECG/s", "peak memory, GB"):
            bench.add(name, f"{task}, {fs} Hz", size, found[name], bench.options.steps)


def steps(bench):
    """The pretraining step for each size and sampling rate."""
    options = bench.options
    for fs in options.rates:
        bench.store(fs)  # made once, here
        for size in options.sizes:
            found = alone(one_step, options, bench.folder, size, fs)
            for name, value in found.items():
                bench.add(name, f"pretraining step, {fs} Hz", size, value, options.steps)
            if bench.peak:
                share = 1e12 * found["TFLOP/s"] / bench.peak
                bench.add("share of the peak", f"pretraining step, {fs} Hz", size, share, options.steps)


def networks(bench):
    """Embedding, in single precision, and a step of fine-tuning on 71 labels, for each size and sampling rate."""
    o = bench.options
    for fs, size in itertools.product(o.rates, o.sizes):
        store, batch = bench.store(fs), bench.batch(size)
        some = range(min(len(store), 4 * AT_ONCE[bench.device] * torch.get_num_threads()))  # several for each thread, else cores would wait
        encoder = SiT.of_size(size, fs=fs, patch=PATCH[fs]).to(bench.device)
        embed = functools.partial(embed_store, encoder, store, some, device=bench.device)
        with matmul_precision("highest"):  # torch's own setting, as a user has it
            rates = [len(some) / cost.timed(embed, bench.device) for _ in range(o.rounds)]
        bench.add("ECG/s", f"embedding, {fs} Hz", size, median_of(rates), o.rounds)
        model = finetune.Classifier(encoder, columns={"all": [str(i) for i in range(71)]}).to(bench.device)
        training = Training(batch_size=batch, precision=bench.precision, device=bench.device, compile=o.compile)
        targets = torch.randint(0, 2, (len(store), 71)).float().numpy()
        with tempfile.TemporaryDirectory(dir=bench.folder) as out:
            average = finetune.EarlyChoice(model, None, times=0)  # the moving average of each step; never scored
            of_layers = finetune.groups(model, training, 0.75)
            seconds = cost.step_seconds(
                model, store, range(len(store)), training, out, o.steps, companion=average, targets=targets, groups=of_layers
            )
        bench.add("ECG/s", f"fine-tuning, {fs} Hz", size, median_of([batch / s for s in seconds]), o.steps)


def parts(bench):
    """Everything else that takes time, for each sampling rate: simulator, prepare, batch reading; records/s."""
    n, files, many = len(bench.store()), bench.folder / "wfdb-parts", bench.options.records or 2048
    few, drawn = min(n, 256), torch.randint(0, n, (64, 64)).numpy()
    reference.write_files(files, many)
    for fs in bench.options.rates:
        store, out = bench.store(fs), bench.folder / f"prepared-{fs}"
        measured = {
            "simulator": (few, lambda fs=fs: simulate(few, fs=fs)),
            "prepare, from 500 Hz WFDB": (
                many,
                functools.partial(prepare, "files", source=files, out=out, fs=fs, workers=os.cpu_count(), progress=False),
            ),
            "random batches from the store": (drawn.size, lambda store=store: [store.read(part) for part in drawn]),
        }
        for name, (records, run) in measured.items():
            seconds = min(cost.timed(run, bench.device) for _ in range(bench.options.rounds))
            bench.add("records/s", f"{name}, {fs} Hz", "", records / seconds, records)


def whole(bench):
    """From files to features as `embed` does it, and from as many recordings as PTB-XL has to a map; published encoder, records/s."""
    size, records = "xs", bench.options.records or int(manifest.load().loc["ptb-xl", "records"])
    encoder, files = SiT.from_pretrained("sit-xs-ptbxl-100hz").to(bench.device), bench.folder / "wfdb-whole"
    few = min(records, 2048)
    reference.write_files(files, few, fs=100)
    seconds = cost.timed(lambda: embed_files(encoder, [files], precision=bench.precision, device=bench.device), bench.device)
    bench.add("records/s", "embed, 100 Hz WFDB files", size, few / seconds, few)
    store = simulated_store(bench.folder / "store-whole", records)
    training, rest = store.rows(TRAIN), store.rows([*VALID, *TEST])

    def draw():
        features = embed_store(encoder, store, readout="layers", device=bench.device)
        maps.fit_map(features[training]).transform(features[rest])

    bench.add("records/s", "embedding and UMAP", size, records / cost.timed(draw, bench.device), records)


def profile(bench):
    """Kinds of kernels in one step of each size, also in single precision, and how long a step waits for its input."""
    sizes, precisions = dict.fromkeys([*bench.options.sizes, bench.options.size]), dict.fromkeys([bench.precision, "no"])
    for precision, size in itertools.product(precisions, sizes):
        read, step = one_profiled(bench, size, precision)
        name = size if precision == bench.precision else f"{size}, float32"
        for kind, share in cost.shares(step, bench.device).items():
            bench.add("share of the kernels' time", f"a step: {kind}", name, share)
        if name == bench.options.size:
            waits = [cost.timed(read, bench.device) / cost.timed(step, bench.device) for _ in range(bench.options.rounds)]
            bench.add("reading a batch over a step", "input", size, median_of(waits), len(waits))


def one_profiled(bench, size, precision):
    """(read, step): functions that read a batch, and that read one and take a training step with it; the step has run twice."""
    store, objective = bench.store(), bench.objective(size)
    batches, at = Batches(store, np.arange(len(store)), bench.batch(size), 0, None, torch.device(bench.device)), itertools.count()
    optimiser = torch.optim.AdamW(objective.parameters(), fused=True)
    forward = torch.compile(objective) if bench.options.compile else objective

    def read():
        return batches[next(at)]

    def step():
        with autocast(precision, bench.device):
            loss = forward(read())["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    step(), step()
    return read, step


SECTIONS = {section.__name__: section for section in (peak, compare, halves, compiled, steps, recompute, networks, parts, whole, profile)}


def main(argv=None):
    """Measure and write the record; prints each figure as it comes."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", default=[], help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default: %(default)s)")
    parser.add_argument("--precision", choices=tuple(DTYPES), help="default: bf16 where its matrix products are faster")
    parser.add_argument("--compile", action="store_true", help="torch.compile this loop and the bound")
    parser.add_argument("--size", default="ti", help="of the encoder, in all sections but steps and whole (default: %(default)s)")
    parser.add_argument("--sizes", nargs="+", default=["xs", "ti", "s", "b"], help="in the sections steps and profile")
    parser.add_argument("--rates", nargs="+", type=int, choices=list(PATCH), default=list(PATCH), help="sampling rates, Hz")
    parser.add_argument("--records", type=int, default=0, help="recordings to simulate (default: enough)")
    parser.add_argument("--steps", type=int, default=5, help="steps measured at a time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each loop, repeats of each part (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="run record (default: results/benchmarks/DEVICE.json)")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.sections if name not in SECTIONS]:
        parser.error(f"unknown section {unknown[0]}: known are {', '.join(SECTIONS)}")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, folder)
        store = bench.store()
        name = runs.device_name(bench.device).lower().replace(" ", "-") if bench.device == "cuda" else "cpu"
        for section in options.sections or SECTIONS:
            with matmul_precision(Training.matmul):  # as in training: the bound and the reference have it too
                SECTIONS[section](bench)
            record = runs.write(  # after each section, so that one that fails leaves what was measured before it
                options.out or home() / "results" / "benchmarks" / f"{name}.json",
                chapter="benchmarks", parameters=vars(options), metrics=bench.rows,
                wall_seconds=time.perf_counter() - began, device=bench.device,
                data={"name": "simulated", "records": len(store), "sha256": store.meta["sha256"]},
                extra={"threads": torch.get_num_threads(), "precision": bench.precision},
            )  # fmt: skip
    return record
