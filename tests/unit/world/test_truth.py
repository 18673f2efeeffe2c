from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retouch.errors import RequestError
from retouch.world import COLOURS, OBJECTS, Change, Clip, Scene, Variety, edited_clip, reachable_pixels
from retouch.world.exact import blend_over
from retouch.world.render import texture_coordinates, world_points

WARPED = 30.0
"""What the true flow must reach, in dB, over pixels that are seen in both frames."""

UNSTYLED = Variety(styles=("none",), pair=0.6)
# The world's sine and cosine are within 1e-9, so a turn there and back misses by a few times that.
ROUNDING = 1e-8


@cache
def clip(seed: int, size: int = 64, frames: int = 4) -> Clip:
    return Clip.of(Scene.sample(seed, UNSTYLED), frames, size)


def fetched(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """The frame at the places the flow points to, blended from the four pixels around."""
    h, w = flow.shape[1:]
    x, y = np.arange(w) + flow[0].astype(np.float64), np.arange(h)[:, None] + flow[1].astype(np.float64)
    left, top = np.clip(np.floor(x).astype(int), 0, w - 2), np.clip(np.floor(y).astype(int), 0, h - 2)
    a, b = x - left, y - top
    rows = [(frame[:, top + d, left] * (1 - a) + frame[:, top + d, left + 1] * a) for d in (0, 1)]
    return np.asarray(rows[0] * (1 - b) + rows[1] * b)


def psnr(one: np.ndarray, other: np.ndarray, where: np.ndarray) -> float:
    wrong = (one - other)[:, where]
    return float(10 * np.log10(255**2 / max(float((wrong * wrong).mean()), 1e-9)))


@pytest.mark.parametrize("size", [64, 128])
def test_true_flow_carries_each_frame_to_the_next_and_back(size: int) -> None:
    for seed in range(12):
        found = clip(seed, size)
        frames = found.video.frames.astype(np.float64)
        for t in range(len(frames) - 1):
            ahead = fetched(frames[t + 1], found.forward[t])
            assert psnr(ahead, frames[t], found.forward_seen[t, 0]) > WARPED
            behind = fetched(frames[t], found.backward[t])
            assert psnr(behind, frames[t + 1], found.backward_seen[t, 0]) > WARPED


def test_most_of_a_picture_is_seen_again_and_what_is_covered_is_not() -> None:
    shares = [float(clip(seed, 128).forward_seen.mean()) for seed in range(6)]
    assert min(shares) > 0.6
    assert max(shares) < 1


def test_flow_there_and_back_ends_where_it_began() -> None:
    found = clip(2, 128)
    there, seen = found.flow(0, 3)
    back, _ = found.flow(3, 0)
    returned = there + fetched(back, there)
    # The way back is blended from four pixels' flows, which differ by their rotation and bend.
    assert np.abs(returned[:, seen[0]]).max() < 0.25
    assert np.abs(there).max() > 1


def test_flow_from_a_frame_to_itself_is_nothing() -> None:
    flow, _ = clip(3).flow(1, 1)
    assert np.abs(flow).max() < 1e-5  # single precision pixels


def test_layers_laid_over_one_another_are_the_frames() -> None:
    found = clip(5)
    for t in range(len(found.video)):
        frame = found.layers[-1].colour[t]
        for layer in reversed(found.layers[:-1]):
            frame = blend_over(layer.colour[t], layer.alpha[t, 0], frame)
        assert np.array_equal(frame, found.video.frames[t])


def test_masks_share_out_every_pixel_and_the_first_named_stands_in_front() -> None:
    scene = Scene.of("a red ball and a blue box on sand", 1)
    middle = replace(scene.actors[0].motion, centre=(0.0, 0.0), swing=(0.0, 0.0))
    scene = replace(scene, actors=tuple(replace(actor, motion=middle) for actor in scene.actors))
    found = Clip.of(scene, 2, 64)
    assert (found.masks.sum(axis=0) == 1).all()
    assert found.masks[0, 0, 0, 32, 32]
    assert found.masks[1].sum() > 0
    assert found.layers[0].name == "red ball"


def test_a_spot_of_an_object_has_the_same_texture_coordinates_in_every_frame() -> None:
    found = clip(1, 128)
    flow, seen = found.flow(0, 2)
    mine = seen[0] & found.masks[0, 0, 0]
    assert mine.sum() > 100
    moved = fetched(found.layers[0].coordinates[2].astype(np.float64), flow)
    # Blending between pixels is off by the bend's curvature only.
    assert np.abs(moved - found.layers[0].coordinates[0])[:, mine].max() < 1e-3


@given(
    st.integers(0, 10_000),
    st.floats(0, 100),
    st.floats(-1.2, 1.2),
    st.floats(-1.2, 1.2),
)
def test_world_points_undo_texture_coordinates(seed: int, t: float, x: float, y: float) -> None:
    actor = Scene.sample(seed).actors[0]
    pose = actor.motion.at(t)
    u, v = texture_coordinates(actor, pose, np.array([[x]]), np.array([[y]]))
    back = world_points(actor, pose, u, v)
    assert abs(back[0][0, 0] - x) < ROUNDING
    assert abs(back[1][0, 0] - y) < ROUNDING


def test_the_scene_in_which_nothing_changes_is_the_same_clip() -> None:
    found = clip(0)
    assert edited_clip(found).video.digest == found.video.digest


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 30), st.sampled_from(["colour", "pattern", "object"]), st.integers(0, 1), st.data())
def test_an_edit_of_an_object_leaves_every_other_pixel_equal(
    seed: int, what: str, which: int, data: st.DataObject
) -> None:
    found = clip(seed, 48, 2)
    which = min(which, len(found.scene.actors) - 1)
    words = {"colour": COLOURS, "pattern": ("plain", "striped", "dotted", "checked"), "object": OBJECTS}[what]
    word = data.draw(st.sampled_from([w for w in words if w not in found.layers[which].name.split()]))
    if what == "pattern" and word == getattr(found.scene.actors[which], what):
        return
    after = edited_clip(found, Change.parse(f"{which}.{what}={word}"))
    different = (after.video.frames != found.video.frames).any(axis=1, keepdims=True)
    mine = (found.layers[which].alpha > 0) | (after.layers[which].alpha > 0)
    assert not (different & ~mine).any()
    assert not (different & ~reachable_pixels(found, after)).any()
    assert different.any() or not mine.any()


