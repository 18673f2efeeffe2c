"""IR-SE-50, the identity network that the published model was trained with (ArcFace, Deng et al. 2019).

A residual network whose units weigh their channels (squeeze and excitation). The names of its weights are
those of the files in use.
"""

from collections.abc import Sequence
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

STAGES: Final = ((64, 3), (128, 4), (256, 14), (512, 3))
"""Channels and units of each stage of IR-SE-50."""


@final
class ChannelWeights(nn.Module):
    """Weighs each channel by what all of them show on average."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        """Build it with random weights."""
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "f c h w"]) -> Float[Tensor, "f c h w"]:
        """Return the channels, weighed."""
        return torch.as_tensor(x * self.fc2(relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid())


@final
class Unit(nn.Module):
    """A residual unit."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        """Build it with random weights; where the width stays, the short way only leaves pixels out."""
        super().__init__()
        same = channels == wider
        self.shortcut_layer = (
            nn.MaxPool2d(1, stride)
            if same
            else nn.Sequential(nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))
        )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, wider, 3, 1, 1, bias=False),
            nn.PReLU(wider),
            nn.Conv2d(wider, wider, 3, stride, 1, bias=False),
            nn.BatchNorm2d(wider),
            ChannelWeights(wider),
        )

    def forward(self, x: Float[Tensor, "f c h w"]) -> Float[Tensor, "f d v u"]:
        """Return the unit's answer."""
        return torch.as_tensor(self.res_layer(x) + self.shortcut_layer(x))


@final
class IrSe(nn.Module):
    """The network: 112 pixels to a vector of who it is, not yet of unit length."""

    def __init__(self, stages: Sequence[tuple[int, int]] = STAGES, features: int = 512) -> None:
        """Build it with random weights."""
        super().__init__()
        first, last = stages[0][0], stages[-1][0]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first)
        )
        units, channels = [], first
        for wider, count in stages:
            units += [Unit(channels if n == 0 else wider, wider, 2 if n == 0 else 1) for n in range(count)]
            channels = wider
        self.body = nn.Sequential(*units)
        side = -(-112 // 2 ** len(stages))
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(last * side * side, features),
            nn.BatchNorm1d(features),
        )

    def forward(self, x: Float[Tensor, "f 3 112 112"]) -> Float[Tensor, "f features"]:
        """Return vectors."""
        return torch.as_tensor(self.output_layer(self.body(self.input_layer(x))))
