"""CMSC: two adjacent segments of a record find each other (CLOCS, Kiyasseh et al. 2021, PMLR 139).

    L = -1 / 2B sum_i [ log softmax_j(cos(a_i, b_j) / tau)_i + log softmax_j(cos(a_j, b_i) / tau)_i ]

where a_i and b_i are the first and the second half of record i, see `losses.cmsc_nce`. CLOCS contrasts the encoder's features with
tau = 0.1 and alters the segments in no way; the projector, and the views of our CR-MAE in place of plain segments, are ours (`noise`,
`gain` and `lead_drop` at 0 leave the roll in time alone).
"""

from .base import given
from .losses import cmsc_nce
from .siamese import Siamese


class CMSC(Siamese):
    """Contrastive multi-segment coding.

    Args:
        encoder: a `SiT`.
        temperature: tau > 0. projection: features of the contrasted space.
        token_drop: share of tokens that each half leaves out at random.
        lead_drop: probability that a half loses a random subset of its leads. noise: largest level of added noise and of wander, mV.
        gain: spread of the random gain.
    """

    halves = True

    def __init__(self, encoder, *, temperature=0.1, projection=128, token_drop=0.0, lead_drop=0.5, noise=0.03, gain=0.2):
        super().__init__(encoder, **given(locals()))

    def compare(self, a, b):
        return cmsc_nce(a, b, self.temperature)
