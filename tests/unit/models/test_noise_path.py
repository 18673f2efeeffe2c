"""Noise paths: inverses of steps, agreement of the paths, and what a certain model gives."""

import itertools
import math
from typing import Literal, TypeAlias

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retouch.models.noise_path import (
    Level,
    Prediction,
    Schedule,
    add_noise,
    extrapolate,
    guided,
    inverse_step,
    step,
    target,
)

EXACT = 1e-9  # float64 arithmetic; sigma spans five decades, which costs a few digits
LOOSE = 1e-6  # the same after dividing by a signal that is nearly gone

NoisePath: TypeAlias = Literal["ddpm", "vp", "edm", "flow"]
PATHS: dict[NoisePath, Prediction] = {
    "ddpm": "epsilon",
    "vp": "v_prediction",
    "edm": "v_prediction",
    "flow": "flow",
}
angles = st.floats(0.01, 1.5)  # of (signal, noise): from nearly clean to nearly gone
paths = st.sampled_from(list(PATHS))


def level(angle: float, path: NoisePath) -> Level:
    """The level of a path at which noise over signal is the tangent of an angle."""
    a, b = math.cos(angle), math.sin(angle)
    scale = {"edm": 1 / a, "flow": 1 / (a + b)}.get(path, 1.0)
    return Level(a * scale, b * scale, angle, PATHS[path])


def clean_at(x: Tensor, out: Tensor, at: Level) -> Tensor:
    """The clean latents that a prediction implies: where a step to the clean end leads."""
    return step(x, out, at, Level(1.0, 0.0, 0.0, at.prediction))


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
def test_the_true_prediction_leads_to_the_clean_latents(path: NoisePath, angle: float) -> None:
    at, x, eps = level(angle, path), drawn(0), drawn(1)
    assert close(clean_at(add_noise(x, eps, at), target(x, eps, at), at), x, LOOSE)


@given(angles, angles)
def test_extrapolation_is_the_same_on_every_path(one: float, other: float) -> None:
    x0, eps = drawn(0), drawn(1)
    guesses = []
    for path in PATHS:
        lo, hi = level(min(one, other), path), level(max(one, other), path)
        sample = add_noise(x0, eps + 0.3 * x0, lo)
        guesses.append(extrapolate(x0, sample, lo, hi) / math.hypot(hi.signal, hi.noise))
    assert all(close(guesses[0], guess, LOOSE) for guess in guesses[1:])


@given(angles, angles)
def test_a_step_is_the_same_on_the_two_paths_that_share_a_prediction(one: float, other: float) -> None:
    x, velocity = drawn(0), drawn(1)
    ends = []
    for path in ("edm", "vp"):
        lo, hi = level(min(one, other), path), level(max(one, other), path)
        ends.append(
            step(x * math.hypot(hi.signal, hi.noise), velocity, hi, lo) / math.hypot(lo.signal, lo.noise)
        )
    assert close(ends[0], ends[1], LOOSE)


@given(angles, angles)
def test_an_edm_step_is_the_one_that_karras_writes(one: float, other: float) -> None:
    hi, lo = level(max(one, other), "edm"), level(min(one, other), "edm")
    x, velocity = drawn(0), drawn(1)
    sigma = hi.noise
    denoised = x / (sigma**2 + 1) - velocity * sigma / math.sqrt(sigma**2 + 1)
    assert close(step(x, velocity, hi, lo), x + (x - denoised) / sigma * (lo.noise - sigma), LOOSE)


@given(angles, angles)
def test_a_flow_step_is_a_straight_line(one: float, other: float) -> None:
    hi, lo = level(max(one, other), "flow"), level(min(one, other), "flow")
    x, velocity = drawn(0), drawn(1)
    assert close(step(x, velocity, hi, lo), x + (lo.noise - hi.noise) * velocity)


@pytest.mark.parametrize("path", PATHS)
def test_a_predictor_that_always_sees_the_clean_latents_reconstructs_exactly(path: NoisePath) -> None:
    x0, levels = drawn(0), [level(angle, path) for angle in (0.05, 0.3, 0.8, 1.2, 1.5)]
    x = add_noise(x0, eps := drawn(1), levels[0])
    for lo, hi in itertools.pairwise(levels):
        held = (extrapolate(x0, x, lo, hi) - hi.signal * x0) / hi.noise
        x = inverse_step(x, target(x0, held, hi), lo, hi)
    assert close(x, add_noise(x0, eps, levels[-1]), LOOSE)
    for hi, lo in zip(levels[:0:-1], levels[-2::-1], strict=True):
        x = step(x, target(x0, (x - hi.signal * x0) / hi.noise, hi), hi, lo)
    assert close(x, add_noise(x0, eps, levels[0]), LOOSE)


@pytest.mark.parametrize("path", PATHS)
def test_the_clean_end_is_no_special_case(path: NoisePath) -> None:
    hi, end = level(0.4, path), Level(1.0, 0.0, 0.0, PATHS[path])
    x, eps = drawn(0), drawn(1)
    assert close(inverse_step(step(x, eps, hi, end), eps, end, hi), x)
    assert torch.equal(extrapolate(x, x, end, hi), hi.signal * x)
    assert end.log_snr == math.inf


def test_pure_noise_can_be_stepped_from_and_to() -> None:
    pure, lo = Level(0.0, 1.0, 1.0, "v_prediction"), level(1.0, "vp")
    x, velocity = drawn(0), drawn(1)
    assert close(inverse_step(step(x, velocity, pure, lo), velocity, lo, pure), x)
    assert pure.log_snr == -math.inf


def test_one_scale_orders_the_levels_of_every_path() -> None:
    assert level(math.pi / 4, "edm").log_snr == pytest.approx(0)
    assert level(math.pi / 4, "flow").log_snr == pytest.approx(0)
    assert level(0.3, "vp").log_snr == pytest.approx(level(0.3, "edm").log_snr)


def test_up_and_down_are_the_same_steps_the_other_way_round_and_start_leaves_the_noisiest_out() -> None:
    levels = tuple(level(angle, "vp") for angle in (1.4, 1.0, 0.5, 0.1))
    schedule = Schedule(levels, start=1)
    assert schedule.down() == [(levels[1], levels[2]), (levels[2], levels[3])]
    assert schedule.up() == [(levels[3], levels[2]), (levels[2], levels[1])]


def test_guidance_goes_past_the_positive_prediction_and_changes_nothing_where_both_agree() -> None:
    one, other = drawn(0), drawn(1)
    assert torch.equal(guided(one, one, 12.5), one)
    assert torch.equal(guided(one, other, 0.0), one)
    assert close(guided(one, other, 3.0), other + 2 * (other - one))
    each = guided(one, other, torch.tensor([0.0, 1.0]))
    assert close(each, torch.stack([one[0], other[1]]))
