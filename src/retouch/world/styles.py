"""Styles of the whole picture, applied to the finished frame.

Every style looks at one frame alone and is fixed to the screen: paper grain, hatching, pixel grid and the
wobble of a brush stay where they are while the scene moves beneath, as on one sheet of paper. Nothing is
drawn afresh from frame to frame, so a styled clip does not flicker. Lengths follow the picture's size.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, UInt8

from retouch.world.exact import Plane, clamp_unit, random_uniform, smooth_step, to_bytes

Picture: TypeAlias = Float[np.ndarray, "3 h w"]

_STREAM = 1_000_033


def apply_style(picture: UInt8[np.ndarray, "3 h w"], style: str) -> UInt8[np.ndarray, "3 h w"]:
    """Return the picture in a style of `STYLES`."""
    if style == "none":
        return picture
    if style == "pixel art":
        return _pixel_art(picture)
    return to_bytes(_DRAWN[style](picture.astype(np.float32) * np.float32(1 / 255)))


def _relative_length(picture: Float[np.ndarray, "3 h w"], share: float) -> float:
    """Return a length that is `share` pixels where the shorter side has 64."""
    return share * float(min(picture.shape[1:])) / 64


def _shift_plane(plane: Float[np.ndarray, "*c h w"], down: int, across: int) -> Float[np.ndarray, "*c h w"]:
    """Return the plane moved, its border repeated."""
    h, w = plane.shape[-2:]
    rows = np.clip(np.arange(h) - down, 0, h - 1)
    columns = np.clip(np.arange(w) - across, 0, w - 1)
    moved: Float[np.ndarray, "*c h w"] = plane[..., rows, :][..., columns]
    return moved


def _box_blur(plane: Float[np.ndarray, "*c h w"], radius: int) -> Float[np.ndarray, "*c h w"]:
    """Return a box blur, summed in a fixed order."""
    if radius < 1:
        return plane
    scale = np.float32(1 / (2 * radius + 1))
    for axis in (-2, -1):
        width = [(0, 0)] * plane.ndim
        width[axis] = (radius, radius)
        padded = np.pad(plane, width, mode="edge")
        n = plane.shape[axis]
        take = [slice(None)] * plane.ndim
        total = np.zeros_like(plane)
        for start in range(2 * radius + 1):
            take[axis] = slice(start, start + n)
            total += padded[tuple(take)]
        plane = total * scale
    return plane


def _grey_plane(picture: Picture) -> Plane:
    red, green, blue = picture
    grey: Plane = red * np.float32(0.3) + green * np.float32(0.59) + blue * np.float32(0.11)
    return grey


def _local_step(picture: Float[np.ndarray, "*c h w"], reach: int) -> Float[np.ndarray, "*c h w"]:
    """Return how much a picture changes across every place."""
    dx = _shift_plane(picture, 0, reach) - _shift_plane(picture, 0, -reach)
    dy = _shift_plane(picture, reach, 0) - _shift_plane(picture, -reach, 0)
    length: Float[np.ndarray, "*c h w"] = np.sqrt(dx * dx + dy * dy)
    return length


@lru_cache(maxsize=8)
def _screen_grain(h: int, w: int, cell: float, key: int) -> Plane:
    """Return smooth noise in [0, 1] fixed to the screen, its grains `cell` pixels wide."""
    down, across = int(h / cell) + 3, int(w / cell) + 3
    values = random_uniform(down * across, key, _STREAM).astype(np.float32).reshape(down, across)
    for axis, n in ((0, h), (1, w)):
        place = (np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(cell)
        low = np.floor(place).astype(np.int64)
        share = smooth_step(place - low.astype(np.float32))
        share = share[:, None] if axis == 0 else share
        below, above = np.take(values, low, axis), np.take(values, low + 1, axis)
        values = below + share * (above - below)
    values.setflags(write=False)
    return values


@lru_cache(maxsize=8)
def _hatching_lines(h: int, w: int, period: float, slope: int) -> Plane:
    """Return slanted lines fixed to the screen: 0 on a line, 1 between lines."""
    y, x = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None, :]
    turns = (x + slope * y) / np.float32(period)
    plane: Plane = np.abs(turns - np.floor(turns) - np.float32(0.5)) * 2
    plane.setflags(write=False)
    return plane


def _pencil_style(picture: Picture) -> Picture:
    h, w = picture.shape[1:]
    reach = max(1, round(_relative_length(picture, 0.75)))
    tone = _grey_plane(_box_blur(picture, round(_relative_length(picture, 0.6))))
    colour = _box_blur(picture, round(_relative_length(picture, 0.6)))
    line = clamp_unit(_local_step(_grey_plane(picture), reach) * np.float32(1.5) - np.float32(0.16))
    period = max(3.0, _relative_length(picture, 3.2))
    first, second = _hatching_lines(h, w, period, 1), _hatching_lines(h, w, period, -1)
    hatched: Plane = clamp_unit((np.float32(0.72) - tone) * 2 - first + np.float32(0.35)) * np.float32(0.42)
    hatched = hatched + clamp_unit((np.float32(0.42) - tone) * 2 - second + np.float32(0.2)) * np.float32(
        0.42
    )
    paper = np.float32(0.97) - np.float32(0.07) * _screen_grain(
        h, w, max(1.5, _relative_length(picture, 1.2)), 1
    )
    light = clamp_unit(paper - hatched) * (1 - np.float32(0.85) * line)
    tint = colour - tone
    drawn: Picture = light + tint * np.float32(0.62) * light
    return drawn


def _neon_style(picture: Picture) -> Picture:
    reach = max(1, round(_relative_length(picture, 0.5)))
    strongest = np.maximum(np.maximum(picture[0], picture[1]), picture[2])
    weakest = np.minimum(np.minimum(picture[0], picture[1]), picture[2])
    spread = np.maximum(strongest - weakest, np.float32(0.12))
    vivid = clamp_unit((picture - weakest) / spread * np.float32(0.85) + np.float32(0.15) * strongest)
    steps = _local_step(picture, reach)
    change = np.maximum(np.maximum(steps[0], steps[1]), steps[2])
    line = clamp_unit(change * np.float32(2.2) - np.float32(0.75))
    lit = vivid * line
    glow = _box_blur(
        _box_blur(lit, max(1, round(_relative_length(picture, 1.5)))),
        max(1, round(_relative_length(picture, 2.5))),
    )
    floor = (vivid * np.float32(0.5) + picture * np.float32(0.5)) * np.float32(0.4)
    shining: Picture = floor + lit * np.float32(0.95) + glow * np.float32(1.1)
    return shining


def _pixel_art(picture: UInt8[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "3 h w"]:
    _, h, w = picture.shape
    block = max(2, (min(h, w) + 10) // 21)
    rows, columns = -(-h // block), -(-w // block)
    padded = np.pad(picture, ((0, 0), (0, rows * block - h), (0, columns * block - w)), mode="edge")
    total = np.zeros((3, rows, columns), np.uint32)
    for down in range(block):
        for across in range(block):
            total += padded[:, down::block, across::block]
    mean = total // (block * block)
    mid = (mean[0] + mean[1] + mean[2]) // 3
    vivid = np.clip(mid.astype(np.int32) + (mean.astype(np.int32) - mid.astype(np.int32)) * 5 // 4, 0, 255)
    levels = ((vivid + 25) // 51 * 51).astype(np.uint8)
    return np.ascontiguousarray(levels.repeat(block, 1).repeat(block, 2)[:, :h, :w])


def _watercolour_style(picture: Picture) -> Picture:
    h, w = picture.shape[1:]
    swell = _relative_length(picture, 2.6)
    cell = max(2.0, _relative_length(picture, 7.0))
    y = np.arange(h)[:, None] + (
        (_screen_grain(h, w, cell, 3) - np.float32(0.5)) * np.float32(swell)
    ).round().astype(np.int64)
    x = np.arange(w)[None, :] + (
        (_screen_grain(h, w, cell, 4) - np.float32(0.5)) * np.float32(swell)
    ).round().astype(np.int64)
    wobbled = picture[:, np.clip(y, 0, h - 1), np.clip(x, 0, w - 1)]
    radius = max(1, round(_relative_length(picture, 0.8)))
    soft = _box_blur(wobbled, radius)
    pooled = _box_blur(soft, max(1, round(_relative_length(picture, 1.6))))
    rim = clamp_unit(np.abs(_grey_plane(soft) - _grey_plane(pooled)) * 2)
    wash = np.float32(0.55) + np.float32(0.5) * _screen_grain(
        h, w, max(3.0, _relative_length(picture, 10.0)), 5
    )
    wash = wash + np.float32(0.14) * _screen_grain(h, w, max(1.5, _relative_length(picture, 1.6)), 6)
    painted = 1 - (1 - soft) * (wash * np.float32(0.72) + rim * np.float32(0.5))
    return painted + _unpainted_border(h, w) * (np.float32(0.985) - painted)


@lru_cache(maxsize=8)
def _unpainted_border(h: int, w: int) -> Plane:
    """1 on the ragged border of the sheet that the brush left white, 0 inside."""
    m = np.float32(min(h, w))
    y, x = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)[None, :]
    nearest = np.minimum(np.minimum(y, h - 1 - y), np.minimum(x, w - 1 - x)) / m
    ragged = _screen_grain(h, w, max(2.0, float(m) / 9), 7) * np.float32(0.09)
    plane = clamp_unit((np.float32(0.005) + ragged - nearest) * np.float32(40) + np.float32(0.5))
    plane.setflags(write=False)
    return plane


_DRAWN: Mapping[str, Callable[[Picture], Picture]] = MappingProxyType(
    {"pencil sketch": _pencil_style, "neon": _neon_style, "watercolour": _watercolour_style}
)
