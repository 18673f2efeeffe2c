"""The methods there are: ours, and those of installed plug-ins.

A plug-in is a package with an entry point in the group `retouch.methods` that names a `MethodSpec`. One
that cannot be loaded is left out and remembered, so that it breaks nothing else; `retouch doctor` shows
why.
"""

import functools
import importlib
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from retouch.errors import ParamsError, PluginError
from retouch.fields import near
from retouch.spec import MethodSpec

GROUP = "retouch.methods"

BUILT_IN: tuple[str, ...] = ("paint", "fatezero", "tune_a_video", "videoshop", "frame_by_frame")
"""Our methods, in the order in which they are listed; each has its `SPEC` in `retouch.methods.NAME.spec`."""


def methods() -> Mapping[str, MethodSpec]:
    """Every method that can be used, ours first."""
    return _all(entry_points_of(GROUP))[0]


def failures() -> Mapping[str, str]:
    """The plug-ins that could not be loaded, and why."""
    return _all(entry_points_of(GROUP))[1]


def method(name: str) -> MethodSpec:
    """The method of that name.

    Raises:
        ParamsError: there is none; the hint names the near one.
        PluginError: it is a plug-in that cannot be loaded.
    """
    known = methods()
    if name in known:
        return known[name]
    if name in failures():
        raise PluginError(
            f"the method {name!r} cannot be loaded: {failures()[name]}", hint="see: retouch doctor"
        )
    raise ParamsError(
        f"there is no method {name!r}", hint=near(name, known) or f"methods: {', '.join(known) or 'none'}"
    )


def entry_points_of(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of one group that the installed packages offer."""
    return tuple(entry_points(group=group))


def collect(plugins: Iterable[EntryPoint]) -> tuple[dict[str, MethodSpec], dict[str, str]]:
    """Our methods and these plug-ins', with the reason for each that failed."""
    found = {name: _built_in(name) for name in BUILT_IN}
    failed: dict[str, str] = {}
    for plugin in plugins:
        try:
            spec = plugin.load()
            if not isinstance(spec, MethodSpec):
                raise PluginError(f"{plugin.value} is a {type(spec).__name__}, not a MethodSpec")
            spec.check()
            if spec.name in found:
                raise PluginError(f"the name {spec.name!r} is taken")
        except (Exception, SystemExit) as error:  # whatever a stranger's module does, ours stay usable
            failed[plugin.name] = f"{type(error).__name__}: {error}"
        else:
            found[spec.name] = spec
    return found, failed


@functools.lru_cache(maxsize=4)
def _all(plugins: tuple[EntryPoint, ...]) -> tuple[Mapping[str, MethodSpec], Mapping[str, str]]:
    found, failed = collect(plugins)
    return MappingProxyType(found), MappingProxyType(failed)


def _built_in(name: str) -> MethodSpec:
    spec = importlib.import_module(f"retouch.methods.{name}.spec").SPEC
    assert isinstance(spec, MethodSpec)
    return spec
