"""Videoshop's parameters and description."""

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final, Literal, final

from pydantic import Field, model_validator

from retouch.params import (
    Faithful,
    Feather,
    FirstFrame,
    FixedPoint,
    Formerly,
    Guidance,
    Keyframes,
    MaskFile,
    Model,
    Params,
    Prompt,
    SourcePrompt,
    Steps,
    Strength,
    WindowOverlap,
    WindowSize,
    keyframes,
)
from retouch.spec import MethodSpec, Paper

FASTEST: Final = 30
"""Frames a second; faster clips were not among what Stable Video Diffusion was trained on."""


@final
class VideoshopParams(Params):
    """What to carry through the clip, by which model, and how closely the source is held."""

    first: FirstFrame | None = None
    keyframe: Annotated[Keyframes, Formerly("later")] = ()
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
    start: Annotated[
        Literal["extrapolate", "random", "none"],
        Field(
            description="Where an inversion step first asks the network: at the sample with its own noise "
            "extrapolated, with random noise while there is little of its own (the authors' rule), or at the "
            "sample as it is."
        ),
        Formerly("guess", {"same_noise": "extrapolate", "drawn": "random", "same_sample": "none"}),
    ] = "extrapolate"
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
    fps: Annotated[
        int | None,
        Field(ge=2, le=120, description="Frames a second that the model is told; the clip's if empty."),
        Formerly("told_rate"),
    ] = None
    motion_bucket_id: Annotated[
        int,
        Field(ge=1, le=255, description="How much motion the model is told to expect."),
        Formerly("motion"),
    ] = 127
    noise_aug_strength: Annotated[
        float,
        Field(
            ge=0, le=1, description="Noise on the pictures that the model starts from, which it is told of."
        ),
        Formerly("picture_noise"),
    ] = 0.02
    decode_chunk_size: Annotated[
        int | None,
        Field(ge=1, description="Frames decoded together; fewer save memory; a whole window if empty."),
        Formerly("decode_at_once"),
    ] = None
    check_inversion: Annotated[
        bool,
        Field(
            description="Sample the inversion back before the edit and report how closely it is the source."
        ),
    ] = True
    prompt: Prompt | None = None
    source_prompt: SourcePrompt | None = None
    faithful: Faithful = False

    @model_validator(mode="after")
    def _has_a_first_frame(self) -> "VideoshopParams":
        if 0 not in self.keyframes():
            raise ValueError("the first frame has no picture: give first")
        return self

    def keyframes(self) -> dict[int, Path]:
        """Return the edited frames by their numbers, in order."""
        return keyframes(self.first, self.keyframe)

    @property
    def tracks(self) -> bool:
        """Whether the edit is followed by optical flow, for its region or for its pixels."""
        return self.hold == "flow" or (self.mask is None and self.region == "found")

    def told_fps(self, fps: Fraction) -> int:
        """Return the frame rate that the model is told for a clip of a rate."""
        return self.fps or min(max(round(fps), 2), FASTEST)

    def inversion(self, seed: int) -> dict[str, Any]:
        """Return what decides an inversion, beside clip, model and condition."""
        names = ("steps", "strength", "fixed_point", "start", "normalise")
        return {name: getattr(self, name) for name in names} | {"seed": seed * (self.start == "random")}

    def sampling(self) -> dict[str, Any]:
        """Return what decides a sampling, beside noise, model and conditions."""
        names = ("steps", "strength", "guidance", "guide_from", "normalise")
        last = self.guidance if self.last_guidance is None else self.last_guidance
        return {name: getattr(self, name) for name in names} | {"last_guidance": last}


SPEC = MethodSpec(
    name="videoshop",
    title="Videoshop",
    summary="Edit the first frame in any image editor; an image-to-video model carries it through the clip.",
    params=VideoshopParams,
    edit="retouch.methods.videoshop.edit:edit",
    estimate="retouch.methods.videoshop.windows:estimate",
    needs=("image-to-video",),
    presets={
        "paper": {
            "model": "svd",
            "faithful": True,
            "steps": 25,
            "strength": 0.55,
            "guidance": 4.0,
            "noise_aug_strength": 0.2,
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
