from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tests.unit.atlas.conftest import Painted, cloth

from retouch.atlas.atlas import Atlas, PackedMattes, pack_matte
from retouch.atlas.decompose import deep_inside, refine_stages
from retouch.atlas.pyramid import AtlasSettings, ClipPyramid
from retouch.atlas.stiffness import OBJECT_LOSS, explained, refine_homography, stiffer
from retouch.compute import Compute
from retouch.run import Run
from retouch.video import Video

FAR = 0.02
"""Pixels of a corner: a hundredth of a pixel is what grey values of 8 bits allow."""


def seen_through(picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What a camera sees of a picture, if the matrix takes its pixels into the picture."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpPerspective(picture, matrix, size[::-1], flags=flags))


def corner_error(found: np.ndarray, true: np.ndarray, size: tuple[int, int]) -> float:
    corners = np.array([[[0, 0], [size[1], 0], [0, size[0]], [size[1], size[0]]]], np.float64)
    pair = (cv2.perspectiveTransform(corners, m) for m in (found, true))
    return float(np.linalg.norm(np.subtract(*pair), axis=2).max())


@pytest.mark.parametrize("light", [1.0, 0.8])
def test_a_homography_is_found_to_a_hundredth_of_a_pixel_in_other_light(light: float) -> None:
    wall = (cloth(5, 160, 220).mean(2) * 255).astype(np.float32)
    true = np.array([[1.04, 0.03, 20], [-0.02, 0.97, 25], [1e-4, -5e-5, 1]])
    picture = light * seen_through(wall, true, (96, 128))
    begun = true @ np.array([[1, 0, 1.2], [0, 1, -0.9], [0, 0, 1.0]])
    found = refine_homography(picture, wall, begun, np.ones_like(picture), np.ones_like(wall), 12)
    assert corner_error(begun, true, (96, 128)) > 1
    assert corner_error(found, true, (96, 128)) < FAR


def test_what_moves_otherwise_does_not_move_the_homography() -> None:
    wall = (cloth(5, 160, 220).mean(2) * 255).astype(np.float32)
    true = np.array([[1.0, 0.02, 30], [-0.02, 1.0, 20], [0, 0, 1.0]])
    picture = seen_through(wall, true, (96, 128))
    picture[30:60, 40:80] = (cloth(9, 30, 40).mean(2) * 255).astype(np.float32)
    begun = true @ np.array([[1, 0, 0.7], [0, 1, 0.5], [0, 0, 1.0]])
    found = refine_homography(picture, wall, begun, np.ones_like(picture), np.ones_like(wall), 12)
    assert corner_error(found, true, (96, 128)) < 5 * FAR


def test_a_picture_that_shows_nothing_known_leaves_the_matrix() -> None:
    wall = np.full((40, 60), 100, np.float32)
    begun = np.array([[1, 0, 500.0], [0, 1, 0], [0, 0, 1]])
    assert (refine_homography(wall, wall, begun, np.ones_like(wall), np.ones_like(wall)) == begun).all()


def fitted(video: Video, mattes: tuple[PackedMattes, ...], folder: Path) -> Atlas:
    run = Run.alone(folder, compute=Compute(device="cpu"))
    settings = AtlasSettings(steps=4)
    return next(
        a
        for a in refine_stages(video, mattes, ("object", "background"), settings, run=run)
        if a.stage == "pixels"
    )


def locked(frames: int = 8) -> tuple[Video, tuple[PackedMattes, ...]]:
    """A disc that walks before a wall, under a camera that stands still; the film is grainy."""
    size, grain = (72, 120), np.random.default_rng(1)
    wall, coat = cloth(4, *size), cloth(8, 60, 60)
    shots, masks = [], []
    y, x = np.mgrid[: size[0], : size[1]]
    for t in range(frames):
        away = np.hypot(x - 30 - 6 * t, y - 36)
        alpha = np.clip(16.5 - away, 0, 1)
        place = np.stack([x - 6 * t, y - 6], -1).astype(np.float32)
        front = cv2.remap(
            coat.astype(np.float32), place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        shot = wall + alpha[..., None] * (front - wall)
        shots.append(np.clip(shot * 255 + grain.normal(0, 1.5, shot.shape), 0, 255).round().astype(np.uint8))
        masks.append(pack_matte((alpha * 255).round().astype(np.uint8)))
    video = Video(np.ascontiguousarray(np.stack(shots).transpose(0, 3, 1, 2)), Fraction(12))
    return video, (PackedMattes.pack(masks, *size),)


def test_under_a_camera_that_stands_still_the_background_lies_still(tmp_path: Path) -> None:
    atlas = fitted(*locked(), tmp_path)
    (ground,) = (chart for chart in atlas.charts if chart.layer == 1)
    assert float(ground.mapping.controls.abs().max()) == 0
    assert (ground.mapping.matrices == ground.mapping.matrices[0]).all()


def test_under_a_camera_that_pans_the_background_is_a_homography_a_frame(
    drawn: Painted, mattes: tuple[PackedMattes, ...], tmp_path: Path
) -> None:
    atlas = fitted(drawn.video, mattes, tmp_path)
    (ground,) = (chart for chart in atlas.charts if chart.layer == 1)
    assert float(ground.mapping.controls.abs().max()) == 0
    # True: the ground's own coordinates, from one frame to another.
    here = ground.reference
    for t in (ground.start, ground.stop - 1):
        points = torch.tensor([[5.0, 5], [110, 8], [8, 64], [112, 66]])
        uv = ground.mapping.uv_at(t - ground.start, points)
        found = ground.mapping.invert(here - ground.start, uv)[0].numpy()
        x, y = points.long().T
        wanted = drawn.back[t][:, y, x].T
        px, py = np.ascontiguousarray(found.T)
        truth = drawn.back[here].astype(np.float32)
        known = np.stack([cv2.remap(c, px[None], py[None], cv2.INTER_LINEAR)[0] for c in truth], 1)
        inside = (found > 1).all(1) & (found < [118, 70]).all(1)
        assert np.abs(known - wanted)[inside].max() < 0.15


def test_a_stiffer_chart_is_kept_only_where_it_explains_as_much(atlas: Atlas, clip: Video) -> None:
    pyramid = ClipPyramid(clip, atlas.mattes, torch.device("cpu"))
    size = (clip.height, clip.width)
    chart = next(chart for chart in atlas.charts if chart.layer == 0)
    straight = replace(chart, mapping=replace(chart.mapping, controls=0 * chart.mapping.controls))
    assert (
        explained(straight, pyramid, size) < explained(chart, pyramid, size) - OBJECT_LOSS
    )  # the patch bends
    assert stiffer(chart, straight, pyramid, size) is chart
    nearly = replace(chart, mapping=replace(chart.mapping, controls=0.999 * chart.mapping.controls))
    assert stiffer(chart, nearly, pyramid, size) is nearly


def test_an_object_is_opaque_inside_and_a_wide_soft_edge_stays_soft() -> None:
    alpha = torch.zeros(1, 1, 40, 60)
    alpha[..., 5:35, 5:25] = 1
    alpha[..., 20, 14] = 0.95
    alpha[..., 5:35, 30:60] = torch.linspace(0, 1, 30)
    inside = deep_inside(alpha)[0, 0]
    assert inside[20, 14]
    assert inside[10:30, 9:21].all()
    assert not inside[5:35, 5:8].any()
    assert not (inside & (alpha[0, 0] < 0.9)).any()
