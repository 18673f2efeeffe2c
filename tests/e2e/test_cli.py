"""The command line from one end to the other."""

import json
import os
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import Ended, Shell

from retouch.media.io import read
from retouch.media.pictures import write_picture

TINT = ("edit", "tint", "clip.mp4", "--steps", "3", "--quiet")
SLOW = ("edit", "tint", "clip.mp4", "--steps", "40", "--pause", "0.1", "--quiet")


def error_of(ended: Ended) -> tuple[str, str]:
    """The two lines of an error."""
    lines = ended.err.splitlines()
    assert lines[0].startswith("error: ")
    assert "Traceback" not in ended.err
    return lines[0].removeprefix("error: "), lines[1].removeprefix("hint: ") if len(lines) > 1 else ""


def test_an_edit_writes_the_result_the_report_and_what_it_took(shell: Shell) -> None:
    ended = shell(*TINT, "--out", "out.mkv", "--lossless", "--seed", "5")
    assert ended.code == 0, ended.err
    assert ended.out == f"{shell.folder / 'out.mkv'}\n"
    assert "50.0% of the pixels were out of the edit's reach and are bit for bit the source's" in ended.err
    (folder,) = shell.runs
    assert sorted(path.name for path in folder.iterdir()) == [
        "events.jsonl", "extras", "lock", "report.json", "request.json", "result.mkv",
    ]  # fmt: skip
    source, result = read(shell.folder / "clip.mp4"), read(shell.folder / "out.mkv")
    assert (len(result), result.fps, result.frames.shape) == (len(source), source.fps, source.frames.shape)
    assert (result.frames[:, :, 32:] == source.frames[:, :, 32:]).all()
    assert (result.frames[:, :, :32] != source.frames[:, :, :32]).any()
    report = json.loads((folder / "report.json").read_text())
    assert report["result_digest"] == result.digest
    assert report["source_digest"] == source.digest
    assert (folder / "extras" / "words.txt").read_text() == "tinted"
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("advanced") == 6


def test_a_former_option_works_hidden_and_with_a_notice(shell: Shell) -> None:
    ended = shell("edit", "tint", "clip.mp4", "--redness", "0.25", "--dry-run")
    assert ended.told["params"]["red"] == 0.25  # type: ignore[index]
    assert ended.err == "notice: redness is now called red; the next release will not know the old word\n"
    assert "redness" not in shell("edit", "tint", "--help").out


def test_an_old_request_goes_through_with_a_notice_and_is_kept_in_todays_words(shell: Shell) -> None:
    old = shell(*TINT, "--dry-run").out.replace('"red"', '"redness"')
    (shell.folder / "old.json").write_text(old)
    ended = shell("edit", "--from", "old.json")
    assert ended.code == 0, ended.err
    (folder,) = shell.runs
    assert "redness" not in (folder / "request.json").read_text()
    assert "redness is now called red" in (folder / "notices.txt").read_text()


def test_a_model_from_outside_carries_an_edit(shell: Shell) -> None:
    (shell.folder / "still").mkdir()
    (shell.folder / "still" / "model_index.json").write_text('{"_class_name": "StillPipeline"}')
    (shell.folder / "still" / "config.json").write_text('{"gain": 0.5}')
    first = 255 - read(shell.folder / "clip.mp4").frames[0].transpose(1, 2, 0)
    write_picture(first.copy(), shell.folder / "first.png")
    asked = ("--first", "first.png", "--region", "everywhere", "--hold", "nothing", "--steps", "4")
    ended = shell(
        "edit", "videoshop", "clip.mp4", "--model", "./still", *asked, "-o", "out.mkv", "--lossless"
    )
    assert ended.code == 0, ended.err
    result = read(shell.folder / "out.mkv").frames
    assert np.abs(result.astype(int) - first.transpose(2, 0, 1)).max() <= 2  # it is sure that nothing moves


