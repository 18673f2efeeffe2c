"""Distillation held against closed forms, with networks that know a Gaussian's exact score."""

import math

import pytest
import torch
from torch import Tensor

from retouch.diffusion.sds import (
    delta_gradient,
    denoising_loss,
    gradient_as_loss,
    predicted_noise,
    score_gradient,
)
from retouch.models.noise_path import Level, Prediction, add_noise, guided, target

ROUNDING = 1e-5
SAMPLED = 0.02
"""Relative error that so many draws leave in a mean and a variance; about three deviations."""
DRAWS = 40_000
SIGMA, MEAN = 0.7, 0.4


def level(prediction: Prediction = "epsilon", noise: float = 0.6) -> Level:
    return Level(math.sqrt(1 - noise**2), noise, 500, prediction)


def drawn(seed: int, frames: int = DRAWS) -> Tensor:
    return torch.randn(frames, 1, 1, 1, generator=torch.Generator().manual_seed(seed))


def exact_noise(x: Tensor, at: Level, mean: float) -> Tensor:
    """The noise in `x` that a network would predict that knows N(mean, SIGMA^2) and nothing else."""
    return at.noise * (x - at.signal * mean) / (at.signal**2 * SIGMA**2 + at.noise**2)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_the_noise_is_read_out_of_every_kind_of_answer(prediction: Prediction) -> None:
    at = Level(0.4, 0.6, 500, "flow") if prediction == "flow" else level(prediction)
    clean, eps = drawn(0, 6), drawn(1, 6)
    found = predicted_noise(add_noise(clean, eps, at), target(clean, eps, at), at)
    assert torch.allclose(found, eps, atol=ROUNDING)


def test_score_distillation_leads_to_the_mean_by_the_closed_form() -> None:
    at, z, eps = level(), torch.full((DRAWS, 1, 1, 1), 1.1), drawn(2)
    found = score_gradient(exact_noise(add_noise(z, eps, at), at, MEAN), eps, at) / at.noise**2
    whole = at.signal**2 * SIGMA**2 + at.noise**2
    assert float(found.mean()) == pytest.approx(at.noise * at.signal * (1.1 - MEAN) / whole, rel=SAMPLED)
    assert float(found.var()) == pytest.approx((at.signal**2 * SIGMA**2 / whole) ** 2, rel=SAMPLED)


def test_a_network_that_always_finds_the_noise_moves_nothing() -> None:
    eps = drawn(3, 8)
    assert torch.equal(score_gradient(eps, eps, level()), torch.zeros_like(eps))


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0])
def test_guidance_moves_the_fixed_point_past_the_mean(weight: float) -> None:
    at, nothing, mean = level(), -0.2, 0.5
    z = nothing + weight * (mean - nothing)
    x = add_noise(torch.full((1, 1, 1, 1), z), torch.zeros(1, 1, 1, 1), at)
    out = guided(exact_noise(x, at, nothing), exact_noise(x, at, mean), weight)
    assert float(score_gradient(out, torch.zeros_like(x), at)) == pytest.approx(0, abs=ROUNDING)


def test_delta_denoising_has_no_variance_and_vanishes_at_the_source() -> None:
    at, eps, source = level(), drawn(4), torch.zeros(DRAWS, 1, 1, 1)
    of_source = exact_noise(add_noise(source, eps, at), at, 0.1)
    assert torch.equal(delta_gradient(of_source, of_source, at), torch.zeros_like(eps))
    moved = delta_gradient(exact_noise(add_noise(source + 0.8, eps, at), at, 0.4), of_source, at)
    assert float(moved.std()) < ROUNDING
    # The edit's fixed point lies as far from the source as the two means lie apart.
    there = delta_gradient(exact_noise(add_noise(source + 0.3, eps, at), at, 0.4), of_source, at)
    assert float(there.abs().max()) < ROUNDING
    assert float(moved.mean()) > 0


def test_the_loss_has_the_gradient_that_it_was_given() -> None:
    z, gradient = drawn(5, 4).requires_grad_(), drawn(6, 4)
    torch.autograd.backward(gradient_as_loss(z, gradient))
    assert z.grad is not None
    assert torch.allclose(z.grad, gradient / 4, atol=ROUNDING)


def test_the_denoising_loss_is_least_at_the_mean_and_counts_only_where_it_should() -> None:
    at, eps = level(), drawn(7).reshape(1, 1, 1, -1)

    def loss(z: float, where: Tensor) -> float:
        clean = torch.full_like(eps, z)
        out = exact_noise(add_noise(clean, eps, at), at, MEAN)
        return float(denoising_loss(out, clean, eps, at, where))

    ones = torch.ones_like(eps)
    assert loss(MEAN, ones) < min(loss(MEAN - 0.3, ones), loss(MEAN + 0.3, ones))
    half = ones.clone()
    half[..., : DRAWS // 2] = 0
    off = torch.where(half > 0, 0.0, 5.0)
    assert float(denoising_loss(eps + off, eps, eps, at, half)) == 0
    assert float(denoising_loss(eps + off, eps, eps, at, ones)) == pytest.approx(12.5)
