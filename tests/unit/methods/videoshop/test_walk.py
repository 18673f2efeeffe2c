"""The two walks with a model that is certain: every prediction says the same clean latents."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import pytest
import torch
from torch import Tensor

from retouch.diffusion.inversion import draw_noise
from retouch.errors import Cancelled
from retouch.methods.videoshop.walk import Settled, invert, sample
from retouch.models.image_to_video import Condition, StableVideo, Traits
from retouch.models.noise_path import Level, Prediction, Schedule, add_noise, extrapolate, target
from retouch.run import Run

EXACT = 1e-5  # float32 over six steps


@final
@dataclass(frozen=True, eq=False)
class Certain:
    """The condition of a model that always sees the same clean latents."""

    clean: Tensor

    @property
    def identity(self) -> str:
        return "certain"


@final
class Oracle:
    """A model that sees its condition's clean latents in whatever it is shown; counts its calls."""

    traits = Traits(1, 1, 1, 4, 3, 30, keeps_first_frame=False, reads_text=False)
    identity = "oracle"
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.asked = 0

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def decode(self, latents: Tensor, at_once: int | None = None) -> Tensor:  # noqa: ARG002
        return latents

    def condition(
        self,
        first: Tensor,
        *,
        frames: int,
        prompt: str = "",  # noqa: ARG002
        noise: Tensor | None = None,  # noqa: ARG002
        latent: Tensor | None = None,  # noqa: ARG002
    ) -> Certain:
        return Certain(first.expand(frames, -1, -1, -1))

    def schedule(self, steps: int, strength: float, latents: Tensor) -> Schedule:  # noqa: ARG002
        return schedule("edm")

    def predict(
        self,
        x: Tensor,
        level: Level,
        condition: Condition,
        *,
        against: Condition | None = None,  # noqa: ARG002
        guidance: float | Tensor = 1.0,  # noqa: ARG002
    ) -> Tensor:
        self.asked += 1
        assert isinstance(condition, Certain)
        eps = (x - level.signal * condition.clean) / level.noise
        return target(condition.clean, eps, level)

    def unconditional(self, condition: Condition) -> Condition:
        return condition

    def moving(self, latents: Tensor) -> Tensor:
        return torch.ones(len(latents), 1, 1, 1, dtype=torch.bool)


LEVELS: dict[str, tuple[Prediction, Callable[[float], tuple[float, float]]]] = {
    "edm": ("v_prediction", lambda b: (1.0, b / (1 - b))),
    "flow": ("flow", lambda b: (1 - b, b)),
    "vp": ("v_prediction", lambda b: ((1 - b * b) ** 0.5, b)),
}


def schedule(path: str) -> Schedule:
    prediction, shares = LEVELS[path]
    noises = (0.95, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0)
    return Schedule(tuple(Level(*shares(b), b, prediction) for b in noises))


def drawn(seed: int, frames: int = 3) -> Tensor:
    return torch.randn(frames, 4, 5, 6, generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("path", ["edm", "flow", "vp"])
def test_drawn_noise_is_what_a_certain_model_finds_and_the_source_comes_back(
    path: str, tmp_path: Path
) -> None:
    clean, eps, run, model = drawn(0), drawn(1), Run.alone(tmp_path), Oracle()
    levels, guess = schedule(path), draw_noise(eps * clean.std())
    ladder = invert(model, clean, levels, Certain(clean), guess=guess, calls=1, run=run)
    assert relative(ladder[-1], add_noise(clean, eps * clean.std(), levels.levels[0])) < EXACT
    back = sample(model, ladder[-1], levels, Certain(clean), run=run)
    assert relative(back, clean) < EXACT
    assert model.asked == 12


def test_what_is_settled_leads_and_what_is_unchanged_changes_nothing(tmp_path: Path) -> None:
    clean, run, model = drawn(0), Run.alone(tmp_path), Oracle()
    levels = schedule("edm")
    ladder = invert(model, clean, levels, Certain(clean), guess=draw_noise(drawn(1)), calls=1, run=run)
    where = torch.zeros(3, 1, 5, 6, dtype=torch.bool)
    where[:2] = where[2, :, :, 3:] = True
    same = Settled.of(ladder, clean, where, levels)
    back = sample(model, ladder[-1], levels, Certain(clean), run=run, settled=same)
    assert relative(back, clean) < EXACT
    edited = Settled.of(ladder, clean + 1, where, levels)
    led = sample(model, ladder[-1], levels, Certain(clean), run=run, settled=edited)
    everywhere = where.expand_as(clean)
    assert relative(led[everywhere], clean[everywhere] + 1) < EXACT
    assert relative(led[~everywhere], clean[~everywhere]) < EXACT


def test_a_stopped_walk_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    clean, levels, start = drawn(0), schedule("edm"), draw_noise(drawn(1))
    whole = invert(
        Oracle(), clean, levels, Certain(clean), guess=start, calls=2, run=Run.alone(tmp_path / "whole")
    )
    model, run = Oracle(), Run.alone(tmp_path / "broken")
    stopping = replace(run, stopped=lambda: model.asked >= 10)
    with pytest.raises(Cancelled):
        invert(model, clean, levels, Certain(clean), guess=start, calls=2, run=stopping)
    resumed = invert(model, clean, levels, Certain(clean), guess=start, calls=2, run=run)
    assert torch.equal(resumed, whole)
    assert model.asked == 10 + 4, "the steps since the last checkpoint, and those that were missing"


def test_steps_on_random_weights_are_as_good_as_the_rounds_they_get(tmp_path: Path) -> None:
    pipeline = Path(__file__).resolve().parents[3] / "parity" / "data" / "videoshop" / "pipeline"
    model, run = StableVideo.from_pretrained(str(pipeline)), Run.alone(tmp_path)
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents, condition = model.encode(pixels), model.condition(pixels[0], frames=2)
    levels, errors = model.schedule(8, 0.8, latents), []
    for rounds in (1, 2, 3):
        ladder = invert(model, latents, levels, condition, guess=extrapolate, calls=rounds, run=run)
        errors.append(relative(sample(model, ladder[-1], levels, condition, run=run), latents))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
