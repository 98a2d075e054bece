"""ST-MEM: a masked autoencoder of one-lead tokens (Na et al. 2024, ICLR; openreview WcOohbsF4H).

    L = 1 / |A| sum_{i in A} (p_i - t_i)^2

over the samples A of the hidden patches of the leads that the view has, p drawn and t true. A token is one lead for the length of a patch;
lead codes say which (`SiT` with tokens="lead"). Every lead has its own random mask of the same size, the encoder sees the visible tokens of
all leads at once, and the decoder draws each lead from the tokens of that lead alone, so that what other leads tell has to be in them. The
authors' code hides 75 %, its decoder has width 256 and depth 4, it draws each patch without its own level and size (our `patch_norm`), and
separators mark the ends of a lead; mask ratio, decoder, patches, targets and views here are those of our CR-MAE, and the separators are
left out. It takes longer a record than the others: there are as many tokens as patches times leads.
"""

import torch

from .base import given
from .decoder import MaskedAutoencoder


class STMEM(MaskedAutoencoder):
    """Spatio-temporal masked autoencoder.

    Leads that a view lost are not asked for: the decoder of a lead has nothing to draw it from.

    Args:
        encoder: a `SiT` with tokens="lead".
        mask_ratio, block, decoder_width, decoder_depth, lead_drop, noise, gain, patch_norm: as in `MAE`.
    """

    tokens = ("lead",)

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
        super().__init__(encoder, encoder.patch, **given(locals()))

    def hide(self, batch, patches, device):
        """A mask for each lead: (visible, hidden), int64 (batch, leads, visible) and (batch, leads, hidden)."""
        one_lead = super().hide
        masks = [one_lead(batch, patches, device) for _ in self.encoder.leads]
        return tuple(torch.stack(part, dim=1) for part in zip(*masks, strict=True))

    def fill(self, tokens, visible, patches):
        """Each lead by itself; tokens (batch, leads * visible, width) -> (batch, patches, leads * patch)."""
        leads = len(self.encoder.leads)
        visible = visible if visible.ndim == 3 else visible[:, None].expand(-1, leads, -1)
        drawn = super().fill(tokens.unflatten(1, (leads, -1)).flatten(0, 1), visible.flatten(0, 1), patches)
        return drawn.unflatten(0, (-1, leads)).transpose(1, 2).flatten(2)

    def asked(self, lead_mask, seen, visible, patches):
        """Bool (batch, patches, leads), what is to be predicted: the hidden patches of the leads that the view has."""
        shown = torch.zeros(*seen.shape, patches, dtype=torch.bool, device=seen.device).scatter(2, visible, True)
        return (seen[..., None] & ~shown).transpose(1, 2)
