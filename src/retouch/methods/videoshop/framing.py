"""Pictures brought to the model and back, and the user's picture brought to the clip."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

from retouch.errors import ParamsError
from retouch.media.pictures import read_picture
from retouch.models.image import resized
from retouch.models.image_to_video import Traits

# A picture program that rounds a size, or crops by a pixel, must not be refused.
ASPECT_TOLERANCE = 0.01
# A clip whose area is this near to the model's own is not scaled at all, if its sides fit.
NEAR_ENOUGH = 1.5


@final
@dataclass(frozen=True)
class Framing:
    """Where a clip's frames lie in the pictures that the model works on: scaled, then padded."""

    source: tuple[int, int]
    scaled: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def of(cls, height: int, width: int, traits: Traits, short_side: int | None = None) -> Self:
        """Lays frames into pictures of about the model's own area, or with a short side of that length."""
        scale = math.sqrt(traits.native_pixels / (height * width))
        many = traits.size_multiple
        if short_side is not None:
            scale = short_side / min(height, width)
        elif height % many == width % many == 0 and 1 / NEAR_ENOUGH < scale**2 < NEAR_ENOUGH:
            scale = 1.0
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        return cls((height, width), inner, (-(-inner[0] // many) * many, -(-inner[1] // many) * many))

    def there(self, pixels: Float[Tensor, "f 3 y x"]) -> Float[Tensor, "f 3 height width"]:
        """Gives frames as the model sees them; the border repeats the outermost pixels."""
        top, left, bottom, right = self._margins()
        return pad(resized(pixels, *self.scaled), (left, right, top, bottom), mode="replicate")

    def back(self, pixels: Float[Tensor, "f 3 height width"]) -> Float[Tensor, "f 3 y x"]:
        """Gives the model's pictures the frames' size again."""
        top, left, _, _ = self._margins()
        inner = pixels[:, :, top : top + self.scaled[0], left : left + self.scaled[1]]
        return resized(inner, *self.source)

    def _margins(self) -> tuple[int, int, int, int]:
        (height, width), (tall, wide) = self.scaled, self.padded
        top, left = (tall - height) // 2, (wide - width) // 2
        return top, left, tall - height - top, wide - width - left


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
