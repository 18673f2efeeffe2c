"""Runs the Python and shell blocks of the pages, each page in a folder of its own that holds `clip.mp4`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

_ROOT = Path(__file__).parents[2]
_NOT_HERE = ("make ", "git clone ", "cd ")
"""What a reader types to get the project; the tests are past that."""


def _run_shell(example: Example) -> str | None:
    lines = [line for line in str(example.parsed).splitlines() if not line.startswith(_NOT_HERE)]
    command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path}, timeout=240)
    return None if done.returncode == 0 else f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder a page's blocks run in, with a clip of the world and the models' home beside it."""
    folder = tmp_path_factory.mktemp("page")
    before = Path.cwd()
    patch = pytest.MonkeyPatch()
    patch.setenv("RETOUCH_HOME", str(folder / "home"))
    patch.setenv("RETOUCH_OFFLINE", "1")
    os.chdir(folder)
    command = [str(Path(sys.executable).with_name("retouch")), "world", "sample", "world", "--seed", "3"]
    subprocess.run([*command, "--size", "96", "--frames", "8"], check=True, capture_output=True)
    (folder / "world" / "clip.mp4").rename(folder / "clip.mp4")
    yield folder
    os.chdir(before)
    patch.undo()


def _parsers() -> list[Any]:
    return [PythonCodeBlockParser(), CodeBlockParser(language="bash", evaluator=_run_shell), SkipParser()]


pytest_collect_file = Sybil(
    parsers=_parsers(),
    path=str(_ROOT),
    patterns=["README.md", "docs/**/*.md"],
    fixtures=["page_folder"],
).pytest()
