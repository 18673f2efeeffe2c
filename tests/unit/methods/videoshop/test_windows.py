"""Where windows lie on a long clip."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch.errors import ParamsError
from retouch.methods.videoshop.windows import windows
from retouch.models.image_to_video import Traits

SVD = Traits(1, 64, 8, 4, 14, 576 * 1024, keeps_first_frame=False, reads_text=False)
WAN = Traits(4, 16, 8, 16, 81, 480 * 832, keeps_first_frame=False, reads_text=True)


@given(st.integers(1, 200), st.integers(4, 30), st.integers(1, 3))
def test_every_frame_is_new_in_exactly_one_window(frames: int, size: int, overlap: int) -> None:
    new = [
        number
        for window in windows(frames, [0], SVD, size, overlap)
        for number in window.frames[window.known :]
    ]
    assert new == list(range(frames))


def test_a_window_begins_at_every_picture_and_knows_nothing_there() -> None:
    laid = windows(40, [0, 20], SVD, None, 3)
    assert {window.frames.start: window.known for window in laid}[20] == 0
    assert all(window.frames.stop <= 20 or window.frames.start >= 20 for window in laid)
    assert sum(window.known == 0 for window in laid) == 2


def test_the_models_own_length_is_the_default() -> None:
    assert [window.frames for window in windows(14, [0], SVD, None, 3)] == [range(14)]
    assert max(len(window.frames) for window in windows(100, [0], SVD, None, 3)) <= 14


def test_a_model_with_several_frames_a_latent_shares_one() -> None:
    laid = windows(200, [0], WAN, 50, 3)
    assert {window.known for window in laid} == {0, 1}
    assert max(len(window.frames) for window in laid) <= 49


def test_windows_that_cannot_share_are_refused_only_where_they_are_needed() -> None:
    assert windows(5, [0], SVD, 5, 9)[0].frames == range(5)
    with pytest.raises(ParamsError, match="windows of 5 frames cannot share 9"):
        windows(6, [0], SVD, 5, 9)
    with pytest.raises(ParamsError, match="cannot share 0"):
        windows(30, [0], SVD, 5, 0)
