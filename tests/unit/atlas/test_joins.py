"""An object out of sight for a while: the gap is found, and led over where the same object follows."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from retouch.atlas.decompose import refine_stages
from retouch.atlas.edit import position_patches, read_positions
from retouch.atlas.joins import Gap, gaps_of
from retouch.atlas.prepare import objects_from_cutout
from retouch.atlas.pyramid import AtlasSettings
from retouch.run import Run
from retouch.tracking.flow import ClipFlow, DisFlow, pixel_grid
from retouch.tracking.segment import ObjectMasks
from retouch.video import Video

HIDDEN = range(4, 7)
STEP = 4


def cloth(seed: int, colour: tuple[float, float, float]) -> np.ndarray:
    """A picture of one colour with soft spots."""
    spots = cv2.GaussianBlur(np.random.default_rng(seed).random((96, 128, 3)).astype(np.float32), (0, 0), 2)
    return np.asarray((spots - spots.min()) / np.ptp(spots) * 160 * np.array(colour) + 30)


def passing(*, changed: bool = False) -> tuple[Video, np.ndarray]:
    """A disc that moves on behind a wall; its masks. Another disc may come out."""
    shots, masks = [], []
    for t in range(10):
        disc = np.zeros((96, 128), np.uint8)
        if t not in HIDDEN:
            cv2.circle(disc, (36 + STEP * t, 44), 20, 255, -1)
        skin = cloth(2, (0, 0, 1)) if changed and t > HIDDEN[0] else cloth(1, (1, 0.3, 0.2))
        picture = np.where(disc[..., None] > 0, np.roll(skin, STEP * t, axis=1), cloth(3, (0.2, 1, 0.3)))
        shots.append(np.full_like(picture, 200) if t in HIDDEN else picture)
        masks.append(disc)
    frames = np.stack(shots).clip(0, 255).astype(np.uint8).transpose(0, 3, 1, 2)
    return Video(frames, Fraction(10)), np.stack(masks)


def spans(folder: Path, video: Video, masks: np.ndarray) -> tuple[list[tuple[int, int]], float]:
    """The object's charts, and how far a point slides from the first frame to the last."""
    objects = objects_from_cutout(ObjectMasks(("disc",), masks[None], 96, 128))
    names = ("disc", "background")
    atlas = next(refine_stages(video, objects.mattes, names, AtlasSettings(), run=Run.alone(folder)))
    made = [(chart.start, chart.stop) for chart in atlas.charts if chart.layer == 0]
    places, cover = read_positions(atlas, position_patches(atlas, 0, 0), 9, 10)
    where = cv2.erode(masks[9], np.ones((7, 7), np.uint8)) > 0
    if not (cover[0, 0].numpy()[where] > 0.5).all():
        return made, np.inf
    true = pixel_grid(96, 128)[where] - (9 * STEP, 0)
    return made, float(np.linalg.norm(places[0].numpy()[:, where].T - true, axis=1).mean())


def test_gaps_lie_between_frames_that_show_the_object() -> None:
    assert list(gaps_of([0, 40, 90, 100, 0, 1, 30, 80, 82, 0])) == [Gap(last=3, first=6, before=3, after=7)]
    assert list(gaps_of([0, 0, 50, 60, 0])) == []
    assert list(gaps_of([])) == []


def test_bridges_take_the_place_of_flow() -> None:
    pictures = np.zeros((3, 16, 16, 3), np.uint8)
    flow = ClipFlow(pictures.__getitem__, DisFlow(), np.zeros((2, 2, 2, 16, 16), np.float16))
    bridge = np.ones((2, 16, 16), np.float32)
    led = flow.with_bridges({(0, 1): bridge, (1, 0): -bridge, (1, 2): bridge, (2, 1): -bridge})
    assert led.between(0, 1) is bridge
    assert [led.is_hidden(t) for t in range(3)] == [False, True, False]
    assert not flow.between(0, 1).any()


def test_an_object_that_comes_back_is_the_same_object(tmp_path: Path) -> None:
    made, off = spans(tmp_path, *passing())
    assert made == [(0, 10)]
    assert off < 0.3


def test_another_object_in_its_place_is_not(tmp_path: Path) -> None:
    made, _ = spans(tmp_path, *passing(changed=True))
    assert len(made) > 1


def test_noise_in_its_place_is_not(tmp_path: Path) -> None:
    video, masks = passing()
    frames = video.frames.copy()
    frames[HIDDEN[-1] + 1 :] = np.random.default_rng(0).integers(0, 255, frames[0].shape, np.uint8)
    made, _ = spans(tmp_path, video.like(frames), masks)
    assert len(made) > 1
