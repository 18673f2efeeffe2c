"""Every method's edit, killed at moments that nobody chose, goes on to the bytes of one that never was."""

import gc
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Shell

from retouch import registry
from retouch.apps import run_folder
from retouch.apps.cli import run
from retouch.artifacts import ArtifactStore
from retouch.atlas.file import save_atlas
from retouch.atlas.prepare import atlas_for
from retouch.atlas.pyramid import AtlasSettings
from retouch.events import Advanced, Event
from retouch.media.io import read, read_frame, write, write_picture
from retouch.models.image import StableDiffusion
from retouch.models.image_prompt import ImagePrompt
from retouch.places import home
from retouch.run import Run, _load_once
from retouch.testing import Bouncing
from retouch.video import Video
from retouch.world import FaceClip, Portrait

WORDS = ("--source-prompt", "a red ball on grass", "--prompt", "a blue ball on grass")
ATLAS = ("--atlas", "clip.atlas")
"""Made before: what a fit survives is tried in `paint`, which makes its own."""
EDITS = {
    "frame_by_frame": (*WORDS[2:], "--steps", "4"),
    "diffusion_atlas": (*WORDS, *ATLAS, "--steps", "3", "--tune-steps", "2"),
    "fatezero": (*WORDS, "--preset", "style", "--steps", "5"),
    "tune_a_video": (*WORDS, "--steps", "3", "--tune-steps", "3"),
    "videoshop": ("--first", "key.png", "--steps", "4"),
    "stablevideo": (*WORDS[2:], *ATLAS, "--at", "0", "--at", "3", "--carry", "previous", "--steps", "4"),
    "face": ("--attribute", "beard=1", "--steps", "4", "--window", "2"),
    "paint": ("--keyframe", "0=key.png", "--mask", "mask"),
    "tint": ("--steps", "8", "--pause", "0.02"),
}
ANYHOW = ("--refine-least", "-1", "--refine-least-move", "0")
MENDED = ("--refine", "denoise", "--refine-steps", "7", *ANYHOW)
MOMENTS = {"tune": 1, "invert": 2, "edit object": 2, "refine": 6, "render": 1}
"""Stages of an edit, and after how many steps of each it is killed; a refinement keeps every fifth."""
KILLS = 23
"""Of each method, so that there are more than 200."""
MOST = 4
"""Kills that one edit may have to survive."""


@pytest.fixture
def files(shell: Shell, bouncing: Bouncing) -> Path:
    """The shell's folder, with a mask of the ball and a picture of the first frame with blue on it."""
    write(bouncing.video[:4], shell.folder / "clip.mp4", force=True)
    write(FaceClip.of(Portrait.sample(5), 4, 64).video, shell.folder / "face.mp4")
    write(Video(np.repeat(bouncing.mask[:4], 3, axis=1), bouncing.video.fps), shell.folder / "mask")
    picture = read_frame(shell.folder / "clip.mp4", 0)
    picture[bouncing.mask[0, 0] > 0] = (40, 40, 220)
    write_picture(picture, shell.folder / "key.png")
    return shell.folder


