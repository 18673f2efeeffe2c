"""Draws the picture of the page "Frame by frame": one clip, its true edit, and what the baseline makes of it.

`python tools/frame_by_frame_picture.py` writes docs/images/frame-by-frame.webp. A minute on a laptop.
"""

import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]  # runs from a checkout that is not installed

from retouch.media.pictures import write_picture  # noqa: E402 - the path comes first
from retouch.methods.frame_by_frame.edit import edit  # noqa: E402
from retouch.methods.frame_by_frame.spec import SPEC  # noqa: E402
from retouch.run import Run  # noqa: E402
from retouch.video import Video  # noqa: E402
from retouch.world.render import planes  # noqa: E402
from retouch.world.scene import Scene, Variety  # noqa: E402

TO = ROOT / "docs" / "images" / "frame-by-frame.webp"
SEED, FRAMES, SIDE, RATE = 1, 10, 64, 5
DRIVING = Variety(styles=("none",), patterns=("plain",), pair=0.0, scale=(0.55, 0.65), turn=0.03, swing=0.25)
WAYS: tuple[dict[str, object], ...] = (
    {"prompt": "a blue car on grass"},
    {"prompt": "a blue car on grass", "shared_noise": True},
    {"prompt": "a blue car on grass", "shared_noise": True, "strength": 1.0, "edges": 1.0},
    {
        "prompt": "a car on grass",
        "shared_noise": True,
        "strength": 1.0,
        "edges": 1.0,
        "guidance": 3.0,
        "reference": "blue",
    },
)
"""The edits, from above; a reference is drawn into the corner of its first frame."""


def clip(caption: str) -> np.ndarray:
    """A car that drives past."""
    scene = Scene.of(caption, SEED, DRIVING)
    return np.stack([planes(scene, n / RATE, SIDE) for n in range(FRAMES)])


def row(frames: np.ndarray) -> np.ndarray:
    """Frames side by side, twice their size."""
    return np.hstack(list(frames.transpose(0, 2, 3, 1))).repeat(2, 0).repeat(2, 1)


def main() -> None:
    """Edit, and draw."""
    source = clip("a red car on grass")
    rows = [row(source), row(clip("a blue car on grass"))]
    with tempfile.TemporaryDirectory() as folder:
        reference = planes(Scene.of("a blue cup on grass", SEED, Variety.easy()), 0.0, SIDE).transpose(
            1, 2, 0
        )
        shown = write_picture(np.ascontiguousarray(reference), Path(folder) / "reference.png")
        for number, way in enumerate(WAYS):
            given = {**way, "reference": str(shown)} if "reference" in way else way
            run = Run.alone(Path(folder) / str(number))
            made = edit(Video(source, Fraction(RATE)), SPEC.fill(given), run).video.frames.copy()
            rows.append(row(made))
            if "reference" in way:
                rows[-1][: SIDE // 2 + 2, : SIDE // 2 + 2] = 255
                rows[-1][: SIDE // 2, : SIDE // 2] = reference[::2, ::2]
    Image.fromarray(np.vstack(rows)).save(TO, quality=80, method=6)


if __name__ == "__main__":
    main()
