"""One training loop for every objective and for fine-tuning, on accelerate, that can be killed at any moment and goes on as if it had not.

A step is a function of (seed, step) and of the state that a checkpoint holds: the batch sampler and the schedule are functions of the step,
and weights, optimiser, generators, companion and log are in the checkpoint. A run that is killed and started again therefore ends with the
weights of one that was not (bit for bit on the CPU), and so does one that checkpoints more often.

Several processes (`accelerate launch`, `torchrun`, `notebook_launcher`) compute what one would, with the same batch: see `parallel`. The
main process alone writes; `out` must be a folder that all of them see. Tests hold two gloo processes on a CPU against one, with whole
weights and with `shard`, see `sharding`. More than one GPU, several machines and fp16 are left to accelerate and torch and were not tested
here. FSDP and DeepSpeed as accelerate configures them are refused.
"""

import contextlib
import functools
import json
import math
import os
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from . import checkpoints, parallel, sharding, state
from .allocation import keep_freed
from .batches import Batches
from .data.store import check_fits
from .errors import CremaError, Stopped
from .precision import attention, chosen_device, matmul_precision


@dataclass(frozen=True)
class Training:
    """How to train. Steps are optimiser updates; `lr` is the peak of a cosine after a linear warm-up (in share of all steps).

    Raises:
        CremaError: a value out of range.
    """

    epochs: float = 20
    batch_size: int = 128  # records an update, of all processes and parts together
    accumulate: int = 1  # parts that a batch is computed in, one after another, where the device cannot hold it whole
    recompute: bool = False  # compute the blocks' activations a second time in the backward pass: less memory, more time
    shard: bool = False  # each of several processes holds its share of weights, gradients and optimiser states: less memory, more traffic
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    betas: tuple = (0.9, 0.95)
    precision: str = "no"  # "no", "bf16" or "fp16"
    matmul: str = "high"  # float32 products on a GPU: "highest", "high" (TF32) or "medium" (bf16); a CPU stays exact
    device: str = "auto"  # "cpu" keeps off a GPU that is there
    compile: bool = False  # torch.compile: needs a C++ compiler, pays in runs of many minutes
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    checkpoint_seconds: float = 60.0  # without a checkpoint: the next step that is logged is saved, however few steps it has been

    def __post_init__(self):
        for wrong, why in (
            (not 0 < self.epochs < math.inf, f"epochs {self.epochs} is not positive or not finite"),
            (self.accumulate < 1, f"accumulate {self.accumulate} is below 1"),
            (not 0 <= self.lr < math.inf, f"lr {self.lr} is no learning rate"),
            (not 0 <= self.weight_decay < math.inf, f"weight_decay {self.weight_decay} is negative or not finite"),
            (not 0 <= self.warmup < 1, f"warmup {self.warmup} is outside 0 <= warmup < 1"),
            (not 0 <= self.clip < math.inf, f"clip {self.clip} is negative or not finite"),
            (not all(0 <= beta < 1 for beta in self.betas), f"betas {self.betas} are outside 0 <= beta < 1"),
            (not 0 <= self.seed < 2**32, f"seed {self.seed} is outside 0 <= seed < 2^32"),
            (min(self.log_every, self.checkpoint_every) < 1, "log_every and checkpoint_every must be at least 1"),
            (not self.checkpoint_seconds >= 0, "checkpoint_seconds must not be negative"),
            (self.precision not in ("no", "bf16", "fp16"), f"unknown precision {self.precision!r}: known are no, bf16, fp16"),
            (self.shard and self.precision == "fp16", "shard does not go with fp16: take bf16, or leave shard off"),
            (self.matmul not in ("highest", "high", "medium"), f"unknown matmul {self.matmul!r}: known are highest, high, medium"),
        ):
            if wrong:
                raise CremaError(why)
        chosen_device(self.device)  # for its checks


def cosine(step, steps, warmup):
    """Factor on the peak learning rate: linear over the first `warmup` share of the steps, then half a cosine to 0."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def parameter_groups(module, weight_decay):
    """AdamW groups: weights of two or more dimensions decay, biases, norms and single tokens do not (Loshchilov & Hutter 2019)."""
    decayed = [p for p in module.parameters() if p.requires_grad and p.squeeze().ndim > 1]
    rest = [p for p in module.parameters() if p.requires_grad and p.squeeze().ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


@contextlib.contextmanager
def recomputed(encoder, again=None):
    """Within it, the transformer blocks of an encoder keep their inputs alone for the backward pass (Chen et al. 2016, arXiv 1604.06174).

    again: makes the context of the second computation; those that change torch's functions do not reach into the backward pass. With
        torch.compile it has to be None: there the blocks keep torch's own functions.

    Raises:
        CremaError: the encoder has no `blocks`.
    """
    blocks = getattr(encoder, "blocks", ())
    if not len(blocks):
        raise CremaError(f"recompute is for transformer blocks, and this {type(encoder).__name__} has none: leave it off")
    contexts = {} if again is None else {"context_fn": lambda: (contextlib.nullcontext(), again())}
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, **contexts)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def accelerator_for(training):
    """An `Accelerator` as the options say; it forgets those of an earlier run in this Python, so that a notebook may change them."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    AcceleratorState._reset_state(reset_partial_state=world == 1)
    accelerator = Accelerator(
        mixed_precision=training.precision,
        cpu=training.device == "cpu" or not torch.cuda.is_available(),  # Apple's GPU keeps no generator here, so it could not go on
    )
    if accelerator.distributed_type.value in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        kind = accelerator.distributed_type.value
        raise CremaError(f"{kind} is set in accelerate, and no checkpoints of it are made here: take it out there and set shard instead")
    return accelerator


