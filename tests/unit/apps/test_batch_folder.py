"""The folder of a batch: one attempt at a time, the first outcome counts, the dead are told from the slow."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from retouch.apps.batch_folder import BatchFolder, Lease
from retouch.apps.batch_rows import Fault, Row
from retouch.request import EditRequest

ELSEWHERE = {"place": "another machine", "process": 1, "born": "1", "identity": "i"}


@pytest.fixture
def folder(tmp_path: Path) -> BatchFolder:
    folder = BatchFolder(tmp_path)
    folder.prepare([], {})
    return folder


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that waits."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def taken(folder: BatchFolder, key: str = "k", identity: str = "i") -> Lease:
    lease = folder.take(key, identity)
    assert lease
    return lease


def by(lease: Lease, **holder: object) -> None:
    """Write another holder into a lease."""
    told = json.loads(lease.path.read_text())
    lease.path.write_text(json.dumps({**told, **holder}))


def by_process(lease: Lease, process: int) -> None:
    born = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    by(lease, process=process, born=born)


def test_a_row_that_a_living_process_works_on_is_left_to_it(
    folder: BatchFolder, child: "subprocess.Popen[bytes]"
) -> None:
    by_process(taken(folder), child.pid)
    assert folder.take("k", "i") is None
    assert not folder.is_free("k")
    child.kill()
    child.wait()
    again = taken(folder)
    assert (again.number, again.deaths, again.folder) == (2, 1, folder.run("k"))


def test_a_process_of_the_same_number_that_began_later_is_another_one(folder: BatchFolder) -> None:
    by(taken(folder), process=os.getppid(), born="1")
    assert taken(folder).deaths == 1


def test_a_silent_holder_elsewhere_is_waited_for_and_then_left_its_folder(folder: BatchFolder) -> None:
    first = taken(folder)
    (first.folder / "checkpoint.safetensors").write_bytes(b"so far")
    by(first, **ELSEWHERE)
    assert folder.take("k", "i", 100.0) is None
    os.utime(first.path, (folder.now() - 101, folder.now() - 101))
    second = folder.take("k", "i", 100.0)
    assert second
    assert second.folder == folder.run("k") / "attempt-2"
    assert (second.folder / "checkpoint.safetensors").read_bytes() == b"so far"
    assert second.holds
    assert not first.holds


def test_an_attempt_shows_signs_of_life_and_none_after_it(folder: BatchFolder) -> None:
    lease = taken(folder)
    os.utime(lease.path, (0, 0))
    seen = threading.Event()
    with lease.renewed(silence=0.09):
        for _ in range(500):
            if lease.path.stat().st_mtime > 0:
                seen.set()
                break
            threading.Event().wait(0.01)
    assert seen.is_set()
    os.utime(lease.path, (0, 0))
    threading.Event().wait(0.05)
    assert lease.path.stat().st_mtime == 0


def test_an_attempt_that_said_how_it_ended_is_no_death_and_goes_on_in_its_folder(folder: BatchFolder) -> None:
    for number, how in enumerate(("stopped", "starved", "stopped"), 1):
        lease = taken(folder)
        assert (lease.number, lease.deaths, lease.folder) == (number, 0, folder.run("k"))
        lease.end(how)
    assert taken(folder).starved


def test_a_request_that_changed_goes_on_in_no_folder_of_another(folder: BatchFolder) -> None:
    first = taken(folder)
    (first.folder / "checkpoint.safetensors").write_bytes(b"of another request")
    first.end("stopped")
    second = taken(folder, identity="j")
    assert second.folder == folder.run("k") / "attempt-2"
    assert not any(second.folder.iterdir())
    assert folder.identity("k") == "j"


def test_of_many_that_take_a_row_at_once_each_number_is_given_once(folder: BatchFolder) -> None:
    leases: list[Lease | None] = []
    threads = [threading.Thread(target=lambda: leases.append(folder.take("k", "i", 100.0))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = [lease.number for lease in leases if lease]
    assert len(set(numbers)) == len(numbers) >= 1


def test_the_first_outcome_counts_and_a_cut_one_counts_for_nothing(folder: BatchFolder) -> None:
    assert folder.outcome("k") is None
    (folder.path / "done" / "k.json").write_text('{"state": "do')
    assert folder.outcome("k") is None
    assert folder.publish("k", {"state": "done", "by": 1})
    assert not folder.publish("k", {"state": "done", "by": 2})
    assert folder.outcome("k") == {"state": "done", "by": 1}
    assert [path.name for path in (folder.path / "done").iterdir()] == ["k.json"]


def test_a_row_that_is_forgiven_has_all_its_attempts_again(folder: BatchFolder) -> None:
    for _ in range(3):
        by(taken(folder), born="1")
    folder.publish("k", {"state": "failed", "identity": "i"})
    folder.forget("k")
    assert folder.outcome("k") is None
    again = taken(folder)
    assert (again.number, again.deaths) == (4, 0)


def test_a_death_counts_in_its_session_and_many_count_in_all(folder: BatchFolder) -> None:
    for number in range(9):
        lease = folder.take("k", "i", session=f"driver {number // 2}")
        assert lease
        assert lease.deaths == max(number % 2, number // 3)
        by(lease, born="1")


def test_a_worker_is_silent_only_while_its_process_may_live(folder: BatchFolder) -> None:
    assert not folder.is_silent("k", 0.0)
    by(lease := taken(folder), **ELSEWHERE)
    assert not folder.is_silent("k", 100.0)
    os.utime(lease.path, (0, 0))
    assert folder.is_silent("k", 100.0)
    lease.end("stopped")
    assert not folder.is_silent("k", 100.0)


def test_an_attempt_that_had_to_be_ended_for_a_stop_is_excused(folder: BatchFolder) -> None:
    by(taken(folder), born="1")
    folder.excuse("k")
    assert taken(folder).deaths == 0


def test_the_same_rows_are_not_written_again_by_each_of_many_shards(folder: BatchFolder) -> None:
    request, path = EditRequest(video=Path("/clip.mp4"), method="tint"), folder.path / "rows.jsonl"
    first, other = (Row(n, f"k{n}", request, f"i{n}", "c") for n in (1, 2))
    folder.prepare([first], {})
    os.utime(path, (1, 1))
    folder.prepare([first], {"shard": "2/2"})
    assert path.stat().st_mtime == 1
    folder.prepare([first, other], {})
    assert len(path.read_text().splitlines()) == 2
    path.unlink()
    folder.prepare([first, other], {})
    assert path.exists()


def test_a_batch_is_through_when_each_row_has_an_outcome(folder: BatchFolder) -> None:
    request = EditRequest(video=Path("/clip.mp4"), method="tint")
    rows: list[Row | Fault] = [Row(n, key, request, key, "c") for n, key in enumerate("aba", 1)]
    rows.append(Fault(4, "bad"))
    folder.publish("a", {"state": "done"})
    assert not folder.is_through(rows)
    folder.publish("b", {"state": "failed"})
    assert folder.is_through(rows)


def test_results_stand_in_the_order_of_the_rows_with_what_is_missing(folder: BatchFolder) -> None:
    request = EditRequest(video=Path("/clip.mp4"), method="tint")
    rows: list[Row | Fault] = [
        Row(3, "b", request, "ib", "c"),
        Fault(4, "bad", "mend it"),
        Row(5, "a", request, "ia", "c"),
    ]
    folder.publish("a", {"state": "done", "result": "runs/a/result.mp4", "report": {"seed": 1}, "attempt": 2})
    results = folder.write_results(rows)
    assert [(told["line"], told["state"]) for told in results] == [(3, "missing"), (4, "failed"), (5, "done")]
    assert "attempt" not in results[2]
    lines = (folder.path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*results[:2], {**results[2], "report": {"seed": 1}}]
