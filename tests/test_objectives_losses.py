"""Each loss against loops over NumPy arrays, written from the papers' formulas, and what it refuses."""

import numpy as np
import pytest
import torch

from crema_lib.errors import CremaError
from crema_lib.objectives.losses import cmsc_nce, diversity, info_nce, known_loss, latent_loss, masked_loss, masked_nce, uniformity, vicreg

RNG = np.random.default_rng(0)


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def slow_info_nce(a, b, temperature):
    """SimCLR, eq. 1 and the mean over both directions of Algorithm 1."""
    n, z, total = len(a), unit(np.concatenate([a, b])), 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = [np.exp(z[i] @ z[j] / temperature) for j in range(2 * n) if j != i]
        total -= np.log(np.exp(z[i] @ z[partner] / temperature) / sum(others))
    return total / (2 * n)


def slow_cmsc(a, b, temperature):
    """CLOCS: a segment against the other segments, in both directions."""
    n, x, y, total = len(a), unit(a), unit(b), 0.0
    for i in range(n):
        near = np.exp(x[i] @ y[i] / temperature)
        total -= np.log(near / sum(np.exp(x[i] @ y[j] / temperature) for j in range(n)))
        total -= np.log(near / sum(np.exp(x[j] @ y[i] / temperature) for j in range(n)))
    return total / (2 * n)


def slow_vicreg(a, b, invariance=25, variance=25, covariance=1):
    """VICReg, eq. 1 to 4 and 6, with the mean over features in the invariance that Algorithm 1 has."""
    n, features = a.shape
    loss = invariance * np.mean([(a[i, j] - b[i, j]) ** 2 for i in range(n) for j in range(features)])
    for z in (a, b):
        loss += variance * np.mean([max(0, 1 - np.sqrt(np.var(z[:, j], ddof=1) + 1e-4)) for j in range(features)])
        c = np.cov(z.T)
        loss += covariance * sum(c[i, j] ** 2 for i in range(features) for j in range(features) if i != j) / features
    return loss


def slow_uniformity(z):
    """U-MAE: pairs of different records."""
    z = unit(z)
    return np.mean([(z[i] @ z[j]) ** 2 for i in range(len(z)) for j in range(len(z)) if i != j])


def test_info_nce_against_loops():
    a, b = RNG.normal(size=(2, 7, 5))
    assert info_nce(torch.tensor(a), torch.tensor(b), 0.2).item() == pytest.approx(slow_info_nce(a, b, 0.2), rel=1e-5)


def test_info_nce_knows_the_partner():
    z = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    same, other = info_nce(z, z + 0.01 * z.flip(0), 0.1), info_nce(z, z.roll(1, 0), 0.1)
    assert same < 0.05 < 5 < other


def test_cmsc_against_loops():
    a, b = RNG.normal(size=(2, 6, 5))
    assert cmsc_nce(torch.tensor(a), torch.tensor(b), 0.3).item() == pytest.approx(slow_cmsc(a, b, 0.3))


def test_vicreg_against_loops():
    a, b = RNG.normal(size=(2, 9, 4)) * [0.2, 1.5, 0.9, 1.0]
    assert vicreg(torch.tensor(a), torch.tensor(b), 20, 30, 2).item() == pytest.approx(slow_vicreg(a, b, 20, 30, 2))
    assert slow_vicreg(a, b, 0, 1, 0) > 0.1 and slow_vicreg(a, b, 0, 0, 1) > 0.1


def test_vicreg_is_zero_for_views_that_agree_on_decorrelated_features():
    z = 2 * torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert vicreg(z, z).item() == 0
    assert vicreg(z * 0, z * 0).item() == pytest.approx(25 * 2 * 0.99), "collapse costs the whole hinge"


def test_uniformity_against_loops():
    a = RNG.normal(size=(8, 5))
    assert uniformity(torch.tensor(a)).item() == pytest.approx(slow_uniformity(a))
    assert uniformity(torch.ones(5, 3)).item() == pytest.approx(1, abs=1e-6)
    assert uniformity(torch.eye(4)).item() == pytest.approx(0, abs=1e-6)


