"""Where each pixel of each frame lies in a layer's texture.

    uv_t(p) = project(H_t p) + sum over controls of B(p) C_t

A 3x3 matrix carries the large motion, a grid of cubic B-spline controls over a box around the layer what the
matrix cannot. Both are smooth, so that painted lines do not kink; both are linear to evaluate over a
rectangle (two small matrix products), have an exact Jacobian, and invert in a few Newton steps.

Frame positions `p` are x, y in pixels with centres at whole numbers; `uv` is x, y in texels, likewise.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

NEWTON_STEPS = 6
"""The residual is small beside the matrix: Newton gains several digits a step and is done long before."""
CONVERGED = 1e-3
"""Pixels of a Newton step after which another would only round."""
LEAST_SLOPE = 1e-6
"""Added to a Jacobian before it is inverted."""


def cubic_spline(x: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
    """Return the uniform cubic B-spline at a distance from its centre, in knots."""
    a = x.abs()
    near = (4 - 6 * a**2 + 3 * a**3) / 6
    far = (2 - a).clamp(min=0) ** 3 / 6
    return torch.where(a < 1, near, far)


def solve_pairs(matrices: Float[Tensor, "n 2 2"], wanted: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    """Return what each matrix, made a little less singular, maps to what is wanted."""
    a, b, c, d = matrices.flatten(1).unbind(1)
    a, d, (x, y) = a + LEAST_SLOPE, d + LEAST_SLOPE, wanted.unbind(1)
    return torch.stack([d * x - b * y, a * y - c * x], 1) / (a * d - b * c)[:, None]


def spline_slope(x: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
    """Return the derivative of the uniform cubic B-spline."""
    a = x.abs()
    near = -2 * a + 1.5 * a**2
    far = -((2 - a).clamp(min=0) ** 2) / 2
    return torch.where(a < 1, near, far) * x.sign()


@final
@dataclass(frozen=True, eq=False)
class PixelWindow:
    """A rectangle of whole pixels in each of several frames, one size for all."""

    corners: Int[Tensor, "f 2"]
    """x, y of the first pixel, one a frame."""
    height: int
    width: int

    def part(self, start: int, stop: int) -> "PixelWindow":
        """Return the rectangles of some of the frames."""
        return PixelWindow(self.corners[start:stop], self.height, self.width)

    def cut(self, pictures: Float[Tensor, "f c h w"]) -> Float[Tensor, "f c hh ww"]:
        """Cut each frame's rectangle out of its picture."""
        if pictures.shape[-2:] == (self.height, self.width):
            return pictures
        pairs = zip(pictures, self.corners.tolist(), strict=True)
        return torch.stack([p[:, y : y + self.height, x : x + self.width] for p, (x, y) in pairs])

    def paste(self, patches: Float[Tensor, "f c hh ww"], height: int, width: int) -> Float[Tensor, "f c h w"]:
        """Lay each frame's patch into an empty picture at its rectangle."""
        if (height, width) == (self.height, self.width):
            return patches
        whole = patches.new_zeros(*patches.shape[:2], height, width)
        for picture, patch, (x, y) in zip(whole, patches, self.corners.tolist(), strict=True):
            picture[:, y : y + self.height, x : x + self.width] = patch
        return whole


def pixel_positions(
    window: PixelWindow, like: Float[Tensor, "*s"]
) -> tuple[Float[Tensor, "f ww"], Float[Tensor, "f hh"]]:
    """Return the x of every column and the y of every row of a window, in frame pixels."""
    corners = window.corners.to(like)
    x = corners[:, :1] + torch.arange(window.width).to(like)
    y = corners[:, 1:] + torch.arange(window.height).to(like)
    return x, y


def knot_distances(
    window: PixelWindow, origins: Float[Tensor, "f 2"], extent: tuple[float, float], counts: tuple[int, int]
) -> tuple[Float[Tensor, "f hh gh"], Float[Tensor, "f ww gw"]]:
    """Return how far each row and column lies from each control of a grid over a box, in knots.

    Positions outside the box are held to its border.
    """
    gh, gw = counts
    x, y = pixel_positions(window, origins)
    at_x = ((x + 0.5 - origins[:, :1]) * ((gw - 3) / extent[0])).clamp(0, gw - 3)
    at_y = ((y + 0.5 - origins[:, 1:]) * ((gh - 3) / extent[1])).clamp(0, gh - 3)
    centres_x, centres_y = torch.arange(-1, gw - 1).to(x), torch.arange(-1, gh - 1).to(x)
    return at_y[..., None] - centres_y, at_x[..., None] - centres_x


