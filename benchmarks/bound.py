"""The upper bound: one CR-MAE step by hand on tensors that are there already. No loop, no store, no log, no library around the kernels.

Same views, tokens and losses as `crema_lib.objectives.CRMAE`; a test holds the two losses to each other. What `engine.fit` takes longer
than this is what its comfort costs.
"""

import time

import torch
import torch.nn.functional as F

from crema_lib import views
from crema_lib.cost import synchronise
from crema_lib.engine import parameter_groups
from crema_lib.precision import HALF


def block(x, b, heads):
    """A pre-norm transformer block with the weights of timm's: (records, tokens, width) -> the same."""
    records, tokens, width = x.shape
    h = F.layer_norm(x, (width,), b.norm1.weight, b.norm1.bias, b.norm1.eps)
    q, k, v = F.linear(h, b.attn.qkv.weight, b.attn.qkv.bias).view(records, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    if q.device.type == "cpu" and q.dtype != torch.float32:  # the backward pass of the kernel is slow there, see `PlainAttention`
        h = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
    else:
        h = F.scaled_dot_product_attention(q, k, v)
    h = h.transpose(1, 2).reshape(records, tokens, width)
    x = x + F.linear(h, b.attn.proj.weight, b.attn.proj.bias)
    h = F.layer_norm(x, (width,), b.norm2.weight, b.norm2.bias, b.norm2.eps)
    h = F.gelu(F.linear(h, b.mlp.fc1.weight, b.mlp.fc1.bias))
    return x + F.linear(h, b.mlp.fc2.weight, b.mlp.fc2.bias)


def loss(o, signal, lead_mask):
    """The loss of a `CRMAE` o (time tokens, no CLS, InfoNCE), written out.

    signal: float (records, leads, samples), mV. lead_mask: bool (records, leads).
    """
    e = o.encoder
    records, leads, samples = signal.shape
    patches = samples // e.patch
    drawn, shown, seen = [], [], []
    for _ in range(2):
        drawn.append(views.gain(views.shift(signal), o.gain))
        shown.append(views.noise(drawn[-1], o.noise, e.fs))
        seen.append(views.drop_leads(lead_mask, o.lead_drop))
    seen = torch.cat(seen)
    visible = torch.cat([views.random_mask(records, patches, o.mask_ratio, signal.device)[0] for _ in range(2)])
    cut = lambda x: x.view(2 * records, leads, patches, e.patch).transpose(1, 2)  # noqa: E731
    target = cut(torch.cat(drawn) / e.scale[:, None]) * lead_mask.repeat(2, 1)[:, None, :, None]
    tokens = cut(torch.cat(shown) / e.scale[:, None]).gather(1, visible[..., None, None].expand(-1, -1, leads, e.patch))
    x = F.linear((tokens * seen[:, None, :, None]).flatten(2), e.stem.weight, e.stem.bias) + e.positions[visible]
    x = x + ((~seen).to(x.dtype) @ e.missing)[:, None]
    for b in e.blocks:
        x = block(x, b, b.attn.num_heads)
    x = F.layer_norm(x, (e.width,), e.norm.weight, e.norm.bias, e.norm.eps)
    y = F.linear(x, o.embed.weight, o.embed.bias)
    y = o.hidden_token.to(y.dtype).expand(2 * records, patches, -1).scatter(1, visible[..., None].expand_as(y), y) + o.positions[:patches]
    y = y + F.conv1d(y.transpose(1, 2), o.neighbours.weight, o.neighbours.bias, padding=2).transpose(1, 2)
    for b in o.decoder:
        y = block(y, b, b.attn.num_heads)
    predicted = o.predict(y).view(2 * records, patches, leads, e.patch)
    there = torch.zeros(2 * records, patches, dtype=torch.bool, device=signal.device).scatter(1, visible, True)
    asked = lead_mask.repeat(2, 1)[:, None] & ~(there[..., None] & seen[:, None])
    squares = (predicted.float() - target).square().sum(-1)
    drawing = (squares * asked).sum() / (asked.sum() * e.patch).clamp(min=1)
    z = F.normalize(o.projector(x.mean(1)).float(), dim=1)
    similarity = (z @ z.T / o.temperature).fill_diagonal_(float("-inf"))
    return drawing + o.contrast_weight * F.cross_entropy(similarity, torch.arange(2 * records, device=z.device).roll(records))


def loop(objective, signals, lead_mask, *, batch_size=128, lr=1e-3, precision="no", compile=False):
    """A training loop over preloaded records: call it with a number of steps for their durations, s.

    signals: float (records, leads, samples) mV and lead_mask bool (records, leads), both on the device of the objective.
    """
    device, kind = signals.device, HALF.get(precision)
    optimiser = torch.optim.AdamW(parameter_groups(objective, 0.05), lr=lr, fused=True)
    parameters = list(objective.parameters())
    forward = torch.compile(loss) if compile else loss
    place = 0

    def run(steps):
        nonlocal place
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            rows = slice(place, place + batch_size)
            place = (place + batch_size) % (len(signals) - batch_size + 1)
            with torch.autocast(device.type, kind, enabled=kind is not None):
                value = forward(objective, signals[rows], lead_mask[rows])
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            synchronise(device)
            seconds.append(time.perf_counter() - start)
        return seconds

    return run
