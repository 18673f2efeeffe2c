"""Where an edit may reach, what it looks like there, and where that is believed."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from retouch.metrics.propagation import straightness
from retouch.run import Run
from retouch.tracking.flow import DisFlow, pixel_grid, remap
from retouch.tracking.mesh import KeyLayer
from retouch.tracking.region import (
    PIECES,
    FollowedPiece,
    Track,
    backward_maps,
    find_changes,
    photo_consistent,
    pieces_of,
    straightened,
    track_edit,
    warp_edit,
    warp_mask,
)
from retouch.video import Video

OVERLAP = 0.8  # share of true and followed region that agree: a pixel all around a disc of 24 is 0.85


def moving(frames: int, speed: int = 2, height: int = 64, width: int = 96) -> Video:
    """A textured ground that moves to the left."""
    rng = np.random.default_rng(0)
    ground = cv2.GaussianBlur(rng.random((height, width + frames * speed, 3)).astype(np.float32), (0, 0), 2)
    ground = ((ground - ground.min()) / np.ptp(ground) * 255).astype(np.uint8)
    cut = [ground[:, t * speed : t * speed + width] for t in range(frames)]
    return Video(np.ascontiguousarray(np.stack(cut).transpose(0, 3, 1, 2)), Fraction(10))


def disc(x: float, height: int = 64, width: int = 96) -> np.ndarray:
    drawn = cv2.circle(np.zeros((height, width), np.uint8), (round(x), 32), 12, 1, -1)
    return np.asarray(drawn > 0)


def test_what_was_painted_is_found_and_rounding_is_not() -> None:
    source = moving(1).frames[0]
    edited = source ^ 1
    edited[:, 10:20, 30:50] = 255 - source[:, 10:20, 30:50] // 4
    found = find_changes(edited, source, 0)
    assert found[11:19, 31:49].all()
    assert not found[:9].any()
    assert not find_changes(source ^ 1, source, 0).any()


def test_the_margin_is_in_pixels() -> None:
    source = np.zeros((3, 40, 40), np.uint8)
    edited = source.copy()
    edited[:, 20:24, 20:24] = 255
    assert (
        find_changes(edited, source, 5).any(axis=0).sum()
        == find_changes(edited, source, 0).any(axis=0).sum() + 10
    )


def regions(video: Video, seeds: dict[int, np.ndarray], folder: Path) -> list[np.ndarray]:
    maps = backward_maps(video, seeds, DisFlow(), Run.alone(folder))
    return [warp_mask(seeds[start], backward_map) for start, backward_map in maps]


def test_a_region_follows_what_it_marks(tmp_path: Path) -> None:
    shown = regions(moving(12), {0: disc(60)}, tmp_path)
    for t in (0, 5, 11):
        true, got = disc(60 - 2 * t), shown[t]
        assert (true & got).sum() / (true | got).sum() > OVERLAP


def test_a_later_key_frame_takes_over(tmp_path: Path) -> None:
    shown = regions(moving(6), {0: disc(60), 3: np.zeros((64, 96), bool)}, tmp_path)
    assert shown[2].any()
    assert not any(one.any() for one in shown[3:])


def test_what_comes_in_over_the_edge_is_not_of_the_region(tmp_path: Path) -> None:
    touching = np.zeros((64, 96), bool)
    touching[20:44, 80:] = True
    shown = regions(moving(8), {0: touching}, tmp_path)[7]  # it has moved by fourteen pixels
    assert shown[24:40, 68:78].mean() > 0.9
    assert shown[24:40, 86:].mean() < 0.5


def upright(video: Video, at: int) -> np.ndarray:
    return np.ascontiguousarray(video.frames[at].transpose(1, 2, 0))


def test_an_edit_is_carried_to_where_it_is_now(tmp_path: Path) -> None:
    video = moving(8)
    then, now = upright(video, 0), upright(video, 7)
    edited = then.copy()
    edited[disc(60)] = (255, 0, 0)
    backward_map = list(backward_maps(video, {0}, DisFlow(), Run.alone(tmp_path)))[-1][1]
    shown = warp_edit(then, edited, now, backward_map)
    middle, far = cv2.erode(disc(46).astype(np.uint8), np.ones((5, 5))) > 0, ~disc(46)
    assert (shown[middle] == (255, 0, 0)).all()
    assert (shown[far] == now[far]).all(axis=1).mean() > 0.95


def test_a_map_is_believed_where_the_source_shows_the_same_at_both_ends(tmp_path: Path) -> None:
    video = moving(8)
    hidden = video.frames.copy()
    hidden[7, :, 20:40, 30:50] = 255 - hidden[7, :, 20:40, 30:50]  # something passes in front
    seen = Video(hidden, video.fps)
    backward_map = list(backward_maps(seen, {0}, DisFlow(), Run.alone(tmp_path)))[-1][1]
    sure = photo_consistent(upright(seen, 0), upright(seen, 7), backward_map)
    assert sure[:, :14].mean() > 0.95
    assert sure[22:38, 32:48].mean() < 0.3
    assert sure[:, -12:].mean() < 0.5  # this has come in over the edge since


def turning(frames: int, degrees: float, grain: float = 0.0) -> Video:
    """A textured ground that turns about (60, 32), seen through a camera's grain."""
    rng = np.random.default_rng(1)
    ground = cv2.GaussianBlur(rng.random((64, 96, 3)).astype(np.float32), (0, 0), 2)
    ground = (ground - ground.min()) / np.ptp(ground) * 255
    cut = []
    for t in range(frames):
        matrix = cv2.getRotationMatrix2D((60, 32), t * degrees, 1)
        shown = cv2.warpAffine(ground, matrix, (96, 64), borderMode=cv2.BORDER_REFLECT)
        cut.append((shown + grain * rng.standard_normal(shown.shape)).clip(0, 255).astype(np.uint8))
    return Video(np.ascontiguousarray(np.stack(cut).transpose(0, 3, 1, 2)), Fraction(10))


