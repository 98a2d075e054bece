"""MAE: a masked autoencoder, the generative half of CR-MAE alone (He et al. 2022, arXiv 2111.06377).

    L = 1 / |A| sum_{i in A} (p_i - t_i)^2

over the set A of samples that the recording has and the encoder was not shown; p is what the decoder draws, t the clean view in units of
each lead's `scale`. He et al. hide 75 % of the patches of an image and take a deeper decoder; the mask ratio, the decoder and the views are
those of our CR-MAE. The two differ in the regulariser, and in that MAE encodes one view of a record where CR-MAE encodes two: after as many
steps both have seen the same records, and CR-MAE twice as many views. CR-MAE with `contrast_weight` 0 is MAE with two views.
"""

from .base import given
from .decoder import MaskedAutoencoder


class MAE(MaskedAutoencoder):
    """Masked autoencoder.

    Args:
        encoder: a `SiT`.
        mask_ratio: share of hidden patches. block: patches that are hidden together, see `views.block_mask`.
        decoder_width, decoder_depth: of the decoder's blocks.
        lead_drop: probability that a view loses a random subset of its leads. noise: largest level of added noise and of wander, mV.
        gain: spread of the random gain. patch_norm: predict each patch after removing its mean and dividing by its deviation per lead
            (He et al. section 4.2); off by default because amplitude is diagnostic.
    """

    def __init__(
        self,
        encoder,
        *,
        mask_ratio=0.6,
        block=1,
        decoder_width=128,
        decoder_depth=2,
        lead_drop=0.5,
        noise=0.03,
        gain=0.2,
        patch_norm=False,
    ):
        super().__init__(encoder, **given(locals()))