def test_a_new_background_leaves_the_inside_of_objects_equal() -> None:
    found = clip(6)
    word = "snow" if found.scene.background != "snow" else "wood"
    after = edited_clip(found, Change.parse(f"background={word}"))
    covered = found.shares[:, -1] == 0
    same = (after.video.frames == found.video.frames).all(axis=1)
    assert covered.any()
    assert same[covered].all()
    assert not same[~covered].all()


def test_edits_keep_the_motion() -> None:
    found = clip(7)
    after = edited_clip(found, Change.parse("object=cup"), Change.parse("style=neon"))
    assert after.scene.actors[0].motion == found.scene.actors[0].motion
    assert after.scene.camera == found.scene.camera
    assert np.array_equal(after.layers[0].coordinates, found.layers[0].coordinates)
    assert after.caption.startswith("a")
    assert "cup" in after.caption
    assert after.caption.endswith("neon")


def test_a_change_of_style_may_reach_everywhere() -> None:
    found = clip(8, 48, 2)
    assert reachable_pixels(found, edited_clip(found, Change.parse("style=watercolor"))).all()


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("color=blue", Change("colour", "blue")),
        ("colour = Blue", Change("colour", "blue")),
        ("1.color=blue", Change("colour", "blue", 1)),
        ("fish", Change("object", "fish")),
        ("style=pixel_art", Change("style", "pixel art")),
        ("watercolor", Change("style", "watercolour")),
        ("0.pattern=plain", Change("pattern", "plain")),
        ("background=night", Change("background", "night")),
    ],
)
def test_changes_are_read_from_words(text: str, change: Change) -> None:
    assert Change.parse(text) == change


@pytest.mark.parametrize(
    "text", ["", "colour=", "colour=fish", "size=3", "5.colour=red", "a.colour=red", "=", "dragon"]
)
def test_words_that_are_no_change_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(RequestError) as refusal:
        Change.parse(text)
    assert "colour" in refusal.value.hint


def test_a_change_of_an_object_that_is_not_there_is_refused() -> None:
    scene = Scene.of("a red ball on sand")
    with pytest.raises(RequestError, match="no object 1"):
        Change.parse("1.colour=blue").of(scene)


def test_a_clip_of_one_frame_has_no_flow() -> None:
    found = Clip.of(Scene.sample(1), 1, (20, 30))
    assert found.forward.shape == (0, 2, 20, 30)
    assert found.backward_seen.shape == (0, 1, 20, 30)
