"""Videoshop's parameters and description."""

import re
from pathlib import Path
from typing import Annotated, Literal, final

from pydantic import Field, field_validator

from retouch.params import (
    Faithful,
    Feather,
    FixedPoint,
    Guidance,
    KeyFrame,
    MaskFile,
    Model,
    Params,
    Prompt,
    Role,
    SourcePrompt,
    Steps,
    Strength,
    WindowOverlap,
    WindowSize,
)
from retouch.spec import MethodSpec, Paper


@final
class VideoshopParams(Params):
    """What to carry through the clip, by which model, and how closely the source is held."""

    first: Annotated[
        Path, Role.KEYFRAME, Field(description="The clip's first frame as you edited it: a picture.")
    ]
    later: Annotated[
        tuple[KeyFrame, ...],
        Field(description="More edited frames, as FRAME=PICTURE, from which the edit is taken up afresh."),
    ] = ()
    model: Model = "tiny:svd"
    steps: Steps = 25
    strength: Strength = 0.55
    guidance: Guidance = 1.5
    last_guidance: Annotated[
        float | None,
        Field(ge=0, le=50, description="Guidance at a window's last frame, ramped up to; the same if empty."),
    ] = None
    guide_from: Annotated[
        Literal["source", "nothing"],
        Field(
            description="What guidance leads away from: the old first frame, so that an edit that changes "
            "nothing gives the source back, or an empty condition, as is common."
        ),
    ] = "source"
    fixed_point: FixedPoint = 3
    guess: Annotated[
        Literal["same_noise", "drawn", "same_sample"],
        Field(
            description="Where the inversion first asks the network: with the sample's own noise, "
            "with drawn noise as long as there is little (the authors' rule), or at the sample as it is."
        ),
    ] = "same_noise"
    normalise: Annotated[
        Literal["none", "clip", "channel", "frame"],
        Field(
            description="What the latents are standardised over before the inversion; put back afterwards."
        ),
    ] = "none"
    rescale: Annotated[
        Literal["none", "first_frame"],
        Field(description="Whether colours are matched, channel by channel, to the edited first frame."),
    ] = "first_frame"
    hold: Annotated[
        Literal["flow", "nothing"],
        Field(
            description="What of your picture is kept in later frames as you made it: what optical flow can "
            "follow, so that the model draws only what comes into view, or nothing, as in the paper."
        ),
    ] = "flow"
    region: Annotated[
        Literal["found", "everywhere"],
        Field(
            description="Where the clip may change: where the edited frame differs from the old one, "
            "followed through the clip, or everywhere. A mask takes its place."
        ),
    ] = "found"
    mask: MaskFile | None = None
    grow: Annotated[
        float,
        Field(ge=0, le=100, description="Margin around the found region, in percent of the short side."),
    ] = 4.0
    feather: Feather = 3.0
    window: WindowSize | None = None
    overlap: WindowOverlap = 3
    short_side: Annotated[
        int | None,
        Field(
            ge=16,
            le=4096,
            description="Height or width, the smaller one, that the model works at; its own if empty.",
        ),
    ] = None
    told_rate: Annotated[
        int | None,
        Field(ge=2, le=120, description="Frames a second that the model is told; the clip's if empty."),
    ] = None
    motion: Annotated[
        int,
        Field(ge=1, le=255, description="How much motion the model is told to expect (its motion bucket)."),
    ] = 127
    picture_noise: Annotated[
        float,
        Field(
            ge=0, le=1, description="Noise on the pictures that the model starts from, which it is told of."
        ),
    ] = 0.02
    decode_at_once: Annotated[
        int | None,
        Field(ge=1, description="Frames decoded together; fewer save memory; a whole window if empty."),
    ] = None
    check_inversion: Annotated[
        bool,
        Field(
            description="Walk the inversion back before the edit and report how closely it brings the source."
        ),
    ] = True
    prompt: Prompt | None = None
    source_prompt: SourcePrompt | None = None
    faithful: Faithful = False

    @field_validator("later")
    @classmethod
    def _later_are_pictures_of_later_frames(cls, later: tuple[str, ...]) -> tuple[str, ...]:
        for one in later:
            if not re.fullmatch(r"0*[1-9]\d*=.+", one):
                raise ValueError(f"{one!r} is no FRAME=PICTURE with a frame from 1 on, such as 48=k48.png")
        if len({int(one.partition("=")[0]) for one in later}) < len(later):
            raise ValueError("a frame has two pictures")
        return later

    def pictures(self) -> dict[int, Path]:
        """The edited frames by their numbers, in order."""
        split = (one.split("=", 1) for one in self.later)
        return {0: self.first, **dict(sorted((int(at), Path(path)) for at, path in split))}


SPEC = MethodSpec(
    name="videoshop",
    title="Videoshop",
    summary="Edit the first frame in any image editor; an image-to-video model carries it through the clip.",
    params=VideoshopParams,
    edit="retouch.methods.videoshop.edit:edit",
    plan="retouch.methods.videoshop.plan:plan",
    needs=("image-to-video",),
    presets={
        "paper": {
            "model": "svd",
            "faithful": True,
            "steps": 25,
            "strength": 0.55,
            "guidance": 4.0,
            "picture_noise": 0.2,
        },
        "laptop": {"steps": 12},
    },
    paper=Paper(
        title="Videoshop: Localized Semantic Video Editing with Noise-Extrapolated Diffusion Inversion",
        authors="Xiang Fan, Anand Bhattad, Ranjay Krishna",
        year=2024,
        url="https://arxiv.org/abs/2403.14617",
        code_licence="not stated",
    ),
)
