"""CR-MAE: a masked autoencoder regularised by contrast between two masked views.

    L = L_MAE + lambda * L_contrast

The paper states (abstract of Song et al., arXiv 2407.07110) that CREMA is pretrained by a Contrastive Regularised Masked Autoencoder
combining generative and contrastive learning on a Signal Transformer. The equations below are ours, after MAE (He et al. 2022,
arXiv 2111.06377) and InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) in the form of SimCLR (Chen et al. 2020, arXiv 2002.05709).
"""

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn

from .. import views
from ..errors import CremaError
from .base import Objective


def masked_loss(predicted, target, weight):
    """Smooth L1 over hidden patches, each value weighted (0 for a lead that is not there).

    L_MAE = sum(w * h(p - t)) / sum(w), h(d) = d^2 / 2 for |d| < 1, else |d| - 1/2. All shapes (batch, hidden patches, leads * patch).
    """
    return (F.smooth_l1_loss(predicted, target, reduction="none") * weight).sum() / weight.sum().clamp(min=1)


def info_nce(a, b, temperature):
    """Symmetric InfoNCE over both views (NT-Xent, SimCLR eq. 1): a record's other view against the 2 (batch - 1) other embeddings.

    a, b: (batch, features), row i of both from record i; normalised here. Returns a scalar.
    """
    z = F.normalize(torch.cat([a, b]).float(), dim=1)
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(float("-inf"))
    n = len(a)
    partner = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(similarity, partner)


