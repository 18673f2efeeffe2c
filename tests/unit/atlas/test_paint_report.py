"""Where one edit holds and where it does not, frame by frame."""

from dataclasses import replace

import numpy as np
import torch
from PIL import ImageColor

from retouch.atlas.atlas import Atlas, PackedMattes, pack_matte
from retouch.atlas.edit import PaintedFrame, Period, patches_from_frames
from retouch.atlas.paint_report import (
    COLOURS,
    EDGE,
    STRIP_WIDTH,
    PaintReport,
    examine_paint,
    useless_keys,
)
from retouch.atlas.transported_paint import TransportedPaint, transport_paint
from retouch.run import Run
from retouch.video import Origin, Video

AT = 4


def paint_on_the_patch(atlas: Atlas, radius: int = 5) -> PaintedFrame:
    """A disc in the middle of the front layer's mask."""
    rows, columns = np.nonzero(atlas.mattes[0].frame(AT) > 230)
    y, x = np.mgrid[: atlas.height, : atlas.width]
    disc = (y - rows.mean()) ** 2 + (x - columns.mean()) ** 2 <= radius**2
    return PaintedFrame(AT, torch.zeros(3, *disc.shape), torch.from_numpy(disc).float()[None])


def report_on(atlas: Atlas, video: Video, key: PaintedFrame) -> PaintReport:
    whole = Period(0, len(video))
    return examine_paint(atlas, video, patches_from_frames(atlas, [key], [0]), [key.frame], whole)


def test_paint_that_holds_is_not_warned_of(atlas: Atlas, clip: Video) -> None:
    report = report_on(atlas, clip, paint_on_the_patch(atlas))
    assert report.warnings() == []
    assert f"in {len(clip)} of {len(clip)} frames" in report.words()
    assert "nothing stands in the way" in report.words()


def test_frames_that_the_atlas_does_not_explain_are_named(atlas: Atlas, clip: Video) -> None:
    frames = clip.frames.copy()
    frames[6:8] = 255 - frames[6:8]
    cut = Origin(frames=60, first=40, time_base=clip.fps, timestamps=tuple(range(len(frames))))
    report = report_on(atlas, Video(frames, clip.fps, origin=cut), paint_on_the_patch(atlas))
    assert report.sliding() == [6, 7]
    assert any("may slide or flicker in frames 46 to 47" in said for said in report.warnings())


def test_frames_in_which_paint_lies_off_are_named_and_those_between(atlas: Atlas, clip: Video) -> None:
    report = replace(
        report_on(atlas, clip, paint_on_the_patch(atlas)), slips={4: 0.0, 6: 2.6, 8: 3.4, 9: 0.4}
    )
    assert report.sliding() == [6, 7, 8]
    assert any("in frames 6 to 8, worst in frame 8 (3.4 pixels)" in said for said in report.warnings())


def test_paint_that_goes_straight_is_not_told_of_by_the_textures(atlas: Atlas, clip: Video, run: Run) -> None:
    frames = clip.frames.copy()
    frames[7] = 255 - frames[7]
    key, whole = paint_on_the_patch(atlas), Period(0, len(clip))
    video, patches = Video(frames, clip.fps), patches_from_frames(atlas, [key], [0])
    paint = transport_paint(atlas, clip, [key], run=run)
    report = examine_paint(atlas, video, patches, [key.frame], whole, paint)
    assert report.sliding() == []
    assert report.warnings() == []
    gone = TransportedPaint({at: np.zeros_like(picture) for at, picture in paint.pictures.items()})
    assert examine_paint(atlas, clip, patches, [key.frame], whole, gone).hidden() == list(report.frames)


def test_paint_behind_something_is_hidden(atlas: Atlas, clip: Video) -> None:
    clear = PackedMattes.pack(
        [pack_matte(atlas.mattes[0].frame(t) * (t != 2)) for t in range(atlas.frames)],
        atlas.height,
        atlas.width,
    )
    report = report_on(replace(atlas, mattes=(clear,)), clip, paint_on_the_patch(atlas))
    assert report.hidden() == [2]
    assert any("hidden in frame 2:" in said for said in report.warnings())


