"""Videoshop: the first frame, edited anywhere, carried through the clip by an image-to-video model.

The paper in four lines (Fan, Bhattad and Krishna 2024, https://arxiv.org/abs/2403.14617):
  1. standardise the clip's latents                                                     `statistics`
  2. invert: walk them up into noise by the model's own prediction, given the old first frame;
     where to ask the network is guessed by extrapolating the noise that a sample holds       `walk.invert`
  3. sample: walk down again, given the edited first frame                               `walk.sample`
  4. match the colours to the edited first frame                                         `statistics.matched`
The rest is what clips need that are no 14 frames of 576 x 1024: `framing`, `windows`, and the `region`
outside of which the source comes back untouched. `released` is what the authors' code does, to the letter.

Three things are otherwise here. An edit that changes nothing gives the clip back: both conditions are made
alike, and guidance leads away from the old first frame's condition instead of an empty one. The inversion
asks the network more than once a step, which makes it as exact as is wanted. And what optical flow can
follow of the picture is held to it, pixel by pixel, so that the model draws what comes into view, and what
is held leads it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import max_pool2d

from retouch.artifacts import artifact
from retouch.diffusion.inversion import Start, draw_noise
from retouch.diffusion.resize import Resize
from retouch.diffusion.windows import SequentialWindow, sequential
from retouch.errors import EmptyMask, ParamsError
from retouch.media.composite import blend
from retouch.media.masks import read_masks
from retouch.media.pictures import read_picture
from retouch.methods.videoshop import released
from retouch.methods.videoshop.framing import fitted
from retouch.methods.videoshop.spec import VideoshopParams
from retouch.methods.videoshop.statistics import (
    Normaliser,
    matched,
    matched_where,
    moments,
    restored,
    standardised,
)
from retouch.methods.videoshop.walk import Settled, invert, sample
from retouch.models.image_to_video import Condition, ImageToVideo, StableVideo, StillHabits, Traits
from retouch.models.image_to_video_any import AnyImageToVideo
from retouch.models.noise_path import extrapolate
from retouch.run import Edited, Run
from retouch.tracking.flow import DisFlow
from retouch.tracking.region import carried, changed, follow, followed, trusted
from retouch.video import Video

POOR_ROUND_TRIP: Final = 30.0
"""Decibels; below, the noise visibly does not hold the source, even before anything is edited."""
FASTEST: Final = 30
"""Frames a second; faster clips were not among what Stable Video Diffusion was trained on."""
SEAM: Final = 2.0
"""Pixels over which what is held fades into what the model drew."""
ENOUGH_OUTSIDE: Final = 0.1
"""The share of a window that must lie outside the region for its colours to be held by the source's."""


@torch.no_grad()
def edit(video: Video, params: VideoshopParams, run: Run) -> Edited:
    """Carries the picture `params.first` through `video`."""
    return edit_with(run.load(params.model, AnyImageToVideo).model, video, params, run)


@torch.no_grad()
def edit_with(model: ImageToVideo, video: Video, params: VideoshopParams, run: Run) -> Edited:
    """As `edit`, by a model that is already loaded; `params.model` is not looked at."""
    model = _told(model, video, params)
    if params.faithful:
        return _as_released(video, params, model, run)
    pictures = _pictures(video, params)
    way = _followed(video, pictures, params, run)
    mask = way.region if params.mask is None else _given_mask(video, params.mask)
    if mask is not None and not mask.any():
        run.notice("the edited picture shows nothing new, so the clip stays as it is")
        return Edited(video, touched=mask.view(bool))

    framing = Resize.to_area(video.height, video.width, model.traits, params.short_side)
    size, stride = params.window or model.traits.native_frames, model.traits.frame_stride
    laid = sequential(len(video), sorted(pictures), size=size, overlap=params.overlap, stride=stride)
    task = Task(video, pictures, way, mask, framing, model, params, run)
    result = run.scratch("edited", video.frames.shape)
    touched = None if mask is None else run.scratch("touched", mask.shape, np.bool_)
    shifts, round_trip, before = [], None, None
    for step in run.steps("window", laid):
        noise, before = _carried(task, step.item, before, check=params.check_inversion and step.index == 0)
        round_trip = noise.round_trip if step.index == 0 else round_trip
        frames = _shown(task, step.item, before)
        shifts.append(_colour(frames) - _colour(video.frames[step.item.slice]))
        _lay(task, step.item, frames, result)
        if mask is not None and touched is not None:
            touched[step.item.slice] = mask[step.item.slice] > 0
    drift = max(float(np.linalg.norm(shift - shifts[0])) for shift in shifts)
    return Edited(
        video.like(result),
        touched=touched,
        figures={"colour_drift": drift, "windows": len(laid)}
        | ({} if round_trip is None else {"round_trip_db": round_trip}),
    )