def prepared(accelerator, module, groups, training):
    """What is trained (the module, or a copy of it that processes share), the same as it is to be called, and its optimiser."""
    if training.shard:
        module, groups = sharding.sharded(module, groups, accelerator.device)
    optimiser = torch.optim.AdamW(groups, lr=training.lr, betas=training.betas, fused=True)
    if training.shard:  # for accelerate as if it were not trained: it would put it into DistributedDataParallel
        return module, accelerator.prepare_model(module, evaluation_mode=True), accelerator.prepare(optimiser)
    return module, *accelerator.prepare(module, optimiser)


def released(module):
    """Take off a module what accelerate left on it: another run of it, or its own use, would keep this run's precision and device."""
    if vars(module).pop("_original_forward", None) is not None:
        del module.forward
    vars(module).pop("_is_accelerate_prepared", None)


def gradients(accelerator, model, forward, batch, parts):
    """Forward and backward of a batch in equal parts: the mean loss of the parts, on the device; processes meet in the last part."""
    total = {}
    for i in range(parts):
        part = {name: values.chunk(parts)[i] for name, values in batch.items() if name != "row"}  # which is for the host
        with contextlib.nullcontext() if i == parts - 1 else accelerator.no_sync(model):
            losses = forward(part)
            accelerator.backward(losses["loss"] / parts)
        for name, value in losses.items():
            total[name] = total.get(name, 0) + value.detach() / parts
    return total


def read(accelerator, recent, *flags):
    """Losses of the last steps as numbers, averaged over processes, and of each flag whether a process has it: here the host waits."""
    raised = torch.tensor([float(bool(flag)) for flag in flags], device=accelerator.device)
    table = torch.stack([torch.cat([torch.stack([value.float() for value in losses.values()]), raised]) for losses in recent])
    rows = accelerator.reduce(table, "mean").tolist()
    return [dict(zip(recent[0], row, strict=False)) for row in rows], *(value > 0 for value in rows[-1][-len(flags) :])


def check_finite(losses, step, batches, out):
    """Raise CremaError where a loss or the norm of the gradient, up to update `step`, is not finite: on which records, and what is kept."""
    for at, one in enumerate(losses, step - len(losses) + 1):
        for name in ("loss", "gradient"):
            if not math.isfinite(one.get(name, 0.0)):
                rows = batches.rows[batches.order(at - 1)]
                names = ", ".join(str(batches.store.table["record"].iloc[row]) for row in rows[:8])
                more = f" and {len(rows) - 8} more: `Batches.order({at - 1})`" if len(rows) > 8 else ""
                wrong = f"the {name} is {one[name]} at step {at} (records {names}{more})"
                raise CremaError(f"{wrong}: lower lr or mend them; {checkpoints.kept(out)}")


def write_log(out, entries, mode):
    with checkpoints.writing(out), open(out / "log.jsonl", mode) as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)


