"""Edited frames as they come from a picture program, brought to their clip."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from retouch.errors import ParamsError
from retouch.media.pictures import read_picture
from retouch.video import Video

ASPECT_TOLERANCE: Final = 0.01
"""A picture program that rounds a size, or crops by a pixel, must not be refused."""


def read_keyframes(video: Video, paths: Mapping[int, Path]) -> dict[int, UInt8[np.ndarray, "3 h w"]]:
    """Read edited frames at the clip's size; where one is transparent, the clip's frame shows through.

    Raises:
        ParamsError: one is not in the clip, or its shape is not the clip's.
        VideoError: one cannot be read.
    """
    if (last := max(paths)) >= len(video):
        raise ParamsError(f"keyframe names frame {last} of {len(video)}", hint="frames are counted from 0")
    return {at: _read_over(path, np.asarray(video.frames[at])) for at, path in paths.items()}


def _read_over(path: Path, frame: UInt8[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "3 h w"]:
    picture = Image.fromarray(read_picture(path))
    height, width = frame.shape[1:]
    if abs(math.log(picture.width * height / (picture.height * width))) > ASPECT_TOLERANCE:
        raise ParamsError(
            f"{path.name} is {picture.width}x{picture.height} but the clip {width}x{height}",
            hint="keep the shape: edit a frame from `retouch keyframe`, uncropped and unrotated",
        )
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    shown = Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).convert("RGBA")
    shown.alpha_composite(picture.convert("RGBA"))
    return np.ascontiguousarray(np.asarray(shown.convert("RGB")).transpose(2, 0, 1))