@final
@dataclass(frozen=True, eq=False)
class Task:
    """What every window of an edit needs."""

    video: Video
    pictures: Mapping[int, UInt8[np.ndarray, "3 h w"]]
    followed: "Followed"
    mask: UInt8[np.ndarray, "f 1 h w"] | None
    framing: Resize
    model: ImageToVideo
    params: VideoshopParams
    run: Run


@final
@dataclass(frozen=True, eq=False)
class Followed:
    """What optical flow says of an edit, in files: nothing where it was not asked.

    `region` is where the clip may change; `moved` are the source's frames with the edit moved along, and
    `sure` where that is believed, 0 or 255.
    """

    region: UInt8[np.ndarray, "f 1 h w"] | None
    moved: UInt8[np.ndarray, "f 3 h w"] | None
    sure: UInt8[np.ndarray, "f 1 h w"] | None


@final
@dataclass(frozen=True)
class Up:
    """What decides an inversion, beside clip, model and condition."""

    steps: int
    strength: float
    guess: Literal["same_noise", "drawn", "same_sample"]
    fixed_point: int
    normalise: Normaliser
    check: bool
    seed: int


@final
@dataclass(frozen=True)
class Down:
    """What decides a sampling, beside noise, model and conditions."""

    steps: int
    strength: float
    guidance: float
    last_guidance: float
    guide_from: Literal["source", "nothing"]
    normalise: Normaliser


@final
@dataclass(frozen=True, eq=False)
class Noise:
    """A window walked up into noise: its latents, and every standardised sample on the way.

    `round_trip` is the peak signal-to-noise ratio, in decibels, of the latents that sampling with nothing
    edited gives back; nothing where that was not tried.
    """

    latents: Float[Tensor, "g c h w"]
    ladder: Float[Tensor, "n g c h w"]
    round_trip: float | None


@final
@dataclass(frozen=True, eq=False)
class Known:
    """Edited latents of a window that are known before it is sampled, and where they are."""

    latents: Float[Tensor, "g c h w"]
    where: Bool[Tensor, "g 1 h w"]


@final
@dataclass(frozen=True, eq=False)
class Carried:
    """A window's edited latents."""

    latents: Float[Tensor, "g c h w"]


@final
@dataclass(frozen=True, eq=False)
class Left:
    """What a window leaves to the next: its latents, colours matched, and how many frames they are of."""

    latents: Float[Tensor, "g c h w"]
    frames: int


def _carried(task: Task, window: SequentialWindow, before: Left | None, *, check: bool) -> tuple[Noise, Left]:
    """One window: up given the old first frame, down given the new one."""
    params, model, run = task.params, task.model, task.run
    source, target = _conditions(task, window, before)
    seed = run.seed if params.guess == "drawn" else 0  # nothing else in the inversion is drawn
    up = Up(params.steps, params.strength, params.guess, params.fixed_point, params.normalise, check, seed)
    noise = walked_up(task.video[window.slice], task.framing, model, source, up, run=run)
    if noise.round_trip is not None:
        _say_round_trip(noise.round_trip, run)
    last = params.guidance if params.last_guidance is None else params.last_guidance
    down = Down(params.steps, params.strength, params.guidance, last, params.guide_from, params.normalise)
    known = _known(task, window, noise.latents.to(model.device), before) if _alone(model) else None
    sampled = walked_down(noise, known, model, source, target, down, run=run)
    coloured = _coloured(task, window, noise.latents, sampled.latents)
    return noise, Left(coloured, len(window.frames))


