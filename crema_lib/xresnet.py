"""XResNet1d: the supervised convolutional baseline, an encoder that can stand where a SiT stands.

The one-dimensional xresnet of the PTB-XL benchmark (Strodthoff et al. 2021, doi:10.1109/JBHI.2020.3022989): the ResNet of He et al.
2019 (arXiv 1812.01187, stem of three convolutions, average pooling in the shortcut) with kernels of 5 and 64 channels in every stage.
No kept library offers it; written here after the published configuration. Time is the width of pictures that are one pixel high: two
dimensions can be held with the channels last, which nearly halves the time of a step on a CPU in bf16.
"""

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from .data.leads import LEADS
from .errors import CremaError

DEPTHS = {"xresnet1d50": (3, 4, 6, 3), "xresnet1d101": (3, 4, 23, 3)}


def convolution(inputs, outputs, kernel, stride=1, activation=True, gain=1.0):
    """Convolution, batch normalisation and, if asked for, ReLU; `gain` is where the scale of the normalisation starts."""
    layers = [nn.Conv2d(inputs, outputs, (1, kernel), (1, stride), (0, kernel // 2), bias=False), nn.BatchNorm2d(outputs)]
    nn.init.kaiming_normal_(layers[0].weight)
    nn.init.constant_(layers[1].weight, gain)
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if activation else nn.Sequential(*layers)


class Bottleneck(nn.Module):
    """1 x 1, kernel, 1 x 1 convolution with a shortcut; its last normalisation starts at zero, so that a new block changes nothing."""

    def __init__(self, inputs, width, stride, kernel, expansion=4):
        super().__init__()
        outputs = expansion * width
        self.body = nn.Sequential(
            convolution(inputs, width, 1),
            convolution(width, width, kernel, stride),
            convolution(width, outputs, 1, activation=False, gain=0.0),
        )
        pool = [nn.AvgPool2d((1, stride), ceil_mode=True)] if stride > 1 else []
        project = [convolution(inputs, outputs, 1, activation=False)] if inputs != outputs else []
        self.shortcut = nn.Sequential(*pool, *project)

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


class XResNet1d(nn.Module, PyTorchModelHubMixin, library_name="crema_lib", tags=["ecg"], license="mit"):
    """Convolutional network with the attributes and `features` of a SiT.

    Args:
        fs, seconds, leads, scale, band: as in `SiT`. depth: a key of `DEPTHS`. width: channels inside a block.
        hidden: units of the layer before the output. dropout: before that layer (the benchmark halves its head's .5 there).
    """

    readouts = ("mean",)

    def __init__(
        self,
        fs: float = 100,
        seconds: float = 10,
        leads: tuple = LEADS,
        scale: tuple | None = None,
        band: tuple | None = (0.5, 40.0),
        depth: str = "xresnet1d101",
        width: int = 64,
        hidden: int = 128,
        kernel: int = 5,
        dropout: float = 0.25,
    ):
        super().__init__()
        if depth not in DEPTHS:
            raise CremaError(f"unknown depth {depth!r}: known are {', '.join(DEPTHS)}")
        self.fs, self.seconds, self.leads, self.band, self.width, self.patch = fs, seconds, tuple(leads), band, hidden, 1
        self.register_buffer("scale", torch.tensor(scale or [1.0] * len(leads), dtype=torch.float32))
        stem = [convolution(len(leads), 32, kernel, 2), convolution(32, 32, kernel), convolution(32, 64, kernel)]
        blocks, inputs = [], 64
        for stage, count in enumerate(DEPTHS[depth]):
            for i in range(count):
                blocks.append(Bottleneck(inputs, width, 2 if stage and not i else 1, kernel))
                inputs = 4 * width
        self.body = nn.Sequential(*stem, nn.MaxPool2d((1, 3), (1, 2), (0, 1)), *blocks)
        self.neck = nn.Sequential(
            nn.BatchNorm1d(2 * inputs), nn.Dropout(dropout), nn.Linear(2 * inputs, hidden), nn.ReLU(inplace=True), nn.BatchNorm1d(hidden)
        )

    def feature_size(self, readout="mean"):
        """Length of the vector that `features` gives."""
        return self.width

    def features(self, signal, lead_mask=None, readout="mean", visible=None):
        """One vector a record: float (batch, leads, samples) in mV -> (batch, hidden). The mean and the maximum over time, side by side,
        go through one hidden layer (`concat_pooling` of the benchmark). A missing lead is zero. There are no tokens to hide."""
        if visible is not None:
            raise CremaError("a convolutional network has no tokens to leave out: set token_drop to 0")
        signal = signal / self.scale[:, None]
        signal = signal if lead_mask is None else signal * lead_mask[..., None]
        maps = self.body(signal[:, :, None].contiguous(memory_format=torch.channels_last))
        return self.neck(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1))
