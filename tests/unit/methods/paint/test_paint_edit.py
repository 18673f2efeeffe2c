"""`paint` from parameters to frames."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from retouch.atlas.file import save_atlas
from retouch.atlas.prepare import atlas_for, marks_from
from retouch.compute import Compute
from retouch.errors import ArtifactError, ParamsError
from retouch.events import Event, Kept, Notice, Reused, ignore
from retouch.media.io import write
from retouch.media.pictures import write_picture
from retouch.media.probe import probe
from retouch.methods.paint.edit import edit, period_of, preflight
from retouch.methods.paint.spec import SPEC, PaintParams
from retouch.run import Run
from retouch.video import Video

BOX = ("0:12,14 54,58",)


@pytest.fixture(scope="module")
def clip() -> Video:
    """A textured red disc that moves over a green cloth."""
    rng = np.random.default_rng(2)
    cloth, skin = (cv2.GaussianBlur(rng.random((72, 96, 3)).astype(np.float32), (0, 0), 1.5) for _ in "ab")
    shots = []
    for t in range(6):
        disc = np.zeros((72, 96), np.uint8)
        cv2.circle(disc, (32 + 3 * t, 36), 18, 255, -1)
        ground = (cloth - 0.3) * (100, 300, 100) + (10, 60, 10)
        front = (np.roll(skin, 3 * t, axis=1) - 0.3) * (300, 200, 100) + (120, 10, 10)
        shots.append(
            np.where(disc[..., None] > 0, front, ground).clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
        )
    return Video(np.stack(shots), Fraction(10))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.alone(tmp_path / "run", compute=Compute(device="cpu"))


def painted(clip: Video, folder: Path, t: int = 2) -> str:
    picture = np.ascontiguousarray(clip.frames[t].transpose(1, 2, 0)).copy()
    picture[30:42, 32:44] = (20, 20, 250)
    write_picture(picture, folder / f"k{t}.png")
    return f"{t}={folder / f'k{t}.png'}"


def test_paint_on_one_frame_is_in_every_frame_and_nothing_else_changes(
    clip: Video, run: Run, tmp_path: Path
) -> None:
    edited = edit(clip, PaintParams(keyframe=(painted(clip, tmp_path),), box=BOX), run)
    assert edited.touched is not None
    same = (edited.video.frames == clip.frames).all(1, keepdims=True)
    assert (same | edited.touched).all()
    for t in range(6):
        centre = edited.video.frames[t, :, 36, 38 + 3 * (t - 2)].astype(int)
        assert np.abs(centre - (20, 20, 250)).max() < 25
    assert edited.figures["touched"] < 0.1


def test_the_object_may_be_an_outline_or_a_drawn_mask(clip: Video, run: Run, tmp_path: Path) -> None:
    drawn = np.zeros((72, 96, 3), np.uint8)
    cv2.circle(drawn, (41, 36), 18, (255, 255, 255), -1)  # as it lies in frame 3
    write_picture(drawn, tmp_path / "drawn.png")
    shot = painted(clip, tmp_path)
    square = "2:22,20 54,20 54,52 22,52"
    for params in (
        PaintParams(keyframe=(shot,), drawn=(f"disc@3={tmp_path / 'drawn.png'}",), layer="disc"),
        PaintParams(keyframe=(shot,), polygon=(square,), layer="object"),
    ):
        edited = edit(clip, params, run)
        assert np.abs(edited.video.frames[5, :, 36, 47].astype(int) - (20, 20, 250)).max() < 25
    with pytest.raises(ParamsError, match="no segmenter 'sam'"):
        edit(clip, PaintParams(keyframe=(shot,), polygon=(square,), segmenter="sam"), run)


def test_paint_goes_straight_from_its_frame_and_changes_nothing_else(
    clip: Video, run: Run, tmp_path: Path
) -> None:
    shot = painted(clip, tmp_path)
    edited = edit(clip, PaintParams(keyframe=(shot,), box=BOX, transport="direct", frames="1-5"), run)
    assert edited.touched is not None
    same = (edited.video.frames == clip.frames).all(1, keepdims=True)
    assert (same | edited.touched).all()
    assert not edited.touched[0].any()
    for t in range(1, 6):
        centre = edited.video.frames[t, :, 36, 38 + 3 * (t - 2)].astype(int)
        assert np.abs(centre - (20, 20, 250)).max() < 25


def test_paint_that_cannot_go_straight_is_refused_before_anything_is_done(
    clip: Video, tmp_path: Path
) -> None:
    shot = painted(clip, tmp_path)
    facts = probe(write(clip, tmp_path / "clip.mkv"))
    for params, why in (
        (PaintParams(keyframe=(shot,), transport="direct", mode="delta", box=BOX), "mode delta goes through"),
        (
            PaintParams(keyframe=(shot,), transport="direct", texture=("object=k.png",), box=BOX),
            "a texture goes through",
        ),
    ):
        with pytest.raises(ParamsError, match=why):
            preflight(facts, params, ignore)


def test_a_second_edit_reuses_the_atlas(clip: Video, tmp_path: Path) -> None:
    heard: list[Event] = []
    run = Run.alone(tmp_path / "run", compute=Compute(device="cpu"), listen=heard.append)
    edit(clip, PaintParams(keyframe=(painted(clip, tmp_path),), box=BOX), run)
    assert {e.kind for e in heard if isinstance(e, Kept)} == {"mattes", "atlas"}
    heard.clear()
    edit(clip, PaintParams(keyframe=(painted(clip, tmp_path, 3),), box=BOX), run)
    assert {e.kind for e in heard if isinstance(e, Reused)} == {"mattes", "atlas"}


def test_a_frame_that_was_not_painted_gives_the_source(clip: Video, run: Run, tmp_path: Path) -> None:
    atlas = save_atlas(atlas_for(clip, run, marks=marks_from(box=BOX)), tmp_path / "clip.atlas")
    write_picture(np.ascontiguousarray(clip.frames[1].transpose(1, 2, 0)), tmp_path / "k1.png")
    heard: list[Event] = []
    quiet = Run.alone(tmp_path / "second", compute=Compute(device="cpu"), listen=heard.append)
    edited = edit(clip, PaintParams(keyframe=(f"1={tmp_path / 'k1.png'}",), atlas=atlas), quiet)
    np.testing.assert_array_equal(edited.video.frames, clip.frames)
    assert any(isinstance(e, Notice) and "the result is the source" in e.text for e in heard)
    with pytest.raises(ArtifactError, match="another clip"):
        edit(clip[:4], PaintParams(keyframe=(f"1={tmp_path / 'k1.png'}",), atlas=atlas), quiet)


def test_paint_that_misses_every_layer_is_warned_of_and_paint_that_holds_is_told_to(
    clip: Video, tmp_path: Path
) -> None:
    heard: list[Event] = []
    run = Run.alone(tmp_path / "run", compute=Compute(device="cpu"), listen=heard.append)
    shot = painted(clip, tmp_path)
    edited = edit(clip, PaintParams(keyframe=(shot,), box=BOX), run)
    assert "seen       in 6 of 6 frames" in str(edited.extras["paint"])
    picture = np.ascontiguousarray(clip.frames[2].transpose(1, 2, 0)).copy()
    picture[:6, :6] = 255
    write_picture(picture, tmp_path / "corner.png")
    corner = PaintParams(keyframe=(f"2={tmp_path / 'corner.png'}",), box=BOX, layer="object")
    edited = edit(clip, corner, run)
    assert not edited.touched.any()  # type: ignore[union-attr]
    told = [event.text for event in heard if isinstance(event, Notice)]
    assert any("the paint on frame 2 lies on nothing that may be edited" in text for text in told)
    assert not any("the result is the source" in text for text in told)


def test_paint_that_the_object_passes_in_front_of_is_told_to_be_hidden(clip: Video, tmp_path: Path) -> None:
    heard: list[Event] = []
    run = Run.alone(tmp_path / "run", compute=Compute(device="cpu"), listen=heard.append)
    picture = np.ascontiguousarray(clip.frames[0].transpose(1, 2, 0)).copy()
    picture[33:39, 55:61] = 255  # beside the disc, which comes this way
    write_picture(picture, tmp_path / "k0.png")
    edit(clip, PaintParams(keyframe=(f"0={tmp_path / 'k0.png'}",), box=BOX, layer="background"), run)
    told = [event.text for event in heard if isinstance(event, Notice)]
    assert any("most of the paint is hidden in frames 3 to 5" in text for text in told), told


def test_nothing_painted_and_nothing_masked_are_refused_with_a_way_out(
    clip: Video, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(ParamsError, match="nothing is painted") as caught:
        edit(clip, PaintParams(box=BOX), run)
    assert "--keyframe" in caught.value.hint
    with pytest.raises(ParamsError, match="what the object is"):
        edit(clip, PaintParams(keyframe=(painted(clip, tmp_path),)), run)
    with pytest.raises(ParamsError, match="not in the clip"):
        edit(clip, PaintParams(keyframe=(f"9={tmp_path / 'k.png'}",), box=BOX), run)
    with pytest.raises(ParamsError, match="FRAME=PICTURE"):
        edit(clip, PaintParams(keyframe=("k40.png",), box=BOX), run)


def test_periods_are_read_and_fade_only_where_the_clip_goes_on() -> None:
    assert (period_of("", 3, 10).start, period_of("", 3, 10).stop, period_of("", 3, 10).fade_in) == (0, 10, 0)
    part = period_of("0-4", 2, 10)
    assert (part.start, part.stop, part.fade_in, part.fade_out) == (0, 5, 0, 2)
    assert period_of("7", 0, 10).stop == 8
    for wrong in ("5-2", "3-12", "a-b"):
        with pytest.raises(ParamsError):
            period_of(wrong, 0, 10)


def test_the_spec_holds_together() -> None:
    SPEC.check()
    assert SPEC.fill({"mode": "delta"}).mode == "delta"  # type: ignore[attr-defined]
