"""A method's parameters as command line options, and back from a request to a command line."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import click
from pydantic import BaseModel

from retouch.compute import Compute
from retouch.fields import Option, describe
from retouch.registry import method
from retouch.request import EditRequest, Output
from retouch.spec import MethodSpec

RANGE = "Work on these frames only, both included; frames are numbered as in the whole clip all the same."
_TYPES: Mapping[str, click.ParamType[object]] = {
    "text": click.STRING,
    "int": click.INT,
    "float": click.FLOAT,
    "path": click.Path(path_type=Path),
}


def range_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--range` to a command that reads a clip."""
    return click.option("--range", "part", default="", metavar="FIRST-LAST", help=RANGE)(command)


def options_of(params: type[BaseModel]) -> list[click.Option]:
    """Return an option a parameter, and hidden ones for former names.

    What is not given stays None, so that presets and defaults can fill it.
    """
    options = describe(params)
    former = [
        replace(option, name=name, choices=(), kind="text" if option.choices else option.kind)
        for option in options
        for name in option.former
    ]
    return [*map(_click_option, options), *(_click_option(option, hidden=True) for option in former)]


def request_options() -> list[click.Option]:
    """The options that every method has: seed, device, and how the result is written."""
    fixed = [
        click.Option(
            ["--seed"],
            type=click.IntRange(0, 2**63 - 1),
            help="Where all randomness comes from; 0 by default.",
        ),
        click.Option(["--range", "part"], metavar="FIRST-LAST", help=RANGE),
        click.Option(["--anyway"], is_flag=True, help="Go on with words that the model does not know."),
    ]
    return fixed + [_click_option(option) for option in (*describe(Compute), *describe(Output))]


def given_values(values: Mapping[str, object], names: type[BaseModel]) -> dict[str, object]:
    """Those of the values that were given and belong to a class, paths made absolute."""
    known = {name for option in describe(names) for name in (option.name, *option.former)}
    return {
        name: _absolute_path(value)
        for name, value in values.items()
        if name in known and value is not None and value != ()
    }


def command_line(request: EditRequest) -> str:
    """A command that makes this request; what equals a default is left out."""
    spec = method(request.method)
    words = ["retouch", "edit", request.method, str(request.video)]
    words += _option_words(spec.params, request.params)
    words += ["--seed", str(request.seed)] if request.seed else []
    words += ["--range", request.range] if request.range else []
    words += ["--anyway"] if request.anyway else []
    words += _option_words(Compute, request.compute.model_dump(mode="json"))
    words += _option_words(Output, request.output.model_dump(mode="json"))
    words += ["--out", str(request.out)] if request.out else []
    return shlex.join(words)


def option_table(spec: MethodSpec) -> list[tuple[str, str, str]]:
    """Each parameter as flag, default or range, and description; help and docs print it."""
    rows = []
    for option in describe(spec.params):
        facts = [", ".join(option.choices), option.bounds, _default_text(option)]
        rows.append((option.flag, "; ".join(fact for fact in facts if fact), option.description))
    return rows


def _click_option(option: Option, *, hidden: bool = False) -> click.Option:
    facts = "; ".join(fact for fact in (option.bounds, _default_text(option)) if fact)
    text = f"{option.description}  [{facts}]" if facts else option.description
    if option.kind == "flag":
        names = [f"{option.flag}/--no-{option.flag[2:]}"]
        return click.Option(names, default=None, help=text, hidden=hidden)
    kind = option.item if option.kind == "list" else option.kind
    choice = click.Choice(option.choices) if option.choices else _TYPES[kind or "text"]
    several = option.kind == "list"
    return click.Option([option.flag], type=choice, default=None, multiple=several, help=text, hidden=hidden)


def _default_text(option: Option) -> str:
    if option.required:
        return "required"
    if option.default is None or option.default in ((), ""):
        return ""
    if isinstance(option.default, bool):
        return f"default {'yes' if option.default else 'no'}"
    if isinstance(option.default, tuple):
        return f"default {' '.join(str(part) for part in option.default)}"
    return f"default {option.default}"


def _absolute_path(value: object) -> object:
    if isinstance(value, Path):
        return value.expanduser().absolute()
    return tuple(_absolute_path(inner) for inner in value) if isinstance(value, tuple) else value


def _option_words(model: type[BaseModel], values: Mapping[str, object]) -> list[str]:
    words: list[str] = []
    for option in describe(model):
        value = values.get(option.name, option.default)
        plain = list(option.default) if isinstance(option.default, tuple) else option.default
        if value is None or value in (option.default, plain):
            continue
        if option.kind == "flag":
            words.append(option.flag if value else f"--no-{option.flag[2:]}")
        elif isinstance(value, (list, tuple)):
            words += [word for inner in value for word in (option.flag, str(inner))]
        else:
            words += [option.flag, str(value)]
    return words
