"""Answers that were shifted and zoomed are laid over their source, and only what they changed is taken."""

import cv2
import numpy as np
import pytest

from retouch.errors import MethodError
from retouch.tracking.register import Offset, changed_region, register_answer, register_edit
from retouch.world import Change, Clip, Scene, edited_clip

SIDE = 96
PLACED = 0.6
"""Pixels by which the offset found may be off; what a similarity cannot say is left to flow."""
CARRIED_DB = 22.0
"""Two readings between pixels blur a picture this small; the old colours are at 9 dB."""


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A frame, and the same with its object in another colour."""
    clip = Clip.of(Scene.sample(2 * 10**9 + 3), 4, SIDE)
    colour = "green" if "green" not in clip.caption else "red"
    edited = edited_clip(clip, Change.parse(f"colour={colour}"))
    return frame_of(clip), frame_of(edited)


def frame_of(clip: Clip) -> np.ndarray:
    return np.ascontiguousarray(clip.video.frames[2].transpose(1, 2, 0))


def moved(picture: np.ndarray, x: float, y: float, zoom: float, turn: float = 0.0) -> np.ndarray:
    """What an editor answers that zooms and turns about the middle and then shifts."""
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -turn, zoom)
    matrix[:, 2] += (x, y)
    made = cv2.warpAffine(
        picture, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(made)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


@pytest.mark.parametrize(
    ("share", "zoom"), [(0.01, 1.0), (0.05, 1.0), (0.1, 0.95), (-0.1, 1.05), (0.2, 1.05), (-0.2, 0.95)]
)
def test_an_answer_that_shifted_and_zoomed_is_laid_back(
    pair: tuple[np.ndarray, np.ndarray], share: float, zoom: float
) -> None:
    source, target = pair
    shift = share * SIDE
    found = register_edit(source, moved(target, shift, -shift, zoom))
    assert (found.offset.x, found.offset.y) == pytest.approx((shift, -shift), abs=PLACED)
    assert found.offset.zoom == pytest.approx(zoom, abs=0.01)
    edited = (source != target).any(2)
    assert np.array_equal(found.picture[~found.changed], source[~found.changed])
    near = cv2.dilate(edited.astype(np.uint8), np.ones((11, 11))) > 0
    assert (found.changed & ~near).mean() < 0.01
    inner = cv2.erode(edited.astype(np.uint8), np.ones((3, 3))) > 0
    assert psnr(found.picture[inner], target[inner]) > CARRIED_DB


def test_all_of_an_answer_is_taken_within_a_mask_and_nothing_beside_it(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    source, target = pair
    mask = cv2.dilate((source != target).any(2).astype(np.uint8), np.ones((5, 5))) > 0
    brighter = np.clip(target.astype(int) + 3, 0, 255).astype(np.uint8)
    found = register_answer(source, brighter, mask=mask)
    assert np.array_equal(found.picture[mask], brighter[mask])
    assert np.array_equal(found.picture[~mask], source[~mask])
    placed = register_answer(source, moved(brighter, 5, -4, 1.03), mask=mask)
    assert (placed.offset.x, placed.offset.y) == pytest.approx((5, -4), abs=PLACED)
    assert np.array_equal(placed.picture[~mask], source[~mask])
    assert psnr(placed.picture[mask], brighter[mask]) > CARRIED_DB


def test_a_turn_is_found_too(pair: tuple[np.ndarray, np.ndarray]) -> None:
    source, target = pair
    found = register_edit(source, moved(target, 3, 2, 1.0, turn=3.0))
    assert found.offset.turn == pytest.approx(3.0, abs=0.4)


def test_an_answer_in_its_place_is_read_without_any_blur(pair: tuple[np.ndarray, np.ndarray]) -> None:
    source, target = pair
    found = register_edit(source, target)
    assert found.offset == Offset(0, 0, 1, 0)
    assert np.array_equal(found.picture[found.changed], target[found.changed])
    edited = cv2.erode((source != target).any(2).astype(np.uint8), np.ones((3, 3))) > 0
    assert (found.changed & edited).sum() > 0.98 * edited.sum()


def test_noise_all_over_an_answer_is_no_edit(pair: tuple[np.ndarray, np.ndarray]) -> None:
    source, target = pair
    noise = np.random.default_rng(0).normal(0, 4, source.shape)
    found = register_edit(source, np.clip(target + noise, 0, 255).round().astype(np.uint8))
    near = cv2.dilate((source != target).any(2).astype(np.uint8), np.ones((9, 9))) > 0
    assert not (found.changed & ~near).any()


def test_nothing_is_taken_outside_a_mask(pair: tuple[np.ndarray, np.ndarray]) -> None:
    source, target = pair
    mask = (source != target).any(2)
    mask[:, : SIDE // 2] = False
    found = register_edit(source, target, mask=mask)
    assert np.array_equal(found.picture[~mask], source[~mask])
    assert found.changed.any()
    assert not (found.changed & ~mask).any()


def test_another_picture_is_refused_with_the_offset_found(pair: tuple[np.ndarray, np.ndarray]) -> None:
    other = frame_of(Clip.of(Scene.sample(2 * 10**9 + 11), 4, SIDE))
    with pytest.raises(MethodError, match=r"another picture: at best \d+% .* pixels, zoom \d"):
        register_edit(pair[0], other)
    noise = np.random.default_rng(1).integers(0, 256, pair[0].shape, np.uint8)
    with pytest.raises(MethodError, match="another picture"):
        register_edit(pair[0], noise)


def test_a_line_that_an_edit_removes_counts_as_changed() -> None:
    picture = np.full((64, 64, 3), 90, np.uint8)
    picture[20:24] = 220
    flat = np.full_like(picture, 90)
    changed = changed_region(picture, flat, np.ones((64, 64), bool))
    assert changed[20:24].all()
    assert not changed[40:].any()
