"""What lies in a place stays there: no command takes the place of anything that is not ours."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import Shell

from retouch.apps import run_folder
from retouch.media.io import read, write, write_picture
from retouch.testing import Bouncing

TINT = ("edit", "tint", "clip.mp4", "--steps", "3", "--quiet")
SLOW = ("edit", "tint", "clip.mp4", "--steps", "30", "--pause", "0.1", "--quiet")


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def words_in(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.fixture
def work(shell: Shell) -> Path:
    """A folder of pictures that somebody else made, and of more."""
    folder = shell.folder / "work"
    (folder / "letters").mkdir(parents=True)
    (folder / "letters" / "thesis.tex").write_text("years")
    write_picture(np.zeros((4, 4, 3), np.uint8), folder / "holiday.png")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        (*TINT, "-o", "work", "--force"),
        ("mask", "clip.mp4", "--box", "0:8,8 40,40", "-o", "work", "--force"),
        ("world", "sample", "work", "--frames", "1", "--size", "16", "--force"),
        ("bench", "truth", "-o", "work", "--clips", "1"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_folder_that_we_did_not_write_is_kept_by_force_too(
    arguments: tuple[str, ...], shell: Shell, work: Path
) -> None:
    before = everything_in(work)
    ended = shell(*arguments)
    assert ended.code == 2, ended.err
    assert ("which retouch did not write" in ended.err) != ("other things than a bench" in ended.err)
    (work / "letters" / "thesis.tex").unlink()
    (work / "letters").rmdir()
    assert shell(*arguments).code == 2  # pictures alone, but not ours
    assert everything_in(work) == {"holiday.png": before["holiday.png"]}


@pytest.mark.parametrize("name", ["", ".", "/", ".."])
def test_an_output_without_a_name_is_refused_and_the_current_folder_stays(name: str, shell: Shell) -> None:
    before = everything_in(shell.folder).keys()
    for arguments in (
        (*TINT, "-o", name, "--force"),
        ("keyframe", "clip.mp4", "--at", "0", "-o", name, "--force"),
        ("world", "sample", name, "--frames", "1", "--size", "16", "--force"),
    ):
        ended = shell(*arguments)
        assert ended.code == 2, (arguments, ended.err)
    assert everything_in(shell.folder).keys() - {"out", "err"} == before


def test_a_folder_of_ours_is_replaced_by_force_until_something_is_put_into_it(shell: Shell) -> None:
    (shell.folder / "frames").mkdir()  # nothing is lost with an empty one
    assert shell(*TINT, "-o", "frames").code == 0
    first = everything_in(shell.folder / "frames")
    assert shell(*TINT, "--red", "-1", "-o", "frames").code == 2
    assert shell(*TINT, "--red", "-1", "-o", "frames", "--force").code == 0
    assert everything_in(shell.folder / "frames").keys() == first.keys()
    assert everything_in(shell.folder / "frames") != first
    (shell.folder / "frames" / "000003.png").write_bytes(b"painted over by hand")
    ended = shell(*TINT, "-o", "frames", "--force")
    assert (ended.code, "holds 000003.png" in ended.err) == (2, True)


@pytest.mark.parametrize("output", ["out.mkv", "frames"])
def test_what_appears_at_the_output_during_the_run_stays_and_the_result_is_in_the_run(
    output: str, shell: Shell
) -> None:
    child = shell.start(*SLOW, "-o", output)
    while not (shell.runs and "advanced" in words_in(shell.runs[0] / "events.jsonl")):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), words_in(shell.folder / "err")
        time.sleep(0.02)
    there = shell.folder / output
    if output == "frames":
        there.mkdir()
        there = there / "letter"
    there.write_text("somebody was faster")
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 2
    told = (shell.folder / "err").read_text()
    (folder,) = shell.runs
    result = folder / f"result{Path(output).suffix}"
    assert "exists" in told
    assert f"its result lies in {result}" in told
    assert there.read_text() == "somebody was faster"
    assert len(read(result)) == 8
    assert run_folder.state_of(folder) == "done"
    assert not [path for path in shell.folder.iterdir() if "draft" in path.name]


def test_a_result_that_was_handed_over_before_a_stop_is_no_stranger_there_or_gone(shell: Shell) -> None:
    assert shell(*TINT, "-o", "out.mp4").code == 0
    (folder,) = shell.runs
    whole = (shell.folder / "out.mp4").read_bytes()
    for gone in (False, True):
        (folder / "report.json").unlink()  # as if it was stopped right after the result was put in place
        if gone:
            (shell.folder / "out.mp4").unlink()
        ended = shell("resume", folder.name, "--quiet")
        assert (ended.code, (shell.folder / "out.mp4").read_bytes()) == (0, whole), ended.err
    (folder / "report.json").unlink()
    (shell.folder / "out.mp4").write_text("somebody else's")
    assert shell("resume", folder.name, "--quiet").code == 2
    assert (shell.folder / "out.mp4").read_text() == "somebody else's"


def test_the_old_folder_is_there_until_the_new_one_is(shell: Shell, bouncing: Bouncing) -> None:
    frames = write(bouncing.video, shell.folder / "frames")
    before = everything_in(frames)
    ended = shell(*TINT, "-o", "frames", "--force", largest_file=3000)
    assert ended.code == 4, ended.err
    assert everything_in(frames) == before
    assert sorted(path.name for path in shell.folder.iterdir()) == ["clip.mp4", "err", "frames", "out"]


DAMAGED = [b"", b"{", b"null", b"[]", b'"stopped"', b"{}", b'{"error": 3}', b"\xff\xfe\x00", b"[" * 5000]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_error_reads_as_stopped_and_harms_no_other_run(content: bytes, shell: Shell) -> None:
    assert shell("edit", "tint", "clip.mp4", "--device", "cuda:77").code == 4
    (failed,) = shell.runs
    (failed / "error.json").write_bytes(content)
    request = json.loads((failed / "request.json").read_text())
    request["compute"]["device"] = "cpu"
    (failed / "request.json").write_text(json.dumps(request))
    ended = shell("runs")
    assert (ended.code, f"{failed.name}  stopped" in ended.out) == (0, True), ended.err
    assert shell("report", failed.name).code == 0
    assert shell("resume", failed.name, "--quiet").code == 0
