"""How carried paint holds where that is hard, on drawn scenes whose truth is known.

    python benchmarks/transport_scenes.py [SCENE ...]

A limb crosses a body, the ground has two depths, a board shines, a camera stands still. Every point of the
painted surface in the middle frame is followed by each way of `benchmarks/transport.py`, and it is known
where it truly lies in each other frame. A row says

    slides    how far the paint lies from where it belongs, in pixels: median and 95th percentile
    shown     share of the points that are seen and have their paint, within two pixels
    spills    pixels of other surfaces that get the paint, by those of the painted surface
    returns   share of the points that were hidden on the way, are seen again, and have their paint
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Final, NamedTuple

import cv2
import numpy as np
import torch

from atlas import NAMES, packed, run_in
from retouch.atlas.atlas import Atlas
from retouch.atlas.decompose import decompose_clip
from retouch.atlas.pyramid import AtlasSettings
from retouch.atlas.transport import transport_positions
from retouch.tracking.flow import remap
from retouch.video import Video
from transport import METHODS, Maps

FRAMES, HEIGHT, WIDTH, KEY = 20, 128, 192, 10
NEAR: Final = 2.0
"""Pixels within which paint is where it belongs."""


class Surface(NamedTuple):
    """A flat thing with a texture: where it lies in each frame, as 2x3 matrices, and of which layer it is."""

    texture: np.ndarray
    shape: np.ndarray
    places: np.ndarray
    layer: int


class Drawn(NamedTuple):
    """A clip, the object's share of each pixel, and the number of the surface that each pixel shows."""

    video: Video
    share: np.ndarray
    seen: np.ndarray
    surfaces: Sequence[Surface]
    painted: int


