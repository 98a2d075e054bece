"""The attention-pooling probe: learned queries say which tokens of a frozen encoder count."""

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from .errors import CremaError
from .probe import Choice, check_records


class AttentionProbe(torch.nn.Module):
    """Attention pooling and a linear layer on frozen tokens.

    Head h has a learned query q_h and pools the standardised tokens x_t of a record to  z_h = sum_t softmax_t(q_h x_t / sqrt(width)) x_t;
    every label is a logistic regression on all z_h. This is multi-head attention with one learned query (Lee et al. 2019, arXiv
    1810.00825) whose key map is part of the queries, and whose value and output maps are part of the linear layer. With queries of zero
    it is the linear probe of the mean token.
    """

    def __init__(self, width, labels, heads=4):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("known", torch.ones(labels, dtype=torch.bool))
        self.query = torch.nn.Parameter(torch.randn(width, heads))
        self.head = torch.nn.Linear(width * heads, labels)
        torch.nn.init.zeros_(self.head.weight)

    def forward(self, tokens):
        """Tokens (records, tokens, width) -> logits (records, labels)."""
        x = (tokens.float() - self.mean) / self.deviation
        attention = (x @ self.query / x.shape[2] ** 0.5).softmax(dim=1)
        return self.head((attention.transpose(1, 2) @ x).flatten(1))

    @torch.no_grad()
    def scores(self, features):
        """Probabilities of tokens (records, tokens, width), float32 array (records, labels); NaN for a label not learned."""
        device = self.mean.device
        blocks = [self(torch.as_tensor(features[i : i + 512], device=device)).sigmoid() for i in range(0, len(features), 512)]
        return torch.where(self.known, torch.cat(blocks), torch.nan).cpu().numpy()


def fit_attention(train, valid, *, epochs=20, batch_size=256, lr=3e-3, weight_decay=0.05, heads=4, seed=0, device="cpu"):
    """Train an `AttentionProbe` with AdamW under one cycle of the learning rate; the epoch that is best on the validation records is kept.

    Args:
        train, valid: (tokens, targets) each, tokens float (records, tokens, width), see `embeddings.embed_store`.

    Returns, raises: as `probe.fit_probe`.
    """
    tokens, targets = train
    if np.ndim(tokens) != 3:
        raise CremaError(f"attention pooling takes tokens (records, tokens, width), not features of shape {np.shape(tokens)}")
    check_records(tokens, targets, "training")
    choice, generator = Choice(targets, valid), np.random.default_rng(seed)
    torch.manual_seed(seed)
    probe = AttentionProbe(tokens.shape[2], targets.shape[1], heads).to(device)
    _start(probe, tokens, targets, choice.known)
    groups = [
        {"params": [probe.head.weight], "weight_decay": weight_decay},
        {"params": [probe.query, probe.head.bias], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=lr, fused=True)
    batches = -(-len(tokens) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, epochs * batches, pct_start=0.1, cycle_momentum=False)
    for epoch in range(1, epochs + 1):
        for rows in np.array_split(generator.permutation(len(tokens)), batches):
            wanted = torch.as_tensor(targets[rows], dtype=torch.float32, device=device)
            loss = binary_cross_entropy_with_logits(probe(torch.as_tensor(tokens[rows], device=device)), wanted)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
        if choice.offer(probe.scores(valid[0]), epoch=epoch):
            choice.kept = {name: value.clone() for name, value in probe.state_dict().items()}
    weights, trail = choice.take()
    probe.load_state_dict(weights)
    return probe, trail


@torch.no_grad()
def _start(probe, tokens, targets, known):
    """Mean and deviation of the training tokens, in blocks; intercepts at the prevalence of the labels."""
    sums = np.zeros((2, tokens.shape[2]))
    for i in range(0, len(tokens), 1024):
        block = np.asarray(tokens[i : i + 1024], dtype=np.float32)
        sums += block.sum((0, 1), dtype=np.float64), np.square(block).sum((0, 1), dtype=np.float64)
    mean, square = sums / (len(tokens) * tokens.shape[1])
    rate = np.asarray(targets, dtype=np.float64).mean(0).clip(1e-6, 1 - 1e-6)
    values = (mean, np.sqrt(np.maximum(square - mean**2, 1e-12)), known, np.log(rate / (1 - rate)))
    for place, value in zip((probe.mean, probe.deviation, probe.known, probe.head.bias), values, strict=True):
        place.copy_(torch.as_tensor(value))
