"""What the network is trained by: two noises on one face, told apart, and the same face seen in both.

Kim et al. 2023, section 3.2. In the authors' code both errors are absolute, and those of the two noises are
added.
"""

from typing import Final, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retouch.models.face import FaceNetwork, noised, shares_at

CLEAN_WEIGHT_CAP: Final = 1.0
"""The clean pictures differ by the noises' errors times noise over signal, which is 157 at the noisiest
level: there nine tenths of the published regulariser lie above timestep 700. Up to this it counts as
published."""
LEAST_NOISE: Final = 0.3
"""The share of noise down to which a clean picture's error counts the more, the less noise there is."""


class Losses(NamedTuple):
    """The losses of each face."""

    simple: Float[Tensor, " f"]
    consistency: Float[Tensor, " f"]

    @property
    def total(self) -> Float[Tensor, ""]:
        """Their sum, averaged over faces."""
        return self.simple.mean() + self.consistency.mean()


def losses(
    network: FaceNetwork,
    pixels: Float[Tensor, "f 3 h w"],
    code: Float[Tensor, "f z"],
    t: Int[Tensor, " f"],
    noises: tuple[Float[Tensor, "f 3 h w"], Float[Tensor, "f 3 h w"]],
    mask: Float[Tensor, "f 1 h w"],
    *,
    power: int = 1,
    cap: float = CLEAN_WEIGHT_CAP,
) -> Losses:
    """Return the losses of a network; `power` 1 is as published, and so are noise as answer and no `cap`.

    A network that gives the clean picture is held to that, over the share of noise.
    """
    one, other = (network(noised(pixels, noise, t).to(code), t, code).to(pixels) for noise in noises)
    if network.config.prediction == "epsilon":
        return losses_of((one, other), pixels, t, noises, mask, power=power, cap=cap)
    share = shares_at(t, pixels)[1].clamp(min=LEAST_NOISE)
    simple = sum(_mean(((clean - pixels) / share).abs() ** power) for clean in (one, other))
    return Losses(torch.as_tensor(simple), _consistency(one, other, t, mask, power=power, cap=cap))


def losses_of(
    answers: tuple[Float[Tensor, "f 3 h w"], Float[Tensor, "f 3 h w"]],
    pixels: Float[Tensor, "f 3 h w"],
    t: Int[Tensor, " f"],
    noises: tuple[Float[Tensor, "f 3 h w"], Float[Tensor, "f 3 h w"]],
    mask: Float[Tensor, "f 1 h w"],
    *,
    power: int = 1,
    cap: float = CLEAN_WEIGHT_CAP,
) -> Losses:
    """Return the losses of given answers: eq. 5 (simple) and, inside the mask, eq. 6 (consistency)."""
    simple = sum(_mean((noise - eps).abs() ** power) for noise, eps in zip(noises, answers, strict=True))
    one, other = (clean_in(eps, pixels, noise, t) for eps, noise in zip(answers, noises, strict=True))
    return Losses(torch.as_tensor(simple), _consistency(one, other, t, mask, power=power, cap=cap))


def _consistency(
    one: Float[Tensor, "f 3 h w"],
    other: Float[Tensor, "f 3 h w"],
    t: Int[Tensor, " f"],
    mask: Float[Tensor, "f 1 h w"],
    *,
    power: int,
    cap: float,
) -> Float[Tensor, " f"]:
    """By how much the clean pictures seen under two noises differ in the mask; noisy levels are held down."""
    signal, share = shares_at(t, one)
    apart = mask * (cap * signal / share).clamp(max=1) * (one - other)
    return _mean(apart.abs() ** power)


def clean_in(
    eps: Float[Tensor, "f 3 h w"],
    pixels: Float[Tensor, "f 3 h w"],
    noise: Float[Tensor, "f 3 h w"],
    t: Int[Tensor, " f"],
) -> Float[Tensor, "f 3 h w"]:
    """Return the clean pictures that an answer means, each at its own timestep; not clamped."""
    signal, share = shares_at(t, pixels)
    return (noised(pixels, noise, t) - share * eps) / signal


def _mean(error: Float[Tensor, "f 3 h w"]) -> Float[Tensor, " f"]:
    return error.flatten(1).mean(1)
