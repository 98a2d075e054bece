"""SiT, the Signal Transformer: a 1-D patch stem, fixed positions and timm's transformer blocks.

The width, depth and heads of Ti, S and B are those of ViT (Dosovitskiy et al. 2021; Touvron et al. 2021); everything else here is ours.
"""

import contextlib

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from timm.models.vision_transformer import Block
from torch import nn

from . import weights
from .data.leads import LEADS, check_names, to_canonical
from .data.prepare import MIN_SECONDS, condition, crop_or_pad, implausible
from .data.records import mv_per
from .errors import CremaError

SIZES = {
    "xs": {"width": 192, "depth": 6, "heads": 3},
    "ti": {"width": 192, "depth": 12, "heads": 3},
    "s": {"width": 384, "depth": 12, "heads": 6},
    "b": {"width": 768, "depth": 12, "heads": 12},
}


def sincos(positions, width, base=100.0):
    """Fixed sine-cosine codes (Vaswani et al. 2017), (positions, width): sines in the first half of the width, cosines in the second.

    Wave k = 0, 1, ... of width / 2 has a length of 2 pi base^(2 k / width) positions. With the base of 10,000 that sentences take half of
    the waves or more would turn by less than one radian in ten seconds, be these 40 tokens of 250 ms (six tenths) or 100 of 100 ms (half).
    """
    omega = base ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * omega
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


class PatchStem(nn.Linear):
    """One linear map from a patch of all leads to a token: (..., leads * patch) -> (..., width)."""

    def __init__(self, leads, patch, width):
        super().__init__(leads * patch, width)


class ConvStem(nn.Module):
    """Two convolutions inside each patch, then a linear map: (..., leads * patch) -> (..., width).

    Convolutions never cross a patch border, so that a visible token knows nothing of its hidden neighbours.
    """

    def __init__(self, leads, patch, width, hidden=64):
        super().__init__()
        self.leads, self.patch = leads, patch
        self.convs = nn.Sequential(nn.Conv1d(leads, hidden, 7, padding=3), nn.GELU(), nn.Conv1d(hidden, hidden, 5, padding=2), nn.GELU())
        self.proj = nn.Linear(hidden * patch, width)

    def forward(self, patches):
        shape = patches.shape[:-1]
        return self.proj(self.convs(patches.reshape(-1, self.leads, self.patch)).flatten(1)).view(*shape, -1)


STEMS = {"patch": PatchStem, "conv": ConvStem}


