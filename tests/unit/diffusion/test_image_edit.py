import pytest
import torch
from torch import Tensor

from retouch.diffusion.image_edit import Goal, denoised, descent
from retouch.models.noise_path import Level, Prediction, Schedule, Timestep, add_noise, target

ROUNDING = 1e-5


class Oracle:
    """Knows the clean latents and answers with the exact noise, or the exact velocity, that leads to them."""

    def __init__(self, schedule: Schedule, clean: Tensor) -> None:
        self.schedule, self.clean, self.asked = schedule, clean, 0
        self.seen: list[Tensor | None] = []

    def predict(
        self, z: Tensor, t: Timestep, text: Tensor, *, residuals: object = None, seen: Tensor | None = None
    ) -> Tensor:
        del residuals
        self.asked += 1
        self.seen.append(seen)
        level = next(level for level in self.schedule.levels if level.t == t)
        clean = self.clean + text.mean()
        return target(clean, (z - level.signal * clean) / level.noise, level)


def schedule(prediction: Prediction = "epsilon") -> Schedule:
    shares = (0.05, 0.3, 0.6, 0.9, 1.0)
    return Schedule(
        tuple(
            Level(share**0.5, (1 - share) ** 0.5, 800 - n * 200, prediction) for n, share in enumerate(shares)
        )
    )


def some(seed: int) -> Tensor:
    return torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_denoising_with_the_exact_noise_arrives_at_the_clean_latents(prediction: Prediction) -> None:
    levels, truth = schedule(prediction), some(0)
    model = Oracle(levels, truth)
    steps = descent(levels, 0.75)
    z = add_noise(some(1), some(2), steps[0][0])
    for step in steps:
        z = denoised(z, step, Goal(torch.zeros(1, 1), torch.zeros(1, 1), 1.0), model)
    torch.testing.assert_close(z, truth, atol=ROUNDING, rtol=0)


def test_strength_says_how_many_of_the_last_steps_are_taken() -> None:
    levels = schedule()
    assert [len(descent(levels, strength)) for strength in (0.01, 0.5, 0.75, 1.0)] == [1, 2, 3, 4]
    assert all(descent(levels, strength)[-1][1].signal == 1 for strength in (0.01, 0.5, 1.0))


def test_guidance_goes_past_the_prompt_away_from_the_other() -> None:
    levels, truth = schedule(), some(3)
    model = Oracle(levels, truth)
    hi, lo = levels.down()[-1]
    goal = Goal(torch.full((1, 1), 0.5), torch.full((1, 1), -0.5), 3.0)
    z = denoised(add_noise(truth, some(4), hi), (hi, lo), goal, model)
    # From -0.5 three times the way to 0.5: the clean latents that the guided noise means lie at 2.5.
    torch.testing.assert_close(z, truth + 2.5, atol=ROUNDING, rtol=0)


def test_guidance_of_one_asks_the_network_once() -> None:
    levels, truth = schedule(), some(5)
    model = Oracle(levels, truth)
    step = levels.down()[0]
    denoised(some(6), step, Goal(torch.zeros(1, 1), torch.ones(1, 1), 1.0), model)
    assert model.asked == 1
    denoised(some(6), step, Goal(torch.zeros(1, 1), torch.ones(1, 1), 2.0), model)
    assert model.asked == 3


def test_a_reference_is_shown_with_what_is_wanted_and_nothing_with_what_is_not() -> None:
    levels, seen = schedule(), torch.ones(5)
    model = Oracle(levels, some(5))
    goal = Goal(torch.zeros(1, 1), torch.ones(1, 1), 2.0, seen)
    denoised(some(6), levels.down()[0], goal, model)
    shown, against = model.seen
    assert shown is seen
    assert against is not None
    assert torch.equal(against, torch.zeros(5))
