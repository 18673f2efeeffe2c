"""The closed forms behind a decomposition: spline fits, Gauss-Newton on pixels, least squares for textures.

Everything here is linear algebra on one block of frames. A product of B-splines is separable, so the normal
matrix of all pixels of a frame is two small matrix products (`normal_matrix`), never a scatter over pixels.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from retouch.atlas.mapping import ChartMapping, PixelWindow, texel_area
from retouch.atlas.textures import sample_texture

STEP_LIMIT = 2.0
"""Largest change of a control, in texels, that one Gauss-Newton step may make: gradients reach no further."""

LEAST_AREA = 0.08
"""A pixel may not shrink below this share of the frame's usual area in the texture; zero would be a fold."""

SAME_PLACE = 1e-4
"""Weight, per pixel of data, that holds controls without data where they are."""


@functools.lru_cache(maxsize=32)
def bending_energy(rows: int, columns: int) -> Float[Tensor, "n n"]:
    """Return the matrix whose quadratic form is the squared second differences of a control grid."""

    def second(n: int) -> Tensor:
        d = torch.zeros(max(n - 2, 0), n, dtype=torch.float64)
        for i in range(n - 2):
            d[i, i : i + 3] = torch.tensor([1.0, -2.0, 1.0])
        return d.T @ d

    def first(n: int) -> Tensor:
        d = torch.diff(torch.eye(n, dtype=torch.float64), dim=0)
        return d.T @ d

    eye_y, eye_x = torch.eye(rows, dtype=torch.float64), torch.eye(columns, dtype=torch.float64)
    whole = torch.kron(second(rows), eye_x) + torch.kron(eye_y, second(columns))
    return (whole + 2 * torch.kron(first(rows), first(columns))).float()


def normal_matrix(
    rows: Float[Tensor, "f h gh"], columns: Float[Tensor, "f w gw"], weights: Float[Tensor, "f c h w"]
) -> Float[Tensor, "f c n n"]:
    """Return the sum over pixels of weight times B(p) B(p)^T, for every weight picture."""
    pairs_y, place_y = _control_pairs(rows.shape[2])
    pairs_x, place_x = _control_pairs(columns.shape[2])
    by = rows[..., pairs_y[0]] * rows[..., pairs_y[1]]
    bx = columns[..., pairs_x[0]] * columns[..., pairs_x[1]]
    sums = by.transpose(1, 2)[:, None] @ (weights @ bx[:, None])  # f c pairs pairs
    sums = torch.nn.functional.pad(sums, (0, 1, 0, 1))  # the last pair stands for controls too far apart
    spread = sums[:, :, place_y][:, :, :, :, place_x]  # f c a b c d
    return spread.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)


@functools.lru_cache(maxsize=32)
def _control_pairs(count: int) -> tuple[Tensor, Tensor]:
    """Return the pairs of controls that share a pixel, and where each entry of a matrix finds its pair."""
    pairs = [(a, b) for a in range(count) for b in range(a, min(count, a + 4))]
    place = torch.full((count, count), len(pairs))
    for index, (a, b) in enumerate(pairs):
        place[a, b] = place[b, a] = index
    return torch.tensor(pairs).T, place


def rhs(
    rows: Float[Tensor, "f h gh"], columns: Float[Tensor, "f w gw"], values: Float[Tensor, "f c h w"]
) -> Float[Tensor, "f c n"]:
    """Return the sum over pixels of value times B(p), for every value picture."""
    return (rows.transpose(1, 2)[:, None] @ values @ columns[:, None]).flatten(2)


def geman_mcclure(squared: Float[Tensor, "*s"], scale: float) -> Float[Tensor, "*s"]:
    """Return the Geman-McClure weight of a squared residual: 1 for small ones, next to none for outliers."""
    return (1 + squared / scale**2) ** -2


