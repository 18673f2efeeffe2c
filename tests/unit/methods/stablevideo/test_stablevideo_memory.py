"""An edit of a long clip takes no more memory than one of a short clip."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import retouch
from retouch.atlas.atlas import Atlas, Chart, PackedMattes, pack_matte
from retouch.atlas.file import save_atlas
from retouch.atlas.mapping import ChartMapping
from retouch.video import Video

SIDE, SHORT, LONG = 256, 32, 160
SLACK = 6 << 20
"""Bytes that two processes may differ by; the 128 frames more are 25 MB, their edit too, and masks 8."""
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "524288", "MALLOC_TRIM_THRESHOLD_": "524288"}
"""What is freed leaves memory at once, so that only what is held counts."""
EDITED = """
import json, sys
from fractions import Fraction
from pathlib import Path
import numpy as np, torch
from retouch.methods.stablevideo.edit import edit, edit_with_editor
from retouch.methods.stablevideo.spec import SPEC
from retouch.run import Run
from retouch.video import Video

class SwapsColours:
    @property
    def identity(self):
        return "swaps colours"
    def edit(self, picture, prompt, *, mask, references, seed, run):
        return np.ascontiguousarray(picture[..., ::-1])

torch.set_num_threads(1)
folder, frames = Path(sys.argv[1]), int(sys.argv[2])
pixels = np.memmap(folder / "clip.bin", np.uint8, "r", shape=(frames, 3, 256, 256))
video = Video(pixels, Fraction(10))
told = {"prompt": "a blue ball on sand", "atlas": folder / "clip.atlas", "at": (frames - 1,)}
def params(**more):
    return SPEC.fill({**told, **more})
peaks = []
def report(edited):
    assert edited.video.frames.shape == video.frames.shape
    status = Path("/proc/self/status").read_text()
    peaks.append(int(status.split("VmHWM:")[1].split()[0]) * 1024)
report(edit_with_editor(SwapsColours(), video, params(edits="both"), Run.alone(folder / "editor")))
report(edit(video, params(faithful=True, steps=2), Run.alone(folder / "released")))
print(json.dumps(peaks))
"""


def still_clip(frames: int, folder: Path) -> None:
    """A clip in a file in which nothing moves, and its atlas: a square before a ground."""
    noise = np.random.default_rng(0).integers(0, 256, (3, SIDE // 16, SIDE // 16), np.uint8)
    picture = np.kron(noise, np.ones((1, 16, 16), np.uint8))
    pixels = np.memmap(folder / "clip.bin", np.uint8, "w+", shape=(frames, 3, SIDE, SIDE))
    pixels[:] = picture
    pixels.flush()
    matte = np.zeros((SIDE, SIDE), np.uint8)
    matte[64:192, 64:192] = 255
    mapping = ChartMapping(
        torch.eye(3).repeat(frames, 1, 1),
        torch.zeros(frames, 2, 7, 7),
        torch.zeros(frames, 2),
        (SIDE, SIDE),
        SIDE,
        SIDE,
    )
    texture = torch.from_numpy(picture.copy()).float() / 255
    seen, gain = torch.ones(1, SIDE, SIDE), torch.ones(frames, 3, 4, 4)
    charts = [Chart(n, 0, 0, mapping, 1.0, torch.ones(frames), texture, seen, gain) for n in (0, 1)]
    mattes = PackedMattes.pack([pack_matte(matte)] * frames, SIDE, SIDE)
    digest = Video(pixels, Fraction(10)).digest
    names = ("object", "background")
    whole = Atlas(names, tuple(charts), (mattes,), frames, SIDE, SIDE, Fraction(10), digest)
    save_atlas(whole, folder / "clip.atlas")


@pytest.mark.slow
def test_a_long_clip_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    """By key frames, both layers, and as released, each clip in a process of its own."""
    peaks = []
    for frames in (SHORT, LONG):
        folder = tmp_path / str(frames)
        folder.mkdir()
        still_clip(frames, folder)
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-c", EDITED, str(folder), str(frames)],
            env={**os.environ, **AT_ONCE, "PYTHONPATH": str(Path(retouch.__file__).parents[1])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        peaks.append(json.loads(ended.stdout))
    assert [long - short < SLACK for short, long in zip(*peaks, strict=True)] == [True, True], peaks
