"""Weights, gradients and optimiser states shared among processes: each holds about one N-th of all three (ZeRO stage 3, Rajbhandari et al.
2020, arXiv 1910.02054; Zhao et al. 2023, arXiv 2304.11277), by torch's `fully_shard`.

A transformer block is whole in a process only while it computes. What has to fit on a device is a share of everything, one block, what is
in no block (stem, norms, heads), and the activations. With `accumulate`, the gradients of each part are shared out at once: to wait for the
last part would keep them whole. Checkpoints are whole, as those of a run without `shard`, and either kind goes on from the other's; the
host of each process holds the module whole.
"""

import copy

from accelerate.utils import recursively_apply
from timm.models.vision_transformer import Block

from . import parallel
from .errors import CremaError

try:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:  # torch before 2.6: nothing is shared, the rest works
    fully_shard, DTensor = None, ()


def sharded(module, groups, device):
    """A copy of a module that is shared among all processes, each block of timm by itself and then the rest.

    Args:
        module: on the CPU, unless there is room for it twice; the weights of the main process count. It stays as it is.
        groups: optimiser groups over parameters of the module. device: of this process, a `torch.device`.

    Returns:
        (copy, groups): its parameters are DTensors, split by their first dimension; the groups are over them.

    Raises:
        CremaError: there is one process, or torch is too old.
    """
    world = parallel.place()[1]
    if fully_shard is None:
        raise CremaError("shard needs torch 2.6 or newer: install one, or leave shard off")
    if world == 1:
        raise CremaError("shard shares the weights among processes, and this is the only one: use accelerate launch, or leave shard off")
    shared, mesh = copy.deepcopy(module), init_device_mesh(device.type, (world,))
    for part in (*(block for block in shared.modules() if isinstance(block, Block)), shared):
        fully_shard(part, mesh=mesh)
    shared.load_state_dict(shares(module.state_dict(), shared.state_dict()))
    own = dict(zip(map(id, module.parameters()), shared.parameters(), strict=True))
    return shared, [{**group, "params": [own[id(p)] for p in group["params"]]} for group in groups]


def full(value):
    """A tensor, gathered where it is shared, on its device; every process has to call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole(state):
    """A nested state with its shared tensors gathered, one after another, to the CPU; every process has to call it."""
    return recursively_apply(lambda value: full(value).cpu(), state, test_type=lambda value: isinstance(value, DTensor))


def share(value, like):
    """This process's share of the main process's tensor where `like` is shared and has its shape, else the value as it is."""
    if not isinstance(like, DTensor) or value.shape != like.shape:  # such as the number of steps that an optimiser keeps
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def shares(values, like):
    """`share` for dicts of tensors, by name."""
    return {name: share(value, like.get(name)) for name, value in values.items()}


def optimiser_shares(state, optimiser):
    """A whole state of an optimiser, shared as its parameters are."""
    like = dict(enumerate(p for group in optimiser.param_groups for p in group["params"]))
    return {**state, "state": {i: {name: share(v, like.get(i)) for name, v in kept.items()} for i, kept in state["state"].items()}}