def test_the_command_in_the_report_makes_the_same_request(shell: Shell) -> None:
    ended = shell(
        *TINT,
        "--json",
        "--red",
        "-0.25",
        "--seed",
        "7",
        "--memory",
        "2GB",
        "--no-deterministic",
        "--bits",
        "10",
    )
    assert ended.code == 0, ended.err
    (folder,) = shell.runs
    _, *words = shlex.split(str(ended.told["command"]))
    assert shell(*words, "--dry-run").out == (folder / "request.json").read_text()


LAPTOP = {"strength": 1.0, "steps": 3, "pause": 0.0, "ends": False}
"""What the preset of `tint`, and its defaults, leave to be said."""


def test_a_dry_run_prints_the_request_and_does_nothing(shell: Shell) -> None:
    ended = shell(*TINT, "--dry-run", "--preset", "laptop", "--crf", "20")
    request = json.loads(ended.out)
    assert request["video"] == str(shell.folder / "clip.mp4")
    assert request["params"] == {**LAPTOP, "red": 0.25, "rows": 0.5}
    assert request["output"]["crf"] == 20
    assert not shell.runs


def test_a_flag_wins_over_the_request_that_over_the_preset_and_that_over_the_defaults(shell: Shell) -> None:
    (shell.folder / "from.json").write_text(
        json.dumps({"video": "clip.mp4", "method": "tint", "params": {"red": 0.1, "rows": 0.75}, "seed": 4})
    )
    flags = ("--from", "from.json", "--preset", "laptop", "--rows", "0.5", "--dry-run")
    request = json.loads(shell("edit", "tint", *flags).out)
    assert request["params"] == {**LAPTOP, "red": 0.1, "rows": 0.5}
    assert request["seed"] == 4
    assert json.loads(shell("edit", "tint", *flags, "--seed", "0").out)["seed"] == 0


