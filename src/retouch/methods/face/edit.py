"""Faces: one identity, edited once; every frame's motion and background kept.

The paper in five lines (Kim et al. 2023, https://arxiv.org/abs/2212.02802), and where to find them:
    1. cut the face out of each frame, upright, of one size                 `follow_face`, `FaceSquares`
    2. who it is: the mean over frames; how it moves: points of each frame  `read_faces`, `mean_identity`
    3. the rest is noise: the deterministic way up, told both               `encode_faces`
    4. move the identity                                                    `steer`
    5. the way down, told the new identity; laid over the clip              `decode_faces`, `lay_over`

`faithful` is what the authors' code does. Otherwise the way up keeps how far the way down would miss each of
its pictures. The edit's way down is put right by as much, so an identity that is not moved gives the clip
back, and the reconstruction costs no calls of its own: the first edit takes two for each step and frame, a
second one takes one. What changes is added to the frame at its own size; only parts that come or go, such as
glasses or a hat, are shown as the network draws them.
"""

from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from retouch.artifacts import artifact
from retouch.compute import Compute
from retouch.errors import ParamsError
from retouch.events import Listener
from retouch.media.probe import ClipFacts
from retouch.methods.face.align import Crops, FaceTrack, follow_face, lay_as_published, lay_over
from retouch.methods.face.spec import FaceParams, strength_curve
from retouch.methods.face.steer import WORD_LEVELS, applied, moved_by_words, steer, towards
from retouch.models.estimate import Estimate
from retouch.models.face import encoding, follow, published_timesteps, schedule_at
from retouch.models.face_attributes import check_name, read_direction, read_names
from retouch.models.face_model import WORDS, FaceModel
from retouch.models.face_parts import YuNetFinder
from retouch.models.noise_path import Level, Schedule, add_noise, extrapolate
from retouch.models.refs import resolve, stored_bytes
from retouch.run import Edited, Run
from retouch.tracking.face_squares import FaceSquares
from retouch.video import Video, chunks

STEPS_A_CHECKPOINT: Final = 4
SEARCHED: Final = 2
"""Frames that the search for words looks at."""
NO_WORDS: Final = "put a CLIP in its folder words; tiny:face has words"


@torch.no_grad()
def edit(video: Video, params: FaceParams, run: Run) -> Edited:
    """Change the face in `video`."""
    return edit_with(run.load(params.model, FaceModel), video, params, run)


@torch.no_grad()
def edit_with(model: FaceModel, video: Video, params: FaceParams, run: Run) -> Edited:
    """Do what `edit` does with a model that is loaded already; `params.model` is not looked at."""
    finder = YuNetFinder(params.finder) if params.finder else None
    track = follow_face(video, model, finder, params.face, run=run)
    squares = track.squares(model.diffusion.config.scale)
    tell_of(video, track, run)
    faces = read_faces(video, squares, track, model, run=run)
    who = mean_identity(faces, normalised=not params.faithful)
    schedule = schedule_of(model, params)
    entry = run.noise("where the way up begins", torch.zeros(1, 3, model.side, model.side))
    target = towards(who, model, params)
    if params.prompt:
        moved = searched(video, squares, track, faces, who, entry, model, params, run=run)
        target = applied(target, moved, params.strength)

    frames = run.scratch("edited", video.frames.shape)
    touched = run.scratch("touched", (len(video), 1, video.height, video.width), np.bool_)
    frames[:] = video.frames
    for step in run.steps("window", chunks(len(video), params.window)):
        part = step.item
        if not track.shown[part].any():
            continue
        clip, laid, motion = video[part], squares[part], faces.motion[part]
        crops = laid.crop(clip.pixels(), model.side)
        encoded = encode_faces(crops, who, motion, entry, model, schedule, run=run)
        wanted = steer(target, clip, model, params)
        drawn = decode_faces(encoded, wanted, motion, model, schedule, corrected=not params.faithful, run=run)
        lay = lay_as_published if params.faithful else lay_over
        shown = torch.from_numpy(track.shown[part])
        pixels, where = lay(clip, laid, encoded.seen, drawn, faces.parts[part].long(), model, params.gate)
        where &= shown[:, None, None, None].numpy()
        frames[part] = np.where(where, clip.like(pixels).frames, clip.frames)
        touched[part] = where
    return Edited(
        video.like(frames), touched=touched, figures={"frames_with_face": float(track.shown.mean())}
    )


