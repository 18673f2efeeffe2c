"""Solvers against naive sums and known answers."""

from dataclasses import replace

import torch

from retouch.atlas.mapping import ChartMapping, texel_area
from retouch.atlas.solve import (
    bending_energy,
    conjugate_gradients,
    fit_field,
    gauss_newton,
    geman_mcclure,
    normal_matrix,
    rhs,
    roughness_gradient,
    solve_each,
    without_folds,
)
from retouch.atlas.textures import gaussian_blur, sample_texture

ROUNDING = 1e-4
HALF_A_PIXEL = 0.5


def flat(frames: int = 1, spacing: int = 6) -> ChartMapping:
    controls = torch.zeros(frames, 2, 48 // spacing + 3, 64 // spacing + 3)
    eye = torch.eye(3, dtype=torch.float64).repeat(frames, 1, 1)
    return ChartMapping(eye, controls, torch.zeros(frames, 2), (64.0, 48.0), 48, 64)


def test_the_normal_matrix_is_the_sum_over_pixels() -> None:
    torch.manual_seed(0)
    mapping = flat()
    rows, columns = mapping.basis(mapping.window())
    weights = torch.rand(1, 2, 48, 64)
    products = torch.einsum("fya,fxc->fyxac", rows, columns).flatten(3)
    wanted = torch.einsum("fyxm,fkyx,fyxn->fkmn", products, weights, products)
    assert torch.allclose(normal_matrix(rows, columns, weights), wanted, atol=ROUNDING)


def test_the_right_side_is_the_sum_over_pixels() -> None:
    torch.manual_seed(0)
    mapping = flat()
    rows, columns = mapping.basis(mapping.window())
    values = torch.rand(1, 2, 48, 64)
    wanted = torch.einsum("fya,fxc,fkyx->fkac", rows, columns, values).flatten(2)
    assert torch.allclose(rhs(rows, columns, values), wanted, atol=1e-3)


def test_bending_does_not_resist_affine_motion_but_resists_a_kink() -> None:
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    plane = (3 + 2 * x - y).flatten()
    assert abs(float(plane @ bending_energy(5, 7) @ plane)) < ROUNDING
    kink = (x - 3).abs().flatten()
    assert float(kink @ bending_energy(5, 7) @ kink) > 1


def test_outliers_weigh_next_to_nothing() -> None:
    found = geman_mcclure(torch.tensor([0.0, 1.0, 100.0]), 1.0)
    assert found.tolist()[:2] == [1.0, 0.25]
    assert float(found[2]) < 1e-3


def test_fit_field_finds_a_smooth_field_and_forgives_a_tenth_of_outliers() -> None:
    torch.manual_seed(1)
    mapping = flat()
    window = mapping.window()
    true = replace(mapping, controls=gaussian_blur(torch.randn_like(mapping.controls), 1.0) * 4)
    wanted = true.uv(window)
    wrong = torch.rand(1, 1, 48, 64) < 0.1
    fitted = fit_field(
        mapping,
        window,
        torch.where(wrong, wanted + 30, wanted),
        torch.ones(1, 1, 48, 64),
        stiffness=1e-4,
        rounds=8,
    )
    assert float((fitted.uv(window) - wanted).abs().mean()) < 0.1


def test_gauss_newton_brings_a_shifted_picture_back() -> None:
    torch.manual_seed(2)
    texture = gaussian_blur(torch.rand(1, 3, 60, 80), 2.5)[0] * 4
    mapping = flat().retextured(1.0, (8.0, 6.0))
    window = mapping.window()
    true = replace(mapping, controls=mapping.controls + torch.tensor([1.2, -0.8])[None, :, None, None])
    picture = sample_texture(texture, true.uv(window))
    found = mapping
    for _ in range(6):
        found = gauss_newton(found, window, picture, torch.ones(1, 1, 48, 64), texture, stiffness=0.1)
    off = (found.uv(window) - true.uv(window)).norm(dim=1)
    assert float(off.mean()) < 0.05 < 1.4  # began 1.44 texels away


def test_a_step_that_would_fold_is_cut() -> None:
    torch.manual_seed(3)
    mapping = flat()
    window = mapping.window()
    seen = torch.ones(1, 1, 48, 64)
    step = torch.randn_like(mapping.controls) * 12
    assert float(texel_area(replace(mapping, controls=step).jacobian(window)).min()) < 0
    assert float(texel_area(without_folds(mapping, window, seen, step).jacobian(window)).min()) > 0


def test_conjugate_gradients_solve_a_list_of_unknowns() -> None:
    torch.manual_seed(4)
    factor = torch.randn(12, 12)
    matrix = factor @ factor.T + torch.eye(12)
    answer = torch.randn(12)

    def product(parts: list[torch.Tensor]) -> list[torch.Tensor]:
        whole = matrix @ torch.cat(parts)
        return [whole[:5], whole[5:]]

    side = matrix @ answer
    diagonal = matrix.diagonal()
    found = conjugate_gradients(product, [side[:5], side[5:]], [diagonal[:5], diagonal[5:]], rounds=40)
    assert torch.allclose(torch.cat(found), answer, atol=1e-2)


def test_roughness_is_the_gradient_of_half_the_squared_differences() -> None:
    texture = torch.rand(2, 6, 7, dtype=torch.float64, requires_grad=True)
    energy = 0.5 * (texture.diff(dim=1).square().sum() + texture.diff(dim=2).square().sum())
    (gradient,) = torch.autograd.grad(energy, texture)
    assert torch.allclose(roughness_gradient(texture.detach()), gradient)


def test_systems_are_solved_whatever_threads_are_asked_for() -> None:
    root = torch.randn(8, 256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix, answer = root @ root.mT + 256 * torch.eye(256), torch.ones(8, 256, 3, dtype=torch.float64)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.allclose(solve_each(matrix, matrix @ answer), answer)
    finally:
        torch.set_num_threads(before)
