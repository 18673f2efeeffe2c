"""What can be known is known before the first expensive step: nothing has begun when it is refused."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from command_line import Shell

from retouch.media.io import read_frame, write, write_picture
from retouch.testing import Bouncing

PAINT = ("edit", "paint", "clip.mp4", "--box", "0:8,8 40,40")
ATLAS = ("edit", "diffusion_atlas", "clip.mp4", "--source-prompt", "a red ball")
KEYS = ("edit", "stablevideo", "clip.mp4", "--box", "0:8,8 40,40", "--prompt", "a blue ball")
SHOP = ("edit", "videoshop", "clip.mp4")
FACE = ("edit", "face", "clip.mp4")
WORDS = ("edit", "fatezero", "clip.mp4", "--source-prompt", "a red ball", "--prompt", "a blue ball")


@pytest.fixture
def files(shell: Shell, bouncing: Bouncing) -> Path:
    """The shell's folder, with pictures, masks and things that are neither."""
    frame = read_frame(shell.folder / "clip.mp4", 0)
    write_picture(frame, shell.folder / "key.png")
    write_picture(np.full_like(frame, 90), shell.folder / "flat.png")
    write_picture(frame[:, ::2], shell.folder / "narrow.png")
    write_picture(frame[::2, ::2], shell.folder / "half.png")
    (shell.folder / "cut.png").write_bytes((shell.folder / "key.png").read_bytes()[:300])
    (shell.folder / "words.txt").write_text("no picture")
    write(bouncing.video[:5], shell.folder / "five.mkv")
    write(bouncing.video, shell.folder / "masks")
    write_picture(np.zeros((3, 3), np.uint8), shell.folder / "masks" / "000007.png", force=True)
    (shell.folder / "file").touch()
    (shell.folder / "work.mp4").mkdir()
    return shell.folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*PAINT, "--keyframe", "500=key.png"), "keyframe names frame 500 | frames are 0 to 7"),
        ((*PAINT, "--keyframe", "-1=key.png"), "keyframe names frame -1"),
        ((*PAINT, "--keyframe", "3=narrow.png"), "the picture for frame 3 is 32x64, the clip 64x64"),
        ((*PAINT, "--keyframe", "3=half.png"), "the picture for frame 3 is 32x32, the clip 64x64"),
        ((*PAINT, "--keyframe", "3=cut.png"), "cut.png cannot be read as a picture"),
        ((*PAINT, "--keyframe", "3=none.png"), "none.png does not exist"),
        ((*PAINT, "--keyframe", "3=words.txt"), "words.txt cannot be read as a picture"),
        (PAINT, "nothing is painted"),
        (
            (*PAINT, "--keyframe", "3=key.png", "--transport", "direct", "--mode", "delta"),
            "mode delta goes through the atlas",
        ),
        ((*PAINT, "--keyframe", "3=key.png", "--frames", "6-9"), "frame 9 is not in the clip"),
        (
            (*PAINT, "--keyframe", "3=key.png", "--layer", "cat"),
            "no layer 'cat' | layers: object, background",
        ),
        ((*PAINT, "--keyframe", "3"), "keyframe '3' is not FRAME=PICTURE"),
        ((*PAINT, "--texture", "car=none.png"), "none.png does not exist"),
        ((*PAINT, "--keyframe", "3=key.png", "--mask", "five.mkv"), "has 5 masks; the clip has 8 frames"),
        ((*PAINT, "--keyframe", "3=key.png", "--mask", "half.png"), "is 32x32; the clip is 64x64"),
        ((*PAINT, "--keyframe", "3=key.png", "--mask", "masks"), "000007.png is 3x3; the clip is 64x64"),
        ((*SHOP, "--first", "narrow.png"), "the picture for frame 0 is 32x64, the clip 64x64"),
        ((*SHOP, "--first", "cut.png"), "cut.png cannot be read as a picture"),
        ((*FACE, "--attribute", "glases=1"), "knows no attribute 'glases' | did you mean glasses?"),
        ((*FACE, "--identity", "cut.png"), "cut.png cannot be read as a picture"),
        ((*FACE, "--attribute", "glasses=1", "--faithful", "--steps", "45"), "knows no such number"),
        ((*ATLAS, "--prompt", "a blue ball"), "nothing says what the object is"),
        ((*ATLAS, "--mask", "key.png", "--reference", "flat.png"), "flat.png shows nothing"),
        ((*ATLAS, "--mask", "key.png", "--background-reference", "cut.png"), "cut.png cannot be read"),
        ((*ATLAS, "--mask", "five.mkv", "--prompt", "a blue ball"), "has 5 masks; the clip has 8 frames"),
        ((*WORDS, "--mask", "five.mkv"), "has 5 masks; the clip has 8 frames"),
        ((*KEYS, "--at", "8"), "key frame 8 is not in the clip | frames are 0 to 7"),
        ((*KEYS, "--at", "3", "--at", "3"), "key frame 3 is named twice"),
        ((*KEYS[:3], *KEYS[5:]), "nothing says what the object is"),
    ],
)
def test_a_frame_a_picture_or_a_mask_that_does_not_fit_is_refused_before_any_stage(
    arguments: tuple[str, ...], said: str, shell: Shell, files: Path
) -> None:
    del files
    ended = shell(*arguments)
    assert ended.code == 2, ended.err
    assert all(part in ended.err for part in said.split(" | ")), ended.err
    (folder,) = shell.runs
    events = folder / "events.jsonl"
    assert "started" not in (events.read_text() if events.exists() else "")
    assert not (folder / "scratch").exists()
    assert not list(shell.home.glob("store/*"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("-o", "x.foo"), "no clip is written as .foo"),
        (("-o", "none/x.mp4"), "there is no folder"),
        (("-o", "file/x.mp4"), "there is no folder"),
        (("-o", "x.mp4", "--codec", "ffv1"), ".mp4 does not hold ffv1"),
        (("-o", "x.mp4", "--codec", "vp9", "--bits", "10"), "vp9 is not written with 10 bits"),
        (("--codec", "prores", "--lossless"), "ProRes does not keep every RGB byte"),
        (("-o", "five.mkv"), "five.mkv exists"),
        (("-o", "work.mp4", "--force"), "work.mp4 is a folder"),
        (("-o", "x" * 300 + ".mp4"), "is too long"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_a_run_is_made(
    flags: tuple[str, ...], said: str, shell: Shell, files: Path
) -> None:
    del files
    ended = shell(*PAINT, "--keyframe", "3=key.png", *flags)
    assert ended.code == 2, ended.err
    assert said in ended.err
    assert not shell.runs


def test_a_resumed_run_is_looked_at_in_the_same_way(shell: Shell, files: Path) -> None:
    (files / "gone.png").write_bytes((files / "key.png").read_bytes())
    assert shell("edit", "tint", "clip.mp4", "--steps", "2", "--quiet").code == 0
    (folder,) = shell.runs
    request = json.loads((folder / "request.json").read_text())
    request |= {"method": "paint", "params": {"keyframe": [f"9={files / 'key.png'}"], "box": ["0:8,8 40,40"]}}
    (folder / "request.json").write_text(json.dumps(request))
    (folder / "report.json").unlink()
    for command in ("resume", "replay"):
        ended = shell(command, folder.name)
        assert (ended.code, "keyframe names frame 9" in ended.err) == (2, True), ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("mask clip.mp4 --box 0:8,8|40,40 -o x.foo", "no clip is written as .foo"),
        ("mask clip.mp4 --box 0:8,8|40,40 -o m.mkv --preview x.foo", "no clip is written as .foo"),
        ("mask clip.mp4 --box 0:8,8|40,40 -o m.mkv --object cat", "no object 'cat' is marked"),
        ("mask clip.mp4 --box 0:8,8|40,40 -o m.mkv --segmenter sam2:none", "none"),
        ("atlas fit clip.mp4 --mask five.mkv -o x.atlas", "has 5 masks; the clip has 8 frames"),
        ("atlas fit clip.mp4 --mask half.png -o x.atlas", "is 32x32; the clip is 64x64"),
        ("atlas fit clip.mp4 --mask key.png -o none/x.atlas", "there is no folder"),
        ("atlas fit clip.mp4 --mask key.png -o x.atlas --flow raft:none", "none"),
        ("atlas show file -o x.foo", "no picture is written as '.foo'"),
        ("keyframe clip.mp4 --at 0 -o x.foo", "no picture is written as '.foo'"),
        ("keyframe clip.mp4 --at 3 --at 3 -o x.png", "frame 3 is named twice"),
        ("keyframe clip.mp4 --at 9 --edit a|red|ball -o x.png", "frame 9 is not in the clip"),
        ("keyframe clip.mp4 --at 1 --at 3 --edit a|red|ball -o x.png", "several key frames agree through"),
        (
            "keyframe clip.mp4 --at 1 --edit a|red|ball --mask half.png -o x.png",
            "is 32x32; the clip is 64x64",
        ),
        ("keyframe clip.mp4 --at 1 --edit a|red|zeppelin -o x.png", "does not know the word 'zeppelin'"),
        ("keyframe clip.mp4 --at 1 --edit a|red|ball --model tiny:svd -o x.png", "no editor of pictures"),
        (
            "keyframe clip.mp4 --at 1 --edit a|red|ball --reference key.png -o x.png",
            "nothing shows this model",
        ),
        ("keyframe clip.mp4 --at 1 --edit a|red|ball --control none -o x.png", "no model is called 'none'"),
        ("keyframe clip.mp4 --at 1 --edit a|red|ball -o key.png", "key.png exists"),
        ("keyframe clip.mp4 --range 1-3 --edit a|red|ball -o x", "a range is not edited"),
        ("compare clip.mp4 five.mkv -o x.mp4", "the clips have 8, 5 frames"),
        ("compare clip.mp4 clip.mp4 -o x.foo", "no clip is written as .foo"),
        ("compare clip.mp4 clip.mp4 --sheet x.foo", "no picture is written as '.foo'"),
        ("world sheet x.foo", "no picture is written as '.foo'"),
        ("bench truth --set fatezero.stepz=3 --methods fatezero -o bench", "no parameter 'stepz'"),
        ("bench truth --set paint.fade=3 --methods fatezero -o bench", "'paint', which is not measured"),
    ],
)
def test_every_command_refuses_first_what_can_be_known(
    arguments: str, said: str, shell: Shell, files: Path
) -> None:
    before = sorted(path.name for path in files.iterdir())
    ended = shell(*(word.replace("|", " ") for word in arguments.split()))
    assert ended.code in (2, 3), ended.err
    assert said in ended.err
    assert sorted(path.name for path in files.iterdir() if path.name not in ("out", "err")) == before
    assert not list(shell.home.glob("store/*"))


