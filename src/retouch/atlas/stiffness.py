"""As stiff as the pictures allow: of mappings that explain a chart about equally well, the stiffest is kept.

How well a clip is explained hides drift: where a surface is flat or bare, paint can slide by pixels at no
loss. So each chart is fitted again with less freedom, and stays so unless that explains its frames worse:
objects with a mapping that hardly bends, the background with a homography a frame, and with nothing at all
where the camera stands still. An object stays stiff at a larger loss: of what its soft fit explains better,
much is soft edges and grain, and it slides.
"""

from dataclasses import replace
from typing import Final

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from retouch.atlas.atlas import Chart
from retouch.atlas.mapping import ChartMapping
from retouch.atlas.pyramid import ClipPyramid, frame_blocks
from retouch.atlas.textures import sample_texture
from retouch.tracking.flow import pixel_grid
from retouch.video import decibels

STIFF: Final = 1.0
"""Resistance to bending of the stiffer fit."""
LOSS, OBJECT_LOSS = 0.5, 1.0
"""Decibels by which a stiffer mapping may explain its frames less: the background's, and an object's."""
HOMOGRAPHY_STEPS: Final = 6
TUKEY: Final = 4.7
"""Usual errors beyond which a pixel says nothing of where the camera looks."""
STANDS_STILL: Final = 0.35 / 512
"""Share of the long side by which a corner may seem to move while the camera stands still."""
LOOKED_AT: Final = 9
"""Frames that are asked whether the camera stands still."""


def stiffer(chart: Chart, other: Chart, pyramid: ClipPyramid, size: tuple[int, int]) -> Chart:
    """Return the second of two charts, the stiffer one, unless it explains its frames worse."""
    loss = LOSS if chart.layer == pyramid.layers - 1 else OBJECT_LOSS
    return other if explained(other, pyramid, size) > explained(chart, pyramid, size) - loss else chart


def explained(chart: Chart, pyramid: ClipPyramid, size: tuple[int, int]) -> float:
    """Return how well a chart's texture explains what its frames show of it, in dB."""
    mapping, total, count = chart.mapping.at_size(*size), 0.0, 0.0
    for a, b in frame_blocks(chart.start, chart.stop):
        part = mapping.part(a - chart.start, b - chart.start)
        window = part.window()
        weight = window.cut(pyramid.confident(chart.layer, a, b, *size))
        off = window.cut(pyramid.pictures(a, b, *size)) - sample_texture(chart.texture, part.uv(window))
        total += float((weight * off.square().mean(1, keepdim=True)).sum())
        count += float(weight.sum())
    return decibels(total / max(count, 1e-9), peak=1)


def as_homographies(chart: Chart, pyramid: ClipPyramid, size: tuple[int, int]) -> Chart:
    """Return a chart whose frames lie in its texture by a homography each, refined on grey values."""
    mapping = chart.mapping.at_size(*size)
    texture = np.ascontiguousarray(chart.texture.mean(0).cpu().numpy() * 255, np.float32)
    seen = (chart.seen[0].cpu().numpy() > 0.2).astype(np.float32)
    found = []
    for a, b in frame_blocks(chart.start, chart.stop):
        pictures = pyramid.pictures(a, b, *size).mean(1).cpu().numpy() * 255
        weights = pyramid.confident(chart.layer, a, b, *size)[:, 0].cpu().numpy()
        for t, picture, weight in zip(range(a, b), pictures, weights, strict=True):
            start = plane_of(mapping, t - chart.start, weight)
            found.append(refine_homography(picture, texture, start, weight, seen))
    return _with_matrices(chart, mapping, torch.from_numpy(np.stack(found)))


