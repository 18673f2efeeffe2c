"""A run that is killed at any moment goes on to the same bytes as one that never was."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from command_line import Shell

from retouch.media.io import read

EDIT = ("edit", "tint", "clip.mp4", "--steps", "8", "--pause", "0.01", "--out", "out.mp4", "--quiet")


LONG = ("edit", "tint", "clip.mp4", "--steps", "20", "--pause", "0.05", "--out", "out.mp4", "--quiet")


def carried_through(shell: Shell, moments: list[float]) -> bytes:
    """The result of an edit that is killed so many seconds into each attempt, and then left alone."""
    for moment in moments:
        child = shell.start(*next_command(shell))
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert shell("cache", "verify").code == 0
    if next_command(shell)[0] == "edit" or "done" not in shell("runs").out:
        ended = shell(*next_command(shell))
        assert ended.code == 0, ended.err
    (folder,) = shell.runs
    assert (folder / "result.mp4").read_bytes() == (shell.folder / "out.mp4").read_bytes()
    return (folder / "result.mp4").read_bytes()


def next_command(shell: Shell) -> tuple[str, ...]:
    """The edit itself until a run is there, and then to go on with it."""
    runs = shell.runs
    return ("resume", runs[0].name, "--quiet") if runs else EDIT


def killed_often(shell: Shell, times: int, seed: int, homes: Path) -> None:
    started = time.perf_counter()
    whole = carried_through(shell, [])
    duration = time.perf_counter() - started
    draw = random.Random(seed)
    for number in range(times):
        os.environ["RETOUCH_HOME"] = str(homes / str(number))  # the fixture that set it puts it back
        (shell.folder / "out.mp4").unlink()
        moments = [draw.uniform(0, duration) for _ in range(1 + number % 2)]
        assert carried_through(shell, moments) == whole, moments


def test_a_run_killed_at_a_few_moments_ends_with_the_same_bytes(shell: Shell, tmp_path: Path) -> None:
    killed_often(shell, 4, seed=1, homes=tmp_path / "homes")


@pytest.mark.slow
def test_a_run_killed_at_fifty_moments_ends_with_the_same_bytes(shell: Shell, tmp_path: Path) -> None:
    killed_often(shell, 34, seed=2, homes=tmp_path / "homes")  # every other one is killed twice: 51 in all


def kill_and_resume(shell: Shell, child: subprocess.Popen[str]) -> None:
    """Ends the one run that there is by force, and goes on with it."""
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    (folder,) = shell.runs
    assert shell("resume", folder.name, "--quiet").code == 0


def test_a_process_of_its_own_killed_in_a_step_goes_on(shell: Shell, home: Path) -> None:
    assert shell(*LONG).code == 0
    whole = (shell.folder / "out.mp4").read_bytes()
    os.environ["RETOUCH_HOME"] = str(home / "second")
    (shell.folder / "out.mp4").unlink()
    child = shell.new(*LONG)
    while not (shell.runs and (shell.runs[0] / "events.jsonl").exists()):
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)
    time.sleep(0.5)
    kill_and_resume(shell, child)
    assert (shell.folder / "out.mp4").read_bytes() == whole


WORDS = (
    "edit",
    "fatezero",
    "clip.mp4",
    "--source-prompt",
    "a red ball on grass",
    "--prompt",
    "a blue ball on grass",
)
TEXT = (*WORDS, "--preset", "style", "--steps", "8", "--out", "out.mkv", "--lossless", "--quiet")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["invert", "edit"])
def test_an_edit_by_words_killed_on_the_way_ends_with_the_same_frames(
    shell: Shell, home: Path, stage: str
) -> None:
    assert shell(*TEXT).code == 0
    whole = read(shell.folder / "out.mkv").digest
    os.environ["RETOUCH_HOME"] = str(home / "second")
    (shell.folder / "out.mkv").unlink()
    child = shell.new(*TEXT)
    while not reached(shell, stage, step=3):
        assert child.poll() is None, child.communicate()
        time.sleep(0.01)
    kill_and_resume(shell, child)
    assert read(shell.folder / "out.mkv").digest == whole  # a Matroska file carries a random number


def reached(shell: Shell, stage: str, step: int) -> bool:
    """Whether the one run that there is has come so far in a stage."""
    told = [folder / "events.jsonl" for folder in shell.runs]
    events = [
        json.loads(line) for path in told if path.exists() for line in path.read_text().splitlines()[:-1]
    ]
    return any(e["event"] == "advanced" and stage in e["stage"] and e["done"] >= step for e in events)
