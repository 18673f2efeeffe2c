"""Textures: reading, its transpose, filling, resizing, bytes."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retouch.atlas.textures import (
    as_picture,
    as_texture,
    fill_unseen,
    gaussian_blur,
    sample_texture,
    shrink_pictures,
    splat_values,
)

ROUNDING = 1e-4  # sums of a few hundred float32 products


def test_reading_at_texel_centres_gives_the_texels() -> None:
    texture = torch.rand(3, 7, 9)
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(9.0), indexing="ij")
    read = sample_texture(texture, torch.stack([x, y])[None])
    assert torch.allclose(read[0], texture, atol=1e-5)


def test_reading_between_texels_is_their_mean_and_the_border_goes_on() -> None:
    texture = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    at = torch.tensor([[[[0.5, 9.0]], [[0.0, 0.0]]]])
    assert sample_texture(texture, at).flatten().tolist() == [0.5, 1.0]


def test_splat_is_the_transpose_of_sample() -> None:
    torch.manual_seed(0)
    texture, values = torch.rand(2, 11, 13), torch.rand(3, 2, 6, 5)
    uv = torch.rand(3, 2, 6, 5) * 9
    there = (sample_texture(texture, uv) * values).sum()
    back = (texture * splat_values(values, uv, 11, 13)).sum()
    assert abs(float(there - back)) < ROUNDING * float(there)


def test_fill_keeps_what_is_known_and_takes_the_rest_from_around() -> None:
    weights = torch.zeros(1, 16, 16)
    weights[:, :, :8] = 2
    colours = torch.zeros(3, 16, 16)
    colours[:, :, :4], colours[:, :, 4:8] = 2 * 0.2, 2 * 0.8
    filled = fill_unseen(colours, weights)
    assert torch.allclose(filled[:, :, :4], torch.full((3, 16, 4), 0.2))
    assert float(filled[:, :, 8:10].min()) > 0.5
    assert float(filled.min()) > 0.2 - 1e-6
    assert float(filled.max()) <= 0.8 + 1e-6


def test_fill_of_nothing_is_zero() -> None:
    assert float(fill_unseen(torch.zeros(3, 5, 6), torch.zeros(1, 5, 6)).abs().max()) == 0


def test_shrinking_keeps_the_mean() -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 60), dtype=np.uint8)
    small = shrink_pictures(pictures, 20, 30)
    assert small.shape == (2, 3, 20, 30)
    assert abs(float(small.mean()) - float(pictures.mean())) < 0.5


def test_blur_keeps_a_flat_picture_flat() -> None:
    assert torch.allclose(
        gaussian_blur(torch.full((2, 3, 9, 9), 0.4), 1.5), torch.full((2, 3, 9, 9), 0.4), atol=1e-6
    )


@given(hnp.arrays(np.uint8, (4, 5, 3), elements=st.integers(0, 255)))
def test_picture_bytes_survive_a_texture(picture: np.ndarray) -> None:
    np.testing.assert_array_equal(as_picture(as_texture(picture)), picture)
