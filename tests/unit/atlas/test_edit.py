"""Edits: fetched, merged, handed on, laid over the source, and nowhere else."""

import numpy as np
import pytest
import torch

from retouch.atlas.atlas import Atlas
from retouch.atlas.edit import (
    PaintedFrame,
    Period,
    TexturePatch,
    merge_patches,
    painted_key,
    patches_from_frames,
    patches_from_textures,
    position_patches,
    propagate_frame,
    read_positions,
    render_edit,
    without_scraps,
)
from retouch.atlas.textures import as_picture
from retouch.errors import ParamsError
from retouch.video import Video

NEAR = 34.0  # dB: two bilinear readings of a picture with detail of a few pixels
TWICE = 0.15  # pixels: what two bilinear readings of a ramp lose beside an edge
PAINT = np.array([250, 20, 30], np.uint8)


def source(clip: Video, t: int) -> np.ndarray:
    return np.ascontiguousarray(clip.frames[t].transpose(1, 2, 0))


def with_square(clip: Video, t: int, *, top: int = 28, left: int = 34, side: int = 14) -> np.ndarray:
    picture = source(clip, t).copy()
    picture[top : top + side, left : left + side] = PAINT
    return picture


def rendered(
    atlas: Atlas, clip: Video, patches: list[TexturePatch], *args: object
) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(render_edit(atlas, clip, patches, *args))  # type: ignore[arg-type]
    return np.concatenate([b[1] for b in blocks]), np.concatenate([b[2] for b in blocks])


def test_an_edit_that_changes_nothing_gives_the_source_bit_for_bit(atlas: Atlas, clip: Video) -> None:
    key = painted_key(source(clip, 4), source(clip, 4), 4)
    patches = patches_from_frames(atlas, [key])
    frames, touched = rendered(atlas, clip, patches)
    assert patches == []
    np.testing.assert_array_equal(frames, clip.frames)
    assert not touched.any()


def test_paint_is_on_its_own_frame_where_it_was_painted(atlas: Atlas, clip: Video) -> None:
    picture = with_square(clip, 4)
    frames, touched = rendered(
        atlas, clip, patches_from_frames(atlas, [painted_key(source(clip, 4), picture, 4)])
    )
    inner = frames[4][:, 31:39, 37:45].transpose(1, 2, 0)
    assert np.abs(inner.astype(int) - PAINT).max() <= 2
    np.testing.assert_array_equal(frames[4][:, :20], clip.frames[4][:, :20])
    assert touched[4, 0, 35, 41]


def test_every_pixel_that_is_not_touched_is_the_sources(atlas: Atlas, clip: Video) -> None:
    key = painted_key(source(clip, 4), with_square(clip, 4), 4)
    for mode in ("over", "replace"):
        frames, touched = rendered(atlas, clip, patches_from_frames(atlas, [key]), mode)
        same = (frames == clip.frames).all(1, keepdims=True)
        assert (same | touched).all()
        assert touched.mean() < 0.1


