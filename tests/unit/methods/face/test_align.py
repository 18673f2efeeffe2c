import numpy as np
import pytest

from retouch.methods.face.align import (
    MOST_FILLED,
    FaceTrack,
    ReaderFinder,
    filled,
    gaps,
    most_agreed,
    no_parts_of_others,
    surest_apart,
)
from retouch.models.face_model import ANCHORS, FaceModel
from retouch.models.face_parts import FoundFace
from retouch.world import LANDMARKS, FaceClip, Portrait

NEAR = 2.0
"""Pixels within which eyes and mouth are found, of a face 60 pixels wide or less."""


def face_at(x: float, score: float) -> FoundFace:
    return FoundFace(np.array([[x, 0.0], [x + 10, 0], [x, 10], [x + 10, 10]]), score)


def test_gaps_are_runs_of_frames_without_the_face() -> None:
    assert gaps(np.array([True, False, False, True, False])) == [range(1, 3), range(4, 5)]
    assert gaps(np.array([True, True])) == []


def test_only_short_gaps_between_frames_that_show_the_face_are_edited() -> None:
    score = np.ones(MOST_FILLED + 6, np.float32)
    score[2 : 3 + MOST_FILLED], score[-1] = 0, 0
    track = FaceTrack(np.zeros((len(score), 4, 2)), score)
    assert (track.shown == (score > 0)).all()
    score[2] = 1
    assert FaceTrack(track.points, score).shown.tolist() == [True] * (len(score) - 1) + [False]


def test_points_between_frames_that_show_the_face_lie_on_a_straight_line() -> None:
    points = np.zeros((4, 4, 2))
    points[3] = 9.0
    assert filled(points, np.array([1, 0, 0, 1], np.float32))[:, 0, 0].tolist() == [0, 3, 6, 9]


def test_of_faces_on_one_place_the_surest_is_kept() -> None:
    kept = surest_apart([face_at(0, 0.5), face_at(2, 0.9), face_at(60, 0.3), face_at(120, 0.1)], 0.2, 0.7)
    assert [face.score for face in kept] == [0.9, 0.3]


def test_a_part_of_a_larger_face_is_no_face_and_a_smaller_one_beside_it_is() -> None:
    points = np.array([[-1.0, -1.0], [1.0, -1.0], [-0.8, 1.0], [0.8, 1.0]])
    face, eye = FoundFace(20 * points + 60, 0.97), FoundFace(4 * points + [70, 48], 0.99)
    beside = FoundFace(8 * points + [140, 60], 0.9)
    assert no_parts_of_others([eye, face, beside]) == [face, beside]
    assert no_parts_of_others([eye, FoundFace(face.points, 0.5)])[0] is eye


def test_of_faces_as_sure_the_one_that_most_came_to_is_kept() -> None:
    there, also, moving = face_at(0, 0.96), face_at(0.1, 0.97), face_at(2, 1.0)
    assert most_agreed([moving, there, also]) == [there, also]
    surer = face_at(2, 1.0), face_at(0, 0.8), face_at(0.1, 0.8)
    assert most_agreed(surer) == list(surer)
    assert most_agreed([]) == []


@pytest.mark.parametrize("person", [162, 153])
def test_the_face_around_is_found_and_no_lens_or_square_that_still_moves(person: int) -> None:
    clip = FaceClip.of(Portrait.sample(person), 16, 128)
    (found,) = ReaderFinder(FaceModel.from_pretrained("tiny:face")).find(clip.video.frames[0])
    true = clip.landmarks[0][[LANDMARKS.index(name) for name in ANCHORS]]
    assert np.abs(found.points - true).mean() < NEAR


@pytest.mark.parametrize(("place", "size"), [((0, 0), 80), ((100, 40), 60), ((20, 90), 100)])
def test_a_face_is_found_anywhere_in_a_larger_frame(place: tuple[int, int], size: int) -> None:
    clip = FaceClip.of(Portrait.sample(11), 1, size)
    frame = np.full((3, 200, 200), 120, np.uint8)
    x, y = place
    frame[:, y : y + size, x : x + size] = clip.video.frames[0]
    (found,) = ReaderFinder(FaceModel.from_pretrained("tiny:face")).find(frame)
    true = clip.landmarks[0][[LANDMARKS.index(name) for name in ANCHORS]] + place
    assert np.abs(found.points - true).max() < NEAR