def _conditions(task: Task, window: SequentialWindow, before: Left | None) -> tuple[Condition, Condition]:
    """The old first frame's condition and the new one's, made alike."""
    model, params, start = task.model, task.params, window.frames.start
    count = _whole(len(window.frames), model.traits)
    was = task.framing.to_model(task.video[start : start + 1].pixels(model.device))
    old, new = params.source_prompt or params.prompt or "", params.prompt or params.source_prompt or ""
    if not window.known:
        now = task.framing.to_model(_pixels(task.pictures[start], model.device))
        eps = task.run.noise("picture", was[0])
        return (
            model.condition(was[0], frames=count, prompt=old, noise=eps),
            model.condition(now[0], frames=count, prompt=new, noise=eps),
        )
    assert before is not None
    # What the window before left has been through the autoencoder; the source's frame takes the same way,
    # or the two would differ where nothing was edited.
    was_latents = model.encode(was)
    first = model.decode(was_latents)[0]
    if not _alone(model):
        now = model.decode(before.latents.to(was_latents))[before.frames - window.known]
        return (
            model.condition(first, frames=count, prompt=old),
            model.condition(now, frames=count, prompt=new),
        )
    now_latents = before.latents[-window.known].to(was_latents)
    return (
        model.condition(first, frames=count, prompt=old, latent=was_latents[0]),
        model.condition(model.decode(now_latents[None])[0], frames=count, prompt=new, latent=now_latents),
    )


def _known(
    task: Task, window: SequentialWindow, source: Float[Tensor, "g c h w"], before: Left | None
) -> Known | None:
    """What the window before has edited, in front, and everywhere what flow can follow."""
    latents, where = source, torch.zeros_like(source[:, :1], dtype=torch.bool)
    if task.followed.moved is not None and task.followed.sure is not None:
        moved = torch.tensor(task.followed.moved[window.slice], device=source.device).float() / 127.5 - 1
        latents = task.model.encode(task.framing.to_model(moved)).to(source)
        where = ~_reached(task, 255 - task.followed.sure[window.slice]).to(source.device)
    if before is not None and window.known > 0:
        ours = before.latents[-window.known :].to(source)
        latents = torch.cat([ours, latents[window.known :]])
        where = torch.cat([torch.ones_like(where[: window.known]), where[window.known :]])
    return Known(latents, where) if where.any() else None


@artifact("videoshop_noise", version=2)
def walked_up(
    clip: Video, framing: Resize, model: ImageToVideo, source: Condition, up: Up, *, run: Run
) -> Noise:
    """Walks a clip up into noise, and tries the way back."""
    pixels = framing.to_model(clip.pixels(model.device))
    missing = _whole(len(pixels), model.traits) - len(pixels)
    latents = model.encode(torch.cat([pixels, pixels[-1:].expand(missing, -1, -1, -1)]))
    clean = standardised(latents, moments(latents, up.normalise))
    schedule = model.schedule(up.steps, up.strength, latents)
    guess = _guess(up, clean)
    ladder = invert(model, clean, schedule, source, guess=guess, calls=up.fixed_point, run=run)
    if not up.check:
        return Noise(latents, ladder, None)
    back = sample(model, ladder[-1], schedule, source, run=run, stage="try the way back")
    return Noise(latents, ladder, _decibels(clean, back))


@artifact("videoshop_latents", version=2)
def walked_down(
    noise: Noise,
    known: Known | None,
    model: ImageToVideo,
    source: Condition,
    target: Condition,
    down: Down,
    *,
    run: Run,
) -> Carried:
    """Walks noise down to edited latents; what is `known` of them leads the rest."""
    latents, ladder = noise.latents.to(model.device), noise.ladder.to(model.device)
    taken = moments(latents, down.normalise)
    schedule = model.schedule(down.steps, down.strength, latents)
    settled = None
    if known is not None:
        given = standardised(known.latents.to(latents), taken)
        settled = Settled.of(ladder, given, known.where.to(latents.device), schedule)
    weights = torch.linspace(down.guidance, down.last_guidance, len(latents))
    away = source if down.guide_from == "source" else model.unconditional(target)
    against = away if bool((weights != 1).any()) else None
    x = sample(
        model, ladder[-1], schedule, target, run=run, against=against, guidance=weights, settled=settled
    )
    return Carried(restored(x, taken))