@final
@dataclass(frozen=True, eq=False)
class ChartMapping:
    """The mapping of one chart for a run of frames.

    `origins` and `extent` say where the control grid lies, in frame pixels counted from pixel edges (pixel 0
    covers 0 to 1): the box of frame t spans `origins[t]` to `origins[t] + extent`.
    """

    matrices: Float[Tensor, "f 3 3"]
    controls: Float[Tensor, "f 2 gh gw"]
    origins: Float[Tensor, "f 2"]
    extent: tuple[float, float]
    """Width and height of the box."""
    height: int
    width: int
    """Size of the frames that positions refer to."""

    def __len__(self) -> int:
        return int(self.matrices.shape[0])

    def part(self, start: int, stop: int) -> "ChartMapping":
        """Return the mapping of some of the frames."""
        cut = slice(start, stop)
        return replace(
            self, matrices=self.matrices[cut], controls=self.controls[cut], origins=self.origins[cut]
        )

    def at_size(self, height: int, width: int) -> "ChartMapping":
        """Return the same mapping for frames of another size; texels stay as they are."""
        sx, sy = self.width / width, self.height / height
        shrink = torch.tensor(
            [[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]], dtype=torch.float64
        )
        scale = self.origins.new_tensor([sx, sy])
        return replace(
            self,
            matrices=(self.matrices.cpu().double() @ shrink).to(self.matrices),
            origins=self.origins / scale,
            extent=(self.extent[0] / sx, self.extent[1] / sy),
            height=height,
            width=width,
        )

    def retextured(self, scale: float, offset: tuple[float, float]) -> "ChartMapping":
        """Return the same mapping into a texture `scale` times as fine, moved by `offset` texels."""
        centre = 0.5 * scale - 0.5
        move = torch.tensor(
            [[scale, 0, centre + offset[0]], [0, scale, centre + offset[1]], [0, 0, 1]], dtype=torch.float64
        )
        return replace(
            self,
            matrices=(move @ self.matrices.cpu().double()).to(self.matrices),
            controls=self.controls * scale,
        )

    def window(self) -> PixelWindow:
        """Return the whole pixels that each frame's box touches, moved inside the frame."""
        box_w = min(self.width, int(-(-self.extent[0] // 1)) + 1)
        box_h = min(self.height, int(-(-self.extent[1] // 1)) + 1)
        corners = self.origins.floor().long()
        limit = corners.new_tensor([self.width - box_w, self.height - box_h])
        return PixelWindow(corners.clamp(min=0).minimum(limit), box_h, box_w)

    def basis(self, window: PixelWindow) -> tuple[Float[Tensor, "f hh gh"], Float[Tensor, "f ww gw"]]:
        """Return the spline weights of each row and each column of the window."""
        knots_y, knots_x = self._knots(window)
        return cubic_spline(knots_y), cubic_spline(knots_x)

    def uv(self, window: PixelWindow) -> Float[Tensor, "f 2 hh ww"]:
        """Return the texture position of every pixel of a window."""
        rows, columns = self.basis(window)
        x, y = self._positions(window)
        top, bottom = self._lift_points(x[:, None, :], y[:, :, None])
        bent = rows[:, None] @ self.controls @ columns[:, None].transpose(-1, -2)
        return top / bottom + bent

    def jacobian(self, window: PixelWindow) -> Float[Tensor, "f 2 2 hh ww"]:
        """Return d uv / d p for every pixel: [:, i, j] is how component i of uv moves along axis j."""
        knots_y, knots_x = self._knots(window)
        rows, columns = cubic_spline(knots_y)[:, None], cubic_spline(knots_x)[:, None]
        slope_y, slope_x = spline_slope(knots_y)[:, None], spline_slope(knots_x)[:, None]
        step_x, step_y = self._knots_per_pixel()
        x, y = self._positions(window)
        top, bottom = self._lift_points(x[:, None, :], y[:, :, None])
        matrix = self.matrices.to(x.dtype)[..., None, None]
        bent_x = rows @ self.controls @ slope_x.transpose(-1, -2) * step_x
        bent_y = slope_y @ self.controls @ columns.transpose(-1, -2) * step_y
        flat = top / bottom
        along = [(matrix[:, :2, j] - flat * matrix[:, 2:, j]) / bottom for j in (0, 1)]
        return torch.stack([along[0] + bent_x, along[1] + bent_y], dim=2)

    def uv_at(self, t: int, points: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Return the texture positions of single points of one frame."""
        return self._uv_and_jacobian(t, points)[0]

    def invert(
        self, t: int, uv: Float[Tensor, "n 2"], start: Float[Tensor, "n 2"] | None = None
    ) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
        """Find the points of frame `t` at given texture positions, and the texels that each misses by."""
        if start is None:
            back = torch.linalg.inv(self.matrices[t].double()).to(uv.dtype)
            lifted = uv @ back[:, :2].T + back[:, 2]
            start = lifted[:, :2] / lifted[:, 2:]
        points = start
        reach = 0.25 * max(self.height, self.width)
        for _ in range(NEWTON_STEPS):
            found, jacobian = self._uv_and_jacobian(t, points)
            off = uv - found
            step = solve_pairs(jacobian, off)
            points = points + step.clamp(-reach, reach)
            if bool((step.abs() <= CONVERGED).all()):
                return points, off.norm(dim=-1)
        return points, (uv - self.uv_at(t, points)).norm(dim=-1)

    def _uv_and_jacobian(
        self, t: int, points: Float[Tensor, "n 2"]
    ) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2 2"]]:
        """Return the texture positions of points and the Jacobian there."""
        matrix = self.matrices[t].to(points.dtype)
        lifted = points @ matrix[:, :2].T + matrix[:, 2]
        flat = lifted[:, :2] / lifted[:, 2:]
        slope = (matrix[:2, :2] - flat[:, :, None] * matrix[2, :2]) / lifted[:, 2:, None]
        scale, last = (limit.to(points) for limit in self._knot_limits)
        # Outside its box the bend goes on as at the border: its value stays, its slope is zero.
        free = (points + 0.5 - self.origins[t].to(points)) * scale
        at = free.maximum(0 * last).minimum(last)
        scale = scale * (at == free)
        gh, gw = self.controls.shape[2:]
        away = [at[:, i : i + 1] - torch.arange(-1, n - 1).to(points) for i, n in enumerate((gw, gh))]
        both = torch.cat(away, 1)
        splines, slopes = cubic_spline(both), spline_slope(both)
        bx, by, slope_x, slope_y = splines[:, :gw], splines[:, gw:], slopes[:, :gw], slopes[:, gw:]
        grid = self.controls[t].to(points.dtype)
        across, down = (torch.einsum("na,iac->nic", row, grid) for row in (by, slope_y))
        bent = (across * bx[:, None]).sum(-1)
        bent_x = (across * slope_x[:, None]).sum(-1) * scale[:, :1]
        bent_y = (down * bx[:, None]).sum(-1) * scale[:, 1:]
        return flat + bent, slope + torch.stack([bent_x, bent_y], dim=-1)

    @cached_property
    def _knot_limits(self) -> Float[Tensor, "2 2"]:
        """How many knots there are to a pixel, across and down; and the last place between knots."""
        last = (self.controls.shape[3] - 3.0, self.controls.shape[2] - 3.0)
        return torch.tensor([self._knots_per_pixel(), last], dtype=torch.float64)

    def _knots_per_pixel(self) -> tuple[float, float]:
        gh, gw = self.controls.shape[2:]
        return (gw - 3) / self.extent[0], (gh - 3) / self.extent[1]

    def _knots(self, window: PixelWindow) -> tuple[Float[Tensor, "f hh gh"], Float[Tensor, "f ww gw"]]:
        gh, gw = self.controls.shape[2:]
        return knot_distances(window, self.origins.to(self.controls), self.extent, (gh, gw))

    def _positions(self, window: PixelWindow) -> tuple[Float[Tensor, "f ww"], Float[Tensor, "f hh"]]:
        return pixel_positions(window, self.controls)

    def _lift_points(
        self, x: Float[Tensor, "f 1 ww"], y: Float[Tensor, "f hh 1"]
    ) -> tuple[Float[Tensor, "f 2 hh ww"], Float[Tensor, "f 1 hh ww"]]:
        m = self.matrices.to(x.dtype)[..., None, None]
        lifted = m[:, :, 0] * x[:, None] + m[:, :, 1] * y[:, None] + m[:, :, 2]
        return lifted[:, :2], lifted[:, 2:]


def compose_matrices(first: Float[Tensor, "3 3"], second: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
    """Return the matrix that applies `first`, then `second`, scaled so that its last entry is 1."""
    both = second @ first
    return both / both[2, 2]


def texel_area(jacobian: Float[Tensor, "f 2 2 h w"]) -> Float[Tensor, "f h w"]:
    """Return how many texels a pixel covers; zero or less is a fold."""
    return jacobian[:, 0, 0] * jacobian[:, 1, 1] - jacobian[:, 0, 1] * jacobian[:, 1, 0]


def stretch_ratio(jacobian: Float[Tensor, "f 2 2 h w"]) -> Float[Tensor, "f h w"]:
    """Return how many times longer than wide a small painted disc becomes."""
    whole = jacobian.square().sum(dim=(1, 2))
    det = texel_area(jacobian).abs().clamp(min=1e-9)
    root = (whole.square() - 4 * det.square()).clamp(min=0).sqrt()
    return ((whole + root) / (2 * det)).clamp(min=1)
