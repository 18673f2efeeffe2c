"""Edited frames brought to their clip."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from retouch.errors import ParamsError
from retouch.media.keyframes import read_keyframes
from retouch.media.pictures import write_picture
from retouch.video import Video


def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 24, 36), np.uint8)


def fitted(path: Path) -> np.ndarray:
    clip = Video(np.stack([255 - frame(), frame()]), Fraction(8))
    return read_keyframes(clip, {1: path})[1]


def test_a_picture_of_the_same_size_is_taken_to_the_byte(tmp_path: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (24, 36, 3), np.uint8)
    write_picture(picture, tmp_path / "first.png")
    assert np.array_equal(fitted(tmp_path / "first.png"), picture.transpose(2, 0, 1))


def test_a_picture_of_another_size_is_brought_to_the_clips(tmp_path: Path) -> None:
    write_picture(np.full((48, 72, 3), (10, 100, 200), np.uint8), tmp_path / "large.png")
    done = fitted(tmp_path / "large.png")
    assert done.shape == (3, 24, 36)
    assert (done == np.array([10, 100, 200], np.uint8)[:, None, None]).all()


def test_a_picture_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_picture(np.zeros((24, 40, 3), np.uint8), tmp_path / "wide.png")
    with pytest.raises(ParamsError, match="40x24 but the clip 36x24") as caught:
        fitted(tmp_path / "wide.png")
    assert "retouch keyframe" in caught.value.hint


def test_the_frame_shows_through_where_the_picture_is_clear(tmp_path: Path) -> None:
    picture = np.zeros((24, 36, 4), np.uint8)
    picture[:, :18] = 255
    write_picture(picture, tmp_path / "sticker.png")
    done = fitted(tmp_path / "sticker.png")
    assert (done[:, :, :18] == 255).all()
    assert np.array_equal(done[:, :, 18:], frame()[:, :, 18:])


def test_soft_alpha_mixes_picture_and_frame(tmp_path: Path) -> None:
    picture = np.full((24, 36, 4), 200, np.uint8)
    picture[..., 3] = 128
    write_picture(picture, tmp_path / "soft.png")
    mixed = 200 * 128 / 255 + frame() * (127 / 255)
    assert np.abs(fitted(tmp_path / "soft.png") - mixed).max() <= 1


def test_a_frame_that_is_not_in_the_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="frame 7 of 3"):
        read_keyframes(
            Video(np.stack([frame()] * 3), Fraction(8)), {0: tmp_path / "a.png", 7: tmp_path / "b.png"}
        )
