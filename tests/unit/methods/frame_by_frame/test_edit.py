from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from retouch.errors import ParamsError
from retouch.events import Advanced, Event
from retouch.methods.frame_by_frame.edit import edit
from retouch.methods.frame_by_frame.spec import SPEC, FrameByFrameParams
from retouch.run import Run
from retouch.video import Video

ROUNDING_LEVELS = 1
"""Batches of other sizes sum in another order; that may tip a byte's rounding."""


def still(frames: int, height: int = 32, width: int = 32) -> Video:
    picture = np.random.default_rng(1).integers(0, 255, (1, 3, height, width), dtype=np.uint8)
    return Video(np.repeat(picture, frames, 0), Fraction(12))


def params(**values: object) -> FrameByFrameParams:
    return FrameByFrameParams.model_validate({"prompt": "a red ball", "steps": 2, "guidance": 2.0, **values})


def spread(video: Video) -> float:
    return float(np.abs(np.diff(video.frames.astype(float), axis=0)).mean())


def test_size_length_and_rate_stay(tmp_path: Path) -> None:
    clip = still(3, 36, 50)
    edited = edit(clip, params(), Run.alone(tmp_path)).video
    assert edited.frames.shape == clip.frames.shape
    assert edited.fps == clip.fps
    assert not np.array_equal(edited.frames, clip.frames)


def test_shared_noise_gives_equal_frames_equal_edits_and_own_noise_does_not(tmp_path: Path) -> None:
    clip = still(3)
    shared = edit(clip, params(shared_noise=True), Run.alone(tmp_path / "a")).video
    own = edit(clip, params(shared_noise=False), Run.alone(tmp_path / "b")).video
    assert np.abs(np.diff(shared.frames.astype(int), axis=0)).max() <= ROUNDING_LEVELS
    assert spread(own) > 10 * max(spread(shared), 0.1)


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    clip = still(2)
    first, again, other = (
        edit(clip, params(), Run.alone(tmp_path / name, seed=seed)).video.frames.copy()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_frame_is_edited_alike_in_a_long_clip_and_a_short_one(tmp_path: Path) -> None:
    long = edit(still(18), params(), Run.alone(tmp_path / "a")).video.frames[:2].astype(int)
    short = edit(still(2), params(), Run.alone(tmp_path / "b")).video.frames.astype(int)
    assert np.abs(long - short).max() <= ROUNDING_LEVELS


def test_weak_edits_stay_nearer_to_the_source(tmp_path: Path) -> None:
    clip = still(1)
    weak, strong = (
        edit(
            clip, params(steps=10, strength=strength, guidance=1.0), Run.alone(tmp_path / str(strength))
        ).video
        for strength in (0.1, 1.0)
    )
    error = [float(np.abs(v.frames.astype(float) - clip.frames).mean()) for v in (weak, strong)]
    assert error[0] < error[1]


def test_every_step_is_told(tmp_path: Path) -> None:
    heard: list[Event] = []
    edit(still(2), params(steps=4, strength=0.5), Run.alone(tmp_path, listen=heard.append))
    told = [event for event in heard if isinstance(event, Advanced)]
    assert [(event.done, event.total) for event in told] == [(1, 2), (2, 2)]


def test_strength_nought_is_refused() -> None:
    with pytest.raises(ParamsError, match="strength"):
        SPEC.fill({"prompt": "x", "strength": 0})


def test_presets_can_be_filled() -> None:
    SPEC.check()
    for preset in SPEC.presets:
        assert SPEC.fill({"prompt": "x"}, preset=preset)
