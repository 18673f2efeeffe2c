"""An edit laid over its source inside a mask; outside, every byte of the source stays."""

import numpy as np
from jaxtyping import UInt8

from retouch.media.masks import soft_edge
from retouch.run import Edited, Run
from retouch.video import Video, chunks


def blend(
    source: UInt8[np.ndarray, "f 3 h w"],
    edited: UInt8[np.ndarray, "f 3 h w"],
    mask: UInt8[np.ndarray, "f 1 h w"],
    feather: float,
) -> UInt8[np.ndarray, "f 3 h w"]:
    """Return the edited frames where the mask is, faded in over `feather` pixels inside its border."""
    mixed = source + soft_edge(mask, feather) * (edited.astype(np.float32) - source)
    return np.asarray(np.rint(mixed), np.uint8)


def composite(
    video: Video, edited: Video, mask: UInt8[np.ndarray, "f 1 h w"], feather: float, run: Run
) -> Edited:
    """Return the edited clip inside the mask and the source, bit for bit, outside."""
    frames = run.scratch("composited", video.frames.shape)
    touched = run.scratch("touched", (len(video), 1, video.height, video.width), np.bool_)
    for part in chunks(len(video), 8):
        frames[part] = blend(video.frames[part], edited.frames[part], mask[part], feather)
        touched[part] = mask[part] > 0
    return Edited(edited.like(frames), touched=touched)
