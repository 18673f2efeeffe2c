"""Windows over a long clip: shares that add up, and what one hands to the next."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retouch.diffusion.windows import overlapping, sequential
from retouch.errors import ParamsError


@given(st.integers(1, 70), st.integers(1, 20), st.integers(0, 19), st.data())
def test_shares_of_every_frame_add_up_to_one(
    total: int, size: int, overlap: int, data: st.DataObject
) -> None:
    anchors = data.draw(st.lists(st.integers(0, total - 1), max_size=2))
    summed = torch.zeros(total, 1, 1, 1, dtype=torch.float64)
    for window in overlapping(total, size=size, overlap=min(overlap, size - 1), anchors=anchors):
        assert set(anchors) <= set(window.frames)
        assert list(window.frames) == sorted(set(window.frames))
        window.add(summed, torch.ones(len(window.frames), 1, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(summed, torch.ones_like(summed))


def test_a_short_clip_is_one_window_and_passes_untouched() -> None:
    (window,) = overlapping(5, size=8, overlap=2, anchors=(2,))
    values, z = torch.randn(5, 2, 3, 3), torch.zeros(5, 2, 3, 3)
    window.add(z, values)
    assert torch.equal(z, values)
    assert torch.equal(window.take(z, torch.device("cpu")), values)


@given(st.integers(1, 200), st.integers(4, 30), st.integers(1, 3))
def test_every_frame_is_new_in_exactly_one_window(frames: int, size: int, overlap: int) -> None:
    new = [
        number
        for window in sequential(frames, [0], size=size, overlap=overlap)
        for number in window.frames[window.known :]
    ]
    assert new == list(range(frames))


def test_a_window_begins_at_every_picture_and_knows_nothing_there() -> None:
    windows = sequential(40, [0, 20], size=14, overlap=3)
    assert {window.frames.start: window.known for window in windows}[20] == 0
    assert all(window.frames.stop <= 20 or window.frames.start >= 20 for window in windows)
    assert sum(window.known == 0 for window in windows) == 2


def test_windows_are_never_longer_than_they_may_be() -> None:
    assert [window.frames for window in sequential(14, [0], size=14, overlap=3)] == [range(14)]
    assert max(len(window.frames) for window in sequential(100, [0], size=14, overlap=3)) <= 14


def test_a_model_with_several_frames_a_latent_shares_one() -> None:
    windows = sequential(200, [0], size=50, overlap=3, stride=4)
    assert {window.known for window in windows} == {0, 1}
    assert max(len(window.frames) for window in windows) <= 49


def test_windows_that_cannot_share_are_refused_only_where_they_are_needed() -> None:
    assert sequential(5, [0], size=5, overlap=9)[0].frames == range(5)
    with pytest.raises(ParamsError, match="windows of 5 frames cannot share 9"):
        sequential(6, [0], size=5, overlap=9)
    with pytest.raises(ParamsError, match="cannot share 0"):
        sequential(30, [0], size=5, overlap=0)
