"""CR-MAE: a masked autoencoder regularised by contrast between two masked views.

    L = L_MAE + lambda L_contrast + mu L_latent + nu L_measured
    L_MAE = 1 / |A| sum_{i in A} (p_i - t_i)^2
    L_contrast = -1 / 2B sum_i log( exp(z_i . z_i' / tau) / sum_{j != i} exp(z_i . z_j / tau) )
    L_measured = 1 / |M| sum_{(i, k) in M} (W_k f_i + b_k - m_ik)^2

A is the set of samples asked for, of both views of all records: in hidden patches all leads that the recording has, in visible ones those
of them that the view lost; p is what the decoder draws, t the clean view in units of each lead's `scale`. The z are the projected means
of the visible tokens of the 2B views of a batch, normalised to length one, and i' is the other view of the record of i. L_latent is the
loss of `jepa` over both views: at hidden places the decoder also predicts what a teacher, a slowly moving copy of the encoder, makes of
the whole clean view. mu is 0 unless it is given; with it the step has two passes of the whole view more.

L_measured asks for what an electrocardiograph prints: m are the measurements of `handcrafted.waves` (rates, intervals, amplitudes, axes),
taken of the recording without any label and turned into normal scores, M those that can be taken; f are the "moments" (`SiT.features`) of
the whole recording, nothing hidden, which a linear map has to read them from. Every second record of a batch is shown whole for it: as
many tokens as its two masked views and the next record's have at a mask ratio of 0.75. nu is 0 unless it is given. The term is ours.

The paper states (abstract of Song et al., arXiv 2407.07110) that CREMA is pretrained by a Contrastive Regularised Masked Autoencoder
combining generative and contrastive learning on a Signal Transformer. The equations are ours, after MAE (He et al. 2022,
arXiv 2111.06377) and InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) in the form of SimCLR (Chen et al. 2020, arXiv 2002.05709).
InfoNCE asks the views of a record to agree and those of different records to differ. Others can take its place as L_contrast:

- "vicreg": VICReg (Bardes et al. 2022), 25 s(Z, Z') + 25 (v(Z) + v(Z')) + c(Z) + c(Z') with the terms of `vicreg`: the views agree, and
  features keep their spread and do not repeat each other. Its weights are inside: lambda wants to be smaller by as much.
- "uniformity": U-MAE (Zhang et al. 2022), the mean over both views of 1 / B(B - 1) sum_{i != j} (h_i . h_j)^2, h the means of the visible
  tokens without a projector, normalised: records point in different directions; nothing asks the two views to agree. Their code gives
  it a weight of 0.01, and takes the CLS token unless it is told to take the mean.
- "cmsc": CLOCS (Kiyasseh et al. 2021), the equation of `cmsc` on the projected means, the two views being the two halves of the record:
  the halves find each other. Each is masked and drawn by itself.

Three more choices say where and when it acts: what is pooled (`contrasted`), whether a projector stands between (`projected`; Chen et al.
found that what lies before it serves later tasks better), and whether lambda grows or falls linearly over the run (`contrast_schedule`).
"""

import torch

from .. import parallel, views
from ..errors import CremaError
from ..handcrafted import waves
from .base import given, projector
from .decoder import MaskedAutoencoder
from .losses import cmsc_nce, common_share, info_nce, known_loss, latent_loss, uniformity, vicreg
from .teacher import Taught, at

REGULARISERS = {
    "infonce": info_nce,
    "vicreg": lambda a, b, temperature: vicreg(a, b),
    "uniformity": lambda a, b, temperature: (uniformity(a) + uniformity(b)) / 2,
    "cmsc": cmsc_nce,
}
CONTRASTED = ("mean", "middle", "layers", "moments")
SCHEDULES = {"constant": lambda done: 1.0, "rising": lambda done: done, "falling": lambda done: 1 - done}  # share of lambda


