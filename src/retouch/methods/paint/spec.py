"""What `paint` is and what it can be told."""

from pathlib import Path
from typing import Literal, final

from pydantic import Field

from retouch.params import (
    DrawnMask,
    Feather,
    FirstFrame,
    FrameMark,
    Frames,
    Keyframes,
    MaskFile,
    NamedPicture,
    Params,
)
from retouch.spec import MethodSpec, Paper


@final
class PaintParams(Params):
    """Parameters of painting over an atlas."""

    first: FirstFrame | None = None
    keyframe: Keyframes = ()
    texture: tuple[NamedPicture, ...] = Field(
        default=(),
        description="A painted texture, as NAME=PICTURE, both from `retouch atlas export`. Repeatable.",
    )
    mask: MaskFile | None = None
    box: tuple[FrameMark, ...] = Field(
        default=(), description="A box around an object, as [NAME@]FRAME:x,y x,y. Repeatable."
    )
    stroke: tuple[FrameMark, ...] = Field(
        default=(), description="A stroke over an object, as [NAME@]FRAME:x,y x,y ... Repeatable."
    )
    outside: tuple[FrameMark, ...] = Field(
        default=(), description="A stroke over what is not the object, as [NAME@]FRAME:x,y x,y ..."
    )
    polygon: tuple[FrameMark, ...] = Field(
        default=(), description="An object's outline, as [NAME@]FRAME:x,y x,y x,y ... Repeatable."
    )
    drawn: tuple[DrawnMask, ...] = Field(
        default=(),
        description="A whole mask of one frame, as [NAME@]FRAME=PICTURE; white is the object. Repeatable.",
    )
    segmenter: str = Field(
        default="grabcut",
        description="Who follows the object: grabcut, which needs no weights, or sam2:MODEL.",
    )
    atlas: Path | None = Field(default=None, description="An atlas made before, by `retouch atlas fit`.")
    mode: Literal["over", "delta", "replace"] = Field(
        default="over",
        description="over lays paint over the clip; delta adds the difference, which keeps shading; replace "
        "shows the edited texture itself.",
    )
    layer: str = Field(default="", description="The layer that may be edited; empty is all.")
    feather: Feather = 0.0
    tolerance: int = Field(
        default=3, ge=0, le=255, description="Levels by which a painted frame may differ and not be painted."
    )
    frames: Frames = Field(
        default="", description="The frames that show the edit, as FIRST-LAST; empty is all."
    )
    fade: int = Field(default=0, ge=0, description="Frames in which the edit comes and goes.")


SPEC = MethodSpec(
    name="paint",
    title="Paint",
    summary="Carries paint on one or more frames, or on a texture, through the whole clip; needs no weights.",
    params=PaintParams,
    edit="retouch.methods.paint.edit:edit",
    preflight="retouch.methods.paint.edit:preflight",
    needs=(),
    presets={"paper": {}, "laptop": {}},
    paper=Paper(
        title="Layered Neural Atlases for Consistent Video Editing",
        authors="Kasten, Ofri, Wang, Dekel",
        year=2021,
        url="https://arxiv.org/abs/2109.11418",
        code_licence="no licence stated",
    ),
)
