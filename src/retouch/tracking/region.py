"""Where an edit may reach, and what of it can be followed: found from the two first frames, by optical flow.

A pixel is followed by the place in the start's frame that it shows: so edges stay sharp however long the
way, and whether the way is right can be seen from the source's own colours at both ends.
"""

from collections.abc import Collection, Iterator

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Num, UInt8

from retouch.media.masks import grow
from retouch.run import Run
from retouch.tracking.flow import Flow, warp
from retouch.video import Video

# Less than a picture program's own compression changes, more than rounding does (levels of 255).
NOTICEABLE = 10
# The source's colours at both ends of a way that is believed, over 3 x 3 pixels (levels of 255).
ALIKE = 40
HALF = 0.5


def changed(
    edited: UInt8[np.ndarray, "3 h w"], source: UInt8[np.ndarray, "3 h w"], margin: int
) -> Bool[np.ndarray, "h w"]:
    """Marks where two pictures differ noticeably, with a margin; single pixels do not count."""
    apart = cv2.absdiff(edited, source).max(axis=0) > NOTICEABLE
    whole = cv2.morphologyEx(apart.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    return np.asarray(grow(whole[None, None], margin)[0, 0] > 0)


def follow(
    video: Video, starts: Collection[int], flow: Flow, run: Run
) -> Iterator[tuple[int, Float32[np.ndarray, "h w 2"]]]:
    """Gives for every frame the start before it, and the place there that each pixel shows.

    The way from frame to frame is put right at every step by the way from the start itself, so that nothing
    drifts.
    """
    home = _home(video.height, video.width)
    start, place = 0, home
    for step in run.steps("follow the region", range(len(video))):
        at = step.index
        if at in starts:
            start, place = at, home
        else:
            place = _moved(place, flow.pair(_picture(video, at), _picture(video, at - 1)))
            expected = fetched(_picture(video, start), place)
            place = _moved(place, flow.pair(_picture(video, at), expected))
        yield start, place


def fetched(
    picture: Num[np.ndarray, "h w *c"], place: Float32[np.ndarray, "h w 2"]
) -> Num[np.ndarray, "h w *c"]:
    """Gives what a picture shows at each of the places."""
    return np.asarray(cv2.remap(picture, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def followed(marked: Bool[np.ndarray, "h w"], place: Float32[np.ndarray, "h w 2"]) -> Bool[np.ndarray, "h w"]:
    """Marks the pixels whose places are marked; what has come in over the edge since is not."""
    shown = fetched(marked.astype(np.float32), place) > HALF
    return np.asarray(shown & _inside(place))


def trusted(
    then: UInt8[np.ndarray, "h w 3"], now: UInt8[np.ndarray, "h w 3"], place: Float32[np.ndarray, "h w 2"]
) -> Bool[np.ndarray, "h w"]:
    """Marks pixels that show now what their places showed then: neither uncovered, hidden nor lost."""
    apart = np.abs(fetched(then, place).astype(np.float32) - now).max(axis=2)
    return np.asarray(_inside(place) & (cv2.blur(apart, (3, 3)) < ALIKE))


def carried(
    then: UInt8[np.ndarray, "h w 3"],
    edited: UInt8[np.ndarray, "h w 3"],
    now: UInt8[np.ndarray, "h w 3"],
    place: Float32[np.ndarray, "h w 2"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Gives a frame with what was edited `then` in the place where it is `now`."""
    new = (edited != then).any(axis=2).astype(np.float32)
    return np.asarray(np.where(fetched(new, place)[..., None] > HALF, fetched(edited, place), now))


def _home(height: int, width: int) -> Float32[np.ndarray, "h w 2"]:
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)


def _moved(
    place: Float32[np.ndarray, "h w 2"], flow: Float32[np.ndarray, "2 h w"]
) -> Float32[np.ndarray, "h w 2"]:
    """Fetches places from where the flow points; beyond the edge they go on as they are there."""
    at = _home(*flow.shape[1:]) + flow.transpose(1, 2, 0)
    most = np.array([flow.shape[2] - 1, flow.shape[1] - 1], np.float32)
    return np.asarray(warp(place, flow) + at - np.clip(at, 0, most), np.float32)


def _inside(place: Float32[np.ndarray, "h w 2"]) -> Bool[np.ndarray, "h w"]:
    height, width = place.shape[:2]
    low, high = (place >= -HALF).all(axis=2), (place <= (width - HALF, height - HALF)).all(axis=2)
    return np.asarray(low & high)


def _picture(video: Video, at: int) -> UInt8[np.ndarray, "h w 3"]:
    return np.ascontiguousarray(video.frames[at].transpose(1, 2, 0))
