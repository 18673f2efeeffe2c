"""Steps along a noise path: inverses, agreement of the paths, and what a certain model gives."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retouch.diffusion.euler import (
    clean,
    extrapolate,
    inverse_step,
    log_snr,
    noise,
    renoise,
    step,
    velocity_of,
)
from retouch.models.image_to_video import Level, NoisePath

EXACT = 1e-9  # float64 arithmetic; sigma spans five decades, which costs a few digits
LOOSE = 1e-6  # the same after dividing by a signal that is nearly gone

angles = st.floats(0.01, 1.5)  # of (signal, noise): from nearly clean to nearly gone
paths = st.sampled_from(["edm", "vp", "flow"])


def level(angle: float, path: NoisePath) -> Level:
    """The level of a path at which noise over signal is the tangent of an angle."""
    a, b = math.cos(angle), math.sin(angle)
    scale = {"edm": 1 / a, "vp": 1.0, "flow": 1 / (a + b)}[path]
    return Level(a * scale, b * scale, angle, path)


def drawn(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = EXACT) -> bool:
    return float((a - b).norm()) <= tolerance * max(float(b.norm()), 1.0)


@given(paths, angles, angles)
def test_the_inverse_of_a_step_gives_the_sample_back(path: NoisePath, one: float, other: float) -> None:
    hi, lo = level(max(one, other), path), level(min(one, other), path)
    x, velocity = drawn(0), drawn(1)
    assert close(inverse_step(step(x, velocity, hi, lo), velocity, lo, hi), x)


@given(paths, angles)
def test_clean_and_noise_of_a_prediction_make_up_the_sample(path: NoisePath, angle: float) -> None:
    at, x, velocity = level(angle, path), drawn(0), drawn(1)
    assert close(renoise(clean(x, velocity, at), noise(x, velocity, at), at), x)


@given(paths, angles)
def test_velocity_of_is_the_prediction_that_implies_those_clean_latents(
    path: NoisePath, angle: float
) -> None:
    at, x, wanted = level(angle, path), drawn(0), drawn(1)
    assert close(clean(x, velocity_of(x, wanted, at), at), wanted)


@given(angles, angles)
def test_extrapolation_is_the_same_on_every_path(one: float, other: float) -> None:
    x0, eps = drawn(0), drawn(1)
    guesses = []
    for path in ("edm", "vp", "flow"):
        lo, hi = level(min(one, other), path), level(max(one, other), path)
        sample = renoise(x0, eps + 0.3 * x0, lo)
        guesses.append(extrapolate(x0, sample, lo, hi) / math.hypot(hi.a, hi.b))
    assert close(guesses[0], guesses[1], LOOSE)
    assert close(guesses[0], guesses[2], LOOSE)


@given(angles, angles)
def test_a_step_is_the_same_on_the_two_paths_that_share_a_prediction(one: float, other: float) -> None:
    x, velocity = drawn(0), drawn(1)
    ends = []
    for path in ("edm", "vp"):
        lo, hi = level(min(one, other), path), level(max(one, other), path)
        ends.append(step(x * math.hypot(hi.a, hi.b), velocity, hi, lo) / math.hypot(lo.a, lo.b))
    assert close(ends[0], ends[1], LOOSE)


@given(angles, angles)
def test_an_edm_step_is_the_one_that_karras_writes(one: float, other: float) -> None:
    hi, lo = level(max(one, other), "edm"), level(min(one, other), "edm")
    x, velocity = drawn(0), drawn(1)
    sigma = hi.b
    denoised = x / (sigma**2 + 1) - velocity * sigma / math.sqrt(sigma**2 + 1)
    assert close(step(x, velocity, hi, lo), x + (x - denoised) / sigma * (lo.b - sigma), LOOSE)


@given(angles, angles)
def test_a_flow_step_is_a_straight_line(one: float, other: float) -> None:
    hi, lo = level(max(one, other), "flow"), level(min(one, other), "flow")
    x, velocity = drawn(0), drawn(1)
    assert close(step(x, velocity, hi, lo), x + (lo.b - hi.b) * velocity)


@pytest.mark.parametrize("path", ["edm", "vp", "flow"])
def test_a_predictor_that_always_sees_the_clean_latents_reconstructs_exactly(path: NoisePath) -> None:
    x0, levels = drawn(0), [level(angle, path) for angle in (0.05, 0.3, 0.8, 1.2, 1.5)]
    x = renoise(x0, eps := drawn(1), levels[0])
    for lo, hi in itertools.pairwise(levels):
        guess = extrapolate(x0, x, lo, hi)
        x = inverse_step(x, velocity_of(guess, x0, hi), lo, hi)
    assert close(x, renoise(x0, eps, levels[-1]))
    for hi, lo in zip(levels[:0:-1], levels[-2::-1], strict=True):
        x = step(x, velocity_of(x, x0, hi), hi, lo)
    assert close(x, renoise(x0, eps, levels[0]), LOOSE)


@pytest.mark.parametrize("path", ["edm", "vp", "flow"])
def test_the_clean_end_is_no_special_case(path: NoisePath) -> None:
    hi, end = level(0.4, path), Level(1.0, 0.0, 0.0, path)
    x, velocity = drawn(0), drawn(1)
    assert close(step(x, velocity, hi, end), clean(x, velocity, hi))
    assert close(inverse_step(step(x, velocity, hi, end), velocity, end, hi), x)
    assert log_snr(end) == math.inf


def test_pure_noise_can_be_stepped_from_and_to() -> None:
    pure, lo = Level(0.0, 1.0, 1.0, "vp"), level(1.0, "vp")
    x, velocity = drawn(0), drawn(1)
    assert close(inverse_step(step(x, velocity, pure, lo), velocity, lo, pure), x)
    assert log_snr(pure) == -math.inf


def test_one_scale_orders_the_levels_of_every_path() -> None:
    assert log_snr(level(math.pi / 4, "edm")) == pytest.approx(0)
    assert log_snr(level(math.pi / 4, "flow")) == pytest.approx(0)
    assert log_snr(level(0.3, "vp")) == pytest.approx(log_snr(level(0.3, "edm")))
