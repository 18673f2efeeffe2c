from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from retouch.errors import ParamsError, VideoError
from retouch.events import Advanced, Event
from retouch.media.pictures import on_white, write_picture
from retouch.methods.frame_by_frame.edit import edit
from retouch.methods.frame_by_frame.spec import SPEC, FrameByFrameParams
from retouch.models.annotate import canny
from retouch.run import Run
from retouch.video import Video
from retouch.world.render import planes
from retouch.world.scene import Scene, Variety

ROUNDING_LEVELS = 1
"""Batches of other sizes sum in another order; that may tip a byte's rounding."""
HELD = 1.4
"""Times as many edges are kept; at their best the shipped weights double them."""
PLAIN_TO_SEE = 10
"""Levels of the mean colour of whole frames, of which the object covers a fifth."""


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


def drawn(caption: str, frames: int = 4) -> Video:
    scene = Scene.of(caption, 11, Variety.easy())
    return Video(np.stack([planes(scene, 0.3 * n, 64) for n in range(frames)]), Fraction(12))


def edges_kept(clip: Video, edited: Video) -> float:
    """F1 of edge pixels."""
    seen, wanted = canny(edited.frames), canny(clip.frames)
    return float(2 * (seen * wanted).sum() / (seen.sum() + wanted.sum()))


def test_edges_hold_the_shapes_where_nothing_else_is_left_of_the_source(tmp_path: Path) -> None:
    clip = drawn("a red car on grass")
    kept = {}
    for scale in (0.0, 1.0):
        told = params(prompt="a blue car on grass", steps=10, guidance=4.0, strength=1.0, edges=scale)
        kept[scale] = edges_kept(clip, edit(clip, told, Run.alone(tmp_path / str(scale))).video)
    assert kept[1.0] > HELD * kept[0.0]


def test_a_reference_picture_gives_the_colour_that_the_prompt_leaves_open(tmp_path: Path) -> None:
    clip = drawn("a white ball on sand")
    shades = {}
    for colour in ("red", "blue"):
        path = tmp_path / f"{colour}.png"
        reference = planes(Scene.of(f"a {colour} ball on snow", 3, Variety.easy()), 0.0, 64)
        write_picture(np.ascontiguousarray(reference.transpose(1, 2, 0)), path)
        told = params(prompt="a ball on sand", steps=10, guidance=4.0, strength=1.0, reference=path)
        shades[colour] = edit(clip, told, Run.alone(tmp_path / colour)).video.frames.mean((0, 2, 3))
    assert shades["red"][0] > shades["blue"][0] + PLAIN_TO_SEE
    assert shades["blue"][2] > shades["red"][2] + PLAIN_TO_SEE


def test_a_reference_lies_on_white_where_it_is_clear() -> None:
    picture = np.zeros((2, 2, 4), np.uint8)
    picture[0, :, 3] = 255
    assert on_white(picture).tolist() == [[[0, 0], [255, 255]]] * 3


def test_a_reference_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"none\.png"):
        edit(still(1), params(reference=tmp_path / "none.png"), Run.alone(tmp_path))


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
