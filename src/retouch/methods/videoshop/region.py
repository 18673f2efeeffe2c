"""Where an edit may reach: found from the two first frames, followed through the clip, softened."""

from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from retouch.media.masks import grow
from retouch.models.flow import Flow, warp
from retouch.run import Run
from retouch.video import Video

# Less than a picture program's own compression changes, more than rounding does (levels of 255).
NOTICEABLE = 10


def changed(
    edited: UInt8[np.ndarray, "3 h w"], source: UInt8[np.ndarray, "3 h w"], margin: int
) -> Bool[np.ndarray, "h w"]:
    """Marks where two pictures differ noticeably, with a margin; single pixels do not count."""
    apart = cv2.absdiff(edited, source).max(axis=0) > NOTICEABLE
    whole = cv2.morphologyEx(apart.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    return np.asarray(grow(whole[None, None], margin)[0, 0] > 0)


def follow(
    video: Video,
    seeds: Mapping[int, Bool[np.ndarray, "h w"]],
    flow: Flow,
    into: UInt8[np.ndarray, "f 1 h w"],
    run: Run,
) -> None:
    """Carries marked regions through a clip by its optical flow, each from its frame to the next seed.

    What is carried is, for every pixel, the place in the seed's frame that it shows: so the region's edge
    stays sharp however long the way.
    """
    height, width = into.shape[2:]
    home = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
    place, seed = home, np.zeros((height, width), np.uint8)
    for step in run.steps("follow the region", range(len(video))):
        at = step.index
        if at in seeds:
            place, seed = home, seeds[at].astype(np.uint8) * 255
        else:
            place = warp(place, flow.pair(_picture(video, at), _picture(video, at - 1)))
        shown = cv2.remap(seed, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        into[at, 0] = np.where(shown > 127, 255, 0)


def soft(mask: UInt8[np.ndarray, "h w"], feather: float) -> Float32[np.ndarray, "h w"]:
    """Gives a mask as weights that fall to 0 within the region, so that nothing outside it is reached."""
    weight = mask.astype(np.float32) / 255
    if feather < 1:
        return weight
    inside = np.asarray(cv2.distanceTransform((mask > 0).astype(np.uint8), cv2.DIST_L2, 5), np.float32)
    return np.asarray(weight * np.minimum(inside / feather, 1), np.float32)


def pasted(
    edited: UInt8[np.ndarray, "f 3 h w"],
    source: UInt8[np.ndarray, "f 3 h w"],
    mask: UInt8[np.ndarray, "f 1 h w"],
    feather: float,
) -> UInt8[np.ndarray, "f 3 h w"]:
    """Lays the edited frames over the source where the mask is; elsewhere the source's bytes are kept."""
    weight = np.stack([soft(one[0], feather) for one in mask])[:, None]
    mixed = source + weight * (edited.astype(np.float32) - source)
    return np.asarray(np.round(mixed), np.uint8)


def _picture(video: Video, at: int) -> UInt8[np.ndarray, "h w 3"]:
    return np.ascontiguousarray(video.frames[at].transpose(1, 2, 0))
