"""What `fatezero` is and what it can be told."""

from typing import Annotated, Literal, Self, TypeAlias, final

from pydantic import Field, model_validator

from retouch.fields import pair
from retouch.params import (
    Faithful,
    Feather,
    FixedPoint,
    Guidance,
    MaskFile,
    Model,
    NegativePrompt,
    Params,
    Prompt,
    SourcePrompt,
    Steps,
    TunedWeights,
    TuneSteps,
    WindowOverlap,
    WindowSize,
    WorkingSize,
)
from retouch.spec import MethodSpec, Paper

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


@final
class FateZeroParams(Params):
    """What the clip shows, what it should show, and how much of the source is held."""

    source_prompt: SourcePrompt
    prompt: Prompt
    negative_prompt: NegativePrompt = ""
    model: Model = "tiny:sd"
    steps: Steps = 20
    guidance: Guidance = 2.5
    guide_from: Annotated[
        Literal["source", "nothing"],
        Field(
            description="What guidance leads away from: the source prompt, so that what both prompts say "
            "is left alone, or the negative prompt, as is common, with a guidance near 7.5."
        ),
    ] = "source"
    fixed_point: FixedPoint = 3
    size: WorkingSize = "model"

    alignment: Annotated[
        Literal["auto", "replace", "refine"],
        Field(description="How words are carried over: one by one in order, by what is equal, or what fits."),
    ] = "auto"
    cross_from: Annotated[Share, Field(description="When cross-attention begins to be the source's.")] = 0.0
    cross_until: Annotated[
        Share,
        Field(description="Share of the steps in which cross-attention is the source's: holds the layout."),
    ] = 0.8
    word_cross: Annotated[
        tuple[str, ...],
        Field(description="Such shares for words of the new prompt, as word=until or word=from-until."),
    ] = ()
    self_from: Annotated[Share, Field(description="When self-attention begins to be the source's.")] = 0.0
    self_until: Annotated[
        Share,
        Field(
            description="Share of the steps in which self-attention is the source's: holds shape and motion."
        ),
    ] = 0.8
    emphasise: Annotated[
        tuple[str, ...],
        Field(description="Words of the new prompt that should count for more or less, as word=factor."),
    ] = ()

    object_words: Annotated[
        tuple[str, ...],
        Field(description="Words of the source prompt that name what changes; those that differ, if empty."),
    ] = ()
    new_words: Annotated[
        tuple[str, ...],
        Field(description="Words of the new prompt that name what it becomes; those that differ, if empty."),
    ] = ()
    mask: MaskFile | None = None
    mask_self: Annotated[
        bool,
        Field(
            description="Hold the source's self-attention outside the object only, so that it changes shape."
        ),
    ] = False
    blend: Annotated[bool, Field(description="Put the source's latents back outside the object.")] = False
    blend_from: Annotated[Share, Field(description="When putting back begins.")] = 0.2
    blend_until: Annotated[Share, Field(description="When putting back ends.")] = 1.0
    threshold: Annotated[
        float,
        Field(
            ge=0, le=2, description="Share of the strongest attention to the object's words that is object."
        ),
    ] = 0.3
    smooth_mask: Annotated[
        int, Field(ge=0, le=16, description="Frames to each side over which the found object is averaged.")
    ] = 1
    keep_outside: Annotated[
        bool,
        Field(
            description="Bring the source's own pixels back outside the object; asks for a mask or for blend."
        ),
    ] = False
    feather: Feather = 4.0

    attend: Annotated[
        tuple[str, ...],
        Field(
            description="Frames that a frame looks at: first, mid, last, or steps in time such as -1 or 0."
        ),
    ] = ("mid",)
    attend_level: Annotated[
        int,
        Field(
            ge=0, le=8, description="Levels finer than this look at their own frame only; 0 is the finest."
        ),
    ] = 1
    most_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            description="Levels with more pixels than this are not fused; found by the size if empty.",
        ),
    ] = None
    clip_norm: Annotated[
        bool, Field(description="Normalise over the whole clip at once, as networks made for clips do.")
    ] = False
    window: WindowSize = 16
    overlap: WindowOverlap = 4

    tuned: TunedWeights | None = None
    tune_steps: TuneSteps = 0
    faithful: Faithful = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.guidance < 1 or (self.faithful and self.guidance <= 1):
            raise ValueError(
                f"guidance is {self.guidance:g}; it must be {'above' if self.faithful else 'at least'} 1"
            )
        for start, end, name in (
            (self.cross_from, self.cross_until, "cross"),
            (self.self_from, self.self_until, "self"),
            (self.blend_from, self.blend_until, "blend"),
        ):
            if start > end:
                raise ValueError(f"{name}_from is {start:g}; it must be at most {name}_until, {end:g}")
        if self.overlap >= self.window:
            raise ValueError(f"overlap is {self.overlap}; it must be below window, {self.window}")
        if self.faithful and self.mask:
            raise ValueError("mask cannot be used with faithful: the released code knows none")
        if self.tuned and self.tune_steps:
            raise ValueError("tuned and tune_steps exclude each other: weights are read, or learned")
        if self.keep_outside and not (self.mask or self.blend):
            raise ValueError("keep_outside needs a mask, or blend to find one")
        if self.guide_from == "source" and self.negative_prompt:
            raise ValueError(
                "negative_prompt is not read while guide_from is source; set guide_from to nothing"
            )
        for text in self.attend:
            reach(text)
        for text in self.emphasise:
            factor(text)
        for text in self.word_cross:
            word_window(text)
        return self