def _coloured(
    task: Task, window: SequentialWindow, source: Float[Tensor, "g c h w"], edited: Float[Tensor, "g c h w"]
) -> Float[Tensor, "g c h w"]:
    """Matches colours to the picture that a window starts with, or else to the source outside the region."""
    if not window.known:
        if task.params.rescale == "none":
            return edited
        picture = task.framing.to_model(_pixels(task.pictures[window.frames.start], task.model.device))
        return matched(edited, edited[:1], task.model.encode(picture).to(edited))
    outside = _outside(task, window)
    if outside is None or outside.float().mean() < ENOUGH_OUTSIDE:
        return edited
    return matched_where(edited, source.to(edited), outside)


def _outside(task: Task, window: SequentialWindow) -> Bool[Tensor, "g 1 h w"] | None:
    """The latents that no pixel of the region reaches, for models that keep a latent a frame."""
    if task.mask is None or not _alone(task.model):
        return None
    return ~_reached(task, task.mask[window.slice])


def _reached(task: Task, mask: UInt8[np.ndarray, "g 1 h w"]) -> Bool[Tensor, "g 1 y x"]:
    """The latents that a pixel of a mask reaches."""
    across = task.framing.to_model(torch.tensor(mask).float().expand(-1, 3, -1, -1))[:, :1]
    return max_pool2d(across, task.model.traits.latent_factor) > 0


def _shown(task: Task, window: SequentialWindow, left: Left) -> UInt8[np.ndarray, "f 3 h w"]:
    """A window's edited frames, of the clip's size; what was held has the picture's own pixels."""
    decoded = task.model.decode(left.latents.to(task.model.device), task.params.decode_at_once)
    frames = task.video[window.slice].like(task.framing.to_clip(decoded[: len(window.frames)])).frames
    if task.followed.moved is None or task.followed.sure is None:
        return frames
    moved, sure = (np.asarray(part[window.slice]) for part in (task.followed.moved, task.followed.sure))
    return blend(frames, moved, sure, SEAM)


def _lay(
    task: Task,
    window: SequentialWindow,
    frames: UInt8[np.ndarray, "g 3 h w"],
    result: UInt8[np.ndarray, "all 3 h w"],
) -> None:
    """Puts a window's frames into the result: within the region, and faded over from the window before."""
    if task.mask is not None:
        source = np.asarray(task.video.frames[window.slice])
        # A mask of the user's is as soft as they made it.
        feather = 0.0 if task.params.mask else task.params.feather
        frames = blend(source, frames, task.mask[window.slice], feather)
    for at, number in enumerate(window.frames[: window.known]):
        share = (at + 1) / (window.known + 1)
        frames[at] = np.round(result[number] * (1 - share) + frames[at] * share)
    result[window.slice] = frames


def _pictures(video: Video, params: VideoshopParams) -> dict[int, UInt8[np.ndarray, "3 h w"]]:
    """The user's pictures by frame number, each of the frames' size."""
    given = params.pictures()
    if (last := max(given)) >= len(video):
        raise ParamsError(f"later names frame {last} of {len(video)}", hint="frames are counted from 0")
    return {at: fitted(path, np.asarray(video.frames[at])) for at, path in given.items()}


def _given_mask(video: Video, path: Path) -> UInt8[np.ndarray, "f 1 h w"]:
    """The user's own mask, 0 to 255."""
    mask = read_masks(path, video)
    if not mask.any():
        raise EmptyMask(f"the mask {path.name} selects nothing", hint="paint white where the edit may reach")
    return mask


def _followed(
    video: Video, pictures: Mapping[int, UInt8[np.ndarray, "3 h w"]], params: VideoshopParams, run: Run
) -> Followed:
    """Follows the pictures through the clip, for the region and for what is held, as far as either counts."""
    finds, holds = params.mask is None and params.region == "found", params.hold == "flow"
    if not finds and not holds:
        return Followed(None, None, None)
    alone = (len(video), 1, video.height, video.width)
    region = run.scratch("region", alone) if finds else None
    moved, sure = (
        (run.scratch("moved", video.frames.shape), run.scratch("sure", alone)) if holds else (None,) * 2
    )
    margin = round(min(video.height, video.width) * params.grow / 100)
    seeds = {at: changed(shown, np.asarray(video.frames[at]), margin) for at, shown in pictures.items()}
    if region is not None and not any(seed.any() for seed in seeds.values()):
        return Followed(region, None, None)
    for at, (start, place) in enumerate(follow(video, pictures, DisFlow(), run)):
        if region is not None:
            region[at, 0] = np.where(followed(seeds[start], place), 255, 0)
        if moved is not None and sure is not None:
            then, edited, now = (
                np.ascontiguousarray(one.transpose(1, 2, 0))
                for one in (video.frames[start], pictures[start], video.frames[at])
            )
            moved[at] = carried(then, edited, now, place).transpose(2, 0, 1)
            sure[at, 0] = np.where(trusted(then, now, place), 255, 0)
    return Followed(region, moved, sure)


