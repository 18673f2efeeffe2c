"""How a clip of any size lies in the pixels that a network takes, and its way into latents and out again.

Latents of a whole clip are numbers at rest: they may lie in files, and only a few frames pass through at a
time.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal, Protocol, Self, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, interpolate, pad

from retouch.media.masks import HALF
from retouch.models.estimate import DECODED_TOGETHER
from retouch.models.image import StableDiffusion
from retouch.models.image_to_video import VideoTraits
from retouch.run import Run
from retouch.video import Video, chunks

NEAR_ENOUGH: Final = 1.5
"""A clip whose area is this near to the model's own is not scaled at all, if its sides fit."""


@runtime_checkable
class SizedModel(Protocol):
    """What fitting a clip asks of an image model, or of its configuration alone."""

    @property
    def factor(self) -> int:
        """Pixels to a latent."""
        ...

    @property
    def multiple(self) -> int:
        """What height and width must be multiples of."""
        ...

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size at which the model edits a picture of this size."""
        ...


@final
@dataclass(frozen=True)
class Resize:
    """Where a clip's frames lie in the pictures that a network takes, as heights and widths."""

    clip: tuple[int, int]
    scaled: tuple[int, int]
    padded: tuple[int, int]
    factor: int
    """Pixels to a latent."""

    @classmethod
    def for_image_model(
        cls, height: int, width: int, model: SizedModel, size: Literal["model", "clip"]
    ) -> Self:
        """Work at the size that the model was trained at, or at the clip's own with repeated borders."""
        if size == "model":
            inner = model.working_size(height, width)
            return cls((height, width), inner, inner, model.factor)
        return cls((height, width), (height, width), _fit((height, width), model.multiple), model.factor)

    @classmethod
    def to_area(cls, height: int, width: int, traits: VideoTraits, short_side: int | None = None) -> Self:
        """Work at about the area that the model was trained at, or with a short side of that length."""
        scale = math.sqrt(traits.native_pixels / (height * width))
        many = traits.size_multiple
        if short_side is not None:
            scale = short_side / min(height, width)
        elif height % many == width % many == 0 and 1 / NEAR_ENOUGH < scale**2 < NEAR_ENOUGH:
            scale = 1.0
        scaled = max(1, round(height * scale)), max(1, round(width * scale))
        return cls((height, width), scaled, _fit(scaled, many), traits.latent_factor)

    @property
    def latents(self) -> tuple[int, int]:
        """Rows and columns of the latents."""
        return (self.padded[0] // self.factor, self.padded[1] // self.factor)

    def to_model(self, pixels: Float[Tensor, "f c h w"]) -> Float[Tensor, "f c y x"]:
        """Return frames as the network sees them; the border repeats the outermost pixels."""
        top, left, bottom, right = self._margins()
        return pad(resized(pixels, *self.scaled), (left, right, top, bottom), mode="replicate")

    def to_clip(self, pixels: Float[Tensor, "f c y x"]) -> Float[Tensor, "f c h w"]:
        """Return the network's pictures at the clip's size again."""
        top, left, _, _ = self._margins()
        inner = pixels[..., top : top + self.scaled[0], left : left + self.scaled[1]]
        return resized(inner, *self.clip)

    def to_latents(self, masks: Float[Tensor, "f 1 h w"]) -> Bool[Tensor, "f y x"]:
        """Return masks at the size of the latents, any selected pixel counting."""
        return adaptive_max_pool2d(self.to_model(masks), self.latents)[:, 0] >= 0.5

    def from_latents(self, masks: Bool[Tensor, "f y x"]) -> Bool[Tensor, "f 1 h w"]:
        """Return masks of the size of the latents at the clip's."""
        return self.to_clip(interpolate(masks[:, None].float(), self.padded)) >= 0.5

    def _margins(self) -> tuple[int, int, int, int]:
        rows, columns = (outer - inner for outer, inner in zip(self.padded, self.scaled, strict=True))
        return rows // 2, columns // 2, rows - rows // 2, columns - columns // 2


def _fit(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    tall, wide = (-(-side // multiple) * multiple for side in size)
    return tall, wide


def resized(pixels: Float[Tensor, "f c h w"], height: int, width: int) -> Float[Tensor, "f c y x"]:
    """Return pixels at another size: bicubic, antialiased when it shrinks, clamped to the range it had."""
    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    out = interpolate(pixels, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return out.clamp(float(pixels.min()), float(pixels.max()))


@torch.no_grad()
def encode_clip(video: Video, sd: StableDiffusion, resize: Resize, z: Float[Tensor, "f c h w"]) -> None:
    """Fill `z` with a clip's latents."""
    for part, clip in video.chunks(DECODED_TOGETHER):
        z[part] = sd.encode(resize.to_model(clip.pixels(sd.device))).to(z)


@torch.no_grad()
def decode_clip(
    z: Float[Tensor, "f c h w"], video: Video, sd: StableDiffusion, resize: Resize, run: Run
) -> Video:
    """Return the clip that latents show, like `video` in all else."""
    frames = run.scratch("decoded", video.frames.shape)
    for part in chunks(len(video), DECODED_TOGETHER):
        pixels = resize.to_clip(sd.decode(z[part].to(sd.device)))
        frames[part] = video[part].like(pixels).frames
    return video.like(frames)


def masks_to_latents(masks: UInt8[np.ndarray, "f 1 h w"], resize: Resize, run: Run) -> Bool[Tensor, "f y x"]:
    """Return a clip's masks at the size of the latents, in a file."""
    small = torch.from_numpy(run.scratch("mask_latents", (len(masks), *resize.latents), np.bool_))
    for part in chunks(len(masks), DECODED_TOGETHER):
        small[part] = resize.to_latents(torch.tensor(masks[part] >= HALF).float())
    return small


def masks_to_clip(masks: Bool[Tensor, "f y x"], resize: Resize, run: Run) -> UInt8[np.ndarray, "f 1 h w"]:
    """Return masks of the size of the latents at the clip's, in a file."""
    large = run.scratch("masks", (len(masks), 1, *resize.clip))
    for part in chunks(len(masks), DECODED_TOGETHER):
        large[part] = resize.from_latents(masks[part]).numpy() * np.uint8(255)
    return large
