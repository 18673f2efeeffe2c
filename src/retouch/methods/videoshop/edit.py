"""Videoshop: the first frame, edited anywhere, carried through the clip by an image-to-video model.

The paper in four lines (Fan, Bhattad and Krishna 2024, https://arxiv.org/abs/2403.14617):
    1. standardise the clip's latents                                        `invert_clip`, `standardise`
    2. invert them, given the old first frame: the network is asked where    `invert_clip`, `invert`
       the sample would be if it kept its own noise (noise extrapolation)
    3. sample from that noise, given the edited first frame                  `sample_clip`, `sample`
    4. match the colours to the edited first frame                           `match_colours`

`released` is what the authors' code does, to the letter. Three things are otherwise here. Both conditions are
made alike, and guidance leads away from the old first frame instead of from nothing, so that an edit that
changes nothing gives the clip back. The inversion asks the network more than once a step, which makes it as
exact as is wanted. And where optical flow can follow the edited frame, its own pixels are kept and lead what
the model draws beside them. The rest is what clips need that are no 14 frames of 576 x 1024.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, final

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from retouch.artifacts import artifact
from retouch.diffusion.inversion import Start, draw_noise, invert
from retouch.diffusion.latents import (
    KnownLatents,
    Moments,
    Normaliser,
    match_area,
    match_frame,
)
from retouch.diffusion.resize import Resize
from retouch.diffusion.sampling import sample
from retouch.diffusion.windows import SequentialWindow
from retouch.errors import EmptyMask
from retouch.media.composite import blend, composite
from retouch.media.keyframes import read_keyframes
from retouch.media.masks import read_masks
from retouch.methods.videoshop import released
from retouch.methods.videoshop.spec import VideoshopParams
from retouch.methods.videoshop.windows import (
    Keyframes,
    conditions,
    known_latents,
    reached_latents,
    windows_of,
    write_window,
)
from retouch.models.image_to_video import (
    Condition,
    ImageToVideo,
)
from retouch.models.image_to_video_any import AnyImageToVideo
from retouch.models.noise_path import Level, extrapolate
from retouch.run import Edited, Run
from retouch.tracking.flow import DisFlow
from retouch.tracking.region import Track, track_edit
from retouch.video import Video, decibels

Latents: TypeAlias = Float[Tensor, "g c h w"]

STEPS_A_CHECKPOINT: Final = 4
"""Steps of an inversion that a kill may cost."""
POOR_RECONSTRUCTION: Final = 30.0
"""Decibels; below, the noise visibly does not hold the source, even before anything is edited."""
SEAM: Final = 2.0
"""Pixels over which what is held fades into what the model drew."""
ENOUGH_OUTSIDE: Final = 0.1
"""The share of a window that must lie outside the mask for its colours to be held by the source's."""


@torch.no_grad()
def edit(video: Video, params: VideoshopParams, run: Run) -> Edited:
    """Carry the edited first frame through `video`."""
    return edit_with(run.load(params.model, AnyImageToVideo).model, video, params, run)


@torch.no_grad()
def edit_with(model: ImageToVideo, video: Video, params: VideoshopParams, run: Run) -> Edited:
    """Do what `edit` does with a model that is loaded already; `params.model` is not looked at."""
    if params.faithful:
        return released.edit(model, video, params, run)
    model = model.with_conditioning(
        fps=params.told_fps(video.fps),
        motion_bucket_id=params.motion_bucket_id,
        noise_aug_strength=params.noise_aug_strength,
    )
    keyframes = read_keyframes(video, params.keyframes())
    margin = round(min(video.height, video.width) * params.grow / 100)
    track = track_edit(video, keyframes, margin=margin, flow=DisFlow(), run=run) if params.tracks else None
    mask = edit_mask(video, track, params)
    if mask is not None and not mask.any():
        run.notice("the edited frame shows nothing new, so the clip stays as it is")
        return Edited(video, touched=mask.view(bool))

    resize = Resize.to_area(video.height, video.width, model.traits, params.short_side)
    windows = windows_of(len(video), model.traits, params)
    held = track if params.hold == "flow" else None
    result, previous = run.scratch("edited", video.frames.shape), None
    shifts, figures = [], {"windows": float(len(windows))}
    for step in run.steps("window", windows):
        window, clip = step.item, video[step.item.slice]
        source, target = conditions(video, window, keyframes, previous, model, resize, params, run)
        inversion = invert_clip(clip, source, model, resize, **params.inversion(run.seed), run=run)
        if params.check_inversion and step.index == 0:
            found = reconstruction(inversion, source, model, params.steps, params.strength, run=run)
            figures["reconstruction_db"] = found
            run.notice(say_reconstruction(found))
        known = known_latents(clip, window, inversion.latents, held, previous, model, resize)
        latents = sample_clip(inversion, known, source, target, model, **params.sampling(), run=run)
        latents = match_colours(latents, clip, window, inversion, keyframes, mask, model, resize, params)
        previous = window, latents

        pixels = model.decode(latents.to(model.device), params.decode_chunk_size)[: len(clip)]
        frames = clip.like(resize.to_clip(pixels)).frames
        if held is not None:
            frames = blend(frames, held.warped[window.slice], held.confidence[window.slice], SEAM)
        shifts.append(mean_lab(frames) - mean_lab(clip.frames))
        write_window(frames, window, result)
    figures["colour_drift"] = max(float(np.linalg.norm(shift - shifts[0])) for shift in shifts)
    if mask is None:
        return Edited(video.like(result), figures=figures)
    return replace(composite(video, video.like(result), mask, params.feather, run), figures=figures)


