import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from retouch.errors import InputError
from retouch.metrics.consistency import (
    estimated_motion,
    flicker_peak,
    flicker_ratio,
    true_motion,
    warp_error,
)

if TYPE_CHECKING:
    from tests.unit.metrics.conftest import Scene, Scenes


EXACT = 1e-7  # whole-pixel motion: bilinear sampling hits pixels


def along(scene: "Scene", frames: np.ndarray) -> float:
    return warp_error(frames, true_motion(scene.flow, scene.seen))


def test_warp_error_of_a_scene_along_its_own_motion_is_nothing(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    assert along(scene, scene.frames) == pytest.approx(0, abs=EXACT)


def test_warp_error_of_injected_flicker_is_its_size(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    dark = (scene.frames // 2).astype(np.uint8)  # so that nothing clips
    assert along(scene, scenes.flickering(dark, 12)) == pytest.approx(12 / 255, abs=EXACT)


def test_warp_error_sees_an_edit_that_stands_still_while_the_object_moves(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    stuck = scene.frames.copy()
    stuck[:, :, 12:20, 10:18] = 255  # dirt on the lens
    held = np.where(scene.mask, 255 - scene.frames, scene.frames)  # an edit that moves along
    assert along(scene, held) == pytest.approx(0, abs=EXACT)
    assert along(scene, stuck) > 0.005


def test_warp_error_takes_flow_as_x_then_y_from_each_frame_to_the_next(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    for wrong in (scene.flow[:, ::-1], -scene.flow):
        assert warp_error(scene.frames, true_motion(wrong, scene.seen)) > 0.005


def test_warp_error_leaves_out_what_gets_covered(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    everywhere = np.ones_like(scene.seen)
    assert warp_error(scene.frames, true_motion(scene.flow, everywhere)) > 0.002


def test_warp_error_leaves_out_what_leaves_the_picture() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    clip[1, :, :, :5] = clip[0, :, :, 3:]
    flow = np.zeros((1, 2, 8, 8), dtype=np.float32)
    flow[:, 0] = -3
    everywhere = np.ones((1, 1, 8, 8), dtype=bool)
    assert warp_error(clip, true_motion(flow, everywhere)) == pytest.approx(0, abs=EXACT)


def test_warp_error_rewards_doing_nothing_and_a_constant_picture(scenes: "Scenes") -> None:
    """The fault that the registry labels: it is why the figure is never printed alone."""
    scene = scenes.moving_square()
    assert along(scene, np.full_like(scene.frames, 128)) <= along(scene, scene.frames) + EXACT


def test_warp_error_of_a_missing_step_is_an_error(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    with pytest.raises(InputError, match="6 frames need 5 steps of motion, not 4"):
        warp_error(scene.frames, true_motion(scene.flow[:4], scene.seen[:4]))
    with pytest.raises(InputError, match="more than the 5 frames"):
        warp_error(scene.frames[:5], true_motion(scene.flow, scene.seen))


def test_warp_error_of_one_frame_is_an_error(scenes: "Scenes") -> None:
    with pytest.raises(InputError, match="stays in view"):
        warp_error(scenes.moving_square().frames[:1], [])


def test_estimated_motion_of_a_pan_is_near_the_true_one_and_ranks_alike(scenes: "Scenes") -> None:
    ground = scenes.texture(np.random.default_rng(2), (80, 80)).astype(np.uint8)
    pan = np.stack([ground[:, 12 - t : 76 - t, 12 - 2 * t : 76 - 2 * t] for t in range(4)])
    found = list(estimated_motion(pan))
    assert np.median(found[0].flow, axis=(1, 2)) == pytest.approx((2, 1), abs=0.3)
    assert found[0].seen.mean() > 0.8
    assert not found[0].seen[0, :, -1].any()  # what lies at the right border leaves the picture
    calm = warp_error(pan, estimated_motion(pan))
    assert calm < 0.02
    assert warp_error(scenes.flickering(pan), estimated_motion(pan)) > calm + 0.02


def test_flicker_is_one_for_the_source_more_when_injected_and_less_for_blur(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    assert flicker_ratio(scene.frames, scene.frames) == 1
    assert flicker_ratio(scenes.flickering(scene.frames), scene.frames) > 1.5
    assert flicker_ratio(scenes.blurred(scene.frames), scene.frames) < 1


def test_flicker_is_the_ratio_of_mean_absolute_changes(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    result = scenes.flickering(scene.frames)
    change = [np.abs(np.diff(x.astype(int), axis=0)).mean() for x in (result, scene.frames)]
    assert flicker_ratio(result, scene.frames) == pytest.approx(change[0] / change[1])


def test_flicker_peak_finds_a_spot_that_flashes_where_the_mean_hardly_moves() -> None:
    source = np.full((6, 3, 40, 40), 100, dtype=np.uint8)
    source[1::2] += 1  # the mildest change, so that the ratio is defined
    result = source.copy()
    result[1::2, :, :6, :6] = 250  # 2.25 % of the picture
    assert flicker_peak(source, source) == 1
    assert flicker_peak(result, source) > 100
    assert flicker_ratio(result, source) < 10


def test_flicker_peak_is_the_99th_percentile(scenes: "Scenes") -> None:
    scene = scenes.moving_square()
    result = scenes.flickering(scene.frames)
    peaks = [
        np.percentile(np.abs(np.diff(x.astype(int), axis=0)), 99, method="inverted_cdf")
        for x in (result, scene.frames)
    ]
    assert flicker_peak(result, scene.frames) == pytest.approx(peaks[0] / peaks[1])


def test_flicker_over_a_source_that_stands_still_is_one_or_infinite(scenes: "Scenes") -> None:
    still = np.full((3, 3, 8, 8), 90, dtype=np.uint8)
    assert flicker_ratio(still, still) == 1
    assert flicker_ratio(scenes.flickering(still), still) == math.inf