def test_a_request_file_alone_is_enough(shell: Shell) -> None:
    (shell.folder / "from.json").write_text(shell(*TINT, "--dry-run").out)
    first, second = shell("edit", "--from", "from.json", "--json"), shell(*TINT, "--json")
    assert first.told["result_digest"] == second.told["result_digest"]


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (("edti",), 2, "there is no command 'edti'. did you mean edit?", "see: retouch --help"),
        (("edit", "tnt", "clip.mp4"), 2, "there is no method 'tnt'", "did you mean tint?"),
        (("edit", "tint"), 2, "no clip was given", "retouch edit tint CLIP [OPTIONS]"),
        (("edit", "tint", "none.mp4"), 2, "none.mp4", ""),
        (
            ("edit", "tint", "clip.mp4", "--steps", "0"),
            2,
            "steps is 0; it must be greater than or equal to 1",
            "Denoising",
        ),
        (
            ("edit", "tint", "clip.mp4", "--stepz", "1"),
            2,
            "No such option '--stepz'",
            "see: retouch edit tint --help",
        ),
        (
            ("edit", "tint", "clip.mp4", "--preset", "papr"),
            2,
            "tint has no preset 'papr'",
            "did you mean paper?",
        ),
        (
            ("edit", "tint", "clip.mp4", "--device", "cuda:77"),
            4,
            "there is no device cuda:77 here",
            "try --device cpu",
        ),
        (("edit", "tint", "clip.mp4", "--memory", "lots"), 2, "memory is 'lots'", "How much memory"),
        (
            ("edit", "tint", "clip.mp4", "--seed", "-1"),
            2,
            "Invalid value for '--seed'",
            "see: retouch edit tint",
        ),
        (
            ("edit", "tint", "clip.mp4", "--seed", str(2**63)),
            2,
            "Invalid value for '--seed'",
            "see: retouch edit tint",
        ),
        (("edit", "--from", "clip.mp4"), 2, "cannot be read", "give a request.json of an earlier run"),
        (("resume", "nothing"), 2, "there is no run 'nothing'", "see: retouch runs"),
        (("cache", "prune", "--keep", "lots"), 2, "--keep: 'lots' is no amount of memory", "for example"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_error_is_two_lines_and_an_exit_code(
    arguments: tuple[str, ...], code: int, message: str, hint: str, shell: Shell
) -> None:
    ended = shell(*arguments)
    assert ended.code == code
    said, advised = error_of(ended)
    assert message in said
    assert hint in advised
    assert ended.out == ""
    machine = json.loads(shell(*arguments, "--json").err) if "--json" in arguments else None
    assert machine is None


def test_an_error_is_json_for_machines_and_a_traceback_for_authors(shell: Shell) -> None:
    told = json.loads(shell("edit", "tint", "none.mp4", "--json").err)
    assert told["exit_code"] == 2
    assert set(told) == {"error", "hint", "exit_code"}
    assert "Traceback" in shell("edit", "tint", "none.mp4", "--debug").err


def test_an_output_that_exists_is_replaced_by_force_only(shell: Shell) -> None:
    (shell.folder / "out.mp4").write_text("precious")
    ended = shell(*TINT, "--out", "out.mp4")
    assert (ended.code, error_of(ended)[0]) == (2, f"{shell.folder / 'out.mp4'} exists")
    assert (shell.folder / "out.mp4").read_text() == "precious"
    assert shell(*TINT, "--out", "out.mp4", "--force").code == 0
    assert len(read(shell.folder / "out.mp4")) == 8


def test_a_replay_takes_the_threads_of_the_run(shell: Shell) -> None:
    """The last digits of a network's results depend on how many threads share the work."""
    words = ("--source-prompt", "a red ball on sand", "--prompt", "a blue ball on sand", "--steps", "2")
    assert shell.apart("edit", "fatezero", "clip.mp4", *words, "--threads", "2").code == 0
    (first,) = shell.runs
    assert json.loads((first / "request.json").read_text())["compute"]["threads"] == 2
    assert json.loads(shell.apart("replay", first.name, "--json").out)["same"] is True
    kept = json.loads(shell("cache", "list", "--json").out)
    assert shell.apart("edit", "fatezero", "clip.mp4", *words, "--threads", "1").code == 0
    assert len(json.loads(shell("cache", "list", "--json").out)) == 2 * len(kept)  # none of another count


def test_a_damaged_clip_is_refused_and_the_run_says_why(shell: Shell) -> None:
    whole = (shell.folder / "clip.mp4").read_bytes()
    (shell.folder / "clip.mp4").write_bytes(whole[:100])
    assert shell(*TINT).code == 2
    assert "failed: " in shell("runs").out


def test_a_replay_gives_the_same_bytes(shell: Shell) -> None:
    assert shell(*TINT).code == 0
    (first,) = shell.runs
    ended = shell("replay", first.name, "--quiet")
    assert "the same frames, bit for bit" in ended.err
    _, second = shell.runs
    assert (first / "result.mp4").read_bytes() == (second / "result.mp4").read_bytes()
    assert json.loads(shell("replay", first.name, "--json").out)["same"] is True


def test_runs_are_listed_with_how_they_ended(shell: Shell) -> None:
    assert "no runs yet" in shell("runs").err
    shell(*TINT)
    (done,) = shell.runs
    shell("edit", "tint", "clip.mp4", "--device", "cuda:77")
    assert [row["state"] for row in json.loads(shell("runs", "--json").out)] == [
        "done",
        "failed: there is no device cuda:77 here",
    ]
    ended = shell("resume", done.name)
    assert (ended.code, error_of(ended)) == (
        2,
        (f"{done.name} is done", f"to do it again: retouch replay {done.name}"),
    )


def test_the_cache_is_listed_verified_and_pruned(shell: Shell) -> None:
    shell(*TINT)
    (entry,) = json.loads(shell("cache", "list", "--json").out)
    assert entry["kind"] == "grain"
    assert (shell("cache", "verify").code, shell("cache", "verify").err) == (0, "1 checked, 0 damaged\n")
    tensors = shell.home / "store" / "grain" / entry["key"] / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"?")
    ended = shell("cache", "verify", "--json")
    assert ended.code == 5
    assert list(json.loads(ended.out)["damaged"]) == [f"grain/{entry['key']}"]
    again = shell("edit", "tint", "clip.mp4", "--steps", "3")
    assert again.code == 0
    assert "notice: a kept grain is damaged and will be made again" in again.err
    assert shell("cache", "verify").code == 0
    assert shell("cache", "prune", "--older-than", "1").out.startswith("0 removed")
    assert shell("cache", "prune").out.startswith("1 removed")
    assert json.loads(shell("cache", "list", "--json").out) == []


