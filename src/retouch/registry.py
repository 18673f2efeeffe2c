"""The methods there are: ours, and those of installed plug-ins.

A plug-in is a package with an entry point in the group `retouch.methods` that names a `MethodSpec` of the
same name. It is imported when its method is asked for and at no other time, so that a broken one breaks
nothing else; `retouch doctor` imports each in a process of its own and shows what is wrong.
"""

import contextlib
import functools
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from retouch.errors import ParamsError, PluginError
from retouch.fields import near
from retouch.spec import MethodSpec

GROUP = "retouch.methods"

BUILT_IN: tuple[str, ...] = (
    "paint",
    "diffusion_atlas",
    "stablevideo",
    "fatezero",
    "tune_a_video",
    "videoshop",
    "face",
    "frame_by_frame",
)
"""Our methods, in the order in which they are listed; each has its `SPEC` in `retouch.methods.NAME.spec`."""

T = TypeVar("T")


def plugins(group: str = GROUP) -> dict[str, EntryPoint]:
    """Give the plug-ins of a group by name; none of them is imported."""
    return {entry.name: entry for entry in reversed(list(entry_points(group=group)))}


def names() -> tuple[str, ...]:
    """Give the name of every method, ours first; no plug-in is imported."""
    return tuple(dict.fromkeys([*BUILT_IN, *plugins()]))


def method(name: str) -> MethodSpec:
    """Give the method of that name.

    Raises:
        ParamsError: there is none; the hint names the near one.
        PluginError: it is a plug-in that cannot be loaded.
    """
    if name in BUILT_IN:
        spec = importlib.import_module(f"retouch.methods.{name}.spec").SPEC
        assert isinstance(spec, MethodSpec)
        return spec
    if name in (known := plugins()):
        return _plugin(known[name])
    raise ParamsError(
        f"there is no method {name!r}", hint=near(name, names()) or f"methods: {', '.join(names())}"
    )


def summary(name: str) -> str:
    """Give what a method does in a sentence; a plug-in's is that of its package, which is not imported."""
    if name in BUILT_IN:
        return method(name).summary
    package = plugins()[name].dist
    return (package.metadata["Summary"] if package and "Summary" in package.metadata else "") or (
        f"Comes with the package {package.name}." if package else "Comes with another package."
    )


@functools.cache
def _plugin(entry: EntryPoint) -> MethodSpec:
    spec = load(entry, MethodSpec)
    spec.check()
    if spec.name != entry.name:
        raise PluginError(f"the method {spec.name!r} has the entry point {entry.name!r}", hint=_DOCTOR)
    return spec


def load(entry: EntryPoint, kind: type[T]) -> T:
    """Give what an entry point names, imported with its words kept off the output.

    Raises:
        PluginError: it cannot be imported, or is of another kind.
    """
    try:
        with stdout_kept():
            found = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a stranger's module does, ours stay usable
        raise PluginError(
            f"the plug-in {entry.name!r} cannot be loaded: {type(error).__name__}: {error}", hint=_DOCTOR
        ) from error
    if not isinstance(found, kind):
        raise PluginError(
            f"{entry.value} is a {type(found).__name__}, not a {kind.__name__}", hint="tell its authors"
        )
    return found


@contextlib.contextmanager
def stdout_kept() -> Iterator[None]:
    """Send what is printed inside to the error stream; what is closed inside is open again after it."""
    try:
        ours, kept = sys.stdout, os.dup(1)
    except OSError:  # there is no output
        yield
        return
    with contextlib.suppress(ValueError):
        ours.flush()
    os.dup2(2, 1)
    sys.stdout = os.fdopen(os.dup(2), "w", buffering=1)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):
            sys.stdout.close()
        os.dup2(kept, 1)
        os.close(kept)
        sys.stdout = os.fdopen(1, "w", closefd=False) if ours.closed else ours


def faults(group: str, kind: str, *, patience: float = 30.0) -> dict[str, str]:
    """Give what is wrong with which plug-in of a group; each is imported in a process of its own.

    Args:
        group: The group of entry points.
        kind: What they must name, as `module:class`.
        patience: Seconds after which an import hangs.
    """
    children = {name: _Child(entry, kind) for name, entry in plugins(group).items()}
    until = time.monotonic() + patience
    told = {name: child.told(until) for name, child in children.items()}
    return {name: reason for name, reason in told.items() if reason}


class _Child:
    """A process that imports one plug-in and says what is wrong with it."""

    def __init__(self, entry: EntryPoint, kind: str) -> None:
        self.reading, writing = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _EXAMINE, entry.group, entry.name, kind, str(writing)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)

    def told(self, until: float) -> str:
        """Wait for its word, or for so long; no word but `ok` is a fault."""
        try:
            code = self.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return "it is still being imported, and may hang"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            os.set_blocking(self.reading, False)
            with contextlib.suppress(BlockingIOError), os.fdopen(self.reading, "rb", buffering=0) as pipe:
                word = (pipe.read() or b"").decode(errors="replace")
        return "" if word == "ok" else word or f"it ended the process with {code} when it was imported"


_EXAMINE = "import sys; from retouch.registry import examine; examine(*sys.argv[1:])"
_DOCTOR = "see: retouch doctor"


def examine(group: str, name: str, kind: str, descriptor: str) -> None:
    """Import a plug-in and write `ok`, or what is wrong with it, to a descriptor; the process ends."""
    module, _, kind_name = kind.partition(":")
    try:
        found = load(plugins(group)[name], getattr(importlib.import_module(module), kind_name))
        if isinstance(found, MethodSpec):
            if name in BUILT_IN:
                raise PluginError(f"the name {name!r} is taken")
            _plugin(plugins(group)[name])
        word = "ok"
    except BaseException as error:
        why = error.__cause__ or error
        word = f"{type(why).__name__}: {why}"
    os.write(int(descriptor), word.encode()[:4096])
    os._exit(0)
