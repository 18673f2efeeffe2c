"""A photograph, moved and turned, passes all of an edit: found, followed, cut out, drawn, laid back."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import final

import cv2
import numpy as np
import pytest
import torch

from retouch.methods.face.align import FaceTrack, follow_face, lay_over
from retouch.methods.face.edit import decode_faces, encode_faces, mean_identity, read_faces
from retouch.models.face_model import FaceModel
from retouch.models.face_parts import FoundFace
from retouch.run import Run
from retouch.video import Video

FRAMES, SIDE, STEPS = 24, 224, 2
PIXEL = 1.0
WHERE_EYES_AND_MOUTH_ARE = np.array([[0.32, 0.4], [0.68, 0.4], [0.36, 0.78], [0.64, 0.78]])
"""In the square that the cascade gives for a face."""


@final
@dataclass(frozen=True, eq=False)
class Moved:
    """The photograph of an astronaut, swaying, with where her eyes and mouth are in each frame."""

    video: Video
    points: np.ndarray
    moves: np.ndarray


@final
class FinderOfTheMoved:
    """Says of each frame where the cascade's face went."""

    identity = property(lambda _: "the moved")

    def __init__(self, moved: Moved) -> None:
        self.known = {frame.tobytes(): p for frame, p in zip(moved.video.frames, moved.points, strict=True)}

    def find(self, frame: np.ndarray) -> list[FoundFace]:
        return [FoundFace(self.known[frame.tobytes()], 1.0)]


@pytest.fixture(scope="module")
def moved() -> Moved:
    data, feature = pytest.importorskip("skimage.data"), pytest.importorskip("skimage.feature")
    photo = data.astronaut()
    found = feature.Cascade(data.lbp_frontal_face_cascade_filename()).detect_multi_scale(
        img=photo, scale_factor=1.2, step_ratio=1, min_size=(60, 60), max_size=(123, 123)
    )
    box = max(found, key=lambda each: each["width"])
    points = [box["c"], box["r"]] + box["width"] * WHERE_EYES_AND_MOUTH_ARE
    middle, frames, places, moves = points.mean(0), [], [], []
    for n in range(FRAMES):
        swing = np.cos(np.pi * n / (FRAMES - 1))
        move = cv2.getRotationMatrix2D(tuple(middle.tolist()), 5 * swing, 1.0)
        move[:, 2] += SIDE / 2 - middle + [10 * swing, -6 * swing]
        frames.append(cv2.warpAffine(photo, move, (SIDE, SIDE)).transpose(2, 0, 1))
        places.append(points @ move[:, :2].T + move[:, 2])
        moves.append(move)
    return Moved(Video(np.stack(frames), Fraction(12)), np.stack(places), np.stack(moves))


@pytest.fixture(scope="module")
def model() -> FaceModel:
    return FaceModel.from_pretrained("tiny:face")


@pytest.fixture
def track(moved: Moved, model: FaceModel, tmp_path: Path) -> FaceTrack:
    return follow_face(moved.video, model, FinderOfTheMoved(moved), None, run=Run.alone(tmp_path))


def test_the_square_moves_and_turns_with_the_photograph(
    moved: Moved, model: FaceModel, track: FaceTrack
) -> None:
    assert track.shown.all()
    corners = track.squares(model.diffusion.config.scale).corners
    still = (corners - moved.moves[:, None, :, 2]) @ moved.moves[:, :, :2]
    assert np.ptp(corners, axis=0).max() > 5
    assert np.abs(still - still.mean(0)).max() < PIXEL


def test_what_is_drawn_is_laid_where_the_face_is_and_all_else_stays_exact(
    moved: Moved, model: FaceModel, track: FaceTrack, tmp_path: Path
) -> None:
    video, run, net = moved.video, Run.alone(tmp_path / "run"), model.diffusion
    squares = track.squares(net.config.scale)
    faces = read_faces(video, squares, track, model, run=run)
    who, schedule = mean_identity(faces, normalised=True), net.schedule(STEPS)
    crops, entry = squares.crop(video.pixels(), model.side), torch.zeros(1, 3, model.side, model.side)
    with torch.no_grad():
        encoded = encode_faces(crops, who, faces.motion, entry, model, schedule, run=run)
        same, other = (
            decode_faces(
                encoded, wanted.expand(FRAMES, -1), faces.motion, model, schedule, corrected=True, run=run
            )
            for wanted in (who, -who)
        )
    _, untouched = lay_over(video, squares, encoded.seen, same, faces.parts.long(), model, 0.08)
    assert not untouched.any()
    pixels, where = lay_over(video, squares, encoded.seen, other, faces.parts.long(), model, 0.08)
    made = np.where(where, video.like(pixels).frames, video.frames)
    cover = squares.paste(torch.ones(FRAMES, 1, model.side, model.side), (SIDE, SIDE)).numpy() > 0
    assert not (where & ~cover).any()
    outside = np.broadcast_to(~cover, made.shape)
    assert (made[outside] == video.frames[outside]).all()
    assert (made != video.frames).any((1, 2, 3)).all()


def test_a_dot_of_the_crop_lies_in_every_frame_where_the_photograph_has_gone(
    moved: Moved, model: FaceModel, track: FaceTrack
) -> None:
    squares = track.squares(model.diffusion.config.scale)
    dot = torch.zeros(FRAMES, 1, model.side, model.side)
    dot[:, :, 39:42, 21:24] = 1
    laid = squares.paste(dot, (SIDE, SIDE))[:, 0].double().numpy()
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mass = laid.sum((1, 2))
    seen = np.stack([(laid * columns).sum((1, 2)) / mass, (laid * rows).sum((1, 2)) / mass], 1)
    still = np.einsum("fij,fi->fj", moved.moves[:, :, :2], seen - moved.moves[:, :, 2])
    assert np.abs(still - still.mean(0)).max() < PIXEL
