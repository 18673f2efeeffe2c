"""`retouch probe` and `retouch keyframe` as they are typed."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from retouch.apps.cli import run
from retouch.media.io import Encoding, read_picture, write
from retouch.video import Video


@pytest.fixture
def exact(tmp_path: Path) -> tuple[Path, Video]:
    """A file whose frames come back to the byte, and they."""
    frames = np.random.default_rng(4).integers(0, 256, (6, 3, 20, 32), np.uint8)
    video = Video(frames, Fraction(30000, 1001))
    return write(video, tmp_path / "clip.mkv", encoding=Encoding(lossless=True)), video


def test_keyframe_takes_the_frame_asked_for(exact: tuple[Path, Video], tmp_path: Path) -> None:
    clip, video = exact
    picture = tmp_path / "k.png"
    assert run(["keyframe", str(clip), "--at", "4", "-o", str(picture)]) == 0
    assert np.array_equal(np.moveaxis(read_picture(picture), -1, 0), video.frames[4])
    assert run(["keyframe", str(clip), "--at", "5", "-o", str(picture)]) == 2
    assert np.array_equal(np.moveaxis(read_picture(picture), -1, 0), video.frames[4])
    assert run(["keyframe", str(clip), "--at", "5", "-o", str(picture), "--force"]) == 0
    assert np.array_equal(np.moveaxis(read_picture(picture), -1, 0), video.frames[5])


def test_keyframe_says_which_frames_there_are(
    exact: tuple[Path, Video], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["keyframe", str(exact[0]), "--at", "6", "-o", str(tmp_path / "k.png")]) == 2
    assert "its 6 frames are 0 to 5" in capsys.readouterr().err
    assert not (tmp_path / "k.png").exists()


def test_probe_tells_machines_the_same_as_people(
    exact: tuple[Path, Video], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["probe", str(exact[0])]) == 0
    words = capsys.readouterr().out
    assert run(["probe", str(exact[0]), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["video"]["fps"] == "30000/1001"
    assert (facts["video"]["width"], facts["video"]["height"], facts["video"]["frames"]) == (32, 20, 6)
    assert all(told in words for told in ("30000/1001", "32x20", "ffv1"))


def test_probe_diff_ends_with_1_and_names_what_differs(
    exact: tuple[Path, Video], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(exact[1][:4], tmp_path / "other.mkv", encoding=Encoding(lossless=True))
    assert run(["probe", "--diff", str(exact[0]), str(other)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["frames", "duration"]
    assert run(["probe", "--diff", str(other), str(other)]) == 0
    assert capsys.readouterr().out == ""
    assert run(["probe", "--diff", str(other)]) == 2


def test_probe_refuses_what_is_no_clip_in_two_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").write_text("no clip")
    assert run(["probe", str(tmp_path / "a.mp4")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"]
