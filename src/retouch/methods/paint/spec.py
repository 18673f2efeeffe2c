"""What `paint` is and what it can be told."""

from typing import Literal, final

from pydantic import Field

from retouch.params import (
    AtlasFile,
    Boxes,
    DrawnMasks,
    Feather,
    FirstFrame,
    Frames,
    Keyframes,
    MaskFile,
    NamedPicture,
    Outsides,
    Params,
    Polygons,
    SegmenterName,
    Strokes,
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
    box: Boxes = ()
    stroke: Strokes = ()
    outside: Outsides = ()
    polygon: Polygons = ()
    drawn: DrawnMasks = ()
    segmenter: SegmenterName = "grabcut"
    atlas: AtlasFile | None = None
    mode: Literal["over", "delta", "replace"] = Field(
        default="over",
        description="over lays paint over the clip; delta adds the difference, which keeps shading; replace "
        "shows the edited texture itself.",
    )
    transport: Literal["auto", "atlas", "direct"] = Field(
        default="auto",
        description="How paint on a frame reaches the others: atlas through the textures, direct straight "
        "from the painted frame, which follows what bends; auto chooses for each layer what fits better.",
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
