"""Pictures to the model and back, and the user's picture to the clip."""

from pathlib import Path

import numpy as np
import pytest
import torch

from retouch.errors import ParamsError
from retouch.media.pictures import write_picture
from retouch.methods.videoshop.framing import Framing, fitted
from retouch.models.image_to_video import Traits

SVD = Traits(1, 64, 8, 4, 14, 576 * 1024, keeps_first_frame=False, reads_text=False)
TINY = Traits(1, 8, 4, 4, 5, 64 * 64, keeps_first_frame=False, reads_text=False)


def test_a_wide_clip_gets_the_models_own_size() -> None:
    assert Framing.of(1080, 1920, SVD).padded == (576, 1024)
    assert Framing.of(720, 1280, SVD).scaled == (576, 1024)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (1920, 1080), (333, 777), (64, 64)])
def test_the_aspect_is_kept_to_a_pixel_and_only_padding_is_added(height: int, width: int) -> None:
    framing = Framing.of(height, width, SVD)
    tall, wide = framing.scaled
    assert abs(tall * width / height - wide) <= max(1, width / height)
    assert all(0 <= outer - inner < 64 for outer, inner in zip(framing.padded, framing.scaled, strict=True))
    assert all(side % 64 == 0 for side in framing.padded)


def test_a_clip_of_fitting_size_is_not_scaled() -> None:
    pixels = torch.rand(2, 3, 48, 64) * 2 - 1
    framing = Framing.of(48, 64, TINY)
    assert framing.padded == (48, 64)
    assert torch.equal(framing.back(framing.there(pixels)), pixels)


def test_what_is_padded_comes_back_where_it_was() -> None:
    pixels = torch.rand(1, 3, 45, 61) * 2 - 1
    framing = Framing((45, 61), (45, 61), (48, 64))
    there = framing.there(pixels)
    assert there.shape == (1, 3, 48, 64)
    assert torch.equal(there[..., 0, 1:], there[..., 1, 1:])
    assert torch.equal(framing.back(there), pixels)


def test_the_short_side_can_be_chosen() -> None:
    assert Framing.of(1080, 1920, SVD, short_side=320).scaled == (320, 569)


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
