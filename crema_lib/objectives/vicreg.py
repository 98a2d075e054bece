"""VICReg: two augmented views agree, and no feature collapses or repeats another (Bardes et al. 2022, arXiv 2105.04906).

    L = l s(Z, Z') + m (v(Z) + v(Z')) + n (c(Z) + c(Z'))
    s(Z, Z') = 1 / Bd sum_ij (z_ij - z'_ij)^2
    v(Z) = 1 / d sum_j max(0, 1 - sqrt(Var(z_j) + 0.0001))
    c(Z) = 1 / d sum_{j != k} Cov(z_j, z_k)^2

over B records i and d features j, k of the projected means, variances and covariances over the records (`losses.vicreg`), and with the
paper's weights l = m = 25, n = 1. The expander has three layers as in the paper, whose layers are 8192 wide; ours are 512. Views are those
of our CR-MAE without a mask.
"""

from .base import given
from .losses import vicreg
from .siamese import Siamese


class VICReg(Siamese):
    """VICReg.

    Args:
        encoder: a `SiT`.
        invariance, variance, covariance: weights of the three terms. projection: features that the terms are computed on.
        token_drop: share of tokens that each view leaves out at random.
        lead_drop: probability that a view loses a random subset of its leads. noise: largest level of added noise and of wander, mV.
        gain: spread of the random gain.
    """

    layers = 3

    def __init__(
        self,
        encoder,
        *,
        invariance=25.0,
        variance=25.0,
        covariance=1.0,
        projection=512,
        token_drop=0.0,
        lead_drop=0.5,
        noise=0.03,
        gain=0.2,
    ):
        super().__init__(encoder, **given(locals()))

    def compare(self, a, b):
        return vicreg(a, b, self.invariance, self.variance, self.covariance)
