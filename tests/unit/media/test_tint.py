"""Tints that show against what they cover."""

import numpy as np
import pytest

from retouch.errors import ParamsError
from retouch.media.tint import COLOURS, colour_against, named_colour, pixels_of, tint_objects


def test_a_tint_changes_the_object_alone() -> None:
    picture = np.full((20, 20, 3), 90, np.uint8)
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15] = 255
    shown = tint_objects(picture, {"object": mask}, {"object": (255, 60, 60)})
    assert (shown[10, 10] != 90).any()
    assert (shown[1, 1] == 90).all()


@pytest.mark.parametrize("own", COLOURS)
def test_the_tint_of_an_object_is_far_from_its_own_colour(own: tuple[int, int, int]) -> None:
    chosen = colour_against(np.array([own], np.uint8))
    assert np.abs(np.subtract(chosen, own, dtype=int)).max() > 100


def test_two_objects_of_one_colour_get_two_tints() -> None:
    grey = np.full((9, 3), 128, np.uint8)
    first = colour_against(grey)
    assert colour_against(grey, [first]) != first


def test_an_object_that_is_not_seen_gets_a_tint() -> None:
    assert colour_against(np.empty((0, 3), np.uint8)) in COLOURS


def test_few_pixels_stand_for_many() -> None:
    picture = np.arange(40 * 40 * 3, dtype=np.uint8).reshape(40, 40, 3)
    assert 100 <= len(pixels_of(picture, np.ones((40, 40), bool), most=100)) <= 101
    assert len(pixels_of(picture, np.zeros((40, 40), bool))) == 0


def test_a_colour_goes_by_name_or_number() -> None:
    assert named_colour("lime") == named_colour("#00ff00") == (0, 255, 0)
    with pytest.raises(ParamsError, match="'limee' is no colour"):
        named_colour("limee")
