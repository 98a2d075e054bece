"""One training loop for every objective and for fine-tuning, on accelerate: CPU, one GPU or several, with checkpoints that resume exactly.

A step is determined by (seed, step): the batch sampler is a function of both, and the generators' states are in the checkpoint.
A run that is killed and started again therefore ends with the weights of one that was not (bit for bit on the CPU).
"""

import json
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm import tqdm

from .errors import CremaError


@dataclass(frozen=True)
class Training:
    """How to train. Steps are optimiser updates; `lr` is the peak of a cosine after a linear warm-up (both in share of all steps)."""

    epochs: float = 20
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    betas: tuple = (0.9, 0.95)
    precision: str = "no"  # "no", "bf16" or "fp16"
    device: str = "auto"  # "cpu" keeps off a GPU that is there
    compile: bool = False  # torch.compile: needs a C++ compiler, pays in runs of many minutes
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500


class Batches:
    """Random batches of a store as a function of the step alone.

    Each epoch is a permutation drawn from (seed, epoch); the rest that does not fill a batch is left for the next epoch's draw.
    `batches[step]` is a dict: signal float32 (batch, leads, samples) mV, lead_mask bool (batch, leads), row int64 (batch,), and
    target where `targets` (an array aligned with `rows`) is given.
    """

    def __init__(self, store, rows, batch_size, seed=0, targets=None, device="cpu", leads=None, rank=0, world=1):
        self.store, self.rows, self.batch_size, self.seed, self.device = store, np.asarray(rows), batch_size, seed, device
        self.targets = None if targets is None else torch.as_tensor(targets)
        self.leads = slice(None) if leads is None else leads
        self.share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        if len(self.rows) < batch_size:
            raise CremaError(f"{len(self.rows)} records are fewer than a batch of {batch_size}: lower batch_size or take more records")
        self.steps_per_epoch = len(self.rows) // batch_size
        self._epoch, self._order = None, None

    def __getitem__(self, step):
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
        chosen = self._order[position * self.batch_size : (position + 1) * self.batch_size][self.share]
        rows = self.rows[chosen]
        batch = {
            "signal": self.store.read(rows, self.device)[:, self.leads],
            "lead_mask": torch.from_numpy(self.store.lead_mask[rows]).to(self.device)[:, self.leads],
            "row": torch.from_numpy(rows),
        }
        if self.targets is not None:
            batch["target"] = self.targets[chosen].to(self.device)
        return batch


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


