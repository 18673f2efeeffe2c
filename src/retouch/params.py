"""The parameters that several methods share, each with one type, one range and one meaning.

A method's own parameters are one frozen class on `Params` in its `spec.py`. A name that two methods use
comes from here, so that it cannot drift apart.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, final, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from retouch.errors import ParamsError


@final
class Role(Enum):
    """What a path or a text in a parameter stands for: a mark in its type, by which it is checked early."""

    KEYFRAME = "a picture of a frame: FRAME=PICTURE, or a path for the first frame"
    MASK = "masks of the clip's size, one or one a frame"
    PICTURE = "any picture: a path, or NAME=PICTURE"
    MARK = "a mark on a frame: [NAME@]FRAME:x,y ... or [NAME@]FRAME=PICTURE"
    FRAMES = "frames of the clip: FIRST-LAST, or one"
    PROMPT = "words that a model reads"
    MODEL = "the model that reads the prompts"
    WEIGHTS = "a model beside that one"
    EDITOR = "the model that reads the prompts in place of that one, if there is one"


MODEL_ROLES: Final = (Role.MODEL, Role.WEIGHTS, Role.EDITOR)
"""What names a model: a folder, or a name that stands for one."""


class Params(BaseModel):
    """What every method's parameters are: flat, frozen, closed, and equal after a trip through JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")


P = TypeVar("P", bound=Params)


@final
@dataclass(frozen=True, eq=False)
class Formerly:
    """What a parameter was called in an earlier release, and what its choices were: a mark on its field.

    The old spelling goes on to work for one release, with a notice: see `retouch.fields.renamed`.
    """

    name: str
    values: Mapping[object, str] = field(default_factory=dict)


def given_as(params: Params, role: Role) -> "Iterator[tuple[str, Any]]":
    """Yield each value that plays a role, with its parameter's name; what was not given is left out."""
    for name, info in type(params).model_fields.items():
        if role in info.metadata or _says(info.annotation, role):
            value = getattr(params, name)
            values = value if isinstance(value, tuple) else () if value is None else (value,)
            yield from ((name, one) for one in values)


def named_paths(params: Params) -> Iterator[tuple[str, Path]]:
    """Yield each file or folder that parameters name, with its parameter's name."""
    for name, info in type(params).model_fields.items():
        value = getattr(params, name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Path):
                yield name, one
            elif isinstance(one, str) and "=" in one and _names_pictures(info):
                yield name, Path(one.partition("=")[2])


def from_folder(params: type[Params], given: Mapping[str, object], folder: Path) -> dict[str, object]:
    """Return values whose relative paths, as `folder` is meant by them, are absolute."""
    fields = params.model_fields

    def placed(info: FieldInfo, value: object) -> object:
        if isinstance(value, (list, tuple)):
            return [placed(info, one) for one in value]
        if not isinstance(value, str):
            return value
        name, equals, picture = value.partition("=")
        if equals and _names_pictures(info):
            return f"{name}={folder / Path(picture).expanduser()}"
        roles = (*info.metadata, *_marks(info.annotation))
        model = any(role in roles for role in MODEL_ROLES) and value.startswith(".")
        if model or info.annotation is Path or _says(info.annotation, Path):
            return str(folder / Path(value).expanduser())
        return value

    return {name: placed(fields[name], value) if name in fields else value for name, value in given.items()}


def frame_range(text: str) -> range | None:
    """Return the frames of `FIRST-LAST`, both included; None, which is all of them, for nothing.

    Raises:
        ParamsError: it is no such thing.
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if not found or int(found[1]) > int(found[2]):
        raise ParamsError(f"the range {text!r} is not FIRST-LAST", hint="for example --range 40-60")
    return range(int(found[1]), int(found[2]) + 1)


def renumbered(text: str, part: range | None, name: str, *, spans: bool = False) -> str:
    """Return what names frames as the file counts them, as a clip counts that begins with the part.

    Raises:
        ParamsError: it names a frame that is not in the part.
    """

    def counted(found: re.Match[str]) -> str:
        assert part
        if int(found[0]) not in part:
            raise ParamsError(
                f"{name} names frame {found[0]}; the range has frames {part[0]} to {part[-1]}",
                hint="frames are numbered as in the whole clip",
            )
        return str(int(found[0]) - part.start)

    places = r"\d+" if spans else r"(?:^|(?<=@))\d+(?=[:=])"
    return re.sub(places, counted, text) if part else text


def of_part(params: P, part: range | None) -> P:
    """Return parameters for a part of a clip: whatever names a frame counts from the part's first."""
    changed: dict[str, object] = {}
    for role in (Role.KEYFRAME, Role.MARK, Role.FRAMES) if part else ():
        for name, _ in given_as(params, role):
            value = getattr(params, name)
            if isinstance(value, tuple):
                spans = role is Role.FRAMES
                changed[name] = tuple(
                    type(one)(renumbered(str(one), part, name, spans=spans)) for one in value
                )
            elif isinstance(value, str):
                changed[name] = renumbered(value, part, name, spans=role is Role.FRAMES)
    return params.model_copy(update=changed)


