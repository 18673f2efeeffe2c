"""Whether a face stays the same person from frame to frame (Tzaban et al. 2022), against the source's own."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from retouch.errors import InputError


def identity_steadiness(edited: Float[Tensor, "f d"], source: Float[Tensor, "f d"]) -> tuple[float, float]:
    """Return TL-ID and TG-ID: likeness of neighbouring frames, and of all, over the same of the source.

    1 is as steady as the source. Each row says who a frame shows.

    Raises:
        InputError: there are fewer than two frames.
    """
    if len(edited) < 2 or len(source) < 2:
        raise InputError("identity is compared between frames", hint="give at least two")
    near, far = zip(*(likeness(rows) for rows in (edited, source)), strict=True)
    return near[0] / near[1], far[0] / far[1]


def likeness(vectors: Float[Tensor, "f d"]) -> tuple[float, float]:
    """Return the mean cosine of neighbouring frames, and of all pairs."""
    unit = normalize(vectors, dim=1)
    alike, pairs = unit @ unit.T, len(unit) * (len(unit) - 1)
    far = (alike.sum() - alike.diagonal().sum()) / pairs
    return float(alike.diagonal(1).mean()), float(far)
