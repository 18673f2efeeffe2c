"""Key frames edited by words agree with one another, and go on where they were stopped."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import cv2
import numpy as np
import pytest

from retouch.atlas.atlas import Atlas
from retouch.atlas.edit import painted_key
from retouch.atlas.keyframes import edited_keyframes
from retouch.run import Run
from retouch.video import Video

AGREE = 16
"""Levels, in the mean, by which what is carried may differ: it is read between pixels."""
BLUE, GREEN = (40, 60, 220), (60, 220, 40)
Truth = tuple[np.ndarray, np.ndarray, np.ndarray]


@final
@dataclass
class Recolours:
    """An editor that shifts its answers, and gives an object another colour in each."""

    objects: list[np.ndarray]
    shift: int = 0
    shown: list[np.ndarray] = field(default_factory=list)

    @property
    def identity(self) -> str:
        return "recolours"

    def edit(
        self,
        picture: np.ndarray,
        prompt: str,
        *,
        mask: np.ndarray | None,
        references: Sequence[np.ndarray],
        seed: int,
        run: Run,
    ) -> np.ndarray:
        del prompt, mask, references, seed, run
        at = len(self.shown)
        self.shown.append(picture)
        made = picture.copy()
        made[self.objects[at]] = (BLUE, GREEN)[at]
        matrix = np.array([[1.0, 0, self.shift], [0, 1.0, -self.shift]])
        size = (picture.shape[1], picture.shape[0])
        return np.asarray(cv2.warpAffine(made, matrix, size, borderMode=cv2.BORDER_REPLICATE))


def shrunk(mask: np.ndarray, pixels: int) -> np.ndarray:
    kernel = np.ones((2 * pixels + 1,) * 2, np.uint8)
    return np.asarray(cv2.erode(mask.astype(np.uint8), kernel) > 0)


def test_a_later_key_frame_is_shown_what_the_first_decided_and_keeps_it(
    clip: Video, truth: Truth, atlas: Atlas, run: Run
) -> None:
    at = (2, 6)
    objects = [truth[0][t] > 0.5 for t in at]
    editor = Recolours(objects)
    made = dict(edited_keyframes(clip, at, "blue", editor, atlas=atlas, run=run))
    inner = shrunk(objects[1], 6)
    assert inner.any()
    for seen in (editor.shown[1], made[6].picture):
        assert np.abs(seen[inner].astype(float) - BLUE).mean() < AGREE
    for t in at:
        source = np.ascontiguousarray(clip.frames[t].transpose(1, 2, 0))
        still = ~made[t].changed
        assert np.array_equal(made[t].picture[still], source[still])
        assert painted_key(source, made[t].picture, t).cover.numpy()[0, shrunk(truth[0][t] > 0.5, 6)].all()


def test_an_answer_is_asked_for_once_and_a_shifted_one_is_laid_back(
    clip: Video, truth: Truth, run: Run
) -> None:
    object_ = truth[0][0] > 0.5
    editor = Recolours([object_], shift=4)
    (_, made), *_ = edited_keyframes(clip, [0], "blue", editor, run=run)
    assert (made.offset.x, made.offset.y) == pytest.approx((4, -4), abs=0.6)
    assert made.changed[shrunk(object_, 1)].mean() > 0.95
    (_, again), *_ = edited_keyframes(clip, [0], "blue", editor, run=run)
    assert len(editor.shown) == 1
    assert np.array_equal(made.picture, again.picture)


def test_the_editor_is_not_asked_where_all_of_a_mask_is_decided(
    clip: Video, truth: Truth, atlas: Atlas, run: Run
) -> None:
    at = (4, 5)
    masks = np.stack([np.uint8(255) * shrunk(alpha > 0.5, 8)[None] for alpha in truth[0]])
    # The first edits all of the object, so that its middle is decided in the next frame.
    masks[4] = np.uint8(255) * (truth[0][4] > 0.5)[None]
    editor = Recolours([truth[0][t] > 0.5 for t in at])
    made = dict(edited_keyframes(clip, at, "blue", editor, atlas=atlas, masks=masks, run=run))
    assert len(editor.shown) == 1
    assert np.abs(made[5].picture[masks[5, 0] > 0].astype(float) - BLUE).mean() < AGREE
