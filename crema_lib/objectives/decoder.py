"""What objectives share that hide patches: a small transformer that fills the gaps, and the masked autoencoder on top of it."""

import torch
from timm.models.vision_transformer import Block
from torch import nn

from .. import views
from ..sit import sincos
from .base import Objective
from .losses import masked_loss


class Masked(Objective):
    """An objective that shows the encoder some patches and predicts something at the places of the others.

    The decoder puts the visible tokens in their places and a learned token in all others, lets each place hear its neighbours through
    one convolution (after Chu et al. 2023, arXiv 2102.10882: finding a neighbour by attention alone took longer than the several
    hundred steps we watched), and predicts `values` numbers at each place. Needs the options decoder_width and decoder_depth.
    """

    tokens = ("time",)
    convolution = True

    def __init__(self, encoder, values, **options):
        super().__init__(encoder, **options)
        width = self.decoder_width
        self.embed = nn.Linear(encoder.width, width)
        self.hidden_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.register_buffer("positions", sincos(encoder.n_patches, width), persistent=False)
        self.neighbours = nn.Conv1d(width, width, 5, padding=2) if self.convolution else None
        self.decoder = nn.Sequential(*(Block(width, max(1, width // 32), qkv_bias=True) for _ in range(self.decoder_depth)))
        self.predict = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, values))

    def decode(self, tokens, visible, patches):
        """Predict at all places in order of time: tokens (batch, visible, width), indices (batch, visible) -> (batch, patches, values)."""
        return self.fill(self.embed(tokens[:, self.encoder.cls is not None :]), visible, patches)

    def fill(self, tokens, visible, patches):
        """The same for tokens of the decoder's width, without CLS."""
        place = visible[..., None].expand_as(tokens)
        hidden = self.hidden_token.to(tokens.dtype).expand(len(tokens), patches, -1)
        sequence = hidden.scatter(1, place, tokens) + self.positions[:patches]
        if self.convolution:
            sequence = sequence + self.neighbours(sequence.transpose(1, 2)).transpose(1, 2)
        return self.predict(self.decoder(sequence))


class MaskedAutoencoder(Masked):
    """A `Masked` objective that draws the clean signal of one view: the hidden patches of all leads, the lost leads of the visible ones.

    Needs the options mask_ratio and patch_norm beside those of `Masked` and `view`.
    """

    def __init__(self, encoder, values=None, **options):
        super().__init__(encoder, values or len(encoder.leads) * encoder.patch, **options)

    def asked(self, lead_mask, seen, visible, patches):
        """Bool (batch, patches, leads), what is to be predicted: in hidden patches the leads that the recording has, in visible ones
        those of them that the view lost."""
        shown = torch.zeros(len(visible), patches, dtype=torch.bool, device=visible.device).scatter(1, visible, True)
        return lead_mask[:, None] & ~(shown[..., None] & seen[:, None])

    def target(self, clean, lead_mask, seen, visible):
        """Values to predict, (batch, patches, leads * patch), and what `asked` asks for, as weights (batch, patches, leads)."""
        encoder = self.encoder
        target = encoder.patchify(encoder.normalise(clean, lead_mask))
        if self.patch_norm:
            mean, deviation = self._level(target)
            target = ((self._by_lead(target) - mean) / deviation).flatten(2)
        return target, self.asked(lead_mask, seen, visible, target.shape[1]).to(target.dtype)

    def drawing_loss(self, drawn, clean, lead_mask, seen, visible):
        """`masked_loss` of what the decoder draws of a view, (batch, patches, leads * patch)."""
        return masked_loss(drawn, *self.target(clean, lead_mask, seen, visible))

    def forward(self, batch):
        signal, lead_mask = batch["signal"], batch["lead_mask"]
        clean, corrupted, seen = self.view(signal, lead_mask)
        patches = signal.shape[2] // self.encoder.patch
        visible, _ = self.hide(len(signal), patches, signal.device)
        drawn = self.decode(self.encoder(corrupted, seen, visible), visible, patches)
        loss = self.drawing_loss(drawn, clean, lead_mask, seen, visible)
        return {"mae": loss, "loss": loss}

    def _by_lead(self, patches):
        return patches.unflatten(2, (len(self.encoder.leads), self.encoder.patch))

    def _level(self, patches):
        """Mean and deviation of each patch in each lead, (batch, patches, leads, 1)."""
        by_lead = self._by_lead(patches)
        return by_lead.mean(-1, keepdim=True), (by_lead.var(-1, keepdim=True) + 1e-4).sqrt()

    def places(self, patches, seed):
        """Patches that a random mask hides, int64 (hidden,), ascending; by a seed and not by torch's own generator."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return views.block_mask(1, patches, self.mask_ratio, self.block)[1][0]

    @torch.no_grad()
    def reconstruct(self, signal, lead_mask=None, hidden=None):
        """Hide patches in all leads and predict them, without augmentation.

        Args:
            signal: float (batch, leads, samples), mV. hidden: int64 (batch, k) patches to hide, or None for a random mask.

        Returns:
            (reconstruction, hidden): float (batch, leads, samples) in mV, predicted in hidden patches and equal to the input elsewhere;
            bool (batch, patches).
        """
        encoder = self.encoder
        lead_mask = torch.ones(signal.shape[:2], dtype=torch.bool, device=signal.device) if lead_mask is None else lead_mask
        n = signal.shape[2] // encoder.patch
        if hidden is None:
            _, hidden = views.block_mask(len(signal), n, self.mask_ratio, self.block, signal.device)
        flags = torch.zeros(len(signal), n, dtype=torch.bool, device=signal.device).scatter(1, hidden, True)
        visible = (~flags).nonzero()[:, 1].view(len(signal), -1)
        training = self.training
        self.eval()
        patches = encoder.patchify(encoder.normalise(signal))
        try:
            predicted = self.decode(encoder(signal, lead_mask, visible), visible, n)
        finally:
            self.train(training)
        if self.patch_norm:  # give each predicted patch the level and size of the true one, as MAE's own figures do
            mean, deviation = self._level(patches)
            predicted = (self._by_lead(predicted) * deviation + mean).flatten(2)
        patches = torch.where(flags[..., None], predicted, patches)
        return encoder.unpatchify(patches) * encoder.scale[:, None], flags
