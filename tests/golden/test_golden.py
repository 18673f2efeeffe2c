"""What may not change unnoticed: help, errors, public names, and the keys under which results are kept."""

import os
import re
import resource
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from retouch_tint.edit import fit
from retouch_tint.spec import TintParams

import retouch
from retouch import registry
from retouch.apps.cli import COMMANDS, LazyGroup
from retouch.compute import Compute
from retouch.events import Event, Kept
from retouch.identity import identity
from retouch.run import Run
from retouch.video import Video

SECONDS = 0.5
"""Of CPU time for an answer, as users feel it; twice that is let pass on a machine busy with other work."""


def answer(*arguments: str) -> tuple["subprocess.CompletedProcess[str]", float]:
    """A command in a process without plug-ins, with the CPU seconds it took; it fails if torch was loaded."""
    code = (
        "import sys; from retouch.apps.cli import run; code = run(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; assert 'diffusers' not in sys.modules; sys.exit(code)"
    )
    source = str(Path(retouch.__file__).parents[1])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": source, "COLUMNS": "100", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_is_as_before_and_answers_at_once_without_torch(golden: Any) -> None:
    ended, seconds = answer("--help")
    golden.check("help.txt", ended.stdout + ended.stderr)
    assert seconds < 2 * SECONDS


def test_every_command_within_a_command_keeps_its_name(golden: Any) -> None:
    groups = {name: LazyGroup().get_command(click.Context(LazyGroup()), name) for name in COMMANDS}
    within = {
        name: sorted(group.commands) for name, group in groups.items() if isinstance(group, click.Group)
    }
    golden.check("commands.txt", "".join(f"{name}: {', '.join(inner)}\n" for name, inner in within.items()))


def test_the_package_runs_as_a_module() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "retouch", "--version"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, f"retouch {retouch.__version__}\n"), ended.stderr


def test_the_methods_are_listed_at_once_without_torch() -> None:
    ended, seconds = answer("methods")
    assert ended.returncode == 0, ended.stderr
    assert all(name in ended.stdout for name in registry.BUILT_IN)
    assert seconds < 2 * SECONDS


ERRORS = [
    ("edti",),
    ("edit", "zzz", "clip.mp4"),
    ("methods", "zzz"),
    ("edit", "--from", "/no/request.json"),
    ("--nothing",),
]


def test_errors_read_as_before(golden: Any) -> None:
    told = []
    for arguments in ERRORS:
        ended, _ = answer(*arguments)
        said = re.sub(r"methods: .*", "methods: (all)", ended.stdout + ended.stderr)
        told.append(f"$ retouch {' '.join(arguments)}\n{said}(exit code {ended.returncode})\n")
    golden.check("errors.txt", "\n".join(told))


def test_the_public_names_are_as_before_and_all_there(golden: Any) -> None:
    golden.check("names.txt", "\n".join(sorted(retouch.__all__)) + "\n")
    assert sorted(dir(retouch)) == sorted(retouch.__all__)
    assert all(getattr(retouch, name) is not None for name in retouch.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = retouch.nothing


def test_keys_of_kept_results_are_as_before(golden: Any, tmp_path: Path) -> None:
    frames = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    video = Video(frames, Fraction(24000, 1001))
    told: list[Event] = []
    here = Compute(device="cpu", threads=1)
    with here.repeatable():
        fit(video, 2, 0.0, run=Run.alone(tmp_path, compute=here, listen=told.append))
    (kept,) = [event.key for event in told if isinstance(event, Kept)]
    values: dict[str, object] = {
        "none": None, "numbers": (1, 1.0, True, Fraction(1, 3)), "text": "ü", "mapping": {"b": 1, "a": [2]},
        "array": frames, "tensor": torch.arange(6.0).view(2, 3), "half": torch.ones(2, dtype=torch.bfloat16),
        "params": TintParams(), "video": video,
    }  # fmt: skip
    lines = [f"{name} {identity(value)}" for name, value in values.items()]
    golden.check("keys.txt", "\n".join([*lines, f"artefact {kept}"]) + "\n")