def followed_piece(then: np.ndarray, place: np.ndarray) -> FollowedPiece:
    return FollowedPiece.of(then, KeyLayer.of(then, place.astype(np.float32), place), place)


def test_lines_of_an_edit_stay_straight_where_flow_frays_them(tmp_path: Path) -> None:
    video, place = turning(8, 4, grain=12), disc(60)
    piece = followed_piece(upright(video, 0), place)
    for at, (_, by_flow) in enumerate(backward_maps(video, {0}, DisFlow(), Run.alone(tmp_path))):
        found = straightened(by_flow, [piece], at, upright(video, at)) if at else by_flow
    true = cv2.transform(pixel_grid(64, 96), cv2.getRotationMatrix2D((60, 32), -7 * 4, 1))
    middle = cv2.erode(place.astype(np.uint8), np.ones((5, 5))) > 0
    off_mesh, off_flow = (np.linalg.norm(m - true, axis=2)[middle].mean() for m in (found, by_flow))
    assert off_mesh < 0.7 * off_flow
    assert straightness(found, middle) < 0.7 * straightness(by_flow, middle)


def test_flow_is_followed_where_the_edit_does_not_move_as_one(tmp_path: Path) -> None:
    frames = np.array(moving(8).frames)
    frames[:, :, :32] = frames[:1, :, :32]  # the upper half rests
    video, place = Video(frames, Fraction(10)), disc(60)
    piece = followed_piece(upright(video, 0), place)
    then = upright(video, 0).astype(float)
    for at, (_, by_flow) in enumerate(backward_maps(video, {0}, DisFlow(), Run.alone(tmp_path))):
        found = straightened(by_flow, [piece], at, upright(video, at)) if at else by_flow
    off = [np.abs(remap(then, m) - upright(video, 7)).mean(2)[22:42, 40:56].mean() for m in (found, by_flow)]
    assert off[0] < off[1] + 2


def test_pieces_are_followed_each_by_itself_the_largest_first() -> None:
    both = disc(20) | disc(70)
    both[5:8, 40:45] = True
    pieces = pieces_of(both)
    assert [int(piece.sum()) for piece in pieces] == [int(disc(20).sum()), int(disc(70).sum()), 15]
    np.testing.assert_array_equal(np.any(pieces, axis=0), both)
    dots = np.zeros((64, 96), bool)
    dots[::4, ::4] = True
    assert len(pieces_of(dots)) == PIECES
    assert pieces_of(np.zeros((8, 8), bool)) == []


def test_an_edit_of_a_few_pixels_is_followed_by_flow(tmp_path: Path) -> None:
    place = np.zeros((64, 96), bool)
    place[30:34, 50:54] = True
    video = moving(3)
    piece = followed_piece(upright(video, 0), place)
    flow_map = list(backward_maps(video, {0}, DisFlow(), Run.alone(tmp_path)))[2][1]
    np.testing.assert_array_equal(straightened(flow_map, [piece], 2, upright(video, 2)), flow_map)


def test_an_edit_is_tracked_as_region_picture_and_confidence(tmp_path: Path) -> None:
    video = moving(8)
    edited = np.where(disc(60), np.array([255, 0, 0], np.uint8)[:, None, None], video.frames[0])
    track = track_edit(video, {0: edited}, margin=0, flow=DisFlow(), run=Run.alone(tmp_path))
    true = disc(46)
    assert (true & (track.region[7, 0] > 0)).sum() / (true | (track.region[7, 0] > 0)).sum() > OVERLAP
    middle = cv2.erode(true.astype(np.uint8), np.ones((5, 5))) > 0
    assert (track.warped[7][:, middle] == edited[:, 32, 60, None]).all()
    assert (track.confidence[7, 0, :, :70] == 255).mean() > 0.9


def test_a_key_frame_that_was_not_edited_marks_and_warps_nothing(tmp_path: Path) -> None:
    video = moving(3)
    track = track_edit(video, {0: video.frames[0]}, margin=3, flow=DisFlow(), run=Run.alone(tmp_path))
    assert isinstance(track, Track)
    assert not track.region.any()
    assert np.array_equal(track.warped, video.frames)
