"""From what a user gave to the atlas of a clip: a file, masks, or a few marks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from retouch.artifacts import artifact
from retouch.atlas.atlas import Atlas, PackedMattes, pack_matte
from retouch.atlas.decompose import OutOfTime, StageDeadline, kept_atlas
from retouch.atlas.file import NAME, load_atlas
from retouch.atlas.pyramid import AtlasSettings, frame_blocks
from retouch.errors import ParamsError
from retouch.fields import pair
from retouch.media.masks import each_mask, read_masks
from retouch.run import Run
from retouch.tracking.flow import Flow
from retouch.tracking.segment import (
    DEFAULT_OBJECT,
    GrabCutSegmenter,
    MarkKind,
    ObjectMark,
    ObjectMasks,
    ObjectSegmenter,
    parse_mark,
)
from retouch.video import Video

BACKGROUND = "background"


@final
@dataclass(frozen=True, eq=False)
class ClipObjects:
    """The mattes of a clip's objects, the front one first."""

    names: tuple[str, ...]
    mattes: tuple[PackedMattes, ...]
    warnings: tuple[str, ...] = ()


def atlas_for(
    video: Video,
    run: Run,
    *,
    file: Path | None = None,
    masks: Sequence[Path] = (),
    marks: Sequence[ObjectMark] = (),
    segmenter: ObjectSegmenter | None = None,
    flow: Flow | None = None,
    settings: AtlasSettings | None = None,
    deadline: float = 0.0,
) -> Atlas:
    """Return the atlas of a clip: read it, or decompose the clip by masks or marks and keep the result.

    Args:
        video: The clip.
        run: Progress, device, scratch space and the store.
        file: An atlas that is there already; nothing else is looked at then.
        masks: A mask file per object, front to back.
        marks: What the objects are, if there are no masks.
        segmenter: Who follows the marks; the default needs no weights.
        flow: Where motion comes from; the default needs no weights.
        settings: How to solve.
        deadline: Seconds after which no new stage of solving is begun; the next attempt goes on. 0 is never.

    Raises:
        ArtifactError: the file is damaged or of another clip.
        ParamsError: nothing says what the object is.
    """
    if file is not None:
        return load_atlas(file, video).to(run.compute.torch_device())
    if masks:
        objects = objects_from_files(video, masks, scratch=run.folder / "masks")
    elif marks:
        objects = marked_objects(video, marks, segmenter=segmenter, run=run)
    else:
        raise ParamsError(
            "nothing says what the object is",
            hint="give an atlas file, a mask, or a box such as --box 40:120,80 400,300 with a stroke or two",
        )
    names = (*objects.names, BACKGROUND)
    settings = settings or AtlasSettings()
    try:
        atlas = kept_atlas(
            video, objects.mattes, names, settings, flow=flow, deadline=StageDeadline(deadline), run=run
        )
    except OutOfTime as stopped:
        run.notice(f"stopped after the stage {stopped.atlas.stage!r}: {deadline:g} seconds are over")
        atlas = stopped.atlas
    return atlas.to(run.compute.torch_device())


def objects_from_files(video: Video, masks: Sequence[Path], *, scratch: Path | None = None) -> ClipObjects:
    """Read one mask file or folder per object, front to back; each object goes by its file's name."""
    mattes = []
    for path in masks:
        packed = [pack_matte(picture[0]) for picture in each_mask(path, video, scratch=scratch)]
        mattes.append(PackedMattes.pack(packed, video.height, video.width))
    names = [re.sub("[^a-z0-9 _-]", "_", Path(path).stem.lower())[:64] for path in masks]
    if len(names) == 1:
        names = ["object"]
    if len({*names, BACKGROUND}) <= len(names):
        raise ParamsError(f"the masks {', '.join(names)} need names of their own", hint="rename the files")
    return ClipObjects(tuple(names), tuple(mattes))


def marked_objects(
    video: Video, marks: Sequence[ObjectMark], *, segmenter: ObjectSegmenter | None = None, run: Run
) -> ClipObjects:
    """Follow marked objects, or take them from the store; say which marks and frames to look at again.

    Raises:
        ParamsError: a mark lies outside the picture.
    """
    for mark in marks:
        check_in_picture(mark, video, run)
    objects = kept_objects(video, tuple(marks), segmenter=segmenter, run=run)
    for warning in objects.warnings:
        run.notice(warning)
    return objects


def check_in_picture(mark: ObjectMark, video: Video, run: Run) -> None:
    """See that a mark lies in the picture; a part of it that does not is told."""
    if not mark.points:
        return
    name = "outside stroke" if mark.kind == "not" else mark.kind
    where = f"of {video.named_frames([mark.frame])}, which is {video.width}x{video.height}"
    (left, top), (right, bottom) = np.min(mark.points, 0), np.max(mark.points, 0)
    if right < 0 or bottom < 0 or left >= video.width or top >= video.height:
        raise ParamsError(
            f"the {name} lies outside the picture {where}",
            hint=f"x goes from 0 to {video.width - 1}, y from 0 to {video.height - 1}; give x before y",
        )
    if left < 0 or top < 0 or right > video.width or bottom > video.height:
        run.notice(f"the {name} reaches out of the picture {where}; it ends at the edge")


