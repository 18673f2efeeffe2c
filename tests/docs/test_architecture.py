"""What docs/architecture.md says of the code is so: functions in their files, short methods, a current picture."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/retouch"
ROWS = re.findall(
    r"^\|[^|]*\|[^|]*\| `(\w+)` \| `([\w/.]+)` \|$",
    (ROOT / "docs/architecture.md").read_text("utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize(("function", "file"), ROWS)
def test_each_line_of_a_walk_stands_where_the_page_says(function: str, file: str) -> None:
    tree = ast.parse((SOURCE / file).read_text("utf-8"))
    assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_a_changed_layer_makes_the_picture_stale(tmp_path: Path) -> None:
    for part in ("src/retouch", "tools"):
        (tmp_path / part).mkdir(parents=True)
    tool = tmp_path / "tools/layers_picture.py"
    tool.write_text((ROOT / "tools/layers_picture.py").read_text("utf-8"))
    (tmp_path / "docs/images").mkdir(parents=True)
    layers = '[[tool.importlinter.contracts]]\ntype = "layers"\nlayers = ["retouch.apps", "retouch.media"]\n'
    (tmp_path / "pyproject.toml").write_text(layers)
    for name in ("apps", "media"):
        (tmp_path / "src/retouch" / name).mkdir()

    def status(*words: str) -> int:
        return subprocess.run([sys.executable, tool, *words], check=False, capture_output=True).returncode

    assert status("--check") == 1
    assert status() == 0
    assert status("--check") == 0
    (tmp_path / "src/retouch/apps/cli.py").write_text("from retouch.media.io import read\n")
    assert status("--check") == 1
    assert status() == 0
    assert (tmp_path / "docs/images/layers.svg").read_text().count("<path") == 1
