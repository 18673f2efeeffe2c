"""Pictures that a control network is shown: edges for now."""

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from retouch.errors import ParamsError


def canny(
    frames: UInt8[np.ndarray, "f 3 h w"], *, low: int = 100, high: int = 200
) -> Float[Tensor, "f 3 h w"]:
    """White edges on black, in [0, 1], three times the same plane, as ControlNet's canny models were shown.

    Args:
        frames: the pictures.
        low: an edge goes on while the gradient is above this.
        high: an edge begins where the gradient is above this.

    Raises:
        ParamsError: the thresholds are in the wrong order, or negative.
    """
    if not 0 <= low <= high:
        raise ParamsError(
            f"canny thresholds are {low} and {high}; they must rise from 0", hint="try 100 and 200"
        )
    edges = np.stack([cv2.Canny(_to_grey(frame), low, high) for frame in frames])
    return torch.from_numpy(edges).float().div(255)[:, None].expand(-1, 3, -1, -1)


def _to_grey(frame: UInt8[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "h w"]:
    picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