def fit_field(
    mapping: ChartMapping,
    window: PixelWindow,
    wanted: Float[Tensor, "f 2 h w"],
    weights: Float[Tensor, "f 1 h w"],
    *,
    stiffness: float,
    rounds: int = 2,
) -> ChartMapping:
    """Fit the controls so that the mapping takes each pixel where it is wanted, forgiving outliers."""
    bare = replace(mapping, controls=torch.zeros_like(mapping.controls))
    residual = wanted - bare.uv(window)
    rows, columns = mapping.basis(window)
    gh, gw = mapping.controls.shape[2:]
    per_control = _pixels_per_control(mapping)
    hold = stiffness * per_control * bending_energy(gh, gw).to(rows)
    keep = SAME_PLACE * per_control * torch.eye(gh * gw).to(rows)
    before = mapping.controls.flatten(2)
    unit = texel_size(mapping, window)
    weight = weights
    controls = mapping.controls
    for _ in range(rounds):
        matrix = normal_matrix(rows, columns, weight)[:, 0] + hold + keep
        side = rhs(rows, columns, weight * residual) + before @ keep
        controls = (
            solve_each(matrix, side.transpose(1, 2)).transpose(1, 2).reshape(before.shape[0], -1, gh, gw)
        )
        bent = rows[:, None] @ controls @ columns[:, None].transpose(-1, -2)
        off = (residual - bent).square().sum(1, keepdim=True)
        weight = weights * geman_mcclure(off / unit**2, 1.0)
    return replace(mapping, controls=controls)


def solve_each(
    matrix: Float[Tensor, "*some n n"], side: Float[Tensor, "*some n k"]
) -> Float[Tensor, "*some n k"]:
    """Solve some systems one after the other.

    A stack of them at once comes out wrong, now and then, from an MKL whose threads were counted by
    `torch.set_num_threads`: each of its threads then starts threads of its own.
    """
    systems = zip(matrix.flatten(0, -3), side.flatten(0, -3), strict=True)
    return torch.stack([torch.linalg.solve(left, right) for left, right in systems]).view_as(side)