def _as_released(video: Video, params: VideoshopParams, model: ImageToVideo, run: Run) -> Edited:
    """The authors' own way: whole clip at once, squashed to the model's size, and left so."""
    if not isinstance(model, StableVideo):
        raise ParamsError(
            "faithful mode is Stable Video Diffusion's", hint="leave faithful out with this model"
        )
    if len(video) != model.traits.native_frames:
        run.notice(
            f"the released code was made for {model.traits.native_frames} frames; this clip has {len(video)}"
        )
    settings = released.Settings(
        steps=params.steps,
        strength=params.strength,
        least_guidance=params.guidance,
        most_guidance=params.guidance if params.last_guidance is None else params.last_guidance,
    )
    size = released.native_size(model.traits)
    first = torch.tensor(read_picture(params.first)[..., :3]).movedim(-1, 0).to(model.device) / 127.5 - 1
    latents = torch.empty(
        len(video), model.traits.latent_channels, *(side // model.traits.latent_factor for side in size)
    )
    draws = released.Draws(
        run.noise("source", torch.empty(3, *size)),
        run.noise("edited", torch.empty(3, *size)),
        run.noise("guesses", latents).to(model.device),
    )
    clip = video.pixels(model.device)
    carried = released.carry(model, clip, first, size=size, draws=draws, settings=settings, run=run)
    return Edited(video.like(carried.frames))


def _told(model: ImageToVideo, video: Video, params: VideoshopParams) -> ImageToVideo:
    """The model, told what the parameters say beside the picture, if it is one that listens."""
    if not isinstance(model, StableVideo):
        return model
    shrink = released.HABITS.shrink if params.faithful else "blurred"
    rate = params.told_rate or min(max(round(video.fps), 2), FASTEST)
    return model.telling(StillHabits(rate, params.motion, params.picture_noise, shrink))


def _guess(up: Up, clean: Float[Tensor, "g c h w"]) -> Start | None:
    if up.guess == "drawn":
        eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(up.seed)).to(clean)
        return draw_noise(eps * clean.std())
    return extrapolate if up.guess == "same_noise" else None


def _say_round_trip(decibels: float, run: Run) -> None:
    """Tells the user what the inversion is worth, before anything is sampled from it."""
    found = f"the inversion brings the source back at {decibels:.1f} dB"
    if decibels < POOR_ROUND_TRIP:
        found += ": poor, so the edit may move otherwise than the source; raise fixed_point or steps"
    run.notice(found)


def _decibels(wanted: Float[Tensor, "g c h w"], got: Float[Tensor, "g c h w"]) -> float:
    """Peak signal-to-noise ratio, the peak being the range that is wanted."""
    error = float((wanted - got).square().mean())
    return 10 * math.log10(float(wanted.max() - wanted.min()) ** 2 / max(error, 1e-20))


def _colour(frames: UInt8[np.ndarray, "f 3 h w"]) -> Float[np.ndarray, " 3"]:
    """The mean colour of frames, in CIE Lab."""
    pixels = np.ascontiguousarray(frames.transpose(0, 2, 3, 1).reshape(len(frames), -1, 3), np.float32) / 255
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2Lab).mean(axis=(0, 1)))


def _pixels(picture: UInt8[np.ndarray, "3 h w"], device: torch.device) -> Float[Tensor, "1 3 h w"]:
    return torch.tensor(picture, device=device)[None].float() / 127.5 - 1


def _whole(frames: int, traits: Traits) -> int:
    """How many frames a window must have for every latent frame to be filled."""
    return -(-(frames - 1) // traits.frame_stride) * traits.frame_stride + 1


def _alone(model: ImageToVideo) -> bool:
    """Whether every frame has a latent of its own, so that latents can be handed over."""
    return model.traits.frame_stride == 1
