"""CR-MAE: a masked autoencoder regularised by contrast between two masked views.

    L = L_MAE + lambda * L_contrast

The paper states (abstract of Song et al., arXiv 2407.07110) that CREMA is pretrained by a Contrastive Regularised Masked Autoencoder
combining generative and contrastive learning on a Signal Transformer. The equations are ours, after MAE (He et al. 2022,
arXiv 2111.06377) and InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) in the form of SimCLR (Chen et al. 2020, arXiv 2002.05709).
Other regularisers can take the place of InfoNCE:

- "vicreg": VICReg (Bardes et al. 2022), its own weights 25, 25 and 1 inside: lambda wants to be smaller by as much.
- "uniformity": U-MAE (Zhang et al. 2022), on the means of the visible tokens of each view, without a projector; nothing asks the two
  views to agree.
- "cmsc": CLOCS (Kiyasseh et al. 2021), the two views being the two halves of the record; each is masked and drawn by itself.
"""

import torch

from ..errors import CremaError
from .base import given, projector
from .decoder import MaskedAutoencoder
from .losses import cmsc_nce, info_nce, masked_loss, uniformity, vicreg

__all__ = ["CRMAE", "REGULARISERS", "info_nce", "masked_loss"]

REGULARISERS = {
    "infonce": info_nce,
    "vicreg": lambda a, b, temperature: vicreg(a, b),
    "uniformity": lambda a, b, temperature: (uniformity(a) + uniformity(b)) / 2,
    "cmsc": cmsc_nce,
}


class CRMAE(MaskedAutoencoder):
    """Contrastive Regularised Masked Autoencoder.

    Two views of each record are drawn: a random start and gain give the clean view, the target; noise and lost leads then corrupt what
    the encoder is shown. Each view is masked by itself; the encoder sees visible patches only, both views in one pass. The decoder
    predicts the hidden patches of all leads and the lost leads of the visible ones. The regulariser contrasts the projected means of
    the visible tokens.

    Args:
        encoder: a `SiT`.
        mask_ratio: share of hidden patches. block: patches that are hidden together, see `views.block_mask`.
        contrast_weight: lambda >= 0; at 0 there is no projector and no regulariser.
        regulariser: "infonce", "vicreg", "uniformity" or "cmsc". temperature: of InfoNCE and CMSC, > 0.
        decoder_width, decoder_depth: of the decoder's blocks. projection: features of the contrasted space.
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
        contrast_weight=0.4,
        regulariser="infonce",
        temperature=0.1,
        decoder_width=128,
        decoder_depth=2,
        projection=128,
        lead_drop=0.5,
        noise=0.03,
        gain=0.2,
        patch_norm=False,
    ):
        if regulariser not in REGULARISERS:
            raise CremaError(f"unknown regulariser {regulariser!r}: known are {', '.join(REGULARISERS)}")
        super().__init__(encoder, **given(locals()))
        if contrast_weight:
            self.projector = torch.nn.Identity() if regulariser == "uniformity" else projector(encoder.width, projection)

    def forward(self, batch):
        lead_mask, halves = batch["lead_mask"], self.regulariser == "cmsc"
        clean, corrupted, seen, visible, _ = self.pair(batch["signal"], lead_mask, halves)
        tokens = self.encoder(corrupted, seen, visible)
        if halves:  # from here on each half is a short record of its own
            clean, visible = self._halves(clean, visible)
        loss = self.drawing_loss(tokens, clean, lead_mask.repeat(2, 1), seen, visible)
        if not self.contrast_weight:
            return {"mae": loss, "loss": loss}
        projected = self.projector(torch.cat(self.pooled(tokens))).chunk(2)
        contrast = REGULARISERS[self.regulariser](*projected, self.temperature)
        return {"mae": loss, "contrast": contrast, "loss": loss + self.contrast_weight * contrast}

    def _halves(self, clean, visible):
        """Signals and visible patches of the first halves of the first views and of the second halves of the second ones."""
        span = clean.shape[2] // self.encoder.patch // 2
        samples = span * self.encoder.patch
        first, second = clean.chunk(2)
        return torch.cat([first[:, :, :samples], second[:, :, samples : 2 * samples]]), visible % span
