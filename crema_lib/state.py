"""The state of a training run: what makes it the one it is, what its checkpoints hold, and how it goes on from one."""

import inspect
import json
import zlib
from dataclasses import asdict

import numpy as np
import torch

from . import checkpoints, parallel, sharding
from .errors import CremaError

# Fields of a `Training` that may change from one sitting to the next.
EXECUTION = ("device", "compile", "recompute", "shard", "matmul", "log_every", "checkpoint_every", "checkpoint_seconds")


def identity_of(module, store, rows, targets, training, steps, world):
    """What makes a run the one it is: a checkpoint with another identity is not gone on from. JSON-like dict."""
    crc = lambda values, kind: zlib.crc32(np.ascontiguousarray(values, dtype=kind).tobytes())  # noqa: E731
    recipe = {key: value for key, value in asdict(training).items() if key not in EXECUTION}
    identity = {
        "training": recipe,
        "steps": steps,
        "data": store.meta["sha256"],
        "options": getattr(module, "options", {}),
        "objective": type(module).__name__,
        "encoder": getattr(module.encoder, "_hub_mixin_config", {}),
        "rows": crc(rows, np.int64),
        "leads": crc(store.lead_mask[rows], bool),
        "targets": crc([] if targets is None else targets, np.float32),
        "processes": world,
    }
    return json.loads(json.dumps(identity, default=str))


def generators():
    """States of this process's generators: torch is the only one that a step draws from."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])


def snapshot(accelerator, module, optimiser, companion, progress):
    """The state of a run for a checkpoint, see `restore`; every process has to call it."""
    return {
        "module": sharding.whole(module.state_dict()),
        "optimiser": sharding.whole(optimiser.state_dict()),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
        "companion": companion.state_dict() if companion is not None else None,
        "generators": parallel.of_all(generators()),
        **json.loads(json.dumps(progress, default=float)),  # NumPy's numbers, say of a companion, could not be read back
    }


def restore(out, store, module, optimiser, scaler, identity, companion, training):
    """Set everything as the newest checkpoint of `out` has it: (step, log entries, losses since the last entry, notes of the companion).

    Raises:
        CremaError: it is of another run or network, or the store has changed since.
    """
    state = checkpoints.load(out)
    if state is None:
        return 0, [], [], {}
    for name in EXECUTION:  # the first checkpoints held some of them
        state["identity"]["training"].pop(name, None)
    options = {name: p.default for name, p in inspect.signature(type(module).__init__).parameters.items() if p.default is not p.empty}
    defaults = json.loads(json.dumps({"training": asdict(type(training)()), "options": options, "processes": 1}, default=str))
    if different := checkpoints.differences(state["identity"], identity, defaults):
        raise CremaError(f"{out} holds a run with another {' and '.join(different)}: choose another folder, or delete it to start anew")
    store.check_unchanged(state.get("store"))
    try:
        module.load_state_dict(sharding.shares(state["module"], module.state_dict()))
        optimiser.load_state_dict(sharding.optimiser_shares(state["optimiser"], optimiser))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CremaError(f"{out} holds a run of another network ({reason}): choose another folder, or delete it to start anew") from None
    if companion is not None:
        companion.load_state_dict(state["companion"])
    if scaler is not None and state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    saved = state["generators"]  # one list a process; a flat one from before there were several
    cpu, *gpu = saved[parallel.place()[0]] if isinstance(saved[0], list) else saved
    torch.set_rng_state(cpu)
    if torch.cuda.is_available() and gpu:
        torch.cuda.set_rng_state(gpu[0])
    return state["step"], state["log"], state.get("losses", []), state.get("notes", {})


def check_together(out, step, identity):
    """Raise CremaError unless all processes go on from one step of one run: they would share gradients of different weights."""
    steps, identities = zip(*parallel.of_all((step, identity)), strict=True)
    if len(set(steps)) > 1 or any(one != identity for one in identities):
        raise CremaError(f"the processes do not see one run in {out} (steps {list(steps)}): give a folder and data that all of them share")


def save(out, store, state):
    """Save a state, unless its weights are not finite or the store is no longer the one that was opened: CremaError."""
    store.check_unchanged()
    finite = [value.isfinite().all().cpu() for value in state["module"].values() if value.is_floating_point()]
    if not torch.stack(finite).all():
        raise CremaError(f"weights are not finite after step {state['step']}: lower lr; {checkpoints.kept(out)}")
    checkpoints.save(out, state)