class CRMAE(Taught, MaskedAutoencoder):
    """Contrastive Regularised Masked Autoencoder.

    Two views of each record are drawn: a random start and gain give the clean view, the target; noise and lost leads then corrupt what
    the encoder is shown. Each view is masked by itself; the encoder sees visible patches only, both views in one pass. The decoder
    predicts the hidden patches of all leads and the lost leads of the visible ones. The regulariser contrasts what is pooled from the
    visible tokens and projected.

    Args:
        encoder: a `SiT`.
        mask_ratio: share of hidden patches. block: patches that are hidden together, see `views.block_mask`.
        contrast_weight: lambda >= 0; at 0 there is no projector and no regulariser.
        contrast_schedule: "constant", or lambda "rising" linearly from 0 to contrast_weight over the steps, or "falling" to 0.
        regulariser: "infonce", "vicreg", "uniformity" or "cmsc". temperature: of InfoNCE and CMSC, > 0.
        contrasted: what is pooled: the "mean" of the visible tokens after the last block, after the "middle" one (the first
            half of the blocks), or those of the last four blocks side by side as "layers" or "moments", see `SiT.features`.
        projected: whether a projector stands between that and the regulariser; "uniformity" never has one.
        latent_weight: mu >= 0; at 0 there is no teacher. momentum: m of the teacher, see `Taught`.
        measured_weight: nu >= 0; above 0 the batch needs a `target`, see `targets`.
        decoder_width, decoder_depth: of the decoder's blocks. projection: features of the contrasted space.
        lead_drop: probability that a view loses a random subset of its leads. noise: largest level of added noise and of wander, mV.
        gain: spread of the random gain. patch_norm: predict each patch after removing its mean and dividing by its deviation per lead
            (He et al. section 4.2); off by default because amplitude is diagnostic.

    Raises:
        CremaError: an unknown regulariser, schedule or kind of pooling, a middle of a single block, or what `Objective` refuses.
    """

    def __init__(
        self,
        encoder,
        *,
        mask_ratio=0.6,
        block=1,
        contrast_weight=0.4,
        contrast_schedule="constant",
        regulariser="infonce",
        temperature=0.1,
        contrasted="mean",
        projected=True,
        latent_weight=0.0,
        measured_weight=0.0,
        momentum=0.9995,
        decoder_width=128,
        decoder_depth=2,
        projection=128,
        lead_drop=0.5,
        noise=0.03,
        gain=0.2,
        patch_norm=False,
    ):
        super().__init__(encoder, len(encoder.leads) * encoder.patch + bool(latent_weight) * encoder.width, **given(locals()))
        depth = len(encoder.blocks)
        for name, known in (("regulariser", REGULARISERS), ("contrast_schedule", SCHEDULES), ("contrasted", CONTRASTED)):
            if self.options[name] not in known:
                raise CremaError(f"unknown {name} {self.options[name]!r}: known are {', '.join(known)}")
        if contrasted == "middle" and depth < 2:
            raise CremaError("contrasted 'middle' needs two blocks or more, this encoder has one")
        first = {"mean": depth - 1, "middle": depth // 2 - 1}.get(contrasted, max(0, depth - 4))
        self.blocks = [first, depth - 1] if contrasted == "middle" else list(range(first, depth))  # the last one is what is drawn from
        self.readout = "mean" if contrasted == "middle" else contrasted
        if latent_weight:
            self.teach()
        if measured_weight:
            size = encoder.feature_size("moments")
            self.level = torch.nn.BatchNorm1d(size, affine=False)
            self.measure = torch.nn.Linear(size, waves.COUNT)
            torch.nn.init.zeros_(self.measure.weight)
        if not contrast_weight:
            return
        plain = regulariser == "uniformity" or not projected
        self.projector = torch.nn.Identity() if plain else projector(encoder.feature_size(self.readout), projection)
        if contrast_schedule != "constant":  # a buffer, so that a run that goes on from a checkpoint knows where it is
            self.register_buffer("strength", torch.tensor(SCHEDULES[contrast_schedule](0.0)))

    def forward(self, batch):
        lead_mask, halves = batch["lead_mask"], self.regulariser == "cmsc"
        clean, corrupted, seen, visible, hidden = self.pair(batch["signal"], lead_mask, halves)
        layers = self.encoder(corrupted, seen, visible, self.blocks)
        both = lead_mask.repeat(2, 1)
        target = self.lesson(clean, both, hidden) if self.latent_weight else None
        if halves:  # from here on each half is a short record of its own
            clean, visible, hidden = self._halves(clean, visible, hidden)
        drawn, latents = self._decoded(layers[-1], visible, clean.shape[2] // self.encoder.patch)
        losses = {"mae": self.drawing_loss(drawn, clean, both, seen, visible)}
        loss = losses["mae"]
        if self.contrast_weight:
            projected = self.projector(torch.cat(self.of_all(self._pooled(layers)))).chunk(2)
            losses["contrast"] = REGULARISERS[self.regulariser](*projected, self.temperature)
            loss = loss + self.contrast_weight * getattr(self, "strength", 1.0) * losses["contrast"]
        if self.latent_weight:
            losses["latent"], losses["common"] = latent_loss(at(latents, hidden), target), common_share(target)
            loss = loss + self.latent_weight * losses["latent"]
        if self.measured_weight:
            losses["measured"] = self._measured(batch)
            loss = loss + self.measured_weight * losses["measured"]
        return {**losses, "loss": loss}

    def targets(self, store, rows, *, progress=False):
        """Normal scores of the measurements, float32 (rows, measurements), NaN where one cannot be taken; None without this term."""
        return waves.normal_scores(waves.kept(store, progress=progress)[rows]) if self.measured_weight else None

    def _measured(self, batch):
        signal, lead_mask, target = (batch[name][::2] for name in ("signal", "lead_mask", "target"))
        shown = views.noise(views.shift(signal), self.noise, self.encoder.fs)  # the size is what it was when it was measured
        found = self.encoder.features(shown, views.drop_leads(lead_mask, self.lead_drop), "moments")
        found, target = parallel.gathered(found), parallel.gathered(target)
        return known_loss(self.measure(self.level(found) / found.shape[1] ** 0.5), target)  # else a step of Adam moves the sum too far

    def decode(self, tokens, visible, patches):
        return self._decoded(tokens, visible, patches)[0]

    def _decoded(self, tokens, visible, patches):
        """What is drawn and what the teacher is expected to say, (batch, patches, values) each; none of the latter without a teacher."""
        values = super().decode(tokens, visible, patches)
        return values.tensor_split([len(self.encoder.leads) * self.encoder.patch], dim=2)

    def summary(self, signal, lead_mask, visible):
        return self._pooled(self.encoder(signal, lead_mask, visible, self.blocks))

    def _pooled(self, layers):
        return self.encoder.gather(layers[:1] if self.contrasted == "middle" else layers, self.readout)

    @torch.no_grad()
    def after_step(self, step, steps):
        super().after_step(step, steps)
        if hasattr(self, "strength"):
            self.strength.fill_(SCHEDULES[self.contrast_schedule](step / steps))

    def _halves(self, clean, *places):
        """Signals and places of the first halves of the first views and of the second halves of the second ones."""
        span = clean.shape[2] // self.encoder.patch // 2
        samples = span * self.encoder.patch
        first, second = clean.chunk(2)
        return torch.cat([first[:, :, :samples], second[:, :, samples : 2 * samples]]), *(patches % span for patches in places)
