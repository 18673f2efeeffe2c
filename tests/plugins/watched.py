"""Work in a forked child whose time and memory are bounded, and that must leave everything outside alone."""

import gc
import json
import os
import signal
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

import retouch

PATIENCE = 10.0
"""Seconds of computing that one piece of work may take: computing, so that a busy machine is no fault."""
WAITING = 300.0
"""Seconds after which work that computes nothing hangs, however busy the machine is."""
MEMORY = 1 << 30
"""Bytes that work may take above what the process stood at."""
LIBRARIES = tuple(
    str(Path(place).resolve())
    for place in {
        sys.prefix,
        sys.base_prefix,
        *sysconfig.get_paths().values(),
        *map(str, retouch.__path__),
        str(Path(__file__).parent),
        "/proc",
        "/sys",
        "/dev/null",
        "/dev/urandom",
        "/usr",
        "/etc/ld.so.cache",
        "/etc/localtime",
    }
)
STARTS = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.", "socket.")
CHANGES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.",
)


@final
@dataclass(frozen=True)
class Watched:
    """What the work said, one line a piece; what it touched that it must not; the bytes that it took."""

    said: list[str]
    strange: list[str]
    memory: int

    def check(self) -> None:
        """Nothing outside was read, written, started or called, and memory was kept within bounds."""
        assert self.strange == []
        assert self.memory < MEMORY


def watched(
    work: Callable[[int], str], pieces: Iterable[int], inside: Path, *, patience: float = PATIENCE
) -> Watched:
    """Do the work, piece by piece, in the folder `inside`, from which it must not reach out."""
    inside.mkdir(exist_ok=True)
    reading, writing = os.pipe()
    gc.collect()  # what waits for it may hold threads, which no child has
    child = os.fork()
    if not child:
        os.close(reading)
        _child(work, pieces, inside.resolve(), writing, patience)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as told:
        said = [json.loads(line) for line in told]
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    assert ended == 0, f"ended by {ended} after {said[-1:]}: {(inside / 'err').read_text()[-2000:]}"
    *lines, (strange, memory) = said
    return Watched(lines, strange, memory)


def _child(
    work: Callable[[int], str], pieces: Iterable[int], inside: Path, writing: int, patience: float
) -> None:
    gc.freeze()
    code = 70
    try:
        torch.set_num_threads(1)  # renews torch's pool before threads race to do it
        (inside / "tmp").mkdir(exist_ok=True)
        tempfile.tempdir = os.environ["TMPDIR"] = str(inside / "tmp")
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(inside / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        os.chdir(inside)
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        before, strange = _memory("VmRSS"), set[str]()
        sys.addaudithook(_ear(inside, strange))
        with os.fdopen(writing, "w", encoding="utf-8") as telling:
            for piece in pieces:
                signal.setitimer(signal.ITIMER_PROF, patience)
                signal.setitimer(signal.ITIMER_REAL, WAITING)
                telling.write(json.dumps(work(piece)) + "\n")
                telling.flush()
            telling.write(json.dumps([sorted(strange), _memory("VmHWM") - before]) + "\n")
        code = 0
    except BaseException:  # the child must never go on as a second test session
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _memory(what: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) * 1024


def _ear(inside: Path, strange: set[str]) -> Callable[[str, tuple[object, ...]], None]:
    """Listens to what Python is about to do, and writes down what reaches out of the folder."""

    def within(path: object, places: tuple[str, ...]) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return True  # a file that is open already
        real = os.path.realpath(os.fsdecode(path))
        return any(real == place or real.startswith(place + os.sep) for place in places)

    def hear(event: str, told: tuple[object, ...]) -> None:
        if event == "open":
            path, mode, flags = told
            changing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if not within(path, (str(inside), "/dev/null", *(() if changing else LIBRARIES))):
                strange.add(f"open {path!r} {mode}")
        elif event.startswith(STARTS) or (
            event.startswith(CHANGES) and not all(within(path, (str(inside),)) for path in told[:2])
        ):
            strange.add(f"{event} {told!r}")

    return hear
