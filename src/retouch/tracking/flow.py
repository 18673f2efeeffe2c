"""Optical flow: where each pixel of one picture lies in another.

What belongs here: the `Flow` protocol, the default that needs no weights, the check that tells reliable
vectors from guesses, and the flow of a clip's neighbours, computed once and kept on disk.

A flow has two channels, x then y, in pixels: what picture `a` shows at `p`, `b` shows at `p + flow(p)`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, final, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Num, UInt8

from retouch.errors import ParamsError
from retouch.video import release_pages

DIS_PRESETS: Final = {
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


@runtime_checkable
class Flow(Protocol):
    """Anything that finds the flow between two pictures of one size."""

    @property
    def identity(self) -> str:
        """What decides the result besides the pictures, for the keys of kept results."""
        ...

    def pair(
        self, a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"]
    ) -> Float32[np.ndarray, "2 h w"]:
        """Return the displacement, x then y, from each pixel of `a` to the same thing in `b`."""
        ...


@final
@dataclass(frozen=True)
class DisFlow:
    """Dense inverse search (Kroeger et al., 2016) on the grey pictures: no weights, milliseconds on a CPU."""

    preset: str = "medium"
    finest_scale: int = 0
    """0 looks at every pixel; each step up halves the pictures once more, and is three times as fast."""
    magnify: int = 1
    """How much larger the pictures are made first: 2 is worth it below 200 pixels."""

    def __post_init__(self) -> None:
        if self.preset not in DIS_PRESETS:
            raise ParamsError(
                f"flow preset is {self.preset!r}", hint=f"choose one of {', '.join(DIS_PRESETS)}"
            )

    @property
    def identity(self) -> str:
        """Name, preset and scale: the search draws nothing at random."""
        return f"dis-{self.preset}-{self.finest_scale}-{self.magnify}"

    def pair(
        self, a: UInt8[np.ndarray, "h w 3"], b: UInt8[np.ndarray, "h w 3"]
    ) -> Float32[np.ndarray, "2 h w"]:
        """Return the displacement, x then y, from each pixel of `a` to the same thing in `b`."""
        search = cv2.DISOpticalFlow.create(DIS_PRESETS[self.preset])
        search.setFinestScale(self.finest_scale)
        height, width = a.shape[:2]
        # The search works on 8 x 8 patches of a pyramid; very small pictures are padded to hold some.
        grey_a, grey_b = (_at_least(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), 32) for x in (a, b))
        if self.magnify != 1:
            size = (grey_a.shape[1] * self.magnify, grey_a.shape[0] * self.magnify)
            grey_a, grey_b = (cv2.resize(x, size, interpolation=cv2.INTER_CUBIC) for x in (grey_a, grey_b))
        found = search.calc(grey_a, grey_b, None)
        if self.magnify != 1:
            size = (found.shape[1] // self.magnify, found.shape[0] // self.magnify)
            found = cv2.resize(found, size, interpolation=cv2.INTER_AREA) / self.magnify
        return np.ascontiguousarray(found[:height, :width].transpose(2, 0, 1), dtype=np.float32)


def _at_least(grey: UInt8[np.ndarray, "h w"], side: int) -> UInt8[np.ndarray, "hh ww"]:
    pad = [(0, max(0, side - n)) for n in grey.shape]
    return np.pad(grey, pad, mode="edge") if any(p[1] for p in pad) else np.ascontiguousarray(grey)


def pixel_grid(height: int, width: int) -> Float32[np.ndarray, "h w 2"]:
    """Return each pixel's own place, x then y."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)


def remap(
    picture: Num[np.ndarray, "h w *c"], backward_map: Float32[np.ndarray, "y x 2"]
) -> Num[np.ndarray, "y x *c"]:
    """Fetch from `picture` what it shows at each of the places; outside, the nearest border pixel."""
    places = np.ascontiguousarray(backward_map)
    return np.asarray(cv2.remap(picture, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def warp_picture(
    picture: Num[np.ndarray, "h w *c"], flow: Float32[np.ndarray, "2 h w"]
) -> Num[np.ndarray, "h w *c"]:
    """Fetch from `picture` what each pixel's flow vector points at.

    With the flow from `a` to `b` and picture `b`, the result lies over `a`.
    """
    return remap(picture, pixel_grid(*flow.shape[1:]) + flow.transpose(1, 2, 0))


def inside_frame(backward_map: Float32[np.ndarray, "h w 2"], margin: float = 0.0) -> Bool[np.ndarray, "h w"]:
    """Mark the places that lie in the picture, or beyond it by at most `margin` pixels."""
    height, width = backward_map.shape[:2]
    low, high = backward_map >= -margin, backward_map <= (width - 1 + margin, height - 1 + margin)
    return np.asarray((low & high).all(axis=2))


def round_trip(
    there: Float32[np.ndarray, "2 h w"], back: Float32[np.ndarray, "2 h w"]
) -> Float32[np.ndarray, "h w"]:
    """Return how far, in pixels, each pixel ends from where it began after going there and back."""
    returned = warp_picture(np.ascontiguousarray(back.transpose(1, 2, 0)), there).transpose(2, 0, 1)
    return np.asarray(np.hypot(*(there + returned)), np.float32)


def consistent_flow(
    there: Float32[np.ndarray, "2 h w"], back: Float32[np.ndarray, "2 h w"], tolerance: float = 1.0
) -> Bool[np.ndarray, "h w"]:
    """Mark the pixels that come back to within `tolerance` pixels and do not leave the picture on the way."""
    kept = inside_frame(pixel_grid(*there.shape[1:]) + there.transpose(1, 2, 0))
    return np.asarray(kept & (round_trip(there, back) < tolerance))


@final
@dataclass(eq=False)
class ClipFlow:
    """The flow between neighbouring frames of a clip, each computed when first asked for and then kept.

    `frame` gives a picture by its number; `shelf` is an array (f, 2, 2, h, w) to keep results in, usually a
    memory-mapped file so that a long clip costs disk and not memory.
    """

    frame: Callable[[int], UInt8[np.ndarray, "h w 3"]]
    flow: Flow
    shelf: np.ndarray
    bridges: Mapping[tuple[int, int], Float32[np.ndarray, "2 h w"]] = field(default_factory=dict)
    """What is taken between some frames instead: an object's way while it is out of sight."""
    _known: set[tuple[int, int]] = field(default_factory=set)

    def with_bridges(self, bridges: Mapping[tuple[int, int], Float32[np.ndarray, "2 h w"]]) -> "ClipFlow":
        """Return the same flow, which shares what it keeps, but between some frames."""
        return replace(self, bridges=bridges)

    def is_hidden(self, t: int) -> bool:
        """Whether bridges lead over a frame: to it and on."""
        return (t - 1, t) in self.bridges and (t, t + 1) in self.bridges

    def between(self, a: int, b: int) -> Float32[np.ndarray, "2 h w"]:
        """Return the flow from frame `a` to its neighbour `b`."""
        assert abs(a - b) == 1, "only neighbours are kept"
        if (a, b) in self.bridges:
            return self.bridges[a, b]
        early, direction = min(a, b), int(a > b)
        if (early, direction) not in self._known:
            self.shelf[early, direction] = self.flow.pair(self.frame(a), self.frame(b))
            self._known.add((early, direction))
        found = np.array(self.shelf[early, direction], dtype=np.float32)
        release_pages(self.shelf)
        return found
