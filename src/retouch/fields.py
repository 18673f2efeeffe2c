"""Parameters as a closed vocabulary: the command line, the web form and the docs are drawn from it."""

import difflib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, final, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from retouch.errors import ParamsError, PluginError, RetouchError
from retouch.params import Formerly

Kind = Literal["text", "int", "float", "flag", "path", "choice", "list"]
_KINDS: Mapping[type, Kind] = {str: "text", int: "int", float: "float", bool: "flag", Path: "path"}

_SHOWN = 80
"""Characters of a faulty value that a message repeats."""

M = TypeVar("M", bound=BaseModel)


@final
@dataclass(frozen=True)
class Option:
    """One parameter as any form can show it."""

    name: str
    kind: Kind
    description: str
    default: object = None
    required: bool = False
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    item: Kind | None = None
    """The kind of a list's items."""
    former: tuple[str, ...] = ()
    """What it was called before; these names go on to work for one release."""

    @property
    def flag(self) -> str:
        """How the command line spells it."""
        return "--" + self.name.replace("_", "-")

    @property
    def bounds(self) -> str:
        """The range in words, empty where there is none."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        if self.low is not None:
            return f"at least {self.low:g}"
        return f"at most {self.high:g}" if self.high is not None else ""


def describe(params: type[BaseModel]) -> tuple[Option, ...]:
    """Return the options of a parameter class, in the order in which they are written.

    Raises:
        PluginError: a field has no description, or a type outside the vocabulary.
    """
    return tuple(_describe_option(params, name, info) for name, info in params.model_fields.items())


def parse(params: type[M], given: Mapping[str, object]) -> M:
    """Return the parameters that these values make.

    Raises:
        ParamsError: names the value, its bound and, for an unknown name, the near one.
    """
    try:
        return params.model_validate({name: _as_meant(params, name, value) for name, value in given.items()})
    except ValidationError as error:
        raise explain(error, params) from None


def renamed(
    params: type[BaseModel], given: Mapping[str, object], tell: Callable[[str], None]
) -> dict[str, object]:
    """Return values under today's names; `tell` hears of each that came under a former one.

    Raises:
        ParamsError: a parameter is given under both names.
    """
    values = dict(given)
    for name, info in params.model_fields.items():
        for former in _former_marks(info):
            if former.name not in values or (former.name == name and values[name] not in former.values):
                continue
            if former.name != name and name in values:
                raise ParamsError(
                    f"{name} is given twice", hint=f"{former.name} is its former name; drop that"
                )
            old = values.pop(former.name)
            values[name] = new = former.values.get(old, old) if isinstance(old, str) else old
            said = f"{former.name} is now called {name}"
            if new != old:
                said = f"{former.name} {old} is now {name} {new}"
            tell(f"{said}; the next release will not know the old word")
    return values


def pair(text: str, form: str = "NAME=VALUE", *, example: str, mark: str = "=") -> tuple[str, str]:
    """Split a text at the first `mark` into two parts; `form` says what they are called.

    Raises:
        ParamsError: a part is missing.
    """
    name, _, value = text.partition(mark)
    if not (name and value):
        raise ParamsError(f"{text!r} is not {form}", hint=f"for example {example}")
    return name, value


def explain(
    error: ValidationError, params: type[BaseModel], *, kind: type[RetouchError] = ParamsError
) -> RetouchError:
    """Return the first fault of a validation as one sentence and one hint."""
    fault = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in fault["loc"])
    owner, info = _field_at(params, fault["loc"])
    hint = _field_description(info) if info else ""
    if fault["type"] == "extra_forbidden":
        return kind(f"there is no parameter {name!r}", hint=near(str(fault["loc"][-1]), owner.model_fields))
    if fault["type"] == "missing":
        return kind(f"{name} is missing", hint=hint)
    said = fault["msg"][0].lower() + fault["msg"][1:]
    said = said.removeprefix("value error, ").replace("input should", "it must")
    return kind(f"{name} is {_shortened(fault['input'])}; {said}" if name else said, hint=hint)


def _as_meant(params: type[BaseModel], name: str, value: object) -> object:
    """Return a choice that is no text, taken from its text; forms and command lines know only texts."""
    annotation = params.model_fields[name].annotation if name in params.model_fields else None
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    return next((choice for choice in choices if isinstance(value, str) and str(choice) == value), value)


def _field_at(
    params: type[BaseModel], place: Iterable[int | str]
) -> tuple[type[BaseModel], FieldInfo | None]:
    """Return the field that a place in a validation error means, with the class it belongs to."""
    info: FieldInfo | None = None
    for part in place:
        inner = info.annotation if info else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            params, info = inner, None
        info = params.model_fields.get(str(part), info)
    return params, info


def _shortened(value: object) -> str:
    """Return a value as it is shown in a sentence."""
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def near(name: str, known: Iterable[str]) -> str:
    """Return a question that names the closest known name, or nothing.

    Example:
        >>> near("fatezro", ["fatezero", "paint"])
        'did you mean fatezero?'
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""


