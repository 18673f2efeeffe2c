"""A disk, a folder or a home that takes nothing: a message that names the place, a hint, an exit code."""

import os
from pathlib import Path

import numpy as np
import pytest
from command_line import Ended, Shell

from retouch.media.io import read_frame, write, write_picture
from retouch.testing import Bouncing


def error_of(ended: Ended) -> tuple[str, str]:
    """The two lines of an error, of which both must be there."""
    assert "Traceback" not in ended.err, ended.err
    assert "unexpected" not in ended.err, ended.err
    message, hint = ended.err.splitlines()[-2:]
    return message.removeprefix("error: "), hint.removeprefix("hint: ")


@pytest.fixture
def noisy(shell: Shell) -> Path:
    """A picture that no codec makes small."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return write_picture(noise, shell.folder / "noise.png")


@pytest.mark.parametrize(
    "arguments",
    [
        ("keyframe", "noise.png", "--at", "0", "-o", "there/k.png"),
        ("compare", "noise.png", "noise.png", "--sheet", "there/sheet.png"),
        ("compare", "noise.png", "noise.png", "-o", "there/side.mp4"),
        ("world", "sample", "there/world", "--frames", "2", "--size", "64"),
        ("world", "sheet", "there/words.png", "--size", "32"),
        ("edit", "tint", "noise.png", "--steps", "2", "-o", "there/x.mkv", "--lossless", "--quiet"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_full_disk_is_named_and_nothing_half_written_is_left(
    arguments: tuple[str, ...], shell: Shell, noisy: Path
) -> None:
    del noisy
    there = shell.folder / "there"
    there.mkdir()
    ended = shell(*arguments, largest_file=2000)  # meets whoever writes as a full disk does
    message, hint = error_of(ended)
    assert ended.code == 4, ended.err
    place = Path(message.partition(" in ")[2].rpartition(", for ")[0])
    assert message.startswith("no file may be that large in ")
    assert place.is_relative_to(there) or place.is_relative_to(shell.home)
    assert "Free some space" in hint
    assert list(there.iterdir()) == []
    assert not list(shell.home.rglob("*draft*"))


@pytest.mark.parametrize(
    "arguments", [("probe", "clip.mp4"), ("methods",), ("doctor", "--json"), ("runs", "--json")]
)
def test_words_that_have_nowhere_to_go_are_an_error_too(arguments: tuple[str, ...], shell: Shell) -> None:
    (shell.folder / "out").symlink_to("/dev/full")
    _, status = os.waitpid(shell.start(*arguments), 0)
    assert os.waitstatus_to_exitcode(status) == 4
    assert "no space is left" in (shell.folder / "err").read_text()


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_device_is_no_place_for_a_result(force: tuple[str, ...], shell: Shell) -> None:
    for command in (("edit", "tint", "clip.mp4", "--quiet"), ("mask", "clip.mp4", "--box", "0:8,8 40,40")):
        ended = shell(*command, "-o", "/dev/full", *force)
        assert error_of(ended)[1]
        assert ended.code == 2
    assert Path("/dev/full").is_char_device()


def test_a_home_that_cannot_be_written_to_is_told_before_any_work(
    shell: Shell, bouncing: Bouncing, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shell.folder / "file").touch()
    write_picture(read_frame(shell.folder / "clip.mp4", 0), shell.folder / "k.png")
    write(bouncing.video, shell.folder / "mask")
    monkeypatch.setenv("RETOUCH_HOME", str(shell.folder / "file"))
    for arguments in (
        ("edit", "paint", "clip.mp4", "--keyframe", "0=k.png", "--box", "0:8,8 40,40"),
        ("atlas", "fit", "clip.mp4", "--mask", "mask", "-o", "x.atlas"),
        ("mask", "clip.mp4", "--box", "0:8,8 40,40", "-o", "m.mkv"),
        ("demo", "demo"),
    ):
        message, hint = error_of(ended := shell(*arguments))
        assert ended.code == 4, ended.err
        assert "cannot hold runs and results" in message
        assert "RETOUCH_HOME" in hint
    for words in ("runs", "cache prune"):
        assert shell(*words.split()).code == 0, words
    assert not (shell.folder / "demo").exists()


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("clip.mp4/x.png", "there is no folder"),
        ("none/x.png", "there is no folder"),
        ("x" * 300 + ".png", "is too long"),
        ("x" * 255, "no picture is written as"),
        ("/proc/x.png", "no permission to write in /proc"),
    ],
)
def test_a_place_that_cannot_be_is_told_by_every_command_that_writes_a_file(
    output: str, said: str, shell: Shell
) -> None:
    if said.startswith("no permission") and os.access("/proc", os.W_OK):
        said = "x.png"  # to root, /proc seems writable until it is tried
    for arguments in (
        ("keyframe", "clip.mp4", "--at", "0", "-o", output),
        ("compare", "clip.mp4", "clip.mp4", "--sheet", output),
        ("world", "sheet", output),
    ):
        message, hint = error_of(ended := shell(*arguments))
        assert (ended.code, bool(hint)) == (2, True), ended.err
        assert said in message
