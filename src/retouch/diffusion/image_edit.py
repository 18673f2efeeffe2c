"""Editing a picture by noise and back (SDEdit, Meng et al. 2022).

The picture is noised part of the way up the schedule and denoised under another prompt. How far up decides
how much of it stays: at strength 1 nothing does.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from retouch.diffusion.tiles import Tile, cover_with_tiles
from retouch.models.image import Control, ControlResiduals, StableDiffusion
from retouch.models.image_prompt import ImagePrompt
from retouch.models.noise_path import Level, Schedule, Timestep, add_noise, guided, step
from retouch.run import Run, Step

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
    return step(z, predicted(z, hi, goal, model, residuals=residuals), hi, lo)


def predicted(
    z: Float[Tensor, "f 4 y x"],
    at: Level,
    goal: Goal,
    model: Denoiser,
    *,
    residuals: ControlResiduals | None = None,
) -> Float[Tensor, "f 4 y x"]:
    """Return the network's output at a level, guided towards the goal."""
    out = model.predict(z, at.t, goal.text, residuals=residuals, seen=goal.seen)
    if goal.guidance == 1:
        return out
    nothing = None if goal.seen is None else torch.zeros_like(goal.seen)
    away = model.predict(z, at.t, goal.against, residuals=residuals, seen=nothing)
    return guided(away, out, goal.guidance)


@contextmanager
def goal_of(
    sd: StableDiffusion,
    prompt: str,
    negative_prompt: str,
    guidance: float,
    *,
    reference: UInt8[np.ndarray, "3 y x"] | None = None,
    reference_scale: float = 1.0,
    adapter: str = "",
    run: Run,
) -> Iterator[Goal]:
    """Give what a picture should show; within, a reference picture speaks beside the words."""
    words = sd.embed(prompt), sd.embed(negative_prompt), guidance
    if reference is None or reference_scale == 0:
        yield Goal(*words)
        return
    prompted = run.load(adapter, ImagePrompt)
    with prompted.applied_to(sd, scale=reference_scale):
        yield Goal(*words, seen=prompted.seen(reference))


def control_of(ref: str, scale: float, sd: StableDiffusion, run: Run) -> Control | None:
    """Return the network that holds pictures to their edges, if it is asked for.

    Raises:
        ModelMismatch: it was made for another base model.
    """
    if scale == 0:
        return None
    control = run.load(ref, Control)
    control.check_fit(sd)
    return control


@torch.no_grad()
def edit_picture(
    pixels: Float[Tensor, "f 3 h w"],
    noise: Float[Tensor, "f 4 y x"],
    goal: Goal,
    sd: StableDiffusion,
    steps: Iterable[Step[Descent]],
    *,
    edges: Float[Tensor, "f 3 h w"] | None = None,
    control: Control | None = None,
    scale: float = 1.0,
    known: Bool[Tensor, "f 1 h w"] | None = None,
    tiles: Sequence[Tile] = (),
) -> Float[Tensor, "f 3 h w"]:
    """Edit pictures towards a goal, each for itself, from the level where `steps` begin.

    Args:
        pixels: The pictures, in [-1, 1].
        noise: What they are noised with.
        goal: What to show.
        sd: The model.
        steps: The way down.
        edges: What the control is shown of each picture.
        control: The network that holds the edit.
        scale: How firmly it holds.
        known: Where a picture shows what is decided: it is put back, noised, after every step.
        tiles: The parts that pass the network by themselves, each with its edges; all at once, if none.
    """
    clean = sd.encode(pixels)
    noise = noise.to(clean)
    stays = None if known is None else F.interpolate(known.float(), clean.shape[-2:], mode="area") > 0.5
    z: Tensor | None = None
    for at in steps:
        hi, lo = at.item
        z = add_noise(clean, noise, hi) if z is None else z
        out = torch.zeros_like(z)
        for tile in tiles or cover_with_tiles((z.shape[2], z.shape[3]), max(z.shape[2:])):
            part, residuals = tile.cut(z), None
            if control is not None and edges is not None:
                shown = tile.cut(edges, sd.factor)
                residuals = control.residuals(shown, part, hi.t, goal.text, scale=scale)
            tile.add(out, predicted(part, hi, goal, sd, residuals=residuals))
        z = step(z, out, hi, lo)
        z = at.done(z if stays is None else torch.where(stays.to(z.device), add_noise(clean, noise, lo), z))
    return sd.decode(clean if z is None else z)
