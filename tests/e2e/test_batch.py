"""A batch ends with the same results whatever is killed, stopped, frozen or full meanwhile."""

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_watch import PATIENCE, at_work, digests, ended, results, tint, until, write_clips, write_rows
from command_line import Shell

import retouch
from retouch import batch
from retouch.apps.batch_folder import BatchFolder
from retouch.events import Event, Notice
from retouch.media.io import write
from retouch.world import FaceClip, Portrait

pytestmark = pytest.mark.slow


@pytest.fixture
def rows(shell: Shell) -> Path:
    """A file of eight rows: two clips, four seeds."""
    return write_rows(shell, *(tint(clip, seed=s) for clip in write_clips(shell) for s in range(4)))


@pytest.fixture
def whole(shell: Shell, rows: Path, plugins: Path) -> list[object]:
    """The digests of the eight rows, each edited alone."""
    del plugins
    given = [json.loads(line) for line in rows.read_text().splitlines()]
    return [
        retouch.edit(
            "tint", shell.folder / row["video"], seed=row["seed"], compute=retouch.Compute(threads=1),
            **row["params"],
        ).report["result_digest"]
        for row in given
    ]  # fmt: skip


def test_pool_and_shards_give_what_single_edits_give_and_do_it_once(
    shell: Shell, rows: Path, whole: list[object]
) -> None:
    seen = list(batch.run(rows, shell.folder / "pool", workers=2))
    assert [result.done for result in seen] == [True] * 8
    assert digests(shell.folder / "pool") == whole
    shards = [shell.new("batch", rows, "--out", "shards", "--shard", f"{i}/2", "--quiet") for i in (1, 2)]
    assert [ended(process) for process in shards] == [0, 0]
    assert results(shell.folder / "shards") == results(shell.folder / "pool")
    folder = BatchFolder(shell.folder / "pool")
    assert [folder.attempts(result.key) for result in seen] == [1] * 8
    fitted = [
        json.loads(line)["event"]
        for path in (shell.folder / "pool" / "runs").glob("*/events.jsonl")
        for line in path.read_text().splitlines()
        if '"kind": "grain"' in line
    ]
    assert (fitted.count("kept"), fitted.count("reused")) == (2, 6)  # once a clip, over all workers
    again = list(batch.run(rows, shell.folder / "pool", workers=2))
    assert [result.key for result in again] == [result["key"] for result in results(shell.folder / "pool")]
    assert [folder.attempts(result.key) for result in again] == [1] * 8


def test_each_worker_loads_a_model_once_and_gives_the_bytes_of_single_edits(shell: Shell) -> None:
    write(FaceClip.of(Portrait.sample(0), 3).video, shell.folder / "face.mkv")
    asked: list[tuple[str, dict[str, Any]]] = [
        ("frame_by_frame", {"prompt": "a blue car", "steps": 2}),
        ("face", {"attribute": ["glasses=1"], "steps": 2}),
    ]
    rows = [
        {"video": "face.mkv", "method": method, "seed": seed, "params": params, "compute": {"threads": 1}}
        for method, params in asked
        for seed in (0, 1)
    ]
    compute, out = retouch.Compute(threads=1), shell.folder / "out"
    single = [
        retouch.edit(method, shell.folder / "face.mkv", seed=seed, compute=compute, **params).report
        for method, params in asked
        for seed in (0, 1)
    ]
    seen = list(batch.run(write_rows(shell, *rows), out, workers=2))
    assert [result.message for result in seen if not result.done] == []
    assert digests(out) == [report["result_digest"] for report in single]
    loads = [
        (json.loads((log.parent / "lease-1").read_text())["process"], told["model"])
        for log in out.glob("runs/*/events.jsonl")
        for told in map(json.loads, log.read_text().splitlines())
        if told["event"] == "loaded"
    ]
    assert {model for _, model in loads} == {"tiny:sd", "tiny:face"}
    assert len(set(loads)) == len(loads)


def kill_now_and_then(folder: Path, running: Callable[[], bool], every: float, seed: int) -> int:
    """End a random worker by force every so often, but none a third time over one row; return how many."""
    draw, kills = random.Random(seed), 0
    while running():
        time.sleep(every)
        if busy := [process for process, _, attempt in at_work(folder) if attempt < 3]:
            os.kill(draw.choice(busy), signal.SIGKILL)
            kills += 1
    return kills


