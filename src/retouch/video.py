"""The clip as everybody passes it on: frames at rest in 8 bit, their rate, and what their file said.

Files are read and written in `retouch.media`; nothing here opens one. Nobody but `Video.pixels` and
`Video.like` turns bytes into floats or back.
"""

import ctypes
import hashlib
import math
import mmap
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from retouch.errors import Diverged, VideoError

# Frames taken at one time where a whole clip is walked through: enough to be fast, few enough to be flat.
FRAMES_AT_ONCE = 32
CEILING_DB = 100.0
"""What PSNR says of equal pixels, so that a mean over clips stays finite."""
# Frames turned into numbers or back at one time: blocks of some megabytes leave no holes worth speaking of.
_CONVERTED_AT_ONCE = 2
# glibc keeps freed blocks of tens of megabytes between living ones; walking through a long clip then takes
# more memory the longer it is, although nothing holds it. Where there is this call, it hands them back.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None


@final
@dataclass(frozen=True)
class Sound:
    """An audio stream as the container describes it; its packets stay in the file until they are copied."""

    index: int
    codec: str
    rate: int
    channels: int
    layout: str
    language: str = ""


@final
@dataclass(frozen=True)
class Origin:
    """What the file said about a clip. `Origin()` is a clip that was made here and never came from a file.

    `timestamps` are in units of `time_base`, one a frame; `end` is where the last frame stops being shown.
    Frames are held upright: `rotation` is how far, in degrees clockwise, the file asked to turn them, and it
    has been done. `frames` is how many the file holds, of which a slice has fewer, the first of them being
    number `first`. Colour tags are as found;
    `guessed_matrix` is what was taken, by the height, where the file names no matrix.
    """

    path: Path | None = None
    content: str = ""
    container: str = ""
    codec: str = ""
    pixel_format: str = ""
    frames: int = 0
    first: int = 0
    time_base: Fraction = Fraction(0)
    timestamps: tuple[int, ...] = ()
    end: int = 0
    variable_rate: bool = False
    rotation: int = 0
    sample_aspect: Fraction = Fraction(1)
    bits: int = 8
    primaries: str = ""
    transfer: str = ""
    matrix: str = ""
    full_range: bool | None = None
    guessed_matrix: str = ""
    sounds: tuple[Sound, ...] = ()
    remarks: tuple[str, ...] = field(default=(), compare=False)

    @property
    def is_whole(self) -> bool:
        """Whether these timestamps are all that the file holds, first frame to last."""
        return bool(self.timestamps) and len(self.timestamps) == self.frames

    def between(self, start: int, stop: int) -> "Origin":
        """Return the origin of frames `start` to `stop`, which must lie within the clip."""
        if not self.timestamps:
            return self
        end = self.timestamps[stop] if stop < len(self.timestamps) else self.end
        first = self.first + start
        return replace(self, first=first, timestamps=self.timestamps[start:stop], end=end)

    def untimed(self) -> "Origin":
        """Return the same origin for frames that are not, one by one, the frames of the file."""
        return replace(self, timestamps=(), end=0, variable_rate=False)


