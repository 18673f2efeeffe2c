"""`Video`: views, windows, floats and back, what belongs to a slice."""

import tempfile
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retouch.errors import Diverged, VideoError
from retouch.identity import identity
from retouch.video import CEILING_DB, Origin, Video, chunks, decibels, spans


def clip(
    frames: int = 9, height: int = 6, width: int = 8, *, alpha: bool = False, timed: bool = False
) -> Video:
    rng = np.random.default_rng(3)
    timestamps = tuple(int(t) for t in np.cumsum(rng.integers(1, 40, frames)))
    origin = Origin(frames=frames, time_base=Fraction(1, 600), timestamps=timestamps, end=timestamps[-1] + 7)
    return Video(
        rng.integers(0, 256, (frames, 3, height, width), np.uint8),
        Fraction(24000, 1001),
        rng.integers(0, 256, (frames, 1, height, width), np.uint8) if alpha else None,
        origin if timed else Origin(),
    )


@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_spans_cover_all_frames_with_the_overlap_asked_for(
    frames: int, size: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    laid = spans(frames, size, overlap)
    assert laid[0].start == 0
    assert laid[-1].stop == frames
    assert all(left.stop - right.start == overlap for left, right in pairwise(laid))
    lengths = [len(span) for span in laid]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert len(laid) == 1 or (len(laid) - 1) * (size - overlap) + overlap < frames  # one fewer would not do


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (4, 4), (4, -1)])
def test_spans_refuses_windows_that_cannot_be_laid(size: int, overlap: int) -> None:
    with pytest.raises(VideoError, match="cannot be laid"):
        spans(10, size, overlap)


def test_every_byte_comes_back_from_pixels() -> None:
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    video = Video(every, Fraction(25))
    pixels = video.pixels()
    assert (float(pixels.min()), float(pixels.max())) == (-1.0, 1.0)
    assert np.array_equal(video.like(pixels).frames, every)
    assert np.array_equal(video.like(video.pixels(dtype=torch.float16)).frames, every)


def test_pixels_do_not_share_memory_with_frames() -> None:
    video = clip()
    before = video.digest
    video.pixels().zero_()
    assert replace(video).digest == before


def test_like_clips_to_the_range_and_rounds() -> None:
    video = clip(1, 2, 2)
    pixels = (
        torch.tensor([-1.5, 1.5, 0.6 / 127.5 - 1, 0.4 / 127.5 - 1]).reshape(1, 1, 2, 2).repeat(1, 3, 1, 1)
    )
    assert video.like(pixels).frames[0, 0].tolist() == [[0, 255], [1, 0]]


def test_like_refuses_numbers_that_are_not_finite() -> None:
    video = clip(3, 2, 2)
    pixels = video.pixels()
    pixels[1, 0, 0, 0] = torch.nan
    with pytest.raises(Diverged, match="not all finite"):
        video.like(pixels)


def test_like_keeps_timestamps_only_for_as_many_frames() -> None:
    video = clip(timed=True)
    assert video.like(video.frames[:, :, :4, :4]).origin == video.origin
    assert video.like(video.frames[:5]).origin.timestamps == ()
    assert video.like(video.frames[:5]).fps == video.fps


def test_like_brings_alpha_to_the_new_size() -> None:
    flat = Video(np.zeros((2, 3, 8, 8), np.uint8), Fraction(8), np.full((2, 1, 8, 8), 77, np.uint8))
    bigger = flat.like(np.zeros((2, 3, 12, 20), np.uint8))
    assert bigger.alpha is not None
    assert bigger.alpha.shape == (2, 1, 12, 20)
    assert set(bigger.alpha.ravel().tolist()) == {77}


@given(st.integers(0, 8), st.integers(1, 9))
def test_a_slice_keeps_what_belongs_to_it(start: int, length: int) -> None:
    video = clip(alpha=True, timed=True)
    part = video[start : start + length]
    stop = min(start + length, len(video))
    assert np.array_equal(part.frames, video.frames[start:stop])
    assert part.alpha is not None
    assert video.alpha is not None
    assert np.array_equal(part.alpha, video.alpha[start:stop])
    assert part.origin.timestamps == video.origin.timestamps[start:stop]
    assert part.origin.is_whole == (len(part) == len(video))
    assert np.shares_memory(part.frames, video.frames)


