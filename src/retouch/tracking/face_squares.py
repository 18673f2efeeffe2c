"""Where a face is cut out of each frame, so that it stays upright and of one size; and how it is laid back.

The square is that of the FFHQ data set (Karras et al. 2019): it follows from the eyes and the corners of the
mouth alone. Pixel coordinates have the middle of the first pixel at 0, 0.
"""

from dataclasses import dataclass
from math import ceil
from typing import Final, Literal, Self, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

Between: TypeAlias = Literal["bilinear", "bicubic"]
"""What lies between pixels."""
CENTRE_SIGMA: Final = 1.0
AXES_SIGMA: Final = 3.0
"""How many frames the middle, and size and turn, of the square are smoothed over."""


@final
@dataclass(frozen=True, eq=False)
class FaceSquares:
    """A square of each frame: its middle, and the half-axis from there to its right edge, in pixels."""

    centre: Float64[np.ndarray, "f 2"]
    right: Float64[np.ndarray, "f 2"]

    @classmethod
    def around(
        cls,
        eyes: tuple[Float64[np.ndarray, "f 2"], Float64[np.ndarray, "f 2"]],
        mouth: tuple[Float64[np.ndarray, "f 2"], Float64[np.ndarray, "f 2"]],
        scale: float = 1.0,
    ) -> Self:
        """Return the squares around faces with these eyes and mouth corners, left ones first as seen."""
        (left, right), between = eyes, (eyes[0] + eyes[1]) / 2
        across, down = right - left, (mouth[0] + mouth[1]) / 2 - between
        axis = across - _quarter_turn(down)
        length = np.maximum(2 * np.linalg.norm(across, axis=1), 1.8 * np.linalg.norm(down, axis=1))
        axis *= (scale * length / np.linalg.norm(axis, axis=1))[:, None]
        return cls(between + 0.1 * down, axis)

    def __getitem__(self, part: slice) -> Self:
        """Return the squares of some of the frames."""
        return type(self)(self.centre[part], self.right[part])

    @property
    def down(self) -> Float64[np.ndarray, "f 2"]:
        """The half-axes from the middle to the lower edge."""
        return _quarter_turn(self.right)

    @property
    def corners(self) -> Float64[np.ndarray, "f 4 2"]:
        """Upper left, lower left, lower right, upper right."""
        c, x, y = self.centre, self.right, self.down
        return np.stack([c - x - y, c - x + y, c + x + y, c + x - y], axis=1)

    def smoothed(self) -> Self:
        """Return the squares with their jitter over time taken off."""
        return type(self)(_smooth(self.centre, CENTRE_SIGMA), _smooth(self.right, AXES_SIGMA))

    def inside(self, points: Float64[np.ndarray, "f n 2"]) -> Float64[np.ndarray, "f n 2"]:
        """Return where points of the frames lie in the squares: 0 to 1 from edge to edge."""
        away = points - self.centre[:, None]
        squared = (self.right**2).sum(1)[:, None, None]
        along = np.stack([(away * axis[:, None]).sum(2) for axis in (self.right, self.down)], axis=2)
        return np.asarray(0.5 + along / (2 * squared))

    def outside(self, points: Float64[np.ndarray, "f n 2"]) -> Float64[np.ndarray, "f n 2"]:
        """Return where points of the squares lie in the frames: the inverse of `inside`."""
        across, below = (2 * points - 1)[..., :1], (2 * points - 1)[..., 1:]
        return np.asarray(self.centre[:, None] + across * self.right[:, None] + below * self.down[:, None])

    def crop(
        self, pixels: Float[Tensor, "f c h w"], side: int, *, beyond: Literal["repeated", "zero"] = "repeated"
    ) -> Float[Tensor, "f c side side"]:
        """Return the squares as pictures of that side; beyond the frame its border is repeated, or zero."""
        over = max(1, ceil(2 * float(np.linalg.norm(self.right, axis=1).max()) / side - 0.25))
        ticks = (np.arange(side * over) + 0.5) / (side * over)
        spots = np.stack(np.broadcast_arrays(ticks[None, :], ticks[:, None]), axis=-1).reshape(1, -1, 2)
        places = self.outside(np.broadcast_to(spots, (len(self.centre), *spots.shape[1:])))
        h, w = pixels.shape[-2:]
        cut = _sampled(pixels, (places + 0.5) / (w, h), (side * over, side * over), zero=beyond == "zero")
        return avg_pool2d(cut, over) if over > 1 else cut

    def paste(
        self, crops: Float[Tensor, "f c side side"], size: tuple[int, int], *, by: Between = "bilinear"
    ) -> Float[Tensor, "f c h w"]:
        """Return crops laid back into frames of that size, and zeros around them.

        Cubic curves between pixels keep edges of pictures sharper, and may pass a little beyond their values.
        """
        rows, columns = np.mgrid[: size[0], : size[1]]
        spots = np.stack([columns, rows], axis=-1).reshape(1, -1, 2).astype(np.float64)
        places = self.inside(np.broadcast_to(spots, (len(self.centre), *spots.shape[1:])))
        return _sampled(crops, places, size, zero=True, by=by)


def _quarter_turn(axis: Float64[np.ndarray, "f 2"]) -> Float64[np.ndarray, "f 2"]:
    return np.stack([-axis[:, 1], axis[:, 0]], axis=1)


def _smooth(track: Float64[np.ndarray, "f 2"], sigma: float) -> Float64[np.ndarray, "f 2"]:
    """A Gaussian over frames, cut off at four sigma; at its ends the track is mirrored."""
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(track, ((reach, reach), (0, 0)), mode="symmetric")
    return np.stack([np.convolve(column, weights / weights.sum(), "valid") for column in padded.T], axis=1)


def _sampled(
    pictures: Float[Tensor, "f c v u"],
    places: Float64[np.ndarray, "f n 2"],
    size: tuple[int, int],
    *,
    zero: bool,
    by: Between = "bilinear",
) -> Float[Tensor, "f c h w"]:
    """Pictures at places given as shares of their width and height; beyond them their border, or zero."""
    grid = torch.from_numpy(2 * places - 1).reshape(-1, *size, 2).to(pictures)
    laid = grid_sample(pictures, grid, mode=by, padding_mode="border", align_corners=False)
    within = torch.from_numpy(((places >= 0) & (places < 1)).all(2)).reshape(-1, 1, *size)
    return laid * within.to(laid) if zero else laid
