"""Segmenting: marks are read, objects found, followed, and doubts said."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from retouch.errors import EmptyMask, ParamsError
from retouch.run import Run
from retouch.tracking.segment import (
    GrabCutSegmenter,
    ObjectMark,
    ObjectMasks,
    ObjectSegmenter,
    parse_mark,
    tracking_size,
)
from retouch.video import Video

FOUND = 0.93  # overlap with the truth; the rest is the edge, which is a pixel or two wide


def scene(frames: int = 6, *, second: bool = False) -> tuple[Video, np.ndarray]:
    """A reddish disc that moves over a greenish cloth, and perhaps a blue square; their true masks."""
    rng = np.random.default_rng(1)
    cloth = cv2.GaussianBlur(rng.random((96, 128, 3)).astype(np.float32), (0, 0), 2)
    cloth = (cloth - cloth.min()) / np.ptp(cloth)
    skin = cv2.GaussianBlur(rng.random((96, 128, 3)).astype(np.float32), (0, 0), 2)
    skin = (skin - skin.min()) / np.ptp(skin)
    shots, truth = [], []
    for t in range(frames):
        picture = cloth * (70, 160, 60) + (10, 40, 10)
        disc, square = np.zeros((96, 128), np.uint8), np.zeros((96, 128), np.uint8)
        cv2.circle(disc, (40 + 4 * t, 44), 20, 255, -1)
        square[60:88, 90:120] = 255 if second else 0
        moved = np.roll(skin, 4 * t, axis=1)
        picture = np.where(square[..., None] > 0, moved * (40, 40, 160) + (20, 20, 80), picture)
        picture = np.where(disc[..., None] > 0, moved * (160, 60, 40) + (80, 10, 10), picture)
        shots.append(picture.clip(0, 255).astype(np.uint8).transpose(2, 0, 1))
        truth.append([disc, square])
    return Video(np.stack(shots), Fraction(10)), np.array(truth).transpose(1, 0, 2, 3)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    return float(((a > 127) & (b > 127)).sum() / ((a > 127) | (b > 127)).sum())


def test_grab_cut_is_a_segmenter() -> None:
    assert isinstance(GrabCutSegmenter(), ObjectSegmenter)


def test_a_box_on_one_frame_finds_the_object_in_all() -> None:
    video, truth = scene()
    cutout = GrabCutSegmenter().segment(video, [parse_mark("box", "2:22,18 74,70")])
    for t in range(len(video)):
        assert overlap(cutout.full(0, t, t + 1)[0, 0], truth[0, t]) > FOUND
    assert cutout.warnings == ()


def test_two_objects_keep_their_order_and_their_masks() -> None:
    video, truth = scene(second=True)
    marks = [parse_mark("box", "disc@0:16,20 64,68"), parse_mark("box", "square@5:86,56 124,92")]
    cutout = GrabCutSegmenter().segment(video, marks)
    assert cutout.names == ("disc", "square")
    for which in (0, 1):
        assert overlap(cutout.full(which, 3, 4)[0, 0], truth[which, 3]) > FOUND


def test_a_second_marked_frame_anchors_what_is_near_it() -> None:
    video, truth = scene(8)
    drawn = truth[0, 7].copy()
    drawn[:44] = 0  # from frame 7 on, only the lower half is wanted
    marks = [parse_mark("box", "0:16,20 64,68"), ObjectMark("mask", 7, drawn=drawn)]
    cutout = GrabCutSegmenter().segment(video, marks)
    assert overlap(cutout.full(0, 1, 2)[0, 0], truth[0, 1]) > FOUND
    assert overlap(cutout.full(0, 7, 8)[0, 0], drawn) > FOUND
    assert overlap(cutout.full(0, 7, 8)[0, 0], truth[0, 7]) < 0.7


def test_a_stroke_adds_and_a_not_stroke_takes_away() -> None:
    video, _ = scene(1)
    box = parse_mark("box", "0:16,20 64,68")
    inside, outside = parse_mark("stroke", "0:18,22 18,23"), parse_mark("not", "0:36,44 44,44")
    plain = GrabCutSegmenter().segment(video, [box]).full(0, 0, 1)[0, 0]
    both = GrabCutSegmenter().segment(video, [box, inside, outside]).full(0, 0, 1)[0, 0]
    assert plain[22, 18] < 127 < both[22, 18]
    assert both[44, 40] < 127 < plain[44, 40]


def test_a_polygon_is_taken_as_drawn() -> None:
    video, _ = scene(1)
    found = GrabCutSegmenter().segment(video, [parse_mark("polygon", "0:10,10 50,10 50,40 10,40")])
    mask = found.full(0, 0, 1)[0, 0]
    assert mask[12:39, 12:49].min() > 127
    assert mask[44:].max() < 127


def test_edges_are_soft() -> None:
    video, _ = scene(1)
    mask = GrabCutSegmenter().segment(video, [parse_mark("box", "0:16,20 64,68")]).full(0, 0, 1)
    assert ((mask > 20) & (mask < 235)).sum() > 60


def test_frames_in_which_the_object_is_lost_are_named() -> None:
    video, _ = scene(4)
    frames = video.frames.copy()
    frames[2:] = video.frames[0][:, :1, :1]  # the object is gone, and all texture with it
    cutout = GrabCutSegmenter().segment(Video(frames, video.fps), [parse_mark("box", "0:16,20 64,68")])
    assert [said for said in cutout.warnings if "is lost in frames 2 to 3:" in said]
    assert not cutout.masks[0, 2:].any()


def test_what_is_doubtful_is_said_once_for_all_frames() -> None:
    video, _ = scene(6)
    frames = video.frames.copy()
    frames[3:, :, 20:40] = frames[3:, :, 76:96]  # the upper part of the disc is hidden by cloth
    cutout = GrabCutSegmenter().segment(Video(frames, video.fps), [parse_mark("box", "0:16,20 64,68")])
    assert sum("its area jumps by more than 20%" in said for said in cutout.warnings) == 1
    assert any("in frame 3" in said for said in cutout.warnings)


def passing(gone: range, frames: int = 16) -> tuple[Video, np.ndarray]:
    """A disc at rest, hidden by a wall in some frames; its true masks."""
    video, truth = scene(1)
    clip, masks = np.repeat(video.frames, frames, 0), np.repeat(truth[0], frames, 0)
    clip[gone.start : gone.stop, :, :, :] = 200
    masks[gone.start : gone.stop] = 0
    return Video(clip, video.fps), masks


def test_an_object_marked_again_after_it_was_hidden_is_seen_up_to_there_from_both_sides() -> None:
    video, truth = passing(range(9, 12))  # past the middle between the marks
    marks = [parse_mark("box", "0:16,20 64,68"), parse_mark("box", "15:16,20 64,68")]
    cutout = GrabCutSegmenter().segment(video, marks)
    for t in (*range(9), *range(12, 16)):
        assert overlap(cutout.full(0, t, t + 1)[0, 0], truth[t]) > FOUND, t
    assert not cutout.masks[0, 9:12].any()
    assert any("is lost in frames 9 to 11:" in said for said in cutout.warnings)


def test_an_object_that_moved_on_while_it_was_hidden_is_seen_from_where_it_is_marked_again() -> None:
    video, truth = scene(12)
    frames = video.frames.copy()
    frames[5:8] = 200
    marks = [parse_mark("box", "0:16,20 64,68"), parse_mark("box", "11:60,20 108,68")]
    cutout = GrabCutSegmenter().segment(Video(frames, video.fps), marks)
    for t in (*range(5), *range(8, 12)):
        assert overlap(cutout.full(0, t, t + 1)[0, 0], truth[0, t]) > FOUND, t
    assert not cutout.masks[0, 5:8].any()


def test_the_same_marks_give_the_same_masks() -> None:
    video, _ = scene(3)
    marks = [parse_mark("box", "0:16,20 64,68")]
    first, second = (GrabCutSegmenter().segment(video, marks) for _ in range(2))
    np.testing.assert_array_equal(first.masks, second.masks)


def test_what_grows_with_the_clip_lies_where_the_shelf_says(tmp_path: Path) -> None:
    video, _ = scene(3)
    marks = [parse_mark("box", "0:16,20 64,68")]
    run = Run.alone(tmp_path)
    cutout = GrabCutSegmenter().segment(video, marks, shelf=run.scratch)
    assert isinstance(cutout.masks, np.memmap)
    assert len(list((tmp_path / "scratch").iterdir())) == 3  # frames, flow, masks
    np.testing.assert_array_equal(cutout.masks, GrabCutSegmenter().segment(video, marks).masks)


def test_masks_come_at_the_size_of_the_clip() -> None:
    cutout = ObjectMasks(("object",), np.full((1, 2, 24, 32), 255, np.uint8), 96, 128)
    assert cutout.full(0, 0, 2).shape == (2, 1, 96, 128)
    assert tracking_size(480, 960, 240) == (120, 240)
    assert tracking_size(100, 50, 240) == (100, 50)


def test_marks_are_read_as_they_are_written() -> None:
    mark = parse_mark("stroke", "wheel@12:1,2 3.5,4")
    assert (mark.name, mark.frame, mark.points) == ("wheel", 12, ((1.0, 2.0), (3.5, 4.0)))
    assert parse_mark("box", "0:1,2,3,4").points == ((1.0, 2.0), (3.0, 4.0))
    assert parse_mark("box", "0:1,2 3,4").identity != parse_mark("box", "0:1,2 3,5").identity


@pytest.mark.parametrize(
    "text", ["", "box", "0:1,2", "0:1,2 3", "0:1,2 3,4 5,6", "x:1,2 3,4", "@0:1,2 3,4", "0:1,2 nan,4"]
)
def test_a_box_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ParamsError, match="cannot be read"):
        parse_mark("box", text)


def test_marks_outside_the_clip_or_of_another_size_are_refused() -> None:
    video, _ = scene(2)
    with pytest.raises(ParamsError, match="frames 0 to 1"):
        GrabCutSegmenter().segment(video, [parse_mark("box", "2:1,1 9,9")])
    with pytest.raises(ParamsError, match="drawn mask"):
        GrabCutSegmenter().segment(video, [ObjectMark("mask", 0, drawn=np.zeros((5, 5), np.uint8))])
    with pytest.raises(ParamsError, match="no object is marked"):
        GrabCutSegmenter().segment(video, [])


def test_a_mark_that_holds_nothing_is_refused() -> None:
    video, _ = scene(1)
    with pytest.raises(EmptyMask, match="frame 0"):
        GrabCutSegmenter().segment(video, [ObjectMark("mask", 0, drawn=np.zeros((96, 128), np.uint8))])
