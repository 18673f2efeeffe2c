from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from retouch.errors import RequestError
from retouch.world import (
    LANDMARKS,
    PARTS,
    Expression,
    FaceClip,
    Identity,
    Liveliness,
    Portrait,
    face_picture,
)
from retouch.world.faces import FACE_WORDS, sample_identity, sample_motion

STILL = Liveliness()


def still(seed: int) -> Portrait:
    return replace(Portrait.sample(seed), motion=STILL)


def part_at(clip: FaceClip, t: int, x: float, y: float) -> str:
    return PARTS[clip.parts[t, 0, round(float(y)), round(float(x))]]


def test_a_portrait_caption_read_back_says_the_same() -> None:
    for seed in range(150):
        portrait = Portrait.sample(seed)
        assert Portrait.of(portrait.caption, seed + 1).caption == portrait.caption


def test_landmarks_lie_on_the_parts_they_name() -> None:
    for seed in range(12):
        motion = replace(sample_motion(seed), blinks=1000.0)  # no blink but at the start
        portrait = replace(Portrait.sample(seed), motion=motion)
        clip = FaceClip.of(portrait, 3, 160, Fraction(2))
        for t in (1, 2):
            places = dict(zip(LANDMARKS, clip.landmarks[t], strict=True))
            assert part_at(clip, t, *places["left eye"]) == "eyes"
            assert part_at(clip, t, *places["right eye"]) == "eyes"
            assert part_at(clip, t, *places["nose tip"]) == "nose"
            middle = (places["mouth top"] + places["mouth bottom"]) / 2
            assert part_at(clip, t, *middle) == "mouth"
            assert places["left eye"][0] < places["right eye"][0]
            assert places["mouth bottom"][1] < places["chin"][1]


def test_landmarks_follow_motion_and_not_looks() -> None:
    one, other = Portrait.sample(1), Portrait.sample(2)
    identity = replace(
        other.identity,
        shape=one.identity.shape,
        eye_distance=one.identity.eye_distance,
        mouth=one.identity.mouth,
    )
    a, b = FaceClip.of(one, 3, 64), FaceClip.of(replace(one, identity=identity), 3, 64)
    assert np.array_equal(a.landmarks, b.landmarks)
    assert not np.array_equal(a.video.frames, b.video.frames)
    assert np.abs(np.diff(a.landmarks, axis=0)).max() > 0.1


@pytest.mark.parametrize("name", [name for name in FACE_WORDS if name != "background"])
def test_every_word_for_a_face_changes_the_picture(name: str) -> None:
    base = still(3).changed("hair=short").changed("hat=none").changed("beard=yes")
    pictures = [face_picture(base.changed(f"{name}={word}"), 1.0, 96) for word in FACE_WORDS[name]]
    for number, one in enumerate(pictures):
        for other in pictures[number + 1 :]:
            assert (one != other).any(axis=2).sum() > 30


@pytest.mark.parametrize("change", ["glasses", "beard", "hat", "hair"])
def test_what_an_edit_does_not_reach_stays_equal(change: str) -> None:
    base = still(4).changed("glasses=no").changed("beard=no").changed("hat=none").changed("hair=short")
    word = {"hat": "red", "hair": "curly"}.get(change, "yes")
    before = FaceClip.of(base, 2, 96)
    after = before.edited(f"{change}={word}")
    part = PARTS.index(change)
    mine = (before.parts == part) | (after.parts == part)
    # Soft borders reach two pixels past the line that the part map is drawn along.
    grown = mine.copy()
    for down in (-2, -1, 0, 1, 2):
        for across in (-2, -1, 0, 1, 2):
            grown |= np.roll(mine, (down, across), (2, 3))
    different = (before.video.frames != after.video.frames).any(axis=1, keepdims=True)
    assert different.any()
    assert not (different & ~grown).any()


def test_a_new_background_leaves_the_face_equal() -> None:
    before = FaceClip.of(Portrait.sample(5), 2, 64)
    word = "wood" if before.portrait.background != "wood" else "snow"
    after = before.edited(f"background={word}")
    whole = before.alpha[:, 0] == 255
    assert np.array_equal(before.colour, after.colour)
    assert (before.video.frames == after.video.frames).all(axis=1)[whole].all()
    assert not (before.video.frames == after.video.frames).all()


def test_eyes_shut_when_they_blink() -> None:
    motion = replace(STILL, blinks=2.0)
    assert motion.at(0.125).blink == 1
    assert motion.at(1.0).blink == 0
    clip = FaceClip.of(replace(still(6).changed("glasses=no"), motion=motion), 24, 96)
    seen = (clip.parts == PARTS.index("eyes")).sum(axis=(1, 2, 3))
    assert seen[1] < seen[12] / 2


def test_an_open_mouth_is_larger() -> None:
    pictures = []
    for opened in (0.0, 1.0):
        motion = replace(STILL, mouth=opened, phase=1 / 6)  # a sixth of the period: as wide as it goes
        pictures.append(FaceClip.of(replace(still(7), motion=motion), 1, 96))
    shut, wide = ((clip.parts == PARTS.index("mouth")).sum() for clip in pictures)
    assert wide > 2 * shut


def test_identity_motion_and_background_come_from_streams_of_their_own() -> None:
    assert Portrait.sample(8).identity == sample_identity(8)
    assert Portrait.sample(8).motion == sample_motion(8)
    hats = {sample_identity(seed).hat for seed in range(100)}
    assert hats == {"none", "red", "yellow", "green", "blue"}
    assert isinstance(sample_motion(0).at(0.3), Expression)


@pytest.mark.parametrize("text", ["nose=big", "glasses=maybe", "hat", "", "hair=green"])
def test_words_that_change_no_face_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(RequestError) as refusal:
        Portrait.sample(0).changed(text)
    assert refusal.value.hint


def test_a_caption_without_a_face_is_refused() -> None:
    with pytest.raises(RequestError, match="no face"):
        Portrait.of("a red car on grass")


def test_a_person_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(RequestError, match="hair colour"):
        Identity(hair_colour="green")
    with pytest.raises(RequestError, match="background"):
        Portrait(Identity(), background="moon")
