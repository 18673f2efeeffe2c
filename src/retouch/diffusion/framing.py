"""How a clip of any size lies in the pixels that a network takes, and its way into latents and out again.

Latents of a whole clip are numbers at rest: they may lie in files, and only a few frames pass through at
a time.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from retouch.diffusion.ddim import Latents
from retouch.models.image import StableDiffusion, resized
from retouch.run import Run
from retouch.video import Video

FRAMES_AT_ONCE = 8
"""Frames that pass the autoencoder together; bounds memory, changes nothing else."""


@final
@dataclass(frozen=True)
class Framing:
    """A clip's size, the size that the network sees, and which way leads from one to the other."""

    height: int
    width: int
    inner: tuple[int, int]
    """Height and width that the network sees."""
    factor: int
    """Pixels to a latent."""
    padded: bool
    """Whether borders are added, rather than the picture resized."""

    @property
    def latents(self) -> tuple[int, int]:
        """Rows and columns of the latents."""
        return (self.inner[0] // self.factor, self.inner[1] // self.factor)

    def into(self, pixels: Float[Tensor, "f c h w"]) -> Float[Tensor, "f c y x"]:
        """Pixels as the network sees them."""
        if not self.padded:
            return resized(pixels, *self.inner)
        return pad(pixels, (0, self.inner[1] - self.width, 0, self.inner[0] - self.height), mode="replicate")

    def back(self, pixels: Float[Tensor, "f c y x"]) -> Float[Tensor, "f c h w"]:
        """Pixels at the clip's size."""
        if not self.padded:
            return resized(pixels, self.height, self.width)
        return pixels[..., : self.height, : self.width]


@runtime_checkable
class Sized(Protocol):
    """What framing asks of a model, or of its configuration alone."""

    @property
    def factor(self) -> int:
        """Pixels to a latent."""
        ...

    @property
    def multiple(self) -> int:
        """What height and width must be multiples of."""
        ...

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which the model edits a picture of this size."""
        ...


def framing(video: Video, sd: Sized, size: Literal["model", "clip"]) -> Framing:
    """Works at the size that the model was trained at, or at the clip's own with borders repeated to fit."""
    return framed(video.height, video.width, sd, size)


def framed(height: int, width: int, sd: Sized, size: Literal["model", "clip"]) -> Framing:
    """As `framing`, for a clip of which only the size is known."""
    if size == "model":
        return Framing(height, width, sd.working_size(height, width), sd.factor, padded=False)
    tall, wide = (-(-side // sd.multiple) * sd.multiple for side in (height, width))
    return Framing(height, width, (tall, wide), sd.factor, padded=True)


@torch.no_grad()
def encode_clip(video: Video, sd: StableDiffusion, frame: Framing, z: Latents) -> None:
    """Fills `z` with a clip's latents."""
    for span, part in video.windows(FRAMES_AT_ONCE, 0):
        z[span.start : span.stop] = sd.encode(frame.into(part.pixels(sd.device))).cpu().numpy()


@torch.no_grad()
def decode_clip(z: Latents, video: Video, sd: StableDiffusion, frame: Framing, run: Run) -> Video:
    """The clip that latents show, like `video` in all else."""
    frames = run.scratch("decoded", (len(video), 3, video.height, video.width))
    for span, part in video.windows(FRAMES_AT_ONCE, 0):
        latents = torch.tensor(z[span.start : span.stop]).to(sd.device)
        frames[span.start : span.stop] = part.like(frame.back(sd.decode(latents))).frames
    return video.like(frames)
