"""Charts: when one picture is enough, when it is not, and how they share the frames."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retouch.atlas.charts import (
    choose_references,
    followed_share,
    reference_candidates,
    spans_between,
    zoom_coverage,
)
from retouch.tracking.flow import ClipFlow, DisFlow


class Still:
    """A flow of one vector everywhere."""

    def __init__(self, x: float) -> None:
        self.x = x

    @property
    def identity(self) -> str:
        return str(self.x)

    def pair(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        made = np.zeros((2, *a.shape[:2]), np.float32)
        made[0] = self.x if int(b[0, 0, 0]) > int(a[0, 0, 0]) else -self.x
        return made


def moving(x: float) -> tuple[np.ndarray, ClipFlow]:
    """A square that moves by whole pixels, and its exact flow."""
    masks = np.zeros((6, 48, 96), np.uint8)
    for t in range(6):
        masks[t, 12:36, 12 + int(x * t) : 36 + int(x * t)] = 255
    pictures = [np.full((48, 96, 3), t, np.uint8) for t in range(6)]
    return masks, ClipFlow(pictures.__getitem__, Still(x), np.zeros((5, 2, 2, 48, 96), np.float32))


def test_an_object_that_only_moves_is_covered_from_any_frame() -> None:
    masks, flow = moving(4)
    shown = followed_share(masks, flow, [0, 3])
    assert shown.min() > 0.9
    assert len(choose_references(shown, 8)) == 1


def test_what_comes_into_sight_is_not_covered() -> None:
    masks, flow = moving(0)
    masks[3:, 12:36, 36:60] = 255  # the object doubles: its new half was not there before
    shown = followed_share(masks, flow, [0, 5])
    assert shown[0, 5] == pytest.approx(0.5, abs=0.1)
    taken = choose_references(shown, 8)
    assert len(taken) >= 1
    assert 1 in taken  # the frame that shows all of it


def test_candidates_hold_the_middle() -> None:
    assert 17 in reference_candidates(35)
    assert reference_candidates(1) == [0]
    assert max(reference_candidates(700)) < 700


@given(st.integers(1, 6), st.integers(12, 60))
def test_blends_sum_to_one_and_spans_hold_their_references(count: int, frames: int) -> None:
    own = np.unique(np.linspace(1, frames - 2, count).round().astype(int))
    away = np.abs(np.arange(frames)[None] - own[:, None])
    spans = spans_between((1 - away / frames).astype(np.float32), own.tolist(), range(len(own)))
    total = torch.zeros(frames)
    for span in spans:
        assert span.start <= span.reference < span.stop
        total[span.start : span.stop] += span.blend
    assert torch.allclose(total, torch.ones(frames), atol=1e-5)


def test_a_background_that_runs_to_its_horizon_is_not_covered() -> None:
    steep = torch.eye(3, dtype=torch.float64)
    steep[2, 0] = 0.02
    shown = zoom_coverage(torch.stack([torch.eye(3, dtype=torch.float64), steep])[None], 96, 160)
    assert shown[0, 0] == 1
    assert shown[0, 1] < 0.9


def test_flow_of_a_real_picture_covers_it_too() -> None:
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 255, (12, 16, 3)), np.ones((6, 6, 1))).astype(np.uint8)
    flow = ClipFlow(lambda _t: picture, DisFlow(), np.zeros((3, 2, 2, 72, 96), np.float16))
    masks = np.zeros((4, 72, 96), np.uint8)
    masks[:, 18:54, 24:72] = 255
    assert followed_share(masks, flow, [0]).min() > 0.9
