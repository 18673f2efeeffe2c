"""`retouch compare` and `retouch bench`, in processes of their own."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from retouch.apps.commands.compare import MEASURED, compare
from retouch.errors import InputError, VideoError
from retouch.media.compare import lay_out_clips
from retouch.media.io import read, write
from retouch.video import Video

RATE = Fraction(24000, 1001)

PLUG_IN = """
from retouch.errors import MethodError
from retouch.params import Params, Prompt, SourcePrompt
from retouch.run import Edited
from retouch.spec import MethodSpec

class Words(Params):
    prompt: Prompt
    source_prompt: SourcePrompt

SPEC = MethodSpec("dimmed", "Dimmed", "Makes the clip darker.", Words, "plug_in:edit")

def edit(video, params, run):
    if "star" in params.prompt:
        raise MethodError("no stars")
    if params.prompt == params.source_prompt:
        return Edited(video)
    return Edited(video.like(video.frames // 2))
"""


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(40, 200, (1, 3, 64, 96), dtype=np.uint8), 6, axis=0)
    bright = frames.copy()
    bright[1::2] += 30
    paths = [tmp_path / "source clip.mp4", tmp_path / "flickering.mp4", tmp_path / "short.mp4"]
    for path, pixels in zip(paths, (frames, bright, frames[:4]), strict=True):
        write(Video(pixels, RATE), path)
    return paths


def called(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", "from retouch.apps.cli import main; main()", *map(str, words)]
    return subprocess.run(
        call, capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})}, check=False
    )


def invoked(*words: object) -> Result:
    return CliRunner().invoke(compare, [str(word) for word in words])


def test_compare_writes_video_and_sheet_and_tells_figures(clips: list[Path], tmp_path: Path) -> None:
    side, sheet = tmp_path / "side by side.mp4", tmp_path / "sheet.png"
    done = called("compare", *clips[:2], "-o", side, "--sheet", sheet, "--metrics", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["out"], told["sheet"]) == (str(side), str(sheet))
    flicker = {name: row["flicker@rgb8/96x64/6f"] for name, row in told["figures"].items()}
    assert flicker["source clip"] == 1
    assert flicker["flickering"] is None or flicker["flickering"] > 5
    made = read(side)
    assert (len(made), made.fps) == (6, RATE)
    assert (made.height, made.width) == lay_out_clips([read(path) for path in clips[:2]]).size
    assert sheet.stat().st_size > 1000


def test_lengths_that_differ_are_refused_unless_the_shortest_is_asked_for(
    clips: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "side.mp4"
    refused = invoked(clips[0], clips[2], "-o", out)
    assert isinstance(refused.exception, InputError)
    assert not out.exists()
    assert invoked(clips[0], clips[2], "-o", out, "--shortest").exception is None
    assert len(read(out)) == 4


def test_what_exists_is_kept_unless_forced(clips: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "side.mp4"
    out.write_text("mine")
    assert isinstance(invoked(*clips[:2], "-o", out).exception, VideoError)
    assert out.read_text() == "mine"
    assert invoked(*clips[:2], "-o", out, "--force").exception is None
    assert len(read(out)) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{0}", "-o", "x.mp4"], "one clip"),
        (["{0}", "{1}"], "nothing was asked for"),
        (["{0}", "{1}", "--metrics", "--labels", "a"], "do not name 2 clips"),
        (["{0}", "{1}", "--metrics", "--labels", "a,a"], "do not name 2 clips"),
        (["{0}", "gone.mp4", "--metrics"], "does not exist"),
    ],
)
def test_what_cannot_be_compared_is_said(clips: list[Path], words: list[str], message: str) -> None:
    done = invoked(*(word.format(*clips) for word in words))
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


def test_figures_say_which_way_is_better_and_when_doing_nothing_wins(clips: list[Path]) -> None:
    done = invoked(*clips[:2], "--metrics", "--labels", "before,after")
    assert done.exception is None
    assert "psnr-source@rgb8/96x64/6f  (higher is better; doing nothing wins)" in done.output
    assert done.output.count("before") == done.output.count("after") == len(MEASURED)


def test_bench_truth_measures_a_plugged_in_method_and_goes_on_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "plug_in.py").write_text(PLUG_IN)
    facts = tmp_path / "plug_in-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-in\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[retouch.methods]\ndimmed = plug_in:SPEC\n")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = ["--methods", "dimmed", "--kinds", "object", "--clips", "4", "--frames", "2", "--size", "32"]
    # The naive per-frame edit joins every bench that finds it; one step of it is enough here.
    words += ["--eyes", "none", "--set", "frame_by_frame.steps=1", "--out", str(tmp_path / "out"), "--json"]
    done = called("bench", "truth", *words, env={"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    rows = told["means"]["object"]
    outside, source = "fidelity-outside@rgb8/32x32/2f", "psnr-source@rgb8/32x32/2f"
    assert rows["null edit: dimmed"][source]["mean"] == rows["the source itself"][outside]["mean"] == 100
    assert rows["dimmed"][outside]["mean"] < 30
    failed = [row for row in told["failed"] if row["contender"] == "dimmed"]
    assert failed
    assert all(row["error"] == "MethodError: no stars" for row in failed)
    assert rows["dimmed"][outside]["clips"] == 4 - len(failed)
