from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from retouch.errors import InputError
from retouch.media.compare import (
    GAP,
    GROUND,
    LINE,
    WIDEST,
    amplified_difference,
    common_length,
    difference_sheet,
    draw_sheet,
    evenly_spaced,
    lay_out_clips,
    side_by_side,
    write_side_by_side,
)
from retouch.media.io import read
from retouch.video import Origin, Video


def plain(height: int, width: int, colour: tuple[int, int, int], frames: int = 3) -> Video:
    """A clip whose frame t is the colour plus t."""
    steps = np.arange(frames)[:, None, None, None]
    pixels = np.array(colour)[None, :, None, None] + steps + np.zeros((1, 1, height, width), dtype=int)
    return Video(pixels.astype(np.uint8), Fraction(24000, 1001))


def drawn(clips: list[Video], labels: list[str]) -> np.ndarray:
    return np.stack(list(side_by_side(clips, labels)))


def test_clips_of_one_size_lie_side_by_side_pixel_for_pixel() -> None:
    clips = [plain(200, 300, (10, 20, 30)), plain(200, 300, (90, 80, 70))]
    made = drawn(clips, ["a", "b"])
    for index, clip in enumerate(clips):
        top, left = lay_out_clips(clips).corner(index)
        cell = made[:, top : top + 200, left : left + 300]
        assert (cell == clip.frames.transpose(0, 2, 3, 1)).all()


def test_the_file_has_rate_timestamps_and_length_of_the_first_clip(tmp_path: Path) -> None:
    times = Origin(timestamps=(0, 3, 4), end=9, time_base=Fraction(1, 30), sample_aspect=Fraction(4, 3))
    first = Video(plain(200, 300, (1, 2, 3)).frames, Fraction(30), None, times)
    made = read(write_side_by_side([first, plain(200, 300, (1, 2, 3))], ["a", "b"], tmp_path / "side.mkv"))
    at = [(t - made.origin.timestamps[0]) * made.origin.time_base for t in made.origin.timestamps]
    assert [round(time * 30) for time in at] == [0, 3, 4]
    assert len(made) == 3
    assert made.origin.sample_aspect == Fraction(1)
    assert (made.height, made.width) == (200 + LINE + 2 * GAP, 400 + 300 + 3 * GAP)


def test_a_lower_clip_is_scaled_to_the_height_of_the_tallest_and_keeps_its_shape() -> None:
    clips = [plain(400, 300, (10, 20, 30)), plain(200, 300, (90, 80, 70))]
    plan = lay_out_clips(clips)
    assert (plan.height, plan.widths) == (400, (300, 600))
    top, left = plan.corner(1)
    made = drawn(clips, ["a", "b"])
    assert (made[1, top : top + 400, left : left + 600] == np.array([91, 81, 71])).all()


def test_a_clip_with_oblong_pixels_is_drawn_as_it_is_displayed() -> None:
    clip = plain(200, 300, (1, 2, 3))
    oblong = replace(clip, origin=Origin(sample_aspect=Fraction(4, 3)))
    assert lay_out_clips([clip, oblong]).widths == (300, 400)


def test_the_whole_is_even_not_too_wide_and_breaks_into_rows() -> None:
    four = [plain(1081, 1921, (0, 0, 0), 1)] * 4
    assert sum(lay_out_clips(four).widths) <= WIDEST
    assert lay_out_clips([plain(64, 64, (0, 0, 0), 1)] * 7).rows == 3
    for clips in (four, four[:1], [plain(65, 67, (0, 0, 0), 1)] * 7):
        assert all(side % 2 == 0 for side in lay_out_clips(clips).size)


def test_no_two_cells_overlap() -> None:
    clips = [plain(50 + 9 * i, 70 + 20 * i, (0, 0, 0), 1) for i in range(7)]
    plan = lay_out_clips(clips)
    taken = np.zeros(plan.size, dtype=int)
    for index in range(len(clips)):
        top, left = plan.corner(index)
        width = plan.widths[index % len(plan.widths)]
        assert top + plan.height <= plan.size[0]
        assert left + width <= plan.size[1]
        taken[top - LINE : top + plan.height, left : left + width] += 1
    assert taken.max() == 1


def test_labels_are_drawn_above_and_stay_in_their_cell() -> None:
    clips = [plain(200, 200, (9, 9, 9), 1)] * 2
    plan = lay_out_clips(clips)
    made = drawn(clips, ["x" * 200, "é → 漢"])[0]
    ink = (made != np.array(GROUND)).any(axis=2)
    above = ink[: plan.corner(0)[0]]
    right = plan.corner(1)[1]
    assert above[:, : right - GAP].any()
    assert above[:, right:].any()
    assert not above[:, right - GAP : right].any()


def test_lengths_that_differ_are_refused_unless_the_shortest_is_asked_for() -> None:
    clips = [plain(8, 8, (0, 0, 0), 3), plain(8, 8, (0, 0, 0), 5)]
    with pytest.raises(InputError, match="3, 5 frames") as caught:
        common_length([len(clip) for clip in clips])
    assert "--shortest" in caught.value.hint
    assert common_length([len(clip) for clip in clips], shortest=True) == 3


def test_labels_that_do_not_match_the_clips_are_refused() -> None:
    with pytest.raises(InputError, match="1 labels for 2 clips"):
        difference_sheet([plain(8, 8, (0, 0, 0))] * 2, ["a"])


def test_amplified_is_the_absolute_difference_times_the_gain_cut_at_white() -> None:
    one = np.array([[[10, 100, 0]]], dtype=np.uint8)
    other = np.array([[[13, 90, 200]]], dtype=np.uint8)
    assert (
        amplified_difference(one, other, 4.0).tolist()
        == amplified_difference(other, one, 4.0).tolist()
        == [[[12, 40, 255]]]
    )


def test_a_difference_sheet_shows_where_clips_differ_and_is_black_where_they_do_not() -> None:
    first = plain(200, 200, (50, 50, 50))
    frames = first.frames.copy()
    frames[:, 0, 20:40, 20:40] += 10
    made = difference_sheet([first, Video(frames, first.fps)], ["a", "b"], frames=1, gain=4.0)
    red = (made == np.array([40, 0, 0])).all(axis=2)
    black = (made == 0).all(axis=2)
    assert red.sum() == 20 * 20
    assert black.sum() == 200 * 200 - 20 * 20


def test_a_sheet_takes_evenly_spaced_frames_each_once() -> None:
    assert evenly_spaced(9, 3) == [0, 4, 8]
    assert evenly_spaced(2, 5) == [0, 1]
    assert evenly_spaced(1, 5) == [0]
    assert evenly_spaced(100, 1) == [0]


def test_a_sheet_leaves_cells_without_a_picture_empty() -> None:
    picture = np.full((200, 200, 3), 201, dtype=np.uint8)
    made = draw_sheet([[picture, None], [None, picture]], ["one", "two"], ["top", "bottom"])
    assert (made == 201).all(axis=2).sum() == 2 * 200 * 200


def test_a_sheet_of_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="no picture"):
        draw_sheet([[None]], ["one"], ["top"])
