"""Flow: direction, units, the round trip, and what is kept."""

import cv2
import numpy as np
import pytest

from retouch.errors import ParamsError
from retouch.tracking.flow import ClipFlow, DisFlow, Flow, consistent_flow, round_trip, warp_picture

SUBPIXEL = (
    0.25  # dense inverse search on smooth texture is good to a fraction of a pixel away from the border
)


def cloud(seed: int, h: int = 72, w: int = 96) -> np.ndarray:
    """Smooth random texture with detail at several sizes."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.random((h, w, 3)).astype(np.float32), (0, 0), s) * s for s in (1.5, 3, 6)]
    total = np.sum(layers, axis=0)
    picture: np.ndarray = ((total - total.min()) / np.ptp(total) * 255).astype(np.uint8)
    return picture


def shifted(picture: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """The picture with its content moved right by dx and down by dy."""
    h, w = picture.shape[:2]
    move = np.array([[1.0, 0, dx], [0, 1, dy]])
    moved: np.ndarray = cv2.warpAffine(picture, move, (w, h), borderMode=cv2.BORDER_REFLECT)
    return moved


def test_dis_flow_is_a_flow() -> None:
    assert isinstance(DisFlow(), Flow)


def test_the_first_channel_is_x_and_points_where_the_content_went() -> None:
    a = cloud(0)
    found = DisFlow().pair(a, shifted(a, 3.0, -2.0))
    inner = found[:, 16:-16, 16:-16]
    assert found.shape == (2, 72, 96)
    assert found.dtype == np.float32
    assert abs(np.median(inner[0]) - 3.0) < SUBPIXEL
    assert abs(np.median(inner[1]) + 2.0) < SUBPIXEL


def test_the_same_pictures_give_the_same_flow() -> None:
    a, b = cloud(1), shifted(cloud(1), 1.5, 0.5)
    np.testing.assert_array_equal(DisFlow().pair(a, b), DisFlow().pair(a, b))


def test_pictures_smaller_than_a_patch_still_have_a_flow() -> None:
    tiny = cloud(2, 12, 10)
    found = DisFlow().pair(tiny, tiny)
    assert found.shape == (2, 12, 10)
    assert np.abs(found).max() < 1


def test_an_unknown_preset_is_refused_with_the_choices() -> None:
    with pytest.raises(ParamsError) as caught:
        DisFlow(preset="ultra")
    assert "medium" in caught.value.hint


def test_warping_b_by_the_flow_from_a_to_b_gives_a() -> None:
    a = cloud(3)
    b = shifted(a, 4.0, 1.0)
    flow = np.broadcast_to(np.array([4.0, 1.0], np.float32)[:, None, None], (2, 72, 96)).copy()
    np.testing.assert_array_equal(warp_picture(b, flow)[:-4, :-8], a[:-4, :-8])


def test_a_vector_and_its_opposite_make_a_round_trip_of_length_zero() -> None:
    there = np.full((2, 20, 30), 2.0, np.float32)
    assert round_trip(there, -there).max() == 0
    assert np.allclose(round_trip(there, there), np.hypot(4, 4))


def test_what_leaves_the_picture_is_not_consistent() -> None:
    there = np.zeros((2, 20, 30), np.float32)
    there[0] = 5
    reliable = consistent_flow(there, -there)
    assert reliable[:, :24].all()
    assert not reliable[:, 25:].any()


def test_ground_that_a_moving_patch_covers_is_not_consistent() -> None:
    there, back = np.zeros((2, 2, 40, 80), np.float32)
    there[0, 10:30, 20:40] = 12  # the patch moves right; the ground stays
    back[0, 10:30, 32:52] = -12
    reliable = consistent_flow(there, back)
    assert reliable[12:28, 22:38].all()
    assert not reliable[12:28, 42:50].any()
    assert reliable[32:].all()


def test_clip_flow_asks_the_backend_once_for_each_pair_and_direction() -> None:
    frames = [cloud(6), shifted(cloud(6), 2, 0), shifted(cloud(6), 4, 0)]
    asked: list[int] = []

    def frame(t: int) -> np.ndarray:
        asked.append(t)
        return frames[t]

    kept = ClipFlow(frame, DisFlow(), np.zeros((2, 2, 2, 72, 96), np.float16))
    first = kept.between(0, 1)
    np.testing.assert_array_equal(first, kept.between(0, 1))
    assert asked == [0, 1]
    assert np.median(kept.between(1, 0)[0]) < 0 < np.median(first[0])
    assert asked == [0, 1, 1, 0]