def _says(annotation: object, mark: object) -> bool:
    return any(part is mark or _says(part, mark) for part in get_args(annotation))


def _names_pictures(info: FieldInfo) -> bool:
    """Whether texts of a field are NAME=PICTURE."""
    return any(
        getattr(part, "func", None) is _with_whole_path for part in (*info.metadata, *_marks(info.annotation))
    )


def _marks(annotation: object) -> Iterator[object]:
    for part in get_args(annotation):
        yield part
        yield from _marks(part)


def _with_whole_path(text: str) -> str:
    """`40=k40.png` with the path made absolute, so that a request means the same from any folder."""
    name, equals, path = text.partition("=")
    return f"{name}={Path(path).expanduser().absolute()}" if equals and path else text


PictureAt: TypeAlias = Annotated[str, AfterValidator(_with_whole_path)]
"""A picture for something that has a name or number, as NAME=PICTURE."""
FrameMark: TypeAlias = Annotated[str, Role.MARK]
"""A mark on one of the clip's frames, as [NAME@]FRAME:x,y ..."""
DrawnMask: TypeAlias = Annotated[PictureAt, Role.MARK]
"""A whole mask of one of the clip's frames, as [NAME@]FRAME=PICTURE."""
Boxes: TypeAlias = Annotated[
    tuple[FrameMark, ...],
    Field(description="A box around an object, as [NAME@]FRAME:x,y x,y. Repeatable."),
]
Strokes: TypeAlias = Annotated[
    tuple[FrameMark, ...],
    Field(description="A stroke over an object, as [NAME@]FRAME:x,y x,y ... Repeatable."),
]
Outsides: TypeAlias = Annotated[
    tuple[FrameMark, ...],
    Field(description="A stroke over what is not the object, as [NAME@]FRAME:x,y x,y ..."),
]
Polygons: TypeAlias = Annotated[
    tuple[FrameMark, ...],
    Field(description="An object's outline, as [NAME@]FRAME:x,y x,y x,y ... Repeatable."),
]
DrawnMasks: TypeAlias = Annotated[
    tuple[DrawnMask, ...],
    Field(description="A whole mask of one frame, as [NAME@]FRAME=PICTURE; white is the object. Repeatable."),
]
SegmenterName: TypeAlias = Annotated[
    str, Field(description="Who follows the object: grabcut, which needs no weights, or sam2:MODEL.")
]
AtlasFile: TypeAlias = Annotated[Path, Field(description="An atlas made before, by `retouch atlas fit`.")]
Frames: TypeAlias = Annotated[str, Role.FRAMES]
"""Some of the clip's frames, as FIRST-LAST."""
FrameNumber: TypeAlias = Annotated[int, Role.FRAMES]
"""One of the clip's frames."""
NamedPicture: TypeAlias = Annotated[PictureAt, Role.PICTURE]
"""A picture of something in the method's own words, as NAME=PICTURE."""
Keyframes: TypeAlias = Annotated[
    tuple[PictureAt, ...],
    Role.KEYFRAME,
    Field(
        description="A frame as you edited it, as FRAME=PICTURE; what differs from the frame is the edit. "
        "Repeatable."
    ),
]
FirstFrame: TypeAlias = Annotated[
    Path,
    Role.KEYFRAME,
    Field(description="The first frame as you edited it: short for keyframe 0=PICTURE."),
]
Prompt: TypeAlias = Annotated[
    str, Role.PROMPT, Field(min_length=1, description="What the edited clip should show.")
]
SourcePrompt: TypeAlias = Annotated[
    str, Role.PROMPT, Field(min_length=1, description="What the clip shows now.")
]
NegativePrompt: TypeAlias = Annotated[
    str, Role.PROMPT, Field(description="What the edited clip should not show.")
]
Model: TypeAlias = Annotated[
    str,
    Role.MODEL,
    Field(
        min_length=1, description="The model: a folder, a catalogue name, tiny:NAME, or hf:org/name@revision."
    ),
]
Editor: TypeAlias = Annotated[
    str,
    Role.EDITOR,
    Field(
        min_length=1,
        description="An image-edit model that edits in place of the model, such as InstructPix2Pix; it reads "
        "the prompt as it was taught to.",
    ),
]
EditorSteps: TypeAlias = Annotated[
    int, Field(ge=1, le=1000, description="Steps of the editor; its own number, if empty.")
]
EditorGuidance: TypeAlias = Annotated[
    float, Field(ge=0, le=50, description="How strongly the prompt steers the editor; its own, if empty.")
]
Steps: TypeAlias = Annotated[int, Field(ge=1, le=1000, description="Denoising steps.")]
Guidance: TypeAlias = Annotated[
    float, Field(ge=0, le=50, description="How strongly the prompt steers; 1 is the model's own prediction.")
]
Strength: TypeAlias = Annotated[
    float, Field(gt=0, le=1, description="How far back into noise the source goes; 1 keeps nothing of it.")
]
Control: TypeAlias = Annotated[
    str,
    Role.WEIGHTS,
    Field(
        min_length=1,
        description="The model that holds the edit to the source's edges; it belongs to one base model.",
    ),
]
EdgeScale: TypeAlias = Annotated[
    float,
    Field(ge=0, le=2, description="How firmly the source's edges hold the edit; 0 lets it go free."),
]
Reference: TypeAlias = Annotated[
    Path,
    Role.PICTURE,
    Field(description="A picture that speaks beside the prompt; its middle square is seen."),
]
ReferenceScale: TypeAlias = Annotated[
    float, Field(ge=0, le=2, description="How loud the reference picture is beside the prompt.")
]
Adapter: TypeAlias = Annotated[
    str,
    Role.WEIGHTS,
    Field(
        min_length=1,
        description="The model that shows the reference to the base model; it belongs to one base model.",
    ),
]
MaskFile: TypeAlias = Annotated[
    Path,
    Role.MASK,
    Field(
        description="Mask that says where to edit (white): a video, a folder, or one picture for every frame."
    ),
]
FixedPoint: TypeAlias = Annotated[
    int,
    Field(
        ge=1, le=20, description="Network calls per inversion step; more bring the source back more exactly."
    ),
]
WindowSize: TypeAlias = Annotated[
    int, Field(ge=1, description="Frames that are edited at once on a long clip.")
]
WindowOverlap: TypeAlias = Annotated[int, Field(ge=0, description="Frames that neighbouring windows share.")]
Feather: TypeAlias = Annotated[
    float, Field(ge=0, le=500, description="Width in pixels of the soft edge, inside the mask.")
]
Faithful: TypeAlias = Annotated[
    bool, Field(description="Do exactly what the authors' released code does, its faults included.")
]
WorkingSize: TypeAlias = Annotated[
    Literal["model", "clip"],
    Field(description="Work at the size that the model knows, or at the clip's own."),
]
TunedWeights: TypeAlias = Annotated[
    Path, Field(description="Folder of weights tuned on this clip, from tools/convert or an earlier run.")
]
TuneSteps: TypeAlias = Annotated[
    int,
    Field(ge=0, le=10000, description="Steps of one-shot tuning on the clip before the edit; 0 is none."),
]


def keyframes(first: Path | None, others: tuple[str, ...]) -> dict[int, Path]:
    """Return edited frames by number, in order, from a `FirstFrame` and `Keyframes`.

    Raises:
        ParamsError: a text is no FRAME=PICTURE, or a frame has two pictures.
    """
    found = {} if first is None else {0: first}
    for text in others:
        at, _, path = text.partition("=")
        if not (at.isdecimal() and path):
            raise ParamsError(f"{text!r} is not FRAME=PICTURE", hint="for example --keyframe 48=k48.png")
        if int(at) in found:
            raise ParamsError(f"frame {int(at)} has two pictures", hint="give one of them")
        found[int(at)] = Path(path)
    return dict(sorted(found.items()))