def test_masked_loss_against_loops():
    p, t, w = 2 * RNG.normal(size=(3, 4, 6)), RNG.normal(size=(3, 4, 6)), RNG.integers(0, 2, (3, 4, 2)).astype(float)
    total = sum(w[i, j, k // 3] * (p[i, j, k] - t[i, j, k]) ** 2 for i, j, k in np.ndindex(3, 4, 6))
    assert masked_loss(*map(torch.tensor, (p, t, w))).item() == pytest.approx(total / (3 * w.sum()))
    assert masked_loss(torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0, "nothing asked, nothing owed"


def test_known_loss_leaves_out_what_is_not_known():
    p, t = torch.randn(5, 3), torch.randn(5, 3)
    t[0], t[2, 1] = torch.nan, torch.nan
    squares = [(a - b) ** 2 for a, b in zip(p.flatten().tolist(), t.flatten().tolist(), strict=True) if b == b]
    assert len(squares) == 11 and known_loss(p, t).item() == pytest.approx(np.mean(squares), rel=1e-5)
    assert known_loss(p, torch.full_like(p, torch.nan)) == 0


def test_latent_loss_against_loops():
    p, t = RNG.normal(size=(2, 3, 4, 8)).astype(np.float32) * 3
    values = []
    for i in np.ndindex(3, 4):
        d = np.abs(p[i] - (t[i] - t[i].mean()) / np.sqrt(t[i].var() + 1e-5))
        values += [x**2 / 2 if x < 1 else x - 0.5 for x in d]
    assert latent_loss(torch.tensor(p), torch.tensor(t)).item() == pytest.approx(np.mean(values), rel=1e-5)


def test_masked_nce_against_loops():
    c, q = RNG.normal(size=(2, 3, 5, 8))
    codes = RNG.integers(0, 2, (3, 5, 2))
    total, equal = 0.0, 0
    for r in range(3):
        for t in range(5):
            kept = [s for s in range(5) if s == t or not (codes[r, s] == codes[r, t]).all()]
            equal += 5 - len(kept)
            near = {s: np.exp(unit(c[r, t]) @ unit(q[r, s]) / 0.5) for s in kept}
            total -= np.log(near[t] / sum(near.values()))
    assert equal, "the case with equal codes is among them"
    assert masked_nce(torch.tensor(c), torch.tensor(q), torch.tensor(codes), 0.5).item() == pytest.approx(total / 15)


def test_diversity_against_loops():
    p = RNG.dirichlet(np.ones(4), size=(10, 2))
    mean = p.mean(0)
    used = sum(np.exp(-sum(x * np.log(x) for x in mean[g])) for g in range(2))
    assert diversity(torch.tensor(p)).item() == pytest.approx((8 - used) / 8, abs=1e-5)
    assert diversity(torch.full((3, 2, 4), 0.25)).item() == pytest.approx(0, abs=1e-5)
    one = torch.zeros(3, 2, 4)
    one[:, :, 0] = 1
    assert diversity(one).item() == pytest.approx(0.75, abs=1e-5)


@pytest.mark.parametrize("loss", [lambda a, b: info_nce(a, b, 0.1), lambda a, b: cmsc_nce(a, b, 0.1), vicreg])
def test_half_precision_is_no_loss_of_precision(loss):
    a, b = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(a, b)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(a.float(), b.float()).item(), rel=1e-6)


def test_what_cannot_be_compared():
    z = torch.randn(4, 3)
    for call in (
        lambda: info_nce(z, z[:3], 0.1),
        lambda: cmsc_nce(z[0], z[0], 0.1),
        lambda: vicreg(z[:1], z[:1]),
        lambda: uniformity(z[:1]),
    ):
        with pytest.raises(CremaError, match="cannot be compared: give two equal"):
            call()
    with pytest.raises(CremaError, match="one hidden place has no distractor"):
        masked_nce(torch.randn(2, 1, 4), torch.randn(2, 1, 4), torch.zeros(2, 1, 2), 0.1)
