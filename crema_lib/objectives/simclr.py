"""SimCLR: two augmented views of a record find each other among all others (Chen et al. 2020, arXiv 2002.05709).

    L = -1 / 2B sum_i log( exp(z_i . z_i' / tau) / sum_{j != i} exp(z_i . z_j / tau) )

over the projected means z of the 2B views of a batch, normalised to length one; i' is the other view of the record of i. The projector has
two layers as in the paper. Views and temperature are those of our CR-MAE (the paper's augmentations are of images), without a mask: the
encoder sees whole records.
"""

from .base import given
from .losses import info_nce
from .siamese import Siamese


class SimCLR(Siamese):
    """SimCLR.

    Args:
        encoder: a `SiT`.
        temperature: tau > 0. projection: features of the contrasted space.
        token_drop: share of tokens that each view leaves out at random: faster, and a harder task.
        lead_drop: probability that a view loses a random subset of its leads. noise: largest level of added noise and of wander, mV.
        gain: spread of the random gain.
    """

    def __init__(self, encoder, *, temperature=0.1, projection=128, token_drop=0.0, lead_drop=0.5, noise=0.03, gain=0.2):
        super().__init__(encoder, **given(locals()))

    def compare(self, a, b):
        return info_nce(a, b, self.temperature)
