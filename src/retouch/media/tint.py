"""Objects tinted, to look at: in colours that show against what they cover."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import ImageColor

from retouch.errors import ParamsError

Colour: TypeAlias = tuple[int, int, int]

COLOURS: Final[tuple[Colour, ...]] = (
    *((255, 60, 60), (60, 140, 255), (80, 220, 80), (250, 200, 40)),
    *((200, 80, 240), (40, 220, 220), (255, 255, 255), (20, 20, 20)),
)
"""What a tint is chosen from; of colours that show as well, the first."""
STRENGTH: Final = 0.45


def tint_objects(
    picture: UInt8[np.ndarray, "h w 3"],
    masks: Mapping[str, UInt8[np.ndarray, "h w"]],
    colours: Mapping[str, Colour],
) -> UInt8[np.ndarray, "h w 3"]:
    """Tint each object's pixels in its colour and draw its outline."""
    shown: np.ndarray = picture.astype(np.float32)
    for name, mask in masks.items():
        part = mask.astype(np.float32)[..., None] / 255 * STRENGTH
        shown = shown * (1 - part) + np.array(colours[name], np.float32) * part
        edge = cv2.morphologyEx((mask > 127).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        shown[edge == 1] = colours[name]
    return shown.round().astype(np.uint8)


def colour_against(pixels: UInt8[np.ndarray, "n 3"], taken: Iterable[Colour] = ()) -> Colour:
    """Return the colour that is furthest from an object's own pixels, and from colours that are taken."""
    palette = _to_lab(COLOURS)
    away = _colour_distances(_to_lab(pixels), palette)
    score = np.percentile(away, 10, axis=0) if len(pixels) else np.full(len(COLOURS), np.inf)
    for other in taken:
        score = np.minimum(score, _colour_distances(_to_lab([other]), palette)[0])
    return COLOURS[int(np.argmax(score))]


def pixels_of(
    picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], most: int = 2000
) -> UInt8[np.ndarray, "n 3"]:
    """Return some of an object's pixels, evenly."""
    own: np.ndarray = picture[mask]
    return own[:: max(1, len(own) // most)]


def named_colour(text: str) -> Colour:
    """Return the colour of a name such as `lime`, or of `#rrggbb`.

    Raises:
        ParamsError: it is no colour.
    """
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise ParamsError(f"{text!r} is no colour", hint="a name such as lime, or #rrggbb") from None
    return red, green, blue


def _to_lab(colours: Sequence[Colour] | UInt8[np.ndarray, "n 3"]) -> Float32[np.ndarray, "n 3"]:
    """The colours where distances are as the eye sees them."""
    numbers = np.asarray(colours, np.float32).reshape(1, -1, 3) / 255
    return np.asarray(cv2.cvtColor(numbers, cv2.COLOR_RGB2LAB)[0] if numbers.size else numbers[0])


def _colour_distances(
    some: Float32[np.ndarray, "n 3"], others: Float32[np.ndarray, "m 3"]
) -> Float32[np.ndarray, "n m"]:
    return np.asarray(np.linalg.norm(some[:, None] - others[None], axis=2))