def plane_of(
    mapping: ChartMapping, index: int, weight: Float32[np.ndarray, "h w"]
) -> Float64[np.ndarray, "3 3"]:
    """Return the homography nearest to a frame's mapping, over the pixels that have weight."""
    y, x = np.nonzero(weight > 0.5)
    own = mapping.matrices[index].cpu().double().numpy()
    if len(x) < 24:
        return own
    some = slice(None, None, max(1, len(x) // 2000))
    points = np.stack([x, y], 1)[some].astype(np.float32)
    places = mapping.uv_at(index, torch.from_numpy(points).to(mapping.matrices)).cpu().numpy()
    matrix, _ = cv2.findHomography(points, places, 0)
    return own if matrix is None else np.asarray(matrix, np.float64)


def refine_homography(
    picture: Float32[np.ndarray, "h w"],
    target: Float32[np.ndarray, "v u"],
    matrix: Float64[np.ndarray, "3 3"],
    weight: Float32[np.ndarray, "h w"],
    known: Float32[np.ndarray, "v u"],
    steps: int = HOMOGRAPHY_STEPS,
) -> Float64[np.ndarray, "3 3"]:
    """Improve the homography from a picture into a target by Gauss-Newton on grey values, 0 to 255.

    Outliers are cut off by Tukey's weights, and the light may have changed by one factor. A step that makes
    the picture less alike ends it.
    """
    height, width = picture.shape
    centre, unit = np.array([width - 1, height - 1]) / 2, max(height, width) / 2
    # Parameters in units of half the picture about its middle, or the normal matrix is nearly singular.
    plain = np.array([[unit, 0, centre[0]], [0, unit, centre[1]], [0, 0, 1.0]])
    xy = ((pixel_grid(height, width) - centre) / unit).astype(np.float32)
    slopes = _grey_slopes(picture)
    best, least = matrix, np.inf
    now = matrix @ plain
    for _ in range(steps + 1):
        lifted = np.dstack([xy, np.ones(xy.shape[:2], np.float32)]) @ now.T.astype(np.float32)
        places = np.ascontiguousarray(lifted[..., :2] / lifted[..., 2:])
        shown = cv2.remap(target, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        counted = weight * cv2.remap(known, places, None, cv2.INTER_NEAREST, borderValue=0.0)
        use = counted > 0.25
        if use.sum() < 64:
            return best
        gain = float((shown * picture)[use].sum() / max((shown * shown)[use].sum(), 1e-6))
        off = picture - gain * shown
        scale = TUKEY * 1.4826 * max(float(np.median(np.abs(off[use]))), 0.3)
        tukey = np.clip(1 - np.square(off / scale), 0, None) ** 2 * counted
        error = float((np.minimum(np.square(off), scale**2) * counted).sum() / counted.sum())
        if error >= least * (1 - 1e-4):
            return best
        best, least = now @ np.linalg.inv(plain), error
        # The picture's own slopes say how it changes when its pixels are taken from elsewhere (inverse step).
        inverse = _warp_slopes(slopes, xy, unit)[use] * np.sqrt(tukey[use])[:, None]
        step = np.linalg.lstsq(inverse.T @ inverse, inverse.T @ (off[use] * np.sqrt(tukey[use])), rcond=1e-9)[
            0
        ]
        now = now @ np.linalg.inv(np.eye(3) - np.append(step, 0).reshape(3, 3))
        now /= now[2, 2]
    return best


def _grey_slopes(picture: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w 2"]:
    """Return how a picture changes along x and y, a pixel."""
    along = [cv2.Sobel(picture, cv2.CV_32F, *axis, ksize=3, scale=1 / 8) for axis in ((1, 0), (0, 1))]
    return np.dstack(along)


def _warp_slopes(
    slopes: Float32[np.ndarray, "h w 2"], xy: Float32[np.ndarray, "h w 2"], unit: float
) -> Float64[np.ndarray, "h w 8"]:
    """Return how each pixel's grey changes with the eight free entries of a homography near the identity."""
    (gx, gy), (x, y) = np.moveaxis(slopes.astype(np.float64) * unit, 2, 0), np.moveaxis(xy, 2, 0)
    turn = -(gx * x + gy * y)
    return np.stack([gx * x, gx * y, gx, gy * x, gy * y, gy, turn * x, turn * y], -1)


def camera_stands_still(pyramid: ClipPyramid, chart: Chart, size: tuple[int, int]) -> bool:
    """Return whether the background of a chart's frames lies where it lies in the reference frame.

    Neighbours differ too little to tell a camera that creeps from one that stands; so far frames are asked.
    """

    def shot(t: int) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
        grey = pyramid.pictures(t, t + 1, *size)[0].mean(0).cpu().numpy() * 255
        return grey, pyramid.confident(chart.layer, t, t + 1, *size)[0, 0].cpu().numpy()

    target, known = shot(chart.reference)
    corners = np.array([[[0, 0], [size[1] - 1, 0], [0, size[0] - 1], [size[1] - 1, size[0] - 1]]], np.float64)
    away = []
    for t in np.linspace(chart.start, chart.stop - 1, LOOKED_AT).round().astype(int):
        picture, weight = shot(int(t))
        matrix = refine_homography(picture, target, np.eye(3), weight, known)
        away.append(np.linalg.norm(cv2.perspectiveTransform(corners, matrix) - corners, axis=2).max())
    return bool(np.percentile(away, 70) < STANDS_STILL * max(size))


def as_still(chart: Chart) -> Chart:
    """Return a chart whose frames all lie in its texture as the reference frame does."""
    mapping = chart.mapping
    own = mapping.matrices[chart.reference - chart.start]
    return _with_matrices(chart, mapping, own.expand(len(mapping), 3, 3))


def _with_matrices(chart: Chart, mapping: ChartMapping, matrices: Float[Tensor, "f 3 3"]) -> Chart:
    """Return a chart with matrices for a mapping's size of frames, and nothing bent."""
    flat = replace(
        mapping,
        matrices=matrices.to(mapping.matrices).contiguous(),
        controls=torch.zeros_like(mapping.controls),
    )
    return replace(chart, mapping=flat.at_size(chart.mapping.height, chart.mapping.width))
