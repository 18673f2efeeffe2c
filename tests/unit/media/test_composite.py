"""Compositing: the edit inside the mask, the source's bytes outside, whatever the feather."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retouch.media.composite import blend, composite
from retouch.run import Run
from retouch.video import Video

FRAMES, HEIGHT, WIDTH = 11, 20, 24  # more frames than are laid at once


def clip(seed: int) -> Video:
    shape = (FRAMES, 3, HEIGHT, WIDTH)
    return Video(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), Fraction(5))


def box() -> np.ndarray:
    mask = np.zeros((FRAMES, 1, HEIGHT, WIDTH), np.uint8)
    mask[:, :, 4:16, 6:] = 255
    return mask


@given(st.floats(0, 30))
def test_no_feather_reaches_outside_the_mask_or_softens_the_frames_own_border(feather: float) -> None:
    source, edited, mask = (
        np.zeros((1, 3, 20, 24), np.uint8),
        np.full((1, 3, 20, 24), 200, np.uint8),
        box()[:1],
    )
    done = blend(source, edited, mask, feather)
    assert not done[np.broadcast_to(mask == 0, done.shape)].any()
    assert (done[0, 0, 10] >= done[0, 0, 10, 6]).sum() == 18, "it rises from the mask's border on"
    if feather < 5:
        assert (done[0, :, 10, 12:] == 200).all()


def test_a_composite_is_the_edit_within_and_says_where_it_is(tmp_path: Path) -> None:
    video, edited = clip(0), clip(1)
    result = composite(video, edited, box(), 0.0, Run.alone(tmp_path))
    inside = np.broadcast_to(box() > 0, video.frames.shape)
    assert np.array_equal(result.video.frames[inside], edited.frames[inside])
    assert np.array_equal(result.video.frames[~inside], video.frames[~inside])
    assert result.touched is not None
    assert np.array_equal(result.touched, box() > 0)
