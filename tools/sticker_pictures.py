"""Draws the pictures of the page "Put a sticker on a moving car", by the commands that the page gives.

`python tools/sticker_pictures.py [FOLDER]` runs them in FOLDER or one of its own, paints as a user would and
writes docs/images/sticker-key.webp and docs/images/sticker-result.webp. Half a minute on a laptop.
"""

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]  # runs from a checkout that is not installed

from retouch.media.io import read  # noqa: E402 - the path comes first
from retouch.media.pictures import read_picture, write_picture  # noqa: E402

PAGE = ROOT / "docs" / "how-to" / "sticker.md"
SHOWN = (0, 5, 9, 14, 18, 23)
"""Frames of the result that are shown."""


def commands() -> list[list[str]]:
    """The page's commands, in order."""
    found, inside, line = [], False, ""
    for text in PAGE.read_text("utf-8").splitlines():
        if text.startswith("```"):
            inside = text == "```text"
        elif inside:
            line += text.removesuffix("\\")
            if not text.endswith("\\"):
                found.append(shlex.split(line))
                line = ""
    return [words for words in found if words[0] == "retouch"]


def paint(picture: Path) -> None:
    """A round sticker with a star on the car's door."""
    canvas = read_picture(picture)[..., :3].copy()
    centre, radius = np.array([205, 225]), 26
    cv2.circle(canvas, centre.tolist(), radius, (250, 250, 250), -1, cv2.LINE_AA)
    cv2.circle(canvas, centre.tolist(), radius - 3, (30, 60, 170), -1, cv2.LINE_AA)
    angles = -np.pi / 2 + np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2, 0.35, 0.85)[:, None] * (radius - 4)
    star = centre + reach * np.stack([np.cos(angles), np.sin(angles)], 1)
    cv2.fillPoly(canvas, [np.round(star * 16).astype(np.int32)], (255, 220, 40), cv2.LINE_AA, 4)
    write_picture(canvas, picture, force=True)


def beside(pictures: list[np.ndarray], columns: int, width: int, to: Path) -> None:
    """Pictures in rows, shrunk, with thin white between."""
    height = round(width * pictures[0].shape[0] / pictures[0].shape[1])
    small = [cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA) for p in pictures]
    framed = [np.pad(p, ((0, 4), (0, 4), (0, 0)), constant_values=255) for p in small]
    rows = [np.hstack(framed[i : i + columns]) for i in range(0, len(framed), columns)]
    whole = Image.fromarray(np.ascontiguousarray(np.vstack(rows)[:-4, :-4]))
    whole.save(to, quality=80, method=6)


def frame(clip: Path, t: int) -> np.ndarray:
    """One frame of a clip, colour last."""
    return np.ascontiguousarray(read(clip).frames[t].transpose(1, 2, 0))


def main() -> None:
    """Run the page, and draw."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="sticker-"))
    for words in commands():
        subprocess.run([str(Path(sys.executable).with_name("retouch")), *words[1:]], cwd=folder, check=True)
        if words[1] == "keyframe":
            paint(folder / words[words.index("-o") + 1])
    key = [frame(folder / "demo" / "clip.mp4", 12), frame(folder / "look.mp4", 12)]
    beside([*key, read_picture(folder / "k12.png")[..., :3]], 3, 220, ROOT / "docs/images/sticker-key.webp")
    made = [frame(folder / "painted.mp4", t) for t in SHOWN]
    beside(made, 3, 220, ROOT / "docs/images/sticker-result.webp")


if __name__ == "__main__":
    main()
