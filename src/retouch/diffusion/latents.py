"""Statistics of latents, and latents that are known before a window is sampled.

The released code standardises per frame, over channels and picture jointly; the paper says per channel.
Neither can be undone by what it does at the end, which is to give every frame the colour statistics of the
edited first frame. All are here as named choices; `restore` puts back exactly what `standardise` took out.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal, Self, TypeAlias, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retouch.models.noise_path import Level

Normaliser: TypeAlias = Literal["none", "clip", "channel", "frame"]
AXES: Final[dict[str, tuple[int, ...]]] = {"clip": (0, 1, 2, 3), "channel": (0, 2, 3), "frame": (1, 2, 3)}
FLOOR: Final = 1e-6
"""What the released code adds to a deviation before it divides by it."""


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and deviation of latents: of a clip, of each channel, or of each frame."""

    mean: Float[Tensor, "#f #c 1 1"]
    std: Float[Tensor, "#f #c 1 1"]

    @classmethod
    def of(cls, latents: Float[Tensor, "f c h w"], over: Normaliser) -> Self:
        """Measure latents over a clip, a channel or a frame; "none" gives moments that change nothing."""
        if over == "none":
            one = torch.ones(1, 1, 1, 1).to(latents)
            return cls(0 * one, one)
        std, mean = torch.std_mean(latents, dim=AXES[over], keepdim=True)
        return cls(mean, std + FLOOR)

    def standardise(self, latents: Float[Tensor, "f c h w"]) -> Float[Tensor, "f c h w"]:
        """Take mean and deviation out."""
        return (latents - self.mean) / self.std

    def restore(self, latents: Float[Tensor, "f c h w"]) -> Float[Tensor, "f c h w"]:
        """Put back what `standardise` took out."""
        return latents * self.std + self.mean


def match_frame(
    latents: Float[Tensor, "f c h w"], shown: Float[Tensor, "g c h w"], wanted: Float[Tensor, "g c h w"]
) -> Float[Tensor, "f c h w"]:
    """Move each channel of every frame as `shown` has to move to get the mean and deviation of `wanted`."""
    return _move(latents, shown.movedim(1, 0).flatten(1), wanted.movedim(1, 0).flatten(1))


def match_area(
    latents: Float[Tensor, "f c h w"], wanted: Float[Tensor, "f c h w"], area: Bool[Tensor, "f 1 h w"]
) -> Float[Tensor, "f c h w"]:
    """Move each channel so that mean and deviation agree with those of `wanted` in an area."""
    chosen = area[:, 0].to(latents.device)
    return _move(latents, latents.movedim(1, 0)[:, chosen], wanted.movedim(1, 0)[:, chosen])


def _move(
    latents: Float[Tensor, "f c h w"], shown: Float[Tensor, "c n"], wanted: Float[Tensor, "c m"]
) -> Float[Tensor, "f c h w"]:
    """Move a channel that has no contrast in `shown` without stretching it."""
    std, mean = torch.std_mean(shown, dim=1)
    wanted_std, wanted_mean = torch.std_mean(wanted, dim=1)
    stretch = torch.where(std > FLOOR, wanted_std / std.clamp_min(FLOOR), 1.0)
    return (latents - mean[:, None, None]) * stretch[:, None, None] + wanted_mean[:, None, None]


@final
@dataclass(frozen=True, eq=False)
class KnownLatents:
    """Edited latents that are known before a window is sampled, and where: RePaint's known region.

    At every level they stand in as the source's own sample, moved by what the edit changed: so they carry
    the source's noise, and where nothing was edited they are the source's samples exactly.
    """

    latents: Float[Tensor, "g c h w"]
    where: Bool[Tensor, "g 1 h w"]

    def standardise(self, moments: Moments) -> "KnownLatents":
        """Return the same with mean and deviation taken out."""
        return replace(self, latents=moments.standardise(self.latents))

    def replace_in(
        self,
        x: Float[Tensor, "g c h w"],
        source: Float[Tensor, "g c h w"],
        clean: Float[Tensor, "g c h w"],
        level: Level,
    ) -> Float[Tensor, "g c h w"]:
        """Put the known latents into a sample `x`, given the source's sample at its level and clean."""
        return torch.where(self.where, source + level.signal * (self.latents - clean), x)