@pytest.mark.parametrize("commands", [[("--workers", "2")], [("--shard", "1/2"), ("--shard", "2/2")]])
def test_workers_killed_now_and_then_lose_no_row_and_double_none(
    shell: Shell, rows: Path, whole: list[object], commands: list[tuple[str, str]]
) -> None:
    running = [shell.new("batch", rows, "--out", "out", *words, "--quiet") for words in commands]
    kills = kill_now_and_then(
        shell.folder / "out", lambda: any(process.poll() is None for process in running), 1.0, seed=3
    )
    assert kills > 0
    assert [ended(process) for process in running] == [0] * len(commands)
    assert digests(shell.folder / "out") == whole
    assert len(list((shell.folder / "out" / "done").iterdir())) == len(whole)


def test_a_batch_that_is_killed_itself_goes_on_with_what_is_missing(
    shell: Shell, rows: Path, whole: list[object]
) -> None:
    out = shell.folder / "out"
    process = shell.new("batch", rows, "--out", "out", "--quiet")
    until(lambda: len(list((out / "done").glob("*.json"))) >= 2)
    process.kill()
    ended(process)
    before = {path.name: path.stat().st_mtime_ns for path in (out / "done").glob("*.json")}
    assert ended(shell.new("batch", rows, "--out", "out", "--quiet")) == 0
    assert digests(out) == whole
    assert before.items() <= {p.name: p.stat().st_mtime_ns for p in (out / "done").glob("*.json")}.items()


def test_a_frozen_worker_is_replaced_and_what_it_brings_later_is_dropped(shell: Shell, plugins: Path) -> None:
    del plugins
    slow = write_rows(shell, tint(steps=8, pause=0.25))
    first = shell.new("batch", slow, "--out", "out", "--silence", "3")
    events = [shell.folder / "out" / "runs"]
    until(lambda: any('"tint", "done"' in p.read_text() for p in events[0].glob("*/events.jsonl")))
    ((frozen, key, _),) = at_work(shell.folder / "out")
    os.kill(frozen, signal.SIGSTOP)
    second = shell.new("batch", slow, "--out", "out", "--silence", "3", "--quiet")
    done = shell.folder / "out" / "done" / f"{key}.json"
    until(done.exists)
    assert ended(second) == 0
    outcome = done.read_text()
    os.kill(frozen, signal.SIGCONT)
    _, said = first.communicate(timeout=PATIENCE)
    assert first.returncode == 0
    assert f"{key} was taken over by another worker" in said
    assert done.read_text() == outcome
    assert json.loads(outcome)["attempt"] == 2
    assert json.loads(outcome)["result"] == f"runs/{key}/attempt-2/result.mp4"


def test_a_row_that_ends_its_worker_each_time_fails_alone(shell: Shell, plugins: Path) -> None:
    del plugins
    rows = write_rows(shell, tint(seed=1), {"id": "bad", "request": tint(ends=True)}, tint(seed=2))
    said: list[Event] = []
    seen = {r.line: r for r in batch.run(rows, shell.folder / "out", workers=2, listen=said.append)}
    assert [seen[line].state for line in (1, 2, 3)] == ["done", "failed", "done"]
    assert (seen[2].error, seen[2].message) == ("WorkerEnded", "it ended the worker 3 times")
    assert sum(isinstance(event, Notice) and "ended by SIGKILL" in event.text for event in said) == 3
    assert batch.exit_code(seen.values(), shell.folder / "out") == batch.SOME_FAILED
    assert batch.status(shell.folder / "out")["failures"][0]["key"] == "bad"
    again = list(batch.run(rows, shell.folder / "out"))
    assert [result.state for result in again if result.key == "bad"] == ["failed"]  # it is not tried for ever
    assert batch.forgive(shell.folder / "out") == ["bad"]


def test_a_shard_whose_time_is_up_checkpoints_and_the_next_start_goes_on(shell: Shell, plugins: Path) -> None:
    del plugins
    rows, out = write_rows(shell, tint(steps=40, pause=0.2)), shell.folder / "out"
    process = shell.new("batch", rows, "--out", "out", "--shard", "1/1", "--quiet")
    until(lambda: any(out.glob("store/grain/.*.checkpoint.safetensors")))
    process.terminate()
    asked = time.monotonic()
    assert ended(process) == batch.ROWS_LEFT
    assert time.monotonic() - asked < 10
    assert not list((out / "done").iterdir())
    (log,) = out.glob("runs/*/events.jsonl")
    before = len(log.read_text().splitlines())
    shorter = shell.new("batch", rows, "--out", "out", "--shard", "1/1", "--quiet")
    assert ended(shorter) == 0
    told = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    fitted = [event["total"] for event in told if event["event"] == "started" and event["stage"] == "fit"]
    assert fitted[0] < 40
    assert [path.name for path in (out / "runs").glob("*/attempt-*")] == []


