"""The user's picture brought to the clip."""

from pathlib import Path

import numpy as np
import pytest

from retouch.errors import ParamsError
from retouch.media.pictures import write_picture
from retouch.methods.videoshop.framing import fitted


def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 24, 36), np.uint8)


def test_a_picture_of_the_same_size_is_taken_to_the_byte(tmp_path: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (24, 36, 3), np.uint8)
    write_picture(picture, tmp_path / "first.png")
    assert np.array_equal(fitted(tmp_path / "first.png", frame()), picture.transpose(2, 0, 1))


def test_a_picture_of_another_size_is_brought_to_the_clips(tmp_path: Path) -> None:
    write_picture(np.full((48, 72, 3), (10, 100, 200), np.uint8), tmp_path / "large.png")
    done = fitted(tmp_path / "large.png", frame())
    assert done.shape == (3, 24, 36)
    assert (done == np.array([10, 100, 200], np.uint8)[:, None, None]).all()


def test_a_picture_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_picture(np.zeros((24, 40, 3), np.uint8), tmp_path / "wide.png")
    with pytest.raises(ParamsError, match="40x24 but the clip 36x24") as caught:
        fitted(tmp_path / "wide.png", frame())
    assert "retouch keyframe" in caught.value.hint


def test_the_frame_shows_through_where_the_picture_is_clear(tmp_path: Path) -> None:
    picture = np.zeros((24, 36, 4), np.uint8)
    picture[:, :18] = 255
    write_picture(picture, tmp_path / "sticker.png")
    done = fitted(tmp_path / "sticker.png", frame())
    assert (done[:, :, :18] == 255).all()
    assert np.array_equal(done[:, :, 18:], frame()[:, :, 18:])
