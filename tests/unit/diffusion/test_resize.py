"""A clip brought to the pixels that a network takes, and back."""

from dataclasses import dataclass

import pytest
import torch

from retouch.diffusion.resize import Resize, resized
from retouch.models.image_shapes import working_size
from retouch.models.image_to_video import VideoTraits

SVD = VideoTraits(1, 64, 8, 4, 14, 576 * 1024)
TINY = VideoTraits(1, 8, 4, 4, 5, 64 * 64)


def test_a_wide_clip_gets_the_models_own_size() -> None:
    assert Resize.to_area(1080, 1920, SVD).padded == (576, 1024)
    assert Resize.to_area(720, 1280, SVD).scaled == (576, 1024)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (1920, 1080), (333, 777), (64, 64)])
def test_the_aspect_is_kept_to_a_pixel_and_only_padding_is_added(height: int, width: int) -> None:
    resize = Resize.to_area(height, width, SVD)
    tall, wide = resize.scaled
    assert abs(tall * width / height - wide) <= max(1, width / height)
    assert all(0 <= outer - inner < 64 for outer, inner in zip(resize.padded, resize.scaled, strict=True))
    assert all(side % 64 == 0 for side in resize.padded)


def test_a_clip_of_fitting_size_is_not_scaled() -> None:
    pixels = torch.rand(2, 3, 48, 64) * 2 - 1
    resize = Resize.to_area(48, 64, TINY)
    assert resize.padded == (48, 64)
    assert torch.equal(resize.to_clip(resize.to_model(pixels)), pixels)


def test_what_is_padded_comes_back_where_it_was() -> None:
    pixels = torch.rand(1, 3, 45, 61) * 2 - 1
    resize = Resize((45, 61), (45, 61), (48, 64), factor=4)
    outer = resize.to_model(pixels)
    assert outer.shape == (1, 3, 48, 64)
    assert torch.equal(outer[..., 0, 1:], outer[..., 1, 1:])
    assert torch.equal(resize.to_clip(outer), pixels)


def test_the_short_side_can_be_chosen() -> None:
    assert Resize.to_area(1080, 1920, SVD, short_side=320).scaled == (320, 569)


@dataclass
class Sized:
    factor: int = 4
    multiple: int = 8

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        return working_size(height, width, 32, self.multiple)


def test_an_image_model_works_at_its_own_size_or_at_the_clips_with_borders() -> None:
    pixels = torch.rand(2, 3, 36, 50) * 2 - 1
    padded = Resize.for_image_model(36, 50, Sized(), "clip")
    assert padded.padded == (40, 56)
    assert padded.latents == (10, 14)
    assert torch.equal(padded.to_clip(padded.to_model(pixels)), pixels)
    shrunk = Resize.for_image_model(36, 50, Sized(), "model")
    assert shrunk.to_model(pixels).shape[2:] == shrunk.padded == (32, 48)
    assert shrunk.to_clip(shrunk.to_model(pixels)).shape == pixels.shape


def test_resizing_keeps_the_range_and_leaves_equal_sizes_alone() -> None:
    picture = torch.rand(2, 3, 32, 32) * 2 - 1
    assert resized(picture, 32, 32) is picture
    larger = resized(picture, 48, 40)
    assert larger.shape == (2, 3, 48, 40)
    assert float(larger.min()) >= float(picture.min())
    assert float(larger.max()) <= float(picture.max())
