import cv2
import numpy as np
import pytest

from retouch.errors import InputError
from retouch.metrics.propagation import position_flicker, propagation_decibels, straightness, swim
from retouch.tracking.flow import pixel_grid
from retouch.video import CEILING_DB

SIZE = (48, 64)
ALL = np.ones(SIZE, bool)
STILL = np.zeros((2, *SIZE), np.float32)


def shift(numbers: object) -> np.ndarray:
    return np.array(numbers, np.float32)


def picture() -> np.ndarray:
    rough = np.random.default_rng(3).integers(0, 256, (*SIZE, 3)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(rough, (0, 0), 2).round(), np.uint8)


def moved(pixels: int) -> np.ndarray:
    return np.roll(picture(), pixels, 1)


def test_a_true_map_of_a_moved_picture_carries_it_without_loss() -> None:
    places = pixel_grid(*SIZE) - shift([5, 0])
    known = places[..., 0] >= 0
    assert propagation_decibels(moved(5), picture(), places, known) == CEILING_DB
    assert propagation_decibels(moved(5), picture(), pixel_grid(*SIZE), known) < 30


def test_places_outside_the_painted_frame_are_not_counted() -> None:
    places = pixel_grid(*SIZE) - shift([5, 0])
    assert propagation_decibels(moved(5), picture(), places, ALL) == CEILING_DB


def test_swim_is_the_length_of_a_shift() -> None:
    assert swim(pixel_grid(*SIZE) + shift([3, 4]), ALL) == pytest.approx(5)


def test_a_plane_seen_from_elsewhere_is_straight_however_far_it_is_turned() -> None:
    turned = pixel_grid(*SIZE) @ shift([[0.8, 0.6], [-0.6, 0.8]])
    assert straightness(turned, ALL) < 1e-4


def test_straightness_is_the_second_difference_of_a_wave() -> None:
    # The second difference of x^2 / 32 over 4 pixels is 1 everywhere.
    bent = pixel_grid(*SIZE)
    bent[..., 1] += bent[..., 0] ** 2 / 32
    assert straightness(bent, ALL) == pytest.approx(1, abs=1e-3)


def test_straightness_leaves_out_what_lies_next_to_unknown_pixels() -> None:
    torn = pixel_grid(*SIZE)
    torn[:, 32:] += 20
    known = ALL.copy()
    assert straightness(torn, known) > 10
    known[:, 30:34] = False
    assert straightness(torn, known) < 1e-4


def test_steady_motion_does_not_flicker_and_a_tremble_counts_half_its_second_difference() -> None:
    maps = [pixel_grid(*SIZE) + shift([3 * k, 0]) for k in range(3)]
    assert position_flicker(maps, [STILL, STILL], ALL) < 1e-4
    maps[1] = maps[1] + shift([0, 0.5])
    assert position_flicker(maps, [STILL, STILL], ALL) == pytest.approx(0.5, abs=1e-4)


def test_flicker_is_looked_for_along_the_motion_of_the_source() -> None:
    maps = [pixel_grid(*SIZE) - shift([2 * k, 0]) for k in (-1, 0, 1)]
    flows = [STILL + shift([2 * k, 0])[:, None, None] for k in (-1, 1)]
    middle = ALL.copy()
    middle[:, :4] = middle[:, -4:] = False
    assert position_flicker(maps, flows, middle) < 1e-4


@pytest.mark.parametrize("measure", [swim, straightness])
def test_a_map_that_knows_nothing_is_refused(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(InputError, match="knows none"):
        measure(pixel_grid(*SIZE), ~ALL)