def test_doctor_says_what_is_here(shell: Shell) -> None:
    facts = shell("doctor", "--json").told
    assert str(facts["home"]) == str(shell.home)
    assert "tint" in str(facts["methods"])
    assert facts["network"] == "forbidden (RETOUCH_OFFLINE)"
    assert shell("doctor").code == 0


def test_ctrl_c_leaves_a_run_that_can_be_resumed(shell: Shell) -> None:
    whole = shell(*(word if word != "0.1" else "0" for word in SLOW), "--json")
    assert whole.code == 0, whole.err
    shell("cache", "prune")
    child = shell.new(*SLOW)
    wait_for_steps(shell, 3)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate()
    *_, stopped = shell.runs
    assert (child.returncode, out) == (130, "")
    assert err == f"error: the run was stopped\nhint: go on with: retouch resume {stopped.name}\n"
    assert [row["state"] for row in json.loads(shell("runs", "--json").out)] == ["done", "stopped"]
    told = [json.loads(line)["event"] for line in (stopped / "events.jsonl").read_text().splitlines()]
    ended = shell("resume", stopped.name, "--json")
    assert ended.code == 0, ended.err
    resumed = [json.loads(line) for line in (stopped / "events.jsonl").read_text().splitlines()][len(told) :]
    assert resumed[0]["total"] <= 38  # of 40: what was done before is not done again


def test_two_processes_never_work_in_one_run(shell: Shell) -> None:
    child = shell.start(*SLOW, "--json")
    wait_for_steps(shell, 1)
    (folder,) = shell.runs
    other = Shell(shell.folder / "other", shell.home)
    other.folder.mkdir()
    assert "running" in other("runs").out
    ended = other("resume", folder.name)
    assert (ended.code, error_of(ended)[0]) == (2, f"{folder.name} is running already")
    os.kill(child, signal.SIGINT)
    os.waitpid(child, 0)


def wait_for_steps(shell: Shell, steps: int) -> None:
    """Waits until the newest run has taken so many steps."""
    for _ in range(3000):
        time.sleep(0.02)
        for folder in shell.runs[-1:]:
            events = folder / "events.jsonl"
            at_work = events.exists() and not (folder / "report.json").exists()
            if at_work and events.read_text().count('"advanced"') >= steps:
                return
    raise AssertionError("the run took no steps in a minute")


FULL = [300, 3_000, 10_000, 17_000]
"""Bytes that a file may have: too few for the request, the events, a checkpoint, the result."""


@pytest.mark.parametrize("largest_file", FULL)
def test_a_full_disk_is_told_leaves_nothing_half_written_and_the_run_goes_on(
    largest_file: int, shell: Shell
) -> None:
    assert shell(*TINT, "--red", "1", "--out", "whole.mkv", "--lossless").code == 0
    assert (shell.folder / "whole.mkv").stat().st_size > max(FULL)
    shell("cache", "prune")
    ended = shell(*TINT, "--red", "1", "--out", "out.mkv", "--lossless", largest_file=largest_file)
    assert ended.code == 4, ended.err
    assert "free" in error_of(ended)[1].lower()
    assert not (shell.folder / "out.mkv").exists()
    assert not list(Path(shell.home).rglob("*.part"))
    assert not list(Path(shell.home).rglob("*.draft"))
    assert shell("cache", "verify").code == 0
    _, *stopped = shell.runs
    for folder in stopped:
        assert not (folder / "result.mkv").exists()
        assert shell("resume", folder.name, "--quiet").code == 0
        whole, resumed = (read(shell.folder / name) for name in ("whole.mkv", "out.mkv"))
        assert resumed.digest == whole.digest  # Matroska files carry a random number, so no two are equal
