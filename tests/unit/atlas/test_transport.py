"""Places in a painted frame, found by its own pixels where the textures say only about where."""

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from retouch.atlas.atlas import Atlas
from retouch.atlas.transport import find_bending, transport_positions
from retouch.tracking.mesh import STIFF, SUPPLE, FrameMap
from retouch.video import Video

KEY = 5
CLOSE = 0.25  # pixels that paint may slide where the textures are exact: a quarter of what can be seen
INNER = 9  # pixels from an edge within which neither method is asked


def maps(atlas: Atlas, clip: Video, layer: int, **more: object) -> dict[int, FrameMap]:
    return {m.frame: m for m in transport_positions(atlas, clip, KEY, layer, **more)}  # type: ignore[arg-type]


def slides(found: FrameMap, alpha: np.ndarray, surface: np.ndarray, units: float, layer: int) -> np.ndarray:
    """How far, in pixels of the painted frame, each pixel inside the layer lies from its true place."""
    own = (alpha > 0.99 if layer == 0 else alpha < 0.01).astype(np.uint8)
    inner = [
        cv2.erode(own[t], np.ones((INNER, INNER), np.uint8), borderValue=0) > 0 for t in (found.frame, KEY)
    ]
    at = found.positions
    there = cv2.remap(np.ascontiguousarray(surface[KEY].transpose(1, 2, 0).astype(np.float32)), at, None, 1)
    both = inner[0] & found.known & (cv2.remap(inner[1].astype(np.float32), at, None, 1) == 1)
    away: np.ndarray = np.linalg.norm(there - surface[found.frame].transpose(1, 2, 0), axis=2) / units
    assert both.sum() > 100
    return np.asarray(away[both])


def shifted(atlas: Atlas, layer: int, pixels: float) -> Atlas:
    """An atlas in which a layer's frames lie farther off in their textures, but for the painted one."""
    charts = []
    for chart in atlas.charts:
        controls = chart.mapping.controls.clone()
        frames = torch.arange(chart.start, chart.stop) != KEY
        if chart.layer == layer:
            controls[frames, 0] += pixels * chart.scale
        charts.append(replace(chart, mapping=replace(chart.mapping, controls=controls)))
    return replace(atlas, charts=tuple(charts))


@pytest.mark.parametrize(("layer", "units"), [(0, 2.2), (1, 1.4)])
def test_places_are_true_where_the_textures_are(
    atlas: Atlas, clip: Video, truth: tuple[np.ndarray, np.ndarray, np.ndarray], layer: int, units: float
) -> None:
    found = maps(atlas, clip, layer)
    assert sorted(found) == list(range(len(clip)))
    for t in (1, 9):
        assert np.median(slides(found[t], truth[0], truth[1 + layer], units, layer)) < CLOSE


def test_places_are_true_where_the_textures_slide(
    atlas: Atlas, clip: Video, truth: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    found = maps(shifted(atlas, 0, 2.0), clip, 0)
    for t in (2, 8):
        assert np.median(slides(found[t], truth[0], truth[1], 2.2, 0)) < CLOSE
        by_textures, straight, pixels = found[t].errors
        assert pixels > 100
        assert straight < 0.5 * by_textures


def test_the_painted_frame_lies_in_itself(atlas: Atlas, clip: Video) -> None:
    found = maps(atlas, clip, 0)[KEY]
    y, x = np.mgrid[: clip.height, : clip.width]
    np.testing.assert_array_equal(found.positions, np.stack([x, y], -1))
    assert (found.shown == 1).all()


def test_only_the_places_that_matter_are_known(atlas: Atlas, clip: Video) -> None:
    wanted = np.zeros((clip.height, clip.width), bool)
    wanted[30:44, 50:64] = True
    for found in maps(atlas, clip, 0, wanted=wanted, within=(3, 8)).values():
        assert 3 <= found.frame < 8
        x, y = found.positions[found.known].T
        assert 0 < len(x) < 4 * wanted.sum()
        assert x.min() > 48
        assert x.max() < 65
        assert y.min() > 28
        assert y.max() < 45


def test_the_same_is_found_twice(atlas: Atlas, clip: Video) -> None:
    first, second = (maps(atlas, clip, 0, within=(KEY, KEY + 3)) for _ in "ab")
    for t, found in first.items():
        np.testing.assert_array_equal(found.positions, second[t].positions)
        np.testing.assert_array_equal(found.shown, second[t].shown)


def test_what_bends_smoothly_may_bend(atlas: Atlas, clip: Video) -> None:
    assert find_bending(atlas, clip, KEY, 0) == SUPPLE


def test_what_flickers_on_a_rigid_surface_is_kept_stiff(atlas: Atlas, clip: Video) -> None:
    rng = np.random.default_rng(0)
    frames = clip.frames.astype(np.float32)
    # Patches of light that come, go and wander by themselves, as on car paint.
    for t in range(len(clip)):
        light = cv2.GaussianBlur(rng.standard_normal(frames.shape[2:]).astype(np.float32), None, 3)
        frames[t] += 60 * light / light.std()
    shiny = Video(frames.clip(0, 255).astype(np.uint8), Fraction(12))
    assert find_bending(atlas, shiny, KEY, 0) == STIFF


def test_what_passes_in_front_hides_a_place_and_it_comes_back(atlas: Atlas, clip: Video) -> None:
    rng = np.random.default_rng(1)
    bar = cv2.GaussianBlur(rng.random((12, 40, 3)).astype(np.float32), None, 1.5)
    bar = ((bar - bar.min()) / (bar.max() - bar.min()) * 255).astype(np.uint8).transpose(2, 0, 1)
    frames, covered = clip.frames.copy(), {}
    for t in (6, 7):
        top = 30 + 5 * (t - 6)
        frames[t, :, top : top + 12, 50:90] = bar
        covered[t] = (slice(top + 3, top + 9), slice(56, 84))
    found = maps(atlas, Video(frames, clip.fps), 0, bending=SUPPLE)
    place = covered[7]
    inside = found[7].known[place]
    assert inside.sum() > 60
    assert found[7].shown[place][inside].mean() < 0.3
    for t in (4, 9):
        assert found[t].shown[found[t].known].mean() > 0.97
