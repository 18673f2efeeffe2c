"""Guidance: away from one prediction, towards another (Ho and Salimans 2022)."""

from jaxtyping import Float
from torch import Tensor


def guided(
    against: Float[Tensor, "f c h w"], towards: Float[Tensor, "f c h w"], scale: float
) -> Float[Tensor, "f c h w"]:
    """Goes from one network output past another: eq. 6 of Ho and Salimans, on noise and velocity alike.

    What it goes away from is usually the output for an empty prompt. With the output for the source
    prompt instead (Negative-prompt Inversion, Miyake et al. 2023), whatever the two prompts agree on is
    left as it is, and an edit to the same prompt changes nothing at any scale.
    """
    return against + scale * (towards - against)
