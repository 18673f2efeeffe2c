"""The clip as the solver reads it: a few frames at a time, at any size, with what belongs to which layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from retouch.atlas.atlas import PackedMattes, shares_of
from retouch.atlas.textures import shrink_pictures
from retouch.run import Run
from retouch.video import Video, release_pages

BLOCK: Final = 8
"""Frames in memory at once, as floats."""


@final
class AtlasSettings(BaseModel):
    """What a decomposition may be tuned by; the defaults suit clips from a phone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: int = Field(default=240, ge=32, description="Long side in pixels that motion is solved at.")
    texture_scale: float = Field(default=0.0, ge=0, le=4, description="Texels a pixel; 0 chooses by size.")
    spacing: float = Field(default=12.0, ge=3, le=40, description="Controls along the frame's long side.")
    stiffness: float = Field(default=0.01, gt=0, le=10, description="How much objects resist bending.")
    ground: float = Field(default=0.6, gt=0, le=10, description="How much the background resists bending.")
    steps: int = Field(default=7, ge=0, le=50, description="Gauss-Newton steps after tracking.")
    smooth: float = Field(default=0.1, ge=0, le=10, description="How much textures resist roughness.")
    charts: int = Field(default=10, ge=1, le=64, description="Most pictures that one layer may get.")
    gain: int = Field(default=6, ge=0, le=16, description="Knots of the gain over a layer; 0 leaves it out.")


@final
@dataclass(frozen=True, eq=False)
class ClipPyramid:
    """The clip and its mattes."""

    video: Video
    mattes: tuple[PackedMattes, ...]
    device: torch.device
    kept: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Shrunk frames and mattes by size, in files, for the size that most of the work is done at."""

    @property
    def layers(self) -> int:
        """Objects and background."""
        return len(self.mattes) + 1

    def stiffness(self, layer: int, settings: AtlasSettings) -> float:
        """Return how much a layer's mapping resists bending."""
        return settings.stiffness if layer < self.layers - 1 else settings.ground

    def keep(self, height: int, width: int, run: Run) -> None:
        """Shrink everything once to a size that will be asked for many times."""
        frames = len(self.video)
        pictures = run.scratch(f"frames-{height}x{width}", (frames, 3, height, width))
        mattes = run.scratch(f"mattes-{height}x{width}", (len(self.mattes), frames, 1, height, width))
        for a, b in frame_blocks(0, frames):
            pictures[a:b] = shrink_pictures(self.video.frames[a:b], height, width)
            for i, matte in enumerate(self.mattes):
                mattes[i, a:b] = shrink_pictures(matte.frames(a, b), height, width)
            release_pages(self.video.frames)
            release_pages(pictures)
            release_pages(mattes)
        self.kept[height, width] = (pictures, mattes)

    def pictures(self, start: int, stop: int, height: int, width: int) -> Float[Tensor, "f 3 h w"]:
        """Return frames, 0 to 1."""
        if (height, width) in self.kept:
            got = np.array(self.kept[height, width][0][start:stop])
            release_pages(self.kept[height, width][0])
        else:
            got = shrink_pictures(self.video.frames[start:stop], height, width)
            release_pages(self.video.frames)
        return torch.tensor(got, device=self.device).float() / 255  # a copy: a file may not be written to

    def shares(self, start: int, stop: int, height: int, width: int) -> list[Float[Tensor, "f 1 h w"]]:
        """Return how much of each pixel each layer makes up."""
        return shares_of([self._alpha(i, start, stop, height, width) for i in range(len(self.mattes))])

    def share(self, layer: int, start: int, stop: int, height: int, width: int) -> Float[Tensor, "f 1 h w"]:
        """Return how much of each pixel one layer makes up."""
        return self.shares(start, stop, height, width)[layer]

    def confident(
        self, layer: int, start: int, stop: int, height: int, width: int
    ) -> Float[Tensor, "f 1 h w"]:
        """Return how far each pixel speaks for one layer alone; edges do not."""
        share = self.share(layer, start, stop, height, width)
        if layer < self.layers - 1:
            return share**4
        return (1 - F.max_pool2d(1 - share, 3, 1, 1)) ** 2

    def _alpha(self, which: int, start: int, stop: int, height: int, width: int) -> Float[Tensor, "f 1 h w"]:
        if (height, width) in self.kept:
            got: UInt8[np.ndarray, "f 1 h w"] = np.array(self.kept[height, width][1][which, start:stop])
            release_pages(self.kept[height, width][1])
        else:
            got = self.mattes[which].frames(start, stop)
            if got.shape[2:] != (height, width):
                got = shrink_pictures(got, height, width)
        return torch.from_numpy(got).to(self.device).float() / 255


def frame_blocks(start: int, stop: int, size: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Yield frame numbers a few at a time."""
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def overlapping_spans(a: int, b: int, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield the index of each span that shares frames with `a` to `b`, and the frames shared."""
    for index, (start, stop) in enumerate(spans):
        first, last = max(a, start), min(b, stop)
        if first < last:
            yield index, first, last
