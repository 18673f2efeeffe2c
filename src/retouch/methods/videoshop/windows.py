"""Clips longer than the model's own length: windows, and what one hands to the next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from retouch.errors import ParamsError
from retouch.models.image_to_video import Traits
from retouch.video import spans


@final
@dataclass(frozen=True)
class Window:
    """Frames that are edited together.

    The first `known` of them are those that the window before has edited; without any, the window starts
    with a picture of the user's.
    """

    frames: range
    known: int

    @property
    def slice(self) -> slice:
        """The frames' numbers, to cut a clip with."""
        return slice(self.frames.start, self.frames.stop)


def windows(
    frames: int, starts: Sequence[int], traits: Traits, size: int | None, overlap: int
) -> list[Window]:
    """Lays windows over a clip; one begins, and shares nothing, at every frame of which there is a picture.

    Where several frames share a latent, only a window's first stands alone: windows of such a model share
    one frame.

    Raises:
        ParamsError: a part of the clip needs several windows, and they cannot share that much.
    """
    stride, laid = traits.frame_stride, []
    length = ((size or traits.native_frames) - 1) // stride * stride + 1
    shared = overlap if stride == 1 else 1
    for start, stop in zip(starts, [*starts[1:], frames], strict=True):
        if stop - start > length and not 1 <= shared < length:
            raise ParamsError(
                f"windows of {length} frames cannot share {shared}",
                hint="share at least 1 frame, and fewer than a window has",
            )
        laid += [
            Window(range(start + part.start, start + part.stop), shared if part.start else 0)
            for part in spans(stop - start, length, min(shared, length - 1))
        ]
    return laid
