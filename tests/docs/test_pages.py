"""Runs the Python and shell blocks of the pages, each page in a folder of its own that holds `clip.mp4`.

A block with a title is a file of that name, which later blocks may import.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_HERE = ("make ", "git clone ", "cd ")
"""What a reader types to get the project; the tests are past that."""
SECONDS = 600


def run_shell(example: Example) -> str | None:
    lines = [line for line in str(example.parsed).splitlines() if not line.startswith(NOT_HERE)]
    command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
        timeout=SECONDS,
    )
    return None if done.returncode == 0 else f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"


def find_files(document: Document) -> Iterable[Region]:
    titled = RawFencedCodeBlockLexer(re.compile(r'python title="(?P<file>[\w/.]+)"$\n', re.MULTILINE))
    for block in titled(document):
        yield Region(block.start, block.end, block.lexemes, write_file)


def write_file(example: Example) -> None:
    path = Path(example.parsed["file"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(example.parsed["source"], encoding="utf-8")


SYBIL = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser("bash", run_shell), find_files, SkipParser()]
)


def takes_long(page: Path) -> bool:
    """A page that starts commands, or runs a whole method."""
    text = page.read_text(encoding="utf-8")
    return "```bash" in text or "```python title=" in text


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of the world and its true edit, as pages take for granted."""
    folder = tmp_path_factory.mktemp("world") / "out"
    retouch = str(Path(sys.executable).with_name("retouch"))
    what = ["--caption", "a red car on bricks", "--edit", "colour=blue", "--size", "96", "--frames", "8"]
    subprocess.run([retouch, "world", "sample", str(folder), *what], check=True, capture_output=True)
    return folder


@pytest.fixture
def page_folder(world_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a page's blocks run in, with `clip.mp4` and `edited.mp4`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RETOUCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RETOUCH_OFFLINE", "1")
    for name in ("clip.mp4", "edited.mp4"):
        (tmp_path / name).write_bytes((world_folder / name).read_bytes())
    return tmp_path


def run_blocks(page: Path) -> None:
    for example in SYBIL.parse(page).examples():
        example.evaluate()


@pytest.mark.usefixtures("page_folder")
@pytest.mark.parametrize("page", [page for page in PAGES if not takes_long(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path) -> None:
    run_blocks(page)


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.usefixtures("page_folder")
@pytest.mark.parametrize("page", [page for page in PAGES if takes_long(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path) -> None:
    run_blocks(page)
