"""The user's picture brought to the clip."""

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from retouch.diffusion.resize import resized
from retouch.errors import ParamsError
from retouch.media.pictures import read_picture

# A picture program that rounds a size, or crops by a pixel, must not be refused.
ASPECT_TOLERANCE = 0.01


def fitted(path: Path, frame: UInt8[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "3 h w"]:
    """Gives the picture in a file the size of a frame; where it is transparent, the frame shows through.

    Raises:
        ParamsError: its shape is not the frame's.
        VideoError: it cannot be read.
    """
    picture, (height, width) = read_picture(path), frame.shape[1:]
    if abs(math.log(picture.shape[1] * height / (picture.shape[0] * width))) > ASPECT_TOLERANCE:
        raise ParamsError(
            f"{path.name} is {picture.shape[1]}x{picture.shape[0]} but the clip {width}x{height}",
            hint="keep the shape: edit a frame from `retouch keyframe`, uncropped and unrotated",
        )
    layers = torch.tensor(picture).movedim(-1, 0)[None].float() / 255
    cover = layers[:, 3:] if len(layers[0]) == 4 else torch.ones_like(layers[:, :1])
    inked, cover = resized(layers[:, :3] * cover, height, width), resized(cover, height, width)
    whole = inked + (1 - cover) * torch.tensor(frame)[None].float() / 255
    return np.asarray((whole[0] * 255).round().clamp(0, 255).to(torch.uint8).numpy())