def edit_mask(
    video: Video, track: Track | None, params: VideoshopParams
) -> UInt8[np.ndarray, "f 1 h w"] | None:
    """Return where the clip may change, 0 to 255: in the user's mask, the tracked region, or anywhere."""
    if params.mask is None:
        return track.region if track is not None and params.region == "found" else None
    mask = read_masks(params.mask, video)
    if not mask.any():
        raise EmptyMask(
            f"the mask {params.mask.name} selects nothing", hint="paint white where the edit may reach"
        )
    return mask


@final
@dataclass(frozen=True, eq=False)
class Inversion:
    """A window's latents, and its standardised sample at every level up to noise, the clean one first."""

    latents: Latents
    trajectory: Float[Tensor, "n g c h w"]


@artifact("videoshop_noise", version=3)
def invert_clip(
    clip: Video,
    source: Condition,
    model: ImageToVideo,
    resize: Resize,
    *,
    steps: int,
    strength: float,
    fixed_point: int,
    start: Literal["extrapolate", "random", "none"],
    normalise: Normaliser,
    seed: int,  # noqa: ARG001 - decides what `run` draws
    run: Run,
) -> Inversion:
    """Find the noise that the clip is sampled from, given its own first frame."""
    pixels = resize.to_model(clip.pixels(model.device))
    missing = model.traits.padded_length(len(pixels)) - len(pixels)
    latents = model.encode(torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)]))
    clean = Moments.of(latents, normalise).standardise(latents)
    levels = model.schedule(steps, strength, latents).up()
    starts: dict[str, Start | None] = {"extrapolate": extrapolate, "none": None}
    if start == "random":
        starts["random"] = draw_noise(run.noise("start", clean) * clean.std())
    trajectory = clean.new_empty(len(levels) + 1, *clean.shape)
    trajectory[0] = clean
    invert(
        trajectory,
        lambda x, level: model.predict(x, level, source),
        run.resumable("invert", levels, {"trajectory": trajectory}, every=STEPS_A_CHECKPOINT),
        calls=fixed_point,
        start=starts[start],
    )
    return Inversion(latents, trajectory)


@artifact("videoshop_reconstruction", version=1)
def reconstruction(
    inversion: Inversion, source: Condition, model: ImageToVideo, steps: int, strength: float, *, run: Run
) -> float:
    """Measure how closely sampling with nothing edited brings the source back, in decibels."""
    trajectory = inversion.trajectory.to(model.device)
    levels = model.schedule(steps, strength, inversion.latents).down()
    back = sample(
        trajectory[-1],
        lambda x, level: model.predict(x, level, source),
        run.steps("check the inversion", levels),
    )
    error = float((back - trajectory[0]).square().mean())
    return decibels(error, float(trajectory[0].max() - trajectory[0].min()))


def say_reconstruction(found: float) -> str:
    """Say what the inversion is worth, before anything is sampled from it."""
    said = f"the inversion brings the source back at {found:.1f} dB"
    if found >= POOR_RECONSTRUCTION:
        return said
    return f"{said}: poor, so the edit may move otherwise than the source; raise fixed_point or steps"


@artifact("videoshop_latents", version=3)
def sample_clip(
    inversion: Inversion,
    known: KnownLatents | None,
    source: Condition,
    target: Condition,
    model: ImageToVideo,
    *,
    steps: int,
    strength: float,
    guidance: float,
    last_guidance: float,
    guide_from: Literal["source", "nothing"],
    normalise: Normaliser,
    run: Run,
) -> Latents:
    """Sample the clip from its noise, given the edited first frame; what is known leads the rest."""
    latents, trajectory = inversion.latents.to(model.device), inversion.trajectory.to(model.device)
    moments = Moments.of(latents, normalise)
    schedule = model.schedule(steps, strength, latents)
    of_source = dict(zip(schedule.levels[schedule.start :], trajectory.flip(0), strict=True))
    edited = None if known is None else known.standardise(moments)
    weights = torch.linspace(guidance, last_guidance, len(latents))
    negative = source if guide_from == "source" else model.unconditional(target)

    def predict(x: Latents, level: Level) -> Latents:
        return model.predict(
            x, level, target, negative=negative if bool((weights != 1).any()) else None, guidance=weights
        )

    def replace_known(x: Latents, level: Level) -> Latents:
        return x if edited is None else edited.replace_in(x, of_source[level], trajectory[0], level)

    noise = replace_known(trajectory[-1], schedule.levels[schedule.start])
    return moments.restore(
        sample(noise, predict, run.steps("sample", schedule.down()), replace=replace_known)
    )


def match_colours(
    edited: Latents,
    clip: Video,
    window: SequentialWindow,
    inversion: Inversion,
    keyframes: Keyframes,
    mask: UInt8[np.ndarray, "f 1 height width"] | None,
    model: ImageToVideo,
    resize: Resize,
    params: VideoshopParams,
) -> Latents:
    """Match colours to the edited frame that a window starts with, or to the source's outside the mask."""
    if not window.known:
        if params.rescale == "none":
            return edited
        key = clip[:1].like(keyframes[window.frames.start][None]).pixels(model.device)
        return match_frame(edited, edited[:1], model.encode(resize.to_model(key)).to(edited))
    if mask is None or not model.traits.one_latent_per_frame:
        return edited
    outside = ~reached_latents(mask[window.slice], model, resize)
    if outside.float().mean() < ENOUGH_OUTSIDE:
        return edited
    return match_area(edited, inversion.latents.to(edited), outside)


def mean_lab(frames: UInt8[np.ndarray, "f 3 h w"]) -> Float[np.ndarray, " 3"]:
    """Return the mean colour of frames, in CIE Lab."""
    pixels = np.ascontiguousarray(frames.transpose(0, 2, 3, 1).reshape(len(frames), -1, 3), np.float32) / 255
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2Lab).mean(axis=(0, 1)))
