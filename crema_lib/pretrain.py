"""Pretraining as chapter 03 and the command line run it: parameters in, a saved model and its log out."""

import dataclasses
from types import SimpleNamespace

import torch

from . import checkpoints, parallel
from .data.store import TRAIN
from .engine import Training, fit
from .errors import CremaError
from .leakage import remember
from .objectives import OBJECTIVES, build, options
from .sit import SiT

# Parameters of an objective, and all that pretraining reads.
OPTIONS = (
    "mask_ratio", "block", "decoder_width", "decoder_depth", "contrast_weight", "contrast_schedule", "regulariser", "temperature",
    "contrasted", "projected", "latent_weight", "measured_weight", "lead_drop", "noise", "gain", "momentum", "patch_norm",
)  # fmt: skip
PARAMETERS = (
    "data", "records", "fs", "seconds", "seed", "model", "width", "depth", "patch", "stem", "objective", *OPTIONS, "epochs", "batch_size",
    "lr", "weight_decay", "warmup", "precision", "accumulate", "recompute", "shard", "compile", "device",
)  # fmt: skip
OWN = ("block", "decoder_width", "decoder_depth")  # those that are the objective's own where a profile says 0


def lead_scale(store, rows):
    """Standard deviation of each lead in mV over some records: one fixed number a lead, because amplitude is diagnostic.

    Returns:
        tuple of 12 floats; of 8192 rows or more on every second, third, ... of them, evenly spaced: 4096 to 8191; in chunks.
    """
    rows = rows[:: max(1, len(rows) // 4096)]
    squares = sum(store.read(rows[i : i + 512]).double().square().mean(2).sum(0) for i in range(0, len(rows), 512))
    present = torch.from_numpy(store.lead_mask[rows].sum(0)).clamp(min=1)
    return tuple(round(float(s), 4) for s in (squares / present).sqrt().clamp(min=1e-3))


def new_encoder(p, store, rows):
    """A SiT as the parameters say, with the tokens that `p.objective` needs, scaled by the leads of some records, randomly initialised
    from `p.seed`."""
    shape = {name: getattr(p, name) for name in ("width", "depth") if getattr(p, name, 0)}
    torch.manual_seed(p.seed)
    tokens = OBJECTIVES[p.objective].tokens[0] if hasattr(p, "objective") else "time"
    return SiT.of_size(
        p.model, tokens=tokens, fs=store.fs, seconds=store.seconds, patch=p.patch, stem=p.stem,
        scale=lead_scale(store, rows), band=store.meta["band"], **shape,
    )  # fmt: skip


def unused(objective, latent_weight=0.0):
    """Those parameters of `OPTIONS` that an objective has no use for, in order: whatever they are, its runs are the same. What CR-MAE
    makes of momentum hangs on `latent_weight`: without latents it has no teacher."""
    known = set(options(objective)) - ({"momentum"} if objective == "cr_mae" and not latent_weight else set())
    return [name for name in OPTIONS if name not in known]


def variant(p, objective, seed, **changed):
    """Parameters of one run of a comparison: those of `p` for `p.objective_epochs` passes, with changes, in a folder of its own.

    Raises:
        CremaError: a change that would change nothing: of an option that the objective does not have, or of data that are open already.
    """
    idle = unused(objective, changed.get("latent_weight", getattr(p, "latent_weight", 0.0)))
    if idle := [name for name in changed if name in (*idle, "data", "records", "fs", "seconds")]:
        raise CremaError(f"a run of {objective} is the same whatever {idle[0]} is: leave it out")
    folder = "-".join([objective, f"s{seed}", *(f"{name}-{value}" for name, value in changed.items())])
    own = {"objective": objective, "seed": seed, "epochs": p.objective_epochs, "run_dir": p.run_dir / "objectives" / folder}
    return SimpleNamespace(**{**vars(p), **own, **changed})


def new_objective(p, store, rows):
    """The objective that the parameters name around a `new_encoder`, before training.

    It gets those of the parameters `OPTIONS` that it has. A profile sets all of them for every objective, so the others are left aside
    without a word here (see `unused`); the command line refuses them where a user sets them for an objective without them.
    """
    given = {name: getattr(p, name) for name in OPTIONS if name in options(p.objective) and hasattr(p, name)}
    chosen = {name: value for name, value in given.items() if value or name not in OWN}
    return build(p.objective, new_encoder(p, store, rows), **chosen)


def seeded(p):
    """Parameters of each of the `p.pretrainings` runs of one setting: dict seed -> namespace, the first `p` itself, the others with a
    folder of their own in `p.run_dir`."""
    further = range(p.seed + 1, p.seed + p.pretrainings)
    return {p.seed: p} | {seed: SimpleNamespace(**{**vars(p), "seed": seed, "run_dir": p.run_dir / f"seed-{seed}"}) for seed in further}


def pretrain(p, store, *, progress=True):
    """Pretrain on folds 1 to 8 of a store.

    Args:
        p: namespace of the parameters (`crema_lib.params`) with `run_dir`. An interrupted run goes on where its last checkpoint is.

    Returns:
        (objective, log): the trained `Objective`, also saved in `run_dir/pretrain/model`, and the log of `engine.fit`.
    """
    rows = store.rows(TRAIN)
    model = new_objective(p, store, rows)
    fields = {f.name for f in dataclasses.fields(Training)}
    training = Training(**{name: value for name, value in vars(p).items() if name in fields})
    targets = model.targets(store, rows, progress=progress)
    log = fit(model, store, rows, training, p.run_dir / "pretrain", targets=targets, progress=progress)
    model.cpu().eval()
    parallel.by_main(checkpoints.saved, model, p.run_dir / "pretrain", lambda folder: remember(folder, store, rows))
    return model, log
