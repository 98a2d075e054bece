"""What a step costs: floating-point operations, the machine's own peak, seconds measured side by side, and where the time goes."""

import functools
import math
import os
import re
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from .engine import Training, fit
from .errors import CremaError
from .precision import HALF, matmul_precision

# A kernel belongs to the first kind with a word in its name. Inductor's fused kernels carry the names of what they fuse.
KINDS = {
    "matmul": ("mm", "gemm", "linear", "convolution", "conv_", "cutlass", "nvjet", "xmma"),
    "attention": ("attention", "flash", "fmha", "softmax"),
    "norm": ("layer_norm", "batch_norm"),
    "optimiser": ("adam", "foreach", "multi_tensor", "vector_norm"),
    "activation": ("gelu", "relu"),
    "random numbers": ("normal_", "uniform_", "aten::rand", "aten::sort", "argsort"),
}


def flops(run):
    """Floating-point operations of the matrix products, convolutions and attention in `run()`, as torch's FlopCounterMode counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def synchronise(device):
    """Wait until a GPU has done what it was given; nothing to wait for elsewhere."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def timed(run, device="cpu"):
    """Seconds that `run()` takes, until the device is done."""
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def matmul_peak(device="cpu", dtype=torch.float32, sizes=(1024, 2048, 4096, 8192), repeats=5, budget=20.0):
    """Fastest rate of a product of two square matrices that this machine shows, operations/s: best of several sizes and repeats, float32
    on a GPU as training has it (`Training.matmul`).

    Args:
        sizes: of the matrices, rising; those for which a single product would take over a second are left out. budget: s in all.
    """
    best, began = 0.0, time.perf_counter()
    with matmul_precision(Training.matmul):
        for n in sizes:
            if (best and 2 * n**3 / best > 1) or time.perf_counter() - began > budget:
                break
            a, b = (torch.randn(n, n, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
            product = functools.partial(torch.matmul, a, b, out=torch.empty_like(a))
            product()
            best = max(best, 2 * n**3 / min(timed(product, device) for _ in range(repeats)))
    return best


def fast_precision(device="cpu"):
    """The first of "bf16" and, on a GPU, "fp16" in which matrix products take less than two thirds of the time of single precision, else
    "no": a matter of the chip."""

    def rate(dtype):
        return matmul_peak(device, dtype, sizes=(1024,), repeats=20)

    names, single = ("bf16", "fp16") if torch.device(device).type == "cuda" else ("bf16",), rate(torch.float32)
    return next((name for name in names if rate(HALF[name]) > 1.5 * single), "no")


def step_seconds(objective, store, rows, training, folder, steps, *, skip=2, companion=None, **options):
    """Seconds of each step of a real training run: reading, views, both passes, update, and the log, of which each step writes a line
    where a run writes one in twenty. Checkpoints, one in hundreds of steps, are left out.

    Args:
        objective, store, rows, training, folder, companion, options: as `engine.fit` takes them; the folder must hold no run.
        steps: to measure. skip: first steps that are not counted (allocation, compilation).

    Returns:
        list of `steps` durations, s.
    """
    ends = []

    class Clock:
        def __call__(self, step, total):
            if companion is not None:
                companion(step, total)
            synchronise(next(objective.parameters()).device)
            ends.append(time.perf_counter())

        def state_dict(self):
            return {}

    per_epoch = len(rows) // training.batch_size
    if not per_epoch:
        raise CremaError(f"{len(rows)} records are fewer than a batch of {training.batch_size}")
    training = type(training)(**{**vars(training), "epochs": (steps + skip) / per_epoch, "log_every": 1, "checkpoint_seconds": math.inf})
    fit(objective, store, rows, training, folder, companion=Clock(), progress=False, **options)
    return np.diff(ends)[-steps:].tolist()


def in_turns(loops, rounds):
    """Measure several loops in turns, so that what else the machine does falls on all of them.

    Args:
        loops: dict name -> function without arguments that runs some steps and returns their durations, s.
        rounds: how often each has its turn.

    Returns:
        dict name -> list over rounds of the median duration of a step, s.
    """
    seconds = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            seconds[name].append(statistics.median(loop()))
    return seconds


def speed_ratio(seconds, one, other):
    """How many times faster `one` is than `other`: (median, lowest, highest) over the rounds of `in_turns`, each round by itself."""
    ratios = [b / a for a, b in zip(seconds[one], seconds[other], strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def shares(run, device="cpu"):
    """Where the time of `run()` goes: dict kind of kernel -> share of the kernels' time, with "rest", from torch.profiler.

    On a GPU the time is that of its kernels, on the CPU that of the operators themselves (without what they call).
    """
    cuda = torch.device(device).type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would report on stderr, in the middle of a page
    with matmul_precision(Training.matmul), profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        run()
        synchronise(device)
    spent = dict.fromkeys([*KINDS, "rest"], 0.0)
    for event in profiler.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "rest")
        spent[kind] += event.self_device_time_total if cuda else event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: value / total for kind, value in spent.items()}


def peak_memory(device="cpu"):
    """Largest memory so far, bytes: of the device's allocator on a GPU, of the whole process on the CPU.

    Linux's own high-water mark comes first: `getrusage` hands a new process the mark of the one that started it.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        marks = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        marks = None
    if marks:
        return 1024 * int(marks[1])
    import resource  # there is none on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
