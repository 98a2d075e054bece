"""Where a step computes, and in how many bits: float32 products on a GPU, autocast to half precision, and attention on a CPU."""

import contextlib

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from .errors import CremaError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # what products are computed in, by the names of the parameter `precision`


def chosen_device(name):
    """The device to compute on, "cpu" or "cuda": the one named, or for "auto" a GPU where there is one.

    Raises:
        CremaError: another name, or a GPU that is not there: nobody waits for a CPU unasked.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise CremaError(f"unknown device {name!r}: known are auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise CremaError("device cuda was asked for, but torch sees no GPU here: take auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


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


class PlainAttention(TorchFunctionMode):
    """Within it, attention in half precision is computed as it is written, softmax(q k' / sqrt(d)) v (Vaswani et al. 2017), by matrix
    products of that precision.

    For training on a CPU: the backward pass of torch's fused kernel for bf16 takes several times as long there (torch 2.15). Its kernel
    for single precision is what is faster from some hundred tokens on, where the weights of all pairs no longer fit a cache. Scores and
    weights are rounded to half precision, as in timm's attention without the kernel: a few times its rounding, most where scores are large.
    """

    most = 256  # tokens

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention or not self._knows(args, kwargs):
            return function(*args, **kwargs)
        query, key, value = args
        if key.shape[-2] > self.most:
            with torch.autocast("cpu", enabled=False):
                return function(query.float(), key.float(), value.float(), **kwargs).to(query.dtype)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if kwargs.get("attn_mask") is not None:
            scores = scores.masked_fill(~kwargs["attn_mask"], float("-inf"))
        return F.dropout(scores.softmax(-1), kwargs.get("dropout_p", 0.0)) @ value

    def _knows(self, args, kwargs):
        """Whether this is a call as timm makes it, in half precision: anything else is left to the kernel."""
        mask = kwargs.get("attn_mask")
        known = len(args) == 3 and not kwargs.get("is_causal") and kwargs.keys() <= {"attn_mask", "dropout_p", "is_causal"}
        return known and args[0].dtype != torch.float32 and (mask is None or mask.dtype == torch.bool)


def attention(precision, device):
    """The context in which a step attends: `PlainAttention` in half precision on a CPU, else that of torch."""
    return PlainAttention() if precision == "bf16" and torch.device(device).type == "cpu" else contextlib.nullcontext()


@contextlib.contextmanager
def autocast(precision, device="cpu"):
    """Within it, a step written by hand computes in the precision that `fit` would: "no", "bf16" or, on a GPU, "fp16"."""
    kind = torch.device(device).type
    with contextlib.ExitStack() as stack:
        if precision == "bf16" or (precision == "fp16" and kind != "cpu"):
            stack.enter_context(torch.autocast(kind, HALF[precision]))
        stack.enter_context(attention(precision, device))
        yield
