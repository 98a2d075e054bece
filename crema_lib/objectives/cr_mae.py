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

from .. import parallel, views
from ..errors import CremaError
from ..sit import sincos
from .base import Objective


def masked_loss(predicted, target, asked):
    """Mean squared error over the values asked for: L_MAE = sum(w (p - t)^2) / sum(w), w = 1 where asked, else 0. Shapes are equal.

    Squared, as in He et al.: an absolute error is best met by a median, and the median of a hidden patch is a flat line as long as the
    time of the next QRS complex is uncertain.
    """
    return ((predicted - target).square() * asked).sum() / parallel.mean_over_processes(asked.sum()).clamp(min=1)


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

    Two views of each record are drawn: a random start and gain give the clean view, the target; noise and lost leads then corrupt what
    the encoder is shown. Each view is masked by itself; the encoder sees visible patches only, both views in one pass. The decoder puts
    them in their places, lets each place hear its neighbours through one convolution (after Chu et al. 2023, arXiv 2102.10882: finding
    a neighbour by attention alone took longer than the several hundred steps we watched), and predicts the hidden patches of all leads
    and the lost leads of the visible ones. The regulariser contrasts the projected means of the visible tokens.

    Args:
        encoder: a `SiT`.
        mask_ratio: share of hidden patches. contrast_weight: lambda >= 0. temperature: of InfoNCE, > 0.
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
        contrast_weight=0.4,
        temperature=0.1,
        decoder_width=128,
        decoder_depth=2,
        projection=128,
        lead_drop=0.5,
        noise=0.03,
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
        self.register_buffer("positions", sincos(encoder.n_patches, decoder_width), persistent=False)
        self.neighbours = nn.Conv1d(decoder_width, decoder_width, 5, padding=2)
        self.decoder = nn.Sequential(*(Block(decoder_width, max(1, decoder_width // 32), qkv_bias=True) for _ in range(decoder_depth)))
        self.predict = nn.Sequential(nn.LayerNorm(decoder_width), nn.Linear(decoder_width, values))
        self.projector = nn.Sequential(nn.Linear(encoder.width, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, projection))

    def view(self, signal, lead_mask):
        """One random view: (clean signal = target, corrupted signal = input, lead mask of the input)."""
        clean = views.gain(views.shift(signal), self.gain)
        return clean, views.noise(clean, self.noise, self.encoder.fs), views.drop_leads(lead_mask, self.lead_drop)

    def decode(self, tokens, visible, patches):
        """Predict all patches in order of time: tokens (batch, visible, width), indices (batch, visible) -> (batch, patches, values)."""
        tokens = self.embed(tokens[:, self.encoder.cls is not None :])
        place = visible[..., None].expand_as(tokens)
        sequence = self.hidden_token.expand(len(tokens), patches, -1).scatter(1, place, tokens) + self.positions[:patches]
        sequence = sequence + self.neighbours(sequence.transpose(1, 2)).transpose(1, 2)
        return self.predict(self.decoder(sequence))

    def target(self, clean, lead_mask, seen, visible):
        """Values to predict, (batch, patches, leads * patch), and their weights.

        Asked for are, in hidden patches, the leads that the recording has, and in visible ones those of them that the view lost.
        """
        encoder = self.encoder
        target = encoder.patchify(encoder.normalise(clean, lead_mask))
        if self.patch_norm:
            by_lead = target.unflatten(2, (len(encoder.leads), encoder.patch))
            by_lead = (by_lead - by_lead.mean(-1, keepdim=True)) / (by_lead.var(-1, keepdim=True) + 1e-4).sqrt()
            target = by_lead.flatten(2)
        shown = torch.zeros(target.shape[:2], dtype=torch.bool, device=target.device).scatter(1, visible, True)
        asked = lead_mask[:, None] & ~(shown[..., None] & seen[:, None])
        return target, asked.repeat_interleave(encoder.patch, dim=2).to(target.dtype)

    def forward(self, batch):
        signal, lead_mask = batch["signal"], batch["lead_mask"]
        (clean_a, input_a, seen_a), (clean_b, input_b, seen_b) = self.view(signal, lead_mask), self.view(signal, lead_mask)
        clean, corrupted, seen = torch.cat([clean_a, clean_b]), torch.cat([input_a, input_b]), torch.cat([seen_a, seen_b])
        patches = signal.shape[2] // self.encoder.patch
        visible = torch.cat([views.random_mask(len(signal), patches, self.mask_ratio, signal.device)[0] for _ in range(2)])
        tokens = self.encoder(corrupted, seen, visible)
        target, asked = self.target(clean, lead_mask.repeat(2, 1), seen, visible)
        losses = {"mae": masked_loss(self.decode(tokens, visible, patches), target, asked)}
        pooled = torch.cat([parallel.gathered(view) for view in self.encoder.pool(tokens).chunk(2)])  # then BatchNorm sees all of the batch
        losses["contrast"] = info_nce(*self.projector(pooled).chunk(2), self.temperature)
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
        predicted = self.decode(encoder(signal, lead_mask, visible), visible, n)
        if self.patch_norm:  # give each predicted patch the level and size of the true one, as MAE's own figures do
            shape = (len(encoder.leads), encoder.patch)
            true = patches.unflatten(2, shape)
            mean, deviation = true.mean(-1, keepdim=True), (true.var(-1, keepdim=True) + 1e-4).sqrt()
            predicted = (predicted.unflatten(2, shape) * deviation + mean).flatten(2)
        patches = torch.where(flags[..., None], predicted, patches)
        self.train(training)
        return encoder.unpatchify(patches) * encoder.scale[:, None], flags
