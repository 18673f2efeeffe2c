"""How near one clip is to another: PSNR, SSIM, their masked forms, and what an edit left bit-exact.

A clip is `uint8 (f, 3, h, w)`, a mask is `bool (f, 1, h, w)` and true where a pixel counts. One pair of
frames is in memory at a time, so a memory-mapped clip may be of any length. Every figure is pooled over
the pixels of the whole clip, never a mean of per-frame decibels: one frame that is exact would lift such
a mean without bound.
"""

from collections.abc import Iterator
from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from retouch.errors import InputError
from retouch.video import FRAMES_AT_ONCE, decibels, release_pages

Frames: TypeAlias = UInt8[np.ndarray, "f 3 h w"]
Other: TypeAlias = UInt8[np.ndarray, "g 3 y x"]
"""A clip that ought to have the size of the first; it is checked, and an error says so."""
Mask: TypeAlias = Bool[np.ndarray, "f 1 h w"]

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(clip: Frames, other: Other, mask: Mask | None = None) -> float:
    """Measure peak signal-to-noise in decibels over the pixels of `mask`, at most `CEILING_DB`."""
    squares, count = 0, 0
    for t, a, b in frame_pairs(clip, other):
        square = (a.astype(np.int32) - b) ** 2
        kept = square if mask is None else square[:, mask[t, 0]]
        squares, count = squares + int(kept.sum(dtype=np.int64)), count + kept.size
    return decibels(squares / _some_pixels(count), peak=255)


def ssim(clip: Frames, other: Other, mask: Mask | None = None) -> float:
    """Measure structural similarity (Wang et al. 2004): Gauss window 11, sigma 1.5, per channel, no padding.

    With a mask, windows *centred* in it are averaged; one that straddles its border also sees the other side.
    """
    edge = SSIM_WINDOW // 2
    total, count = 0.0, 0
    for t, a, b in frame_pairs(clip, other):
        similarity = _ssim_map(_as_floats(a), _as_floats(b))
        kept = similarity if mask is None else similarity[mask[t, 0, edge:-edge, edge:-edge]]
        total, count = total + float(kept.sum()), count + kept.size
    return total / _some_pixels(count)


def changed_pixels(source: Frames, truth: Other) -> Mask:
    """Mark the pixels where the true edit differs from the source at all: the *inside* of edit fidelity."""
    mask = np.empty((len(source), 1, *source.shape[-2:]), dtype=bool)
    for t, a, b in frame_pairs(source, truth):
        mask[t, 0] = (a != b).any(axis=0)
    return mask


def fidelity_inside(result: Frames, truth: Other, mask: Mask) -> float:
    """Measure how well `result` shows the true edit where it should: PSNR to the truth inside `mask`."""
    return psnr(result, truth, mask)


def fidelity_outside(result: Frames, truth: Other, mask: Mask) -> float:
    """Measure how well `result` leaves the rest alone: PSNR against the truth outside `mask`."""
    return psnr(result, truth, ~mask)


def untouched_share(result: Frames, source: Other, touched: Mask) -> float:
    """Count the share of pixels outside `touched` that equal the source to the bit in all three channels."""
    equal, count = 0, 0
    for t, a, b in frame_pairs(result, source):
        same = (a == b).all(axis=0)[~touched[t, 0]]
        equal, count = equal + int(same.sum()), count + same.size
    return equal / _some_pixels(count)


def frame_pairs(clip: Frames, other: Other) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield index and frames `(3, h, w)` of two clips side by side.

    Raises:
        InputError: the clips differ in size or length; nothing is resized or cut in silence.
    """
    if clip.shape != other.shape:
        raise InputError(
            f"the clips differ: {_clip_size(clip)} and {_clip_size(other)}",
            hint="bring both to one size and length first; resizing moves every figure",
        )
    for t, (a, b) in enumerate(zip(frames_of(clip), frames_of(other), strict=True)):
        yield t, a, b


def frames_of(clip: Frames) -> Iterator[np.ndarray]:
    """Yield the frames `(3, h, w)` one by one; those of a memory-mapped clip leave memory again."""
    for t in range(len(clip)):
        yield clip[t]
        if t % FRAMES_AT_ONCE == FRAMES_AT_ONCE - 1:
            release_pages(clip)


def _ssim_map(a: Float[np.ndarray, "h w 3"], b: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "y x 3"]:
    """Return the similarity where the whole window fits."""
    mean_a, mean_b = _gaussian_window(a), _gaussian_window(b)
    var_a, var_b = _gaussian_window(a * a) - mean_a**2, _gaussian_window(b * b) - mean_b**2
    covariance = _gaussian_window(a * b) - mean_a * mean_b
    contrast = (2 * covariance + SSIM_C2) / (var_a + var_b + SSIM_C2)
    luminance = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
    return np.asarray(luminance * contrast)


def _gaussian_window(x: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "y x 3"]:
    edge = SSIM_WINDOW // 2
    if min(x.shape[:2]) < SSIM_WINDOW:
        raise InputError(
            f"frames of {x.shape[1]}x{x.shape[0]} are too small for SSIM",
            hint=f"its window is {SSIM_WINDOW}x{SSIM_WINDOW}; use psnr",
        )
    full = cv2.GaussianBlur(x, (SSIM_WINDOW, SSIM_WINDOW), SSIM_SIGMA)
    return np.asarray(full[edge:-edge, edge:-edge])


def _as_floats(frame: UInt8[np.ndarray, "3 h w"]) -> Float[np.ndarray, "h w 3"]:
    return np.ascontiguousarray(frame.transpose(1, 2, 0), dtype=np.float64)


def _some_pixels(count: int) -> int:
    if not count:
        raise InputError(
            "there is no pixel to measure: the mask excludes them all", hint="measure without a mask"
        )
    return count


def _clip_size(clip: Frames) -> str:
    return f"{clip.shape[-1]}x{clip.shape[-2]} with {len(clip)} frames"
