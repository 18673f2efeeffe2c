"""A batch on one machine: worker processes, and which row each takes on next. Imports no torch."""

import contextlib
import dataclasses
import os
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias, final

from retouch.apps.batch_attempt import DROPPED, HELD, STARVED
from retouch.apps.batch_folder import MOST_DEATHS, BatchFolder
from retouch.apps.batch_rows import Row
from retouch.apps.worker import Worker
from retouch.errors import Cancelled, RetouchError, WorkerEnded, error_as_json
from retouch.events import Advanced, Ended, Event, Listener, Notice, Started

RowEnded: TypeAlias = tuple[Row, dict[str, Any]]
Told: TypeAlias = RowEnded | Exception | None
"""What a worker's thread tells: a row that ended, what it cannot go on from, or that it is through."""
LOOK_AGAIN: Final = 0.5
"""Seconds between two looks at rows that others are at work on."""
INTERRUPT_AFTER: Final = 2.0
END_AFTER: Final = 6.0
"""Seconds until a worker that is asked to stop is told to, and ended."""


def carry_out_here(
    groups: Sequence[Sequence[Row]],
    folder: BatchFolder,
    *,
    workers: int | None,
    silence: float,
    listen: Listener,
    stopped: Callable[[], bool],
) -> Iterator[RowEnded]:
    """Carry out rows in processes of this machine, and yield each with its outcome."""
    devices = graphics_cards()
    count = min(workers or len(devices) or 1, sum(map(len, groups)))
    closing = threading.Event()
    schedule = Schedule(groups, folder, silence, lambda: closing.is_set() or stopped())
    ended: queue.SimpleQueue[Told] = queue.SimpleQueue()
    hear = one_by_one(listen)
    threads = [
        threading.Thread(
            target=_work, args=(number, environment_of(number, count, devices), schedule, ended, hear)
        )
        for number in range(1, count + 1)
    ]
    for thread in threads:
        thread.start()
    try:
        left = len(threads)
        while left:
            told = ended.get()
            if isinstance(told, Exception):
                raise told
            if told is None:
                left -= 1
            else:
                yield told
    finally:
        closing.set()
        for thread in threads:
            thread.join()


def graphics_cards() -> list[str]:
    """Return the GPUs of this machine, as CUDA names them, found without loading anything."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return sorted((match[1] for match in found if match), key=int)


def environment_of(number: int, count: int, devices: Sequence[str]) -> dict[str, str]:
    """Return what a worker's environment says: its GPU, or its share of the processor."""
    if devices:
        return {"CUDA_VISIBLE_DEVICES": devices[(number - 1) % len(devices)]}
    if count == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // count))}