def reach(text: str) -> int | Literal["first", "mid", "last"]:
    """A frame that frames look at, from its text."""
    match text:
        case "first" | "mid" | "last":
            return text
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"attend has {text!r}; it must be first, mid, last or a whole number") from None


def factor(text: str) -> tuple[str, float]:
    """A word and how much it counts, from word=factor."""
    word, by = pair(text, "word=factor", example="blue=2")
    try:
        value = float(by)
    except ValueError:
        value = -1
    if not 0 <= value <= 100:
        raise ValueError(f"emphasise has {text!r}; write word=factor, with a factor from 0 to 100")
    return word, value


def word_window(text: str) -> tuple[str, tuple[float, float]]:
    """A word and when it is the source's, from word=until or word=from-until."""
    word, span = pair(text, "word=until or word=from-until", example="blue=0.5")
    start, _, end = span.rpartition("-")
    try:
        window = (float(start or 0), float(end))
    except ValueError:
        window = (-1.0, -1.0)
    if not 0 <= window[0] <= window[1] <= 1:
        raise ValueError(
            f"word_cross has {text!r}; write word=until or word=from-until, in shares from 0 to 1"
        )
    return word, window


SPEC = MethodSpec(
    name="fatezero",
    title="FateZero",
    summary="Changes style, colours or objects by a new prompt; layout and motion stay the clip's own.",
    params=FateZeroParams,
    edit="retouch.methods.fatezero.edit:edit",
    estimate="retouch.methods.fatezero.edit:estimate",
    needs=("image",),
    presets={
        "style": {"cross_until": 0.5, "self_until": 0.5, "alignment": "refine"},
        "attribute": {
            "cross_until": 0.6,
            "self_until": 0.6,
            "blend": True,
            "threshold": 0.15,
            "keep_outside": True,
        },
        "shape": {
            "cross_until": 0.3,
            "self_until": 0.5,
            "mask_self": True,
            "blend": True,
            "threshold": 0.4,
            "keep_outside": True,
        },
        "paper": {
            "model": "sd15",
            "steps": 50,
            "guidance": 7.5,
            "guide_from": "nothing",
            "fixed_point": 1,
            "clip_norm": True,
            "smooth_mask": 0,
            "faithful": True,
        },
    },
    paper=Paper(
        title="FateZero: Fusing Attentions for Zero-shot Text-based Video Editing",
        authors="Qi, Cun, Zhang, Lei, Wang, Shan, Chen",
        year=2023,
        url="https://arxiv.org/abs/2303.09535",
        code_licence="MIT",
    ),
)
