"""What `stablevideo` is and what it can be told."""

from typing import Annotated, Literal, Self, final

from pydantic import Field, model_validator

from retouch.params import (
    AtlasFile,
    Boxes,
    Control,
    DrawnMask,
    DrawnMasks,
    EdgeScale,
    Editor,
    EditorGuidance,
    EditorSteps,
    Faithful,
    FrameNumber,
    Guidance,
    MaskFile,
    Model,
    NegativePrompt,
    Params,
    Prompt,
    Role,
    Steps,
    Strength,
    Strokes,
)
from retouch.spec import MethodSpec, Paper


@final
class StableVideoParams(Params):
    """Parameters of key frames that are edited by words and carried by an atlas."""

    prompt: Prompt
    negative_prompt: NegativePrompt = ""
    edits: Literal["object", "background", "both"] = Field(
        default="object", description="What is edited; the rest stays as it is, bit for bit."
    )
    background_prompt: Annotated[
        str, Role.PROMPT, Field(description="What the background should show; the prompt, if empty.")
    ] = ""
    background_scale: float | None = Field(
        default=None,
        ge=1,
        le=16,
        description="How many times larger than the pictures that the model knows a background is drawn, in "
        "tiles that overlap, if the clip is as large; if empty, 2 with a background prompt, and 1 without.",
    )
    mask: MaskFile | None = None
    box: Boxes = ()
    stroke: Strokes = ()
    drawn: DrawnMasks = ()
    brush: tuple[DrawnMask, ...] = Field(
        default=(),
        description="What stays as it was, drawn over a frame, as FRAME=PICTURE; white stays. Repeatable.",
    )
    atlas: AtlasFile | None = None
    at: tuple[FrameNumber, ...] = Field(
        default=(),
        description="Key frames, in the order of their editing; chosen, if none. Repeatable.",
    )
    keyframes: int = Field(default=3, ge=1, le=64, description="Key frames to choose at most.")
    view: Literal["frame", "layer"] = Field(
        default="frame",
        description="What the model is shown of a key frame: all of it, or the box around what is edited.",
    )
    carry: Literal["all", "previous", "noise", "none"] = Field(
        default="all",
        description="What a key frame knows of those before: all they decided, what the one before did, the "
        "same noise, or nothing.",
    )
    model: Model = "tiny:sd"
    control: Control = "tiny:sd-canny"
    edges: EdgeScale = 1.0
    depth: (
        Annotated[
            str,
            Role.WEIGHTS,
            Field(
                min_length=1,
                description="A depth model, such as DPT: it holds the background, in place of edges.",
            ),
        ]
        | None
    ) = None
    depth_control: (
        Annotated[
            str,
            Role.WEIGHTS,
            Field(min_length=1, description="The ControlNet for depth; sd15-depth for sd15, if empty."),
        ]
        | None
    ) = None
    aggregation: Literal["solve", "network"] = Field(
        default="solve",
        description="How key frames become one texture: solved, or by the paper's median and network.",
    )
    steps: Steps = 20
    guidance: Guidance = 5.0
    strength: Strength = 0.8
    first_strength: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="As strength, of the first key frame; 1 keeps nothing of it but its edges.",
    )
    faithful: Faithful = False
    editor: Editor | None = None
    editor_steps: EditorSteps | None = None
    editor_guidance: EditorGuidance | None = None

    @model_validator(mode="after")
    def _depth_holds_the_background(self) -> Self:
        if self.depth is not None:
            if self.edits == "object":
                raise ValueError("depth holds the background: give edits background, or both")
            if self.editor is not None or not self.edges:
                what = "edges is 0" if self.editor is None else "editor draws freely"
                raise ValueError(f"{what}, so depth would hold nothing; leave one of them out")
        elif self.depth_control is not None:
            raise ValueError("depth_control is shown depth: give depth, the model that reads it")
        return self

    @model_validator(mode="after")
    def _scale_is_of_the_background(self) -> Self:
        if self.background_scale is not None and (self.edits == "object" or self.editor or self.faithful):
            raise ValueError(
                "background_scale says how large the model draws a background: give edits background, or "
                "both, and neither editor nor faithful"
            )
        return self

    @model_validator(mode="after")
    def _released_knows_less(self) -> Self:
        if self.faithful:
            for name, other in {
                "edits": self.edits != "object",
                "editor": self.editor,
                "brush": self.brush,
            }.items():
                if other:
                    raise ValueError(
                        f"{name} cannot be used with faithful: it edits the object, by words and edges"
                    )
            if not self.edges:
                raise ValueError("edges is 0: with faithful they always hold the edit, at 1")
            if self.strength == 1:
                raise ValueError("strength is 1: with faithful there is no such level; give 0.9, or less")
        return self


SPEC = MethodSpec(
    name="stablevideo",
    title="StableVideo",
    summary="Edits key frames by words, each agreeing with those before, and carries them by an atlas.",
    params=StableVideoParams,
    edit="retouch.methods.stablevideo.edit:edit",
    preflight="retouch.methods.stablevideo.edit:preflight",
    needs=("image",),
    presets={
        "paper": {
            "steps": 20,
            "guidance": 9.0,
            "first_strength": 1.0,
            "strength": 0.8,
            "view": "layer",
            "carry": "previous",
            "model": "sd15",
            "control": "sd15-canny",
        },
        "laptop": {"steps": 10},
        "faithful": {
            "steps": 20,
            "guidance": 9.0,
            "strength": 0.8,
            "model": "sd15",
            "control": "sd15-canny",
            "faithful": True,
        },
    },
    paper=Paper(
        title="StableVideo: Text-driven Consistency-aware Diffusion Video Editing",
        authors="Chai, Guo, Wang, Lu",
        year=2023,
        url="https://arxiv.org/abs/2308.09592",
        code_licence="Apache-2.0",
    ),
)
