"""JEPA: predict what a slowly moving copy of the encoder makes of the hidden patches.

    L = mean smooth_L1( predictor(encoder(visible), places), layer_norm(teacher(all))[places] ),   teacher <- m teacher + (1 - m) encoder
    smooth_L1(p, t) = d^2 / 2 where |d| < 1, else |d| - 1/2,   d = p - t

after the two ECG-JEPA: Weimann & Conrad (arXiv 2410.13867; time tokens over all leads, blocks of hidden patches; their code takes the mean
absolute error, and m from 0.998 to 0.9995) and Kim (arXiv 2410.08559; smooth L1 against normalised targets). m rises linearly to 1 over
the run as in I-JEPA (Assran et al. 2023, arXiv 2301.08243), which starts from 0.996. So did ours first: in the thousand steps of our
comparison, with a learning rate many times theirs, the teacher then followed the encoder into one vector for all places of all records,
and a slower one does so less (`JEPA` logs how much). It keeps more of its random start: about exp(-steps (1 - m) / 2) of it, m that of
the first step; three quarters after a thousand steps. The teacher sees the whole clean view with all leads of the recording, the encoder
the visible patches of the corrupted one (their code alters neither). The code of Weimann and Conrad hides 75 to 85 % in blocks of at least
ten patches, with a predictor of half the encoder's width and all its depth; ours is shallower.
"""

from .base import given
from .decoder import Masked
from .losses import common_share, latent_loss
from .teacher import Taught, at


class JEPA(Taught, Masked):
    """Joint-embedding predictive architecture.

    The log has `common` beside the loss, the share of the targets that one vector explains: a loss that falls because this rises has
    learnt nothing.

    Args:
        encoder: a `SiT`.
        mask_ratio: share of hidden patches. block: patches that are hidden together, see `views.block_mask`.
        momentum: m of the first step; it rises linearly to 1 at the last one.
        decoder_width, decoder_depth: of the predictor's blocks.
        lead_drop: probability that a view loses a random subset of its leads. noise: largest level of added noise and of wander, mV.
        gain: spread of the random gain.
    """

    convolution = False

    def __init__(
        self,
        encoder,
        *,
        mask_ratio=0.75,
        block=2,
        momentum=0.9995,
        decoder_width=96,
        decoder_depth=4,
        lead_drop=0.5,
        noise=0.03,
        gain=0.2,
    ):
        super().__init__(encoder, encoder.width, **given(locals()))
        self.teach()

    def forward(self, batch):
        signal, lead_mask = batch["signal"], batch["lead_mask"]
        patches = signal.shape[2] // self.encoder.patch
        clean, corrupted, seen = self.view(signal, lead_mask)
        visible, hidden = self.hide(len(signal), patches, signal.device)
        predicted = self.decode(self.encoder(corrupted, seen, visible), visible, patches)
        target = self.lesson(clean, lead_mask, hidden)
        return {"common": common_share(target), "loss": latent_loss(at(predicted, hidden), target)}
