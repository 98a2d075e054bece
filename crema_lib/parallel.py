"""Several processes as one: what a training step uses so that many processes compute what one process would, with the same global batch.

Every process holds an equal share of the records, starts from the same generator state, and draws for the whole global batch; it keeps
the part that is its own. Gradients are averaged over processes (DistributedDataParallel), so a loss has to be a mean over processes too.

Layers that draw by themselves, dropout and drop path, draw for their own share only: record i of each share then meets the same mask.
Nothing is biased by that, but the masks of a step are fewer by the number of processes. A layer that should draw for each record would
take its numbers from `uniform`.
"""

import torch
import torch.distributed as dist

from .errors import CremaError


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


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows):
        parts = [torch.empty_like(rows) for _ in range(place()[1])]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        rank, world = place()
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world)[rank]


def gathered(rows):
    """The rows of all processes in order of rank, with gradient: (batch, ...) -> (processes * batch, ...).

    For losses that compare records with each other (contrastive negatives, batch statistics). Each process then computes the same loss of
    the whole global batch; the backward pass adds the gradients of all processes, and their average is that of one process.
    """
    return rows if place()[1] == 1 else _Gathered.apply(rows.contiguous())


def mean_over_processes(value):
    """Mean of a tensor over processes, without gradient: the denominator of a loss that is a weighted mean over all processes' values."""
    world = place()[1]
    value = value.detach().clone()
    if world > 1:
        dist.all_reduce(value)
    return value / world


def by_main(function, *args):
    """Let the main process alone call something, such as what writes a file; an error in it stops every process, a CremaError as it is."""
    rank, world = place()
    failed = None
    if rank == 0:
        try:
            function(*args)
        except Exception as error:  # the others wait to be told
            failed = error
    if world > 1:
        told = [failed if failed is None or isinstance(failed, CremaError) else CremaError(f"the main process stopped: {failed!r}")]
        dist.broadcast_object_list(told, src=0)
        failed = failed or told[0]
    if failed is not None:
        raise failed


def of_all(value):
    """The values of all processes in order of rank, for anything that can be pickled: a list."""
    world = place()[1]
    values = [value] * world
    if world > 1:
        dist.all_gather_object(values, value)
    return values
