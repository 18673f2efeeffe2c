"""A training that is killed, or meets a full disk, goes on to the model of one that never was."""

import os
import signal
import time
from pathlib import Path

import pytest
from command_line import Shell

from retouch.media.io import write
from retouch.world import FaceClip, Portrait

TRAIN = (
    "face",
    "train",
    "faces",
    "--fresh",
    "--images",
    "16",
    "--batch",
    "4",
    "--every",
    "2",
    "--device",
    "cpu",
)


@pytest.fixture
def faces(shell: Shell) -> Path:
    """The shell's folder, with three clips of faces in a folder."""
    (shell.folder / "faces").mkdir()
    for seed in (5, 8, 12):
        write(FaceClip.of(Portrait.sample(seed), 4, 64).video, shell.folder / "faces" / f"{seed:02}.mkv")
    return shell.folder


def killed_once_there(shell: Shell, path: Path, *command: object) -> bool:
    """Whether a command was still at work when a file that it makes was there, and it was killed."""
    child = shell.start(*command)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if path.exists():
            os.kill(child, signal.SIGKILL)
            return os.WIFSIGNALED(os.waitpid(child, 0)[1])
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_training_ends_with_the_same_model(shell: Shell, faces: Path) -> None:
    ended = shell(*TRAIN, "-o", "whole")
    assert ended.code == 0, ended.err
    work = faces / "parts.training"
    moments = ("checkpoint.safetensors", "sample-000000000.png", "sample-000000008.png")
    assert sum(killed_once_there(shell, work / name, *TRAIN, "-o", "parts") for name in moments) > 0
    assert not any(faces.glob(".parts*"))
    ended = shell(*TRAIN, "-o", "parts", "--force")
    assert ended.code == 0, ended.err
    for name in ("model.safetensors", "config.json", "PROVENANCE.json"):
        assert (faces / "parts" / name).read_bytes() == (faces / "whole" / name).read_bytes()


def test_a_training_that_meets_a_full_disk_says_so_and_leaves_no_model(shell: Shell, faces: Path) -> None:
    ended = shell(*TRAIN, "-o", "mine", largest_file=20_000)
    assert ended.code == 4, ended.err
    message, hint = ended.err.splitlines()[-2:]
    assert message.startswith("error: no file may be that large in ")
    assert "Free some space" in hint
    assert not any("mine" in path.name and path.name != "mine.training" for path in faces.iterdir())
