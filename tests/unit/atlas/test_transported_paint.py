"""Paint that goes straight from painted frames to the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from retouch.atlas.atlas import Atlas
from retouch.atlas.edit import PaintedFrame, Period, painted_key, render_edit
from retouch.atlas.transported_paint import (
    FAR,
    TransportedPaint,
    key_weights,
    lay_on,
    slips_in_textures,
    transport_paint,
)
from retouch.run import Run
from retouch.tracking.mesh import FrameMap
from retouch.video import Video

RED, BLUE = np.array([250, 20, 30], np.uint8), np.array([20, 30, 250], np.uint8)
KEY = 4


def key_with(clip: Video, t: int, colour: np.ndarray, box: tuple[slice, slice]) -> PaintedFrame:
    source = np.ascontiguousarray(clip.frames[t].transpose(1, 2, 0))
    picture = source.copy()
    picture[box] = colour
    return painted_key(source, picture, t)


def moved_textures(atlas: Atlas) -> Atlas:
    """An atlas in which all frames but the painted one lie three texels farther off."""
    charts = []
    for chart in atlas.charts:
        controls = chart.mapping.controls.clone()
        controls[torch.arange(chart.start, chart.stop) != KEY, 0] += 3
        charts.append(replace(chart, mapping=replace(chart.mapping, controls=controls)))
    return replace(atlas, charts=tuple(charts))


def shown(atlas: Atlas, clip: Video, paint: TransportedPaint) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(render_edit(atlas, clip, [], direct=lambda a, b: paint.at(atlas, a, b)))
    return np.concatenate([b[1] for b in blocks]), np.concatenate([b[2] for b in blocks])


def test_paint_is_exact_on_its_frame_moves_along_and_leaves_the_rest(
    atlas: Atlas, clip: Video, truth: tuple[np.ndarray, np.ndarray, np.ndarray], run: Run
) -> None:
    box = (slice(28, 40), slice(48, 62))
    paint = transport_paint(atlas, clip, [key_with(clip, KEY, RED, box)], run=run)
    assert paint.layers == {0}
    frames, touched = shown(atlas, clip, paint)
    inner = frames[KEY][:, 30:38, 50:60].transpose(1, 2, 0).astype(int)
    assert np.abs(inner - RED).max() <= 1
    np.testing.assert_array_equal(frames[~np.repeat(touched, 3, 1)], clip.frames[~np.repeat(touched, 3, 1)])
    centre = truth[1][KEY, :, 34, 55]
    for t in (0, 9):
        y, x = np.unravel_index(
            np.linalg.norm(truth[1][t] - centre[:, None, None], axis=0).argmin(), (72, 120)
        )
        assert np.abs(frames[t, :, y, x].astype(int) - RED).max() < 12


def test_paint_shows_in_its_period_only(atlas: Atlas, clip: Video, run: Run) -> None:
    key = key_with(clip, KEY, RED, (slice(28, 40), slice(48, 62)))
    paint = transport_paint(atlas, clip, [key], period=Period(6, 8), run=run)
    reached = [bool(paint.at(atlas, t, t + 1)[:, 3].any()) for t in range(len(clip))]
    assert reached[6:8] == [True, True]
    assert not any(reached[8:] + reached[:4])


def test_a_layer_that_the_textures_carry_as_well_is_left_to_them(atlas: Atlas, clip: Video, run: Run) -> None:
    box = (slice(28, 40), slice(48, 62))
    explained = (atlas.reconstruct(0, len(clip)).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    as_textures_say = Video(explained, clip.fps)
    for video, wanted in ((as_textures_say, set()), (clip, {0})):
        slid = atlas if video is as_textures_say else moved_textures(atlas)
        key = key_with(video, KEY, RED, box)
        assert transport_paint(slid, video, [key], choose=True, run=run).layers == wanted


def test_how_far_the_textures_let_paint_slide_is_found(atlas: Atlas, clip: Video, run: Run) -> None:
    key = key_with(clip, KEY, RED, (slice(28, 40), slice(48, 62)))
    whole = Period(0, len(clip))
    right = slips_in_textures(atlas, clip, [key], period=whole, run=run)
    wrong = slips_in_textures(moved_textures(atlas), clip, [key], period=whole, run=run)
    assert right[KEY] == wrong[KEY] == 0
    others = sorted(set(wrong) - {KEY})
    assert len(others) > 5
    texels = next(chart.scale for chart in atlas.charts if chart.layer == 0)
    for t in others:
        assert right[t] < 0.5
        assert wrong[t] == pytest.approx(3 / texels, abs=1)
    assert slips_in_textures(atlas, clip, [key], period=whole, straight={0}, run=run) == {}


def test_paint_is_asked_about_beside_the_nearest_painted_frame(atlas: Atlas, clip: Video, run: Run) -> None:
    box = (slice(28, 40), slice(48, 62))
    keys = [key_with(clip, KEY, RED, box), key_with(clip, 9, BLUE, box)]
    slips = slips_in_textures(moved_textures(atlas), clip, keys, period=Period(0, len(clip)), run=run)
    # Frame 9 and those beside it lie off as one, so that from there they do not.
    assert slips[8] < 0.5 < slips[5]


def test_painted_frames_share_by_nearness_and_what_one_left_alone_is_painted(
    atlas: Atlas, clip: Video, run: Run
) -> None:
    both = (slice(28, 40), slice(48, 62))
    keys = [key_with(clip, 2, RED, both), key_with(clip, 8, BLUE, both)]
    paint = transport_paint(atlas, clip, keys, run=run)
    colours = paint.at(atlas, 2, 9)
    assert float(colours[0, 0, 34, 55]) > 0.9
    assert float(colours[6, 2, 34, 55]) > 0.9
    # Where the second left alone what the first painted, the first one's paint shows.
    first = paint.pictures[2, 0][8, 3]
    lone = torch.from_numpy((first == 255) & (paint.pictures[8, 0][8, 3] == 0))
    assert int(lone.sum()) > 10
    own = atlas.shares(8, 9)[0][0, 0]
    torch.testing.assert_close(colours[6, 3][lone], own[lone], atol=0.01, rtol=0)


def test_a_piece_that_comes_off_is_left_out_and_a_speck_of_its_own_is_kept() -> None:
    cover = torch.zeros(1, 40, 60)
    cover[0, 10:20, 10:20] = 1  # a stroke
    cover[0, 30:32, 10:12] = 1  # a speck
    stroke = PaintedFrame(0, torch.ones(3, 40, 60), cover)
    y, x = np.mgrid[:40, :60].astype(np.float32)
    positions = np.stack([x, y], -1)
    positions[5:7, 50:53] = (15, 15)  # six pixels far off are said to show the middle of the stroke
    everywhere = np.ones((40, 60), bool)
    picture = np.zeros((1, 4, 40, 60), np.uint8)
    lay_on(picture, stroke, FrameMap(0, positions, everywhere, everywhere.astype(np.float32)))
    np.testing.assert_array_equal(picture[0, 3], cover[0].numpy() * 255)


def test_nothing_is_shown_in_miniature_where_a_map_jumps() -> None:
    cover = torch.zeros(1, 40, 60)
    cover[0, 5:35, 5:35] = 1
    y, x = np.mgrid[:40, :60].astype(np.float32)
    # From column 46 to 50 the map runs from beside the stroke over all of it to the other side.
    positions = np.stack([np.where(x < 46, 55, np.where(x > 50, 1, 55 - (x - 46) * 13.5)), y], -1)
    everywhere = np.ones((40, 60), bool)
    picture = np.full((1, 4, 40, 60), 9, np.uint8)
    stroke = PaintedFrame(0, torch.ones(3, 40, 60), cover)
    lay_on(picture, stroke, FrameMap(0, positions, everywhere, everywhere.astype(np.float32)))
    assert not picture.any()


@pytest.mark.parametrize(
    ("t", "wanted"),
    [
        (0, [1.0, FAR, FAR]),
        (20, [1.0, FAR, FAR]),
        (30, [0.5, 0.5, FAR]),
        (40, [FAR, 1.0, FAR]),
        (44, [FAR, 0.5, 0.5]),
        (99, [FAR, FAR, 1.0]),
    ],
)
def test_one_painted_frame_hands_over_to_the_next(t: int, wanted: list[float]) -> None:
    assert key_weights([20, 40, 48], t) == pytest.approx(wanted)
