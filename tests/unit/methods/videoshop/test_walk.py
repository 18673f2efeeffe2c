"""The two walks with a model that is certain: every prediction says the same clean latents."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pytest
import torch
from torch import Tensor

from retouch.artifacts import Draft
from retouch.diffusion.euler import renoise, velocity_of
from retouch.methods.videoshop.walk import Settled, drawn_then_same, invert, same_noise, same_sample, sample
from retouch.models.image_to_video import Condition, Level, NoisePath, Schedule, StableVideo, Traits
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

    def __init__(self, *, hold: bool = False) -> None:
        self.asked = 0
        self.hold = hold

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
        return velocity_of(x, condition.clean, level)

    def unconditional(self, condition: Condition) -> Condition:
        return condition

    def moving(self, latents: Tensor) -> Tensor:
        return torch.ones(len(latents), 1, 1, 1, dtype=torch.bool)

    def held(self, x: Tensor, condition: Condition) -> Tensor:
        assert isinstance(condition, Certain)
        return torch.cat([condition.clean[:1], x[1:]]) if self.hold else x


LEVELS: dict[NoisePath, Callable[[float], tuple[float, float]]] = {
    "edm": lambda b: (1.0, b / (1 - b)),
    "flow": lambda b: (1 - b, b),
    "vp": lambda b: ((1 - b * b) ** 0.5, b),
}


def schedule(path: NoisePath) -> Schedule:
    return Schedule(tuple(Level(*LEVELS[path](b), b, path) for b in (0.95, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0)), 0)


def drawn(seed: int, frames: int = 3) -> Tensor:
    return torch.randn(frames, 4, 5, 6, generator=torch.Generator().manual_seed(seed))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("path", ["edm", "flow", "vp"])
def test_drawn_noise_is_what_a_certain_model_finds_and_the_source_comes_back(
    path: NoisePath, tmp_path: Path
) -> None:
    clean, eps, run, model = drawn(0), drawn(1), Run.alone(tmp_path), Oracle()
    levels, guess = schedule(path), drawn_then_same(eps * clean.std())
    ladder = invert(model, clean, levels, Certain(clean), guess=guess, calls=1, run=run)
    assert relative(ladder[-1], renoise(clean, eps * clean.std(), levels.levels[0])) < EXACT
    back = sample(model, ladder[-1], levels, Certain(clean), run=run)
    assert relative(back, clean) < EXACT
    assert model.asked == 12


def test_extrapolation_looks_at_the_next_levels_noise_and_the_plain_guess_does_not() -> None:
    clean, eps = drawn(0), drawn(1)
    lo, hi = schedule("edm").up()[3]
    x = renoise(clean, eps, lo)
    assert relative(same_noise(clean, x, lo, hi), renoise(clean, eps, hi)) < EXACT
    assert torch.equal(same_sample(clean, x, lo, hi), x)


def test_the_released_rule_changes_over_where_noise_outweighs_signal() -> None:
    clean, eps, other = drawn(0), drawn(1), drawn(2)
    guess, ups = drawn_then_same(other), schedule("edm").up()
    below = next(pair for pair in ups if 0.5 < pair[0].b < 1)
    above = next(pair for pair in ups if pair[0].b > 1)
    assert (
        relative(guess(clean, renoise(clean, eps, below[0]), *below), renoise(clean, other, below[1])) < EXACT
    )
    assert (
        relative(guess(clean, renoise(clean, eps, above[0]), *above), renoise(clean, eps, above[1])) < EXACT
    )


def test_a_held_frame_is_never_touched(tmp_path: Path) -> None:
    clean, run, model = drawn(0), Run.alone(tmp_path), Oracle(hold=True)
    eps, levels = drawn(1), schedule("flow")
    held = Certain(clean)
    ladder = invert(model, clean, levels, held, guess=drawn_then_same(eps), calls=2, run=run)
    assert (ladder[:, 0] == clean[0]).all()
    assert relative(ladder[-1, 1:], renoise(clean, eps, levels.levels[0])[1:]) < EXACT
    assert torch.equal(sample(model, ladder[-1], levels, held, run=run)[0], clean[0])


def test_what_is_settled_leads_and_what_is_unchanged_changes_nothing(tmp_path: Path) -> None:
    clean, run, model = drawn(0), Run.alone(tmp_path), Oracle()
    levels = schedule("edm")
    ladder = invert(model, clean, levels, Certain(clean), guess=drawn_then_same(drawn(1)), calls=1, run=run)
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


def test_a_stopped_walk_goes_on_from_its_draft(tmp_path: Path) -> None:
    clean, run, draft = drawn(0), Run.alone(tmp_path), Draft(tmp_path / "draft.safetensors")
    levels, guess = schedule("edm"), drawn_then_same(drawn(1))
    whole = invert(Oracle(), clean, levels, Certain(clean), guess=guess, calls=2, run=run)
    draft.save({"ladder": whole[:4]})
    model = Oracle()
    resumed = invert(model, clean, levels, Certain(clean), guess=guess, calls=2, run=run, draft=draft)
    assert torch.equal(resumed, whole)
    assert model.asked == 6


def test_steps_on_random_weights_are_as_good_as_the_rounds_they_get(tmp_path: Path) -> None:
    pipeline = Path(__file__).resolve().parents[3] / "parity" / "data" / "videoshop" / "pipeline"
    model, run = StableVideo.from_pretrained(str(pipeline)), Run.alone(tmp_path)
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents, condition = model.encode(pixels), model.condition(pixels[0], frames=2)
    levels, errors = model.schedule(8, 0.8, latents), []
    for rounds in (1, 2, 3):
        ladder = invert(model, latents, levels, condition, guess=same_noise, calls=rounds, run=run)
        errors.append(relative(sample(model, ladder[-1], levels, condition, run=run), latents))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
