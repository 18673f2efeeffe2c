"""Means and deviations of latents: taken out before the inversion, matched again after sampling.

The released code takes them out per frame, over channels and picture jointly; the paper says per channel.
Neither can be undone by what it does at the end, which is to give every frame the colour statistics of the
edited first frame. All are here as named choices; what is taken out by one of them can be put back exactly
with `restored`.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Normaliser: TypeAlias = Literal["none", "clip", "channel", "frame"]
Rescaler: TypeAlias = Literal["none", "source", "first_frame"]

_OVER: dict[str, tuple[int, ...]] = {"clip": (0, 1, 2, 3), "channel": (0, 2, 3), "frame": (1, 2, 3)}
# What the released code adds to a deviation before it divides by it.
FLOOR = 1e-6


@final
@dataclass(frozen=True, eq=False)
class Moments:
    """What was taken out of latents: a mean, and the deviation that they were divided by."""

    mean: Float[Tensor, "#f #c 1 1"]
    std: Float[Tensor, "#f #c 1 1"]


def moments(latents: Float[Tensor, "f c h w"], over: Normaliser) -> Moments:
    """Gives mean and deviation per clip, channel or frame; for "none" those that change nothing."""
    if over == "none":
        one = torch.ones(1, 1, 1, 1).to(latents)
        return Moments(0 * one, one)
    std, mean = torch.std_mean(latents, dim=_OVER[over], keepdim=True)
    return Moments(mean, std + FLOOR)


def standardised(latents: Float[Tensor, "f c h w"], taken: Moments) -> Float[Tensor, "f c h w"]:
    """Takes mean and deviation out."""
    return (latents - taken.mean) / taken.std


def restored(latents: Float[Tensor, "f c h w"], taken: Moments) -> Float[Tensor, "f c h w"]:
    """Puts back what `standardised` took out."""
    return latents * taken.std + taken.mean


def matched(
    latents: Float[Tensor, "f c h w"], shown: Float[Tensor, "g c h w"], wanted: Float[Tensor, "g c h w"]
) -> Float[Tensor, "f c h w"]:
    """Moves each channel of every frame as `shown` has to move to get the mean and deviation of `wanted`."""
    return _moved(latents, shown.movedim(1, 0).flatten(1), wanted.movedim(1, 0).flatten(1))


def matched_where(
    latents: Float[Tensor, "f c h w"], wanted: Float[Tensor, "f c h w"], where: Bool[Tensor, "f 1 h w"]
) -> Float[Tensor, "f c h w"]:
    """Moves each channel so that mean and deviation agree with those of `wanted` in certain places."""
    chosen = where[:, 0].to(latents.device)
    return _moved(latents, latents.movedim(1, 0)[:, chosen], wanted.movedim(1, 0)[:, chosen])


def _moved(
    latents: Float[Tensor, "f c h w"], shown: Float[Tensor, "c n"], wanted: Float[Tensor, "c m"]
) -> Float[Tensor, "f c h w"]:
    """A channel without any contrast in `shown` is moved but not stretched."""
    std, mean = torch.std_mean(shown, dim=1)
    wanted_std, wanted_mean = torch.std_mean(wanted, dim=1)
    stretch = torch.where(std > FLOOR, wanted_std / std.clamp_min(FLOOR), 1.0)
    return (latents - mean[:, None, None]) * stretch[:, None, None] + wanted_mean[:, None, None]
