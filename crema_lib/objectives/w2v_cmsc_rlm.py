"""W2V + CMSC + RLM: local and global contrast with random lead masking (Oh et al. 2022, PMLR 174).

    L = L_local + a L_diversity + L_CMSC
    L_local = mean_t -log( exp(cos(c_t, q_t) / tau) / sum_s exp(cos(c_t, q_s) / tau) )
    L_diversity = (G V - sum_g exp(H_g)) / (G V)

The two halves of a record are two segments. Local: of each segment spans of patches are hidden, and what is predicted at a hidden place,
c_t, has to find the quantised latent q_t of that place among those of the hidden places s of the segment (`losses.masked_nce`: one with the
very codes of t is no distractor; wav2vec 2.0, Baevski et al. 2020, arXiv 2006.11477). Latents z are quantised by G codebooks of V codes
with a straight-through Gumbel softmax,

    p_gv = softmax_v((l_gv + n) / T),  n = -log(-log u),  u uniform,

l a linear map of z. The diversity keeps the codes in use (a = 0.1, `losses.diversity`): H_g is the entropy of the mean of softmax(l_g) over
all hidden places of both segments. Global: the means of both segments find each other (the equation of `cmsc`, no projector). Random lead
masking is the option `lead_drop`.

As in the papers or their code: temperature 0.1 of both contrasts, G = 2, V = 320, T falling from 2 to 0.5 (here over the whole run). Ours:
the latents are what the stem makes of the patches, and hidden places are predicted by a decoder as in the other objectives here, where
wav2vec 2.0 puts a learned vector into the transformer; the global means are of the visible tokens, where theirs are of a second pass that
sees all; there is no penalty on the size of latents, and their gradient is not scaled down; a segment loses leads
with probability `lead_drop`, and a share of them that is uniform, where Oh et al. have every record lose each lead with probability .5.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .. import parallel
from .base import given
from .decoder import Masked
from .losses import cmsc_nce, diversity, masked_nce


class Quantiser(nn.Module):
    """Product quantiser with a Gumbel softmax: (..., width) -> (..., features).

    Args:
        groups, codes: G codebooks of V codes each; a code has features // groups numbers, a linear map mixes the groups.
    """

    def __init__(self, width, groups, codes, features):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, groups * codes)
        nn.init.normal_(self.logits.weight)  # as in wav2vec 2.0: from the first step on different latents take different codes
        self.codebook = nn.Parameter(torch.rand(groups, codes, max(1, features // groups)))
        self.mix = nn.Linear(groups * max(1, features // groups), features)
        self.register_buffer("temperature", torch.tensor(2.0))

    def forward(self, latents, noise=None):
        """(quantised, codes, probabilities): (..., features), int64 (..., groups), and (..., groups, codes) without noise.

        noise: Gumbel noise (..., groups, codes), or None for the likeliest code.
        """
        logits = self.logits(self.norm(latents)).float().unflatten(-1, self.codebook.shape[:2])
        soft = ((logits if noise is None else logits + noise) / self.temperature).softmax(dim=-1)
        codes = soft.argmax(dim=-1)
        chosen = F.one_hot(codes, soft.shape[-1]) - soft.detach() + soft
        entries = torch.einsum("...gv,gvd->...gd", chosen, self.codebook)
        return self.mix(entries.flatten(-2)), codes, logits.softmax(dim=-1)


class W2VCMSCRLM(Masked):
    """wav2vec 2.0 and CMSC with random lead masking.

    Args:
        encoder: a `SiT`.
        mask_ratio: share of hidden patches. block: patches that are hidden together, see `views.block_mask`.
        temperature: of both contrasts, > 0. diversity_weight: a >= 0. groups, codes: G and V. projection: features of quantised latents.
        decoder_width, decoder_depth: of the decoder's blocks.
        lead_drop: probability that a segment loses a random subset of its leads. noise: largest level of added noise and of wander, mV.
        gain: spread of the random gain.
    """

    def __init__(
        self,
        encoder,
        *,
        mask_ratio=0.5,
        block=2,
        temperature=0.1,
        diversity_weight=0.1,
        groups=2,
        codes=320,
        projection=128,
        decoder_width=128,
        decoder_depth=2,
        lead_drop=0.5,
        noise=0.03,
        gain=0.2,
    ):
        super().__init__(encoder, projection, **given(locals()))
        self.quantiser = Quantiser(encoder.width, groups, codes, projection)

    def gumbel(self, batch, places, device):
        """Gumbel noise for the places of both segments of each record, (2 batch, places, groups, codes); None in evaluation mode."""
        if not self.training:
            return None
        draws = [parallel.uniform(batch, places, self.groups, self.codes, device=device) for _ in range(2)]
        return -(-torch.cat(draws).clamp(1e-7, 1 - 1e-7).log()).log()

    def forward(self, batch):
        signal, encoder = batch["signal"], self.encoder
        _, corrupted, seen, visible, hidden = self.pair(signal, batch["lead_mask"], halves=True)
        tokens = encoder(corrupted, seen, visible)
        span = signal.shape[2] // encoder.patch // 2
        predicted = self.decode(tokens, visible % span, span)
        predicted = predicted.gather(1, (hidden % span)[..., None].expand(-1, -1, self.projection))
        patches = encoder.patchify(encoder.normalise(corrupted, seen))
        latents = encoder.stem(patches.gather(1, hidden[..., None].expand(-1, -1, patches.shape[2])))
        quantised, codes, probabilities = self.quantiser(latents, self.gumbel(len(signal), hidden.shape[1], signal.device))
        local = masked_nce(predicted, quantised, codes, self.temperature)
        idle = diversity(probabilities.flatten(0, 1))
        contrast = cmsc_nce(*self.of_all(self.encoder.pool(tokens)), self.temperature)
        return {"local": local, "diversity": idle, "contrast": contrast, "loss": local + self.diversity_weight * idle + contrast}

    def after_step(self, step, steps):
        self.quantiser.temperature.fill_(2 * 0.25 ** (step / steps))