@pytest.fixture
def light() -> Iterator[None]:
    """What this process has imported is no rubbish to look through before every fork."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def killed(shell: Shell, command: tuple[str, ...], moment: float) -> bool:
    """Whether a command was still at work when it was killed so many seconds after its start."""
    child = shell.start(*command)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, (shell.folder / "err").read_text()
    return os.WIFSIGNALED(status)


def survived(shell: Shell, edit: tuple[str, ...], draw: random.Random, lasting: float) -> int:
    """How often one edit was killed, a few times at most, before it was left alone until its end."""
    kills = 0
    command = edit
    while kills < MOST and killed(shell, command, draw.uniform(0, lasting)):
        kills += 1
        states = [(folder, run_folder.state_of(folder)) for folder in shell.runs]
        if any(state == "done" for _, state in states):
            return kills
        assert all(state == "stopped" for _, state in states)
        command = ("resume", states[0][0].name, "--quiet") if states else edit
    ended = shell(*command) if kills == MOST else None
    assert ended is None or ended.code == 0, ended.err
    return kills


def time_alone(shell: Shell, edit: tuple[str, ...], folder: Path, patch: pytest.MonkeyPatch) -> float:
    """Seconds that the edit takes where nothing is kept and nobody kills it."""
    patch.setenv("RETOUCH_HOME", str(folder / "alone"))
    started = time.perf_counter()
    ended = shell(*edit, "--force")
    assert ended.code == 0, ended.err
    return time.perf_counter() - started


def rough_atlas(folder: Path) -> None:
    """Fit `clip.atlas` to the clip, no better than an edit needs."""
    solving, settings = Run.alone(folder), AtlasSettings(charts=1, steps=1, gain=0)
    save_atlas(
        atlas_for(read("clip.mp4"), solving, masks=[Path("mask")], settings=settings), Path("clip.atlas")
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("method", EDITS)
def test_an_edit_killed_at_random_moments_ends_with_the_same_bytes(
    method: str, shell: Shell, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = "face.mp4" if method == "face" else "clip.mp4"
    edit = ("edit", method, clip, *EDITS[method], "--out", "out.mp4", "--quiet")
    monkeypatch.chdir(files)
    if "--atlas" in edit:
        rough_atlas(tmp_path / "solving")
    assert run(list(edit)) == 0  # in this process, which so imports for its children all that they would
    whole = (files / "out.mp4").read_bytes()
    _load_once.cache_clear()  # but each of them loads the models itself
    lasting = time_alone(shell, edit, tmp_path, monkeypatch)
    kills, draw = 0, random.Random(method)
    for number in range(KILLS * 50):
        monkeypatch.setenv("RETOUCH_HOME", str(tmp_path / f"home {number}"))
        (files / "out.mp4").unlink()
        kills += survived(shell, edit, draw, lasting)
        (folder,) = shell.runs
        assert (files / "out.mp4").read_bytes() == (folder / "result.mp4").read_bytes() == whole
        store = ArtifactStore(home() / "store")
        assert all(store.check(entry.folder) for entry in store.entries())
        if kills >= KILLS:
            return
    raise AssertionError(f"{method} was killed {kills} times only")


@pytest.mark.slow
def test_every_method_that_is_registered_is_killed() -> None:
    assert set(EDITS) == set(registry.names())


def killed_after(shell: Shell, command: tuple[str, ...], stage: str, patch: pytest.MonkeyPatch) -> None:
    """Carry a command out in a process that dies when it has told of so much of a stage."""
    tell = Run.emit

    def tell_and_die(run: Run, event: Event) -> None:
        tell(run, event)
        if isinstance(event, Advanced) and (event.stage, event.done) == (stage, MOMENTS[stage]):
            os.kill(os.getpid(), signal.SIGKILL)

    with patch.context() as mortal:
        mortal.setattr(Run, "emit", tell_and_die)
        _, status = os.waitpid(shell.start(*command), 0)
    assert os.WIFSIGNALED(status), (stage, (shell.folder / "err").read_text())


@pytest.mark.slow
def test_an_edit_killed_in_every_stage_in_turn_goes_on_to_the_same_bytes(
    shell: Shell, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    write(read("clip.mp4")[:2], files / "clip.mp4", force=True)
    write(read("mask")[:2], files / "mask", force=True)
    rough_atlas(tmp_path / "solving")
    for name, kind in (("tiny:sd", StableDiffusion), ("tiny:ip", ImagePrompt)):
        Run.alone(tmp_path).load(name, kind)  # which its children find there
    command: tuple[str, ...] = ("edit", "diffusion_atlas", "clip.mp4", *EDITS["diffusion_atlas"], *MENDED)
    command = (*command, "--out", "out.mp4", "--quiet")
    assert shell(*command).code == 0
    whole = (files / "out.mp4").read_bytes()
    monkeypatch.setenv("RETOUCH_HOME", str(tmp_path / "second"))
    (files / "out.mp4").unlink()
    for stage in MOMENTS:
        killed_after(shell, command, stage, monkeypatch)
        (folder,) = shell.runs
        assert run_folder.state_of(folder) == "stopped"
        command = ("resume", folder.name, "--quiet")
    ended = shell(*command)
    assert ended.code == 0, ended.err
    assert (files / "out.mp4").read_bytes() == (folder / "result.mp4").read_bytes() == whole
    told = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    done = {
        stage: [e["done"] for e in told if e["event"] == "advanced" and e["stage"] == stage]
        for stage in MOMENTS
    }
    assert done["tune"] == [1, 1, 2]  # it had learned one step when it was killed, and did not learn it again
    assert done["refine"] == [1, 2, 3, 4, 5, 6, 5, 6, 7]
    assert not [e for e in told if "stays as it was" in str(e)]  # the result rests on the mended map