class SiT(nn.Module, PyTorchModelHubMixin, library_name="crema_lib", tags=["ecg"], license="mit"):
    """Signal Transformer.

    Args:
        fs: sampling rate, Hz. seconds: longest input, s. leads: lead names in input order.
        patch: samples a patch. tokens: "time", a token covers all leads for patch / fs seconds; or "lead", a token covers one lead for
            that long (after Na et al. 2024), in order of lead, then time, and a learned code says which lead it is. The separators at
            the ends of each lead that Na et al. add are left out: the codes tell the leads apart.
        width, depth, heads, mlp_ratio, drop_path: as in ViT. stem: "patch" or "conv". cls_token: prepend a learned token.
        scale: one standard deviation a lead in mV, measured on training records; inputs are divided by it (default 1 mV).
        band: pass band in Hz that training signals went through; `embed` applies it to what it is given.

    Raises:
        CremaError: samples that are no whole number of patches, an unknown lead, stem or kind of token, a width that is odd or no multiple
            of heads, or a scale that is not one positive number a lead.
    """

    def __init__(
        self,
        fs: float = 100,
        seconds: float = 10,
        leads: tuple = LEADS,
        patch: int = 25,
        tokens: str = "time",
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        stem: str = "patch",
        cls_token: bool = False,
        scale: tuple | None = None,
        band: tuple | None = (0.5, 40.0),
    ):
        super().__init__()
        samples = round(fs * seconds)
        unknown = [lead for lead in leads if lead not in LEADS]
        for wrong, why in (
            (patch < 1 or samples % patch, f"{samples} samples are no whole number of patches of {patch}"),
            (unknown, f"unknown leads {unknown}: known are {' '.join(LEADS)}"),
            (width % heads or width % 2, f"width {width} is not even or not a multiple of {heads} heads"),
            (stem not in STEMS, f"unknown stem {stem!r}: known are {', '.join(STEMS)}"),
            (tokens not in ("time", "lead"), f"unknown tokens {tokens!r}: known are time, lead"),
            (scale is not None and (len(scale) != len(leads) or min(scale) <= 0), "scale needs one positive number a lead"),
        ):
            if wrong:
                raise CremaError(why)
        self.fs, self.seconds, self.leads, self.patch, self.width, self.band = fs, seconds, tuple(leads), patch, width, band
        self.tokens, self.n_patches = tokens, samples // patch
        self.register_buffer("scale", torch.tensor(scale or [1.0] * len(leads), dtype=torch.float32))
        self.register_buffer("positions", sincos(self.n_patches, width), persistent=False)
        if tokens == "time":
            self.stem = STEMS[stem](len(leads), patch, width)
            self.missing = nn.Parameter(torch.zeros(len(leads), width))  # added to every token for each lead that is not there
        else:
            self.stem = STEMS[stem](1, patch, width)
            self.stem_leads = nn.Parameter(0.02 * torch.randn(len(leads), width))  # added to every token of a lead
        self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width)) if cls_token else None
        rates = np.linspace(0, drop_path, depth)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=True, drop_path=float(rate)) for rate in rates)
        self.norm = nn.LayerNorm(width)
        self.apply(_initialise)

    @classmethod
    def from_pretrained(cls, folder, **options):
        """Load a model in single precision and evaluation mode; only safetensors and JSON are read, which cannot run code.

        Args:
            folder: that `save_pretrained` or `publish` wrote, the name of a model in `weights/`, or a Hugging Face hub id. Where
                the model comes with checksums its files are compared with them first.
            options: of the hub (`weights.HUB`), or of the SiT to overrule its configuration, such as `drop_path`.

        Raises:
            CremaError: nothing there, a damaged or exchanged file, or weights that do not fit the configuration beside them.
        """
        folder = weights.locate(folder, **{name: options.pop(name) for name in weights.HUB if name in options})
        weights.verify(folder, weights.ENCODER)
        try:
            if not (folder / "config.json").is_file():
                raise FileNotFoundError("no config.json")
            with contextlib.redirect_stdout(None):  # the hub's mixin prints where it loads from
                return super().from_pretrained(str(folder), strict=True, **options).eval()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise CremaError(f"{folder} holds no Signal Transformer that can be loaded: {reason}") from None

    @classmethod
    def of_size(cls, size, **options):
        """A SiT of size "xs", "ti", "s" or "b"; options overrule.

        Raises:
            CremaError: an unknown size, or options that `SiT` refuses.
        """
        if size not in SIZES:
            raise CremaError(f"unknown size {size!r}: known are {', '.join(SIZES)}")
        return cls(**{**SIZES[size], **options})

    def patchify(self, signal):
        """(batch, leads, samples) -> (batch, patches, leads * patch)."""
        batch, leads, samples = signal.shape
        return signal.view(batch, leads, samples // self.patch, self.patch).transpose(1, 2).reshape(batch, -1, leads * self.patch)

    def unpatchify(self, patches):
        """(batch, patches, leads * patch) -> (batch, leads, samples)."""
        batch, n, _ = patches.shape
        return patches.view(batch, n, len(self.leads), self.patch).transpose(1, 2).reshape(batch, len(self.leads), n * self.patch)

    def normalise(self, signal, lead_mask=None):
        """mV -> units of `scale`, leads that are not there set to zero whatever they held."""
        signal = signal / self.scale[:, None]
        return signal if lead_mask is None else signal * lead_mask[..., None]

    def check(self, signal):
        """Raise CremaError unless the signal (batch, leads, samples) fits this configuration."""
        if signal.ndim != 3 or signal.shape[1] != len(self.leads):
            raise CremaError(f"the signal has shape {tuple(signal.shape)}: this SiT takes (batch, {len(self.leads)}, samples)")
        if signal.shape[2] % self.patch or not 0 < signal.shape[2] <= self.n_patches * self.patch:
            raise CremaError(
                f"{signal.shape[2]} samples do not fit: this SiT takes multiples of {self.patch} up to {self.n_patches * self.patch}"
                f" ({self.seconds} s at {self.fs} Hz)"
            )

    def forward(self, signal, lead_mask=None, visible=None, layers=None):
        """Tokens of a batch.

        Args:
            signal: float (batch, leads, samples), mV; samples a multiple of `patch`, at most fs * seconds.
            lead_mask: bool (batch, leads) or None for all leads there.
            visible: int64 (batch, k), the patches to encode, or None for all; hidden patches never enter a block. With tokens of one
                lead these are the patches of every lead, or, as (batch, leads, k), of each lead its own.
            layers: None, or a list of block numbers (0-based) whose outputs are wanted.

        Returns:
            float (batch, tokens, width) after the last norm (the first token is CLS where there is one); with `layers` a list of
            such tensors, each through the last norm. With tokens of one lead nothing attends to a lead that is not there, and its
            tokens come out as the mean of the others, so that the mean over tokens is that of the leads that are there.

        Raises:
            CremaError: a signal that does not fit, see `check`.
        """
        self.check(signal)
        signal = self.normalise(signal, lead_mask)
        if self.tokens == "time":
            tokens, there = self._time_tokens(signal, lead_mask, visible), None
        else:
            tokens, there = self._lead_tokens(signal, lead_mask, visible)
        used, attended = None, there
        inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()  # the compiler cannot follow the latter
        if there is not None and inference:  # in training the host would have to wait for the device here
            used = there.any(dim=0).nonzero()[:, 0]  # what no record has is not computed
            tokens, attended = tokens[:, used], None if there[:, used].all() else there[:, used]
        if self.cls is not None:
            tokens = torch.cat([self.cls.expand(len(tokens), -1, -1), tokens], dim=1)
        if attended is not None:
            attended = F.pad(attended, (tokens.shape[1] - attended.shape[1], 0), value=True)[:, None, None]
        outputs = []
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, attn_mask=attended)
            if layers is not None and i in layers:
                outputs.append(self._finish(tokens, there, used))
        return self._finish(tokens, there, used) if layers is None else outputs

    def _time_tokens(self, signal, lead_mask, visible):
        """Tokens of all leads before the first block."""
        tokens = self.patchify(signal)
        positions = self.positions[: tokens.shape[1]]
        if visible is None:
            tokens = self.stem(tokens) + positions
        else:
            tokens = self.stem(tokens.gather(1, visible[..., None].expand(-1, -1, tokens.shape[2]))) + positions[visible]
        return tokens if lead_mask is None else tokens + ((~lead_mask).to(tokens.dtype) @ self.missing)[:, None]

    def _lead_tokens(self, signal, lead_mask, visible):
        """Tokens of one lead each before the first block, and bool (batch, tokens), whether the lead is there (None for all)."""
        patches = signal.unflatten(2, (-1, self.patch))
        positions = self.positions[: patches.shape[2]]
        if visible is not None:
            visible = visible if visible.ndim == 3 else visible[:, None].expand(-1, patches.shape[1], -1)
            patches, positions = patches.gather(2, visible[..., None].expand(-1, -1, -1, self.patch)), positions[visible]
        tokens = self.stem(patches) + positions + self.stem_leads[:, None]
        if lead_mask is None:
            return tokens.flatten(1, 2), None
        there = lead_mask | ~lead_mask.any(dim=1, keepdim=True)  # a record without any lead attends to its zeros
        return tokens.flatten(1, 2), there.repeat_interleave(tokens.shape[2], dim=1)

    def _finish(self, tokens, there, used):
        """The last norm; then, for tokens of leads that are not there, the mean of the others.

        used: int64, the tokens that were computed of those that `there` tells of; None for all.
        """
        tokens = self.norm(tokens)
        if there is None:
            return tokens
        first = tokens.shape[1] - (there.shape[1] if used is None else len(used))
        if used is not None:
            rest = tokens.new_zeros(len(tokens), there.shape[1], tokens.shape[2]).index_copy(1, used, tokens[:, first:])
        else:
            rest = tokens[:, first:]
        there = there[..., None]
        mean = (rest * there).sum(dim=1, keepdim=True) / there.sum(dim=1, keepdim=True)
        return torch.cat([tokens[:, :first], torch.where(there, rest, mean)], dim=1)

    def pool(self, tokens):
        """Mean over the patch tokens: (batch, tokens, width) -> (batch, width)."""
        return tokens[:, self.cls is not None :].mean(dim=1)

    def spread(self, tokens, lead_mask=None):
        """How patch tokens vary over time: (batch, tokens, width) -> (batch, 2 * width), their standard deviation, and the mean size of
        the step from one token to the next; with tokens of one lead within each lead, then the mean over the leads that are there."""
        by_lead = self.tokens == "lead"
        tokens = tokens[:, self.cls is not None :].unflatten(1, (len(self.leads) if by_lead else 1, -1)).float()
        square = (tokens - tokens.mean(dim=2, keepdim=True)).square().mean(dim=2)  # faster than `var` along this dimension
        deviation = (square + 1e-6).sqrt()  # so much that the slope stays finite where nothing varies
        step = tokens.diff(dim=2).abs().sum(dim=2) / max(1, tokens.shape[2] - 1)
        found = torch.cat([deviation, step], dim=2)
        if lead_mask is None or not by_lead:
            return found.mean(dim=1)
        return (found * lead_mask[..., None]).sum(dim=1) / lead_mask.sum(dim=1, keepdim=True).clamp(min=1)

    def gather(self, layers, readout, lead_mask=None):
        """One vector a record from the tokens after each of the last blocks (a list, at least four of them or all), see `features`."""
        last = layers[-4:]
        if readout == "mean":
            return self.pool(last[-1])
        if readout == "cls":
            return last[-1][:, 0]
        parts = [self.pool(tokens) for tokens in last]
        return torch.cat(parts if readout == "layers" else parts + [self.spread(tokens, lead_mask) for tokens in last], dim=1)

    @property
    def readouts(self):
        """Names that `features` knows."""
        return ("mean", "layers", "moments", "cls") if self.cls is not None else ("mean", "layers", "moments")

    def feature_size(self, readout="mean"):
        """Length of the vector that `features` gives."""
        return self.width * {"layers": 1, "moments": 3}.get(readout, 0) * min(4, len(self.blocks)) or self.width

    def features(self, signal, lead_mask=None, readout="mean", visible=None):
        """One vector a record.

        Args:
            readout: "mean" of the patch tokens, the "cls" token, "layers": the means of the last four blocks side by side, or
                "moments": beside them how the tokens of these blocks vary over time, see `spread`.
            visible: as in `forward`.

        Returns:
            float (batch, width), or (batch, 4 * width) for "layers" and (batch, 12 * width) for "moments" (fewer where the SiT has
            fewer blocks).

        Raises:
            CremaError: a readout that this SiT does not have, or a signal that does not fit, see `check`.
        """
        if readout not in self.readouts:
            raise CremaError(f"unknown readout {readout!r} for this SiT: known are {', '.join(self.readouts)}")
        if readout in ("mean", "cls"):
            return self.gather([self(signal, lead_mask, visible)], readout)
        depth = len(self.blocks)
        return self.gather(self(signal, lead_mask, visible, range(max(0, depth - 4), depth)), readout, lead_mask)

    @torch.no_grad()
    def attention(self, signal, lead_mask=None):
        """Attention weights of every block for a batch: float (depth, batch, heads, tokens, tokens); rows sum to 1."""
        maps = []

        def record(attn, inputs, options, _):
            q, k, _ = attn.qkv(inputs[0]).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
            scores = attn.q_norm(q) * attn.scale @ attn.k_norm(k).transpose(-2, -1)
            if options.get("attn_mask") is not None:
                scores = scores.masked_fill(~options["attn_mask"], float("-inf"))
            maps.append(scores.softmax(dim=-1))

        hooks = [block.attn.register_forward_hook(record, with_kwargs=True) for block in self.blocks]
        try:
            self(signal, lead_mask)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(maps)

    @torch.inference_mode()
    def embed(self, signal, fs, leads=LEADS, unit="mV", readout="mean", batch_size=64):
        """Embed plain arrays of any rate, unit and lead order.

        Args:
            signal: array (leads, samples) or (records, leads, samples).
            fs: its sampling rate, Hz. leads: the lead name of each row, any order and spelling; missing limb leads are derived, other
                missing leads masked. unit: V, mV, uV or nV.
            readout: see `features`.

        Returns:
            float32 array (records, features). Longer recordings are cut to the middle `seconds`, shorter ones padded with zeros,
            exactly as `prepare` does.

        Raises:
            CremaError: unknown unit or readout, rate that is not positive, less than a second, NaN, a name that is no lead (in a file it
                would be a channel to drop, see `data.leads.check_names`), or recordings that are all implausibly large or small for
                their unit, see `data.prepare.implausible`.
        """
        signal = np.asarray(signal, dtype=np.float32)
        signal = signal[None] if signal.ndim == 2 else signal
        if signal.ndim != 3 or not len(signal):
            raise CremaError(f"an array of shape {signal.shape} is no recording (leads, samples), nor several of them")
        if mv_per(unit) is None:
            raise CremaError(f"unknown unit {unit!r}: known are mV, uV, nV and V")
        if not fs or fs <= 0:
            raise CremaError(f"the sampling rate must be positive, not {fs}")
        if signal.shape[2] < MIN_SECONDS * fs:
            raise CremaError(f"{signal.shape[2] / fs:.2f} s are too short: at least {MIN_SECONDS:g} s are needed")
        if not np.isfinite(signal).all():
            raise CremaError("the signal holds NaN or infinite values: fill or cut them first")
        check_names(leads)
        ordered = [to_canonical(record * np.float32(mv_per(unit)), leads) for record in signal]
        pick, mask = [LEADS.index(lead) for lead in self.leads], np.stack([present for _, present in ordered])
        ready = condition(np.stack([record for record, _ in ordered]), fs, fs_out=self.fs, band=self.band)
        ready = crop_or_pad(ready, self.n_patches * self.patch)[0]
        implausible(ready, mask, unit)
        ready, mask = torch.from_numpy(ready[:, pick]), torch.from_numpy(mask[:, pick])
        device, training = self.scale.device, self.training
        self.eval()
        try:
            parts = [
                self.features(ready[i : i + batch_size].to(device), mask[i : i + batch_size].to(device), readout).cpu()
                for i in range(0, len(ready), batch_size)
            ]
        finally:
            self.train(training)
        return torch.cat(parts).numpy()


def _initialise(module):
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
