"""Videoshop as its authors released it, step by step, so that our numbers can be held against theirs.

What differs from the default of this package, and is kept here on purpose: pictures are squashed to the
model's own size, the old first frame's condition is standardised and the new one's is not, guidance leads
away from an empty condition in one of the two directions only, the clip's standardisation is never undone,
and half of the inversion asks the network at drawn noise. So an edit that changes nothing does not give the
clip back. Two things that cannot be seen in the result are not repeated: the clip was encoded a second time,
and latents were decoded that nobody looked at.
"""

import math
from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from retouch.diffusion.inversion import draw_noise, invert
from retouch.diffusion.latents import FLOOR, Moments, match_frame
from retouch.diffusion.sampling import sample
from retouch.errors import ParamsError
from retouch.media.pictures import read_picture
from retouch.methods.videoshop.spec import VideoshopParams
from retouch.models.image_to_video import (
    ImageToVideo,
    StableVideo,
    SvdCondition,
    SvdConditioning,
    VideoTraits,
)
from retouch.run import Edited, Run
from retouch.video import Video

CONDITIONING: Final = SvdConditioning(
    fps=7, motion_bucket_id=127, noise_aug_strength=0.2, clip_resize="antialiased"
)
"""What the released code tells the model; the model's own pipeline noises the picture by 0.02."""


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
    """The draws of unit noise that decide a result: on either first frame, and for the inversion."""

    source: Float[Tensor, "3 height width"]
    edited: Float[Tensor, "3 height width"]
    starts: Float[Tensor, "f c h w"]


@final
@dataclass(frozen=True, eq=False)
class Intermediates:
    """The result of each step, in order; `frames` are in [-1, 1], not yet clamped."""

    latents: Float[Tensor, "f c h w"]
    standardised: Float[Tensor, "f c h w"]
    source_image: Float[Tensor, "c h w"]
    source: SvdCondition
    noisy: Float[Tensor, "f c h w"]
    target: SvdCondition
    sampled: Float[Tensor, "f c h w"]
    wanted: Float[Tensor, "1 c h w"]
    rescaled: Float[Tensor, "f c h w"]
    frames: Float[Tensor, "f 3 height width"]


@torch.no_grad()
def edit(model: ImageToVideo, video: Video, params: VideoshopParams, run: Run) -> Edited:
    """Carry the edited first frame as the released code does: all frames at once, squashed, and left so.

    Raises:
        ParamsError: the model is not Stable Video Diffusion, or there are later key frames.
    """
    if not isinstance(model, StableVideo):
        raise ParamsError(
            "faithful mode is Stable Video Diffusion's", hint="leave faithful out with this model"
        )
    first, *later = params.keyframes().values()
    if later:
        raise ParamsError("faithful mode knows one edited frame, the first", hint="leave the others out")
    if len(video) != (native := model.traits.native_frames):
        run.notice(f"the released code was made for {native} frames; this clip has {len(video)}")
    model = model.with_conditioning(
        fps=params.told_fps(video.fps),
        motion_bucket_id=params.motion_bucket_id,
        noise_aug_strength=params.noise_aug_strength,
        clip_resize="antialiased",
    )
    settings = Settings(
        steps=params.steps,
        strength=params.strength,
        least_guidance=params.guidance,
        most_guidance=params.guidance if params.last_guidance is None else params.last_guidance,
    )
    size = native_size(model.traits)
    picture = torch.tensor(read_picture(first)[..., :3]).movedim(-1, 0).to(model.device) / 127.5 - 1
    rows, columns = (side // model.traits.latent_factor for side in size)
    latents = torch.empty(len(video), model.traits.latent_channels, rows, columns)
    draws = Draws(
        run.noise("source", torch.empty(3, *size)),
        run.noise("edited", torch.empty(3, *size)),
        run.noise("guesses", latents).to(model.device),
    )
    clip = video.pixels(model.device)
    made = carry_frame(model, clip, picture, size=size, draws=draws, settings=settings, run=run)
    return Edited(video.like(made.frames))


@torch.no_grad()
def carry_frame(
    model: StableVideo,
    clip: Float[Tensor, "f 3 y x"],
    first: Float[Tensor, "3 v u"],
    *,
    size: tuple[int, int],
    draws: Draws,
    settings: Settings,
    run: Run,
) -> Intermediates:
    """Carry the picture `first` through `clip`, both in [-1, 1]."""
    frames, edited = squash(clip, size), squash(first[None], size)[0]
    latents = model.encode(frames)
    clean = Moments.of(latents, "frame").standardise(latents) if settings.normalise else latents

    image = _noised_latents(model, frames[0], draws.source)
    shown = _standardise_image(model, image) if settings.normalise else image
    source = model.condition_of(shown, model.embed_image(clip[0]))
    target = model.condition_of(_noised_latents(model, edited, draws.edited), model.embed_image(first))
    schedule = model.schedule(settings.steps, settings.strength, latents)

    trajectory = clean.new_empty(len(schedule.up()) + 1, *clean.shape)
    trajectory[0] = clean
    empty = model.unconditional(source) if settings.inversion_guidance > 1 else None
    invert(
        trajectory,
        lambda x, level: model.predict(
            x, level, source, negative=empty, guidance=settings.inversion_guidance
        ),
        run.steps("invert", schedule.up()),
        start=draw_noise(draws.starts * clean.std(), settings.threshold) if settings.extrapolate else None,
    )

    weights = torch.linspace(settings.least_guidance, settings.most_guidance, len(clip))
    # The least guidance does not count: 4 to 1 is no guidance at all.
    negative = model.unconditional(target) if settings.most_guidance > 1 else None
    sampled = sample(
        trajectory[-1],
        lambda x, level: model.predict(x, level, target, negative=negative, guidance=weights),
        run.steps("sample", schedule.down()),
    )
    wanted = model.encode(edited[None])
    rescaled = match_frame(sampled, sampled[:1], wanted) if settings.rescale else sampled
    return Intermediates(
        latents,
        clean,
        image,
        source,
        trajectory[-1],
        target,
        sampled,
        wanted,
        rescaled,
        model.decode(rescaled),
    )


def native_size(traits: VideoTraits) -> tuple[int, int]:
    """Return the one size that the released code knows: 16 to 9, of the model's own area (576 x 1024)."""
    height, width = math.sqrt(traits.native_pixels * 9 / 16), math.sqrt(traits.native_pixels * 16 / 9)
    many = traits.size_multiple
    return max(1, round(height / many)) * many, max(1, round(width / many)) * many


def squash(pictures: Float[Tensor, "f 3 y x"], size: tuple[int, int]) -> Float[Tensor, "f 3 height width"]:
    """Return pictures at the model's size, whatever their own shape was."""
    return torch.nn.functional.interpolate(
        pictures, size, mode="bilinear", antialias=True, align_corners=False
    )


def _noised_latents(
    model: StableVideo, picture: Float[Tensor, "3 height width"], eps: Float[Tensor, "3 height width"]
) -> Float[Tensor, "c h w"]:
    """Encode a noised picture; unscaled."""
    noised = picture + model.conditioning.noise_aug_strength * eps.to(picture)
    return model.encode(noised[None])[0] / model.scale


def _standardise_image(model: StableVideo, latents: Float[Tensor, "c h w"]) -> Float[Tensor, "c h w"]:
    """Return mean 0 and deviation 1 / scale: standardised as if they were scaled, then unscaled."""
    return (latents - latents.mean()) / (latents.std() + FLOOR) / model.scale
