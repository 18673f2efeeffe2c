"""Inversion: that of DDIM in one call, and what sampling retraces in a few; whole under rounding."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retouch.diffusion.inversion import REACH, draw_noise, invert
from retouch.models.image import ddim_schedule
from retouch.models.noise_path import Level, Schedule, add_noise, extrapolate, step
from retouch.run import Step

SHAPE = (3, 2, 4, 4)


def drawn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fixed_point(f: Callable[[Tensor], Tensor], guess: Tensor, *, calls: int) -> Tensor:
    """The solution of f(x) = x by an inversion whose one step, on a flow from nothing, is a call of f."""
    latents = torch.zeros(2, *guess.shape, dtype=guess.dtype)
    lo, hi = Level(1.0, 0.0, 0.0, "flow"), Level(0.0, 1.0, 1.0, "flow")
    invert(latents, lambda x, _: f(x), [Step("up", 0, 1, (lo, hi))], calls=calls, start=lambda *_: guess)
    return latents[1]


def counted(f: Callable[[Tensor], Tensor]) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
    asked: list[Tensor] = []

    def ask(x: Tensor) -> Tensor:
        asked.append(x.clone())
        return f(x)

    return ask, asked


def repeated(f: Callable[[Tensor], Tensor], x: Tensor, calls: int) -> Tensor:
    for _ in range(calls):
        x = f(x)
    return x


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_f_is_called_as_often_as_said_and_once_is_a_plain_call(calls: int) -> None:
    f, asked = counted(torch.cos)
    found = fixed_point(f, drawn(0), calls=calls)
    assert len(asked) == calls
    assert calls > 1 or torch.equal(found, drawn(0).cos())


@given(st.lists(st.floats(-3, 0.8).filter(lambda slope: abs(slope) > 1e-3), min_size=3, max_size=3))
def test_straight_lines_are_solved_in_two_calls_each_frame_by_its_own(slopes: list[float]) -> None:
    slope = torch.tensor(slopes, dtype=torch.float64).reshape(3, 1, 1, 1)
    solution = drawn(1)
    found = fixed_point(lambda x: solution + slope * (x - solution), drawn(2), calls=2)
    torch.testing.assert_close(found, solution, rtol=0, atol=1e-5)


@pytest.mark.parametrize("calls", [3, 4, 6])
def test_a_map_of_many_directions_is_solved_more_closely_than_by_asking_again(calls: int) -> None:
    turn: Tensor = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)).double()).Q
    matrix: Tensor = turn @ torch.diag(torch.linspace(-0.8, 0.6, 16, dtype=torch.float64)) @ turn.T

    def f(x: Tensor) -> Tensor:
        moved: Tensor = ((x - 0.3).flatten(2) @ matrix).reshape(SHAPE)
        return moved.sin() + 0.3

    solution = repeated(f, drawn(4), 400)
    ours, plain = fixed_point(f, drawn(4), calls=calls), repeated(f, drawn(4), calls)
    assert float((ours - solution).norm()) < 0.7 * float((plain - solution).norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_calls_beyond_the_precision_of_numbers_stay_at_the_solution(dtype: torch.dtype) -> None:
    solution = drawn(5).to(dtype)
    found = fixed_point(lambda x: solution + 0.4 * (x - solution), drawn(6).to(dtype), calls=40)
    assert found.dtype == dtype
    near = 4 * REACH * torch.finfo(dtype).eps
    torch.testing.assert_close(found, solution, rtol=near, atol=near)
    held = fixed_point(lambda _: solution, solution, calls=3)
    assert torch.equal(held, solution)


# ---------------------------------------------------------------- whole inversions


def network(z: Tensor, t: float) -> Tensor:
    """A smooth function of latents and timestep, standing in for a network."""
    return torch.tanh(0.6 * z + 0.3 * z.roll(1, -1)) * (0.5 + t / 2000)


def schedule(steps: int, **options: object) -> Schedule:
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return ddim_schedule(DDIMScheduler(**betas, clip_sample=False, **options), steps)


def inverted(clean: Tensor, levels: Schedule, calls: int = 1) -> Tensor:
    ups = levels.up()
    latents = torch.zeros(len(ups) + 1, *clean.shape, dtype=clean.dtype)
    latents[0] = clean
    steps = [Step("invert", k, len(ups), pair) for k, pair in enumerate(ups)]
    invert(latents, lambda z, level: network(z, level.t), steps, calls=calls)
    return latents


VELOCITY = {
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
}


@pytest.mark.parametrize("options", [{}, VELOCITY])
def test_repeated_inversion_is_retraced_and_one_call_is_not(options: dict[str, object]) -> None:
    levels, errors = schedule(10, **options), []
    for calls in (1, 2, 4, 12):
        z = inverted(drawn(0), levels, calls)[-1]
        for hi, lo in levels.down():
            z = step(z, network(z, hi.t), hi, lo)
        errors.append(float((z - drawn(0)).abs().max()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 27 * errors[3]
    assert errors[3] < 1e-6


def test_one_call_is_ddim_inversion_at_the_timestep_of_the_noisier_level() -> None:
    latents = inverted(drawn(1), schedule(4, set_alpha_to_one=False, steps_offset=1))
    alphas = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    ).alphas_cumprod.double()
    z = drawn(1)
    for k, t in enumerate((1, 251, 501, 751)):
        eps = network(z, t)
        a_from, a_to = alphas[max(t - 250, 0)], alphas[t]
        x = (z - (1 - a_from) ** 0.5 * eps) / a_from**0.5
        z = a_to**0.5 * x + (1 - a_to) ** 0.5 * eps
        assert torch.allclose(latents[k + 1], z, atol=1e-12)


@pytest.mark.parametrize("calls", [1, 3])
def test_an_inversion_in_parts_and_with_a_buffer_of_ones_own_is_the_same(calls: int) -> None:
    levels, clean = schedule(6), drawn(2).repeat(30, 1, 1, 1)  # more frames than pass at once
    whole = inverted(clean, levels, calls)
    broken = whole.clone()
    broken[4:] = torch.nan
    rest = [Step("invert", k, 6, pair) for k, pair in enumerate(levels.up())][3:]
    buffer = torch.full((2, *clean.shape), torch.nan, dtype=clean.dtype)
    invert(broken, lambda z, level: network(z, level.t), rest, calls=calls, buffer=buffer)
    assert torch.equal(whole, broken)


def test_drawn_noise_gives_way_to_the_samples_own_where_that_outweighs_the_signal() -> None:
    clean, eps, other = drawn(0), drawn(1), drawn(2)
    start = draw_noise(other)
    ups = schedule(20).up()
    little = next(pair for pair in ups if 0 < pair[0].log_snr < 1)
    much = next(pair for pair in ups if pair[0].log_snr < 0)
    torch.testing.assert_close(
        start(clean, add_noise(clean, eps, little[0]), *little), add_noise(clean, other, little[1])
    )
    sample = add_noise(clean, eps, much[0])
    torch.testing.assert_close(start(clean, sample, *much), extrapolate(clean, sample, *much))
