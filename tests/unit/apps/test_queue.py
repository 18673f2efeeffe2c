"""The queue: order, one run a device, stopping and going on, and all of it found again in the run folders."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast, final

import pytest

from retouch.apps import queue
from retouch.apps.queue import Queue, enqueue, enqueue_again, queued
from retouch.apps.run_folder import QUEUED, error_of, new_folder, state_of
from retouch.apps.worker import Worker
from retouch.errors import Cancelled, RequestError, WorkerEnded
from retouch.events import Event, Started, ignore
from retouch.request import EditRequest


@final
class Hand:
    """A worker that carries nothing out: it takes its run out of the queue and waits to be let go."""

    def __init__(self, log: list[str], gate: threading.Event, fault: Exception | None = None) -> None:
        self.log, self.gate, self.fault = log, gate, fault

    def call(self, job: str, given: Mapping[str, str], *, stopped: Callable[[], bool], **_: object) -> object:
        folder = Path(given["folder"])
        self.log.append(f"{job} {folder.name}")
        (folder / QUEUED).unlink()
        while not (self.gate.wait(0.01) or stopped()):
            pass
        if self.fault:
            raise self.fault
        self.log.append(f"{'stopped' if stopped() else 'done'} {folder.name}")
        return {}

    def close(self) -> None:
        """Hold nothing."""


def request(device: str = "cpu") -> EditRequest:
    return EditRequest.model_validate(
        {"video": "/clip.mp4", "method": "paint", "compute": {"device": device}}
    )


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def queue_with(
    log: list[str], gate: threading.Event, fault: Exception | None = None, **options: Any
) -> Queue:
    hand = cast("Callable[[], Worker]", lambda: Hand(log, gate, fault))
    lanes = Queue(worker=hand, every=0.02, **options)
    lanes.start()
    return lanes


def test_a_request_waits_in_its_folder_and_the_first_comes_first() -> None:
    first, second = enqueue(request()), enqueue(request())
    assert queued() == [first, second]
    assert state_of(first) == "queued"
    assert EditRequest.read(first / "request.json") == request()


def test_the_same_key_twice_is_one_run() -> None:
    folder = enqueue(request(), key="once")
    assert enqueue(request(), key="once") == folder
    assert enqueue(request(), key="twice") != folder
    assert enqueue(request()) != enqueue(request())


def test_the_same_key_from_many_at_once_is_one_run() -> None:
    together, found = threading.Barrier(12, timeout=60), list[Path]()

    def ask() -> None:
        together.wait()
        found.append(enqueue(request(), key="once"))

    askers = [threading.Thread(target=ask) for _ in range(12)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(set(found)) == 1
    assert len(found) == 12


def test_no_more_than_fifty_runs_wait() -> None:
    for _ in range(queue.LONGEST):
        enqueue(request())
    with pytest.raises(RequestError, match="50 runs wait already"):
        enqueue(request())


def test_runs_for_one_device_go_one_by_one_and_another_device_does_not_wait() -> None:
    log, gate = list[str](), threading.Event()
    first, second, other = enqueue(request()), enqueue(request()), enqueue(request("cuda:1"))
    lanes = queue_with(log, gate)
    until(lambda: len(log) == 2)
    assert sorted(log) == sorted([f"edit {first.name}", f"edit {other.name}"])
    assert queued() == [second]
    gate.set()
    until(lambda: f"done {second.name}" in log)
    lanes.close()


def test_nothing_is_looked_at_before_the_queue_is_started() -> None:
    def device_of(word: str) -> str:
        raise AssertionError(f"{word} was looked at")

    enqueue(request())
    lanes = Queue(device_of=device_of, every=0.02)
    time.sleep(0.2)
    assert len(queued()) == 1
    assert not lanes.looker.is_alive()


def test_words_for_the_same_device_share_it() -> None:
    log, gate = list[str](), threading.Event()
    enqueue(request("auto"))
    second = enqueue(request("cpu"))
    lanes = queue_with(log, gate, device_of={"auto": "cpu", "cpu": "cpu"}.__getitem__)
    until(lambda: len(log) == 1)
    time.sleep(0.1)
    assert queued() == [second]
    gate.set()
    lanes.close()


def test_a_stopped_run_leaves_the_queue_and_waits_again_when_it_should_go_on() -> None:
    log, gate = list[str](), threading.Event()
    first, second = enqueue(request()), enqueue(request())
    lanes = queue_with(log, gate)
    until(lambda: bool(log))
    lanes.stop(second)
    assert state_of(second) == "stopped"
    lanes.stop(first)
    until(lambda: f"stopped {first.name}" in log)
    enqueue_again(second)
    until(lambda: log[-1] == f"edit {second.name}")
    lanes.close()
    assert log[-1] == f"stopped {second.name}"


def test_a_run_is_stopped_while_its_worker_is_only_starting() -> None:
    begun, told = threading.Event(), threading.Event()

    @final
    class Slow:
        """A worker that has not begun when its run is stopped."""

        def call(self, job: str, given: Mapping[str, str], *, stopped: Callable[[], bool]) -> object:
            del job, given
            begun.set()
            until(stopped)
            told.set()
            raise Cancelled("the run was stopped", hint="It can go on.")

        def close(self) -> None:
            """Hold nothing."""

    folder = enqueue(request())
    lanes = Queue(worker=cast("Callable[[], Worker]", Slow), every=0.02)
    lanes.start()
    assert begun.wait(60)
    assert lanes.state_of(folder) == "queued"
    lanes.stop(folder)
    assert told.wait(60)
    until(lambda: lanes.state_of(folder) == "stopped")
    lanes.close()


def test_a_run_whose_worker_has_just_ended_is_not_taken_for_stopped() -> None:
    log, gate = list[str](), threading.Event()
    folder = enqueue(request())
    lanes = queue_with(log, gate, WorkerEnded("the worker ended by SIGKILL", hint="go on"))
    until(lambda: bool(log) and not (folder / QUEUED).exists())
    assert state_of(folder) == "stopped"
    assert lanes.state_of(folder) == "running"
    gate.set()
    until(lambda: lanes.state_of(folder) == "failed: the worker ended by SIGKILL")
    lanes.close()


def test_a_worker_that_died_is_told_in_the_folder_and_the_queue_goes_on() -> None:
    log, gate = list[str](), threading.Event()
    gate.set()
    first, second = enqueue(request()), enqueue(request())
    lanes = queue_with(log, gate, WorkerEnded("the worker ended by SIGKILL", hint="go on"))
    until(lambda: bool(error_of(second)))
    assert state_of(first) == "failed: the worker ended by SIGKILL"
    enqueue_again(first)
    until(lambda: log.count(f"edit {first.name}") == 2)
    lanes.close()


def test_a_short_job_goes_between_two_runs() -> None:
    log, gate = list[str](), threading.Event()
    first, second = enqueue(request()), enqueue(request())
    lanes = queue_with(log, gate)
    until(lambda: len(log) == 1)
    heard, short = list[Event](), list[object]()

    def ask() -> None:
        given = {"folder": str(new_folder("paint"))}
        (Path(given["folder"]) / QUEUED).touch()
        short.append(lanes.between_runs("cpu", "short", given, listen=heard.append, stopped=bool))

    asker = threading.Thread(target=ask)
    asker.start()
    until(lambda: lanes.waiting["cpu"] == 1)
    assert (heard, short) == ([], [])
    gate.set()
    asker.join()
    until(lambda: f"done {second.name}" in log)
    lanes.close()
    assert [line.split()[0] for line in log] == ["edit", "done", "short", "done", "edit", "done"]
    assert (log[1], log[4]) == (f"done {first.name}", f"edit {second.name}")
    assert (heard, short) == ([Started("load", 1)], [{}])


def test_a_short_job_that_is_stopped_or_whose_queue_ends_never_begins() -> None:
    log, gate = list[str](), threading.Event()
    enqueue(request())
    lanes = queue_with(log, gate)
    until(lambda: len(log) == 1)
    given = {"device": "cpu"}
    with pytest.raises(Cancelled, match="before its turn came"):
        lanes.between_runs("cpu", "short", given, listen=ignore, stopped=lambda: True)
    assert not lanes.waiting["cpu"]
    closer = threading.Thread(target=lanes.close)
    closer.start()
    with pytest.raises(Cancelled, match="before its turn came"):
        lanes.between_runs("cpu", "short", given, listen=ignore, stopped=lambda: False)
    closer.join()
    assert not any(line.startswith("short") for line in log)


def test_a_request_that_cannot_be_read_leaves_the_queue_with_its_reason() -> None:
    folder = enqueue(request())
    (folder / "request.json").write_text("{")
    lanes = queue_with([], threading.Event())
    until(lambda: not queued())
    lanes.close()
    assert state_of(folder).startswith("failed: ")


def test_what_waits_is_found_by_the_next_queue() -> None:
    log, gate = list[str](), threading.Event()
    first = enqueue(request())
    second = enqueue(request())
    before = queue_with(log, gate)
    until(lambda: bool(log))
    before.close()
    assert (state_of(first), state_of(second)) == ("stopped", "queued")
    gate.set()
    after = queue_with(log, gate)
    until(lambda: f"done {second.name}" in log)
    after.close()
