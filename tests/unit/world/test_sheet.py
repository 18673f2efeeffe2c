import numpy as np

from retouch.world import (
    BACKGROUNDS,
    COLOURS,
    LANDMARKS,
    OBJECTS,
    PATTERNS,
    STYLES,
    Change,
    Clip,
    FaceClip,
    Portrait,
    Scene,
)
from retouch.world import edited_clip as truly_edited
from retouch.world.faces import FACE_WORDS
from retouch.world.sheet import face_rows, face_vocabulary_rows, flow_picture, truth_rows, vocabulary_rows


def test_the_vocabulary_shows_every_word_once_and_no_two_alike() -> None:
    rows = vocabulary_rows(32)
    assert [name for row in rows.values() for name, _ in row] == [
        *OBJECTS,
        *COLOURS,
        *PATTERNS,
        *BACKGROUNDS,
        *STYLES,
    ]
    for row in rows.values():
        assert len({picture.tobytes() for _, picture in row}) == len(row)


def test_the_vocabulary_of_faces_shows_every_word() -> None:
    rows = face_vocabulary_rows(32)
    assert {name: [word for word, _ in row] for name, row in rows.items()} == {
        name.replace("_", " "): list(words) for name, words in FACE_WORDS.items()
    }


def test_a_contact_sheet_shows_the_frames_that_were_chosen() -> None:
    clip = Clip.of(Scene.of("a red car and a blue fish on sand", 3), 4, 32)
    rows = truth_rows(clip, [0, 3], truly_edited(clip, Change.parse("style=neon")))
    assert list(rows) == ["clip", "true edit", "red car", "blue fish", "sand", "masks", "texture", "flow"]
    assert np.array_equal(rows["clip"][1][1], clip.video.frames[3].transpose(1, 2, 0))
    assert all(picture.shape == (32, 32, 3) for row in rows.values() for _, picture in row)


def test_a_clip_of_one_frame_has_a_sheet_too() -> None:
    assert truth_rows(Clip.of(Scene.sample(1), 1, 24), [0])["flow"] == []


def test_flow_is_black_where_it_is_not_seen() -> None:
    flow = np.zeros((2, 2, 2), np.float32)
    flow[0, 0, 0] = 3
    seen = np.array([[[True, True], [True, False]]])
    shown = flow_picture(flow, seen)
    assert shown[1, 1].tolist() == [0, 0, 0]
    assert shown[0, 0, 0] > shown[0, 1, 0] > 100


def test_landmarks_are_drawn_on_a_face_and_nowhere_else() -> None:
    clip = FaceClip.of(Portrait.sample(2), 2, 64)
    rows = face_rows(clip, [1])
    drawn, bare = rows["landmarks"][0][1], rows["clip"][0][1]
    changed = (drawn != bare).any(axis=2)
    assert len(LANDMARKS) < changed.sum() <= 9 * len(LANDMARKS)