class CRMAE(Objective):
    """Contrastive Regularised Masked Autoencoder.

    Two views of each record are drawn (random start, gain, and, unseen by the target, noise and lead dropping), each masked by itself.
    The encoder sees visible patches only, both views in one pass. The decoder predicts the hidden patches of its own view *before*
    corruption, missing leads by augmentation included. The regulariser contrasts the projected means of the visible tokens.

    Args:
        encoder: a `SiT`.
        mask_ratio: share of hidden patches. contrast_weight: lambda >= 0. temperature: of InfoNCE, > 0.
        decoder_width, decoder_depth: of the decoder's blocks. projection: features of the contrasted space.
        lead_drop: probability that a view loses a random subset of its leads. noise: largest level of added noise and wander, mV.
        gain: spread of the random gain. patch_norm: predict each patch after removing its mean and dividing by its deviation per lead
            (He et al. section 4.2); off by default because amplitude is diagnostic.
    """

    def __init__(
        self,
        encoder,
        *,
        mask_ratio=0.7,
        contrast_weight=0.1,
        temperature=0.1,
        decoder_width=128,
        decoder_depth=2,
        projection=128,
        lead_drop=0.5,
        noise=0.05,
        gain=0.2,
        patch_norm=False,
    ):
        options = {key: value for key, value in locals().items() if key not in ("self", "encoder", "__class__")}
        for wrong, why in (
            (not 0 < mask_ratio < 1, f"mask_ratio {mask_ratio} is outside 0 < mask_ratio < 1"),
            (contrast_weight < 0, f"contrast_weight {contrast_weight} is negative"),
            (temperature <= 0, f"temperature {temperature} is not positive"),
            (not 0 <= lead_drop <= 1, f"lead_drop {lead_drop} is no probability"),
        ):
            if wrong:
                raise CremaError(why)
        super().__init__(encoder, **options)
        self.__dict__.update(options)
        values = len(encoder.leads) * encoder.patch
        self.embed = nn.Linear(encoder.width, decoder_width)
        self.hidden_token = nn.Parameter(0.02 * torch.randn(1, 1, decoder_width))
        self.position = nn.Linear(encoder.width, decoder_width, bias=False)
        self.decoder = nn.Sequential(*(Block(decoder_width, max(1, decoder_width // 32), qkv_bias=True) for _ in range(decoder_depth)))
        self.predict = nn.Sequential(nn.LayerNorm(decoder_width), nn.Linear(decoder_width, values))
        self.projector = nn.Sequential(nn.Linear(encoder.width, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, projection))

    def view(self, signal, lead_mask):
        """One random view: (clean signal = target, corrupted signal = input, lead mask of the input)."""
        clean = views.gain(views.shift(signal), self.gain)
        return clean, views.noise(clean, self.noise, self.encoder.fs), views.drop_leads(lead_mask, self.lead_drop)

    def decode(self, tokens, visible, hidden):
        """Predict hidden patches: tokens (batch, visible, width) -> (batch, hidden, leads * patch).

        The sequence is visible tokens, then hidden ones; order does not matter to attention, positions are added by index.
        """
        tokens = tokens[:, self.encoder.cls is not None :]
        place = self.position(self.encoder.positions)
        sequence = torch.cat([self.embed(tokens) + place[visible], self.hidden_token + place[hidden]], dim=1)
        return self.predict(self.decoder(sequence)[:, visible.shape[1] :])

    def target(self, clean, lead_mask, hidden):
        """Values to predict and their weights, both (batch, hidden, leads * patch)."""
        encoder = self.encoder
        pick = hidden[..., None].expand(-1, -1, len(encoder.leads) * encoder.patch)
        patches = encoder.patchify(encoder.normalise(clean, lead_mask)).gather(1, pick)
        if self.patch_norm:
            by_lead = patches.unflatten(2, (len(encoder.leads), encoder.patch))
            by_lead = (by_lead - by_lead.mean(-1, keepdim=True)) / (by_lead.var(-1, keepdim=True) + 1e-4).sqrt()
            patches = by_lead.flatten(2)
        return patches, lead_mask.repeat_interleave(encoder.patch, dim=1)[:, None].expand_as(patches).to(patches.dtype)

    def forward(self, batch):
        signal, lead_mask = batch["signal"], batch["lead_mask"]
        (clean_a, input_a, mask_a), (clean_b, input_b, mask_b) = self.view(signal, lead_mask), self.view(signal, lead_mask)
        clean, corrupted, seen = torch.cat([clean_a, clean_b]), torch.cat([input_a, input_b]), torch.cat([mask_a, mask_b])
        patches = signal.shape[2] // self.encoder.patch
        visible, hidden = views.random_mask(len(clean), patches, self.mask_ratio, clean.device)
        tokens = self.encoder(corrupted, seen, visible)
        losses = {"mae": masked_loss(self.decode(tokens, visible, hidden), *self.target(clean, lead_mask.repeat(2, 1), hidden))}
        losses["contrast"] = info_nce(*self.projector(self.encoder.pool(tokens)).chunk(2), self.temperature)
        losses["loss"] = losses["mae"] + self.contrast_weight * losses["contrast"]
        return losses

    @torch.no_grad()
    def reconstruct(self, signal, lead_mask=None, hidden=None):
        """Hide patches and predict them, without augmentation.

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
            visible, hidden = views.random_mask(len(signal), n, self.mask_ratio, signal.device)
        flags = torch.zeros(len(signal), n, dtype=torch.bool, device=signal.device).scatter(1, hidden, True)
        visible = (~flags).nonzero()[:, 1].view(len(signal), -1)
        training = self.training
        self.eval()
        patches = encoder.patchify(encoder.normalise(signal))
        predicted = self.decode(encoder(signal, lead_mask, visible), visible, hidden)
        if self.patch_norm:  # give each predicted patch the level and size of the true one, as MAE's own figures do
            shape = (len(encoder.leads), encoder.patch)
            true = patches.gather(1, hidden[..., None].expand_as(predicted)).unflatten(2, shape)
            mean, deviation = true.mean(-1, keepdim=True), (true.var(-1, keepdim=True) + 1e-4).sqrt()
            predicted = (predicted.unflatten(2, shape) * deviation + mean).flatten(2)
        patches.scatter_(1, hidden[..., None].expand_as(predicted), predicted)
        self.train(training)
        return encoder.unpatchify(patches) * encoder.scale[:, None], flags
