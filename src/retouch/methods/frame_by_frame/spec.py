"""What `frame_by_frame` is and what it can be told."""

from typing import final

from pydantic import Field

from retouch.params import (
    Adapter,
    Control,
    EdgeScale,
    Guidance,
    Model,
    NegativePrompt,
    Params,
    Prompt,
    Reference,
    ReferenceScale,
    Steps,
    Strength,
)
from retouch.spec import MethodSpec, Paper


@final
class FrameByFrameParams(Params):
    """Parameters of the per-frame edit."""

    prompt: Prompt
    negative_prompt: NegativePrompt = ""
    model: Model = "tiny:sd"
    steps: Steps = 20
    guidance: Guidance = 5.0
    strength: Strength = 0.7
    shared_noise: bool = Field(
        default=False,
        description="Start every frame from the same noise, which flickers less and sticks to the screen.",
    )
    edges: EdgeScale = 0.0
    control: Control = "tiny:sd-canny"
    reference: Reference | None = None
    reference_scale: ReferenceScale = 1.0
    adapter: Adapter = "tiny:ip"


SPEC = MethodSpec(
    name="frame_by_frame",
    title="Frame by frame",
    summary="Edits every frame for itself: the baseline, which flickers.",
    params=FrameByFrameParams,
    edit="retouch.methods.frame_by_frame.edit:edit",
    needs=("image",),
    presets={
        "paper": {
            "steps": 50,
            "guidance": 7.5,
            "strength": 0.8,
            "model": "sd15",
            "control": "sd15-canny",
            "adapter": "sd15-ip",
        },
        "laptop": {"steps": 20, "guidance": 5.0},
    },
    paper=Paper(
        title="SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
        authors="Meng, He, Song, Song, Wu, Zhu, Ermon",
        year=2022,
        url="https://arxiv.org/abs/2108.01073",
        code_licence="MIT",
    ),
)
