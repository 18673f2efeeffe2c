"""What `tune_a_video` is and what it can be told."""

from typing import Annotated, Self, final

from pydantic import Field, model_validator

from retouch.params import (
    FixedPoint,
    Guidance,
    Model,
    NegativePrompt,
    Params,
    Prompt,
    SourcePrompt,
    Steps,
    TunedWeights,
    TuneSteps,
    WorkingSize,
)
from retouch.spec import MethodSpec, Paper


@final
class TuneAVideoParams(Params):
    """What the clip shows, what it should show, and how it is learned."""

    source_prompt: SourcePrompt
    prompt: Prompt
    negative_prompt: NegativePrompt = ""
    model: Model = "tiny:sd"
    steps: Steps = 20
    guidance: Guidance = 7.5
    fixed_point: FixedPoint = 1
    size: WorkingSize = "model"
    tuned: TunedWeights | None = None
    tune_steps: TuneSteps = 100
    tune_rate: Annotated[float, Field(gt=0, le=1, description="How far each step of tuning goes.")] = 3e-5
    tune_frames: Annotated[
        int,
        Field(ge=1, le=256, description="Frames learned at once; of longer clips each step sees a stretch."),
    ] = 24
    lora_rank: Annotated[
        int,
        Field(ge=0, le=320, description="Learn the queries by a change of this rank; 0 learns them whole."),
    ] = 0
    keep_weights: Annotated[
        bool, Field(description="Leave the tuned weights in the run folder, for use with `tuned`.")
    ] = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.guidance < 1:
            raise ValueError(f"guidance is {self.guidance:g}; it must be at least 1")
        return self


SPEC = MethodSpec(
    name="tune_a_video",
    title="Tune-A-Video",
    summary="Teaches an image model this one clip, then shows its motion under a new prompt.",
    params=TuneAVideoParams,
    edit="retouch.methods.tune_a_video.edit:edit",
    estimate="retouch.methods.tune_a_video.edit:estimate",
    needs=("image",),
    presets={
        "laptop": {"tune_steps": 50, "steps": 20},
        "paper": {"model": "sd15", "steps": 50, "guidance": 12.5, "tune_steps": 500},
    },
    paper=Paper(
        title="Tune-A-Video: One-Shot Tuning of Image Diffusion Models for Text-to-Video Generation",
        authors="Wu, Ge, Wang, Lei, Gu, Shi, Hsu, Shan, Qie, Shou",
        year=2023,
        url="https://arxiv.org/abs/2212.11565",
        code_licence="Apache-2.0",
    ),
)
