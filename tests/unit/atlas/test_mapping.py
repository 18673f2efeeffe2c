"""Mapping: exact values, slopes, inverse, and what changes of size leave alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retouch.atlas.mapping import (
    ChartMapping,
    PixelWindow,
    compose_matrices,
    cubic_spline,
    spline_slope,
    stretch_ratio,
    texel_area,
)

ROUNDING = 2e-3  # float32 at positions of a few hundred texels
DIFFERENCES = 2e-2  # central differences of a cubic that bends within a pixel or two


def bent(seed: int = 0, strength: float = 1.0) -> ChartMapping:
    torch.manual_seed(seed)
    matrices = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    matrices[:, :2] += 0.05 * torch.randn(2, 2, 3, dtype=torch.float64)
    matrices[:, 2, :2] += 1e-4 * torch.randn(2, 2, dtype=torch.float64)
    origins = torch.tensor([[10.0, 5.0], [14.5, 8.25]])
    return ChartMapping(matrices, strength * torch.randn(2, 2, 8, 10), origins, (84.0, 60.0), 96, 160)


def naive(mapping: ChartMapping, t: int, x: float, y: float) -> Tensor:
    """The definition, one basis function at a time."""
    lifted = mapping.matrices[t] @ torch.tensor([x, y, 1.0], dtype=torch.float64)
    uv = lifted[:2] / lifted[2]
    gh, gw = mapping.controls.shape[2:]
    sx = (x + 0.5 - float(mapping.origins[t, 0])) * (gw - 3) / mapping.extent[0]
    sy = (y + 0.5 - float(mapping.origins[t, 1])) * (gh - 3) / mapping.extent[1]
    for a in range(gh):
        for c in range(gw):
            weight = float(cubic_spline(torch.tensor(sy - a + 1)) * cubic_spline(torch.tensor(sx - c + 1)))
            uv = uv + weight * mapping.controls[t, :, a, c].double()
    return uv


def test_the_spline_sums_to_one_everywhere() -> None:
    x = torch.linspace(0, 1, 33)
    total = sum(cubic_spline(x - k) for k in range(-2, 4))
    assert torch.allclose(torch.as_tensor(total), torch.ones(33), atol=1e-6)


def test_the_slope_of_the_spline_is_its_derivative() -> None:
    x = torch.linspace(-2.2, 2.2, 101, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(cubic_spline(x).sum(), x)
    assert torch.allclose(slope, spline_slope(x.detach()), atol=1e-9)


def test_uv_is_the_matrix_plus_the_sum_over_controls() -> None:
    mapping = bent()
    window = mapping.window()
    uv = mapping.uv(window)
    x, y = window.corners[1].tolist()
    for row, column in ((0, 0), (13, 41), (window.height - 2, window.width - 2)):
        wanted = naive(mapping, 1, x + column, y + row)
        assert torch.allclose(uv[1, :, row, column].double(), wanted, atol=ROUNDING)


def test_the_jacobian_is_the_slope_of_uv() -> None:
    mapping = bent(strength=0.3)
    window = mapping.window()
    uv, jacobian = mapping.uv(window), mapping.jacobian(window)
    along_x = (uv[:, :, 3:-3, 4:-2] - uv[:, :, 3:-3, 2:-4]) / 2
    along_y = (uv[:, :, 4:-2, 3:-3] - uv[:, :, 2:-4, 3:-3]) / 2
    numeric = torch.stack([along_x, along_y], 2)
    assert float((numeric - jacobian[..., 3:-3, 3:-3]).abs().max()) < DIFFERENCES


@given(st.floats(16, 86), st.floats(12, 58))
def test_invert_undoes_uv_at(x: float, y: float) -> None:
    mapping = bent(3)
    point = torch.tensor([[x, y]])
    found, miss = mapping.invert(1, mapping.uv_at(1, point))
    assert torch.allclose(found, point, atol=0.01)
    assert float(miss.max()) < 0.01


def test_single_points_and_windows_agree() -> None:
    mapping = bent(1)
    window = mapping.window()
    points = torch.tensor([[30.0, 20.0], [70.0, 44.0]])
    dense = mapping.uv(window)[0]
    x, y = window.corners[0].tolist()
    wanted = torch.stack([dense[:, 20 - y, 30 - x], dense[:, 44 - y, 70 - x]])
    assert torch.allclose(mapping.uv_at(0, points), wanted, atol=ROUNDING)


def test_another_frame_size_moves_no_texel() -> None:
    mapping = bent(2)
    points = torch.tensor([[30.0, 20.0], [70.0, 44.0]])
    doubled = mapping.at_size(192, 320)
    assert torch.allclose(doubled.uv_at(0, points * 2 + 0.5), mapping.uv_at(0, points), atol=ROUNDING)


def test_a_finer_texture_keeps_texel_edges_in_place() -> None:
    mapping = bent(2)
    points = torch.tensor([[30.0, 20.0]])
    fine = mapping.retextured(2.0, (5.0, -3.0)).uv_at(0, points)
    coarse = mapping.uv_at(0, points)
    assert torch.allclose(fine, (coarse + 0.5) * 2 - 0.5 + torch.tensor([5.0, -3.0]), atol=ROUNDING)


def test_cut_and_paste_are_each_others_inverse_inside_the_window() -> None:
    window = PixelWindow(torch.tensor([[3, 2], [5, 1]]), 4, 6)
    pictures = torch.rand(2, 3, 10, 14)
    whole = window.paste(window.cut(pictures), 10, 14)
    assert torch.equal(whole[0, :, 2:6, 3:9], pictures[0, :, 2:6, 3:9])
    assert float(whole[1].sum()) == pytest.approx(float(pictures[1, :, 1:5, 5:11].sum()), rel=1e-5)


def test_compose_applies_the_first_matrix_first() -> None:
    move = torch.tensor([[1.0, 0, 4], [0, 1, 0], [0, 0, 1]])
    grow = torch.diag(torch.tensor([2.0, 2.0, 1.0]))
    assert (compose_matrices(move, grow) @ torch.tensor([1.0, 1, 1]))[0] == 10


def test_anisotropy_is_the_ratio_of_the_axes_and_a_mirror_has_negative_area() -> None:
    angle = 0.7
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    jacobian = (turn @ torch.diag(torch.tensor([3.0, 2.0])))[None, :, :, None, None]
    assert float(stretch_ratio(jacobian)) == pytest.approx(1.5, rel=1e-4)
    assert float(texel_area(jacobian)) == pytest.approx(6.0, rel=1e-5)
    assert float(texel_area(jacobian * torch.tensor([1.0, -1.0])[None, None, :, None, None])) < 0
