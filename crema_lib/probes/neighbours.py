"""The nearest-neighbour probe: nothing to train, one number to choose."""

import numpy as np
import torch
from torch.nn.functional import normalize

from .linear import Choice, as_tensor, check_records, learnable

NEIGHBOURS = (10, 20, 50, 100, 200, 500)


class NeighbourProbe:
    """Weighted vote of the nearest training records (Wu et al. 2018, arXiv 1805.01978; Caron et al. 2021, arXiv 2104.14294).

    Similarity c is the cosine between standardised features; a neighbour votes with exp(c / temperature), and a score is the share of the
    votes that are positive. Standardising is ours: all features of an encoder have a large part in common.

    Args:
        features: float (records, features). targets: 0/1 (records, labels). k: how many neighbours vote.
    """

    def __init__(self, features, targets, k=20, temperature=0.07, device="cpu"):
        check_records(features, targets, "training")
        x = as_tensor(features, device)
        self.k, self.temperature = min(k, len(x)), temperature
        self.mean, self.deviation = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
        self.x, self.y = normalize((x - self.mean) / self.deviation, dim=1), torch.as_tensor(np.asarray(targets)).to(x)
        self.known = torch.as_tensor(learnable(targets), device=device)

    def votes(self, features, counts):
        """Scores with several numbers of neighbours at one go, float array (len(counts), records, labels); see `scores`."""
        counts, result = [min(k, len(self.x)) for k in counts], []
        for block in as_tensor(features, self.x.device).to(self.x).split(256):
            near = (normalize((block - self.mean) / self.deviation, dim=1) @ self.x.T).topk(max(counts), dim=1)
            weight = ((near.values - near.values[:, :1]) / self.temperature).exp()
            agree = self.y[near.indices]
            shares = [torch.einsum("rk,rkl->rl", weight[:, :k], agree[:, :k]) / weight[:, :k].sum(1, keepdim=True) for k in counts]
            result.append(torch.stack(shares))
        return torch.where(self.known, torch.cat(result, dim=1), torch.nan).cpu().numpy()

    def scores(self, features):
        """Share of the votes, float array (records, labels); NaN for a label that the training records lacked."""
        return self.votes(features, [self.k])[0]


def fit_neighbours(train, valid, counts=NEIGHBOURS, *, temperature=0.07, device="cpu"):
    """Choose how many neighbours vote by the macro AUROC on the validation records; returns and raises as `probe.fit_probe`."""
    choice, probe = Choice(train[1], valid), NeighbourProbe(*train, temperature=temperature, device=device)
    for k, scores in zip(counts, probe.votes(valid[0], counts), strict=True):
        if choice.offer(scores, k=k):
            choice.kept, probe.k = probe, min(k, len(probe.x))
    return choice.take()
