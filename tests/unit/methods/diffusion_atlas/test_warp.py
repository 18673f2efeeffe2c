"""The warp's own shape: what it holds, what it costs, and that nothing moves at first."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from retouch.methods.diffusion_atlas.refine import LATTICE, CanonicalWarp, structure

ROUNDING = 1e-4
SIDE = 32


def warp(affine: list[list[float]], lattice: Tensor | None = None) -> CanonicalWarp:
    weight = torch.zeros(1, 1, SIDE, SIDE)
    weight[..., 6:20, 10:28] = 1
    bent = torch.zeros(2, LATTICE, LATTICE) if lattice is None else lattice
    return CanonicalWarp(torch.tensor(affine), bent, weight)


def places(frames: int = 2) -> Tensor:
    drawn = torch.rand(frames, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    return drawn * (SIDE - 1)


STILL = [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
SQUEEZE = [[0.2, 0.0, 0.0], [0.0, -0.15, 0.0]]


def test_a_warp_of_zeros_gives_places_back_bit_for_bit_and_costs_nothing() -> None:
    assert torch.equal(warp(STILL)(places()), places())
    assert float(structure(warp(STILL))) == 0


def test_what_lies_on_one_spot_lies_on_one_spot_afterwards() -> None:
    drawn = torch.randn(2, LATTICE, LATTICE, generator=torch.Generator().manual_seed(1)) * 0.1
    one = places(1)
    moved = warp(SQUEEZE, drawn)(torch.cat([one, one]))
    assert torch.equal(moved[0], moved[1])


@pytest.mark.parametrize("affine", [SQUEEZE, [[0.0, 0.0, 0.4], [0.0, 0.0, -0.2]]])
def test_the_object_does_not_move_as_a_whole(affine: list[list[float]]) -> None:
    made = warp(affine)
    y, x = torch.meshgrid(torch.arange(float(SIDE)), torch.arange(float(SIDE)), indexing="ij")
    grid = torch.stack([x, y])[None]
    mean = ((made(grid) - grid) * made.weight).sum((2, 3)) / made.weight.sum()
    assert float(mean.abs().max()) < ROUNDING * SIDE


def test_a_move_is_told_in_sides_of_the_crop_and_only_where_the_object_is() -> None:
    made = warp([[0.2, 0.0, 0.0], [0.0, 0.0, 0.0]])
    spread = np.arange(10, 28).std()
    assert made.moves() == pytest.approx(0.2 * spread / SIDE, rel=ROUNDING)
    assert warp([[0.0, 0.0, 0.4], [0.0, 0.0, -0.2]]).moves() < ROUNDING


def test_bending_costs_more_than_leaning_and_folding_most() -> None:
    drawn = torch.randn(2, LATTICE, LATTICE, generator=torch.Generator().manual_seed(2)) * 0.05
    leaning, bending = structure(warp(SQUEEZE)), structure(warp(STILL, drawn))
    mirrored = structure(warp([[-2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert 0 < float(leaning) < float(bending) < float(mirrored)


def test_the_slope_is_that_of_the_affine_part() -> None:
    slope = warp(SQUEEZE).jacobian()[0, :, :, 8, 8]
    assert torch.allclose(slope, torch.tensor([[1.2, 0.0], [0.0, 0.85]]), atol=ROUNDING * 10)
    assert math.isclose(float(torch.linalg.det(slope)), 1.02, rel_tol=1e-3)
