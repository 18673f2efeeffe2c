"""Paint one picture, and every frame follows: editing a layered atlas by hand, after Kasten et al. (2021).

The paper in four lines, and where to find them:
    a clip is a few textures and where each pixel lies in them         `atlas_for`
    paint on a frame is fetched into the textures                      `patches_from_frames`
    paint on a texture is taken as it is                               `patches_from_textures`
    each frame is the source with the paint laid over it               `render_edit`
what the textures let slide is carried straight from the painted frame                   `transport_paint`
and what the paper shows in its figures, told of each edit: where it will not hold   `tell_of`

The paper learns textures and mappings as networks, in hours; ours are explicit and solved in seconds. Like
the paper's, our edit is laid over the original frames, so what it does not touch stays as it was, bit for
bit.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from retouch.atlas.atlas import Atlas
from retouch.atlas.edit import (
    PaintedFrame,
    Period,
    TexturePatch,
    check_painted_size,
    painted_key,
    patches_from_frames,
    patches_from_textures,
    render_edit,
)
from retouch.atlas.file import texture_index
from retouch.atlas.paint_report import PaintReport, examine_paint, useless_keys
from retouch.atlas.prepare import BACKGROUND, atlas_for, drawn_marks, marks_from, segmenter_named
from retouch.atlas.transported_paint import TransportedPaint, slips_in_textures, transport_paint
from retouch.errors import ParamsError
from retouch.events import Listener
from retouch.fields import pair
from retouch.media.pictures import read_header, read_picture
from retouch.media.probe import ClipFacts
from retouch.methods.paint.spec import PaintParams
from retouch.params import keyframes
from retouch.run import Edited, Run
from retouch.tracking.segment import DEFAULT_OBJECT
from retouch.video import Video


@torch.no_grad()
def edit(video: Video, params: PaintParams, run: Run) -> Edited:
    """Show what was painted in every frame where its place is seen."""
    period = period_of(params.frames, params.fade, len(video))
    keys, pictures = paintings(params)
    marks = marks_from(
        box=params.box, stroke=params.stroke, polygon=params.polygon, outside=params.outside
    ) + drawn_marks(params.drawn, video)
    masks = [params.mask] if params.mask else []
    segmenter = segmenter_named(params.segmenter, run) if marks else None
    atlas = atlas_for(video, run, file=params.atlas, masks=masks, marks=marks, segmenter=segmenter)

    layers = [layer_named(params.layer, atlas.names)] if params.layer else None
    shots = painted_keys(video, keys, params)
    patches = patches_from_frames(atlas, shots, layers)
    straight = carried_straight(atlas, video, shots, layers, period, params, run)
    rendered = [p for p in patches if atlas.charts[p.chart].layer not in straight.layers]
    if pictures:
        read = {texture_index(atlas, name): read_picture(path) for name, path in pictures.items()}
        on_textures = patches_from_textures(atlas, read, params.mode)
        patches, rendered = patches + on_textures, rendered + on_textures
    frames = run.scratch("painted", video.frames.shape)
    touched = run.scratch("touched", (len(video), 1, video.height, video.width), np.bool_)
    direct = functools.partial(straight.at, atlas) if straight.layers else None
    blocks = render_edit(atlas, video, rendered, params.mode, period, direct)
    for step in run.steps("paint", range(0, len(video), 8)):
        start, made, where = next(blocks)
        assert start == step.item
        frames[start : start + len(made)] = made
        touched[start : start + len(made)] = where

    figures = {"touched": float(np.mean([where.mean() for where in touched]))}
    report = tell_of(atlas, video, patches, shots, layers, period, straight, run)
    extras: dict[str, np.ndarray | str] = {}
    if report:
        extras = {"paint": report.words(), "paint-by-frame": report.picture()}
    return Edited(video.like(frames), touched=touched, figures=figures, extras=extras)


def carried_straight(
    atlas: Atlas,
    video: Video,
    shots: list[PaintedFrame],
    layers: list[int] | None,
    period: Period,
    params: PaintParams,
    run: Run,
) -> TransportedPaint:
    """Carry the paint of the layers that are not to go through the textures; say which these are."""
    if params.transport == "atlas" or params.mode != "over":
        return TransportedPaint({})
    choose = params.transport == "auto"
    found = transport_paint(atlas, video, shots, layers=layers, period=period, choose=choose, run=run)
    if choose and found.layers:
        names = " and ".join(atlas.names[layer] for layer in sorted(found.layers))
        run.notice(f"the paint on {names} is carried straight from the painted frames: it sits better so")
    return found


def tell_of(
    atlas: Atlas,
    video: Video,
    patches: list[TexturePatch],
    shots: list[PaintedFrame],
    layers: list[int] | None,
    period: Period,
    straight: TransportedPaint,
    run: Run,
) -> PaintReport | None:
    """Tell where the paint will slide, lean, be hidden or be out of sight; None if there is none."""
    if not patches and not any(shot.cover.any() for shot in shots):
        run.notice("nothing differs from the clip by more than the tolerance: the result is the source")
    for frame, shown in useless_keys(atlas, shots, layers, period):
        why = "reaches no other frame" if shown else "lies on nothing that may be edited, and is left out"
        run.notice(f"the paint on {video.named_frames([frame])} {why}")
    if not patches:
        return None
    painted = [shot.frame for shot in shots]
    slips = slips_in_textures(
        atlas, video, shots, layers=layers, period=period, straight=straight.layers, run=run
    )
    report = examine_paint(atlas, video, patches, painted, period, straight, slips)
    for warning in report.warnings():
        run.notice(warning)
    return report


def preflight(clip: ClipFacts, params: PaintParams, tell: Listener) -> None:
    """Refuse what cannot be painted, before the clip is taken apart into an atlas.

    Raises:
        ParamsError: nothing is painted, a picture has another size than the clip, or a name is unknown.
    """
    del tell
    period_of(params.frames, params.fade, clip.video.frames)
    keys, pictures = paintings(params)
    if params.transport == "direct" and (params.mode != "over" or pictures):
        raise ParamsError(
            f"transport direct lays paint over frames; {'a texture' if pictures else f'mode {params.mode}'} "
            "goes through the atlas",
            hint="leave --transport out, or paint on frames in mode over",
        )
    for at, path in keys.items():
        found = read_header(path)
        check_painted_size(at, (found.height, found.width), (clip.video.height, clip.video.width))
    marks = marks_from(box=params.box, stroke=params.stroke, polygon=params.polygon, outside=params.outside)
    drawn = [text.partition("=")[0].rpartition("@")[0] for text in params.drawn]
    names = {mark.name for mark in marks} | {name or DEFAULT_OBJECT for name in drawn}
    if params.layer and not params.atlas:
        layer_named(params.layer, [*sorted({DEFAULT_OBJECT} if params.mask else names), BACKGROUND])


def paintings(params: PaintParams) -> tuple[dict[int, Path], dict[str, Path]]:
    """Return the painted frames by number and the painted textures by name.

    Raises:
        ParamsError: there are none, or a text is no NAME=PICTURE.
    """
    keys = keyframes(params.first, params.keyframe)
    named = (pair(text, "NAME=PICTURE", example="--texture background=b.png") for text in params.texture)
    textures = {name: Path(path) for name, path in named}
    if not keys and not textures:
        raise ParamsError(
            "nothing is painted",
            hint="take a frame out, paint on it, and give it: --keyframe 40=k40.png (or --texture)",
        )
    return keys, textures


def painted_keys(video: Video, keys: dict[int, Path], params: PaintParams) -> list[PaintedFrame]:
    """Return the painted frames, where they differ from the clip."""
    mode, tolerance, feather = params.mode, params.tolerance, params.feather
    shots = []
    for at, path in keys.items():
        check_frame(at, len(video))
        source = np.ascontiguousarray(video.frames[at].transpose(1, 2, 0))
        picture = read_picture(path)
        shots.append(painted_key(source, picture, at, mode=mode, tolerance=tolerance, feather=feather))
    return shots


def layer_named(name: str, layers: Sequence[str]) -> int:
    """Return which of the layers has a name.

    Raises:
        ParamsError: none has.
    """
    if name not in layers:
        raise ParamsError(f"there is no layer {name!r}", hint=f"layers: {', '.join(layers)}")
    return layers.index(name)


def frame_number(text: str, frames: int) -> int:
    """Return a frame of the clip from what a user writes."""
    if not text.isdigit():
        raise ParamsError(f"{text!r} is no frame", hint=f"frames are 0 to {frames - 1}")
    check_frame(int(text), frames)
    return int(text)


def check_frame(at: int, frames: int) -> None:
    """Raise ParamsError where a clip of so many frames has no such one."""
    if at >= frames:
        raise ParamsError(f"frame {at} is not in the clip", hint=f"frames are 0 to {frames - 1}")


def period_of(text: str, fade: int, frames: int) -> Period:
    """`FIRST-LAST`, both included; fading only where the clip goes on beside it."""
    if not text:
        return Period(0, frames)
    first, dash, last = text.partition("-")
    start, end = frame_number(first, frames), frame_number(last if dash else first, frames)
    if start > end:
        raise ParamsError(f"frames {text!r} run backwards", hint="write FIRST-LAST, for example 10-40")
    return Period(start, end + 1, fade if start > 0 else 0, fade if end < frames - 1 else 0)