def tell_of(video: Video, track: FaceTrack, run: Run) -> None:
    """Say in which frames the face was not found, and what becomes of them."""
    filled = np.flatnonzero(track.shown & (track.score == 0)).tolist()
    if filled:
        run.notice(f"the face was not found in {video.named_frames(filled)}; its place there is filled in")
    if left := np.flatnonzero(~track.shown).tolist():
        run.notice(f"the face was not found in {video.named_frames(left)}, which stay as they are")


def searched(
    video: Video,
    squares: FaceSquares,
    track: FaceTrack,
    faces: "FaceReadings",
    who: Float[Tensor, "1 d"],
    entry: Float[Tensor, "1 3 side side"],
    model: FaceModel,
    params: FaceParams,
    *,
    run: Run,
) -> Float[Tensor, "1 d"]:
    """Return how far the identity moves for the prompt.

    Clear frames are looked at; as published only the first.
    """
    if model.words is None:
        raise ParamsError("the model knows no words", hint=NO_WORDS)
    shown = torch.from_numpy(track.shown & (track.score > 0))
    chosen = (faces.weight * shown).topk(min(SEARCHED, int(shown.sum()))).indices.sort().values
    chosen = torch.tensor([0]) if params.faithful else chosen
    crops = [squares[n : n + 1].crop(video[n : n + 1].pixels(), model.side) for n in chosen.tolist()]
    start = faces.vectors[:1] if params.faithful else who
    motion, parts = faces.motion[chosen], faces.parts[chosen].long()
    levels = model.diffusion.schedule(WORD_LEVELS)
    schedule = schedule_at(published_timesteps(WORD_LEVELS)) if params.faithful else levels
    encoded = encode_faces(torch.cat(crops), start, motion, entry, model, schedule, run=run)
    return moved_by_words(
        encoded.noise, start, motion, parts, model, schedule, (params.source_prompt, params.prompt),
        iterations=params.search, faithful=params.faithful, run=run,
    )  # fmt: skip


@final
@dataclass(frozen=True, eq=False)
class FaceReadings:
    """Who each frame shows, how surely, how the face moves, and what its pixels show."""

    vectors: Float[Tensor, "f d"]
    weight: Float[Tensor, " f"]
    motion: Float[Tensor, "f motion"]
    parts: UInt8[Tensor, "f side side"]


@artifact("face_readings", version=1)
def read_faces(
    video: Video, squares: FaceSquares, track: FaceTrack, model: FaceModel, *, run: Run
) -> FaceReadings:
    """Read every frame's face: line 2."""
    rows = []
    for step in run.steps("read the face", chunks(len(video))):
        crops = squares[step.item].crop(video[step.item].pixels(), model.side).to(model.device)
        reading = model.reader.read(crops)
        weight = torch.from_numpy(track.score[step.item]) * sharpness(crops).cpu()
        motion, parts = model.reader.motion(reading.points).cpu(), reading.parts.to(torch.uint8).cpu()
        rows.append((model.vectors(crops), weight, motion, parts))
    vectors, weight, motion, parts = (torch.cat(kind) for kind in zip(*rows, strict=True))
    return FaceReadings(vectors, weight, motion, parts)


def sharpness(crops: Crops) -> Float[Tensor, " f"]:
    """Return how much pictures differ from themselves blurred."""
    return (crops - avg_pool2d(crops, 3, 1, 1)).abs().flatten(1).mean(1)


def mean_identity(faces: FaceReadings, *, normalised: bool) -> Float[Tensor, "1 d"]:
    """Return who the clip shows: the mean over frames, clear ones counting more; the authors' is shorter."""
    if not normalised:
        return faces.vectors.mean(0, keepdim=True)
    return normalize((faces.weight[:, None] * faces.vectors).sum(0, keepdim=True), dim=1)


