import numpy as np
import pytest
import torch

from retouch.tracking.face_squares import FaceSquares
from retouch.world import LANDMARKS, FaceClip, Portrait

EXACT = 1e-9
TWO_RESAMPLINGS_DB = 24
"""A drawn face has hard edges, and each resampling softens them."""


def squares_of(clip: FaceClip, scale: float = 1.25) -> FaceSquares:
    at = {name: clip.landmarks[:, n].astype(np.float64) for n, name in enumerate(LANDMARKS)}
    return FaceSquares.around((at["left eye"], at["right eye"]), (at["mouth left"], at["mouth right"]), scale)


def test_points_go_into_the_square_and_out_again() -> None:
    clip = FaceClip.of(Portrait.sample(3), 5)
    squares, points = squares_of(clip), clip.landmarks.astype(np.float64)
    assert np.abs(squares.outside(squares.inside(points)) - points).max() < EXACT
    assert ((squares.inside(points) > 0.1) & (squares.inside(points) < 0.9)).all()
    assert np.abs(squares.inside(squares.corners) - [[0, 0], [0, 1], [1, 1], [1, 0]]).max() < EXACT


def test_a_face_stays_where_it_is_in_the_square_however_it_is_moved_turned_and_sized() -> None:
    eyes, mouth = np.array([[[10.0, 20.0]], [[30.0, 20.0]]]), np.array([[[13.0, 40.0]], [[27.0, 40.0]]])
    turn = 1.7 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])

    def inside(change: np.ndarray, by: np.ndarray) -> np.ndarray:
        left, right, low, lower = (p @ change.T + by for p in (*eyes, *mouth))
        return FaceSquares.around((left, right), (low, lower)).inside(np.stack([left, right, low, lower], 1))

    assert np.abs(inside(np.eye(2), np.zeros(2)) - inside(turn, np.array([50.0, -7.0]))).max() < EXACT


def test_jitter_is_smoothed_and_a_steady_way_is_kept() -> None:
    dice = np.random.default_rng(0)
    steady = np.stack([np.linspace(20, 60, 40), np.linspace(30, 20, 40)], axis=1)
    right = np.tile([[16.0, 1.0]], (40, 1))
    noisy = FaceSquares(steady + dice.normal(0, 2, (40, 2)), right + dice.normal(0, 2, (40, 2))).smoothed()
    assert np.abs(noisy.right - right).std() < 1
    assert np.abs(noisy.centre - steady).std() < 1.4
    kept = FaceSquares(steady, right).smoothed()
    assert np.abs(kept.centre - steady)[4:-4].max() < EXACT
    assert np.abs(kept.right - right).max() < EXACT


def test_one_frame_is_smoothed_to_itself() -> None:
    squares = squares_of(FaceClip.of(Portrait.sample(1), 1))
    assert np.allclose(squares.smoothed().corners, squares.corners)


@pytest.mark.parametrize("side", [64, 128])
def test_a_crop_shows_points_where_the_square_says_and_pastes_back_to_the_frame(side: int) -> None:
    clip = FaceClip.of(Portrait.sample(5), 3)
    squares, frames = squares_of(clip), torch.from_numpy(clip.video.frames.copy()).float()
    crops = squares.crop(frames, side)
    back = squares.paste(crops, (128, 128))
    inside = squares.paste(torch.ones_like(crops[:, :1]), (128, 128)).bool().expand_as(back)
    error = (back - frames)[inside].square().mean()
    assert 10 * torch.log10(255**2 / error) > TWO_RESAMPLINGS_DB - (6 if side == 64 else 0)
    assert (back[~inside] == 0).all()


def test_cubic_curves_between_pixels_lay_a_picture_back_sharper() -> None:
    clip = FaceClip.of(Portrait.sample(5), 2)
    squares, frames = squares_of(clip), torch.from_numpy(clip.video.frames.copy()).float()
    crops = squares.crop(frames, 64)
    straight, curved = squares.paste(crops, (128, 128)), squares.paste(crops, (128, 128), by="bicubic")
    covered = squares.paste(torch.ones_like(crops[:, :1]), (128, 128)).bool().expand_as(straight)
    assert ((straight == 0) & (curved == 0))[~covered].all()
    assert (curved - frames)[covered].square().mean() < 0.9 * (straight - frames)[covered].square().mean()


def test_a_turned_square_is_cut_with_its_corners_where_they_belong() -> None:
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    frame = torch.stack([columns, rows])[None]  # each pixel says where it is
    squares = FaceSquares(np.array([[40.0, 30.0]]), np.array([[12.0, 9.0]]))
    spots = (np.arange(16) + 0.5) / 16
    grid = np.stack(np.meshgrid(spots, spots), axis=-1).reshape(1, -1, 2)
    wanted = torch.from_numpy(squares.outside(grid)).reshape(1, 16, 16, 2).permute(0, 3, 1, 2).float()
    assert (squares.crop(frame, 16) - wanted).abs().max() < 1e-3


def test_beyond_the_frame_its_border_is_repeated_or_there_is_nothing() -> None:
    frame = torch.full((1, 3, 20, 20), 0.5)
    squares = FaceSquares(np.array([[0.0, 10.0]]), np.array([[8.0, 0.0]]))
    assert torch.allclose(squares.crop(frame, 16), torch.tensor(0.5))
    black = squares.crop(frame, 16, beyond="zero")
    assert (black[..., :7] == 0).all()
    assert torch.allclose(black[..., 9:], torch.tensor(0.5))
