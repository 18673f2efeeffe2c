"""What a method says of itself before anything heavy is loaded."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast, final

from retouch.errors import ParamsError, PluginError
from retouch.fields import describe, near, parse, renamed
from retouch.params import Params

RESERVED = frozenset(
    {
        "anyway",
        "as_json",
        "bits",
        "codec",
        "compute",
        "crf",
        "debug",
        "deterministic",
        "device",
        "dry_run",
        "dtype",
        "force",
        "from",
        "help",
        "json",
        "listen",
        "lossless",
        "memory",
        "offload",
        "out",
        "part",
        "preset",
        "quiet",
        "range",
        "seed",
        "source",
        "threads",
        "video",
    }
)
"""Names that every edit has already, on the command line or in Python; no parameter may be called so."""


@final
@dataclass(frozen=True)
class Paper:
    """The publication that a method follows, and the licence of the authors' own code."""

    title: str
    authors: str
    year: int
    url: str
    code_licence: str

    def citation(self) -> str:
        """Return title, authors, year and address, in two lines."""
        return f"{self.title}\n{self.authors}, {self.year}. {self.url}"


@final
@dataclass(frozen=True)
class MethodSpec:
    """A method's name, parameters and place; imports no torch.

    `edit` names a function `edit(video, params, run) -> Edited` as `package.module:function`; `estimate`,
    where there is one, a function `estimate(frames, height, width, params, compute) -> Estimate`; and
    `preflight` one `preflight(clip, params, tell)` that raises for what cannot work, before the clip is read:
    `clip` is what `retouch.media.probe.probe` says of it, `tell` takes events.
    """

    name: str
    title: str
    summary: str
    params: type[Params]
    edit: str
    needs: tuple[str, ...] = ()
    presets: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    paper: Paper | None = None
    estimate: str = ""
    preflight: str = ""

    def fill(
        self,
        given: Mapping[str, object],
        *,
        preset: str | None = None,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> Params:
        """Return the parameters from what was given, over a preset, over the defaults.

        `tell` hears, in a sentence, of each parameter that is given under a former name.

        Raises:
            ParamsError: a name is unknown, a value is out of bounds, or the preset does not exist.
        """
        base: Mapping[str, object] = {}
        if preset is not None:
            if preset not in self.presets:
                raise ParamsError(
                    f"{self.name} has no preset {preset!r}",
                    hint=near(preset, self.presets) or f"presets: {', '.join(self.presets) or 'none'}",
                )
            base = self.presets[preset]
        return parse(self.params, {**base, **renamed(self.params, given, tell)})

    def load(self, place: str) -> Callable[..., object]:
        """Return the function at `place`, one of those that the method names; only now is it imported.

        Raises:
            PluginError: there is none.
        """
        module, _, function = place.partition(":")
        try:
            return cast("Callable[..., object]", getattr(importlib.import_module(module), function))
        except (ImportError, AttributeError) as error:
            raise PluginError(f"{place} cannot be loaded: {error}", hint="see: retouch doctor") from error

    def check(self) -> None:
        """Raise PluginError where the description does not hold together."""
        module, _, function = self.edit.partition(":")
        if not (self.name.isidentifier() and module and function):
            raise PluginError(
                f"method {self.name!r} names its edit function as {self.edit!r}", hint="pkg.mod:edit"
            )
        if not (isinstance(self.params, type) and issubclass(self.params, Params)):
            raise PluginError(f"method {self.name!r} has parameters that are no retouch.params.Params")
        names = {option.name for option in describe(self.params)}
        if taken := sorted(names & RESERVED):
            raise PluginError(
                f"method {self.name!r} has a parameter {taken[0]!r}", hint="every edit has one of that name"
            )
        for preset, values in self.presets.items():
            if unknown := sorted(set(values) - names):
                raise PluginError(
                    f"preset {preset!r} of {self.name!r} sets {unknown[0]!r}, which is no parameter",
                    hint=near(unknown[0], names),
                )
