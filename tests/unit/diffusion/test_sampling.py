"""Inversion and sampling with a model that is certain: every prediction says the same clean latents."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from retouch.diffusion.inversion import draw_noise, invert
from retouch.diffusion.latents import KnownLatents
from retouch.diffusion.sampling import sample
from retouch.models.noise_path import Level, Prediction, Schedule, add_noise, target
from retouch.run import Run

EXACT = 1e-5  # float32 over six steps
LEVELS: dict[str, tuple[Prediction, Callable[[float], tuple[float, float]]]] = {
    "edm": ("v_prediction", lambda b: (1.0, b / (1 - b))),
    "flow": ("flow", lambda b: (1 - b, b)),
    "vp": ("v_prediction", lambda b: ((1 - b * b) ** 0.5, b)),
}


def schedule(path: str) -> Schedule:
    prediction, shares = LEVELS[path]
    noises = (0.95, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0)
    return Schedule(tuple(Level(*shares(b), b, prediction) for b in noises))


def drawn(seed: int) -> Tensor:
    return torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def certain(clean: Tensor, asked: list[Level]) -> Callable[[Tensor, Level], Tensor]:
    def predict(x: Tensor, level: Level) -> Tensor:
        asked.append(level)
        return target(clean, (x - level.signal * clean) / level.noise, level)

    return predict


def inverted(clean: Tensor, levels: Schedule, eps: Tensor, run: Run, asked: list[Level]) -> Tensor:
    trajectory = torch.empty(len(levels.levels), *clean.shape)
    trajectory[0] = clean
    invert(trajectory, certain(clean, asked), run.steps("invert", levels.up()), start=draw_noise(eps))
    return trajectory


@pytest.mark.parametrize("path", LEVELS)
def test_drawn_noise_is_what_a_certain_model_finds_and_the_source_comes_back(
    path: str, tmp_path: Path
) -> None:
    clean, eps, levels, run = drawn(0), drawn(1), schedule(path), Run.alone(tmp_path)
    asked: list[Level] = []
    noise = inverted(clean, levels, eps, run, asked)[-1]
    assert relative(noise, add_noise(clean, eps, levels.levels[0])) < EXACT
    back = sample(noise, certain(clean, asked), run.steps("sample", levels.down()))
    assert relative(back, clean) < EXACT
    assert len(asked) == 12


@pytest.mark.parametrize("path", LEVELS)
def test_known_latents_lead_and_what_is_unchanged_changes_nothing(path: str, tmp_path: Path) -> None:
    clean, levels, run = drawn(0), schedule(path), Run.alone(tmp_path)
    trajectory = inverted(clean, levels, drawn(1), run, [])
    where = torch.zeros(3, 1, 5, 6, dtype=torch.bool)
    where[:2] = where[2, :, :, 3:] = True

    def sampled(edited: Tensor) -> Tensor:
        known = KnownLatents(edited, where)
        of_source = dict(zip(levels.levels, trajectory.flip(0), strict=True))

        def replace(x: Tensor, level: Level) -> Tensor:
            return known.replace_in(x, of_source[level], clean, level)

        return sample(
            replace(trajectory[-1], levels.levels[0]),
            certain(clean, []),
            run.steps("sample", levels.down()),
            replace=replace,
        )

    assert relative(sampled(clean), clean) < EXACT
    led, everywhere = sampled(clean + 1), where.expand_as(clean)
    assert relative(led[everywhere], clean[everywhere] + 1) < EXACT
    assert relative(led[~everywhere], clean[~everywhere]) < EXACT


def test_what_is_known_stands_in_the_sample_that_is_predicted_from(tmp_path: Path) -> None:
    clean, levels, run = drawn(0), schedule("edm"), Run.alone(tmp_path)
    seen: list[float] = []

    def predict(x: Tensor, level: Level) -> Tensor:
        seen.append(float(x[0, 0, 0, 0]))
        return certain(clean, [])(x, level)

    def replace(x: Tensor, level: Level) -> Tensor:
        x = x.clone()
        x[0, 0, 0, 0] = level.noise
        return x

    sample(drawn(1), predict, run.steps("sample", levels.down()), replace=replace)
    assert seen[1:] == pytest.approx([level.noise for level in levels.levels[1:-1]])