def _describe_option(params: type[BaseModel], name: str, info: FieldInfo) -> Option:
    description = _field_description(info)
    if not description:
        raise PluginError(f"{params.__name__}.{name} has no description")
    kind, choices, item = _option_kind(params, name, info.annotation)
    shared = _shared_type(info)
    low, high = _option_bounds([*(shared.metadata if shared else []), *info.metadata])
    default = None if info.default is PydanticUndefined else info.default
    if info.default_factory is not None:
        default = info.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, Enum):
        default = default.value
    former = tuple(old.name for old in _former_marks(info) if old.name != name)
    return Option(name, kind, description, default, info.is_required(), choices, low, high, item, former)


def _field_description(info: FieldInfo) -> str:
    shared = _shared_type(info)
    return info.description or (shared.description if shared else None) or ""


def _former_marks(info: FieldInfo) -> list[Formerly]:
    return [mark for mark in info.metadata if isinstance(mark, Formerly)]


def _shared_type(info: FieldInfo) -> FieldInfo | None:
    """Return what a shared type such as `MaskFile` says of itself where a field makes it optional."""
    parts = get_args(info.annotation) if get_origin(info.annotation) in (Union, types.UnionType) else ()
    marks = (mark for part in parts if get_origin(part) is Annotated for mark in get_args(part)[1:])
    return next((mark for mark in marks if isinstance(mark, FieldInfo)), None)


def _option_kind(
    params: type[BaseModel], name: str, annotation: Any
) -> tuple[Kind, tuple[str, ...], Kind | None]:
    """Return the word for a type: an optional one counts as what it holds."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _option_kind(params, name, get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        inner = [part for part in get_args(annotation) if part is not type(None)]
        if len(inner) == 1:
            return _option_kind(params, name, inner[0])
    if origin is Literal:
        return "choice", tuple(str(choice) for choice in get_args(annotation)), None
    if origin in (tuple, list):
        item, choices, _ = _option_kind(params, name, get_args(annotation)[0])
        return "list", choices, item
    if isinstance(annotation, type) and annotation in _KINDS:
        return _KINDS[annotation], (), None
    raise PluginError(f"{params.__name__}.{name} has the type {annotation}, which no form can show")


def _option_bounds(metadata: Iterable[object]) -> tuple[float | None, float | None]:
    low = high = None
    for mark in metadata:
        if isinstance(mark, annotated_types.Ge):
            low = float(str(mark.ge))
        elif isinstance(mark, annotated_types.Gt):
            low = float(str(mark.gt))
        elif isinstance(mark, annotated_types.Le):
            high = float(str(mark.le))
        elif isinstance(mark, annotated_types.Lt):
            high = float(str(mark.lt))
    return low, high
