"""The measure of the house: what it counts, and which docstrings it calls broken."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / "tools/house.py"
SAMPLE = '''
from dataclasses import dataclass


@dataclass
class BareOne:
    size: int


@dataclass
class Able:
    size: int

    def grown(self) -> int:
        """Return more."""
        return self.size + 1


def first(values):
    """Return the first."""
    if not values:
        return None

    return [value for value in values if value and value > 2][0]
'''


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, TOOL, "--at", folder, *options], capture_output=True, text=True, check=False
    )


def test_the_figures_count_what_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(SAMPLE)
    (tmp_path / "two.py").write_text("def first() -> None: ...\n")
    said = run(tmp_path).stdout
    values = dict(line.rsplit(maxsplit=1) for line in said.splitlines())
    # Three functions, and an if, a comprehension, its condition and an `and`; six lines of bodies.
    assert values["branches in ten lines"] == f"{10 * 7 / 6:.1f}"
    assert values["words in a name"] == f"{6 / 5:.2f}"
    assert values["names that several modules define"] == "50.0%"
    assert values["dataclasses without a method"] == "50.0%"
    assert values["broken docstrings"] == "0"
    assert values["lines"] == str(len(SAMPLE.splitlines()) + 1)


LONG = "A sentence that was wrapped at the border of the page and goes on where it should not"
BROKEN = {
    "one word alone": f"Do it.\n\n{LONG}\nstop\nbut in the next line.\n",
    "cut short": "Do it.\n\nA sentence that\nis cut, with room for what follows in its line.\n",
    "fence": "Do it.\n\n```python\nx = 1 ```\n",
    "code": f"Do it.\n\n{LONG} `one\nwhole` piece of code.\n",
}
WHOLE = {
    "last line short": f"Do it.\n\n{LONG}\nstop.\n",
    "semantic": "Do it.\n\nOne sentence.\nAnother one, in its own line as it should be.\n",
    "table": "Do it.\n\n    a short      `row`\n    and          `another`\n",
    "list": "Do it.\n\n- one\n- two things\n- three\n",
    "entries": f"Do it.\n\nArgs:\n    size: {LONG}\n        ends here.\n    other: What is meant.\n",
    "example": "Do it.\n\n```python\nx = 1\nprint(x)\n```\n",
    "kept by click": "Do it.\n\n\\b\nretouch one\nretouch two\n",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_docstring_that_was_wrapped_blindly_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "one.py").write_text(f'"""{text}"""\n{SAMPLE}')
    assert "broken docstrings                                  1" in run(tmp_path).stdout


@pytest.mark.parametrize("text", WHOLE.values(), ids=WHOLE)
def test_a_docstring_that_was_set_by_hand_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "one.py").write_text(f'"""{text}"""\n{SAMPLE}')
    assert "broken docstrings                                  0" in run(tmp_path).stdout


def test_a_method_that_is_spread_too_far_or_too_long_to_read_is_found(tmp_path: Path) -> None:
    for name, lines in {"spec": 9, "edit": 299, "layer": 900, "released": 9, "__init__": 1}.items():
        path = tmp_path / "methods" / "sketch" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x = 1\n" * lines)
    check = [sys.executable, str(TOOL), "--check", "--at", str(tmp_path)]
    assert subprocess.run(check, check=False).returncode == 0
    (path.parent / "edit.py").write_text("x = 1\n" * 300)
    (path.parent / "more.py").write_text("x = 1\n")
    told = subprocess.run(check, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "300 lines" in told.stdout
    assert "more.py" in told.stdout
