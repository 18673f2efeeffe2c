"""Editing a picture by noise and back (SDEdit, Meng et al. 2022).

The picture is noised part of the way up the schedule and denoised under another prompt. How far up decides
how much of it stays: at strength 1 nothing does.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from retouch.models.image import ControlResiduals
from retouch.models.noise_path import Level, Schedule, Timestep, guided, step

Descent: TypeAlias = tuple[Level, Level]
"""A step down, from the first level to the second."""


@runtime_checkable
class Denoiser(Protocol):
    """What editing asks of a model; `retouch.models.image.StableDiffusion` has it."""

    def predict(
        self,
        z: Float[Tensor, "f 4 y x"],
        t: Timestep,
        text: Float[Tensor, "*f n d"],
        *,
        residuals: ControlResiduals | None = None,
        seen: Float[Tensor, " e"] | None = None,
    ) -> Float[Tensor, "f 4 y x"]:
        """The network's output."""
        ...


@final
@dataclass(frozen=True, eq=False)
class Goal:
    """What to show, what to keep away from, and how strongly."""

    text: Float[Tensor, "*f n d"]
    against: Float[Tensor, "*f n d"]
    guidance: float
    seen: Float[Tensor, " e"] | None = None
    """A reference picture's embedding, to show beside the words; what is kept away from has none."""


def descent(schedule: Schedule, strength: float) -> list[Descent]:
    """The last steps of a sampling, as many as `strength` asks for, at least one."""
    steps = schedule.down()
    return steps[len(steps) - max(1, round(strength * len(steps))) :]


@torch.no_grad()
def denoised(
    z: Float[Tensor, "f 4 y x"],
    down: Descent,
    goal: Goal,
    model: Denoiser,
    *,
    residuals: ControlResiduals | None = None,
) -> Float[Tensor, "f 4 y x"]:
    """One step down towards the goal; at guidance 1 the network is asked once."""
    hi, lo = down
    out = model.predict(z, hi.t, goal.text, residuals=residuals, seen=goal.seen)
    if goal.guidance != 1:
        nothing = None if goal.seen is None else torch.zeros_like(goal.seen)
        away = model.predict(z, hi.t, goal.against, residuals=residuals, seen=nothing)
        out = guided(away, out, goal.guidance)
    return step(z, out, hi, lo)
