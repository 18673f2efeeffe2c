"""What `diffusion_atlas` is and what it can be told."""

from pathlib import Path
from typing import Annotated, Literal, Self, final

from pydantic import Field, model_validator

from retouch.params import (
    Adapter,
    AtlasFile,
    Boxes,
    DrawnMasks,
    Editor,
    EditorGuidance,
    EditorSteps,
    FixedPoint,
    Guidance,
    MaskFile,
    Model,
    Outsides,
    Params,
    Polygons,
    Reference,
    ReferenceScale,
    Role,
    SegmenterName,
    SourcePrompt,
    Steps,
    Strength,
    Strokes,
)
from retouch.spec import MethodSpec, Paper


@final
class DiffusionAtlasParams(Params):
    """What the clip shows, what the object and what is behind it should show, and where the object is."""

    source_prompt: SourcePrompt
    prompt: Annotated[
        str,
        Role.PROMPT,
        Field(description="What the clip should show, the object edited; empty keeps its words."),
    ] = ""
    reference: Reference | None = None
    background_prompt: Annotated[
        str,
        Role.PROMPT,
        Field(
            description="What the clip should show, what is behind the object edited; empty keeps its words."
        ),
    ] = ""
    background_reference: (
        Annotated[Path, Role.PICTURE, Field(description="A picture of what should be behind the object.")]
        | None
    ) = None
    outline: Literal["keep", "new"] = Field(
        default="keep",
        description="keep the object's outline, for colour and pattern, or let a new object have a new one.",
    )
    mask: MaskFile | None = None
    box: Boxes = ()
    stroke: Strokes = ()
    outside: Outsides = ()
    polygon: Polygons = ()
    drawn: DrawnMasks = ()
    segmenter: SegmenterName = "grabcut"
    atlas: AtlasFile | None = None
    layer: str = Field(default="", description="The layer that is edited; empty is the front one.")
    editor: Editor | None = None
    editor_steps: EditorSteps | None = None
    editor_guidance: EditorGuidance | None = None
    model: Model = "tiny:sd"
    adapter: Adapter = "tiny:ip"
    steps: Steps = 20
    guidance: Guidance = 2.5
    reference_guidance: Annotated[
        float, Field(ge=0, le=50, description="How strongly the reference picture steers.")
    ] = 2.5
    guide_from: Literal["source", "nothing"] = Field(
        default="source",
        description="What guidance leads away from: what the source shows, or an empty prompt.",
    )
    reference_scale: ReferenceScale = 1.0
    strength: Strength = 1.0
    fixed_point: FixedPoint = 2
    tune_steps: (
        Annotated[
            int,
            Field(
                ge=0,
                le=10000,
                description="Steps of one-shot tuning on the texture; 0 is none. If empty 50, where that "
                "helps: for a reference picture or a new outline.",
            ),
        ]
        | None
    ) = None
    tune_rate: Annotated[float, Field(gt=0, le=1, description="How far each step of tuning goes.")] = 1e-3
    tune_rank: Annotated[int, Field(ge=1, le=320, description="Rank of what is learned.")] = 16
    tune_strength: Annotated[
        float, Field(ge=0, le=1, description="How much of what was learned counts in the edit.")
    ] = 1.0
    tune_late: Annotated[
        float, Field(ge=0, le=1, description="What is left of that where only details are decided.")
    ] = 1.0
    refine: Literal["no", "denoise", "sds", "dds"] = Field(
        default="no",
        description="Mend where the texture lies, by the model's denoising loss, score distillation or delta "
        "denoising. For maps that are bad to begin with.",
    )
    refine_steps: Annotated[int, Field(ge=1, le=10000, description="Steps of the refinement.")] = 80
    refine_bend: bool = Field(default=False, description="Let the refinement bend the texture too.")
    refine_guidance: Annotated[
        float, Field(ge=0, le=200, description="How strongly the prompt steers the refinement.")
    ] = 2.0
    refine_least: Annotated[
        float,
        Field(
            ge=-1,
            le=1,
            description="Share by which the loss must fall on other noise for a refinement to be used.",
        ),
    ] = 0.02
    refine_least_move: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="How far a refinement must move the object to be used, in sides of its crop; what is "
            "less than that, the model cannot tell.",
        ),
    ] = 0.025

    @property
    def references(self) -> list[Path]:
        """The pictures that are given."""
        return [path for path in (self.reference, self.background_reference) if path]

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not (self.prompt or self.reference or self.background_prompt or self.background_reference):
            raise ValueError(
                "nothing is asked for: give prompt, reference, or one of them for the background"
            )
        return self


SPEC = MethodSpec(
    name="diffusion_atlas",
    title="DiffusionAtlas",
    summary="Edits an object's texture and what is behind it by words and by a picture; every frame follows.",
    params=DiffusionAtlasParams,
    edit="retouch.methods.diffusion_atlas.edit:edit",
    preflight="retouch.methods.diffusion_atlas.edit:preflight",
    needs=("image",),
    presets={
        "laptop": {},
        "reference": {"reference_guidance": 2.5, "tune_steps": 50},
        "paper": {
            "model": "sd15",
            "adapter": "sd15-ip",
            "steps": 50,
            "guidance": 7.5,
            "reference_guidance": 4.0,
            "guide_from": "nothing",
            "tune_steps": 400,
            "tune_rate": 1e-4,
            "refine": "sds",
            "refine_guidance": 15.0,
            "refine_steps": 1000,
        },
    },
    paper=Paper(
        title="DiffusionAtlas: High-Fidelity Consistent Diffusion Video Editing",
        authors="Chang, Chen, Liu",
        year=2023,
        url="https://arxiv.org/abs/2312.03772",
        code_licence="no code released",
    ),
)
