"""How well paint is carried, measured by coordinates: no paint is drawn, so no colour flatters a method.

A **position map** is `float32 (h, w, 2)`: the place of the painted frame, x then y, that each pixel of
another frame shows. Every method that carries paint has one, whether it looks through textures, follows flow
or fits a plane. **Known** is `bool (h, w)`, true where the map says anything.

Decibels alone reward maps that shuffle pixels which look alike: read them beside straightness and flicker.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from retouch.errors import InputError
from retouch.tracking.flow import inside_frame, pixel_grid, remap, warp_picture
from retouch.video import decibels

Positions = Float32[np.ndarray, "h w 2"]
Known = Bool[np.ndarray, "h w"]


def propagation_decibels(
    frame: UInt8[np.ndarray, "h w 3"], key: UInt8[np.ndarray, "h w 3"], positions: Positions, known: Known
) -> float:
    """Measure the key frame's own pixels, carried to a frame by the map, against that frame, in dB.

    Raises:
        InputError: no pixel is known.
    """
    counted = _counted(known & inside_frame(positions))
    error = remap(key.astype(np.float32), positions)[counted] - frame[counted]
    return decibels(float(np.square(error).mean(dtype=np.float64)), peak=255)


def swim(positions: Positions, known: Known) -> float:
    """Measure how far paint on something at rest moves, in pixels: the median over the known pixels.

    Raises:
        InputError: no pixel is known.
    """
    away = np.linalg.norm(positions - pixel_grid(*known.shape), axis=2)
    return float(np.median(away[_counted(known)]))


def straightness(positions: Positions, known: Known, *, reach: int = 4, percentile: float = 95) -> float:
    """Measure how far straight lines of paint bend over twice `reach` pixels, in pixels of the key frame.

    Where neighbours at both sides are known: the length of the map's second difference along x or y,
    whichever is longer.

    Raises:
        InputError: no pixel is known together with its neighbours.
    """
    size = 2 * reach + 1
    solid = cv2.erode(known.astype(np.uint8), np.ones((size, size), np.uint8), borderValue=0) > 0
    bends = [
        np.linalg.norm(
            np.roll(positions, reach, axis) - 2 * positions + np.roll(positions, -reach, axis), axis=2
        )
        for axis in (0, 1)
    ]
    return float(np.percentile(np.maximum(*bends)[_counted(solid)], percentile))


def position_flicker(
    maps: Sequence[Positions],
    flows: Sequence[Float32[np.ndarray, "2 h w"]],
    known: Known,
    *,
    percentile: float = 50,
) -> float:
    """Measure how paint trembles along the motion of the source, in pixels of the key frame.

    Args:
        maps: The maps of three neighbouring frames.
        flows: The flow from the middle frame to the one before and to the one after.
        known: The pixels of the middle frame whose maps are known in all three.
        percentile: Which of the pixels' figures is given.

    Raises:
        InputError: no pixel is known.
    """
    before, now, after = maps
    back, forth = (warp_picture(other, flow) for other, flow in zip((before, after), flows, strict=True))
    tremble = 0.5 * np.linalg.norm(back - 2 * now + forth, axis=2)
    return float(np.percentile(tremble[_counted(known)], percentile))


def _counted(pixels: Known) -> Known:
    if not pixels.any():
        raise InputError("the map knows none of the pixels", hint="give a frame that shows the painted area")
    return pixels
