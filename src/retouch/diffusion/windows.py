"""Clips longer than a network can take at once: overlapping windows that agree at every step.

At each noise level every window is predicted on the same latents, and where windows overlap their
predictions are mixed, so that the clip stays one (as MultiDiffusion does for wide pictures, Bar-Tal et
al. 2023). Frames that all others look at, such as the middle one, go into every window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from retouch.diffusion.ddim import Latents
from retouch.video import spans


@final
@dataclass(frozen=True)
class Window:
    """Frames that go through the network together."""

    frames: tuple[int, ...]
    """Their numbers in the clip, in order of time; frames that only serve as anchors among them."""
    share: tuple[float, ...]
    """How much of each frame's value this window decides; 0 for a mere anchor."""

    def take(self, latents: Latents, like: Tensor) -> Float[Tensor, "f c h w"]:
        """The window's latents, on the device and in the precision of `like`."""
        return torch.from_numpy(latents[list(self.frames)]).to(like.device, like.dtype)

    def add(self, latents: np.ndarray, values: Float[Tensor, "f ..."]) -> None:
        """Adds this window's share of its values to the clip's."""
        for frame, share, value in zip(self.frames, self.share, values.cpu(), strict=True):
            if share:
                latents[frame] += (share * value).numpy()


def windows(total: int, *, size: int, overlap: int, anchors: Sequence[int] = ()) -> tuple[Window, ...]:
    """Covers a clip with windows of `size` frames, anchors not counted; a frame's shares add up to 1."""
    laid = spans(total, size, min(overlap, size - 1))
    ramps = [
        {frame: _ramp(frame, span, overlap, first=span is laid[0], last=span is laid[-1]) for frame in span}
        for span in laid
    ]
    sums = [sum(ramp.get(frame, 0.0) for ramp in ramps) for frame in range(total)]
    return tuple(
        Window(
            frames := tuple(sorted({*span, *anchors})),
            tuple(ramp.get(frame, 0.0) / sums[frame] for frame in frames),
        )
        for span, ramp in zip(laid, ramps, strict=True)
    )


def _ramp(frame: int, span: range, overlap: int, *, first: bool, last: bool) -> float:
    """Rises over the overlap with the window before and falls over that with the next."""
    rise = 1.0 if first else (frame - span.start + 1) / (overlap + 1)
    fall = 1.0 if last else (span.stop - frame) / (overlap + 1)
    return min(rise, fall, 1.0)