def test_paint_that_leaves_the_picture_is_out_of_sight(atlas: Atlas, clip: Video) -> None:
    chart = next(c for c in atlas.charts if c.layer == 0)
    away = chart.mapping.controls.clone()
    away[6 - chart.start] += 10_000
    gone = replace(chart, mapping=replace(chart.mapping, controls=away))
    moved = replace(atlas, charts=tuple(gone if c is chart else c for c in atlas.charts))
    report = report_on(moved, clip, paint_on_the_patch(atlas))
    assert report.out_of_sight() == [6]
    assert 6 not in report.hidden()
    assert any("out of sight in frame 6:" in said for said in report.warnings())


def test_paint_that_is_drawn_out_leans(atlas: Atlas, clip: Video) -> None:
    chart = next(c for c in atlas.charts if c.layer == 0)
    matrices = chart.mapping.matrices.clone()
    pull = torch.diag(torch.tensor([3.0, 1, 1]))
    pull[0, 2] = -2 * float(np.nonzero(atlas.mattes[0].frame(6) > 127)[1].mean())  # its middle stays
    matrices[6 - chart.start] @= pull.to(matrices)
    pulled = replace(chart, mapping=replace(chart.mapping, matrices=matrices))
    moved = replace(atlas, charts=tuple(pulled if c is chart else c for c in atlas.charts))
    report = report_on(moved, clip, paint_on_the_patch(atlas))
    assert 2 < report.stretch[6] < 4
    assert report.leaning() == [6]
    assert any("leans in frame 6, drawn out" in said for said in report.warnings())


def test_a_stretch_that_the_painted_frame_has_too_is_none(atlas: Atlas, clip: Video) -> None:
    chart = next(c for c in atlas.charts if c.layer == 0)
    both = chart.mapping.matrices.clone() @ torch.diag(torch.tensor([1.6, 1, 1])).to(chart.mapping.matrices)
    pulled = replace(chart, mapping=replace(chart.mapping, matrices=both))
    moved = replace(atlas, charts=tuple(pulled if c is chart else c for c in atlas.charts))
    key = replace(paint_on_the_patch(atlas), cover=torch.ones(1, atlas.height, atlas.width))
    assert max(report_on(moved, clip, key).stretch) < 1.5


def test_a_key_that_reaches_no_other_frame_is_named(atlas: Atlas) -> None:
    key = paint_on_the_patch(atlas)
    assert list(useless_keys(atlas, [key], [0], Period(0, atlas.frames))) == []
    alone = PackedMattes.pack(
        [pack_matte(atlas.mattes[0].frame(t) * (t == AT)) for t in range(atlas.frames)],
        atlas.height,
        atlas.width,
    )
    hidden = replace(atlas, mattes=(alone,))
    assert list(useless_keys(hidden, [key], [0], Period(0, atlas.frames))) == [(AT, True)]
    nowhere = replace(key, cover=torch.from_numpy(np.equal(atlas.mattes[0].frame(AT), 0)).float()[None])
    assert list(useless_keys(atlas, [nowhere], [0], Period(0, atlas.frames))) == [(AT, False)]


def test_the_strip_draws_each_frame_in_the_colour_of_what_its_paint_does(atlas: Atlas, clip: Video) -> None:
    report = replace(
        report_on(atlas, clip, paint_on_the_patch(atlas)), slips={4: 0.0, 5: 0.0, 6: 3.0, 7: 0.0}
    )
    strip = report.picture()
    frame = STRIP_WIDTH // len(report.frames)
    drawn = [tuple(strip[98, EDGE + t * frame + frame // 2]) for t in report.frames]
    sits, slides = (ImageColor.getrgb(COLOURS[kind]) for kind in ("sits", "may slide"))
    assert drawn == [slides if t in report.sliding() else sits for t in report.frames]
    assert report.sliding() == [6]


def test_a_strip_of_a_long_clip_has_room_for_every_frame(atlas: Atlas, clip: Video) -> None:
    report = report_on(atlas, clip, paint_on_the_patch(atlas))
    figures = {k: getattr(report, k) * 100 for k in ("covered", "seen", "explained", "stretch")}
    long = replace(report, frames=tuple(range(100 * len(clip))), **figures)
    assert long.picture().shape[1] >= 2 * len(long.frames)