def fit(module, store, rows, training, out, *, targets=None, groups=None, companion=None, recipe=None, progress=True):
    """Train a module whose forward takes a batch and returns a dict of scalar losses with `loss` among them.

    Args:
        module: an `Objective`, or anything of that shape; it is trained in place. Its losses are means over records and have the same names
            at each step. Where it has `after_step(step, steps)`, that is called after each update, `step` of `steps` being done.
        store, rows: an `EcgStore` and the row numbers to train on.
        training: a `Training`. With `accumulate`, gradients are averaged over the parts of a batch, and what a loss compares within a
            batch, such as the negatives of a contrast or the statistics of a normalisation, comes from one part. With `shard`, a copy of
            the module that processes share is trained (its `after_step` is called), and the module gets its weights at the end.
        out: folder of the run (log.jsonl, checkpoints/). One that holds a run goes on from its newest checkpoint.
        targets: passed on in each batch. groups: optimiser groups (default `parameter_groups`), each may carry its own `lr`.
        companion: called with (step, steps) after each update; returns a dict of numbers for the log or None. Its `state_dict()` goes
            into the checkpoints. See `finetune.EarlyChoice`.
        recipe: dict of numbers and texts that make this run the one it is, beside what is seen here: what it starts from, for one. A run
            with another recipe is not gone on from.

    Returns:
        DataFrame of the log: step, epoch, lr, records_per_s, seconds and, averaged over `log_every` steps and all processes, each loss and
        the norm of the gradient before `clip`.

    Raises:
        CremaError: a store of another rate or length than the encoder's, fewer records than a batch, a batch that cannot be shared evenly,
            a loss, gradient or weights that are not finite, a folder that cannot be written to, is in use, or holds another run, a store
            that changed, `shard` in a single process or with a companion. The last checkpoint is kept, and never holds anything that is
            not finite.
        Stopped: SIGTERM or SIGINT came (Ctrl-C; a notebook's interrupt). A checkpoint was written after the step; of several processes,
            after the next step that is logged or saved, so that all stop at the same one.
    """
    check_fits(store, module.encoder, length=True)
    if training.shard and companion is not None:
        raise CremaError("a companion (the moving average of fine-tuning) needs whole weights after each step: leave shard off")
    out = Path(out)
    accelerator = accelerator_for(training)
    if training.precision == "fp16" and accelerator.device.type == "cpu":
        warnings.warn("fp16 is for a GPU: on a CPU this run computes in single precision; bf16 may be faster here", stacklevel=2)
    if accelerator.device.type == "cpu":
        keep_freed()
    rank, world = accelerator.process_index, accelerator.num_processes
    set_seed(training.seed)  # the same in every process, see `parallel`
    leads = [list(store.meta["leads"]).index(lead) for lead in module.encoder.leads]
    leads = None if leads == list(range(12)) else leads
    batches = Batches(store, rows, training.batch_size, training.seed, targets, accelerator.device, leads, rank, world, training.accumulate)
    steps = max(1, round(training.epochs * batches.steps_per_epoch))
    groups = groups or parameter_groups(module, training.weight_decay)
    trained, model, optimiser = prepared(accelerator, module, groups, training)
    peaks = [group["lr"] for group in optimiser.param_groups]
    identity = state.identity_of(module, store, rows, targets, training, steps, world) | (recipe or {})
    after_step = getattr(trained, "after_step", None)
    with contextlib.ExitStack() as stack:
        stack.callback(released, trained)
        parallel.by_main(lambda: stack.enter_context(checkpoints.lock(out)))
        stack.enter_context(matmul_precision(training.matmul))
        attend = functools.partial(attention, training.precision, accelerator.device)
        stack.enter_context(attend())
        if training.recompute:
            stack.enter_context(recomputed(trained.encoder, None if training.compile else attend))
        asked = stack.enter_context(checkpoints.signals())
        step, entries, losses, notes = state.restore(out, store, trained, optimiser, accelerator.scaler, identity, companion, training)
        state.check_together(out, step, identity)
        parallel.by_main(write_log, out, entries, "w")  # without what came after the checkpoint
        model.train()
        forward = torch.compile(model) if training.compile else model
        bar = tqdm(total=steps, initial=step, desc="training", unit="step", disable=not (progress and accelerator.is_main_process))
        stack.enter_context(bar)
        began, since, recent = time.perf_counter() - (entries[-1]["seconds"] if entries else 0), (time.perf_counter(), step), []
        saved, stop = time.perf_counter(), False
        while step < steps:
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * cosine(step, steps, training.warmup)
            recent.append(gradients(accelerator, model, forward, batches[step], training.accumulate))
            norm = accelerator.clip_grad_norm_(model.parameters(), training.clip or math.inf)
            if accelerator.scaler is None:  # else a step with too large a gradient is left out, and the scale is lowered
                recent[-1]["gradient"] = sharding.full(norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            if after_step is not None:
                after_step(step, steps)
            if companion is not None:
                notes |= companion(step, steps) or {}
            bar.update()
            log_now, save_now = (step % every == 0 or step == steps for every in (training.log_every, training.checkpoint_every))
            if not (log_now or save_now or (asked and world == 1)):
                continue
            values, stop, due = read(accelerator, recent, asked, time.perf_counter() - saved > training.checkpoint_seconds)
            check_finite(values, step, batches, out)
            losses, recent = losses + values, []
            if log_now:
                now = time.perf_counter()
                entry = {
                    "step": step,
                    "epoch": step / batches.steps_per_epoch,
                    "lr": optimiser.param_groups[-1]["lr"],
                    **{name: math.fsum(one[name] for one in losses) / len(losses) for name in losses[0]},
                    "records_per_s": (step - since[1]) * training.batch_size / (now - since[0]),
                    "seconds": now - began,
                    **notes,
                }
                bar.set_postfix({name: f"{entry[name]:.3f}" for name in losses[0]})
                losses, notes, since = [], {}, (now, step)
                entries.append(entry)
                parallel.by_main(write_log, out, [entry], "a")
            if save_now or stop or due:
                progress_made = {"step": step, "log": entries, "losses": losses, "notes": notes, "identity": identity, "store": store.stamp}
                found = state.snapshot(accelerator, trained, optimiser, companion, progress_made)
                parallel.by_main(state.save, out, store, found)
                saved = time.perf_counter()
            if stop:
                break
    if trained is not module:
        module.load_state_dict(sharding.whole(trained.state_dict()))
    if stop or (asked and world == 1):  # of several processes all, or none
        number = asked[0] if asked else signal.SIGTERM  # that came to another process
        name = signal.Signals(number).name
        raise Stopped(f"stopped by {name} after step {step} of {steps}: the checkpoint is saved, start the run again to go on", number)
    return pd.DataFrame(entries)