def schedule_of(model: FaceModel, params: FaceParams) -> Schedule:
    """Return the noise levels of an edit."""
    if params.faithful:
        return schedule_at(published_timesteps(params.steps))
    return model.diffusion.schedule(params.steps)


@final
@dataclass(frozen=True, eq=False)
class EncodedFaces:
    """Faces as noise; what the network sees in them at the last level; how far each step down misses."""

    noise: Crops
    seen: Crops
    missed: Float[Tensor, "levels f 3 side side"]


@artifact("face_noise", version=1)
def encode_faces(
    crops: Crops,
    who: Float[Tensor, "1 d"],
    motion: Float[Tensor, "f motion"],
    entry: Float[Tensor, "1 3 side side"],
    model: FaceModel,
    schedule: Schedule,
    *,
    run: Run,
) -> EncodedFaces:
    """Take faces up to noise, told who it is and how they move (section 3.1 of the paper): line 3."""
    net, device = model.diffusion, model.device
    code = net.code(who.expand(len(crops), -1).to(device), motion.to(device))
    steps = encoding(schedule)
    lowest = steps[0][0]
    x = crops.to(device)
    if net.config.lo > 0:
        x = add_noise(x, entry.to(device).expand_as(x), lowest)
    path = x.new_zeros(len(steps) + 1, *x.shape)
    seen = torch.zeros_like(path)
    path[0] = x
    state = {"path": path, "seen": seen}
    for step in run.resumable("encode", steps, state, every=STEPS_A_CHECKPOINT):
        ((path[step.index + 1], seen[step.index]),) = follow(
            path[step.index], [step.item], lambda x, level: net.clean(x, level, code)
        )
        step.done(path[step.index + 1])
    seen[-1] = net.clean(path[-1], steps[-1][1], code)
    missed = [path[n] - extrapolate(seen[n + 1], path[n + 1], hi, lo) for n, (lo, hi) in enumerate(steps)]
    return EncodedFaces(path[-1], seen[0], torch.stack(missed).half())


@artifact("face_drawn", version=1)
def decode_faces(
    encoded: EncodedFaces,
    wanted: Float[Tensor, "f d"],
    motion: Float[Tensor, "f motion"],
    model: FaceModel,
    schedule: Schedule,
    *,
    corrected: bool,
    run: Run,
) -> Crops:
    """Draw faces from noise, told who they are to be: line 5."""
    net, device = model.diffusion, model.device
    code = net.code(wanted.to(device), motion.to(device))
    x = encoded.noise.to(device)
    left = encoded.missed.to(x)

    def clean(x: Crops, level: Level) -> Crops:
        return net.clean(x, level, code)

    down = schedule.down()
    for step in run.steps("draw", down):
        ((x, _),) = follow(x, [step.item], clean)
        if corrected and step.index + 1 < len(down):
            x = x + left[len(down) - 2 - step.index]
        x = step.done(x)
    return x


def preflight(clip: ClipFacts, params: FaceParams, tell: Listener) -> None:
    """Refuse attributes and words that the model does not know, and numbers of steps that it cannot take.

    Raises:
        ParamsError: says which.
        InputError: the direction is no such file.
    """
    del clip, tell
    if params.faithful:
        published_timesteps(params.steps)
    folder = resolve(params.model)
    if params.prompt and not (folder / WORDS).is_dir():
        raise ParamsError(f"{params.model} knows no words", hint=NO_WORDS)
    if params.direction:
        read_direction(params.direction)
    if params.attribute and (folder / "attributes").is_dir():
        names, _ = read_names(folder / "attributes", params.model)
        for name, _ in map(strength_curve, params.attribute):
            check_name(name, names)


def estimate(frames: int, height: int, width: int, params: FaceParams, compute: Compute) -> Estimate:
    """Return the memory and the network calls of an edit."""
    del compute
    together, calls = min(frames, params.window), params.steps * frames
    pixels = 3 * height * width * together * 4
    return Estimate(
        stored_bytes(params.model) * 2 + 8 * pixels,
        notes=(f"{calls} network calls find the noise, which is kept, and {calls} draw the edit",),
    )
