"""Several processes as one: what a training step uses so that many processes compute what one process would, with the same global batch.

Every process holds an equal share of the records, starts from the same generator state, and draws for the whole global batch; it keeps
the part that is its own. Gradients are averaged over processes (DistributedDataParallel), so a loss has to be a mean over processes too.
"""

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather


def place():
    """(rank, processes): (0, 1) unless `torch.distributed` runs."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def _own(draw, batch, *shape):
    rank, world = place()
    return draw(batch * world, *shape)[rank * batch : (rank + 1) * batch]


def uniform(batch, *shape, device="cpu"):
    """Uniform numbers in [0, 1) for this process's records: float (batch, *shape)."""
    return _own(lambda *size: torch.rand(*size, device=device), batch, *shape)


def normal(batch, *shape, device="cpu"):
    """Standard normal numbers for this process's records: float (batch, *shape)."""
    return _own(lambda *size: torch.randn(*size, device=device), batch, *shape)


def integers(low, high, batch, *shape, device="cpu"):
    """Uniform integers, low <= i < high, for this process's records: int64 (batch, *shape)."""
    return _own(lambda *size: torch.randint(low, high, size, device=device), batch, *shape)


def gathered(rows):
    """The rows of all processes in order of rank, with gradient: (batch, ...) -> (processes * batch, ...).

    For losses that compare records with each other (contrastive negatives, batch statistics). Each process then computes the same loss of
    the whole global batch; the backward pass adds the gradients of all processes, and their average is that of one process.
    """
    return rows if place()[1] == 1 else torch.cat(all_gather(rows.contiguous()))


def mean_over_processes(value):
    """Mean of a tensor over processes, without gradient: the denominator of a loss that is a weighted mean over all processes' values."""
    world = place()[1]
    value = value.detach().clone()
    if world > 1:
        dist.all_reduce(value)
    return value / world
