"""From what a user gave to the atlas of a clip: a file, masks, or a few marks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from retouch.artifacts import artifact
from retouch.atlas.atlas import Atlas, Mattes, pack_matte
from retouch.atlas.decompose import kept_atlas
from retouch.atlas.file import load_atlas
from retouch.atlas.footage import AtlasSettings, blocks
from retouch.errors import ParamsError
from retouch.events import Notice
from retouch.media.masks import each_mask
from retouch.models.segment import Cutout, GrabCutSegmenter, Mark, MarkKind, Segmenter, parse_mark
from retouch.run import Run
from retouch.video import Video

BACKGROUND = "background"


@final
@dataclass(frozen=True, eq=False)
class Objects:
    """The mattes of a clip's objects, the front one first."""

    names: tuple[str, ...]
    mattes: tuple[Mattes, ...]
    warnings: tuple[str, ...] = ()


def atlas_for(
    video: Video,
    run: Run,
    *,
    file: Path | None = None,
    masks: Sequence[Path] = (),
    marks: Sequence[Mark] = (),
    settings: AtlasSettings | None = None,
) -> Atlas:
    """Give the atlas of a clip: read it, or decompose the clip by masks or marks and keep the result.

    Raises:
        ArtifactError: the file is damaged or of another clip.
        ParamsError: nothing says what the object is.
    """
    if file is not None:
        return load_atlas(file, video).to(run.compute.torch_device())
    if masks:
        objects = objects_from_files(video, masks, scratch=run.folder / "masks")
    elif marks:
        objects = kept_objects(video, tuple(marks), run=run)
        for warning in objects.warnings:
            run.emit(Notice(warning))
    else:
        raise ParamsError(
            "nothing says what the object is",
            hint="give an atlas file, a mask, or a box such as --box 40:120,80 400,300 with a stroke or two",
        )
    names = (*objects.names, BACKGROUND)
    atlas = kept_atlas(video, objects.mattes, names, settings or AtlasSettings(), run=run)
    return atlas.to(run.compute.torch_device())


def objects_from_files(video: Video, masks: Sequence[Path], *, scratch: Path | None = None) -> Objects:
    """Read one mask file or folder per object, front to back; each object goes by its file's name."""
    mattes = []
    for path in masks:
        packed = [pack_matte(picture[0]) for picture in each_mask(path, video, scratch=scratch)]
        mattes.append(Mattes.pack(packed, video.height, video.width))
    names = [Path(path).stem for path in masks]
    if len(names) == 1:
        names = ["object"]
    if len({*names, BACKGROUND}) <= len(names):
        raise ParamsError(f"the masks {', '.join(names)} need names of their own", hint="rename the files")
    return Objects(tuple(names), tuple(mattes))


@artifact("mattes", version=1)
def kept_objects(
    video: Video, marks: tuple[Mark, ...], *, segmenter: Segmenter | None = None, run: Run
) -> Objects:
    """Follow marked objects through a clip, or take the result from the store."""
    cutout = (segmenter or GrabCutSegmenter()).segment(video, marks, listen=run.listen, shelf=run.scratch)
    return objects_from_cutout(cutout)


def objects_from_cutout(cutout: Cutout) -> Objects:
    """Pack a cutout's masks at the size of the clip."""
    mattes = []
    for which in range(len(cutout.names)):
        packed = []
        for a, b in blocks(0, cutout.masks.shape[1]):
            packed += [pack_matte(picture[0]) for picture in cutout.full(which, a, b)]
        mattes.append(Mattes.pack(packed, cutout.height, cutout.width))
    return Objects(cutout.names, tuple(mattes), cutout.warnings)


def marks_from(
    *,
    box: Sequence[str] = (),
    stroke: Sequence[str] = (),
    polygon: Sequence[str] = (),
    outside: Sequence[str] = (),
) -> list[Mark]:
    """Read marks as a user writes them (see `parse_mark`)."""
    kinds: list[tuple[MarkKind, Sequence[str]]] = [
        ("box", box),
        ("stroke", stroke),
        ("polygon", polygon),
        ("not", outside),
    ]
    return [parse_mark(kind, text) for kind, texts in kinds for text in texts]
