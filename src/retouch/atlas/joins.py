"""An object that is out of sight for a while and seen again is the same object, and keeps its paint.

Flow ends where something passes before the object. What is seen of it after that is laid over what was seen
before; where the two show the same, the way from one to the other takes the place of the flow between.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from retouch.atlas.pyramid import ClipPyramid, frame_blocks
from retouch.tracking.flow import ClipFlow, pixel_grid
from retouch.tracking.register import agreement, find_placement

Matrix: TypeAlias = Float64[np.ndarray, "3 3"]
ALIKE: Final = 0.5
"""Agreement from which on two views show the same object."""
SHOWN: Final = 0.02
"""Share of its largest area below which an object is out of sight, and the least pixels that it needs."""
LEAST: Final = 16
WELL: Final = 0.9
"""Share of its largest area, before or after, at which an object is seen well enough to be known again."""
ROOM: Final = 0.15
"""Room around an object where it is looked for, in parts of its side."""


@final
@dataclass(frozen=True)
class Gap:
    """Frames between which an object is out of sight, and near them frames that show it well."""

    last: int
    first: int
    before: int
    after: int


def gaps_of(areas: Sequence[int]) -> Iterator[Gap]:
    """Yield where an object of these areas is out of sight between frames that show it."""
    shown = np.array(areas) >= max(LEAST, SHOWN * max(areas, default=0))
    runs: list[list[int]] = []
    for t in np.flatnonzero(shown).tolist():
        if runs and runs[-1][-1] == t - 1:
            runs[-1].append(t)
        else:
            runs.append([t])
    for left, right in itertools.pairwise(runs):
        before, after = (
            next(t for t in run if areas[t] >= WELL * max(areas[s] for s in run))
            for run in (left[::-1], right)
        )
        yield Gap(left[-1], right[0], before, after)


def joined_flow(
    pyramid: ClipPyramid,
    flow: ClipFlow,
    pairs: Float64[np.ndarray, "pairs 3 3"],
    layer: int,
    size: tuple[int, int],
) -> tuple[ClipFlow, Float64[np.ndarray, "pairs 3 3"]]:
    """Return an object's flow and matrices, led over the gaps after which it is known again."""
    areas: list[int] = []
    for a, b in frame_blocks(0, len(pyramid.video)):
        areas += (pyramid.share(layer, a, b, *size) > 0.5).sum((1, 2, 3)).tolist()
    bridges: dict[tuple[int, int], Float32[np.ndarray, "2 h w"]] = {}
    pairs = pairs.copy()
    for gap in gaps_of(areas):
        found = _known_again(pyramid, layer, gap, size)
        if found is None:
            continue
        over = np.linalg.inv(_chain(pairs, gap.first, gap.after)) @ found
        over = over @ np.linalg.inv(_chain(pairs, gap.before, gap.last))
        for t in range(gap.last, gap.first):
            pairs[t] = over if t == gap.last else np.eye(3)
            bridges[t, t + 1] = _field(pairs[t], *size)
            bridges[t + 1, t] = _field(np.linalg.inv(pairs[t]), *size)
    return (flow.with_bridges(bridges) if bridges else flow), pairs


def _chain(pairs: Float64[np.ndarray, "pairs 3 3"], start: int, stop: int) -> Matrix:
    """Return the matrix from a frame to a later one."""
    whole = np.eye(3)
    for t in range(start, stop):
        whole = pairs[t] @ whole
    return whole


def _field(matrix: Matrix, height: int, width: int) -> Float32[np.ndarray, "2 h w"]:
    """Return how far a matrix moves each pixel."""
    places = np.concatenate([pixel_grid(height, width), np.ones((height, width, 1))], 2) @ matrix.T
    moved = places[..., :2] / places[..., 2:] - pixel_grid(height, width)
    return np.ascontiguousarray(moved.transpose(2, 0, 1), np.float32)


def _known_again(pyramid: ClipPyramid, layer: int, gap: Gap, size: tuple[int, int]) -> Matrix | None:
    """Return the similarity from an object before a gap to the same after it; None if it is not the same."""
    views = [_view(pyramid, layer, t, size) for t in (gap.before, gap.after)]
    boxes = [cv2.boundingRect(mask) for _, mask in views]
    wide, tall = (round(max(box[i] for box in boxes) * (1 + 2 * ROOM)) + 4 for i in (2, 3))
    corners = [(x + w // 2 - wide // 2, y + h // 2 - tall // 2) for x, y, w, h in boxes]
    (here, own), (there, _) = (
        [_cut(plane, corner, wide, tall) for plane in view]
        for view, corner in zip(views, corners, strict=True)
    )
    beside = (own > 0) & (cv2.erode(own, np.ones((3, 3), np.uint8)) > 0)
    placement = find_placement(here, there, beside)
    if agreement(here, there, placement, beside) < ALIKE:
        return None
    middle = np.array([(wide - 1) / 2, (tall - 1) / 2])
    matrix = np.eye(3)
    matrix[:2, :2] = placement[:, :2]
    matrix[:2, 2] = placement[:, 2] + middle + corners[1] - placement[:, :2] @ (middle + corners[0])
    return matrix


def _view(
    pyramid: ClipPyramid, layer: int, t: int, size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Return a frame and where it shows the object."""
    picture = pyramid.pictures(t, t + 1, *size)[0].movedim(0, 2).clamp(0, 1) * 255
    mask = pyramid.share(layer, t, t + 1, *size)[0, 0] > 0.5
    return picture.round().byte().cpu().numpy(), mask.byte().cpu().numpy()


def _cut(
    plane: UInt8[np.ndarray, "h w *c"], corner: tuple[int, int], wide: int, tall: int
) -> UInt8[np.ndarray, "y x *c"]:
    """Return a part of a plane; what lies outside is zero."""
    height, width = plane.shape[:2]
    x, y = corner
    cut = np.zeros((tall, wide, *plane.shape[2:]), np.uint8)
    a, b, c, d = max(0, y), min(height, y + tall), max(0, x), min(width, x + wide)
    cut[a - y : b - y, c - x : d - x] = plane[a:b, c:d]
    return cut
