"""What objectives share whose targets are features: a teacher, the slowly moving copy of the encoder that makes them.

teacher <- m teacher + (1 - m) encoder   after each step,   m from `momentum` linearly to 1 over the run (Assran et al. 2023)
"""

import copy

import torch

from .losses import common_share, latent_loss


class Taught:
    """Mixin of an `Objective` with the option momentum, to be named before it.

    The teacher is no parameter of the optimiser, moves in `after_step`, and is saved with the heads.
    """

    def teach(self):
        """Begin with a teacher that is the encoder as it is."""
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        if hasattr(self, "teacher"):
            self.teacher.eval()
        return self

    def latent_losses(self, predicted, clean, lead_mask, hidden):
        """`latent_loss` at hidden places against the teacher, which sees the whole clean view with all leads of the recording.

        Args:
            predicted: (batch, patches, width). clean: float (batch, leads, samples), mV. hidden: int64 (batch, k).

        Returns:
            (loss, common): `common` is the share of the targets that one vector explains, see `common_share`: a loss that falls because
            this rises has learnt nothing.
        """
        places = hidden[..., None].expand(-1, -1, self.encoder.width)
        with torch.no_grad():
            target = self.teacher(clean, lead_mask)[:, self.encoder.cls is not None :].gather(1, places)
        return latent_loss(predicted.gather(1, places), target), common_share(target)

    @torch.no_grad()
    def after_step(self, step, steps):
        super().after_step(step, steps)
        if hasattr(self, "teacher"):
            momentum = self.momentum + (1 - self.momentum) * step / steps
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.encoder.parameters()), 1 - momentum)
