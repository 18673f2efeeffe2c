"""Drawn faces for the trainings: two moments of each person, cut out as the face method cuts them.

Seeds below `HELD_OUT` are never trained on.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
import torch

from retouch.tracking.face_squares import FaceSquares
from retouch.world import LANDMARKS, Portrait
from retouch.world.faces import FACE_WORDS, FaceClip

HELD_OUT: Final = 1_000_000
MOST: Final = 15_000
"""Persons that the files have room for; what is not drawn takes none on the disk."""
AT_ONCE: Final = 500
"""Persons drawn between two notes of how far it has come."""
SIDE: Final = 64
SCALE: Final = 1.25
"""How much larger the cut square is than that of the data set FFHQ: hats and chins of long faces must fit."""
MOMENTS: Final = 2
FACTORS: Final = {name: words for name, words in FACE_WORDS.items() if name != "background"}
"""What is known of a person in words."""
SIZES: Final = ("eye_distance", "nose", "mouth")
"""What is known of a person in numbers."""
MIRRORED: Final = [
    LANDMARKS.index(
        name.replace("left", "?").replace("right", "left").replace("?", "right") if " " in name else name
    )
    for name in LANDMARKS
]
"""For each landmark the one that takes its place in a mirror."""


@final
@dataclass(frozen=True)
class Faces:
    """Cut-out faces, in files; the first axis is the person, the second the moment."""

    pixels: np.ndarray
    """uint8, n 2 3 h w."""
    parts: np.ndarray
    """uint8, n 2 h w: what each pixel shows, by the world's PARTS."""
    points: np.ndarray
    """float32, n 2 landmarks 2: 0 to 1 from edge to edge of the square."""
    labels: np.ndarray
    """uint8, n factors: each person's place in each of FACTORS."""
    sizes: np.ndarray
    """float32, n 3: each person's SIZES."""

    def __len__(self) -> int:
        """Return how many persons."""
        return len(self.pixels)


def moments(seed: int) -> tuple[float, float]:
    """Return two times within eight seconds; those of all seeds are spread evenly."""
    return 8 * math.fmod(seed * 0.6180339887498949, 1.0), 8 * math.fmod(seed * 0.7548776662466927, 1.0)


def person(seed: int, moment: int) -> Portrait:
    """Return the person of a seed; at the second moment with another one's motion and background."""
    who, other = Portrait.sample(seed), Portrait.sample(seed + 500_000_000)
    return who if moment == 0 else Portrait(who.identity, other.motion, other.background, other.camera)


def labels(portrait: Portrait) -> list[int]:
    """Return the person's place in each of FACTORS."""
    who = portrait.identity
    said = [getattr(who, name) for name in FACTORS]
    words = [("no", "yes")[value] if isinstance(value, bool) else value for value in said]
    return [choices.index(word) for choices, word in zip(FACTORS.values(), words, strict=True)]


def squares_of(points: np.ndarray) -> FaceSquares:
    """Return the squares to cut, from landmarks `f landmarks 2` in pixels."""
    at = {name: points[:, number].astype(np.float64) for number, name in enumerate(LANDMARKS)}
    eyes, mouth = (at["left eye"], at["right eye"]), (at["mouth left"], at["mouth right"])
    return FaceSquares.around(eyes, mouth, SCALE)


def jittered(squares: FaceSquares, seed: int) -> FaceSquares:
    """Return squares as imperfect points would place them."""
    dice = np.random.default_rng(seed)
    size, turn = 1 + 0.03 * dice.standard_normal(1), 0.02 * dice.standard_normal(1)
    reach = np.linalg.norm(squares.right, axis=1, keepdims=True)
    right = size * (np.cos(turn) * squares.right + np.sin(turn) * squares.down)
    return FaceSquares(squares.centre + 0.04 * reach * dice.standard_normal((1, 2)), right)


def cut(clip: FaceClip, squares: FaceSquares) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels, parts and points of the squares of a clip."""
    pixels = squares.crop(torch.from_numpy(clip.video.frames.copy()).float(), SIDE).round().byte().numpy()
    spots = (np.arange(SIDE) + 0.5) / SIDE
    grid = np.stack(np.broadcast_arrays(spots[None, :], spots[:, None]), axis=-1).reshape(1, -1, 2)
    places = squares.outside(np.repeat(grid, len(pixels), 0)).round().astype(int)
    h, w = clip.parts.shape[-2:]
    columns, rows = places[..., 0].clip(0, w - 1), places[..., 1].clip(0, h - 1)
    parts = np.take_along_axis(clip.parts.reshape(len(pixels), -1), rows * w + columns, axis=1)
    points = squares.inside(clip.landmarks.astype(np.float64)).astype(np.float32)
    return pixels, parts.reshape(-1, SIDE, SIDE), points


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pixels, parts and points of a person's two moments."""
    drawn = []
    for number, t in enumerate(moments(seed)):
        clip = FaceClip.of(person(seed, number), 1, start=t)
        drawn.append(cut(clip, jittered(squares_of(clip.landmarks), 2 * seed + number)))
    pixels, parts, points = (np.concatenate(kind) for kind in zip(*drawn, strict=True))
    return pixels, parts, points


def described(seed: int) -> tuple[list[int], list[float]]:
    """Return a person's labels and sizes."""
    portrait = Portrait.sample(seed)
    return labels(portrait), [getattr(portrait.identity, name) for name in SIZES]


def held_out(count: int, start: int = 0) -> Faces:
    """Return faces that no training has seen."""
    drawn = [draw(seed) for seed in range(start, start + count)]
    pixels, parts, points = (np.stack(kind) for kind in zip(*drawn, strict=True))
    said, sizes = zip(*[described(seed) for seed in range(start, start + count)], strict=True)
    return Faces(pixels, parts, points, np.array(said, np.uint8), np.array(sizes, np.float32))


def prepared(work: Path, count: int) -> Faces:
    """Return so many persons for training; those who are not in the files yet are drawn now."""
    folder = work / "face-pictures"
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {
        "pixels": (np.uint8, (MOST, MOMENTS, 3, SIDE, SIDE)),
        "parts": (np.uint8, (MOST, MOMENTS, SIDE, SIDE)),
        "points": (np.float32, (MOST, MOMENTS, len(LANDMARKS), 2)),
        "labels": (np.uint8, (MOST, len(FACTORS))),
        "sizes": (np.float32, (MOST, len(SIZES))),
    }
    progress = folder / "drawn"
    begun = int(progress.read_text()) if progress.exists() else 0
    files = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", "r+" if begun else "w+", dtype=dtype, shape=shape
        )
        for name, (dtype, shape) in shapes.items()
    }
    for n in range(begun, count):
        files["pixels"][n], files["parts"][n], files["points"][n] = draw(HELD_OUT + n)
        files["labels"][n], files["sizes"][n] = described(HELD_OUT + n)
        if (n + 1) % AT_ONCE == 0 or n + 1 == count:
            for file in files.values():
                file.flush()
            replace_whole(progress, str(n + 1))
            print(f"drew {n + 1} of {count}", flush=True)
    return Faces(**{name: file[:count] for name, file in files.items()})


def replace_whole(path: Path, text: str) -> None:
    """Write a file so that it is there whole or as it was."""
    draft = path.with_suffix(".draft")
    draft.write_text(text, "utf-8")
    draft.replace(path)