def test_paint_on_the_object_moves_with_it_and_leaves_the_background_alone(
    atlas: Atlas, clip: Video, truth: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    alpha, front, _ = truth
    key = painted_key(source(clip, 4), with_square(clip, 4), 4)
    frames, touched = rendered(atlas, clip, patches_from_frames(atlas, [key]))
    painted = front[4][:, 29:41, 35:47].reshape(2, -1)
    low, high = painted.min(1) + 3, painted.max(1) - 3
    middle = (painted.min(1) + painted.max(1)) / 2
    for t in (0, 9):
        inside = (np.abs(front[t] - middle[:, None, None]) < 4).all(0) & (alpha[t] > 0.99)
        assert inside.any()
        assert np.abs(frames[t].transpose(1, 2, 0)[inside].astype(int) - PAINT).max() < 12
        far = (front[t] < low[:, None, None] - 12).any(0) | (front[t] > high[:, None, None] + 12).any(0)
        assert not touched[t, 0][far].any()
        assert not touched[t, 0][alpha[t] == 0].any()


def test_delta_adds_the_difference_and_keeps_what_is_below(atlas: Atlas, clip: Video) -> None:
    picture = source(clip, 4).copy()
    picture[28:42, 34:48] = np.clip(picture[28:42, 34:48].astype(int) + 20, 0, 255)
    key = painted_key(source(clip, 4), picture, 4, mode="delta")
    frames, _ = rendered(atlas, clip, patches_from_frames(atlas, [key]), "delta")
    off = frames[4][:, 31:39, 37:45].astype(int) - picture[31:39, 37:45].transpose(2, 0, 1)
    assert np.abs(off).mean() < 2


def test_two_frames_that_agree_give_what_one_gives(atlas: Atlas, clip: Video) -> None:
    first = patches_from_frames(atlas, [painted_key(source(clip, 4), with_square(clip, 4), 4)], [0])
    frames, _ = rendered(atlas, clip, first)
    second = painted_key(source(clip, 7), np.ascontiguousarray(frames[7].transpose(1, 2, 0)), 7)
    both = patches_from_frames(atlas, [painted_key(source(clip, 4), with_square(clip, 4), 4), second], [0])
    again, _ = rendered(atlas, clip, both)
    error = np.mean((again.astype(float) - frames) ** 2) / 255**2
    assert -10 * np.log10(error) > NEAR


def test_what_one_frame_painted_and_another_left_alone_is_painted() -> None:
    cover = torch.zeros(1, 8, 8)
    cover[:, 2:6, 2:6] = 1
    paint = torch.cat([0.5 * cover.expand(3, -1, -1), cover])
    one = TexturePatch(0, (0.0, 0.0), 1.0, paint, torch.ones(1, 8, 8))
    none = TexturePatch(0, (0.0, 0.0), 1.0, torch.zeros_like(paint), 5 * torch.ones(1, 8, 8))
    joined = merge_patches([one, none])
    assert torch.allclose(joined.picture[:, :8, :8], paint, atol=1e-5)


def test_paint_on_a_texture_shows_in_the_frames(atlas: Atlas, clip: Video) -> None:
    chart = atlas.charts[0]
    v, u = chart.texture.shape[1:]
    picture = np.zeros((v, u, 4), np.uint8)
    picture[v // 2 - 8 : v // 2 + 8, u // 2 - 8 : u // 2 + 8] = (*PAINT, 255)
    frames, touched = rendered(atlas, clip, patches_from_textures(atlas, {0: picture}, "over"))
    for t in (0, 9):
        changed = touched[t, 0]
        assert changed.sum() > 20
        solid = frames[t].transpose(1, 2, 0)[changed]
        assert (np.abs(solid.astype(int) - PAINT).max(1) < 4).mean() > 0.3


def test_a_texture_put_back_unchanged_changes_nothing(atlas: Atlas, clip: Video) -> None:
    for mode in ("delta", "replace"):
        patches = patches_from_textures(atlas, {0: as_picture(atlas.charts[0].texture)}, mode)
        frames, touched = rendered(atlas, clip, patches, mode)
        np.testing.assert_array_equal(frames, clip.frames)
        assert not touched.any()


def test_replacing_a_whole_texture_replaces_the_object_only(
    atlas: Atlas, clip: Video, truth: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    grey = np.full_like(as_picture(atlas.charts[0].texture), 128)
    frames, touched = rendered(atlas, clip, patches_from_textures(atlas, {0: grey}, "replace"), "replace")
    inside, outside = truth[0] > 0.999, truth[0] == 0
    values = frames.transpose(0, 2, 3, 1)[inside].astype(int)
    assert np.abs(np.median(values, axis=0) - 128).max() < 12
    assert values.std() < 15
    assert touched[:, 0][outside].mean() < 0.03  # refined mattes may reach a pixel or two further


def test_a_texture_of_another_size_is_refused(atlas: Atlas) -> None:
    with pytest.raises(ParamsError, match="its texture"):
        patches_from_textures(atlas, {0: np.zeros((10, 10, 4), np.uint8)}, "over")


def test_a_painted_frame_of_another_size_is_refused(clip: Video) -> None:
    with pytest.raises(ParamsError, match="the clip 120x72") as caught:
        painted_key(source(clip, 0), np.zeros((10, 10, 3), np.uint8), 0)
    assert "retouch keyframe" in caught.value.hint


def test_transparent_paint_is_laid_over_the_frame() -> None:
    below = np.full((6, 6, 3), 100, np.uint8)
    paint = np.zeros((6, 6, 4), np.uint8)
    paint[2:4, 2:4] = (200, 0, 0, 128)
    key = painted_key(below, paint, 0)
    assert key.cover.sum() == 4
    assert float(key.colours[0, 2, 2]) == pytest.approx((200 * 128 + 100 * 127) / 255 / 255, abs=1e-3)


def test_small_differences_are_not_paint() -> None:
    below = np.full((6, 6, 3), 100, np.uint8)
    assert painted_key(below, below + 3, 0).cover.sum() == 0
    assert painted_key(below, below + 3, 0, tolerance=2).cover.sum() == 36


def test_feather_makes_the_edge_soft() -> None:
    below = np.full((40, 40, 3), 100, np.uint8)
    above = below.copy()
    above[:, 20:] = 200
    hard, soft = painted_key(below, above, 0), painted_key(below, above, 0, feather=8.0)
    assert set(hard.cover.flatten().tolist()) == {0.0, 1.0}
    assert ((soft.cover > 0.05) & (soft.cover < 0.95)).sum() > 40
    assert float(soft.cover[0, 20, -1]) == pytest.approx(1, abs=1e-3)
    assert not soft.cover[0, :, :20].any()  # it falls off inside what was painted, never beyond it


def test_an_edit_comes_and_goes_with_its_period(atlas: Atlas, clip: Video) -> None:
    patches = patches_from_frames(atlas, [painted_key(source(clip, 4), with_square(clip, 4), 4)])
    frames, touched = rendered(atlas, clip, patches, "over", Period(3, 6, fade_in=0, fade_out=1))
    assert [bool(part.any()) for part in touched] == [False] * 3 + [True] * 3 + [False] * 4
    off = (
        np.abs(frames[5].astype(int) - clip.frames[5]).max(),
        np.abs(frames[4].astype(int) - clip.frames[4]).max(),
    )
    assert off[0] < 0.6 * off[1]


def test_a_period_is_strongest_in_its_middle() -> None:
    period = Period(2, 8, 2, 2)
    assert [round(period.strength(t), 2) for t in range(10)] == [0, 0, 0.33, 0.67, 1, 1, 0.67, 0.33, 0, 0]


def test_a_whole_frame_propagates_through_the_atlas(
    atlas: Atlas, clip: Video, truth: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    frames, touched = rendered(atlas, clip, propagate_frame(atlas, clip, 4, 0))
    sure = touched[8, 0] & (truth[0][8] > 0.99)
    error = np.mean((frames[8].astype(float) - clip.frames[8])[:, sure] ** 2) / 255**2
    copied = np.mean((clip.frames[4].astype(float) - clip.frames[8])[:, sure] ** 2) / 255**2
    assert -10 * np.log10(error) > 22 > -10 * np.log10(copied) + 5


def test_a_key_without_cover_is_passed_over(atlas: Atlas) -> None:
    nothing = PaintedFrame(4, torch.zeros(3, 72, 120), torch.zeros(1, 72, 120))
    assert patches_from_frames(atlas, [nothing]) == []


def square_at_the_edge(atlas: Atlas, clip: Video, over: int) -> PaintedFrame:
    """A square on the object of frame 4 that reaches over its left edge by some pixels."""
    share = atlas.shares(4, 5)[0][0, 0].numpy()
    row = 36
    edge = int(np.argmax(share[row] > 0.5))
    picture = with_square(clip, 4, top=row - 3, left=edge - over, side=14)
    return painted_key(source(clip, 4), picture, 4)


def test_a_sliver_of_paint_over_the_edge_does_not_stay_behind(atlas: Atlas, clip: Video) -> None:
    key = square_at_the_edge(atlas, clip, over=1)
    assert {atlas.charts[p.chart].layer for p in patches_from_frames(atlas, [key])} == {0}
    wide = square_at_the_edge(atlas, clip, over=7)
    assert {atlas.charts[p.chart].layer for p in patches_from_frames(atlas, [wide])} == {0, 1}


def test_a_sliver_is_kept_where_its_layer_is_asked_for(atlas: Atlas, clip: Video) -> None:
    key = square_at_the_edge(atlas, clip, over=1)
    assert patches_from_frames(atlas, [key], [1])


def test_a_speck_of_its_own_is_kept_however_small(atlas: Atlas, clip: Video) -> None:
    key = painted_key(source(clip, 4), with_square(clip, 4, side=2), 4)
    kept = without_scraps(atlas, key)
    assert sum(int((k.cover > 0).sum()) for k in kept) == 4


def test_positions_are_read_where_the_pixels_lie_in_the_painted_frame(
    atlas: Atlas, truth: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    _, front, _ = truth
    places, cover = read_positions(atlas, position_patches(atlas, 4, 0), 7, 8)
    sure = (cover[0, 0] > 0.95 * atlas.shares(7, 8)[0][0, 0]) & (atlas.shares(7, 8)[0][0, 0] > 0.98)
    x, y = places[0][:, sure].round().long()
    known = front[4][:, y.numpy(), x.numpy()]
    wanted = front[7][:, sure.numpy()]
    pitch = np.abs(np.diff(front[4][0], axis=1)).mean()
    assert int(sure.sum()) > 300
    # Rounded to whole pixels, a place is at most 0.71 pixels off; the mapping adds little.
    assert np.percentile(np.hypot(*(known - wanted)), 95) < 1.2 * pitch
    there, _ = read_positions(atlas, position_patches(atlas, 4, 0), 4, 5)
    grid = torch.stack(torch.meshgrid(torch.arange(120), torch.arange(72), indexing="xy"))
    still = atlas.shares(4, 5)[0][0, 0] > 0.98
    assert float((there[0] - grid)[:, still].abs().max()) < TWICE
