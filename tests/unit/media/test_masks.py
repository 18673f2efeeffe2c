"""Masks: from what they are read, and that growing and feathering do what they say."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retouch.errors import ParamsError, VideoError
from retouch.media.io import Encoding, write, write_picture
from retouch.media.masks import each_mask, feather, grow, read_masks, shrink
from retouch.video import Video


def clip(frames: int = 3, height: int = 16, width: int = 24) -> Video:
    return Video(np.zeros((frames, 3, height, width), np.uint8), Fraction(25))


def dots(*places: tuple[int, int], height: int = 31, width: int = 41) -> np.ndarray:
    mask = np.zeros((1, 1, height, width), np.uint8)
    for row, column in places:
        mask[0, 0, row, column] = 255
    return mask


def test_white_in_a_single_picture_is_edited_in_every_frame(tmp_path: Path) -> None:
    drawn = np.zeros((16, 24, 3), np.uint8)
    drawn[2:5, 7:9] = 255
    write_picture(drawn, tmp_path / "mask.png")
    masks = read_masks(tmp_path / "mask.png", clip())
    assert masks.shape == (3, 1, 16, 24)
    assert np.array_equal(masks[:, 0] > 0, np.stack([drawn[..., 0] > 0] * 3))
    assert set(masks.ravel().tolist()) == {0, 255}


def test_a_drawing_on_clear_ground_counts_by_its_alpha(tmp_path: Path) -> None:
    drawn = np.zeros((16, 24, 4), np.uint8)
    drawn[2:5, 7:9] = (10, 0, 0, 255)
    write_picture(drawn, tmp_path / "mask.png")
    assert np.array_equal(read_masks(tmp_path / "mask.png", clip(1))[0, 0] > 0, drawn[..., 3] > 0)


def test_masks_come_frame_by_frame_from_folders_and_videos(tmp_path: Path) -> None:
    truth = np.zeros((3, 3, 16, 24), np.uint8)
    for i in range(3):
        truth[i, :, 4 * i : 4 * i + 4] = 200
    video = Video(truth, Fraction(25))
    write(video, tmp_path / "masks")
    write(video, tmp_path / "masks.mkv", encoding=Encoding(lossless=True))
    for name in ("masks", "masks.mkv", "masks/*.png"):
        assert np.array_equal(read_masks(tmp_path / name, clip()), truth[:, :1])
        one_by_one = list(each_mask(tmp_path / name, clip(), scratch=tmp_path))
        assert np.array_equal(one_by_one, truth[:, :1])


def test_a_single_mask_comes_once_for_every_frame(tmp_path: Path) -> None:
    drawn = np.full((16, 24, 3), 77, np.uint8)
    write_picture(drawn, tmp_path / "mask.png")
    write(Video(drawn.transpose(2, 0, 1)[None].copy(), Fraction(25)), tmp_path / "one")
    for name in ("mask.png", "one"):
        masks = list(each_mask(tmp_path / name, clip()))
        assert np.array_equal(masks, read_masks(tmp_path / name, clip()))
        assert len(masks) == 3


def test_masks_of_another_size_or_number_are_refused(tmp_path: Path) -> None:
    write_picture(np.zeros((16, 25, 3), np.uint8), tmp_path / "mask.png")
    with pytest.raises(VideoError, match="is 25x16; the clip is 24x16"):
        read_masks(tmp_path / "mask.png", clip())
    write(clip(2), tmp_path / "masks")
    with pytest.raises(VideoError, match="has 2 masks; the clip has 3 frames"):
        read_masks(tmp_path / "masks", clip())


def test_a_mask_of_one_frame_is_for_all_also_from_a_video(tmp_path: Path) -> None:
    Image.new("L", (24, 16), 7).save(tmp_path / "a.png")
    (tmp_path / "one").mkdir()
    Image.new("L", (24, 16), 7).save(tmp_path / "one" / "a.png")
    assert read_masks(tmp_path / "one", clip()).tolist() == read_masks(tmp_path / "a.png", clip()).tolist()


@given(st.lists(st.tuples(st.integers(8, 22), st.integers(8, 32)), min_size=1, max_size=6), st.integers(0, 6))
def test_growing_reaches_exactly_so_far(places: list[tuple[int, int]], pixels: int) -> None:
    grown = grow(dots(*places), pixels)[0, 0]
    y, x = np.mgrid[:31, :41]
    distance = np.min([np.hypot(y - row, x - column) for row, column in places], axis=0)
    assert np.array_equal(grown > 0, distance <= pixels + 0.5)


@given(st.integers(0, 5))
def test_shrinking_is_growing_of_what_is_kept(pixels: int) -> None:
    mask = grow(dots((15, 20)), 9)
    assert np.array_equal(shrink(mask, pixels), 255 - grow(255 - mask, pixels))
    assert np.array_equal(grow(mask, -pixels), shrink(mask, pixels))


@given(st.integers(2, 8))
def test_feathering_stays_inside_and_changes_nothing_deeper_than_it_says(pixels: int) -> None:
    mask = grow(dots((15, 20)), 8)
    soft = feather(mask, pixels)
    assert not soft[mask == 0].any()
    deep = shrink(mask, pixels) > 0
    assert np.array_equal(soft[deep], mask[deep])
    assert len(np.unique(soft)) > 2


def test_a_feathered_border_rises_from_nothing_and_the_frames_own_is_none() -> None:
    mask = np.zeros((1, 1, 20, 40), np.uint8)
    mask[..., 20:] = 255
    soft = feather(mask, 4)[0, 0, 10].astype(int)
    assert (soft[:20] == 0).all()
    assert list(soft[20:24]) == [64, 128, 191, 255]
    assert (soft[24:] == 255).all()
    assert np.array_equal(feather(mask, 0), mask)
    with pytest.raises(ParamsError, match="feather is -1"):
        feather(mask, -1)