def noise_texture(height: int, width: int, seed: int, tint: tuple[float, float, float]) -> np.ndarray:
    """Return a texture of soft spots of two sizes about a colour."""
    draw = np.random.default_rng(seed)
    fine, coarse = (draw.normal(0, 1, (height // size + 2, width // size + 2, 3)) for size in (3, 10))
    spots = sum(
        cv2.resize(each, (width, height), interpolation=cv2.INTER_CUBIC) * by
        for each, by in ((fine, 22.0), (coarse, 34.0))
    )
    return np.asarray(np.clip(spots + np.array(tint), 5, 250), np.float32)


def turned(middle: tuple[float, float], pivot: tuple[float, float], degrees: float) -> np.ndarray:
    """Return the matrix that puts a pivot of a texture at a place of the frame, turned."""
    matrix = cv2.getRotationMatrix2D(pivot, degrees, 1.0)
    matrix[:, 2] += np.array(middle) - np.array(pivot)
    return np.asarray(matrix)


def plain_surface(
    size: tuple[int, int], seed: int, tint: tuple[float, float, float], places: list[np.ndarray], layer: int
) -> Surface:
    """Return a rectangle that is textured all over."""
    return Surface(noise_texture(*size, seed, tint), np.ones(size, np.float32), np.stack(places), layer)


def limb() -> tuple[list[Surface], int]:
    """A limb swings before a body; both are one object."""
    swing = [3 * np.sin(2 * np.pi * t / 16) for t in range(FRAMES)]
    ground = [turned((96 + 0.4 * t, 64), (130, 90), 0) for t in range(FRAMES)]
    body = [turned((96 + swing[t], 70), (30, 40), 2 * np.sin(t / 3)) for t in range(FRAMES)]
    arm = [turned((84 + swing[t], 40), (6, 7), 10 - 9.5 * t) for t in range(FRAMES)]
    return [
        plain_surface((180, 260), 1, (110, 120, 90), ground, 1),
        plain_surface((80, 60), 2, (70, 80, 150), body, 0),
        plain_surface((14, 62), 3, (190, 150, 120), arm, 0),
    ], 1


def two_planes() -> tuple[list[Surface], int]:
    """The ground is two planes at two depths, under a camera that pans; the farther one is painted."""
    far = [turned((96 - 0.6 * t, 40), (120, 50), 0) for t in range(FRAMES)]
    near = [turned((96 - 2.4 * t, 100), (150, 40), 0) for t in range(FRAMES)]
    ball = [turned((40 + 5 * t, 30), (12, 12), 0) for t in range(FRAMES)]
    return [
        plain_surface((110, 240), 4, (120, 140, 170), far, 1),
        plain_surface((80, 300), 5, (90, 120, 60), near, 1),
        plain_surface((24, 24), 6, (200, 90, 60), ball, 0),
    ], 0


def shiny() -> tuple[list[Surface], int]:
    """A board travels and turns under a light that stands still, so that the light slides over it."""
    ground = [turned((96, 64), (130, 90), 0) for _ in range(FRAMES)]
    board = [turned((60 + 4 * t, 64), (40, 28), 1.2 * t - 12) for t in range(FRAMES)]
    return [
        plain_surface((180, 260), 7, (100, 110, 100), ground, 1),
        plain_surface((56, 80), 8, (120, 60, 60), board, 0),
    ], 1


def locked_off() -> tuple[list[Surface], int]:
    """The camera stands still; something passes before what is painted."""
    ground = [turned((96, 64), (130, 90), 0) for _ in range(FRAMES)]
    board = [turned((10 + 9 * t, 64), (18, 30), 3 * t) for t in range(FRAMES)]
    return [
        plain_surface((180, 260), 9, (120, 110, 100), ground, 1),
        plain_surface((60, 36), 10, (60, 90, 150), board, 0),
    ], 0


SCENES = {"limb": limb, "two planes": two_planes, "shiny": shiny, "locked off": locked_off}


def drawn(name: str) -> Drawn:
    """Draw a scene, with a little of a camera's noise."""
    surfaces, painted = SCENES[name]()
    draw, size = np.random.default_rng(11), (WIDTH, HEIGHT)
    frames = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.float32)
    share, seen = np.zeros((FRAMES, HEIGHT, WIDTH), np.float32), np.zeros((FRAMES, HEIGHT, WIDTH), int)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    glow = 110 * np.exp(-((x - 100) ** 2 + (y - 58) ** 2) / (2 * 14.0**2)).astype(np.float32)
    for t in range(FRAMES):
        for number, surface in enumerate(surfaces):
            matrix = surface.places[t]
            shown = cv2.warpAffine(surface.texture, matrix, size, flags=cv2.INTER_LINEAR)
            cover = cv2.warpAffine(surface.shape, matrix, size, flags=cv2.INTER_LINEAR)
            if name == "shiny" and surface.layer == 0:
                shown = shown + glow[:, :, None]
            frames[t] += cover[:, :, None] * (shown - frames[t])
            share[t] += cover * ((surface.layer == 0) - share[t])
            seen[t][cover > 0.5] = number
    noisy = frames + draw.normal(0, 1.5, frames.shape)
    video = Video(np.clip(np.rint(noisy), 0, 255).astype(np.uint8).transpose(0, 3, 1, 2), Fraction(12))
    return Drawn(video, np.rint(255 * share).astype(np.uint8), seen, surfaces, painted)


def direct_shown(video: Video, atlas: Atlas, key: int, layer: int) -> Maps:
    """Go straight from the painted frame, and leave out what is hidden."""
    for found in transport_positions(atlas, video, key, layer):
        yield found.frame, found.positions, found.known & (found.shown > 0.5)


WAYS = METHODS | {"direct": direct_shown}


def measured(scene: Drawn, maps: Maps) -> dict[str, float]:
    """Return the figures of one way of carrying."""
    surface, seen = scene.surfaces[scene.painted], scene.seen
    own = cv2.erode((seen[KEY] == scene.painted).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    points = np.argwhere(own)[:, ::-1].astype(float)
    home = cv2.invertAffineTransform(surface.places[KEY])
    texels = points @ home[:, :2].T + home[:, 2]
    found = {t: (places, known) for t, places, known in maps}
    off, shown, spills, back = list[np.ndarray](), list[float](), list[float](), list[float]()
    for way in (range(KEY + 1, FRAMES), range(KEY - 1, -1, -1)):
        was_hidden = np.zeros(len(points), bool)
        for t in way:
            at = texels @ surface.places[t][:, :2].T + surface.places[t][:, 2]
            near = np.rint(at).astype(int)
            inside = ((near >= 2) & (near < [WIDTH - 2, HEIGHT - 2])).all(1)
            whole = cv2.erode((seen[t] == scene.painted).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
            u, v = near.clip(0, [WIDTH - 1, HEIGHT - 1]).T
            is_seen = inside & whole[v, u]
            is_hidden = inside & (seen[t][v, u] != scene.painted)
            if t in found:
                places, known = found[t]
                read = cv2.remap(
                    places.astype(np.float32), *at.astype(np.float32).T[..., None], cv2.INTER_LINEAR
                )
                apart = np.linalg.norm(read[:, 0] - points, axis=1)
                has = known[v, u]
                off.append(apart[is_seen & has])
                shown.append(float((has & (apart < NEAR))[is_seen].mean()) if is_seen.any() else np.nan)
                again = is_seen & was_hidden
                if again.sum() > 20:
                    back.append(float((has & (apart < NEAR))[again].mean()))
                carried = remap(own.astype(np.float32), places)
                others = cv2.erode((seen[t] != scene.painted).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
                spills.append(float((known & others & (carried > 0.5)).sum() / len(points)))
            was_hidden |= is_hidden
    apart = np.concatenate(off) if off else np.array([np.nan])
    return {
        "slides": float(np.median(apart)),
        "95th": float(np.percentile(apart, 95)),
        "shown": float(np.nanmean(shown)),
        "spills": float(np.mean(spills)),
        "returns": float(np.mean(back)) if back else np.nan,
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", nargs="*", default=list(SCENES), metavar="SCENE", help=", ".join(SCENES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print("| scene | way | slides, px | shown | spills | returns | CPU s |\n|" + "---|" * 7)
    for name in given.scenes:
        scene = drawn(name)
        with tempfile.TemporaryDirectory() as place:
            atlas = decompose_clip(
                scene.video, packed(scene.share), NAMES, AtlasSettings(), run=run_in(place)
            )
        for way, method in WAYS.items():
            began = time.process_time()
            layer = scene.surfaces[scene.painted].layer
            row = measured(scene, method(scene.video, atlas, KEY, layer))
            spent = time.process_time() - began
            print(
                f"| {name} | {way} | {row['slides']:.2f}, {row['95th']:.2f} | {row['shown']:.3f} "
                f"| {row['spills']:.3f} | {row['returns']:.3f} | {spent:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