@final
class Schedule:
    """Which row a worker takes on next, for as long as there are any."""

    def __init__(
        self,
        groups: Sequence[Sequence[Row]],
        folder: BatchFolder,
        silence: float,
        stopped: Callable[[], bool],
    ) -> None:
        self.folder, self.silence, self.stopped = folder, silence, stopped
        self.waiting = [deque(group) for group in groups]
        self.taken: dict[int, deque[Row]] = {}
        """What is left of each worker's group."""
        self.at_work: dict[int, tuple[Row, float]] = {}
        self.models: dict[int, tuple[str, ...]] = {}
        self.held = deque[Row]()
        """Rows that other processes were at work on."""
        self.alone = deque[Row]()
        """Rows that want the machine for themselves."""
        self.done: set[str] = set()
        self.false_starts: dict[int, int] = {}
        self.news = threading.Condition()

    def take(self, worker: int) -> Row | None:
        """Return the next row of a worker, waiting for one if need be; None when there are no more."""
        with self.news:
            while not self.stopped():
                if row := self._next(worker) or self._overdue(worker):
                    self.at_work[worker] = (row, time.monotonic())
                    self.models[worker] = row.models
                    return row
                if self.is_through():
                    return None
                self.news.wait(LOOK_AGAIN)
        return None

    def is_through(self) -> bool:
        """Whether every row is done, those included that a worker still holds and another did."""
        with self.news:
            left = self.waiting or self.held or self.alone or any(self.taken.values())
            return not (left or self._busy())

    def _busy(self) -> list[Row]:
        return [row for row, _ in self.at_work.values() if row.key not in self.done]

    def end(self, worker: int, row: Row) -> bool:
        """Take a row as done; return whether it was not before."""
        with self.news:
            self.at_work.pop(worker, None)
            first = row.key not in self.done
            self.done.add(row.key)
            self.news.notify_all()
            return first

    def give_back(self, worker: int, row: Row, *, state: str = "") -> None:
        """Let a row wait that could not be carried out: held by others, starved, or to be tried at once."""
        with self.news:
            self.at_work.pop(worker, None)
            place = {HELD: self.held, STARVED: self.alone}.get(state)
            if place is None:
                self.taken.setdefault(worker, deque()).appendleft(row)
            else:
                place.append(row)
            self.news.notify_all()

    def count_start(self, worker: int, error: WorkerEnded, *, begun: bool) -> None:
        """Raise the error of a worker that ended several times before it had even begun."""
        self.false_starts[worker] = 0 if begun else self.false_starts.get(worker, 0) + 1
        if self.false_starts[worker] >= MOST_DEATHS:
            raise error

    def _next(self, worker: int) -> Row | None:
        own = self.taken.setdefault(worker, deque())
        if not own and self.waiting:
            own = self.taken[worker] = self.waiting.pop(self._best(worker))
        if not own:
            own = self.taken[worker] = self._half_of_the_longest()
        if own:
            return own.popleft()
        if self.held:
            self.held.rotate(-1)
            if self._is_open(self.held[-1]):
                return self.held.pop()
        if self.alone and not self._busy():
            return self.alone.popleft()
        return None

    def _best(self, worker: int) -> int:
        """Return which group suits a worker: a clip nobody works on, its own model, one that no other has."""
        clips = {row.clip for row, _ in self.at_work.values()}
        others = {models for number, models in self.models.items() if number != worker}
        mine = self.models.get(worker)

        def cost(index: int) -> tuple[bool, bool, bool]:
            row = self.waiting[index][0]
            return row.clip in clips, row.models != mine, row.models in others

        return min(range(len(self.waiting)), key=cost)

    def _half_of_the_longest(self) -> deque[Row]:
        """Take half of what is left of the longest group from whoever has it."""
        longest = max(self.taken.values(), key=len)
        return deque(reversed([longest.pop() for _ in range((len(longest) + 1) // 2)]))

    def _is_open(self, row: Row) -> bool:
        return self.folder.outcome(row.key) is not None or self.folder.is_free(row.key, self.silence)

    def _overdue(self, worker: int) -> Row | None:
        """Return a row that another worker began and shows no sign of any more."""
        for number, (row, since) in self.at_work.items():
            late = number != worker and time.monotonic() - since > self.silence
            if late and row.key not in self.done and self._is_open(row):
                self.at_work[number] = (row, time.monotonic())  # nobody else need take it over too
                return row
        return None


def _work(
    number: int,
    environment: dict[str, str],
    schedule: Schedule,
    ended: "queue.SimpleQueue[Told]",
    listen: Listener,
) -> None:
    """Carry out one row after another in a worker of one's own."""
    worker = Worker(environment=environment, interrupt_after=INTERRUPT_AFTER, end_after=END_AFTER)
    try:
        while row := schedule.take(number):
            _carry_out(row, number, worker, schedule, ended, listen)
    except Exception as error:
        ended.put(error)
    finally:
        worker.close()
        ended.put(None)


def _carry_out(
    row: Row,
    number: int,
    worker: Worker,
    schedule: Schedule,
    ended: "queue.SimpleQueue[Told]",
    listen: Listener,
) -> None:
    folder, attempts = schedule.folder, schedule.folder.attempts(row.key)
    try:
        with staged(listen, f"worker {number}: {row.key}") as tell:
            outcome = worker.call(
                "row",
                order_of(row, folder, schedule.silence),
                listen=tell,
                stopped=lambda: schedule.stopped() or schedule.is_through(),
            )
    except Cancelled:
        folder.excuse(row.key)
        schedule.give_back(number, row)
        return
    except WorkerEnded as error:
        schedule.give_back(number, row)
        schedule.count_start(number, error, begun=folder.attempts(row.key) > attempts)
        listen(Notice(f"{error}, at line {row.line}; it is tried again"))
        return
    except RetouchError as error:  # what it is could not even be written down
        outcome = {"state": "failed", **error_as_json(error)}
    if outcome["state"] in (HELD, STARVED):
        schedule.give_back(number, row, state=outcome["state"])
        return
    if outcome["state"] == DROPPED:
        outcome = folder.outcome(row.key) or outcome
    if schedule.end(number, row):
        ended.put((row, outcome))


def order_of(row: Row, folder: BatchFolder, silence: float) -> dict[str, object]:
    """Return what a worker is given to carry out a row."""
    return {
        "batch": str(folder.path),
        "key": row.key,
        "request": row.request.as_json(),
        "clip": row.clip,
        "identity": row.identity,
        "silence": silence,
    }


def one_by_one(listen: Listener) -> Listener:
    """Return a listener that many threads may tell."""
    lock = threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            listen(event)

    return tell


@contextlib.contextmanager
def staged(listen: Listener, name: str) -> Iterator[Listener]:
    """Give a listener that puts a name before each stage, and ends the stages that are left open."""
    begun = set[str]()

    def tell(event: Event) -> None:
        if isinstance(event, (Started, Advanced, Ended)):
            event = dataclasses.replace(event, stage=f"{name}: {event.stage}")
            begun.add(event.stage)
            begun.difference_update([event.stage] if isinstance(event, Ended) else [])
        listen(event)

    try:
        yield tell
    finally:
        for stage in begun:
            listen(Ended(stage))
