"""In how many bits a step computes: float32 products on a GPU, autocast to half precision, and attention on a CPU."""

import contextlib

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def matmul_precision(name):
    """Within it, float32 products on a GPU have this precision, see `torch.set_float32_matmul_precision`; nothing changes without a GPU."""
    before = torch.get_float32_matmul_precision()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class SingleAttention(TorchFunctionMode):
    """Within it, attention on a CPU is computed in single precision under autocast as well: the backward pass of the kernel for bf16
    takes 15 times as long (torch 2.15), more than bf16 saves in all matrix products."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            query, key, value, *rest = args
            return function(query.float(), key.float(), value.float(), *rest, **kwargs).to(query.dtype)


@contextlib.contextmanager
def autocast(precision, device="cpu"):
    """Within it, a step written by hand computes in the precision that `fit` would: "no", "bf16" or "fp16"."""
    kind = torch.device(device).type
    with contextlib.ExitStack() as stack:
        if precision != "no":
            stack.enter_context(torch.autocast(kind, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]))
        if precision != "no" and kind == "cpu":
            stack.enter_context(SingleAttention())
        yield
