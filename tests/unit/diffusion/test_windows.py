import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from retouch.diffusion.guidance import guided
from retouch.diffusion.windows import windows


@given(st.integers(1, 70), st.integers(1, 20), st.integers(0, 19), st.data())
def test_shares_of_every_frame_add_up_to_one(
    total: int, size: int, overlap: int, data: st.DataObject
) -> None:
    anchors = data.draw(st.lists(st.integers(0, total - 1), max_size=2))
    summed = np.zeros((total, 1, 1, 1))
    for window in windows(total, size=size, overlap=min(overlap, size - 1), anchors=anchors):
        assert set(anchors) <= set(window.frames)
        assert list(window.frames) == sorted(set(window.frames))
        window.add(summed, torch.ones(len(window.frames), 1, 1, 1, dtype=torch.float64))
    assert np.allclose(summed, 1)


def test_a_short_clip_is_one_window_and_passes_untouched() -> None:
    (window,) = windows(5, size=8, overlap=2, anchors=(2,))
    values = torch.randn(5, 2, 3, 3)
    z = np.zeros((5, 2, 3, 3), np.float32)
    window.add(z, values)
    assert np.array_equal(z, values.numpy())
    assert torch.equal(window.take(z, torch.empty(0)), values)


def test_guidance_to_the_same_prompt_changes_nothing() -> None:
    z = torch.randn(2, 4, 3, 3)
    assert torch.equal(guided(z, z, 12.5), z)
