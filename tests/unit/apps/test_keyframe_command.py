"""`retouch keyframe --edit` as it is typed, with the embedded model."""

import json
from pathlib import Path

import numpy as np
import pytest

from retouch.apps.cli import run
from retouch.apps.commands.keyframe import picture_places
from retouch.errors import ParamsError
from retouch.media.io import read_frame, read_picture, write, write_picture
from retouch.world import Change, Clip, Scene, edited_clip


def test_an_edit_by_words_leaves_picture_mask_and_offset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = Clip.of(Scene.sample(2 * 10**9 + 3), 4, 64)
    edited = edited_clip(clip, Change.parse("colour=green"))
    path, out, where = write(clip.video, tmp_path / "clip.mp4"), tmp_path / "k.png", tmp_path / "m.png"
    write_picture(np.uint8(255) * (clip.video.frames[1] != edited.video.frames[1]).any(0), where)
    told = ["--at", "1", "--edit", edited.caption, "--steps", "4", "--mask", str(where), "-o", str(out)]
    assert run(["keyframe", str(path), *told]) == 0
    assert "changed; the answer lay at" in capsys.readouterr().out
    source, made = read_frame(path, 1), read_picture(out)
    changed = read_picture(tmp_path / "k-changed.png")[..., 0] > 0
    assert changed.any()
    assert not (changed & (read_picture(where)[..., 0] == 0)).any()
    assert np.array_equal(made[~changed], source[~changed])
    said = json.loads((tmp_path / "k.json").read_text())
    assert said["changed"] == pytest.approx(changed.mean())
    assert abs(said["zoom"] - 1) < 0.02

    assert run(["keyframe", str(path), *told]) == 2
    assert "exists" in capsys.readouterr().err
    assert np.array_equal(read_picture(out), made)

    free = [*told[:-1], str(tmp_path / "free.png"), "--control", ""]
    assert run(["keyframe", str(path), *free]) == 0
    assert not np.array_equal(read_picture(tmp_path / "free.png"), made)  # else it is held to the edges


def test_several_pictures_carry_their_frames_number() -> None:
    assert picture_places(None, [3]) == {3: Path("frame-3.png")}
    assert picture_places(Path("a/k.png"), [3]) == {3: Path("a/k.png")}
    assert picture_places(Path("a/k.png"), [3, 9]) == {3: Path("a/k-3.png"), 9: Path("a/k-9.png")}
    with pytest.raises(ParamsError, match="frame 9 is named twice"):
        picture_places(None, [3, 9, 9])
