"""What objectives share whose targets are features: a teacher, the slowly moving copy of the encoder that makes them.

teacher <- m teacher + (1 - m) encoder   after each step,   m from `momentum` linearly to 1 over the run (Assran et al. 2023)
"""

import copy

import torch


def at(values, places):
    """Values of some places: (batch, patches, features), int64 (batch, k) -> (batch, k, features)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))


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

    @torch.no_grad()
    def lesson(self, clean, lead_mask, hidden):
        """What the teacher makes of hidden places; it sees the whole clean view with all leads of the recording: (batch, k, width).

        clean: float (batch, leads, samples), mV. hidden: int64 (batch, k).
        """
        return at(self.teacher(clean, lead_mask)[:, self.encoder.cls is not None :], hidden)

    @torch.no_grad()
    def after_step(self, step, steps):
        super().after_step(step, steps)
        if hasattr(self, "teacher"):
            momentum = self.momentum + (1 - self.momentum) * step / steps
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.encoder.parameters()), 1 - momentum)
