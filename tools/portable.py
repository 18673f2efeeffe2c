"""Whether results, and the tests of them, rest on the processor: the figures of `benchmarks/portable.md`.

Run:  python tools/portable.py suite [--settings NAME ...] [PYTEST ARGUMENTS]
      python tools/portable.py speed [--rounds 3]

`suite` runs the quick tests once under each setting, one after the other: kernels of other processors, one
thread and two, and beside a busy loop on every core. `speed` carries out a FateZero and a Videoshop edit in
each of MKL's modes and compares processor seconds. What was found is kept in `benchmarks/portable.json`, row
by row, and the page's tables are made from it.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeAlias

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "benchmarks" / "portable.md"
FOUND: Final = PAGE.with_suffix(".json")
Table: TypeAlias = dict[str, dict[str, str]]

KERNELS: Final[Mapping[str, Mapping[str, str]]] = {
    "as it is": {},
    "ONEDNN_MAX_CPU_ISA=AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "ONEDNN_MAX_CPU_ISA=AVX512_CORE": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "MKL_CBWR=COMPATIBLE": {"MKL_CBWR": "COMPATIBLE"},
    "ATEN_CPU_CAPABILITY=default": {"ATEN_CPU_CAPABILITY": "default"},
}
SETTINGS: Final = {
    **{
        f"{name}, {threads} thread{'s' * (threads > 1)}": {**kernels, "OMP_NUM_THREADS": str(threads)}
        for name, kernels in KERNELS.items()
        for threads in (1, 2)
    },
    "busy": {"OMP_NUM_THREADS": "1"},
}
MODES: Final = ("", "AUTO", "AUTO,STRICT", "COMPATIBLE")
"""Of MKL; nothing is its own choice, which goes by where numbers lie in memory."""
EDITS: Final = ("fatezero", "videoshop")
LOOP: Final = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"


def main() -> None:
    """Measures what was asked for, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("suite", "speed", "page", *EDITS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    asked, tests = parser.parse_known_args()
    if asked.what in EDITS:
        print(edit(asked.what))
        return
    if asked.what == "suite":
        suite(asked.settings, tests)
    if asked.what == "speed":
        speed(asked.rounds)
    PAGE.write_text(filled(PAGE.read_text(), json.loads(FOUND.read_text())))


def suite(settings: list[str], tests: list[str]) -> None:
    """Runs the quick tests under each setting and keeps what came of it."""
    for name in settings:
        print(f"== {name}", flush=True)
        words = ["-m", "not slow and not gpu", "-p", "no:cacheprovider", *tests]
        started = time.monotonic()
        with busy(os.cpu_count() or 1 if name == "busy" else 0):
            ended = subprocess.run(
                [sys.executable, "-m", "pytest", *words],
                cwd=ROOT,
                env=os.environ | SETTINGS[name],
                capture_output=True,
                text=True,
                check=False,
            )
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)
        said = (
            re.findall(r"^\d+ (?:passed|failed).*", ended.stdout, re.MULTILINE)
            or ended.stdout[-200:].splitlines()
        )
        print(said[-1], *failed, sep="\n", flush=True)
        keep(
            "suite",
            name,
            {
                "tests": " ".join(word for word in tests if word.startswith("tests/")) or "all",
                "outcome": re.sub(r" in .*", "", said[-1].strip("= ")),
                "fell": ", ".join(place.split("::", 1)[-1] for place in failed) or "nothing",
                "minutes": f"{(time.monotonic() - started) / 60:.0f}",
                "processor": processor(),
            },
        )


@contextmanager
def busy(cores: int) -> "Iterator[list[subprocess.Popen[bytes]]]":
    """As many processes, each of which does nothing but take a core, as long as this one lives."""
    loops: list[subprocess.Popen[bytes]] = []
    try:
        loops += (subprocess.Popen([sys.executable, "-c", LOOP, str(os.getpid())]) for _ in range(cores))
        yield loops
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def speed(rounds: int) -> None:
    """Each edit in each mode, in turns, so that a machine's moods meet all; the quickest round counts."""
    seconds: dict[tuple[str, str], float] = {}
    for _ in range(rounds):
        for what in EDITS:
            for mode in MODES:
                told = subprocess.run(
                    [sys.executable, __file__, what],
                    env={**os.environ, "MKL_CBWR": mode, "OMP_NUM_THREADS": "1"},
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.split()[-1]
                seconds[what, mode] = min(float(told), seconds.get((what, mode), float("inf")))
                print(what, mode or "(none)", told, flush=True)
    for mode in MODES:
        row = {what: f"{seconds[what, mode]:.1f} s" for what in EDITS}
        row |= {f"{what}, times": f"{seconds[what, mode] / seconds[what, '']:.2f}" for what in EDITS}
        keep("speed", mode or "MKL's own choice", {**row, "processor": processor()})


def edit(what: str) -> float:
    """Processor seconds of one edit of a drawn clip, the model loaded."""
    from fractions import Fraction

    import numpy as np

    from retouch.compute import Compute
    from retouch.media.pictures import write_picture
    from retouch.methods.fatezero.edit import edit as fatezero
    from retouch.methods.fatezero.spec import SPEC as FATEZERO
    from retouch.methods.videoshop.edit import edit as videoshop
    from retouch.methods.videoshop.spec import SPEC as VIDEOSHOP
    from retouch.models.image import StableDiffusion
    from retouch.models.image_to_video_any import AnyImageToVideo
    from retouch.run import Run
    from retouch.world import Scene, film

    clip = film(Scene.sample(11), 4, 64, Fraction(12))
    with tempfile.TemporaryDirectory() as name:
        first = write_picture(np.moveaxis(clip.frames[0, ::-1], 0, -1), Path(name) / "first.png")
        words = {"source_prompt": "a red ball on sand", "prompt": "a blue ball on sand"}
        spec, call, kind, given = {
            "fatezero": (FATEZERO, fatezero, StableDiffusion, {**words, "steps": 2}),
            "videoshop": (VIDEOSHOP, videoshop, AnyImageToVideo, {"first": first, "steps": 2}),
        }[what]
        params = spec.fill(given)
        run = Run.alone(Path(name), compute=Compute(device="cpu"))
        run.load(params.model, kind)
        began = time.process_time()
        call(clip, params, run)
        return time.process_time() - began


def keep(table: str, row: str, values: Mapping[str, str]) -> None:
    """Puts a row into what was found, in place of the one of its name."""
    found: dict[str, Table] = json.loads(FOUND.read_text()) if FOUND.exists() else {}
    found.setdefault(table, {})[row] = dict(values)
    FOUND.write_text(json.dumps(found, indent=1) + "\n")


def filled(page: str, found: Mapping[str, Table]) -> str:
    """The page with what was found in its tables."""
    for name, table in found.items():
        heads = list(next(iter(table.values())))
        rows = [
            ["setting", *heads],
            ["---"] * (len(heads) + 1),
            *([row, *v.values()] for row, v in table.items()),
        ]
        body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        page = re.sub(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\1\n{body}\n\n\2", page, flags=re.DOTALL)
    return page


def processor() -> str:
    """The processor and what torch's own kernels use of it."""
    import torch

    facts = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", facts.read_text() if facts.exists() else "")
    return f"{named[1] if named else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    main()
