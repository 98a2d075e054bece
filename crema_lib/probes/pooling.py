"""The attention-pooling probe: learned queries say which tokens of a frozen encoder count."""

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ..errors import CremaError
from .linear import Choice, check_records, fit_probe

STRENGTHS = (1e-2, 1e-3, 1e-4)  # penalties of the linear probe to start from


class AttentionProbe(torch.nn.Module):
    """Attention pooling and a linear layer on frozen tokens, started from a linear probe of their mean.

    Head h has a learned query q_h and pools the standardised tokens x_t of a record to  z_h = sum_t softmax_t(q_h x_t / sqrt(width)) x_t;
    every label is a logistic regression on all z_h. This is multi-head attention with one learned query (Lee et al. 2019, arXiv
    1810.00825) whose key map is part of the queries, and whose value and output maps are part of the linear layer. With queries of zero
    it is the linear probe; small random ones tell the heads apart.

    Args:
        linear: a fitted `probe.LinearProbe` of the mean token.
    """

    def __init__(self, linear, heads=4):
        super().__init__()
        for name in ("mean", "deviation", "known"):
            self.register_buffer(name, getattr(linear, name).clone())
        self.query = torch.nn.Parameter(0.1 * torch.randn(len(linear.mean), heads).to(linear.mean))
        self.weight = torch.nn.Parameter(linear.weight.repeat(heads, 1) / heads)
        self.bias = torch.nn.Parameter(linear.bias.clone())

    def forward(self, tokens):
        """Tokens (records, tokens, width) -> logits (records, labels)."""
        x = (tokens.to(self.mean) - self.mean) / self.deviation
        attention = (x @ self.query / x.shape[2] ** 0.5).softmax(dim=1)
        return torch.addmm(self.bias, (attention.transpose(1, 2) @ x).flatten(1), self.weight)

    @torch.no_grad()
    def scores(self, features):
        """Probabilities of tokens (records, tokens, width), float32 array (records, labels); NaN for a label not learned."""
        blocks = [self(torch.as_tensor(features[i : i + 512])).sigmoid() for i in range(0, len(features), 512)]
        return torch.where(self.known, torch.cat(blocks), torch.nan).cpu().numpy()


def fit_attention(train, valid, *, epochs=10, batch_size=256, lr=5e-4, query_lr=2e-2, weight_decay=2.0, heads=4, seed=0, device="cpu"):
    """Train an `AttentionProbe` with AdamW under one cycle of the learning rate; the epoch that is best on the validation records is kept.

    Args:
        train, valid: (tokens, targets) each, tokens float (records, tokens, width), see `embeddings.embed_store`.

    Returns, raises: as `probe.fit_probe`; epoch 0 is the linear probe of the mean token.
    """
    tokens, targets = train
    if np.ndim(tokens) != 3:
        raise CremaError(f"attention pooling takes tokens (records, tokens, width), not features of shape {np.shape(tokens)}")
    check_records(tokens, targets, "training")
    choice, generator = Choice(targets, valid), np.random.default_rng(seed)
    linear, _ = fit_probe((_mean(tokens), targets), (_mean(valid[0]), valid[1]), STRENGTHS, device=device)
    torch.manual_seed(seed)
    probe = AttentionProbe(linear, heads)
    groups = [
        {"params": [probe.weight], "weight_decay": weight_decay, "lr": lr},
        {"params": [probe.bias], "weight_decay": 0.0, "lr": lr},
        {"params": [probe.query], "weight_decay": 0.0, "lr": query_lr},
    ]
    optimiser, batches = torch.optim.AdamW(groups, fused=True), -(-len(tokens) // batch_size)
    peaks = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peaks, epochs * batches, pct_start=0.1, cycle_momentum=False)
    for epoch in range(epochs + 1):
        for rows in np.array_split(generator.permutation(len(tokens)), batches) if epoch else ():
            wanted = torch.as_tensor(targets[rows]).to(probe.mean)
            loss = binary_cross_entropy_with_logits(probe(torch.as_tensor(tokens[rows])), wanted)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        if choice.offer(probe.scores(valid[0]), epoch=epoch):
            choice.kept = {name: value.clone() for name, value in probe.state_dict().items()}
    weights, trail = choice.take()
    probe.load_state_dict(weights)
    return probe, trail


def _mean(tokens):
    """Mean token of each record in single precision, float32 (records, width)."""
    return np.asarray(tokens).mean(axis=1, dtype=np.float32)