def test_the_command_leaves_bad_rows_out_and_says_which(shell: Shell, rows: Path, plugins: Path) -> None:
    del plugins
    write_rows(shell, tint(steps=0), tint("gone.mp4"), tint(pause=0), tint(pause=0))
    told = shell("batch", rows, "--out", "bad")
    assert told.code == 2
    assert "line 1: steps is 0" in told.err
    assert "line 2: video: " in told.err
    assert not (shell.folder / "bad").exists()
    planned = shell("batch", rows, "--out", "bad", "--skip-bad", "--dry-run", "--json").told
    assert [group["lines"] for group in planned["groups"]] == [[3]]  # type: ignore[attr-defined]
    assert not (shell.folder / "bad").exists()
    assert shell("batch", rows, "--out", "bad", "--skip-bad", "--quiet").code == batch.SOME_FAILED
    assert [told["state"] for told in results(shell.folder / "bad")] == ["failed", "failed", "done", "done"]
    counts = shell("batch", "status", "bad", "--json").told
    assert (counts["done"], counts["failed"], counts["missing"]) == (2, 2, 0)
    assert "4 rows: 2 done, 2 failed" in shell("batch", "status", "bad").out


def test_an_id_with_another_request_is_refused_until_it_is_forced(shell: Shell, plugins: Path) -> None:
    del plugins
    out = shell.folder / "out"
    rows = write_rows(shell, {"id": "shot", "request": {**tint(pause=0), "out": "shot.mp4"}})
    assert [result.done for result in batch.run(rows, out)] == [True]
    before = (shell.folder / "shot.mp4").read_bytes()
    write_rows(shell, {"id": "shot", "request": {**tint(pause=0, red=-0.5), "out": "shot.mp4"}})
    with pytest.raises(retouch.RetouchError, match="line 1: id 'shot' was given another request before"):
        list(batch.run(rows, out))
    assert (shell.folder / "shot.mp4").read_bytes() == before
    assert [result.done for result in batch.run(rows, out, force=True)] == [True]
    assert (shell.folder / "shot.mp4").read_bytes() != before


def test_workers_are_not_asked_of_a_cluster_that_has_its_own(shell: Shell, rows: Path, plugins: Path) -> None:
    del plugins
    with pytest.raises(retouch.RetouchError, match="a cluster has its own"):
        list(batch.run(rows, shell.folder / "out", workers=2, cluster="127.0.0.1:6379"))


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may be larger than this, for this process and its workers, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_fails_the_row_and_the_batch_goes_on_when_room_is_made(
    shell: Shell, plugins: Path, small_files: None
) -> None:
    del plugins, small_files
    out, rows = shell.folder / "out", write_rows(shell, tint(pause=0))
    (failed,) = batch.run(rows, out)
    assert (failed.state, failed.error) == ("failed", "ResourceError")
    assert "no file may be that large" in failed.message
    assert not list(out.glob("runs/*/result.mp4"))
    assert BatchFolder(out).attempts(failed.key) == 2  # once more, alone
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert batch.forgive(out) == [failed.key]
    (done,) = batch.run(None, out)
    assert done.done


def test_ten_thousand_rows_are_read_at_once_by_status(tmp_path: Path) -> None:
    from retouch.apps.batch_rows import Row

    folder = BatchFolder(tmp_path)
    request = retouch.EditRequest(video=tmp_path / "c.mp4", method="tint")
    many = [Row(line, f"k{line}", request, f"i{line}", "c") for line in range(1, 10_001)]
    folder.prepare(many, {})
    for row in many:
        outcome = {"state": "done", "identity": row.identity, "result": "x", "report": {"seconds": 1}}
        (tmp_path / "done" / f"{row.key}.json").write_text(json.dumps(outcome))
    before = time.process_time()
    assert batch.status(tmp_path)["done"] == 10_000
    assert time.process_time() - before < 2 * 2.0  # seconds, and twice that on a busy machine
