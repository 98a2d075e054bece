"""What all objectives share: options that are checked and remembered, random views, saving of encoder and heads."""

import contextlib
import inspect
import json
import math
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from .. import parallel, views
from ..errors import CremaError
from ..sit import SiT


def _whole(value, least):
    return isinstance(value, int) and value >= least


# What an option of any objective may be, and how the sentence says so.
_WEIGHTS = (
    "contrast_weight",
    "latent_weight",
    "measured_weight",
    "noise",
    "gain",
    "invariance",
    "variance",
    "covariance",
    "diversity_weight",
)
RULES = {
    **dict.fromkeys(_WEIGHTS, (lambda x: 0 <= x < math.inf, "negative or not finite")),
    **dict.fromkeys(("patch_norm", "projected"), (lambda x: isinstance(x, bool), "neither true nor false")),
    "mask_ratio": (lambda x: 0 < x < 1, "not inside 0 < mask_ratio < 1"),
    "temperature": (lambda x: 0 < x < math.inf, "not positive"),
    "lead_drop": (lambda x: 0 <= x <= 1, "no probability"),
    "token_drop": (lambda x: 0 <= x < 1, "not inside 0 <= token_drop < 1"),
    "decoder_width": (
        lambda x: _whole(x, 2) and x % 2 == 0 and x % max(1, x // 32) == 0,
        "not even, or no multiple of its heads of about 32",
    ),
    "decoder_depth": (lambda x: _whole(x, 0), "no number of blocks"),
    "projection": (lambda x: _whole(x, 1), "no number of features"),
    "block": (lambda x: _whole(x, 1), "no number of patches"),
    "momentum": (lambda x: 0 <= x <= 1, "not inside 0 <= momentum <= 1"),
    "groups": (lambda x: _whole(x, 1), "no number of codebooks"),
    "codes": (lambda x: _whole(x, 2), "no number of codes (2 or more)"),
}


def given(scope):
    """The options among the local variables of an objective's `__init__`."""
    return {name: value for name, value in scope.items() if name not in ("self", "encoder", "__class__")}


def projector(width, features, layers=2, hidden=512):
    """The head before a loss that compares records: linear maps with batch normalisation and ReLU between them (Chen et al. 2020)."""
    inner = []
    for size in [width] + [hidden] * (layers - 2):
        inner += [nn.Linear(size, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
    return nn.Sequential(*inner, nn.Linear(hidden, features))


class Objective(nn.Module):
    """Base class. A subclass calls `super().__init__(encoder, **its options)`, builds its heads, and defines `forward(batch)`.

    Options become attributes and are checked by `RULES`. Saved as a folder: `config.json` and `model.safetensors` are the encoder's (so
    `SiT.from_pretrained` reads the same folder), `objective.json` and `heads.safetensors` hold the options and everything that is not
    the encoder.

    Raises:
        CremaError: an option that `RULES` does not allow, or an encoder with tokens that this objective does not take.
    """

    encoders: ClassVar = {"SiT": SiT}  # classes that `from_pretrained` may meet
    tokens: ClassVar = ("time", "lead")  # what a token of the encoder may be, see `SiT`

    def __init__(self, encoder, **options):
        super().__init__()
        for name, (allowed, why) in RULES.items():
            if name in options and (not isinstance(options[name], int | float) or not allowed(options[name])):
                raise CremaError(f"{name} {options[name]!r} is {why}")
        if getattr(encoder, "tokens", "time") not in self.tokens:
            raise CremaError(f"{type(self).__name__} needs a SiT with tokens={self.tokens[0]!r}, this one has {encoder.tokens!r}")
        self.encoder, self.options = encoder, options
        vars(self).update(options)

    def after_step(self, step, steps):
        """Called after each update of the optimiser: `step` of `steps` are done. Moves what no gradient moves; here nothing."""

    def targets(self, store, rows, *, progress=False):
        """What a batch is to hold as `target` for some rows of a store, an array aligned with `rows`, where signals are not enough."""
        return None

    def view(self, signal, lead_mask, start=True):
        """One random view by the options `gain`, `noise` and `lead_drop`: (clean signal, corrupted signal, lead mask of the latter).

        signal: float (batch, leads, samples), mV. start: whether it starts at a random time.
        """
        clean = views.gain(views.shift(signal) if start else signal, self.gain)
        return clean, views.noise(clean, self.noise, self.encoder.fs), views.drop_leads(lead_mask, self.lead_drop)

    def hide(self, batch, patches, device):
        """A random mask of patches by the options `mask_ratio` and `block`: (visible, hidden), int64 (batch, visible), (batch, hidden).

        Raises:
            CremaError: a view of a single patch.
        """
        if patches < 2:
            raise CremaError("a view of one patch leaves nothing to hide: take a smaller patch or longer records")
        return views.block_mask(batch, patches, self.mask_ratio, self.block, device)

    def pair(self, signal, lead_mask, halves=False):
        """Two views of each record, and which patches of them the encoder sees, see `hide`.

        Args:
            halves: the first view is of the first half of a record and the second of the second half; both then start at one random
                time, and keep their places in time, so that the encoder learns all of its positions.

        Returns:
            (clean, corrupted, seen, visible, hidden) of 2 batch rows, first views before second ones: as `view` and `hide` give them.

        Raises:
            CremaError: halves of less than two patches.
        """
        patches = signal.shape[2] // self.encoder.patch
        span, second = (patches // 2, patches // 2) if halves else (patches, 0)
        if not span:
            raise CremaError("a record of one patch has no two halves: take a smaller patch or longer records")
        if halves:
            signal = views.shift(signal)
        both = [self.view(signal, lead_mask, start=not halves) for _ in range(2)]
        masks = [[part + first for part in self.hide(len(signal), span, signal.device)] for first in (0, second)]
        return *map(torch.cat, zip(*both, strict=True)), *map(torch.cat, zip(*masks, strict=True))

    def summary(self, signal, lead_mask, visible):
        """What a contrast compares of a view before any projector, float (batch, features): the mean of the visible tokens.

        Args: as `SiT.forward`.
        """
        return self.encoder.pool(self.encoder(signal, lead_mask, visible))

    def of_all(self, pooled):
        """What was pooled from two views, (2 batch, features), of all processes: first views, second views.

        Gathered before the projector, so that its batch normalisation sees the whole batch.
        """
        return [parallel.gathered(view) for view in pooled.chunk(2)]

    def save_pretrained(self, folder):
        """Write encoder, heads and options; every file is safetensors or JSON."""
        folder = Path(folder)
        self.encoder.save_pretrained(folder)
        heads = {key: value.contiguous() for key, value in self.state_dict().items() if not key.startswith("encoder.")}
        save_file(heads, folder / "heads.safetensors")
        saved = {"class": type(self).__name__, "encoder": type(self.encoder).__name__, "options": self.options}
        (folder / "objective.json").write_text(json.dumps(saved, indent=1) + "\n")

    @classmethod
    def from_pretrained(cls, folder):
        """Read what `save_pretrained` wrote.

        Raises:
            CremaError: a file is missing or damaged, or was written by another class or a newer version.
        """
        folder = Path(folder)
        try:
            saved = json.loads((folder / "objective.json").read_text())
            heads = load_file(folder / "heads.safetensors")
        except Exception as error:
            raise CremaError(f"{folder} holds no readable objective: {error}") from None
        kind, encoder, options = (saved.get(key) for key in ("class", "encoder", "options")) if isinstance(saved, dict) else (None,) * 3
        if kind != cls.__name__:
            raise CremaError(f"{folder} holds the objective {kind}, not {cls.__name__}")
        known = inspect.signature(cls).parameters
        if encoder not in (None, *cls.encoders) or not isinstance(options, dict) or set(options) - set(known):
            raise CremaError(f"{folder} holds a {kind} with an encoder or options that are not known here: it may be of a newer version")
        with contextlib.redirect_stdout(None):  # the hub's mixin prints where it loads from
            encoder = cls.encoders[encoder or "SiT"].from_pretrained(str(folder))
        model = cls(encoder, **options)
        missing, unexpected = model.load_state_dict(heads, strict=False)
        if unexpected or any(not key.startswith("encoder.") for key in missing):
            raise CremaError(f"the heads in {folder} do not fit {cls.__name__} with the options beside them")
        return model
