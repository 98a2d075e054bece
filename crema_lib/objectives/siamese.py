"""What objectives share that compare two views of a record and draw nothing: the views, the encoder, a projector."""

import torch

from .. import views
from .base import Objective, projector


class Siamese(Objective):
    """Two views of each record go through the encoder; a loss compares their projected mean tokens.

    A subclass defines `compare(a, b)` on the projected means of all processes and names its loss. Needs the options projection and
    token_drop beside those of `view`.
    """

    halves = False  # whether the views are the halves of a record, see `pair`
    layers = 2  # of the projector

    def __init__(self, encoder, **options):
        super().__init__(encoder, **options)
        self.projector = projector(encoder.width, self.projection, self.layers)

    def hide(self, batch, patches, device):
        return views.random_mask(batch, patches, self.token_drop, device)

    def forward(self, batch):
        _, corrupted, seen, visible, _ = self.pair(batch["signal"], batch["lead_mask"], self.halves)
        pooled = self.of_all(self.summary(corrupted, seen, visible))
        loss = self.compare(*self.projector(torch.cat(pooled)).chunk(2))
        return {"contrast": loss, "loss": loss}
