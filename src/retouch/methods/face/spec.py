"""What `face` is and what it can be told."""

from pathlib import Path
from typing import Annotated, Final, TypeAlias, final

from pydantic import AfterValidator, Field, model_validator

from retouch.errors import ParamsError
from retouch.fields import pair
from retouch.params import Faithful, Model, Params, Role, SourcePrompt, Steps
from retouch.spec import MethodSpec, Paper

EXAMPLE: Final = "--attribute glasses=1 or --attribute glasses=0:0,30:1"


def strength_curve(text: str) -> tuple[str, dict[int, float]]:
    """Return an attribute's name, and its strength at frames; between them it goes in a straight line.

    >>> strength_curve("glasses=0:0,30:1")
    ('glasses', {0: 0.0, 30: 1.0})

    Raises:
        ParamsError: the text is no NAME=STRENGTH and no NAME=FRAME:STRENGTH,...
    """
    name, value = pair(text, "NAME=STRENGTH", example=EXAMPLE)
    marks = [mark.rpartition(":") for mark in value.split(",")]
    try:
        if len(marks) > 1 and not all(colon for _, colon, _ in marks):
            raise ValueError(value)
        return name, {int(frame or 0): float(strength) for frame, _, strength in marks}
    except ValueError:
        raise ParamsError(f"{text!r} is not NAME=STRENGTH", hint=f"for example {EXAMPLE}") from None


def _checked(text: str) -> str:
    try:
        strength_curve(text)
    except ParamsError as error:
        raise ValueError(f"{error}; {error.hint}") from None
    return text


StrengthCurve: TypeAlias = Annotated[str, AfterValidator(_checked)]


@final
class FaceParams(Params):
    """What to change about a face, which face, and by which model."""

    attribute: tuple[StrengthCurve, ...] = Field(
        default=(),
        description="What the face should show, as NAME=STRENGTH: 1 goes all the way, below 0 takes it away. "
        "NAME=FRAME:STRENGTH,FRAME:STRENGTH changes over time. Repeatable.",
    )
    prompt: Annotated[str, Role.PROMPT, Field(description="What the face should show, in words.")] = ""
    source_prompt: SourcePrompt = "a face"
    direction: Path | None = Field(
        default=None, description="A file of retouch face train-direction, along which the identity moves."
    )
    identity: Annotated[
        Path | None,
        Role.PICTURE,
        Field(description="A picture of somebody else, whose identity the face takes on."),
    ] = None
    strength: float = Field(
        default=1.0,
        ge=-10,
        le=10,
        description="How far words, direction or the other identity are followed; 1 is all the way.",
    )
    face: int | None = Field(
        default=None,
        ge=0,
        description="Which face, counted from the left in the first frame that shows any; 0 is the leftmost.",
    )
    model: Model = "tiny:face"
    finder: Path | None = Field(
        default=None, description="The ONNX file of YuNet, which finds faces; the model's own if empty."
    )
    steps: Steps = 20
    search: int = Field(default=60, ge=1, le=10000, description="The most steps that words are searched for.")
    window: int = Field(default=16, ge=1, description="Frames that pass the network together.")
    gate: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="How much the face must change at a place for the clip to change there; full white is 1.",
    )
    faithful: Faithful = False

    @model_validator(mode="after")
    def _has_an_edit(self) -> "FaceParams":
        if not (self.attribute or self.prompt or self.direction or self.identity):
            raise ValueError("nothing is to be changed: give attribute, prompt, direction or identity")
        if self.steps < 2:
            raise ValueError("steps is 1; it must be at least 2")
        return self

    def strengths(self, frame: int) -> dict[str, float]:
        """Return how strongly each attribute is to be shown in a frame, by its number in the file."""
        return {name: strength_at(curve, frame) for name, curve in map(strength_curve, self.attribute)}


def strength_at(curve: dict[int, float], frame: int) -> float:
    """Return a curve's strength in a frame: straight between its marks, and level beyond them."""
    before = max((at for at in curve if at <= frame), default=min(curve))
    after = min((at for at in curve if at >= frame), default=max(curve))
    share = (frame - before) / (after - before) if after > before and frame > before else 0.0
    return curve[before] + share * (curve[after] - curve[before])


SPEC = MethodSpec(
    name="face",
    title="Face",
    summary="Changes who a face is, once: glasses, a beard, another person; motion and background stay.",
    params=FaceParams,
    edit="retouch.methods.face.edit:edit",
    estimate="retouch.methods.face.edit:estimate",
    preflight="retouch.methods.face.edit:preflight",
    needs=("face",),
    presets={"paper": {"faithful": True, "steps": 100, "search": 2000}, "laptop": {"steps": 10}},
    paper=Paper(
        title="Diffusion Video Autoencoders: Toward Temporally Consistent Face Video Editing via "
        "Disentangled Video Encoding",
        authors="Gyeongman Kim, Hajin Shim, Hyunsu Kim, Yunjey Choi, Junho Kim, Eunho Yang",
        year=2023,
        url="https://arxiv.org/abs/2212.02802",
        code_licence="MIT",
    ),
)
