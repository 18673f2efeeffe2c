"""Pictures of the world with captions and labels, drawn once and kept in files.

Four lessons, from easy to everything. Training seeds start at a million; seeds below `HELD_OUT` are never
trained on.
"""

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final, final

import numpy as np

from retouch.world.render import planes, sheet_of
from retouch.world.scene import BACKGROUNDS, COLOURS, OBJECTS, PATTERNS, STYLES, Scene, Variety

HELD_OUT: Final = 1_000_000
"""Seeds below this are for measuring only."""
FACTORS: Final[Mapping[str, tuple[str, ...]]] = {
    "object": OBJECTS,
    "colour": COLOURS,
    "pattern": PATTERNS,
    "background": BACKGROUNDS,
    "style": STYLES,
}
"""What a picture's labels say, of its first object."""
MASK_SIDE: Final = 16
LESSONS: Final[Mapping[str, Variety]] = {
    "easy": Variety.easy(),
    "middle": Variety(
        styles=("none",),
        pair=0.0,
        scale=(0.5, 0.8),
        scale_swing=0.06,
        turn=0.05,
        place=0.2,
        swing=0.2,
        bend=0.08,
    ),
    "styled": Variety(pair=0.0, scale=(0.5, 0.8), turn=0.05, place=0.2, swing=0.2, bend=0.08),
    "full": Variety(),
}
"""`easy`: one large upright plain object. `middle`: patterns and places. `styled`: and styles. `full`:
the world.
"""


@final
@dataclass(frozen=True)
class Pictures:
    """Drawn pictures, in files."""

    pixels: np.ndarray
    """uint8, n 3 h w."""
    masks: np.ndarray
    """uint8, n 16 16: how much of each cell the objects cover, 0 to 255."""
    labels: np.ndarray
    """uint8, n 5: the first object's place in each of FACTORS."""
    captions: list[str]

    def __len__(self) -> int:
        """How many pictures."""
        return len(self.pixels)


def draw(scene: Scene, t: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, and the share of each mask cell that objects cover."""
    cover = np.zeros((size, size), np.uint8)
    view = scene.camera.at(t)
    for actor in scene.actors:
        sheet = sheet_of(actor, actor.motion.at(t), view, (size, size))
        if sheet is not None:
            h, w = sheet.alpha.shape
            spot = cover[sheet.top : sheet.top + h, sheet.left : sheet.left + w]
            np.maximum(spot, sheet.alpha, out=spot)
    cell = size // MASK_SIDE
    shares = cover.reshape(MASK_SIDE, cell, MASK_SIDE, cell).mean((1, 3))
    return planes(scene, t, size), shares.astype(np.uint8)


def labels(scene: Scene) -> list[int]:
    """The first object's place in each of FACTORS."""
    first = scene.actors[0]
    words = (first.object, first.colour, first.pattern, scene.background, scene.style)
    return [names.index(word) for names, word in zip(FACTORS.values(), words, strict=True)]


def moment(seed: int) -> float:
    """A time within the first eight seconds, another for each seed, spread evenly."""
    return 8 * math.fmod(seed * 0.6180339887498949, 1.0)


def scene_of(lesson: str, seed: int) -> Scene:
    """The scene of a lesson that belongs to a seed."""
    return Scene.sample(seed, LESSONS[lesson])


@cache
def held_out(lesson: str, count: int, size: int, *, style: str | None = None, start: int = 0) -> Pictures:
    """Pictures that no training has seen."""
    variety = LESSONS[lesson] if style is None else replace(LESSONS[lesson], styles=(style,))
    scenes = [Scene.sample(start + n, variety) for n in range(count)]
    drawn = [draw(scene, moment(start + n), size) for n, scene in enumerate(scenes)]
    return Pictures(
        np.stack([pixels for pixels, _ in drawn]),
        np.stack([mask for _, mask in drawn]),
        np.array([labels(scene) for scene in scenes], np.uint8),
        [scene.caption for scene in scenes],
    )


def prepared(work: Path, lesson: str, count: int, size: int) -> Pictures:
    """The lesson's pictures, drawn now if they are not there yet; what a stopped call drew is kept."""
    folder = work / "pictures" / f"{lesson}-{count}-{size}px"
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "captions.json"
    shapes = {
        "pixels": (count, 3, size, size),
        "masks": (count, MASK_SIDE, MASK_SIDE),
        "labels": (count, len(FACTORS)),
    }
    if not done.exists():
        _draw_all(folder, lesson, count, size, shapes)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes}
    return Pictures(**arrays, captions=json.loads(done.read_text("utf-8")))


def _draw_all(
    folder: Path, lesson: str, count: int, size: int, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    progress = folder / "progress.json"
    captions = json.loads(progress.read_text("utf-8")) if progress.exists() else []
    mode = "r+" if captions else "w+"
    files = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode, dtype=np.uint8, shape=shape)
        for name, shape in shapes.items()
    }
    first = HELD_OUT * (2 + list(LESSONS).index(lesson))
    for n in range(len(captions), count):
        scene = scene_of(lesson, first + n)
        files["pixels"][n], files["masks"][n] = draw(scene, moment(first + n), size)
        files["labels"][n] = labels(scene)
        captions.append(scene.caption)
        if n % 5000 == 4999:
            for file in files.values():
                file.flush()
            progress.write_text(json.dumps(captions), "utf-8")
    for file in files.values():
        file.flush()
    draft = folder / "captions.draft"
    draft.write_text(json.dumps(captions), "utf-8")
    draft.rename(folder / "captions.json")
    progress.unlink(missing_ok=True)


def main() -> None:
    """Draw one lesson."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lesson", choices=LESSONS)
    parser.add_argument("count", type=int)
    parser.add_argument("--work", type=Path, default=Path(".family"))
    parser.add_argument("--size", type=int, default=64)
    asked = parser.parse_args()
    prepared(asked.work, asked.lesson, asked.count, asked.size)


if __name__ == "__main__":
    main()