@artifact("mattes", version=2)
def kept_objects(
    video: Video, marks: tuple[ObjectMark, ...], *, segmenter: ObjectSegmenter | None = None, run: Run
) -> ClipObjects:
    """Follow marked objects through a clip, or take the result from the store."""
    cutout = (segmenter or GrabCutSegmenter()).segment(video, marks, listen=run.listen, shelf=run.scratch)
    return objects_from_cutout(cutout)


def objects_from_cutout(cutout: ObjectMasks) -> ClipObjects:
    """Pack a cutout's masks at the size of the clip."""
    mattes = []
    for which in range(len(cutout.names)):
        packed = []
        for a, b in frame_blocks(0, cutout.masks.shape[1]):
            packed += [pack_matte(picture[0]) for picture in cutout.full(which, a, b)]
        mattes.append(PackedMattes.pack(packed, cutout.height, cutout.width))
    return ClipObjects(cutout.names, tuple(mattes), cutout.warnings)


def segmenter_named(name: str, run: Run) -> ObjectSegmenter | None:
    """Return who follows objects: nothing for `grabcut`, which is the default, or `sam2:MODEL`.

    Raises:
        ParamsError: there is none of that name.
        ModelNotFound: its model is not here.
    """
    ref = _model_named("segmenter", name, "grabcut", "sam2")
    if ref is None:
        return None
    from retouch.models.segment_sam2 import Sam2Segmenter

    return run.load(ref, Sam2Segmenter)


def flow_named(name: str, run: Run) -> Flow | None:
    """Return where motion comes from: nothing for `dis`, which is the default, or `raft:MODEL`.

    Raises:
        ParamsError: there is none of that name.
        ModelNotFound: its model is not here.
    """
    ref = _model_named("flow", name, "dis", "raft")
    if ref is None:
        return None
    from retouch.models.flow_raft import RaftFlow

    return run.load(ref, RaftFlow)


def _model_named(what: str, name: str, without: str, kind: str) -> str | None:
    """Return the model in `KIND:MODEL`; nothing for the one that goes without."""
    if name == without:
        return None
    given, _, ref = name.partition(":")
    if given != kind or not ref:
        raise ParamsError(
            f"there is no {what} {name!r}", hint=f"{without}, or {kind}:MODEL such as {kind}:./folder"
        )
    return ref


def drawn_marks(texts: Sequence[str], video: Video) -> list[ObjectMark]:
    """Read whole masks drawn over single frames, each as `[NAME@]FRAME=PICTURE`; white is the object.

    Raises:
        ParamsError: a text is no such thing, or names no frame of the clip.
        VideoError: a picture cannot be read, or is not as large as the clip.
    """
    marks = []
    for text in texts:
        head, path = pair(text, "[NAME@]FRAME=PICTURE", example="40=mask.png or car@40=mask.png")
        name, at, frame = head.rpartition("@")
        if not frame.isdigit() or (at and not name):
            raise ParamsError(f"{head!r} is not [NAME@]FRAME", hint="for example 40, or car@40")
        if int(frame) >= len(video):
            raise ParamsError(
                f"a drawn mask is on frame {frame}; the clip has frames 0 to {len(video) - 1}",
                hint="count frames from 0",
            )
        mask = np.array(read_masks(Path(path), video[int(frame) : int(frame) + 1])[0, 0])
        marks.append(ObjectMark("mask", int(frame), name=name or DEFAULT_OBJECT, drawn=mask))
    return _named(marks)


def marks_from(
    *,
    box: Sequence[str] = (),
    stroke: Sequence[str] = (),
    polygon: Sequence[str] = (),
    outside: Sequence[str] = (),
) -> list[ObjectMark]:
    """Read marks as a user writes them (see `parse_mark`)."""
    kinds: list[tuple[MarkKind, Sequence[str]]] = [
        ("box", box),
        ("stroke", stroke),
        ("polygon", polygon),
        ("not", outside),
    ]
    return _named([parse_mark(kind, text) for kind, texts in kinds for text in texts])


def _named(marks: list[ObjectMark]) -> list[ObjectMark]:
    """The marks, of objects whose names the atlas file takes."""
    for mark in marks:
        if not re.fullmatch(NAME, mark.name):
            raise ParamsError(
                f"no object can be called {mark.name!r}",
                hint="small letters, digits, blanks, _ and - make a name, at most 64 of them",
            )
    return marks