def test_durations_of_neighbouring_slices_add_up() -> None:
    video = clip(timed=True)
    assert video[:4].duration + video[4:].duration == video.duration
    untimed = clip()
    assert untimed.duration == len(untimed) / untimed.fps


@pytest.mark.parametrize("part", [slice(3, 3), slice(5, 2), slice(None, None, 2), slice(20, 30)])
def test_an_empty_or_scattered_cut_is_refused(part: slice) -> None:
    with pytest.raises(VideoError, match="empty or in pieces"):
        clip()[part]


def test_chunks_of_a_mapped_file_show_the_same_frames() -> None:
    video = clip(20, 8, 8)
    with tempfile.TemporaryFile() as file:
        file.truncate(video.frames.nbytes)
        mapped = np.memmap(file, np.uint8, "r+", shape=video.frames.shape)
    mapped[:] = video.frames
    seen = [(part, chunk.frames.copy()) for part, chunk in Video(mapped, video.fps).chunks(7)]
    assert [part for part, _ in seen] == chunks(20, 7)
    assert all(np.array_equal(frames, video.frames[part]) for part, frames in seen)
    assert [number for part, _ in seen for number in range(20)[part]] == list(range(20))


def test_chunks_do_not_undo_changes_that_live_in_memory_only(tmp_path: Path) -> None:
    clip(4).frames.tofile(tmp_path / "frames")
    private = np.memmap(tmp_path / "frames", np.uint8, "c", shape=(4, 3, 6, 8))
    private[:] = 9
    for _, chunk in Video(private, Fraction(5)).chunks(2):
        assert int(chunk.frames.min()) == 9
    assert int(private.min()) == 9


def test_digest_tells_clips_apart_and_nothing_else() -> None:
    video = clip(timed=True)
    again = Video(video.frames.copy(), video.fps, None, Origin())
    assert again.digest == video.digest
    assert identity(again) == identity(video)
    other = video.frames.copy()
    other[-1, -1, -1, -1] ^= 1
    assert video.like(other).digest != video.digest
    assert replace(video, fps=Fraction(24)).digest != video.digest
    assert replace(video, alpha=np.zeros((9, 1, 6, 8), np.uint8)).digest != video.digest
    assert replace(video, frames=video.frames.reshape(9, 3, 8, 6)).digest != video.digest


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((2, 3, 4, 4), np.float32),
        np.zeros((0, 3, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
    ],
    ids=["colour last", "floats", "no frames", "one picture"],
)
def test_frames_of_another_shape_or_type_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(VideoError, match="must be uint8"):
        Video(frames, Fraction(25))


def test_parts_that_do_not_fit_the_frames_are_refused() -> None:
    video = clip(timed=True)
    with pytest.raises(VideoError, match="alpha is"):
        replace(video, alpha=np.zeros((9, 1, 6, 9), np.uint8))
    with pytest.raises(VideoError, match="fps is 0"):
        replace(video, fps=Fraction(0))
    with pytest.raises(VideoError, match="9 timestamps for 5"):
        Video(video.frames[:5], video.fps, None, video.origin)


def test_decibels_stop_at_a_ceiling_and_count_from_the_peak() -> None:
    assert decibels(0.0, peak=255) == decibels(1e-300, peak=1) == CEILING_DB
    assert decibels(255.0**2, peak=255) == decibels(1.0, peak=1) == 0
    assert decibels(0.01, peak=1) == pytest.approx(20)


def test_frames_are_named_as_the_file_numbers_them() -> None:
    origin = Origin(frames=60, time_base=Fraction(1, 25), timestamps=tuple(range(60)), end=60)
    whole = Video(np.zeros((60, 3, 4, 4), np.uint8), Fraction(25), origin=origin)
    assert whole.named_frames([7]) == "frame 7"
    assert whole.named_frames([9, 3, 4, 5]) == "frames 3 to 5 and 9"
    part = whole[40:][2:12]
    assert part.origin.first == 42
    assert part.named_frames([0, 1, 4, 9]) == "frames 42 to 43, 46 and 51"
