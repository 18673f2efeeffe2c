"""Clips longer than a network can take at once: windows that overlap, or follow each other.

Overlapping windows agree at every step: at each noise level all are predicted on the same latents, and where
they overlap their predictions are mixed, so that the clip stays one (as MultiDiffusion does for wide
pictures, Bar-Tal et al. 2023). Sequential windows are edited one after the other, each from frames of the
one before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from retouch.errors import ParamsError
from retouch.video import spans


@final
@dataclass(frozen=True)
class Window:
    """Frames that pass the network together, at every noise level."""

    frames: tuple[int, ...]
    """Their numbers in the clip, in order of time; frames that only serve as anchors among them."""
    share: tuple[float, ...]
    """How much of each frame's value this window decides; 0 for a mere anchor."""

    def take(self, latents: Float[Tensor, "f c h w"], device: torch.device) -> Float[Tensor, "g c h w"]:
        """Return the window's latents, on a device."""
        return latents[list(self.frames)].to(device)

    def add(self, clip: Float[Tensor, "f *size"], values: Float[Tensor, "g *size"]) -> None:
        """Add this window's share of its values to the clip's."""
        for frame, share, value in zip(self.frames, self.share, values.to(clip.device), strict=True):
            if share:
                clip[frame] += share * value


def overlapping(total: int, *, size: int, overlap: int, anchors: Sequence[int] = ()) -> tuple[Window, ...]:
    """Cover a clip with windows of `size` frames, anchors not counted; a frame's shares add up to 1.

    Anchors are frames that all others look at, such as the middle one; they go into every window.
    """
    parts = spans(total, size, min(overlap, size - 1))
    ramps = [
        {frame: _ramp(frame, part, overlap, first=part is parts[0], last=part is parts[-1]) for frame in part}
        for part in parts
    ]
    sums = [sum(ramp.get(frame, 0.0) for ramp in ramps) for frame in range(total)]
    return tuple(
        Window(
            frames := tuple(sorted({*part, *anchors})),
            tuple(ramp.get(frame, 0.0) / sums[frame] for frame in frames),
        )
        for part, ramp in zip(parts, ramps, strict=True)
    )


def _ramp(frame: int, part: range, overlap: int, *, first: bool, last: bool) -> float:
    """Rise over the overlap with the window before and fall over that with the next."""
    rise = 1.0 if first else (frame - part.start + 1) / (overlap + 1)
    fall = 1.0 if last else (part.stop - frame) / (overlap + 1)
    return min(rise, fall, 1.0)


@final
@dataclass(frozen=True)
class SequentialWindow:
    """Frames that are edited together, after those before them.

    The first `known` of them are those that the window before has edited; without any, the window starts
    with a picture of the user's.
    """

    frames: range
    known: int

    @property
    def slice(self) -> slice:
        """The frames' numbers, to cut a clip with."""
        return slice(self.frames.start, self.frames.stop)


def sequential(
    total: int, starts: Sequence[int], *, size: int, overlap: int, stride: int = 1
) -> list[SequentialWindow]:
    """Cover a clip with windows of at most `size` frames, of which one begins afresh at every start.

    Args:
        total: The frames of the clip.
        starts: Frames of which there is a picture, in order, the first one 0; there nothing is shared.
        size: The most frames of a window.
        overlap: Frames that a window takes over from the one before.
        stride: Frames that share a latent; where that is several, only a window's first stands alone, so
            windows have a multiple of that and one, and share one frame.

    Raises:
        ParamsError: a part of the clip needs several windows, and they cannot share that much.
    """
    length = (size - 1) // stride * stride + 1
    shared = overlap if stride == 1 else 1
    windows = []
    for start, stop in zip(starts, [*starts[1:], total], strict=True):
        if stop - start > length and not 1 <= shared < length:
            raise ParamsError(
                f"windows of {length} frames cannot share {shared}",
                hint="share at least 1 frame, and fewer than a window has",
            )
        windows += [
            SequentialWindow(range(start + part.start, start + part.stop), shared if part.start else 0)
            for part in spans(stop - start, length, min(shared, length - 1))
        ]
    return windows