def test_what_the_audio_and_the_rate_ask_of_a_container_is_known_first(
    shell: Shell, bouncing: Bouncing
) -> None:
    write(replace(bouncing.video, fps=Fraction(60)), shell.folder / "fast.mkv")
    ended = shell("edit", "tint", "fast.mkv", "-o", "x.gif")
    assert (ended.code, "GIF shows at most 50 frames a second" in ended.err) == (2, True), ended.err
    (folder,) = shell.runs
    assert not (folder / "events.jsonl").exists()


@pytest.mark.parametrize(
    ("editor", "said"), [("tiny:svd", "no editor of pictures"), ("./nowhere", "nowhere")]
)
@pytest.mark.parametrize("method", [KEYS, (*ATLAS, "--box", "0:8,8 40,40", "--prompt", "a blue ball")])
def test_what_edits_no_pictures_is_refused_before_any_stage(
    method: tuple[str, ...], editor: str, said: str, shell: Shell
) -> None:
    ended = shell(*method, "--editor", editor)
    assert ended.code == 3
    assert said in ended.err
    assert not any((run / "events.jsonl").exists() for run in shell.runs)


def test_what_reads_no_depth_is_refused_before_any_stage(shell: Shell) -> None:
    ended = shell(*KEYS, "--edits", "both", "--depth", "tiny:sd-canny")
    assert ended.code == 3
    assert "tiny:sd-canny is a ControlNetModel, no depth model" in ended.err
    assert not any((run / "events.jsonl").exists() for run in shell.runs)
