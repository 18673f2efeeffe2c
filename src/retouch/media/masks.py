"""Masks: where an edit may happen. White (255) is edited, black (0) is kept; a picture of bytes a frame."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from retouch.errors import ParamsError, VideoError
from retouch.media.opening import pictures_at
from retouch.media.pictures import is_picture, read_picture
from retouch.media.reading import read
from retouch.video import FRAMES_AT_ONCE, Video, release_pages

# Above this a pixel counts as selected where only yes or no will do.
HALF = 128


def read_masks(path: Path | str, like: Video) -> UInt8[np.ndarray, "f 1 h w"]:
    """Reads the masks for a clip: a video, a folder of pictures or a pattern, or one picture for all frames.

    White is edited. Where a picture has alpha that varies (a drawing on clear ground), that counts; else
    brightness does. What comes may be read-only.

    Raises:
        VideoError: if their number or their size is not that of the frames, or they cannot be read.
    """
    path = Path(path)
    if _is_single(path):
        return np.broadcast_to(_single_mask(path, like)[None], (len(like), 1, like.height, like.width))
    video = _read_clip(path, like)
    masks = np.stack(list(_each_selected(video)))
    return masks if len(masks) == len(like) else np.broadcast_to(masks, (len(like), *masks.shape[1:]))


def each_mask(
    path: Path | str, like: Video, *, scratch: Path | None = None
) -> Iterator[UInt8[np.ndarray, "1 h w"]]:
    """Gives what `read_masks` does one frame at a time, for long clips; frames lie in the folder `scratch`.

    Raises:
        VideoError: if their number or their size is not that of the frames, or they cannot be read.
    """
    path = Path(path)
    if _is_single(path):
        yield from itertools.repeat(_single_mask(path, like), len(like))
        return
    video = _read_clip(path, like, scratch)
    for _ in range(len(like) // len(video)):
        yield from _each_selected(video)


def _is_single(path: Path) -> bool:
    return not pictures_at(path) and is_picture(path)


def _single_mask(path: Path, like: Video) -> UInt8[np.ndarray, "1 h w"]:
    picture = read_picture(path)
    check_fits(path, (1, picture.shape[0], picture.shape[1]), (len(like), like.height, like.width))
    return _read_selected(*_read_planes(picture))


def _read_clip(path: Path, like: Video, scratch: Path | None = None) -> Video:
    """A clip of masks, one for each frame or a single one."""
    video = read(path, scratch=scratch)
    first, frames = like.origin.first, like.origin.frames
    if len(video) == frames > len(like):  # masks of the whole clip that `like` is a part of
        video = video[first : first + len(like)]
    check_fits(path, (len(video), video.height, video.width), (len(like), like.height, like.width))
    return video


def _each_selected(video: Video) -> Iterator[UInt8[np.ndarray, "1 h w"]]:
    for i in range(len(video)):
        yield _read_selected(video.frames[i], None if video.alpha is None else video.alpha[i])
        if i % FRAMES_AT_ONCE == 0:
            release_pages(video.frames)


def grow(masks: UInt8[np.ndarray, "f 1 h w"], pixels: int) -> UInt8[np.ndarray, "f 1 h w"]:
    """Lets masks reach `pixels` further on all sides, in a circle; below 0 they shrink."""
    if pixels < 0:
        return shrink(masks, -pixels)
    return _each_mask(masks, lambda mask: cv2.dilate(mask, _disc_kernel(pixels))) if pixels else masks


def shrink(masks: UInt8[np.ndarray, "f 1 h w"], pixels: int) -> UInt8[np.ndarray, "f 1 h w"]:
    """Draws masks back by `pixels` on all sides; what lies behind the frame's border counts as selected."""
    if pixels < 0:
        return grow(masks, -pixels)
    return _each_mask(masks, lambda mask: cv2.erode(mask, _disc_kernel(pixels))) if pixels else masks


def feather(masks: UInt8[np.ndarray, "f 1 h w"], pixels: float) -> UInt8[np.ndarray, "f 1 h w"]:
    """Soften the masks' borders over `pixels`, inside them: what is black stays black.

    Raises:
        ParamsError: if `pixels` is below 0.
    """
    if pixels < 0:
        raise ParamsError(f"feather is {pixels}; it must be at least 0", hint="0 leaves hard borders.")
    return np.asarray(np.rint(soft_edge(masks, pixels) * 255), np.uint8)


def soft_edge(masks: UInt8[np.ndarray, "f 1 h w"], feather: float) -> Float32[np.ndarray, "f 1 h w"]:
    """Return masks as weights that fall to 0 within `feather` pixels inside their borders.

    The frame's own border is none: what is selected up to it stays so.
    """
    weights = masks.astype(np.float32) / 255
    if feather >= 1:
        for mask, weight in zip(masks[:, 0], weights[:, 0], strict=True):
            inside = cv2.distanceTransform((mask > 0).astype(np.uint8), cv2.DIST_L2, 5)
            weight *= np.minimum(inside / np.float32(feather), 1)
    return weights


def check_fits(path: Path, masks: tuple[int, int, int], clip: tuple[int, int, int]) -> None:
    """Refuse masks of another number than one or one a frame, or of another size than the clip's.

    Both are given as number, height and width.

    Raises:
        VideoError: says what the masks are and what the clip is.
    """
    if masks[1:] != clip[1:]:
        raise VideoError(
            f"the mask {path} is {masks[2]}x{masks[1]}; the clip is {clip[2]}x{clip[1]}",
            hint="Bring the mask to the size of the clip.",
        )
    if masks[0] not in (1, clip[0]):
        raise VideoError(
            f"{path} has {masks[0]} masks; the clip has {clip[0]} frames",
            hint="Give one mask for each frame, or a single one for all.",
        )


def _read_planes(picture: UInt8[np.ndarray, "h w channels"]) -> tuple[np.ndarray, np.ndarray | None]:
    planes = np.moveaxis(picture, -1, 0)
    return planes[:3], (planes[3:] if len(planes) == 4 else None)


def _read_selected(
    rgb: UInt8[np.ndarray, "3 h w"], alpha: UInt8[np.ndarray, "1 h w"] | None
) -> UInt8[np.ndarray, "1 h w"]:
    if alpha is not None and alpha.min() < alpha.max():
        return alpha
    # Grey stays to the byte: its three channels are one.
    if np.array_equal(rgb[0], rgb[1]) and np.array_equal(rgb[0], rgb[2]):
        return rgb[:1]
    bright = rgb[0] * np.float32(0.2126) + rgb[1] * np.float32(0.7152) + rgb[2] * np.float32(0.0722)
    mask: np.ndarray = np.rint(bright).astype(np.uint8)[None]
    return mask


def _disc_kernel(pixels: int) -> np.ndarray:
    offsets = np.arange(-pixels, pixels + 1)
    disc: np.ndarray = (offsets[:, None] ** 2 + offsets[None] ** 2 <= (pixels + 0.5) ** 2).astype(np.uint8)
    return disc


def _each_mask(masks: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    changed = np.empty(masks.shape, np.uint8)
    for i in range(len(masks)):
        changed[i, 0] = change(np.ascontiguousarray(masks[i, 0]))
    return changed
