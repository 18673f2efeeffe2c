"""Pictures larger than a network was trained on: tiles that overlap, and agree at every step.

At each noise level every tile is predicted on the same latents, and where tiles overlap their predictions are
mixed, so that the picture stays one (MultiDiffusion, Bar-Tal et al. 2023). A tile's say falls towards its
edge, where a network sees nothing beyond.
"""

from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor

OVERLAP: Final = 0.5
"""Least part of a tile's side that it shares with its neighbour."""


@final
@dataclass(frozen=True, eq=False)
class Tile:
    """A part of a picture that passes the network by itself, in latents."""

    rows: slice
    columns: slice
    share: Float[Tensor, "h w"]
    """How much of each latent's prediction this tile decides."""

    def cut(self, picture: Float[Tensor, "f c h w"], factor: int = 1) -> Float[Tensor, "f c y x"]:
        """Return the tile's part of latents, or of a picture with `factor` pixels to a latent."""
        rows, columns = (slice(side.start * factor, side.stop * factor) for side in (self.rows, self.columns))
        return picture[..., rows, columns]

    def add(self, whole: Float[Tensor, "f c h w"], part: Float[Tensor, "f c y x"]) -> None:
        """Add this tile's share of its prediction to the whole picture's."""
        whole[..., self.rows, self.columns] += self.share.to(part) * part


def cover_with_tiles(size: tuple[int, int], side: int) -> tuple[Tile, ...]:
    """Cover latents of a size with as few square tiles as overlap enough; a latent's shares add up to 1."""
    down, across = (_cover_axis(length, side) for length in size)
    return tuple(Tile(rows, columns, tall[:, None] * wide) for rows, tall in down for columns, wide in across)


def _cover_axis(length: int, side: int) -> list[tuple[slice, Float[Tensor, " n"]]]:
    """Return spans of equal length over an axis, and how much of each place they decide."""
    side = min(side, length)
    most = max(1, int(side * (1 - OVERLAP)))
    count = -(-(length - side) // most) + 1
    starts = [round(i * (length - side) / max(count - 1, 1)) for i in range(count)]
    weights = torch.zeros(count, length)
    for weight, start in zip(weights, starts, strict=True):
        place = (torch.arange(side) + 0.5) / side
        rise = torch.ones(side) if start == 0 else place / OVERLAP
        fall = torch.ones(side) if start == starts[-1] else (1 - place) / OVERLAP
        say = torch.minimum(rise, fall).clamp(max=1)
        weight[start : start + side] = say * say * (3 - 2 * say)
    shares = weights / weights.sum(0)
    return [
        (slice(start, start + side), share[start : start + side])
        for start, share in zip(starts, shares, strict=True)
    ]