def fit(module, store, rows, training, out, *, targets=None, groups=None, companion=None, progress=True):
    """Train a module whose forward takes a batch and returns a dict of scalar losses with `loss` among them.

    Args:
        module: an `Objective`, or anything of that shape. store, rows: an `EcgStore` and the row numbers to train on.
        training: a `Training`. out: folder of the run (log.jsonl, checkpoints/). targets: passed on in each batch.
        groups: optimiser groups (default `parameter_groups`), each may carry its own `lr`.
        companion: called with (step, steps) after each update; returns a dict of numbers for the log or None. Its `state_dict()` goes
            into the checkpoints. See `finetune.EarlyChoice`.

    Returns:
        DataFrame of the log: step, epoch, lr, records_per_s, seconds and each loss averaged over `log_every` steps.
        The module is trained in place.

    Raises:
        CremaError: fewer records than a batch, a loss that is not finite, or a checkpoint in `out` of another run.
    """
    out = Path(out)
    accelerator = Accelerator(mixed_precision=training.precision, cpu=training.device == "cpu")
    set_seed(training.seed + accelerator.process_index)
    leads = [list(store.meta["leads"]).index(lead) for lead in module.encoder.leads]
    batches = Batches(
        store, rows, training.batch_size, training.seed, targets, accelerator.device,
        None if leads == list(range(12)) else leads, accelerator.process_index, accelerator.num_processes,
    )  # fmt: skip
    steps = max(1, round(training.epochs * batches.steps_per_epoch))
    groups = groups or parameter_groups(module, training.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=training.lr, betas=training.betas, fused=True)
    peaks = [group["lr"] for group in optimiser.param_groups]
    model, optimiser = accelerator.prepare(module, optimiser)
    recipe = {key: value for key, value in asdict(training).items() if key not in ("device", "compile", "log_every", "checkpoint_every")}
    identity = {"training": recipe, "steps": steps, "data": store.meta["sha256"], "options": getattr(module, "options", {})}
    identity = json.loads(json.dumps(identity))
    step, entries = resume(out, module, optimiser, identity, companion)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        (out / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))  # without what came after the checkpoint
    model.train()
    forward = torch.compile(model) if training.compile else model
    noted = {}
    bar = tqdm(total=steps, initial=step, desc="training", unit="step", disable=not (progress and accelerator.is_main_process))
    sums, began, since = {}, time.perf_counter() - (entries[-1]["seconds"] if entries else 0), time.perf_counter()
    while step < steps:
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * cosine(step, steps, training.warmup)
        losses = forward(batches[step])
        accelerator.backward(losses["loss"])
        if training.clip:
            accelerator.clip_grad_norm_(model.parameters(), training.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        for name, value in losses.items():  # summed on the device: reading a value here would stall a GPU at every step
            sums[name] = sums.get(name, 0) + value.detach()
        step += 1
        if companion is not None:
            noted |= companion(step, steps) or {}
        bar.update()
        if step % training.log_every == 0 or step == steps:
            count = (step - 1) % training.log_every + 1
            now = time.perf_counter()
            entry = {
                "step": step,
                "epoch": step / batches.steps_per_epoch,
                "lr": optimiser.param_groups[-1]["lr"],
                **{name: float(value) / count for name, value in sums.items()},
                "records_per_s": count * training.batch_size / (now - since),
                "seconds": now - began,
                **noted,
            }
            if not math.isfinite(entry["loss"]):
                raise CremaError(
                    f"the loss is {entry['loss']} within steps {step - count + 1} to {step}: lower lr; the last checkpoint is kept"
                )
            sums, noted, since = {}, {}, now
            entries.append(entry)
            if accelerator.is_main_process:
                with open(out / "log.jsonl", "a") as file:
                    file.write(json.dumps(entry) + "\n")
            bar.set_postfix({name: f"{entry[name]:.3f}" for name in losses})
        if accelerator.is_main_process and (step % training.checkpoint_every == 0 or step == steps):
            save(out, accelerator.unwrap_model(model), optimiser, step, entries, identity, companion)
    bar.close()
    return pd.DataFrame(entries)


def save(out, module, optimiser, step, entries, identity, companion=None):
    """Write a checkpoint whole or not at all (write, fsync, rename); keep the last two."""
    folder = out / "checkpoints" / f"{step:08d}"
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    state = {
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "generators": [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if torch.cuda.is_available() else []),
        "step": step,
        "log": entries,
        "identity": identity,
        "companion": companion.state_dict() if companion is not None else None,
    }
    with open(part / "state.pt", "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    for old in sorted(p for p in folder.parent.iterdir() if p.suffix != ".part")[:-2]:
        shutil.rmtree(old)


def resume(out, module, optimiser, identity, companion=None):
    """Load the newest checkpoint of `out`, if there is one: (step, log entries)."""
    found = sorted(p for p in (out / "checkpoints").glob("*") if p.suffix != ".part")
    if not found:
        return 0, []
    try:
        state = torch.load(found[-1] / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:
        raise CremaError(f"the checkpoint {found[-1]} cannot be read ({error}): delete it to go on from the one before") from None
    if state["identity"] != identity:
        wrong = [key for key in identity if state["identity"].get(key) != identity[key]]
        raise CremaError(f"{out} holds a run with another {' and '.join(wrong)}: choose another folder, or delete it to start anew")
    module.load_state_dict(state["module"])
    optimiser.load_state_dict(state["optimiser"])
    if companion is not None:
        companion.load_state_dict(state["companion"])
    torch.set_rng_state(state["generators"][0])
    if torch.cuda.is_available() and len(state["generators"]) > 1:
        torch.cuda.set_rng_state(state["generators"][1])
    return state["step"], state["log"]
