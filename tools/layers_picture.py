"""Draw the layers of src/retouch as they are: rows from pyproject.toml, lines from the imports.

python tools/layers_picture.py            writes docs/images/layers.svg
python tools/layers_picture.py --check    fails if that picture is not what the code says today
"""

import ast
import sys
import tomllib
from html import escape
from pathlib import Path

HERE = Path(__file__).parents[1]
SOURCE = HERE / "src"
PICTURE = HERE / "docs/images/layers.svg"
WIDE, HIGH, GAP = 900, 34, 30
"""The picture's width, a box's height, and the room between rows, in pixels."""
STYLE = """
  rect { fill: #fff; stroke: #444 } .paper { stroke: none } .package { fill: #e8eefc }
  text { font: 13px sans-serif; text-anchor: middle; fill: #111 } .small { font-size: 10.5px; fill: #555 }
  path { fill: none; stroke: #7a8fc4; stroke-opacity: .55 }
"""


def main() -> int:
    """Write the picture, or compare it."""
    drawn = picture(layers(), imports())
    if "--check" in sys.argv:
        current = PICTURE.exists() and PICTURE.read_text("utf-8") == drawn
        print(
            "" if current else f"{PICTURE.relative_to(HERE)} is not what the code says: run make fix", end=""
        )
        return not current
    PICTURE.write_text(drawn, "utf-8")
    return 0


def layers() -> list[list[str]]:
    """Return the parts of each layer, as import-linter holds them, the doors first."""
    settings = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip().removeprefix("retouch.") for name in row.split("|")] for row in rows]


def imports() -> set[tuple[str, str]]:
    """Return which parts of the package import which."""
    found = set()
    for path in (SOURCE / "retouch").rglob("*.py"):
        part = path.relative_to(SOURCE / "retouch").with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("retouch."):
                found.add((part, str(node.module).split(".")[1]))
    return {(user, used) for user, used in found if user != used}


def picture(rows: list[list[str]], used: set[tuple[str, str]]) -> str:
    """Draw the rows, and a line to each package from all that import it; single files all use those below."""
    boxes = places(rows)
    height = len(rows) * (HIGH + GAP) + GAP
    between = [(user, lower) for user, lower in sorted(used) if user in boxes and is_package(lower)]
    lines = [line(boxes[user], boxes[lower]) for user, lower in between]
    marks = [box(name, *spot) for name, spot in boxes.items()]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {height}" role="img">'
    paper = f'<rect class="paper" width="{WIDE}" height="{height}"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", paper, *lines, *marks, "</svg>", ""])


def places(rows: list[list[str]]) -> dict[str, tuple[float, float, float]]:
    """Return the left, top and width of each part's box."""
    found = {}
    for row, names in enumerate(rows):
        wide = (WIDE - GAP) / len(names) - GAP
        for column, name in enumerate(names):
            found[name] = (GAP + column * (wide + GAP), GAP + row * (HIGH + GAP), wide)
    return found


def is_package(part: str) -> bool:
    """Return whether a part is a folder of files."""
    return (SOURCE / "retouch" / part).is_dir()


def line(upper: tuple[float, float, float], lower: tuple[float, float, float]) -> str:
    """Draw an import, from the bottom of one box to the top of another, as steep as the boxes allow."""
    middle, to_middle = upper[0] + upper[2] / 2, lower[0] + lower[2] / 2
    x = middle + min(max(to_middle - middle, -0.4 * upper[2]), 0.4 * upper[2])
    to_x = to_middle + min(max(middle - to_middle, -0.4 * lower[2]), 0.4 * lower[2])
    y, to_y = upper[1] + HIGH, lower[1]
    bend = (to_y - y) / 2
    return f'<path d="M{x:.0f} {y} C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y}"/>'


def box(name: str, left: float, top: float, wide: float) -> str:
    """Draw a part, with the methods that it holds where it holds methods."""
    kind, middle = "package" if is_package(name) else "file", left + wide / 2
    folders = sorted(path.parent.name for path in (SOURCE / "retouch" / name).glob("*/spec.py"))
    shape = f'<rect class="{kind}" x="{left:.0f}" y="{top}" width="{wide:.0f}" height="{HIGH}" rx="4"/>'
    text = f'<text x="{middle:.0f}" y="{top + (15 if folders else 22)}">{escape(name)}</text>'
    inside = f'<text class="small" x="{middle:.0f}" y="{top + 28}">{" · ".join(folders)}</text>'
    return shape + text + (inside if folders else "")


if __name__ == "__main__":
    sys.exit(main())