@final
@dataclass(frozen=True, eq=False)
class Video:
    """A clip. Slices are views, so a clip in a memory-mapped file is never loaded whole by slicing it.

    Raises:
        VideoError: if the frames are not `uint8 (f, 3, h, w)`, if alpha or timestamps do not belong to them,
            or if the rate is not above 0.
    """

    frames: UInt8[np.ndarray, "f 3 h w"]
    fps: Fraction
    alpha: UInt8[np.ndarray, "f 1 h w"] | None = None
    origin: Origin = Origin()

    def __post_init__(self) -> None:
        shape, kind = self.frames.shape, self.frames.dtype
        if kind != np.uint8 or len(shape) != 4 or shape[1] != 3 or 0 in shape:
            raise VideoError(
                f"frames are {kind} {shape}; they must be uint8 (f, 3, h, w) with no empty axis",
                hint="Bring pictures as bytes, colour before height; `Video.like` takes floats.",
            )
        fits = (shape[0], 1, *shape[2:])
        if self.alpha is not None and (self.alpha.dtype != np.uint8 or self.alpha.shape != fits):
            raise VideoError(
                f"alpha is {self.alpha.dtype} {self.alpha.shape}; it must be uint8 {fits}",
                hint="Give one alpha picture for each frame, of the same size.",
            )
        if self.fps <= 0:
            raise VideoError(
                f"fps is {self.fps}; it must be above 0", hint="Say how many frames a second has."
            )
        if self.origin.timestamps and len(self.origin.timestamps) != shape[0]:
            raise VideoError(
                f"{len(self.origin.timestamps)} timestamps for {shape[0]} frames",
                hint="Give one timestamp for each frame, or `origin.untimed()`.",
            )

    def __len__(self) -> int:
        return int(self.frames.shape[0])

    def __getitem__(self, part: slice) -> "Video":
        if not isinstance(part, slice):
            raise TypeError(f"a video is cut with a slice: video[{part}:{part}+1]")
        start, stop, step = part.indices(len(self))
        if step != 1 or stop <= start:
            raise VideoError(
                f"the cut {part.start}:{part.stop}:{part.step} of {len(self)} frames is empty or in pieces",
                hint="Cut frames that follow each other: video[a:b] with a < b.",
            )
        alpha = None if self.alpha is None else self.alpha[start:stop]
        return Video(self.frames[start:stop], self.fps, alpha, self.origin.between(start, stop))

    def __repr__(self) -> str:
        return f"Video({len(self)} frames, {self.width}x{self.height}, {self.fps} fps)"

    @property
    def height(self) -> int:
        """Rows of a frame."""
        return int(self.frames.shape[2])

    @property
    def width(self) -> int:
        """Columns of a frame."""
        return int(self.frames.shape[3])

    def named_frames(self, numbers: Sequence[int]) -> str:
        """Return frames as a sentence names them, numbered as in the file: `frames 3 to 5 and 9`."""
        runs: list[list[int]] = []
        for number in sorted(n + self.origin.first for n in numbers):
            if runs and number <= runs[-1][1] + 1:
                runs[-1][1] = number
            else:
                runs.append([number, number])
        named = [str(a) if a == b else f"{a} to {b}" for a, b in runs]
        listed = " and ".join(filter(None, [", ".join(named[:-1]), *named[-1:]]))
        return f"frame{'s' * (len(set(numbers)) > 1)} {listed}"

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame to the end of the last, by the timestamps where there are any."""
        if self.origin.timestamps:
            return (self.origin.end - self.origin.timestamps[0]) * self.origin.time_base
        return len(self) / self.fps

    @cached_property
    def digest(self) -> str:
        """Hash of what is seen: size, rate, frames and alpha; the same for the same clip from two files."""
        seen = hashlib.sha256(f"{self.frames.shape} {self.fps} {self.alpha is not None}".encode())
        for pictures in [self.frames] if self.alpha is None else [self.frames, self.alpha]:
            for part in chunks(len(self)):
                seen.update(np.ascontiguousarray(pictures[part]).data)
                release_pages(pictures)
        return seen.hexdigest()

    @property
    def identity(self) -> str:
        """What `retouch.identity` knows a clip by: its digest."""
        return self.digest

    def chunks(self, size: int = FRAMES_AT_ONCE) -> Iterator[tuple[slice, "Video"]]:
        """Yield the clip piece by piece, with the frames' numbers as a slice.

        A piece of a memory-mapped clip leaves memory when the next one is asked for.
        """
        for part in chunks(len(self), size):
            yield part, self[part]
            release_pages(self.frames)
            release_pages(self.alpha)
            trim_memory()

    def pixels(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "f 3 h w"]:
        """Return the frames as numbers in [-1, 1]."""
        pixels = torch.empty(self.frames.shape, dtype=dtype, device=device)
        for start in range(0, len(self), _CONVERTED_AT_ONCE):
            part = torch.tensor(self.frames[start : start + _CONVERTED_AT_ONCE], device=device)
            pixels[start : start + len(part)] = part.to(torch.float32).div_(127.5).sub_(1.0)
        return pixels

    def like(self, pixels: Float[Tensor, "g 3 y x"] | UInt8[np.ndarray, "g 3 y x"]) -> "Video":
        """Give other pictures the rate and origin of this clip: numbers in [-1, 1], or bytes as they are.

        Timestamps stay if there are as many pictures as frames; so does alpha, brought to the pictures' size.

        Raises:
            Diverged: if a number is not finite.
        """
        frames = pixels if isinstance(pixels, np.ndarray) else _to_bytes(pixels)
        if len(frames) != len(self):
            return Video(frames, self.fps, None, self.origin.untimed())
        alpha = self.alpha
        if alpha is not None and alpha.shape[2:] != frames.shape[2:]:
            alpha = _resize_alpha(alpha, int(frames.shape[2]), int(frames.shape[3]))
        return Video(frames, self.fps, alpha, self.origin)


def chunks(frames: int, size: int = FRAMES_AT_ONCE) -> list[slice]:
    """Return slices of at most `size` that cover a clip, so that it is never whole in memory."""
    return [slice(span.start, span.stop) for span in spans(frames, size, 0)]


def spans(frames: int, size: int, overlap: int) -> list[range]:
    """Lay windows of at most `size` over `frames`: as few as can be, equally long within one frame.

    Neighbours share exactly `overlap` frames; with an overlap of 0 every frame is in one window.

    >>> spans(10, 6, 2)
    [range(0, 6), range(4, 10)]

    Raises:
        VideoError: if `size` is below 1, or `overlap` not from 0 to `size - 1`.
    """
    if size < 1 or not 0 <= overlap < size:
        raise VideoError(
            f"windows of {size} frames that share {overlap} cannot be laid",
            hint="Take a size of 1 or more and an overlap from 0 to size - 1.",
        )
    if frames <= size:
        return [range(frames)] if frames > 0 else []
    count = -((overlap - frames) // (size - overlap))
    shown = frames + (count - 1) * overlap
    ends = [0, *(shown * (i + 1) // count - i * overlap for i in range(count))]
    return [range(max(0, ends[i] - overlap), ends[i + 1]) for i in range(count)]


def decibels(error: float, peak: float) -> float:
    """Return a mean squared error as PSNR below `peak`, at most `CEILING_DB`."""
    return CEILING_DB if error <= 0 else min(CEILING_DB, 10 * math.log10(peak**2 / error))


def release_pages(pictures: np.ndarray | None) -> None:
    """Tell the system that a memory-mapped array may leave memory; its pages come back when read again.

    Other arrays, and mappings whose changes live in memory only (mode `c`), are left alone.
    """
    if not isinstance(pictures, np.memmap) or pictures.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    below: object = pictures
    while isinstance(below, np.ndarray):
        below = below.base
    if isinstance(below, mmap.mmap):
        below.madvise(mmap.MADV_DONTNEED)


def trim_memory() -> None:
    """Give the system back what was freed: the pieces of one frame after another leave gaps otherwise."""
    if _TRIM is not None:
        _TRIM(0)


def _to_bytes(pixels: Float[Tensor, "f 3 h w"]) -> UInt8[np.ndarray, "f 3 h w"]:
    frames = _own_pages(tuple(pixels.shape))
    for start in range(0, len(frames), _CONVERTED_AT_ONCE):
        part = pixels[start : start + _CONVERTED_AT_ONCE].detach().to("cpu", torch.float32)
        if not bool(torch.isfinite(part).all()):
            raise Diverged(
                f"pixels of frames {start} to {start + len(part) - 1} are not all finite numbers",
                hint="Try dtype float32, or a lower guidance.",
            )
        frames[start : start + len(part)] = (
            ((part + 1.0) * 127.5).round_().clamp_(0, 255).to(torch.uint8).numpy()
        )
    return frames


def _own_pages(shape: tuple[int, ...]) -> UInt8[np.ndarray, "f 3 h w"]:
    """Return bytes in a mapping of their own; in the heap they would leave a hole."""
    size = int(np.prod(shape))
    if sys.platform == "win32" or size == 0:
        return np.empty(shape, np.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.uint8).reshape(shape)


def _resize_alpha(
    alpha: UInt8[np.ndarray, "f 1 h w"], height: int, width: int
) -> UInt8[np.ndarray, "f 1 y x"]:
    resized = np.empty((len(alpha), 1, height, width), np.uint8)
    for i in range(len(alpha)):
        picture = torch.tensor(alpha[i : i + 1], dtype=torch.float32)
        scaled = torch.nn.functional.interpolate(picture, (height, width), mode="bilinear", antialias=True)
        resized[i] = scaled[0].round_().clamp_(0, 255).to(torch.uint8).numpy()
    return resized
