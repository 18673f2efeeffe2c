"""Videoshop as its authors released it, step by step, so that our numbers can be held against theirs.

What differs from the default of this package, and is kept here on purpose: pictures are squashed to the
model's own size, the old first frame's condition is standardised and the new one's is not, guidance drives
away from an empty condition in one of the two walks only, the clip's standardisation is never undone, and
half of the inversion asks the network at drawn noise. So an edit that changes nothing does not give the clip
back. Two things that cannot be seen in the result are not repeated: the clip was encoded a second time, and
latents were decoded that nobody looked at.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from retouch.diffusion.inversion import draw_noise
from retouch.methods.videoshop.statistics import FLOOR, matched, moments, standardised
from retouch.methods.videoshop.walk import invert, sample
from retouch.models.image_to_video import StableVideo, StillCondition, StillHabits, Traits
from retouch.run import Run

# What the released code tells the model: 7 frames a second, motion bucket 127, and a picture noised by 0.2
# (the model's own pipeline noises by 0.02).
HABITS = StillHabits(fps=7, motion=127, noise=0.2, shrink="antialiased")


@final
@dataclass(frozen=True)
class Settings:
    """The released command line, its hard-wired numbers, and a switch for each of the paper's ablations."""

    steps: int = 25
    strength: float = 0.55
    least_guidance: float = 4.0
    most_guidance: float = 4.0
    inversion_guidance: float = 1.0
    threshold: float = 0.0
    extrapolate: bool = True
    normalise: bool = True
    rescale: bool = True


@final
@dataclass(frozen=True, eq=False)
class Draws:
    """The draws of unit noise that decide a result: for either first frame, and for the guesses."""

    source: Float[Tensor, "3 height width"]
    edited: Float[Tensor, "3 height width"]
    guesses: Float[Tensor, "f c h w"]


@final
@dataclass(frozen=True, eq=False)
class Carried:
    """The result of each step, in order; `frames` are in [-1, 1], not yet clamped."""

    latents: Float[Tensor, "f c h w"]
    standardised: Float[Tensor, "f c h w"]
    source_still: Float[Tensor, "c h w"]
    source: StillCondition
    noisy: Float[Tensor, "f c h w"]
    edited: StillCondition
    sampled: Float[Tensor, "f c h w"]
    target: Float[Tensor, "1 c h w"]
    rescaled: Float[Tensor, "f c h w"]
    frames: Float[Tensor, "f 3 height width"]


@torch.no_grad()
def carry(
    model: StableVideo,
    clip: Float[Tensor, "f 3 y x"],
    first: Float[Tensor, "3 v u"],
    *,
    size: tuple[int, int],
    draws: Draws,
    settings: Settings,
    run: Run,
) -> Carried:
    """Carries the picture `first` through `clip`, both in [-1, 1], as the released code does."""
    frames, edited = squashed(clip, size), squashed(first[None], size)[0]
    latents = model.encode(frames)
    prepared = standardised(latents, moments(latents, "frame")) if settings.normalise else latents

    still = _still(model, frames[0], draws.source)
    shown = _standardised_still(model, still) if settings.normalise else still
    source = model.still(shown, model.look(clip[0]))
    schedule = model.schedule(settings.steps, settings.strength, latents)
    drawn = draw_noise(draws.guesses * prepared.std(), settings.threshold)
    ladder = invert(
        model,
        prepared,
        schedule,
        source,
        guess=drawn if settings.extrapolate else None,
        calls=1,
        run=run,
        against=model.unconditional(source) if settings.inversion_guidance > 1 else None,
        guidance=settings.inversion_guidance,
    )

    target = model.still(_still(model, edited, draws.edited), model.look(first))
    weights = torch.linspace(settings.least_guidance, settings.most_guidance, len(clip))
    guides = settings.most_guidance > 1  # the least does not count: 4 to 1 is no guidance at all
    sampled = sample(
        model,
        ladder[-1],
        schedule,
        target,
        run=run,
        against=model.unconditional(target) if guides else None,
        guidance=weights,
    )
    wanted = model.encode(edited[None])
    rescaled = matched(sampled, sampled[:1], wanted) if settings.rescale else sampled
    return Carried(
        latents,
        prepared,
        still,
        source,
        ladder[-1],
        target,
        sampled,
        wanted,
        rescaled,
        model.decode(rescaled),
    )


def native_size(traits: Traits) -> tuple[int, int]:
    """The one size that the released code knows: 16 to 9, of the model's own area (576 x 1024)."""
    height, width = math.sqrt(traits.native_pixels * 9 / 16), math.sqrt(traits.native_pixels * 16 / 9)
    many = traits.size_multiple
    return max(1, round(height / many)) * many, max(1, round(width / many)) * many


def squashed(pictures: Float[Tensor, "f 3 y x"], size: tuple[int, int]) -> Float[Tensor, "f 3 height width"]:
    """Gives pictures the model's size, whatever their own shape was."""
    return torch.nn.functional.interpolate(
        pictures, size, mode="bilinear", antialias=True, align_corners=False
    )


def _still(
    model: StableVideo, picture: Float[Tensor, "3 height width"], eps: Float[Tensor, "3 height width"]
) -> Float[Tensor, "c h w"]:
    """A noised picture's latents, unscaled."""
    return model.encode((picture + model.habits.noise * eps.to(picture))[None])[0] / model.scale


def _standardised_still(model: StableVideo, still: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """Mean 0 and deviation 1 / scale: standardised as if it were scaled, then unscaled."""
    return (still - still.mean()) / (still.std() + FLOOR) / model.scale