def texel_size(mapping: ChartMapping, window: PixelWindow) -> Float[Tensor, "f 1 1 1"]:
    """Return the usual length of a pixel in texels, one number a frame, from the matrices alone."""
    bare = replace(mapping, controls=torch.zeros_like(mapping.controls))
    middle = PixelWindow(
        window.corners + window.corners.new_tensor([window.width // 2, window.height // 2]), 1, 1
    )
    return texel_area(bare.jacobian(middle)).abs().clamp(min=1e-6).sqrt()[:, None]


def gauss_newton(
    mapping: ChartMapping,
    window: PixelWindow,
    pictures: Float[Tensor, "f 3 h w"],
    weights: Float[Tensor, "f 1 h w"],
    texture: Float[Tensor, "3 v u"],
    *,
    stiffness: float,
    tolerance: float = 0.12,
) -> ChartMapping:
    """Move the controls one Gauss-Newton step towards where the texture looks like the pictures.

    The slope is the mean of the picture's and the texture's, which makes the step exact to second order
    (Malis, 2004). A frame whose step would fold the texture takes half of it, or less.
    """
    rows, columns = mapping.basis(window)
    gh, gw = mapping.controls.shape[2:]
    shown = sample_texture(texture, mapping.uv(window))
    residual = pictures - shown
    weight = weights * geman_mcclure(residual.square().mean(1, keepdim=True), tolerance)
    along_u, along_v = _texture_slopes(0.5 * (pictures + shown), mapping.jacobian(window))
    products = torch.cat(
        [
            (weight * along_u.square()).sum(1, keepdim=True),
            (weight * along_u * along_v).sum(1, keepdim=True),
            (weight * along_v.square()).sum(1, keepdim=True),
        ],
        dim=1,
    )
    pull = torch.cat(
        [
            (weight * along_u * residual).sum(1, keepdim=True),
            (weight * along_v * residual).sum(1, keepdim=True),
        ],
        dim=1,
    )
    normal = normal_matrix(rows, columns, products)
    contrast = (products[:, 0] + products[:, 2]).sum((1, 2)) / (2 * weights.sum((1, 2, 3)) + 1)
    unit = (contrast + 1e-6)[:, None, None] * _pixels_per_control(mapping)
    hold = bending_energy(gh, gw).to(rows) * stiffness * unit
    keep = torch.eye(gh * gw).to(rows) * 0.01 * unit
    matrix = torch.cat(
        [
            torch.cat([normal[:, 0] + hold + keep, normal[:, 1]], dim=2),
            torch.cat([normal[:, 1].transpose(1, 2), normal[:, 2] + hold + keep], dim=2),
        ],
        dim=1,
    )
    controls = mapping.controls.flatten(2)
    side = rhs(rows, columns, pull) - controls @ hold
    step = solve_each(matrix, side.flatten(1)[..., None]).view(-1, 2, gh, gw)
    largest = step.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
    step = step * (STEP_LIMIT / largest).clamp(max=1)
    return without_folds(mapping, window, weights, step)


def without_folds(
    mapping: ChartMapping,
    window: PixelWindow,
    weights: Float[Tensor, "f 1 h w"],
    step: Float[Tensor, "f 2 gh gw"],
) -> ChartMapping:
    """Take as much of a step, frame by frame, as leaves every visible pixel the right way round."""
    share = torch.ones(len(mapping), 1, 1, 1).to(step)
    usual = texel_size(mapping, window)[:, 0].square()
    moved = mapping
    for _ in range(4):
        moved = replace(mapping, controls=mapping.controls + share * step)
        folded = (texel_area(moved.jacobian(window)) < LEAST_AREA * usual) & (weights[:, 0] > 0.05)
        bad = folded.flatten(1).any(1)
        if not bool(bad.any()):
            return moved
        share = torch.where(bad[:, None, None, None], 0.5 * share, share)
    share = torch.where(bad[:, None, None, None], 0 * share, share)
    return replace(mapping, controls=mapping.controls + share * step)


def _texture_slopes(
    pictures: Float[Tensor, "f 3 h w"], jacobian: Float[Tensor, "f 2 2 h w"]
) -> tuple[Float[Tensor, "f 3 h w"], Float[Tensor, "f 3 h w"]]:
    """Return how colours change along the texture's axes: picture slopes through the inverse Jacobian."""
    pad = torch.nn.functional.pad(pictures, (1, 1, 1, 1), mode="replicate")
    along_x = 0.5 * (pad[..., 1:-1, 2:] - pad[..., 1:-1, :-2])
    along_y = 0.5 * (pad[..., 2:, 1:-1] - pad[..., :-2, 1:-1])
    det = texel_area(jacobian)
    det = torch.where(det.abs() < 1e-4, torch.full_like(det, 1e-4), det)
    (ux, uy), (vx, vy) = (jacobian[:, 0].unbind(1), jacobian[:, 1].unbind(1))
    along_u = (vy[:, None] * along_x - vx[:, None] * along_y) / det[:, None]
    along_v = (ux[:, None] * along_y - uy[:, None] * along_x) / det[:, None]
    return along_u, along_v


def _pixels_per_control(mapping: ChartMapping) -> float:
    gh, gw = mapping.controls.shape[2:]
    return mapping.extent[0] * mapping.extent[1] / ((gw - 3) * (gh - 3))


def conjugate_gradients(
    product: Callable[[list[Tensor]], list[Tensor]],
    side: list[Tensor],
    diagonal: list[Tensor],
    *,
    rounds: int,
) -> list[Tensor]:
    """Solve a symmetric positive system, whose unknown is a list of tensors, from zero.

    Args:
        product: The system's matrix times an unknown.
        side: The right side.
        diagonal: About the matrix's diagonal, to precondition with.
        rounds: Products to spend.
    """

    def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()

    x = [torch.zeros_like(s) for s in side]
    r = [s.clone() for s in side]
    z = [a / d for a, d in zip(r, diagonal, strict=True)]
    p = [a.clone() for a in z]
    rho = dot(r, z)
    for _ in range(rounds):
        q = product(p)
        step = rho / dot(p, q).clamp(min=1e-20)
        for i in range(len(x)):
            x[i] += step * p[i]
            r[i] -= step * q[i]
            z[i] = r[i] / diagonal[i]
        rho, before = dot(r, z), rho
        turn = rho / before.clamp(min=1e-20)
        for i in range(len(p)):
            p[i] = z[i] + turn * p[i]
    return x


def roughness_gradient(texture: Float[Tensor, "c v u"]) -> Float[Tensor, "c v u"]:
    """Return the gradient of half the squared differences between neighbouring texels."""
    out = torch.zeros_like(texture)
    along_u, along_v = torch.diff(texture, dim=2), torch.diff(texture, dim=1)
    out[:, :, 1:] += along_u
    out[:, :, :-1] -= along_u
    out[:, 1:] += along_v
    out[:, :-1] -= along_v
    return out
