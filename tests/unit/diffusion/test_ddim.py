from dataclasses import dataclass

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retouch.diffusion.ddim import (
    Latents,
    Level,
    Prediction,
    Schedule,
    checked,
    clean,
    climb,
    move,
    move_back,
    schedule,
)
from retouch.errors import ModelMismatch

ROUNDING = 1e-5
"""Single precision."""

unit = st.floats(0.02, 0.98)
kinds: st.SearchStrategy[Prediction] = st.sampled_from(("epsilon", "v_prediction"))


@dataclass
class Model:
    """What a schedule asks of a model, from a scheduler of diffusers."""

    scheduler: DDIMScheduler

    @property
    def alphas_cumprod(self) -> Tensor:
        alphas: Tensor = self.scheduler.alphas_cumprod
        return alphas

    @property
    def final_alpha(self) -> float:
        return float(self.scheduler.final_alpha_cumprod)

    @property
    def prediction(self) -> str:
        return str(self.scheduler.config.prediction_type)

    def timesteps(self, steps: int) -> list[int]:
        self.scheduler.set_timesteps(steps)
        return [int(t) for t in self.scheduler.timesteps]


def network(z: Tensor, t: int) -> Tensor:
    """A smooth function of latents and timestep, standing in for a network."""
    return torch.tanh(0.6 * z + 0.3 * z.roll(1, -1)) * (0.5 + t / 2000)


def scheduler(**options: object) -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, **options
    )


@pytest.mark.parametrize(
    "options",
    [
        {"set_alpha_to_one": False, "steps_offset": 1},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    ],
)
def test_the_way_down_is_that_of_diffusers(options: dict[str, object]) -> None:
    theirs = scheduler(**options)
    ours = schedule(Model(theirs), 10)
    z = expected = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    theirs.set_timesteps(10)
    for (hi, lo), t in zip(ours.descending, theirs.timesteps, strict=True):
        assert hi.t == int(t)
        z = move(z, network(z, hi.t), hi, lo, ours.prediction)
        expected = theirs.step(network(expected, int(t)), t, expected).prev_sample
    assert torch.allclose(z, expected, atol=ROUNDING)


@given(unit, unit, kinds)
def test_a_step_back_undoes_a_step(a: float, b: float, kind: Prediction) -> None:
    lo, hi = Level.of(1, max(a, b)), Level.of(2, min(a, b))
    z, out = (
        torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        for n in (0, 1)
    )
    assert torch.allclose(move_back(move(z, out, hi, lo, kind), out, lo, hi, kind), z, atol=1e-9)


@given(unit, kinds)
def test_the_true_prediction_leads_to_the_clean_latents(alpha: float, kind: Prediction) -> None:
    level, end = Level.of(1, alpha), Level.of(0, 1.0)
    x, eps = (
        torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        for n in (0, 1)
    )
    z = level.signal * x + level.noise * eps
    out = eps if kind == "epsilon" else level.signal * eps - level.noise * x
    assert torch.allclose(clean(z, out, level, kind), x, atol=1e-9)
    assert torch.allclose(move(z, out, level, end, kind), x, atol=1e-9)


def round_trip(iterations: int, plan: Schedule) -> float:
    rungs = np.zeros((plan.steps + 1, 2, 4, 4, 6), np.float64)
    rungs[0] = np.random.default_rng(0).normal(size=rungs.shape[1:])

    def predict(z: Latents, out: Latents, level: Level) -> None:
        out[:] = network(torch.from_numpy(z), level.t).numpy()

    filled = list(climb(rungs, predict, plan, spare=np.zeros_like(rungs[0]), iterations=iterations))
    assert filled == list(range(1, plan.steps + 1))
    z = torch.from_numpy(rungs[-1].copy())
    for hi, lo in plan.descending:
        z = move(z, network(z, hi.t), hi, lo, plan.prediction)
    return float((z - torch.from_numpy(rungs[0])).abs().max())


@pytest.mark.parametrize(
    "options",
    [{}, {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}],
)
def test_repeated_inversion_is_retraced_and_one_pass_is_not(options: dict[str, object]) -> None:
    plan = schedule(Model(scheduler(**options)), 10)
    errors = [round_trip(iterations, plan) for iterations in (1, 3, 20)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 1e-6


def test_one_pass_is_ddim_inversion_at_the_timestep_of_the_noisier_level() -> None:
    plan = schedule(Model(scheduler(set_alpha_to_one=False, steps_offset=1)), 4)
    rungs = np.zeros((5, 1, 2, 3, 3))
    rungs[0] = np.random.default_rng(1).normal(size=rungs.shape[1:])

    def predict(z: Latents, out: Latents, level: Level) -> None:
        out[:] = network(torch.from_numpy(z), level.t).numpy()

    list(climb(rungs, predict, plan, spare=np.zeros_like(rungs[0])))
    alphas = scheduler().alphas_cumprod.double()
    z = torch.from_numpy(rungs[0])
    for k, t in enumerate((1, 251, 501, 751)):
        eps = network(z, t)
        a_from, a_to = alphas[max(t - 250, 0)], alphas[t]
        x = (z - (1 - a_from) ** 0.5 * eps) / a_from**0.5
        z = a_to**0.5 * x + (1 - a_to) ** 0.5 * eps
        assert torch.allclose(torch.from_numpy(rungs[k + 1]), z, atol=1e-12)


def test_an_inversion_goes_on_where_it_was_stopped() -> None:
    plan = schedule(Model(scheduler()), 6)

    def predict(z: Latents, out: Latents, level: Level) -> None:
        out[:] = network(torch.from_numpy(z), level.t).numpy()

    def start() -> np.ndarray:
        rungs = np.zeros((7, 1, 2, 3, 3))
        rungs[0] = np.random.default_rng(2).normal(size=rungs.shape[1:])
        return rungs

    whole, broken = start(), start()
    list(climb(whole, predict, plan, spare=np.zeros_like(whole[0]), iterations=2))
    for k in climb(broken, predict, plan, spare=np.zeros_like(broken[0]), iterations=2):
        if k == 3:
            break
    broken[4:] = np.nan
    list(climb(broken, predict, plan, spare=np.zeros_like(broken[0]), iterations=2, done=3))
    assert np.array_equal(whole, broken)


def test_pure_noise_is_refused_where_noise_is_predicted() -> None:
    levels = (Level.of(-1, 1.0), Level.of(500, 0.3), Level.of(999, 0.0))
    assert checked(Schedule(levels, "v_prediction")).steps == 2
    with pytest.raises(ModelMismatch, match="pure noise"):
        checked(Schedule(levels, "epsilon"))
    with pytest.raises(ModelMismatch, match="single step"):
        checked(Schedule((levels[0], levels[2]), "v_prediction"))


def test_other_predictions_are_refused() -> None:
    with pytest.raises(ModelMismatch, match="'sample'"):
        schedule(Model(scheduler(prediction_type="sample")), 4)
